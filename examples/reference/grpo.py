"""GRPO and its classic variants in one file, float64, plain loops: to be read from top to bottom.

Nothing here is fast and nothing is imported from the toolkit; the tests compare the toolkit with this file.

  python examples/reference/grpo.py        trains a table of logits on three tiny prompts, seconds on a CPU

Notation. N samples, T decisions (tokens) in the longest one. rewards [N]; group [N], equal numbers share a prompt;
logp, old_logp, ref_logp [N][T]; mask [N][T], 1 where a decision counts. Every loss is minimised.

Papers: GRPO arXiv 2402.03300, Dr.GRPO 2503.20783, DAPO 2503.14476, RLOO 2402.14740, REINFORCE++ 2501.03262,
GSPO 2507.18071, CISPO 2506.13585, dual clip 1912.09729.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

F = torch.float64

# -------------------------------------------------------------------------------- 1. advantages


def members(group: list[int]) -> list[list[int]]:
    """Rows of each group. Groups may be ragged and scattered."""
    return [[i for i, g in enumerate(group) if g == name] for name in sorted(set(group))]


def mean(values: list[float]) -> float:
    return sum(values) / len(values)


def deviation(values: list[float], ddof: int) -> float:
    """ddof 1: unbiased (verl, TRL); 0: of the population."""
    centre = mean(values)
    return math.sqrt(sum((v - centre) ** 2 for v in values) / (len(values) - ddof))


def advantages(
    rewards: list[float], group: list[int], kind: str = "grpo", ddof: int = 1, eps: float = 1e-6
) -> list[float]:
    """One number a sample. A group whose rewards are all equal, or that has one member, says nothing: 0."""
    out = [0.0] * len(rewards)
    everyone = deviation(rewards, ddof) if len(rewards) > 1 else 0.0
    for rows in members(group):
        own = [rewards[i] for i in rows]
        if max(own) - min(own) <= 1e-8:
            continue
        for i in rows:
            if kind == "grpo":
                out[i] = (rewards[i] - mean(own)) / (deviation(own, ddof) + eps)
            elif kind == "dr-grpo":  # no division: easy and hard prompts weigh as they come
                out[i] = rewards[i] - mean(own)
            elif kind == "batch-std":  # one deviation for the whole batch
                out[i] = (rewards[i] - mean(own)) / (everyone + eps)
            elif kind == "rloo":  # the baseline is the mean of the others
                out[i] = rewards[i] - mean([rewards[j] for j in rows if j != i])
            else:
                raise ValueError(kind)
    return out


def whiten(values: list[list[float]], mask: list[list[int]]) -> list[list[float]]:
    """Over all valid decisions of the batch, unbiased variance, 1e-8 under the root."""
    flat = [v for row, m in zip(values, mask) for v, use in zip(row, m) if use]
    centre = mean(flat)
    scale = math.sqrt(sum((v - centre) ** 2 for v in flat) / (len(flat) - 1) + 1e-8)
    return [[(v - centre) / scale if use else 0.0 for v, use in zip(row, m)] for row, m in zip(values, mask)]


def reinforce_pp(
    rewards: list[float],
    mask: list[list[int]],
    k1: list[list[float]] | None = None,
    gamma: float = 1.0,
    beta_kl: float = 0.0,
) -> list[list[float]]:
    """REINFORCE++: the reward sits on the last valid decision, KL (k1) is paid on each; returns, then whitening."""
    returns = [[0.0] * len(row) for row in mask]
    for i, row in enumerate(mask):
        valid = [t for t, use in enumerate(row) if use]
        running = 0.0
        for t in reversed(valid):
            paid = rewards[i] if t == valid[-1] else 0.0
            if beta_kl and k1 is not None:
                paid -= beta_kl * k1[i][t]
            running = paid + gamma * running
            returns[i][t] = running
    return whiten(returns, mask)


def reinforce_pp_baseline(rewards: list[float], group: list[int], mask: list[list[int]]) -> list[list[float]]:
    centred = advantages(rewards, group, "dr-grpo")
    return whiten([[centred[i]] * len(row) for i, row in enumerate(mask)], mask)


def overlong_penalty(length: float, max_length: float, cache: float) -> float:
    """DAPO: free up to max_length - cache, then a slope, then -1. Added to the reward."""
    free = max_length - cache
    if length <= free:
        return 0.0
    return (free - length) / cache if length <= max_length else -1.0


# -------------------------------------------------------------------------------- 2. loss of a decision


def log_ratio(logp: Tensor, old_logp: Tensor) -> Tensor:
    """Clamped before it is exponentiated; the gradient is zero outside."""
    return (logp - old_logp.detach()).clamp(-20, 20)


def clip_loss(ratio: Tensor, adv: float, low: float, high: float, dual_clip: float | None = None) -> Tensor:
    """The pessimistic of the plain and the clipped surrogate. PPO, GRPO: low = high = 0.2; DAPO: 0.2 / 0.28."""
    loss = -torch.minimum(ratio * adv, ratio.clamp(1 - low, 1 + high) * adv)
    if dual_clip is not None and adv < 0:
        loss = torch.minimum(loss, torch.tensor(-dual_clip * adv, dtype=F))
    return loss


def sequence_ratio(logp: Tensor, old_logp: Tensor, mask: list[int]) -> Tensor:
    """GSPO: the geometric mean of the ratios of a row."""
    valid = [t for t, use in enumerate(mask) if use]
    return torch.stack([logp[t] - old_logp[t].detach() for t in valid]).mean().clamp(-20, 10).exp()


def policy_loss(
    gate: str,
    logp: Tensor,
    old_logp: Tensor,
    adv: list[list[float]],
    mask: list[list[int]],
    low: float = 0.2,
    high: float = 0.2,
    dual_clip: float | None = None,
) -> list[list[Tensor]]:
    """[N][T] losses; 0 where masked."""
    zero = torch.zeros((), dtype=F)
    out = [[zero for _ in row] for row in mask]
    for i, row in enumerate(mask):
        for t, use in enumerate(row):
            if not use:
                continue
            a = adv[i][t]
            ratio = log_ratio(logp[i, t], old_logp[i, t]).exp()
            if gate == "ppo-clip":
                out[i][t] = clip_loss(ratio, a, low, high, dual_clip)
            elif gate == "gspo":  # value of the row's ratio, gradient through this decision
                s = sequence_ratio(logp[i], old_logp[i], row).detach()
                out[i][t] = clip_loss(s * (logp[i, t] - logp[i, t].detach()).exp(), a, low, high, dual_clip)
            elif gate == "cispo":  # the clipped ratio is a weight: every decision keeps a gradient
                out[i][t] = -ratio.clamp(max=1 + high).detach() * a * logp[i, t]
            elif gate == "reinforce":
                out[i][t] = -a * logp[i, t]
            else:
                raise ValueError(gate)
    return out


def kl(logp: Tensor, ref_logp: Tensor, estimator: str = "k3") -> Tensor:
    """Of one decision, d = ref - now. k3 is never negative and is GRPO's."""
    d = (ref_logp.detach() - logp).clamp(-20, 20)
    k2, k3 = d * d / 2, d.exp() - d - 1
    return {"k1": -d, "k2": k2, "k3": k3, "k3+": k2 - k2.detach() + k3.detach()}[estimator]


# -------------------------------------------------------------------------------- 3. aggregation


def aggregate(loss: list[list[Tensor]], mask: list[list[int]], mode: str, length: float = 1.0) -> Tensor:
    """[N][T] losses -> one number. length: the longest completion, for Dr.GRPO's constant."""
    rows = [[x for x, use in zip(row, m) if use] for row, m in zip(loss, mask)]
    filled = [row for row in rows if row]
    everything = torch.stack([x for row in filled for x in row])
    if mode == "token-mean":  # DAPO: every decision weighs the same
        return everything.mean()
    if mode == "seq-mean-token-mean":  # GRPO: every row weighs the same
        return torch.stack([torch.stack(row).mean() for row in filled]).mean()
    if mode == "seq-mean-token-sum":
        return torch.stack([torch.stack(row).sum() for row in filled]).mean()
    if mode == "seq-mean-token-sum-norm":  # Dr.GRPO: a constant instead of the length
        return everything.sum() / (len(rows) * length)
    raise ValueError(mode)


def grpo_loss(
    logp: Tensor,
    old_logp: Tensor,
    ref_logp: Tensor,
    rewards: list[float],
    group: list[int],
    mask: list[list[int]],
    beta: float = 0.04,
    eps: float = 1e-6,
) -> Tensor:
    """The whole of GRPO: group advantage, clipped surrogate, k3 to the reference, mean over rows of token means."""
    adv = advantages(rewards, group, eps=eps)
    loss = policy_loss("ppo-clip", logp, old_logp, [[adv[i]] * len(row) for i, row in enumerate(mask)], mask)
    for i, row in enumerate(mask):
        for t, use in enumerate(row):
            if use:
                loss[i][t] = loss[i][t] + beta * kl(logp[i, t], ref_logp[i, t])
    return aggregate(loss, mask, "seq-mean-token-mean")


# -------------------------------------------------------------------------------- 4. a run


def main() -> None:
    """Three prompts, words of four letters out of five; the reward of prompt p is the share of letter p."""
    prompts, letters, length, samples = 3, 5, 4, 8
    generator = torch.Generator().manual_seed(0)
    logits = torch.zeros(prompts, length, letters, dtype=F, requires_grad=True)
    optimiser = torch.optim.Adam([logits], lr=0.1)
    reference = logits.detach().log_softmax(-1)
    for step in range(41):
        group = [p for p in range(prompts) for _ in range(samples)]
        now = logits.log_softmax(-1)[group]  # [N, T, V]
        ids = torch.multinomial(now.detach().exp().flatten(0, 1), 1, generator=generator).view(len(group), length)
        rewards = [float((row == p).double().mean()) for row, p in zip(ids, group)]
        logp = now.gather(-1, ids[..., None])[..., 0]
        ref_logp = reference[group].gather(-1, ids[..., None])[..., 0]
        mask = [[1] * length for _ in group]
        loss = grpo_loss(logp, logp.detach(), ref_logp, rewards, group, mask, beta=0.01)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        if step % 10 == 0:
            print(f"step {step:3d}   mean reward {mean(rewards):.3f}   (chance 0.200)")


if __name__ == "__main__":
    main()
