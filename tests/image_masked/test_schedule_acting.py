"""What the sampler calls: base values, means and draws, one stream a row, smoothing over the steps."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from masked_schedule import amused, generators, net, table
from torch import Tensor

from image_gen.masked.sampler import Actor
from image_gen.masked.schedule import actions
from image_gen.masked.schedule.acting import Acting, mean_values
from image_gen.masked.schedule.base import Schedule
from image_gen.masked.schedule.targets import adanat_values, base_values

BASE = base_values(amused(), 4, guidance=10.0)


def moved(steps: int = 4, **given: Any) -> Schedule:
    schedule = table(steps, **given)
    with torch.no_grad():
        schedule.means.copy_(torch.randn(steps, 4, generator=torch.Generator().manual_seed(2)))
    return schedule


def walk(acting: Acting, n: int = 2, features_nld: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """(raw [n, T, V], values [n, T, V])"""
    rows = [acting.act(t, n=n, features_nld=features_nld) for t in range(acting.steps)]
    raw, value = (torch.stack(parts, dim=1) for parts in zip(*rows))
    return raw, value


def test_it_is_an_actor() -> None:
    actor: Actor = Acting(table(), base_tv=BASE)
    raw, value = actor.act(0, n=3, features_nld=None)
    assert raw.shape == value.shape == (3, 4)
    assert raw.dtype == value.dtype == torch.float32


def test_the_base_is_exact() -> None:
    for acting in (
        Acting(table(), base_tv=BASE),
        Acting(moved(), base_tv=BASE, use_base=True),
        Acting(moved(), base_tv=BASE, use_base=True, generators=generators(1, 2)),
    ):
        raw, value = walk(acting)
        assert not raw.any()
        assert torch.equal(value, BASE.expand(2, -1, -1))


def test_the_last_step_has_no_action() -> None:
    raw, value = walk(Acting(moved(smooth=0.8), base_tv=BASE, generators=generators(1, 2)))
    assert raw[:, :-1].all()
    assert not raw[:, -1].any()
    assert torch.equal(value[:, -1], BASE[-1].expand(2, -1))


def test_one_step_is_the_base() -> None:
    base_tv = base_values(amused(), 1, guidance=10.0)
    acting = Acting(moved(), base_tv=base_tv, generators=generators(1, 2))
    raw, value = walk(acting)
    assert raw.tolist() == [[[0.0] * 4]] * 2
    assert torch.equal(value, base_tv.expand(2, -1, -1))
    assert not Acting(net(), base_tv=base_tv, generators=generators(1)).reads_features


def test_the_mean_is_mapped_as_the_pure_functions_do() -> None:
    schedule = moved()
    raw, value = walk(Acting(schedule, base_tv=BASE), n=1)
    for t in range(3):
        mean = schedule.mean(step=t, steps=4, n=1).detach()
        assert torch.equal(raw[:, t], mean)
        assert torch.equal(value[:, t], actions.values(offset_nv=mean, base_v=BASE[t]))


def test_the_worked_smoothing_and_adanats_guidance() -> None:
    """The page's two steps; the sampler's guidance is 1 + the page's."""
    schedule = table(4, smooth=0.5, base="adanat")
    with torch.no_grad():
        schedule.means[:2] = torch.tensor([[0.2, -0.3, 0.1, 0.4], [0.1, 0.0, -0.2, 0.3]])
    _, value = walk(Acting(schedule, base_tv=adanat_values(4)), n=1)
    assert value[0, 0].tolist() == pytest.approx([0.936932, 0.603160, 1.064364, 1.000373], abs=1e-6)
    assert value[0, 1].tolist() == pytest.approx([0.737442, 0.443861, 0.968686, 1.338974], abs=1e-6)
    assert value[0, 3, 3].item() == pytest.approx(1 + 3.001 / 4, abs=1e-6)
    assert torch.equal(mean_values(schedule, adanat_values(4)), value[0])


def test_smoothing_begins_anew_with_every_batch() -> None:
    acting = Acting(moved(smooth=0.5), base_tv=BASE)
    first, second = walk(acting)[1], walk(acting, n=3)[1]
    assert torch.equal(first[0], second[2])


def test_a_rows_actions_depend_on_its_own_generator() -> None:
    schedule = moved(smooth=0.3)
    together = walk(Acting(schedule, base_tv=BASE, generators=generators(5, 6, 7)), n=3)
    alone = walk(Acting(schedule, base_tv=BASE, generators=generators(6)), n=1)
    for a, b in zip(together, alone):
        assert torch.equal(a[1], b[0])
        assert (a[0] - a[1])[:-1].all()


def test_draws_have_the_mean_and_deviation_of_the_schedule() -> None:
    schedule = moved(2, deviation={"start": 0.5})
    n = 2000
    acting = Acting(schedule, base_tv=base_values(amused(), 2, guidance=3.0), generators=generators(*range(n)))
    raw, _ = acting.act(0, n=n)
    torch.testing.assert_close(raw.mean(0), schedule.mean(step=0, steps=2, n=1)[0].detach(), atol=0.05, rtol=0)
    torch.testing.assert_close(raw.std(0), torch.full((4,), 0.5), atol=0.03, rtol=0)


def test_only_learned_variables_are_drawn() -> None:
    raw, value = walk(Acting(moved(learn=["sample"]), base_tv=BASE, generators=generators(1, 2)))
    assert not raw[..., [0, 1, 3]].any()
    assert raw[:, :-1, 2].all()
    assert torch.equal(value[..., [0, 1, 3]], BASE[:, [0, 1, 3]].expand(2, -1, -1))


def test_another_step_count_acts_on_its_own_base() -> None:
    schedule = moved()
    base_tv = base_values(amused(), 9, guidance=10.0)
    raw, value = walk(Acting(schedule, base_tv=base_tv), n=1)
    t = 4  # at 5/9, between the rows at 2/4 and 3/4
    means = schedule.state_dict()["means"]
    expected = means[1] + (5 / 9 - 0.5) / 0.25 * (means[2] - means[1])
    torch.testing.assert_close(raw[0, t], expected)
    assert torch.equal(value[0, t], actions.values(offset_nv=raw[0, t], base_v=base_tv[t]))


def test_saturated_means_stay_finite() -> None:
    for far in (1e4, -1e4):
        schedule = table(4, smooth=0.8)
        with torch.no_grad():
            schedule.means.fill_(far)
        _, value = walk(Acting(schedule, base_tv=BASE, generators=generators(1, 2)))
        assert value.isfinite().all()
        assert (value[..., 0] >= 0).all() and (value[..., 0] <= 1).all()
        assert (value[..., 2] >= 1e-3).all() and (value[..., 3] <= 30).all()


def test_both_halves_only_where_guidance_may_differ_from_one() -> None:
    one = base_values(amused(), 3, guidance=1.0)

    def asks(schedule: Schedule, base_tv: Tensor, **given: Any) -> list[bool]:
        acting = Acting(schedule, base_tv=base_tv, **given)
        return [acting.both(t) for t in range(acting.steps)]

    assert asks(table(3), one) == [False] * 3
    assert asks(moved(3), one) == [True, True, False]
    assert asks(moved(3, learn=["ratio"]), one) == [False] * 3
    assert asks(moved(3), one, use_base=True) == [False] * 3
    assert asks(table(3), one, generators=generators(1)) == [True, True, False]
    assert asks(table(3), base_values(amused(), 3, guidance=0.0)) == [True] * 3
    assert asks(table(3), base_values(amused(), 3, guidance=9.0)) == [True] * 3
    assert asks(table(3, base="adanat"), adanat_values(3)) == [True] * 3


def test_a_net_reads_features_only_where_it_must() -> None:
    schedule = net((4, 4))
    assert not Acting(schedule, base_tv=BASE).reads_features  # at base: its mean is 0 whatever it sees
    assert Acting(schedule, base_tv=BASE, generators=generators(1)).reads_features
    with torch.no_grad():
        schedule.head.weight.normal_()
    acting = Acting(schedule, base_tv=BASE)
    assert acting.reads_features
    assert not Acting(schedule, base_tv=BASE, use_base=True).reads_features
    f = torch.randn(2, 16, 5)
    raw, _ = walk(acting, features_nld=f)
    assert torch.equal(raw[:, 1], schedule.mean(step=1, steps=4, n=2, features_nld=f).detach())
    with pytest.raises(ValueError, match="depend on the canvas"):
        mean_values(schedule, BASE)
    assert torch.equal(mean_values(net((4, 4)), BASE), BASE)


def test_the_stored_action_has_the_likelihood_it_was_drawn_with() -> None:
    """float32 raw actions are what is mapped and scored: a repeated likelihood has ratio exactly 1."""
    schedule = moved(learn=["ratio", "sample"], deviation={"start": 0.3})
    acting = Acting(schedule, base_tv=BASE, generators=generators(3, 4))
    for _ in range(2):  # a second batch begins anew
        raw, value = walk(acting)
        assert torch.equal(actions.values(offset_nv=raw[:, 1], base_v=BASE[1]), value[:, 1])
        assert acting.logp_nt is not None
        assert acting.logp_nt.shape == (2, 3)
        for t in range(3):
            again = actions.log_prob(
                raw_nv=raw[:, t],
                mean_nv=schedule.mean(step=t, steps=4, n=2),
                deviation_v=schedule.deviation(),
                learned_v=schedule.learned_v,
            )
            assert torch.equal(again, acting.logp_nt[:, t])


def test_means_have_no_likelihood() -> None:
    for acting in (
        Acting(moved(), base_tv=BASE),
        Acting(moved(), base_tv=BASE, use_base=True, generators=generators(1, 2)),
    ):
        walk(acting)
        assert acting.logp_nt is None


def test_no_gradient_is_recorded() -> None:
    raw, value = Acting(moved(), base_tv=BASE, generators=generators(1)).act(0, n=1)
    assert not raw.requires_grad and not value.requires_grad


def test_misuse() -> None:
    acting = Acting(moved(smooth=0.5), base_tv=BASE)
    acting.act(0, n=1)
    with pytest.raises(ValueError, match="steps must come in order"):
        acting.act(2, n=1)
    with pytest.raises(ValueError, match="1 generators for 2 rows"):
        Acting(moved(), base_tv=BASE, generators=generators(1)).act(0, n=2)
    with pytest.raises(ValueError, match=r"base values are \[steps, 4\]"):
        Acting(moved(), base_tv=torch.zeros(0, 4))
    with pytest.raises(ValueError, match="steps must come in order"):
        walk_past = Acting(table(), base_tv=BASE)
        for t in range(5):
            walk_past.act(t, n=1)
