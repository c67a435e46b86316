"""Estimators by name: what the table says is what the classes say; bad names, options and values."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from dlm.likelihood import registry
from mmrl.errors import UserError

ROOT = Path(__file__).parents[3]


@pytest.mark.parametrize("name", registry.ESTIMATORS)
def test_the_unit_of_the_table_is_the_classes(name: str) -> None:
    assert registry.make(name).unit == registry.unit_of(name, {})


def test_reading_units_loads_no_torch() -> None:
    code = (
        "import sys; from dlm.likelihood.registry import unit_of as u; u('sdmc', {}); assert 'torch' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, cwd=ROOT)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("name", "options", "words"),
    [
        ("sdcm", {}, "unknown estimator 'sdcm'; did you mean 'sdmc'"),
        ("gdpo", {}, "'sdmc'; the other GDPO"),
        ("espo", {}, "complementary"),
        ("sdmc", {"rules": "gauss-2"}, "unknown option 'rules'; did you mean 'rule'"),
        ("sdmc", {"rule": "gauss-0"}, "unknown rule"),
        ("sdmc", {"draws": 0}, "draws must be a whole number from 1"),
        ("sdmc", {"draws": "2"}, "got '2'"),
        ("sdmc", {"weighting": "k/L"}, "weighting 'k/L' is not one of its values"),
        ("sdmc", {"clamped": "0"}, "clamped"),
        ("sdmc", {"count": "round"}, "count 'round' is not one of its values"),
        ("mc", {"samples": True}, "mc: samples"),
        ("strat_mc", {"samples": 1.5}, "strat_mc: samples"),
        ("one_step", {"p_mask_prompt": 1.2}, "p_mask_prompt must be a number from 0 to 1"),
        ("trajectory", {"slices": "all"}, "slices 'all'"),
        ("trajectory", {"slices": "one_step", "shrink": 2}, "shrink has no effect"),
        ("elbo", {"t_min": 0.5, "t_max": 0.5}, "t_min 0.5 must be below"),
        ("elbo", {"masks": "exact", "antithetic": True}, "draws counts, not t"),
        ("elbo", {"antithetic": 1}, "must be true or false"),
        ("coupled", {"low": 0.9}, "low 0.9 must not be above high 0.8"),
        ("random_masking", {"high": 0.05}, "low 0.1 must not be above"),
    ],
)
def test_bad_input_is_one_line(name: str, options: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match="likelihood") as caught:
        registry.make(name, options)
    assert words in str(caught.value) and "\n" not in str(caught.value)


def test_an_estimator_that_follows_steps_says_so() -> None:
    assert registry.make("trajectory").needs_steps
    assert not registry.make("trajectory", {"slices": "one_step"}).needs_steps
    assert not registry.make("sdmc").needs_steps
