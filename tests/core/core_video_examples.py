"""Worked numbers of TW-GRPO and Reg-GRPO as callables of a dtype, and what a group's divergence must satisfy."""

from __future__ import annotations

import math
from typing import Any
from unittest import mock

import torch
from core_examples import close, example
from torch import Tensor

from mmrl.core.objective import Objective
from mmrl.core.recipe import parse
from mmrl.core.reducers import divergence
from mmrl.core.reducers.divergence import group_divergence
from mmrl.core.reductions import reduce_loss
from mmrl.core.registry import bind
from mmrl.core.table import Table

NAN = float("nan")
FORMS = [(c, a) for c in (False, True) for a in (False, True)]
PAIR = [[[0.5, 0.5], [0.8, 0.2]], [[0.5, 0.5], [0.2, 0.8]]]


def logits_of(probabilities: Any, dtype: torch.dtype) -> Tensor:
    """Logits that are log-probabilities up to a number at each position."""
    shift = torch.tensor([[0.3, -2.0], [5.0, 0.1]], dtype=dtype)
    return torch.tensor(probabilities, dtype=dtype).log() + shift[..., None]


def weights(d_nt: Tensor, mask_nt: Tensor, channel: str = "divergence_nt", **options: Any) -> Tensor:
    table = Table({"mask_nt": mask_nt, channel: d_nt}, {"prompt": torch.zeros(len(mask_nt), dtype=torch.long)})
    result: Tensor = bind("weight", {"name": "tw", **options})(table)
    return result


ONE_GROUP = torch.zeros(2, dtype=torch.long)


@example
def tw_two_members(dtype: torch.dtype) -> None:
    """D = (0, .5) for both members; weights (1, 1.7)."""
    mask = torch.ones(2, 2, dtype=torch.bool)
    d = group_divergence(logits_of(PAIR, dtype), mask_nc=mask, group_n=ONE_GROUP)
    each = (math.log(0.4 / 0.8), math.log(0.4 / 0.2))
    close(torch.tensor([math.exp(e) - e - 1 for e in each]), [0.193147, 0.306853])
    close(d, [[0, 0.5], [0, 0.5]], 1e-6)
    close(weights(d, mask), [[1, 1.7], [1, 1.7]])


@example
def tw_one_member_has_ended(dtype: torch.dtype) -> None:
    """The ended member counts as (.5, .5): D = (.148565 + .120510) / 2; it has weight 0 there. What its logits hold has
    no influence. Over active members alone there is nothing to disagree with: D = 0 and weight 1."""
    mask = torch.tensor([[True, True], [True, False]])
    logits = logits_of(PAIR, dtype)
    for junk in (0.0, NAN, math.inf, -math.inf):
        logits[1, 1] = junk
        d = group_divergence(logits, mask_nc=mask, group_n=ONE_GROUP)
        close(d, [[0, 0.134537], [0, 0.134537]], 1e-6)
        close(weights(d, mask), [[1, 1.7], [1, 0]])
        alone = group_divergence(logits, mask_nc=mask, group_n=ONE_GROUP, active=True)
        close(alone, [[0, 0], [0, 0]], 1e-6)
        close(weights(alone, mask, "divergence_active_nt", form="active"), [[1, 1], [1, 0]])
    ended = torch.log(torch.tensor([[0.8, 0.2], [0.5, 0.5]], dtype=torch.float64))
    one = ended.mean(0) - ended
    close((one.exp() - one - 1).sum(-1), [0.148565, 0.120510])


@example
def tw_nothing_to_weigh(dtype: torch.dtype) -> None:
    """Rows without a token have weight 0; a table without a column stays one."""
    for width in (0, 3):
        mask = torch.zeros(2, width, dtype=torch.bool)
        for form, channel in (("official", "divergence_nt"), ("calibrated-active", "js_active_nt")):
            assert torch.equal(weights(torch.zeros(2, width, dtype=dtype), mask, channel, form=form), mask.to(dtype))


@example
def tw_calibrated(dtype: torch.dtype) -> None:
    """The Jensen-Shannon divergence of (.8, .2) and (.2, .8) is .192745."""
    mask = torch.ones(2, 2, dtype=torch.bool)
    for active in (False, True):
        d = group_divergence(logits_of(PAIR, dtype), mask_nc=mask, group_n=ONE_GROUP, calibrated=True, active=active)
        close(d, [[0, 0.192745], [0, 0.192745]], 1e-6)
    close(weights(d, mask, "js_nt", form="calibrated"), [[1, 1.7], [1, 1.7]])


def problem(dtype: torch.dtype = torch.float64, width: int = 7) -> tuple[Tensor, Tensor, Tensor]:
    """Logits of 9 rows in 3 scattered groups (4, 3 and 2 members), ragged, one id never drawn; mask; groups."""
    g = torch.Generator().manual_seed(2)
    group = torch.tensor([5, 1, 5, 8, 1, 5, 8, 1, 5])
    length = torch.tensor([7, 3, 2, 5, 4, 6, 1, 1, 7])
    logits = 2 * torch.randn(9, width, 11, generator=g, dtype=torch.float64)
    logits[..., 4] -= 1e9
    return logits.to(dtype), torch.arange(width) < length[:, None], group


def by_loops(logits: Tensor, mask: Tensor, group: Tensor, *, calibrated: bool, active: bool) -> Tensor:
    out = torch.zeros(mask.shape, dtype=torch.float64)
    ids = [v for v in range(logits.shape[2]) if float(logits[0, 0, v]) > -1e8]
    for k in set(group.tolist()):
        rows = [i for i in range(len(group)) if int(group[i]) == k]
        for t in range(mask.shape[1]):
            if not any(bool(mask[i, t]) for i in rows):
                continue
            members = [i for i in rows if mask[i, t] or not active]
            uniform = torch.full((len(ids),), -math.log(len(ids)), dtype=torch.float64)
            logp = torch.stack(
                [torch.log_softmax(logits[i, t, ids].double(), -1) if mask[i, t] else uniform for i in members]
            )
            if calibrated:
                mean = logp.exp().mean(0).log()
                value = (logp.exp() * (logp - mean)).sum(-1).mean()
            else:
                d = (logp.mean(0) - logp).clamp(-11, 11)
                value = (d.exp() - d - 1).sum(-1).mean()
            out[rows, t] = value
    return out


@example
def divergence_by_loops(dtype: torch.dtype) -> None:
    """All forms against loops; equal for all members; not negative; calibrated at most log G; far logits clamped."""
    logits, mask, group = problem(dtype)
    tol = 1e-10 if dtype == torch.float64 else 2e-4
    for calibrated, active in FORMS:
        for scale in (1.0, 12.0):
            own = torch.where(logits > -1e8, scale * logits, logits)
            got = group_divergence(own, mask_nc=mask, group_n=group, calibrated=calibrated, active=active)
            want = by_loops(own, mask, group, calibrated=calibrated, active=active)
            torch.testing.assert_close(got.double(), want, rtol=tol, atol=tol)
            assert got.dtype == dtype and (got >= 0).all()
            assert not calibrated or float(got.max()) <= math.log(4) + 1e-6


@example
def divergence_of_equal_members(dtype: torch.dtype) -> None:
    """Exactly 0 in every form: what rounding leaves would be blown up by the min-max, to weights of up to alpha."""
    g = torch.Generator().manual_seed(0)
    for members, ids, scale in ((1, 50, 5.0), (3, 2, 5.0), (7, 50, 30.0), (8, 3000, 1.0)):
        row = (scale * torch.randn(1, 6, ids, generator=g, dtype=torch.float64)).to(dtype)
        mask, group = torch.ones(members, 6, dtype=torch.bool), torch.zeros(members, dtype=torch.long)
        for calibrated, active in FORMS:
            logits = row.expand(members, 6, ids)
            d = group_divergence(logits, mask_nc=mask, group_n=group, calibrated=calibrated, active=active)
            assert (d == 0).all(), (members, ids, calibrated, active)


@example
def divergence_stops_at_the_longest_row(dtype: torch.dtype) -> None:
    """No column is looked at beyond the end of a group's longest row."""
    logits, mask, group = problem(dtype, width=12)
    with mock.patch.object(divergence, "_one_group", wraps=divergence._one_group) as looked:
        group_divergence(logits, mask_nc=mask, group_n=group)
        seen = [call.args[2].shape[1] for call in looked.call_args_list]
    assert seen == [int(mask[group == k].sum(1).max()) for k in group.unique()] and max(seen) < 12


@example
def divergence_has_no_graph(dtype: torch.dtype) -> None:
    logits, mask, group = problem(dtype)
    for calibrated, active in FORMS:
        leaf = logits.clone().requires_grad_()
        got = group_divergence(leaf, mask_nc=mask, group_n=group, calibrated=calibrated, active=active)
        assert not got.requires_grad
    half = group_divergence(logits.bfloat16(), mask_nc=mask, group_n=group)
    assert half.dtype == torch.float32


@example
def divergence_invariances(dtype: torch.dtype) -> None:
    """Permuted members, numbers added to all logits of a position, and a cut into columns change nothing; groups do not
    see each other; what stands where nothing was chosen has no influence."""
    logits, mask, group = problem(dtype)
    tol = 1e-10 if dtype == torch.float64 else 2e-4
    for calibrated, active in FORMS:
        form = {"calibrated": calibrated, "active": active}
        want = group_divergence(logits, mask_nc=mask, group_n=group, **form)

        def same(got: Tensor, expected: Tensor = want) -> None:
            torch.testing.assert_close(got, expected, rtol=tol, atol=tol)

        order = torch.tensor([8, 3, 0, 6, 1, 2, 7, 5, 4])
        same(group_divergence(logits[order], mask_nc=mask[order], group_n=group[order], **form), want[order])
        same(group_divergence(logits + torch.arange(7.0).to(dtype)[:, None], mask_nc=mask, group_n=group, **form))
        if dtype == torch.float64:
            far = group_divergence(logits - 1e9, mask_nc=mask, group_n=group, **form)
            torch.testing.assert_close(far, want, rtol=1e-4, atol=1e-5)
        for size in (1, 2, 5):
            parts = [(logits[:, a : a + size], mask[:, a : a + size]) for a in range(0, 7, size)]
            same(torch.cat([group_divergence(x, mask_nc=m, group_n=group, **form) for x, m in parts], 1))
        for k in (1, 5, 8):
            rows = group == k
            alone = group_divergence(logits[rows], mask_nc=mask[rows], group_n=group[rows], **form)
            same(alone, want[rows])
            beyond = torch.arange(7) >= mask[rows].any(0).sum()
            assert (alone[:, beyond] == 0).all()
        for junk in (NAN, math.inf, -math.inf, 1e30):
            dirty = torch.where(mask[..., None], logits, torch.full_like(logits, junk))
            assert torch.equal(group_divergence(dirty, mask_nc=mask, group_n=group, **form), want)


@example
def tw_alpha_one_is_the_token_mean(dtype: torch.dtype) -> None:
    """Bit for bit, loss and gradient; with alpha 1.7 another gradient, none of it through the weights."""
    g = torch.Generator().manual_seed(4)
    mask = torch.arange(5) < torch.tensor([5, 2, 4, 1])[:, None]
    old = torch.randn(4, 5, generator=g, dtype=torch.float64).to(dtype)
    table = Table(
        {
            "mask_nt": mask,
            "old_logp_nt": old,
            "reward_n": torch.tensor([1.0, 0.0, 0.5, 0.5], dtype=dtype),
            "divergence_nt": torch.rand(1, 5, generator=g).to(dtype).repeat(4, 1),
        },
        {"prompt": torch.tensor([0, 0, 0, 0])},
    )
    data = {"advantage": {"name": "grpo", "eps": 1e-4}, "gate": "ppo-clip", "reduce": "token-mean"}

    def run(**changes: Any) -> tuple[Tensor, list[Tensor]]:
        objective = Objective(
            parse("test", {**data, **changes}), channel="tokens", unit="decision", provides=frozenset({"logp_nt"})
        )
        logp = (old + 0.1).detach().requires_grad_()
        divergence = table["divergence_nt"].clone().requires_grad_()
        ready = objective.widths_and_weights(objective.prepare(table))
        coef, counts = objective.coefficients(ready)
        loss = objective.terms(ready.updated({"logp_nt": logp, "divergence_nt": divergence}), coef, counts).loss()
        grads = torch.autograd.grad(loss, [logp, divergence], allow_unused=True, materialize_grads=True)
        return loss.detach(), list(grads)

    plain, one, more = run(), run(weight=[{"name": "tw", "alpha": 1.0}]), run(weight=["tw"])
    assert torch.equal(plain[0], one[0]) and torch.equal(plain[1][0], one[1][0])
    assert not torch.allclose(more[1][0], one[1][0]) and (more[1][1] == 0).all()
    w = weights(table["divergence_nt"], mask)
    close(more[1][0], w * plain[1][0], 1e-6)


def regression(dtype: torch.dtype, rho: list[float], adv: list[float], **options: Any) -> tuple[Tensor, Tensor]:
    """(loss, gradient in rho) of one group of rows with two decisions each."""
    logp = torch.tensor(rho, dtype=dtype)[:, None] * torch.tensor([0.25, 0.75], dtype=dtype)
    logp.requires_grad_()
    mask = torch.ones(len(rho), 2, dtype=torch.bool)
    channels = {
        "logp_nt": logp,
        "old_logp_nt": torch.zeros(len(rho), 2, dtype=dtype),
        "adv_nt": torch.tensor(adv, dtype=dtype)[:, None].repeat(1, 2),
        "mask_nt": mask,
    }
    table = Table(channels, {"prompt": torch.zeros(len(rho), dtype=torch.long)})
    loss = reduce_loss(
        bind("gate", {"name": "reg-grpo", **options})(table)["loss_nt"], bind("reduce", "seq-mean-token-mean")(table)
    )
    return loss.detach(), torch.autograd.grad(loss, [logp])[0][:, 0]


@example
def reg_grpo_worked(dtype: torch.dtype) -> None:
    """R = (1, 0, 1, 0), rho = (.3, -.1, .1, -.3): .211146 = 2 (1 - correlation)."""
    reward = torch.tensor([1.0, 0.0, 1.0, 0.0], dtype=dtype)
    table = Table({"reward_n": reward}, {"prompt": torch.zeros(4, dtype=torch.long)})
    adv = bind("advantage", {"name": "grpo", "ddof": 0, "eps": 1e-8})(table)
    close(adv, [1, -1, 1, -1])
    rho = [0.3, -0.1, 0.1, -0.3]
    loss, grad = regression(dtype, rho, adv.tolist())
    close(loss, 0.211146)
    close(loss, 2 * (1 - 0.894427), 2e-6)
    close(grad.sum(), 0.0)
    for a, b in ((2.0, 0.0), (5.0, -3.0), (1.0, 11.0)):
        close(regression(dtype, [a * r + b for r in rho], adv.tolist())[0], 0.211146, 3e-6)
    close(regression(dtype, [2 * r + 1 for r in adv.tolist()], adv.tolist())[0], 0.0)
    close(regression(dtype, [-r for r in adv.tolist()], adv.tolist())[0], 4.0)
    for same in (0.0, 0.7):
        loss, grad = regression(dtype, [same] * 4, adv.tolist(), s_min=1.0)
        close(loss, 1.0)
        close(grad, [-0.5, 0.5, -0.5, 0.5])
    close(regression(dtype, [0.3], [0.0])[0], 0.0)
    close(regression(dtype, rho, [0.0] * 4)[0], 0.0)


@example
def tw_two_groups_have_their_own_range(dtype: torch.dtype) -> None:
    """Groups of different length and scale in one table: each has weights from 1 to alpha over its own positions, also
    where the other one goes on."""
    mask = torch.arange(4) < torch.tensor([4, 2, 3, 2])[:, None]
    d = torch.tensor([[9.0, 5, 7, 6], [0.1, 0.3, 0, 0], [9.0, 5, 7, 6], [0.1, 0.3, 0, 0]], dtype=dtype)
    table = Table({"mask_nt": mask, "divergence_nt": d}, {"prompt": torch.tensor([3, 8, 3, 8])})
    want = [[2, 1, 1.5, 1.25], [1, 2, 0, 0], [2, 1, 1.5, 0], [1, 2, 0, 0]]
    close(bind("weight", {"name": "tw", "alpha": 2.0})(table), want, 1e-5)
