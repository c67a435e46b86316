"""Stages on a table of denoising steps: every advantage and gate that fits, and GRPO-Guard against its step form."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from image_gen.flow import divergence, steps, values, windows
from image_gen.flow import stages as native
from image_gen.flow.sigmas import sigma_table
from mmrl.core.objective import Objective
from mmrl.core.recipe import parse
from mmrl.core.registry import bind, find, stages
from mmrl.core.table import Table

BOTH = pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
N, S, K = 6, 8, 2
TABLE = sigma_table(steps=S)
WINDOW = windows.choose(name="random", steps=S, step=1, seed=0, options={"width": 3, "low": 2, "end": 6})
PROVIDES = frozenset({"logp_nt", "kl_nt", "mean_gap_nt", "supervised_nt", "dt_nt", "sigma_nt", "scored_nt"})
PASSES = ("logp_nt", "kl_nt", "mean_gap_nt", "supervised_nt")


def transitions(dtype: torch.dtype, seed: int) -> list[steps.Transition]:
    """The steps of N images of 3 x 4 elements, each from its own state, under one network."""
    rule = steps.make_rule(name="sde", noise=0.7, sigmas=TABLE)
    states, network = (torch.Generator().manual_seed(s) for s in (9, seed))
    found = []
    for s in range(S):
        x_n = torch.randn(N, 3, 4, generator=states, dtype=torch.float64)
        v_n = torch.randn(N, 3, 4, generator=states, dtype=torch.float64)
        v_n = v_n + 0.01 * torch.randn(N, 3, 4, generator=network, dtype=torch.float64)
        level, after = float(TABLE[s]), float(TABLE[s + 1])
        x_n, v_n = x_n.to(dtype), v_n.to(dtype)
        found.append(steps.transition(rule=rule, x_n=x_n, v_n=v_n, sigma=level, sigma_next=after))
    return found


def table_of_steps(dtype: torch.dtype = torch.float64) -> tuple[Table, list[steps.Transition], list[steps.Transition]]:
    """N images of two prompts, window of three steps. What was not trained is NaN in every pass."""
    old, new = transitions(dtype, 1), transitions(dtype, 2)
    noise = torch.Generator().manual_seed(3)
    nan = torch.full((N, S), torch.nan, dtype=dtype)
    logp, old_logp, gap, kl = (nan.clone() for _ in range(4))
    for s in WINDOW.trained:
        eps = torch.randn(N, 3, 4, generator=noise, dtype=torch.float64).to(dtype)
        x_next = steps.draw(step=old[s], noise_n=eps)
        logp[:, s] = steps.log_prob(step=new[s], x_next_n=x_next)
        old_logp[:, s] = steps.log_prob(step=old[s], x_next_n=x_next)
        gap[:, s] = steps.row_mean((new[s].mean_n - old[s].mean_n).square())
        kl[:, s] = divergence.gaussian_kl(step=new[s], ref_mean_n=old[s].mean_n)
    numbers = torch.Generator().manual_seed(4)
    dense = torch.rand(N, S, K, generator=numbers, dtype=torch.float64)
    dense[:, : WINDOW.start] = torch.nan
    dense[1, WINDOW.start + 1] = torch.nan
    mask = WINDOW.mask().expand(N, S).clone()
    channels: dict[str, Any] = {
        "logp_nt": logp,
        "old_logp_nt": old_logp,
        "sampler_logp_nt": old_logp,
        "mean_gap_nt": gap,
        "kl_nt": kl,
        "supervised_nt": torch.where(mask, gap, nan),
        "dt_nt": TABLE.diff().expand(N, S).clone(),
        "sigma_nt": torch.stack([t.diffusion_n.flatten()[0].double() for t in new]).expand(N, S).clone(),
        "scored_nt": (torch.arange(S) >= WINDOW.start).expand(N, S).clone(),
        "mask_nt": mask,
        "reward_ntk": dense,
        "reward_nk": dense[:, -1],
        "reward_n": dense[:, -1].sum(1),
        "weight_k": torch.ones(K, dtype=torch.float64),
        "prompt_mean_n": torch.full((N,), 0.9, dtype=torch.float64),
        "prompt_std_n": torch.full((N,), 0.4, dtype=torch.float64),
        "length_n": torch.full((N,), 3),
        "limit_n": torch.full((N,), S),
        "part_n": torch.zeros(N, dtype=torch.long),
    }
    return Table(channels, {"prompt": torch.tensor([0, 1, 0, 1, 1, 0])}), old, new


def fitting(kind: str) -> list[str]:
    """The stages of the toolkit for log-probs that are means over elements."""
    own = ("mmrl", "image_gen")
    return [n for n, s in stages(kind).items() if "element-mean" in s.units and s.fn.__module__.split(".")[0] in own]


def objective(advantage: str, gate: str) -> Objective:
    widths = {"eps_low_nt", "eps_high_nt"} & set(find("gate", gate).optional)
    data: dict[str, Any] = {"advantage": advantage, "gate": gate, "reduce": "token-mean"}
    if widths:
        data["bounds"] = {"name": "constant", "low": 1e-3, "high": 1e-3}
    return Objective(parse("mine", data), channel="steps", unit="element-mean", provides=PROVIDES, dense=True)


def gradients(made: Objective, table: Table) -> tuple[Tensor, dict[str, Tensor]]:
    leaves = {k: table[k].clone().requires_grad_() for k in PASSES}
    ready = made.widths_and_weights(made.prepare(table))
    coef, counts = made.coefficients(ready)
    loss = made.terms(ready.updated(leaves), coef, counts).loss()
    grads = torch.autograd.grad(loss, list(leaves.values()), allow_unused=True, materialize_grads=True)
    return loss, dict(zip(leaves, grads, strict=True))


def test_the_walk_is_not_empty() -> None:
    assert set(fitting("advantage")) >= {
        *("grpo", "dr-grpo", "batch-std", "rloo", "raw", "constant", "reinforce-pp-baseline"),
        *("grpo-per-reward", "tracked", "vgpo"),
    }
    assert set(fitting("gate")) >= {"ppo-clip", "cispo", "reinforce", "supervised", "grpo-guard"}
    assert "gspo" not in fitting("gate") and "reinforce-pp" not in fitting("advantage")


@pytest.mark.parametrize("gate", fitting("gate"))
@pytest.mark.parametrize("advantage", fitting("advantage"))
def test_every_stage_that_fits_trains_the_window_only(advantage: str, gate: str) -> None:
    """Finite loss; finite gradient, some of it not 0, in trained columns; none elsewhere, although NaN stands there."""
    table, _, _ = table_of_steps()
    made = objective(advantage, gate)
    assert made.needs_dense == (advantage == "vgpo") and made.scope == "decision"
    loss, grads = gradients(made, table)
    assert torch.isfinite(loss)
    trained = WINDOW.mask()
    adv = made.prepare(table)["adv_nt"]
    assert torch.isfinite(adv).all() and (adv[:, ~trained] == 0).all() and (adv[:, trained] != 0).any()
    for name, grad in grads.items():
        assert torch.isfinite(grad).all(), name
        assert (grad[:, ~trained] == 0).all(), name
        assert bool((grad != 0).any()) == (name in made.needs()[""]), name


@pytest.mark.parametrize("level", ["row", "row-sum"])
def test_a_ratio_of_the_row_is_over_its_trained_steps(level: str) -> None:
    table, _, _ = table_of_steps()
    trained = list(WINDOW.trained)
    diff = (table["logp_nt"] - table["old_logp_nt"])[:, trained].sum(1) / (3 if level == "row" else 1)
    ready = table.updated({"adv_nt": torch.ones(N, S, dtype=torch.float64)})
    got = bind("gate", {"name": "ppo-clip", "level": level})(ready)
    torch.testing.assert_close(got["ratio_nt"][:, trained], diff.exp()[:, None].expand(N, 3))
    made = bind("gate", {"name": "ppo-clip", "level": level})
    assert made.scope == "row"


@BOTH
def test_the_guard_is_that_of_the_steps(dtype: torch.dtype) -> None:
    """The gate on tables against `divergence`, which looks at one step of all images: ratio, weight, gradient."""
    table, old, new = table_of_steps(dtype)
    gap = table["mean_gap_nt"].clone().requires_grad_()
    logp = table["logp_nt"].clone().requires_grad_()
    adv = torch.randn(N, S, generator=torch.Generator().manual_seed(7), dtype=torch.float64).to(dtype)
    got = native.grpo_guard(
        logp_nt=logp,
        old_logp_nt=table["old_logp_nt"],
        mean_gap_nt=gap,
        sigma_nt=table["sigma_nt"],
        dt_nt=table["dt_nt"],
        adv_nt=adv,
        mask_nt=table["mask_nt"],
        eps_low_nt=1.0,
        eps_high_nt=1e9,
    )
    assert got["loss_nt"].dtype == dtype
    tolerance = {"rtol": 1e-12, "atol": 1e-12} if dtype == torch.float64 else {"rtol": 2e-5, "atol": 2e-6}
    for s in WINDOW.trained:
        passes = {"logp_n": table["logp_nt"][:, s], "old_logp_n": table["old_logp_nt"][:, s]}
        ratio_n = divergence.guard_ratio(step=new[s], old_mean_n=old[s].mean_n, **passes)
        weight = divergence.guard_weight(step=new[s])
        torch.testing.assert_close(got["ratio_nt"][:, s], ratio_n, **tolerance)
        torch.testing.assert_close(got["loss_nt"][:, s].detach(), -ratio_n * adv[:, s] * weight, **tolerance)
        scale = divergence.guard_scale(step=new[s])
        slopes = torch.autograd.grad(got["loss_nt"][:, s].sum(), [logp, gap], retain_graph=True)
        torch.testing.assert_close(slopes[0][:, s], -ratio_n * adv[:, s] * weight * scale, **tolerance)
        torch.testing.assert_close(slopes[1][:, s], -ratio_n * adv[:, s] * weight / (2 * scale), **tolerance)
    same = native.grpo_guard(
        logp_nt=table["old_logp_nt"],
        old_logp_nt=table["old_logp_nt"],
        mean_gap_nt=torch.zeros_like(gap),
        sigma_nt=table["sigma_nt"],
        dt_nt=table["dt_nt"],
        adv_nt=adv,
        mask_nt=table["mask_nt"],
    )
    assert (same["ratio_nt"] == 1).all(), "exactly 1 where the passes agree"


def test_the_guard_lifts_the_mean_ratio_back_to_one() -> None:
    """Samples of the old policy: the plain mean log-ratio is -gap / (2 std^2), the corrected one is 0."""
    generator = torch.Generator().manual_seed(5)
    rule = steps.make_rule(name="sde", noise=0.7, sigmas=TABLE)
    x_n, v_n = (torch.randn(1, 16, generator=generator, dtype=torch.float64).expand(4000, 16) for _ in range(2))
    where = {"sigma": float(TABLE[5]), "sigma_next": float(TABLE[6])}
    old = steps.transition(rule=rule, x_n=x_n, v_n=v_n, **where)
    new = steps.transition(rule=rule, x_n=x_n, v_n=v_n + 1.0, **where)
    x_next = steps.draw(step=old, noise_n=torch.randn(4000, 16, generator=generator, dtype=torch.float64))
    diff = steps.log_prob(step=new, x_next_n=x_next) - steps.log_prob(step=old, x_next_n=x_next)
    gap = steps.row_mean((new.mean_n - old.mean_n).square())
    scale = divergence.guard_scale(step=new)
    assert diff.mean() < -0.01
    got = divergence.corrected(log_ratio=diff, mean_gap=gap, scale=scale)
    assert abs(got.mean().item()) < 4 * got.std().item() / 4000**0.5


def test_vgpo_reads_the_window_as_the_pure_function_does() -> None:
    """Weighted components summed, NaN filled, values over all steps from the window on, advantages inside it."""
    table, _, _ = table_of_steps()
    table = table.updated({"weight_k": torch.tensor([1.0, 0.25], dtype=torch.float64)})
    reward = table["reward_ntk"][:, :, 0] + 0.25 * table["reward_ntk"][:, :, 1]
    want = values.vgpo(reward_ns=reward, key_n=table.keys["prompt"], start=WINDOW.start)
    got = bind("advantage", "vgpo")(table)
    trained = WINDOW.mask()
    torch.testing.assert_close(got["adv_nt"][:, trained], want.advantage_ns[:, trained], rtol=1e-12, atol=1e-12)
    assert (got["adv_nt"][:, ~trained] == 0).all() and want.advantage_ns[:, WINDOW.trained[-1] + 1 :].any()
    without = table.updated({"reward_ntk": table["reward_ntk"].clone()})
    without["reward_ntk"][2] = torch.nan
    assert not bind("advantage", "vgpo")(without)["adv_nt"][2].any(), "no reward at any step"


def test_channels_of_steps_are_cut_with_them() -> None:
    """A piece of one step of two images holds that column of every table, and the steps' own numbers."""
    table, _, _ = table_of_steps()
    s = WINDOW.trained[1]
    piece = table.piece(torch.tensor([1, 4]), torch.tensor([s]))
    for name in ("dt_nt", "sigma_nt", "scored_nt", "mean_gap_nt", "kl_nt"):
        assert piece[name].shape == (2, 1) and torch.equal(piece[name][:, 0], table[name][[1, 4], s]), name
    assert piece["reward_ntk"].shape == (2, 1, K) and piece["prompt_mean_n"].shape == (2,)
    assert torch.equal(piece["reward_ntk"][:, 0].nan_to_num(), table["reward_ntk"][[1, 4], s].nan_to_num())
    gate = bind("gate", {"name": "grpo-guard", "adv_clip": 5.0})
    ready = table.updated({"adv_nt": torch.ones(N, S, dtype=torch.float64)})
    whole = gate(ready)["loss_nt"][[1, 4], s]
    assert torch.equal(gate(ready.piece(torch.tensor([1, 4]), torch.tensor([s])))["loss_nt"][:, 0], whole)
