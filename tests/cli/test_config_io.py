"""From YAML and overrides to a configuration; every mistake is one line that names the place and the remedy."""

from __future__ import annotations

from pathlib import Path

import pytest

from mmrl import config_io, yaml_io
from mmrl.errors import UserError
from mmrl.paths import configs_dir, shipped_configs

MINIMAL = "family: vlm\nrecipe: grpo\nmodel: {path: some/model}\ndata: {train: digits:train}\n"


@pytest.fixture
def config_file(tmp_path: Path) -> Path:
    path = tmp_path / "run.yaml"
    path.write_text(MINIMAL)
    return path


def refused(file: Path, *overrides: str) -> str:
    with pytest.raises(UserError) as caught:
        config_io.resolve(file, overrides)
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_overrides_are_yaml_values(config_file: Path) -> None:
    config = config_io.resolve(
        config_file, ["train.group=4", "optimiser.lr=1e-6", "model.freeze=[vision]", "recipe_options.gate.dual_clip=3"]
    )
    assert config.train.group == 4
    assert config.optimiser.lr == 1e-6
    assert config.model.freeze == ["vision"]
    assert config.recipe_options == {"gate.dual_clip": 3}


def test_nested_recipe_options_are_flattened_but_whole_stages_are_kept(config_file: Path) -> None:
    config_file.write_text(MINIMAL + "recipe_options: {gate: {dual_clip: 3.0}, advantage: {name: rloo}}\n")
    options = config_io.resolve(config_file).recipe_options
    assert options == {"gate.dual_clip": 3.0, "advantage": {"name": "rloo"}}


def test_list_items_are_overridden_by_number(config_file: Path) -> None:
    config_file.write_text(MINIMAL + "rewards: {components: [{name: detection}, {name: format}]}\n")
    config = config_io.resolve(config_file, ["rewards.components.1.weight=0.5"])
    assert [c.weight for c in config.rewards.components] == [1.0, 0.5]
    assert "no item" in refused(config_file, "rewards.components.2.weight=1")


@pytest.mark.parametrize(
    ("override", "parts"),
    [
        ("trian.group=4", ["trian", "did you mean 'train'"]),
        ("train.gruop=4", ["train.gruop", "did you mean 'group'"]),
        ("lr=1e-5", ["lr: unknown key", "'optimiser.lr'"]),
        ("freeze=[vision]", ["freeze", "'model.freeze'"]),
        ("model.adapter.rnk=4", ["model.adapter.rnk", "'rank'"]),
        ("model.adapter.kind=lor", ["model.adapter.kind", "'lora'"]),
        ("train.zero_variance=kep", ["train.zero_variance", "'keep'"]),
        ("train.steps=many", ["train.steps", "integer", "'many'"]),
        ("train.group=0", ["train.group", "greater than or equal to 1"]),
        ("train.group=1", ["train.group", "group-relative", "2 or more"]),
        ("train.minibatches=9", ["train.minibatches", "whole groups", "train.prompts is 8"]),
        ("recipe=grop", ["unknown recipe 'grop'", "'grpo'"]),
        ("recipe=gdpo", ["gdpo-diffusion", "gdpo-decoupled"]),
        ("recipe=spo", ["spo-single-stream", "spo-segment"]),
        ("recipe=flow_grpo", ["unknown recipe 'flow_grpo'", "'flow-grpo'"]),
        ("recipe_options.gaet.dual_clip=3", ["gaet", "'gate'"]),
        ("family=vlmm", ["family", "'vlm'"]),
        ("sampling.topp=0.9", ["sampling.topp", "'top_p'"]),
        ("optimiser.lr=.nan", ["optimiser.lr", "not a finite number"]),
        ("optimiser.lr=.inf", ["optimiser.lr", "not a finite number"]),
        ("data.train=missing.jsonl", ["data.train", "no such file", "missing.jsonl"]),
        ("data.train=[]", ["data.train", "empty list"]),
        ("model.path=./nowhere", ["model.path", "no such folder"]),
        ("model=7", ["model", "key: value"]),
        ("train.group", ["dotted.key=value"]),
        ("=4", ["dotted.key=value"]),
        ("train..group=4", ["dotted.key=value"]),
        ("recipe.name=x", ["plain value"]),
        ("train.group=[1", ["train.group", "line 1"]),
    ],
)
def test_bad_overrides(config_file: Path, override: str, parts: list[str]) -> None:
    message = refused(config_file, override)
    for part in parts:
        assert part in message, message


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("family: vlm\nrecipe: [grpo\n", ["line 3", "expected"]),
        ("family: vlm\n\tx: 1\n", ["line 2"]),
        ("family: vlm\nfamily: vlm\n", ["line 2", "given twice"]),
        ("train: {group: 2, group: 3}\n", ["line 1", "given twice"]),
        ("- a\n- b\n", ["key: value", "list"]),
        ("", ["empty"]),
        ("recipe: grpo\n", ["family: missing", "vlm"]),
        ("family: vlm\nrecipe: grpo\nmodel: {path: x}\n", ["data: missing"]),
        ("family: vlm\nrecipe: grpo\ndata: {train: digits:train}\n", ["model.path: missing", "save_pretrained"]),
        ("family: !!python/object/apply:os.system ['true']\n", ["line 1", "could not determine a constructor"]),
    ],
)
def test_bad_files(tmp_path: Path, text: str, parts: list[str]) -> None:
    file = tmp_path / "broken.yaml"
    file.write_text(text)
    message = refused(file)
    assert "broken.yaml" in message
    for part in parts:
        assert part in message, message


def test_all_problems_are_listed_but_the_line_stays_short(config_file: Path) -> None:
    message = refused(config_file, "a=1", "b=1", "c=1", "train.steps=x", "sampling.d=1", "sampling.e=1")
    assert "(and 2 more)" in message


def test_paths_in_the_file_are_relative_to_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home = tmp_path / "home"
    (home / "model").mkdir(parents=True)
    (home / "a.jsonl").write_text("{}\n")
    file = home / "run.yaml"
    file.write_text("family: vlm\nrecipe: grpo\nmodel: {path: model}\ndata: {train: a.jsonl, eval: [a.jsonl]}\n")
    monkeypatch.chdir(tmp_path)
    config = config_io.resolve(file)
    assert config.data.train == str(home / "a.jsonl")
    assert config.data.eval == [str(home / "a.jsonl")]
    assert config.model.path == str(home / "model")


def test_paths_on_the_command_line_are_relative_to_the_working_folder(
    config_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    there = tmp_path / "there"
    there.mkdir()
    (there / "b.jsonl").write_text("{}\n")
    monkeypatch.chdir(there)
    assert config_io.resolve(config_file, ["data.train=b.jsonl"]).data.train == str(there / "b.jsonl")


def test_hub_ids_and_embedded_sets_are_left_alone(config_file: Path) -> None:
    config = config_io.resolve(config_file, ["model.path=Qwen/Qwen2-VL-2B-Instruct", "data.train=digits:train?n=8"])
    assert config.model.path == "Qwen/Qwen2-VL-2B-Instruct"
    assert config.data.train == "digits:train?n=8"


def test_own_recipe_file(tmp_path: Path, config_file: Path) -> None:
    (tmp_path / "mine.yaml").write_text((configs_dir() / "recipes" / "grpo.yaml").read_text())
    config_file.write_text(MINIMAL.replace("recipe: grpo", "recipe: mine.yaml"))
    config = config_io.resolve(config_file)
    assert config.recipe == str(tmp_path / "mine.yaml")
    assert config_io.recipe_of(config).advantage["name"] == "grpo"


@pytest.mark.parametrize("name", shipped_configs())
def test_a_dump_resolves_to_the_same_configuration(name: str, tmp_path: Path) -> None:
    config = config_io.resolve(name, ["seed=3"])
    copy = tmp_path / "config.yaml"
    copy.write_text(config_io.dump(config))
    assert config_io.resolve(copy) == config
    config.out = str(tmp_path)
    assert config_io.resolve(tmp_path) == config  # a run folder stands for its config.yaml and goes on in place


def test_floats_of_yaml_1_2() -> None:
    assert yaml_io.parse("[1e-6, 1E3, -2e5, 1.5e-3, 12, e5]", "x") == [1e-6, 1000.0, -2e5, 0.0015, 12, "e5"]


def test_names_of_embedded_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert config_io.is_embedded("digits:train") and config_io.is_embedded("digits:eval?task=detection")
    for name in ("train.jsonl", "my:train.jsonl", "my:a.parquet", "/data:x/y", "C:\\data"):
        assert not config_io.is_embedded(name), name
    (tmp_path / "my:records").mkdir()  # a data set on disk
    assert not config_io.is_embedded("my:records")


@pytest.mark.parametrize(("word", "found"), [("off", "off"), ('"off"', "off"), ("auto", "auto")])
def test_a_bare_off_is_the_word(tmp_path: Path, word: str, found: str) -> None:
    """YAML reads it as a truth value; settings that know the word mean the word."""
    file = tmp_path / "c.yaml"
    file.write_text(
        f"family: vlm\nrecipe: grpo\nmodel: {{path: embedded:vlm, autocast: {word}}}\ndata: {{train: digits:train}}\n"
    )
    assert config_io.resolve(file).model.autocast == found


def test_a_truth_value_stays_one_where_no_such_word_is_known(tmp_path: Path) -> None:
    file = tmp_path / "c.yaml"
    file.write_text(
        "family: vlm\nrecipe: grpo\nmodel: {path: embedded:vlm, attention: off}\ndata: {train: digits:train}\n"
    )
    with pytest.raises(UserError, match="model.attention"):
        config_io.resolve(file)
