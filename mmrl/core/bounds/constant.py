"""The same clip widths everywhere."""

from __future__ import annotations

from mmrl.core.registry import stage


@stage("bounds", "constant")
def constant(*, low: float | None = 0.2, high: float = 0.2) -> dict[str, float | None]:
    """eps_low = low, eps_high = high. low null: no lower bound, where the gate allows it (cispo).

    Raises ValueError for a width that is no number or is negative.
    """
    for name, value in (("low", low), ("high", high)):
        if value is None and name == "low":
            continue
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not value >= 0:
            raise ValueError(f"{name} must be a number of at least 0, got {value!r}")
    return {"eps_low_nt": low, "eps_high_nt": high}
