"""The network of means: its published shape, any grid and step count, and what its gradient reaches."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from masked_schedule import TINY, net, options, table
from torch import Tensor

from image_gen.masked.schedule.net import NetSchedule, StepEmbedding, Widths


def features(n: int, grid: tuple[int, int], width: int = 5, seed: int = 0) -> Tensor:
    return torch.randn(n, grid[0] * grid[1], width, generator=torch.Generator().manual_seed(seed))


def woken(schedule: NetSchedule) -> NetSchedule:
    """Off its start: a head and modulations that are not zero."""
    with torch.no_grad():
        for module in (schedule.head, *[m.modulation for m in _norms(schedule)]):
            module.weight.normal_(std=0.5, generator=torch.Generator().manual_seed(7))
    return schedule


def _norms(schedule: NetSchedule) -> Iterator[torch.nn.Module]:
    return (m for m in schedule.modules() if type(m).__name__ == "AdaLN")


def test_the_published_shape() -> None:
    """Every layer of the page at its own width, 16x16 tokens of width 24."""
    schedule = NetSchedule(options(kind="net"), steps=8, feature_width=24, grid=(16, 16))
    shapes = {name: tuple(p.shape) for name, p in schedule.named_parameters() if name.endswith("weight")}
    assert shapes["embed.weight"] == (512, 24)
    assert shapes["norm_embed.modulation.weight"] == (1024, 512)
    assert shapes["spatial.weight"] == (512, 1, 3, 3)
    assert shapes["mix.weight"] == (128, 512, 1, 1)
    assert shapes["first.weight"] == (1024, 64 * 128)
    assert shapes["norm_first.modulation.weight"] == (2048, 512)
    assert shapes["second.weight"] == (512, 1024)
    assert shapes["norm_second.modulation.weight"] == (1024, 512)
    assert shapes["head.weight"] == (4, 512)
    assert schedule.mean(step=0, steps=8, n=2, features_nld=features(2, (16, 16), 24)).shape == (2, 4)


@pytest.mark.parametrize("grid", [(4, 4), (8, 8), (32, 32), (3, 6)])
@pytest.mark.parametrize("side", [4, 16])
def test_any_grid_starts_at_the_hand_made_schedule(grid: tuple[int, int], side: int) -> None:
    schedule = net(grid, widths=Widths(embed=12, channels=6, first=10, second=8, side=side, waves=8))
    assert schedule.at_base
    assert schedule.reads_features
    mean = schedule.mean(step=1, steps=4, n=3, features_nld=features(3, grid))
    assert mean.tolist() == [[0.0] * 4] * 3
    woken(schedule)
    assert not schedule.at_base
    mean = schedule.mean(step=1, steps=4, n=3, features_nld=features(3, grid))
    assert mean.shape == (3, 4)
    assert mean.isfinite().all()
    assert (mean[0] - mean[1]).abs().min() > 1e-4  # it sees the canvas


def test_the_mean_depends_on_the_place_of_a_feature() -> None:
    """Cells are row by row: a canvas and its transpose differ, and so do two orders of reading a 2x8 one."""
    schedule, f = woken(net((4, 4))), features(1, (4, 4))
    turned = f.reshape(1, 4, 4, 5).transpose(1, 2).reshape(1, 16, 5)
    plain, other = (schedule.mean(step=0, steps=4, n=1, features_nld=x) for x in (f, turned))
    assert (plain - other).abs().max() > 1e-4
    wide = woken(net((2, 8)))
    halves = f.reshape(1, 2, 8, 5)
    as_grid = halves.repeat_interleave(2, dim=1).reshape(1, 4, 4, 2, 5).mean(3).reshape(1, 16, 5)
    torch.testing.assert_close(
        wide.mean(step=0, steps=4, n=1, features_nld=f),
        schedule.mean(step=0, steps=4, n=1, features_nld=as_grid),
    )


def test_any_step_count() -> None:
    """The condition is the share of steps done: (0 of 2) is (1 of 4); neighbours of 64 steps differ."""
    schedule, f = woken(net()), features(1, (4, 4))

    def mean(step: int, steps: int) -> Tensor:
        return schedule.mean(step=step, steps=steps, n=1, features_nld=f)

    assert torch.equal(mean(0, 2), mean(1, 4))
    assert (mean(0, 64) - mean(1, 64)).abs().max() > 1e-6
    embedding = StepEmbedding(6, 8)
    rows = torch.stack([embedding((t + 1) / 64) for t in range(64)])
    assert torch.pdist(rows).min() > 1e-6


def test_rows_do_not_see_each_other() -> None:
    schedule, f = woken(net()), features(3, (4, 4))
    together = schedule.mean(step=0, steps=4, n=3, features_nld=f)
    alone = torch.cat([schedule.mean(step=0, steps=4, n=1, features_nld=row[None]) for row in f])
    torch.testing.assert_close(together, alone)


def test_features_are_detached_and_every_layer_learns() -> None:
    schedule = woken(net())
    f = features(2, (4, 4)).requires_grad_()
    schedule.mean(step=0, steps=4, n=2, features_nld=f).sum().backward()
    assert f.grad is None
    still = [n for n, p in schedule.named_parameters() if p.grad is None or not p.grad.any()]
    assert still == []


def test_at_the_start_only_the_head_learns_and_then_it_moves() -> None:
    schedule = net()
    schedule.mean(step=0, steps=4, n=2, features_nld=features(2, (4, 4))).sum().backward()
    assert schedule.head.weight.grad is not None and schedule.head.weight.grad.any()


def test_half_precision_features_and_autocast_leave_it_in_its_own_dtype() -> None:
    schedule, f = woken(net()), features(2, (4, 4)).bfloat16()
    plain = schedule.mean(step=0, steps=4, n=2, features_nld=f)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        cast = schedule.mean(step=0, steps=4, n=2, features_nld=f)
    assert cast.dtype == torch.float32
    assert torch.equal(plain, cast)
    double = schedule.double().mean(step=0, steps=4, n=2, features_nld=f)
    assert double.dtype == torch.float64
    torch.testing.assert_close(double.float(), plain, atol=1e-5, rtol=1e-4)


def test_learning_a_subset() -> None:
    schedule = net(learn=["sample"])
    with torch.no_grad():
        schedule.head.bias[0] = 1.0
    assert schedule.at_base
    woken(schedule)
    mean = schedule.mean(step=0, steps=4, n=2, features_nld=features(2, (4, 4)))
    assert not mean[:, [0, 1, 3]].any()
    assert mean[:, 2].all()


def test_refusals() -> None:
    schedule = net((4, 4))
    with pytest.raises(ValueError, match="ask the forward for them"):
        schedule.mean(step=0, steps=4, n=1)
    with pytest.raises(ValueError, match=r"features must be \[1, 16, 5\] for grid \(4, 4\)"):
        schedule.mean(step=0, steps=4, n=1, features_nld=features(1, (8, 8)))
    with pytest.raises(ValueError, match="has no action"):
        schedule.mean(step=3, steps=4, n=1, features_nld=features(1, (4, 4)))
    assert not table().reads_features
    assert TINY.side == 4
