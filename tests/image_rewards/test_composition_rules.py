"""GenEval's rules on literal detections."""

import pytest

from image_gen.rewards.composition_rules import Found, counted, read_spec, relations, shaped_score, strict_score
from mmrl.errors import UserError

LEFT, RIGHT, TOP, LOW = (0, 40, 20, 60), (80, 40, 100, 60), (40, 0, 60, 20), (40, 80, 60, 100)


def found(*boxes):
    return [Found(tuple(map(float, box)), 0.9 - 0.1 * i) for i, box in enumerate(boxes)]


def no_colours(name, objects):
    raise AssertionError("no colour is asked for")


def score(meta, objects, colours=None):
    """(strict, shaped). colours: box -> name."""
    spec = read_spec(meta, "record 'r'")

    def name(_, several):
        return [colours[tuple(map(int, one.box))] for one in several]

    pick = no_colours if colours is None else name
    return strict_score(objects, spec, pick), shaped_score(objects, spec, pick)


@pytest.mark.parametrize(
    "a, b, names",
    [
        (LEFT, RIGHT, {"left of"}),
        (RIGHT, LEFT, {"right of"}),
        (TOP, LOW, {"above"}),
        (LOW, TOP, {"below"}),
        (LEFT, TOP, {"left of", "below"}),  # 45 degrees: 0.707 - less margin - of the distance on both axes
        (RIGHT, LOW, {"right of", "above"}),
        (LEFT, LEFT, set()),
        ((0, 0, 20, 20), (4, 0, 24, 20), set()),  # 4 apart = 0.1 * (20 + 20): within the margin
        ((0, 0, 20, 20), (9, 0, 29, 20), {"left of"}),  # (9 - 4) / 9 > 0.5
        ((0, 0, 20, 20), (8, 0, 28, 20), set()),  # (8 - 4) / 8 = 0.5, not more
        ((0, 0, 4, 90), (4, 0, 8, 90), {"left of"}),  # (4 - 0.8) / 4: each axis has its own extents
        ((0, 0, 90, 4), (0, 4, 90, 8), {"above"}),
        ((0, 0, 20, 20), (30, 20, 50, 40), {"left of"}),  # (30 - 4) / 36.06 = 0.72, (20 - 4) / 36.06 = 0.44
    ],
)
def test_relative_positions(a, b, names):
    assert relations(a, b) == names
    opposite = {"left of": "right of", "right of": "left of", "above": "below", "below": "above"}
    assert relations(b, a) == {opposite[name] for name in names}


def test_the_margin_is_an_option():
    assert relations((0, 0, 20, 20), (4, 0, 24, 20), margin=0.0) == {"left of"}
    assert relations(LEFT, RIGHT, margin=0.9) == {"left of"}  # (80 - 36) / 80
    assert relations(LEFT, RIGHT, margin=1.0) == set()  # (80 - 40) / 80 is not more than 0.5


@pytest.mark.parametrize(
    "n, wanted, value", [(3, 3, 1), (2, 3, 2 / 3), (4, 3, 2 / 3), (0, 3, 0), (9, 3, 0), (0, 0, 1), (1, 0, 0)]
)
def test_counting(n, wanted, value):
    assert counted(n, wanted) == pytest.approx(value)


DOGS = found(LEFT, RIGHT, TOP)


@pytest.mark.parametrize(
    "meta, objects, strict, shaped",
    [
        # one and two objects
        ({"include": [{"class": "dog", "count": 1}]}, {"dog": DOGS[:1]}, 1, 1),
        ({"include": [{"class": "dog"}]}, {}, 0, 0),
        ({"include": [{"class": "dog"}]}, {"cat": DOGS}, 0, 0),
        ({"include": [{"class": "dog"}, {"class": "cat"}]}, {"dog": DOGS[:1], "cat": DOGS[1:2]}, 1, 1),
        ({"include": [{"class": "dog"}, {"class": "cat"}]}, {"dog": DOGS[:1]}, 0, 0.5),
        # more than asked: strict does not mind unless excluded; shaped does
        ({"include": [{"class": "dog", "count": 2}]}, {"dog": DOGS}, 1, 0.5),
        (
            {"include": [{"class": "dog", "count": 2}], "exclude": [{"class": "dog", "count": 3}]},
            {"dog": DOGS},
            0,
            0.5,
        ),
        (
            {"include": [{"class": "dog", "count": 2}], "exclude": [{"class": "dog", "count": 3}]},
            {"dog": DOGS[:2]},
            1,
            1,
        ),
        ({"include": [{"class": "dog", "count": 3}]}, {"dog": DOGS[:2]}, 0, 2 / 3),
        ({"include": [{"class": "dog"}], "exclude": [{"class": "cat", "count": 1}]}, {"dog": DOGS[:1]}, 1, 1),
        (
            {"include": [{"class": "dog"}], "exclude": [{"class": "cat", "count": 1}]},
            {"dog": DOGS[:1], "cat": DOGS[:1]},
            0,
            1,
        ),
        ({"include": [{"class": "dog", "count": 0}]}, {}, 1, 1),
        ({"include": [{"class": "dog", "count": 0}]}, {"dog": DOGS[:1]}, 1, 0),  # GenEval asks for "at least"
    ],
)
def test_objects_and_counts(meta, objects, strict, shaped):
    assert score(meta, objects) == (strict, pytest.approx(shaped))


COLOURED = {LEFT: "red", RIGHT: "red", TOP: "blue"}


@pytest.mark.parametrize(
    "clause, n, strict, shaped",
    [
        ({"class": "dog", "count": 2, "color": "red"}, 2, 1, 1),
        ({"class": "dog", "count": 2, "color": "blue"}, 2, 0, 0.5),  # count right, colour part 0
        ({"class": "dog", "count": 3, "color": "red"}, 3, 0, (1 + 2 / 3) / 2),
        ({"class": "dog", "count": 3, "color": "red"}, 2, 0, (2 / 3 + 0) / 2),  # wrong count: attribute part 0
        ({"class": "dog", "count": 2, "color": "red"}, 3, 1, (1 / 2 + 0) / 2),  # strict looks at the surest two
    ],
)
def test_colours(clause, n, strict, shaped):
    assert score({"include": [clause]}, {"dog": DOGS[:n]}, COLOURED) == (strict, pytest.approx(shaped))


@pytest.mark.parametrize(
    "relation, cats, strict, shaped",
    [
        ("left of", found(LEFT), 1, 1),
        ("left", found(LEFT), 1, 1),
        ("above", found(LEFT), 0, 2 / 3),  # both counts 1, position 0
        ("left of", found(LEFT, LOW), 1, (1 + 0 + 0) / 3),  # two cats: strict takes the surest
        ("left of", found(LOW, LEFT), 1, (1 + 0 + 0) / 3),  # LOW is below and left of RIGHT
        ("left of", [], 0, (1 + 0 + 0) / 3),
    ],
)
def test_positions(relation, cats, strict, shaped):
    meta = {"include": [{"class": "dog", "count": 1}, {"class": "cat", "count": 1, "position": [relation, 0]}]}
    assert score(meta, {"dog": found(RIGHT), "cat": cats}) == (strict, pytest.approx(shaped))


def test_every_object_must_stand_in_the_relation_and_the_target_must_be_right():
    meta = {"include": [{"class": "dog", "count": 2}, {"class": "cat", "count": 1, "position": ["left of", 0]}]}
    assert score(meta, {"dog": found(RIGHT, TOP), "cat": found(LEFT)}) == (1, 1)
    assert score(meta, {"dog": found(RIGHT, LEFT), "cat": found(LOW)}) == (0, pytest.approx(2 / 3))
    # one dog too few: no group to compare with
    assert score(meta, {"dog": found(RIGHT), "cat": found(LEFT)}) == (0, pytest.approx((0.5 + 1 + 0) / 3))


def test_a_wrong_colour_leaves_the_position_out():
    clause = {"class": "cat", "count": 1, "color": "blue", "position": ["left of", 0]}
    meta = {"include": [{"class": "dog", "count": 1}, clause]}
    objects = {"dog": found(RIGHT), "cat": found(LEFT)}
    assert score(meta, objects, COLOURED) == (0, pytest.approx((1 + 1 + 0) / 3))
    assert score(meta, objects, COLOURED | {LEFT: "blue"}) == (1, 1)
    meta["include"][1] |= {"count": 2}
    objects["cat"] = found(LEFT, TOP)  # red and blue: half of the colour is not enough for the position
    assert score(meta, objects, COLOURED) == (0, pytest.approx((1 + 1 + 0.5) / 3))


@pytest.mark.parametrize(
    "meta, words",
    [
        ({"include": [{"count": 1}]}, r"include\[0\] must name a class"),
        ({"include": "dog"}, "must be lists"),
        ({"include": [{"class": "dog", "colour": "red"}]}, "unknown key 'colour'; did you mean 'color'"),
        ({"include": [{"class": "dog", "color": "gren"}]}, "unknown color 'gren'; did you mean 'green'"),
        ({"include": [{"class": "dog", "count": 1.5}]}, "count must be a whole number"),
        ({"include": [{"class": "dog", "count": 0, "color": "red"}]}, "neither color nor position"),
        ({"include": [{"class": "a"}, {"class": "b", "position": ["next to", 0]}]}, "unknown position 'next to'"),
        ({"include": [{"class": "a", "position": ["left of", 0]}]}, "must point to an earlier clause"),
        ({"include": [{"class": "a"}], "exclude": [{"class": "b", "color": "red"}]}, "class and count only"),
    ],
)
def test_bad_metadata_is_named(meta, words):
    with pytest.raises(UserError, match=f"record 'r': .*{words}"):
        read_spec(meta, "record 'r'")


def test_other_records_are_not_meant():
    assert read_spec({}, "r") is None and read_spec({"tag": "x", "include": []}, "r") is None
    spec = read_spec({"tag": "position", "include": [{"class": "b"}, {"class": "a"}, {"class": "b"}]}, "r")
    assert spec.classes == ("b", "a") and spec.tag == "position"
