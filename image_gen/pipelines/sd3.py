"""Stable Diffusion 3 and 3.5."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from image_gen.pipelines.common import DiffusersModel, Level
from image_gen.pipelines.components import Reader


class SD3(DiffusersModel):
    """Latents [N, C, h, w]; the transformer takes sigma as a timestep of 0 .. 1000.

    Prompt: both CLIP encoders (77 tokens) beside T5 (256 tokens; zeros if the folder has no T5), as the pipeline.
    Source: arXiv 2403.03206; LoRA targets of Flow-GRPO (arXiv 2505.05470).
    """

    lora_targets = (
        "attn.to_q",
        "attn.to_k",
        "attn.to_v",
        "attn.to_out.0",
        "attn.add_q_proj",
        "attn.add_k_proj",
        "attn.add_v_proj",
        "attn.to_add_out",
    )
    _T5_TOKENS = 256

    def _encode(self, prompts: list[str]) -> dict[str, Tensor]:
        text, _, pooled, _ = self.pipe.encode_prompt(
            prompts,
            None,
            None,
            device=self.device,
            do_classifier_free_guidance=False,
            max_sequence_length=self._T5_TOKENS,
        )
        return {"encoder_hidden_states": text, "pooled_projections": pooled}

    def _readers(self) -> list[Reader]:
        limit = self.pipe.tokenizer_max_length
        readers = [(self.pipe.tokenizer, limit, "{}"), (self.pipe.tokenizer_2, limit, "{}")]
        return readers + ([(self.pipe.tokenizer_3, self._T5_TOKENS, "{}")] if self.pipe.tokenizer_3 else [])

    def _largest(self) -> int:
        return int(self.config.pos_embed_max_size) * self._multiple()

    def _timetable(self, steps: int, height: int, width: int) -> dict[str, Any]:
        if not self.pipe.scheduler.config.get("use_dynamic_shifting"):
            return {"num_inference_steps": steps}
        tokens = (height // self._multiple()) * (width // self._multiple())
        return {"num_inference_steps": steps, "mu": self._mu(tokens, top=1.16)}

    def _forward(
        self, x_n: Tensor, sigma: Level, batch: Mapping[str, Tensor], *, height: int, width: int, scale: float | None
    ) -> Tensor:
        answer: Tensor = self.transformer(
            hidden_states=x_n, timestep=self._timestep(sigma, x_n), **batch, return_dict=False
        )[0]
        return answer
