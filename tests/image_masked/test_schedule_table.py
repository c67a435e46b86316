"""The table of means: where its actions are, other step counts, learned columns, and the decay of its deviation."""

from __future__ import annotations

import math

import pytest
import torch
from masked_schedule import options, table
from pydantic import ValidationError

from image_gen.masked.schedule import actions
from image_gen.masked.schedule.table import TableSchedule, resample_means

THREE = torch.tensor([[4.0], [1.0], [9.0]])


def test_interpolation_by_number() -> None:
    """Three rows at 1/3, 2/3 and 1, the last one 0 whatever it holds."""
    assert resample_means(THREE, 2)[:, 0].tolist() == [2.5, 0.0]  # at 1/2 and 1
    assert resample_means(THREE, 6)[:, 0].tolist() == [4.0, 4.0, 2.5, 1.0, 0.5, 0.0]
    assert resample_means(THREE, 3)[:, 0].tolist() == [4.0, 1.0, 0.0]
    assert resample_means(THREE, 4)[:, 0].tolist() == [4.0, 2.5, 0.75, 0.0]  # at 1/4, 1/2, 3/4, 1
    assert resample_means(THREE, 1)[:, 0].tolist() == [0.0]
    assert resample_means(torch.tensor([[5.0]]), 3)[:, 0].tolist() == [0.0, 0.0, 0.0]


def test_where_positions_meet_rows_are_taken_over_bit_for_bit() -> None:
    mean_tv = torch.randn(8, 4, generator=torch.Generator().manual_seed(0))
    mean_tv[-1] = 0
    assert torch.equal(resample_means(mean_tv, 8), mean_tv)
    assert torch.equal(resample_means(mean_tv, 4), mean_tv[1::2])
    assert torch.equal(resample_means(mean_tv, 24)[2::3], mean_tv)


@pytest.mark.parametrize(("trained", "steps"), [(12, 7), (7, 12), (2, 9), (9, 2), (64, 48)])
def test_interpolation_is_piecewise_linear_in_the_share(trained: int, steps: int) -> None:
    mean_tv = torch.randn(trained, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    got = resample_means(mean_tv, steps)
    points = [(j + 1) / trained for j in range(trained)]
    heights = mean_tv.clone()
    heights[-1] = 0
    for t in range(steps):
        x = (t + 1) / steps
        left = max((j for j in range(trained) if points[j] <= x + 1e-12), default=0)
        right = min(left + 1, trained - 1)
        part = 0.0 if x < points[0] or left == right else (x - points[left]) / (points[right] - points[left])
        torch.testing.assert_close(got[t], heights[left] * (1 - part) + heights[right] * part, atol=1e-10, rtol=0)


def test_there_is_an_action_before_every_step_but_the_last() -> None:
    for steps in (1, 2, 5):
        schedule = table(5)
        raw = torch.zeros(3, 4)
        logps = [
            actions.log_prob(
                raw_nv=raw,
                mean_nv=schedule.mean(step=t, steps=steps, n=3),
                deviation_v=schedule.deviation(),
                learned_v=schedule.learned_v,
            )
            for t in range(steps - 1)
        ]
        assert len(logps) == steps - 1
        for outside in (steps - 1, steps, -1):
            with pytest.raises(ValueError, match="has no action"):
                schedule.mean(step=outside, steps=steps, n=3)


def test_the_table_starts_at_base_and_its_last_row_never_learns() -> None:
    schedule = table(3)
    assert schedule.at_base
    optimiser = torch.optim.AdamW(schedule.parameters(), lr=0.1)
    for steps in (3, 7):
        (-sum(schedule.mean(step=t, steps=steps, n=2).sum() for t in range(steps - 1))).backward()
        optimiser.step()
    assert not schedule.at_base
    assert (schedule.means[:-1] > 0).all()
    assert schedule.means[-1].tolist() == [0.0] * 4
    with torch.no_grad():
        schedule.means.zero_()
        schedule.means[-1] = 1.0
    assert schedule.at_base


def test_means_are_those_of_the_step_for_every_row() -> None:
    schedule = table(4)
    with torch.no_grad():
        schedule.means.copy_(torch.arange(16.0).reshape(4, 4))
    assert schedule.mean(step=1, steps=4, n=2).tolist() == [[4.0, 5.0, 6.0, 7.0]] * 2
    assert schedule.mean(step=0, steps=2, n=1).tolist() == [[4.0, 5.0, 6.0, 7.0]]


def test_learning_a_subset() -> None:
    schedule = table(3, learn=["guidance", "ratio"])
    assert schedule.learned_v.tolist() == [True, False, False, True]
    with torch.no_grad():
        schedule.means.fill_(2.0)
    mean = schedule.mean(step=0, steps=3, n=2)
    assert mean.tolist() == [[2.0, 0.0, 0.0, 2.0]] * 2
    mean.sum().backward()
    assert schedule.means.grad is not None
    assert schedule.means.grad.tolist() == [[2.0, 0.0, 0.0, 2.0], [0.0] * 4, [0.0] * 4]
    with torch.no_grad():
        schedule.means.zero_()
        schedule.means[:, 1] = 5.0
    assert schedule.at_base


def test_deviation_falls_with_the_updates() -> None:
    """AdaNAT: 0.6, after 500 updates 0.3, after 1000 the floor of 0.1."""
    schedule = table(3)
    seen = {}
    for count in range(1501):
        if count in (0, 499, 500, 999, 1000, 1500):
            seen[count] = schedule.deviation().tolist()
        schedule.stepped()
    expected = {0: 0.6, 499: 0.6, 500: 0.3, 999: 0.3, 1000: 0.1, 1500: 0.1}
    assert {k: v[0] for k, v in seen.items()} == pytest.approx(expected)
    assert all(len(set(v)) == 1 and len(v) == 4 for v in seen.values())
    assert schedule.first_deviation().tolist() == pytest.approx([0.6] * 4)
    assert not schedule.deviation().requires_grad
    again = table(3)
    again.load_state_dict(schedule.state_dict())
    assert again.deviation().tolist() == pytest.approx([0.1] * 4)


def test_learned_deviation_has_a_gradient_and_stays_in_its_range() -> None:
    schedule = table(3, deviation={"learned": True, "start": 0.4, "floor": 0.2})
    assert schedule.deviation().tolist() == pytest.approx([0.4] * 4)
    logp = actions.log_prob(
        raw_nv=torch.tensor([[0.0, 0.4, 0.8, 1.2]]),
        mean_nv=torch.zeros(1, 4),
        deviation_v=schedule.deviation(),
        learned_v=schedule.learned_v,
    )
    logp.sum().backward()
    parameter = schedule.spread.log_v
    assert parameter is not None and parameter.grad is not None
    assert parameter.grad.tolist() == pytest.approx([-1.0, 0.0, 3.0, 8.0], abs=1e-5)  # d/d ln sd = (u / sd)^2 - 1
    with torch.no_grad():
        parameter.copy_(torch.tensor([-9.0, 9.0, 0.0, math.log(0.4)]))
    schedule.stepped()
    assert schedule.deviation().tolist() == pytest.approx([0.2, 10.0, 1.0, 0.4])
    assert schedule.first_deviation().tolist() == pytest.approx([0.4] * 4)


def test_a_start_below_the_floor_is_refused() -> None:
    with pytest.raises(ValidationError, match=r"start 0\.05 lies below floor 0\.1; lower floor too"):
        options(deviation={"start": 0.05})


def test_float64() -> None:
    schedule = table(5).double()
    assert schedule.mean(step=0, steps=3, n=1).dtype == torch.float64
    assert schedule.deviation().dtype == torch.float64
    assert torch.equal(schedule.deviation(), schedule.first_deviation())


def test_a_schedule_without_steps_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one step"):
        TableSchedule(options(), steps=0)
    with pytest.raises(ValueError, match="at least one step"):
        resample_means(THREE, 0)
