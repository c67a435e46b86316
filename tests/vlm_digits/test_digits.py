import numpy as np
import pytest

from mmrl.data.digits import LEVELS, PARTS, load_digits
from mmrl.errors import UserError


def test_parts_are_disjoint_and_complete() -> None:
    index = {part: set(load_digits(part).index.tolist()) for part in PARTS}
    assert sum(len(i) for i in index.values()) == 1797
    assert set().union(*index.values()) == set(range(1797))


def test_no_picture_stands_in_two_parts() -> None:
    """Equal pixels under two numbers would leak just the same."""
    seen = [picture.tobytes() for part in PARTS for picture in load_digits(part).images]
    assert len(set(seen)) == 1797


def test_the_split_never_moves() -> None:
    sizes = {part: len(load_digits(part)) for part in PARTS}
    assert sizes == {"train": 989, "reward": 269, "judge": 270, "eval": 269}
    assert load_digits("eval").index[:8].tolist() == EVAL_HEAD


EVAL_HEAD = [0, 13, 24, 25, 52, 54, 61, 77]


def test_values_and_classes() -> None:
    for part in PARTS:
        digits = load_digits(part)
        assert digits.images.shape == (len(digits), 8, 8)
        assert digits.images.dtype == np.uint8 and digits.images.min() == 0 and digits.images.max() == LEVELS - 1
        assert np.bincount(digits.labels).min() >= 26 and len(np.bincount(digits.labels)) == 10


def test_first_picture_is_the_known_zero() -> None:
    """Row 0 of the source, as printed in its documentation."""
    for part in PARTS:
        digits = load_digits(part)
        if 0 in digits.index:
            at = digits.index.tolist().index(0)
            assert digits.labels[at] == 0
            assert digits.images[at][0].tolist() == [0, 0, 5, 13, 9, 1, 0, 0]
            return
    pytest.fail("picture 0 is in no part")


def test_unchanged_by_callers() -> None:
    with pytest.raises(ValueError, match="read-only"):
        load_digits("train").images[0, 0, 0] = 1


def test_unknown_part() -> None:
    with pytest.raises(UserError, match="did you mean 'eval'"):
        load_digits("eva")
