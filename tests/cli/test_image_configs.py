"""The shipped configurations of image models: complete, within the memory that their first line names, with prompts."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from image_gen.flow import memory as flow_memory
from image_gen.masked import memory as masked_memory
from image_gen.rewards.composition_rules import read_spec
from image_gen.rewards.ocr import target_of
from mmrl.cli import preflight
from mmrl.cli.main import run
from mmrl.cli.plan import arithmetic
from mmrl.config_io import recipe_of, resolve
from mmrl.data.read import read_records
from mmrl.paths import configs_dir
from mmrl.training import memory as shared

FOLDER = configs_dir() / "image_gen"
NAMES = sorted(p.stem for p in FOLDER.glob("*.yaml"))
MASKED = ["amused_256_co_grpo_1gpu", "amused_256_co_grpo_8gpu", "amused_512_co_grpo_1gpu"]
MEMORY = {"flow": flow_memory, "masked": masked_memory}


def test_the_configurations_are_there() -> None:
    three = [f"sd3_5_m_{task}_{gpus}gpu" for task in ("composition", "ocr", "pickscore") for gpus in (1, 8)]
    assert sorted(NAMES) == sorted([*three, "flux1_dev_pickscore", "qwen_image_ocr", "sana_1_6b", *MASKED])


@pytest.mark.parametrize("name", NAMES)
def test_it_can_start_and_fits(name: str) -> None:
    first = (FOLDER / f"{name}.yaml").read_text().splitlines()[0]
    found = re.search(r"on (one GPU|8 GPUs) of (\d+) GB", first)
    assert found is not None
    config = resolve(f"image_gen/{name}")
    assert preflight.problems(config) == []
    memory: Any = MEMORY[config.family]
    shape = memory.shape_of(config.model.path)
    assert shape is not None
    e = memory.estimate(config, recipe_of(config), shape, ranks=1 if found[1] == "one GPU" else 8)
    assert e.encoding is not None
    room = int(found[2]) * 1e9 * 0.8  # rewards and what the allocator fragments need the rest
    assert max(e.update, e.rollout, e.encoding) < room


@pytest.mark.parametrize("name", NAMES)
def test_the_dry_run(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["train", f"configs/image_gen/{name}.yaml", "--dry-run"]) == 0
    shown = capsys.readouterr().out
    step = "decoding" if name in MASKED else "denoising"
    assert "# group arithmetic" in shown and f"pieces of one {step} step" in shown and "# memory" in shown
    assert shown.count("gradients accumulate over") == (name not in MASKED)  # each family tells its own pieces


@pytest.mark.parametrize("name", NAMES)
def test_judges_are_not_the_reward(name: str) -> None:
    config = resolve(f"image_gen/{name}")
    judges = [(j.name, j.options.get("path")) for j in config.eval.judges]
    assert judges and not {(r.name, r.options.get("path")) for r in config.rewards.components} & set(judges)


def prompts(file: str) -> tuple[list[str], list[dict[str, object]]]:
    records, _ = read_records(FOLDER / "prompts" / file, require="prompt")
    return [r.prompt for r in records], [r.meta for r in records]


@pytest.mark.parametrize(("kind", "ending"), [("general", "txt"), ("text", "txt"), ("composition", "jsonl")])
def test_prompts_to_train_and_to_evaluate_on_are_disjoint(kind: str, ending: str) -> None:
    train, held_out = prompts(f"{kind}.{ending}")[0], prompts(f"{kind}_eval.{ending}")[0]
    assert len(set(train)) == len(train) >= 40 and len(set(held_out)) == len(held_out) >= 10
    assert not set(train) & set(held_out)


def test_the_rewards_can_read_their_prompts() -> None:
    for file in ("composition.jsonl", "composition_eval.jsonl"):
        texts, metas = prompts(file)
        for text, meta in zip(texts, metas, strict=True):
            spec = read_spec(meta, text)
            assert spec is not None and all(one.split()[0] in text for one in spec.classes)
    for file in ("text.txt", "text_eval.txt"):
        targets = [target_of(text) for text in prompts(file)[0]]
        assert all(targets)
    shared = {target_of(t) for t in prompts("text.txt")[0]} & {target_of(t) for t in prompts("text_eval.txt")[0]}
    assert not shared


def test_pieces_in_the_group_arithmetic() -> None:
    config = resolve("image_gen/sd3_5_m_pickscore_8gpu", ["model.piece_rows=10"])
    text = "\n".join(arithmetic(config, recipe_of(config), ranks=8))
    # 48 prompts on 8 ranks, 2 minibatches: 3 groups of 24 = 72 images an update and rank
    assert "pieces of one denoising step of at most 10 images: 8 pieces for each trained step" in text
    assert "tokens" not in text


@pytest.mark.parametrize("name", MASKED)
def test_both_channels_of_co_grpo_have_the_rates_that_the_file_says(name: str) -> None:
    from mmrl.training.objectives import optimiser_settings

    config = resolve(f"image_gen/{name}")
    recipe = recipe_of(config)
    rates = {channel: optimiser_settings(config, recipe, channel).lr for channel in ("tokens", "schedule")}
    assert rates == {"tokens": 1e-5 if name.endswith("8gpu") else 1e-4, "schedule": 1e-3}
    own = config.sampling
    assert (own.steps, own.guidance, own.explore, config.train.group) == (12, 10.0, True, 8)
    assert recipe.phases == (("tokens", 1), ("schedule", 1))


@pytest.mark.parametrize(("side", "near"), [(500, "480 or 512"), (528, "512 or 544")])
def test_a_size_that_a_masked_model_cannot_draw(side: int, near: str) -> None:
    (problem,) = preflight.problems(resolve("image_gen/amused_512_co_grpo_1gpu", [f"inputs.width={side}"]))
    assert "inputs.width" in problem and "steps of 32 pixels" in problem and near in problem


def test_judges_and_selectors_are_looked_at_before_weights_load() -> None:
    config = resolve("image_gen/sd3_5_m_composition_1gpu", ["eval.judges=[{name: pick_scor}]"])
    assert any("pick_scor" in line and "'pick_score'" in line for line in preflight.problems(config))
    config = resolve("image_gen/sd3_5_m_composition_1gpu", ["selection.options={bye: tag}"])
    assert any("'bye'" in line and "'by'" in line for line in preflight.problems(config))


@pytest.mark.parametrize(
    ("override", "parts"),
    [
        ("inputs.height=500", ["inputs.height", "steps of 16", "496 or 512"]),
        ("inputs.width=8", ["inputs.width", "nearest: 16"]),
        ("sampling.window={name: random, options: {width: 30}}", ["window"]),
        ("sampling.window={name: random, options: {wdth: 3}}", ["'wdth'", "'width'"]),
        ("distributed.mode=fsdp2", ["fsdp2", "ddp"]),
    ],
)
def test_what_cannot_start_is_refused_before_weights_load(
    override: str, parts: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from image_gen.flow import check, family

    monkeypatch.setattr(family, "check", check.check, raising=False)
    (problem,) = preflight.problems(resolve("image_gen/sd3_5_m_pickscore_1gpu", [override]))
    for part in parts:
        assert part in problem


def test_a_family_without_an_estimate_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    from image_gen.flow import config as own

    monkeypatch.delattr(own, "memory_lines", raising=False)
    config = resolve("image_gen/sana_1_6b")
    assert shared.describe(config, recipe_of(config)) == ["size unknown: family flow does not estimate its memory"]


def test_files_reach_the_wheel() -> None:
    import ast

    text = (Path(__file__).resolve().parents[2] / "setup.py").read_text()
    tree = ast.parse(text)
    assert {"**/*.txt", "**/*.jsonl"} <= {n.value for n in ast.walk(tree) if isinstance(n, ast.Constant)}
