"""Tokenizer, processor and configuration of the embedded video-language model: Qwen3-VL in miniature.

Real classes of transformers in small sizes, as in `mmrl.vlm.processor_tiny`. The vocabulary is written down: a
question, an option, a time stamp, a digit and what happens to it are a token each, so a prompt takes about 51 tokens
with its clip and an answer about 24 with its end. Any other text still encodes, by characters and bytes.
"""

from __future__ import annotations

import re
from typing import Any

from transformers import (
    PreTrainedTokenizerFast,
    Qwen2VLImageProcessor,
    Qwen3VLConfig,
    Qwen3VLProcessor,
    Qwen3VLVideoProcessor,
)

from mmrl.vlm.processor_tiny import CHAT_PHRASES, CHAT_TEMPLATE, MERGE, PATCH, SPECIAL, tokenizer_of
from video.embedded import clips, questions
from video.embedded.records import ABSENT, RIGHT

START = 0.08  # standard deviation of the first weights

#: Tags, separators and digits are apart from what is decided between them.
ANSWER_PHRASES = (
    "<think>",
    "</think>",
    "<answer>",
    "</answer>",
    "</think><answer>",
    ", ",
    *(f" {told}" for told in (*clips.FATES, ABSENT)),
    RIGHT,
)


def time_stamps() -> list[str]:
    """What the processor writes before each pair of frames."""
    return [f"<{(4 * t + 1) / (2 * clips.FPS):.1f} seconds>" for t in range(clips.STEPS)]


def _prompt_phrases() -> list[str]:
    """The questions, options, the closing sentence."""
    options = [f"\n{letter} {digit}" for letter in questions.LETTERS for digit in range(10)]
    return [*questions.WORDS.values(), *options, "\n" + questions.FORMAT]


def vocabulary() -> list[str]:
    """All pieces in order, special tokens first, without repeats."""
    phrases = _prompt_phrases()
    words = sorted({w for p in phrases for w in re.findall(r" ?[A-Za-z]{2,}", p)})
    characters = [chr(c) for c in range(32, 127)] + ["\n"]
    pieces = [
        *SPECIAL,
        *(f"<0x{byte:02X}>" for byte in range(256)),
        *CHAT_PHRASES,
        *ANSWER_PHRASES,
        *time_stamps(),
        *characters,
        *phrases,
        *words,
    ]
    return list(dict.fromkeys(pieces))


def make_tokenizer() -> PreTrainedTokenizerFast:
    return tokenizer_of(vocabulary())


def make_processor() -> Qwen3VLProcessor:
    """Frames keep their size when their sides are multiples of 16 pixels."""
    cut: dict[str, Any] = {"patch_size": PATCH, "merge_size": MERGE, "temporal_patch_size": 2}
    normal: dict[str, Any] = {"image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5]}
    picture = {"shortest_edge": 16 * 16, "longest_edge": 256 * 256}
    whole = {"shortest_edge": 2 * 16 * 16, "longest_edge": 16 * 128 * 128}  # pixels of all frames together
    return Qwen3VLProcessor(
        image_processor=Qwen2VLImageProcessor(size=picture, **cut, **normal),
        tokenizer=make_tokenizer(),
        video_processor=Qwen3VLVideoProcessor(size=whole, cap_pixels_per_frame=False, **cut, **normal),
        chat_template=CHAT_TEMPLATE,
    )


def make_config(tokenizer: PreTrainedTokenizerFast) -> Qwen3VLConfig:
    """A digit on its place is one token of the language model. The weights begin four times as large as is usual for
    large models: with 0.02 the model has read no clip after 200 steps, with 0.08 two of three."""
    token = tokenizer.convert_tokens_to_ids
    return Qwen3VLConfig(
        initializer_range=START,
        text_config={
            "initializer_range": START,
            "vocab_size": len(tokenizer),
            "hidden_size": 96,
            "intermediate_size": 192,
            "num_hidden_layers": 3,
            "num_attention_heads": 4,
            "num_key_value_heads": 4,
            "head_dim": 24,
            "max_position_embeddings": 4096,
            "rms_norm_eps": 1e-6,
            # the three sections are time, height, width; they sum to half of head_dim
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": 10000.0,
                "mrope_section": [4, 4, 4],
                "mrope_interleaved": True,
            },
            "tie_word_embeddings": True,
            "bos_token_id": None,
            "eos_token_id": token("<|im_end|>"),
            "pad_token_id": token("<|endoftext|>"),
        },
        vision_config={
            "initializer_range": START,
            "depth": 1,
            "hidden_size": 64,
            "intermediate_size": 128,
            "num_heads": 4,
            "patch_size": PATCH,
            "spatial_merge_size": MERGE,
            "temporal_patch_size": 2,
            "out_hidden_size": 96,
            "num_position_embeddings": 64,
            "deepstack_visual_indexes": [],
        },
        image_token_id=token("<|image_pad|>"),
        video_token_id=token("<|video_pad|>"),
        vision_start_token_id=token("<|vision_start|>"),
        vision_end_token_id=token("<|vision_end|>"),
        tie_word_embeddings=True,
    )
