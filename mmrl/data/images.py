"""Pictures from untrusted files: sizes are checked before anything is decoded. Loads no torch."""

from __future__ import annotations

import struct
import warnings
import zlib
from pathlib import Path
from typing import Any

from PIL import Image, UnidentifiedImageError

from mmrl.errors import UserError

MAX_SIDE = 20_000
MAX_PIXELS = 100_000_000
_BROKEN = (OSError, SyntaxError, ValueError, EOFError, IndexError, TypeError, struct.error, zlib.error)


def image_size(path: str | Path) -> tuple[int, int]:
    """(width, height) from the header, without decoding. Raises UserError."""
    with _open(path) as image:
        return image.size


def check_header(source: Any, max_side: int = MAX_SIDE, max_pixels: int = MAX_PIXELS) -> None:
    """Raises UserError for a file that is missing, no picture or larger than the limits; decodes nothing."""
    if isinstance(source, Image.Image):
        _check_size(source.size, "picture in memory", max_side, max_pixels)
    else:
        _check_size(image_size(source), f"picture {source}", max_side, max_pixels)


def open_image(source: Any, max_side: int = MAX_SIDE, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """A decoded RGB picture from a file (or a PIL picture made in memory).

    Transparent pixels come out white; 16-bit greys are scaled; of an animation the first frame is taken; the pixels
    stay as stored (no EXIF rotation: boxes refer to the stored picture). Raises UserError naming the file when it is
    missing, not a picture, truncated, or larger than the limits.
    """
    where = f"picture {source}" if isinstance(source, (str, Path)) else "picture in memory"
    image = source if isinstance(source, Image.Image) else _open(source)
    _check_size(image.size, where, max_side, max_pixels)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            image.load()
            return _rgb(image)
    except _BROKEN as error:
        raise UserError(f"{where}: truncated or broken ({error}); replace the file") from error
    finally:
        if image is not source:
            image.close()


def _check_size(size: tuple[int, int], where: str, max_side: int, max_pixels: int) -> None:
    width, height = size
    if max(width, height) > max_side or width * height > max_pixels:
        raise UserError(
            f"{where}: {width} x {height} pixels exceeds the limit (sides {max_side}, {max_pixels} pixels in all); "
            "make it smaller, or raise inputs.max_image_side and inputs.max_image_pixels"
        )
    if width < 1 or height < 1:
        raise UserError(f"{where}: it has no pixels ({width} x {height})")


def _open(path: str | Path) -> Image.Image:
    """Header only."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of size, our own limits come next; of odd tags, which change no pixel
            return Image.open(path)
    except FileNotFoundError:
        raise UserError(f"picture {path}: no such file") from None
    except UnidentifiedImageError:
        raise UserError(f"picture {path}: not a picture in a format we know; replace the file") from None
    except Image.DecompressionBombError as error:
        raise UserError(f"picture {path}: absurdly large ({error}); make it smaller") from error
    except _BROKEN as error:
        raise UserError(f"picture {path}: cannot be opened ({error}); replace the file") from error


def _rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I;16") or image.mode == "I":
        return image.convert("I").point(lambda v: v * (1 / 256)).convert("L").convert("RGB")
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        image = image.convert("RGBA")
        paper = Image.new("RGBA", image.size, (255, 255, 255, 255))
        return Image.alpha_composite(paper, image).convert("RGB")
    return image.convert("RGB")
