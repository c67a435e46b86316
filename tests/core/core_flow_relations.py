"""What the stages that came with image models reduce to; continues core_relations.py."""

from __future__ import annotations

import math
from typing import Any

import torch
from core_relations import MANY, of
from core_world import KEY, NO_REWARD, Case, N, T, assert_same, loss_and_gradients, main_output, outputs

from mmrl.core.groups import Groups, total_reward
from mmrl.core.reductions import reduce_loss
from mmrl.core.registry import bind
from mmrl.core.table import Table


@of("advantage", "grpo-per-reward")
def _grpo_per_reward(case: Case, dtype: torch.dtype) -> None:
    """One component: GRPO. Several: their weighted sum, whatever the scale of each; weight 0: as if absent."""
    table = case.table(dtype)
    grpo = bind("advantage", {"name": "grpo", **case.options})
    parts = [grpo(table.updated({"reward_n": table["reward_nk"][:, k]})) for k in range(2)]
    assert_same(main_output(case, table), parts[0] + 0.5 * parts[1], dtype)
    first = table.updated({"weight_k": torch.tensor([1.0, 0.0], dtype=dtype)})
    assert_same(main_output(case, first), parts[0], dtype)
    nan = first["reward_nk"].clone()
    nan[:, 1] = torch.nan
    assert_same(main_output(case, first.updated({"reward_nk": nan})), parts[0], dtype)
    scaled = table.updated({"reward_nk": table["reward_nk"] * torch.tensor([1.0, 1000.0], dtype=dtype)})
    free = case.but(eps=0.0)
    torch.testing.assert_close(main_output(free, scaled)[MANY], main_output(free, table)[MANY], rtol=1e-4, atol=1e-4)


@of("advantage", "tracked")
def _tracked(case: Case, dtype: torch.dtype) -> None:
    """Given the group's own statistics: GRPO with ddof 0. eps stands beside the deviation, not inside it."""
    table, key = case.table(dtype), torch.tensor(KEY)
    reward = table["reward_n"]
    groups = Groups(key, torch.isfinite(reward))
    mean, std = groups.mean_and_std(reward.nan_to_num(), ddof=0)
    own = table.updated({"prompt_mean_n": mean, "prompt_std_n": std})
    eps = float(case.options.get("eps", 1e-6))
    grpo = bind("advantage", {"name": "grpo", "ddof": 0, "eps": eps})(own)
    rows = MANY & (std > 1e-3)
    torch.testing.assert_close(main_output(case, own)[rows], grpo[rows], rtol=1e-4, atol=1e-5)
    back = main_output(case, table) * (table["prompt_std_n"] + eps) + table["prompt_mean_n"]
    rewarded = torch.isfinite(reward)
    torch.testing.assert_close(back[rewarded], reward[rewarded], rtol=1e-4, atol=1e-4)


def vgpo_by_loops(case: Case, table: Table) -> list[list[float]]:
    """The formulas of arXiv 2512.12387 (and the reconstructed placements), number by number."""
    published: dict[str, Any] = {"gamma": 0.9, "k": 0.1, "n_abs": 5, "eps": 1e-4, "omega_level": "sample"}
    guards: dict[str, Any] = {"omega_clip": None, "reward_shift": None, "form": "outer", "skip_first": 0}
    o: dict[str, Any] = published | guards | dict(case.options)
    weight, mask = table["weight_k"].tolist(), table["mask_nt"]
    trusted = [t for t in range(T) if table["scored_nt"][0, t] and t >= o["skip_first"]]
    rows = [i for i in range(N) if i != NO_REWARD]
    q: dict[int, list[float]] = {}
    for i in rows:
        found: dict[int, float] = {}
        for t in trusted:
            parts = [w * r for w, r in zip(weight, table["reward_ntk"][i, t].tolist()) if math.isfinite(r)]
            if parts:
                found[t] = sum(parts)
        mean = sum(found.values()) / len(found)
        known = {t: found.get(t, mean) for t in trusted}
        r = []
        for t in range(T):
            before, after = [s for s in trusted if s <= t], [s for s in trusted if s >= t]
            low, high = (before or after)[-1 if before else 0], (after or before)[0 if after else -1]
            share = (t - low) / (high - low) if high > low else 0.0
            r.append(known[low] + share * (known[high] - known[low]) - (o["reward_shift"] or 0.0))
        q[i] = [sum(o["gamma"] ** (u - t) * r[u] for u in range(t, T)) for t in range(T)]
    group = {i: [j for j in rows if KEY[j] == KEY[i]] for i in rows}
    omega = {}
    for i in rows:
        of_rows = group[i] if o["omega_level"] == "group" else [i]
        level = [sum(q[j][t] for j in of_rows) / len(of_rows) for t in range(T)]
        omega[i] = [v / (sum(level) / T) for v in level]
        if o["omega_clip"]:
            low_w, high_w = o["omega_clip"]
            omega[i] = [min(max(v, low_w), high_w) for v in omega[i]]
    inner = o["form"] == "inner"
    w = {i: [omega[i][t] * q[i][t] if inner else q[i][t] for t in range(T)] for i in rows}
    out = [[0.0] * T for _ in range(N)]
    for i in rows:
        for t in range(T):
            own = [w[j][t] for j in group[i]]
            mean = sum(own) / len(own)
            std = math.sqrt(sum((v - mean) ** 2 for v in own) / len(own))
            relative = (w[i][t] - mean) / (std + o["eps"]) if max(own) - min(own) > 1e-8 else 0.0
            absolute = o["k"] * w[i][t] if t < o["n_abs"] else 0.0
            if mask[i, t]:
                out[i][t] = (1.0 if inner else omega[i][t]) * (relative + absolute)
    return out


@of("advantage", "vgpo")
def _vgpo(case: Case, dtype: torch.dtype) -> None:
    """The formulas by loops. k 0, gamma 1, a reward at the last step only: GRPO with ddof 0 on every trained step."""
    table = case.table(dtype)
    mask = table["mask_nt"]
    expected = torch.tensor(vgpo_by_loops(case, case.table(torch.float64)), dtype=dtype)
    torch.testing.assert_close(main_output(case, table), expected, rtol=1e-4, atol=1e-4)
    if dtype == torch.float64:
        assert_same(main_output(case, table), expected)
    last = torch.zeros(N, T, 2, dtype=dtype)
    last[NO_REWARD] = torch.nan
    last[:, -1] = table["reward_nk"].abs()
    terminal = table.updated({"reward_ntk": last, "scored_nt": torch.ones(N, T, dtype=torch.bool)})
    plain = case.but(gamma=1.0, k=0.0, reward_shift=None, skip_first=0, eps=1e-4)
    total = total_reward(reward_nk=table["reward_nk"].abs(), weight_k=table["weight_k"])
    grpo = bind("advantage", {"name": "grpo", "ddof": 0, "eps": 1e-4})(table.updated({"reward_n": total}))
    want = torch.where(mask, grpo[:, None], torch.zeros(N, T, dtype=dtype))
    torch.testing.assert_close(main_output(plain, terminal), want, rtol=1e-4, atol=1e-4)
    told = outputs(case, table)
    assert 0 <= told["log/absolute_share"] <= 1
    assert (told["log/absolute_share"] == 0) == (case.options.get("k") == 0)
    negative = table.updated({"reward_ntk": -table["reward_ntk"]})
    guarded = bool(case.options.get("omega_clip") or case.options.get("reward_shift"))
    assert outputs(case, negative)["log/unguarded_rewards"] == (0 if guarded else 1)
    assert told["log/unguarded_rewards"] == 0


@of("gate", "grpo-guard")
def _grpo_guard(case: Case, dtype: torch.dtype) -> None:
    """Deviation 1 and a mean that has not moved: PPO clip. Else its formula, and its gradient through both channels."""
    table = case.table(dtype)
    mask, one = table["mask_nt"], torch.ones(N, T, dtype=dtype)
    unit = table.updated({"dt_nt": -one, "sigma_nt": one, "mean_gap_nt": 0 * one})
    options = {k: v for k, v in case.options.items() if k == "adv_clip"}
    widths = {} if case.reads("eps_high_nt") else {"eps_low_nt": 2e-6, "eps_high_nt": 2e-6}
    loss, grads = loss_and_gradients(case, unit)
    expected, expected_grads = loss_and_gradients(Case("gate", "ppo-clip", options), unit.updated(widths))
    assert_same(loss, expected, dtype)
    assert_same(grads["logp_nt"], expected_grads["logp_nt"], dtype)
    wide = case.table(dtype).updated({"eps_low_nt": 1.0, "eps_high_nt": 1e9})
    scale = wide["sigma_nt"] * (-wide["dt_nt"]).sqrt()
    diff = wide["logp_nt"] - wide["old_logp_nt"]
    ratio = ((diff + wide["mean_gap_nt"] / (2 * scale * scale)) * scale).exp()
    limit = float(case.options.get("adv_clip") or math.inf)  # type: ignore[arg-type]
    weight = 1 / -wide["dt_nt"] if case.options.get("reweight", True) else one
    loss_nt = -ratio * wide["adv_nt"].clamp(-limit, limit) * weight
    open_ = Case(case.kind, case.name, case.options)
    out = outputs(open_, wide)
    assert_same(out["ratio_nt"][mask], ratio[mask], dtype)
    assert_same(out["loss_nt"][mask], loss_nt[mask], dtype)
    loss, grads = loss_and_gradients(open_, wide)
    assert_same(loss, reduce_loss(loss_nt, bind("reduce", "token-mean")(wide)), dtype)
    for name, slope in (("logp_nt", scale), ("mean_gap_nt", 1 / (2 * scale))):
        assert_same(grads[name][mask], (loss_nt * slope / mask.sum())[mask], dtype, name)
