"""How far the members of a group disagree about the next token: TW-GRPO (arXiv 2505.24718, official code).

Members are aligned by position from the start of their completions. l = log-softmax of the model's own logits
(temperature 1), G members, V ids that can be drawn at all. Axes: n rows of one or several groups, c columns of a
chunk, v ids, g members of one group.

divergence_nt          the official form. mbar = mean of l over the members (in log space, not normalised),
                       d = clamp(mbar - l, -11, 11), D = mean over the members of sum_v (exp(d) - d - 1). Not weighted
                       by probability, so rare ids dominate: not a KL.
js_nt                  calibrated: pbar = mean of p, D = mean over the members of KL(p || pbar), the generalised
                       Jensen-Shannon divergence, between 0 and log G. Not in the paper or its code.
divergence_active_nt,  the same over the members that have not ended. In the two above a member that has ended counts as
js_active_nt           uniform (-log V), as in the official code: D grows where a few members go on alone.

Every member of a group gets the group's D; columns beyond its longest row get 0. Everything is detached. The official
code lets the gradient through: zero where all members go on at ratio 1, arbitrary elsewhere.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from mmrl.core.groups import as_float
from mmrl.core.reducers import reducer

CLAMP = 11.0
#: Ids whose logit is below, and as far below the largest, are never drawn (suppressed): no member says anything about
#: them.
NEVER = -1e8
#: Ids that are looked at together: a few small tables instead of several as large as the logits.
BLOCK = 1024

#: What rounding alone adds to a divergence of equal members, whose differences the min-max of the weights would blow
#: up: the official form, an id of the vocabulary (squares of differences), and the calibrated one (a sum of p).
ROUNDING = {
    torch.float32: {"official": 1e-10, "calibrated": 1e-6},
    torch.float64: {"official": 1e-25, "calibrated": 1e-13},
}


def group_divergence(
    logits_ncv: Tensor, *, mask_nc: Tensor, group_n: Tensor, calibrated: bool = False, active: bool = False
) -> Tensor:
    """D of each row's group at each column. [n, c], detached, in float32 or better; 0 beyond a group's longest row.

    mask_nc: tokens that were chosen, the end token included. group_n: int64, equal for the members of a group, all of
    which must be here. calibrated, active: the forms above. What stands where nothing was chosen has no influence.
    """
    with torch.no_grad():
        logits, mask = as_float(logits_ncv.detach()), mask_nc.bool()
        out = logits.new_zeros(mask.shape)
        if not bool(mask.any()):
            return out
        row, column = mask.nonzero()[0]
        own_v = logits[row, column]
        drawn_v = (own_v > NEVER) | (own_v > own_v.amax() + NEVER)  # a number added to all logits changes nothing
        rounding = ROUNDING[logits.dtype]
        least = rounding["calibrated"] if calibrated else rounding["official"] * len(drawn_v)
        total_nc = _log_total(logits)
        for group in torch.unique(group_n):
            rows = (group_n == group).nonzero()[:, 0]
            here = mask[rows].any(0).nonzero()[:, 0]
            if len(here):
                stop = int(here[-1]) + 1
                found = _one_group(
                    logits,
                    rows,
                    mask[rows, :stop],
                    total_nc[rows, :stop],
                    drawn_v,
                    calibrated=calibrated,
                    active=active,
                )
                out[rows, :stop] = torch.where(found < least, torch.zeros_like(found), found).to(out)
        return out


def _log_total(logits_ncv: Tensor) -> Tensor:
    """log sum_v exp(logits) over the ids that can be drawn. [n, c]"""
    top = logits_ncv.amax(-1, keepdim=True)
    total = torch.zeros_like(top)
    for first in range(0, logits_ncv.shape[-1], BLOCK):
        part = slice(first, first + BLOCK)
        total += (logits_ncv[..., part] - top).exp_().sum(-1, keepdim=True)  # exactly 0 at ids never drawn
    return (top + total.log())[..., 0]


def _one_group(
    logits_ncv: Tensor,
    rows: Tensor,
    mask_gc: Tensor,
    total_gc: Tensor,
    drawn_v: Tensor,
    *,
    calibrated: bool,
    active: bool,
) -> Tensor:
    """D of one group at the columns of its mask. float64 [c]"""
    stop, ended = mask_gc.shape[1], ~mask_gc[..., None]
    share_gc = (
        mask_gc.to(total_gc) / mask_gc.sum(0).clamp(min=1) if active else torch.full_like(total_gc, 1 / len(rows))
    )
    uniform, form = -math.log(int(drawn_v.sum())), _calibrated if calibrated else _official
    found = torch.zeros(stop, dtype=torch.float64, device=total_gc.device)
    first_row, last_row = int(rows[0]), int(rows[-1]) + 1
    own = slice(first_row, last_row) if last_row - first_row == len(rows) else rows  # a view, where it can be one
    some_ended, all_drawn = bool(ended.any()), bool(drawn_v.all())
    for first in range(0, logits_ncv.shape[-1], BLOCK):
        part = slice(first, first + BLOCK)
        logp_gcv = logits_ncv[own, :stop, part] - total_gc[..., None]
        if some_ended:
            logp_gcv.masked_fill_(ended, uniform)
        if not all_drawn:
            logp_gcv.masked_fill_(~drawn_v[part], 0.0)  # 0 for all: adds 0 in both forms
        found += form(logp_gcv, share_gc)
    return found.clamp_(min=0)


def _mean(x_gcv: Tensor, share_gc: Tensor) -> Tensor:
    """Mean over the members, [c, v]; one after the other: no second table as large as x."""
    mean_cv = x_gcv[0] * share_gc[0, :, None]
    for x_cv, share_c in zip(x_gcv[1:], share_gc[1:], strict=True):
        mean_cv.addcmul_(x_cv, share_c[:, None])
    return mean_cv


def _official(logp_gcv: Tensor, share_gc: Tensor) -> Tensor:
    """sum_v (exp(d) - d - 1), mean over the members. [c]"""
    mean_cv = _mean(logp_gcv, share_gc)
    d = torch.sub(mean_cv, logp_gcv).clamp_(-CLAMP, CLAMP)
    return (torch.expm1(d).sub_(d).sum(-1) * share_gc).sum(0).double()


def _calibrated(logp_gcv: Tensor, share_gc: Tensor) -> Tensor:
    """sum_v p (l - log pbar), mean over the members. [c]"""
    p_gcv = logp_gcv.exp()
    mean_cv = _mean(p_gcv, share_gc)
    own = ((p_gcv * logp_gcv).sum(-1) * share_gc).sum(0)
    return own.double() - torch.xlogy(mean_cv, mean_cv).sum(-1).double()


_ENDED = "(0 beyond its longest row); TW-GRPO"


@reducer("divergence_nt", meaning=f"how far a group disagrees about the next token {_ENDED}", scope="group")
def divergence(logits_ncv: Tensor, hidden_ncd: Tensor, *, mask_nc: Tensor, group_n: Tensor) -> Tensor:
    """The official form. [n, c], detached."""
    return group_divergence(logits_ncv, mask_nc=mask_nc, group_n=group_n)


@reducer("divergence_active_nt", meaning=f"the same over members that have not ended {_ENDED}", scope="group")
def divergence_active(logits_ncv: Tensor, hidden_ncd: Tensor, *, mask_nc: Tensor, group_n: Tensor) -> Tensor:
    """The official form over members that have not ended. [n, c], detached."""
    return group_divergence(logits_ncv, mask_nc=mask_nc, group_n=group_n, active=True)


@reducer("js_nt", meaning=f"Jensen-Shannon divergence of a group's next-token distributions {_ENDED}", scope="group")
def js(logits_ncv: Tensor, hidden_ncd: Tensor, *, mask_nc: Tensor, group_n: Tensor) -> Tensor:
    """The calibrated form. [n, c], detached, between 0 and log G."""
    return group_divergence(logits_ncv, mask_nc=mask_nc, group_n=group_n, calibrated=True)


@reducer("js_active_nt", meaning=f"the same over members that have not ended {_ENDED}", scope="group")
def js_active(logits_ncv: Tensor, hidden_ncd: Tensor, *, mask_nc: Tensor, group_n: Tensor) -> Tensor:
    """The calibrated form over members that have not ended. [n, c], detached."""
    return group_divergence(logits_ncv, mask_nc=mask_nc, group_n=group_n, calibrated=True, active=True)
