"""Worked numbers of the methods for diffusion language models and of several rewards, as callables of a dtype."""

from __future__ import annotations

from typing import Any

import torch
from core_examples import close, example
from torch import Tensor

from mmrl.core.objective import Objective, Outcome
from mmrl.core.recipe import parse
from mmrl.core.registry import bind
from mmrl.core.table import Table

NAN = float("nan")
NOW = [[-0.5, -1.0], [-2.0, -0.1]]
OLD = [[-0.6, -1.5], [-1.9, -0.4]]
VALID = [[1, 1], [1, 0]]


def advantages(dtype: torch.dtype, reward_nk: list[list[float]], group: int, **options: Any) -> Tensor:
    n, k = len(reward_nk), len(reward_nk[0])
    table = Table(
        {
            "reward_nk": torch.tensor(reward_nk, dtype=dtype),
            "weight_k": torch.ones(k, dtype=dtype),
            "mask_nt": torch.ones(n, 1, dtype=torch.bool),
        },
        {"prompt": torch.arange(n) // group},
    )
    result: Tensor = bind("advantage", {"name": "decoupled", **options})(table)
    return result


def losses(recipe: dict[str, Any], channels: dict[str, Any], *, unit: str = "decision") -> Outcome:
    """The terms of a recipe on a table whose advantages are given."""
    objective = Objective(
        parse("x", {"advantage": "raw", **recipe}), channel="tokens", unit=unit, provides=frozenset({"logp_nt"})
    )
    table = objective.widths_and_weights(Table(channels))
    coef, counts = objective.coefficients(table)
    return objective.terms(table, coef, counts)


def two_rows(dtype: torch.dtype, **changes: Any) -> dict[str, Any]:
    """Two rows of two decisions, the last one of the second not valid; advantages 1 and -1."""
    mask = torch.tensor(VALID).bool()
    hole = torch.tensor(NAN, dtype=dtype)
    return {
        "logp_nt": torch.where(mask, torch.tensor(NOW, dtype=dtype), hole),
        "old_logp_nt": torch.where(mask, torch.tensor(OLD, dtype=dtype), hole),
        "mask_nt": mask,
        "adv_nt": torch.tensor([[1.0, 1.0], [-1.0, -1.0]], dtype=dtype),
        **changes,
    }


LIGHTNING = {
    "bounds": {"name": "constant", "low": 0.2, "high": 0.2},
    "gate": {"name": "ppo-clip", "cap_low": -10.0, "cap_high": 10.0},
    "reduce": "seq-mean-token-mean",
    "penalties": [
        {"name": "nll", "coef": 0.1, "reduce": "token-mean-correct"},
        {"name": "kl", "coef": 0.01, "estimator": "k3", "reduce": "token-mean"},
    ],
}


@example
def lightning_advantages(dtype: torch.dtype) -> None:
    """Correct 1, 0, 1, 1 and TPF 8/4, 8/2, 6/3, 9/3: the fast wrong sample outranks two slow right ones."""
    rewards = [[1.0, 8 / 4], [0.0, 8 / 2], [1.0, 6 / 3], [1.0, 9 / 3]]
    only = {"modes": ["z-score"], "batch": "none"}
    close(advantages(dtype, [[r[1]] for r in rewards], 4, **only), [-0.904534, 1.507557, -0.904534, 0.301511])
    close(advantages(dtype, [[r[0]] for r in rewards], 4, **only), [0.577350, -1.732051, 0.577350, 0.577350])
    close(advantages(dtype, rewards, 4, batch="none"), [-0.327184, -0.224494, -0.327184, 0.878862])
    close(advantages(dtype, rewards, 4), [-0.556526, -0.381855, -0.556526, 1.494906])
    close(
        advantages(dtype, [[2 * r[0] - 1, 5 * r[1] + 3] for r in rewards], 4),
        [-0.556526, -0.381855, -0.556526, 1.494906],
    )


@example
def lightning_terms(dtype: torch.dtype) -> None:
    """Policy per sequence, NLL per token of right rows, KL per token: three reductions side by side."""
    right = torch.tensor([True, False])
    table = two_rows(dtype, correct_n=right, ref_logp_nt=two_rows(dtype)["old_logp_nt"])
    policy, nll, kl = losses(LIGHTNING, table).terms
    close(policy.value(), -(1.1525855 - 0.9048374) / 2)
    close(nll.value(), 0.075)
    close(kl.value(), 0.00038846, 1e-8)
    none = losses(LIGHTNING, {**table, "correct_n": torch.zeros(2, dtype=torch.bool)})
    close(none.terms[1].value(), 0.0)
    assert torch.isfinite(none.loss())


@example
def nll_leaves_wrong_rows_alone(dtype: torch.dtype) -> None:
    """The gradient of wrong rows does not depend on the weight of the NLL, although their advantage is the better one:
    nothing but correctness decides. That of right rows does."""
    grads = {}
    for mu in (1e-9, 0.1, 7.0):
        recipe = {**LIGHTNING, "penalties": [{"name": "nll", "coef": mu, "reduce": "token-mean-correct"}]}
        leaf = torch.tensor(NOW, dtype=dtype).requires_grad_()
        adv = torch.tensor([[-0.5, -0.5], [2.0, 2.0]], dtype=dtype)
        table = two_rows(dtype, logp_nt=leaf, adv_nt=adv, correct_n=torch.tensor([True, False]))
        (grads[mu],) = torch.autograd.grad(losses(recipe, table).loss(), [leaf])
    assert torch.equal(grads[1e-9][1], grads[0.1][1]) and torch.equal(grads[0.1][1], grads[7.0][1])
    assert (grads[0.1][1, 0] != 0) and (grads[0.1][1, 1] == 0)
    close(grads[7.0][0] - grads[1e-9][0], [-3.5, -3.5], 1e-5)


@example
def diffu_grpo(dtype: torch.dtype) -> None:
    """Ratios 1.105171, 1.648721 (clipped to 1.5), 0.904837; the mean over all tokens."""
    recipe = {"bounds": {"name": "constant", "low": 0.5, "high": 0.5}, "gate": "ppo-clip", "reduce": "token-mean"}
    out = losses(recipe, two_rows(dtype))
    close(out.loss(), -0.566778)
    close(out.loss(), -(1.105171 + 1.5 - 0.904837) / 3)


def elbos(dtype: torch.dtype) -> dict[str, Any]:
    """Whole-row bounds -10 -> -9.2 and -12 -> -12.8 over 4 positions, spread unevenly: only sums have a meaning."""
    share = torch.tensor([[0.1, 0.2, 0.3, 0.4], [0.7, 0.1, 0.1, 0.1]], dtype=dtype)
    other = share.flip(1)
    return {
        "logp_nt": other * torch.tensor([[-9.2], [-12.8]], dtype=dtype),
        "old_logp_nt": share * torch.tensor([[-10.0], [-12.0]], dtype=dtype),
        "mask_nt": torch.ones(2, 4, dtype=torch.bool),
        "adv_nt": torch.tensor([[0.5], [-0.5]], dtype=dtype).repeat(1, 4),
    }


def gdpo(eps: float, **gate: Any) -> dict[str, Any]:
    return {
        "bounds": {"name": "constant", "low": eps, "high": eps},
        "gate": {"name": "gspo", "cap_low": -10.0, "cap_high": 10.0, **gate},
        "reduce": "seq-mean-token-mean",
    }


@example
def gdpo_diffusion_code_form(dtype: torch.dtype) -> None:
    """r = exp(difference of the bounds / 4) = 1.2214028 and 0.8187308."""
    for form in ("token", "sequence"):
        out = losses(gdpo(0.2, form=form), elbos(dtype), unit="row")
        close(out.loss(), -0.0953173)
        close(out.loss(), -(0.6 - 0.4093654) / 2)
        close(losses(gdpo(0.5, form=form), elbos(dtype), unit="row").loss(), -0.1006680)
        ratio, count = losses(gdpo(0.5, form=form), elbos(dtype), unit="row").stats["ratio"]
        close(ratio / count, (1.2214028 + 0.8187308) / 2)


@example
def gdpo_diffusion_paper_form(dtype: torch.dtype) -> None:
    """r = exp(0.8), exp(-0.8) of the whole bounds; 1/4 in front of the min. Another objective: wide clips show it."""
    paper = {"level": "row-sum", "loss_norm": "length"}
    e = 2.718281828459045
    for form in ("token", "sequence"):
        close(losses(gdpo(0.2, **paper, form=form), elbos(dtype), unit="row").loss(), -(0.5 * 1.2 - 0.5 * 0.8) / 4 / 2)
        leaf = elbos(dtype)["logp_nt"].clone().requires_grad_()
        loss = losses(gdpo(5.0, **paper, form=form), {**elbos(dtype), "logp_nt": leaf}, unit="row").loss()
        close(loss.detach(), -(0.5 * e**0.8 - 0.5 * e**-0.8) / 4 / 2)
        (grad,) = torch.autograd.grad(loss, [leaf])  # of the row's bound: -r A / 4 / 2, on each of its parts
        close(grad, [[-0.5 * e**0.8 / 8] * 4, [0.5 * e**-0.8 / 8] * 4])


@example
def gdpo_diffusion_on_policy(dtype: torch.dtype) -> None:
    """Equal masks and parameters: ratio 1, clip silent, and the gradient of REINFORCE on bound / length."""
    table = elbos(dtype)
    leaf = table["old_logp_nt"].clone().requires_grad_()
    out = losses(gdpo(0.2), {**table, "logp_nt": leaf}, unit="row")
    (grad,) = torch.autograd.grad(out.loss(), [leaf])
    close(grad, [[-0.5 / 4 / 2] * 4, [0.5 / 4 / 2] * 4])
    assert out.stats["clip_low"][0] == out.stats["clip_high"][0] == 0


@example
def kl_of_whole_rows(dtype: torch.dtype) -> None:
    """d = 0.8 and -0.8 (ref minus now) over 4 positions: k3 of the sums, k2 of the means, each row once."""
    table = {**elbos(dtype), "ref_logp_nt": elbos(dtype)["old_logp_nt"], "adv_nt": torch.zeros(2, 4, dtype=dtype)}
    e = 2.718281828459045
    for spec, value in (
        ({"estimator": "k3", "level": "row-sum"}, (e**-0.8 + 0.8 - 1 + e**0.8 - 0.8 - 1) / 2),
        ({"estimator": "k2", "level": "row"}, 0.5 * 0.2**2),
    ):
        recipe = {**gdpo(0.2), "penalties": [{"name": "kl", "coef": 1.0, **spec}]}
        close(losses(recipe, table, unit="row").terms[1].value(), value)


TWO_GROUPS = [[1.0, 2.0], [1.0, 1.0], [0.0, 1.0], [0.0, 0.0], [1.0, 1.0], [0.0, 1.0], [0.0, 0.0], [0.0, 2.0]]
TRL = {"ddof": 1, "eps": 1e-4, "batch_ddof": 1, "batch_eps": 1e-4, "batch_floor": 0.0}


@example
def gdpo_decoupled(dtype: torch.dtype) -> None:
    sums = [2.09047, 0.865875, -0.865875, -2.09047, 1.49970, -0.49990, -1.72449, 0.72469]
    close(advantages(dtype, TWO_GROUPS, 4, **{**TRL, "batch": "none"}), sums, 1e-5)
    expected = [1.37247, 0.56848, -0.56848, -1.37247, 0.98461, -0.32820, -1.13219, 0.47579]
    close(advantages(dtype, TWO_GROUPS, 4, **TRL), expected, 1e-5)


@example
def decoupled_tells_equal_sums_apart(dtype: torch.dtype) -> None:
    """Rewards (1, 0) and (0, 1) add up alike; their advantages differ where one component is the rarer one."""
    rewards = [[1.0, 0.0], [0.0, 1.0], [0.0, 1.0], [0.0, 1.0], [0.0, 0.0], [0.0, 0.0]]
    got = advantages(dtype, rewards, 6)
    assert abs(float(got[0] - got[1])) > 0.1


@example
def decoupled_without_some_rewards(dtype: torch.dtype) -> None:
    """A component that does not apply adds 0 and leaves its statistics; a row without any leaves the batch's too."""
    rewards = [[1.0, 3.0], [0.0, NAN], [NAN, 1.0], [NAN, NAN]]
    close(advantages(dtype, rewards, 4, batch="none"), [2.0, -1.0, -1.0, 0.0])
    std = 3.0**0.5
    close(advantages(dtype, rewards, 4), [2 / std, -1 / std, -1 / std, 0.0])


@example
def decoupled_edges(dtype: torch.dtype) -> None:
    """A constant component adds nothing and the other still speaks; all constant: 0, also with a batch around; one
    sample: 0; a batch of equal sums: 0, not noise over 1e-8."""
    a = 0.5**0.5
    close(advantages(dtype, [[1.0, 2.0], [1.0, 4.0]], 2), [-a, a])
    close(advantages(dtype, [[0.1, 0.3], [0.1, 0.3], [1.0, 2.0], [0.0, 4.0]], 2), [0.0, 0.0, 0.0, 0.0])
    assert (
        advantages(dtype, [[0.1, 0.3], [0.1, 0.3], [0.7, 2.0], [0.0, 4.1], [0.2, 0.9], [0.3, 9.0]], 2)[:2] == 0
    ).all()
    close(advantages(dtype, [[1.0, 2.0]], 1), [0.0])
    opposed = [[0.1, -0.3], [0.7, -2.1], [0.33, -0.99]]  # sums of 0 but for rounding
    assert (advantages(dtype, opposed, 3, batch="none") != 0).any()
    if dtype == torch.float64:  # 0.3 and 3 times 0.1 are different numbers in float32
        assert (advantages(dtype, opposed, 3, batch_floor=0.0) == 0).all()
    quiet = advantages(dtype, [[0.1, 0.2], [0.1, 0.2], [5.0, 1.0], [4.0, 3.0]], 2, modes=["min-max"], batch="batch")
    assert (quiet[:2] == 0).all() and (quiet[2:] != 0).any()
    min_max = advantages(dtype, [[2.0], [4.0], [3.0], [2.0]], 4, modes=["min-max"], batch="none")
    close(min_max, [0.0, 1.0, 0.5, 0.0])


@example
def kl_to_the_old_policy(dtype: torch.dtype) -> None:
    """d = -.1, -.5, .1 (old minus now): k3 .004837, .106531, .005171."""
    spec = {"name": "kl-old", "coef": 0.01, "estimator": "k3", "reduce": "token-mean"}
    recipe = {"gate": "ppo-clip", "reduce": "token-mean", "penalties": [spec]}
    close(losses(recipe, two_rows(dtype)).terms[1].value(), 0.01 * (0.0048374 + 0.1065307 + 0.0051709) / 3, 1e-8)
