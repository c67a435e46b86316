"""An adapter becomes part of the weights, also where the output layer shares its weights with the embeddings."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from mmrl.errors import UserError
from mmrl.vlm.lora import quiet_peft


def merged(wrapped: Any) -> Any:
    """The plain model that computes what the peft wrapper computes; the wrapper is used up.

    Merging adds to weights in place: a table shared by embeddings and output layer is split first where the adapter
    changes one of the two, and the configuration then says so. Raises UserError for adapters that cannot be merged.
    """
    inside = wrapped.get_base_model()
    _split_tied(inside)
    try:
        with quiet_peft():
            plain = wrapped.merge_and_unload(safe_merge=True)
    except (AttributeError, NotImplementedError, ValueError) as error:
        raise UserError(f"model.path: this adapter cannot be merged into its base model ({error})") from error
    head, table = plain.get_output_embeddings(), plain.get_input_embeddings()
    if head.weight is not table.weight:
        for config in (plain.config, plain.config.get_text_config()):
            if getattr(config, "tie_word_embeddings", False):
                config.tie_word_embeddings = False
    return plain


def _split_tied(inside: Any) -> None:
    head, table = inside.get_output_embeddings(), inside.get_input_embeddings()
    layer, embeddings = _below(head), _below(table)
    if layer.weight is embeddings.weight and (layer is not head or embeddings is not table):
        layer.weight = nn.Parameter(layer.weight.detach().clone(), requires_grad=layer.weight.requires_grad)


def _below(module: Any) -> Any:
    """The layer under a peft layer."""
    from peft.tuners.tuners_utils import BaseTunerLayer
    from peft.utils.other import AuxiliaryTrainingWrapper

    if isinstance(module, BaseTunerLayer):
        return module.get_base_layer()
    return module.original_module if isinstance(module, AuxiliaryTrainingWrapper) else module


def cast(model: nn.Module, dtype: torch.dtype) -> None:
    """All parameters in `dtype`, shared ones staying shared; the configuration follows when the model is saved."""
    for parameter in model.parameters():
        parameter.data = parameter.data.to(dtype)
