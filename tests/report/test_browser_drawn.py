"""The picture grid, opened and clicked through in headless Chromium. No training: the runs are written by the test."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parent))
from drawn_runs import PROMPTS, write_drawn
from test_browser import NARROW, WIDE, Page, browser, opened

from mmrl.report import write_report

__all__ = ["browser"]  # the fixture


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """one: a run; two: runs that begin alike; three: with one that does not; large: pictures of 512 pixels."""
    root = tmp_path_factory.mktemp("drawn")
    a, b, c = (write_drawn(root / n, seed=i, start=i == 2) for i, n in enumerate(("first", "second", "third")))
    large = write_drawn(root / "large", pictures=1, scale=64)
    groups = {"one": [a], "two": [a, b], "three": [a, b, c], "large": [large]}
    return {name: write_report(runs, root / f"{name}.html") for name, runs in groups.items()}


@pytest.fixture
def at(browser: Any, pages: dict[str, Path], request: pytest.FixtureRequest) -> Iterator[Page]:
    with opened(browser, pages[getattr(request, "param", "one")]) as shown:
        yield shown


SEVEN = ".sample[data-id=p0]"


def sources(at: Page, css: str) -> list[str]:
    return [str(e.get_attribute("src")) for e in at.all(f"{css} img")]


def test_before_beside_after_and_the_slider_chooses_after(at: Page) -> None:
    assert at.texts(".sample .prompt") == PROMPTS
    assert at.texts(f"{SEVEN} .at") == ["step 0", "step 40"]
    last = sources(at, SEVEN)
    assert len(last) == len(set(last)) == 8
    at.one("body").send_keys("\ue012")  # left arrow
    assert at.one("#step-value").text == "20" and at.texts(f"{SEVEN} .at") == ["step 0", "step 20"]
    now = sources(at, SEVEN)
    assert now[:4] == last[:4] and not set(now[4:]) & set(last)
    at.one("#beside").click()
    assert at.texts(f"{SEVEN} .at") == ["step 20"] and sources(at, SEVEN) == now[4:]


def test_rewards_are_captions(at: Page) -> None:
    first, last = at.texts(f"{SEVEN} .scores")
    assert first.split() == ["0.250", "digit", "0.250", "ink", "0.500"]
    assert last.split() == ["0.750", "+0.500", "digit", "0.750", "ink", "0.500"]
    assert at.texts(".sample[data-id=p4] .scores") == ["0.250", "0.750\n+0.500"]
    assert at.all(f"{SEVEN} .tile-of")[5].get_attribute("title") == "reward 0.750"


def test_small_pictures_are_enlarged_pixel_by_pixel(at: Page) -> None:
    size = "(s => [s.imageRendering, e.width, e.height, e.naturalWidth])(getComputedStyle(e))"
    assert at.run(f"(e => {size})(document.querySelector('.tile-of img'))") == ["pixelated", 72, 72, 8]


@pytest.mark.parametrize("at", ["large"], indirect=True)
def test_large_pictures_are_thumbnails_that_open(at: Page) -> None:
    size = "(s => [s.imageRendering, e.width, e.naturalWidth])(getComputedStyle(e))"
    assert at.run(f"(e => {size})(document.querySelector('.tile-of img'))") == ["auto", 240, 384]
    assert at.all("#zoom") == []
    at.all(f"{SEVEN} .tile-of")[1].click()
    assert at.texts("#zoom .asked") == ["a seven"]
    assert at.texts("#zoom figcaption") == ["step 0, reward 0.250", "step 40, reward 0.750"]
    assert at.run("document.querySelector('#zoom img').width") == 384
    at.one("#zoom").send_keys("\ue012")  # the slider goes on below it
    assert at.texts("#zoom figcaption") == ["step 0, reward 0.250", "step 20, reward 0.500"]
    at.one("#zoom button").click()
    assert at.all("#zoom") == []


def test_filters_and_sorting(at: Page) -> None:
    def ids() -> list[str]:
        return [e.get_attribute("data-id") for e in at.all(".sample")]

    at.one("body").send_keys("\ue012")
    at.choose("#only", "better")
    assert ids() == ["p0", "p1", "p2", "p3", "p4"]
    at.one("body").send_keys("\ue014")
    assert ids() == ["p0", "p1", "p2", "p4"]  # the three went up and came down again
    at.choose("#only", "changed")
    at.choose("#sort", "low")
    assert ids()[0] == "p3"
    at.one("#find").send_keys("SEVEN")
    assert ids() == ["p0"]


@pytest.mark.parametrize("at", ["two", "three"], indirect=True)
def test_runs_beside_one_another(at: Page) -> None:
    three = at.count("#legend input") == 3
    names = [e.get_attribute("title") for e in at.all(f"{SEVEN} .who")]
    assert names == (
        ["first", "first", "second", "second", "third", "third"] if three else ["all runs", "first", "second"]
    )
    assert at.texts(f"{SEVEN} .at") == (["step 0", "step 40"] * 3 if three else ["step 0", "step 40", "step 40"])
    at.one("#legend input[data-run='1']").click()
    assert "second" not in [e.get_attribute("title") for e in at.all(f"{SEVEN} .who")]


@pytest.mark.parametrize("name", ["one", "three", "large"])
@pytest.mark.parametrize("width", [WIDE, NARROW])
def test_nothing_overflows(browser: Any, pages: dict[str, Path], name: str, width: int) -> None:
    at = Page(browser, width)
    browser.get(pages[name].as_uri())
    assert at.run("document.documentElement.scrollWidth") == width
    outside = (
        "[...document.querySelectorAll('.drawn *')].filter(e => e.getBoundingClientRect().right > innerWidth).length"
    )
    assert at.run(outside) == 0
