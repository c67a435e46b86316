"""Generated tasks: right answers, splits that never overlap, the same records everywhere, one line per mistake."""

import re
import subprocess
import sys
from fractions import Fraction

import pytest

from dlm.rewards.correct import is_correct
from dlm.rewards.expression import value
from dlm.tasks import arithmetic, builtin, chance, countdown, sorting, sudoku4, sums
from dlm.tasks.base import SPLITS, split_of
from dlm.tasks.catalogue import CHARACTERS, SETS
from mmrl.data.read import read_records
from mmrl.data.records import Record
from mmrl.data.write import row_of, write_rows
from mmrl.errors import UserError

#: The first prompts of each held-out set.
PINNED = {
    "sort": ["sort 1414333498>", "sort 3318155093>"],
    "arithmetic": ["31+548=", "30+72="],
    "sums": ["1+4+8+1+0=", "6+5+1+9+6="],
    "countdown": ["make 37 from 15,20,2:", "make 8 from 1,15,7:"],
    "sudoku4": ["sudoku 3000040221004021>", "sudoku 0420010013400203>"],
}

VARIANTS = [
    "sort:{}?k=6",
    "arithmetic:{}?op=both&digits=2",
    "sums:{}?steps=3",
    "sums:{}?steps=3&mod=10&form=results",
    "countdown:{}?largest=9",
    "countdown:{}?numbers=4",
    "sudoku4:{}?holes=12",
    "sudoku4:{}?holes=5",
    "sudoku4_open:{}?holes=12",
]


def some(name, split, n=200, **more):
    name = name.format(split) + f"&n={n}" + "".join(f"&{k}={v}" for k, v in more.items())
    return builtin(name)


@pytest.mark.parametrize("name", VARIANTS)
def test_splits_are_disjoint_for_every_seed_and_style(name):
    parts = {split: [some(name, split, seed=s) for s in (0, 1)] for split in SPLITS}
    told = {split: {r.prompt for records in found for r in records} for split, found in parts.items()}
    assert not told["start"] & told["train"] and not told["train"] & told["eval"] and not told["start"] & told["eval"]
    for split, (first, second) in parts.items():
        assert len({r.prompt for r in first}) == len({r.id for r in first}) == 200
        assert {r.prompt for r in first} != {r.prompt for r in second}, split


def test_a_split_ignores_the_order_that_means_nothing():
    """Digits in another order, swapped operands, shuffled numbers stay in the split."""
    answers = {split: {r.answer for r in sorting.make(split, n=300, k=4)} for split in SPLITS}
    assert not answers["train"] & answers["eval"] and not answers["start"] & answers["eval"]
    pairs = {s: {tuple(sorted(re.findall(r"\d+", r.prompt))) for r in arithmetic.make(s, n=300)} for s in SPLITS}
    assert not pairs["train"] & pairs["eval"]
    sets = {s: {(*sorted(r.answer["numbers"]), r.answer["target"]) for r in countdown.make(s, n=300)} for s in SPLITS}
    assert not sets["train"] & sets["eval"]


def test_every_problem_has_exactly_one_split():
    shares = [split_of("sums", str(i)) for i in range(10_000)]
    assert abs(shares.count("eval") / 1e4 - 0.2) < 0.02
    assert abs(shares.count("train") / 1e4 - 0.4) < 0.02 and abs(shares.count("start") / 1e4 - 0.4) < 0.02


def test_the_records_are_these_on_every_machine():
    """Literals: a change of the generators would change published numbers."""
    assert [r.prompt for r in builtin("sort:eval?n=2")] == PINNED["sort"]
    assert [r.prompt for r in builtin("arithmetic:eval?n=2")] == PINNED["arithmetic"]
    assert [r.prompt for r in builtin("sums:eval?n=2")] == PINNED["sums"]
    assert [r.prompt for r in builtin("countdown:eval?n=2")] == PINNED["countdown"]
    assert [r.prompt for r in builtin("sudoku4:eval?n=2")] == PINNED["sudoku4"]


def test_another_process_makes_the_same_records():
    code = "from dlm.tasks import builtin; print([r.prompt for r in builtin('countdown:train?n=40')])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env={"PYTHONHASHSEED": "7"})
    assert done.stdout.strip() == str([r.prompt for r in builtin("countdown:train?n=40")]), done.stderr


@pytest.mark.parametrize("name", VARIANTS)
def test_fewer_records_are_the_first_of_more(name):
    assert some(name, "eval", 20) == some(name, "eval", 50)[:20]


@pytest.mark.parametrize("style", ["plain", "d1"])
@pytest.mark.parametrize("name", VARIANTS)
def test_the_demonstration_is_right_and_nothing_else_is(name, style):
    records = some(name, "train", 60, style=style)
    for one, other in zip(records, records[1:] + records[:1], strict=True):
        assert is_correct(one.response, one), one
        assert not is_correct("", one)
        if chance([one, other]) == {"accuracy": 0.5}:
            assert not is_correct(other.response, one), (one, other)


@pytest.mark.parametrize("name", VARIANTS)
def test_plain_records_use_the_known_characters_only(name):
    for record in some(name, "start", 100):
        assert set(record.prompt + record.response) <= set(CHARACTERS)


def test_sorting():
    record = sorting.make("train", n=1, k=7)[0]
    digits = record.prompt.removeprefix("sort ").removesuffix(">")
    assert record.answer == record.response == "".join(sorted(digits)) and len(digits) == 7


def test_arithmetic_has_both_signs():
    records = arithmetic.make("train", n=80, op="both", digits=2)
    for record in records:
        a, sign, b = re.fullmatch(r"(\d+)([+*])(\d+)=", record.prompt).groups()
        assert int(record.answer) == (int(a) + int(b) if sign == "+" else int(a) * int(b))
    assert {"+", "*"} == {c for r in records for c in r.prompt if c in "+*"}
    assert all("*" in r.prompt for r in arithmetic.make("train", n=20, op="mul"))


@pytest.mark.parametrize(("mod", "form"), [(0, "full"), (10, "full"), (7, "results"), (0, "results")])
def test_each_step_of_a_sum_starts_where_the_last_ended(mod, form):
    for record in sums.make("train", n=50, steps=5, mod=mod, form=form):
        numbers = [int(n) for n in re.findall(r"\d+", record.prompt.partition(" ")[0])]
        total, steps = numbers[0], []
        for number in numbers[1:]:
            before, total = total, (total + number) % mod if mod else total + number
            steps.append(f"{before}+{number}={total}" if form == "full" else str(total))
        assert record.response == ";".join(steps) and record.meta["steps"] == steps and record.answer == str(total)
        assert (f" mod {mod}=" in record.prompt) == bool(mod)


def test_sums_of_one_modulus_have_one_length():
    assert {len(r.response) for r in sums.make("train", n=100, steps=4, mod=10)} == {4 * 6 - 1}


@pytest.mark.parametrize("numbers", [2, 3, 5])
def test_countdown_is_solvable(numbers):
    for record in countdown.make("train", n=60, numbers=numbers, largest=30):
        given, target = record.answer["numbers"], record.answer["target"]
        assert len(given) == numbers and 1 <= target <= 99 and max(given) <= 30
        assert value(record.response) == Fraction(target)
        assert sorted(map(int, re.findall(r"\d+", record.response))) == sorted(given)


def test_there_are_288_grids_and_puzzles_have_one_solution():
    assert len(sudoku4.grids()) == len(set(sudoku4.grids())) == 288
    for grid in sudoku4.grids():
        rows = [grid[i : i + 4] for i in range(0, 16, 4)]
        boxes = [grid[i : i + 2] + grid[i + 4 : i + 6] for i in (0, 2, 8, 10)]
        assert all(sorted(part) == list("1234") for part in (*rows, *boxes, *map("".join, zip(*rows, strict=True))))
    for holes in (1, 8, 12):
        for record in sudoku4.make("train", n=30, holes=holes):
            assert record.answer["puzzle"].count("0") == holes
            assert sudoku4.solutions(record.answer["puzzle"]) == [record.answer["solution"]]
    assert len(sudoku4.solutions("0" * 16)) == 288 and sudoku4.solutions("11" + "0" * 14) == []


def test_an_open_puzzle_takes_any_of_its_solutions():
    records = sudoku4.make_open("train", n=60, holes=12)
    counts = [len(sudoku4.solutions(r.answer["puzzle"])) for r in records]
    assert min(counts) == 1 < max(counts)
    for record in records:
        right = set(sudoku4.solutions(record.answer["puzzle"]))
        assert record.response in right
        assert {g for g in sudoku4.grids() if is_correct(g, record)} == right
    assert {r.prompt for r in records}.isdisjoint(r.prompt for r in sudoku4.make_open("eval", n=60, holes=12))


def test_chance_of_open_puzzles_is_the_best_grid():
    records = sudoku4.make_open("eval", n=40, holes=13)
    best = max(sum(is_correct(grid, r) for r in records) for grid in sudoku4.grids())
    assert chance(records) == {"accuracy": best / 40}


@pytest.mark.parametrize("name", VARIANTS)
def test_the_reader_takes_them_back(tmp_path, name):
    """They are plain text records: prompt, answer, task."""
    records = some(name, "train", 20, style="d1")
    write_rows([row_of(r, tmp_path / "a.jsonl") for r in records], tmp_path / "a.jsonl")
    assert read_records(tmp_path / "a.jsonl")[0] == records


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("sort", "write SET:SPLIT"),
        ("sorted:train", "unknown embedded set 'sorted:train'; did you mean 'sort'"),
        ("sort:trian", "unknown split 'trian'; did you mean 'train'"),
        ("sort:train?kk=3", "unknown option 'kk'; did you mean 'k'"),
        ("sums:train?step=3", "unknown option 'step'; did you mean 'steps'"),
        ("sort:train?k=0", "k must be a whole number from 1 to 1000, got '0'"),
        ("sort:train?k=x", "k must be a whole number"),
        ("sort:train?k=²", "k must be a whole number"),
        ("sums:train?mod=1", "mod must be a whole number from 2 to 1000000000 or 0, got '1'"),
        ("sums:train?form=long", "form must be one of full, results, got 'long'"),
        ("sums:train?style=d2", "style must be one of plain, d1"),
        ("sums:train?n=0", "n must be a whole number from 1"),
        ("sums:train?seed=-1", "seed must be a whole number from 0"),
        ("sums:train?", "options are missing"),
        ("sums:train?n", "write each option once, as n=value"),
        ("sums:train?n=1&n=2", "write each option once"),
        ("sort:eval?k=1&n=50", "about 3 different problems in split eval, 50 are asked for"),
    ],
)
def test_mistakes_are_one_line(name, message):
    with pytest.raises(UserError) as caught:
        builtin(name)
    assert message in str(caught.value) and "\n" not in str(caught.value) and name in str(caught.value)


def test_mistakes_of_make():
    with pytest.raises(UserError, match="task sums: unknown option 'stepps'; did you mean 'steps'"):
        sums.make("train", n=1, stepps=3)
    with pytest.raises(UserError, match="task sums: steps must be a whole number"):
        sums.make("train", n=1, steps=True)
    with pytest.raises(UserError, match="unknown split 'test'"):
        sums.make("test", n=1)


def test_chance_is_the_best_constant_answer():
    def text(answer, task="sums"):
        return Record("r", task, "p", answer=answer)

    assert chance([text("1"), text("2"), text("1"), text("3")]) == {"accuracy": 0.5}
    assert chance([text("1"), text("1", "arithmetic")]) == {"accuracy": 1.0}
    goal = [{"numbers": [1, 2], "target": 3}, {"numbers": [2, 1], "target": 3}, {"numbers": [2, 1], "target": 2}]
    assert chance([text(a, "countdown") for a in goal]) == {"accuracy": pytest.approx(2 / 3)}
    assert chance([]) == {} and chance([text("1"), text([1], "detection")]) == {}
    assert chance(builtin("sudoku4:eval")) == {"accuracy": 7 / 512}


def test_all_sets_make_their_default_sizes():
    for name in SETS:
        assert [len(builtin(f"{name}:{split}")) for split in ("eval", "train")] == [512, 4000]


def test_nothing_here_loads_torch():
    code = (
        "import sys, dlm.tasks, dlm.tasks.convert, dlm.rewards.catalogue, dlm.rewards.correct;"
        "assert not {'torch', 'sympy', 'math_verify', 'datasets'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
