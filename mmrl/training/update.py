"""The streaming update: gradients of an objective, piece by piece, equal to the whole graph; one for all families.

If every piece covers the objective's scope, one pass is enough. Otherwise two exact passes: all pieces without
gradient; the objective on those values as leaves gives c = dloss/draw; then (raw * c).sum() is backwarded piece by
piece. Memory is one bundle's shared part plus one piece, whatever the number of pieces.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass, field

import torch
from torch import Tensor

from mmrl.core.objective import Objective, Outcome
from mmrl.core.reducers import REDUCERS
from mmrl.core.registry import SCOPES
from mmrl.core.table import Table
from mmrl.training.policy import Bundle, Needs, Piece, Policy, Scope
from mmrl.training.rollouts import Rollouts


@dataclass
class Update:
    """What one streaming update did; gradients are left in the parameters.

    logp_nt     current log-probs seen by the update, detached (zeros where nothing was evaluated).
    stats       name -> (sum, count).
    """

    loss: float
    terms: dict[str, float]
    stats: dict[str, tuple[float, float]]
    passes: int
    pieces: int
    logp_nt: Tensor | None = None
    counts: dict[str, float] = field(default_factory=dict)


def _write(full: dict[str, Tensor], part: dict[str, Tensor], piece: Piece, shape: tuple[int, int]) -> None:
    for name, value in part.items():
        if name not in full:
            full[name] = value.new_zeros(shape)
        if piece.columns is None:
            full[name][piece.rows, : value.shape[1]] = value.detach()
        else:
            full[name][piece.rows[:, None], piece.columns[None, :]] = value.detach()


def _fit(raw: dict[str, Tensor], width: int, columns: Tensor | None) -> dict[str, Tensor]:
    """Pieces may be shorter than the table (their longest row); pad on the right to the table's width."""
    if columns is not None:
        return raw
    return {k: torch.nn.functional.pad(v, (0, width - v.shape[1])) for k, v in raw.items()}


def _walk(policy: Policy, bundles: list[Bundle], *, grad: bool) -> Iterator[tuple[Piece, object]]:
    """Pieces with what their bundle shares, opened before its first piece and closed after its last."""
    for bundle in bundles:
        shared = policy.open(bundle, grad=grad)
        for piece in bundle.pieces:
            yield piece, shared
        if grad:
            policy.close(shared)


def evaluate(
    policy: Policy, rollouts: Rollouts, names: set[str], *, channel: str, update: int = 0, reference: bool = False
) -> dict[str, Tensor]:
    """Full tables [N,T] of the named channels without gradient; with the reference weights if asked."""
    shape = _shape(rollouts, channel)
    raws: dict[str, Tensor] = {}
    scopes = ["decision", *(REDUCERS[n].scope for n in names if n not in policy.provides)]
    scope: Scope = max(scopes, key=SCOPES.index)  # type: ignore[arg-type,assignment]
    bundles = policy.bundles(rollouts, channel=channel, update=update, scope=scope)
    with torch.no_grad(), policy.reference() if reference else nullcontext():
        for piece, shared in _walk(policy, bundles, grad=False):
            _write(raws, policy.evaluate(piece, shared, needs_of(policy, names)), piece, shape)
        return {k: v.cpu() for k, v in policy.combine(raws).items()}


def needs_of(policy: Policy, names: set[str]) -> Needs:
    """Channels the policy evaluates itself, and reducers for the rest."""
    own = names & policy.provides
    return Needs(frozenset(own), {name: REDUCERS[name].fn for name in names - own})


def _shape(rollouts: Rollouts, channel: str) -> tuple[int, int]:
    n, t = rollouts.tables[channel]["mask_nt"].shape
    return int(n), int(t)


def _part_n(bundles: list[Bundle], n: int) -> Tensor:
    part = torch.zeros(n, dtype=torch.long)
    for at, piece in enumerate(p for b in bundles for p in b.pieces):
        part[piece.rows] = at
    return part


def _covers(bundles: list[Bundle], scope: str) -> bool:
    """Whole rows satisfy row scope; wider scopes need everything in one piece (policies are asked for whole groups)."""
    pieces = [p for b in bundles for p in b.pieces]
    if scope == "decision" or len(pieces) == 1 and pieces[0].columns is None:
        return True
    return SCOPES.index(scope) <= SCOPES.index("group") and all(p.columns is None for p in pieces)


def streaming_update(
    policy: Policy,
    objective: Objective,
    rollouts: Rollouts,
    table: Table,
    *,
    channel: str,
    update: int = 0,
    two_pass: bool = False,
    global_counts: dict[str, Tensor] | None = None,
    keep_scope: bool = True,
    watch: frozenset[str] = frozenset(),
) -> Update:
    """Accumulate the gradient of `objective` over all rows of `rollouts`, whose prepared table is `table`.

    two_pass forces the two exact passes. global_counts replaces the local counts (several ranks). keep_scope False
    lets a policy split below the scope, which then takes two passes. watch: further channels of the policy for the log
    (entropy), without influence on the gradient.
    """
    scope: Scope = objective.scope if keep_scope else "decision"  # type: ignore[assignment]
    bundles = policy.bundles(rollouts, channel=channel, update=update, scope=scope)
    table = table.updated({"part_n": _part_n(bundles, len(rollouts))}).to(policy.device)
    table = objective.widths_and_weights(table)
    coef, counts = objective.coefficients(table)
    counts = global_counts or counts
    needs = needs_of(policy, objective.needs()[""] | (watch & policy.provides))
    run = _two_passes if two_pass or not _covers(bundles, objective.scope) else _one_pass
    result = run(policy, objective, bundles, table, coef, counts, needs, _shape(rollouts, channel))
    result.counts = {k: float(v) for k, v in counts.items()}
    result.logp_nt = None if result.logp_nt is None else result.logp_nt.cpu()
    return result


def _cut(coef: dict[str, Tensor], piece: Piece) -> dict[str, Tensor]:
    rows = {k: v[piece.rows] for k, v in coef.items()}
    return rows if piece.columns is None else {k: v[:, piece.columns] for k, v in rows.items()}


def _one_pass(
    policy: Policy,
    objective: Objective,
    bundles: list[Bundle],
    table: Table,
    coef: dict[str, Tensor],
    counts: dict[str, Tensor],
    needs: Needs,
    shape: tuple[int, int],
) -> Update:
    total = Update(0.0, {}, {}, passes=1, pieces=0)
    seen: dict[str, Tensor] = {}
    for piece, shared in _walk(policy, bundles, grad=True):
        raw = _fit(policy.evaluate(piece, shared, needs), shape[1], piece.columns)
        channels = policy.combine(raw)
        _write(seen, {k: v for k, v in channels.items() if k == "logp_nt"}, piece, shape)
        outcome = objective.terms(table.piece(piece.rows, piece.columns).updated(channels), _cut(coef, piece), counts)
        loss = outcome.loss()
        if loss.requires_grad:
            loss.backward()
        _add(total, outcome, loss)
    total.logp_nt = seen.get("logp_nt")
    return total


def _two_passes(
    policy: Policy,
    objective: Objective,
    bundles: list[Bundle],
    table: Table,
    coef: dict[str, Tensor],
    counts: dict[str, Tensor],
    needs: Needs,
    shape: tuple[int, int],
) -> Update:
    raws: dict[str, Tensor] = {}
    with torch.no_grad():
        for piece, shared in _walk(policy, bundles, grad=False):
            _write(raws, policy.evaluate(piece, shared, needs), piece, shape)
    leaves = {k: v.requires_grad_() for k, v in raws.items()}
    channels = policy.combine(leaves)
    outcome = objective.terms(table.updated(channels), coef, counts)
    loss = outcome.loss()
    total = Update(0.0, {}, {}, passes=2, pieces=0)
    _add(total, outcome, loss)
    if "logp_nt" in channels:
        total.logp_nt = channels["logp_nt"].detach()
    slopes = torch.autograd.grad(loss, list(leaves.values()), allow_unused=True, materialize_grads=True)
    slope = dict(zip(leaves, slopes, strict=True))
    total.pieces = 0
    for piece, shared in _walk(policy, bundles, grad=True):
        raw = _fit(policy.evaluate(piece, shared, needs), shape[1], piece.columns)
        product = torch.stack([(v * _cut(slope, piece)[k].to(v)).sum() for k, v in raw.items()]).sum()
        if product.requires_grad:
            product.backward()
        total.pieces += 1
    return total


def _add(total: Update, outcome: Outcome, loss: Tensor) -> None:
    total.loss += float(loss.detach())
    total.pieces += 1
    for term in outcome.terms:
        total.terms[term.name] = total.terms.get(term.name, 0.0) + float(term.value().detach())
    for name, (s, n) in outcome.stats.items():
        old = total.stats.get(name, (0.0, 0.0))
        total.stats[name] = (old[0] + float(s), old[1] + float(n))
