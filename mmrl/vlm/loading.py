"""Load a checkpoint from disk or from the hub: safetensors only, the right model class, every weight accounted for."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

from mmrl import json_io
from mmrl.errors import UserError
from mmrl.training.exported import looks_local
from mmrl.vlm.adapters import SUPPORTED
from mmrl.vlm.config import Inputs, Model

_PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")


def resolve(path: str) -> str:
    """`embedded:vlm` -> the folder inside the package; anything else stays."""
    if path == "embedded:vlm":
        return str(Path(__file__).parent / "embedded")
    if path.startswith("embedded:"):
        raise UserError(f"model.path: unknown embedded model {path!r}; valid: embedded:vlm")
    return path


def is_adapter(path: str) -> bool:
    return (Path(path) / "adapter_config.json").is_file()


def base_of(path: str, given: str | None = None) -> str:
    """The checkpoint below a model folder: for a peft adapter the one `given`, else the one it names; for a full model
    itself. Raises UserError when it is not there."""
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


def adapter_base(options: Model) -> str:
    """The base model of an adapter as it is written down: a folder, the id of a hub, embedded:vlm."""
    return options.base or str(adapter_config(resolve(options.path)).get("base_model_name_or_path"))


def processor_folder(path: str, base: str) -> str:
    """Where the processor is read from: the model's own folder, for an adapter without one its base."""
    own = any((Path(path) / name).is_file() for name in ("processor_config.json", "preprocessor_config.json"))
    return path if own or not is_adapter(path) else base


def adapter_config(path: str) -> dict[str, Any]:
    """The contents of adapter_config.json."""
    return json_io.read_object(Path(path) / "adapter_config.json", remedy="take a whole copy of the adapter")


def check_adapter_base(path: str, model: nn.Module) -> None:
    """Raises UserError when the adapter says that it was made for a model of another class."""
    made_for = (adapter_config(path).get("auto_mapping") or {}).get("base_model_class")
    if made_for is not None and made_for != type(model).__name__:
        raise UserError(
            f"model.path: the adapter of {path!r} was made for a {made_for}, its base_model_name_or_path is a "
            f"{type(model).__name__}; name the right base model in adapter_config.json"
        )


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
        raise UserError(f"model.path: {path!r} has no config.json; give a folder written by save_pretrained")
    if not list(folder.glob("*.safetensors")):
        pickled = sorted(f.name for p in _PICKLES for f in folder.glob(p))
        if pickled:
            raise UserError(
                f"model.path: {path!r} holds a pickle checkpoint ({pickled[0]}), which can run code when it is read; "
                "convert it to safetensors"
            )
        raise UserError(f"model.path: {path!r} holds no *.safetensors file; save the model with save_pretrained")


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


def _check_class(path: str, options: Model) -> None:
    from transformers import AutoConfig

    with reading(f"the configuration of {path!r}"):
        config = AutoConfig.from_pretrained(path, trust_remote_code=options.trust_remote_code)
    kind = getattr(config, "model_type", None)
    if kind not in SUPPORTED:
        raise UserError(f"model.path: {path!r} is a {kind!r} model; family vlm takes {', '.join(SUPPORTED)}")


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


def stored_bytes(path: str) -> int:
    """Bytes of weights in a folder; for a hub id (nothing on disk yet) as if large."""
    folder = Path(path)
    return sum(f.stat().st_size for f in folder.glob("*.safetensors")) if folder.is_dir() else BAR_FROM_BYTES


def load_model(path: str, options: Model, *, dtype: torch.dtype) -> nn.Module:
    """The model of class `AutoModelForImageTextToText`, all weights from the file, on the CPU, in eval mode.

    Raises UserError: missing folder, pickle, other class, missing, surplus or wrongly shaped weights.
    """
    from transformers import AutoModelForImageTextToText

    check_folder(path)
    _check_class(path, options)
    with reading(repr(path)), bars(stored_bytes(path)):
        model, report = AutoModelForImageTextToText.from_pretrained(
            path,
            dtype=dtype,
            use_safetensors=True,
            attn_implementation=options.attention,
            trust_remote_code=options.trust_remote_code,
            ignore_mismatched_sizes=True,  # they are refused below, by name
            output_loading_info=True,
        )
    for what, kind in (("missing_keys", "lacks"), ("unexpected_keys", "has surplus"), ("mismatched_keys", "has wrong")):
        names = sorted(k if isinstance(k, str) else str(k[0]) for k in report[what])
        if names:
            raise UserError(
                f"model.path: the weights of {path!r} do not fit its config.json: it {kind} {len(names)} tensors, "
                f"first {names[0]}; use a checkpoint of this model"
            )
    return model.eval()  # type: ignore[no-any-return]


def load_processor(path: str, options: Model, inputs: Inputs) -> Any:
    """The processor beside the weights; picture limits of the `inputs` section are written into it."""
    from transformers import AutoProcessor

    with reading(f"the processor of {path!r}"):
        processor = AutoProcessor.from_pretrained(path, trust_remote_code=options.trust_remote_code)
    if not hasattr(processor, "image_processor"):
        raise UserError(
            f"model.path: {path!r} has no picture processor (preprocessor_config.json); copy the original's"
        )
    if getattr(processor, "chat_template", None) is None and processor.tokenizer.chat_template is None:
        raise UserError(f"model.path: the processor of {path!r} has no chat template; add chat_template.jinja")
    if processor.chat_template is None:
        processor.chat_template = processor.tokenizer.chat_template
    with reading(f"the chat template of {path!r}"):  # broken ones show when they are first used
        parts = [{"type": "image"}, {"type": "text", "text": "?"}]
        processor.apply_chat_template([{"role": "user", "content": parts}], tokenize=False, add_generation_prompt=True)
    size = dict(processor.image_processor.size)
    if inputs.min_pixels is not None:
        size["shortest_edge"] = inputs.min_pixels
    if inputs.max_pixels is not None:
        size["longest_edge"] = inputs.max_pixels
    if size.get("shortest_edge", 0) > size.get("longest_edge", 0):
        raise UserError(
            f"inputs: min_pixels {size['shortest_edge']} is more than max_pixels {size['longest_edge']}; swap them"
        )
    processor.image_processor.size = type(processor.image_processor.size)(**size)
    return processor


def zero_dropout(model: nn.Module) -> None:
    """Dropout off for good, so that train mode (needed by gradient checkpointing) computes what eval mode does."""
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        if isinstance(getattr(module, "attention_dropout", None), float):
            module.attention_dropout = 0.0  # type: ignore[assignment]
