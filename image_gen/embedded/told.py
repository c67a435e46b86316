"""What both embedded image models share: words as their only text encoder, and the folder they are saved in."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from image_gen.embedded.words import LONGEST, VOCABULARY, WordEncoder, split
from image_gen.pipelines import lora
from image_gen.pipelines.base import Batch, Condition, PictureModel
from mmrl import json_io
from mmrl.errors import UserError

FOLDER = Path(__file__).with_name("weights")
_REMEDY = "take a whole copy of the model"


class ToldModel(PictureModel):
    """Prompts of `image_gen.embedded.prompts`; "" is the unconditional half, which was trained as well.

    transformer: diffusers' ModelMixin. class_name: in model_index.json, where diffusers has the name of a pipeline.
    """

    class_name: str

    def __init__(self, transformer: Any, words: WordEncoder) -> None:
        self.transformer: Any = transformer
        self.words = words.requires_grad_(False)
        self._freed = False

    # prompts

    @torch.no_grad()
    def encode(self, prompts: Sequence[str]) -> list[Condition]:
        """encoder_hidden_states [S, D] and pooled_projections [D]. Raises UserError for an unknown word."""
        if self._freed:
            raise RuntimeError("the word encoder has been freed; encode every prompt before free_encoders()")
        if not prompts:
            return []
        told_n, pooled_n = self.words(self.words.ids(prompts))
        dtype = self.transformer.dtype
        return [
            {"encoder_hidden_states": told.to("cpu", dtype), "pooled_projections": pooled.to("cpu", dtype)}
            for told, pooled in zip(told_n, pooled_n, strict=True)
        ]

    def overlong(self, prompts: Sequence[str]) -> list[int]:
        return [max(0, len(split(p)) - LONGEST) for p in prompts]

    def free_encoders(self) -> None:
        self._freed = True  # its few kilobytes stay: `save` writes them

    def collate(self, conditions: Sequence[Condition]) -> Batch:
        return {key: torch.stack([c[key] for c in conditions]).to(self.transformer.device) for key in conditions[0]}

    # weights

    def save(self, path: Path, *, max_shard_size: str = "10GB") -> None:
        """`transformer/` by diffusers' `save_pretrained`, `words/` beside it. Refused with a LoRA attached."""
        if lora.attached(self.transformer):
            raise ValueError("a LoRA is attached: save_lora stores it alone, lora.merge makes it part of the weights")
        path.mkdir(parents=True, exist_ok=True)
        self.transformer.save_pretrained(path / "transformer", max_shard_size=max_shard_size)
        (path / "words").mkdir(exist_ok=True)
        state = {name: value.detach().cpu().contiguous() for name, value in self.words.state_dict().items()}
        save_file(state, path / "words" / "words.safetensors")
        _write(path / "words" / "vocabulary.json", {"words": list(VOCABULARY)})
        _write(path / "model_index.json", {"_class_name": self.class_name})


def load_parts(
    folder: Path, *, asked: str, class_name: str, example: str, transformer_class: Any, dtype: torch.dtype
) -> tuple[Any, WordEncoder]:
    """Transformer (in dtype) and words of a folder that `ToldModel.save` wrote.

    asked: the path as the user wrote it; example: a name to give instead. Raises UserError: no such folder, damaged
    files, weights of another shape or vocabulary.
    """
    index, vocabulary = folder / "model_index.json", folder / "words" / "vocabulary.json"
    if not index.is_file() or json_io.read_object(index, remedy=_REMEDY).get("_class_name") != class_name:
        raise UserError(
            f"model.path: {asked!r} is no folder of an embedded model; give {example} or a folder it was saved in"
        )
    if json_io.read_object(vocabulary, remedy=_REMEDY).get("words") != list(VOCABULARY):
        raise UserError(f"{vocabulary}: another vocabulary than this version's; make the model anew")
    words = WordEncoder()
    try:
        words.load_state_dict(load_file(folder / "words" / "words.safetensors"))
        transformer, report = transformer_class.from_pretrained(
            str(folder / "transformer"),
            dtype=dtype,
            use_safetensors=True,
            local_files_only=True,
            output_loading_info=True,
        )
    except Exception as error:  # libraries raise anything over damaged files
        raise _damaged(asked, error) from error
    if report["missing_keys"] or report["unexpected_keys"] or report["mismatched_keys"]:
        raise UserError(
            f"model.path: the weights in {str(folder / 'transformer')!r} do not fit its config.json; {_REMEDY}"
        )
    return transformer, words


def load_scheduler(folder: Path, *, asked: str, scheduler_class: Any) -> Any:
    """`scheduler/` of the folder. Raises UserError for a missing or damaged one."""
    try:
        return scheduler_class.from_pretrained(str(folder / "scheduler"), local_files_only=True)
    except Exception as error:  # libraries raise anything over damaged files
        raise _damaged(asked, error) from error


def _damaged(asked: str, error: Exception) -> UserError:
    reason = (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
    return UserError(f"model.path: cannot load {asked!r}: {reason}; {_REMEDY}")


def _write(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=1) + "\n", encoding="utf-8")
