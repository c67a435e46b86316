"""TW-GRPO and Reg-GRPO in one file, float64, plain loops: to be read from top to bottom.

Nothing here is fast and nothing is imported from the toolkit; the tests compare the toolkit with this file.

  python examples/reference/tw_grpo.py        weights of a small ragged group, then both losses

Notation. One group of G members; logits [G][T][V], what each member saw at each position; length [G]; logp, old_logp
[G][T] of the chosen tokens; rewards [G]. Members are aligned by position from the start of their answers.

Papers: TW-GRPO arXiv 2505.24718 (official code), DeepVideo-R1 arXiv 2506.07464 (paper; s_min is ours).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

F = torch.float64

# -------------------------------------------------------------------------------- 1. where does the group disagree?


def divergence(logits: Tensor, length: list[int], *, calibrated: bool = False, active: bool = False) -> list[float]:
    """D of each position up to the end of the longest member. A member that has ended counts as uniform, or, with
    active, not at all. Constants: nothing here is differentiated."""
    members, _, ids = logits.shape
    found = []
    for t in range(max(length)):
        logp = []
        for i in range(members):
            if t < length[i]:
                logp.append(torch.log_softmax(logits[i, t].detach().to(F), -1))
            elif not active:
                logp.append(torch.full((ids,), -math.log(ids), dtype=F))
        each = []
        for own in logp:
            if calibrated:  # KL of a member to the mean of all: the generalised Jensen-Shannon divergence
                mean = sum(p.exp() for p in logp) / len(logp)
                each.append(float((own.exp() * (own - torch.as_tensor(mean).log())).sum()))
            else:  # the official form: the reference is a mean in log space, and rare tokens weigh like likely ones
                d = (sum(logp) / len(logp) - own).clamp(-11, 11)
                each.append(float((d.exp() - d - 1).sum()))
        found.append(sum(each) / len(each))
    return found


def weights(found: list[float], length: list[int], alpha: float = 1.7, *, active: bool = False) -> list[list[float]]:
    """[G][T]: 1 where the group agrees most, alpha where it disagrees most, 0 beyond a member's end."""
    counts = [sum(t < n for n in length) for t in range(len(found))]
    used = [d for d, n in zip(found, counts) if n >= (2 if active else 1)]
    out = []
    for n in length:
        row = []
        for t, d in enumerate(found):
            score = (d - min(used)) / (max(used) - min(used) + 1e-8) if counts[t] >= (2 if active else 1) else 0.0
            row.append((1 + (alpha - 1) * score) if t < n else 0.0)
        out.append(row)
    return out


# -------------------------------------------------------------------------------- 2. advantages and losses


def advantages(rewards: list[float], ddof: int = 1, eps: float = 1e-4) -> list[float]:
    mean = sum(rewards) / len(rewards)
    std = math.sqrt(sum((r - mean) ** 2 for r in rewards) / (len(rewards) - ddof))
    return [0.0 if max(rewards) - min(rewards) <= 1e-8 else (r - mean) / (std + eps) for r in rewards]


def tw_grpo(
    logp: Tensor, old_logp: Tensor, adv: list[float], weight: list[list[float]], low: float = 0.2, high: float = 0.28
) -> Tensor:
    """Weighted clipped losses over the number of tokens. All weights 1: the token mean of GRPO (DAPO's aggregation)."""
    total, count = torch.zeros((), dtype=F), 0
    for i, row in enumerate(weight):
        for t, w in enumerate(row):
            if w > 0:
                ratio = (logp[i, t] - old_logp[i, t].detach()).exp()
                inside = ratio.clamp(1 - low, 1 + high)
                total = total - w * torch.minimum(ratio * adv[i], inside * adv[i])
                count += 1
    return total / count


def reg_grpo(logp: Tensor, old_logp: Tensor, adv: list[float], length: list[int], s_min: float = 0.1) -> Tensor:
    """The standardised log-ratios of whole answers are regressed onto the advantages. Differentiated through the
    log-ratios, their mean and, above s_min, their deviation."""
    rho = [(logp[i, :n] - old_logp[i, :n].detach()).sum() for i, n in enumerate(length)]
    mean = torch.stack(rho).mean()
    square = torch.stack([(r - mean) ** 2 for r in rho]).mean()
    scale = square.sqrt() if float(square) > s_min**2 else s_min
    return torch.stack([(a - (r - mean) / scale) ** 2 for a, r in zip(adv, rho)]).mean()


def main() -> None:
    g = torch.Generator().manual_seed(0)
    length = [5, 2, 4]
    logits = torch.randn(3, 5, 6, generator=g, dtype=F)
    logits[:, 0] = logits[0, 0]  # they agree about the first token
    logp, old = -torch.rand(3, 5, generator=g, dtype=F), -torch.rand(3, 5, generator=g, dtype=F)
    for active in (False, True):
        found = divergence(logits, length, active=active)
        print("active members" if active else "official", "D", [round(d, 2) for d in found])
        for row in weights(found, length, active=active):
            print("   w", [round(w, 2) for w in row])
    weight = weights(divergence(logits, length), length)
    print("TW-GRPO ", float(tw_grpo(logp, old, advantages([1.0, 0.0, 0.5]), weight)))
    print("Reg-GRPO", float(reg_grpo(logp, old, advantages([1.0, 0.0, 0.5], ddof=0, eps=1e-8), length)))


if __name__ == "__main__":
    main()
