"""Video-language models: clips as inputs of the vision-language policy, token weights (TW-GRPO), video tasks and tools.

Loads no torch.
"""
