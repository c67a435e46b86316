"""What counts as CHECKPOINT on the command line. Loads no torch."""

from __future__ import annotations

from pathlib import Path

from mmrl.errors import UserError
from mmrl.training.exported import NOTE

#: The family of a folder that says nothing itself, by a file that others of its kind have.
MARKS = {"model_index.json": "flow", "pytorch_lora_weights.safetensors": "flow"}
#: The same by the class that its model_index.json names, where it is another one.
CLASSES = {"AmusedPipeline": "masked", "EmbeddedTokens": "masked"}
#: The same by `model_type` of its config.json, up to the first hyphen.
KINDS = {"llada": "dlm", "sdar": "dlm", "dream": "dlm", "a2d": "dlm"}
OTHERWISE = "vlm"
PICKLES = {".bin", ".pt", ".pth", ".ckpt", ".pkl"}


def require_checkpoint(path: Path) -> Path:
    """The folder, if it can be a run folder, a step folder or an exported model. Raises UserError otherwise."""
    if not path.exists():
        raise UserError(f"{path}: no such checkpoint; give a run folder, a step folder or an exported folder")
    if path.is_file():
        if path.suffix in PICKLES:
            raise UserError(f"{path}: pickle checkpoints are refused, they can run code; convert it to safetensors")
        raise UserError(f"{path}: a file; give the folder that holds it")
    if any((path / name).exists() for name in ("config.yaml", "config.json", "adapter_config.json", "model", *MARKS)):
        return path
    if any((path / "checkpoints").glob("step-*")) or any(path.glob("*.safetensors")):
        return path
    if runs := sorted(p.parent for p in path.glob("*/config.yaml")):
        raise UserError(f"{path}: holds several runs; name one of them: {', '.join(map(str, runs))}")
    if any(p.suffix in PICKLES for p in path.iterdir()):
        raise UserError(f"{path}: holds pickle weights only; they are refused, convert them to safetensors")
    raise UserError(f"{path}: no checkpoint in it (no config.yaml, config.json or checkpoints/step-*)")


def family_of(path: Path, config: str | None = None) -> str:
    """The family of a checkpoint: that of the configuration given, of its run, of the note beside exported weights, or
    what its files look like."""
    from mmrl import json_io, yaml_io
    from mmrl.paths import find_config
    from mmrl.training.stored import run_folder

    run = run_folder(path)
    if config is not None or run is not None:
        raw = yaml_io.read(find_config(config if config is not None else f"{run}/config.yaml"))
        return str(raw.get("family", OTHERWISE))
    folder = path / "model" if (path / "model").is_dir() else path  # a step folder away from its run
    if (folder / NOTE).is_file():
        found = json_io.read_object(folder / NOTE, remedy="export the model again").get("family")
        if isinstance(found, str):
            return found
    if by_class := CLASSES.get(_said(folder / "model_index.json", "_class_name")):
        return by_class
    if by_file := next((family for name, family in MARKS.items() if (folder / name).is_file()), None):
        return by_file
    return KINDS.get(_said(folder / "config.json", "model_type").lower().partition("-")[0], OTHERWISE)


def _said(file: Path, key: str) -> str:
    """The value of a key in a JSON file, "" without the file."""
    from mmrl import json_io

    return str(json_io.read_object(file, remedy="give the folder of a model").get(key)) if file.is_file() else ""
