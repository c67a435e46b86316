"""Whole decodings: AmusedScheduler given the same draws, the step map, the likelihood again, rows on their own."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from diffusers.schedulers import scheduling_amused
from hypothesis import given, settings
from hypothesis import strategies as st
from masked_sampler import (
    CODEBOOK,
    MASK,
    Toy,
    Values,
    amused,
    amused_values,
    open_canvas,
    recomputed,
    run,
    streams,
)
from torch import Tensor

from image_gen.masked import sampler
from image_gen.masked import steps as rules
from image_gen.masked.sampler import Decoded, Halves, decode
from mmrl.masked.steps import check_partition, fill_set


def left(done: Decoded) -> list[list[int]]:
    """Masks left after each step, row by row."""
    opened = (done.steps_nl >= 0).sum(1)
    kept = torch.stack([fill_set(done.steps_nl, t).sum(1) for t in range(done.value_ntv.shape[1])], 1)
    return (opened[:, None] - kept.cumsum(1)).tolist()


def constant(steps: int, *, ratio: float = 0.5, remask: float = 1.0, sample: float = 1.0, guidance: float = 1.0) -> Any:
    return torch.tensor([[ratio, remask, sample, guidance]]).repeat(steps, 1)


# AmusedScheduler


@pytest.mark.parametrize(
    ("steps", "length", "expected"), [(4, 16, [14, 11, 6, 0]), (8, 64, [62, 59, 53, 45, 35, 24, 12, 0])]
)
def test_worked_examples_of_masks_left(steps: int, length: int, expected: list[int]) -> None:
    assert left(run(open_canvas(2, length), amused_values(steps))) == [expected] * 2


@pytest.mark.parametrize("schedule", ["cosine", "linear"])
@pytest.mark.parametrize("known", [0, 5])
def test_every_canvas_is_that_of_amused_scheduler_given_the_same_draws(
    schedule: Any, known: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """diffusers' own step takes its ids and its noise from the row's generator in our documented order."""
    steps, length, guidance = 9, 48, 6.0
    network, canvas = Toy(length, dtype=torch.float32), open_canvas(1, length)
    canvas[0, :known] = 3
    done = run(canvas, amused_values(steps, schedule, guidance), network=network, seed=4)
    seen = [*network.seen, done.ids_nl]

    source = streams(1, 4)
    monkeypatch.setattr(
        torch,
        "multinomial",
        lambda probs, count, generator: rules.draw_ids(probs.log()[None], rules.uniforms(source, len(probs))).T,
    )
    monkeypatch.setattr(
        scheduling_amused,
        "gumbel_noise",
        lambda probs, generator: rules.gumbel(rules.uniforms(source, probs.shape[1])).float(),
    )
    scheduler, theirs = amused(steps, schedule), canvas
    for t, timestep in enumerate(scheduler.timesteps):
        assert torch.equal(theirs, seen[t])
        cond, uncond = network.half(theirs, 0), network.half(theirs, 1)
        theirs = scheduler.step(uncond + guidance * (cond - uncond), timestep, theirs).prev_sample
    assert torch.equal(theirs, done.ids_nl)


# the step map


@given(
    seed=st.integers(0, 10_000),
    steps=st.integers(1, 7),
    length=st.integers(1, 20),
    share=st.floats(0, 1),
    rising=st.booleans(),
)
@settings(max_examples=80, deadline=None)
def test_fill_sets_partition_the_canvas(seed: int, steps: int, length: int, share: float, rising: bool) -> None:
    """Whatever the ratios, larger than the masked share too; what is given never changes; a step keeps some token
    wherever more than one position is open."""
    g = torch.Generator().manual_seed(seed)
    value = torch.rand(3, steps, 4, generator=g) * torch.tensor([1.3, 4.0, 2.0, 5.0])
    if rising:
        value[..., 0] = value[..., 0].sort(dim=1).values
    fixed = torch.rand(3, length, generator=g) < share
    canvas = torch.where(fixed, torch.randint(CODEBOOK, (3, length), generator=g), MASK)
    done = run(canvas, value, seed=seed, confidence="untempered")
    check_partition(done.steps_nl, canvas == MASK)
    sets = torch.stack([fill_set(done.steps_nl, t) for t in range(steps)])
    assert torch.equal(sets.sum(0), (canvas == MASK).long())
    assert torch.equal(torch.where(fixed, done.ids_nl, MASK), canvas)
    assert int(done.ids_nl.max()) < CODEBOOK and int(done.ids_nl.min()) >= 0
    assert bool((done.logp_nl[fixed] == 0).all())
    for row, after in enumerate(left(done)):
        before = [int((canvas[row] == MASK).sum()), *after[:-1]]
        assert after[-1] == 0
        assert all(b > a for b, a in zip(before[:-1], after[:-1], strict=True) if b > 1)
        assert all(a == b for b, a in zip(before[:-1], after[:-1], strict=True) if b < 2)  # held open, or whole


def test_the_canvas_before_a_step_is_what_the_network_saw() -> None:
    network = Toy(20)
    canvas = open_canvas(3, 20)
    canvas[1, ::3] = 2
    done = run(canvas, amused_values(6), network=network)
    for t, seen in enumerate(network.seen):
        assert torch.equal(seen, torch.where(done.steps_nl < t, done.ids_nl, MASK))


def test_one_step_fills_everything() -> None:
    done = run(open_canvas(2, 12), constant(1, ratio=0.9))
    assert bool((done.steps_nl == 0).all()) and bool((done.ids_nl < CODEBOOK).all())


def test_a_canvas_given_in_full_is_returned() -> None:
    canvas = torch.randint(CODEBOOK, (2, 9), generator=torch.Generator().manual_seed(0))
    done = run(canvas, amused_values(4))
    assert torch.equal(done.ids_nl, canvas)
    assert bool((done.steps_nl == -1).all()) and bool((done.logp_nl == 0).all()) and bool(done.finite_n.all())


def test_the_schedule_of_a_canvas_given_in_part_counts_from_its_whole_length() -> None:
    canvas = open_canvas(3, 16)
    canvas[0, :6] = 1  # 10 open: 14 and 11 are more than there are
    canvas[1, :15] = 1
    canvas[2] = 1
    assert left(run(canvas, amused_values(4))) == [[9, 8, 6, 0], [1, 1, 1, 0], [0, 0, 0, 0]]


def test_rows_of_one_batch_have_their_own_values() -> None:
    value = torch.stack([constant(3, ratio=r) for r in (0.75, 0.25, 0.0)])
    value[0, 1, 0] = 0.5
    assert left(run(open_canvas(3, 16), value)) == [[12, 8, 0], [4, 3, 0], [1, 1, 0]]


def test_ties_fill_more_and_the_rest_of_the_steps_nothing() -> None:
    class Flat(Toy):
        def half(self, ids_nl: Tensor, which: int) -> Tensor:
            return torch.zeros(*ids_nl.shape, CODEBOOK)

    done = run(open_canvas(1, 8), constant(4, remask=0.0), network=Flat(8))
    assert left(done) == [[0, 0, 0, 0]]


# randomness


def test_without_noise_what_is_kept_follows_from_the_ids() -> None:
    """Nearly certain ids: other generators draw the same, and then the order is the model's alone."""
    value = constant(5, ratio=0.6, remask=0.0, sample=0.02)
    one, other = (run(open_canvas(1, 24), value, seed=seed) for seed in (1, 2))
    assert torch.equal(one.ids_nl, other.ids_nl) and torch.equal(one.steps_nl, other.steps_nl)
    noisy = run(open_canvas(1, 24), constant(5, ratio=0.6, remask=50.0, sample=0.02), seed=2)
    assert not torch.equal(noisy.steps_nl, one.steps_nl)


def test_with_much_noise_every_position_is_as_likely_to_be_kept() -> None:
    n, length = 1500, 8
    network = Toy(length, scale=6.0)
    calm = run(open_canvas(n, length), constant(2, remask=0.0), network=network)
    kept = fill_set(calm.steps_nl, 0).double().mean(0)
    assert kept.max() - kept.min() > 0.5  # the model alone prefers some positions
    done = run(open_canvas(n, length), constant(2, remask=1e4), network=network)
    kept = fill_set(done.steps_nl, 0).double().mean(0)
    assert float((kept - 0.5).abs().max()) < 4.5 * (0.25 / n) ** 0.5


def test_a_row_does_not_depend_on_its_batch() -> None:
    value = torch.rand(5, 6, 4, generator=torch.Generator().manual_seed(1)) * torch.tensor([1.0, 2.0, 1.5, 4.0])
    canvas = open_canvas(5, 18)
    canvas[3, :7] = 0
    done = run(canvas, value, seed=3)
    for rows in ([3], [4, 0], [2, 3, 1]):
        part = run(canvas[rows], value[rows], generators=[streams(5, 3)[row] for row in rows])
        assert torch.equal(part.ids_nl, done.ids_nl[rows]) and torch.equal(part.steps_nl, done.steps_nl[rows])
        torch.testing.assert_close(part.logp_nl, done.logp_nl[rows], rtol=0, atol=1e-12)


def test_the_documented_number_of_draws_is_taken() -> None:
    (used,), (fresh,) = streams(1), streams(1)
    canvas = open_canvas(1, 10)
    canvas[0, 2:] = 4  # also where little is open
    run(canvas, constant(3), generators=[used])
    rules.uniforms([fresh], (2 * 3 - 1) * 10)
    assert torch.equal(torch.rand(4, generator=used), torch.rand(4, generator=fresh))


def test_few_probabilities_at_a_time_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = run(open_canvas(3, 12), constant(4, guidance=3.0))
    monkeypatch.setattr(sampler, "AT_ONCE", 5 * CODEBOOK)
    parts = run(open_canvas(3, 12), constant(4, guidance=3.0))
    assert torch.equal(parts.ids_nl, whole.ids_nl) and torch.equal(parts.steps_nl, whole.steps_nl)
    torch.testing.assert_close(parts.logp_nl, whole.logp_nl, rtol=0, atol=1e-12)


# likelihood


@pytest.mark.parametrize("confidence", ["tempered", "untempered"])
def test_the_likelihood_is_that_of_the_stored_canvas_step_by_step(confidence: Any) -> None:
    value = torch.rand(4, 6, 4, generator=torch.Generator().manual_seed(5)) * torch.tensor([1.2, 2.0, 1.5, 9.0])
    network, canvas = Toy(30), open_canvas(4, 30)
    canvas[2, 4:11] = 5
    done = run(canvas, value, network=network, confidence=confidence)
    assert done.logp_nl.dtype == torch.float64
    torch.testing.assert_close(recomputed(done, network), done.logp_nl, rtol=0, atol=1e-10)
    assert float(done.logp_nl.sum()) < -1


def test_one_half_at_guidance_one_is_both_halves_at_guidance_one() -> None:
    value, canvas = constant(5), open_canvas(2, 16)
    one, both = run(canvas, value), run(canvas, value, actor=Values(value, two=True))
    assert (one.forwards, both.forwards) == (5, 10)
    assert torch.equal(one.ids_nl, both.ids_nl)
    torch.testing.assert_close(one.logp_nl, both.logp_nl, rtol=0, atol=1e-12)


def test_confidence_is_of_tempered_or_untempered_probabilities() -> None:
    """Two positions, tau_s 0.1: the second is kept first where tempered, for its rivals are further behind; the first,
    with fewer rivals, where untempered."""

    class Two(Toy):
        def half(self, ids_nl: Tensor, which: int) -> Tensor:
            few = torch.tensor([0.9, 0.0, 0.0] + [-100.0] * (CODEBOOK - 3))  # 0.55 as it is, 1 - 2.5e-4 tempered
            many = torch.tensor([0.0] + [-1.1] * (CODEBOOK - 1))  # 0.33 as it is, 1 - 1e-4 tempered
            return torch.stack([few, many]).expand(len(ids_nl), 2, CODEBOOK)

    value = constant(2, remask=0.0, sample=0.1)
    first = [
        run(open_canvas(1, 2), value, network=Two(2), confidence=c).steps_nl[0].tolist()
        for c in ("tempered", "untempered")
    ]
    assert first == [[1, 0], [0, 1]]


def test_the_sum_is_that_of_any_order_of_positions() -> None:
    done = run(open_canvas(1, 20), amused_values(5))
    order = torch.randperm(20, generator=torch.Generator().manual_seed(0))
    for t in range(5):
        straight = rules.step_log_prob(done.logp_nl, fill_set(done.steps_nl, t))
        mixed = rules.step_log_prob(done.logp_nl[:, order], fill_set(done.steps_nl[:, order], t))
        torch.testing.assert_close(straight, mixed, rtol=0, atol=1e-12)


def test_what_was_used_is_stored_bit_for_bit() -> None:
    value = torch.rand(2, 4, 4, generator=torch.Generator().manual_seed(5))
    done = run(open_canvas(2, 8), value)
    assert torch.equal(done.value_ntv, value) and done.value_ntv.dtype == torch.float32
    assert torch.equal(done.raw_ntv, torch.full((2, 4, 4), 0.25))


# bad rows and bad calls


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_row_whose_logits_are_not_finite_is_told_and_the_others_go_on(bad: float) -> None:
    class Broken(Toy):
        def __call__(self, ids_nl: Tensor, *, both: bool, features: bool) -> Halves:
            found = super().__call__(ids_nl, both=both, features=features)
            if len(self.seen) == 3 and len(ids_nl) == 3:
                found.cond_nlk[1, ::2, 2] = bad
            return found

    value, canvas = constant(5, guidance=2.0, ratio=0.6), open_canvas(3, 16)
    whole, done = run(canvas, value), run(canvas, value, network=Broken(16))
    assert done.finite_n.tolist() == [True, False, True] and bool(whole.finite_n.all())
    assert torch.equal(done.ids_nl[[0, 2]], whole.ids_nl[[0, 2]])
    assert torch.equal(done.steps_nl[[0, 2]], whole.steps_nl[[0, 2]])
    assert int(done.steps_nl[1].max()) == 2 and bool((done.ids_nl[1][done.steps_nl[1] == 2] == 0).all())
    assert bool((done.logp_nl[1][done.steps_nl[1] == 2] == 0).all()) and bool(done.logp_nl.isfinite().all())
    check_partition(done.steps_nl, canvas == MASK)
    assert bool((done.value_ntv[1, 3:] == 0).all()) and bool((done.value_ntv[[0, 2]] == value).all())


def test_a_row_whose_schedule_is_not_finite_is_told() -> None:
    value = constant(4).repeat(3, 1, 1)
    value[2, 1, 0] = float("nan")
    done = run(open_canvas(3, 10), value)
    assert done.finite_n.tolist() == [True, True, False]
    assert int(done.steps_nl[2].max()) == 1 and bool(done.value_ntv.isfinite().all())


def test_logits_that_are_undefined_at_given_positions_do_no_harm() -> None:
    class Broken(Toy):
        def half(self, ids_nl: Tensor, which: int) -> Tensor:
            return torch.where((ids_nl == MASK)[..., None], super().half(ids_nl, which), float("nan"))

    done = run(open_canvas(2, 10), constant(4), network=Broken(10))
    assert bool(done.finite_n.all())


def test_an_id_at_minus_infinity_is_never_drawn() -> None:
    class Cut(Toy):
        def half(self, ids_nl: Tensor, which: int) -> Tensor:
            logits = super().half(ids_nl, which).clone()
            logits[..., [0, CODEBOOK - 1]] = float("-inf")
            return logits

    done = run(open_canvas(50, 10), constant(3, sample=100.0), network=Cut(10))
    assert bool(done.finite_n.all()) and set(done.ids_nl.unique().tolist()) == set(range(1, CODEBOOK - 1))


def test_every_id_of_the_codebook_is_drawn_and_none_beyond() -> None:
    done = run(open_canvas(50, 10), constant(3, sample=1000.0))
    assert set(done.ids_nl.unique().tolist()) == set(range(CODEBOOK))


def call(**changes: Any) -> Decoded:
    options: dict[str, Any] = {
        "canvas_nl": open_canvas(2, 6),
        "steps": 3,
        "network": Toy(6),
        "actor": Values(constant(3)),
        "mask_id": MASK,
        "generators": streams(2),
    }
    return decode(**{**options, **changes})


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"steps": 0}, "at least 1 step"),
        ({"generators": streams(1)}, "one generator a row: got 1 for 2"),
        ({"canvas_nl": torch.zeros(2, 6)}, "int64"),
        ({"canvas_nl": torch.zeros(0, 6, dtype=torch.int64), "generators": []}, "not empty"),
        ({"canvas_nl": torch.tensor([[MASK] * 6, [MASK, 8, 0, 0, 0, 0]])}, "row 1, position 1 holds id 8"),
        ({"mask_id": CODEBOOK - 1, "canvas_nl": torch.zeros(2, 6, dtype=torch.int64)}, "lies in the codebook"),
        ({"network": lambda ids, both, features: Halves(torch.zeros(2, 5, CODEBOOK))}, "do not fit"),
        ({"actor": Values(constant(3, guidance=2.0), two=False)}, "guidance differs from 1 at step 0"),
        ({"confidence": "warm"}, "tempered or untempered"),
    ],
)
def test_calls_that_do_not_fit_are_refused(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        call(**changes)


def test_no_gradient_is_kept() -> None:
    network = Toy(6)
    network.own.requires_grad_()
    assert not call(network=network).logp_nl.requires_grad
