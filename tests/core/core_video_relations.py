"""What the stages that came with video models reduce to; continues core_relations.py."""

from __future__ import annotations

import math

import torch
from core_relations import of
from core_world import KEY, NO_REWARD, Case, N, T, assert_same, loss_and_gradients, main_output, outputs

from mmrl.core.reductions import reduce_loss
from mmrl.core.table import Table

CHANNEL = {
    "official": "divergence_nt",
    "active": "divergence_active_nt",
    "calibrated": "js_nt",
    "calibrated-active": "js_active_nt",
}


def form_of(case: Case) -> str:
    return str(case.options.get("form", "official"))


def group_wide(table: Table, channel: str) -> Table:
    """The channel as its reducer fills it: the members of a group have equal numbers."""
    first = [KEY.index(k) for k in KEY]
    return table.updated({channel: table[channel][first]})


def weights_by_loops(case: Case, table: Table) -> torch.Tensor:
    alpha, form = float(case.options.get("alpha", 1.7)), form_of(case)
    mask, value = table["mask_nt"].tolist(), table[CHANNEL[form]]
    out = torch.zeros(N, T, dtype=value.dtype)
    for k in set(KEY):
        rows = [i for i in range(N) if KEY[i] == k]
        d = {}
        for t in range(T):
            active = [i for i in rows if mask[i][t]]
            if len(active) >= (2 if "active" in form else 1):
                d[t] = value[active[0], t]
        for i in rows:
            for t in range(T):
                if mask[i][t]:
                    score = (d[t] - min(d.values())) / (max(d.values()) - min(d.values()) + 1e-8) if t in d else 0.0
                    out[i, t] = 1 + (alpha - 1) * score
    return out


@of("weight", "tw")
def _tw(case: Case, dtype: torch.dtype) -> None:
    """By loops; between 1 and alpha on the mask, 0 off it; equal for all members at a position; constant D, and alpha
    1: exactly 1; unchanged where D is stretched and moved."""
    channel = CHANNEL[form_of(case)]
    table = group_wide(case.table(dtype), channel)
    mask, alpha = table["mask_nt"], float(case.options.get("alpha", 1.7))
    got = main_output(case, table)
    assert_same(got, weights_by_loops(case, table), dtype)
    assert (got[~mask] == 0).all() and (got[mask] >= 1).all() and (got[mask] <= alpha + 1e-6).all()
    for k in set(KEY):
        rows = torch.tensor(KEY) == k
        for t in range(T):
            assert len(got[rows & mask[:, t], t].unique()) <= 1
    flat = table.updated({channel: torch.full((N, T), 0.3, dtype=dtype)})
    assert torch.equal(main_output(case, flat), mask.to(dtype))
    assert torch.equal(main_output(case.but(alpha=1.0), table), mask.to(dtype))
    if alpha > 1:
        assert float(got.max()) > 1 + 0.99 * (alpha - 1)
    moved = main_output(case, table.updated({channel: 3 * table[channel] + 2}))
    torch.testing.assert_close(moved, got, rtol=1e-4, atol=1e-4)


def regression_by_loops(case: Case, table: Table) -> torch.Tensor:
    """Loss of every row, by lists; differentiable."""
    s_min, mask = float(case.options.get("s_min", 0.1)), table["mask_nt"]
    diff, adv = table["logp_nt"] - table["old_logp_nt"], table["adv_nt"]
    zero = torch.zeros((), dtype=diff.dtype)
    out = [zero for _ in range(N)]
    for k in set(KEY):
        rows = [i for i in range(N) if KEY[i] == k and mask[i].any() and i != NO_REWARD]
        if len(rows) < 2:
            continue
        rho = torch.stack([diff[i][mask[i]].sum() for i in rows])
        std = rho.std(correction=0)
        scale = std if float(std) > s_min else s_min
        for i, fitted in zip(rows, (rho - rho.mean()) / scale):
            out[i] = (adv[i][mask[i]].mean() - fitted) ** 2
    return torch.stack(out)


@of("gate", "reg-grpo")
def _reg_grpo(case: Case, dtype: torch.dtype) -> None:
    """By loops, value and gradient. Above s_min unchanged by rho -> 3 rho + b. The gradient in rho sums to 0 over a
    group. rho = 0: mean A^2, gradient -2 (A - mean A) / (G s_min). Equal advantages: 0."""
    table = case.table(dtype)
    mask, key = table["mask_nt"], torch.tensor(KEY)
    expected = regression_by_loops(case, table)
    assert_same(main_output(case, table), torch.where(mask, expected[:, None], torch.zeros(N, T, dtype=dtype)), dtype)
    leaf = table["logp_nt"].clone().requires_grad_()
    rows = int(mask.any(1).sum())
    plain = regression_by_loops(case, table.updated({"logp_nt": leaf})).sum() / rows
    got = loss_and_gradients(case, table, "seq-mean-token-mean")
    assert_same(got[0], plain.detach(), dtype)
    assert_same(got[1]["logp_nt"], torch.autograd.grad(plain, [leaf])[0], dtype)
    first = (torch.arange(T)[None] == mask.int().argmax(1)[:, None]) & mask  # one decision a row stands for its rho
    slope = torch.where(first, got[1]["logp_nt"], torch.zeros(N, T, dtype=dtype)).sum(1)
    for k in set(KEY):
        assert abs(float(slope[key == k].sum())) < 1e-5
    if float(case.options.get("s_min", 0.1)) < 0.1:
        shifted = 3 * (table["logp_nt"] - table["old_logp_nt"]) + torch.where(first, 0.7, 0.0).to(dtype)
        moved = table.updated({"logp_nt": table["old_logp_nt"] + shifted})
        torch.testing.assert_close(main_output(case, moved), main_output(case, table), rtol=1e-3, atol=1e-3)
    at_start = table.updated({"logp_nt": table["old_logp_nt"].clone()})
    _first_update(case, at_start, dtype)
    equal = table.updated({"adv_nt": torch.full((N, T), 0.4, dtype=dtype)})
    assert (main_output(case, equal) == 0).all()
    assert (outputs(case, at_start)["rho_std_nt"] == 0).all() and (outputs(case, at_start)["ratio_nt"] == 1).all()


def _first_update(case: Case, table: Table, dtype: torch.dtype) -> None:
    s_min, mask = float(case.options.get("s_min", 0.1)), table["mask_nt"]
    adv = torch.tensor([float(table["adv_nt"][i][mask[i]].double().mean()) for i in range(N)], dtype=torch.float64)
    loss = main_output(case, table)
    grad = loss_and_gradients(case, table, "seq-mean-token-mean")[1]["logp_nt"].double()
    for k in set(KEY):
        own = [i for i in range(N) if KEY[i] == k and bool(mask[i].any()) and i != NO_REWARD]
        for i in own if len(own) > 1 else []:
            mean = sum(float(adv[j]) for j in own) / len(own)
            want = -2 * (float(adv[i]) - mean) / s_min / int(mask.any(1).sum())
            t = int(mask[i].int().argmax())
            assert math.isclose(float(grad[i, t]), want, rel_tol=1e-4, abs_tol=1e-7)
            assert math.isclose(float(loss[i, t]), float(adv[i]) ** 2, rel_tol=1e-4)
    assert torch.isfinite(reduce_loss(loss, (mask.double(), mask.sum().double())))
