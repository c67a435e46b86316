"""The reward stage: tables, faults, workers, cache, and the watch for constant components."""

import importlib.util
import math
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from mmrl.config import Rewards, RewardSpec
from mmrl.data.records import Record
from mmrl.errors import UserError
from mmrl.rewards import registry
from mmrl.rewards.registry import registered, reward
from mmrl.rewards.score import Scorer
from mmrl.rewards.watch import ConstantWatch

HERE = str(Path(__file__).parent)


@pytest.fixture(autouse=True)
def clean(monkeypatch):
    registered()
    before = dict(registry._REWARDS)
    yield
    registry._REWARDS.clear()
    registry._REWARDS.update(before)


@pytest.fixture
def worker_rewards(monkeypatch):
    """The module under a name that worker processes can import too."""
    monkeypatch.syspath_prepend(HERE)
    sys.modules.pop("worker_rewards", None)
    return importlib.import_module("worker_rewards")


BOXES = "<think>t</think><answer>[{'Position': [0, 0, 100, 80], 'Confidence': 0.9}]</answer>"
FIND = Record("find", "detection", "p", answer=[[0, 0, 100, 100]])
COUNT = Record("count", "counting", "p", answer=2)


def config(*names, **more):
    parts = [n if isinstance(n, RewardSpec) else RewardSpec(name=n) for n in names]
    return Rewards(components=parts, **more) if parts else Rewards(**more)


def run(scorer, outputs, records=None):
    records = records or [Record(f"r{i}", "t", "p") for i in range(len(outputs))]
    return scorer.score(outputs, records, [{"sample": 10 + i} for i in range(len(outputs))])


def test_columns_are_nan_where_the_task_is_another():
    scorer = Scorer(config(), tasks=["detection", "counting"])
    scored = run(scorer, [BOXES, "<think></think><answer>2</answer>"], [FIND, COUNT])
    table = dict(zip(scored.names, scored.reward_nk.T.tolist(), strict=True))
    assert scored.reward_nk.dtype == torch.float64 and scored.reward_nk.shape == (2, 4)
    assert table["iou"][0] == 0.8 and math.isnan(table["iou"][1])
    assert table["confidence"][0] == 0.9 and math.isnan(table["confidence"][1])
    assert table["count"][1] == 1.0 and math.isnan(table["count"][0])
    assert table["format"] == [1.0, 1.0]
    assert scored.reward_n.tolist() == pytest.approx([2.7, 2.0])
    assert scored.failures == []


def test_weights_and_rows_without_any_reward():
    @reward("maybe")
    def maybe(outputs, records, info):
        return [None if o == "" else len(o) for o in outputs]

    scored = run(Scorer(config(RewardSpec(name="maybe", weight=-0.5))), ["", "abcd"])
    assert scored.weight_k.tolist() == [-0.5]
    assert scored.reward_n.isnan().tolist() == [True, False] and scored.reward_n[1] == -2.0


@pytest.mark.parametrize(
    ("value", "expected"), [(None, [3.0, 3.0, 3.0]), (0.0, [3.0, 0.0, 3.0]), (-1.0, [3.0, -1.0, 3.0])]
)
def test_rows_that_ran_into_the_limit_may_count_as_wrong(value, expected):
    @reward("long-enough", tasks=("t",))
    def long_enough(outputs, records, info):
        return [len(o) for o in outputs]

    scorer = Scorer(config(RewardSpec(name="long-enough", unfinished=value, success=3.0)))
    rows = [Record(f"r{i}", "t", "p") for i in range(3)]
    told = [{"finished": True}, {"finished": False}, {}]  # a family that says nothing is not punished
    scored = scorer.score(["abc"] * 3, rows, told)
    assert scored.reward_nk[:, 0].tolist() == expected
    from mmrl.training.batch import Scored

    right = Scored(None, scored.reward_nk, scored.weight_k, scored.names, success=scorer.success).correct_n
    assert right.tolist() == [True, value is None, True]


def test_where_a_reward_does_not_apply_no_value_is_made_up():
    @reward("of-u", tasks=("u",))
    def of_u(outputs, records, info):
        return [1.0 for _ in outputs]

    scorer = Scorer(config(RewardSpec(name="of-u", unfinished=0.0), RewardSpec(name="format")))
    rows = [Record("a", "u", "p"), Record("b", "detection", "p", answer=[[0, 0, 1, 1]])]
    scored = scorer.score(["x", "y"], rows, [{"finished": False}, {"finished": False}])
    assert scored.reward_nk[0, 0] == 0.0 and scored.reward_nk[1, 0].isnan()


def test_a_dict_gives_several_columns():
    @reward("pair", components=("a", "b"))
    def pair(outputs, records, info):
        return {"b": [2.0] * len(outputs), "a": [None] * len(outputs)}

    scored = run(Scorer(config("pair")), ["x", "y"])
    assert scored.names == ["pair/a", "pair/b"]
    assert scored.reward_nk[:, 0].isnan().all() and scored.reward_nk[:, 1].tolist() == [2.0, 2.0]


def test_arrays_tensors_and_truth_values_count_as_numbers():
    for k, make in enumerate([np.array, torch.tensor, lambda v: [bool(x) for x in v], lambda v: tuple(np.float32(v))]):
        reward(f"kind{k}")(lambda outputs, records, info, make=make: make([1.0] * len(outputs)))
        assert run(Scorer(config(f"kind{k}")), ["a", "b"]).reward_nk.tolist() == [[1.0], [1.0]]


def bad_rewards():
    def raises(outputs, records, info):
        if "bad" in outputs:
            raise KeyError("colour")
        return [1.0] * len(outputs)

    def value(v):
        return lambda outputs, records, info: [v if o == "bad" else 1.0 for o in outputs]

    return {
        "raises": (raises, "KeyError: 'colour'"),
        "nan": (value(float("nan")), "returned nan"),
        "inf": (value(-math.inf), "returned -inf"),
        "text": (value("high"), "returned 'high', which is no number"),
        "numpy_nan": (value(np.float32("nan")), "returned nan"),
    }


@pytest.mark.parametrize("kind", bad_rewards())
def test_faults_stop_with_reward_record_and_sample(kind):
    function, message = bad_rewards()[kind]
    reward("spoilt")(function)
    with pytest.raises(UserError) as error:
        run(Scorer(config("spoilt")), ["ok", "bad", "ok"])
    text = str(error.value)
    assert "record 'r1', sample 11: reward 'spoilt'" in text and message in text and "\n" not in text
    assert "rewards.on_error: skip" in text


@pytest.mark.parametrize("kind", bad_rewards())
def test_faults_skip_the_whole_row_and_are_counted(kind):
    reward("spoilt")(bad_rewards()[kind][0])
    scorer = Scorer(config("spoilt", "format", on_error="skip"))
    scored = run(scorer, ["ok", "bad", "ok"])
    assert scored.reward_nk.isnan().all(dim=1).tolist() == [False, True, False]
    assert len(scored.failures) == 1 and "sample 11" in scored.failures[0]
    assert scorer.failed_rows == 1
    run(scorer, ["bad"])
    fresh = Scorer(config("spoilt", "format", on_error="skip"))
    fresh.load_state_dict(scorer.state_dict())
    assert fresh.failed_rows == 2


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (lambda outputs, records, info: [1.0], "returned 1 values for 3 rows"),
        (lambda outputs, records, info: 1.0, "must return a list with one entry per row, got float"),
        (lambda outputs, records, info: None, "must return a list"),
        (lambda outputs, records, info: {"a": [1.0] * len(outputs)}, "declare its columns"),
    ],
)
def test_wrong_results(function, message):
    reward("wrong", rowwise=False)(function)
    with pytest.raises(UserError, match=message):
        run(Scorer(config("wrong")), ["a", "b", "c"])
    scored = run(Scorer(config("wrong", on_error="skip")), ["a", "b", "c"])
    assert scored.reward_nk.isnan().all() and len(scored.failures) == 3


def test_undeclared_components():
    reward("pair", components=("a", "b"))(lambda outputs, records, info: {"a": [1.0] * len(outputs)})
    with pytest.raises(UserError, match=r"returns the components \['a'\], declared \['a', 'b'\]"):
        run(Scorer(config("pair")), ["x"])


def test_a_task_without_reward_is_refused():
    with pytest.raises(UserError, match="applies to records of task 'counting'"):
        Scorer(config("iou"), tasks=["detection", "counting"])
    with pytest.raises(UserError, match="applies to records of task 'counting'"):
        run(Scorer(config("iou")), ["2"], [COUNT])
    with pytest.raises(UserError, match="no default rewards for task 'poetry'"):
        run(Scorer(config()), ["2"], [Record("a", "poetry", "p")])


def test_a_record_whose_answer_does_not_fit_is_named():
    with pytest.raises(
        UserError, match="sample 10: reward 'iou': record 'find': answer .* must be a list of boxes, got None"
    ):
        run(Scorer(config()), [BOXES], [Record("find", "detection", "p")])


def test_timeout_without_workers_is_refused():
    with pytest.raises(UserError, match="timeout_s needs rewards.workers"):
        Scorer(config(timeout_s=1.0))


def test_empty_batch():
    assert run(Scorer(config()), []).reward_nk.shape[0] == 0


def test_workers_give_the_same_table(worker_rewards):
    outputs = [BOXES, "<think></think><answer>2</answer>", "", "x" * 1000] * 5
    records = [FIND, COUNT, FIND, COUNT] * 5
    parts = ("auto", "w_length", "w_whole")
    plain = run(Scorer(config(*parts)), outputs, records)
    with Scorer(config(*parts, workers=2, timeout_s=60)) as scorer:
        pooled = run(scorer, outputs, records)
        again = run(scorer, outputs, records)
    assert pooled.names == plain.names
    assert torch.equal(pooled.reward_nk.nan_to_num(nan=-7), plain.reward_nk.nan_to_num(nan=-7))
    assert torch.equal(again.reward_nk.nan_to_num(nan=-7), plain.reward_nk.nan_to_num(nan=-7))
    assert pooled.reward_nk[:, pooled.names.index("w_whole")].unique().tolist() == [20.0]


def test_a_hung_worker_is_killed_and_only_its_row_fails(worker_rewards):
    start = time.monotonic()
    with Scorer(config("w_hang", workers=2, timeout_s=1.0, on_error="skip")) as scorer:
        scored = run(scorer, ["a", "hang", "b", "c", "d", "e"])
        assert scored.reward_nk.isnan().flatten().tolist() == [False, True, False, False, False, False]
        assert "longer than rewards.timeout_s = 1 s" in scored.failures[0] and "sample 11" in scored.failures[0]
        assert run(scorer, ["a", "b"]).failures == []  # it goes on
        processes = [w.process for w in scorer._pool._workers]
    assert all(p.poll() is not None for p in processes)  # none is left behind
    assert time.monotonic() - start < 60


def test_a_dead_worker_is_retried_once(worker_rewards, tmp_path):
    part = RewardSpec(name="w_die_once", options={"folder": str(tmp_path)})
    with Scorer(config(part, workers=1)) as scorer:
        assert run(scorer, ["a"]).reward_nk.tolist() == [[1.0]]
        assert scorer._pool.restarts == 1


def test_a_worker_that_dies_twice_is_a_fault(worker_rewards):
    with Scorer(config("w_die", workers=2, on_error="skip")) as scorer:
        scored = run(scorer, ["a", "die", "b"])
        assert scored.reward_nk.isnan().flatten().tolist() == [False, True, False]
        assert "died twice (exit code 9)" in scored.failures[0]
    with Scorer(config("w_die", workers=1)) as scorer, pytest.raises(UserError, match="sample 10.*died twice"):
        run(scorer, ["die"])


def test_workers_cannot_import_the_main_script():
    def mine(outputs, records, info):
        return [1.0] * len(outputs)

    mine.__module__ = "__main__"
    reward("in_main")(mine)
    with Scorer(config("in_main", workers=1)) as scorer, pytest.raises(UserError, match="workers cannot import"):
        run(scorer, ["a"])


def test_a_worker_that_cannot_start_says_why():
    def mine(outputs, records, info):
        return [1.0] * len(outputs)

    mine.__module__ = "module_only_here"
    reward("elsewhere")(mine)
    with (
        Scorer(config("elsewhere", workers=1)) as scorer,
        pytest.raises(UserError, match="a worker cannot start.*only_here"),
    ):
        run(scorer, ["a"])


def test_a_reward_that_importing_does_not_register_is_named(worker_rewards):
    def late(outputs, records, info):
        return [1.0] * len(outputs)

    late.__module__ = "worker_rewards"
    reward("w_late")(late)
    with (
        Scorer(config("w_late", workers=1)) as scorer,
        pytest.raises(UserError, match="'w_late': a worker does not know"),
    ):
        run(scorer, ["a", "b"])


def test_cache_calls_once_per_output_and_record():
    calls = []

    @reward("counted")
    def counted(outputs, records, info):
        calls.extend(outputs)
        if "bad" in outputs:
            raise ValueError("bad")
        return [float(len(o)) for o in outputs]

    scorer = Scorer(config("counted", cache=True, on_error="skip"))
    a, b = Record("a", "t", "p"), Record("b", "t", "p")
    first = run(scorer, ["x", "yy"], [a, b])
    second = run(scorer, ["x", "yy", "x"], [a, b, b])
    assert calls == ["x", "yy", "x"]  # the last one is another record
    assert second.reward_nk[:2].equal(first.reward_nk) and second.reward_nk[2] == 1.0
    run(scorer, ["x"], [Record("a", "t", "p", answer="changed")])
    assert calls[3:] == ["x"]
    del calls[:]
    run(scorer, ["bad"], [a])
    run(scorer, ["bad"], [a])
    assert calls == ["bad", "bad"]  # faults are not remembered


def test_cache_leaves_alone_what_reads_info():
    @reward("informed", cacheable=False)
    def informed(outputs, records, info):
        return [float(row["sample"]) for row in info]

    scorer = Scorer(config("informed", cache=True))
    record = Record("a", "t", "p")
    assert run(scorer, ["x", "x"], [record, record]).reward_nk.flatten().tolist() == [10.0, 11.0]


def test_cache_of_pictures():
    @reward("bright")
    def bright(outputs, records, info):
        return [float(np.asarray(o).mean()) for o in outputs]

    scorer = Scorer(config("bright", cache=True))
    record = Record("a", "t", "p")
    grey = [Image.new("L", size, level) for size, level in (((4, 4), 7), ((2, 8), 9), ((4, 4), 7))]
    assert run(scorer, grey, [record] * 3).reward_nk.flatten().tolist() == [7.0, 9.0, 7.0]
    run(scorer, grey, [record] * 3)
    assert scorer.cache.hits == 3
    with pytest.raises(UserError, match="cannot be hashed"):
        run(scorer, [object()], [record])


def test_watch_names_a_component_that_never_differs():
    watch = ConstantWatch(["iou", "format"], patience=3)
    constant = torch.tensor([[0.0, 0.1], [0.0, 0.9], [math.nan, 0.5]], dtype=torch.float64)
    for _ in range(2):
        watch.update(constant)
        assert watch.constant() == {}
    other = ConstantWatch(["format", "iou"], patience=3)
    other.load_state_dict(watch.state_dict())
    watch.update(constant)
    assert watch.constant() == {"iou": 0.0}
    other.update(constant.flip(1))  # resumed, columns in another order
    assert other.constant() == {"iou": 0.0}
    # another constant value starts a new count; a step without any row of it changes nothing
    for value, expected in ((1.0, {}), (1.0, {}), (math.nan, {}), (1.0, {"iou": 1.0})):
        watch.update(torch.tensor([[value, 0.1], [value, 0.2]], dtype=torch.float64))
        assert watch.constant() == expected
    watch.update(torch.tensor([[1.0, 0.1], [0.0, 0.2]], dtype=torch.float64))
    assert watch.constant() == {}
    # a checkpoint of before knew what it had said; that is kept elsewhere now
    other.load_state_dict({"names": ["iou"], "steps": [7], "value": [0.5], "told": [[0.5]]})
    assert other.constant() == {"iou": 0.5}
