"""Checkpoints: atomic, hashed, pruned; damaged ones are named and passed over."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from mmrl.errors import UserError
from mmrl.training import checkpoint


def save(run: Path, step: int) -> Path:
    def model(path: Path) -> None:
        path.mkdir()
        (path / "weights.bin").write_bytes(bytes([step]) * 100)

    tensors = {"policy/w": torch.full((3,), float(step), dtype=torch.float64)}
    return checkpoint.write(run, step, tensors=tensors, state={"step": step}, save_model=model)


def test_round_trip_is_exact(tmp_path: Path) -> None:
    folder = save(tmp_path, 7)
    assert folder.name == "step-000007"
    saved = checkpoint.read(folder)
    assert saved.state == {"step": 7}
    assert saved.tensors["policy/w"].dtype == torch.float64
    assert saved.tensors["policy/w"].tolist() == [7.0] * 3
    assert {p.name for p in folder.iterdir()} == {"model", "trainable.safetensors", "state.json", "manifest.json"}


@pytest.mark.parametrize("name", ["state.json", "model/weights.bin", "trainable.safetensors"])
def test_a_flipped_bit_is_found_and_the_checkpoint_before_is_used(tmp_path: Path, name: str) -> None:
    save(tmp_path, 1)
    folder = save(tmp_path, 2)
    data = bytearray((folder / name).read_bytes())
    data[len(data) // 2] ^= 1
    (folder / name).write_bytes(data)
    told: list[str] = []
    newest = checkpoint.newest_whole(tmp_path, tell=told.append)
    assert newest is not None and newest.name == "step-000001"
    assert "step-000002" in told[0] and name in told[0]
    with pytest.raises(UserError, match="does not match its hash"):
        checkpoint.read(folder)


def test_an_interrupted_save_is_never_read_and_later_cleared(tmp_path: Path) -> None:
    save(tmp_path, 1)

    def dies(path: Path) -> None:
        path.mkdir()
        (path / "half").write_text("x")
        raise RuntimeError("killed")

    with pytest.raises(RuntimeError):
        checkpoint.write(tmp_path, 2, tensors={}, state={}, save_model=dies)
    newest = checkpoint.newest_whole(tmp_path, tell=pytest.fail)
    assert newest is not None and newest.name == "step-000001"
    checkpoint.prune(tmp_path, keep_last=2, best=None, just_written=1)
    assert [p.name for p in (tmp_path / "checkpoints").iterdir()] == ["step-000001"]


def test_retention_keeps_last_and_best(tmp_path: Path) -> None:
    for step in range(1, 6):
        save(tmp_path, step)
    checkpoint.prune(tmp_path, keep_last=2, best=1, just_written=5)
    assert [p.name for p in checkpoint.folders(tmp_path)] == ["step-000001", "step-000004", "step-000005"]


def test_no_checkpoint_at_all(tmp_path: Path) -> None:
    assert checkpoint.newest_whole(tmp_path, tell=pytest.fail) is None


def test_pruning_never_takes_the_checkpoint_just_written(tmp_path: Path) -> None:
    for step in (2, 4, 6, 8):  # 6 and 8: of an earlier session, damaged
        save(tmp_path, step)
    save(tmp_path, 5)
    checkpoint.prune(tmp_path, keep_last=2, best=None, just_written=5)
    assert [p.name[-1] for p in checkpoint.folders(tmp_path)] == ["4", "5", "6", "8"]


def test_later_steps_are_set_aside_until_the_run_has_caught_up(tmp_path: Path) -> None:
    for step in (2, 4, 6):
        save(tmp_path, step)
    told: list[str] = []
    checkpoint.set_aside_newer(tmp_path, 2, tell=told.append)
    assert len(told) == 2 and ".damaged-step-000006" in told[1]
    assert [p.name for p in checkpoint.folders(tmp_path)] == ["step-000002"]
    save(tmp_path, 4)
    checkpoint.prune(tmp_path, keep_last=2, best=None, just_written=4)
    assert sorted(p.name for p in (tmp_path / "checkpoints").iterdir()) == [
        *(".damaged-step-000006", "step-000002", "step-000004")
    ]


def test_steps_sort_by_number(tmp_path: Path) -> None:
    for step in (999_999, 1_000_000, 1_000_001):
        (checkpoint.step_folder(tmp_path, step)).mkdir(parents=True)
    (tmp_path / "checkpoints" / "step-7-mine").mkdir()
    assert [p.name for p in checkpoint.folders(tmp_path)] == ["step-999999", "step-1000000", "step-1000001"]
    checkpoint.prune(tmp_path, keep_last=1, best=None, just_written=1_000_001)
    assert [p.name for p in checkpoint.folders(tmp_path)] == ["step-1000001"]
    assert (tmp_path / "checkpoints" / "step-7-mine").is_dir()  # no folder of ours


def test_killed_between_the_two_renames(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The step was saved before; its first copy comes back."""
    save(tmp_path, 1)
    save(tmp_path, 2)
    original = Path.rename

    def dies(self: Path, target: Path) -> Path:
        if self.name == ".writing-step-000002":
            raise KeyboardInterrupt
        return original(self, target)

    monkeypatch.setattr(Path, "rename", dies)
    with pytest.raises(KeyboardInterrupt):
        save(tmp_path, 2)
    monkeypatch.undo()
    assert [p.name for p in checkpoint.folders(tmp_path)] == ["step-000001"]
    told: list[str] = []
    newest = checkpoint.newest_whole(tmp_path, tell=told.append)
    assert newest is not None and newest.name == "step-000002" and checkpoint.fault(newest) is None
    assert len(told) == 1 and "cut off" in told[0]


def test_the_state_is_strict_json(tmp_path: Path) -> None:
    state = {"step": 1, "trainer": {"before": {"map": float("nan")}, "list": [float("inf"), 1.5]}}
    folder = checkpoint.write(tmp_path, 1, tensors={}, state=state, save_model=lambda p: p.mkdir())

    def refuse(name: str) -> None:
        raise AssertionError(name)

    found = json.loads((folder / "state.json").read_text(), parse_constant=refuse)
    assert found["trainer"] == {"before": {"map": None}, "list": [None, 1.5]}
