"""Signs of trouble: each kind by a series that triggers it and one that does not; told once, cleared once, resumed."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest

from mmrl.training.diagnostics import CONSTANT_CLEAR_AFTER, RULES, Diagnostics
from mmrl.training.signs import Sign

TOLERANCE = 0.001
Rows = list[dict[str, Any]]


def rows(**series: list[float]) -> Rows:
    """One row a step; metrics of one row belong together."""
    return [dict(zip(series, values)) for values in zip(*series.values())]


def story(steps: Rows, constant: list[dict[str, float] | None] | None = None) -> list[Sign]:
    diagnostics = Diagnostics()
    said = constant or [None] * len(steps)
    return [
        sign
        for step, (row, same) in enumerate(zip(steps, said, strict=True), start=1)
        for sign in diagnostics.look({"step": step, **row}, TOLERANCE, same)
    ]


# kind -> (series that triggers it, the step it is told at, its text then; a series like it that is fine)
CASES: dict[str, tuple[Rows, int, str, Rows]] = {
    "distinct": (rows(distinct=[0.09] * 5), 5, "(9% differ)", rows(distinct=[0.05] * 4 + [0.5])),
    "diversity": (
        rows(distinct=[0.9] * 10 + [0.2] * 10),
        20,
        "(20% differ, 90% at the start)",
        rows(distinct=[0.9] * 10 + [0.35] * 10),
    ),
    "spread": (
        rows(spread=[0.3] * 10 + [0.14] * 10),
        20,
        "(deviation of a pixel 0.14, 0.3 at the start)",
        rows(spread=[0.3] * 10 + [0.16] * 10),
    ),
    "unguarded": (rows(unguarded_rewards=[0.0, 0.25]), 2, "25% of the rewards", rows(unguarded_rewards=[0.0, 0.0])),
    "truncated": (rows(truncated=[0.6] * 5), 5, "(60%)", rows(truncated=[1.0, 1.0, 0.0, 0.0, 0.0] * 4)),
    "flat": (rows(flat_groups=[0.95] * 5), 5, "95%", rows(flat_groups=[1.0, 1.0, 1.0, 1.0, 0.4])),
    "entropy": (rows(entropy=[0.009, 0.009]), 2, "0.009 nats", rows(entropy=[0.02, 0.001, 0.02])),
    "entropy_fall": (
        rows(entropy=[1.0, 1.0, 0.15, 0.15]),
        4,
        "from 1 to 0.15",
        rows(entropy=[1.0, 1.0, 0.15, 0.3]),
    ),
    "entropy_growth": (
        rows(entropy=[0.5, 0.5, 1.6, 1.6]),
        4,
        "from 0.5 to 1.6",
        rows(entropy=[0.01, 0.01, 0.2, 0.2]),  # from next to nothing
    ),
    "length": (
        rows(length=[20.0] * 5 + [61.0] * 5),
        10,
        "from 20 to 61 tokens",
        rows(length=[20.0] * 5 + [70.0, 50.0, 70.0, 50.0, 50.0]),
    ),
    "length_fall": (
        rows(length=[60.0] * 5 + [19.0] * 5),
        10,
        "from 60 to 19 tokens",
        rows(length=[60.0] * 5 + [21.0] * 5),
    ),
    "kl": (rows(kl=[1.1] * 5), 5, "KL 1.1", rows(kl=[0.9] * 20)),
    "kl_jump": (rows(kl=[0.02] * 10 + [0.3]), 11, "jumped to 0.3", rows(kl=[0.001] * 10 + [0.05])),
    "ratio": (rows(ratio=[1.0, 0.49]), 2, "0.49", rows(ratio=[1.0, 1.9, 0.51])),
    "clipped": (
        rows(clip_low=[0.2] * 5, clip_high=[0.15] * 5),
        5,
        "(35%)",
        rows(clip_low=[0.1] * 9, clip_high=[0.15] * 9),
    ),
    "grad_norm": (rows(grad_norm=[0.5] * 10 + [5.1]), 11, "5.1", rows(grad_norm=[0.5] * 9 + [5.1] + [4.9])),
    "skipped_updates": (rows(skipped_updates=[0, 2]), 2, "(2 since", rows(skipped_updates=[0, 0])),
    "reward_failures": (rows(reward_failures=[3]), 1, "(3 since", rows(reward_failures=[0, 0])),
    "skipped_records": (rows(skipped_records=[0, 1]), 2, "(1 times", rows(skipped_records=[0, 0])),
    "gap": (rows(sampler_gap=[1e-5, 0.02]), 2, "up to 1.0200", rows(sampler_gap=[1e-5, 9e-4])),
}


def test_every_rule_has_a_case() -> None:
    assert set(CASES) == {rule.kind for rule in RULES} | {"gap"}


@pytest.mark.parametrize("kind", CASES)
def test_a_sign_and_its_absence(kind: str) -> None:
    trouble, step, text, fine = CASES[kind]
    found = [sign for sign in story(trouble) if sign.kind == kind]
    assert [(sign.step, sign.cleared) for sign in found] == [(step, False)]
    assert text in found[0].what and found[0].advice
    assert [sign for sign in story(fine) if sign.kind == kind] == []


def test_told_once_until_it_clears_then_told_again() -> None:
    truncated = [0.8] * 10 + [0.0] * 12 + [1.0] * 5
    signs = story(rows(truncated=truncated))
    # the mean of five falls to 0.48 at step 12; five quiet steps in a row clear it; it exceeds 0.5 again at step 25
    assert [(s.step, s.cleared) for s in signs] == [(5, False), (16, True), (25, False)]
    assert signs[1].what == "fewer answers are cut off (0%)" and signs[1].advice == ""
    assert signs[0].line() == (
        "step 5: warning: most answers are cut off at the length limit (80%). Advice: raise sampling.max_new_tokens, "
        "or discourage length (sampling.truncated: penalise)"
    )
    assert signs[1].line() == "step 16: cleared: fewer answers are cut off (0%)"


def test_values_around_a_threshold_do_not_flap() -> None:
    around = [0.0011 if step % 3 else 0.0009 for step in range(60)]
    assert len(story(rows(sampler_gap=around))) == 1


def test_a_constant_reward_component() -> None:
    held = {"format": 1.0}
    steps: list[dict[str, float] | None] = [{}, held, held, {}, held, None, *([{}] * CONSTANT_CLEAR_AFTER)]
    signs = story([{} for _ in steps], steps)
    assert [(s.step, s.kind, s.metric, s.cleared) for s in signs] == [
        (2, "constant/format", "reward/format", False),
        (6 + CONSTANT_CLEAR_AFTER, "constant/format", "reward/format", True),
    ]
    assert signs[0].what == "reward 'format' gave every answer the same (1) for many steps"
    assert signs[1].what == "reward 'format' differs between answers again"


def test_a_name_with_braces_is_only_a_name() -> None:
    (sign,) = story([{}], [{"{value}": 0.0}])
    assert "'{value}'" in sign.what


def test_missing_and_broken_values_are_passed_over() -> None:
    assert story([{"distinct": math.nan, "truncated": None, "kl": math.inf, "reward": "x"}] * 30) == []


def test_resumed_in_the_middle_it_says_the_same() -> None:
    steps = CASES["length"][0] + rows(length=[20.0] * 12) + CASES["grad_norm"][0]
    whole = story(steps)
    assert [s.kind for s in whole] == ["length", "length", "grad_norm"]
    for cut in range(1, len(steps)):
        first = Diagnostics()
        signs = [s for i, row in enumerate(steps[:cut], start=1) for s in first.look({"step": i, **row}, TOLERANCE)]
        second = Diagnostics()
        second.load_state_dict(json.loads(json.dumps(first.state_dict())))
        for i, row in enumerate(steps[cut:], start=cut + 1):
            signs += second.look({"step": i, **row}, TOLERANCE)
        assert signs == whole
        assert [Sign(**plain) for plain in second.take()] == whole  # nothing had been logged before the cut
        assert second.take() == []


def test_the_state_of_an_older_checkpoint() -> None:
    diagnostics = Diagnostics()
    diagnostics.load_state_dict({"active": ["truncated"], "first_length": 20.0})
    signs = [
        s for i in range(1, 11) for s in diagnostics.look({"step": i, "truncated": 0.9, "length": 70.0}, TOLERANCE)
    ]
    assert [(s.step, s.kind) for s in signs] == [(10, "length")]  # truncated was told before
    assert "from 20 to 70" in signs[0].what
    diagnostics.load_state_dict({"active": [], "first_length": None})
    assert diagnostics.series == {}


def test_phases_are_not_compared_with_each_other() -> None:
    """A hundredfold gradient in every second step is no jump; a jump inside a phase is told with its name, and clears
    after as many steps of that phase. What belongs to rollouts is one series."""
    diagnostics = Diagnostics(by_phase=True, densities=frozenset({"schedule"}))
    signs: list[Sign] = []
    for step in range(1, 41):
        schedule = step % 2 == 0
        norm = 5000.0 if step == 24 else 100.0 if schedule else 1.0
        row = {"step": step, "phase": "schedule" if schedule else "tokens", "grad_norm": norm, "flat_groups": 0.1}
        signs += diagnostics.look({**row, "entropy": -3.0 if schedule else 2.0}, TOLERANCE)
    assert [(s.step, s.kind, s.metric, s.cleared) for s in signs] == [
        (24, "schedule/grad_norm", "grad_norm", False),
        (34, "schedule/grad_norm", "grad_norm", True),
    ]
    assert signs[0].what == "schedule: the gradient norm jumped to 5e+03"
    assert set(diagnostics.series) == {"tokens/grad_norm", "schedule/grad_norm", "tokens/entropy", "flat_groups"}
    again = Diagnostics(by_phase=True)
    again.load_state_dict(diagnostics.state_dict())
    assert again.state_dict() == diagnostics.state_dict()
