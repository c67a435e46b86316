"""The two example programs: one makes a configuration that can start, the other runs as it is."""

from __future__ import annotations

import json
import runpy
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mmrl.cli import preflight
from mmrl.config import Config

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"


def test_align_sd3_asks_for_a_run_that_can_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import image_gen.embedded.rewards
    import image_gen.rewards.catalogue  # noqa: F401  (what they register must outlive the copy below)
    from mmrl import report
    from mmrl.rewards import registry
    from mmrl.training import run as training

    made: list[Config] = []

    def keep(config: Config) -> Path:
        made.append(config)
        return Path("nowhere")

    (tmp_path / "prompts.txt").write_text("a cat\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(registry, "_REWARDS", dict(registry.registered()))
    monkeypatch.setattr(training, "train", keep)
    monkeypatch.setattr(report, "write_report", lambda runs, page: page)
    for given in ([], ["someone/else"]):
        monkeypatch.setattr("sys.argv", ["align_sd3.py", "prompts.txt", *given])
        scope = runpy.run_path(str(EXAMPLES / "align_sd3.py"))
        assert preflight.problems(made[-1]) == []
    import torch

    red = torch.tensor([1.0, 0.0, 0.0])[:, None, None].expand(3, 4, 4)
    assert scope["colourful"]([red, torch.ones(3, 4, 4)], [], []) == pytest.approx([3**-0.5, 0.0])
    assert made[0].model.path == "stabilityai/stable-diffusion-3.5-medium" and made[1].model.path == "someone/else"


def test_generate_runs_in_plain_diffusers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    from image_gen.pipelines import lora, tiny
    from image_gen.pipelines.loading import load_image_model

    folder = tiny.write("StableDiffusion3Pipeline", tmp_path / "sd3")
    model = load_image_model(str(folder), dtype=torch.float32, device=torch.device("cpu"))
    lora.attach_lora(model, rank=2, alpha=4)
    for name, parameter in model.transformer.named_parameters():
        if ".lora_B" in name:
            torch.nn.init.normal_(parameter)
    model.save_lora(tmp_path / "lora")
    (tmp_path / "lora" / "mmrl.json").write_text(json.dumps({"family": "flow", "base": str(folder)}))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["generate.py", "lora", "two sevens", "32", "3"])
    runpy.run_path(str(EXAMPLES / "generate.py"))
    for seed in range(4):
        one, other = (np.asarray(Image.open(f"{name}-{seed}.png")).astype(int) for name in ("aligned", "base"))
        assert one.shape == (32, 32, 3) and np.abs(one - other).max() > 0
