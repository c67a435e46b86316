"""The streaming update: gradients of an objective, piece by piece, equal to the whole graph; one for all families.

If every piece covers the objective's scope, one pass is enough. Otherwise two exact passes: all pieces without
gradient; the objective on those values as leaves gives c = dloss/draw; then (raw * c).sum() is backwarded piece by
piece. Memory is one bundle's shared part plus one piece, whatever the number of pieces.

With several ranks each runs the pieces of its own rows, under coefficients and counts of the whole table; losses and
statistics are added up here, gradients by the caller (or by a sharded policy itself).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from mmrl.core.objective import Objective, Outcome
from mmrl.core.reducers import REDUCERS
from mmrl.core.registry import SCOPES
from mmrl.core.table import Table
from mmrl.training.cover import covers
from mmrl.training.exchange import spread
from mmrl.training.policy import Bundle, Needs, Piece, Policy, Scope, offered
from mmrl.training.rollouts import Rollouts
from mmrl.training.team import ALONE, Team


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
    """Add a piece's values to the table: pieces that share a decision add up, all others meet zeros."""
    for name, value in part.items():
        if name not in full:
            full[name] = value.new_zeros(shape)
        if piece.columns is None:
            full[name][piece.rows, : value.shape[1]] += value.detach()
        else:
            full[name][piece.rows[:, None], piece.columns[None, :]] += value.detach()


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
    policy: Policy,
    rollouts: Rollouts,
    names: set[str],
    *,
    channel: str,
    update: int = 0,
    reference: bool = False,
    team: Team = ALONE,
) -> dict[str, Tensor]:
    """Full tables [N,T] of the named channels without gradient; with the reference weights if asked. Each rank runs its
    own rows, all get all tables."""
    own = rollouts if team.size == 1 else rollouts.select(rollouts.mine)
    scopes = ["decision", *(REDUCERS[n].scope for n in names if n not in offered(policy, channel))]
    scope: Scope = max(scopes, key=SCOPES.index)  # type: ignore[arg-type,assignment]
    with torch.no_grad(), policy.reference() if reference else nullcontext(), policy.whole():
        bundles = policy.bundles(own, channel=channel, update=update, scope=scope) if len(own) else []
        tables = policy.combine(_raw_tables(policy, bundles, needs_of(policy, channel, names), _shape(own, channel)))
    found = {k: v.cpu() for k, v in tables.items() if k in names}
    return found if team.size == 1 else spread(team, found, rollouts, sorted(names))


def _raw_tables(policy: Policy, bundles: list[Bundle], needs: Needs, shape: tuple[int, int]) -> dict[str, Tensor]:
    """What all pieces say, without gradient, as tables [N,T]."""
    raws: dict[str, Tensor] = {}
    with torch.no_grad():
        for piece, shared in _walk(policy, bundles, grad=False):
            _write(raws, policy.evaluate(piece, shared, needs), piece, shape)
    return raws


def needs_of(policy: Policy, channel: str, names: set[str]) -> Needs:
    """Channels the policy evaluates itself, and reducers for the rest."""
    own = names & offered(policy, channel)
    return Needs(frozenset(own), {name: REDUCERS[name].fn for name in names - own})


def _shape(rollouts: Rollouts, channel: str) -> tuple[int, int]:
    n, t = rollouts.tables[channel]["mask_nt"].shape
    return int(n), int(t)


def _in_one_pass(bundles: list[Bundle], objective: Objective, own: Rollouts, channel: str, *, alone: bool) -> bool:
    """The pieces of this rank's rows cover what the objective must see at once."""
    held = own.segments.get(channel, {})
    segments = [held[name] for name in sorted(objective.segments & held.keys())]
    mask_nt = own.tables[channel]["mask_nt"]
    return covers(bundles, objective.scope, alone=alone, mask_nt=mask_nt, segments=segments)


def _parts_of_all(bundles: list[Bundle], rollouts: Rollouts, team: Team) -> Tensor:
    """The number of the piece that each row of the whole table lies in, int64 [N]: a rank's after those before it."""
    pieces = [p for b in bundles for p in b.pieces]
    before = sum(team.gather(len(pieces))[: team.rank])
    part = torch.zeros(len(rollouts.mine), dtype=torch.long)
    for at, piece in enumerate(pieces):
        part[piece.rows] = before + at
    return part if team.size == 1 else spread(team, {"part": part}, rollouts, ["part"])["part"]


def _idle(bundle: Bundle, pieces: int) -> Bundle:
    """`pieces` idle repetitions of a bundle's first piece."""
    first = bundle.pieces[0]
    return Bundle([replace(first, idle=True) for _ in range(pieces)], bundle.data)


def _level(bundles: list[Bundle], spare: list[Bundle], team: Team) -> list[Bundle]:
    """The same bundles with idle pieces added until every rank has as many of both. `spare` lends one to a rank that
    has none."""
    told = team.gather([len(b.pieces) for b in bundles])
    if not bundles and not spare and any(told):
        raise ValueError("a sharded policy must keep step with the other ranks: give spare rows to a rank without any")
    out = []
    for at in range(max(len(t) for t in told)):
        most = max(t[at] for t in told if at < len(t))
        if at < len(bundles):
            own = bundles[at]
            out.append(Bundle([*own.pieces, *_idle(own, most - len(own.pieces)).pieces], own.data))
        else:
            out.append(_idle((bundles or spare)[0], most))
    return out


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
    team: Team = ALONE,
    spare: Rollouts | None = None,
) -> Update:
    """Accumulate the gradient of `objective` over all rows of `rollouts`, whose prepared table is `table`.

    two_pass forces the two exact passes. global_counts replaces the counts of the table (rows that are counted, not
    forwarded). keep_scope False lets a policy split below the scope of the stages (never below that of logit reducers),
    which then takes two passes. watch: further channels of the policy for the log (entropy), without influence on the
    gradient. team: both `rollouts` and `table` hold the rows of all ranks; this one runs `rollouts.mine`. spare: rows
    of this rank that a sharded policy can keep step with when it has none in this update.
    """
    scope: Scope = objective.scope if keep_scope else objective.chunk_scope  # type: ignore[assignment]
    own = rollouts if team.size == 1 else rollouts.select(rollouts.mine)

    def bundles_of(some: Rollouts | None) -> list[Bundle]:
        return policy.bundles(some, channel=channel, update=update, scope=scope) if some else []

    bundles = bundles_of(own)
    table = table.updated({"part_n": _parts_of_all(bundles, rollouts, team)}).to(policy.device)
    table = objective.widths_and_weights(table)
    coef, counts = objective.coefficients(table)
    counts = global_counts or counts
    needs = needs_of(policy, channel, objective.needs()[""] | (watch & offered(policy, channel)))
    passes = _Passes(policy, objective, rollouts, table, coef, counts, needs, _shape(rollouts, channel), team)
    twice = two_pass or team.any(not _in_one_pass(bundles, objective, own, channel, alone=team.size == 1))
    in_step = _level(bundles, bundles_of(spare), team) if policy.sharded else bundles
    result = passes.two(bundles, in_step) if twice else passes.one(in_step)
    result.counts = {k: float(v) for k, v in counts.items()}
    return result


def _cut(coef: dict[str, Tensor], piece: Piece) -> dict[str, Tensor]:
    """The piece's part of tables of coefficients: 0 at decisions that are not its own."""
    rows = {k: v[piece.rows] for k, v in coef.items()}
    if piece.columns is not None:
        rows = {k: v[:, piece.columns] for k, v in rows.items()}
    if piece.own is None:
        return rows
    return {k: torch.where(piece.own.to(v.device), v, torch.zeros_like(v)) for k, v in rows.items()}


def _part(table: Table, piece: Piece, channels: dict[str, Tensor]) -> Table:
    """The piece's part of the table with what it evaluated; decisions that are not its own are masked."""
    at = table.piece(piece.rows, piece.columns).updated(channels)
    return (
        at if piece.own is None else at.updated({"mask_nt": at["mask_nt"].bool() & piece.own.to(at["mask_nt"].device)})
    )


@dataclass
class _Passes:
    """One or two passes over the pieces of an update. Table, coefficients and counts are those of all ranks."""

    policy: Policy
    objective: Objective
    rollouts: Rollouts
    table: Table
    coef: dict[str, Tensor]
    counts: dict[str, Tensor]
    needs: Needs
    shape: tuple[int, int]
    team: Team

    def __post_init__(self) -> None:
        self.alone = self.team.size == 1
        self.mine = self.rollouts.mine.to(self.policy.device)
        self.own_shape = (len(self.mine), self.shape[1])

    def one(self, bundles: list[Bundle]) -> Update:
        table = self.table if self.alone else self.table.rows(self.mine)
        coef = self.coef if self.alone else {k: v[self.mine] for k, v in self.coef.items()}
        total = Update(0.0, {}, {}, passes=1, pieces=0)
        seen: dict[str, Tensor] = {}
        for piece, shared in _walk(self.policy, bundles, grad=True):
            raw = self.policy.evaluate(piece, shared, self.needs)
            if piece.idle:
                _backward_nothing(raw)
                continue
            channels = self.policy.combine(_fit(raw, self.shape[1], piece.columns))
            _write(seen, {k: v for k, v in channels.items() if k == "logp_nt"}, piece, self.own_shape)
            outcome = self.objective.terms(_part(table, piece, channels), _cut(coef, piece), self.counts)
            loss = outcome.loss()
            if loss.requires_grad:
                loss.backward()
            _add(total, outcome, loss)
        if not self.alone:
            total, seen = self._of_all_ranks(total), self._spread(seen)
        total.logp_nt = seen["logp_nt"].cpu() if "logp_nt" in seen else None
        return total

    def two(self, bundles: list[Bundle], in_step: list[Bundle]) -> Update:
        with self.policy.whole():
            raws = _raw_tables(self.policy, bundles, self.needs, self.own_shape)
        raws = raws if self.alone else self._spread(raws)
        leaves = {k: v.requires_grad_() for k, v in raws.items()}
        channels = self.policy.combine(leaves)
        outcome = self.objective.terms(self.table.updated(channels), self.coef, self.counts)
        loss = outcome.loss()
        total = Update(0.0, {}, {}, passes=2, pieces=0)
        _add(total, outcome, loss)
        if "logp_nt" in channels:
            total.logp_nt = channels["logp_nt"].detach().cpu()
        slopes = torch.autograd.grad(loss, list(leaves.values()), allow_unused=True, materialize_grads=True)
        slope = {k: v if self.alone else v[self.mine] for k, v in zip(leaves, slopes, strict=True)}
        total.pieces = 0
        for piece, shared in _walk(self.policy, in_step, grad=True):
            raw = self.policy.evaluate(piece, shared, self.needs)
            if piece.idle:
                _backward_nothing(raw)
                continue
            raw = _fit(raw, self.shape[1], piece.columns)
            product = torch.stack([(v * _cut(slope, piece)[k].to(v)).sum() for k, v in raw.items()]).sum()
            if product.requires_grad:
                product.backward()
            total.pieces += 1
        return total

    def _spread(self, tables: dict[str, Tensor]) -> dict[str, Tensor]:
        """Tables of this rank's rows -> of all rows."""
        names = sorted(set().union(*self.team.gather(list(tables))))
        found = spread(self.team, tables, self.rollouts, names)
        return {k: v.to(self.policy.device) for k, v in found.items()}

    def _of_all_ranks(self, own: Update) -> Update:
        """Losses, terms and statistics are sums over pieces, so they add up over ranks."""
        total = Update(0.0, {}, {}, passes=own.passes, pieces=0)
        for loss, terms, stats, pieces in self.team.gather((own.loss, own.terms, own.stats, own.pieces)):
            total.loss += loss
            total.pieces += pieces
            for name, value in terms.items():
                total.terms[name] = total.terms.get(name, 0.0) + value
            for name, (s, n) in stats.items():
                old = total.stats.get(name, (0.0, 0.0))
                total.stats[name] = (old[0] + s, old[1] + n)
        return total


def _backward_nothing(raw: dict[str, Tensor]) -> None:
    """The backward of an idle piece: all gradients are zero."""
    total = torch.stack([torch.where(torch.isfinite(v), v, 0.0).mul(0.0).sum() for v in raw.values()]).sum()
    if total.requires_grad:
        total.backward()


def _add(total: Update, outcome: Outcome, loss: Tensor) -> None:
    total.loss += float(loss.detach())
    total.pieces += 1
    for term in outcome.terms:
        total.terms[term.name] = total.terms.get(term.name, 0.0) + float(term.value().detach())
    for name, (s, n) in outcome.stats.items():
        old = total.stats.get(name, (0.0, 0.0))
        total.stats[name] = (old[0] + float(s), old[1] + float(n))
