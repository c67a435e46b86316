"""The chart of accuracy against tokens per forward and the trajectories, in headless Chromium."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parent))
from masked_runs import EVIL, FRAMES, THRESHOLDS, write_masked
from test_browser import NARROW, WIDE, Page, browser, opened

from mmrl.report import write_report

__all__ = ["browser"]  # the fixture
CHART = "#frontier-chart"


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """one: a run; two: runs that begin alike; three: with one that has no curve before."""
    root = tmp_path_factory.mktemp("masked")
    a, b = write_masked(root / "<i>first"), write_masked(root / "second", seed=1, gain=0.5)
    c = write_masked(root / "third", seed=2, gain=-1.0, before={"accuracy": 0.5})
    groups = {"one": [a], "two": [a, b], "three": [a, b, c]}
    return {name: write_report(runs, root / f"{name}.html") for name, runs in groups.items()}


@pytest.fixture
def at(browser: Any, pages: dict[str, Path], request: pytest.FixtureRequest) -> Iterator[Page]:
    with opened(browser, pages[getattr(request, "param", "one")]) as shown:
        yield shown


def spots(at: Page, side: str) -> list[tuple[float, float]]:
    points = at.all(f"{CHART} .point.{side}")
    return [(float(p.get_attribute("cx")), float(p.get_attribute("cy"))) for p in points]


def test_points_lie_where_their_numbers_are(at: Page) -> None:
    before, after = spots(at, "before"), spots(at, "after")
    names = [p.get_attribute("data-label") for p in at.all(f"{CHART} .point")]
    assert names == [*THRESHOLDS, *THRESHOLDS]
    assert [x for x, _ in after] == sorted((x for x, _ in after), reverse=True)  # a higher threshold is slower
    scale = (after[0][0] - after[1][0]) / (7.5 - 6.0)
    assert before[0][0] - before[3][0] == pytest.approx(scale * (4.0 - 2.0), abs=0.3)
    assert before[0][1] - before[3][1] == pytest.approx((after[0][1] - after[3][1]) * 0.375 / 0.21875, abs=0.5)
    assert sorted(at.texts(f"{CHART} .threshold")) == sorted([*THRESHOLDS, *THRESHOLDS])  # none covers another here
    line = at.one(f"{CHART} .path.after").get_attribute("points")
    assert line == " ".join(f"{x:.1f},{y:.1f}" for x, y in after)


def test_a_point_tells_its_threshold(at: Page) -> None:
    from selenium.webdriver.common.action_chains import ActionChains

    point = at.all(f"{CHART} .point.after")[3]
    at.run("arguments[0].scrollIntoView({block: 'center'})", point)
    ActionChains(at.driver).move_to_element(point).perform()
    (tip,) = at.texts(f"{CHART} .tip")
    assert tip.split("\n") == ["after", "threshold 0.9", "accuracy 0.8438", "3.5 tokens per forward"]
    ActionChains(at.driver).move_to_element(at.one("#parallel h2")).perform()
    assert at.texts(f"{CHART} .tip") == []


@pytest.mark.parametrize("at", ["two"], indirect=True)
def test_runs_that_begin_alike_share_their_start(at: Page) -> None:
    assert (at.count(f"{CHART} .path.before"), at.count(f"{CHART} .path.after")) == (1, 2)
    assert at.one(f"{CHART} .path.before").get_attribute("stroke") == "var(--soft)"
    assert at.texts(f"{CHART} .aups li") == ["<i>first AUP 252.5 → 492.4 +95 %", "second AUP 252.5 → 492.4 +95 %"]
    at.one("#legend input[data-run='0']").click()
    strokes = [p.get_attribute("stroke") for p in at.all(f"{CHART} .path")]
    assert strokes == ["var(--s1)"] * 2 and at.texts(f"{CHART} .aups li") == ["second AUP 252.5 → 492.4 +95 %"]
    at.one("#legend input[data-run='1']").click()
    assert at.count(f"{CHART} .path") == 0 and at.texts(f"{CHART} svg text") == ["not measured in the runs shown"]


@pytest.mark.parametrize("at", ["three"], indirect=True)
def test_a_run_without_a_start(at: Page) -> None:
    assert (at.count(f"{CHART} .path.before"), at.count(f"{CHART} .path.after")) == (1, 3)
    assert at.texts(f"{CHART} .aups li")[2] == "third AUP – → 492.4"


def test_trajectories_are_folded_open_together_and_stay_open(at: Page) -> None:
    from selenium.webdriver.common.keys import Keys

    frames = ".sample[data-id=sort] .unmasked pre"
    assert at.texts(frames) == [] and at.texts(".sample[data-id=sort] .unmasked") == ["how it was unmasked"] * 2
    at.all(".sample[data-id=sort] .unmasked summary")[1].click()
    assert at.run("new Promise(done => setTimeout(() => done(true), 50))")  # the toggle event comes later
    assert at.texts(frames) == ["\n".join(FRAMES[:2]), "\n".join(FRAMES)]
    assert at.texts(".sample[data-id=evil] .unmasked pre") == []
    at.one("body").send_keys(Keys.ARROW_LEFT)
    assert at.one("#step-value").text == "20" and len(at.texts(frames)) == 2
    at.all(".sample[data-id=evil] .unmasked summary")[0].click()
    assert at.texts(".sample[data-id=evil] .unmasked pre")[0] == f"{EVIL}\n1/1  {EVIL}"


@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("width", [WIDE, NARROW])
def test_nothing_overflows(browser: Any, pages: dict[str, Path], width: int, dark: bool) -> None:
    at = Page(browser, width, dark)
    browser.get(pages["three"].as_uri())
    for details in at.all("details:not([open]) summary"):
        details.click()
    assert at.run("document.documentElement.scrollWidth") == width
    card, svg = at.one(CHART).rect, at.one(f"{CHART} svg").rect
    assert card["x"] >= 0 and card["x"] + card["width"] <= width and svg["height"] == pytest.approx(320, abs=1)
    inside = at.run(
        """[...document.querySelectorAll("#frontier-chart svg > *:not(.ring)")].every(e => {
             const box = e.getBoundingClientRect(), all = e.parentNode.getBoundingClientRect();
             const across = box.left >= all.left - 1 && box.right <= all.right + 1;
             return across && box.top >= all.top - 1 && box.bottom <= all.bottom + 1;
           })"""
    )
    assert inside
