"""Reductions: [N,T] losses -> one number, as (coefficients, count): loss = sum(loss_nt * coef_nt) / count.

Coefficients depend on masks only and are made on the FULL table with its global count, so micro-batches, pieces and
ranks add up exactly. The one exception is `token-mean-local`, which depends on the split by design.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from mmrl.core.groups import Groups
from mmrl.core.ratios import segment_groups
from mmrl.core.registry import stage

Reduced = tuple[Tensor, Tensor]
Rows = Literal["nonempty", "all"]
Join = Literal["mean", "sum"]


def _row_count(mask_nt: Tensor, rows: Rows) -> Tensor:
    if rows not in ("nonempty", "all"):
        raise ValueError(f"rows must be 'nonempty' or 'all', got {rows!r}")
    n = mask_nt.any(1).sum() if rows == "nonempty" else torch.as_tensor(len(mask_nt))
    return n.to(torch.float64)


@stage("reduce", "token-mean", units=("decision", "element-mean"), unit_reason="only the row's sum has a meaning")
def token_mean(*, mask_nt: Tensor) -> Reduced:
    """sum(loss * m) / sum(m) over the global batch: DAPO, verl's default. Reduces to the others at equal lengths."""
    mask = mask_nt.bool()
    return mask.to(torch.float64), mask.sum().to(torch.float64)


@stage(
    "reduce", "token-mean-correct", units=("decision", "element-mean"), unit_reason="only the row's sum has a meaning"
)
def token_mean_correct(*, mask_nt: Tensor, correct_n: Tensor) -> Reduced:
    """The token mean over the rows whose answer is right; 0 where there is none. For the term `nll` of LightningRL.

    Reduces to: token-mean when all rows are right.
    """
    mask = mask_nt.bool() & correct_n.bool()[:, None]
    return mask.to(torch.float64), mask.sum().to(torch.float64)


@stage("reduce", "seq-mean-token-mean", scope="row")
def seq_mean_token_mean(*, mask_nt: Tensor, rows: Rows = "nonempty") -> Reduced:
    """mean_i [sum_t loss * m / max(L_i, 1)]: GRPO's own. rows: mean over rows with L > 0 (verl) or over all (TRL)."""
    mask = mask_nt.bool()
    per_row = mask.to(torch.float64) / mask.sum(1, keepdim=True).clamp(min=1)
    return per_row, _row_count(mask, rows)


@stage("reduce", "seq-mean-token-sum", scope="row")
def seq_mean_token_sum(*, mask_nt: Tensor, rows: Rows = "nonempty") -> Reduced:
    """mean_i sum_t loss * m."""
    mask = mask_nt.bool()
    return mask.to(torch.float64), _row_count(mask, rows)


@stage("reduce", "seq-mean-token-sum-norm", scope="row")
def seq_mean_token_sum_norm(*, mask_nt: Tensor, limit_n: Tensor | None = None, length: float | None = None) -> Reduced:
    """sum(loss * m) / (N * length): Dr.GRPO's constant, N = all rows. length: default the sampler's limit.

    verl's own form divides by length only, TRL by N * length; this is the latter.
    """
    if length is None:
        if limit_n is None:
            raise ValueError("seq-mean-token-sum-norm: give length, or a table with limit_n")
        length = float(limit_n.max()) if limit_n.numel() else 1.0
    mask = mask_nt.bool()
    return mask.to(torch.float64), torch.as_tensor(len(mask) * length, dtype=torch.float64)


@stage(
    *("reduce", "seq-mean-segment-mean"),
    scope="row",
    units=("decision", "element-mean"),
    unit_reason="only the row's sum has a meaning, its segments have no likelihood of their own",
    when={"limit_n": "counted"},
)
def seq_mean_segment_mean(
    *,
    mask_nt: Tensor,
    segments: dict[str, Tensor],
    limit_n: Tensor | None = None,
    segment: str = "step",
    inside: Join = "mean",
    over: Join = "mean",
    counted: bool = False,
    rows: Rows = "nonempty",
) -> Reduced:
    """mean_i [mean over the row's segments of (mean over the segment's decisions of loss)]: every segment of a row
    weighs the same, however many decisions it holds. For Co-GRPO's mean over decoding steps (arXiv 2512.22288).

    inside, over: mean or sum over the decisions of a segment, over the segments of a row. counted: the mean is over the
    `limit_n` segments that a row could have, so that one without decisions counts like a ratio of 1 without gradient;
    else over those that hold a decision. rows: as in seq-mean-token-mean.
    Reduces to: seq-mean-token-mean for one segment a row, and for segments of one decision each.
    Raises ValueError for a row with more segments than its limit.
    """
    if inside not in ("mean", "sum") or over not in ("mean", "sum"):
        raise ValueError(f"inside and over must be 'mean' or 'sum', got {inside!r} and {over!r}")
    if counted and over == "sum":
        raise ValueError("counted changes a mean over segments only; with over: sum set counted: false")
    mask = mask_nt.bool()
    one = mask.to(torch.float64)
    share_nt = one / segment_groups(mask, segments[segment]).count().reshape(mask.shape).clamp(min=1)
    number_n = share_nt.sum(1).round()
    coef_nt = share_nt if inside == "mean" else one
    if over == "mean":
        most_n = number_n
        if counted:
            if limit_n is None:
                raise ValueError("seq-mean-segment-mean: counted needs a table with limit_n")
            if bool((number_n > limit_n).any()):
                raise ValueError(f"a row has more segments {segment!r} than the {int(limit_n.min())} it could have")
            most_n = limit_n.to(torch.float64)
        coef_nt = coef_nt / most_n.clamp(min=1)[:, None]
    return coef_nt, _row_count(mask, rows)


@stage("reduce", "token-mean-local", units=("decision", "element-mean"), unit_reason="only the row's sum has a meaning")
def token_mean_local(*, mask_nt: Tensor, part_n: Tensor) -> Reduced:
    """Token mean inside each micro-batch, then the mean over micro-batches (TRL calls it `bnpo`).

    Depends on how rows are split (`part_n`); exempt from additivity on purpose.
    """
    mask = mask_nt.bool()
    tokens_n = mask.sum(1).to(torch.float64)
    per_part = Groups(part_n).sum(tokens_n)
    parts = torch.unique(part_n[tokens_n > 0]).numel()
    return mask.to(torch.float64) / per_part.clamp(min=1)[:, None], torch.as_tensor(parts, dtype=torch.float64)


def reduce_loss(loss_nt: Tensor, reduced: Reduced) -> Tensor:
    """sum(loss * coef) / count; 0 with a valid graph when nothing is counted. A masked NaN is never multiplied."""
    coef_nt, count = reduced
    coef_nt = coef_nt.to(loss_nt)
    total = torch.where(coef_nt != 0, loss_nt, torch.zeros_like(loss_nt)).mul(coef_nt).sum()
    return total / count.clamp(min=1e-12).to(loss_nt) if count > 0 else total * 0
