"""Which parameters are trained: LoRA adapters by peft, or the model with frozen parts."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn

from mmrl.errors import UserError, nearest
from mmrl.vlm.adapters import Shape
from mmrl.vlm.config import Adapter


def targets(shape: Shape, wanted: list[str] | str) -> list[str]:
    """Full names of the linear layers that get an adapter; the output layer never does."""
    whole = shape.whole
    linear = [n for n, m in whole.named_modules() if isinstance(m, nn.Linear) and m is not shape.head]
    if wanted == "all":
        return linear
    if wanted == "language":
        inside = {id(m) for m in shape.language.modules()}
        return [n for n in linear if id(whole.get_submodule(n)) in inside]
    found = []
    for name in wanted:
        hits = [n for n in linear if n == name or n.endswith("." + name)]
        if not hits:
            endings = sorted({n.rsplit(".", 1)[-1] for n in linear})
            raise UserError(f"model.adapter.targets: no linear layer is called {name!r}{nearest(name, endings)}")
        found += hits
    return sorted(set(found))


def attach(shape: Shape, options: Adapter) -> Any:
    """The model wrapped by peft with a fresh adapter, which starts at zero: its output is the base model's."""
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(
        r=options.rank,
        lora_alpha=options.alpha,  # type: ignore[arg-type]
        lora_dropout=options.dropout,
        target_modules=targets(shape, options.targets),
        bias="none",
    )
    with quiet_peft():
        return get_peft_model(shape.whole, config)


@contextmanager
def quiet_peft() -> Iterator[None]:
    """Warnings of peft about which nobody who trains can do anything."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="`is_gradient_checkpointing`", category=FutureWarning)
        # of tables shared by embeddings and output layer: mmrl.vlm.merge splits them where an adapter is on one side
        warnings.filterwarnings("ignore", message="(Model has|Model with) `tie_word_embeddings=True`")
        warnings.filterwarnings("ignore", message="Input and output embeddings are no longer tied")
        warnings.filterwarnings("ignore", message="Setting `save_embedding_layers`")
        warnings.filterwarnings("ignore", message="Could not find a config file in embedded:")
        yield


def freeze(shape: Shape, parts: list[str]) -> None:
    """Switch off the gradient of the named parts of the model."""
    projectors = {id(p) for m in shape.projectors for p in m.parameters()}
    tables = [shape.whole.get_input_embeddings(), shape.head]
    embeddings = {id(p) for m in tables for p in m.parameters()}
    for part in parts:
        if part == "vision":
            chosen = [p for p in shape.vision.parameters() if id(p) not in projectors]
        elif part == "projector":
            chosen = [p for m in shape.projectors for p in m.parameters()]
        elif part == "embeddings":
            chosen = [p for m in tables for p in m.parameters()]
        else:
            chosen = [p for p in shape.language.parameters() if id(p) not in embeddings]
        for parameter in chosen:
            parameter.requires_grad_(False)
