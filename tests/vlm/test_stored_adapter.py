"""Training on from a stored adapter: it keeps its size, and what was asked for otherwise is refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mmrl.errors import UserError
from mmrl.vlm.config import Inputs, Model, Sampling
from mmrl.vlm.family import load

STORED = {"kind": "lora", "rank": 2, "alpha": 6, "targets": ["q_proj", "v_proj"]}


@pytest.fixture
def folder(make: Callable[..., Any], tmp_path: Path) -> Path:
    make(adapter=STORED).save(tmp_path / "adapter")
    return tmp_path / "adapter"


def loaded(folder: Path, **adapter: Any) -> tuple[Any, Model]:
    options = Model.model_validate({"path": str(folder), "adapter": {"kind": "lora", **adapter}})
    return load(options, Sampling(), Inputs(), device="cpu"), options


def test_defaults_give_way_and_the_configuration_tells(folder: Path) -> None:
    policy, options = loaded(folder)
    assert {p.shape[0] for n, p in policy.model.named_parameters() if "lora_A" in n} == {2}
    assert (options.adapter.rank, options.adapter.alpha) == (2, 6)
    assert {name.rsplit(".", 1)[-1] for name in options.adapter.targets} == {"q_proj", "v_proj"}
    again = Model.model_validate(options.model_dump())  # as from the run's own config.yaml, all values given
    load(again, Sampling(), Inputs(), device="cpu")
    assert again == options


def test_equal_values_may_be_asked_for(folder: Path) -> None:
    _, options = loaded(folder, rank=2, alpha=6, targets=["v_proj", "q_proj"])
    assert options.adapter.targets == ["v_proj", "q_proj"]


@pytest.mark.parametrize(
    ("asked", "parts"),
    [
        ({"rank": 8}, ["rank 8 is asked for, 2 is stored"]),
        ({"alpha": 12}, ["alpha 12.0 is asked for, 6 is stored"]),
        ({"targets": "language"}, ["targets language is asked for, ", "other layers are stored"]),
        ({"rank": 16, "alpha": 32}, ["rank 16", "alpha 32.0"]),  # given, though they are the defaults
    ],
)
def test_other_values_are_refused(asked: dict[str, Any], parts: list[str], folder: Path) -> None:
    with pytest.raises(UserError) as caught:
        loaded(folder, **asked)
    for part in parts:
        assert part in str(caught.value)
    assert "\n" not in str(caught.value)


def test_all_language_layers_are_stored_as_such(make: Callable[..., Any], tmp_path: Path) -> None:
    make(adapter={"kind": "lora"}).save(tmp_path / "all")
    loaded(tmp_path / "all", rank=16, alpha=32, targets="language")
