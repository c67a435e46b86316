"""The layers of masked diffusion language models from their config.json, so that they are counted without being made.

Loads no torch. Parameter counts are exact (compared with the models themselves in tests).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from mmrl import yaml_io
from mmrl.errors import UserError
from mmrl.paths import configs_dir
from mmrl.training.memory import read_config

ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")
#: What LLaDA calls the layers that have another name there; the list of d1 does not know these names.
RELEASED = {"o_proj": "attn_out", "gate_proj": "ff_proj", "down_proj": "ff_out"}
D1_ON_LLADA = ("q_proj", "k_proj", "v_proj", "up_proj")


#: Values of `model_type` with the keys of Qwen and Llama that are masked diffusion language models.
KINDS = ("sdar", "dream", "a2d-qwen3", "a2d-qwen2", "a2d-llama")


@dataclass(frozen=True)
class Shape:
    """The numbers of a model's config.json that memory depends on. block: of a block-attention model, where known.
    released: its layers have the names of LLaDA."""

    hidden: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    intermediate: int
    vocab: int
    tied: bool
    qkv_bias: bool
    qk_norm: bool
    attention: Literal["full", "block"]
    block: int | None
    source: str
    released: bool = False

    @property
    def linear(self) -> dict[str, tuple[int, int]]:
        """Layers of one block: name -> (inside, outside)."""
        q, kv = self.heads * self.head_dim, self.kv_heads * self.head_dim
        return {
            "q_proj": (self.hidden, q),
            "k_proj": (self.hidden, kv),
            "v_proj": (self.hidden, kv),
            "o_proj": (q, self.hidden),
            "gate_proj": (self.hidden, self.intermediate),
            "up_proj": (self.hidden, self.intermediate),
            "down_proj": (self.intermediate, self.hidden),
        }

    @property
    def matrices(self) -> int:
        """Parameters of the linear layers of one block."""
        return sum(a * b for a, b in self.linear.values())

    @property
    def layer(self) -> int:
        """Parameters of one block: linear layers, two norms, biases, norms of queries and keys."""
        bias = (self.heads + 2 * self.kv_heads) * self.head_dim if self.qkv_bias else 0
        norms = 2 * self.hidden + (2 * self.head_dim if self.qk_norm else 0)
        return self.matrices + bias + norms

    @property
    def parameters(self) -> int:
        return self.layers * self.layer + self.vocab * self.hidden * (1 if self.tied else 2) + self.hidden

    def adapter(self, rank: int, targets: Sequence[str] | Literal["default", "d1"]) -> int:
        """Parameters of LoRA. targets: default, all seven layers of each block; d1, those of them that the list of d1
        matches in the release, four on LLaDA; else names of layers or their endings, ours or the release's."""
        if isinstance(targets, str):
            targets = list(D1_ON_LLADA if targets == "d1" and self.released else self.linear)
        total = 0
        for name, (inside, outside) in self.linear.items():
            part = "self_attn" if name in ATTENTION else "mlp"
            for layer in range(self.layers):
                called = [f"model.layers.{layer}.{part}.{name}"]
                if self.released:
                    called.append(f"model.transformer.blocks.{layer}.{RELEASED.get(name, name)}")
                if any(one == t or one.endswith(f".{t}") for one in called for t in targets):
                    total += rank * (inside + outside)
        return total


def shape_of(path: str, base: str | None = None, *, block: int | None = None) -> Shape | None:
    """The shape of a model's folder, of the model below a stored adapter, of an embedded model, or of one named in
    configs/models/dlm.yaml; None if unknown. Raises UserError for a folder that is broken.

    block   `model.block`: what a configuration says of the block size.
    """
    folder = Path(__file__).parent / "embedded" / path.removeprefix("embedded:")
    folder = folder if path.startswith("embedded:") else Path(path)
    if folder.is_dir():
        note, file = folder / "adapter_config.json", folder / "config.json"
        if note.is_file() and not file.is_file():
            below = base or read_config(note).get("base_model_name_or_path")
            return shape_of(below, block=block) if isinstance(below, str) and below != path else None
        if not file.is_file():
            raise UserError(f"model.path: {folder} has no config.json; give the folder of a released or exported model")
        source = path if path.startswith("embedded:") else str(file)
        return shape_from_json(read_config(file), source=source, block=block)
    row = yaml_io.read(configs_dir() / "models" / "dlm.yaml")["models"].get(path)
    return None if row is None else shape_from_json(row["config"], source=row["source"], block=block)


def shape_from_json(config: Mapping[str, Any], *, source: str, block: int | None = None) -> Shape | None:
    """From the keys of LLaDA (d_model ...) or of the Qwen and Llama families (hidden_size ...); None for others."""
    try:
        return _llada(config, source) if "d_model" in config else _decoder(config, source, block)
    except (KeyError, TypeError):
        return None


def _llada(config: Mapping[str, Any], source: str) -> Shape:
    hidden, heads = config["d_model"], config["n_heads"]
    return Shape(
        hidden=hidden,
        layers=config["n_layers"],
        heads=heads,
        kv_heads=config.get("n_kv_heads") or heads,
        head_dim=hidden // heads,
        intermediate=config.get("mlp_hidden_size") or config["mlp_ratio"] * hidden,
        vocab=config.get("embedding_size") or config["vocab_size"],
        tied=bool(config.get("weight_tying", True)),
        qkv_bias=bool(config.get("include_qkv_bias", False)),
        qk_norm=False,
        attention="full",
        block=None,
        source=source,
        released=True,
    )


def _decoder(config: Mapping[str, Any], source: str, block: int | None) -> Shape | None:
    kind = str(config.get("model_type", "")).lower()
    if kind not in KINDS:
        return None
    heads = config["num_attention_heads"]
    block = block if block is not None else config.get("block_size")
    blockwise = kind == "sdar" or (kind.startswith("a2d") and block is not None)
    return Shape(
        hidden=config["hidden_size"],
        layers=config["num_hidden_layers"],
        heads=heads,
        kv_heads=config.get("num_key_value_heads") or heads,
        head_dim=config.get("head_dim") or config["hidden_size"] // heads,
        intermediate=config["intermediate_size"],
        vocab=config["vocab_size"],
        tied=bool(config.get("tie_word_embeddings", False)),
        qkv_bias=kind in ("dream", "a2d-qwen2") or bool(config.get("attention_bias", False)),
        qk_norm=kind in ("sdar", "a2d-qwen3"),
        attention="block" if blockwise else "full",
        block=block if blockwise else None,
        source=source,
    )
