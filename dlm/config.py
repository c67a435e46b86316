"""The sections of a run's configuration that belong to masked diffusion language models. Loads no torch."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from dlm.memory import memory_lines as memory_lines  # the estimate of --dry-run
from dlm.memory import piece_lines as piece_lines
from mmrl.config import Section

#: What imitating one record costs beside sampling one completion: a forward and a backward for a whole decoding.
SAMPLES_A_DEMONSTRATION = 4.0
#: `mmrl quickstart dlm`: GDPO on a full-attention model, LightningRL on a block-attention one.
QUICKSTART = {"gdpo": "quickstart/dlm_gdpo", "lightningrl": "quickstart/dlm_lightningrl"}


class Adapter(Section):
    kind: Literal["none", "lora"] = "none"
    rank: int = Field(16, ge=1, le=65536)
    alpha: float = Field(32, gt=0)
    targets: Annotated[list[str], Field(min_length=1)] | Literal["default", "d1"] = Field(
        "default", description="layers by name; d1: the four that the d1 list really matches on LLaDA"
    )


class Model(Section):
    path: str = Field(description="folder in the layout of a release, hub id, a stored adapter, embedded:sort, ...")
    base: str | None = Field(None, description="where path is an adapter: its base model")
    adapter: Adapter = Field(default_factory=Adapter)
    autocast: Literal["auto", "off", "bf16"] = Field("auto", description="auto: bf16 on GPUs, off on CPUs")
    gradient_checkpointing: bool = False
    mask_id: int | None = Field(None, description="where neither config.json nor the tokenizer tells the mask token")
    block: int | None = Field(
        None, ge=1, description="block size of a block-attention model, where config.json has none"
    )
    piece_tokens: int = Field(8192, ge=1, description="padded columns of one forward of the update")
    packing: bool = Field(False, description="rows of different length side by side in one sequence, not padded")
    head_chunk: int = Field(1024, ge=1, description="positions whose logits live at once")


class Likelihood(Section):
    """How likely a sampled completion is held to be (`dlm.likelihood`). Imitation always takes `elbo` over the whole
    canvas, with these options if that is the name here."""

    name: str = "sdmc"
    options: dict[str, Any] = Field(default_factory=dict)
    region: Literal["canvas", "to_eos"] = Field(
        "canvas", description="positions that are scored: all, or those up to and including the first end token"
    )


class Sampling(Section):
    temperature: float = Field(1.0, ge=0, description="0 = the most likely token")
    top_p: float = Field(1.0, gt=0, le=1)
    top_k: int = Field(0, ge=0, description="0 = off")
    max_new_tokens: int = Field(256, ge=1, le=1_000_000, description="length of the canvas")
    block: int | None = Field(
        32, ge=1, description="columns decoded before the next; block-attention models have a grid of their own"
    )
    order: Literal["low_confidence", "random", "entropy", "margin", "sequential"] = Field(
        "low_confidence", description="which positions are filled first"
    )
    rule: Literal["steps", "threshold", "factor"] = Field(
        "steps", description="how many at once: a fixed schedule; all above a confidence; Fast-dLLM's factor"
    )
    steps: int | None = Field(None, ge=1, description="rule steps: forwards per completion; default half its length")
    threshold: float = Field(0.9, ge=0, le=1, description="rule threshold: confidence above which all are filled")
    factor: float = Field(
        1.0, gt=0, description="rule factor: fill n while (n + 1)(1 - confidence of the nth) < factor"
    )
    cache: Literal["off", "block", "prefix", "dual"] = Field(
        "off", description="block: exact, block-attention models only; prefix and dual: approximate, full attention"
    )
    refresh: int = Field(
        0, ge=0, description="prefix, dual: recompute every n forwards inside a block; 0 = at its start"
    )
    guidance: float = Field(
        0.0, ge=0, description="scale s of l_u + (s + 1)(l_c - l_u), in sampling and likelihood; 0 = off"
    )
    eos: Literal["free", "late", "never"] = Field(
        "free", description="late: end tokens are filled last, so that an answer is not cut short; never: not sampled"
    )
    stop: list[str | int] = Field(default_factory=list, description="further end tokens")
    likelihood: Likelihood = Field(default_factory=Likelihood)
    truncated: Literal["keep", "mask", "penalise"] = "keep"
    truncation_penalty: float = Field(-1.0, le=0, description="added to the reward when truncated: penalise")
    batch_rows: int = Field(256, ge=1, description="rows decoded together")
    eval_temperature: float = Field(0.0, ge=0, description="of held-out evaluation")
    eval_threshold: float | None = Field(None, ge=0, le=1, description="of held-out evaluation; default: threshold")


class Inputs(Section):
    max_prompt_tokens: int = Field(4096, ge=1)
    prompt_overflow: Literal["error", "left"] = Field("error", description="left: drop the beginning of a long prompt")
    system: str | None = None
    chat: Literal["auto", "on", "off"] = Field("auto", description="auto: the tokenizer's chat template, if it has one")
    eval_thresholds: list[Annotated[float, Field(ge=0, le=1)]] = Field(
        default_factory=list, description="confidence thresholds whose accuracy and TPF are drawn and summed up as AUP"
    )
