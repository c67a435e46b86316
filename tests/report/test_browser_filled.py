"""Charts over decoding steps, of the schedule and of phases, and strips of canvases, in headless Chromium."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parent))
from filled_runs import COUNTS, JUDGE, T, write_filled
from test_browser import NARROW, WIDE, Page, browser, opened

from mmrl.report import write_report

__all__ = ["browser"]  # the fixture
JUDGED = "#decoding-judge"


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """one: a run; two: runs that begin alike; the second one's schedule looks at the canvas."""
    root = tmp_path_factory.mktemp("filled")
    a, b = write_filled(root / "<i>first"), write_filled(root / "second", seed=1, gain=0.0625, spread=0.1)
    return {name: write_report(runs, root / f"{name}.html") for name, runs in {"one": [a], "two": [a, b]}.items()}


@pytest.fixture
def at(browser: Any, pages: dict[str, Path], request: pytest.FixtureRequest) -> Iterator[Page]:
    with opened(browser, pages[getattr(request, "param", "one")]) as shown:
        yield shown


def spots(at: Page, css: str) -> list[tuple[float, float]]:
    return [(float(p.get_attribute("cx")), float(p.get_attribute("cy"))) for p in at.all(css)]


def test_step_counts_are_evenly_apart_and_heights_are_the_numbers(at: Page) -> None:
    after, before = spots(at, f"{JUDGED} .point.after"), spots(at, f"{JUDGED} .point.before")
    steps = [x for x, _ in after]
    assert [b - a for a, b in zip(steps, steps[1:])] == pytest.approx([steps[1] - steps[0]] * 3, abs=0.2)
    scale = (after[0][1] - after[1][1]) / (JUDGE["after"][1] - JUDGE["after"][0])
    assert before[0][1] - after[3][1] == pytest.approx(scale * (JUDGE["after"][3] - JUDGE["before"][0]), abs=0.6)
    labels = at.texts(f"{JUDGED} svg text")
    assert [label for label in labels if label in map(str, COUNTS)] == [str(k) for k in COUNTS]
    assert [at.count(f"{JUDGED} .path.{side}") for side in ("before", "before-base", "after-base", "after")] == [
        1,
        0,
        1,
        1,
    ]


def test_a_point_tells_its_numbers(at: Page) -> None:
    from selenium.webdriver.common.action_chains import ActionChains

    point = at.all(f"{JUDGED} .point.after-base")[2]
    at.run("arguments[0].scrollIntoView({block: 'center'})", point)
    ActionChains(at.driver).move_to_element(point).perform()
    assert at.texts(f"{JUDGED} .tip")[0].split("\n") == ["after, hand-made schedule", "8 decoding steps", "judge 0.625"]


def test_the_schedule_is_drawn(at: Page) -> None:
    for number in range(4):
        base, after = (at.all(f"#profile-{number} .point.{side}") for side in ("base", "after"))
        assert (len(base), len(after)) == (T, T) and at.count(f"#profile-{number} .path.before") == 0
        assert base[-1].get_attribute("cy") == after[-1].get_attribute("cy")  # the last step has no action
        assert base[0].get_attribute("cy") != after[0].get_attribute("cy")
    first, last = (float(at.all("#profile-0 .point.base")[i].get_attribute("cx")) for i in (0, -1))
    axis = {e.text: float(e.get_attribute("x")) for e in at.all("#profile-0 svg text") if e.text in ("0.5", "1")}
    assert last == pytest.approx(axis["1"], abs=0.6) and last - first == pytest.approx(
        (axis["1"] - axis["0.5"]) * 2 * (T - 1) / T, abs=1.5
    )


@pytest.mark.parametrize("at", ["two"], indirect=True)
def test_runs_share_the_start_and_the_hand_made_schedule(at: Page) -> None:
    strokes = [p.get_attribute("stroke") for p in at.all("#profile-1 .path")]
    assert strokes == ["var(--soft)", "var(--s0)", "var(--s1)"] and at.count("#profile-1 .band") == 1
    strokes = [p.get_attribute("stroke") for p in at.all(f"{JUDGED} .path")]
    assert strokes == ["var(--soft)", "var(--s0)", "var(--s1)", "var(--s0)", "var(--s1)"]
    at.one("#legend input[data-run='0']").click()
    assert [p.get_attribute("stroke") for p in at.all(f"{JUDGED} .path")] == ["var(--s1)"] * 3
    assert at.texts(".reached li") == ["second steps to the quality of the start 8 → 4"]
    assert len(at.all("#step-counts tbody tr")) == 0  # folded
    at.one("#step-counts summary").click()
    assert len(at.all("#step-counts tbody tr")) == len(COUNTS)


def test_phases_are_a_solid_and_a_dashed_line(at: Page) -> None:
    chart = ".chart[data-name=grad_norm]"
    assert [p.get_attribute("stroke-dasharray") for p in at.all(f"{chart} .smooth")] == ["none", "6 4"]
    assert at.texts(f"{chart} p") == ["before clipping; solid: tokens, dashed: schedule"]
    heights = [
        {float(y) for _, y in (pair.split(",") for pair in p.get_attribute("points").split())}
        for p in at.all(f"{chart} .smooth")
    ]
    assert min(heights[0]) > max(heights[1]) + 50  # no zigzag between a norm of 1 and one of 8
    assert at.count(".chart[data-name=reward] .smooth") == 1
    assert at.texts(".chart[data-name=reward] p") == ["mean over the rollouts of a step"]


@pytest.mark.parametrize("at", ["two"], indirect=True)
def test_seeds_are_taken_together_phase_by_phase(at: Page) -> None:
    at.choose("#seeds", "range")
    for name, count in (("lr", 2), ("reward", 1)):
        assert at.count(f".chart[data-name={name}] .smooth") == count == at.count(f".chart[data-name={name}] .band")


def test_strips_are_folded_stay_open_and_stand_under_the_large_picture(at: Page) -> None:
    card = ".sample[data-id=p0]"
    assert at.texts(f"{card} .unmasked") == ["how it was filled"] and at.all(f"{card} .unmasked img") == []
    at.one(f"{card} .unmasked summary").click()
    assert at.run("new Promise(done => setTimeout(() => done(true), 50))")  # the toggle event comes later
    assert at.texts(f"{card} .unmasked figcaption") == ["step 0", "step 40"]
    strips = at.all(f"{card} .unmasked img")
    assert len(strips) == 8 and all(e.rect["height"] > 20 for e in strips)
    assert strips[0].rect["width"] / strips[0].rect["height"] == pytest.approx(80 / 8, rel=0.05)
    at.one("body").send_keys("\ue012")  # left arrow
    assert at.texts(f"{card} .unmasked figcaption") == ["step 0", "step 20"]
    at.all(f"{card} .tile-of")[1].click()
    assert len(at.all("#zoom .filling img")) == 2
    at.one("#zoom button").click()


@pytest.mark.parametrize("name", ["one", "two"])
@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("width", [WIDE, NARROW])
def test_nothing_overflows(browser: Any, pages: dict[str, Path], name: str, width: int, dark: bool) -> None:
    at = Page(browser, width, dark)
    browser.get(pages[name].as_uri())
    for details in at.all("details:not([open]) summary"):
        details.click()
    assert at.run("document.documentElement.scrollWidth") == width
    inside = at.run(
        """[...document.querySelectorAll(".plots svg > *:not(.ring)")].filter(e => {
             const box = e.getBoundingClientRect(), all = e.parentNode.getBoundingClientRect();
             const across = box.left >= all.left - 1 && box.right <= all.right + 1;
             return !(across && box.top >= all.top - 1 && box.bottom <= all.bottom + 1);
           }).length"""
    )
    assert inside == 0
    strips = "[...document.querySelectorAll('.unmasked img')]"
    assert at.run(f"{strips}.filter(e => e.getBoundingClientRect().right > innerWidth).length") == 0
