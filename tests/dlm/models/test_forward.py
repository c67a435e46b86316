"""Pads, caches, the shift, checkpointing: every way to compute the same states gives the same states."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from dlm import attention
from dlm.models import tiny
from dlm.models.caches import AppendCache, ReplaceCache
from dlm.models.layers import Transformer

EXACT = {"rtol": 0.0, "atol": 1e-12}


def ids_of(rows: int, columns: int) -> Tensor:
    return torch.randint(0, 250, (rows, columns), generator=torch.Generator().manual_seed(5))


def places(rows: int, columns: int) -> Tensor:
    return torch.arange(columns).expand(rows, -1)


@pytest.mark.parametrize("block", [None, 4])
@pytest.mark.parametrize("kind", tiny.KINDS)
@torch.no_grad()
def test_pads_change_nothing(kind: str, block: int | None, load: Callable[..., Transformer]) -> None:
    model = load(kind)
    rows = [ids_of(1, n)[0] for n in (9, 4, 1)]
    ids = torch.full((3, 9), model.traits.pad_id)
    valid = torch.zeros(3, 9, dtype=torch.bool)
    positions = torch.zeros(3, 9, dtype=torch.long)
    for i, row in enumerate(rows):
        ids[i, 9 - len(row) :], valid[i, 9 - len(row) :] = row, True
        positions[i, 9 - len(row) :] = torch.arange(len(row))
    attend = attention.full(valid) if block is None else attention.block_causal(positions, valid, block)
    together = model.hidden(ids, positions_nl=positions, attend_nqk=attend)
    for i, row in enumerate(rows):
        where = places(1, len(row))
        own = attention.block_causal(where, torch.ones_like(where, dtype=torch.bool), block) if block else None
        alone = model.hidden(row[None], positions_nl=where, attend_nqk=own)
        torch.testing.assert_close(together[i, 9 - len(row) :], alone[0], **EXACT)


@pytest.mark.parametrize("kind", ["llada", "sdar", "a2d"])
@torch.no_grad()
def test_blocks_one_by_one_with_a_cache(kind: str, load: Callable[..., Transformer]) -> None:
    model = load(kind)
    ids, positions = ids_of(3, 16), places(3, 16)
    valid = torch.ones(3, 16, dtype=torch.bool)
    valid[1, :3] = False
    causal = attention.block_causal(positions, valid, 4)
    whole = model.hidden(ids, positions_nl=positions, attend_nqk=causal)
    cache = AppendCache(store=True)
    model.hidden(ids[:, :8], positions_nl=positions[:, :8], attend_nqk=causal[:, :8, :8], cache=cache)
    assert cache.columns == 8
    for start in (8, 12):
        now = slice(start, start + 4)
        options = {"positions_nl": positions[:, now], "attend_nqk": causal[:, now, : start + 4], "cache": cache}
        cache.store = False  # a step of the block, with other tokens: forgotten
        model.hidden(ids[:, now].flip(1), **options)
        assert cache.columns == start
        cache.store = True
        torch.testing.assert_close(model.hidden(ids[:, now], **options), whole[:, now], **EXACT)
    assert cache.columns == 16


@torch.no_grad()
def test_rows_leave_a_cache(load: Callable[..., Transformer]) -> None:
    model = load("sdar")
    ids, positions = ids_of(4, 8), places(4, 8)
    causal = attention.block_causal(positions, torch.ones(4, 8, dtype=torch.bool), 4)
    whole = model.hidden(ids, positions_nl=positions, attend_nqk=causal)
    for rows in (torch.tensor([3, 1]), torch.tensor([False, True, True, False])):
        cache = AppendCache(store=True, room=8)
        model.hidden(ids[:, :4], positions_nl=positions[:, :4], attend_nqk=None, cache=cache)
        cache.keep(rows)
        found = model.hidden(ids[rows, 4:], positions_nl=positions[rows, 4:], attend_nqk=None, cache=cache)
        torch.testing.assert_close(found, whole[rows, 4:], **EXACT)


@torch.no_grad()
def test_columns_replaced_by_themselves(load: Callable[..., Transformer]) -> None:
    """Full attention: with no token changed, the columns alone over the kept keys are those of a whole forward."""
    model = load("llada")
    ids, positions = ids_of(3, 10), places(3, 10)
    valid = torch.ones(3, 10, dtype=torch.bool)
    valid[2, :4] = False
    attend = attention.full(valid)
    assert attend is not None
    cache = ReplaceCache()
    whole = model.hidden(ids, positions_nl=positions, attend_nqk=attend, cache=cache)
    cache.start = 4
    found = model.hidden(ids[:, 4:7], positions_nl=positions[:, 4:7], attend_nqk=attend[:, 4:7], cache=cache)
    torch.testing.assert_close(found, whole[:, 4:7], **EXACT)
    cache.keep(torch.tensor([2]))
    found = model.hidden(ids[2:, 4:], positions_nl=positions[2:, 4:], attend_nqk=attend[2:, 4:], cache=cache)
    torch.testing.assert_close(found, whole[2:, 4:], **EXACT)


@torch.no_grad()
def test_replaced_columns_are_seen(load: Callable[..., Transformer]) -> None:
    """One layer's keys depend on nothing but their own column: with one layer the replacing cache is exact."""
    model = load("llada")
    del model.model.layers[1:]
    ids, positions = ids_of(2, 8), places(2, 8)
    cache = ReplaceCache()
    model.hidden(ids, positions_nl=positions, attend_nqk=None, cache=cache)
    ids[:, 3:6] = model.traits.mask_id
    cache.start = 3
    found = model.hidden(ids[:, 3:6], positions_nl=positions[:, 3:6], attend_nqk=None, cache=cache)
    whole = model.hidden(ids, positions_nl=positions, attend_nqk=None)
    torch.testing.assert_close(found, whole[:, 3:6], **EXACT)
    with pytest.raises(ValueError, match="columns 6..9 of a canvas of 8"):
        cache.start = 6
        model.hidden(ids[:, :3], positions_nl=positions[:, :3], attend_nqk=None, cache=cache)


def test_a_cache_refuses_gradients(load: Callable[..., Transformer]) -> None:
    for cache in (AppendCache(), ReplaceCache()):
        with pytest.raises(ValueError, match="holds no gradients"):
            load("sdar").hidden(ids_of(1, 4), positions_nl=places(1, 4), attend_nqk=None, cache=cache)


@torch.no_grad()
def test_a_shifted_model_is_its_aligned_twin(load: Callable[..., Transformer]) -> None:
    """Row i - 1 predicts position i: the aligned states are those of the unshifted twin, one column on."""
    model = load("dream")
    ids, positions = ids_of(2, 7), places(2, 7)
    shifted = model.hidden(ids, positions_nl=positions, attend_nqk=None)
    model.traits = replace(model.traits, logit_shift=False)
    plain = model.hidden(ids, positions_nl=positions, attend_nqk=None)
    torch.testing.assert_close(shifted[:, 1:], plain[:, :-1], **EXACT)
    torch.testing.assert_close(shifted[:, 0], plain[:, 0], **EXACT)
    assert not torch.allclose(shifted[:, 1:], plain[:, 1:])


def test_a_shifted_model_takes_no_cache(load: Callable[..., Transformer]) -> None:
    with pytest.raises(ValueError, match="logit_shift takes no cache"):
        load("dream").hidden(ids_of(1, 4), positions_nl=places(1, 4), attend_nqk=None, cache=AppendCache())


@pytest.mark.parametrize("kind", ["llada", "dream"])
def test_recomputing_activations_changes_no_gradient(kind: str, load: Callable[..., Transformer]) -> None:
    model = load(kind)
    ids, positions = ids_of(2, 6), places(2, 6)
    found = []
    for on in (False, True):
        model.checkpoint_gradients(on=on)
        model.zero_grad()
        model.head(model.hidden(ids, positions_nl=positions, attend_nqk=None)).log_softmax(-1)[..., 5].sum().backward()
        found.append([p.grad.clone() for p in model.parameters() if p.grad is not None])
    assert len(found[0]) == len(found[1]) == len(list(model.parameters()))
    for plain, again in zip(*found, strict=True):
        torch.testing.assert_close(again, plain, **EXACT)


@torch.no_grad()
def test_bfloat16_weights(load: Callable[..., Transformer]) -> None:
    """Norms and rotations stay in float32: far positions are told apart, and the states are near the exact ones."""
    ids, positions = ids_of(1, 8), 4000 + places(1, 8)
    exact = load("llada").hidden(ids, positions_nl=positions, attend_nqk=None)
    rough = load("llada", torch.bfloat16).hidden(ids, positions_nl=positions, attend_nqk=None)
    assert rough.dtype == torch.bfloat16
    assert (rough.double() - exact).abs().mean() < 0.02 * exact.abs().mean()


@torch.no_grad()
def test_autocast_keeps_the_stream_in_float32(load: Callable[..., Transformer]) -> None:
    ids, positions = ids_of(1, 8), places(1, 8)
    model = load("sdar", torch.float32)
    plain = model.hidden(ids, positions_nl=positions, attend_nqk=None)
    with torch.autocast("cpu", torch.bfloat16):
        cast = model.hidden(ids, positions_nl=positions, attend_nqk=None, cache=AppendCache())
    assert cast.dtype == torch.float32
    assert 0 < (cast - plain).abs().mean() < 0.02
