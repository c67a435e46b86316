"""examples/finetune_masked.py: as it is on the embedded model, for two steps; and a run on aMUSEd that can start."""

from __future__ import annotations

import json
import runpy
from pathlib import Path
from typing import Any

import pytest

from mmrl.cli import preflight
from mmrl.config import Config

EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "finetune_masked.py"


@pytest.fixture
def made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Config]:
    """The configurations that the program makes; a run of the embedded model is cut to two steps."""
    import image_gen.embedded.rewards
    import image_gen.rewards.catalogue  # noqa: F401  (what they register must outlive the copy below)
    from mmrl.rewards import registry
    from mmrl.training import run as training

    kept: list[Config] = []
    real = training.train

    def train(config: Config) -> Path:
        kept.append(config)
        if not config.model.path.startswith("embedded:"):
            raise SystemExit
        short: Any = config.model_copy(deep=True)
        short.train.steps, short.inputs.eval_images, short.inputs.curve_steps = 2, 2, [4]
        return real(short)

    (tmp_path / "prompts.txt").write_text("a cat\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(registry, "_REWARDS", dict(registry.registered()))
    monkeypatch.setattr(training, "train", train)
    return kept


def test_the_embedded_model(made: list[Config], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["finetune_masked.py"])
    runpy.run_path(str(EXAMPLE))
    run = Path("runs/my-masked")
    summary = json.loads((run / "summary.json").read_text())
    assert {"reward", "judge", "diversity", "judge@4"} <= set(summary["before"]) & set(summary["after"])
    assert (run / "report.html").is_file()
    told = json.loads((run / "four-steps" / "pictures.json").read_text())
    assert told["steps"] == 4 and set(told["pictures"][0]["scores"]) == {"digit", "contrast", "digit_judge"}


def test_another_model_asks_for_a_run_that_can_start(made: list[Config], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["finetune_masked.py", "amused/amused-256", "prompts.txt", "prompts.txt"])
    with pytest.raises(SystemExit):
        runpy.run_path(str(EXAMPLE))
    (config,) = made
    assert config.model.path == "amused/amused-256" and preflight.problems(config) == []
