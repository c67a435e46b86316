"""Outputs of image models as 8-bit pictures, and prompts as text. Loads torch and numpy inside functions only."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from mmrl.data.records import Record
from mmrl.errors import UserError

if TYPE_CHECKING:
    import numpy as np
    from PIL import Image

_WARNED: set[str] = set()


def warn_once(key: str, message: str) -> None:
    """One warning a process for each `key`."""
    if key not in _WARNED:
        _WARNED.add(key)
        warnings.warn(message, stacklevel=3)


def nan_pixels(output: Any) -> int:
    """Pixels of one output with NaN in any channel; a PIL picture has none."""
    return int(output.isnan().any(dim=0).sum()) if hasattr(output, "isnan") else 0


def to_array(output: Any) -> np.ndarray[Any, Any]:
    """One output as uint8 [H, W, 3] = round(clip(255 x, 0, 255)).

    output: float tensor [3, H, W] in [0, 1] (values outside are clipped, NaN becomes 0 with one warning a process), or
    a PIL picture of any mode (made RGB; alpha is dropped). No gradient passes.
    """
    import numpy as np

    if hasattr(output, "convert"):
        return np.array(output.convert("RGB"), dtype=np.uint8)
    if not hasattr(output, "is_floating_point"):
        raise UserError(f"image rewards take float tensors [3, H, W] or PIL pictures, got {type(output).__name__}")
    if output.ndim != 3 or output.shape[0] != 3 or not output.is_floating_point():
        shape = list(output.shape)
        raise UserError(f"image rewards take float tensors [3, H, W] with values in [0, 1], got {output.dtype} {shape}")
    bad = nan_pixels(output)
    if bad:
        warn_once("nan", f"a generated picture has {bad} NaN pixels; they are scored as black (reward `nan_share`)")
    x_chw = np.nan_to_num(output.detach().float().cpu().numpy(), nan=0.0, posinf=1.0, neginf=0.0)
    return np.ascontiguousarray(np.round(np.clip(255.0 * x_chw, 0.0, 255.0)).astype(np.uint8).transpose(1, 2, 0))


def to_image(output: Any) -> Image.Image:
    """One output as an RGB PIL picture; see `to_array`."""
    from PIL import Image

    return Image.fromarray(to_array(output))


def to_arrays(outputs: Sequence[Any]) -> list[np.ndarray[Any, Any]]:
    return [to_array(output) for output in outputs]


def to_images(outputs: Sequence[Any]) -> list[Image.Image]:
    return [to_image(output) for output in outputs]


def prompts_of(records: Sequence[Record]) -> list[str]:
    """The prompts as text. Raises UserError for chat messages: image models take one string."""
    for record in records:
        if not isinstance(record.prompt, str):
            raise UserError(f"record {record.id!r}: image rewards need the prompt as one string, got chat messages")
    return [record.prompt for record in records]


def distinct(prompts: Sequence[str]) -> tuple[list[str], list[int]]:
    """The different prompts in order of appearance, and each prompt's place among them: a text is encoded once."""
    place = {text: i for i, text in enumerate(dict.fromkeys(prompts))}
    return list(place), [place[text] for text in prompts]


def chunks(n: int, size: int) -> Iterator[slice]:
    """Slices of at most `size` that cover n rows. Raises UserError for a size below 1."""
    if size < 1:
        raise UserError(f"batch_size must be at least 1, got {size}")
    return (slice(i, min(i + size, n)) for i in range(0, n, size))
