"""What the tests of export share: the fresh process run here, and a configuration."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from image_gen.flow import plain_pictures
from mmrl.config_io import build

FILE = "pytorch_lora_weights.safetensors"


@pytest.fixture(autouse=True)
def in_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """The script of the fresh process, run here; `test_a_fresh_process` starts a real one."""

    def run(command: list[str], **_: Any) -> subprocess.CompletedProcess[str]:
        assert command[1:3] == ["-P", plain_pictures.__file__]
        with monkeypatch.context() as patch:
            for name in ("mmrl", "image_gen"):
                patch.delitem(sys.modules, name)
            plain_pictures.main(command[3])
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr("image_gen.reloading.subprocess.run", run)


def settings(model: Path, base: Path | None = None, **sections: Any) -> Any:
    plain = {
        "family": "flow",
        "recipe": "grpo",
        "device": "cpu",
        "model": {"path": str(model), "base": base and str(base)},
        "data": {"train": "digits:class"},
        "sampling": {"steps": 4, "eval_steps": 5, "guidance": 2.5},
        "inputs": {"height": 32, "width": 32},
        **sections,
    }
    return build(plain, folder=Path.cwd())
