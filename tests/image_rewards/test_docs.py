"""What docs/image_rewards.md shows is what the code does."""

import re
from pathlib import Path

import pytest
import yaml

import image_gen.rewards.catalogue  # noqa: F401
from image_gen.rewards.composition_rules import read_spec
from mmrl.config import Rewards
from mmrl.rewards.registry import option_defaults, registered
from mmrl.rewards.score import Scorer

TEXT = (Path(__file__).parents[2] / "docs" / "image_rewards.md").read_text(encoding="utf-8")
ROWS = {row.split("|")[1].strip(" `"): row.split("|") for row in re.findall(r"(?m)^\| `.*$", TEXT)}
OURS = {n: one for n, one in registered().items() if one.function.__module__.startswith("image_gen.rewards.")}


def test_the_catalogue_is_complete():
    assert set(ROWS) == set(OURS)


@pytest.mark.parametrize("name", sorted(OURS))
def test_every_option_and_default_is_in_the_row(name):
    cell = ROWS[name][4]
    defaults = option_defaults(OURS[name].function, name)
    assert re.findall(r"(?:^|, )`(\w+)`(?! \w)", re.sub(r"\([^)]*\)", "", cell).strip()) == list(defaults)
    for option, value in defaults.items():
        shown = re.search(rf"`{option}` \(`?([^,`)]*)", cell)
        if shown and shown[1] != "required":
            assert str(value) == shown[1] or float(value) == float(shown[1]), option


@pytest.mark.parametrize("name", sorted(OURS))
def test_checked_with_is_one_of_three(name):
    said = ROWS[name][6]
    assert re.search("real weights|random weights|formula only", said)
    assert "real weights" not in said  # none was at hand


def test_the_configuration_shown_is_valid():
    block = re.search(r"(?m)(?:^    .*\n|^\n(?=    ))+", TEXT[TEXT.index("    rewards:") :])[0]
    section = yaml.safe_load(re.sub(r"(?m)^    ", "", block))["rewards"]
    assert Scorer(Rewards(**section), tasks=["image"]).names == ["pick_score", "composition", "nan_share"]


def test_the_metadata_shown_is_read():
    shown = re.search(r'`(\{"tag": .*?\}\]\})`', TEXT)[1]
    spec = read_spec(yaml.safe_load(shown), "the document")
    assert spec.include[1].relation == "left of" and spec.exclude[0].count == 3
