"""Load a checkpoint from disk or from the hub: safetensors only, the right model class, every weight accounted for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn

from mmrl.errors import UserError
from mmrl.training import model_folder
from mmrl.training.model_folder import adapter_config, bars, check_folder, is_adapter, quiet, reading, stored_bytes
from mmrl.vlm.adapters import SUPPORTED
from mmrl.vlm.config import Inputs, Model
from mmrl.vlm.embedded_models import resolve


def base_of(path: str, given: str | None = None) -> str:
    """`model_folder.base_of`, with the embedded models of this family."""
    return model_folder.base_of(path, given, resolve=resolve)


def adapter_base(options: Model) -> str:
    """The base model of an adapter as it is written down: a folder, the id of a hub, embedded:vlm."""
    return options.base or str(adapter_config(resolve(options.path)).get("base_model_name_or_path"))


def processor_folder(path: str, base: str) -> str:
    """Where the processor is read from: the model's own folder, for an adapter without one its base."""
    own = any((Path(path) / name).is_file() for name in ("processor_config.json", "preprocessor_config.json"))
    return path if own or not is_adapter(path) else base


def check_adapter_base(path: str, model: nn.Module) -> None:
    """Raises UserError when the adapter says that it was made for a model of another class."""
    made_for = (adapter_config(path).get("auto_mapping") or {}).get("base_model_class")
    if made_for is not None and made_for != type(model).__name__:
        raise UserError(
            f"model.path: the adapter of {path!r} was made for a {made_for}, its base_model_name_or_path is a "
            f"{type(model).__name__}; name the right base model in adapter_config.json"
        )


def _check_class(path: str, options: Model) -> None:
    from transformers import AutoConfig

    with reading(f"the configuration of {path!r}"):
        config = AutoConfig.from_pretrained(path, trust_remote_code=options.trust_remote_code)
    kind = getattr(config, "model_type", None)
    if kind not in SUPPORTED:
        raise UserError(f"model.path: {path!r} is a {kind!r} model; family vlm takes {', '.join(SUPPORTED)}")


def load_model(path: str, options: Model, *, dtype: torch.dtype) -> nn.Module:
    """The model of class `AutoModelForImageTextToText`, all weights from the file, on the CPU, in eval mode.

    Raises UserError: missing folder, pickle, other class, missing, surplus or wrongly shaped weights.
    """
    from transformers import AutoModelForImageTextToText

    check_folder(path)
    _check_class(path, options)
    with reading(repr(path)), bars(stored_bytes(path)), quiet():
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
