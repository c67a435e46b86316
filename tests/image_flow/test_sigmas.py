"""The table of noise levels: published numbers, and diffusers' scheduler beside it."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from image_gen.flow import steps
from image_gen.flow.sigmas import resolution_shift, shifted, sigma_table
from mmrl.errors import UserError

SD3 = [1, 0.960129, 0.913349, 0.857692, 0.790368, 0.707278, 0.602151, 0.464876, 0.278049, 0.008929, 0]


def test_sd3_table() -> None:
    got = sigma_table(steps=10, shift=3.0)
    assert got.dtype == torch.float64 and got[0] == 1 and got[-1] == 0
    torch.testing.assert_close(got, torch.tensor(SD3, dtype=torch.float64), atol=6e-7, rtol=0)


def test_shift_keeps_the_ends_and_moves_towards_the_noise() -> None:
    levels = torch.tensor([0.0, 0.5, 1.0], dtype=torch.float64)
    torch.testing.assert_close(shifted(levels, shift=3.0), torch.tensor([0.0, 0.75, 1.0], dtype=torch.float64))
    assert torch.equal(shifted(levels, shift=1.0), levels)


def test_even_table_and_terminal() -> None:
    torch.testing.assert_close(
        sigma_table(steps=4, shift=1.0, grid="even"), torch.tensor([1, 0.75, 0.5, 0.25, 0], dtype=torch.float64)
    )
    got = sigma_table(steps=4, shift=2.0, grid="even", terminal=0.02)
    assert got[0] == 1 and got[-2].item() == pytest.approx(0.02, abs=1e-12)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"steps": 0}, "steps must be at least 1"),
        ({"steps": 4, "shift": 0.0}, "shift must be above 0"),
        ({"steps": 4, "grid": "flat"}, "grid must be"),
        ({"steps": 1, "terminal": 0.02}, "terminal must be"),
    ],
)
def test_bad_input(options: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        sigma_table(**options)


@pytest.mark.parametrize("n", [10, 28])
def test_equal_to_diffusers(n: int) -> None:
    """The same levels (SD3; FLUX at 4096 tokens; Qwen-Image's terminal) and, without noise, the same latents."""
    diffusers = pytest.importorskip("diffusers")
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0)
    scheduler.set_timesteps(n)
    table = sigma_table(steps=n, shift=3.0)
    torch.testing.assert_close(table.float(), scheduler.sigmas, atol=2e-7, rtol=0)
    for terminal in (None, 0.02):
        dynamic = diffusers.FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True, shift_terminal=terminal)
        dynamic.set_timesteps(sigmas=torch.linspace(1, 1 / n, n).tolist(), mu=1.15)
        ours = sigma_table(steps=n, shift=resolution_shift(tokens=4096), grid="even", terminal=terminal)
        torch.testing.assert_close(ours.float(), dynamic.sigmas, atol=5e-7, rtol=0)

    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, 4, 8, 8, generator=generator)
    theirs, rule = x, steps.make_rule(name="ode", noise=0.0, sigmas=table)
    for i, timestep in enumerate(scheduler.timesteps):
        v = torch.tanh(x)
        step = steps.transition(rule=rule, x_n=x, v_n=v, sigma=table[i], sigma_next=table[i + 1])
        theirs = scheduler.step(torch.tanh(theirs), timestep, theirs).prev_sample
        x = steps.draw(step=step)
        torch.testing.assert_close(x, theirs, atol=1e-6, rtol=0)


def test_importing_the_package_loads_no_torch() -> None:
    code = "import sys, image_gen, image_gen.flow; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], timeout=60).returncode == 0
