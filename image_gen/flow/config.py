"""The sections of a run's configuration that belong to flow-matching image models. Loads no torch."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, model_validator

from image_gen.flow.memory import describe as memory_lines  # noqa: F401
from image_gen.sections import Adapter as Adapter
from mmrl.config import Section
from mmrl.data.rows import Require

#: What a record must have: a prompt is enough, rewards read the rest of it; one to imitate has a picture.
REQUIRE: Require = "prompt"
DEMONSTRATION: Require = "prompt"
#: What imitating one picture costs: one level of noise where a sample has all steps, twice.
SAMPLES_A_DEMONSTRATION = 1 / 8
#: Where the quickstart's supervised control finds pictures to imitate.
QUICKSTART_DEMONSTRATIONS = ["data.train=digits:class?demos=2000"]


class Model(Section):
    path: str = Field(description="folder of a diffusers pipeline, hub id, a stored LoRA, or embedded:flow")
    base: str | None = Field(
        None, description="where path is a LoRA: its base model, in place of the one that the LoRA names"
    )
    adapter: Adapter = Field(default_factory=Adapter)
    autocast: Literal["auto", "off", "bf16"] = Field("auto", description="auto: bf16 on GPUs, off on CPUs")
    gradient_checkpointing: bool = False
    piece_rows: int = Field(16, ge=1, description="images of one denoising step whose graph lives at once")
    detach_uncond: bool = Field(False, description="no gradient through the unconditional half of the guidance")
    kl_form: Literal["code", "exact"] = Field(
        "code", description="code: (mean - ref)^2 / (2 sigma_t^2), as published; exact: with the step width -dt too"
    )


class Window(Section):
    """Which denoising steps are stochastic and trained (`image_gen.flow.windows`)."""

    name: Literal["all", "first", "sliding", "random"] = "all"
    options: dict[str, Any] = Field(default_factory=dict)


class Sampling(Section):
    steps: int = Field(10, ge=2, le=1000, description="denoising steps while training")
    rule: Literal["sde", "cps", "dance"] = Field("sde", description="how a stochastic step draws its noise")
    noise: float = Field(0.7, gt=0, description="level of that noise: a of sde and cps, eta of dance")
    guidance: float = Field(4.5, ge=0, description="scale; 1 = without the unconditional half, where there is one")
    window: Window = Field(default_factory=Window)
    same_noise: bool = Field(False, description="the images of a group begin with the same noise")
    score_every: int = Field(
        1, ge=1, description="with rewards per step: score every n-th projection and the last, interpolate between"
    )
    eval_steps: int = Field(40, ge=1, le=1000, description="steps of the noiseless sampler of evaluation and generate")
    eval_guidance: float | None = Field(None, ge=0, description="default: guidance")
    batch_rows: int = Field(16, ge=1, description="images denoised together")
    decode_rows: int = Field(4, ge=1, description="images decoded together")

    @model_validator(mode="after")
    def _level_of_the_rule(self) -> Sampling:
        if self.rule == "cps" and self.noise > 1:
            raise ValueError(f"noise: cps takes a level above 0 and at most 1, got {self.noise:g}")
        return self


class Inputs(Section):
    height: int = Field(512, ge=1, le=16384)
    width: int = Field(512, ge=1, le=16384)
    eval_images: int = Field(4, ge=1, le=100_000, description="images of each held-out prompt")
    cached_prompts: int = Field(
        2048, ge=1, description="prompts whose encodings are kept; when the run has no more, the encoders are freed"
    )
