"""Log-probabilities by blocks against a whole table of logits: values and gradients, every way through."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from mmrl.core import head_blocks
from mmrl.core.head import Choice, Head, score, score_plainly

V, D, M = 1100, 6, 11  # three blocks of the vocabulary with ON_CPU = 1
SUPPRESSED = [2, 7, 600, 1099]


@pytest.fixture(autouse=True)
def _small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(head_blocks, "ON_CPU", 1)


def problem(
    *, trains: str = "hwb", bias: bool = True, kept: bool = False, dtype: torch.dtype = torch.float64
) -> tuple[torch.Tensor, Head, Choice]:
    """trains: which of hidden, weight and bias want a gradient."""
    g = torch.Generator().manual_seed(0)
    hidden = torch.randn(M, D, generator=g, dtype=dtype).requires_grad_("h" in trains)
    weight = torch.randn(V, D, generator=g, dtype=dtype).requires_grad_("w" in trains)
    b = torch.randn(V, generator=g, dtype=dtype).requires_grad_("b" in trains) if bias else None
    forbidden = torch.zeros(V, dtype=torch.promote_types(dtype, torch.float32))
    forbidden[SUPPRESSED] = -torch.inf
    ids = torch.tensor([0, 1, 3, 511, 512, 513, 1023, 1024, 1098, 5, 600 + 1])
    temperature = torch.linspace(0.5, 2.0, M, dtype=dtype)
    flat = counts = None
    if kept:  # some sets lie in one block of the vocabulary, so that whole blocks are cut off; 0 = nothing cut
        sets = [[0, 9], [1], [3, 700, 1000], [], [512, 20], [], [1023, 1, 2], [1024], [1098, 1000], [5, 4, 3], []]
        flat, counts = torch.tensor([i for s in sets for i in s]), torch.tensor([len(s) for s in sets])
    return hidden, Head(weight, b, forbidden, dtype), Choice(ids, temperature, flat, counts)


def everything(
    fast: bool, slopes: str, *, size: int = 4, entropy: bool = True, **options: object
) -> tuple[list[torch.Tensor], list[torch.Tensor | None]]:
    """Values and gradients; slopes: the loss contains p (log-probabilities), e (entropies) or both."""
    hidden, head, chosen = problem(**options)  # type: ignore[arg-type]
    if fast:
        logp, h = score(hidden, head, chosen, size=size, entropy=entropy)
    else:
        logp, h = score_plainly(hidden, head, chosen, entropy=entropy)
    up = torch.linspace(-1, 2, M, dtype=logp.dtype)
    loss = logp.new_zeros(())
    if "p" in slopes:
        loss = loss + (logp * up).sum()
    if "e" in slopes:
        loss = loss + (h * up.flip(0)).sum()
    loss.backward()
    leaves = [hidden, head.weight, *([] if head.bias is None else [head.bias])]
    return [logp.detach(), h.detach()], [x.grad for x in leaves]


@pytest.mark.parametrize(
    ("trains", "slopes", "kept"),
    list(itertools.product(("hwb", "h", "w", "b", "hw", "hb"), ("p", "e", "pe"), (False, True))),
)
def test_every_way_through_equals_the_whole_table(trains: str, slopes: str, kept: bool) -> None:
    options = {"trains": trains, "kept": kept}
    values, gradients = everything(False, slopes, **options)
    for size in (4, 100):
        got, got_gradients = everything(True, slopes, size=size, **options)
        for a, b in zip(got, values, strict=True):
            assert (a - b).abs().max() < 1e-12
        for a, b in zip(got_gradients, gradients, strict=True):
            assert (a is None) == (b is None)
            if a is not None and b is not None:
                assert (a - b).abs().max() < 1e-12 * max(1.0, float(b.abs().max()))


@pytest.mark.parametrize("trains", ["h", "hw"])
def test_float32_agrees_to_rounding(trains: str) -> None:
    for slopes in ("p", "pe"):
        options = {"trains": trains, "dtype": torch.float32, "bias": False}
        values, gradients = everything(False, slopes, **options)
        got, got_gradients = everything(True, slopes, **options)
        for a, b in zip([*got, *got_gradients], [*values, *gradients], strict=True):
            assert a is None or (a - b).abs().max() < 1e-5 * b.abs().max()


@pytest.mark.parametrize("trains", ["h", "hw"])
def test_bfloat16_products_float32_arithmetic(trains: str) -> None:
    """Against float64 on the same rounded numbers: errors of the size of bfloat16's rounding, none of them large."""
    hidden, head, chosen = problem(trains=trains, dtype=torch.float32, bias=False)
    low = [x.detach().bfloat16().double().requires_grad_(x.requires_grad) for x in (hidden, head.weight)]
    exact, _ = score_plainly(low[0], Head(low[1], None, head.forbidden.double(), torch.float64), chosen)
    exact.sum().backward()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logp, _ = score(hidden, Head(head.weight, None, head.forbidden, torch.bfloat16), chosen, size=4)
        logp.sum().backward()
    assert logp.dtype == torch.float32 and (logp - exact).abs().max() < 0.05
    for got, want in zip((hidden.grad, head.weight.grad), (low[0].grad, low[1].grad)):
        assert (got is None) == (want is None)
        if got is not None and want is not None:
            assert got.dtype == torch.float32 and (got - want).abs().max() < 0.02 * want.abs().max()


class Products(TorchDispatchMode):
    """Counts matrix products over the vocabulary and the largest tensor that is made."""

    def __init__(self) -> None:
        super().__init__()
        self.count = self.largest = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        out = func(*args, **(kwargs or {}))
        if func.overloadpacket in (torch.ops.aten.mm, torch.ops.aten.addmm, torch.ops.aten.addmm_):
            self.count += 1
        for x in out if isinstance(out, (tuple, list)) else [out]:
            if isinstance(x, torch.Tensor):
                self.largest = max(self.largest, x.numel())
        return out


@pytest.mark.parametrize(("trains", "forward", "backward"), [("h", 2, 0), ("hw", 1, 3), ("w", 1, 2)])
def test_a_frozen_head_makes_its_logits_once(trains: str, forward: int, backward: int) -> None:
    """Products a block: logits, gradient of hidden, gradient of the weight."""
    hidden, head, chosen = problem(trains=trains, bias=False)
    blocks = 3 * 3  # of positions times of the vocabulary
    with Products() as seen:
        logp, watched = score(hidden, head, chosen, size=4, entropy=True)
    assert seen.count == forward * blocks and watched.shape == (M,)
    with Products() as seen:
        logp.sum().backward()
    assert seen.count == backward * blocks


def test_without_gradient_nothing_is_prepared() -> None:
    hidden, head, chosen = problem(trains="h", bias=False)
    with torch.no_grad(), Products() as seen:
        logp, _ = score(hidden, head, chosen, size=4)
    assert seen.count == 9 and not logp.requires_grad


def test_no_tensor_of_all_logits() -> None:
    hidden, head, chosen = problem(trains="hb", kept=True)  # a gradient of the weight would be a large one
    with Products() as seen:
        logp, h = score(hidden, head, chosen, size=4, entropy=True)
        (logp.sum() + h.sum()).backward()
    assert seen.largest < M * V / 2


def test_backward_twice_gives_the_same() -> None:
    for trains in ("h", "hw"):
        hidden, head, chosen = problem(trains=trains, bias=False)
        logp, h = score(hidden, head, chosen, size=4, entropy=True)
        (once,) = torch.autograd.grad(logp.sum() + h.sum(), hidden, retain_graph=True)
        (twice,) = torch.autograd.grad(logp.sum() + h.sum(), hidden)
        assert torch.equal(once, twice)


def test_a_token_that_cannot_be_drawn_and_no_position_at_all() -> None:
    hidden, head, chosen = problem(trains="", kept=True)
    chosen.ids[:2] = torch.tensor([2, 30])  # suppressed; cut off
    logp, h = score(hidden, head, chosen, size=4, entropy=True)
    assert logp[:2].tolist() == [-torch.inf] * 2 and logp[2:].isfinite().all() and h.isfinite().all()
    hidden, head, _ = problem()
    nothing = Choice(torch.zeros(0, dtype=torch.long), torch.zeros(0))
    logp, h = score(hidden[:0], head, nothing, size=4, entropy=True)
    logp.sum().backward()
    assert logp.shape == h.shape == (0,) and hidden.grad is not None
