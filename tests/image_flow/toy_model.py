"""An image model of a few hundred parameters: an affine velocity per prompt, pixels as latents. For policy tests."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from image_gen.flow.sigmas import sigma_table
from image_gen.pipelines.base import Batch, Condition, ImageModel, levels
from mmrl.errors import UserError


class ToyTransformer(torch.nn.Module):
    def __init__(self, size: int, width: int = 16) -> None:
        super().__init__()
        self.inner = torch.nn.Linear(size + 1 + 4, width)
        self.outer = torch.nn.Linear(width, size)

    def forward(self, x_n: Tensor, sigma_n: Tensor, told_n: Tensor) -> Tensor:
        flat = torch.cat([x_n.flatten(1), sigma_n[:, None], told_n], 1)
        return self.outer(torch.tanh(self.inner(flat))).reshape(x_n.shape)


class ToyModel(ImageModel):
    def __init__(self, side: int = 4, seed: int = 0, dtype: torch.dtype = torch.float32) -> None:
        torch.manual_seed(seed)
        self.side = side
        self.transformer = ToyTransformer(side * side).to(dtype)
        self.encoded: list[str] = []
        self.freed = False

    def encode(self, prompts: Sequence[str]) -> list[Condition]:
        assert not self.freed
        self.encoded += prompts
        dtype = next(self.transformer.parameters()).dtype
        return [
            {"told": torch.tensor([len(p), p.count("a"), p.count("e"), p.count("o")]).to(dtype) / 9} for p in prompts
        ]

    def overlong(self, prompts: Sequence[str]) -> list[int]:
        return [max(0, len(p) - 40) for p in prompts]

    def free_encoders(self) -> None:
        self.freed = True

    def collate(self, conditions: Sequence[Condition]) -> Batch:
        return {"told": torch.stack([c["told"] for c in conditions])}

    def check_size(self, height: int, width: int) -> None:
        if (height, width) != (self.side, self.side):
            raise UserError(f"inputs.height: {height} x {width} is not {self.side} x {self.side}")

    def latent_shape(self, height: int, width: int) -> tuple[int, ...]:
        return (1, height, width)

    def sigmas(self, steps: int, height: int, width: int) -> Tensor:
        return sigma_table(steps=steps)

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
        x_n = x_n.to(batch["told"].dtype)
        return self.transformer(x_n, levels(sigma, x_n), batch["told"])

    def from_picture(self, picture: Any, *, height: int, width: int) -> Tensor:
        return torch.as_tensor(picture)[:1].float()

    def decode(self, x_n: Tensor, *, height: int, width: int) -> Tensor:
        return torch.sigmoid(x_n.float()).nan_to_num(0.0).expand(-1, 3, -1, -1)

    def save(self, path: Path) -> None:
        path.mkdir(parents=True, exist_ok=True)
        save_file(self.transformer.state_dict(), path / "toy.safetensors")

    def load(self, path: Path) -> None:
        self.transformer.load_state_dict(load_file(path / "toy.safetensors"))
