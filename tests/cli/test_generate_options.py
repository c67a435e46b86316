"""Which family a checkpoint is of, and which options that family takes. No model is loaded."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from mmrl.cli.checkpoints import family_of, require_checkpoint
from mmrl.cli.doctor import model_problems
from mmrl.cli.generate import check_options, check_values
from mmrl.cli.main import run
from mmrl.errors import UserError


def make(checkpoint: Path, *, prompt: str, n: int = 1, out: Path = Path("o")) -> list[Path]:
    return []


def test_an_option_that_a_family_does_not_use_is_refused() -> None:
    check_options({"prompt": "x", "n": 2, "out": Path("o")}, make, "vlm")
    with pytest.raises(
        UserError, match=r"--steps: a model of family 'vlm' does not take it; it takes --prompt, --n, --out"
    ):
        check_options({"prompt": "x", "steps": 3}, make, "vlm")
    with pytest.raises(UserError, match="--prompt: missing"):
        check_options({"n": 3}, make, "vlm")


@pytest.mark.parametrize(
    ("given", "part"),
    [
        ({"prompt": " \n"}, "--prompt: it is empty"),
        ({"prompt": "\udcff"}, "UTF-8"),
        ({"image": [Path("no.png")]}, "no.png"),
    ],
)
def test_values_that_no_family_takes(given: dict[str, object], part: str) -> None:
    with pytest.raises(UserError, match=part):
        check_values(given)


def folder(path: Path, **files: str) -> Path:
    path.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (path / name.replace("__", ".")).write_text(text)
    return path


def test_the_family_of_a_checkpoint(tmp_path: Path) -> None:
    run_folder = folder(tmp_path / "run", config__yaml="family: flow\n")
    step = folder(run_folder / "checkpoints" / "step-000001" / "model").parent
    lora = folder(tmp_path / "lora", mmrl__json=json.dumps({"family": "flow"}), pytorch_lora_weights__safetensors="")
    bare = folder(tmp_path / "bare", pytorch_lora_weights__safetensors="")
    pipeline = folder(tmp_path / "pipe", model_index__json="{}")
    model = folder(tmp_path / "vlm", config__json="{}")
    for path in (run_folder, step, lora, bare, pipeline):
        assert require_checkpoint(path) == path and family_of(path) == "flow"
    assert family_of(model) == "vlm"
    away = tmp_path / "step"
    folder(away / "model", mmrl__json=json.dumps({"family": "flow"}))
    assert family_of(away) == "flow"
    own = folder(tmp_path / "own", a__yaml="family: vlm\n") / "a.yaml"
    assert family_of(run_folder, str(own)) == "vlm"
    (lora / "mmrl.json").write_text("{")
    with pytest.raises(UserError, match="mmrl.json: broken JSON"):
        family_of(lora)


def test_a_family_without_generate(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import sys
    import types

    from mmrl import families

    sys.modules["silent"] = types.ModuleType("silent")
    families.FAMILIES["silent"] = families.Family("silent", config="silent", entry="silent")
    try:
        path = folder(tmp_path / "run", config__yaml="family: silent\n")
        assert run(["generate", str(path), "--prompt", "x"]) == 2
        assert "do not generate from the command line" in capsys.readouterr().err
    finally:
        del sys.modules["silent"], families.FAMILIES["silent"]


def test_doctor_looks_into_pipelines(tmp_path: Path) -> None:
    index = {
        "_class_name": "SanaPipeline",
        "vae": ["diffusers", "A"],
        "transformer": ["diffusers", "B"],
        "x": [None, None],
    }
    path = folder(tmp_path / "p", model_index__json=json.dumps(index))
    assert [p.split(" lacks ")[1] for p in model_problems(str(path))] == [
        "the component vae",
        "the component transformer",
    ]
    for name in ("vae", "transformer"):
        folder(path / name)
    assert len(model_problems(str(path))) == 2 and "no safetensors" in model_problems(str(path))[0]
    for name in ("vae", "transformer"):
        folder(path / name, a__safetensors="")
    assert model_problems(str(path)) == []
    (path / "model_index.json").write_text("{")
    assert "broken JSON" in model_problems(str(path))[0]
