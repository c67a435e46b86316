"""The output layer by chunks: values, gradients, kept sets, reducers."""

from __future__ import annotations

import math

import pytest
import torch

from mmrl.core.head import score_plainly
from mmrl.vlm.head import Choice, Head, choice, reduce_logits, score
from mmrl.vlm.rows import Kept

V, D, M = 11, 5, 9
SUPPRESSED = [2, 7]


def problem(*, bias: bool = False, kept: bool = False) -> tuple[torch.Tensor, Head, Choice]:
    g = torch.Generator().manual_seed(0)
    hidden = torch.randn(M, D, generator=g, dtype=torch.float64).requires_grad_()
    weight = torch.randn(V, D, generator=g, dtype=torch.float64).requires_grad_()
    b = torch.randn(V, generator=g, dtype=torch.float64).requires_grad_() if bias else None
    forbidden = torch.zeros(V, dtype=torch.float64)
    forbidden[SUPPRESSED] = -torch.inf
    ids = torch.tensor([0, 1, 3, 4, 5, 6, 8, 9, 10])
    temperature = torch.linspace(0.5, 2.0, M, dtype=torch.float64)
    flat = counts = None
    if kept:
        sets = [[0, 1], [1], [0, 3, 5], [], [5, 9], [], [8, 0], [9], [10, 1, 3, 4]]
        flat = torch.tensor([i for s in sets for i in s])
        counts = torch.tensor([len(s) for s in sets])
    return hidden, Head(weight, b, forbidden, torch.float64), Choice(ids, temperature, flat, counts)


def test_two_tokens_by_hand() -> None:
    """Logits (1, 2, 3), the last one suppressed, temperature 1/2: probabilities of (2, 4)."""
    head = Head(torch.eye(3), None, torch.tensor([0.0, 0.0, -torch.inf]), torch.float32)
    chosen = Choice(torch.tensor([0]), torch.tensor([0.5]))
    logp, entropy = score(torch.tensor([[1.0, 2.0, 3.0]]), head, chosen, size=4, entropy=True)
    p = 1 / (1 + math.exp(2))
    assert logp.item() == pytest.approx(math.log(p), abs=1e-6)
    assert entropy.item() == pytest.approx(-p * math.log(p) - (1 - p) * math.log(1 - p), abs=1e-6)


def test_kept_ids_renormalise() -> None:
    """Logits (0, 1, 2, 3), ids 1 and 3 kept."""
    head = Head(torch.eye(4), None, torch.zeros(4), torch.float32)
    chosen = Choice(torch.tensor([1]), torch.tensor([1.0]), torch.tensor([1, 3]), torch.tensor([2]))
    logp, _ = score(torch.tensor([[0.0, 1.0, 2.0, 3.0]]), head, chosen, size=4)
    assert logp.item() == pytest.approx(-math.log(1 + math.exp(2)), abs=1e-6)


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("kept", [False, True])
@pytest.mark.parametrize("size", [1, 2, 4, 8])
def test_chunks_change_nothing(bias: bool, kept: bool, size: int) -> None:
    """Values and gradients of hidden, weight and bias against one chunk and against a whole table left to autograd."""
    found = []
    for chunk in (None, M, size):
        hidden, head, chosen = problem(bias=bias, kept=kept)
        if chunk is None:
            logp, entropy = score_plainly(hidden, head, chosen, entropy=True)
        else:
            logp, entropy = score(hidden, head, chosen, size=chunk, entropy=True)
        (logp * torch.arange(M)).sum().add((entropy * torch.arange(M).flip(0)).sum()).backward()
        grads = [hidden.grad, head.weight.grad] + ([head.bias.grad] if head.bias is not None else [])
        assert all(g is not None and g.isfinite().all() for g in grads)
        found.append([logp.detach(), entropy.detach(), *grads])
    for whole, *chunked in zip(*found, strict=True):
        assert all((whole - c).abs().max() < 1e-12 for c in chunked)


@pytest.mark.parametrize("size", [2, M])
def test_gradcheck(size: int) -> None:
    hidden, head, chosen = problem(kept=True)

    def run(h: torch.Tensor, w: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return score(h, Head(w, None, head.forbidden, head.dtype), chosen, size=size, entropy=True)

    assert torch.autograd.gradcheck(run, (hidden, head.weight))


def test_frozen_weight_gets_no_gradient() -> None:
    hidden, head, chosen = problem()
    head.weight.requires_grad_(False)
    logp, _ = score(hidden, head, chosen, size=2)
    logp.sum().backward()
    assert head.weight.grad is None and hidden.grad is not None


def test_chunks_bound_the_logits() -> None:
    """No tensor of M x V elements is ever saved or made with small chunks."""
    largest = 0

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
            nonlocal largest
            out = func(*args, **(kwargs or {}))
            for x in out if isinstance(out, (tuple, list)) else [out]:
                if (
                    isinstance(x, torch.Tensor) and x.dim() == 2 and x.shape[1] == V and x.shape[0] != D
                ):  # not the weight
                    largest = max(largest, x.shape[0])
            return out

    hidden, head, chosen = problem()
    with Watch():
        score(hidden, head, chosen, size=2, entropy=True)[0].sum().backward()
    assert largest == 2


def test_choice_takes_real_positions_row_after_row() -> None:
    ids = torch.tensor([[1, 2, 0], [3, 4, 5]])
    mask = torch.tensor([[True, True, False], [True, True, True]])
    kept = [None, Kept(torch.tensor([3, 4, 9, 5]), torch.tensor([1, 2, 1]))]
    chosen = choice(ids, mask, torch.tensor([1.0, 0.5]), kept)
    assert chosen.ids.tolist() == [1, 2, 3, 4, 5]
    assert chosen.temperature.tolist() == [1.0, 1.0, 0.5, 0.5, 0.5]
    assert chosen.kept_counts is not None and chosen.kept_counts.tolist() == [0, 0, 1, 2, 1]
    parts = chosen.chunks(3)
    assert [(a, b) for a, b, _ in parts] == [(0, 3), (3, 5)]
    assert parts[1][2].kept_ids is not None and parts[1][2].kept_ids.tolist() == [4, 9, 5]


@pytest.mark.parametrize("size", [1, 4, 100])
def test_reducers_walk_over_columns_with_all_rows(size: int) -> None:
    _, head, _ = problem()
    hidden = torch.randn(2, 7, D, dtype=torch.float64, generator=torch.Generator().manual_seed(1)).requires_grad_()
    seen: list[tuple[int, ...]] = []

    def spread(logits_ncv: torch.Tensor, hidden_ncd: torch.Tensor, mask_nc: torch.Tensor) -> torch.Tensor:
        seen.append(tuple(logits_ncv.shape))
        p = logits_ncv.softmax(-1)
        return (p * logits_ncv.log_softmax(-1)).sum(-1) + hidden_ncd.mean(-1) * mask_nc + p.mean(0).max(-1).values

    mask = torch.ones(2, 7, dtype=torch.bool)
    out = reduce_logits(hidden, head, {"x_nt": spread}, {"mask_nc": mask, "ids_nc": mask}, size=size)["x_nt"]
    out.square().sum().backward()
    grad, weight_grad = hidden.grad, head.weight.grad
    hidden.grad = head.weight.grad = None
    logits = hidden @ head.weight.T + head.forbidden.clamp(min=-1e9)
    whole = spread(logits, hidden, mask)
    whole.square().sum().backward()
    assert torch.allclose(out, whole, atol=1e-12)
    assert torch.allclose(grad, hidden.grad, atol=1e-12) and torch.allclose(weight_grad, head.weight.grad, atol=1e-12)
    assert max(n * c for n, c, _ in seen[:-1]) <= max(size, 2) and all(n == 2 for n, _, _ in seen)


def test_a_reducer_of_the_wrong_shape_is_named() -> None:
    _, head, _ = problem()
    with pytest.raises(ValueError, match="reducer for bad_nt: expected shape"):
        reduce_logits(torch.randn(2, 3, D).double(), head, {"bad_nt": lambda logits, hidden: logits}, {}, size=100)


def test_the_memory_estimate_knows_the_size_of_a_block() -> None:
    from mmrl.core.head_blocks import ELSEWHERE
    from mmrl.vlm.memory import HEAD_BLOCK

    assert HEAD_BLOCK == ELSEWHERE
