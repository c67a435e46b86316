"""What docs/dlm_tasks.md says is what the code does."""

import re
from pathlib import Path

import pytest
import yaml

from dlm.rewards.catalogue import AUTO
from dlm.tasks import builtin, chance
from dlm.tasks.catalogue import SETS
from mmrl.data.read import read_records
from mmrl.rewards.registry import option_defaults, registered

TEXT = (Path(__file__).parents[3] / "docs" / "dlm_tasks.md").read_text()


def rows(pattern):
    """First cell -> row, of the rows that have this."""
    return {r.split("|")[1].strip(" `"): r for r in re.findall(r"(?m)^\| `.*$", TEXT) if re.search(pattern, r)}


def test_every_reward_and_option_stands_there():
    rewards = rows("formula only")
    for name, one in registered().items():
        if one.function.__module__.startswith("dlm."):
            assert (one.tasks[0] if one.tasks else "any") in rewards[name].split("|")[2], name
            for option in option_defaults(one.function, name):
                assert f"`{option}`" in rewards[name], (name, option)


def test_every_set_and_option_stands_there():
    for name, task in SETS.items():
        assert name in rows(f"`{task.name}`")
        for option, kind in task.options.items():
            assert re.search(rf"(?m)^\| `{name}` \| .*`{option}`", TEXT), option
            assert f"({kind.default}" in TEXT or f"(`{kind.default}`" in TEXT, option


def test_auto_is_told():
    for task, names in AUTO.items():
        told = " + ".join(f"`{n}`" for n in names)
        assert re.search(rf"{task}\b[^;.]* = {re.escape(told)}[;.]", TEXT), task


def test_the_names_shown_exist():
    text = re.search(r"(?m)^    data:\n(?:      .*\n)+", TEXT)[0]
    for name in yaml.safe_load(text)["data"].values():
        assert builtin(name)


@pytest.mark.parametrize("name", SETS)
def test_the_chance_levels_are_these(name):
    assert f"{name} {chance(builtin(f'{name}:eval'))['accuracy']:.3f}" in TEXT


def test_the_records_shown_can_be_read(tmp_path):
    (tmp_path / "a.jsonl").write_text("\n".join(re.findall(r"(?m)^    (\{.*\})$", TEXT)))
    assert [r.task for r in read_records(tmp_path / "a.jsonl")[0]] == ["arithmetic", "countdown"]
