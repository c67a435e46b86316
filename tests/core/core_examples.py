"""Worked numbers as callables of a dtype: two groups of four rewards, and two rows of three decisions."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

import mmrl.core.catalogue  # noqa: F401  (registers the stages)
from mmrl.core.objective import Objective
from mmrl.core.recipe import parse
from mmrl.core.reductions import reduce_loss
from mmrl.core.registry import bind
from mmrl.core.shaping import overlong_penalty
from mmrl.core.table import Table

EXAMPLES: dict[str, Callable[[torch.dtype], None]] = {}
NAN = float("nan")

REWARD = [1.0, 0.0, 0.0, 1.0, 2.0, -1.0, 0.5, 0.5]
PROMPT = [0, 0, 0, 0, 1, 1, 1, 1]
LOGP = [[-0.5, -1.0, -2.0], [-0.4, -0.9, NAN]]
OLD = [[-0.9, -1.0, -1.6], [-0.4, -1.2, NAN]]
REF = [[-0.7, -1.0, -1.5], [-0.4, -1.0, NAN]]
MASK = [[1, 1, 1], [1, 1, 0]]
ADV = [1.0, -0.5]


def example(fn: Callable[[torch.dtype], None]) -> Callable[[torch.dtype], None]:
    EXAMPLES[fn.__name__] = fn
    return fn


def close(got: Tensor, expected: Any, atol: float = 1e-6) -> None:
    torch.testing.assert_close(got.double(), torch.as_tensor(expected, dtype=torch.float64), rtol=0, atol=atol)


def rewards(dtype: torch.dtype, reward: list[float] = REWARD, prompt: list[int] = PROMPT) -> Table:
    return Table({"reward_n": torch.tensor(reward, dtype=dtype)}, {"prompt": torch.tensor(prompt)})


def rows(dtype: torch.dtype, **changes: Any) -> Table:
    """The two rows; the masked decision is NaN everywhere."""
    channels: dict[str, Any] = {
        "logp_nt": torch.tensor(LOGP, dtype=dtype),
        "old_logp_nt": torch.tensor(OLD, dtype=dtype),
        "ref_logp_nt": torch.tensor(REF, dtype=dtype),
        "mask_nt": torch.tensor(MASK).bool(),
        "adv_nt": torch.tensor(ADV, dtype=dtype)[:, None].repeat(1, 3),
        "eps_low_nt": 0.2,
        "eps_high_nt": 0.2,
        "part_n": torch.tensor([0, 1]),
        "limit_n": torch.tensor([8, 8]),
    }
    return Table({**channels, **changes})


def valid(x_nt: Tensor) -> Tensor:
    return x_nt[torch.tensor(MASK).bool()]


def adv(dtype: torch.dtype, **spec: Any) -> Tensor:
    result: Tensor = bind("advantage", spec)(rewards(dtype))
    return result


def gate(table: Table, **spec: Any) -> dict[str, Tensor]:
    result: dict[str, Tensor] = bind("gate", spec)(table)
    return result


def reduced(loss_nt: Tensor, table: Table, **spec: Any) -> Tensor:
    return reduce_loss(loss_nt, bind("reduce", spec)(table))


# ---- advantages


@example
def grpo_unbiased(dtype: torch.dtype) -> None:
    a, b = 0.866024, 1.224744
    close(adv(dtype, name="grpo"), [a, -a, -a, a, b, -b, 0, 0], 1e-5)


@example
def grpo_biased(dtype: torch.dtype) -> None:
    close(adv(dtype, name="grpo", ddof=0), [1, -1, -1, 1, 1.414212, -1.414212, 0, 0], 1e-5)


@example
def grpo_eps(dtype: torch.dtype) -> None:
    """Deviation 0.57735 and eps 0.1: 0.5 / 0.67735."""
    close(adv(dtype, name="grpo", eps=0.1)[0], 0.7381708)


@example
def dr_grpo(dtype: torch.dtype) -> None:
    close(adv(dtype, name="dr-grpo"), [0.5, -0.5, -0.5, 0.5, 1.5, -1.5, 0, 0])


@example
def rloo(dtype: torch.dtype) -> None:
    close(adv(dtype, name="rloo"), [2 / 3, -2 / 3, -2 / 3, 2 / 3, 2, -2, 0, 0])


@example
def batch_std(dtype: torch.dtype) -> None:
    """All eight rewards: mean 0.5, squares 5.5, unbiased variance 5.5 / 7."""
    s = (5.5 / 7) ** 0.5
    close(adv(dtype, name="batch-std", eps=0.0), [0.5 / s, -0.5 / s, -0.5 / s, 0.5 / s, 1.5 / s, -1.5 / s, 0, 0])
    t = (5.5 / 8) ** 0.5
    close(adv(dtype, name="batch-std", eps=0.0, ddof=0)[4], 1.5 / t)


@example
def reinforce_pp_returns(dtype: torch.dtype) -> None:
    """Rewards 1 and 0 on rows of 2 and 1 decisions, gamma 0.5: returns .5, 1, 0; mean .5, variance .25."""
    table = Table({"reward_n": torch.tensor([1.0, 0.0], dtype=dtype), "mask_nt": torch.tensor([[1, 1], [1, 0]])})
    close(bind("advantage", {"name": "reinforce-pp", "gamma": 0.5})(table), [[0, 1], [-1, 0]])
    # gamma 1: returns 1, 1, 0; mean 2/3, variance 1/3
    a = 1 / 3**0.5
    close(bind("advantage", "reinforce-pp")(table), [[a, a], [-2 * a, 0]])


@example
def reinforce_pp_hole(dtype: torch.dtype) -> None:
    """A masked decision is skipped, not discounted: returns .5 and 1 around the hole."""
    table = Table({"reward_n": torch.tensor([1.0, 0.0], dtype=dtype), "mask_nt": torch.tensor([[1, 0, 1], [1, 0, 0]])})
    close(bind("advantage", {"name": "reinforce-pp", "gamma": 0.5})(table), [[0, 0, 1], [-1, 0, 0]])


@example
def reinforce_pp_kl(dtype: torch.dtype) -> None:
    """beta 0.5, k1 = old - ref: .2 and 0 on row one, 0 on row two. rtok -.1, 1 | 0: returns .9, 1, 0."""
    table = Table(
        {
            "reward_n": torch.tensor([1.0, 0.0], dtype=dtype),
            "mask_nt": torch.tensor([[1, 1], [1, 0]]),
            "old_logp_nt": torch.tensor([[-0.5, -1.0], [-1.0, NAN]], dtype=dtype),
            "ref_logp_nt": torch.tensor([[-0.7, -1.0], [-1.0, NAN]], dtype=dtype),
        }
    )
    mean, std = 1.9 / 3, (((0.9 - 1.9 / 3) ** 2 + (1 - 1.9 / 3) ** 2 + (1.9 / 3) ** 2) / 2) ** 0.5
    got = bind("advantage", {"name": "reinforce-pp", "beta_kl": 0.5})(table)
    close(got, [[(0.9 - mean) / std, (1 - mean) / std], [-mean / std, 0]])


@example
def reinforce_pp_baseline(dtype: torch.dtype) -> None:
    """Centred rewards .5, -.5 on 3 and 1 decisions: mean .25, variance 0.75 / 3."""
    table = Table(
        {"reward_n": torch.tensor([1.0, 0.0], dtype=dtype), "mask_nt": torch.tensor([[1, 1, 1], [1, 0, 0]])},
        {"prompt": torch.tensor([4, 4])},
    )
    close(bind("advantage", "reinforce-pp-baseline")(table), [[0.5, 0.5, 0.5], [-1.5, 0, 0]])


@example
def overlong(dtype: torch.dtype) -> None:
    """max 20, cache 5: free to 15, half at 17.5, -1 from 20 on."""
    length = torch.tensor([1.0, 15.0, 16.0, 17.5, 20.0, 21.0, 99.0], dtype=dtype)
    close(overlong_penalty(length_n=length, max_length=20, cache=5), [0, 0, -0.2, -0.5, -1, -1, -1])
    table = Table(
        {
            "reward_n": torch.tensor([1.0, NAN], dtype=dtype),
            "length_n": torch.tensor([9, 9]),
            "limit_n": torch.tensor([10, 10]),
        }
    )
    got = bind("shape", {"name": "overlong", "weight": 0.5})(table)  # cache: a fifth of the limit
    close(got[:1], [1 - 0.5 * 0.5])
    assert got.isnan().tolist() == [False, True]


# ---- gates


@example
def ppo_clip(dtype: torch.dtype) -> None:
    table = rows(dtype)
    out = gate(table, name="ppo-clip")
    close(valid(out["ratio_nt"]), [1.491825, 1, 0.670320, 1, 1.349859])
    close(valid(out["loss_nt"]), [-1.2, -1, -0.670320, 0.5, 0.674929])
    close(valid(out["clip_high_nt"]), [1, 0, 0, 0, 0])
    close(valid(out["clip_low_nt"]), [0, 0, 0, 0, 0])
    ell = out["loss_nt"]
    close(reduced(ell, table, name="token-mean"), -0.339078)
    close(reduced(ell, table, name="seq-mean-token-mean"), -0.184654)
    close(reduced(ell, table, name="seq-mean-token-sum"), -0.847696)
    close(reduced(ell, table, name="seq-mean-token-sum-norm"), -0.105962)
    close(reduced(ell, table, name="seq-mean-token-sum-norm", length=8.0), -0.105962)
    close(reduced(ell, table, name="token-mean-local"), -0.184654)  # one row a part: the mean of two row means
    together = table.updated({"part_n": torch.tensor([0, 0])})
    close(reduced(ell, together, name="token-mean-local"), -0.339078)


@example
def empty_rows(dtype: torch.dtype) -> None:
    """A third row with nothing valid: mean over rows with decisions (verl) or over all rows (TRL)."""
    mask = torch.tensor([*MASK, [0, 0, 0]]).bool()
    table = Table({"mask_nt": mask, "limit_n": torch.tensor([8, 8, 8]), "part_n": torch.tensor([0, 1, 2])})
    ell = torch.tensor([[-1.2, -1.0, -0.67032], [0.5, 0.674929, NAN], [NAN, NAN, NAN]], dtype=dtype)
    close(reduced(ell, table, name="seq-mean-token-mean"), -0.184654)
    close(reduced(ell, table, name="seq-mean-token-mean", rows="all"), -0.184654 * 2 / 3)
    close(reduced(ell, table, name="seq-mean-token-sum"), -0.847696)
    close(reduced(ell, table, name="seq-mean-token-sum", rows="all"), -0.847696 * 2 / 3)
    close(reduced(ell, table, name="seq-mean-token-sum-norm"), -0.105962 * 2 / 3)
    close(reduced(ell, table, name="token-mean-local"), -0.184654)


@example
def clip_higher_and_dual(dtype: torch.dtype) -> None:
    table = rows(dtype, eps_high_nt=0.28)
    close(valid(gate(table, name="ppo-clip")["loss_nt"]), [-1.28, -1, -0.670320, 0.5, 0.674929])
    # row two: A = -.5, so a dual clip at 1.2 caps the loss at .6 and a delta of 1.3 at .65
    close(valid(gate(rows(dtype), name="ppo-clip", dual_clip=1.2)["loss_nt"])[3:], [0.5, 0.6])
    close(valid(gate(rows(dtype), name="ppo-clip", delta=1.3)["loss_nt"]), [-1.2, -1, -0.670320, 0.5, 0.65])


@example
def clip_table(dtype: torch.dtype) -> None:
    """Widths decision by decision: 0.1, 0.2, 0.5 above."""
    high = torch.tensor([[0.1, 0.2, 0.5], [0.1, 0.2, NAN]], dtype=dtype)
    out = gate(rows(dtype, eps_high_nt=high), name="ppo-clip")
    close(valid(out["loss_nt"]), [-1.1, -1, -0.670320, 0.5, 0.674929])


@example
def gspo(dtype: torch.dtype) -> None:
    """The row's ratio is the geometric mean: 1 and exp(.15)."""
    table = rows(dtype, eps_low_nt=3e-4, eps_high_nt=4e-4)
    for form in ("token", "sequence"):
        out = gate(table, name="gspo", form=form)
        close(valid(out["ratio_nt"]), [1, 1, 1, 1.161834, 1.161834])
        close(valid(out["loss_nt"]), [-1, -1, -1, 0.580917, 0.580917])
        close(reduced(out["loss_nt"], table, name="seq-mean-token-mean"), -0.209541)


@example
def cispo(dtype: torch.dtype) -> None:
    """Largest ratio 1.28: weights 1.28, 1, .67032 | 1, 1.28."""
    table = rows(dtype, eps_low_nt=None, eps_high_nt=0.28)
    for bound, high in (("offset", 0.28), ("cap", 1.28)):
        out = gate(table.updated({"eps_high_nt": high}), name="cispo", bound=bound)
        close(reduced(out["loss_nt"], table, name="token-mean"), 0.440928)
        close(valid(out["loss_nt"]), [0.64, 1, 1.340640, -0.2, -0.576])
    low = gate(table.updated({"eps_low_nt": 0.2}), name="cispo")  # verl: a lower bound of .8 as well
    close(valid(low["loss_nt"]), [0.64, 1, 1.6, -0.2, -0.576])


@example
def reinforce(dtype: torch.dtype) -> None:
    close(valid(gate(rows(dtype), name="reinforce")["loss_nt"]), [0.5, 1, 2, -0.2, -0.45])


@example
def on_policy_value(dtype: torch.dtype) -> None:
    """At ratio 1 the surrogate's loss is -A on every decision, its gradient -A / count."""
    for name in ("ppo-clip", "gspo"):
        leaf = torch.tensor(LOGP, dtype=dtype).requires_grad_()
        table = rows(dtype, logp_nt=leaf, old_logp_nt=leaf.detach().clone())
        loss = gate(table, name=name)["loss_nt"]
        close(valid(loss.detach()), [-1, -1, -1, 0.5, 0.5])
        (grad,) = torch.autograd.grad(reduced(loss, table, name="token-mean"), [leaf])
        close(grad, [[-0.2, -0.2, -0.2], [0.1, 0.1, 0]])


# ---- KL, importance weights


@example
def kl_estimators(dtype: torch.dtype) -> None:
    expected = {
        "k1": [0.2, 0, -0.5, 0, 0.1],
        "k2": [0.02, 0, 0.125, 0, 0.005],
        "k3": [0.018731, 0, 0.148721, 0, 0.004837],
        "k3+": [0.018731, 0, 0.148721, 0, 0.004837],
    }
    for name, values in expected.items():
        close(valid(bind("penalty", {"name": "kl", "estimator": name})(rows(dtype))), values)


@example
def kl_gradients(dtype: torch.dtype) -> None:
    """d = ref - logp: k1 gives 1, k2 gives -d, k3 gives 1 - exp(d), k3+ gives -d."""
    expected = {
        "k1": [1, 1, 1, 1, 1],
        "k2": [0.2, 0, -0.5, 0, 0.1],
        "k3": [0.181269, 0, -0.648721, 0, 0.095163],
        "k3+": [0.2, 0, -0.5, 0, 0.1],
    }
    for name, values in expected.items():
        leaf = torch.tensor(LOGP, dtype=dtype).requires_grad_()
        loss = bind("penalty", {"name": "kl", "estimator": name})(rows(dtype, logp_nt=leaf))
        (grad,) = torch.autograd.grad(valid(loss).sum(), [leaf])
        close(valid(grad), values)


@example
def kl_expectations(dtype: torch.dtype) -> None:
    """Over a categorical, on-policy and exactly: every estimator's mean is KL(now || ref) up to second order, k1 and k3
    exactly; the mean gradient of k1 is 0, that of k2 and k3+ is the gradient of the KL."""
    logits = torch.tensor([0.3, -0.2, 0.9, -1.1], dtype=dtype)
    ref = torch.tensor([0.1, 0.2, 0.5, -0.8], dtype=dtype).log_softmax(-1)
    leaf = logits.clone().requires_grad_()
    now = leaf.log_softmax(-1)
    kl = (now.exp() * (now - ref)).sum()
    (slope,) = torch.autograd.grad(kl, [leaf])
    p = now.detach().exp()
    for name, gradient in (("k1", torch.zeros(4, dtype=dtype)), ("k2", slope), ("k3", None), ("k3+", slope)):
        leaf = logits.clone().requires_grad_()
        table = rows(
            dtype,
            logp_nt=leaf.log_softmax(-1)[None],
            ref_logp_nt=ref[None],
            mask_nt=torch.ones(1, 4, dtype=torch.bool),
        )
        mean = (p * bind("penalty", {"name": "kl", "estimator": name})(table)[0]).sum()
        if name != "k2":
            close(mean.detach(), kl.item())
        if gradient is not None:
            close(torch.autograd.grad(mean, [leaf])[0], gradient.tolist())


@example
def kl_limits(dtype: torch.dtype) -> None:
    """d is clamped to 20 or `cap`, the value to max_value; off-policy the value is multiplied by the ratio."""
    far = rows(dtype, ref_logp_nt=torch.full((2, 3), 1e4, dtype=dtype))
    close(valid(bind("penalty", {"name": "kl", "estimator": "k1"})(far)), [-20] * 5)
    close(valid(bind("penalty", {"name": "kl", "max_value": 10.0})(far)), [10] * 5)
    for name, channel in (("kl", "ref_logp_nt"), ("kl-old", "old_logp_nt")):
        for d in (1e4, -1e4):
            ends = rows(dtype, **{channel: torch.full((2, 3), d, dtype=dtype)})
            near = torch.tensor([11.0] * 5 if d > 0 else [-11.0] * 5, dtype=torch.float64)
            got = valid(bind("penalty", {"name": name, "cap": 11.0})(ends)).double()
            torch.testing.assert_close(got, near.exp() - near - 1)
    k, rho = [0.018731, 0, 0.148721, 0, 0.004837], [1.491825, 1, 0.670320, 1, 1.349859]
    got = bind("penalty", {"name": "kl", "off_policy": True})(rows(dtype))
    close(valid(got), [a * b for a, b in zip(k, rho)], 2e-6)


@example
def truncated_importance(dtype: torch.dtype) -> None:
    """exp(old - sampler): exp(.3), exp(-.2), exp(2) -> 2, and 1 where the sampler's value is not finite."""
    sampler = torch.tensor([[-1.2, -0.8, -3.6], [-0.4, -torch.inf, NAN]], dtype=dtype)
    close(valid(bind("weight", "tis")(rows(dtype, sampler_logp_nt=sampler))), [1.349859, 0.818731, 2, 1, 1])
    close(valid(bind("weight", {"name": "tis", "cap": 5.0})(rows(dtype, sampler_logp_nt=sampler)))[2], 5)


# ---- whole recipes


@example
def visual_rft_loss(dtype: torch.dtype) -> None:
    """Visual-RFT on the two rows: rewards 2 and 1, eps 1e-4, one update per rollout, k3 at 0.04.

    A = +-.5 / (.707107 + 1e-4) = +-.707007; rows: mean k3 (.018731 + .148721) / 3 and .004837 / 2;
    loss = [(-.707007 + .04 * .055818) + (.707007 + .04 * .002419)] / 2.
    """
    table = rows(dtype, reward_n=torch.tensor([2.0, 1.0], dtype=dtype))
    data = {
        "advantage": {"name": "grpo", "ddof": 1, "eps": 1e-4},
        "gate": "ppo-clip",
        "reduce": {"name": "seq-mean-token-mean", "rows": "all"},
        "penalties": [{"name": "kl", "coef": 0.04}],
    }
    objective = Objective(parse("x", data), channel="tokens", unit="decision", provides=frozenset({"logp_nt"}))
    channels = {k: v for k, v in table.channels.items() if k not in ("old_logp_nt", "eps_low_nt", "eps_high_nt")}
    prepared = objective.prepare(Table(channels, {"prompt": torch.tensor([9, 9])}))
    close(prepared["adv_nt"], [[0.707007, 0.707007, 0.707007], [-0.707007, -0.707007, 0]])
    coef, counts = objective.coefficients(prepared)
    outcome = objective.terms(prepared, coef, counts)
    close(outcome.terms[0].value(), 0.0)
    close(outcome.terms[1].value(), 0.04 * (0.167452 / 3 + 0.004837 / 2) / 2)
    close(outcome.loss(), 0.0011647)
