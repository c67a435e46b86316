"""Exact answers, steps of sums, tokens per forward, what `auto` chooses, senseless strings, worker processes."""

import random

import pytest

from dlm.rewards.catalogue import AUTO
from dlm.rewards.correct import is_correct
from dlm.tasks import builtin
from mmrl.config import Rewards, RewardSpec
from mmrl.data.read import read_records
from mmrl.data.records import Record
from mmrl.errors import UserError
from mmrl.rewards.plan import make_plan
from mmrl.rewards.registry import bind_options, find, registered, task_rewards
from mmrl.rewards.score import Scorer

OURS = ("exact", "characters", "sum_steps", "countdown", "sudoku_cells", "sudoku_solved", "gsm8k", "math", "tpf")
OURS += ("xml_count", "soft_format", "strict_format", "int", "boxed")


@pytest.mark.parametrize(
    ("task", "said", "answer", "right"),
    [
        ("sorting", "1134", "1134", True),
        ("sorting", " 1 1 3 4\n", "1134", True),
        ("sorting", "<answer>\n1134\n</answer>", "1134", True),
        ("sorting", "1134<answer>1143</answer>", "1134", False),
        ("sorting", "<answer>1143</answer><answer>1134</answer>", "1134", True),
        ("sorting", "11345", "1134", False),
        ("sorting", "", "1134", False),
        ("sorting", "<answer></answer>", "1134", False),
        ("arithmetic", "85", "85", True),
        ("arithmetic", "85", 85, True),
        ("arithmetic", "085", "85", False),
        ("arithmetic", "27+58=85", "85", False),
        ("sums", "3+5=8;8+4=12", "12", True),
        ("sums", "8;12", "12", True),
        ("sums", "12", "12", True),
        ("sums", "3+5=8;8+4=13", "12", False),
        ("sums", "3+5=8;8+4=12;", "12", False),
        ("sums", "3+5=8;<answer>12</answer>", "12", True),
        ("poetry", "a  rose\nis", "a rose is", True),
        ("poetry", "arose is", "a rose is", False),
    ],
)
def test_exact(one, task, said, answer, right):
    assert one("exact", said, answer, task=task) == float(right)
    assert is_correct(said, Record("r", task, "p", answer=answer)) == right


@pytest.mark.parametrize("answer", [None, "", "  ", ["12"], True, {"a": 1}])
def test_exact_needs_a_text(one, answer):
    with pytest.raises(UserError, match="record 'r': answer of task 'sorting' must be a text or a number"):
        one("exact", "12", answer, task="sorting")


def test_characters(one):
    def share(said):
        return one("characters", said, "1134", task="sorting")

    assert [share(s) for s in ("1134", "1143", "113", "11345", "", "4311")] == [1, 0.5, 0.75, 0.8, 0, 0]


@pytest.mark.parametrize(
    ("said", "share"),
    [
        ("3+5=8;8+4=12;12+9=21", 1.0),
        ("3+5=8\n8 + 4 = 12\n12+9=21\n", 1.0),
        ("3+5=8;8+4=13;13+9=22", 1 / 3),
        ("3+5=8;8+4=12", 2 / 3),
        ("3+5=8;8+4=12;12+9=21;21+0=21", 3 / 4),
        ("8+4=12;3+5=8;12+9=21", 1 / 3),
        ("21", 0.0),
        ("", 0.0),
        ("<reasoning>\n3+5=8;8+4=12;12+9=21\n</reasoning>\n<answer>\n21\n</answer>\n", 1.0),
        ("3+5=8;8+4=12;12+9=21<answer>21</answer>", 1.0),
    ],
)
def test_steps_of_a_sum(one, said, share):
    meta = {"steps": ["3+5=8", "8+4=12", "12+9=21"]}
    assert one("sum_steps", said, "21", task="sums", meta=meta) == pytest.approx(share)


@pytest.mark.parametrize("steps", [None, [], "3+5=8", [8]])
def test_steps_must_be_known(one, steps):
    with pytest.raises(UserError, match="record 'r': sum_steps needs the right steps"):
        one("sum_steps", "8", "8", task="sums", meta={"steps": steps})


def test_tokens_per_forward(one):
    assert one("tpf", "", info={"tpf": 2.5}) == 2.5 and one("tpf", "", info={"tpf": 3}, scale=0.5) == 1.5
    assert one("tpf", "", info={"tpf": 0.0}) == 0.0
    assert not find("tpf").cacheable
    with pytest.raises(UserError, match="record 'r': reward tpf needs a sampler that reports tokens per forward"):
        one("tpf", "", info={"length": 3})


def test_auto_takes_the_published_sets():
    assert task_rewards("gsm8k") == ("xml_count", "soft_format", "strict_format", "int", "gsm8k")
    assert task_rewards("math") == ("math", "boxed")
    assert task_rewards("countdown") == ("countdown",) and task_rewards("sudoku4") == ("sudoku_cells",)
    assert {task_rewards(t) for t in ("sorting", "arithmetic", "sums")} == {("exact",)}
    for task, names in AUTO.items():
        assert [c.one.name for c in make_plan([RewardSpec(name="auto")], [task])] == list(names)
        assert all(find(name).applies(task) for name in names)
    assert set(OURS) == {n for n, one in registered().items() if one.function.__module__.startswith("dlm.")}


def test_a_perfect_gsm8k_completion_earns_four():
    record = Record("r", "gsm8k", "p", answer="12")
    text = "<reasoning>\n6 + 6\n</reasoning>\n<answer>\n12\n</answer>\n"
    with Scorer(Rewards(), tasks=["gsm8k"]) as scorer:
        assert scorer.score([text, ""], [record] * 2, [{}] * 2).reward_n.tolist() == [4.0, 0.0]


def test_a_text_file_of_records_is_scored(tmp_path):
    rows = ['{"prompt": "2+2=", "answer": "4", "task": "arithmetic"}']
    rows += ['{"prompt": "make 3", "answer": {"numbers": [1, 2], "target": 3}, "task": "countdown"}']
    (tmp_path / "a.jsonl").write_text("\n".join(rows))
    records, problems = read_records(tmp_path / "a.jsonl")
    assert not problems
    with Scorer(Rewards(), tasks=[r.task for r in records]) as scorer:
        scored = scorer.score(["4", "<answer>1+2</answer>"], records, [{}, {}])
    assert scored.reward_n.tolist() == [1.0, 1.0]


def test_workers_know_them():
    """Each worker imports the rewards by their modules; answers are those of this process."""
    records = [
        builtin("countdown:train?n=1")[0],
        builtin("sudoku4:train?n=1")[0],
        Record("m", "math", "p", answer="0.5"),
    ]
    outputs = [records[0].response, records[1].response, "\\boxed{\\frac12}"]
    spec = Rewards(workers=1, timeout_s=60)
    with Scorer(spec, tasks=[r.task for r in records]) as scorer:
        found = scorer.score(outputs, records, [{}] * 3)
    assert found.reward_n.tolist() == [1.0, 1.0, 2.5]


def senseless(n):
    rng = random.Random(3)
    pieces = [
        "<answer>",
        "</answer>",
        "<reasoning>",
        "</reasoning>",
        "\\boxed{",
        "{",
        "}",
        "\\frac",
        "####",
        "=",
        ";",
        "\n",
    ]
    pieces += [
        "(",
        ")",
        "+",
        "-",
        "*",
        "/",
        "**",
        "0",
        "7",
        "22",
        "9" * 30,
        "²",
        "٣",
        "é",
        "\x00",
        "\ud800",
        "$",
        "\\",
        " ",
    ]
    for _ in range(n):
        yield "".join(rng.choice(pieces) for _ in range(rng.randrange(20)))


def test_ten_thousand_senseless_strings():
    """Nothing raises, values stay in their ranges, and next to nothing is right."""
    records = {
        "sums": builtin("sums:eval?n=1")[0],
        "sorting": builtin("sort:eval?n=1")[0],
        "countdown": Record("c", "countdown", "p", answer={"numbers": [7, 22], "target": 29}),
        "sudoku4": builtin("sudoku4:eval?n=1")[0],
        "gsm8k": Record("g", "gsm8k", "p", answer="7292"),
        "math": Record("m", "math", "p", answer="\\frac{7292}{3}"),
    }
    texts = list(senseless(10_000))
    highest = {"xml_count": 0.51, "boxed": 1.0, "gsm8k": 2.0, "math": 2.0, "int": 0.5, "soft_format": 0.5}
    for name in OURS:
        definition = find(name)
        options = bind_options(definition, {"match": "text"} if name in ("gsm8k", "math") else {})
        for task, record in records.items():
            texty = not isinstance(record.answer, dict)
            if definition.applies(task) and (texty or name in ("countdown", "sudoku_cells", "sudoku_solved")):
                values = definition.function(texts, [record] * len(texts), [{"tpf": 1.0}] * len(texts), **options)
                assert len(values) == len(texts) and max(values) <= highest.get(name, 1.0), name
                assert min(values) >= (-0.001 * 1000 if name == "xml_count" else 0.0), name
                if name in ("exact", "sudoku_solved", "math"):
                    assert sum(values) == 0.0, name


@pytest.mark.parametrize("name", OURS)
def test_an_empty_batch(name):
    assert find(name).function([], [], []) == []
