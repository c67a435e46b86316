"""Optimiser, schedule and the non-finite guard of one channel; and the exponential average of weights."""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from mmrl.config import Ema, Optimiser
from mmrl.errors import UserError
from mmrl.training.sharding import as_shard_of, full, in_shards, to_save


def _scale(config: Optimiser, total: int, step: int) -> float:
    """Factor on the learning rate at an optimiser step (0-based)."""
    if step < config.warmup:
        return (step + 1) / config.warmup
    if config.schedule == "constant":
        return 1.0
    progress = min(1.0, (step - config.warmup) / max(1, total - config.warmup))
    return 1.0 - progress if config.schedule == "linear" else 0.5 * (1 + math.cos(math.pi * progress))


def _optimiser_class(kind: str) -> Any:
    if kind == "adamw":
        return torch.optim.AdamW
    if importlib.util.find_spec("bitsandbytes") is None:
        raise UserError("optimiser.kind: adamw8bit needs the package bitsandbytes; install it or use adamw")
    from bitsandbytes.optim import AdamW8bit

    return AdamW8bit


def _flat(state: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested names joined by `/`."""
    out: dict[str, Any] = {}
    for name, value in state.items():
        out |= _flat(value, f"{prefix}{name}/") if isinstance(value, dict) else {f"{prefix}{name}": value}
    return out


class ChannelOptimiser:
    """AdamW with warm-up, schedule and gradient clipping. `total` is the planned number of optimiser steps."""

    def __init__(self, parameters: list[torch.nn.Parameter], config: Optimiser, total: int) -> None:
        if not parameters:
            raise UserError("model: nothing to train; every parameter is frozen (model.freeze, model.adapter)")
        low = {str(p.dtype) for p in parameters if p.dtype in (torch.bfloat16, torch.float16)}
        if low:
            raise UserError(
                f"model: trainable parameters are {', '.join(sorted(low))}; an update of 1e-6 vanishes in half "
                "precision, load them as float32 (autocast keeps the speed)"
            )
        if config.kind != "adamw" and any(in_shards(p) for p in parameters):
            raise UserError(f"optimiser.kind: {config.kind} cannot be used with distributed.mode: fsdp2; use adamw")
        self.parameters, self.config, self.total, self.steps = parameters, config, total, 0
        kwargs = {"lr": config.lr, "betas": config.betas, "eps": config.eps, "weight_decay": config.weight_decay}
        self.inner = _optimiser_class(config.kind)(parameters, **kwargs)

    @property
    def lr(self) -> float:
        """Of the next step."""
        return self.config.lr * _scale(self.config, self.total, self.steps)

    @property
    def last_lr(self) -> float:
        """Of the newest step that was applied; before any, that of the first one."""
        return self.config.lr * _scale(self.config, self.total, max(0, self.steps - 1))

    def step(self, loss: float) -> tuple[float, bool]:
        """(gradient norm, stepped). A non-finite loss or gradient is dropped, never applied."""
        for p in self.parameters:
            # a weight that no row used (the picture tower, without a picture) has gradient zero: whether torch would
            # skip it must not depend on how rows are spread over updates and ranks
            p.grad = torch.zeros_like(p) if p.grad is None else p.grad
        limit = self.config.grad_norm if self.config.grad_norm is not None else math.inf
        norm = float(full(torch.nn.utils.clip_grad_norm_(self.parameters, limit)))
        finite = math.isfinite(norm) and math.isfinite(loss)
        if finite:
            for group in self.inner.param_groups:
                group["lr"] = self.lr
            self.inner.step()
            self.steps += 1
        self.drop_gradients()
        return norm, finite

    def drop_gradients(self) -> None:
        self.inner.zero_grad(set_to_none=True)

    def state_dict(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """(tensors by name, plain values). A state inside another (bitsandbytes nests) is named `outer/inner`."""
        tensors, plain = {}, {}
        for index, state in self.inner.state_dict()["state"].items():
            for name, value in _flat(state).items():
                if isinstance(value, Tensor):
                    tensors[f"{index}.{name}"] = to_save(value)
                else:
                    plain[f"{index}.{name}"] = value
        return tensors, {"steps": self.steps, "values": plain}

    def load_state_dict(self, tensors: dict[str, Tensor], plain: dict[str, Any]) -> None:
        state: dict[int, dict[str, Any]] = {}
        for key, value in [*tensors.items(), *plain["values"].items()]:
            index, name = key.split(".", 1)
            at = state.setdefault(int(index), {})
            *outer, last = name.split("/")
            for part in outer:
                at = at.setdefault(part, {})
            parameter = self.parameters[int(index)]
            same = isinstance(value, Tensor) and value.shape == parameter.shape
            at[last] = as_shard_of(parameter, value) if same else value
        self.inner.load_state_dict({"state": state, "param_groups": self.inner.state_dict()["param_groups"]})
        self.steps = int(plain["steps"])


class WeightAverage:
    """Exponential moving average of the trainable tensors; swapped in by evaluation, export and generation."""

    def __init__(self, parameters: list[torch.nn.Parameter], config: Ema) -> None:
        self.parameters, self.config, self.updates = parameters, config, 0
        self.shadow = [p.detach().clone() for p in parameters]

    def update(self, optimiser_steps: int) -> None:
        if optimiser_steps % self.config.every:
            return
        self.updates += 1
        decay = min(self.config.decay, (1 + self.updates) / (10 + self.updates))
        for mean, p in zip(self.shadow, self.parameters, strict=True):
            mean.lerp_(p.detach(), 1 - decay)

    @contextmanager
    def swapped_in(self) -> Iterator[None]:
        """Inside, the parameters hold the average."""
        kept = [p.detach().clone() for p in self.parameters]
        with torch.no_grad():
            for p, mean in zip(self.parameters, self.shadow, strict=True):
                p.copy_(mean)
        try:
            yield
        finally:
            with torch.no_grad():
                for p, old in zip(self.parameters, kept, strict=True):
                    p.copy_(old)
