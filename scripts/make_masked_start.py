"""Make the weights of image_gen/embedded/weights/masked from random ones and fixed seeds.

    python scripts/make_masked_start.py [--steps N] [--only make|measure] [--out DIR] [--work DIR]

The token transformer with its words by cross-entropy on masked positions (a minute on one core), then the numbers that
docs/embedded_masked.md prints. Real digits of the training part, but half of the prompts name a digit drawn at random:
told the truth, the model obeys its prompts as soon as it draws digits at all, and reinforcement has nothing left to do.
Step i draws its batch from the seed and i alone, and the state is kept in --work every 50 steps: stopped and started
again with the same --work, it ends with the same weights.
"""

from __future__ import annotations

import argparse
import math
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from image_gen.diversity import pixel_diversity
from image_gen.embedded import starts
from image_gen.embedded.masked_model import MASK, EmbeddedTokens, load, make_transformer
from image_gen.embedded.prompts import class_records, one
from image_gen.embedded.rewards import digit, digit_judge
from image_gen.embedded.told import FOLDER
from image_gen.embedded.words import WordEncoder
from mmrl.core.streams import stream_seed
from mmrl.data.digits import LEVELS, load_digits

NAME = "masked"
SEED = 0
STEPS = 600
ROWS = 128
#: Share of prompts that name a digit drawn at random, and of those dropped for guidance.
WRONG, DROPPED = 0.5, 0.1
KEEP_EVERY = 50
MAX_BYTES = 3_000_000


# ---- training ------------------------------------------------------------------------------------------------------


def demonstrations(step: int) -> tuple[list[str], Tensor]:
    """A batch: prompts, half of them about no digit in particular, and grey levels [N, L]."""
    rng = np.random.default_rng(stream_seed("masked start", SEED, step))
    digits = load_digits("train")
    chosen = rng.integers(len(digits), size=ROWS)
    told = np.where(rng.random(ROWS) < WRONG, rng.integers(10, size=ROWS), digits.labels[chosen])
    dropped = rng.random(ROWS) < DROPPED
    texts = ["" if gone else one(int(label)) for label, gone in zip(told, dropped, strict=True)]
    return texts, torch.from_numpy(digits.images[chosen].astype(np.int64)).flatten(1)


def masked_positions(rows: int, length: int) -> Tensor:
    """bool [N, L]: a share cos(pi u / 2) of each row, at least one; u ~ U(0, 1) (MaskGIT, arXiv 2202.04200)."""
    many_n = (length * torch.cos(math.pi / 2 * torch.rand(rows))).ceil().clamp(min=1)
    rank_nl = torch.rand(rows, length).argsort(1).argsort(1)
    return rank_nl < many_n[:, None]


def make(*, steps: int, work: Path, out: Path) -> None:
    torch.manual_seed(SEED)
    parts = nn.ModuleDict({"transformer": make_transformer(), "words": WordEncoder()})
    words: Any = parts["words"]
    model = EmbeddedTokens(parts["transformer"], words)
    words.requires_grad_(True)

    def loss(step: int) -> Tensor:
        texts, ids_nl = demonstrations(step)
        open_nl = masked_positions(*ids_nl.shape)
        told, pooled = words(words.ids(texts))
        batch = {"encoder_hidden_states": told, "pooled_projections": pooled}
        predicted = model.predict(ids_nl.masked_fill(open_nl, MASK), batch, height=8, width=8)
        return nn.functional.cross_entropy(predicted.logits_nlk[open_nl], ids_nl[open_nl])

    def seed(step: int) -> int:
        return stream_seed("make_masked_start", NAME, SEED, step)

    starts.train(NAME, parts, loss, seed=seed, steps=steps, decay=False, work=work, keep_every=KEEP_EVERY)
    model.save(out / NAME)


# ---- the numbers ---------------------------------------------------------------------------------------------------

#: Pictures of each class; sampler settings of the published numbers: the scheduler's own schedule.
IMAGES = 100
SAMPLING_STEPS, SAMPLING_SEEDS = (2, 4, 8, 16), (0, 1, 2)


@torch.no_grad()
def draw(model: EmbeddedTokens, texts: list[str], *, steps: int, seed: int) -> Tensor:
    """One picture a prompt by diffusers' own scheduler, re-mask temperature 2 to 0, guidance 1, [N, 3, 8, 8]."""
    generator = torch.Generator().manual_seed(seed)
    found = []
    for some in (texts[i : i + 256] for i in range(0, len(texts), 256)):
        batch = model.collate(model.encode(some))
        ids_nl = torch.full((len(some), 64), MASK)
        model.scheduler.set_timesteps(steps, temperature=(2, 0))
        for timestep in model.scheduler.timesteps:
            logits_nlk = model.predict(ids_nl, batch, height=8, width=8).logits_nlk
            ids_nl = model.scheduler.step(logits_nlk, timestep, ids_nl, generator=generator).prev_sample
        found.append(model.decode(ids_nl, height=8, width=8))
    return torch.cat(found)


def numbers(model: EmbeddedTokens, *, steps: int, seed: int) -> dict[str, float]:
    """judge, reward and diversity of one sampling seed."""
    rows = [r for r in class_records() for _ in range(IMAGES)]
    info: list[dict[str, Any]] = [{} for _ in rows]
    picture_n = draw(model, [r.prompt for r in rows], steps=steps, seed=seed)
    scores = {"judge": digit_judge, "reward": digit}
    means = {name: float(np.mean(score(list(picture_n), rows, info))) for name, score in scores.items()}
    key_n = torch.tensor([r.answer for r in rows])
    return {**means, "diversity": float(pixel_diversity(picture_n, key_n))}


def report(out: Path) -> None:
    """What the shipped model does before any reinforcement: mean over the seeds, and their spread."""
    model = load(out / NAME, dtype=torch.float32, device=torch.device("cpu"))
    weights = sum(p.numel() for p in model.transformer.parameters())
    print(f"{weights} weights; real digits of {LEVELS} grey levels, {len(load_digits('train'))} pictures")
    for steps in SAMPLING_STEPS:
        every = [numbers(model, steps=steps, seed=s) for s in SAMPLING_SEEDS]
        print(f"digits:class, {steps} steps, cosine, guidance 1: {starts.spread(every)}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=STEPS, help="in place of the published number")
    parser.add_argument("--only", choices=("make", "measure"))
    parser.add_argument("--out", type=Path, default=FOLDER)
    parser.add_argument("--work", type=Path, help="keep the state here (default: a temporary folder)")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as temporary:
        work = asked.work or Path(temporary)
        for folder in (work, asked.out):
            folder.mkdir(parents=True, exist_ok=True)
        if asked.only != "measure":
            make(steps=asked.steps, work=work, out=asked.out)
    if asked.only != "make":
        report(asked.out)
    starts.check_size(asked.out / NAME, most=MAX_BYTES)


if __name__ == "__main__":
    main()
