"""VGPO: the page's numbers, the invariants of its parts, and what happens to rewards that are missing or negative."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from image_gen.flow import values
from mmrl.core.advantages.grpo import grpo

BOTH = pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
NAN = float("nan")
KEY = torch.tensor([0, 0])


def example(dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.tensor([[0.2, 0.4, 0.8], [0.4, 0.4, 0.4]], dtype=dtype)


def random_rewards(seed: int = 0, n: int = 8, s: int = 6) -> tuple[Tensor, Tensor]:
    """Scattered, ragged groups: 3 of prompt 4, 4 of prompt 9, 1 of prompt 2."""
    rewards = torch.rand(n, s, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return rewards, torch.tensor([4, 9, 9, 4, 2, 9, 4, 9])


def close(got: Tensor, want: object, atol: float = 1e-6) -> None:
    torch.testing.assert_close(got.double(), torch.as_tensor(want, dtype=torch.float64), atol=atol, rtol=0)


@BOTH
def test_worked_example(dtype: torch.dtype) -> None:
    got = values.vgpo(reward_ns=example(dtype), key_n=KEY, gamma=0.5, k=0.1, n_abs=2)
    atol = 2e-6 if dtype == torch.float32 else 1e-6
    assert got.advantage_ns.dtype == dtype
    close(got.value_ns, [[0.6, 0.8, 0.8], [0.7, 0.6, 0.4]])
    close(got.omega_ns, [[0.818182, 1.090909, 1.090909], [1.235294, 1.058824, 0.705882]])
    close(got.relative_ns, [[-0.998004, 0.999001, 0.999500], [0.998004, -0.999001, -0.999500]], atol)
    close(got.advantage_ns, [[-0.767458, 1.177092, 1.090364], [1.319299, -0.994236, -0.705530]], atol)
    close(got.absolute_ns, [[0.06, 0.08, 0.0], [0.07, 0.06, 0.0]])


def test_the_absolute_share_by_hand() -> None:
    got = values.vgpo(reward_ns=example(), key_n=KEY, gamma=0.5, k=0.1, n_abs=2)
    absolute = 0.818182 * 0.06 + 1.090909 * 0.08 + 1.235294 * 0.07 + 1.058824 * 0.06
    relative = 0.998004 * (0.818182 + 1.235294) + 0.999001 * (1.090909 + 1.058824) + 0.9995 * (1.090909 + 0.705882)
    assert got.absolute_share.item() == pytest.approx(absolute / (absolute + relative), abs=1e-6)


def test_inner_form_by_hand() -> None:
    """W = omega Q; at two rows the relative part is +-d / (d + eps) with d half their distance."""
    got = values.vgpo(reward_ns=example(), key_n=KEY, gamma=0.5, k=0.1, n_abs=2, form="inner")
    w = [[0.490909, 0.872727, 0.872727], [0.864706, 0.635294, 0.282353]]
    for s in range(3):
        half = (w[0][s] - w[1][s]) / 2
        for i, sign in enumerate((1, -1)):
            want = sign * half / (abs(half) + 1e-4) + (0.1 * w[i][s] if s < 2 else 0)
            assert got.advantage_ns[i, s].item() == pytest.approx(want, abs=1e-5)


def test_reduces_to_flow_grpo() -> None:
    """k 0, gamma 1, terminal reward only: Flow-GRPO's advantage at every step."""
    rewards, key = random_rewards()
    rewards[:, :-1] = 0
    got = values.vgpo(reward_ns=rewards, key_n=key, gamma=1.0, k=0.0)
    close(got.omega_ns, torch.ones_like(rewards), 1e-12)
    flow_n = grpo(reward_n=rewards[:, -1], keys={"prompt": key}, ddof=0, eps=1e-4)
    close(got.advantage_ns, flow_n[:, None].expand_as(rewards), 1e-12)


def test_gamma_zero_is_the_reward_itself() -> None:
    rewards, _ = random_rewards()
    assert torch.equal(values.discounted(reward_ns=rewards, gamma=0.0), rewards)


@pytest.mark.parametrize("start", [0, 2])
def test_omega_has_mean_one(start: int) -> None:
    """Per trajectory; over the steps from the window's start on. At group level for the group's rows alike."""
    rewards, key = random_rewards()
    sample = values.vgpo(reward_ns=rewards, key_n=key, start=start)
    group = values.vgpo(reward_ns=rewards, key_n=key, start=start, omega_level="group")
    for got in (sample, group):
        close(got.omega_ns[:, start:].mean(1), torch.ones(8), 1e-12)
    rows = group.omega_ns[key == 9]
    assert torch.equal(rows, rows[:1].expand_as(rows))
    mean_s = group.value_ns[key == 9].mean(0)
    close(rows[0, start:], mean_s[start:] / mean_s[start:].mean(), 1e-12)
    close(sample.omega_ns[key == 2], group.omega_ns[key == 2], 1e-12)


def test_relative_parts_of_a_group_sum_to_zero() -> None:
    rewards, key = random_rewards()
    got = values.vgpo(reward_ns=rewards, key_n=key, k=0.0)
    for prompt in (2, 4, 9):
        close(got.relative_ns[key == prompt].sum(0), torch.zeros(6), 1e-12)
    close(got.advantage_ns, got.omega_ns * got.relative_ns, 1e-12)


@pytest.mark.parametrize("key", [[0, 0, 0], [0, 1, 2]], ids=["flat group", "groups of one"])
def test_signal_without_variance(key: list[int]) -> None:
    """All R equal to c > 0: A = k Q omega for s < n_abs, 0 afterwards; all of it is the absolute term."""
    got = values.vgpo(reward_ns=torch.full((3, 6), 0.7), key_n=torch.tensor(key), k=0.2, n_abs=4)
    close(got.relative_ns, torch.zeros(3, 6), 0)
    close(got.advantage_ns[:, :4], (0.2 * got.value_ns * got.omega_ns)[:, :4])
    assert (got.advantage_ns[:, :4] > 0).all() and not got.advantage_ns[:, 4:].any()
    assert got.absolute_share.item() == pytest.approx(1.0)


def test_scaling_rewards() -> None:
    """omega and (up to eps) relative stay; the absolute part is multiplied."""
    rewards, key = random_rewards()
    one = values.vgpo(reward_ns=rewards, key_n=key, eps=1e-12)
    ten = values.vgpo(reward_ns=10 * rewards, key_n=key, eps=1e-12)
    close(ten.omega_ns, one.omega_ns, 1e-9)
    close(ten.relative_ns, one.relative_ns, 1e-9)
    close(ten.absolute_ns, 10 * one.absolute_ns, 1e-9)


def test_nothing_carries_gradient() -> None:
    rewards, key = random_rewards()
    for form in ("outer", "inner"):
        got = values.vgpo(reward_ns=rewards.requires_grad_(), key_n=key, form=form)  # type: ignore[arg-type]
        for part in (got.advantage_ns, got.relative_ns, got.absolute_ns, got.omega_ns, got.value_ns):
            assert not part.requires_grad
    x = torch.ones(2, 3, requires_grad=True)
    assert not values.project(x_next_n=x, v_next_n=x, sigma_next=0.5).requires_grad


def test_missing_rewards() -> None:
    """NaN and inf take the mean of the trajectory's finite rewards; a row without any is masked and not counted."""
    rewards = torch.tensor([[0.2, NAN, 0.8], [float("inf"), 0.4, 0.4], [NAN] * 3, [0.1, 0.2, 0.3]], dtype=torch.float64)
    key = torch.zeros(4, dtype=torch.long)
    filled, valid = values.trusted_rewards(reward_ns=rewards)
    close(filled, [[0.2, 0.5, 0.8], [0.4, 0.4, 0.4], [0, 0, 0], [0.1, 0.2, 0.3]], 1e-12)
    assert valid.tolist() == [True, True, False, True]
    rows = [0, 1, 3]
    for options in ({}, {"omega_level": "group"}, {"reward_shift": -1.0}, {"form": "inner"}):
        got = values.vgpo(reward_ns=rewards, key_n=key, **options)  # type: ignore[arg-type]
        without = values.vgpo(reward_ns=filled[rows], key_n=key[rows], **options)  # type: ignore[arg-type]
        assert not got.advantage_ns[2].any()
        close(got.advantage_ns[rows], without.advantage_ns, 1e-12)
        close(got.absolute_share, without.absolute_share, 1e-12)


def test_skip_first_copies_the_first_trusted_step() -> None:
    rewards = torch.tensor([[9.0, 9.0, 0.4, NAN, 0.8], [9.0, 9.0, NAN, 0.2, 0.4]])
    filled, _ = values.trusted_rewards(reward_ns=rewards, skip_first=2)
    close(filled, [[0.4, 0.4, 0.4, 0.6, 0.8], [0.3, 0.3, 0.3, 0.2, 0.4]])
    untrusted = torch.tensor([[1.0, NAN], [1.0, 2.0]])
    assert values.trusted_rewards(reward_ns=untrusted, skip_first=1)[1].tolist() == [False, True]


def test_steps_that_were_not_scored_are_interpolated() -> None:
    """Rewards that are linear in the step are recovered from every third step; what stands between is not read."""
    step_s = torch.arange(7, dtype=torch.float64)
    truth = torch.stack([0.1 + 0.1 * step_s, 0.9 - 0.05 * step_s, torch.full((7,), 0.3, dtype=torch.float64)])
    scored = step_s % 3 == 0
    seen = torch.where(scored, truth, NAN)
    key = torch.tensor([0, 0, 0])
    got = values.vgpo(reward_ns=seen, key_n=key, scored_s=scored)
    close(got.advantage_ns, values.vgpo(reward_ns=truth, key_n=key).advantage_ns, 1e-9)
    junk = torch.where(scored, truth, torch.full_like(truth, 1e6))
    assert torch.equal(values.vgpo(reward_ns=junk, key_n=key, scored_s=scored).advantage_ns, got.advantage_ns)
    every = torch.ones(7, dtype=torch.bool)
    assert torch.equal(
        values.vgpo(reward_ns=truth, key_n=key, scored_s=every).advantage_ns,
        values.vgpo(reward_ns=truth, key_n=key).advantage_ns,
    )


def test_missing_and_skipped_rewards_between_scored_steps() -> None:
    """A lost reward takes the mean of the scored ones (0.2, 0.8) before lines are drawn; skipped steps are unknown."""
    scored = torch.tensor([1, 0, 1, 0, 1, 0]).bool()
    rewards = torch.tensor([[0.2, NAN, NAN, NAN, 0.8, NAN]])
    filled, valid = values.trusted_rewards(reward_ns=rewards, scored_s=scored)
    close(filled, [[0.2, 0.35, 0.5, 0.65, 0.8, 0.8]])
    assert valid.tolist() == [True]
    later = torch.tensor([[9.0, NAN, 0.2, NAN, 0.8, NAN]])
    close(values.trusted_rewards(reward_ns=later, scored_s=scored, skip_first=1)[0], [[0.2, 0.2, 0.2, 0.5, 0.8, 0.8]])
    with pytest.raises(ValueError, match="no step from 5 on was scored"):
        values.trusted_rewards(reward_ns=rewards, scored_s=scored, skip_first=5)
    with pytest.raises(ValueError, match=r"known_s must be bool \[6\]"):
        values.interpolated(value_ns=rewards, known_s=torch.zeros(6, dtype=torch.bool))


def test_a_window_leaves_the_steps_before_it_out() -> None:
    """The values from the window on are those of the shorter trajectory; n_abs counts absolute steps."""
    rewards, key = random_rewards()
    rewards[:, :2] = NAN  # never scored
    got = values.vgpo(reward_ns=rewards, key_n=key, start=2, n_abs=4)
    short = values.vgpo(reward_ns=rewards[:, 2:], key_n=key, n_abs=2)
    close(got.advantage_ns[:, 2:], short.advantage_ns, 1e-12)
    assert not got.advantage_ns[:, :2].any()
    close(got.absolute_share, short.absolute_share, 1e-12)
    shifted = values.vgpo(reward_ns=rewards, key_n=key, start=2, reward_shift=-1.0)
    assert not shifted.value_ns[:, :2].any() and not shifted.advantage_ns[:, :2].any()


def test_guards_of_omega() -> None:
    zero = values.vgpo(reward_ns=torch.zeros(2, 4), key_n=KEY)
    assert torch.equal(zero.omega_ns, torch.ones(2, 4)) and not zero.advantage_ns.any()
    signs = torch.tensor([[1.0, -1.0], [0.5, 0.5]])  # mean 0 with gamma 0
    got = values.vgpo(reward_ns=signs, key_n=KEY, gamma=0.0)
    assert got.omega_ns[0].tolist() == [1.0, 1.0] and got.unguarded
    near = torch.tensor([[-1.0, 1.1, 0.2], [0.5, 0.5, 0.5]])
    wild = values.vgpo(reward_ns=near, key_n=KEY, gamma=0.0)
    assert wild.omega_ns[0, 0] < -5 and wild.unguarded
    clipped = values.vgpo(reward_ns=near, key_n=KEY, gamma=0.0, omega_clip=(0.2, 5.0))
    close(clipped.omega_ns[0], [0.2, 5.0, 2.0])
    assert not clipped.unguarded
    moved = values.vgpo(reward_ns=near, key_n=KEY, gamma=0.0, reward_shift=-1.0)
    close(moved.value_ns, near + 1)
    assert not moved.unguarded and (moved.omega_ns >= 0).all()
    assert not values.vgpo(reward_ns=near.abs(), key_n=KEY).unguarded


def test_the_combiner_is_replaceable() -> None:
    def relative_only(*, relative_ns: Tensor, absolute_ns: Tensor, omega_ns: Tensor, form: str) -> Tensor:
        return relative_ns

    got = values.vgpo(reward_ns=example(), key_n=KEY, combiner=relative_only)
    assert torch.equal(got.advantage_ns, got.relative_ns)


def test_no_combiner_reaches_masked_rows_and_steps() -> None:
    def ones(*, relative_ns: Tensor, **_: object) -> Tensor:
        return torch.ones_like(relative_ns)

    rewards = torch.tensor([[0.1, 0.2, 0.3], [NAN, NAN, NAN]])
    got = values.vgpo(reward_ns=rewards, key_n=KEY, start=1, combiner=ones)
    assert got.advantage_ns.tolist() == [[0, 1, 1], [0, 0, 0]]


@BOTH
def test_projection(dtype: torch.dtype) -> None:
    """x - sigma v; the data point exactly for the true velocity of a straight path; at sigma 0 v is not read."""
    x0, x1 = (torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(i), dtype=dtype) for i in range(2))
    sigma = torch.tensor([0.6, 0.0], dtype=torch.float64)
    level = sigma.to(dtype)[:, None, None]
    got = values.project(x_next_n=(1 - level) * x0 + level * x1, v_next_n=x1 - x0, sigma_next=sigma)
    close(got, x0.double())
    assert torch.equal(values.project(x_next_n=x0, v_next_n=x0 * NAN, sigma_next=0.0), x0)
    assert values.project(x_next_n=x0.bfloat16(), v_next_n=x1.bfloat16(), sigma_next=0.5).dtype == torch.float32


def test_half_precision_rewards_become_float32() -> None:
    got = values.vgpo(reward_ns=example(torch.bfloat16), key_n=KEY)
    assert got.advantage_ns.dtype == torch.float32


def test_bad_input() -> None:
    rewards = example()
    for options, message in (
        ({"gamma": 1.1}, "gamma must be"),
        ({"omega_level": "row"}, "omega_level must be"),
        ({"form": "both"}, "form must be"),
        ({"omega_clip": (5.0, 0.2)}, "two rising numbers"),
        ({"skip_first": 3}, "must be steps of 0 .. 2"),
        ({"start": -1}, "must be steps of 0 .. 2"),
        ({"key_n": torch.tensor([0])}, "one key a row"),
    ):
        with pytest.raises(ValueError, match=message):
            values.vgpo(**{"reward_ns": rewards, "key_n": KEY, **options})  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"must be \[N, S\]"):
        values.trusted_rewards(reward_ns=rewards[0])
    with pytest.raises(ValueError, match="one shape"):
        values.project(x_next_n=rewards, v_next_n=rewards[:1], sigma_next=0.5)
