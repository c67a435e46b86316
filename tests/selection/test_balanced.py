"""The balanced selector: even in every step, each record once a round, alike for equal seeds and after a resume."""

from __future__ import annotations

from collections import Counter

import pytest

from mmrl.data.records import Record
from mmrl.errors import UserError
from mmrl.selection.balanced import Balanced
from mmrl.selection.base import find
from mmrl.selection.request import Request

SIZES = {"colour": 2, "counting": 5, "position": 11}
RECORDS = [Record(f"{tag}-{i}", "image", f"{tag} {i}", meta={"tag": tag}) for tag, n in SIZES.items() for i in range(n)]


def make(prompts: int = 7, seed: int = 0, **options: object) -> Balanced:
    return Balanced(RECORDS, prompts=prompts, group=4, seed=seed, **options)  # type: ignore[arg-type]


def tags(requests: list[Request]) -> Counter[str]:
    return Counter(r.record.meta["tag"] for r in requests)


def ids(requests: list[Request]) -> list[str]:
    return [r.record.id for r in requests]


@pytest.mark.parametrize("prompts", [1, 2, 3, 7, 12])
def test_every_step_is_as_even_as_can_be_and_so_is_the_run(prompts: int) -> None:
    one, whole = make(prompts), Counter[str]()
    for step in range(9):
        asked = tags(one.plan(step))
        assert sum(asked.values()) == prompts
        assert max(asked.values()) - min(asked[tag] for tag in SIZES) <= 1
        whole += asked
    assert max(whole.values()) - min(whole.values()) <= 1


def test_refills_go_on_evenly() -> None:
    one = make(4)
    asked = tags(one.plan(0))
    for n in (1, 1, 3):
        asked += tags(one.refill(n))
        assert max(asked.values()) - min(asked.values()) <= 1
    assert asked == Counter(dict.fromkeys(SIZES, 3))


def test_records_of_a_value_come_once_a_round_and_count_their_samples() -> None:
    one = make(9)
    found = [r for step in range(4) for r in one.plan(step) if r.record.meta["tag"] == "counting"]
    assert len(found) == 12 and {r.n for r in found} == {4}
    for round_, part in enumerate((found[:5], found[5:10])):
        assert len(set(ids(part))) == 5 and {r.first_sample for r in part} == {4 * round_}
    assert ids(found[:5]) != ids(found[5:10])  # another order


def test_the_seed_decides() -> None:
    runs = [[i for step in range(5) for i in ids(make(5, seed).plan(step))] for seed in (0, 0, 1)]
    assert runs[0] == runs[1] != runs[2]


def test_a_resumed_run_goes_on_alike() -> None:
    one = make(5)
    one.plan(0), one.plan(1)
    state = one.state_dict()
    two = make(5)
    two.load_state_dict(state)
    assert [ids(one.plan(s)) for s in (2, 3)] == [ids(two.plan(s)) for s in (2, 3)]
    other = Balanced(RECORDS[:3], prompts=2, group=2, seed=0)
    with pytest.raises(UserError, match="resume with its data"):
        other.load_state_dict(state)


def test_without_shuffling_the_files_order_stays() -> None:
    one = make(3, shuffle=False)
    assert ids(one.plan(0)) + ids(one.plan(1)) == [
        "colour-0", "counting-0", "position-0", "colour-1", "counting-1", "position-1",
    ]  # fmt: skip


def test_fields_that_cannot_be_used() -> None:
    with pytest.raises(UserError, match=r"colour-0.*no field 'tga'.*'tag'"):
        make(by="tga")
    mixed = [*RECORDS, Record("bare", "image", "x")]
    with pytest.raises(UserError, match="'bare' has no field 'tag'.*the other records have it"):
        Balanced(mixed, prompts=2, group=2, seed=0)
    with pytest.raises(UserError, match="is a list"):
        Balanced([Record("a", "image", "x", meta={"tag": [1]})], prompts=2, group=2, seed=0)


def test_it_is_found_by_name_with_its_option() -> None:
    assert find("balanced", {"by": "tag"}) is Balanced
    with pytest.raises(UserError, match="no option 'bye'; did you mean 'by'"):
        find("balanced", {"bye": "tag"})
