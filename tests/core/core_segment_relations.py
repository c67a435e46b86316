"""What the stages that look at segments of a row reduce to; continues core_relations.py."""

from __future__ import annotations

import torch
from core_relations import of
from core_world import Case, N, T, assert_same, outputs

from mmrl.core.reductions import reduce_loss
from mmrl.core.registry import bind
from mmrl.core.table import Table


def with_segments(table: Table, step_nt: torch.Tensor) -> Table:
    return Table(table.channels, table.keys, {"step": step_nt})


@of("reduce", "seq-mean-segment-mean")
def _segment_mean(case: Case, dtype: torch.dtype) -> None:
    """By loops; one segment a row: seq-mean-token-mean; a segment each decision: the same; both sums:
    seq-mean-token-sum; numbers of segments may be any, and may repeat in another row."""
    table = case.table(dtype)
    loss, rows = table["adv_nt"], str(case.options.get("rows", "nonempty"))
    assert_same(reduce_loss(loss, case.bound()(table)), by_loops(case, table), dtype)
    moved = with_segments(table, 3 - 4 * table.segments["step"])
    for name, value in outputs(case, table).items():
        assert_same(outputs(case, moved)[name], value, dtype, name)
    plain = {
        ("mean", "mean"): "seq-mean-token-mean",
        ("sum", "sum"): "seq-mean-token-sum",
    }
    for step_nt in (torch.full((N, T), 3), torch.arange(T).expand(N, T)):
        one = with_segments(table, step_nt)
        single = bool((step_nt == 3).all())
        if case.options.get("counted"):
            one = one.updated({"limit_n": torch.ones(N) if single else one["mask_nt"].sum(1).clamp(min=1)})
        inside, over = (case.options.get(k, "mean") for k in ("inside", "over"))
        same = (over, over) if not single else (inside, inside)
        expected = bind("reduce", {"name": plain[same], "rows": rows})(one)
        for got, want in zip(case.bound()(one), expected, strict=True):
            assert_same(got, want, torch.float64)
    if case.options.get("counted"):
        twice = case.bound()(table.updated({"limit_n": 2 * table["limit_n"]}))
        assert_same(twice[0] * 2, case.bound()(table)[0], torch.float64)
    nothing = table.updated({"mask_nt": torch.zeros(N, T, dtype=torch.bool)})
    leaf = (loss * torch.nan).requires_grad_()
    empty = reduce_loss(leaf, case.bound()(nothing))
    (grad,) = torch.autograd.grad(empty, [leaf])
    assert empty == 0 and (grad == 0).all(), "nothing valid: loss 0 with a valid graph"


def by_loops(case: Case, table: Table) -> torch.Tensor:
    """The reduced loss `adv_nt` of the table, from lists."""
    mask, step = table["mask_nt"].tolist(), table.segments["step"].tolist()
    loss, limit = table["adv_nt"], table["limit_n"].tolist()
    total, count = torch.zeros((), dtype=loss.dtype), 0
    for i in range(N):
        parts: dict[int, list[torch.Tensor]] = {}
        for t in range(T):
            if mask[i][t]:
                parts.setdefault(step[i][t], []).append(loss[i, t])
        count += bool(parts) or case.options.get("rows") == "all"
        found = [sum(p) / (1 if case.options.get("inside") == "sum" else len(p)) for p in parts.values()]
        most = limit[i] if case.options.get("counted") else max(1, len(found))
        total = total + sum(found) / (1 if case.options.get("over") == "sum" else most)
    return total / count
