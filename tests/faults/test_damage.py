"""Damaged checkpoints of every kind are found by their hashes, named, and passed over for the newest whole one."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import toy_runs
from fault_compare import differences
from hypothesis import given, settings
from hypothesis import strategies as st

from mmrl.training import checkpoint

FILES = ["manifest.json", "state.json", "trainable.safetensors", "model/model.safetensors"]
DAMAGES = ["bit", "cut", "empty", "gone", "zeros", "longer"]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run, checkpoints of all its steps kept."""
    from mmrl import families

    root = tmp_path_factory.mktemp("damage")
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(families.FAMILIES, "toy", families.Family("toy", config="toy_config", entry="toy_family"))
        assert toy_runs.train(root, root / "whole", checkpoint={"every": 1, "keep_last": 9}) == 0
    return root


def spoil(file: Path, damage: str, at: int) -> None:
    data = bytearray(file.read_bytes())
    where = at % (8 * len(data))
    if damage == "bit":
        data[where // 8] ^= 1 << where % 8
    elif damage == "cut":
        del data[where // 8 :]
    elif damage == "empty":
        data = bytearray()
    elif damage == "zeros":  # what a power cut leaves of a file that was not synced
        data[where // 8 :] = bytes(len(data) - where // 8)
    elif damage == "longer":
        data += b"\n"
    if damage == "gone":
        file.unlink()
    else:
        file.write_bytes(data)


def damaged(file: str, damage: str) -> bool:
    """A line break more after the JSON of the manifest says nothing else."""
    return (file, damage) != ("manifest.json", "longer")


@settings(max_examples=150, deadline=None, database=None)
@given(file=st.sampled_from(FILES), damage=st.sampled_from(DAMAGES), at=st.integers(0, 10**7))
def test_any_damage_to_any_file(world: Path, file: str, damage: str, at: int) -> None:
    newest = checkpoint.step_folder(world / "whole", 6)
    kept = (newest / file).read_bytes()
    spoil(newest / file, damage, at)
    try:
        told: list[str] = []
        found = checkpoint.newest_whole(world / "whole", tell=told.append)
        assert found is not None
        if damaged(file, damage):
            assert found.name == "step-000005" and len(told) == 1
            assert told[0].startswith("checkpoint step-000006 is damaged (")
            assert file in told[0] or file == "manifest.json"
        else:
            assert found.name == "step-000006" and told == []
    finally:
        (newest / file).write_bytes(kept)


def test_every_single_bit_of_the_manifest(world: Path, tmp_path: Path) -> None:
    """The one file that no hash protects."""
    folder = Path(shutil.copytree(checkpoint.step_folder(world / "whole", 6), tmp_path / "step-000006"))
    manifest = folder / "manifest.json"
    kept = manifest.read_bytes()
    for bit in range(8 * len(kept)):
        data = bytearray(kept)
        data[bit // 8] ^= 1 << bit % 8
        manifest.write_bytes(data)
        assert checkpoint.fault(folder) is not None, (bit, data[max(0, bit // 8 - 20) : bit // 8 + 20])


@pytest.mark.parametrize("text", ["[]", "{}", "3", "null", '{"sha256": []}', '{"sha256": {}}', "[" * 9999, "\xff"])
def test_a_manifest_that_is_something_else(text: str, world: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(checkpoint.step_folder(world / "whole", 6), tmp_path / "step-000006"))
    (folder / "manifest.json").write_text(text, encoding="latin-1")
    assert checkpoint.fault(folder)
    manifest = {"format": checkpoint.FORMAT, "step": 6, "sha256": {}}  # names nothing, so that nothing could differ
    (folder / "manifest.json").write_text(json.dumps(manifest))
    assert checkpoint.fault(folder) == "the manifest does not name state.json"


def test_a_checkpoint_under_the_name_of_another_step_is_none(world: Path, tmp_path: Path) -> None:
    source = checkpoint.step_folder(world / "whole", 5)
    assert "of step 5" in str(checkpoint.fault(Path(shutil.copytree(source, tmp_path / "step-000009"))))
    assert checkpoint.fault(Path(shutil.copytree(source, tmp_path / "my favourite"))) is None


@pytest.mark.usefixtures("toy")
@pytest.mark.parametrize(("file", "damage"), [(FILES[2], "bit"), (FILES[0], "cut"), (FILES[1], "gone")])
def test_the_run_goes_on_from_the_newest_whole_one(
    file: str, damage: str, world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The newest two are damaged, the one before is used; the steps after it are made again, equal."""
    run = Path(shutil.copytree(world / "whole", tmp_path / "run"))
    for step in (5, 6):
        spoil(checkpoint.step_folder(run, step) / file, damage, 999)
    assert toy_runs.resume(run) == 0
    told = capsys.readouterr().err
    for step in (5, 6):
        assert f"checkpoint step-00000{step} is damaged (" in told and "trying the one before" in told
    assert "resuming from step-000004" in told
    assert differences(world / "whole", run) == []


@pytest.mark.usefixtures("toy")
def test_retention_across_a_resume(tmp_path: Path) -> None:
    """The last two and the best, also when the best was made by an earlier session."""
    config = {"checkpoint": {"every": 1, "keep_last": 2}, "eval": {"every": 1}, "optimiser": {"lr": 3.0}}
    out = tmp_path / "run"
    assert toy_runs.train(tmp_path, out, **config, train={"steps": 3}) == 0
    scores = {}
    for steps in (3, 5, 9):
        assert toy_runs.train(tmp_path, out, resume=True, **config, train={"steps": steps}) == 0
        rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
        scores = {row["step"]: row["eval/reward"] for row in rows[1:]}
        best = max(scores, key=lambda step: (scores[step], -step))
        assert [int(p.name[5:]) for p in checkpoint.folders(out)] == sorted({best, steps - 1, steps})
        state = checkpoint.read_state(checkpoint.folders(out)[-1])["trainer"]["counters"]
        assert (state["best_step"], state["best"]) == (best, scores[best])
    assert len(scores) == 9
