"""Properties of stages as callables: each takes a case and a dtype and raises AssertionError where it does not hold."""

from __future__ import annotations

import math
from collections.abc import Callable

import core_flow_relations  # noqa: F401  (registers relations)
import core_segment_relations  # noqa: F401
import core_video_relations  # noqa: F401
import torch
from core_cases import EXEMPT, cases, takes_widths
from core_objective_checks import micro_batches_add_up
from core_relations import RELATIONS
from core_world import (
    FLAT_GROUP,
    KEY,
    NO_REWARD,
    SINGLE,
    Case,
    N,
    T,
    assert_same,
    loss_and_gradients,
    main_output,
    outputs,
    pass_gradients,
)
from torch import Tensor

from mmrl.core.channels import carries_gradient
from mmrl.core.objective import LOGGED
from mmrl.core.table import Table

Check = Callable[[Case, torch.dtype], None]
CHECKS: dict[str, tuple[Check, tuple[str, ...]]] = {}
ALL = ("shape", "advantage", "select", "weight", "bounds", "gate", "penalty", "reduce")


def about(*kinds: str) -> Callable[[Check], Check]:
    def register(fn: Check) -> Check:
        CHECKS[fn.__name__] = (fn, kinds)
        return fn

    return register


def table_of_checks() -> list[tuple[str, Case]]:
    """Every (property, case) pair that must hold."""
    return [
        (name, case) for name, (_, kinds) in CHECKS.items() for case in cases(*kinds) if (name, *case.key) not in EXEMPT
    ]


# ---- order of rows


@about(*ALL)
def order_of_rows_is_irrelevant(case: Case, dtype: torch.dtype) -> None:
    """Any permutation of the rows, with the keys renamed, permutes the result and nothing else."""
    table = case.table(dtype)
    order = torch.randperm(N, generator=torch.Generator().manual_seed(5))
    moved = table.rows(order)
    moved.keys["prompt"] = 1000 - 7 * moved.keys["prompt"]
    expected, got = outputs(case, table), outputs(case, moved)
    for name, value in expected.items():
        if isinstance(value, Tensor) and value.dim():
            value = value[order]
        assert_same(got[name], value, dtype, name)


@about("advantage", "select", "weight", "gate", "penalty")
def declared_scope_is_enough(case: Case, dtype: torch.dtype) -> None:
    """A piece that covers the stage's declared scope gives the piece of the whole result: the streaming update rests
    on it. decision: one column of one row; segment: one segment of one row; row: one row; group: one group."""
    table, scope = case.table(dtype), case.bound().scope
    whole = outputs(case, table)
    cuts: dict[str, list[tuple[Tensor, Tensor | None]]] = {
        "decision": [(torch.tensor([i]), torch.tensor([t])) for i in (0, 7) for t in (0, 2, 4)],
        "segment": [
            (torch.tensor([i]), (table.segments["step"][i] == s).nonzero()[:, 0]) for i in (0, 1, 7) for s in range(3)
        ],
        "row": [(torch.tensor([i]), None) for i in range(N)],
        "group": [((table.keys["prompt"] == k).nonzero()[:, 0], None) for k in set(KEY)],
        "batch": [(torch.arange(N), None)],
    }
    for rows, columns in cuts[scope]:
        part = outputs(case, table.piece(rows, columns))
        for name, value in whole.items():
            if name.startswith(LOGGED):
                continue  # a number of the whole batch
            value = value[rows]
            if columns is not None and value.dim() > 1:
                value = value[:, columns]
            assert_same(part[name], value, dtype, f"{name} of rows {rows.tolist()}")


# ---- masks


def junk(table: Table, value: float) -> Table:
    """The same table with `value` in every masked entry of every [N,T] channel."""
    mask = table["mask_nt"]
    dirty = {
        k: torch.where(mask, v, torch.full_like(v, value))
        for k, v in table.channels.items()
        if isinstance(v, Tensor) and v.shape == mask.shape and v.is_floating_point()
    }
    return table.updated(dirty)


@about("advantage", "select", "weight", "gate", "penalty", "reduce")
def masked_decisions_have_no_influence(case: Case, dtype: torch.dtype) -> None:
    """Not through values, not through gradients, not even as NaN or infinity."""
    table = case.table(dtype)
    mask = table["mask_nt"]
    clean = outputs(case, table)
    for value in (math.nan, math.inf, -math.inf, 1e30):
        dirty = outputs(case, junk(table, value))
        for name, expected in clean.items():
            if isinstance(expected, Tensor) and expected.shape == mask.shape:
                assert_same(dirty[name][mask], expected[mask], dtype, f"{name} with {value} where masked")
            else:
                assert_same(dirty[name], expected, dtype, f"{name} with {value} where masked")
        if case.kind in ("gate", "penalty"):
            for reduction in ("token-mean", "seq-mean-token-mean"):
                loss, grads = loss_and_gradients(case, table, reduction)
                dirty_loss, dirty_grads = loss_and_gradients(case, junk(table, value), reduction)
                assert_same(dirty_loss, loss, dtype, f"loss with {value} where masked")
                for name in grads:
                    assert_same(dirty_grads[name], grads[name], dtype, f"gradient of {name} with {value} where masked")
                    if grads[name].shape == mask.shape:
                        assert (grads[name][~mask] == 0).all(), f"gradient of {name} where masked"
            widths = {k: table[k] for k in ("eps_low_nt", "eps_high_nt") if k in table}
            loss_nt = main_output(case, junk(table, value).updated(widths))
            assert (loss_nt[~mask] == 0).all(), f"loss where masked, with {value} there"


@about("reduce")
def masked_decisions_count_nothing(case: Case, dtype: torch.dtype) -> None:
    table = case.table(dtype)
    out = outputs(case, table)
    assert (out["coef_nt"][~table["mask_nt"]] == 0).all()
    assert (out["coef_nt"][table["mask_nt"]] > 0).all()
    empty = table.updated({"mask_nt": torch.zeros_like(table["mask_nt"])})
    assert (outputs(case, empty)["coef_nt"] == 0).all()


# ---- rewards


@about("advantage")
def equal_rewards_give_zero(case: Case, dtype: torch.dtype) -> None:
    """Exactly 0 where all rewards of the group are equal, also when their mean is not exact in binary."""
    table = case.table(dtype)
    assert (main_output(case, table)[torch.tensor(KEY) == FLAT_GROUP] == 0).all(), "the flat group of the batch"
    for value in (0.1, 1 / 3, -1e6):
        flat = table.updated({name: torch.full_like(table[name], value) for name in ("reward_n", "reward_nk")})
        adv = main_output(case, flat)
        if case.options.get("singleton") == "raw":
            adv = adv[torch.arange(N) != SINGLE]
        assert (adv == 0).all(), f"all rewards {value}"


@about("advantage", "select")
def no_reward_no_influence(case: Case, dtype: torch.dtype) -> None:
    """Rows without any reward get 0 and leave every statistic: the rest is as if they were not there."""
    table = case.table(dtype)
    keep = torch.arange(N) != NO_REWARD
    expected = main_output(case, table.rows(keep.nonzero()[:, 0]))
    got = main_output(case, table)
    assert_same(got[keep], expected, dtype)
    if case.kind == "advantage":
        assert (got[~keep] == 0).all()
    nothing = {name: table[name] * math.nan for name in ("reward_n", "reward_nk", "reward_ntk")}
    assert torch.isfinite(main_output(case, table.updated(nothing)).double()).all(), "no row has a reward"


# ---- numbers


@about("advantage", "shape", "weight", "gate", "penalty")
def dtype_is_kept(case: Case, dtype: torch.dtype) -> None:
    """float32 and float64 stay; advantages of half-precision rewards are float32."""
    for name, value in outputs(case, case.table(dtype)).items():
        assert value.dtype == dtype, name
    if case.kind == "advantage":
        assert main_output(case, case.table(torch.bfloat16)).dtype == torch.float32


@about(*ALL)
def results_are_finite(case: Case, dtype: torch.dtype) -> None:
    """At valid decisions and rewarded rows, even where a log-ratio is +-1000 or a behaviour log-prob is -inf."""
    table = case.table(dtype)
    mask = table["mask_nt"]
    for shift in (1000.0, -1000.0):
        for sign in (1, -1):
            far = table.updated(
                {
                    "logp_nt": table["old_logp_nt"] + shift,
                    "ref_logp_nt": table["old_logp_nt"] + 2 * shift,
                    "sampler_logp_nt": table["old_logp_nt"] - shift,
                    "adv_nt": table["adv_nt"].abs() * sign,
                }
            )
            _finite(case, far, mask)
    for value in (-math.inf, math.inf, math.nan):
        gone = table["old_logp_nt"].clone()
        gone[3, 1] = value
        dropped = mask & torch.isfinite(gone)
        lost = {"old_logp_nt": gone, "sampler_logp_nt": gone, "ref_logp_nt": gone}
        _finite(case, table.updated({**lost, "mask_nt": dropped}), dropped)
        if case.kind in ("gate", "penalty", "weight"):
            _finite(case, table.updated(lost), mask)


def _finite(case: Case, table: Table, mask: Tensor) -> None:
    rewarded = torch.isfinite(table["reward_n"])
    for name, value in outputs(case, table).items():
        if not isinstance(value, Tensor):
            continue
        if value.shape == mask.shape:
            value = value[mask]
        elif case.kind == "shape":
            value = value[rewarded]
        assert torch.isfinite(value.double()).all(), name
    if case.kind in ("gate", "penalty"):
        for name, grad in pass_gradients(case, table).items():
            assert torch.isfinite(grad).all(), f"gradient of {name}"


@about(*ALL)
def inputs_are_left_alone(case: Case, dtype: torch.dtype) -> None:
    """No tensor of the table is modified in place."""
    table = case.table(dtype)
    before = {k: v.clone() if isinstance(v, Tensor) else v for k, v in table.channels.items()}
    keys, segments = table.keys["prompt"].clone(), table.segments["step"].clone()
    outputs(case, table)
    for name, value in before.items():
        assert_same(table[name], value, dtype, name)
    assert torch.equal(table.keys["prompt"], keys) and torch.equal(table.segments["step"], segments)


# ---- gradients


def _leaves(table: Table) -> dict[str, Tensor]:
    return {
        k: v.clone().requires_grad_()
        for k, v in table.channels.items()
        if isinstance(v, Tensor) and v.is_floating_point()
    }


@about("shape", "advantage", "select", "weight", "bounds", "reduce")
def results_are_detached(case: Case, dtype: torch.dtype) -> None:
    """Advantages, weights, shaped rewards and coefficients are constants, whatever went in."""
    table = case.table(dtype)
    for name, value in outputs(case, table.updated(_leaves(table))).items():
        assert not (isinstance(value, Tensor) and value.requires_grad), name


@about("gate", "penalty")
def gradient_flows_through_the_current_pass_only(case: Case, dtype: torch.dtype) -> None:
    """Some gradient through the current pass; none through old, ref, advantage and widths; diagnostics are detached."""
    table = case.table(dtype)
    for name, value in outputs(case, table.updated(_leaves(table))).items():
        assert value.requires_grad == (name == "loss_nt"), name
    grads = loss_and_gradients(case, table)[1]
    for name, grad in grads.items():
        if not carries_gradient(name):
            assert (grad == 0).all(), f"gradient reaches {name}"
    assert any((g != 0).any() for n, g in grads.items() if carries_gradient(n)), "no gradient at all"


def unit_steps(n: int, t: int, dtype: torch.dtype) -> dict[str, Tensor]:
    """Gaussian steps of deviation 1 whose mean has not moved: a correction by them changes nothing."""
    one = torch.ones(n, t, dtype=dtype)
    return {"dt_nt": -one, "sigma_nt": one, "mean_gap_nt": 0 * one}


def clipped_advantage(case: Case, adv: Tensor) -> Tensor:
    limit = float(case.options.get("adv_clip") or math.inf)
    return adv.clamp(-limit, limit)


def shared_ratio(case: Case, table: Table) -> Tensor:
    """How many decisions' losses hold the whole log-ratio of each: those of its row or segment where the level is a
    product. [N,T] or [N,1]"""
    mask = table["mask_nt"]
    if case.name not in ("ppo-clip", "gspo"):
        return torch.ones(N, 1)
    if case.options.get("level") == "row-sum":
        return mask.sum(1, keepdim=True).clamp(min=1)
    if case.options.get("level") == "segment-sum:step":
        alike_ntu = table.segments["step"][:, :, None] == table.segments["step"][:, None, :]
        return (alike_ntu & mask[:, None, :]).sum(2).clamp(min=1)
    return torch.ones(N, 1)


@about("gate")
def on_policy_gradient(case: Case, dtype: torch.dtype) -> None:
    """At ratio 1 every policy-gradient gate has the gradient -A / denominator (Gaussian steps: at deviation 1)."""
    table = case.table(dtype)
    adv = table["adv_nt"][:, :1].expand(N, T)  # constant on the row, as every gate accepts
    table = table.updated({"logp_nt": table["old_logp_nt"].clone(), "adv_nt": adv, **unit_steps(N, T, dtype)})
    mask = table["mask_nt"]
    grad = loss_and_gradients(case, table, "seq-mean-token-mean")[1]["logp_nt"]
    length = mask.sum(1, keepdim=True).clamp(min=1)
    length = length / shared_ratio(case, table)
    if case.options.get("loss_norm") == "length":
        length = length * mask.sum(1, keepdim=True).clamp(min=1)
    adv = clipped_advantage(case, adv)
    rows = (mask.sum(1) > 0).sum()
    expected = torch.where(mask, -adv / length / rows, torch.zeros_like(adv))
    assert_same(grad, expected, dtype)


@about("gate")
def clip_regions(case: Case, dtype: torch.dtype) -> None:
    """Where the gradient is zero and where it is alive, by the sign of A and the side of the ratio.

    One row for each (A, log-ratio); widths 0.2 / 0.3; all decisions of a row alike, so every ratio level agrees.
    """
    adv_n = torch.tensor([1.0, 1.0, 1.0, 1.0, -1.0, -1.0, -1.0, -1.0], dtype=dtype)
    ratio_n = torch.tensor([1.4, 1.25, 0.85, 0.5, 3.5, 1.25, 0.85, 0.5], dtype=dtype)
    mask = torch.ones(8, 2, dtype=torch.bool)
    channels = {
        "logp_nt": ratio_n.log()[:, None].repeat(1, 2),
        "old_logp_nt": torch.zeros(8, 2, dtype=dtype),
        "adv_nt": adv_n[:, None].repeat(1, 2),
        "mask_nt": mask,
        "eps_low_nt": 0.2,
        "eps_high_nt": 0.3,
        **unit_steps(8, 2, dtype),
        **case.given,
    }
    if case.options.get("level") in ("row-sum", "segment-sum:step"):
        channels["logp_nt"] = channels["logp_nt"] / 2  # the two decisions of a row add up
    alive = torch.ones(8, dtype=torch.bool)
    if case.name in ("ppo-clip", "gspo", "grpo-guard"):
        alive[0] = alive[7] = False  # A > 0 above, A < 0 below
        capped = min(case.options.get("dual_clip") or math.inf, case.options.get("delta") or math.inf)
        alive[(adv_n < 0) & (ratio_n > capped)] = False  # only a dual clip stops A < 0 above
    table = Table(channels, {}, {"step": torch.zeros(8, 2, dtype=torch.long)})
    grad = loss_and_gradients(case, table)[1]["logp_nt"]
    assert torch.equal((grad != 0).all(1), alive), f"alive {(grad != 0).all(1).tolist()}"
    assert torch.equal((grad != 0).any(1), alive)
    assert (grad * adv_n[:, None] <= 0).all(), "the gradient must raise what has a positive advantage"
    out = outputs(case, table)
    if "clip_low_nt" in out and case.name != "cispo":
        assert out["clip_low_nt"][:, 0].tolist() == [0, 0, 0, 0, 0, 0, 0, 1]
        assert out["clip_high_nt"][:, 0].tolist() == [1, 0, 0, 0, 0, 0, 0, 0]


@about("gate")
def widths_as_number_or_table(case: Case, dtype: torch.dtype) -> None:
    """A width given as a number equals the [N,T] table full of it, and a table acts decision by decision."""
    if not takes_widths(case):
        return
    table = case.table(dtype)
    low, high = (0.7, 1.2) if case.options.get("bound") == "cap" else (0.05, 0.1)
    number = table.updated({"eps_low_nt": low, "eps_high_nt": high})
    full = table.updated({k: torch.full((N, T), number[k], dtype=dtype) for k in ("eps_low_nt", "eps_high_nt")})
    assert_same(main_output(case, full), main_output(case, number), dtype)
    assert_same(pass_gradients(case, full)["logp_nt"], pass_gradients(case, number)["logp_nt"], dtype)
    one = {k: full[k].clone() for k in ("eps_low_nt", "eps_high_nt")}
    changed = torch.zeros(N, T, dtype=torch.bool)
    changed[3, 2] = changed[7, 4] = True
    for value in one.values():
        value[changed] *= 1.7
    got = main_output(case, full.updated(one))
    assert_same(got[~changed], main_output(case, full)[~changed], dtype)
    wide = main_output(case, table.updated({"eps_low_nt": low * 1.7, "eps_high_nt": high * 1.7}))
    assert_same(got[changed], wide[changed], dtype)


# ---- sums


@about("reduce")
def split_does_not_matter(case: Case, dtype: torch.dtype) -> None:
    """How rows are cut into micro-batches leaves coefficients and count as they are."""
    table = case.table(dtype)
    other = table.updated({"part_n": torch.zeros(N, dtype=torch.long)})
    for name, value in outputs(case, table).items():
        assert_same(outputs(case, other)[name], value, dtype, name)


@about("advantage", "shape", "select", "weight", "gate", "penalty", "reduce")
def pieces_of_an_update_add_up(case: Case, dtype: torch.dtype) -> None:
    """Terms of pieces, with the global counts, sum to the loss and the gradient of the whole table."""
    micro_batches_add_up(case, dtype)


@about(*ALL)
def reduces_to_what_it_says(case: Case, dtype: torch.dtype) -> None:
    """The stage's own relation to a plainer method (see RELATIONS)."""
    RELATIONS[case.key](case, dtype)
