"""What the policies of images ask of a model: prompts to conditions, a network to train, pictures, weights on disk.

`PictureModel` is what both families share. `ImageModel` adds what flow matching asks: states to velocities, latents to
pictures. Axes: N images, then the latent's own axes. sigma is the noise level in [0, 1]; the velocity is v ~ x1 - x0
(noise minus data) for x_sigma = (1 - sigma) x0 + sigma x1. One subclass an architecture; `image_gen.pipelines.loading`
finds it. What masked images add is in `image_gen.masked.models.base`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from image_gen.pipelines import lora
from mmrl.errors import UserError

#: What the network is told about one prompt: tensors without a batch axis, on the CPU, in the dtype of the transformer.
Condition = dict[str, Tensor]
#: Conditions of N images, stacked (and padded with a mask where lengths differ), on the device of the transformer.
Batch = dict[str, Tensor]


def levels(sigma: float | Tensor, x_n: Tensor) -> Tensor:
    """A level for each row, [N], in the dtype and on the device of the states."""
    return torch.as_tensor(sigma, dtype=x_n.dtype, device=x_n.device).expand(len(x_n))


class PictureModel(ABC):
    """A loaded model that draws what a prompt asks for; its transformer is trained."""

    #: Names of the linear layers that LoRA adapts unless told otherwise (peft target suffixes).
    lora_targets: ClassVar[tuple[str, ...]] = ()
    transformer: torch.nn.Module

    # prompts

    @abstractmethod
    def encode(self, prompts: Sequence[str]) -> list[Condition]:
        """One condition a prompt; run once, without gradient. "" is the unconditional half."""

    def overlong(self, prompts: Sequence[str]) -> list[int]:
        """Tokens beyond what the text encoders read, for each prompt (0 = all is read)."""
        return [0 for _ in prompts]

    def rest_encoders(self) -> None:  # noqa: B027
        """Move the text encoders off the device until they are needed again."""

    def free_encoders(self) -> None:  # noqa: B027  (a model without encoders has nothing to free)
        """Forget the text encoders: every prompt of the run has been encoded. `encode` raises afterwards."""

    @abstractmethod
    def collate(self, conditions: Sequence[Condition]) -> Batch:
        """Conditions of the rows of a batch, in order; rows may repeat."""

    # sizes

    @abstractmethod
    def check_size(self, height: int, width: int) -> None:
        """Raises UserError for a size that the decoder or the patches cannot take, naming the nearest sizes."""

    # weights

    def checkpoint_gradients(self, *, on: bool = True) -> None:
        """Gradient checkpointing: the blocks' activations are computed again in the backward pass, not kept."""
        transformer: Any = self.transformer
        if on:
            transformer.enable_gradient_checkpointing()
        else:
            transformer.disable_gradient_checkpointing()

    def save_lora(self, path: Path) -> None:
        """The peft adapter of the transformer as a folder that plain diffusers takes (`image_gen.pipelines.lora`)."""
        lora.save(self.transformer, path)

    def load_lora(self, path: Path) -> None:
        """Attach a stored adapter to the transformer. Raises UserError for one of another model."""
        lora.load(self.transformer, path)

    @abstractmethod
    def save(self, path: Path, *, max_shard_size: str = "10GB") -> None:
        """The whole model as the folder it was loaded from would be (`save_pretrained` of the pipeline)."""


class ImageModel(PictureModel):
    """A flow-matching pipeline.

    guidance   classifier_free: the sampler mixes a conditional and an unconditional velocity; embedded: the network
               takes the guidance scale as an input (FLUX) and one forward is enough.
    """

    guidance: Literal["classifier_free", "embedded"] = "classifier_free"

    # sampling

    @abstractmethod
    def latent_shape(self, height: int, width: int) -> tuple[int, ...]:
        """Shape of one latent as the transformer takes it (packed or not), without the batch axis."""

    @abstractmethod
    def sigmas(self, steps: int, height: int, width: int) -> Tensor:
        """The pipeline's own noise levels, float64 [S+1] on the CPU, from (about) 1 to exactly 0."""

    @abstractmethod
    def velocity(
        self,
        x_n: Tensor,
        sigma: float | Tensor,
        batch: Mapping[str, Tensor],
        *,
        height: int,
        width: int,
        scale: float | None,
    ) -> Tensor:
        """One forward of the transformer; same shape as x_n. Gradient to the transformer's trainable parameters.

        sigma: one level, or one a row [N] (`levels` makes both the same). scale: the guidance scale for guidance
        `embedded`, None otherwise."""

    def from_picture(self, picture: Any, *, height: int, width: int) -> Tensor:
        """The latent of a picture (PIL, a file, or a tensor [3, H, W] in [0, 1]) of that size, on the CPU: what
        imitation starts from."""
        raise UserError(f"recipe sft: {type(self).__name__} cannot turn pictures into latents; use another recipe")

    @abstractmethod
    def decode(self, x_n: Tensor, *, height: int, width: int) -> Tensor:
        """Latents to pictures, float32 [N, 3, height, width] in [0, 1] (clipped), no gradient. The caller slices."""
