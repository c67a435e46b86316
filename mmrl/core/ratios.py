"""Log-ratios between two passes, at the granularity a gate asks for.

Masked decisions are set to 0 BEFORE exp; the quantity that is exponentiated is clamped, with zero gradient outside.
"""

from __future__ import annotations

import torch
from torch import Tensor

from mmrl.core.groups import Groups
from mmrl.core.registry import level_segment

CLAMP = 20.0


def masked_difference(logp_nt: Tensor, old_logp_nt: Tensor, mask_nt: Tensor) -> Tensor:
    """logp - old_logp, 0 where masked or where the behaviour log-prob is not finite. [N,T]

    Gradient through logp only; old_logp is detached.
    """
    old_logp_nt = old_logp_nt.detach()
    use = mask_nt.bool() & torch.isfinite(old_logp_nt)
    zero = torch.zeros_like(logp_nt)
    return torch.where(use, torch.where(use, logp_nt, zero) - torch.where(use, old_logp_nt, zero).to(logp_nt), zero)


def factor(adv_nt: Tensor, mask_nt: Tensor, *, adv_clip: float | None = None) -> Tensor:
    """An advantage as a gate may use it: detached, 0 where masked, so that a masked NaN is never multiplied. [N,T]

    adv_clip: it stays within -adv_clip .. adv_clip. Raises ValueError for a limit that is not above 0.
    """
    adv_nt = torch.where(mask_nt.bool(), adv_nt.detach(), torch.zeros_like(adv_nt))
    if adv_clip is None:
        return adv_nt
    if not adv_clip > 0:
        raise ValueError(f"adv_clip must be above 0, got {adv_clip}")
    return adv_nt.clamp(-adv_clip, adv_clip)


def limit(value: Tensor | float, like: Tensor) -> Tensor:
    """A clip limit, number or table, in the dtype and on the device of the ratio; detached."""
    return torch.as_tensor(value, dtype=like.dtype, device=like.device).detach()


def row_sum(x_nt: Tensor, mask_nt: Tensor) -> Tensor:
    """Sum over the valid decisions of each row. [N]"""
    return torch.where(mask_nt.bool(), x_nt, torch.zeros_like(x_nt)).sum(1)


def row_mean(x_nt: Tensor, mask_nt: Tensor) -> Tensor:
    """Mean over the valid decisions of each row; 0 for an empty row. [N]"""
    return row_sum(x_nt, mask_nt) / mask_nt.bool().sum(1).clamp(min=1).to(x_nt.dtype)


def segment_groups(mask_nt: Tensor, segment_nt: Tensor) -> Groups:
    """The segments of all rows as groups of the decisions of a flattened table; masked decisions are not counted.

    segment_nt: int64 [N,T], equal numbers for the decisions of one segment of a row; anything where masked.
    """
    mask = mask_nt.bool()
    n, t = mask.shape
    number_nt = torch.where(mask, segment_nt, torch.zeros_like(segment_nt))
    row_nt = torch.arange(n, device=mask.device)[:, None].expand(n, t)
    low, high = (int(v) for v in torch.aminmax(number_nt)) if number_nt.numel() else (0, 0)
    width = high - low + 1
    return Groups((row_nt * width + (number_nt - low)).reshape(-1), mask.reshape(-1))


def over_segment(x_nt: Tensor, mask_nt: Tensor, segment_nt: Tensor, *, mean: bool) -> Tensor:
    """Mean or sum over the valid decisions of the same segment of the same row, on each valid decision; 0 on masked
    ones. [N,T]"""
    groups, mask = segment_groups(mask_nt, segment_nt), mask_nt.bool()
    flat = torch.where(mask, x_nt, torch.zeros_like(x_nt)).reshape(-1)
    joined = groups.mean(flat) if mean else groups.sum(flat)
    return torch.where(mask, joined.reshape(x_nt.shape), torch.zeros_like(x_nt))


def level_length(mask_nt: Tensor, level: str, segments: dict[str, Tensor] | None = None) -> Tensor:
    """How many decisions share the log-ratio of each, int64 [N,T] or [N,1]: those of its row or segment."""
    if level_segment(level):
        segment_nt = _segment(level, segments)
        return segment_groups(mask_nt, segment_nt).count().reshape(mask_nt.shape).clamp(min=1)
    return mask_nt.bool().sum(1, keepdim=True).clamp(min=1)


def _segment(level: str, segments: dict[str, Tensor] | None) -> Tensor:
    name = level_segment(level)
    if not segments or name not in segments:
        raise ValueError(f"ratio level {level!r}: the rollouts carry no segment {name!r}")
    return segments[name]


def at_level(diff_nt: Tensor, mask_nt: Tensor, level: str, segments: dict[str, Tensor] | None = None) -> Tensor:
    """The log-ratio each decision is judged by, [N,T]: its own (`decision`), the geometric mean over its segment
    (`segment:<name>`) or its row (`row`), or the product over either (`segment-sum:<name>`, `row-sum`: the log-ratios
    add up)."""
    if level == "decision":
        return diff_nt
    if level in ("row", "row-sum"):
        over_row = row_mean if level == "row" else row_sum
        return over_row(diff_nt, mask_nt)[:, None].expand_as(diff_nt)
    if level_segment(level):
        mean = not level.startswith("segment-sum:")
        return over_segment(diff_nt, mask_nt, _segment(level, segments), mean=mean)
    raise ValueError(f"ratio level must be decision, row, row-sum, segment:<name> or segment-sum:<name>, got {level!r}")


def clamped(log_ratio: Tensor, low: float = -CLAMP, high: float = CLAMP) -> Tensor:
    """Limits on what is exponentiated next. Raises ValueError unless low < 0 < high."""
    if not low < 0 < high:
        raise ValueError(f"a log-ratio is clamped to an interval around 0, got {low} .. {high}")
    return log_ratio.clamp(low, high)
