import dataclasses

import pytest

from mmrl.data.records import Record
from mmrl.errors import UserError
from video.embedded.measures import (
    blinded,
    by_type,
    constant_by_type,
    constant_levels,
    exact_and_soft,
    typed_constant,
)
from video.embedded.records import make_records


def _record(i: int, answer: str, kind: str = "x", videos: tuple[str, ...] | None = None) -> Record:
    videos = (f"{i}.mp4",) if videos is None else videos
    return Record(id=str(i), task="choice", prompt="?", videos=videos, answer=answer, meta={"type": kind})


def _say(*letters: str) -> list[str]:
    return [f"<think>so</think><answer>{one}</answer>" for one in letters]


def test_soft_and_exact_of_the_worked_example() -> None:
    """G = {A, C, D}: {A} 1/3, {A, C} 2/3, all 1, {A, B} 0, nothing 0."""
    records = [_record(i, "A,C,D") for i in range(5)]
    found = exact_and_soft(_say("A", "C, A", "A,C,D", "A,B", ""), records)
    assert found["soft"] == pytest.approx((1 / 3 + 2 / 3 + 1) / 5) and found["exact"] == 1 / 5


def test_by_type_and_by_the_number_of_right_letters() -> None:
    records = [_record(0, "A", "p"), _record(1, "A,B", "p"), _record(2, "B", "q")]
    found = by_type(_say("A", "A", "A"), records)
    assert {k: (v["exact"], v["soft"]) for k, v in found.items()} == {
        "p": (0.5, 0.75),
        "q": (0.0, 0.0),
        "single": (0.5, 0.5),
        "multiple": (0.0, 0.5),
    }


def test_the_best_constant() -> None:
    records = [_record(0, "A"), _record(1, "A,B"), _record(2, "A,B,C"), _record(3, "D")]
    levels = constant_levels(records)
    assert levels["soft"] == levels["blind_soft"] == pytest.approx((1 + 1 / 2 + 1 / 3) / 4)  # "A"
    assert levels["exact"] == 0.25
    assert constant_levels(records[1:3])["soft"] == pytest.approx((1 + 2 / 3) / 2)  # "A,B"
    kinds = [_record(0, "A", "p"), _record(1, "B", "q")]
    assert constant_levels(kinds)["soft"] == 0.5 and typed_constant(kinds) == 1.0


def test_blinded_moves_every_clip_once_and_nothing_else() -> None:
    records = make_records(part="eval", n=40)
    moved = blinded(records)
    assert [dataclasses.replace(m, videos=r.videos) for m, r in zip(moved, records, strict=True)] == records
    clips = [id(m.videos[0]) for m in moved]
    assert sorted(clips) == sorted(id(r.videos[0]) for r in records)
    assert all(c != id(r.videos[0]) for c, r in zip(clips, records, strict=True))
    assert [id(m.videos[0]) for m in blinded(records)] == clips
    assert [id(m.videos[0]) for m in blinded(records, seed=1)] != clips


def test_blinded_never_gives_a_record_its_own_clip_back() -> None:
    """Many questions about one clip; records with two clips stay among themselves."""
    same = [_record(i, "A", videos=("a.mp4",)) for i in range(6)]
    records = [*same, _record(6, "A"), _record(7, "A", videos=("p", "q")), _record(8, "A", videos=("r", "s"))]
    moved = blinded(records)
    assert all(m.videos != r.videos and len(m.videos) == len(r.videos) for m, r in zip(moved, records, strict=True))
    with pytest.raises(UserError, match="no other record has other clips"):
        blinded(same)


def test_no_records() -> None:
    for measure in (constant_levels, lambda records: exact_and_soft([], records)):
        with pytest.raises(UserError, match="no records"):
            measure([])


def test_the_constant_of_a_kind_is_chosen_for_it_alone() -> None:
    records = [
        Record(str(i), "choice", "?", (), answer=answer, meta={"type": kind})
        for i, (kind, answer) in enumerate([("x", "A"), ("x", "A,B"), ("y", "C"), ("y", "C")])
    ]
    found = constant_by_type(records)
    assert found["x"] == {"exact": 0.5, "soft": 0.75} and found["y"] == {"exact": 1.0, "soft": 1.0}
    assert found["multiple"] == {"exact": 1.0, "soft": 1.0} and found["single"]["exact"] == 2 / 3
