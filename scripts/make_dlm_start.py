"""Make the embedded starting checkpoints of the diffusion language models: supervised steps from random weights.

    python scripts/make_dlm_start.py [--only sort|sudoku] [--steps N] [--out DIR] [--work DIR]

It runs the recipe `sft` of this package's own trainer on generated problems of the split `start`, with the seed and the
numbers of steps below, and copies the last step's model. The learning rate is never decayed, on purpose: a start whose
learning rate went down to nothing leaves reinforcement less room. docs/embedded_dlm.md holds the curves and says why
they stop where they do.
"""

from __future__ import annotations

import argparse
import copy
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from dlm.models import loading
from dlm.models.layers import Release, Transformer
from dlm.models.layout import Folder
from dlm.tasks.catalogue import CHARACTERS
from mmrl import config_io
from mmrl.training.run import train

SEED = 0
EMBEDDED = Path(__file__).resolve().parent.parent / "dlm" / "embedded"
MAX_BYTES = 6_000_000
END, MASK = "<|endoftext|>", "<|mask|>"


@dataclass(frozen=True)
class Start:
    """config: of config.json, sizes apart from the vocabulary. steps: published. settings: of the supervised run."""

    config: dict[str, Any]
    steps: int
    settings: dict[str, Any]


LLADA = {
    "model_type": "llada",
    "architectures": ["LLaDAModelLM"],
    "block_type": "llama",
    "layer_norm_type": "rms",
    "activation_type": "silu",
    "rope": True,
    "d_model": 96,
    "mlp_hidden_size": 256,
    "n_layers": 4,
    "n_heads": 4,
    "n_kv_heads": 4,
    "max_sequence_length": 128,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "weight_tying": False,
}
SDAR = {
    "model_type": "sdar",
    "architectures": ["SDARForCausalLM"],
    "hidden_size": 64,
    "intermediate_size": 192,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 128,
    "rms_norm_eps": 1e-6,
    "rope_theta": 10000.0,
    "hidden_act": "silu",
    "attention_bias": False,
    "tie_word_embeddings": False,
    "block_size": 8,
}

COMMON: dict[str, Any] = {
    "family": "dlm",
    "recipe": "sft",
    "seed": SEED,
    "threads": 1,
    "train": {"prompts": 64, "group": 1},
    "optimiser": {"lr": 2e-3, "betas": [0.9, 0.98], "weight_decay": 0.01, "warmup": 50, "grad_norm": 1.0},
    "log": {"every": 20, "tensorboard": False},
}
STARTS = {
    "sort": Start(
        config=LLADA,
        steps=325,
        settings={
            "sampling": {"max_new_tokens": 12, "block": 12, "steps": 6}
            | {"likelihood": {"name": "elbo", "options": {"masks": "exact"}}},
            "data": {"train": "sort:start?n=20000", "eval": "sort:eval?n=256"},
            "rewards": {"components": [{"name": "exact", "success": 1.0}]},
        },
    ),
    "sudoku": Start(
        config=SDAR,
        steps=300,
        settings={
            "sampling": {"max_new_tokens": 24, "rule": "threshold", "threshold": 0.9, "cache": "block"}
            | {"likelihood": {"name": "elbo", "options": {"level": "block", "masks": "exact"}}},
            "data": {"train": "sudoku4_open:start?holes=12&n=20000", "eval": "sudoku4_open:eval?holes=12&n=256"},
            "rewards": {"components": [{"name": "sudoku_solved", "success": 1.0}]},
        },
    ),
}


def tokenizer() -> Any:
    """One token a character of the tasks, an end and a mask token."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    bare = Tokenizer(models.WordLevel({c: i for i, c in enumerate(CHARACTERS)}, unk_token=None))
    bare.pre_tokenizer = pre_tokenizers.Split(Regex("."), behavior="isolated")
    bare.decoder = decoders.Fuse()
    bare.add_special_tokens([END, MASK])
    names = {"eos_token": END, "pad_token": END, "mask_token": MASK}
    return PreTrainedTokenizerFast(tokenizer_object=bare, clean_up_tokenization_spaces=False, **names)


def random_start(folder: Path, config: dict[str, Any]) -> None:
    """Random weights and the tokenizer, as the loader of the release reads them."""
    words = tokenizer()
    told = config | {
        "embedding_size" if config["model_type"] == "llada" else "vocab_size": len(words),
        "eos_token_id": words.eos_token_id,
        "pad_token_id": words.pad_token_id,
        "mask_token_id": words.mask_token_id,
        "torch_dtype": "float32",
    }
    layout = loading.layout_of(told, str(folder))
    where = Folder(path=str(folder), config=told, generation={}, tokenizer=words)
    model = Transformer(layout.shape(where), layout.traits(where), Release(config=told, files={}))
    initialise(model, layers=layout.shape(where).layers)
    loading.save_model(model, words, folder)


@torch.no_grad()
def initialise(model: nn.Module, *, layers: int) -> None:
    """Norms 1; tables 0.02; matrices keep the variance, those that write to the residual stream share it out."""
    generator = torch.Generator().manual_seed(SEED)
    for name, parameter in model.named_parameters():
        if parameter.dim() == 1:
            parameter.fill_(1.0)
            continue
        deviation = 0.02 if "embed" in name or "head" in name else parameter.shape[1] ** -0.5
        if "o_proj" in name or "down_proj" in name:
            deviation *= layers**-0.5
        parameter.copy_(deviation * torch.randn(parameter.shape, generator=generator))


def make(name: str, *, steps: int, out: Path, work: Path) -> None:
    start = STARTS[name]
    random_start(work / name / "random", start.config)
    every = max(1, min(25, steps))
    told = copy.deepcopy(COMMON | start.settings)
    told |= {"model": {"path": str((work / name / "random").resolve()), "autocast": "off"}}
    told |= {"eval": {"every": every, "metric": "accuracy", "samples": 0}}
    told |= {"checkpoint": {"every": every, "keep_last": 1000, "keep_best": False}}
    told["train"]["steps"] = steps
    config = config_io.build(told | {"out": str(work / name / "run")}, folder=Path.cwd(), where="make_dlm_start")
    run = train(config)
    shutil.rmtree(out / name, ignore_errors=True)
    shutil.copytree(run / "checkpoints" / f"step-{steps:06d}" / "model", out / name)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", choices=tuple(STARTS))
    parser.add_argument("--steps", type=int, help="in place of the published numbers")
    parser.add_argument("--out", type=Path, default=EMBEDDED)
    parser.add_argument("--work", type=Path, help="keep the runs here (default: a temporary folder)")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as temporary:
        for name, start in STARTS.items():
            if asked.only in (None, name):
                make(name, steps=asked.steps or start.steps, out=asked.out, work=asked.work or Path(temporary))
                size = sum(f.stat().st_size for f in (asked.out / name).iterdir())
                print(f"{asked.out / name}: {size} bytes")
                if size > MAX_BYTES:
                    raise SystemExit(f"larger than the {MAX_BYTES} bytes that the package allows")


if __name__ == "__main__":
    main()
