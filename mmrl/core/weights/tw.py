"""Token weights of TW-GRPO: positions where a group disagrees count more (arXiv 2505.24718, official code)."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

import mmrl.core.reducers.divergence  # noqa: F401  (adds the channels that the stage names)
from mmrl.core.groups import Groups, as_float
from mmrl.core.registry import stage

Form = Literal["official", "active", "calibrated", "calibrated-active"]
EPS = 1e-8


@stage(
    *("weight", "tw"),
    scope="group",
    when={
        "divergence_nt": "form=official",
        "divergence_active_nt": "form=active",
        "js_nt": "form=calibrated",
        "js_active_nt": "form=calibrated-active",
    },
)
def tw(
    *,
    mask_nt: Tensor,
    keys: dict[str, Tensor],
    divergence_nt: Tensor | None = None,
    divergence_active_nt: Tensor | None = None,
    js_nt: Tensor | None = None,
    js_active_nt: Tensor | None = None,
    alpha: float = 1.7,
    form: Form = "official",
    key: str = "prompt",
) -> Tensor:
    """w_t = 1 + (alpha - 1) (D_t - min D) / (max D - min D + 1e-8), D_t of the group at position t. [N,T], detached.

    Minimum and maximum are over the group's own positions, up to the end of its longest row; 0 off the mask. alpha: the
    largest weight (1 + the alpha of the paper's tables: 1.7 is their 0.7). form: which divergence, see
    `mmrl.core.reducers.divergence`; in the `active` ones a position with fewer than two members that have not ended has
    weight 1 and leaves minimum and maximum. key: groups by `keys[key]`, the group that the reducer saw.
    Detached: all of it (the official code is not). Reduces to: no weight with alpha 1 and where D is constant.
    Raises ValueError for another form, or an alpha that is below 1 or not finite.
    """
    found = {
        "official": divergence_nt,
        "active": divergence_active_nt,
        "calibrated": js_nt,
        "calibrated-active": js_active_nt,
    }
    if form not in found:
        raise ValueError(f"form must be one of {', '.join(found)}, got {form!r}")
    if not 1 <= alpha < float("inf"):
        raise ValueError(f"alpha is the largest weight, at least 1 (the paper's alpha plus 1), got {alpha}")
    given_nt = found[form]
    if given_nt is None:
        raise ValueError(f"tw with form {form} needs the divergence that a logit reducer fills")
    mask = mask_nt.bool()
    groups = Groups(keys[key])
    index_nt = groups.index_n[:, None].expand(mask.shape)
    own_nt = as_float(given_nt.detach())
    if own_nt.numel() == 0:
        return own_nt
    own_nt = torch.where(mask, own_nt, torch.full_like(own_nt, -torch.inf))
    nothing = own_nt.new_full((groups.n_groups, mask.shape[1]), -torch.inf)
    d_st = nothing.scatter_reduce(0, index_nt, own_nt, "amax")  # all members have the same
    members_st = torch.zeros_like(nothing).scatter_add(0, index_nt, mask.to(nothing))
    use_st = members_st >= (2 if "active" in form else 1)
    low_s1 = torch.where(use_st, d_st, torch.full_like(d_st, torch.inf)).amin(1, keepdim=True)
    high_s1 = torch.where(use_st, d_st, nothing).amax(1, keepdim=True)
    score_st = torch.where(use_st, (d_st - low_s1) / (high_s1 - low_s1 + EPS), torch.zeros_like(d_st))
    weight_st = 1 + (alpha - 1) * score_st
    return torch.where(mask, weight_st.index_select(0, groups.index_n), torch.zeros_like(own_nt))
