"""The trainable tensors of a model as a checkpoint holds them."""

from __future__ import annotations

import torch
from torch import Tensor

from mmrl.errors import UserError
from mmrl.training.sharding import in_shards, put, to_save


def trainable(model: torch.nn.Module) -> dict[str, torch.nn.Parameter]:
    return {n: p for n, p in model.named_parameters() if p.requires_grad}


def trainable_state(model: torch.nn.Module) -> dict[str, Tensor]:
    """Copies on the CPU in their exact type; shards are put together."""
    return {n: to_save(p) if in_shards(p) else p.detach().cpu().clone() for n, p in trainable(model).items()}


def load_trainable(model: torch.nn.Module, state: dict[str, Tensor]) -> None:
    """Inverse of `trainable_state`. Raises UserError on tensors of another model."""
    mine = trainable(model)
    odd = sorted(set(mine) ^ set(state))
    if odd:
        raise UserError(f"checkpoint: trainable tensors of another model, first {odd[0]}; resume with its own config")
    for name, parameter in mine.items():
        if parameter.shape != state[name].shape:
            raise UserError(
                f"checkpoint: {name} has shape {tuple(state[name].shape)}, the model {tuple(parameter.shape)}; "
                "resume with the checkpoint's own config"
            )
        put(parameter, state[name])
