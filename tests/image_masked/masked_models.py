"""Tiny folders in aMUSEd's layout, written once a session; a test that changes one copies it first."""

from __future__ import annotations

import functools
import json
import tempfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from image_gen.masked.models import tiny
from image_gen.masked.models.loading import load_token_model

CPU = torch.device("cpu")
PROMPTS = ["two sevens", "a three left of a five"]
#: Of pictures drawn by the folder `halved`: a canvas of 4 rows and 6 columns, two pixels a token.
HEIGHT, WIDTH = 8, 12


@functools.cache
def folder(name: str) -> Path:
    """halved: aMUSEd-512's grid, and a decoder that doubles it. even: aMUSEd-256's, a token is a pixel."""
    sizes: dict[str, dict[str, Any]] = {"halved": {"half": True, "levels": 2}, "even": {"half": False, "levels": 1}}
    return tiny.write(Path(_root().name) / name, **sizes[name])


@functools.cache
def _root() -> tempfile.TemporaryDirectory[str]:
    return tempfile.TemporaryDirectory(prefix="masked_models")


def load(path: Path, **dtypes: Any) -> Any:
    return load_token_model(str(path), **{"dtype": torch.float32, "device": CPU, **dtypes})


def canvases(*, n: int = 2, tokens: int = 24, open_share: float = 0.5) -> Tensor:
    """Ids [n, tokens], about that share of them masks."""
    generator = torch.Generator().manual_seed(1)
    ids_nl = torch.randint(0, tiny.CODEBOOK, (n, tokens), generator=generator)
    return ids_nl.masked_fill(torch.rand(n, tokens, generator=generator) < open_share, tiny.MASK)


def logits(model: Any, ids_nl: Tensor | None = None, *, prompts: list[str] = PROMPTS) -> Tensor:
    batch = model.collate(model.encode(prompts))
    ids_nl = canvases() if ids_nl is None else ids_nl
    found: Tensor = model.predict(ids_nl, batch, height=HEIGHT, width=WIDTH).logits_nlk
    return found


def edit(file: Path, **changes: Any) -> None:
    """Change a JSON file; None takes a key away."""
    value = json.loads(file.read_text()) | changes
    file.write_text(json.dumps({k: v for k, v in value.items() if v is not None}))
