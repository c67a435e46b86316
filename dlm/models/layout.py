"""What a layout of released checkpoints says of itself, and the answers that layouts share."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from dlm.models.base import Traits
from dlm.models.layers import Shape
from mmrl.errors import UserError

#: The linear layers of a transformer layer, in the order of a forward.
LINEAR = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


@dataclass(frozen=True)
class Folder:
    """What a checkpoint's small files say, and what the user says over their heads.

    config      config.json. generation  generation_config.json, {} without one.
    mask_id, block  the options `model.mask_id` and `model.block`.
    """

    path: str
    config: Mapping[str, Any]
    generation: Mapping[str, Any]
    tokenizer: Any
    mask_id: int | None = None
    block: int | None = None

    def number(self, *keys: str, default: float | None = None) -> float:
        """The first of the keys of config.json that is there. Raises UserError."""
        for key in keys:
            value = self.config.get(key)
            if value is not None:
                return _number(value, f"{self.path}/config.json: {key}")
        if default is None:
            raise UserError(f"model.path: {self.path}/config.json lacks {keys[0]}; take a whole copy of the model")
        return default

    def whole(self, *keys: str, default: int | None = None) -> int:
        """`number`, for sizes."""
        value = self.number(*keys, default=default)
        if value != int(value):
            raise UserError(f"model.path: {self.path}/config.json: {keys[0]} is {value}, expected a whole number")
        return int(value)

    @property
    def vocabulary(self) -> int:
        """Rows of the embedding: LLaDA pads its vocabulary and calls that embedding_size."""
        return self.whole("embedding_size", "vocab_size")

    def insist(self, usual: Mapping[str, tuple[Any, ...]]) -> None:
        """Raises UserError for a key of config.json that is there with a value other than those it may have here."""
        for key, allowed in usual.items():
            if key in self.config and self.config[key] not in allowed:
                raise UserError(
                    f"model.path: {self.path}/config.json: {key} {self.config[key]!r} is not supported "
                    f"(only {' or '.join(map(repr, allowed))}); use a released checkpoint of this family"
                )


@dataclass(frozen=True)
class Layout:
    """One family of checkpoints.

    name       as in `Traits.name`. kinds  values of config.json's model_type. classes  names of `architectures`.
    shape, traits   what config.json means.
    ours       name of a stored tensor or module -> this package's, None for one that the layout does not know.
    released   this package's name -> the stored one.
    """

    name: str
    kinds: tuple[str, ...]
    classes: tuple[str, ...]
    shape: Callable[[Folder], Shape]
    traits: Callable[[Folder], Traits]
    ours: Callable[[str], str | None]
    released: Callable[[str], str]


def _number(value: object, where: str) -> float:
    """A number over 0. Raises UserError."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
        raise UserError(f"model.path: {where} is {value!r}, expected a number > 0")
    return value


def checked_id(value: object, vocabulary: int, *, where: str, remedy: str) -> int:
    """The id of a token. Raises UserError for anything but a whole number below the size of the vocabulary."""
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < vocabulary:
        raise UserError(f"{where} {value!r} is no token of the model, which has 0 to {vocabulary - 1}; {remedy}")
    return value


def token_id(tokenizer: Any, token: str) -> int | None:
    """The id of a token that the tokenizer has."""
    found = tokenizer.get_vocab().get(token)
    return None if found is None else int(found)


def mask_id(folder: Folder, vocabulary: int, *, token: str, otherwise: int | None = None) -> int:
    """The option, else config.json's, else the tokenizer's mask token, else the token of this name, else `otherwise`.

    Raises UserError that names model.mask_id when there is none, or one outside the vocabulary.
    """
    tokenizer = folder.tokenizer
    found = [folder.mask_id, folder.config.get("mask_token_id"), getattr(tokenizer, "mask_token_id", None)]
    for value in [*found, token_id(tokenizer, token), otherwise]:
        if value is not None:
            remedy = f"set model.mask_id to the mask token of {folder.path!r}"
            return checked_id(value, vocabulary, where="model.mask_id:", remedy=remedy)
    raise UserError(
        f"model.mask_id: neither config.json nor the tokenizer of {folder.path!r} tells the mask token; "
        "set model.mask_id to its number"
    )


def end_ids(folder: Folder, *, turn: str) -> tuple[int, ...]:
    """Tokens that end an answer: generation_config.json's, config.json's, the tokenizer's, the end of a chat turn.

    Raises UserError for an id outside the vocabulary, and when there is none.
    """
    ends: list[int] = []
    tokenizer = folder.tokenizer
    sources = {
        "generation_config.json: eos_token_id": folder.generation.get("eos_token_id"),
        "config.json: eos_token_id": folder.config.get("eos_token_id"),
        "tokenizer: eos_token": tokenizer.eos_token_id,
        f"tokenizer: {turn}": token_id(tokenizer, turn),
    }
    for source, found in sources.items():
        for value in found if isinstance(found, list) else [found]:
            if value is not None:
                ends.append(_stored_id(folder, value, source))
    if not ends:
        raise UserError(f"model.path: neither config.json nor the tokenizer of {folder.path!r} has an end token")
    return tuple(dict.fromkeys(ends))


def _stored_id(folder: Folder, value: object, source: str) -> int:
    where = f"model.path: {folder.path}/{source}"
    return checked_id(value, folder.vocabulary, where=where, remedy="mend it, or take a whole copy of the model")


def checked_block(value: object) -> int:
    """A block size. Raises UserError for anything but a whole number over 0."""
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise UserError(f"model.block: {value!r}, expected a whole number over 0")
    return value


def no_block(folder: Folder) -> None:
    """Raises UserError where a block size is set for a model that sees everything."""
    if folder.block is not None:
        raise UserError(
            f"model.block: {folder.path!r} has full attention and no block size of its own; leave model.block out "
            "(the decoder's blocks are sampling.block)"
        )


def pad_id(folder: Folder, ends: tuple[int, ...]) -> int:
    """config.json's, the tokenizer's, else the first end token. Many a config.json writes -1 for none.

    Raises UserError for an id outside the vocabulary.
    """
    told = {"config.json: pad_token_id": folder.config.get("pad_token_id")}
    for source, value in (told | {"tokenizer: pad_token": folder.tokenizer.pad_token_id}).items():
        if value is not None and value != -1:
            return _stored_id(folder, value, source)
    return ends[0]


def _rope(folder: Folder) -> Mapping[str, Any]:
    """The settings of the rotation, under the newer or the older name. Raises UserError for anything but pairs."""
    for key in ("rope_parameters", "rope_scaling"):
        found = folder.config.get(key)
        if found is not None and not isinstance(found, Mapping):
            raise UserError(
                f"model.path: {folder.path}/config.json: {key} is {found!r}, expected `name: value` pairs or null"
            )
        if found:
            return found
    return {}


def decoder_shape(folder: Folder, *, qk_norm: bool, qkv_bias: bool, out_bias: bool = False) -> Shape:
    """The shape in the words of a Llama or Qwen config.json. Raises UserError for what the body cannot do."""
    folder.insist({"hidden_act": ("silu",), "use_sliding_window": (False, None), "mlp_bias": (False, None)})
    rope = _rope(folder)
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind != "default":
        raise UserError(f"model.path: {folder.path}/config.json: rope_type {kind!r} is not supported (only 'default')")
    width, heads = folder.whole("hidden_size"), folder.whole("num_attention_heads")
    theta, where = rope.get("rope_theta"), f"{folder.path}/config.json: rope_theta"
    return Shape(
        vocabulary=folder.whole("vocab_size"),
        width=width,
        inner=folder.whole("intermediate_size"),
        layers=folder.whole("num_hidden_layers"),
        heads=heads,
        kv_heads=folder.whole("num_key_value_heads", default=heads),
        head=folder.whole("head_dim", default=width // heads),
        theta=float(_number(theta, where)) if theta is not None else folder.number("rope_theta", default=10000.0),
        eps=folder.number("rms_norm_eps", default=1e-6),
        qk_norm=qk_norm,
        qkv_bias=qkv_bias,
        out_bias=out_bias,
        tied=bool(folder.config.get("tie_word_embeddings", False)),
    )


def same_name(name: str) -> str:
    """The weight map of layouts whose stored names are this package's."""
    return name


def decoder_name(name: str) -> str | None:
    """A Llama or Qwen name if it can be one."""
    return name if name.startswith(("model.", "lm_head")) else None
