"""The same clip widths everywhere."""

from __future__ import annotations

from mmrl.core.registry import stage


@stage("bounds", "constant")
def constant(*, low: float | None = 0.2, high: float = 0.2) -> dict[str, float | None]:
    """eps_low = low, eps_high = high. low null: no lower bound, where the gate allows it (cispo)."""
    return {"eps_low_nt": low, "eps_high_nt": high}
