"""scripts/make_flow_start.py end to end, with few steps: files, determinism, going on after a stop."""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch
from safetensors.torch import load_file

from image_gen.embedded.model import load
from image_gen.embedded.prompts import builtin

SCRIPT = Path(__file__).resolve().parents[2] / "scripts" / "make_flow_start.py"


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("make_flow_start", SCRIPT)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module.NARROW, module.WIDE = 3, 2  # type: ignore[attr-defined]
    module.IMAGES = {"digit": 1, "composition": 1}  # type: ignore[attr-defined]
    module.SAMPLING_STEPS, module.SAMPLING_SEEDS = 2, (0, 1)  # type: ignore[attr-defined]
    return module


def run(script: ModuleType, monkeypatch: pytest.MonkeyPatch, *options: str) -> None:
    monkeypatch.setattr(sys, "argv", ["make_flow_start.py", *options])
    script.main()


def test_three_steps(
    script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    run(script, monkeypatch, "--steps", "3", "--out", str(out), "--work", str(tmp_path / "work"))
    for name in ("flow", "compose"):
        load(out / name, dtype=torch.float32, device=torch.device("cpu"))
    said = capsys.readouterr().out
    for name in ("reward 3/3", "judge 3/3", "flow 3/3", "digits:class, 2 steps", "digits:compose?split=eval, 2 steps"):
        assert name in said
    assert all((out / f"{name}.safetensors").is_file() for name in ("reward", "judge"))


@pytest.mark.parametrize("name", ["flow", "judge"])
def test_stopped_and_started_again(
    script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """The networks' learning rate falls to the last step, so a shorter run is another run: it is stopped in place."""
    monkeypatch.setattr(script, "KEEP_EVERY", 1)
    seed = script.stream_seed

    def stop(*key: object) -> int:
        if key[:2] == ("make_flow_start", name) and key[-1] == 2:
            raise KeyboardInterrupt
        return int(seed(*key))

    def place(kind: str) -> list[str]:
        return ["--only", name, "--steps", "3", "--out", str(tmp_path / kind), "--work", str(tmp_path / f"{kind}-work")]

    run(script, monkeypatch, *place("whole"))
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(script, "stream_seed", stop)
        run(script, monkeypatch, *place("halves"))
    run(script, monkeypatch, *place("halves"))
    file = "flow/transformer/diffusion_pytorch_model.safetensors" if name == "flow" else f"{name}.safetensors"
    whole, halves = (load_file(tmp_path / kind / file) for kind in ("whole", "halves"))
    assert whole.keys() == halves.keys() and all(torch.equal(value, halves[key]) for key, value in whole.items())


def test_the_second_start_goes_on_from_the_first(
    script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """flow to step 1, then compose to step 2, is flow to step 2."""
    file = "transformer/diffusion_pytorch_model.safetensors"
    place = ["--out", str(tmp_path / "out"), "--work", str(tmp_path / "work")]
    run(script, monkeypatch, "--only", "flow", "--steps", "1", *place)
    run(script, monkeypatch, "--only", "compose", "--steps", "2", *place)
    run(script, monkeypatch, "--only", "flow", "--steps", "2", "--out", str(tmp_path / "one"))
    one, two = (load_file(tmp_path / name / file) for name in ("one/flow", "out/compose"))
    assert all(torch.equal(value, two[key]) for key, value in one.items())


def test_the_shipped_starts_are_competent_but_improvable(script: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    """Published: docs/embedded_flow.md. Here with fewer pictures, and wider limits."""
    monkeypatch.setattr(script, "IMAGES", {"digit": 16, "composition": 6})
    cpu = {"dtype": torch.float32, "device": torch.device("cpu")}
    how = {"seed": 0, "steps": 16, "guidance": 1.0}
    found = script.numbers(load("embedded:flow", **cpu), builtin("digits:class"), **how)
    assert 0.6 < found["judge"] < 0.87 and 0.13 < found["diversity"] < 0.2 and found["reward"] > 0.4
    found = script.numbers(load("embedded:compose", **cpu), builtin("digits:compose?split=eval"), **how)
    assert 0.2 < found["judge"] < 0.55 and found["reward"] > 0.4
