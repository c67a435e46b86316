"""Difficulty-aware augmentation: which groups are sampled again, in which form, and what is remembered."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch

from mmrl.data.records import Record
from mmrl.errors import UserError
from mmrl.selection import hints
from mmrl.selection.base import Seen, find
from mmrl.selection.difficulty import AGAIN, TRACES, Difficulty
from mmrl.selection.request import Request

RECORDS = [Record(f"r{i}", "qa", f"question {i}", answer="B") for i in range(6)]
NAN = float("nan")
TRACE = "<think>The ball moves left. Then it stops. The answer is B. So it is B then.</think><answer>B</answer>"


def make(records: Sequence[Record] = RECORDS, **options: Any) -> Difficulty:
    given = {"threshold": 0.1, "reward_max": 1.0, "max_hint": 0.5, "max_noise": 0.4, **options}
    return Difficulty(records, prompts=2, group=4, seed=0, shuffle=False, **given)


def seen(requests: Sequence[Request], rewards: Sequence[Sequence[float]], outputs: Sequence[str] = ()) -> Seen:
    prompt = [at for at, own in enumerate(rewards) for _ in own]
    assert [len(own) for own in rewards] == [r.n for r in requests]
    return Seen(
        torch.tensor([r for own in rewards for r in own]),
        torch.tensor(prompt),
        outputs=list(outputs) or [TRACE] * len(prompt),
    )


def filled(selector: Difficulty, *means: float) -> Difficulty:
    state = selector.state_dict()
    selector.load_state_dict({**state, "means": list(means)})
    return selector


def step(selector: Difficulty, rewards: Sequence[Sequence[float]]) -> tuple[list[Request], list[Request], list[bool]]:
    """(the plan, what takes the place of the groups left out, rows kept)."""
    requests = selector.plan(0)
    keep = selector.keep_groups(requests, seen(requests, rewards))
    left = len({at for at, own in zip(seen(requests, rewards).prompt_n.tolist(), keep.tolist()) if not own})
    return requests, selector.refill(left) if left else [], keep.tolist()


def test_the_worked_numbers() -> None:
    """Buffer (1.2, .8, 1.0), rewards (0, 1, 0, 0): Delta = .75, hard; the other group is at the buffer mean."""
    selector = filled(make(), 1.2, 0.8, 1.0)
    requests, again, keep = step(selector, [[0, 1, 0, 0], [1, 1, 1, 1]])
    assert keep == [False] * 4 + [True] * 4
    (asked,) = again
    assert asked.record is requests[0].record and asked.n == 4 and asked.first_sample == TRACES
    assert asked.prompt_edit is not None and "answer is: B." in asked.prompt_edit
    assert selector.state_dict()["means"] == [1.2, 0.8, 1.0, 0.25, 1.0]


def test_a_trace_is_asked_for_once_and_becomes_a_hint() -> None:
    """Rows that saw the answer are left out; the best rewarded one gives the hint: half of level .75 of its words,
    without what says the answer. The next time the record is hard its trace is there."""
    selector = filled(make(), 1.0)
    requests, asked, _ = step(selector, [[0, 1, 0, 0], [1, 1, 1, 1]])
    outputs = ["bad", TRACE, "worse", "none"]
    keep = selector.keep_groups(asked, seen(asked, [[0, 1, 0.5, NAN]], outputs))
    assert keep.tolist() == [False] * 4
    (hinted,) = selector.refill(1)
    # 8 words stay: "The ball moves left. Then it stops."; ceil(.375 * 7) = 3 of 7
    assert hinted.prompt_edit == hints.HINT.format(part="The ball moves")
    assert (hinted.n, hinted.first_sample, hinted.record) == (4, AGAIN, requests[0].record)
    means = selector.state_dict()["means"]
    assert selector.keep_groups([hinted], seen([hinted], [[0, 0, 0, 0]])).all()
    assert selector.state_dict()["means"] == means == [1.0, 0.25, 1.0]  # neither traces nor hinted rewards enter
    for _ in range(2):
        step(selector, [[1] * 4, [1] * 4])
    back, again, _ = step(filled(selector, 1.0), [[0, 0, 0, 0], [1] * 4])
    assert back[0].record is requests[0].record
    assert [r.prompt_edit for r in again] == [hints.HINT.format(part="The ball moves left.")]  # level 1: 4 of 7


@pytest.mark.parametrize("rewards", [[0.25, 0.0, 0.2, 0.1], [NAN] * 4])
def test_a_trace_that_is_not_better_is_not_used(rewards: list[float]) -> None:
    """The best one must beat the group's mean: otherwise the group is sampled once more as it is."""
    selector = filled(make(), 1.0)
    _, asked, _ = step(selector, [[0, 1, 0, 0], [1, 1, 1, 1]])
    selector.keep_groups(asked, seen(asked, [rewards]))
    (plain,) = selector.refill(1)
    assert plain.prompt_edit is None and plain.first_sample == AGAIN and plain.sampling == {}
    assert selector.state_dict()["traces"] == {}


def test_easy_groups_get_noise_in_proportion() -> None:
    selector = filled(make(), 0.25)
    _, again, keep = step(selector, [[1, 1, 1, 1], [0.75, 0.5, 0.75, 1.0]])
    assert not any(keep)
    assert [r.sampling["frame_noise"] for r in again] == pytest.approx([0.4 * 0.75, 0.4 * 0.5])
    assert all(r.prompt_edit is None and r.first_sample == AGAIN for r in again)
    twice = filled(make(reward_max=0.25), 0.25)
    _, again, _ = step(twice, [[1, 1, 1, 1], [0.25] * 4])
    assert [r.sampling["frame_noise"] for r in again] == pytest.approx([0.4])  # the level ends at 1


def test_who_is_left_alone() -> None:
    """An empty buffer, the threshold itself, the other mode, no rewards, and hard groups nobody can hint."""
    assert step(make(), [[0, 0, 0, 0], [1, 1, 1, 1]])[2] == [True] * 8
    assert step(filled(make(threshold=0.5), 0.5), [[0] * 4, [1] * 4])[2] == [True] * 8
    assert step(filled(make(modes="hard"), 0.5), [[0] * 4, [1] * 4])[2] == [False] * 4 + [True] * 4
    assert step(filled(make(modes="easy"), 0.5), [[0] * 4, [1] * 4])[2] == [True] * 4 + [False] * 4
    assert step(filled(make(), 0.5), [[NAN] * 4, [1] * 4])[2] == [True] * 4 + [False] * 4
    assert step(filled(make(), 0.5), [[NAN, NAN, NAN, 0.5], [0.5] * 4])[2] == [True] * 8
    assert step(filled(make(traces=0), 0.5), [[0] * 4, [0.5] * 4])[2] == [True] * 8
    boxes = [Record(f"b{i}", "qa", "p", answer=[{"box": [0, 0, 1, 1]}]) for i in range(2)]
    assert step(filled(make(boxes), 0.5), [[0] * 4, [0.5] * 4])[2] == [True] * 8


def test_a_response_of_the_record_is_a_trace() -> None:
    records = [Record(f"r{i}", "qa", "p", answer="B", response=TRACE) for i in range(2)]
    _, again, _ = step(filled(make(records, traces=0), 1.0), [[0] * 4, [1] * 4])
    assert [r.prompt_edit for r in again] == [hints.HINT.format(part="The ball moves left.")]


def test_delta_falls_when_rewards_rise_and_follows_the_buffer() -> None:
    noise = []
    for own in (0.4, 0.6, 0.8):
        _, again, _ = step(filled(make(), 0.2), [[own] * 4, [0.2] * 4])
        noise += [r.sampling["frame_noise"] for r in again]
    assert noise == pytest.approx([0.08, 0.16, 0.24])
    fixed = filled(make(reference=0.2), 0.9, 0.9)
    _, again, _ = step(fixed, [[0.6] * 4, [0.2] * 4])
    assert [r.sampling["frame_noise"] for r in again] == pytest.approx([0.16])
    moving = make(window=2)
    for means in ((0.0, 0.0), (1.0, 1.0)):
        step(moving, [[m] * 4 for m in means])
    assert moving.state_dict()["means"] == [1.0, 1.0]


def test_the_reference_is_that_of_the_steps_before() -> None:
    """All groups of a step are compared with the same mean, whatever their order."""
    one, two = filled(make(), 0.5), filled(make(), 0.5)
    _, first, _ = step(one, [[0.9] * 4, [0.7] * 4])
    _, second, _ = step(two, [[0.7] * 4, [0.9] * 4])
    levels = [[r.sampling["frame_noise"] for r in again] for again in (first, second)]
    assert levels[0] == pytest.approx(levels[1][::-1]) and levels[0] == pytest.approx([0.16, 0.08])


def test_other_refills_are_fresh_records_and_stay() -> None:
    """Groups that somebody else dropped, or records that cannot be used, are replaced after the groups sampled again;
    a fresh record of a refill is not sampled twice."""
    selector = filled(make(), 0.25)
    requests = selector.plan(0)
    selector.keep_groups(requests, seen(requests, [[1] * 4, [0.25] * 4]))
    again = selector.refill(2)
    assert [r.record.id for r in again] == ["r0", "r2"] and again[1].sampling == {} and again[1].first_sample == 0
    assert selector.keep_groups(again, seen(again, [[0.9] * 4, [0.9] * 4])).all()
    assert selector.state_dict()["means"] == pytest.approx([0.25, 1.0, 0.25, 0.9])
    assert [r.record.id for r in selector.plan(1)] == ["r3", "r4"]


def test_state_is_resumed() -> None:
    selector = filled(make(), 1.0)
    _, asked, _ = step(selector, [[0, 1, 0, 0], [1] * 4])
    selector.keep_groups(asked, seen(asked, [[0, 1, 0, 0]]))
    selector.refill(1)
    other = make()
    other.load_state_dict(selector.state_dict())
    assert other.state_dict() == selector.state_dict()
    for _ in range(3):
        mine, theirs = (step(s, [[0.0] * 4, [1.0] * 4]) for s in (selector, other))
        assert mine == theirs


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"window": 0}, "window: must be a whole number of at least 1, got 0"),
        ({"traces": 1.5}, "traces: must be a whole number"),
        ({"max_hint": 1.5}, "max_hint: must be a number from 0 to 1, got 1.5"),
        ({"max_noise": -1}, "max_noise: must be a number from 0 on, got -1"),
        ({"reward_max": 0}, "reward_max: must be a number above 0, got 0"),
        ({"threshold": True}, "threshold: must be a number"),
        ({"reference": "mean"}, "reference: must be a number, got 'mean'"),
        ({"modes": "hrad"}, "modes: must be hard, easy or both, got 'hrad'"),
    ],
)
def test_options_that_make_no_sense(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        make(**options)
    with pytest.raises(UserError, match=message):
        Difficulty.check(options, columns=["soft"], correct=False)


def test_it_is_found_by_name() -> None:
    assert find("difficulty", {"window": 10}) is Difficulty
    with pytest.raises(UserError, match="has no option 'windo'; did you mean 'window'"):
        find("difficulty", {"windo": 10})


@pytest.mark.parametrize(
    ("output", "answer", "kept"),
    [
        (TRACE, "B", "The ball moves left. Then it stops."),
        ("A cat runs. I see 3 cats!\nSo 3.", 3, "A cat runs."),
        ("First B is shown. Then C. Before them D.", "B,C", "Before them D."),
        ("the Red Ball is hit. Redness grows.", "red ball", "Redness grows."),
        ("no tags <answer>left", "left", "no tags"),
        ("<think>open thought. The final ANSWER: x", "y", "open thought."),
        ("<answer>B</answer>", "B", ""),
        ("It is seen at once.", [1, 2], "It is seen at once."),
    ],
)
def test_reasoning_without_the_answer(output: str, answer: Any, kept: str) -> None:
    assert hints.reasoning(output, Record("r", "qa", "p", answer=answer)) == kept


LETTERED = {"options": ["(A) red", "B. blue", "C green"]}


@pytest.mark.parametrize(
    ("output", "kept"),
    [
        ("A ball enters first. It must be red and green.", "A ball enters first."),
        ("A ball enters. Options (A) and (C) fit. It is blue?", "A ball enters. It is blue?"),
        ("A ball enters. So A, C. B is out.", "A ball enters. B is out."),
        ("A ball enters. So A and C are right. I see C", "A ball enters."),
    ],
)
def test_reasoning_without_right_options(output: str, kept: str) -> None:
    record = Record("r", "choice", "p", answer="A,C", meta=LETTERED)
    assert hints.reasoning(output, record) == kept
    assert hints.reasoning(output, Record("r", "choice", "p", answer=["A", "C"], meta=LETTERED)) == kept


@pytest.mark.parametrize(
    "says",
    [
        *(
            "So A is right.",
            "It is A because of that.",
            "I choose A, then.",
            "Option A fits.",
            "A: red.",
            "A fits best.",
        ),
        *("So **A** it was.", "We pick 'A' here.", "(A) it was.", "Neither B, A nor C.", "A and C hold."),
    ],
)
def test_the_letter_a_is_told_from_the_article(says: str) -> None:
    record = Record("r", "choice", "p", answer="A", meta={})
    assert hints.reasoning(f"A ball enters. {says} A dog's toy.", record) == "A ball enters. A dog's toy."


def test_the_letter_i_is_told_from_the_pronoun() -> None:
    record = Record("r", "choice", "p", answer="I", meta={})
    kept = "I see a ball. Then I'd say it was red. I was sure."
    assert hints.reasoning(f"{kept} I is right. Option I it was. So it must be I then.", record) == kept


def test_hints_grow_with_their_share() -> None:
    words = "one two three four"
    parts = [hints.hint(words, share) for share in (0.0, 0.1, 0.25, 0.5, 1.0)]
    assert parts[0] is None and hints.hint("", 1.0) is None
    assert [len(p.removeprefix(hints.HINT.format(part="")).split()) for p in parts[1:] if p] == [1, 1, 2, 4]
