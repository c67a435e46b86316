"""One decoding step: worked numbers, diffusers' AmusedScheduler as the reference, properties of each function."""

from __future__ import annotations

import math

import pytest
import torch
from diffusers.schedulers import scheduling_amused
from hypothesis import given, settings
from hypothesis import strategies as st
from masked_sampler import amused, amused_values, streams
from torch import Tensor

from image_gen.masked.steps import (
    confidence,
    draw_ids,
    guided_logits,
    gumbel,
    masks_left,
    picked,
    remasked,
    step_log_prob,
    token_log_probs,
    uniforms,
)

COND = [[[1.0, 0.0, -1.0], [0.5, 0.5, 0.0]]]
UNCOND = [[[0.5, 0.0, 0.0], [0.0, 0.5, 0.0]]]


def halves(dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    return torch.tensor(COND, dtype=dtype), torch.tensor(UNCOND, dtype=dtype)


def normal(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


# likelihood


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_worked_example_of_the_token_likelihood(dtype: torch.dtype) -> None:
    guided = guided_logits(*halves(dtype), torch.tensor([2.0]))
    logp = picked(token_log_probs(guided, torch.tensor([0.8])), torch.tensor([[0, 1]]))
    assert logp.dtype == dtype
    assert logp[0].tolist() == pytest.approx([-0.153530, -1.224806], abs=1e-6)
    assert step_log_prob(logp, torch.ones(1, 2, dtype=torch.bool)).tolist() == pytest.approx([-1.378337], abs=1e-6)
    assert step_log_prob(logp, torch.zeros(1, 2, dtype=torch.bool)).tolist() == [0.0]  # nothing kept
    minus_infinity = torch.tensor([[-0.5, -math.inf]])  # of a position that is not in the sum
    assert step_log_prob(minus_infinity, torch.tensor([[True, False]])).tolist() == [-0.5]


def test_guidance_of_one_is_the_condition_and_of_zero_the_other_half_row_by_row() -> None:
    cond, uncond = normal(3, 4, 5), normal(3, 4, 5, seed=1)
    guided = guided_logits(cond, uncond, torch.tensor([1.0, 0.0, 10.0]))
    torch.testing.assert_close(guided[0], cond[0], rtol=0, atol=1e-14)
    torch.testing.assert_close(guided[1], uncond[1], rtol=0, atol=0)
    torch.testing.assert_close(guided[2], 10 * cond[2] - 9 * uncond[2], rtol=0, atol=1e-12)
    assert guided_logits(cond, None, 1.0) is cond


def test_positions_of_several_rows_take_a_value_each() -> None:
    cond, uncond = normal(3, 4, 5), normal(3, 4, 5, seed=1)
    w, tau = torch.tensor([3.0, 0.5, 9.0]), torch.tensor([0.4, 1.0, 2.5])
    row, at = torch.tensor([0, 2, 2, 1]), torch.tensor([3, 0, 1, 2])
    whole = token_log_probs(guided_logits(cond, uncond, w), tau)[row, at]
    some = token_log_probs(guided_logits(cond[row, at], uncond[row, at], w[row]), tau[row])
    torch.testing.assert_close(some, whole, rtol=0, atol=1e-14)


def test_a_temperature_below_the_floor_is_the_floor() -> None:
    logits = normal(2, 3, 4)
    floor = token_log_probs(logits, 1e-3)
    assert torch.equal(token_log_probs(logits, torch.tensor([0.0, 1e-9])), floor)
    assert torch.equal(token_log_probs(logits, 0.0), floor)
    assert bool(floor.isfinite().all()) and floor.max() == 0
    assert not torch.equal(token_log_probs(logits, 2e-3), floor)


@pytest.mark.parametrize("half", [torch.float16, torch.bfloat16])
def test_half_precision_is_guided_and_normalised_in_float32(half: torch.dtype) -> None:
    cond, uncond = normal(2, 3, 50, dtype=torch.float32).to(half), normal(2, 3, 50, seed=1).to(half)
    logp = token_log_probs(guided_logits(cond, uncond, 9.0), 0.7)
    assert logp.dtype == torch.float32
    torch.testing.assert_close(logp, token_log_probs(guided_logits(cond.float(), uncond.float(), 9.0), 0.7))


# draws


def test_an_id_is_the_first_whose_cumulative_probability_exceeds_the_number() -> None:
    logp = torch.tensor([0.0, 0.2, 0.0, 0.5, 0.3, 0.0], dtype=torch.float64).log().expand(1, 6, 6)
    numbers = torch.tensor([[0.0, 0.19, 0.21, 0.69, 0.71, 1 - 2**-53]], dtype=torch.float64)
    assert draw_ids(logp, numbers).tolist() == [[1, 1, 3, 3, 4, 4]]  # never one of probability 0


def test_draws_follow_the_distribution() -> None:
    probs = torch.tensor([0.02, 0.4, 0.08, 0.35, 0.15], dtype=torch.float64)
    count = 40_000
    ids = draw_ids(probs.log().expand(1, count, 5), uniforms(streams(1), count))
    found = torch.bincount(ids[0], minlength=5)
    chi2 = float(((found - count * probs) ** 2 / (count * probs)).sum())
    assert chi2 < 18.5  # 0.1% of chi-square with 4 degrees of freedom


def test_the_tail_of_a_large_codebook_is_drawn_where_float32_sums_lose_it() -> None:
    """One id of 0.9 and 8,191 of 1.2e-5 in all: each adds 1.5e-9, nothing beside 0.9 in float32."""
    logits = torch.full((1, 1, 8192), math.log(1.5e-9))
    logits[..., 0] = math.log(0.9)
    logp = token_log_probs(logits, 1.0)
    numbers = torch.tensor([[1 - 2**-53]], dtype=torch.float64)
    assert draw_ids(logp, numbers).item() == 8191
    middle = torch.tensor([[float(logp[0, 0, 0].double().exp()) + 4096 * 1.5e-9 / 0.9]], dtype=torch.float64)
    assert 3000 < draw_ids(logp, middle).item() < 5200


def test_an_undefined_position_gives_an_id_of_the_codebook() -> None:
    logp = token_log_probs(torch.tensor([[[0.0, math.nan, 1.0], [math.inf, 0.0, 0.0]]]), 1.0)
    assert bool(logp.isnan().all())
    assert bool((draw_ids(logp, torch.tensor([[0.3, 0.9]], dtype=torch.float64)) < 3).all())


def test_numbers_of_a_row_are_its_own_generators() -> None:
    together = uniforms(streams(3), 5)
    assert together.shape == (3, 5) and together.dtype == torch.float64
    assert torch.equal(together[1], torch.rand(5, dtype=torch.float64, generator=torch.Generator().manual_seed(1)))


def test_gumbel_noise_is_finite_at_both_ends_and_is_that_of_diffusers() -> None:
    ends = gumbel(torch.tensor([0.0, 0.5, 1.0], dtype=torch.float64))
    assert ends.tolist() == pytest.approx([-math.log(-math.log(1e-20)), 0.366513, -math.log(1e-20)], abs=1e-6)
    like = torch.zeros(2, 50)
    theirs = scheduling_amused.gumbel_noise(like, generator=torch.Generator().manual_seed(3))
    number = like.uniform_(0, 1, generator=torch.Generator().manual_seed(3))
    assert torch.equal(gumbel(number), theirs)


# what stays masked


@pytest.mark.parametrize(
    ("steps", "length", "left"), [(4, 16, [14, 11, 6, 0]), (8, 64, [62, 59, 53, 45, 35, 24, 12, 0])]
)
def test_worked_examples_of_the_cosine_schedule(steps: int, length: int, left: list[int]) -> None:
    now, found = torch.tensor([length]), []
    for t, ratio in enumerate(amused_values(steps)[:, 0]):
        now = masks_left(ratio[None], length=length, open_n=now, last=t == steps - 1)
        found.append(int(now))
    assert found == left


@pytest.mark.parametrize("schedule", ["cosine", "linear"])
@pytest.mark.parametrize("length", [64, 256, 1024])
def test_masks_left_are_those_of_amused_scheduler(schedule: str, length: int) -> None:
    """Their own `step` for 2 to 64 steps; of 64 tokens also nearly whole and nearly filled. Logits without ties."""
    logits = normal(1, length, 2, seed=2, dtype=torch.float32) * 0.1
    starts = [length, length - 5, 3, 2] if length == 64 else [length]
    for steps in range(2, 65):
        scheduler, values = amused(steps, schedule), amused_values(steps, schedule)
        canvas = torch.zeros(len(starts), length, dtype=torch.int64)
        for row, start in enumerate(starts):
            canvas[row, :start] = 9
        generator, now = torch.Generator().manual_seed(steps), torch.tensor(starts)
        for t, timestep in enumerate(scheduler.timesteps):
            out = scheduler.step(logits.expand(len(starts), -1, -1), timestep, canvas, generator=generator)
            canvas = out.prev_sample
            ratio_n = values[t, 0].expand(len(starts))
            now = masks_left(ratio_n, length=length, open_n=now, last=t == steps - 1)
            assert now.tolist() == (canvas == 9).sum(1).tolist(), (steps, t)


def test_limits_of_the_masks_left() -> None:
    ratio = torch.tensor([1.0, 5.0, 0.0, -0.1, 0.5, 0.5, 0.5])
    now = torch.tensor([8, 8, 8, 8, 3, 1, 0])
    assert masks_left(ratio, length=8, open_n=now, last=False).tolist() == [7, 7, 1, 1, 2, 1, 0]
    assert masks_left(ratio, length=8, open_n=now, last=True).tolist() == [0] * 7
    share = torch.tensor([0.29], dtype=torch.float64)  # 100 * 0.29 is 28.999999999999996 in float64, 29 in float32
    assert masks_left(share, length=100, open_n=torch.tensor([100]), last=False).tolist() == [29]


def test_what_is_strictly_below_the_cut_off_is_masked_again() -> None:
    score = torch.tensor([[0.3, -1.0, 2.0, 0.1, math.inf]]).expand(6, 5)
    found = remasked(score, torch.arange(6))
    assert found.sum(1).tolist() == [0, 1, 2, 3, 4, 4]  # never what was known
    assert found[2].tolist() == [False, True, False, True, False]


def test_ties_at_the_cut_off_mask_fewer() -> None:
    score = torch.tensor([[0.0, -1.0, 0.0, 0.0, 1.0]])
    assert [int(remasked(score, torch.tensor([m])).sum()) for m in range(5)] == [0, 1, 1, 1, 4]


def test_known_positions_are_kept_whatever_the_noise() -> None:
    noise = torch.tensor([[-40.0, 40.0, -40.0]])
    known = torch.tensor([[True, False, False]])
    score = confidence(torch.zeros(1, 3), noise, temperature_n=torch.tensor([1e30]), known_nl=known)
    assert score[0, 0] == math.inf
    assert remasked(score, torch.tensor([1])).tolist() == [[False, False, True]]


def test_confidence_clamps_the_probability() -> None:
    score = confidence(
        torch.tensor([[-200.0, -1.0]]),
        torch.tensor([[1.0, 2.0]], dtype=torch.float64),
        temperature_n=torch.tensor([0.5]),
        known_nl=torch.zeros(1, 2, dtype=torch.bool),
    )
    assert score.dtype == torch.float32
    assert score[0].tolist() == pytest.approx([math.log(1e-20) + 0.5, 0.0])


@given(seed=st.integers(0, 10_000), temperature=st.floats(0, 5), opened=st.integers(2, 24))
@settings(max_examples=60, deadline=None)
def test_the_same_positions_as_mask_by_random_topk(seed: int, temperature: float, opened: int) -> None:
    g = torch.Generator().manual_seed(seed)
    logp = torch.log_softmax(torch.randn(1, 24, 6, generator=g) * 3, -1)[..., 0]
    known = (torch.arange(24) >= opened)[None]
    left = torch.tensor([[int(torch.randint(1, opened, (), generator=g))]])
    probs = torch.where(known, torch.finfo(torch.float32).max, logp.exp())
    theirs = scheduling_amused.mask_by_random_topk(left, probs, temperature, torch.Generator().manual_seed(seed))
    noise = scheduling_amused.gumbel_noise(probs, torch.Generator().manual_seed(seed))
    ours = remasked(confidence(logp, noise, temperature_n=temperature, known_nl=known), left[:, 0])
    assert torch.equal(ours, theirs)
    assert int(ours.sum()) == int(left)
