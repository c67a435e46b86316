"""Random configurations through the real entry point: never a traceback, exit code 0 or 2, one line on stderr."""

from __future__ import annotations

import contextlib
import io
import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from fault_mutations import DATES, EXAMPLES, FUZZ, JUNK, spoilt, spoilt_text
from hypothesis import given
from hypothesis import strategies as st

from mmrl.cli.main import run
from mmrl.paths import configs_dir, shipped_configs

SHIPPED = [yaml.safe_load((configs_dir() / f"{name}.yaml").read_text()) for name in shipped_configs()]
FULL: dict[str, Any] = {
    "family": "vlm",
    "recipe": "grpo",
    "recipe_options": {"bounds.low": 0.1, "penalties": [{"name": "kl", "coef": 0.1}], "advantage.eps": 1.0e-4},
    "seed": 3,
    "out": "runs/x",
    "device": "cpu",
    "threads": 1,
    "plugins": [],
    "model": {"path": "embedded:vlm", "autocast": "off", "piece_tokens": 4096, "freeze": ["vision"]},
    "sampling": {"temperature": 1.0, "max_new_tokens": 8},
    "inputs": {"max_prompt_tokens": 100},
    "data": {"train": "digits:train?task=detection", "eval": "digits:eval", "on_error": "skip", "eval_records": 3},
    "rewards": {
        "components": [{"name": "auto"}, {"name": "iou", "weight": 2.0, "options": {"divisor": "max"}}],
        "on_error": "skip",
        "timeout_s": 3.5,
        "workers": 2,
    },
    "train": {"steps": 5, "prompts": 4, "group": 4, "minibatches": 2, "epochs": 2, "zero_variance": "drop"},
    "selection": {"name": "uniform", "options": {}},
    "optimiser": {"lr": 1.0e-4, "betas": [0.9, 0.99], "schedule": "cosine", "grad_norm": None},
    "ema": {"enabled": True, "decay": 0.9, "every": 2},
    "eval": {"every": 2, "metric": "reward", "samples": 2},
    "checkpoint": {"every": 2, "keep_last": 1, "keep_best": False},
    "log": {"every": 2, "tensorboard": False, "rollouts": 1},
}
VALID = [*SHIPPED, *[FULL] * len(SHIPPED)]
LEAVES = [
    "train.group",
    "optimiser",
    "recipe_options.bounds.low",
    "rewards.components.0.name",
    "a.b.c",
    "seed",
    "plugins",
]


def text_of(tree: Any, form: str) -> str:
    if form == "json":
        return json.dumps(tree, default=str)
    return yaml.dump(tree, allow_unicode=form == "unicode", default_flow_style=form == "flow")


TEXT = st.builds(text_of, spoilt(VALID, junk=JUNK | DATES), st.sampled_from(["json", "plain", "unicode", "flow"]))
OVERRIDES = st.lists(
    st.one_of(
        st.builds(lambda key, value: f"{key}={yaml.dump(value)}", st.sampled_from(LEAVES), JUNK),
        st.builds(
            lambda key, value: f"{key}={value}", st.sampled_from(LEAVES) | st.text(max_size=5), st.text(max_size=8)
        ),
        st.text(max_size=8),
    ).filter(lambda o: not o.startswith("-")),
    max_size=2,
)


def outcome(*arguments: str) -> tuple[int, str]:
    """(exit code, stderr); anything that is raised ends the test."""
    told = io.StringIO()
    with contextlib.redirect_stderr(told), contextlib.redirect_stdout(io.StringIO()):
        code = run(list(arguments))
    return code, told.getvalue()


def check(code: int, told: str) -> None:
    assert code in (0, 2), (code, told)
    if code == 2:
        assert told.startswith("error: ") and told.endswith("\n") and told.count("\n") == 1, told
        assert told[:-1].isprintable(), ascii(told)
    else:
        assert told == "", told


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("configs")


@FUZZ
@given(data=spoilt_text(TEXT), overrides=OVERRIDES)
def test_a_random_configuration(folder: Path, data: bytes, overrides: list[str]) -> None:
    (folder / "c.yaml").write_bytes(data)
    check(*outcome("train", str(folder / "c.yaml"), *overrides, "--dry-run"))


def test_the_valid_ones_are_valid(folder: Path) -> None:
    """Else the fuzz would see nothing but the first check."""
    for tree in VALID:
        (folder / "c.yaml").write_text(yaml.dump(tree))
        code, told = outcome("train", str(folder / "c.yaml"), "--dry-run")
        if tree is FULL:
            assert (code, told) == (0, "")


@pytest.mark.parametrize("key", ["str", "[bold]x[/]", "a[b"])
def test_a_key_that_looks_like_a_branch_of_a_type(folder: Path, key: str) -> None:
    (folder / "c.yaml").write_text(yaml.dump({**FULL, key: 1}))
    code, told = outcome("train", str(folder / "c.yaml"), "--dry-run")
    assert code == 2 and f": {key}: unknown key" in told, told


@pytest.mark.parametrize("value", ['"\\UFFFFFFFF"', "2001-13-45", "9" * 5000])
def test_a_value_that_yaml_cannot_make(folder: Path, value: str) -> None:
    (folder / "c.yaml").write_text(f"family: vlm\nseed: {value}\n")
    check(*outcome("train", str(folder / "c.yaml"), "--dry-run"))


@pytest.mark.slow
@pytest.mark.skipif(EXAMPLES >= 1000, reason="asked for by MMRL_FUZZ_EXAMPLES already")
@pytest.mark.parametrize("what", ["test_fuzz_configs", "test_fuzz_records"])
def test_a_thousand(what: str) -> None:
    import os
    import subprocess
    import sys

    command = [sys.executable, "-m", "pytest", "-q", str(Path(__file__).with_name(f"{what}.py")), "-m", "not slow"]
    done = subprocess.run(command, env={**os.environ, "MMRL_FUZZ_EXAMPLES": "1000"}, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-3000:]
