"""Names, options, task sets and plug-ins: every mistake is one readable line."""

import subprocess
import sys
from typing import Literal

import pytest

from mmrl.config import RewardSpec
from mmrl.errors import UserError
from mmrl.plugins import import_function, load_plugins
from mmrl.rewards import registry
from mmrl.rewards.plan import check_task, make_plan
from mmrl.rewards.registry import bind_options, find, registered, reward, set_task_rewards, task_rewards


@pytest.fixture(autouse=True)
def clean():
    registered()
    rewards, sets = dict(registry._REWARDS), dict(registry._TASK_SETS)
    yield
    registry._REWARDS.clear()
    registry._REWARDS.update(rewards)
    registry._TASK_SETS.clear()
    registry._TASK_SETS.update(sets)


def specs(*names, **options):
    return [RewardSpec(name=n, options=options) for n in names]


def test_default_sets():
    assert task_rewards("detection") == ("iou", "confidence", "format")
    assert task_rewards("classification") == ("label", "format")
    assert task_rewards("grounding") == ("giou", "format")
    assert task_rewards("counting") == ("count", "format")
    for task in ("detection", "classification", "grounding", "counting"):
        assert all(find(name).applies(task) for name in task_rewards(task))


def test_unknown_names_have_a_hint():
    with pytest.raises(UserError, match="unknown reward 'giuo'; did you mean 'giou'"):
        find("giuo")
    with pytest.raises(UserError, match="no default rewards for task 'detecton'; did you mean 'detection'"):
        task_rewards("detecton")
    with pytest.raises(UserError, match="register your own with @reward"):
        task_rewards("poetry")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tua": 0.3}, "'iou' has no option 'tua'; did you mean 'tau'"),
        ({"tau": 1.5}, "option tau: .*less than 1"),
        ({"tau": "high"}, "option tau"),
        ({"divisor": "mean"}, "option divisor: .*'max' or 'predictions'"),
    ],
)
def test_options_are_checked(options, message):
    with pytest.raises(UserError, match=message):
        bind_options(find("iou"), options)


def test_required_options():
    with pytest.raises(UserError, match="'overlong' needs the option 'max_length'"):
        bind_options(find("overlong"), {"cache": 3})
    assert bind_options(find("overlong"), {"cache": 3, "max_length": 9}) == {"cache": 3.0, "max_length": 9.0}
    assert bind_options(find("ap"), {"thresholds": [0.5]}) == {"thresholds": (0.5,)}


def test_a_reward_of_ones_own():
    @reward("tidy", tasks=("poetry",))
    def tidy(outputs, records, info, *, style: Literal["plain", "grand"] = "plain"):
        return [1.0] * len(outputs)

    assert task_rewards("poetry") == ("tidy",)
    assert [c.one.name for c in make_plan(specs("auto"), ["poetry"])] == ["tidy"]
    with pytest.raises(UserError, match="option style"):
        bind_options(find("tidy"), {"style": "odd"})
    set_task_rewards("poetry", ["tidy", "format"])
    assert task_rewards("poetry") == ("tidy", "format")
    with pytest.raises(UserError, match="at least one"):
        set_task_rewards("poetry", [])


def test_a_function_of_the_wrong_shape_is_refused():
    with pytest.raises(UserError, match=r"must take \(outputs, records, info"):
        reward("short")(lambda outputs: [])
    with pytest.raises(UserError, match=r"must take \(outputs, records, info"):
        reward("long")(lambda outputs, records, info, more: [])
    for name in ("auto", "a/b"):
        with pytest.raises(UserError, match="taken"):
            reward(name)(lambda outputs, records, info: [])
    with pytest.raises(UserError, match="'iou' of .* is registered already by mmrl.rewards.detection"):
        reward("iou")(lambda outputs, records, info: [])


def test_plan_of_auto():
    plan = make_plan([RewardSpec(name="auto", weight=2.0, options={"iou": {"tau": 0.3}})], ["detection", "counting"])
    assert sorted(c.columns[0] for c in plan) == ["confidence", "count", "format", "iou"]
    assert all(c.weight == 2.0 for c in plan)
    by_name = {c.one.name: c for c in plan}
    assert by_name["iou"].options == {"tau": 0.3} and by_name["count"].options == {}
    assert by_name["iou"].applies("detection") and not by_name["iou"].applies("counting")
    assert by_name["format"].applies("counting")


def test_plan_mistakes():
    with pytest.raises(UserError, match="given by reward name; unknown 'tau'"):
        make_plan([RewardSpec(name="auto", options={"tau": 0.3})], ["detection"])
    with pytest.raises(UserError, match="'iou' is part of `auto` already"):
        make_plan(specs("auto", "iou"), ["detection"])
    with pytest.raises(UserError, match="components is empty"):
        make_plan([])
    with pytest.raises(UserError, match="listed twice"):
        make_plan(specs("auto", "auto"))
    with pytest.raises(UserError, match=r"\(label\) applies to records of task 'detection'"):
        make_plan(specs("label"), ["detection"])
    check_task(make_plan(specs("label")), "classification")


def test_one_reward_twice_gets_two_columns():
    plan = make_plan([*specs("iou"), *specs("iou", tau=0.3)], ["detection"])
    assert [c.columns for c in plan] == [("iou",), ("iou_2",)]


def test_plugins(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "plug_good.py").write_text(
        "from mmrl.rewards import reward\n"
        "@reward('plug_good')\n"
        "def good(outputs, records, info):\n    return [0.5] * len(outputs)\n"
        "number = 3\n"
    )
    (tmp_path / "plug_broken.py").write_text("1 / 0\n")
    (tmp_path / "plug_needs.py").write_text("import not_installed_anywhere\n")
    load_plugins(["plug_good"])
    assert find("plug_good").function([""], [None], [{}]) == [0.5]
    for name, message in [
        ("plug_absent", "plugins: plug_absent: no module of that name"),
        ("plug_good.py", "give a module name, not a file, e.g. plug_good"),
        ("plug_broken", "importing it failed: ZeroDivisionError"),
        ("plug_needs", "imports 'not_installed_anywhere', which is not installed"),
    ]:
        with pytest.raises(UserError, match=message):
            load_plugins([name])
    assert import_function("plug_good:good")
    for target, message in [
        ("plug_good", "write it as module:function"),
        ("plug_good:god", "has no 'god'; did you mean 'good'"),
        ("plug_good:number", "is a int, not a function"),
    ]:
        with pytest.raises(UserError, match=message):
            import_function(target)


def test_rewards_and_data_load_no_torch():
    code = (
        "import sys; import mmrl.rewards.registry as r; r.registered(); import mmrl.rewards.checker, mmrl.rewards.pool;"
        "import mmrl.data.check; sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
