"""Is an exported folder the model that was trained? Logits of a masked canvas, here and in a fresh process.

Axes: P prompt tokens, L canvas positions, V vocabulary.

As a script it is that process:  python -m dlm.reload task.json
task.json  {"folder", "base" or null, "text", "special", "ids", "mask_id", "block", "threads", "out"}
out        a safetensors file: the logits [L, V] in float32, or nothing when the tokenizer makes other ids of the text
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dlm import attention
from dlm.canvas import layout
from dlm.models.base import MaskedLM
from mmrl.errors import UserError
from mmrl.training.exported import largest_difference

#: Canvas positions compared: the logits of a whole canvas would take gigabytes.
CANVAS = 32
#: Of the largest logit (at least 1): many times what float32 loses by another order of operations.
TOLERANCE = 1e-4


@torch.no_grad()
def canvas_logits(model: MaskedLM, prompt: Tensor, *, length: int) -> Tensor:
    """[L, V] float32 of an all-masked canvas behind a prompt, as the first forward of its decoding without cache sees
    it (block attention: all blocks at once, each seeing the masks before it)."""
    canvas = layout([prompt], [length], model.traits, block=model.traits.block or length)
    blockwise = model.traits.attention == "block"
    seen = (
        attention.block_causal(canvas.positions_nl, canvas.valid_nl, canvas.block)
        if blockwise
        else attention.full(canvas.valid_nl)
    )
    hidden = model.hidden(canvas.ids_nl, positions_nl=canvas.positions_nl, attend_nqk=seen)
    found: Tensor = model.head(hidden[0][canvas.fillable_nl[0]])
    return found.float()


class Probe:
    """One prompt, and what a canvas behind it gave when the model was as the run evaluates it.

    text      the prompt as text, ids [P] its tokens. special: whether the tokenizer adds its own.
    """

    def __init__(self, model: MaskedLM, text: str, ids: Tensor, *, special: bool) -> None:
        self.text, self.special = text, special
        self.length = max(1, min(CANVAS, model.traits.window - 1))
        self.ids = ids[-(model.traits.window - self.length) :]
        self.cut = len(ids) - len(self.ids)
        self.expected = self.logits(model)
        if not self.expected.isfinite().all():
            raise UserError("the model's logits are not finite: its training went wrong; export an earlier step")
        self.tolerance = TOLERANCE * max(1.0, float(self.expected.abs().max()))

    def logits(self, model: MaskedLM) -> Tensor:
        """[L, V]"""
        return canvas_logits(model, self.ids, length=self.length)

    def difference(self, logits: Tensor) -> float:
        """Largest absolute difference from what the run's model says; infinite for another shape or a NaN."""
        return largest_difference(self.expected, logits)

    def reloaded(self, folder: Path, *, base: str | None, mask_id: int, block: int | None) -> Tensor:
        """[L, V] of the folder in a fresh process. `base` is given for an adapter, which does not tell mask and block.
        Raises UserError when it does not load, or makes another prompt of the same text."""
        from safetensors.torch import load_file

        with tempfile.TemporaryDirectory(prefix="mmrl-reload-") as room:
            task, out = Path(room) / "task.json", Path(room) / "out.safetensors"
            wanted = {
                "folder": str(folder.resolve()),
                "base": base,
                "text": self.text,
                "special": self.special,
                "ids": self.ids.tolist(),
                "length": self.length,
                "mask_id": mask_id if base else None,
                "block": block if base else None,
                "threads": torch.get_num_threads(),
                "out": str(out),
            }
            task.write_text(json.dumps(wanted), encoding="utf-8")
            packages = str(Path(__file__).resolve().parents[1])
            around = os.environ | {"PYTHONPATH": os.pathsep.join([packages, os.environ.get("PYTHONPATH", "")])}
            command = [sys.executable, "-P", "-m", "dlm.reload", str(task)]
            done = subprocess.run(command, capture_output=True, text=True, cwd=room, env=around)
            if done.returncode != 0 or not out.is_file():
                raise UserError(f"the exported folder does not load again: {_reason(done.stderr)}")
            return load_file(out)["logits"]


def _reason(stderr: str) -> str:
    lines = [line.strip() for line in stderr.splitlines() if line.strip()]
    return lines[-1][:500] if lines else "the process ended without a word"


def _once(task: dict[str, Any]) -> None:
    """What the fresh process does."""
    from safetensors.torch import save_file

    from dlm.models import lora
    from dlm.models.loading import load_model, load_tokenizer

    torch.set_num_threads(task["threads"])
    model, tokenizer = load_model(task["base"] or task["folder"], mask_id=task["mask_id"], block=task["block"])
    if task["base"]:
        model = lora.load(model, task["folder"])
        tokenizer = load_tokenizer(Path(task["folder"]))
    ids = tokenizer(task["text"], add_special_tokens=task["special"])["input_ids"]
    if ids[-len(task["ids"]) :] != task["ids"]:
        raise SystemExit("the exported tokenizer makes other tokens of the same prompt; is it the right base?")
    logits = canvas_logits(model, torch.tensor(task["ids"]), length=task["length"])
    save_file({"logits": logits.contiguous()}, task["out"])


if __name__ == "__main__":
    _once(json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")))
