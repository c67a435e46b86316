import numpy as np
import pytest

from mmrl.config import Rewards
from mmrl.core.groups import total_reward
from mmrl.data.boxtext import parse_corners
from mmrl.data.digits import load_digits
from mmrl.errors import UserError
from mmrl.rewards.score import Scorer
from mmrl.vlm import scenes
from mmrl.vlm.scene_pictures import COORDINATES, SIDE, draw, norm1000


def test_train_and_eval_show_disjoint_digits() -> None:
    shown = {
        part: {o["digit"] for r in scenes.make_records(part=part, n=300) for o in r.meta["objects"]}
        for part in ("train", "eval")
    }
    assert shown["train"] and shown["eval"] and not shown["train"] & shown["eval"]
    assert shown["eval"] <= set(load_digits("eval").index.tolist())


def test_boxes_are_tight_and_apart() -> None:
    """Ink (dark) reaches all four sides of its box, and nothing dark lies outside the boxes."""
    rng = np.random.default_rng(0)
    for labels in ([3], [1, 7], [0, 8, 4]):
        scene = draw(load_digits("train"), labels, rng)
        grey = np.asarray(scene.picture.convert("L"), dtype=float)
        assert grey.shape == (SIDE, SIDE) and [d.label for d in scene.digits] == labels
        outside = np.ones_like(grey, dtype=bool)
        for digit in scene.digits:
            x1, y1, x2, y2 = digit.box
            ink = grey[y1:y2, x1:x2] < 185
            assert ink[0].any() and ink[-1].any() and ink[:, 0].any() and ink[:, -1].any()
            assert outside[y1:y2, x1:x2].all(), "two boxes overlap"
            outside[y1:y2, x1:x2] = False
        assert grey[outside].min() > 150


def test_same_name_same_records_and_prefix() -> None:
    few, more = scenes.builtin("digits:train?n=5&seed=3"), scenes.builtin("digits:train?n=9&seed=3")
    assert [(r.id, r.prompt, r.response) for r in few] == [(r.id, r.prompt, r.response) for r in more[:5]]
    assert few[2].images[0].tobytes() == more[2].images[0].tobytes()
    assert few[0].images[0].tobytes() != scenes.builtin("digits:train?n=1&seed=4")[0].images[0].tobytes()


def test_demonstrations_earn_the_full_reward() -> None:
    """Every component is at its best but the confidence, which is spread on purpose."""
    records = scenes.builtin("digits:train?n=120&demos=exact")
    scored = Scorer(Rewards()).score([str(r.response) for r in records], records, [{} for _ in records])
    assert not scored.failures
    best = {"iou": 1.0, "label": 1.0, "count": 1.0, "giou": 2.0, "format": 1.0}
    assert set(best) < set(scored.names)
    for name, value in best.items():
        column = scored.reward_nk[:, scored.names.index(name)]
        assert column[column.isfinite()].unique().tolist() == [value], name
    assert total_reward(reward_nk=scored.reward_nk, weight_k=scored.weight_k).isfinite().all()


def test_a_demonstration_word_for_word() -> None:
    record = next(r for r in scenes.builtin("digits:train?task=detection&n=20&demos=exact") if scenes.one_box(r))
    (wanted,) = [o for o in record.meta["objects"] if o["label"] == record.meta["category"]]
    read = []
    for o in sorted(record.meta["objects"], key=lambda o: o["box"]):
        left, _, right, _ = (round(v * SIDE / 1000) for v in o["box"])
        read.append(o["label"] + (f" at {COORDINATES[(left + right) // 2]}" if o is wanted else ""))
    head = f"<think>{', '.join(read)}</think><answer>[{{'Position': {wanted['box']}, 'Confidence': "
    assert str(record.response).startswith(head)
    assert record.answer == [{"Position": wanted["box"], "Confidence": 1.0}]
    assert f"category '{wanted['label']}'" in record.prompt


def test_hasty_demonstrations_differ_in_their_boxes_only() -> None:
    exact, hasty = (scenes.builtin(f"digits:train?task=grounding&n=60&demos={d}") for d in ("exact", "hasty"))
    outside = set()
    for a, b in zip(exact, hasty, strict=True):
        assert (a.id, a.prompt, a.answer, a.meta) == (b.id, b.prompt, b.answer, b.meta)
        assert a.images[0].tobytes() == b.images[0].tobytes()
        drawn = parse_corners(str(b.response).split("<answer>")[1])
        assert drawn is not None
        shift = [drawn[k] - b.answer[k] for k in range(4)]
        assert max(shift[:2]) <= 0 <= min(shift[2:])
        outside |= {round(abs(v) * SIDE / 1000) for v in shift}
    assert outside == set(range(scenes.LOOSE + 1))


def test_the_held_out_set() -> None:
    records = scenes.builtin("digits:eval")
    kinds = [scenes.kind(r) for r in records]
    assert {k: kinds.count(k) for k in set(kinds)} == scenes.HELD_OUT
    assert sum(map(scenes.one_box, records)) == 200
    assert len({r.id for r in records}) == len(records) == 320


def test_absent_and_double() -> None:
    records = scenes.builtin("digits:train?task=detection&n=80")
    for record in records:
        labels = [o["label"] for o in record.meta["objects"]]
        assert labels.count(record.meta["category"]) == len(record.answer) <= 2
        assert ("No Objects" in str(record.response)) == (record.answer == [])
    assert {len(r.answer) for r in records} == {0, 1, 2}


def test_grounding_names_one_digit() -> None:
    for record in scenes.builtin("digits:train?task=grounding&n=40"):
        first, second = [o["box"] for o in record.meta["objects"]]
        other = second if record.answer == first else first
        axis = 0 if "left" in record.prompt or "right" in record.prompt else 1
        smaller = record.answer[axis] + record.answer[axis + 2] < other[axis] + other[axis + 2]
        assert smaller == ("on the left" in record.prompt or "the upper" in record.prompt)


def test_coordinates() -> None:
    assert norm1000((0, 16, 32, 64)) == [0, 250, 500, 1000]
    assert len(set(COORDINATES)) == 65


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("digit:train", "unknown embedded set"),
        ("digits", "unknown embedded set"),
        ("digits:trian", "did you mean 'train'"),
        ("digits:judge", "kept for reward models"),
        ("digits:train?tsk=detection", "did you mean 'task'"),
        ("digits:train?task=detect", "did you mean 'detection'"),
        ("digits:train?demos=loose", "unknown demos"),
        ("digits:train?n=0", "at least 1"),
        ("digits:train?n=ten", "whole number"),
        ("digits:train?seed=-1", "whole number"),
        ("digits:train?n=1&n=2", "once"),
        ("digits:train?n", "n=value"),
        ("digits:train?", "missing"),
    ],
)
def test_bad_names(name: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        scenes.builtin(name)
