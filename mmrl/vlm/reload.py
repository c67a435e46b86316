"""Is an exported folder the model that was trained? Logits on one prompt, here and in a fresh plain process.

Axes: P prompt positions, k of them compared (the last ones), V vocabulary.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from mmrl.data.records import Record
from mmrl.errors import UserError
from mmrl.training.exported import largest_difference
from mmrl.vlm import plain_forward
from mmrl.vlm.adapters import Shape
from mmrl.vlm.config import Inputs, Model
from mmrl.vlm.encode import Encoder, messages_of, pictures_of, stack

#: Positions compared: the logits of all positions of a long prompt would take gigabytes.
LAST = 64
#: Of the largest logit (at least 1): many times what float32 loses by another order of operations.
TOLERANCE = 1e-4
_LOADING = ("Loading weights", "Writing model shards")  # progress bars on stderr


class Probe:
    """One prompt, and what it gave when the model was as the run evaluates it."""

    def __init__(self, model: Any, processor: Any, record: Record, inputs: Inputs) -> None:
        self.record, self.inputs = record, inputs
        self.prompt = Encoder(processor, Shape(model), inputs)(record)
        self.last = min(LAST, len(self.prompt))
        self.expected = self.logits(model)
        if not self.expected.isfinite().all():
            raise UserError("the model's logits are not finite: its training went wrong; export an earlier step")
        self.tolerance = TOLERANCE * max(1.0, float(self.expected.abs().max()))

    def logits(self, model: Any) -> torch.Tensor:
        """[k, V] by the code that samples and evaluates: its own positions, the head applied by itself."""
        shape = Shape(model)
        batch = stack([self.prompt], shape.device)
        with torch.no_grad():
            hidden = shape.hidden(batch["ids"], mask=batch["mask"], positions=batch["positions"], media=batch["media"])
            return shape.head(hidden[0, -self.last :]).float()  # type: ignore[no-any-return]

    def difference(self, logits: torch.Tensor) -> float:
        """Largest absolute difference from what the run's model says; infinite for another shape or a NaN."""
        return largest_difference(self.expected, logits)

    def reloaded(self, folder: Path, *, base: str | None, options: Model) -> torch.Tensor:
        """[k, V] of the folder in a fresh process. `base` is given for an adapter. Raises UserError when it does not
        load, or makes another prompt of the same record."""
        with tempfile.TemporaryDirectory(prefix="mmrl-reload-") as room:
            task = Path(room) / "task.json"
            out = Path(room) / "out.safetensors"
            pictures = []
            for i, picture in enumerate(pictures_of(self.record, self.inputs)):
                picture.save(Path(room) / f"{i}.png")
                pictures.append(str(Path(room) / f"{i}.png"))
            wanted = {
                "model": base or str(folder.resolve()),
                "adapter": str(folder.resolve()) if base else None,
                "messages": messages_of(self.record, system=self.inputs.system, edit=None),
                "pictures": pictures,
                "last": self.last,
                "threads": torch.get_num_threads(),
                "trust": options.trust_remote_code,
                "out": str(out),
            }
            task.write_text(json.dumps(wanted), encoding="utf-8")
            command = [sys.executable, "-P", plain_forward.__file__, str(task)]
            done = subprocess.run(command, capture_output=True, text=True, cwd=room)
            if done.returncode != 0 or not out.is_file():
                raise UserError(f"the exported folder does not load in plain transformers: {_reason(done.stderr)}")
            found = load_file(out)
        if not torch.equal(found["input_ids"].long(), self.prompt.ids):
            raise UserError(
                "the exported processor makes another prompt of the same record than the run's; is it the right base?"
            )
        return found["logits"]


def _reason(stderr: str) -> str:
    lines = [line.strip() for line in stderr.splitlines() if line.strip() and not line.startswith(_LOADING)]
    return lines[-1][:500] if lines else "the process ended without a word"
