"""What docs/rewards.md and docs/data.md show is what the code does."""

import json
import re
from pathlib import Path

import pytest
import yaml
from PIL import Image

from mmrl.config import Rewards
from mmrl.data.read import read_records
from mmrl.data.records import FRAMES, Record
from mmrl.data.rows import ALIASES, FIELDS
from mmrl.rewards import registry
from mmrl.rewards.registry import option_defaults, registered, task_rewards
from mmrl.rewards.score import Scorer

DOCS = Path(__file__).parents[2] / "docs"
REWARDS, DATA = (DOCS / "rewards.md").read_text(), (DOCS / "data.md").read_text()


@pytest.fixture(autouse=True)
def clean():
    registered()
    before = dict(registry._REWARDS)
    yield
    registry._REWARDS.clear()
    registry._REWARDS.update(before)


def blocks(text):
    return [re.sub(r"(?m)^    ", "", b) for b in re.findall(r"(?m)(?:^    .*\n|^\n(?=    ))+", text)]


def test_the_catalogue_is_complete():
    rows = {r.split("|")[1].strip(" `"): r for r in re.findall(r"(?m)^\| `.*$", REWARDS)}
    ours = {n: one for n, one in registered().items() if one.function.__module__.startswith("mmrl.")}
    assert set(ours) <= set(rows)
    for name, one in ours.items():
        assert (one.tasks[0] if one.tasks else "all") in rows[name], name
        for option in option_defaults(one.function, name):
            assert f"`{option}`" in rows[name], (name, option)
    for task in ("detection", "classification", "grounding", "counting"):
        assert f"{task} = " + " + ".join(f"`{n}`" for n in task_rewards(task)) in REWARDS


def test_the_configuration_shown_is_valid():
    text = next(b for b in blocks(REWARDS) if b.lstrip().startswith("rewards:"))
    Scorer(Rewards(**yaml.safe_load(text)["rewards"]), tasks=["detection"])


def test_the_reward_shown_works():
    code = next(b for b in blocks(REWARDS) if "my_rewards.py" in b)
    config = next(b for b in blocks(REWARDS) if b.lstrip().startswith("plugins:"))
    exec(code, {"__name__": "my_rewards"})
    scorer = Scorer(Rewards(**yaml.safe_load(config)["rewards"]), tasks=["detection"])
    assert scorer.weight_k[scorer.names.index("short_thought")] == 0.2
    record = Record("a", "detection", "p", answer=[])
    scored = scorer.score(["w " * 31, "w " * 30], [record] * 2, [{"sample": 0}] * 2)
    assert scored.reward_nk[:, scorer.names.index("short_thought")].tolist() == [0.0, 1.0]


def test_the_records_shown_can_be_read(tmp_path):
    (tmp_path / "img").mkdir()
    for name in ("000123.jpg", "a380.jpg", "1.jpg"):
        Image.new("RGB", (8, 8)).save(tmp_path / "img" / name)
    shown = re.findall(r"(?m)^ +(\{\"i.*\})$", DATA)
    assert len(shown) == 3
    (tmp_path / "my.jsonl").write_text("\n".join(shown))
    records, _ = read_records(tmp_path / "my.jsonl")
    assert [r.task for r in records] == ["detection", "classification", "grounding"]
    assert json.loads(shown[0])["answer"] == records[0].answer


def test_fields_and_frames_are_documented():
    for name in (*FIELDS, *ALIASES, *FRAMES):
        assert f"`{name}`" in DATA or f'"{name}"' in DATA or name in ("conversations",), name
