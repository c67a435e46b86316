"""Tiny models in aMUSEd's layout as a run stores them, for the tests of export and generate."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from image_gen.masked import config, plain_tokens
from image_gen.masked.models import tiny
from image_gen.masked.models.loading import load_token_model
from image_gen.masked.schedule import storage
from image_gen.masked.schedule.base import Schedule
from image_gen.pipelines import lora
from image_gen.stored import NOTE
from mmrl.config_io import build

CPU = torch.device("cpu")
#: Pixels of a picture's side: 4 x 4 tokens of 2 x 2 pixels.
SIDE = 8
STEPS = 4
FILE = "pytorch_lora_weights.safetensors"
SCHEDULE = "schedule/schedule.safetensors"


@pytest.fixture(autouse=True)
def in_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """The script of the fresh process, run here; a test that starts a real one undoes this."""

    def run(command: list[str], **_: Any) -> subprocess.CompletedProcess[str]:
        assert command[1:3] == ["-P", plain_tokens.__file__]
        with monkeypatch.context() as patch:
            for name in ("mmrl", "image_gen"):
                patch.delitem(sys.modules, name)
            plain_tokens.main(command[3])
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr("image_gen.reloading.subprocess.run", run)


def base_folder(folder: Path) -> Path:
    return tiny.write(folder, levels=2)


def sharp_folder(folder: Path) -> Path:
    """The same with larger weights within: its answers depend on what is filled already, and on the prompt."""
    file = base_folder(folder) / "transformer" / "diffusion_pytorch_model.safetensors"
    inner = ("embeddings", "attn", "channelwise", "depthwise")
    weights = {n: 4 * v if any(part in n for part in inner) else v for n, v in load_file(file).items()}
    save_file(weights, file, {"format": "pt"})
    return folder


def moved_schedule(
    kind: str = "table", *, steps: int = STEPS, learn: list[str] | None = None, far: float = 0.5
) -> Schedule:
    """One whose means are not zero; `far`: their deviation."""
    options: dict[str, Any] = {"kind": kind} | ({"learn": learn} if learn else {})
    schedule = storage.make(
        config.Schedule.model_validate(options), steps=steps, feature_width=8, grid=(SIDE // 2, SIDE // 2)
    )
    target = schedule.means if kind == "table" else schedule.head.weight  # type: ignore[union-attr]
    torch.nn.init.normal_(target, std=far, generator=torch.Generator().manual_seed(3))  # type: ignore[arg-type]
    return schedule


def adapter(base: Path, folder: Path, *, named: str | None = None, schedule: Schedule | None = None) -> Path:
    """A trained-looking LoRA (B is not zero) with a schedule beside it, as a run's checkpoint holds them."""
    model = load_token_model(str(base), dtype=torch.float32, device=CPU)
    lora.attach_lora(model, rank=2, alpha=6)
    generator = torch.Generator().manual_seed(5)
    for parameter in model.transformer.parameters():
        if parameter.requires_grad:
            parameter.data = 0.3 * torch.randn(parameter.shape, generator=generator)
    model.save_lora(folder)
    (folder / NOTE).write_text(json.dumps({"family": "masked", "base": named or str(base)}))
    (schedule or moved_schedule()).save(folder / "schedule")
    return folder


def settings(model: Path | str, base: Path | None = None, **sections: Any) -> Any:
    plain = {
        "family": "masked",
        "recipe": "co-grpo",
        "device": "cpu",
        "model": {"path": str(model), "base": base and str(base)},
        "data": {"train": "digits:class"},
        "sampling": {"steps": STEPS, "guidance": 3.0},
        "inputs": {"height": SIDE, "width": SIDE},
        **sections,
    }
    return build(plain, folder=Path.cwd())
