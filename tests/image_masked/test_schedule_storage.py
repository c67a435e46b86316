"""A schedule on disk: there and back, and every way its folder can be broken."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from masked_schedule import net, options, table
from safetensors.torch import load_file, save_file

from image_gen.masked.schedule import storage
from image_gen.masked.schedule.base import Schedule
from image_gen.masked.schedule.net import NetSchedule, Widths
from image_gen.masked.schedule.table import TableSchedule
from mmrl.errors import UserError


def trained(schedule: Schedule) -> Schedule:
    with torch.no_grad():
        for p in schedule.parameters():
            p.add_(torch.randn(p.shape, generator=torch.Generator().manual_seed(1)) * 0.1)
    for _ in range(7):
        schedule.stepped()
    return schedule


@pytest.mark.parametrize("learned", [False, True])
def test_a_table_there_and_back(tmp_path: Path, learned: bool) -> None:
    first = trained(
        table(
            6,
            smooth=0.8,
            base="adanat",
            learn=["ratio", "guidance"],
            deviation={"start": 0.4, "drop": 0.1, "every": 3, "learned": learned},
        )
    )
    first.save(tmp_path / "model" / "schedule")
    assert sorted(p.name for p in (tmp_path / "model" / "schedule").iterdir()) == [storage.NOTE, storage.WEIGHTS]
    again = storage.load(tmp_path / "model" / "schedule")
    assert isinstance(again, TableSchedule)
    assert (again.steps, again.options) == (6, first.options)
    assert torch.equal(again.mean(step=2, steps=6, n=1), first.mean(step=2, steps=6, n=1))
    assert torch.equal(again.deviation(), first.deviation())
    if not learned:
        assert again.deviation().tolist() == pytest.approx([0.2] * 4)  # 7 updates: two drops
    assert again.learned_v.tolist() == [True, False, False, True]
    note = json.loads((tmp_path / "model" / "schedule" / storage.NOTE).read_text())
    assert (note["kind"], note["steps"], note["base"], note["smooth"]) == ("table", 6, "adanat", 0.8)


def test_a_net_there_and_back(tmp_path: Path) -> None:
    first = trained(net((4, 4)))
    first.save(tmp_path / "schedule")
    again = storage.load(tmp_path / "schedule", feature_width=5)
    assert isinstance(again, NetSchedule)
    assert again.grid == (4, 4)
    f = torch.randn(2, 16, 5)
    assert torch.equal(
        again.mean(step=0, steps=4, n=2, features_nld=f), first.mean(step=0, steps=4, n=2, features_nld=f)
    )
    larger = storage.load(tmp_path / "schedule", grid=(8, 8))
    assert larger.mean(step=0, steps=4, n=1, features_nld=torch.randn(1, 64, 5)).shape == (1, 4)
    with pytest.raises(UserError, match="reads features of width 5, the model has 6"):
        storage.load(tmp_path / "schedule", feature_width=6)


def test_make() -> None:
    made = storage.make(options(smooth=0.5), steps=9, feature_width=3, grid=(2, 2))
    assert isinstance(made, TableSchedule)
    assert made.means.shape == (9, 4)
    assert made.options.smooth == 0.5
    assert made.at_base
    network = storage.make(options(kind="net"), steps=9, feature_width=3, grid=(2, 2))
    assert isinstance(network, NetSchedule)
    assert (network.feature_width, network.grid, network.widths) == (3, (2, 2), Widths())


def test_saving_again_replaces(tmp_path: Path) -> None:
    schedule = table(3)
    schedule.save(tmp_path)
    trained(schedule).save(tmp_path)
    assert torch.equal(storage.load(tmp_path).state_dict()["means"], schedule.means)


def test_missing_files(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"schedule\.json: cannot be read \(No such file"):
        storage.load(tmp_path)
    table(3).save(tmp_path)
    (tmp_path / storage.WEIGHTS).unlink()
    with pytest.raises(UserError, match=r"schedule\.safetensors: cannot be read"):
        storage.load(tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"kind": "tree"}, "kind: Input should be 'table' or 'net'"),
        ({"kind": "net"}, "feature_width, grid or widths of the net are missing"),
        ({"steps": 0}, "steps is 0, not a whole number"),
        ({"steps": True}, "steps is True, not a whole number"),
        ({"steps": 10**12}, "not a whole number from 1 to 1000"),
        ({"steps": 5}, r"means is torch\.float32 \(3, 4\), expected torch\.float32 \(5, 4\)"),
        ({"smooth": 1.0}, "smooth: Input should be less than 1"),
        ({"learn": None}, "learn is missing"),
        ({"deviation": {"start": -1}}, r"deviation\.start: Input should be greater than 0"),
        ({"surplus": 1}, "surplus: Extra inputs"),
    ],
)
def test_a_damaged_note(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    table(3).save(tmp_path)
    note = json.loads((tmp_path / storage.NOTE).read_text()) | change
    (tmp_path / storage.NOTE).write_text(json.dumps({k: v for k, v in note.items() if v is not None}))
    with pytest.raises(UserError, match=message):
        storage.load(tmp_path)


@pytest.mark.parametrize(
    "change",
    [
        {"widths": {"embed": 12}},
        {"grid": [4]},
        {"grid": [4, 0]},
        {"feature_width": None},
        {"widths": {"embed": 10**9, "channels": 6, "first": 10, "second": 8, "side": 4, "waves": 8}},
    ],
)
def test_a_damaged_note_of_a_net(tmp_path: Path, change: dict[str, Any]) -> None:
    net().save(tmp_path)
    note = json.loads((tmp_path / storage.NOTE).read_text()) | change
    (tmp_path / storage.NOTE).write_text(json.dumps(note))
    with pytest.raises(UserError, match="are missing or no sizes; take a whole copy"):
        storage.load(tmp_path)


def test_text_that_is_no_note(tmp_path: Path) -> None:
    table(3).save(tmp_path)
    for text, message in (("{", "broken JSON"), ("[1]", "expected an object")):
        (tmp_path / storage.NOTE).write_text(text)
        with pytest.raises(UserError, match=message):
            storage.load(tmp_path)


def test_damaged_weights(tmp_path: Path) -> None:
    table(3).save(tmp_path)
    path = tmp_path / storage.WEIGHTS
    state = load_file(str(path))
    save_file({"means": state["means"]}, str(path))
    with pytest.raises(UserError, match=r"tensor spread\.count is missing or too many"):
        storage.load(tmp_path)
    save_file(state | {"more": torch.zeros(1)}, str(path))
    with pytest.raises(UserError, match="tensor more is missing or too many"):
        storage.load(tmp_path)
    save_file(state | {"means": torch.full((3, 4), float("nan"))}, str(path))
    with pytest.raises(UserError, match="means holds numbers that are not finite"):
        storage.load(tmp_path)
    save_file(state | {"means": torch.zeros(3, 4, dtype=torch.int64)}, str(path))
    with pytest.raises(UserError, match=r"means is torch\.int64"):
        storage.load(tmp_path)
    save_file(state, str(path))
    path.write_bytes(path.read_bytes()[:40])
    with pytest.raises(UserError, match=r"schedule\.safetensors: cannot be read .*; take a whole copy"):
        storage.load(tmp_path)


def test_a_place_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be written"):
        table(3).save(tmp_path / "file" / "schedule")
