"""Pictures that go into the page: each once, and small enough for a page that one can send. Loads no torch."""

from __future__ import annotations

import base64
import hashlib
import io
from pathlib import Path

from mmrl.data.images import open_image
from mmrl.errors import UserError

LARGEST = 640  # pixels of the longer side in the page
LARGEST_OF_MANY = 320
MANY = 24
LARGEST_DRAWN = 384  # of models that draw: other pictures at every step
PIXEL_ART = 200  # up to this size, or as many pixels, a picture stays as it is, pixel by pixel
STRIP = 3  # times as wide as high: frames side by side, which get twice the width


class Pictures:
    """Numbers pictures in the order they are asked for. The same file content is kept once."""

    def __init__(self, expected: int, *, drawn: bool = False) -> None:
        self.largest = LARGEST_DRAWN if drawn else LARGEST if expected <= MANY else LARGEST_OF_MANY
        self.uris: list[str] = []
        self.sizes: list[tuple[int, int]] = []  # of the original, in whose pixels the boxes are
        self._known: dict[bytes, int] = {}
        self._paths: dict[Path, int] = {}

    def add(self, path: Path) -> int:
        """The number of a picture. Raises UserError when the file is none."""
        if path not in self._paths:
            self._paths[path] = self._number(path)
        return self._paths[path]

    def _number(self, path: Path) -> int:
        try:
            content = hashlib.blake2b(path.read_bytes()).digest()
        except OSError as error:
            raise UserError(f"{path}: cannot be read ({error.strerror})") from None
        if content not in self._known:
            image = open_image(path)
            self.sizes.append(image.size)
            wide = 2 * self.largest if image.width >= STRIP * image.height else self.largest
            image.thumbnail((wide, self.largest))  # never enlarges
            data = io.BytesIO()
            if self.sizes[-1][0] * self.sizes[-1][1] <= PIXEL_ART**2:
                kind = "png"
                image.save(data, "PNG", optimize=True)
            else:
                kind = "webp"
                image.convert("RGB").save(data, "WEBP", quality=82)
            self.uris.append(f"data:image/{kind};base64," + base64.b64encode(data.getvalue()).decode())
            self._known[content] = len(self.uris) - 1
        return self._known[content]
