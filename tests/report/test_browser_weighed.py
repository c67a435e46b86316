"""Strips of frames and the heat line under tokens, in headless Chromium."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parent))
from stored_runs import EVIL
from test_browser import NARROW, WIDE, Page, browser, opened
from weighed_runs import SAID, write_weighed

from mmrl.report import write_report

__all__ = ["browser"]  # the fixture
CARD = ".sample[data-id=q0]"


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """one: a run; two: beside one whose samples hold no weights."""
    root = tmp_path_factory.mktemp("weighed")
    a, b = write_weighed(root / "first"), write_weighed(root / "second", seed=1, weights=False)
    return {name: write_report(runs, root / f"{name}.html") for name, runs in {"one": [a], "two": [a, b]}.items()}


@pytest.fixture
def at(browser: Any, pages: dict[str, Path], request: pytest.FixtureRequest) -> Iterator[Page]:
    with opened(browser, pages[getattr(request, "param", "one")]) as shown:
        yield shown


def heats(at: Page, side: int) -> list[str]:
    spans = at.all(f"{CARD} .weighed")[side].find_elements("css selector", "span")
    return [span.get_attribute("style").removeprefix("--heat: ").rstrip(";") for span in spans]


def test_before_and_after_have_a_line_under_each_token(at: Page) -> None:
    assert at.texts(f"{CARD} .who") == ["step 0", "step 40, changed"]
    told = [e.get_property("textContent") for e in at.all(f"{CARD} .weighed")]
    assert told == ["".join(t for t, _ in SAID[0][i]) for i in (0, 2)]
    assert heats(at, 0) == ["0%", "50%", "14%", "0%", "0%", "100%", "0%"]  # of 1.00 .. 1.70
    assert heats(at, 1) == ["0%", "29%", "100%", "0%", "0%", "50%", "0%"]
    at.one("body").send_keys("\ue012")  # left arrow
    assert heats(at, 1) == ["0%", "100%", "71%", "0%", "0%", "29%", "0%"]
    spans = at.all(f"{CARD} .weighed span")
    assert spans[5].rect["y"] > spans[3].rect["y"] + 10  # the line break between them breaks the line
    assert spans[1].get_attribute("title") == "weight 1.35"
    fills = [span.value_of_css_property("background-image") for span in spans[:7]]
    assert len(set(fills)) == 4 and fills[0] == fills[3]  # as strong as the weight


def test_the_numbers_stand_there_as_text_and_open_together(at: Page) -> None:
    at.one(f"{CARD} .weights summary").click()
    assert at.run("new Promise(done => setTimeout(() => done(true), 50))")  # the toggle event comes later
    assert at.texts(f"{CARD} .weights summary") == [
        "token weights: mean 1.16, most 1.70 at A", "token weights: mean 1.18, most 1.70 at comes"
    ]  # fmt: skip
    listed = at.texts(f"{CARD} .weights pre")
    assert listed[1].split("\n")[1:5] == ["  2  1.20  4", "  3  1.70  comes", "  4  1.00  </think>", '  5  1.00  "\\n"']
    at.one("body").send_keys("\ue012")
    assert len(at.all(f"{CARD} .weights pre")) == 2  # still open at the other step
    at.one(".sample[data-id=q1] .weights summary").click()
    assert at.texts(".sample[data-id=q1] .weights pre")[0].split("\n")[0].endswith("part of the next character")


def test_texts_of_models_and_records_stay_texts(at: Page) -> None:
    assert at.texts(".sample .truth") == ["true answer B", "true answer 4", "true answer " + EVIL]
    assert at.texts(".sample[data-id=q2] .weights summary")[0].endswith("1.70 at </script><script>window…")
    assert at.texts(".sample[data-id=q2] .weighed")[0] == EVIL + "A"
    assert at.count(".sample img[src=x]") == 0


def test_the_strip_stands_once_over_the_question(at: Page) -> None:
    assert at.count(f"{CARD} .strip") == 1 and at.count(f"{CARD} svg") == 0
    strip, card = at.one(f"{CARD} .strip"), at.one(CARD)
    prompt = at.one(f"{CARD} .prompt")
    assert strip.rect["y"] + strip.rect["height"] <= prompt.rect["y"]
    assert strip.rect["width"] / strip.rect["height"] == pytest.approx(398 / 32, rel=0.03)
    assert strip.rect["width"] > 0.85 * card.rect["width"]
    assert strip.get_attribute("alt") == "frames of q0, in order of time"


@pytest.mark.parametrize("at", ["two"], indirect=True)
def test_a_run_without_weights_has_plain_text_beside(at: Page) -> None:
    at.one("#beside").click()
    assert at.count(f"{CARD} .strip") == 1  # one clip for both runs
    assert len(at.all(f"{CARD} .sides > figure")) == 4 and len(at.all(f"{CARD} .weighed")) == 2
    assert at.texts(f"{CARD} .sides > figure > pre")[3] == "<think>4 comes</think>\nB"


@pytest.mark.parametrize("name", ["one", "two"])
@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("width", [WIDE, NARROW])
def test_nothing_overflows(browser: Any, pages: dict[str, Path], name: str, width: int, dark: bool) -> None:
    at = Page(browser, width, dark)
    browser.get(pages[name].as_uri())
    for details in at.all("details:not([open]) summary"):
        details.click()
    assert at.run("document.documentElement.scrollWidth") == width
    wide = "[...document.querySelectorAll('.strip, .weighed span, .heatkey, .weights')]"
    assert at.run(f"{wide}.filter(e => e.getBoundingClientRect().right > innerWidth).length") == 0
