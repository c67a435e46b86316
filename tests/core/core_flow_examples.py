"""Worked numbers of the stages that came with image models; continues core_examples.py."""

from __future__ import annotations

import math

import torch
from core_examples import NAN, close, example, rewards
from core_objective_checks import FLOW
from torch import Tensor

from image_gen.flow import values
from image_gen.flow.divergence import corrected
from mmrl.core.objective import Objective
from mmrl.core.recipe import parse
from mmrl.core.registry import bind
from mmrl.core.table import Table

#: The page's rewards of three steps of two images of one prompt.
STEPS = [[0.2, 0.4, 0.8], [0.4, 0.4, 0.4]]
VGPO = {"name": "vgpo", "gamma": 0.5, "k": 0.1, "n_abs": 2}


def steps_table(
    dtype: torch.dtype, reward: list[list[float]], *, scored: list[int] | None = None, trained: list[int] | None = None
) -> Table:
    n, t = len(reward), len(reward[0])
    everywhere = list(range(t))
    return Table(
        {
            "reward_ntk": torch.tensor(reward, dtype=dtype)[:, :, None],
            "weight_k": torch.ones(1, dtype=dtype),
            "mask_nt": torch.tensor([[s in (trained or everywhere) for s in range(t)]] * n),
            "scored_nt": torch.tensor([[s in (scored or everywhere) for s in range(t)]] * n),
        },
        {"prompt": torch.zeros(n, dtype=torch.long)},
    )


def vgpo(table: Table, **options: object) -> dict[str, Tensor]:
    result: dict[str, Tensor] = bind("advantage", {**VGPO, **options})(table)
    return result


@example
def vgpo_of_the_paper(dtype: torch.dtype) -> None:
    got = vgpo(steps_table(dtype, STEPS))
    assert got["adv_nt"].dtype == dtype
    close(got["adv_nt"], [[-0.767458, 1.177092, 1.090364], [1.319299, -0.994236, -0.705530]], 2e-6)
    assert got["log/unguarded_rewards"] == 0


@example
def vgpo_components_are_weighted(dtype: torch.dtype) -> None:
    """Half of one component and all of another that applies to one step only; a step where none applies is filled."""
    whole = torch.tensor(STEPS, dtype=dtype)
    parts = torch.stack([2 * whole, torch.full_like(whole, torch.nan)], 2)
    parts[0, 1] = torch.tensor([0.4, 0.2], dtype=dtype)  # 0.5 * 0.4 + 0.2
    table = steps_table(dtype, STEPS)
    two = table.updated({"reward_ntk": parts, "weight_k": torch.tensor([0.5, 1.0], dtype=dtype)})
    close(vgpo(two)["adv_nt"], vgpo(table)["adv_nt"].tolist())
    parts[1, 1] = torch.nan  # the mean of 0.4 and 0.4
    close(vgpo(two)["adv_nt"], vgpo(table)["adv_nt"].tolist())


@example
def vgpo_before_a_window(dtype: torch.dtype) -> None:
    """Steps 2 and 3 stochastic, 2 trained: values from step 2 on, also over the steps after the window."""
    late = [[NAN, NAN, *row] for row in STEPS]
    table = steps_table(dtype, late, scored=[2, 3, 4], trained=[2])
    close(vgpo(table, n_abs=4)["adv_nt"], [[0, 0, -0.767458, 0, 0], [0, 0, 1.319299, 0, 0]], 2e-6)
    # step 3 is the first trained one although step 2 is stochastic: the weight is the mean over steps 2 to 4
    table = steps_table(dtype, late, scored=[2, 3, 4], trained=[3])
    close(vgpo(table, n_abs=4)["adv_nt"][:, 3], [1.177092, -0.994236], 2e-6)
    close(vgpo(table, n_abs=3)["adv_nt"][:, 3], [1.090909 * 0.999001, -1.058824 * 0.999001], 2e-6)


@example
def vgpo_scores_every_other_step(dtype: torch.dtype) -> None:
    """What was not scored lies on the line; before the first scored step its reward is held."""
    full = steps_table(dtype, [[0.3, 0.3, 0.5, 0.7], [0.4, 0.4, 0.3, 0.2]])
    some = steps_table(dtype, [[NAN, 0.3, 99.0, 0.7], [NAN, 0.4, NAN, 0.2]], scored=[1, 3])
    close(vgpo(some)["adv_nt"], vgpo(full)["adv_nt"].tolist())


@example
def vgpo_shares(dtype: torch.dtype) -> None:
    """The absolute term's part of the mass, over the trained step 0; negative rewards without a guard."""
    got = vgpo(steps_table(dtype, STEPS, trained=[0]))
    absolute = 0.818182 * 0.06 + 1.235294 * 0.07
    close(got["log/absolute_share"], absolute / (absolute + 0.998004 * (0.818182 + 1.235294)), 2e-6)
    table = steps_table(dtype, [[-0.2, 0.4, 0.8], [-0.4, NAN, 0.4]])
    close(vgpo(table)["log/unguarded_rewards"], 0.4)
    for guard in ({"omega_clip": [0.2, 5.0]}, {"reward_shift": -1.0}):
        assert vgpo(table, **guard)["log/unguarded_rewards"] == 0


@example
def interpolation(dtype: torch.dtype) -> None:
    value = torch.tensor([[9.0, 1.0, 9.0, 9.0, 4.0, 2.0, 9.0]], dtype=dtype)
    known = torch.tensor([0, 1, 0, 0, 1, 1, 0]).bool()
    close(values.interpolated(value_ns=value, known_s=known), [[1, 1, 2, 3, 4, 2, 2]])
    assert torch.equal(values.interpolated(value_ns=value, known_s=torch.ones(7).bool()), value)
    only = torch.tensor([0, 0, 0, 0, 1, 0, 0]).bool()
    close(values.interpolated(value_ns=value * torch.where(only, 1.0, NAN), known_s=only), [[4] * 7])


@example
def values_are_detached(dtype: torch.dtype) -> None:
    leaf = torch.tensor(STEPS, dtype=dtype).requires_grad_()
    assert not values.discounted(reward_ns=leaf, gamma=0.5).requires_grad
    assert not values.interpolated(value_ns=leaf, known_s=torch.tensor([1, 0, 1])).requires_grad


def guard_table(dtype: torch.dtype, **changes: object) -> Table:
    """Two steps of one image: the page's 0.8 -> 0.6 at sigma_t 1.4, and a finer one."""
    channels: dict[str, object] = {
        "logp_nt": torch.tensor([[-0.5, -0.7]], dtype=dtype),
        "old_logp_nt": torch.tensor([[-0.6, -0.6]], dtype=dtype),
        "mean_gap_nt": torch.tensor([[0.02, 0.003]], dtype=dtype),
        "sigma_nt": torch.tensor([[1.4, 0.5]], dtype=dtype),
        "dt_nt": torch.tensor([[-0.2, -0.04]], dtype=dtype),
        "adv_nt": torch.tensor([[1.0, -2.0]], dtype=dtype),
        "mask_nt": torch.ones(1, 2).bool(),
        "eps_low_nt": 0.01,
        "eps_high_nt": 0.02,
    }
    return Table({**channels, **changes})


@example
def grpo_guard(dtype: torch.dtype) -> None:
    """s = 1.4 sqrt(.2) = .626099 and .5 sqrt(.04) = .1; bias .02 / .784 = .025510 and .003 / .02 = .15;
    log-ratios (.1 + .025510) .626099 = .078582 and (-.1 + .15) .1 = .005; widths .2 and .04."""
    out = bind("gate", "grpo-guard")(guard_table(dtype))
    close(out["ratio_nt"], [[math.exp(0.0785817), math.exp(0.005)]])
    close(out["loss_nt"], [[-1.02 / 0.2, 2 * math.exp(0.005) / 0.04]], 1e-5)
    close(out["clip_high_nt"], [[1, 0]])
    plain = bind("gate", {"name": "grpo-guard", "reweight": False})(guard_table(dtype))
    close(plain["loss_nt"], [[-1.02, 2 * math.exp(0.005)]], 1e-5)
    short = bind("gate", {"name": "grpo-guard", "adv_clip": 0.5})(guard_table(dtype))
    close(short["loss_nt"], [[-0.51 / 0.2, 0.5 * math.exp(0.005) / 0.04]], 1e-5)


@example
def guard_of_a_lost_log_prob(dtype: torch.dtype) -> None:
    """A behaviour log-prob that is not finite: ratio 1, whatever the distance of the means."""
    lost = torch.tensor([[-math.inf, -0.6]], dtype=dtype)
    out = bind("gate", "grpo-guard")(guard_table(dtype, old_logp_nt=lost))
    close(out["ratio_nt"][0, 0], 1.0)


@example
def the_scale_is_detached(dtype: torch.dtype) -> None:
    ratio, gap, scale = (torch.tensor([v], dtype=dtype).requires_grad_() for v in (0.1, 0.02, 0.5))
    got = corrected(log_ratio=ratio, mean_gap=gap, scale=scale)
    close(got.detach(), [(0.1 + 0.02 / 0.5) * 0.5])
    slopes = torch.autograd.grad(got.sum(), [ratio, gap, scale], allow_unused=True, materialize_grads=True)
    close(torch.cat(slopes), [0.5, 1.0, 0.0])


@example
def advantages_are_limited(dtype: torch.dtype) -> None:
    """Flow-GRPO's limit: A = 3 and -3 become 1 and -1; the ratios are 1.1."""
    table = Table(
        {
            "logp_nt": torch.full((1, 2), math.log(1.1), dtype=dtype),
            "old_logp_nt": torch.zeros(1, 2, dtype=dtype),
            "adv_nt": torch.tensor([[3.0, -3.0]], dtype=dtype),
            "mask_nt": torch.ones(1, 2).bool(),
        }
    )
    close(bind("gate", {"name": "ppo-clip", "adv_clip": 1.0})(table)["loss_nt"], [[-1.1, 1.1]])
    close(bind("gate", {"name": "ppo-clip", "adv_clip": 9.0})(table)["loss_nt"], [[-3.3, 3.3]])
    close(bind("gate", {"name": "ppo-clip", "level": "row-sum"})(table)["ratio_nt"], [[1.21, 1.21]])
    close(bind("gate", {"name": "ppo-clip", "level": "row"})(table)["ratio_nt"], [[1.1, 1.1]])


@example
def per_reward(dtype: torch.dtype) -> None:
    """Components 1, 0 and 0, 100 of one pair, weights 1 and 0.5: deviation .707107 each, so +-.707107 (1 - .5)."""
    table = Table(
        {
            "reward_nk": torch.tensor([[1.0, 0.0], [0.0, 100.0]], dtype=dtype),
            "weight_k": torch.tensor([1.0, 0.5], dtype=dtype),
        },
        {"prompt": torch.tensor([3, 3])},
    )
    close(bind("advantage", {"name": "grpo-per-reward", "eps": 0.0})(table), [0.353553, -0.353553])


@example
def tracked(dtype: torch.dtype) -> None:
    """(1 - .4) / (.2 + .1), (0 - .5) / (.15 + .1); no reward: 0."""
    table = rewards(dtype, [1.0, 0.0, NAN], [0, 1, 1]).updated(
        {
            "prompt_mean_n": torch.tensor([0.4, 0.5, 0.5], dtype=torch.float64),
            "prompt_std_n": torch.tensor([0.2, 0.15, 0.15], dtype=torch.float64),
        }
    )
    close(bind("advantage", {"name": "tracked", "eps": 0.1})(table), [2, -2, 0])


def flow_objective(advantage: object, *, dense: bool = True) -> Objective:
    data = {"advantage": advantage, "gate": {"name": "ppo-clip"}, "reduce": "token-mean"}
    recipe = parse("x", {**data, "bounds": {"name": "constant", "low": 1e-4, "high": 1e-4}})
    return Objective(recipe, channel="steps", unit="element-mean", provides=FLOW, dense=dense)


@example
def numbers_for_the_log(dtype: torch.dtype) -> None:
    """What the advantage says of the whole batch survives preparation and cutting, and other advantages say nothing."""
    table = steps_table(dtype, STEPS)
    objective = flow_objective(VGPO)
    ready = objective.prepare(table)
    told = objective.told(ready.rows(torch.tensor([1])))
    assert set(told) == {"absolute_share", "unguarded_rewards"} and 0 < told["absolute_share"] < 1
    plain = flow_objective("grpo")
    assert plain.told(plain.prepare(table.updated({"reward_n": torch.tensor([1.0, 0.0], dtype=dtype)}))) == {}


@example
def dense_rewards_are_asked_for(dtype: torch.dtype) -> None:
    assert flow_objective(VGPO).needs_dense and not flow_objective("grpo").needs_dense
    assert flow_objective("tracked").needs_tracker and not flow_objective("grpo").needs_tracker
