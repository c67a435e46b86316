from collections import Counter

import numpy as np
import pytest

from mmrl.data.digits import load_digits
from mmrl.errors import UserError
from video.embedded import clips, questions, records
from video.embedded.measures import constant_levels, typed_constant
from video.embedded.records import builtin, make_record, make_records


def test_train_and_eval_show_disjoint_digits() -> None:
    shown = {part: {d for r in make_records(part=part, n=400) for d in r.meta["digits"]} for part in ("train", "eval")}
    assert shown["eval"] <= set(load_digits("eval").index.tolist())
    assert shown["train"] <= set(load_digits("train").index.tolist())
    assert len(shown["eval"]) > 200 and not shown["train"] & shown["eval"]


def test_same_name_same_records_and_prefix() -> None:
    few, more = builtin("clips:train?n=5&seed=3"), builtin("clips:train?n=9&seed=3")
    assert [(r.id, r.prompt, r.answer, r.response) for r in few] == [
        (r.id, r.prompt, r.answer, r.response) for r in more[:5]
    ]
    for a, b in zip(few, more, strict=False):
        assert a.videos[0].frames_nhwc.tobytes() == b.videos[0].frames_nhwc.tobytes()
    other = builtin("clips:train?n=1&seed=4")[0].videos[0].frames_nhwc
    assert few[0].videos[0].frames_nhwc.tobytes() != other.tobytes()


def test_a_clip_is_eight_small_frames_at_two_a_second() -> None:
    (clip,) = make_record(part="eval", index=0).videos
    assert clip.frames_nhwc.shape == (8, 32, 48, 3) and clip.frames_nhwc.dtype == np.uint8
    assert clip.times_n.tolist() == [0, 0.5, 1, 1.5, 2, 2.5, 3, 3.5]
    assert (clip.seconds, clip.seconds_per_frame) == (4.0, 0.5)


# ---- what the frames show is what the lanes say --------------------------------------------------------------------


def _where(story: clips.Story, row: int) -> list[list[bool]]:
    """Frame by frame, whether each of the three places of a lane holds ink."""
    grey = story.clip.frames_nhwc.mean(-1)
    board = np.median(grey)
    lane = grey[:, row * 16 : (row + 1) * 16].reshape(8, 16, 3, 16)
    return (lane > board + 60).sum((1, 3)).__gt__(8).tolist()


@pytest.mark.parametrize("fate", clips.FATES)
def test_fates_are_seen_in_the_frames(fate: str) -> None:
    """Lane 1 of 2 holds the fate, lane 0 a digit that stays; read from the pixels alone."""
    rng = np.random.default_rng(5)
    for _ in range(20):
        story = clips.tell(load_digits("train"), ("stays", fate), rng)
        places = _where(story, 1)
        first, last = sum(places[0]), sum(places[-1])
        assert (first, last) == {
            "stays": (1, 1),
            "comes": (0, 1),
            "leaves": (1, 0),
            "meets": (2, 2),
            "passes": (2, 2),
        }[fate]
        if fate == "meets":  # side by side in the end, with a place between them before
            assert places[0] == [True, False, True] and places[-1] in ([True, True, False], [False, True, True])
        if fate == "passes":
            assert places[0] == places[-1] == [True, False, True]
            assert [False, True, False] in places, "the two are in the middle together"


def test_digits_that_pass_exchange_their_places() -> None:
    rng = np.random.default_rng(1)
    for _ in range(10):
        story = clips.tell(load_digits("train"), ("stays", "passes"), rng)
        lane = story.clip.frames_nhwc[:, 16:].mean(-1)
        left, right = lane[0, :, :16], lane[0, :, 32:]

        def far(a: np.ndarray, b: np.ndarray) -> float:
            return float(np.abs(a - b).mean())

        assert far(lane[-1, :, 32:], left) + far(lane[-1, :, :16], right) < 0.5 * far(left, right)
        a, b = story.lanes[1].digits
        assert story.lanes[1].read() == f"{a} passes {b}"


def test_digits_move() -> None:
    rng = np.random.default_rng(0)
    still = 0
    for _ in range(40):
        frames = clips.tell(load_digits("train"), ("stays", "stays"), rng).clip.frames_nhwc.astype(float)
        still += bool(np.abs(np.diff(frames, axis=0)).mean((1, 2, 3)).max() < 8)
    assert still < 13


# ---- questions -----------------------------------------------------------------------------------------------------


def _true_of(kind: str, digit: int, lanes: list[str]) -> bool:
    """Told from the lanes as text, apart from the code that makes the questions."""
    words = [lane.split() for lane in lanes]
    shown = [int(w) for lane in words for w in lane if w.isdigit()]
    mine = next((lane for lane in words if str(digit) in lane), [])
    if kind in ("seen", "never"):
        return (digit in shown) == (kind == "seen")
    if kind == "stay":
        return bool(mine) and mine[1] in ("stays", "meets", "passes")
    return bool(mine) and mine[1] == {"come": "comes", "leave": "leaves", "meet": "meets", "pass": "passes"}[kind]


def test_answers_are_right_by_construction() -> None:
    for record in make_records(part="eval", n=800):
        lines = record.prompt.split("\n")[1:-1]
        options = {line[0]: int(line[2:]) for line in lines}
        assert list(options) == list("ABCDE"[: len(lines)]) and len(lines) in (4, 5)
        assert len(set(options.values())) == len(options)
        right = [k for k, d in options.items() if _true_of(record.meta["type"], d, record.meta["lanes"])]
        assert record.answer == ",".join(right) and 1 <= len(right) <= min(3, len(options) - 2)
        assert record.prompt.endswith(questions.FORMAT)


def test_kinds_take_turns_and_many_answers_are_several_letters() -> None:
    made = make_records(part="eval", n=700)
    assert Counter(r.meta["type"] for r in made) == dict.fromkeys(questions.KINDS, 100)
    several = sum("," in r.answer for r in made) / len(made)
    assert 0.35 < several < 0.55


def test_constants_stay_low() -> None:
    """The published set, and what constants are worth in the long run, the kind of question known or not."""
    assert constant_levels(builtin("clips:eval"))["soft"] <= 0.28
    many = make_records(part="eval", n=2400)
    assert constant_levels(many)["soft"] <= 0.25 and typed_constant(many) <= 0.26


# ---- demonstrations ------------------------------------------------------------------------------------------------


def test_a_demonstration_word_for_word() -> None:
    record = make_record(part="train", index=4, demos="exact")
    assert record.meta["lanes"] == ["0 meets 2", "3 comes"] and record.answer == "B,C"
    looked_up = "A 1 is absent\nB 2 meets: yes\nC 0 meets: yes\nD 3 comes\nE 4 is absent"
    assert record.response == f"<think>0 meets, 2 meets, 3 comes\n{looked_up}</think><answer>B,C</answer>"


def test_hasty_demonstrations_leave_letters_out_and_nothing_else() -> None:
    exact, hasty = (builtin(f"clips:train?n=600&demos={d}") for d in ("exact", "hasty"))
    one = several = 0
    for a, b in zip(exact, hasty, strict=True):
        assert (a.prompt, a.answer, a.meta) == (b.prompt, b.answer, b.meta)
        said = str(b.response).split("<answer>")[1].removesuffix("</answer>").split(",")
        right = a.answer.split(",")
        assert said in (right, right[:1])
        assert str(a.response).split("<answer>")[0] == str(b.response).split("<answer>")[0]
        if len(right) > 1:
            several += 1
            one += len(said) == 1
    assert abs(one / several - records.HASTE["hasty"]) < 0.1


@pytest.mark.parametrize(
    ("name", "part"),
    [
        ("digits:train", "use clips:train or clips:eval"),
        ("clips:reward", "kept for reward models"),
        ("clips:trian", "did you mean 'train'"),
        ("clips:train?", "options are missing"),
        ("clips:train?count=3", "unknown option 'count'"),
        ("clips:train?n=0", "at least 1"),
        ("clips:train?n=2&n=3", "write each option once"),
        ("clips:train?kind=sen", "did you mean 'seen'"),
        ("clips:train?demos=lazy", "unknown demos 'lazy'"),
    ],
)
def test_bad_names_are_explained(name: str, part: str) -> None:
    with pytest.raises(UserError) as error:
        builtin(name)
    assert part in str(error.value) and name in str(error.value)
