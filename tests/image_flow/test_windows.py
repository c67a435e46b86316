"""Windows: which steps are stochastic and trained, from the training step, the options and the seed alone."""

from __future__ import annotations

from collections import Counter

import pytest

from image_gen.flow.windows import WINDOWS, all_steps, choose, drawn, first, sliding
from mmrl.errors import UserError


def starts(n: int, **options: object) -> list[int]:
    return [sliding(step=i, **options).start for i in range(n)]  # type: ignore[arg-type]


def test_all_but_the_last_step() -> None:
    window = all_steps(steps=10)
    assert window.trained == window.stochastic == tuple(range(9))
    assert window.mask().tolist() == [True] * 9 + [False]
    assert all_steps(steps=10, end=10).trained == tuple(range(10))


def test_a_random_part_is_trained() -> None:
    """DanceGRPO's 60 %: all stochastic, six of ten trained, others at other training steps, every step in its turn."""
    windows = [all_steps(steps=11, fraction=0.6, step=i, seed=3) for i in range(200)]
    assert all(w.stochastic == tuple(range(10)) and len(set(w.trained)) == 6 for w in windows)
    seen = Counter(s for w in windows for s in w.trained)
    assert set(seen) == set(range(10)) and min(seen.values()) > 80
    assert windows[5] == all_steps(steps=11, fraction=0.6, step=5, seed=3)
    assert len({w.trained for w in windows}) > 100
    assert len(all_steps(steps=11, fraction=0.01).trained) == 1
    assert len(all_steps(steps=101, fraction=0.29).trained) == 29  # although 0.29 * 100 < 29 in floating point


def test_first() -> None:
    assert first(steps=10, n=3).trained == (0, 1, 2)
    with pytest.raises(UserError, match="width must be between 1 and 9"):
        first(steps=10, n=10)


def test_sliding_moves_and_rolls_back() -> None:
    options = {"steps": 7, "width": 4, "iters_per_group": 2}
    assert starts(16, **options) == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5, 0, 0, 1, 1]
    assert starts(16, roll_back=False, **options)[-4:] == [5, 5, 5, 5]
    assert [len(sliding(step=2 * i, **options).trained) for i in range(6)] == [4, 4, 4, 3, 2, 1]  # type: ignore[arg-type]
    assert starts(4, overlap=False, steps=13, width=4, iters_per_group=1) == [0, 4, 8, 0]
    assert starts(3, stride=2, steps=13, width=4, iters_per_group=1) == [0, 2, 4]
    assert sliding(step=0, steps=25).trained == (0, 1, 2, 3)  # the published numbers
    assert [sliding(step=i, steps=25).start for i in (24, 25, 49, 50)] == [0, 1, 1, 2]


def test_sliding_over_every_step_is_flow_grpo() -> None:
    assert sliding(step=0, steps=10, width=9) == all_steps(steps=10)


def test_exponential_decay_of_the_stay() -> None:
    """iters 4, k = ln 2, after position 1: stays 4, 4, 2, 1, 1."""
    options = {"steps": 6, "width": 2, "iters_per_group": 4, "exp_decay": 0.6931471, "decay_after": 1}
    assert starts(14, **options) == [0] * 4 + [1] * 4 + [2] * 3 + [3] * 2 + [4]
    assert starts(16, roll_back=False, **options)[-2:] == [4, 4]
    assert starts(20, steps=6, width=2, iters_per_group=4, exp_decay=1e6)[:8] == [0, 0, 0, 0, 1, 2, 3, 4]


def test_drawn_covers_its_range_and_no_more() -> None:
    """Flow-GRPO-Fast: size 3 in (0, N/2) with N = 10 starts at 0, 1 or 2, each about as often."""
    seen = Counter(drawn(step=i, seed=0, steps=10, width=3, end=5).trained for i in range(600))
    assert set(seen) == {(0, 1, 2), (1, 2, 3), (2, 3, 4)}
    assert min(seen.values()) > 150
    assert {drawn(step=i, seed=0, steps=10, width=2, low=4, end=7).start for i in range(50)} == {4, 5}
    assert drawn(step=3, seed=0, steps=10, width=9).trained == all_steps(steps=10).trained


def test_the_draw_depends_on_step_and_seed_alone() -> None:
    def path(seed: int) -> list[int]:
        return [drawn(step=i, seed=seed, steps=20, width=2).start for i in range(30)]

    assert path(0) == path(0) and path(0) != path(1) and len(set(path(0))) > 5


@pytest.mark.parametrize(
    ("name", "options"), [("all", {}), ("first", {"n": 2}), ("sliding", {"width": 2}), ("random", {"width": 2})]
)
def test_choose(name: str, options: dict) -> None:
    window = choose(name=name, steps=6, step=4, seed=1, options=options)
    assert window == choose(name=name, steps=6, step=4, seed=1, options=options)
    assert set(window.trained) <= set(window.stochastic) <= set(range(5)) and window.trained
    with pytest.raises(UserError, match="has no option 'widths'"):
        choose(name=name, steps=6, step=4, seed=1, options={**options, "widths": 2})
    with pytest.raises(UserError, match="has no option 'step'"):
        choose(name=name, steps=6, step=4, seed=1, options={**options, "step": 2})


def test_bad_input() -> None:
    assert set(WINDOWS) == {"all", "first", "sliding", "random"}
    with pytest.raises(UserError, match="unknown window 'slide'"):
        choose(name="slide", steps=6, step=0, seed=0)
    with pytest.raises(UserError, match="needs the option 'n'"):
        choose(name="first", steps=6, step=0, seed=0)
    with pytest.raises(UserError, match="at least 2 sampling steps"):
        all_steps(steps=1)
    with pytest.raises(UserError, match="end must be"):
        all_steps(steps=6, end=7)
    with pytest.raises(UserError, match="fraction must be"):
        all_steps(steps=6, fraction=0.0)
    with pytest.raises(UserError, match="low must be"):
        drawn(step=0, seed=0, steps=6, width=1, low=5)
    for options in ({"width": 6}, {"iters_per_group": 0}, {"overlap": False, "stride": 3}, {"exp_decay": -1.0}):
        with pytest.raises(UserError, match="window: "):
            sliding(step=0, steps=6, **{"width": 2, **options})
    with pytest.raises(UserError, match="decay_after has no effect"):
        sliding(step=0, steps=6, width=2, decay_after=2)
