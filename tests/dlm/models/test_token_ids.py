"""Ids and rotations of a damaged config.json are refused in one line, with the file and the key."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dlm.models.loading import load_model
from mmrl.errors import UserError


@pytest.fixture
def copy(folders: dict[str, Path], tmp_path: Path) -> Callable[[str], Path]:
    """A copy that a test may spoil."""
    return lambda kind: Path(shutil.copytree(folders[kind], tmp_path / kind))


def configure(folder: Path, **changes: Any) -> Path:
    """Change keys of config.json; None takes a key away."""
    file = folder / "config.json"
    config = json.loads(file.read_text())
    file.write_text(json.dumps({k: v for k, v in (config | changes).items() if v is not None}))
    return folder


def refused(folder: Path, message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        load_model(str(folder))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("kind", "changes", "message"),
    [
        (
            "llada",
            {"mask_token_id": True},
            "model.mask_id: True is no token of the model, which has 0 to 383; set model",
        ),
        ("llada", {"mask_token_id": 5.0}, "model.mask_id: 5.0 is no token"),
        ("llada", {"eos_token_id": "x"}, "config.json: eos_token_id 'x' is no token of the model, which has 0 to 383"),
        ("llada", {"eos_token_id": [256, [1]]}, r"config.json: eos_token_id \[1\] is no token"),
        ("llada", {"eos_token_id": 384}, "config.json: eos_token_id 384 is no token of .*; mend it"),
        ("sdar", {"eos_token_id": [True]}, "config.json: eos_token_id True is no token"),
        ("sdar", {"eos_token_id": -1}, "config.json: eos_token_id -1 is no token"),
        ("dream", {"pad_token_id": 259}, "config.json: pad_token_id 259 is no token of the model, which has 0 to 258"),
        ("a2d", {"pad_token_id": "x"}, "config.json: pad_token_id 'x' is no token"),
        ("a2d", {"pad_token_id": False}, "config.json: pad_token_id False is no token"),
        ("sdar", {"rope_scaling": "linear"}, "config.json: rope_scaling is 'linear', expected `name: value` pairs"),
        ("a2d", {"rope_parameters": [1]}, r"config.json: rope_parameters is \[1\], expected `name: value` pairs"),
        ("dream", {"rope_parameters": {"rope_theta": "x"}}, "rope_theta is 'x', expected a number > 0"),
        ("sdar", {"rope_theta": float("inf")}, "rope_theta is inf, expected a number > 0"),
        ("sdar", {"num_hidden_layers": float("nan")}, "num_hidden_layers is nan, expected a number > 0"),
    ],
)
def test_what_is_no_token_and_no_rotation(
    kind: str, changes: dict[str, Any], message: str, copy: Callable[[str], Path]
) -> None:
    refused(configure(copy(kind), **changes), message)


@pytest.mark.parametrize("value", ["x", [[1]], [384], True])
def test_end_tokens_for_generation_are_checked_too(value: Any, copy: Callable[[str], Path]) -> None:
    folder = copy("llada")
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": value}))
    refused(folder, r"/generation_config.json: eos_token_id .* is no token of the model, which has 0 to 383; mend it")


def test_the_last_row_of_the_embedding_and_no_pad_token_are_fine(copy: Callable[[str], Path]) -> None:
    folder = configure(copy("llada"), eos_token_id=[383, 256, 383], pad_token_id=-1, mask_token_id=0)
    traits = load_model(str(folder))[0].traits
    assert (traits.eos_ids, traits.pad_id, traits.mask_id) == ((383, 256, 257), 256, 0)
