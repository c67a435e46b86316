"""Write mmrl/data/digits.npz once from scikit-learn's bundled digits (needs scikit-learn; users never run this).

    python scripts/make_digits.py

The split is drawn here and stored, so that it can never move: within each class the pictures are ordered by a hash of
their pixels and cut into train / reward / judge / eval. Pictures with equal pixels, if any, fall into one part.
"""

from __future__ import annotations

import hashlib
import io
import zipfile
from pathlib import Path

import numpy as np
from sklearn.datasets import load_digits  # type: ignore[import-untyped]

PARTS = ("train", "reward", "judge", "eval")
SHARES = (0.55, 0.15, 0.15, 0.15)
OUT = Path(__file__).resolve().parent.parent / "mmrl" / "data" / "digits.npz"
SALT = b"mmrl digits 1"


def split(images: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Part of each picture as an index into PARTS: uint8 [1797]."""
    part = np.zeros(len(labels), dtype=np.uint8)
    rank = np.array([hashlib.sha256(SALT + picture.tobytes()).hexdigest() for picture in images])
    for digit in range(10):
        members = np.flatnonzero(labels == digit)
        members = members[np.argsort(rank[members])]
        edges = np.round(np.cumsum((0.0, *SHARES)) * len(members)).astype(int)
        for index, (start, stop) in enumerate(zip(edges[:-1], edges[1:], strict=True)):
            part[members[start:stop]] = index
    if len(set(rank)) != len(rank):
        raise SystemExit("two pictures are equal: decide which part they belong to")
    return part


def write_npz(path: Path, **arrays: np.ndarray) -> None:
    """Like numpy.savez_compressed, with a fixed time stamp: the same arrays give the same bytes."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, array in arrays.items():
            buffer = io.BytesIO()
            np.save(buffer, array)
            entry = zipfile.ZipInfo(f"{name}.npy", date_time=(1980, 1, 1, 0, 0, 0))
            entry.compress_type = zipfile.ZIP_DEFLATED
            archive.writestr(entry, buffer.getvalue())


def main() -> None:
    source = load_digits()
    images = source.images.astype(np.uint8)
    labels = source.target.astype(np.uint8)
    assert images.shape == (1797, 8, 8) and images.max() == 16
    write_npz(OUT, images=images, labels=labels, part=split(images, labels))
    print(f"{OUT}: {OUT.stat().st_size} bytes")


if __name__ == "__main__":
    main()
