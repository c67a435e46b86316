"""Scorers whose ELBO is known exactly: what estimators are measured against. Axes: m masks, l positions, v tokens.

Transformer  two layers, random weights: every mask is enumerated. Its log-probabilities hardly depend on the mask.
Chain        tokens of a Markov chain: what is known of a masked token depends on its nearest visible neighbours only,
             so that the ELBO is a finite sum over their distances a, b:
             sum_i sum_ab B(a + b - 1, v + 1) lp(i | a, b), v of the two visible (the rest of the gap is masked).
             Tokens differ much: most are known from a neighbour, one in twenty is a surprise.
Smooth       a token's log-probability falls with the number j of masked ones among its 8 nearest; tokens are alike.
             ELBO = sum_i mean over k of sum_j Hypergeometric(j; L - 1, 8, k - 1) lp_i(j).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from dlm.likelihood import exact

SHORT, LONG = 8, 32


class Transformer:
    """Bidirectional, 16 tokens and a mask, width 32, float64, L = 8."""

    length = SHORT

    def __init__(self, seed: int) -> None:
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            layer = nn.TransformerEncoderLayer(32, 4, 64, dropout=0.0, batch_first=True, norm_first=True)
            self.body = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False).double().eval()
            self.embed = torch.randn(17, 32, dtype=torch.float64)
            self.place = torch.randn(SHORT, 32, dtype=torch.float64)
            self.head = torch.randn(32, 16, dtype=torch.float64) / 32**0.5 * 1.5
            self.answer = torch.randint(0, 16, (SHORT,))
        self.table = self._all()

    @torch.no_grad()
    def _all(self) -> Tensor:
        masks_ml = torch.cat([torch.zeros(1, SHORT, dtype=torch.bool), exact.all_masks(SHORT)])
        ids_ml = torch.where(masks_ml, 16, self.answer)
        logits = nn.functional.layer_norm(self.body(self.embed[ids_ml] + self.place), (32,)) @ self.head
        return logits.log_softmax(dim=-1).gather(2, self.answer.expand(len(masks_ml), -1)[..., None])[..., 0]

    def __call__(self, masks_ml: Tensor) -> Tensor:
        return self.table[(masks_ml.long() << torch.arange(SHORT)).sum(dim=1)]

    def elbo(self) -> float:
        return exact.elbo(self, SHORT)


class Chain:
    """An answer of a chain with low entropy, scored by the conditionals of the same chain blurred by `blur`.

    The truth has 32 tokens and moves to 2 likely successors; with blur 0 the ELBO is the log-likelihood itself.
    """

    def __init__(self, seed: int, *, blur: float = 0.1, length: int = LONG, tokens: int = 32) -> None:
        g = torch.Generator().manual_seed(seed)
        truth = _truth(g, tokens)
        state = int(torch.randint(0, tokens, (1,), generator=g))
        answer = []
        for _ in range(length):
            answer.append(state)
            state = int(torch.multinomial(truth[state], 1, generator=g))
        self.length, self.answer = length, torch.tensor(answer)
        self.first = torch.full((tokens,), 1 / tokens, dtype=torch.float64)
        self.step = (1 - blur) * truth + blur / tokens
        self.table = self._table()

    def _table(self) -> Tensor:
        """lp[i, a, b], nearest visible token a to the left, b to the right (a = i + 1, b = L - i: none)."""
        length, y = self.length, self.answer
        powers = [torch.eye(len(self.first), dtype=torch.float64)]
        for _ in range(length):
            powers.append(powers[-1] @ self.step)
        out = torch.full((length, length + 1, length + 1), math.nan, dtype=torch.float64)
        for i in range(length):
            for a in range(1, i + 2):
                left_v = self.first @ powers[i] if a == i + 1 else powers[a][y[i - a]]
                for b in range(1, length - i + 1):
                    both_v = left_v if b == length - i else left_v * powers[b][:, y[i + b]]
                    out[i, a, b] = torch.log(both_v[y[i]] / both_v.sum())
        return out

    def __call__(self, masks_ml: Tensor) -> Tensor:
        """0 where a token is visible: it is never read."""
        at_l = torch.arange(self.length)
        seen_ml = torch.where(masks_ml, -1, at_l)
        left_ml = at_l - seen_ml.cummax(dim=1).values
        seen_ml = torch.where(masks_ml, self.length, at_l).flip(1)
        right_ml = seen_ml.cummin(dim=1).values.flip(1) - at_l
        found_ml = self.table[at_l, left_ml, right_ml]
        return torch.where(masks_ml, found_ml, torch.zeros_like(found_ml))

    def elbo(self) -> float:
        """The finite sum."""
        total = 0.0
        for i in range(self.length):
            for a in range(1, i + 2):
                for b in range(1, self.length - i + 1):
                    visible = (a <= i) + (b < self.length - i)
                    gap = a + b - 1
                    beta = math.exp(math.lgamma(gap) + math.lgamma(visible + 1) - math.lgamma(gap + visible + 1))
                    total += beta * float(self.table[i, a, b])
        return total

    def log_likelihood(self) -> float:
        """Of the answer under the blurred chain."""
        moves = self.step[self.answer[:-1], self.answer[1:]].log().sum()
        return float(moves + self.first[self.answer[0]].log())


class Smooth:
    """lp_i = -a_i (0.1 + 3.4 (j / 8)^1.5), j masked of the 8 nearest on a ring of 32, a_i uniform on 0.8 .. 1.2."""

    length, near = LONG, 8

    def __init__(self, seed: int, *, steep: float = 1.0) -> None:
        g = torch.Generator().manual_seed(seed)
        self.scale = 0.8 + 0.4 * torch.rand(self.length, generator=g, dtype=torch.float64)
        self.level_j = 0.1 + 3.4 * steep * (torch.arange(self.near + 1, dtype=torch.float64) / self.near) ** 1.5

    def __call__(self, masks_ml: Tensor) -> Tensor:
        shifts = [s for s in range(-self.near // 2, self.near // 2 + 1) if s]
        hidden_ml = torch.stack([masks_ml.roll(s, dims=1) for s in shifts]).sum(dim=0)
        return -self.scale * self.level_j[hidden_ml]

    def elbo(self) -> float:
        mean_level = 0.0
        for k in range(1, self.length + 1):
            for j in range(self.near + 1):
                ways = math.comb(self.near, j) * math.comb(self.length - 1 - self.near, k - 1 - j) if j < k else 0
                mean_level += ways / math.comb(self.length - 1, k - 1) * float(self.level_j[j]) / self.length
        return -mean_level * float(self.scale.sum())


def _truth(g: torch.Generator, tokens: int) -> Tensor:
    """Every token has two likely successors, 0.7 and 0.25, and the rest of 0.05 goes anywhere; doubly stochastic."""
    one, two = torch.randperm(tokens, generator=g), torch.randperm(tokens, generator=g)
    eye = torch.eye(tokens, dtype=torch.float64)
    return 0.7 * eye[one] + 0.25 * eye[two] + 0.05 / tokens
