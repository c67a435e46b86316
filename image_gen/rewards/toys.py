"""Rewards of the pixels alone: no model, no download, a signal even for a network with random weights. Loads no torch.

All are of the 8-bit picture divided by 255, R, G, B in [0, 1]. Our own rules, no paper. Checked with: formula only.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field

from image_gen.rewards.pictures import nan_pixels, to_array
from mmrl.data.records import Record
from mmrl.rewards.registry import reward

if TYPE_CHECKING:
    import numpy as np

Unit = Annotated[float, Field(ge=0, le=1)]


def _unit(output: Any) -> np.ndarray[Any, Any]:
    """float64 [H, W, 3] in [0, 1]."""
    return to_array(output) / 255.0


@reward("brightness")
def brightness(outputs: Sequence[Any], records: Sequence[Record], info: Sequence[dict[str, Any]]) -> list[float]:
    """Mean of all channels: 0 black, 1 white."""
    return [float(_unit(output).mean()) for output in outputs]


@reward("redness")
def redness(outputs: Sequence[Any], records: Sequence[Record], info: Sequence[dict[str, Any]]) -> list[float]:
    """Mean of R - (G + B) / 2: 1 pure red, 0 grey, -1 cyan."""
    values = []
    for output in outputs:
        red, green, blue = _unit(output).mean(axis=(0, 1))
        values.append(float(red - (green + blue) / 2))
    return values


@reward("smoothness")
def smoothness(outputs: Sequence[Any], records: Sequence[Record], info: Sequence[dict[str, Any]]) -> list[float]:
    """Negative total variation: -(mean |vertical difference| + mean |horizontal difference|), in [-2, 0]."""
    values = []
    for output in outputs:
        x_hwc = _unit(output)
        total = 0.0
        for axis in (0, 1):
            if x_hwc.shape[axis] > 1:
                ahead = x_hwc[1:] - x_hwc[:-1] if axis == 0 else x_hwc[:, 1:] - x_hwc[:, :-1]
                total += float(abs(ahead).mean())
        values.append(-total)
    return values


@reward("target_colour")
def target_colour(
    outputs: Sequence[Any],
    records: Sequence[Record],
    info: Sequence[dict[str, Any]],
    *,
    rgb: tuple[Unit, Unit, Unit],
) -> list[float]:
    """Negative root mean square distance of all pixels to `rgb` (three numbers in [0, 1]); in [-1, 0]."""
    return [-float(((_unit(output) - list(rgb)) ** 2).mean() ** 0.5) for output in outputs]


@reward("nan_share")
def nan_share(outputs: Sequence[Any], records: Sequence[Record], info: Sequence[dict[str, Any]]) -> list[float]:
    """Share of the pixels that came as NaN and were scored as black. To watch them: list it with weight 0."""
    values = []
    for output in outputs:
        height, width = to_array(output).shape[:2]
        values.append(nan_pixels(output) / (height * width))
    return values
