"""Log-ratios between two passes, at the granularity a gate asks for.

Masked decisions are set to 0 BEFORE exp; the quantity that is exponentiated is clamped, with zero gradient outside.
"""

from __future__ import annotations

import torch
from torch import Tensor

from mmrl.core.groups import Groups

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


def segment_mean(x_nt: Tensor, mask_nt: Tensor, segment_nt: Tensor) -> Tensor:
    """Mean over the valid decisions of the same segment of the same row, on each decision. [N,T]"""
    n, t = x_nt.shape
    row_nt = torch.arange(n, device=x_nt.device)[:, None].expand(n, t)
    width = int(segment_nt.max()) + 1 if segment_nt.numel() else 1
    groups = Groups((row_nt * width + segment_nt).reshape(-1), mask_nt.reshape(-1).bool())
    return groups.mean(torch.where(mask_nt.bool(), x_nt, torch.zeros_like(x_nt)).reshape(-1)).reshape(n, t)


def at_level(diff_nt: Tensor, mask_nt: Tensor, level: str, segments: dict[str, Tensor] | None = None) -> Tensor:
    """The log-ratio each decision is judged by, [N,T]: its own (`decision`), the geometric mean over its segment
    (`segment:<name>`) or its row (`row`), or the product over its row (`row-sum`: the log-ratios add up)."""
    if level == "decision":
        return diff_nt
    if level in ("row", "row-sum"):
        over_row = row_mean if level == "row" else row_sum
        return over_row(diff_nt, mask_nt)[:, None].expand_as(diff_nt)
    kind, _, name = level.partition(":")
    if kind == "segment" and name:
        if not segments or name not in segments:
            raise ValueError(f"ratio level {level!r}: the rollouts carry no segment {name!r}")
        return segment_mean(diff_nt, mask_nt, segments[name])
    raise ValueError(f"ratio level must be decision, row, row-sum or segment:<name>, got {level!r}")


def clamped(log_ratio: Tensor, low: float = -CLAMP, high: float = CLAMP) -> Tensor:
    """Limits on what is exponentiated next. Raises ValueError unless low < 0 < high."""
    if not low < 0 < high:
        raise ValueError(f"a log-ratio is clamped to an interval around 0, got {low} .. {high}")
    return log_ratio.clamp(low, high)
