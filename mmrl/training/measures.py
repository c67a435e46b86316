"""What a step logs, computed from tables: rewards and rollouts before the update, losses and ratios after it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import Any

import torch

from mmrl.core.table import Table
from mmrl.training.batch import Scored
from mmrl.training.exchange import thumbnail
from mmrl.training.update import Update


def of_rewards(scored: Scored, channel: str) -> dict[str, Any]:
    """Means over the rows of one step. Shares are in [0, 1]; lengths in decisions."""
    rollouts = scored.rollouts
    if not len(rollouts):
        return {"rows": 0}
    reward_n = scored.reward_n
    known = reward_n[torch.isfinite(reward_n)]
    prompts = rollouts.keys["prompt"]
    lengths = torch.tensor([float(row["length"]) for row in rollouts.info])
    out: dict[str, Any] = {
        "rows": len(rollouts),
        "reward": float(known.mean()) if len(known) else float("nan"),
        "reward_std": float(known.std()) if len(known) > 1 else 0.0,
        "flat_groups": float(scored.flat_n().double().mean()),
        "length": float(lengths.mean()),
        "truncated": sum(not row["finished"] for row in rollouts.info) / len(rollouts),
        "distinct": len({(int(p), _same(o)) for p, o in zip(prompts, rollouts.outputs, strict=True)}) / len(rollouts),
        "decisions": int(rollouts.tables[channel]["mask_nt"].sum()),
    }
    if isinstance(rollouts.outputs[0], torch.Tensor):
        out["spread"] = _spread(rollouts.outputs, prompts)
    for k, name in enumerate(scored.names):
        column = scored.reward_nk[:, k]
        column = column[torch.isfinite(column)]
        if len(column):
            out[f"reward/{name}"] = float(column.mean())
            out[f"reward/{name}/std"] = float(column.std()) if len(column) > 1 else 0.0
    return out


def _same(output: Any) -> str | bytes:
    """Equal for equal outputs: text as it is, a picture by the values of its thumbnail."""
    return thumbnail(output).numpy().tobytes() if isinstance(output, torch.Tensor) else str(output)


def _spread(pictures: Sequence[torch.Tensor], prompt_n: torch.Tensor) -> float:
    """Deviation of each pixel of the thumbnails of a prompt's pictures, averaged over pixels and prompts."""
    groups = [(prompt_n == prompt).nonzero()[:, 0].tolist() for prompt in torch.unique(prompt_n)]
    each = [torch.stack([thumbnail(pictures[i]) for i in rows]).std(0, correction=0).mean() for rows in groups]
    return float(torch.stack(each).mean())


def sampler_gap(update: Update, table: Table) -> tuple[float, float] | None:
    """(largest, mean) |ratio - 1| between the update's own pass and the sampler, over trained decisions.

    A bound has no sampler to be compared with: there it is the old pass, whose rows a policy of such models cuts
    otherwise; with the masks they share both must agree.
    """
    other = next((name for name in ("sampler_logp_nt", "old_logp_nt") if name in table), None)
    if update.logp_nt is None or other is None:
        return None
    mask = table["mask_nt"].bool()
    gap = (update.logp_nt - table[other].to(update.logp_nt))[mask].clamp(-20, 20).exp().sub(1).abs()
    return (float(gap.max()), float(gap.mean())) if len(gap) else None


class UpdateLog:
    """Adds up the updates of one step."""

    def __init__(self) -> None:
        self.updates: list[Update] = []
        self.norms: list[float] = []
        self.stepped = 0
        self.gap: tuple[float, float] | None = None

    def add(self, update: Update, norm: float, stepped: bool, table: Table | None) -> None:
        """`table`: None where two passes differ by nature (dropout) and a gap would say nothing."""
        if not self.updates and table is not None:  # no weight has changed since sampling
            self.gap = sampler_gap(update, table)
        self.updates.append(update)
        self.norms.append(norm)
        self.stepped += stepped

    def values(self, lr: float, skipped: int) -> dict[str, Any]:
        out: dict[str, Any] = {"updates": self.stepped, "skipped_updates": skipped, "lr": lr}
        n = max(1, len(self.updates))
        if self.updates:
            out["loss"] = sum(u.loss for u in self.updates) / n
            out["grad_norm"] = sum(self.norms) / n
            for name in self.updates[0].terms:
                out[f"loss/{name}"] = sum(u.terms[name] for u in self.updates) / n
            for name in self.updates[0].stats:
                total = sum(u.stats[name][0] for u in self.updates)
                out[name] = total / max(1.0, sum(u.stats[name][1] for u in self.updates))
        if self.gap is not None:
            out["sampler_gap"], out["sampler_gap_mean"] = self.gap
        return out


@contextmanager
def entered(contexts: Sequence[AbstractContextManager[None]]) -> Iterator[None]:
    """All contexts at once."""
    with ExitStack() as stack:
        for context in contexts:
            stack.enter_context(context)
        yield
