"""Parquet files and folders saved by the `datasets` library as plain rows. Loads no torch."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from PIL import Image

from mmrl.errors import UserError

_IMAGE_COLUMNS = ("image", "images")


def is_table(path: Path) -> bool:
    """A .parquet file, or a folder written by `save_to_disk`."""
    return path.suffix == ".parquet" or path.is_dir()


def table_rows(path: Path) -> Iterator[dict[str, Any]]:
    """Rows with pictures as paths or undecoded PIL pictures. Raises UserError."""
    for row in _parquet(path) if path.is_file() else _saved(path):
        for column in _IMAGE_COLUMNS:
            if row.get(column) is not None:
                row[column] = _pictures(row[column], path)
        yield row


def _parquet(path: Path) -> Iterator[dict[str, Any]]:
    import pyarrow  # type: ignore[import-untyped]
    from pyarrow import parquet

    try:
        with parquet.ParquetFile(path) as file:
            for batch in file.iter_batches(batch_size=256):
                yield from batch.to_pylist()
    except (pyarrow.ArrowException, OSError, ValueError, OverflowError) as error:  # also text that is no UTF-8
        raise UserError(f"{path}: not a readable parquet file ({error})") from error


def _saved(path: Path) -> Iterator[dict[str, Any]]:
    import datasets

    try:
        found = datasets.load_from_disk(str(path))
    except FileNotFoundError as error:
        raise UserError(
            f"{path}: not a folder written by datasets' save_to_disk; give a JSONL or parquet file"
        ) from error
    if isinstance(found, datasets.DatasetDict):
        raise UserError(f"{path}: it holds several splits; name one of them, e.g. {path / next(iter(found))}")
    for name, feature in found.features.items():
        if isinstance(feature, datasets.Image):
            found = found.cast_column(name, datasets.Image(decode=False))
        elif isinstance(getattr(feature, "feature", None), datasets.Image):
            found = found.cast_column(name, datasets.List(datasets.Image(decode=False)))
    yield from found


def _pictures(value: Any, path: Path) -> Any:
    if isinstance(value, list):
        return [_pictures(v, path) for v in value]
    if not isinstance(value, dict):
        return value
    if value.get("bytes"):
        try:
            return Image.open(io.BytesIO(value["bytes"]))
        except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
            raise UserError(f"{path}: a stored picture cannot be opened ({error})") from error
    return value.get("path")
