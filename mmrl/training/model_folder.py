"""Model folders as every family meets them: a release or a stored adapter, safetensors only, clear refusals."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mmrl import json_io
from mmrl.errors import UserError
from mmrl.training.exported import looks_local

_PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")


def is_adapter(path: str) -> bool:
    return (Path(path) / "adapter_config.json").is_file()


def adapter_config(path: str) -> dict[str, Any]:
    """The contents of adapter_config.json."""
    return json_io.read_object(Path(path) / "adapter_config.json", remedy="take a whole copy of the adapter")


def base_of(path: str, given: str | None, *, resolve: Callable[[str], str]) -> str:
    """The checkpoint below a model folder: for a peft adapter the one `given`, else the one it names; for a full model
    itself. `resolve` turns names of embedded models into folders. Raises UserError when it is not there."""
    if not is_adapter(path):
        if given is not None:
            raise UserError(f"model.base: {path!r} is a full model, which needs no base; leave model.base (--base) out")
        return path
    base = given or adapter_config(path).get("base_model_name_or_path")
    if not base:
        raise UserError(
            f"{path}/adapter_config.json: base_model_name_or_path is missing; write the base model there, or name it "
            "with --base (in a configuration: model.base)"
        )
    if not Path(base).expanduser().exists() and looks_local(str(base)):
        whose = "model.base" if given else f"the adapter {path!r} was trained on"
        raise UserError(
            f"{whose}: no folder {str(base)!r}; say where its base model is now with --base (in a configuration: "
            "model.base)"
        )
    return resolve(str(base))


@contextmanager
def reading(what: str) -> Iterator[None]:
    """Libraries raise anything over damaged files: here it becomes a UserError, the cause chained to it."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        raise UserError(f"model.path: cannot load {what}: {_one_line(error)}") from error


def check_folder(path: str) -> None:
    """Refuse, before anything is loaded, folders that hold pickles or no model."""
    folder = Path(path)
    if not folder.exists():
        if looks_local(path):
            raise UserError(f"model.path: no folder {path!r}; give a folder written by save_pretrained, or a hub id")
        return
    if not folder.is_dir():
        raise UserError(f"model.path: {path!r} is a file; give the folder that holds it")
    if not is_adapter(path) and not (folder / "config.json").is_file():
        if inside := model_inside(folder):
            raise UserError(f"model.path: {path!r} is not the folder of a model; give its model/ folder: {inside}")
        raise UserError(f"model.path: {path!r} has no config.json; give a folder written by save_pretrained")
    if not list(folder.glob("*.safetensors")):
        pickled = sorted(f.name for p in _PICKLES for f in folder.glob(p))
        if pickled:
            raise UserError(
                f"model.path: {path!r} holds a pickle checkpoint ({pickled[0]}), which can run code when it is read; "
                "convert it to safetensors"
            )
        raise UserError(f"model.path: {path!r} holds no *.safetensors file; save the model with save_pretrained")


def model_inside(folder: Path) -> Path | None:
    """The model of a step of a run, or of a run's newest step, where that is what the folder is."""
    steps = sorted(p for p in (folder / "checkpoints").glob("step-*/model") if p.is_dir())
    return folder / "model" if (folder / "model").is_dir() else next(reversed(steps), None)


def _one_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    text = lines[0] if lines else ""
    if text.endswith(":") and len(lines) > 1:  # a headline without its news
        text = f"{text} {lines[1]}"
    if "custom code" in text:
        return f"{text.split('. ')[0]}; only if you trust that code, set model.trust_remote_code to true"
    if len(text.split()) < 3:  # "'added_tokens'" says nothing without its kind
        text = f"{type(error).__name__} {text}".strip()
    return f"{text.rstrip('.')}; is it a whole folder written by save_pretrained?"


#: Below this, reading or writing takes no time and a bar is noise among the lines of a run.
BAR_FROM_BYTES = 1_000_000_000


@contextmanager
def bars(size: int) -> Iterator[None]:
    """transformers' own progress bars only for models large enough to wait for, and only on a terminal."""
    from transformers.utils import logging

    if size >= BAR_FROM_BYTES and sys.stderr.isatty():
        yield
        return
    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


@contextmanager
def quiet() -> Iterator[None]:
    """transformers' warnings away: what they tell of a checkpoint ends in one line of our own, or is known."""
    from transformers.utils import logging

    level = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            yield
    finally:
        logging.set_verbosity(level)


def stored_bytes(path: str) -> int:
    """Bytes of weights in a folder; for a hub id (nothing on disk yet) as if large."""
    folder = Path(path)
    return sum(f.stat().st_size for f in folder.glob("*.safetensors")) if folder.is_dir() else BAR_FROM_BYTES
