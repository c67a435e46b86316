"""Models behind rewards: weights found or asked for in one line, loaded once a process, moved between devices."""

from __future__ import annotations

import pickle
import threading
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mmrl.errors import UserError


@dataclass
class Held:
    """A loaded model: eval mode, no gradients. `lock`: one call at a time, as a call may move it between devices."""

    model: nn.Module
    device: torch.device
    lock: threading.RLock = field(default_factory=threading.RLock)


_HELD: dict[Hashable, Held] = {}
_FAILED: dict[Hashable, str] = {}
_LOADING = threading.Lock()


def pick_device(name: str) -> torch.device:
    """auto = this process's CUDA device, or the CPU where there is none; else `cpu`, `cuda` or `cuda:n`."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError:
        raise UserError(f"rewards: device {name!r} is unknown; valid: auto, cpu, cuda, cuda:n") from None
    if device.type not in ("cpu", "cuda"):
        raise UserError(f"rewards: device {name!r} is not supported; valid: auto, cpu, cuda, cuda:n")
    if device.type == "cuda":
        if not torch.cuda.is_available() or (device.index or 0) >= torch.cuda.device_count():
            raise UserError(f"rewards: there is no device {name!r} on this machine; use auto or cpu")
        if device.index is None:
            device = torch.device("cuda", torch.cuda.current_device())
    return device


def loaded(key: Hashable, device: str, build: Callable[[], nn.Module]) -> Held:
    """The model of `key` on this device, built by the first call.

    Building fills fresh weights before the stored ones are copied in; the random streams of the run do not notice.
    Weights that could not be loaded are not tried again: a batch that fails is scored row by row, and a hub that does
    not answer takes half a minute each time.
    """
    where = pick_device(device)
    with _LOADING:
        if (key, where) in _FAILED:
            raise UserError(_FAILED[key, where])
        held = _HELD.get((key, where))
        if held is None:
            try:
                with torch.random.fork_rng(devices=[]):
                    model = build()
            except UserError as error:
                _FAILED[key, where] = str(error)
                raise
            held = _HELD[key, where] = Held(model.eval().requires_grad_(False), where)
        return held


def forget() -> None:
    """Drop every model that rewards hold in this process, and what could not be loaded."""
    with _LOADING:
        _HELD.clear()
        _FAILED.clear()


@contextmanager
def in_use(held: Held, *, offload: bool) -> Iterator[Any]:
    """The model on its device, without gradient and in the dtype it was loaded in, whatever autocast is on outside.

    offload: back to the CPU afterwards (the memory of a GPU is free between calls; each call pays for two moves).
    """
    with held.lock, torch.no_grad(), torch.autocast(held.device.type, enabled=False):
        held.model.to(held.device)
        try:
            yield held.model
        finally:
            if offload and held.device.type != "cpu":
                held.model.to("cpu")


def need_weights(path: str | None, *, get: str, option: str = "path") -> str:
    """`path` as given, `~` expanded. get: what to download and from where, for the one-line message.

    Raises UserError when it is not given, or names a local place that does not exist.
    """
    if not path:
        raise UserError(f"it needs weights: get {get}; then set its option {option} to the file or folder")
    local = Path(path).expanduser()
    if local.exists():
        return str(local)
    if path.startswith(("/", ".", "~")) or path.count("/") != 1:  # not the owner/name of a hub
        raise UserError(f"{option} {path!r} does not exist; get {get}")
    return path


def need_file(path: str | None, *, get: str, option: str = "path") -> str:
    """Like `need_weights` for one local file."""
    found = need_weights(path, get=get, option=option)
    if not Path(found).is_file():
        raise UserError(f"{option} {path!r} is not a file on this machine; get {get}")
    return found


def read_state(path: str) -> dict[str, Tensor]:
    """Tensors by name from a .pt/.pth file, by `torch.load(weights_only=True)`: no code in the file ever runs.

    A dict with the key `state_dict` gives what is under it. Raises UserError for anything else.
    """
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:
        raise UserError(
            f"{path} holds more than tensors (Python objects or code) or is damaged, and is not "
            "opened; download the released file again"
        ) from None
    except (RuntimeError, EOFError, OSError) as error:
        first = str(error).strip().splitlines()[0]
        raise UserError(f"{path} cannot be read ({first}); download it again") from None
    if isinstance(content, dict) and isinstance(content.get("state_dict"), dict):
        content = content["state_dict"]
    if not isinstance(content, dict) or not content or not all(isinstance(v, Tensor) for v in content.values()):
        raise UserError(f"{path} is no table of tensors by name; is it the released file?")
    return {str(name).removeprefix("module."): value for name, value in content.items()}


def fill(model: nn.Module, state: dict[str, Tensor], *, path: str) -> None:
    """Copy the weights in; raises UserError for weights that are missing, left over, or of another shape."""
    try:
        model.load_state_dict(state, strict=True)
    except RuntimeError as error:
        lines = [line.strip() for line in str(error).splitlines()]
        raise UserError(f"{path} does not fit the model: {' '.join(lines[1:2])[:300]}") from None


def pretrained(model_class: Any, path: str, *, kind: str | None = None, unused: str | None = None) -> nn.Module:
    """`from_pretrained` in float32, refusing folders of another model type and weights that are missing.

    kind: the `model_type` that the folder's config.json must have; None = any. unused: start of the names of weights
    that may be missing because the reward does not use them. transformers itself only warns, and
    fills what is missing with random numbers.
    """
    from transformers import AutoConfig
    from transformers.utils import logging

    try:
        config = AutoConfig.from_pretrained(path)
        if kind is not None and config.model_type != kind:
            raise UserError(f"{path} holds a {config.model_type!r} model, not {kind!r}")
        shown = logging.is_progress_bar_enabled()
        logging.disable_progress_bar()  # bars would fall between the lines of a run
        try:
            model, report = model_class.from_pretrained(path, dtype=torch.float32, output_loading_info=True)
        finally:
            if shown:
                logging.enable_progress_bar()
    except (OSError, ValueError) as error:
        raise unreadable(path, error) from None
    absent = [str(k) for k in report["missing_keys"] if unused is None or not str(k).startswith(unused)]
    missing = sorted(absent) + sorted(str(k) for k in report["mismatched_keys"])
    if missing:
        raise UserError(f"{path} lacks {len(missing)} weights of its model (first: {missing[0]})")
    found: nn.Module = model
    return found


def need_words(tokenizer: Any, path: str, *, most: int | None = None) -> None:
    """Raises UserError for a tokenizer without vocabulary (transformers makes an empty one where the files are missing,
    and every word is unknown to it), or with more than the `most` words that the model has."""
    if len(tokenizer) <= len(tokenizer.all_special_tokens) + 3:
        raise UserError(f"{path} has no vocabulary: its tokenizer files are missing; copy them there")
    if most is not None and len(tokenizer) > most:
        raise UserError(f"the tokenizer of {path} has {len(tokenizer)} words, the model {most}; use the model's own")


def unreadable(path: str, error: Exception) -> UserError:
    """What a loader said, as one line."""
    said = " ".join(str(error).split())[:300]
    return UserError(f"cannot load {path}: {said}; is it the folder or hub name of the right model?")
