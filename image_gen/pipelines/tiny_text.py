"""Tokenizers and text encoders of the real classes in miniature, made in code: no file is read, nothing is fetched.

Every tokenizer cuts a text into characters or bytes, so any prompt encodes and different prompts differ.
"""

from __future__ import annotations

from typing import Any

_BYTES = [f"<0x{byte:02X}>" for byte in range(256)]


def _byte_characters() -> list[str]:
    """The 256 printable characters that byte-level BPE writes for bytes."""
    from tokenizers import pre_tokenizers

    return sorted(pre_tokenizers.ByteLevel.alphabet())


def clip_tokenizer(*, length: int = 77) -> Any:
    from transformers import CLIPTokenizer

    characters = _byte_characters()
    words = [*characters, *(f"{one}</w>" for one in characters), "<|startoftext|>", "<|endoftext|>"]
    return CLIPTokenizer(vocab={word: i for i, word in enumerate(words)}, merges=[], model_max_length=length)


def t5_tokenizer(*, length: int = 512) -> Any:
    from transformers import T5TokenizerFast

    words = ["▁", *(chr(code) for code in range(33, 127))]
    vocab = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), *((word, -2.0) for word in words)]
    return T5TokenizerFast(vocab=vocab, extra_ids=0, additional_special_tokens=[], model_max_length=length)


def gemma_tokenizer() -> Any:
    from transformers import GemmaTokenizerFast

    words = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>", *_BYTES, "▁", *(chr(code) for code in range(33, 127))]
    tokenizer = GemmaTokenizerFast(vocab={word: i for i, word in enumerate(words)}, merges=[], add_bos_token=True)
    tokenizer.model_max_length = 4096
    return tokenizer


def qwen_tokenizer() -> Any:
    from transformers import Qwen2Tokenizer

    words = [*_byte_characters(), "<|endoftext|>"]
    tokenizer = Qwen2Tokenizer(vocab={word: i for i, word in enumerate(words)}, merges=[])
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]})
    return tokenizer


def clip_encoder(tokenizer: Any, *, width: int = 32, projection: bool = False) -> Any:
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    config = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=width,
        projection_dim=width,
        intermediate_size=2 * width,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=tokenizer.model_max_length,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return (CLIPTextModelWithProjection if projection else CLIPTextModel)(config)


def t5_encoder(tokenizer: Any, *, width: int = 32) -> Any:
    from transformers import T5Config, T5EncoderModel

    config = T5Config(
        vocab_size=len(tokenizer), d_model=width, d_kv=8, d_ff=width, num_layers=1, num_heads=2, dropout_rate=0.0
    )
    return T5EncoderModel(config)


def gemma_encoder(tokenizer: Any, *, width: int = 16) -> Any:
    from transformers import Gemma2Config, Gemma2Model

    config = Gemma2Config(
        vocab_size=len(tokenizer),
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=8,
        max_position_embeddings=4096,
        sliding_window=4096,
    )
    return Gemma2Model(config)


def qwen_encoder(tokenizer: Any, *, width: int = 16) -> Any:
    from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

    config = Qwen2_5_VLConfig(
        text_config={
            "vocab_size": len(tokenizer),
            "hidden_size": width,
            "intermediate_size": 2 * width,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "num_key_value_heads": 2,
            "max_position_embeddings": 2048,
            "bos_token_id": tokenizer.pad_token_id,
            "eos_token_id": tokenizer.pad_token_id,
            "rope_scaling": {"type": "default", "mrope_section": [1, 1, 2], "rope_type": "default"},
            "rope_theta": 1000000.0,
        },
        vision_config={
            "depth": 1,
            "hidden_size": width,
            "intermediate_size": 2 * width,
            "num_heads": 2,
            "out_hidden_size": width,
            "fullatt_block_indexes": [0],
        },
    )
    return Qwen2_5_VLForConditionalGeneration(config)
