"""The whole trainer on tiny random checkpoints of the three shapes, loaded from disk by the real code."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from mmrl import config_io
from mmrl.training import checkpoint
from mmrl.training.run import train
from mmrl.training.stored import evaluate_run
from mmrl.training.trainer import Trainer
from mmrl.vlm import tiny

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))  # where the plug-in lies
TIMES = ("seconds", "tokens_per_s")
KINDS = ("qwen2_vl", "qwen2_5_vl", "qwen3_vl")


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("models")
    return {kind: tiny.build(kind, root / kind) for kind in KINDS}


def settings(folder: Path, out: Path, **sections: object) -> dict:
    base: dict = {
        "family": "vlm",
        "recipe": "visual-rft",
        "out": str(out),
        "threads": 1,
        "model": {"path": str(folder)},
        "sampling": {"max_new_tokens": 6},
        "data": {"train": "digits:train?task=detection&n=8", "eval": "digits:eval?task=detection&n=4"},
        "plugins": ["plugin_rewards"],
        "rewards": {"components": [{"name": "auto"}, {"name": "spread"}]},
        "train": {"steps": 4, "prompts": 2, "group": 3},
        "optimiser": {"lr": 1e-3},
        "checkpoint": {"every": 2},
        "eval": {"metric": "reward", "samples": 1},
        "log": {"tensorboard": False},
    }
    for key, value in sections.items():
        base[key] = {**base[key], **value} if isinstance(value, dict) and isinstance(base.get(key), dict) else value
    return base


def config(folder: Path, out: Path, **sections: object):
    return config_io.build(settings(folder, out, **sections), folder=Path.cwd())


def lines(run: Path) -> list[dict]:
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in row.items() if not k.startswith(TIMES)} for row in rows]


@pytest.mark.parametrize("kind", KINDS)
def test_each_shape_trains_a_step(folders: dict[str, Path], tmp_path: Path, kind: str) -> None:
    run = train(config(folders[kind], tmp_path / "run", train={"steps": 1}, checkpoint={"every": 1}), progress=False)
    row = lines(run)[1]
    assert row["updates"] == 1 and row["grad_norm"] > 0
    assert row["sampler_gap"] < 1e-3
    before = load_file(folders[kind] / "model.safetensors")
    after = load_file(checkpoint.step_folder(run, 1) / "model" / "model.safetensors")
    assert before.keys() == after.keys()
    assert any(not torch.equal(before[k], after[k]) for k in before)


ADAPTER = {"adapter": {"kind": "lora", "rank": 2, "alpha": 4.0}}


@pytest.mark.parametrize("extra", [{}, ADAPTER, {"gradient_checkpointing": True}], ids=["full", "lora", "packed"])
def test_resume_equals_the_uninterrupted_run(
    folders: dict[str, Path], tmp_path: Path, extra: dict, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = folders["qwen2_5_vl"]
    whole = train(config(model, tmp_path / "whole", model=extra), progress=False)
    original, done = Trainer.step, []

    def dies(self):
        if len(done) == 3:
            raise KeyboardInterrupt
        done.append(1)
        return original(self)

    monkeypatch.setattr(Trainer, "step", dies)
    with pytest.raises(KeyboardInterrupt):
        train(config(model, tmp_path / "cut", model=extra), progress=False)
    monkeypatch.setattr(Trainer, "step", original)
    cut = train(config(model, tmp_path / "cut", model=extra), resume=True, progress=False)
    assert lines(cut) == lines(whole)
    a, b = (load_file(checkpoint.step_folder(r, 4) / "trainable.safetensors") for r in (whole, cut))
    assert a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)
    assert any(row.get("kl", 0) > 0 for row in lines(whole)), "the KL to the start was never felt"


def test_a_lora_run_is_evaluated_from_its_folder(folders: dict[str, Path], tmp_path: Path) -> None:
    run = train(config(folders["qwen3_vl"], tmp_path / "run", model=ADAPTER), progress=False)
    summary = json.loads((run / "summary.json").read_text())
    best = checkpoint.step_folder(run, summary["best_step"])
    assert (best / "model" / "adapter_config.json").exists()
    assert evaluate_run(run)["reward"] == pytest.approx(summary["after"]["reward"], abs=1e-6)


def test_the_two_pass_update_trains_alike(folders: dict[str, Path], tmp_path: Path) -> None:
    one = lines(train(config(folders["qwen3_vl"], tmp_path / "a", train={"steps": 1}), progress=False))[1]
    two = lines(
        train(config(folders["qwen3_vl"], tmp_path / "b", train={"steps": 1, "two_pass": "always"}), progress=False)
    )[1]
    assert one["grad_norm"] == pytest.approx(two["grad_norm"], rel=1e-4)
    assert one["loss"] == pytest.approx(two["loss"], abs=1e-6)


def test_sft_lowers_its_loss(folders: dict[str, Path], tmp_path: Path) -> None:
    c = config(folders["qwen3_vl"], tmp_path / "run", recipe="sft", train={"steps": 8, "group": 1, "prompts": 4})
    rows = lines(train(c, progress=False))
    assert rows[8]["loss"] < rows[1]["loss"]


def test_kill_dash_nine_then_resume(folders: dict[str, Path], tmp_path: Path) -> None:
    """A real process, killed without warning after its first checkpoint."""
    file = tmp_path / "run.yaml"
    out = tmp_path / "run"
    file.write_text(json.dumps(settings(folders["qwen3_vl"], out, train={"steps": 60}, checkpoint={"every": 1})))
    env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(HERE)}
    command = [sys.executable, "-c", "import sys; from mmrl.cli.main import run; sys.exit(run(sys.argv[1:]))"]
    process = subprocess.Popen(
        [*command, "train", str(file)], env=env, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    )
    deadline = time.monotonic() + 120
    while not checkpoint.folders(out) and time.monotonic() < deadline:
        time.sleep(0.05)
        assert process.poll() is None, process.stderr.read().decode()[-2000:]
    process.send_signal(signal.SIGKILL)
    process.wait()
    done = int(checkpoint.folders(out)[-1].name.split("-")[1])
    assert 1 <= done < 60
    steps = done + 2
    cut = train(
        config(folders["qwen3_vl"], out, train={"steps": steps}, checkpoint={"every": 1}), resume=True, progress=False
    )
    whole = train(
        config(folders["qwen3_vl"], tmp_path / "whole", train={"steps": steps}, checkpoint={"every": 1}), progress=False
    )
    a, b = (load_file(checkpoint.step_folder(r, steps) / "trainable.safetensors") for r in (whole, cut))
    assert all(torch.equal(a[k], b[k]) for k in a)
    assert [row for row in lines(cut) if row["step"] < steps] == [row for row in lines(whole) if row["step"] < steps]
