"""`check_reward` finds what breaks the contract, and passes what keeps it."""

import sys

import pytest

from mmrl.data.records import Record
from mmrl.errors import UserError
from mmrl.rewards import registry
from mmrl.rewards.checker import check_reward
from mmrl.rewards.registry import registered

SOURCE = """
from mmrl.rewards import reward
count = 0
def good(outputs, records, info, *, scale: float = 1.0):
    return [scale * len(o) for o in outputs]
@reward("checked_poetry", tasks=("poetry",))
def poetry(outputs, records, info):
    return [1.0 if r.answer else None for r in records]
def raises(outputs, records, info):
    return [1 / len(o) for o in outputs]
def nan(outputs, records, info):
    return [float("nan") if "NaN" in o else 1.0 for o in outputs]
def short(outputs, records, info):
    return [1.0]
def changes(outputs, records, info):
    info[0]["seen"] = True
    return [float(len(o)) for o in outputs]
def stateful(outputs, records, info):
    global count
    count += 1
    return [float(count)] * len(outputs)
def ranks(outputs, records, info):
    return [float(i) for i in range(len(outputs))]
def not_empty(outputs, records, info):
    top = max(len(o) for o in outputs)
    return [1.0] * len(outputs)
def constant(outputs, records, info):
    return [1.0] * len(outputs)
def few(outputs):
    return []
"""


@pytest.fixture(autouse=True)
def module(tmp_path, monkeypatch):
    registered()
    before = dict(registry._REWARDS)
    (tmp_path / "checked_rewards.py").write_text(SOURCE)
    monkeypatch.syspath_prepend(tmp_path)
    sys.modules.pop("checked_rewards", None)
    yield
    sys.modules.pop("checked_rewards", None)
    registry._REWARDS.clear()
    registry._REWARDS.update(before)


def problems(name, **more):
    return check_reward(f"checked_rewards:{name}", **more).problems


def test_a_good_reward_passes():
    checked = check_reward("checked_rewards:good", options={"scale": 0.5})
    assert checked.problems == [] and "keeps the contract" in checked.lines[0]
    assert any(line.startswith("values from 0 to") for line in checked.lines)


OURS = [one for one in registered().values() if one.function.__module__.startswith("mmrl.")]


@pytest.mark.parametrize("one", sorted(OURS, key=lambda r: r.name), ids=lambda r: r.name)
def test_our_own_rewards_keep_the_contract(one):
    options = {"max_length": 100, "cache": 20} if one.name == "overlong" else {}
    target = f"{one.function.__module__}:{one.function.__name__}"
    assert check_reward(target, options=options).problems == []


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("raises", "on empty text (task detection): reward 'checked_rewards:raises': ZeroDivisionError"),
        ("nan", "on not a number (task detection): reward 'checked_rewards:nan': returned nan"),
        ("changes", "it changes its inputs"),
        ("stateful", "gives other values the second time"),
        ("ranks", "depends on the other rows of the batch; register it with rowwise=False"),
        ("not_empty", "it fails on an empty batch"),
        ("short", "it fails on an empty batch"),
    ],
)
def test_problems_are_found(name, message):
    found = problems(name)
    assert any(line.startswith(message) or message in line for line in found), found


def test_a_constant_is_only_noted():
    checked = check_reward("checked_rewards:constant")
    assert checked.problems == [] and any("teaches nothing" in line for line in checked.notes)


def test_what_cannot_be_run_at_all():
    with pytest.raises(UserError, match=r"must take \(outputs, records, info"):
        problems("few")
    with pytest.raises(UserError, match="has no option 'scal'; did you mean 'scale'"):
        problems("good", options={"scal": 2})
    with pytest.raises(UserError, match="for the tasks poetry; give a data file"):
        problems("poetry")
    assert problems("poetry", records=[Record("a", "poetry", "p", answer="x")]) == []
