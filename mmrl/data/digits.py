"""Real handwritten digits that ship with the package: 1797 pictures of 8x8 pixels in 17 grey levels.

Source: E. Alpaydin and C. Kaynak, "Optical Recognition of Handwritten Digits", UCI Machine Learning Repository, 1998,
doi:10.24432/C50P49, licensed CC BY 4.0; the test part of it, as bundled with scikit-learn (`load_digits`). Values are
unchanged. `scripts/make_digits.py` wrote the array file once; reading it needs numpy only.

The pictures are split once and for all into four disjoint parts. A model is trained on `train`; a reward model may see
only `reward`, an independent judge only `judge`; every reported metric uses `eval`.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import numpy.typing as npt

from mmrl.errors import UserError, nearest

#: In the order of the indices stored in the array file.
PARTS = ("train", "reward", "judge", "eval")
#: Grey values run from 0 (paper) to 16 (ink).
LEVELS = 17

_FILE = Path(__file__).with_name("digits.npz")


@dataclass(frozen=True)
class Digits:
    """images uint8 [M,8,8] with values 0..16; labels uint8 [M]; index int64 [M], the position in the source."""

    images: npt.NDArray[np.uint8]
    labels: npt.NDArray[np.uint8]
    index: npt.NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.labels)


@cache
def load_digits(part: str) -> Digits:
    """One part of the digits, read-only arrays. Raises UserError for an unknown part."""
    if part not in PARTS:
        raise UserError(f"digits: unknown part {part!r}{nearest(part, PARTS)}")
    with np.load(_FILE, allow_pickle=False) as stored:
        chosen = np.flatnonzero(stored["part"] == PARTS.index(part))
        digits = Digits(stored["images"][chosen], stored["labels"][chosen], chosen.astype(np.int64))
    for array in (digits.images, digits.labels, digits.index):
        array.setflags(write=False)
    return digits
