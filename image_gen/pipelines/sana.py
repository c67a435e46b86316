"""Sana."""

from __future__ import annotations

import inspect
import math
from collections.abc import Mapping

import torch
from torch import Tensor

from image_gen.pipelines.common import DiffusersModel, Level
from image_gen.pipelines.components import Reader
from mmrl.errors import UserError

_SOLVER = "DPMSolverMultistepScheduler"


class Sana(DiffusersModel):
    """Latents [N, C, h, w]; the transformer predicts noise minus data, as flow matching does.

    Sana folders made by diffusers carry a DPM-Solver++ over flow sigmas. Its table is used: shifted levels that begin
    just below 1 (0.9997 with shift 3), and whole timesteps (sigma * 1000 cut to an integer) for the transformer. Its
    steps are of second order in the plain pipeline and of first order here, so pictures at few steps differ from those
    of the pipeline as it comes; they are equal with `solver_order=1`. A FlowMatchEulerDiscreteScheduler in the folder
    is taken as well. The pipeline's resolution binning (draw at the nearest training size, then resize) is not done.
    Prompts get the pipeline's written instruction before them, the unconditional "" does not, as in the pipeline.
    Source: arXiv 2410.10629. LoRA targets: all attention layers, our choice.
    """

    lora_targets = tuple(
        f"{block}.{layer}" for block in ("attn1", "attn2") for layer in ("to_q", "to_k", "to_v", "to_out.0")
    )
    schedulers = (_SOLVER, "FlowMatchEulerDiscreteScheduler")
    _TOKENS = 300

    def check_scheduler(self) -> None:
        super().check_scheduler()
        config = self.pipe.scheduler.config
        if not self._solver():
            return
        other = [
            k
            for k in ("use_karras_sigmas", "use_lu_lambdas", "use_exponential_sigmas", "use_beta_sigmas")
            if config.get(k)
        ]
        if not config.use_flow_sigmas or config.prediction_type != "flow_prediction" or other:
            raise UserError(
                f"{self.source}: {_SOLVER} must have use_flow_sigmas true, prediction_type flow_prediction and none "
                "of the other sigma tables in scheduler/scheduler_config.json"
            )

    def _solver(self) -> bool:
        return type(self.pipe.scheduler).__name__ == _SOLVER

    def _instruction(self) -> list[str]:
        """The pipeline's own default."""
        found = inspect.signature(type(self.pipe).__call__).parameters["complex_human_instruction"].default
        return list(found)

    def _encode(self, prompts: list[str]) -> dict[str, Tensor]:
        rows: dict[int, tuple[Tensor, Tensor]] = {}
        for instruction in (self._instruction(), None):
            chosen = [n for n, prompt in enumerate(prompts) if bool(prompt) == (instruction is not None)]
            if chosen:
                text_n, mask_n, _, _ = self.pipe.encode_prompt(
                    [prompts[n] for n in chosen],
                    do_classifier_free_guidance=False,
                    device=self.device,
                    max_sequence_length=self._TOKENS,
                    complex_human_instruction=instruction,
                )
                rows |= dict(zip(chosen, zip(text_n, mask_n)))
        text, mask = (torch.stack(part) for part in zip(*(rows[n] for n in range(len(prompts)))))
        return {"encoder_hidden_states": text, "encoder_attention_mask": mask}

    def _readers(self) -> list[Reader]:
        return [(self.pipe.tokenizer, self._TOKENS - 1, "{}")]  # one place goes to the instruction's last token

    def _multiple(self) -> int:
        return math.lcm(32, super()._multiple())  # 32 is written in the pipeline

    def _timestep(self, sigma: Level, x_n: Tensor) -> Tensor:
        """Of the solver: cut to whole numbers, those a rounding error below one to that one."""
        level_n = torch.as_tensor(sigma, dtype=torch.float32, device=x_n.device).expand(len(x_n))
        at_n = level_n.double() * self.pipe.scheduler.config.num_train_timesteps
        return (at_n + 1e-4).long() if self._solver() else super()._timestep(sigma, x_n)

    def _forward(
        self, x_n: Tensor, sigma: Level, batch: Mapping[str, Tensor], *, height: int, width: int, scale: float | None
    ) -> Tensor:
        answer: Tensor = self.transformer(
            hidden_states=x_n,
            timestep=self._timestep(sigma, x_n) * self.config.timestep_scale,
            **batch,
            return_dict=False,
        )[0]
        if answer.shape[1] == 2 * x_n.shape[1]:  # a transformer that also learned the variance
            answer = answer.chunk(2, dim=1)[0]
        return answer
