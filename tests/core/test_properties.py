"""ONE table: every property against every registered stage under every option setting, in float64 and float32."""

from __future__ import annotations

import pytest
import torch
from core_cases import EXEMPT, ROWS, cases, registered
from core_objective_checks import OBJECTIVE_CHECKS
from core_properties import CHECKS, table_of_checks
from core_relations import RELATIONS
from core_world import Case


def test_every_stage_has_a_row() -> None:
    """A newly registered stage must be added to the table (core_cases.py) and say what it reduces to."""
    missing = sorted(set(registered()) - set(ROWS))
    assert not missing, f"registered but not in core_cases.py: {missing}"
    assert not sorted(set(ROWS) - set(registered())), "in core_cases.py but not registered"
    assert set(ROWS) == set(RELATIONS), "every stage states a relation in core_relations.py"


def test_a_new_stage_without_a_row_is_noticed() -> None:
    from mmrl.core import registry

    def newcomer(*, reward_n: torch.Tensor) -> torch.Tensor:
        return reward_n

    newcomer.__module__ = "mmrl.core.advantages.newcomer"
    registry.stage("advantage", "newcomer")(newcomer)
    try:
        with pytest.raises(AssertionError, match="newcomer"):
            test_every_stage_has_a_row()
    finally:
        del registry._STAGES["advantage", "newcomer"]


def test_exemptions_are_live_and_reasoned() -> None:
    for (prop, kind, name), reason in EXEMPT.items():
        assert prop in CHECKS and kind in CHECKS[prop][1] and (kind, name) in ROWS, f"stale exemption {prop} {name}"
        assert len(reason) > 20


@pytest.mark.parametrize(("prop", "kind", "name"), sorted(EXEMPT))
def test_exemptions_are_needed(prop: str, kind: str, name: str) -> None:
    """An exempt stage really lacks the property: an exemption that is no longer needed must go."""
    with pytest.raises((AssertionError, KeyError)):
        for case in ROWS[kind, name]:
            CHECKS[prop][0](case, torch.float64)


def test_signal_without_variance_is_declared() -> None:
    """Exactly the advantages that are exempt from `equal rewards give zero` declare a signal without variance."""
    declared = {s.name for s in registered().values() if s.kind == "advantage" and s.signal_without_variance}
    assert declared == {name for prop, _, name in EXEMPT if prop == "equal_rewards_give_zero"}


@pytest.mark.parametrize(("prop", "case"), table_of_checks(), ids=lambda v: str(v))
def test_property(prop: str, case: Case) -> None:
    for dtype in (torch.float64, torch.float32):
        CHECKS[prop][0](case, dtype)


@pytest.mark.parametrize("name", OBJECTIVE_CHECKS)
def test_objective_property(name: str) -> None:
    OBJECTIVE_CHECKS[name]()


def test_the_table_is_large() -> None:
    assert len(table_of_checks()) > 300
    assert len(cases("gate")) >= 14
