"""Make the embedded starting checkpoint of the vision-language family: supervised steps from random weights.

    python scripts/make_vlm_start.py [--steps N] [--out DIR] [--work DIR]

It runs the recipe `sft` of this package's own trainer on the digit scenes, with the seed and the number of steps below,
and copies the last step's model. The learning rate stays high to the end, on purpose: a start whose learning rate was
decayed to nothing leaves reinforcement less room. About 12 minutes on one CPU core; docs/embedded_vlm.md holds the
curve and says why it stops where it does.
"""

from __future__ import annotations

import argparse
import copy
import shutil
import tempfile
from pathlib import Path
from typing import Any

import torch
from transformers import Qwen3VLForConditionalGeneration

from mmrl import config_io
from mmrl.training.run import train
from mmrl.vlm.processor_tiny import make_config, make_processor

SEED = 0
STEPS = 1800
EMBEDDED = Path(__file__).resolve().parent.parent / "mmrl" / "vlm" / "embedded"
MAX_BYTES = 6_000_000

SETTINGS: dict[str, Any] = {
    "family": "vlm",
    "recipe": "sft",
    "seed": SEED,
    "threads": 1,
    "model": {"autocast": "off"},
    "sampling": {"max_new_tokens": 48},
    "data": {"train": "digits:train?n=10000", "eval": "digits:eval"},
    "train": {"prompts": 64, "group": 1},
    "optimiser": {"lr": 2e-3, "betas": [0.9, 0.98], "weight_decay": 0.01, "warmup": 100, "grad_norm": 1.0},
    "eval": {"every": 100, "metric": "mean_iou", "samples": 0},
    "checkpoint": {"every": 100, "keep_last": 1000, "keep_best": False},
    "log": {"every": 20, "tensorboard": False},
}


def random_start(folder: Path) -> None:
    """Random weights and the processor, as `from_pretrained` reads them."""
    torch.manual_seed(SEED)
    processor = make_processor()
    Qwen3VLForConditionalGeneration(make_config(processor.tokenizer)).save_pretrained(folder)
    processor.save_pretrained(folder)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--out", type=Path, default=EMBEDDED)
    parser.add_argument("--work", type=Path, default=None, help="keep the run here (default: a temporary folder)")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        work = asked.work or Path(temporary)
        random_start(work / "random")
        settings = copy.deepcopy(SETTINGS)
        settings["model"]["path"] = str(work.resolve() / "random")
        config = config_io.build(settings | {"out": str(work / "run")}, folder=Path.cwd(), where="make_vlm_start")
        config.train.steps = asked.steps
        run = train(config)
        made = run / "checkpoints" / f"step-{asked.steps:06d}" / "model"
        shutil.rmtree(asked.out, ignore_errors=True)
        shutil.copytree(made, asked.out)
    size = sum(f.stat().st_size for f in asked.out.iterdir())
    print(f"{asked.out}: {size} bytes after {asked.steps} steps")
    if size > MAX_BYTES:
        raise SystemExit(f"larger than the {MAX_BYTES} bytes that the package allows")


if __name__ == "__main__":
    main()
