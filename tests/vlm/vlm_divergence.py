"""The divergence of groups from whole tables of log-probabilities, row by row: what chunks are tested against."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from mmrl.training.policy import Needs
from mmrl.training.rollouts import Rollouts


def log_probabilities(policy: Any, rollouts: Rollouts) -> Tensor:
    """[N, T, V] of the ids that can be drawn, by a reducer that keeps what it sees."""
    kept: dict[int, Tensor] = {}
    allowed = torch.isfinite(policy.head().forbidden)

    def keep(logits_ncv: Tensor, hidden_ncd: Tensor, rows_n: Tensor, columns_c: Tensor) -> Tensor:
        for i, row in enumerate(rows_n.tolist()):
            for j, column in enumerate(columns_c.tolist()):
                kept[row * 1000 + column] = torch.log_softmax(logits_ncv[i, j, allowed], -1)
        return logits_ncv[..., 0]

    with torch.no_grad():
        for bundle in policy.bundles(rollouts, channel="tokens", update=0, scope="decision"):
            shared = policy.open(bundle, grad=False)
            for piece in bundle.pieces:
                policy.evaluate(piece, shared, Needs(frozenset(), {"kept_nt": keep}))
    width = rollouts.tables["tokens"]["mask_nt"].shape[1]
    return torch.stack([torch.stack([kept[i * 1000 + t] for t in range(width)]) for i in range(len(rollouts))])


def by_rows(policy: Any, rollouts: Rollouts) -> dict[str, Tensor]:
    """All four forms, [N, T]."""
    logp_ntv, mask = log_probabilities(policy, rollouts), rollouts.tables["tokens"]["mask_nt"]
    names = {"divergence_nt": (0, 0), "divergence_active_nt": (0, 1), "js_nt": (1, 0), "js_active_nt": (1, 1)}
    out = {name: torch.zeros(mask.shape, dtype=torch.float64) for name in names}
    uniform = torch.full_like(logp_ntv[0, 0], -math.log(logp_ntv.shape[2]))
    key = rollouts.keys["prompt"].tolist()
    for name, (calibrated, active) in names.items():
        for i, k in enumerate(key):
            members = [j for j in range(len(key)) if key[j] == k]
            for t in mask[i].nonzero()[:, 0].tolist():
                rows = [logp_ntv[j, t] if mask[j, t] else uniform for j in members if mask[j, t] or not active]
                logp = torch.stack(rows)
                d = (logp.mean(0) - logp).clamp(-11, 11)
                kl = (logp.exp() * (logp - logp.exp().mean(0).log())).sum(-1)
                out[name][i, t] = (kl if calibrated else (d.exp() - d - 1).sum(-1)).mean()
    return out
