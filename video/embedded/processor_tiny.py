"""Tokenizer, processor and configuration of the embedded video-language model: Qwen3-VL in miniature.

Real classes of transformers in small sizes, as in `mmrl.vlm.processor_tiny`. The vocabulary is written down: a
question, an option, a time stamp, a digit and what happens to it are a token each, so a prompt takes about 51 tokens
with its clip and an answer about 24 with its end. Any other text still encodes, by characters and bytes.
"""

from __future__ import annotations

import re

from transformers import PreTrainedTokenizerFast, Qwen3VLConfig, Qwen3VLProcessor

from mmrl.vlm.processor_tiny import CHAT_PHRASES, SPECIAL, config_of, processor_of, tokenizer_of
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
    picture = {"shortest_edge": 16 * 16, "longest_edge": 256 * 256}
    whole = {"shortest_edge": 2 * 16 * 16, "longest_edge": 16 * 128 * 128}  # pixels of all frames together
    video = {"size": whole, "cap_pixels_per_frame": False}
    return processor_of(make_tokenizer(), picture={"size": picture}, video=video)


def make_config(tokenizer: PreTrainedTokenizerFast) -> Qwen3VLConfig:
    """A digit on its place is one token of the language model. The weights begin four times as large as is usual for
    large models: with 0.02 the model has read no clip after 200 steps, with 0.08 two of three."""
    return config_of(tokenizer, layers=3, vision={"depth": 1, "deepstack_visual_indexes": []}, spread=START)
