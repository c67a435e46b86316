"""What counts as CHECKPOINT on the command line. Loads no torch."""

from __future__ import annotations

from pathlib import Path

from mmrl.errors import UserError

PICKLES = {".bin", ".pt", ".pth", ".ckpt", ".pkl"}


def require_checkpoint(path: Path) -> Path:
    """The folder, if it can be a run folder, a step folder or an exported model. Raises UserError otherwise."""
    if not path.exists():
        raise UserError(f"{path}: no such checkpoint; give a run folder, a step folder or an exported folder")
    if path.is_file():
        if path.suffix in PICKLES:
            raise UserError(f"{path}: pickle checkpoints are refused, they can run code; convert it to safetensors")
        raise UserError(f"{path}: a file; give the folder that holds it")
    if any((path / name).exists() for name in ("config.yaml", "config.json", "adapter_config.json", "model")):
        return path
    if any((path / "checkpoints").glob("step-*")) or any(path.glob("*.safetensors")):
        return path
    if any(p.suffix in PICKLES for p in path.iterdir()):
        raise UserError(f"{path}: holds pickle weights only; they are refused, convert them to safetensors")
    raise UserError(f"{path}: no checkpoint in it (no config.yaml, config.json or checkpoints/step-*)")
