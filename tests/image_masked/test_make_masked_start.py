"""scripts/make_masked_start.py end to end, with few steps: files, determinism, going on after a stop."""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from image_gen.embedded.masked_model import load
from mmrl.data.digits import load_digits

SCRIPT = Path(__file__).resolve().parents[2] / "scripts" / "make_masked_start.py"
CPU = torch.device("cpu")


@pytest.fixture
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("make_masked_start", SCRIPT)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def run(script: ModuleType, monkeypatch: pytest.MonkeyPatch, *options: str) -> None:
    monkeypatch.setattr(sys, "argv", ["make_masked_start.py", *options])
    script.main()


def test_three_steps(
    script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(script, "IMAGES", 2)
    monkeypatch.setattr(script, "SAMPLING_SEEDS", (0, 1))
    run(script, monkeypatch, "--steps", "3", "--out", str(tmp_path / "out"), "--work", str(tmp_path / "work"))
    load(tmp_path / "out" / "masked", dtype=torch.float32, device=CPU)
    said = capsys.readouterr().out
    for line in ("masked 3/3: loss", "digits:class, 2 steps, cosine", "digits:class, 16 steps, cosine", "bytes"):
        assert line in said


def test_stopped_and_started_again(script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same weights bit for bit, stopped after a step that was kept or by the number of steps asked for."""
    monkeypatch.setattr(script, "KEEP_EVERY", 2)
    monkeypatch.setattr(script, "ROWS", 8)

    def place(kind: str, steps: int) -> list[str]:
        folders = ["--out", str(tmp_path / kind), "--work", str(tmp_path / f"{kind}-work")]
        return ["--only", "make", "--steps", str(steps), *folders]

    seed = script.stream_seed

    def stop(*key: object) -> int:
        if key[0] == "make_masked_start" and key[-1] == 3:
            raise KeyboardInterrupt
        return int(seed(*key))

    run(script, monkeypatch, *place("whole", 5))
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(script, "stream_seed", stop)
        run(script, monkeypatch, *place("halves", 5))
    assert torch.load(tmp_path / "halves-work" / "masked.pt", weights_only=True)["step"] == 2
    run(script, monkeypatch, *place("halves", 4))
    run(script, monkeypatch, *place("halves", 5))
    for file in ("transformer/diffusion_pytorch_model.safetensors", "words/words.safetensors"):
        whole, halves = (load_file(tmp_path / kind / "masked" / file) for kind in ("whole", "halves"))
        assert whole.keys() == halves.keys() and all(torch.equal(value, halves[key]) for key, value in whole.items())


def test_half_of_the_prompts_say_nothing_about_the_picture(script: ModuleType) -> None:
    """A tenth dropped; of the others half are told the truth, and a tenth of the rest by chance: 0.55."""
    digits = load_digits("train")
    known = {picture.tobytes(): int(label) for picture, label in zip(digits.images, digits.labels, strict=True)}
    dropped, right = [], []
    for step in range(40):
        texts, ids_nl = script.demonstrations(step)
        assert torch.equal(ids_nl, script.demonstrations(step)[1]) and ids_nl.shape == (128, 64)
        for text, ids in zip(texts, ids_nl, strict=True):
            label = known[ids.numpy().astype(np.uint8).reshape(8, 8).tobytes()]
            dropped.append(text == "")
            right += [text == script.one(label)] if text else []
    assert abs(np.mean(dropped) - 0.1) < 0.02 and abs(np.mean(right) - 0.55) < 0.03


def test_masked_shares_follow_the_cosine(script: ModuleType) -> None:
    """The mean of cos(pi u / 2) is 2 / pi; at least one position is open, and not always the same."""
    torch.manual_seed(0)
    open_nl = script.masked_positions(4000, 64)
    assert int(open_nl.sum(1).min()) >= 1 and int(open_nl.sum(1).max()) == 64
    assert abs(float(open_nl.float().mean()) - 0.637 - 0.5 / 64) < 0.02
    assert float(open_nl.float().mean(0).std()) < 0.02


def test_the_shipped_start_is_competent_but_improvable(script: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    """Published: docs/embedded_masked.md. Here with fewer pictures, and wider limits."""
    monkeypatch.setattr(script, "IMAGES", 40)
    found = script.numbers(load(dtype=torch.float32, device=CPU), steps=8, seed=0)
    assert 0.38 < found["judge"] < 0.57 and 0.15 < found["diversity"] < 0.2 and 0.2 < found["reward"] < 0.4
