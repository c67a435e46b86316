"""Vision-language models of the Qwen-VL shape. Importing this package loads no torch."""
