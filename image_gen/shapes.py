"""Layers of image transformers as counts, so that a dry run sizes them without making them. Loads no torch."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Linear:
    """`count` linear layers (or convolutions of patches), called `name` within their block."""

    name: str
    inside: int
    outside: int
    count: int = 1
    bias: bool = True
    adapted: bool = False  # by LoRA unless the run names its own layers

    @property
    def parameters(self) -> int:
        return self.count * self.outside * (self.inside + self.bias)


class Counted:
    """layers: all linear layers. others: parameters of norms, tables and depthwise convolutions."""

    layers: tuple[Linear, ...]
    others: int

    @property
    def parameters(self) -> int:
        return sum(layer.parameters for layer in self.layers) + self.others

    def adapter(self, rank: int, targets: Sequence[str] | None) -> int:
        """Parameters of LoRA. targets: endings of layer names; None = the layers that the literature adapts."""
        chosen = [one for one in self.layers if (one.adapted if targets is None else _named(one.name, targets))]
        return rank * sum(one.count * (one.inside + one.outside) for one in chosen)


def _named(name: str, targets: Iterable[str]) -> bool:
    return any(name == t or name.endswith(f".{t}") for t in targets)
