"""Tokenizer, processor and configuration of the embedded vision-language model: Qwen3-VL in miniature.

The parts are the real classes of transformers in small sizes, so that a folder written here loads through
`AutoProcessor.from_pretrained` and `AutoModelForImageTextToText.from_pretrained` like any published checkpoint.

The tokenizer is a Unigram model whose vocabulary is written down rather than trained: the fixed phrases of prompts and
answers, the coordinates that occur, the words and characters of the prompts, and the 256 bytes. A text is cut into the
fewest pieces, so an official detection answer takes about 17 tokens; any other text still encodes, by characters and
bytes.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from tokenizers import Tokenizer, decoders
from tokenizers.models import Unigram
from transformers import (
    PreTrainedTokenizerFast,
    Qwen2VLImageProcessor,
    Qwen3VLConfig,
    Qwen3VLProcessor,
    Qwen3VLVideoProcessor,
)

from mmrl.vlm import scenes
from mmrl.vlm.scene_pictures import COORDINATES

SPECIAL = (
    "<|endoftext|>",  # pads
    "<|im_start|>",
    "<|im_end|>",  # ends an answer
    "<|vision_start|>",
    "<|vision_end|>",
    "<|image_pad|>",
    "<|video_pad|>",
)
PATCH = 8
MERGE = 2

#: Pieces of answers longer than a word. Tags, brackets and separators are apart from what is decided between them.
ANSWER_PHRASES = (
    "<think>",
    "</think>",
    "<answer>",
    "</answer>",
    "</think><answer>",
    "[{'Position': [",
    "], 'Confidence': ",
    "}, {'Position': [",
    "}]",
    ", ",
    "),(",
    " at ",
    "No Objects",
    *scenes.INSTRUCTIONS,
)
CHAT_PHRASES = ("system\n", "user\n", "assistant\n")

#: The chat format of Qwen's vision-language models: pictures and videos become placeholders where they stand.
CHAT_TEMPLATE = (
    "{%- for message in messages %}"
    "{{- '<|im_start|>' + message['role'] + '\\n' }}"
    "{%- if message['content'] is string %}{{- message['content'] }}"
    "{%- else %}{%- for part in message['content'] %}"
    "{%- if part['type'] == 'image' %}{{- '<|vision_start|><|image_pad|><|vision_end|>' }}"
    "{%- elif part['type'] == 'video' %}{{- '<|vision_start|><|video_pad|><|vision_end|>' }}"
    "{%- else %}{{- part['text'] }}{%- endif %}"
    "{%- endfor %}{%- endif %}"
    "{{- '<|im_end|>\\n' }}"
    "{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}"
)


def _prompt_phrases() -> list[str]:
    """The prompts of `scenes`, cut where a category or an instruction is filled in."""
    prompts = (scenes.DETECTION, scenes.CLASSIFICATION, scenes.COUNTING, scenes.GROUNDING)
    plain = (p.replace("{{", "\0").replace("}}", "\1") for p in prompts)
    pieces = [piece for p in plain for piece in re.split(r"\{\w+\}", p)]
    return [piece.replace("\0", "{").replace("\1", "}") for piece in pieces]


def vocabulary() -> list[str]:
    """All pieces in order, special tokens first, without repeats."""
    phrases = _prompt_phrases()
    words = sorted({w for p in phrases for w in re.findall(r" ?[A-Za-z]{2,}", p)})
    numbers = sorted({str(c) for c in COORDINATES} | {str(d) for d in range(10)}, key=int)
    characters = [chr(c) for c in range(32, 127)] + ["\n"]
    pieces = [
        *SPECIAL,
        *(f"<0x{byte:02X}>" for byte in range(256)),
        *CHAT_PHRASES,
        *ANSWER_PHRASES,
        *scenes.CONFIDENCES,
        *numbers,
        *characters,
        *phrases,
        *words,
    ]
    return list(dict.fromkeys(pieces))


def make_tokenizer() -> PreTrainedTokenizerFast:
    return tokenizer_of(vocabulary())


def tokenizer_of(pieces: Sequence[str]) -> PreTrainedTokenizerFast:
    """A tokenizer with this vocabulary, in order, `SPECIAL` and the 256 bytes in it. Every piece costs the same, so the
    best segmentation is the shortest one; a byte costs much more."""
    scores = [(piece, -20.0 if re.fullmatch(r"<0x..>", piece) else -1.0) for piece in pieces]
    core = Tokenizer(Unigram(scores, unk_id=0, byte_fallback=True))
    core.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Fuse()])
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        additional_special_tokens=list(SPECIAL[1:]),
        clean_up_tokenization_spaces=False,
        model_max_length=4096,
    )


def make_processor() -> Qwen3VLProcessor:
    """Pictures keep their size when a multiple of 16 pixels; from 32 x 32 up to 256 x 256 pixels."""
    size = {"shortest_edge": 32 * 32, "longest_edge": 256 * 256}
    return processor_of(make_tokenizer(), picture={"size": size}, video={"size": size})


def processor_of(
    tokenizer: PreTrainedTokenizerFast, *, picture: dict[str, Any], video: dict[str, Any]
) -> Qwen3VLProcessor:
    """A processor with patches of 8 pixels, merged 2 x 2. picture, video: what else its two parts are told."""
    cut: dict[str, Any] = {"patch_size": PATCH, "merge_size": MERGE, "temporal_patch_size": 2}
    normal: dict[str, Any] = {"image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5]}
    return Qwen3VLProcessor(
        image_processor=Qwen2VLImageProcessor(**picture, **cut, **normal),
        tokenizer=tokenizer,
        video_processor=Qwen3VLVideoProcessor(**video, **cut, **normal),
        chat_template=CHAT_TEMPLATE,
    )


def make_config(tokenizer: PreTrainedTokenizerFast) -> Qwen3VLConfig:
    """The size that learns on a laptop: about half a million parameters."""
    return config_of(tokenizer, layers=2, vision={"depth": 2, "deepstack_visual_indexes": [0]})


def config_of(
    tokenizer: PreTrainedTokenizerFast, *, layers: int, vision: dict[str, Any], spread: float = 0.02
) -> Qwen3VLConfig:
    """Width 96 with `layers` language layers, a vision tower of width 64. vision: its depth, and the blocks whose
    values the language model gets too. spread: standard deviation of the first weights, by default as in large models.
    """
    token = tokenizer.convert_tokens_to_ids
    return Qwen3VLConfig(
        initializer_range=spread,
        text_config={
            "initializer_range": spread,
            "vocab_size": len(tokenizer),
            "hidden_size": 96,
            "intermediate_size": 192,
            "num_hidden_layers": layers,
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
            "initializer_range": spread,
            "hidden_size": 64,
            "intermediate_size": 128,
            "num_heads": 4,
            "patch_size": PATCH,
            "spatial_merge_size": MERGE,
            "temporal_patch_size": 2,
            "out_hidden_size": 96,
            "num_position_embeddings": 64,
            **vision,
        },
        image_token_id=token("<|image_pad|>"),
        video_token_id=token("<|video_pad|>"),
        vision_start_token_id=token("<|vision_start|>"),
        vision_end_token_id=token("<|vision_end|>"),
        tie_word_embeddings=True,
    )
