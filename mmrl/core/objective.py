"""A recipe as a callable on tables: prepare (once per batch), coefficients (global), terms (per piece, with gradient).

loss = sum over terms of coef * sum / count. Every term has its own GLOBAL count, so micro-batches, pieces and ranks add
up exactly, and a sequence-mean policy term can stand beside a token-mean KL.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

import mmrl.core.catalogue  # noqa: F401  (registers the stages)
from mmrl.core.channels import carries_gradient, split_pass
from mmrl.core.recipe import ChannelSpec, Recipe
from mmrl.core.reducers import REDUCERS
from mmrl.core.refusals import check_names, check_options, check_reachable, check_unit, clip_widths, number
from mmrl.core.registry import SCOPES, Bound, bind
from mmrl.core.table import Table
from mmrl.errors import UserError

#: An advantage that returns a dict may name numbers of the batch like this: they go to the log, not to other stages.
LOGGED = "log/"


@dataclass(frozen=True)
class Term:
    """coef * sum / count is this term's share of the loss; `count` is global, `sum` is of the piece."""

    name: str
    coef: float
    sum: Tensor
    count: Tensor

    def value(self) -> Tensor:
        return self.coef * self.sum / self.count.to(self.sum).clamp(min=1e-12)


@dataclass(frozen=True)
class LossTerm:
    """A term before it meets data: the stage that makes its table and the reduction that counts it. weighted: the
    channel's weights multiply it (the policy term's always; a penalty's where its recipe says `weighted: true`)."""

    name: str
    coef: float
    stage: Bound
    reduce: Bound
    weighted: bool = False


@dataclass
class Outcome:
    """Terms of a piece, and sums for the log: name -> (sum, count) over valid decisions."""

    terms: list[Term]
    stats: dict[str, tuple[Tensor, Tensor]] = field(default_factory=dict)

    def loss(self) -> Tensor:
        return torch.stack([t.value() for t in self.terms]).sum()


class Objective:
    """One channel's objective under a recipe, for a policy whose log-probs have `unit` and that offers `provides`."""

    def __init__(
        self,
        recipe: Recipe,
        *,
        channel: str,
        unit: str,
        provides: frozenset[str],
        keys: frozenset[str] | None = None,
        segments: frozenset[str] | None = None,
        dense: bool = False,
        reduces: bool = True,
    ) -> None:
        """keys, segments: the names that rollouts will carry; None leaves them unchecked. dense: the policy can show
        the output of every decision, so that decisions can have rewards of their own. reduces: it runs logit reducers
        while it evaluates."""
        spec: ChannelSpec = recipe.channel(channel)
        self.recipe, self.unit, self.provides, self.dense = recipe, unit, provides, dense
        self.offered = provides | REDUCERS.keys() if reduces else provides
        self.shape = [bind("shape", s) for s in recipe.shape]
        self.advantage = bind("advantage", recipe.advantage)
        self.select = [bind("select", s) for s in recipe.select]
        self.weight = [bind("weight", s) for s in spec.weight]
        self.bounds = bind("bounds", spec.bounds) if spec.bounds else None
        gate = bind("gate", spec.gate)
        reduce = bind("reduce", spec.reduce)
        self.terms_ = [LossTerm("policy", 1.0, gate, reduce, weighted=True)]
        for p in spec.penalties:
            bound = bind("penalty", p, ignore=("coef", "reduce", "weighted"))
            coef = number(p.get("coef", 1.0), f"recipe {recipe.slug}: penalty {bound.stage.name!r}: coef")
            if coef != 0:  # a coefficient of 0 costs no reference pass
                own = bind("reduce", p["reduce"]) if "reduce" in p else reduce
                weighted = p.get("weighted", False)
                if not isinstance(weighted, bool) or weighted and not self.weight:
                    raise UserError(
                        f"recipe {recipe.slug}: penalty {bound.stage.name!r}: weighted must be true or false, and true "
                        f"needs a `weight`; got {weighted!r}"
                    )
                self.terms_.append(LossTerm(bound.stage.name, coef, bound, own, weighted))
        self._check(f"recipe {recipe.slug}", keys, segments)

    def _check(self, where: str, keys: frozenset[str] | None, segments: frozenset[str] | None) -> None:
        names = [t.name for t in self.terms_]
        for name in names:
            if names.count(name) > 1:
                raise UserError(
                    f"{where}: penalty {name!r} is there twice; each term has one name, coefficient and count"
                )
        for bound in self._all():
            check_unit(bound, self.unit, where)
        widths = clip_widths(self.bounds, self.terms_[0].stage, self.unit, where)
        for bound in self._all():
            check_options(bound, widths, where)
        for bound in self._all():
            fresh = self.recipe.experience == "fresh"
            check_reachable(bound, self.provides, self.offered, fresh=fresh, dense=self.dense, where=where)
            check_names(bound, keys, segments, where)
        if self.shape and "reward_n" not in self.advantage.needs():
            raise UserError(
                f"{where}: advantage {self.advantage.stage.name!r} does not read the reward of the row, so `shape` "
                "would be ignored; remove it"
            )

    def _all(self) -> list[Bound]:
        early = [*self.shape, self.advantage, *self.select, *self.weight, *([self.bounds] if self.bounds else [])]
        return early + [b for t in self.terms_ for b in (t.stage, t.reduce)]

    @property
    def signal_without_variance(self) -> bool:
        return self.advantage.stage.signal_without_variance

    def narrowest_clip(self) -> float | None:
        """The smaller clip width, where it is known without data."""
        if self.bounds is None or self.bounds.stage.required:
            return None
        numbers = [float(v) for v in self.bounds(Table({})).values() if isinstance(v, (int, float))]
        return min(numbers, default=None)

    @property
    def needs_dense(self) -> bool:
        """Some stage reads rewards of single decisions."""
        return self._asks("reward_ntk")

    @property
    def needs_tracker(self) -> bool:
        """Some stage reads the running statistics of each prompt."""
        return self._asks("prompt_mean_n") or self._asks("prompt_std_n")

    @property
    def needs_correct(self) -> str | None:
        """The first stage that reads which answers are right."""
        return next((b.stage.name for b in self._all() if "correct_n" in b.needs(self.provides)), None)

    def _asks(self, channel: str) -> bool:
        return any(channel in bound.needs(self.provides) for bound in self._all())

    @property
    def has_absolute_terms(self) -> bool:
        """Terms that act although the advantages are zero (KL, entropy): rows without variance still matter."""
        return len(self.terms_) > 1 or self.signal_without_variance

    @property
    def scope(self) -> str:
        """What a piece must hold for one pass to be exact: the widest scope among stages of the update."""
        late = [b for b in self.weight if self._late(b)] + [t.stage for t in self.terms_]
        return max([*(b.scope for b in late), self.chunk_scope], key=SCOPES.index)

    @property
    def chunk_scope(self) -> str:
        """What every piece must hold for its logit reducers to be exact, however many passes there are."""
        return max(
            ["decision", *(REDUCERS[base].scope for base in self.needs()[""] if base in REDUCERS)], key=SCOPES.index
        )

    @property
    def segments(self) -> frozenset[str]:
        """The segments by which stages of the update judge: pieces that keep these whole satisfy scope `segment`."""
        late = [b for b in self.weight if self._late(b)] + [t.stage for t in self.terms_]
        return frozenset(name for bound in late for name in bound.segments)

    def needs(self) -> dict[str, set[str]]:
        """Channels the policy must evaluate, by pass: {"": {...}, "old": {...}, "ref": {...}, "sampler": {...}}."""
        out: dict[str, set[str]] = {"": set(), "old": set(), "ref": set(), "sampler": set()}
        for bound in self._all():
            for name in bound.needs(self.provides):
                prefix, base = split_pass(name)
                if (prefix or self._current(name)) and base not in ("adv_nt", "loss_nt"):
                    out[prefix].add(base)
        return out

    def needs_before_update(self) -> dict[str, set[str]]:
        """The same, for stages that run before any update (shape, advantage, select)."""
        out: dict[str, set[str]] = {"": set(), "old": set(), "ref": set(), "sampler": set()}
        for bound in (*self.shape, self.advantage, *self.select):
            for name in bound.needs(self.provides):
                prefix, base = split_pass(name)
                if prefix:
                    out[prefix].add(base)
        return out

    def _early(self, bound: Bound) -> bool:
        return not any(self._current(n) for n in bound.needs(self.provides))

    def _late(self, bound: Bound) -> bool:
        """May run inside the pieces of an update: it reads the current pass, or the old one that it stands in for."""
        return not self._early(bound) or any(split_pass(n)[0] == "old" for n in bound.needs(self.provides))

    @staticmethod
    def _current(name: str) -> bool:
        """A channel of the current pass: it carries gradient, or a reducer fills it."""
        return carries_gradient(name) or name in REDUCERS

    def prepare(self, table: Table) -> Table:
        """Shape, advantage, select on the FULL table of a batch. Adds reward_n (shaped), adv_nt, keep_n. All detached.

        Decisions whose old log-prob is not finite leave the mask, and so every count. An advantage may return more than
        `adv_nt`: tables for later stages, and numbers of the whole batch for the log, named `log/...` (see `told`).
        """
        with torch.no_grad():
            for bound in self.shape:
                table = table.updated({"reward_n": bound(table)})
            mask = table["mask_nt"].bool()
            if "old_logp_nt" in table:
                mask = mask & torch.isfinite(table["old_logp_nt"])
                table = table.updated({"mask_nt": mask})
            adv = self.advantage(table)
            extra: dict[str, Any] = {}
            if isinstance(adv, dict):
                extra, adv = adv, adv["adv_nt"]
            adv_nt = adv[:, None].expand(mask.shape) if adv.dim() == 1 else adv
            adv_nt = torch.where(mask, adv_nt, torch.zeros_like(adv_nt)).contiguous()
            keep = torch.ones(len(mask), dtype=torch.bool, device=mask.device)
            table = table.updated({**extra, "adv_nt": adv_nt})
            for bound in self.select:
                keep &= bound(table)
            return table.updated({"keep_n": keep})

    @staticmethod
    def told(table: Table) -> dict[str, float]:
        """What the advantage says of a prepared table as a whole, for the log."""
        return {k.removeprefix(LOGGED): float(v) for k, v in table.channels.items() if k.startswith(LOGGED)}

    def widths_and_weights(self, table: Table) -> Table:
        """Bounds and those weights that need no current pass, on the full table of an update."""
        with torch.no_grad():
            if self.bounds:
                table = table.updated({k: v for k, v in self.bounds(table).items() if v is not None})
            for at, bound in enumerate(self.weight):
                if self._early(bound) and bound.ready(table, self.provides):
                    table = table.updated({f"weight{at}_nt": bound(table)})
        return table

    def coefficients(self, table: Table) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Per term: coefficient table [N,T] and count, from the full table of one optimiser step."""
        pairs = {t.name: t.reduce(table) for t in self.terms_}
        return {k: v[0] for k, v in pairs.items()}, {k: v[1] for k, v in pairs.items()}

    def terms(self, table: Table, coef: dict[str, Tensor], counts: dict[str, Tensor]) -> Outcome:
        """Terms of one piece. `coef` cut like the table; `counts` global. Without an old pass the current log-probs,
        detached, stand in: the one on-policy update, whose log-ratio is 0 by definition."""
        if "old_logp_nt" not in table and "logp_nt" in table:
            table = table.updated({"old_logp_nt": table["logp_nt"].detach()})
        weight_nt = self._weights(table)
        out, stats = [], {}
        mask = table["mask_nt"].bool()
        n = mask.sum().to(torch.float64)
        for term in self.terms_:
            result = term.stage(table)
            tables = result if isinstance(result, dict) else {"loss_nt": result}
            loss = tables.pop("loss_nt")
            if term.name != "policy":
                tables[f"{term.name}_nt"] = loss
            if term.weighted and weight_nt is not None:
                loss = loss * weight_nt
            c = coef[term.name].to(loss)
            part = torch.where(c != 0, loss, torch.zeros_like(loss)).mul(c).sum()
            out.append(Term(term.name, term.coef, part, counts[term.name]))
            stats.update({k.removesuffix("_nt"): self._stat(v, mask, n) for k, v in tables.items()})
        if "entropy_nt" in table:
            stats["entropy"] = self._stat(table["entropy_nt"], mask, n)
        return Outcome(out, stats)

    def _weights(self, table: Table) -> Tensor | None:
        parts = []
        for at, bound in enumerate(self.weight):
            parts.append(table[f"weight{at}_nt"] if f"weight{at}_nt" in table else bound(table).detach())
        if not parts:
            return None
        total = parts[0]
        for part in parts[1:]:
            total = total * part
        return total

    @staticmethod
    def _stat(x_nt: Tensor, mask: Tensor, n: Tensor) -> tuple[Tensor, Tensor]:
        x = x_nt.detach()
        return torch.where(mask, x, torch.zeros_like(x)).sum().to(torch.float64), n
