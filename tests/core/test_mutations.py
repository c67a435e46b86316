"""Every mutant of core_mutants.py must fail a check: what survives is a line of the core that no test reads."""

from __future__ import annotations

import core_dlm_examples  # noqa: F401  (registers examples)
import core_flow_examples  # noqa: F401
import core_video_examples  # noqa: F401
import pytest
import torch
from core_cases import EXEMPT, ROWS
from core_dlm_mutants import DLM_MUTANTS
from core_examples import EXAMPLES
from core_flow_mutants import FLOW_MUTANTS
from core_group_checks import GROUP_CHECKS
from core_mutants import MUTANTS as CORE_MUTANTS
from core_mutants import Keys, Mutant, in_place
from core_objective_checks import OBJECTIVE_CHECKS
from core_properties import CHECKS
from core_segment_mutants import SEGMENT_MUTANTS
from core_video_mutants import VIDEO_MUTANTS

MUTANTS = CORE_MUTANTS + FLOW_MUTANTS + DLM_MUTANTS + SEGMENT_MUTANTS + VIDEO_MUTANTS

#: What a broken stage may raise instead of a wrong number.
BROKEN = (AssertionError, RuntimeError, ValueError, KeyError, IndexError, TypeError, UnboundLocalError)

#: Tried first: they find most mutants and cost little.
QUICK = ("reduces_to_what_it_says", "clip_regions", "on_policy_gradient")


def killer(watched: Keys, also: tuple[str, ...]) -> str | None:
    """The first check that fails, or None. Properties first; `also` names further checks."""
    for key in watched:
        for name in (*QUICK, *(c for c in CHECKS if c not in QUICK)):
            check, kinds = CHECKS[name]
            if key[0] not in kinds or (name, *key) in EXEMPT:
                continue
            for case in ROWS[key]:
                try:
                    check(case, torch.float64)
                except BROKEN:
                    return f"{name} on {case}"
    extra = {**OBJECTIVE_CHECKS, **GROUP_CHECKS}
    for name in also:
        try:
            EXAMPLES[name](torch.float64) if name in EXAMPLES else extra[name]()
        except BROKEN:
            return name
    return None


@pytest.mark.parametrize("mutant", MUTANTS, ids=str)
def test_mutant_is_killed(mutant: Mutant) -> None:
    with in_place(mutant):
        found = killer(mutant.watched, mutant.also)
    assert found is not None, f"survives: {mutant}"


def test_the_real_functions_pass_what_kills_the_mutants() -> None:
    """After all swaps the originals are back: the same checks find nothing."""
    named = {name for m in MUTANTS for name in m.also}
    assert killer((), tuple(sorted(named))) is None
    assert killer((("gate", "ppo-clip"),), ()) is None


def test_mutants_are_many_and_distinct() -> None:
    assert len(MUTANTS) >= 120
    assert len({(m.target, m.old, m.new) for m in MUTANTS}) == len(MUTANTS)


def test_every_stage_has_a_mutant() -> None:
    """A stage without a mutant proves nothing about its checks."""
    touched = {key for m in MUTANTS for key in m.watched}
    assert touched >= set(ROWS) - {("bounds", "constant"), ("advantage", "constant")}  # returns of given numbers
