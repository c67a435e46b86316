"""For each stage, the plainer thing it reduces to. One function a stage, on the common batch."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from core_world import (
    FLAT_GROUP,
    KEY,
    NO_REWARD,
    SINGLE,
    Case,
    N,
    T,
    assert_same,
    drop,
    loss_and_gradients,
    main_output,
    outputs,
    pass_gradients,
)

from mmrl.core.groups import Groups
from mmrl.core.reductions import reduce_loss
from mmrl.core.registry import bind
from mmrl.core.table import Table

Relation = Callable[[Case, torch.dtype], None]
RELATIONS: dict[tuple[str, str], Relation] = {}


def of(kind: str, name: str) -> Callable[[Relation], Relation]:
    def register(fn: Relation) -> Relation:
        RELATIONS[kind, name] = fn
        return fn

    return register


def ratio_at(case: Case, table: Table, default: str = "decision") -> torch.Tensor:
    """The ratio by loops: of the decision, the geometric mean over its row or its segment of the row, or the product
    over either."""
    level = str(case.options.get("level", default))
    mask, diff = table["mask_nt"], (table["logp_nt"] - table["old_logp_nt"]).tolist()
    step = table.segments["step"].tolist()
    out = torch.ones(N, T, dtype=table["logp_nt"].dtype)
    for i in range(N):
        for t in range(T):
            if not mask[i, t]:
                continue
            valid = [u for u in range(T) if mask[i, u]]
            alike = [u for u in valid if step[i][u] == step[i][t]]
            same = {"decision": [t], "row": valid, "segment:step": alike}[level.replace("-sum", "")]
            out[i, t] = math.exp(sum(diff[i][u] for u in same) / (1 if "-sum" in level else len(same)))
    return out


MANY = torch.tensor([KEY.count(k) > 1 for k in KEY])  # rows that are not alone in their group


@of("shape", "overlong")
def _overlong(case: Case, dtype: torch.dtype) -> None:
    """Weight 0: the identity. Short rows are untouched, longest rows lose the whole weight, none gains."""
    table = case.table(dtype)
    assert_same(main_output(case.but(weight=0.0), table), table["reward_n"], dtype)
    long = table.updated({"length_n": torch.full((N,), 99)})
    weight = float(case.options.get("weight", 1.0))
    assert_same(main_output(case, long), table["reward_n"] - weight, dtype)
    short = table.updated({"length_n": torch.ones(N, dtype=torch.long)})
    assert_same(main_output(case, short), table["reward_n"], dtype)
    lost = [
        float((main_output(case, table.updated({"length_n": torch.full((N,), length)})) - table["reward_n"])[0])
        for length in range(1, 9)
    ]
    assert all(a >= b - 1e-6 for a, b in zip(lost, lost[1:]))


@of("advantage", "constant")
def _constant(case: Case, dtype: torch.dtype) -> None:
    """The supervised loss itself, times the value."""
    adv = main_output(case, case.table(dtype))
    assert (adv == float(case.options.get("value", 1.0))).all() and adv.shape == (N,)


@of("advantage", "raw")
def _raw(case: Case, dtype: torch.dtype) -> None:
    table = case.table(dtype)
    assert_same(main_output(case, table), table["reward_n"].nan_to_num(nan=0.0), dtype)


@of("advantage", "grpo")
def _grpo(case: Case, dtype: torch.dtype) -> None:
    """Without eps: Dr.GRPO over the deviation. Sum 0 in each group; unchanged by r -> 3 r + 2; deviation 1."""
    table, key = case.table(dtype), torch.tensor(KEY)
    plain = bind("advantage", "dr-grpo")(table)
    groups = Groups(key, torch.isfinite(table["reward_n"]))
    std = groups.std(table["reward_n"].nan_to_num(), ddof=int(case.options.get("ddof", 1)))
    got = main_output(case.but(eps=0.0), table)
    assert_same((got * std)[MANY], plain[MANY], dtype)
    assert_same(groups.sum(got)[MANY], torch.zeros(int(MANY.sum()), dtype=dtype), dtype)
    moved = table.updated({"reward_n": 3 * table["reward_n"] + 2})
    torch.testing.assert_close(main_output(case.but(eps=0.0), moved)[MANY], got[MANY], rtol=1e-4, atol=1e-4)
    wide = main_output(case.but(eps=1e3), table)
    assert (wide[MANY].abs() < 0.01).all(), "eps is in the denominator"


@of("advantage", "dr-grpo")
def _dr_grpo(case: Case, dtype: torch.dtype) -> None:
    """Differences inside a group are those of the rewards; sum 0."""
    table = case.table(dtype)
    adv, reward = main_output(case, table), table["reward_n"]
    for key in set(KEY) - {KEY[4]}:
        rows = [i for i in range(N) if KEY[i] == key and i != NO_REWARD]
        assert_same(adv[rows] - adv[rows[0]], reward[rows] - reward[rows[0]], dtype)
        assert_same(adv[rows].sum(), torch.zeros((), dtype=dtype), dtype)


@of("advantage", "batch-std")
def _batch_std(case: Case, dtype: torch.dtype) -> None:
    """One group: GRPO. Several: Dr.GRPO times one common factor."""
    table = case.table(dtype)
    one = table.updated({})
    one.keys = {"prompt": torch.zeros(N, dtype=torch.long)}
    grpo = bind("advantage", {"name": "grpo", **case.options})
    assert_same(main_output(case, one), grpo(one), dtype)
    plain, got = bind("advantage", "dr-grpo")(table), main_output(case, table)
    factor = got[0] / plain[0]
    assert_same(got, plain * factor, dtype)
    valid = table["reward_n"][torch.isfinite(table["reward_n"])]
    std = valid.std(correction=int(case.options.get("ddof", 1)))
    assert_same(factor, 1 / (std + float(case.options.get("eps", 1e-6))), dtype)


@of("advantage", "rloo")
def _rloo(case: Case, dtype: torch.dtype) -> None:
    """Dr.GRPO times G / (G - 1), G the rewarded rows of the group; the reward minus the mean of the others."""
    table, key = case.table(dtype), torch.tensor(KEY)
    size = Groups(key, torch.isfinite(table["reward_n"])).count()
    plain = bind("advantage", "dr-grpo")(table)
    got = main_output(case, table)
    several = size > 1
    assert_same(got[several], (plain * size / (size - 1))[several], dtype)


@of("advantage", "reinforce-pp")
def _reinforce_pp(case: Case, dtype: torch.dtype) -> None:
    """gamma 1, no KL: the rewards broadcast, then whitened over decisions. gamma 0: only the last decision is paid."""
    table = case.table(dtype)
    mask, reward = table["mask_nt"], table["reward_n"]
    use = mask & torch.isfinite(reward)[:, None]
    broadcast = reward[:, None].expand(N, T)[use]
    expected = torch.zeros(N, T, dtype=dtype)
    expected[use] = (broadcast - broadcast.mean()) / broadcast.std()
    got = main_output(case.but(gamma=1.0, beta_kl=0.0), table)
    torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-5)
    assert abs(float(main_output(case, table)[use].mean())) < 1e-6
    assert abs(float(main_output(case, table)[use].std()) - 1) < 1e-5
    last = main_output(case.but(gamma=0.0, beta_kl=0.0), table)
    assert len(last[3, :5].unique()) == 1 and last[3, 5] != last[3, 0]


@of("advantage", "reinforce-pp-baseline")
def _reinforce_pp_baseline(case: Case, dtype: torch.dtype) -> None:
    """Equal lengths: batch-std with the deviation of the centred rewards, up to (NT - 1) / (NT - T) in the variance."""
    table = case.table(dtype)
    even = table.updated({"mask_nt": torch.ones(N, T, dtype=torch.bool)})
    plain = bind("advantage", "dr-grpo")(even)
    use = torch.isfinite(table["reward_n"])
    n = int(use.sum())
    std = (plain[use].square().sum() * T / (n * T - 1)).sqrt()
    torch.testing.assert_close(
        main_output(case, even)[use], (plain / std)[use, None].expand(n, T), rtol=1e-5, atol=1e-5
    )
    got = main_output(case, table)[table["mask_nt"] & use[:, None]]
    assert abs(float(got.mean())) < 1e-6 and abs(float(got.std()) - 1) < 1e-5


@of("select", "zero-variance")
def _zero_variance(case: Case, dtype: torch.dtype) -> None:
    """False exactly where a group has one level in EVERY weighted component; weight 0 does not count."""
    table = case.table(dtype)
    keep = main_output(case, table)
    dropped = {KEY[i] for i in range(N) if not keep[i]}
    assert dropped == {0, 20}, "the group of one and the flat group"
    first = table["reward_nk"].clone()
    first[:, 0] = 0.0
    ignored = table.updated({"weight_k": torch.tensor([0.0, 0.5], dtype=dtype)})
    assert torch.equal(main_output(case, table.updated({"reward_nk": first})), main_output(case, ignored))
    absent = table["reward_nk"].clone()  # row 10 of the group has no reward; the other two agree
    absent[7] = absent[12] = torch.tensor([0.4, 1.0])
    assert main_output(case, table.updated({"reward_nk": absent}))[[7, 10, 12]].tolist() == [False] * 3
    opposed = torch.tensor([[1.0, 0.0], [0.0, 2.0]], dtype=dtype)  # the weighted sums are equal, the parts are not
    even = table["reward_nk"].clone()
    even[13:15] = opposed
    assert main_output(case, table.updated({"reward_nk": even}))[13:15].all()


@of("weight", "tis")
def _tis(case: Case, dtype: torch.dtype) -> None:
    """Same sampler and trainer: 1. Never above the cap; exp of the gap below it."""
    table = case.table(dtype)
    same = table.updated({"sampler_logp_nt": table["old_logp_nt"].clone()})
    assert_same(main_output(case, same), torch.ones(N, T, dtype=dtype), dtype)
    cap, mask = float(case.options.get("cap", 2.0)), table["mask_nt"]
    gap = (table["old_logp_nt"] - table["sampler_logp_nt"]).exp()
    assert_same(main_output(case, table)[mask], gap.clamp(max=cap)[mask], dtype)
    assert (gap[mask] > cap).any()


@of("bounds", "constant")
def _bounds(case: Case, dtype: torch.dtype) -> None:
    got = outputs(case, case.table(dtype))
    expected = {"low": 0.2, "high": 0.2, **case.options}
    assert got == {"eps_low_nt": expected["low"], "eps_high_nt": expected["high"]}


@of("gate", "ppo-clip")
def _ppo_clip(case: Case, dtype: torch.dtype) -> None:
    """Without widths and caps: -ratio * A. With them the loss is never below that, and equal inside the widths. A limit
    of the advantages is that of advantages already limited."""
    table = case.table(dtype)
    if limit := float(case.options.get("adv_clip") or 0):  # type: ignore[arg-type]
        limited = table.updated({"adv_nt": table["adv_nt"].clamp(-limit, limit)})
        assert_same(main_output(case, table), main_output(case.but(adv_clip=None), limited), dtype)
        assert (table["adv_nt"].abs() > limit).any()
        table = limited
    mask = table["mask_nt"]
    wide = case.but(dual_clip=None, delta=None)
    open_ = table.updated({"eps_low_nt": 1.0, "eps_high_nt": 1e9})
    ratio = outputs(wide, open_)["ratio_nt"]
    free = -ratio * table["adv_nt"]
    assert_same(main_output(wide, open_)[mask], free[mask], dtype)
    if case.reads("eps_high_nt") and not case.options.get("dual_clip") and not case.options.get("delta"):
        got = main_output(case, table)
        low, high = 1 - table["eps_low_nt"], 1 + table["eps_high_nt"]
        inside = mask & (ratio > low) & (ratio < high)
        assert inside.any() and (mask & ~inside).any()
        assert_same(got[inside], free[inside], dtype)
        assert (got[mask] >= free[mask] - 1e-6).all()
    if case.options.get("dual_clip"):
        far = table.updated({"logp_nt": table["old_logp_nt"] + 3.0, "adv_nt": -table["adv_nt"].abs()})
        bound = float(case.options["dual_clip"]) * table["adv_nt"].abs()  # type: ignore[arg-type]
        assert_same(main_output(case, far)[mask], bound[mask], dtype)
    low, high = (math.exp(float(case.options.get(k, v))) for k, v in (("cap_low", -20), ("cap_high", 20)))  # type: ignore[arg-type]
    assert_same(ratio[mask], ratio_at(case, table)[mask].clamp(low, high), dtype)
    if "cap_low" in case.options:
        assert (ratio[mask] == ratio[mask].min()).sum() > 1 and ratio[mask].max() < high


@of("gate", "gspo")
def _gspo(case: Case, dtype: torch.dtype) -> None:
    """Rows of one decision: PPO clip. Both forms have one gradient when A is constant on the row."""
    table = case.table(dtype)
    if case.options.get("loss_norm"):
        length = table["mask_nt"].sum(1, keepdim=True).clamp(min=1)
        assert_same(main_output(case, table) * length, main_output(case.but(loss_norm="none"), table), dtype)
    far = table.updated({"logp_nt": table["old_logp_nt"] + 50.0, "adv_nt": table["adv_nt"].abs()})
    highest = math.exp(float(case.options.get("cap_high", 10.0)))  # type: ignore[arg-type]
    assert_same(outputs(case, far)["ratio_nt"][table["mask_nt"]].max(), torch.tensor(highest, dtype=dtype), dtype)
    near = far.updated({"logp_nt": table["old_logp_nt"] - 50.0})
    lowest = math.exp(float(case.options.get("cap_low", -20.0)))  # type: ignore[arg-type]
    assert_same(outputs(case, near)["ratio_nt"][table["mask_nt"]].min(), torch.tensor(lowest, dtype=dtype), dtype)
    single = table.updated({"mask_nt": table["mask_nt"] & (torch.arange(T) == 0)})
    options = {k: v for k, v in case.options.items() if k == "dual_clip"}
    widths = {} if case.reads("eps_high_nt") else {"eps_low_nt": 3e-4, "eps_high_nt": 4e-4}
    ppo, one = Case("gate", "ppo-clip", options), single.updated(widths)
    loss, grads = loss_and_gradients(case, one if case.reads("eps_high_nt") else drop(one, *widths))
    expected, expected_grads = loss_and_gradients(ppo, one)
    assert_same(loss, expected, dtype)
    assert_same(grads["logp_nt"], expected_grads["logp_nt"], dtype)
    flat = table.updated({"adv_nt": table["adv_nt"][:, :1].repeat(1, T)})
    if case.reads("eps_high_nt"):
        flat = flat.updated({k: table[k][:, :1].repeat(1, T) for k in ("eps_low_nt", "eps_high_nt")})
    if case.options.get("level", "row") in ("row", "row-sum"):
        token, sequence = (
            loss_and_gradients(case.but(form=f), flat, "seq-mean-token-mean") for f in ("token", "sequence")
        )
        assert_same(token[0], sequence[0], dtype)
        assert_same(token[1]["logp_nt"], sequence[1]["logp_nt"], dtype)
    mask = table["mask_nt"]
    assert_same(outputs(case, flat)["ratio_nt"][mask], ratio_at(case, table, "row")[mask], dtype)
    assert (pass_gradients(case, flat)["logp_nt"] != 0).any()


@of("gate", "cispo")
def _cispo(case: Case, dtype: torch.dtype) -> None:
    """Widths that never bind: the gradient of ratio * A. Widths 0 (cap 1): REINFORCE. Ratios clipped, never dropped."""
    table = case.table(dtype)
    cap = case.options.get("bound") == "cap"
    level = {"level": case.options.get("level", "decision")}
    open_ = drop(table.updated({"eps_high_nt": 1e9}), "eps_low_nt")
    grad = loss_and_gradients(case, open_)[1]["logp_nt"]
    mask = table["mask_nt"]
    ratio = outputs(case, open_)["ratio_nt"]
    assert_same(ratio[mask], ratio_at(case, table)[mask], dtype)
    expected = torch.where(mask, -ratio * table["adv_nt"] / mask.sum(), torch.zeros_like(ratio))
    assert_same(grad, expected, dtype)
    if level["level"] == "decision":
        ppo = Case("gate", "ppo-clip", level)
        ratio_grad = loss_and_gradients(ppo, open_.updated({"eps_low_nt": 1.0}))[1]["logp_nt"]
        assert_same(grad, ratio_grad, dtype)
    one = 1.0 if cap else 0.0
    tight = table.updated({"eps_low_nt": one, "eps_high_nt": one})
    assert_same(
        loss_and_gradients(case, tight)[1]["logp_nt"],
        loss_and_gradients(Case("gate", "reinforce"), table)[1]["logp_nt"],
        dtype,
    )
    above = table.updated({"logp_nt": table["old_logp_nt"] + 3.0, "eps_high_nt": 1.5 if cap else 0.5})
    grad = loss_and_gradients(case, above)[1]["logp_nt"]
    assert_same(grad, torch.where(mask, -1.5 * table["adv_nt"] / mask.sum(), torch.zeros_like(grad)), dtype)


@of("gate", "reinforce")
def _reinforce(case: Case, dtype: torch.dtype) -> None:
    """A = 1: the negative log-likelihood."""
    table = case.table(dtype)
    ones = table.updated({"adv_nt": torch.ones(N, T, dtype=dtype)})
    mask = table["mask_nt"]
    assert_same(main_output(case, ones)[mask], -table["logp_nt"][mask], dtype)
    assert_same(main_output(case, table)[mask], (-table["adv_nt"] * table["logp_nt"])[mask], dtype)


@of("gate", "supervised")
def _supervised(case: Case, dtype: torch.dtype) -> None:
    table = case.table(dtype)
    ones = table.updated({"adv_nt": torch.ones(N, T, dtype=dtype)})
    mask = table["mask_nt"]
    assert_same(main_output(case, ones)[mask], table["supervised_nt"][mask], dtype)
    assert_same(main_output(case, table)[mask], (table["adv_nt"] * table["supervised_nt"])[mask], dtype)


@of("penalty", "entropy")
def _entropy(case: Case, dtype: torch.dtype) -> None:
    table = case.table(dtype)
    assert_same(main_output(case, table)[table["mask_nt"]], -table["entropy_nt"][table["mask_nt"]], dtype)


@of("penalty", "kl")
def _kl(case: Case, dtype: torch.dtype) -> None:
    """Same policy: 0 with zero gradient (k2, k3). Never negative. On-policy, correction changes no value."""
    table = case.table(dtype)
    mask, estimator = table["mask_nt"], case.options.get("estimator", "k3")
    on_policy = table.updated({"old_logp_nt": table["logp_nt"].clone()})
    plain = main_output(case.but(off_policy=False), on_policy)
    assert_same(main_output(case.but(off_policy=True), on_policy), plain, dtype)
    assert_same(main_output(case.but(off_policy=True), table), plain * ratio_at(case, table), dtype)
    if case.reads("kl_nt"):
        assert_same(plain[mask], over_rows(case, table, table["kl_nt"])[mask], dtype)
        return
    _estimators(case, table, table["ref_logp_nt"], str(estimator), dtype)
    same = table.updated({"ref_logp_nt": table["logp_nt"].clone()})
    assert (main_output(case, same)[mask] == 0).all()
    if estimator != "k1":
        assert (main_output(case, table)[mask] > 0).all()
        assert (pass_gradients(case, same)["logp_nt"] == 0).all()
    if case.options.get("max_value"):
        assert main_output(case, table).max() == torch.tensor(0.02, dtype=dtype)


@of("penalty", "kl-old")
def _kl_old(case: Case, dtype: torch.dtype) -> None:
    """The penalty kl with the old pass as its reference; 0 without gradient before the first update."""
    table = case.table(dtype)
    table_as_ref = drop(table.updated({"ref_logp_nt": table["old_logp_nt"]}), "kl_nt")
    assert_same(main_output(case, table), main_output(Case("penalty", "kl", case.options), table_as_ref), dtype)
    _estimators(case, table, table["old_logp_nt"], str(case.options.get("estimator", "k3")), dtype)
    first = table.updated({"old_logp_nt": table["logp_nt"].clone()})
    assert (main_output(case, first) == 0).all() and (pass_gradients(case, first)["logp_nt"] == 0).all()


def over_rows(case: Case, table: Table, x_nt: torch.Tensor) -> torch.Tensor:
    """x of the decision, or on every valid decision the mean or the sum of its row."""
    level, mask = case.options.get("level", "decision"), table["mask_nt"]
    total = torch.where(mask, x_nt, torch.zeros_like(x_nt)).sum(1, keepdim=True)
    length = mask.sum(1, keepdim=True).clamp(min=1)
    rows = {"row": total / length, "row-sum": total}.get(str(level))
    return x_nt if rows is None else torch.where(mask, rows, torch.zeros_like(x_nt))


def _estimators(case: Case, table: Table, ref_nt: torch.Tensor, estimator: str, dtype: torch.dtype) -> None:
    """Values and gradients of k1 .. k3+, written out. Each of L decisions holds the term of its row, so a mean keeps
    the slope and a sum has it L times."""
    mask = table["mask_nt"]
    d = over_rows(case, table, ref_nt - table["logp_nt"])
    value = {"k1": -d, "k2": d.square() / 2, "k3": d.exp() - d - 1, "k3+": d.exp() - d - 1}[estimator]
    slope = {"k1": torch.ones_like(d), "k2": -d, "k3": 1 - d.exp(), "k3+": -d}[estimator]
    slope = slope * mask.sum(1, keepdim=True) if case.options.get("level") == "row-sum" else slope
    free = case.but(max_value=None, cap=20.0, **({"off_policy": False} if case.name == "kl" else {}))
    torch.testing.assert_close(main_output(free, table)[mask], value[mask], rtol=1e-4, atol=1e-6)
    grad = pass_gradients(free, table)["logp_nt"] * mask.sum()
    torch.testing.assert_close(grad[mask], slope[mask], rtol=1e-4, atol=1e-5)


@of("penalty", "nll")
def _nll(case: Case, dtype: torch.dtype) -> None:
    """REINFORCE with A = 1 on right rows, 0 on wrong ones, whose gradient is exactly 0."""
    table = case.table(dtype)
    right = table["correct_n"][:, None].expand(N, T)
    as_adv = table.updated({"adv_nt": right.to(dtype)})
    reinforce = Case("gate", "reinforce")
    assert_same(main_output(case, table), main_output(reinforce, as_adv), dtype)
    grad = pass_gradients(case, table)["logp_nt"]
    assert_same(grad, pass_gradients(reinforce, as_adv)["logp_nt"], dtype)
    assert (grad[~right] == 0).all() and (grad[right & table["mask_nt"]] < 0).all()
    nobody = table.updated({"correct_n": torch.zeros(N, dtype=torch.bool)})
    assert (main_output(case, nobody) == 0).all()


@of("reduce", "token-mean-correct")
def _token_mean_correct(case: Case, dtype: torch.dtype) -> None:
    """All rows right: token-mean. Else the token mean of the right rows alone; none right: 0 with a valid graph."""
    table = case.table(dtype)
    plain, own = bind("reduce", "token-mean"), case.bound()
    for name, got in outputs(case, table.updated({"correct_n": torch.ones(N, dtype=torch.bool)})).items():
        assert_same(got, outputs(Case("reduce", "token-mean"), table)[name], dtype)
    rows = table["correct_n"].nonzero()[:, 0]
    loss = torch.where(table["mask_nt"], table["adv_nt"], torch.full_like(table["adv_nt"], torch.nan))
    assert_same(reduce_loss(loss, own(table)), reduce_loss(loss[rows], plain(table.rows(rows))), dtype)
    assert (own(table)[0][~table["correct_n"]] == 0).all()
    nobody = own(table.updated({"correct_n": torch.zeros(N, dtype=torch.bool)}))
    leaf = torch.full((N, T), torch.nan, dtype=dtype).requires_grad_()
    empty = reduce_loss(leaf, nobody)
    (grad,) = torch.autograd.grad(empty, [leaf])
    assert empty == 0 and (grad == 0).all() and nobody[1] == 0


@of("advantage", "decoupled")
def _decoupled(case: Case, dtype: torch.dtype) -> None:
    """Z-scores without the step over the batch: grpo-per-reward. With it: mean 0, deviation 1 over what it names, and
    a z-scored component may be moved and stretched without effect."""
    table = case.table(dtype)
    plain = case.but(batch="none", modes=None, weighted=True)
    same = {k: case.options[k] for k in ("ddof", "eps") if k in case.options}
    assert_same(
        main_output(plain, table),
        bind("advantage", {"name": "grpo-per-reward", "ddof": 0, "eps": 0.0, **same})(table),
        dtype,
    )
    valid, key = torch.isfinite(table["reward_n"]), torch.tensor(KEY)
    loud = valid & (key != FLAT_GROUP) & (torch.arange(N) != SINGLE)
    got, batch = main_output(case, table), str(case.options.get("batch", "batch"))
    modes = case.options.get("modes")
    if batch == "batch":
        sums = main_output(case.but(batch="none"), table)
        if modes:  # constant groups stay in the statistics with what they have
            return _decoupled_modes(case, table, dtype)
        eps, floor = (float(case.options.get(k, v)) for k, v in (("batch_eps", 0.0), ("batch_floor", 1e-8)))  # type: ignore[arg-type]
        expected = (sums - sums[valid].mean()) / (sums[valid].std().clamp(min=floor) + eps)
        assert_same(got[loud], expected[loud], dtype)
        assert abs(float(got[valid].mean())) < 1e-6 and abs(float(got[valid].std()) - 1) < 1e-3
    if batch == "tokens":
        use = table["mask_nt"] & valid[:, None]
        assert len(got[use & (key == FLAT_GROUP)[:, None]].unique()) == 1
        seen = main_output(case.but(batch="none"), table)[:, None].expand(N, T)[use]
        expected = (seen - seen.mean()) / (seen.var() + 1e-8).sqrt()
        assert_same(got[use & loud[:, None]], expected[(use & loud[:, None])[use]], dtype)
    if batch in ("group", "group-centred"):
        for one in set(key[loud].tolist()):
            rows = loud & (key == one)
            assert abs(float(got[rows].mean())) < 1e-5
            assert batch == "group-centred" or abs(float(got[rows].std()) - 1) < 1e-5
    if batch == "none" and modes:
        _decoupled_modes(case, table, dtype)
    if not modes:
        stretched = table["reward_nk"] * torch.tensor([3.0, 1.0], dtype=dtype) + torch.tensor([5.0, 0.0], dtype=dtype)
        moved = main_output(case.but(eps=0.0), table.updated({"reward_nk": stretched}))
        torch.testing.assert_close(moved, main_output(case.but(eps=0.0), table), rtol=1e-4, atol=1e-4)


def _decoupled_modes(case: Case, table: Table, dtype: torch.dtype) -> None:
    """The modes by loops over rows."""
    reward, modes = table["reward_nk"], list(case.options["modes"])  # type: ignore[call-overload]
    sums = torch.zeros(N, dtype=dtype)
    for k, mode in enumerate(modes):
        for i in range(N):
            own = [reward[j, k] for j in range(N) if KEY[j] == KEY[i] and torch.isfinite(reward[j, k])]
            if not torch.isfinite(reward[i, k]):
                continue
            low, high, r = min(own), max(own), reward[i, k]
            value = {
                "min-max": (r - low) / (high - low) if high > low else torch.tensor(0.5, dtype=dtype),
                "signs": torch.tensor(1.0 if r >= 0.5 else -1.0, dtype=dtype),
                "raw": r,
                "centre": r - sum(own) / len(own),
            }[mode]
            sums[i] += value * (table["weight_k"][k] if case.options.get("weighted", True) else 1.0)
    valid, key = torch.isfinite(table["reward_n"]), torch.tensor(KEY)
    if case.options.get("batch") != "none":
        sums = (sums - sums[valid].mean()) / sums[valid].std()
    silent = ~valid | (key == FLAT_GROUP) | (torch.arange(N) == SINGLE)
    assert_same(main_output(case, table), torch.where(silent, torch.zeros_like(sums), sums), dtype)


@of("reduce", "token-mean")
@of("reduce", "seq-mean-token-mean")
@of("reduce", "token-mean-local")
@of("reduce", "seq-mean-token-sum")
@of("reduce", "seq-mean-token-sum-norm")
def _reductions(case: Case, dtype: torch.dtype) -> None:
    """Rows of equal length L: every mean is the mean over decisions, sums are L times it; one [N,T] of ones gives 1."""
    table = case.table(dtype)
    even = table.updated({"mask_nt": torch.ones(N, T, dtype=torch.bool), "part_n": torch.arange(N) // 5})
    loss = table["adv_nt"]
    factor = {"seq-mean-token-sum": T, "seq-mean-token-sum-norm": T / float(case.options.get("length", T))}  # type: ignore[arg-type]
    assert_same(reduce_loss(loss, case.bound()(even)), loss.mean() * factor.get(case.name, 1.0), dtype)
    ones = torch.ones(N, T, dtype=dtype)
    rows = int((table["mask_nt"].sum(1) > 0).sum())
    expected = {
        "token-mean": 1.0,
        "token-mean-local": 1.0,
        "seq-mean-token-mean": rows / N if case.options.get("rows") == "all" else 1.0,
        "seq-mean-token-sum": int(table["mask_nt"].sum()) / (N if case.options.get("rows") == "all" else rows),
        "seq-mean-token-sum-norm": int(table["mask_nt"].sum()) / (N * float(case.options.get("length", T))),  # type: ignore[arg-type]
    }[case.name]
    assert_same(reduce_loss(ones, case.bound()(table)), torch.tensor(expected, dtype=dtype), dtype)
    nothing = table.updated({"mask_nt": torch.zeros(N, T, dtype=torch.bool)})
    leaf = (loss * torch.nan).requires_grad_()
    empty = reduce_loss(leaf, case.bound()(nothing))
    (grad,) = torch.autograd.grad(empty, [leaf])
    assert empty == 0 and (grad == 0).all(), "nothing valid: loss 0 with a valid graph"
