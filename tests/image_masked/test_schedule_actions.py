"""Raw actions: the worked numbers, exact zeros, saturation, and the likelihood against torch's distributions."""

from __future__ import annotations

import math

import pytest
import torch
from masked_schedule import amused
from torch import Tensor
from torch.distributions import Independent, Normal, kl_divergence

from image_gen.masked.schedule import actions
from image_gen.masked.schedule.targets import adanat_values, base_values

BOTH = pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
ALL = torch.ones(4, dtype=torch.bool)
SOME = torch.tensor([True, False, False, True])
RAW = [[0.2, -0.3, 0.1, 0.4], [0.1, 0.0, -0.2, 0.3]]


def offsets(raw_tv: Tensor, smooth: float) -> Tensor:
    """[T, V] -> [T, V]"""
    rows: list[Tensor] = []
    for raw_v in raw_tv:
        rows.append(actions.smoothed(raw_nv=raw_v, previous_nv=rows[-1] if rows else None, smooth=smooth))
    return torch.stack(rows)


@BOTH
def test_worked_example(dtype: torch.dtype) -> None:
    base = adanat_values(4, dtype=dtype)[1]
    assert actions.inverse_activation(base).tolist() == pytest.approx(
        [0.882714, -0.432117, 0.541325, -1.257562], abs=1e-6
    )
    got = actions.values(offset_nv=torch.tensor(RAW[:1], dtype=dtype), base_v=base)
    assert got.dtype == dtype
    assert got[0].tolist() == pytest.approx([0.747007, 0.392643, 1.064364, 0.353607], abs=1e-6)


@BOTH
def test_worked_likelihood(dtype: torch.dtype) -> None:
    raw, sd = torch.tensor(RAW[:1], dtype=dtype), torch.full((4,), 0.6, dtype=dtype)
    means = torch.tensor([[0.1, -0.1, 0.0, 0.3], [0.15, -0.12, 0.02, 0.33]], dtype=dtype)
    logp = actions.log_prob(raw_nv=raw.expand(2, -1), mean_nv=means, deviation_v=sd, learned_v=ALL)
    assert logp.tolist() == pytest.approx([-1.729674, -1.696618], abs=1e-6)
    assert (logp[1] - logp[0]).exp().item() == pytest.approx(1.033608, abs=1e-6)


@BOTH
def test_worked_smoothing(dtype: torch.dtype) -> None:
    d = offsets(torch.tensor(RAW, dtype=dtype), 0.5)
    got = actions.values(offset_nv=d, base_v=adanat_values(4, dtype=dtype)[:2])
    assert got[0].tolist() == pytest.approx([0.936932, 0.603160, 1.064364, 0.000373], abs=1e-6)
    assert got[1].tolist() == pytest.approx([0.737442, 0.443861, 0.968686, 0.338974], abs=1e-6)


def test_smoothing_is_the_pages_recursion() -> None:
    """a_0 = u_0 + b_0; a_t = s a_(t-1) + (1-s)(u_t + (b_t - s b_(t-1)) / (1-s)), against b + d."""
    s, b_tv = 0.8, actions.inverse_activation(adanat_values(6, dtype=torch.float64))
    raw_tv = torch.randn(6, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    a = raw_tv[0] + b_tv[0]
    d_tv = offsets(raw_tv, s)
    for t in range(1, 6):
        a = s * a + (1 - s) * (raw_tv[t] + (b_tv[t] - s * b_tv[t - 1]) / (1 - s))
        torch.testing.assert_close(b_tv[t] + d_tv[t], a, atol=1e-10, rtol=0)


def test_smoothing_detaches_the_step_before_and_off_is_the_raw_action() -> None:
    raw, before = torch.randn(2, 4), torch.randn(2, 4, requires_grad=True)
    assert actions.smoothed(raw_nv=raw, previous_nv=before, smooth=0.0) is raw
    assert not actions.smoothed(raw_nv=raw, previous_nv=before, smooth=0.5).requires_grad
    assert actions.smoothed(raw_nv=raw, previous_nv=None, smooth=0.5) is raw


@BOTH
@pytest.mark.parametrize("smooth", [0.0, 0.8])
def test_zero_is_the_base_bit_for_bit(smooth: float, dtype: torch.dtype) -> None:
    base_tv = base_values(amused(), 12, guidance=10.0).to(dtype)
    base_tv[3] = torch.tensor([1e-9, 1e-30, 7e-4, 31.0])  # where clamps and round trips would show
    got = actions.values(offset_nv=offsets(torch.zeros(12, 4, dtype=dtype), smooth), base_v=base_tv)
    assert torch.equal(got, base_tv)
    one_moved = torch.zeros(12, 4, dtype=dtype)
    one_moved[:, 2] = 0.1
    got = actions.values(offset_nv=one_moved, base_v=base_tv)
    assert torch.equal(got[:, [0, 1, 3]], base_tv[:, [0, 1, 3]])
    assert (got[:, 2] > base_tv[:, 2]).all()


def test_a_small_action_moves_a_little() -> None:
    """The map is continuous at 0: the exact zero is no jump."""
    base = torch.tensor([0.7, 1.5, 1.0, 10.0], dtype=torch.float64)
    got = actions.values(offset_nv=torch.full((1, 4), 1e-9, dtype=torch.float64), base_v=base)[0]
    slope = (got - base) / 1e-9
    expected = [0.7 * 0.3, 1 - math.exp(-1.5), 1 - math.exp(-1.0), 1 - math.exp(-10.0)]
    assert slope.tolist() == pytest.approx(expected, abs=1e-5)


@BOTH
def test_saturated_actions_stay_finite(dtype: torch.dtype) -> None:
    base = base_values(amused(), 8, guidance=10.0)[2].to(dtype)
    far = torch.tensor([[1e4] * 4, [-1e4] * 4], dtype=dtype)
    high, low = actions.values(offset_nv=far, base_v=base)
    assert high.tolist() == pytest.approx([1.0, 10001.1546, 10000.5413, 30.0], abs=1e-2)
    assert low.tolist() == pytest.approx([0.0, 0.0, 1e-3, 0.0])
    logp = actions.log_prob(raw_nv=far, mean_nv=far + 1, deviation_v=torch.full((4,), 0.1, dtype=dtype), learned_v=ALL)
    assert logp.isfinite().all()


@BOTH
def test_edges_of_the_base(dtype: torch.dtype) -> None:
    """A value of 0 (and a ratio of 1) cannot be moved: neither NaN nor a jump."""
    base = torch.tensor([[0.0, 0.0, 1.0, 0.0], [1.0, 0.0, 1.0, 0.0]], dtype=dtype)
    assert actions.inverse_activation(base)[:, 0].tolist() == [-math.inf, math.inf]
    assert actions.inverse_activation(base)[:, 1].tolist() == [-math.inf, -math.inf]
    for action in (-1e4, -0.5, 0.5, 1e4):
        got = actions.values(offset_nv=torch.full((2, 4), action, dtype=dtype), base_v=base)
        assert torch.equal(got[:, [0, 1, 3]], base[:, [0, 1, 3]])


def test_a_guidance_base_scales_the_action_not_the_base() -> None:
    """w = 10 softplus(b + u) with the target 1 moves ten times as far as the softplus of a target of 1."""
    base = torch.tensor([0.5, 1.0, 1.0, 10.0], dtype=torch.float64)
    zero, up = torch.zeros(1, 4, dtype=torch.float64), torch.full((1, 4), 0.1, dtype=torch.float64)
    assert torch.equal(actions.values(offset_nv=zero, base_v=base, guidance_base=10.0)[0], base)
    got = actions.values(offset_nv=up, base_v=base, guidance_base=10.0)[0]
    assert got.tolist() == pytest.approx([0.524979, 1.064364, 1.064364, 10.643642], abs=1e-6)
    plain = actions.values(offset_nv=up, base_v=base)[0]
    assert plain[3].item() == pytest.approx(10.099996, abs=1e-6)


def test_a_guidance_base_of_zero_stays_zero() -> None:
    got = actions.values(offset_nv=torch.full((4, 4), 0.7), base_v=adanat_values(4, guidance=0.0), guidance_base=0.0)
    assert got[:, 3].tolist() == [0.0] * 4
    assert got.isfinite().all()


def test_values_carry_no_gradient() -> None:
    offset = torch.zeros(1, 4, requires_grad=True)
    assert not actions.values(offset_nv=offset, base_v=torch.tensor([0.5, 1.0, 1.0, 2.0])).requires_grad


@pytest.mark.parametrize("learned", [ALL, SOME])
def test_likelihood_kl_and_entropy_are_torchs(learned: Tensor) -> None:
    g = torch.Generator().manual_seed(0)
    raw, mean = (torch.randn(5, 4, dtype=torch.float64, generator=g) for _ in range(2))
    sd, first = (torch.rand(4, dtype=torch.float64, generator=g) + 0.1 for _ in range(2))
    now = Independent(Normal(mean[:, learned], sd[learned]), 1)
    manual = Independent(Normal(torch.zeros_like(mean[:, learned]), first[learned]), 1)
    logp = actions.log_prob(raw_nv=raw, mean_nv=mean, deviation_v=sd, learned_v=learned)
    torch.testing.assert_close(logp, now.log_prob(raw[:, learned]), atol=1e-10, rtol=0)
    kl = actions.gaussian_kl(mean_nv=mean, deviation_v=sd, first_deviation_v=first, learned_v=learned)
    torch.testing.assert_close(kl, kl_divergence(now, manual), atol=1e-10, rtol=0)
    nats = actions.entropy(deviation_v=sd, learned_v=learned)
    torch.testing.assert_close(nats.expand(5), now.entropy(), atol=1e-10, rtol=0)


def test_kl_to_the_manual_schedule_begins_at_zero() -> None:
    sd = torch.full((4,), 0.6, dtype=torch.float64)
    kl = actions.gaussian_kl(mean_nv=torch.zeros(2, 4).double(), deviation_v=sd, first_deviation_v=sd, learned_v=ALL)
    assert kl.tolist() == [0.0, 0.0]
    moved = actions.gaussian_kl(
        mean_nv=torch.full((1, 4), 0.3).double(), deviation_v=sd, first_deviation_v=sd, learned_v=SOME
    )
    assert moved.item() == pytest.approx(2 * 0.09 / 0.72)


def test_gradient_at_the_mean_is_zero_and_elsewhere_the_scaled_distance() -> None:
    mean = torch.tensor([[0.3, -0.2, 0.1, 0.7]], dtype=torch.float64, requires_grad=True)
    sd = torch.full((4,), 0.6, dtype=torch.float64)
    actions.log_prob(raw_nv=mean.detach().clone(), mean_nv=mean, deviation_v=sd, learned_v=ALL).sum().backward()
    assert mean.grad is not None
    assert mean.grad.tolist() == [[0.0] * 4]
    mean.grad = None
    actions.log_prob(raw_nv=mean.detach() + 0.18, mean_nv=mean, deviation_v=sd, learned_v=SOME).sum().backward()
    assert mean.grad is not None
    assert mean.grad[0].tolist() == pytest.approx([0.5, 0.0, 0.0, 0.5])


def test_columns_that_are_not_learned_have_no_influence() -> None:
    raw, mean, sd = torch.zeros(1, 4), torch.zeros(1, 4), torch.full((4,), 0.6)
    expected = actions.log_prob(raw_nv=raw, mean_nv=mean, deviation_v=sd, learned_v=SOME)
    raw[0, 1], mean[0, 2] = math.inf, math.nan
    mean.requires_grad_()
    got = actions.log_prob(raw_nv=raw, mean_nv=mean, deviation_v=sd, learned_v=SOME)
    assert torch.equal(got, expected)
    got.sum().backward()
    assert mean.grad is not None
    assert mean.grad[0, [0, 1, 3]].isfinite().all()


def test_shapes_must_agree() -> None:
    with pytest.raises(ValueError, match="one shape"):
        actions.log_prob(raw_nv=torch.zeros(2, 4), mean_nv=torch.zeros(1, 4), deviation_v=torch.ones(4), learned_v=ALL)
