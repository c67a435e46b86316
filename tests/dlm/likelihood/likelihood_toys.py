"""Rows, scorers and the exact expectation of an estimator over everything that it draws."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor

from dlm.likelihood import draws, elbo, registry
from dlm.likelihood.base import Completions, Estimator, View

#: Every registered estimator, some with options that take another way.
CASES = [
    *((name, {}) for name in registry.ESTIMATORS),
    ("sdmc", {"rule": "gauss-2", "weighting": "L/k", "draws": 2, "rest": "masked"}),
    ("sdmc", {"rule": "simpson"}),
    ("sdmc", {"weighting": "L/k", "count": "ceil"}),
    ("sdmc", {"rule": "midpoint-3", "clamped": "1/t"}),
    ("mc", {"samples": 2, "rest": "masked"}),
    ("elbo", {"level": "block", "antithetic": True}),
    ("elbo", {"level": "block", "masks": "exact", "rest": "masked"}),
    ("complementary", {"pairs": 3}),
    ("one_step", {"p_mask_prompt": 0.0}),
    ("trajectory", {"shrink": 2}),
    ("trajectory", {"slices": "one_step"}),
    ("random_masking", {"views": 3}),
]
EVERY = pytest.mark.parametrize(("name", "options"), CASES, ids=[f"{n}-{i}" for i, (n, _) in enumerate(CASES)])


def full_rows(n: int, length: int, seed: int = 0) -> Completions:
    """n completions of one length, all of it to be scored."""
    return Completions(
        region_nl=torch.ones(n, length, dtype=torch.bool),
        steps_nl=torch.arange(length).expand(n, length).clone(),
        block_nl=torch.zeros(n, length, dtype=torch.long),
        prompt_np=torch.ones(n, 3, dtype=torch.bool),
        seed_n=torch.arange(n) + seed,
    )


def ragged(seed: int = 7, width: int = 10) -> Completions:
    """Lengths 8, 1, 0, 5 (two of it after the end token) and 6 (three positions given); prompts of 1 to 4 tokens."""
    region = torch.zeros(5, width, dtype=torch.bool)
    steps = torch.full((5, width), -1)
    region[0, :8], steps[0, :8] = True, torch.tensor([0, 0, 1, 2, 3, 3, 5, 4])
    region[1, :1], steps[1, :1] = True, 0
    region[3, :3], steps[3, :5] = True, torch.tensor([1, 0, 1, 2, 3])
    region[4, 1:9:3], steps[4, 1:9:3] = True, torch.tensor([0, 1, 2])
    prompt = torch.arange(4) >= torch.tensor([0, 3, 2, 1, 0])[:, None]
    block = (torch.arange(width) // 4).expand(5, width).clone()
    return Completions(region, steps, block, prompt, torch.tensor([3, 141, 59, 26, 5]) + seed)


def pick(rows: Completions, index: list[int], width: int | None = None) -> Completions:
    """Some rows, cut or padded on the right to `width`."""
    length = rows.region_nl.shape[1]
    width = length if width is None else width

    def columns(table: Tensor, fill: int | bool) -> Tensor:
        out = torch.full((len(index), width), fill, dtype=table.dtype)
        out[:, : min(width, length)] = table[index][:, :width]
        return out

    return Completions(
        columns(rows.region_nl, False),
        columns(rows.steps_nl, -1),
        columns(rows.block_nl, 0),
        rows.prompt_np[index],
        rows.seed_n[index],
    )


def context_scorer(masks_ml: Tensor) -> Tensor:
    """Log-probabilities that depend on which others are masked, differently for every position; float64 [m, L]."""
    length = masks_ml.shape[1]
    g = torch.Generator().manual_seed(11)
    own = -torch.rand(length, generator=g, dtype=torch.float64)
    pull = -torch.rand(length, length, generator=g, dtype=torch.float64)
    pull.fill_diagonal_(0)
    return own - (masks_ml.double() @ -pull.T) ** 1.5


def estimate(estimator: Estimator, rows: Completions) -> Tensor:
    """The estimates under `context_scorer`; float64 [n, L]."""
    views = estimator.views(rows)
    return estimator.combine([context_scorer(v.masked_nl) for v in views], views)


def every_draw(monkeypatch: pytest.MonkeyPatch, length: int, levels: int) -> Completions:
    """Rows that together make every draw equally often: one of `levels` numbers, one order of the positions.

    The expectation of a sum over views is then the mean over these rows: it needs each view's own draws only.
    """
    table = list(itertools.product(range(levels), itertools.permutations(range(length))))
    u_n = torch.tensor([(level + 0.5) / levels for level, _ in table], dtype=torch.float64)
    u_nl = torch.tensor([order for _, order in table], dtype=torch.float64) / length
    monkeypatch.setattr(draws, "uniform_n", lambda streams: u_n)
    monkeypatch.setattr(draws, "uniform_nl", lambda streams, at_nl: u_nl)
    monkeypatch.setattr(elbo, "_each_part", lambda *_: u_n[:, None].expand(-1, length))
    return full_rows(len(table), length)


def same(a: View, b: View, row: int, other: int, width: int) -> bool:
    """Row `row` of a shows and reads the same as row `other` of b in the first `width` columns, and nothing beyond."""
    for name in ("masked_nl", "scored_nl", "weight_nl"):
        one, two = getattr(a, name)[row], getattr(b, name)[other]
        if not torch.equal(one[:width], two[:width]) or bool(one[width:].any()) or bool(two[width:].any()):
            return False
    if a.prompt_masked_np is None or b.prompt_masked_np is None:
        return a.prompt_masked_np is b.prompt_masked_np
    return torch.equal(a.prompt_masked_np[row], b.prompt_masked_np[other])
