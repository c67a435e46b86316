"""The shipped configurations: complete, within the memory that their first line names, with records and rewards."""

from __future__ import annotations

import re

import pytest

from dlm import memory
from dlm.rewards import catalogue
from dlm.shapes import shape_of
from mmrl.cli import preflight
from mmrl.cli.main import run
from mmrl.cli.plan import arithmetic
from mmrl.config import Config
from mmrl.config_io import recipe_of, resolve
from mmrl.paths import configs_dir
from mmrl.training.memory import rows_per_rank
from mmrl.training.setup import load_records

FOLDER = configs_dir() / "dlm"
NAMES = sorted(p.stem for p in FOLDER.glob("*.yaml"))


def test_the_configurations_are_there() -> None:
    gdpo = [f"llada_8b_{task}_gdpo" for task in ("gsm8k", "math", "countdown", "sudoku")]
    lightning = [f"sdar_{size}_lightningrl_gsm8k" for size in ("1_7b", "4b", "8b")]
    rest = ["sdar_8b_lightningrl_math", "llada_8b_gsm8k_diffu_grpo", "sft_llada", "sft_sdar"]
    assert sorted(NAMES) == sorted([*gdpo, *lightning, *rest])


@pytest.mark.parametrize("name", NAMES)
def test_it_can_start_and_fits(name: str) -> None:
    head = " ".join((FOLDER / f"{name}.yaml").read_text().splitlines()[:2])
    found = re.search(r"on (one GPU|8 GPUs) of (\d+) GB", head)
    assert found is not None
    config = resolve(f"dlm/{name}")
    assert preflight.problems(config) == []
    shape = shape_of(config.model.path, block=config.model.block)
    assert shape is not None
    e = memory.estimate(config, recipe_of(config), shape, ranks=1 if found[1] == "one GPU" else 8)
    assert max(e.update, e.rollout) < int(found[2]) * 1e9 * 0.8  # what the allocator fragments needs the rest


@pytest.mark.parametrize("name", NAMES)
def test_its_records_have_rewards_and_tell_what_is_right(name: str) -> None:
    config = resolve(f"dlm/{name}")
    for key in ("train", "eval"):
        source = getattr(config.data, key)
        if "?" in source:
            setattr(config.data, key, re.sub(r"n=\d+", "n=20", source))
    records = [*load_records(config, "train"), *load_records(config, "eval")]
    assert not {r.prompt for r in records[:-8]} & {r.prompt for r in records[-8:]}
    (task,) = {r.task for r in records}
    names = {c.name for c in config.rewards.components}
    assert names - {"tpf"} <= set(catalogue.AUTO[task])
    assert [c.success for c in config.rewards.components if c.success is not None] and config.eval.metric == "accuracy"
    if recipe_of(config).experience == "records":
        assert all(r.response for r in records)


@pytest.mark.parametrize("name", ["llada_8b_gsm8k_gdpo", "llada_8b_math_gdpo", "sdar_8b_lightningrl_math"])
def test_demonstrations_of_the_samples_earn_the_full_reward(name: str) -> None:
    config = resolve(f"dlm/{name}")
    records = [*load_records(config, "train"), *load_records(config, "eval")]
    assert {score(config, record.response or "", record) for record in records} == {True}


def score(config: Config, output: str, record: object) -> bool:
    from mmrl.rewards import registry

    (marked,) = [c for c in config.rewards.components if c.success is not None]
    reward = registry.find(marked.name)
    (value,) = reward.function([output], [record], [{}], **registry.bind_options(reward, marked.options))
    return bool(value >= marked.success)


def test_published_numbers() -> None:
    one = resolve("dlm/llada_8b_math_gdpo")
    assert (one.sampling.max_new_tokens, one.sampling.block, one.sampling.steps, one.sampling.temperature) == (
        256, 32, 128, 0.9,
    )  # fmt: skip
    assert (one.model.adapter.rank, one.model.adapter.alpha, one.optimiser.lr) == (128, 64, 3e-7)
    assert one.optimiser.betas == (0.9, 0.99) and (one.optimiser.weight_decay, one.optimiser.grad_norm) == (0.1, 0.2)
    assert rows_per_rank(one, recipe_of(one), 1) == 24 and recipe_of(one).epochs == 12
    assert one.sampling.likelihood.options["rule"] == "gauss-3"
    other = resolve("dlm/sdar_8b_lightningrl_gsm8k")
    assert (other.train.prompts, other.train.group, other.train.minibatches) == (128, 32, 8)
    assert (other.sampling.rule, other.sampling.threshold, other.sampling.temperature) == ("threshold", 0.9, 1.0)
    third = resolve("dlm/llada_8b_gsm8k_diffu_grpo")
    assert (third.train.prompts, third.train.group, third.optimiser.lr) == (16, 6, 3e-6)


@pytest.mark.parametrize("name", ["llada_8b_gsm8k_gdpo", "sdar_8b_lightningrl_math", "sft_sdar"])
def test_the_dry_run(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["train", f"configs/dlm/{name}.yaml", "--dry-run"]) == 0
    shown = capsys.readouterr().out
    assert "# group arithmetic" in shown and "peak of the update" in shown and "M parameters" in shown
    assert ("[clean | noisy]" in shown) == ("sdar" in name) and "shared_prefix" not in shown.partition("# group")[2]


def test_pieces_in_the_group_arithmetic() -> None:
    config = resolve("dlm/llada_8b_gsm8k_gdpo")
    text = "\n".join(arithmetic(config, recipe_of(config), ranks=1))
    assert "at most 1368 columns: 3 rows at their longest, of 456 columns each" in text
    assert "8 pieces an optimiser step and rank for each forward that the likelihood (sdmc)" in text  # 24 rows by 3
    config = resolve("dlm/sdar_8b_lightningrl_gsm8k")
    text = "\n".join(arithmetic(config, recipe_of(config), ranks=8))
    # 16 prompts a rank in 8 minibatches: 2 groups of 32; 4 rows of 512 + 2 x (1024 + 32) columns a piece
    assert "4 rows at their longest, of 2624 columns each, [clean | noisy]; 16 pieces" in text
