"""The sections of a run's configuration that belong to vision-language models. Loads no torch."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from mmrl.config import Section
from mmrl.vlm.memory import describe as memory_lines  # noqa: F401  (the estimate of --dry-run)

#: What imitating one record costs: about four samples, for each record has a picture of its own.
SAMPLES_A_DEMONSTRATION = 4.0


class Adapter(Section):
    kind: Literal["none", "lora"] = "none"
    rank: int = Field(16, ge=1, le=65536)
    alpha: float = Field(32, gt=0)
    dropout: float = Field(0.0, ge=0, lt=1)
    targets: list[str] | Literal["language", "all"] = Field(
        "language", description="module names, or all linear layers of the language model / of everything"
    )


class Model(Section):
    path: str = Field(description="folder written by save_pretrained, hub id, or embedded:vlm")
    base: str | None = Field(
        None, description="where path is an adapter: its base model, in place of the one that the adapter names"
    )
    adapter: Adapter = Field(default_factory=Adapter)
    freeze: list[Literal["vision", "projector", "language", "embeddings"]] = Field(default_factory=list)
    trust_remote_code: bool = False
    autocast: Literal["auto", "off", "bf16"] = Field("auto", description="auto: bf16 on GPUs, off on CPUs")
    attention: Literal["sdpa", "eager", "flash_attention_2"] = "sdpa"
    gradient_checkpointing: bool = False
    shared_prefix: Literal["auto", "cache", "packed", "off"] = Field(
        "auto", description="auto: cache, or packed rows when gradient checkpointing is on"
    )
    piece_tokens: int = Field(
        2048,
        ge=1,
        description="token budget of one piece (a chunk of rows of some prompts), and of prompts sampled from at once; "
        "small for memory, 8192 and more where a GPU has room",
    )
    head_chunk: int = Field(1024, ge=1, description="positions whose logits live at once")
    allow_dropout: bool = False


class Sampling(Section):
    temperature: float = Field(1.0, gt=0)
    top_p: float = Field(1.0, gt=0, le=1)
    top_k: int = Field(0, ge=0, description="0 = off")
    max_new_tokens: int = Field(256, ge=1, le=1_000_000)
    suppress: list[str | int] = Field(
        default_factory=list, description="further tokens that are never sampled; picture tokens never are"
    )
    stop: list[str | int] = Field(default_factory=list, description="further end tokens")
    truncated: Literal["keep", "mask", "penalise"] = "keep"
    truncation_penalty: float = Field(-1.0, le=0, description="added to the reward when truncated: penalise")
    batch_rows: int = Field(256, ge=1, description="rows decoded together")


class Inputs(Section):
    max_prompt_tokens: int = Field(4096, ge=1)
    system: str | None = None
    min_pixels: int | None = Field(None, ge=1)
    max_pixels: int | None = Field(None, ge=1)
    max_image_side: int = Field(20000, ge=1, description="larger pictures are refused before they are decoded")
    max_image_pixels: int = Field(100_000_000, ge=1)
