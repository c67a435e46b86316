"""Checkpoints: atomic, hashed, pruned; damaged ones are named and passed over."""

from __future__ import annotations

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
    checkpoint.prune(tmp_path, keep_last=2, best=None)
    assert [p.name for p in (tmp_path / "checkpoints").iterdir()] == ["step-000001"]


def test_retention_keeps_last_and_best(tmp_path: Path) -> None:
    for step in range(1, 6):
        save(tmp_path, step)
    checkpoint.prune(tmp_path, keep_last=2, best=1)
    assert [p.name for p in checkpoint.folders(tmp_path)] == ["step-000001", "step-000004", "step-000005"]


def test_no_checkpoint_at_all(tmp_path: Path) -> None:
    assert checkpoint.newest_whole(tmp_path, tell=pytest.fail) is None
