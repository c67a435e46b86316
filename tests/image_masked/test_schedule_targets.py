"""Hand-made schedules: diffusers' scheduler bit for bit, AdaNAT's formula, the other mask schedules by number."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from diffusers.schedulers import scheduling_amused
from masked_schedule import amused, table
from torch import Tensor

from image_gen.masked.schedule import actions
from image_gen.masked.schedule.acting import Acting
from image_gen.masked.schedule.targets import adanat_values, base_values, mixing_guidance
from mmrl.errors import UserError


def what_the_scheduler_does(monkeypatch: pytest.MonkeyPatch, name: str, steps: int, length: int) -> list[Any]:
    """(masks left, temperature) that AmusedScheduler.step hands to its choice of masks, steps 0 .. T-2."""
    seen: list[Any] = []

    def spy(mask_len: Tensor, probs: Tensor, temperature: Tensor, generator: Any = None) -> Tensor:
        seen.append((int(mask_len), float(temperature)))
        return torch.zeros_like(probs, dtype=torch.bool)

    monkeypatch.setattr(scheduling_amused, "mask_by_random_topk", spy)
    scheduler = amused(name)
    scheduler.set_timesteps(steps)
    for timestep in scheduler.timesteps:
        scheduler.step(torch.zeros(1, length, 1), timestep, torch.full((1, length), 31))
    return seen


@pytest.mark.parametrize("length", [64, 256, 1024])
@pytest.mark.parametrize(("name", "smooth"), [("cosine", 0.0), ("cosine", 0.8), ("linear", 0.8)])
def test_zero_actions_are_the_scheduler_bit_for_bit(
    name: str, smooth: float, length: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Through the whole path of an action: guidance is moved, so that the others' zeros are mapped, not skipped."""
    for steps in range(2, 65):
        schedule = table(steps, smooth=smooth)
        with torch.no_grad():
            schedule.means[:-1, 3] = 0.5
        base_tv = base_values(amused(name), steps, guidance=10.0)
        acting = Acting(schedule, base_tv=base_tv)
        value_tv = torch.cat([acting.act(t, n=1)[1] for t in range(steps)])
        assert (value_tv[:-1, 3] > 10.4).all()
        assert value_tv[-1, 3] == 10
        # a canvas of masks alone: the scheduler's two bounds are 1 and length - 1
        counts = (length * value_tv[:-1, 0]).floor().clamp(1, length - 1).tolist()
        expected = what_the_scheduler_does(monkeypatch, name, steps, length)
        assert list(zip(counts, value_tv[:-1, 1].tolist())) == expected


def test_temperatures_are_the_schedulers_own_table() -> None:
    """By step, not by the descending timesteps; the scheduler itself stays as it was."""
    scheduler = amused()
    base_tv = base_values(scheduler, 3, remask=(2.0, 0.0), sample=0.7, guidance=9.0)
    assert scheduler.temperatures is None
    assert base_tv.dtype == torch.float32
    assert base_tv[:, 1].tolist() == [2.0, 1.0, 0.0]
    assert base_tv[:, 2].tolist() == pytest.approx([0.7] * 3)
    assert base_tv[:, 3].tolist() == [9.0] * 3
    falling = base_values(scheduler, 3, remask=4.0, guidance=1.0)
    assert falling[:, 1].tolist() == pytest.approx([4.0, 2.005, 0.01])


def test_mask_schedules_by_number() -> None:
    """T = 4: cos(pi rho / 2), 1 - rho, 2 arccos(rho) / pi at rho 1/4, 1/2, 3/4; no mask after the last step."""
    ratios = {
        "cosine": [0.923880, 0.707107, 0.382683, 0.0],
        "linear": [0.75, 0.5, 0.25, 0.0],
        "arccos": [0.839139, 0.666667, 0.460107, 0.0],
    }
    for name, expected in ratios.items():
        base_tv = base_values(amused("linear"), 4, mask_schedule=name, guidance=1.0)  # type: ignore[arg-type]
        assert base_tv[:, 0].tolist() == pytest.approx(expected, abs=1e-6)
        assert base_tv[-1, 0] == 0
    own = base_values(amused("linear"), 4, guidance=1.0)
    assert own[:, 0].tolist() == [0.75, 0.5, 0.25, 0.0]
    counts = (16 * base_values(amused(), 4, guidance=1.0)[:, 0]).floor()
    assert counts.tolist() == [14, 11, 6, 0]
    counts = (64 * base_values(amused(), 8, guidance=1.0)[:, 0]).floor()
    assert counts.tolist() == [62, 59, 53, 45, 35, 24, 12, 0]


def test_the_ratios_last_bit_does_not_depend_on_torchs_default_dtype() -> None:
    expected = base_values(amused(), 7, guidance=3.0)[:, 0]
    torch.set_default_dtype(torch.float64)
    try:
        assert torch.equal(base_values(amused(), 7, guidance=3.0)[:, 0], expected)
    finally:
        torch.set_default_dtype(torch.float32)


def test_one_step_leaves_no_mask() -> None:
    assert base_values(amused(), 1, guidance=5.0).tolist() == [[0.0, 2.0, 1.0, 5.0]]


def test_adanat_by_number() -> None:
    base_tv = adanat_values(4, dtype=torch.float64)
    assert base_tv[1].tolist() == pytest.approx([0.707384, 0.50025, 1.0, 0.25025], abs=1e-6)
    assert adanat_values(4, guidance=3.0)[1, 3].item() == pytest.approx(0.75075, abs=1e-6)
    assert ((base_tv > 0) & (base_tv <= 1)).all()  # every target can be inverted
    assert actions.inverse_activation(base_tv).isfinite().all()


def test_adanats_guidance_as_a_mixing_scale() -> None:
    """u + (1 + w)(c - u) = c + w (c - u)."""
    value = torch.tensor([[0.5, 0.2, 1.0, 0.25], [0.5, 0.2, 1.0, 30.0]])
    mixed = mixing_guidance(value)
    assert mixed.tolist() == [[0.5, pytest.approx(0.2), 1.0, 1.25], [0.5, pytest.approx(0.2), 1.0, 30.0]]
    assert value[0, 3] == 0.25
    cond, uncond = 0.7, -0.4
    assert uncond + mixed[0, 3].item() * (cond - uncond) == pytest.approx(cond + 0.25 * (cond - uncond))


def test_refusals() -> None:
    with pytest.raises(UserError, match="unknown name 'cosin'; did you mean 'cosine'"):
        base_values(amused(), 4, mask_schedule="cosin", guidance=1.0)  # type: ignore[arg-type]
    with pytest.raises(UserError, match="unknown name 'square'"):
        base_values(amused("square"), 4, guidance=1.0)
    with pytest.raises(ValueError, match="at least one step"):
        base_values(amused(), 0, guidance=1.0)
    with pytest.raises(ValueError, match="at least one step"):
        adanat_values(0)
