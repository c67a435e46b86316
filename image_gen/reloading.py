"""Is an exported folder the model that was trained? What it gives, here and in a fresh plain process.

A family says what is asked of a model (a `Probe`) and which script asks the same of the folder without this package.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Generic, TypeVar

import torch
from safetensors.torch import load_file
from torch import Tensor

from image_gen.pipelines.base import PictureModel
from mmrl.errors import UserError
from mmrl.training.exported import largest_difference

M = TypeVar("M", bound=PictureModel)
#: Of the largest output (at least 1): many times what float32 loses by another order of operations.
TOLERANCE = 1e-4
_LOADING = ("Loading", "Fetching", "Writing")  # progress bars on stderr


@dataclass(frozen=True)
class Further:
    """Something that is compared beside the outputs of the transformer: in which unit, and how far it may differ."""

    unit: str
    tolerance: float


#: A quarter of one of 256 levels.
PICTURES = Further("0 black, 1 white", 1e-3)


@dataclass(frozen=True)
class Apart:
    """Largest absolute differences; infinite for another shape or a NaN."""

    outputs: float
    further: dict[str, float]

    def and_also(self, other: Apart) -> Apart:
        """The larger of each."""
        names = {**self.further, **other.further}
        further = {name: max(a.get(name, 0.0) for a in (self.further, other.further)) for name in names}
        return Apart(max(self.outputs, other.outputs), further)


@dataclass(frozen=True)
class Measured:
    """outputs   what the transformer says at each call, with the shapes it says it in.
    further   what else can be compared, by name: `pictures` [N, 3, H, W] in [0, 1], ..."""

    outputs: list[Tensor]
    further: dict[str, Tensor] = field(default_factory=dict)

    def apart(self, other: Measured) -> Apart:
        outputs = max(largest_difference(a, b) for a, b in zip(self.outputs, other.outputs, strict=True))
        further = {
            name: largest_difference(value, other.further[name]) if name in other.further else float("inf")
            for name, value in self.further.items()
        }
        return Apart(outputs, further)


class Probe(ABC, Generic[M]):
    """One prompt and fixed noise, and what they gave when the model was as the run evaluates it.

    what       the outputs of the transformer, in the plural.
    further    name -> unit and tolerance of what else is measured.
    expected   of the model as it is evaluated.
    """

    what: ClassVar[str]
    further: ClassVar[Mapping[str, Further]] = {"pictures": PICTURES}
    prompt: str
    expected: Measured

    @abstractmethod
    def measure(self, model: M) -> Measured:
        """By the code that samples and evaluates."""

    @abstractmethod
    def script(self) -> str:
        """The file that measures the same of a folder: `python -P FILE task.json`. It writes output0, output1, ... and
        the further ones by name to the safetensors file `out`."""

    @abstractmethod
    def inputs(self) -> dict[str, Any]:
        """Tensors that the script needs, as the model was called with them."""

    @abstractmethod
    def task(self, model: M) -> dict[str, Any]:
        """What else it has to know of the model, while that is still here."""

    def start(self, model: M) -> None:
        """Measure the model as it is evaluated. Raises UserError when it says NaN."""
        self.expected = self.measure(model)
        if not all(v.isfinite().all() for v in self.expected.outputs):
            raise UserError(f"the model's {self.what} are not finite: its training went wrong; export an earlier step")
        self.tolerance = TOLERANCE * max(1.0, *(float(v.abs().max()) for v in self.expected.outputs))

    def same(self, before: Measured, after: Measured, wrong: str) -> Apart:
        """How far they are apart. Raises UserError, beginning with `wrong`, beyond the tolerances."""
        apart = before.apart(after)
        tolerances = {name: (one.tolerance, f", {one.unit}") for name, one in self.further.items()}
        for name, value in {self.what: apart.outputs, **apart.further}.items():
            tolerance, unit = tolerances.get(name, (self.tolerance, ""))
            if not value <= tolerance:
                raise UserError(
                    f"{wrong}: its {name} differ by {value:.2g} (tolerance {tolerance:.2g}{unit}) for the prompt "
                    f"{self.prompt[:60]!r}; nothing was exported"
                )
        return apart

    def reloaded(self, folder: Path, *, base: Path | None, task: dict[str, Any]) -> Measured:
        """The same of the folder in a fresh process. `base` is given for an adapter. Raises UserError when it does not
        load."""
        with tempfile.TemporaryDirectory(prefix="mmrl-reload-") as room:
            inputs, out, file = (Path(room) / name for name in ("inputs.pt", "out.safetensors", "task.json"))
            torch.save(self.inputs(), inputs)
            places = {
                "model": str((base or folder).resolve()),
                "lora": str(folder.resolve()) if base else None,
                "exported": str(folder.resolve()),
                "inputs": str(inputs),
                "out": str(out),
                "threads": torch.get_num_threads(),
            }
            file.write_text(json.dumps(task | places), encoding="utf-8")
            command = [sys.executable, "-P", self.script(), str(file)]
            done = subprocess.run(command, capture_output=True, text=True, cwd=room)
            if done.returncode != 0 or not out.is_file():
                raise UserError(f"the exported folder does not load in plain diffusers: {_reason(done.stderr)}")
            found = load_file(out)
        outputs = [found.pop(f"output{i}") for i in range(len(self.expected.outputs))]
        return Measured(outputs, found)


def heard(model: PictureModel, ask: Any) -> tuple[list[tuple[Any, Any]], list[Tensor]]:
    """(arguments that the transformer was called with, what it said) while `ask()` runs."""
    calls: list[tuple[Any, Any]] = []
    said: list[Tensor] = []

    def hook(_: Any, args: Any, kwargs: Any, output: Any) -> None:
        calls.append((args, kwargs))
        said.append((output[0] if isinstance(output, tuple) else output).detach().float().clone())

    handle = model.transformer.register_forward_hook(hook, with_kwargs=True)
    try:
        ask()
    finally:
        handle.remove()
    return calls, said


def _reason(stderr: str) -> str:
    lines = [line.strip() for line in stderr.splitlines() if line.strip() and not line.startswith(_LOADING)]
    return lines[-1][:500] if lines else "the process ended without a word"
