"""The report page, opened and clicked through in headless Chromium. No training: the runs are written by the test."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parent))
from stored_runs import EVIL, write_runs

from mmrl.report import write_report

WIDE, NARROW = 1280, 390


def unusable() -> str:
    """Why no browser can be driven here; nothing when one can."""
    try:
        import selenium  # noqa: F401
    except ImportError:
        return "the package selenium is not installed (pip install -e '.[dev]')"
    missing = [name for name in ("chromium", "chromedriver") if not shutil.which(name)]
    return f"{' and '.join(missing)} not found (apt-get install chromium chromium-driver)" if missing else ""


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("report")
    return write_report(write_runs(folder), folder / "page.html")


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    reason = unusable()
    if reason:
        if os.environ.get("CI") == "true":
            pytest.fail(reason)
        pytest.skip(reason)
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    options.binary_location = str(shutil.which("chromium"))
    for argument in ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--hide-scrollbars"):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(str(shutil.which("chromedriver"))))
    yield driver
    driver.quit()


class Page:
    """The few things a test asks of the page."""

    def __init__(self, driver: Any, width: int, dark: bool = False) -> None:
        self.driver = driver
        size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 600}
        driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [scheme]})

    def run(self, script: str, *arguments: Any) -> Any:
        return self.driver.execute_script(f"return {script}", *arguments)

    def one(self, css: str) -> Any:
        return self.driver.find_element("css selector", css)

    def all(self, css: str) -> list[Any]:
        return [e for e in self.driver.find_elements("css selector", css) if e.is_displayed()]

    def texts(self, css: str) -> list[str]:
        return [e.text for e in self.all(css)]

    def choose(self, css: str, value: str) -> None:
        from selenium.webdriver.support.ui import Select

        Select(self.one(css)).select_by_value(value)

    def count(self, css: str) -> int:
        return int(self.run("document.querySelectorAll(arguments[0]).length", css))


@contextmanager
def opened(browser: Any, page: Path) -> Iterator[Page]:
    shown = Page(browser, WIDE)
    browser.get_log("browser")
    browser.get(page.as_uri())
    yield shown
    assert browser.get_log("browser") == []  # nothing in the console, whatever the test did
    assert shown.run("window.hacked === undefined")


@pytest.fixture
def at(browser: Any, page: Path) -> Iterator[Page]:
    with opened(browser, page) as shown:
        yield shown


def test_it_says_first_whether_it_learned(at: Page) -> None:
    first = at.texts(".verdict")
    assert [line.split("\n")[0] for line in first] == ["+0.188 ± 0.088", "+0.000", "+0.188"]
    assert "Mean IoU rose from 0.250 to 0.438 ± 0.088 over 2 seeds; the best constant answer reaches 0.062." in first[0]
    assert "KL is high " + EVIL in at.texts(".troubles td b")[0]  # markup of a run is shown as text


def test_the_step_slider_and_the_arrow_keys_change_the_samples(at: Page) -> None:
    from selenium.webdriver.common.keys import Keys

    box = ".sample[data-id=box]"
    assert at.texts(f"{box} pre") == ["here"] * 3 and at.texts(f"{box} .tag") == ["right"] * 3
    assert at.count(f"{box} rect.guess") == 3 and at.count(f"{box} rect.gold") == 3
    at.one("#step").send_keys(Keys.ARROW_LEFT)
    assert at.one("#step-value").text == "20"
    assert at.texts(f"{box} pre") == ["there"] * 3 and at.texts(f"{box} .tag") == ["wrong"] * 3
    guess = at.one(f"{box} rect.guess")
    assert [guess.get_attribute(k) for k in ("x", "y", "width", "height")] == ["40", "40", "20", "20"]
    at.one("body").send_keys(Keys.ARROW_LEFT)
    assert at.one("#step-value").text == "0" and at.texts(f"{box} pre") == ["nowhere"] * 3
    assert at.texts(f"{box} .scores")[0].split() == ["reward", "1.000", "accuracy", "0.000", "format", "1.000"]
    at.one("#find").send_keys("x" + Keys.ARROW_LEFT + Keys.ARROW_RIGHT)  # arrows belong to the field there
    assert at.one("#step-value").text == "0"


def test_before_beside_after(at: Page) -> None:
    at.one("#beside").click()
    captions = at.texts(".sample[data-id=box] .who")
    assert captions == [f"{run}, step {step}" for run in ("first", "second", "shuffled") for step in (0, 40)]
    assert at.texts(".sample[data-id=count] .who")[:2] == ["first, step 0", "first, step 40, same"]


def test_filters_and_sorting(at: Page) -> None:
    def ids() -> list[str]:
        return [e.get_attribute("data-id") for e in at.all(".sample")]

    assert ids() == ["box", "count", "evil"] and at.one("#count").text == "3 records"
    at.choose("#only", "wrong")
    assert ids() == ["evil"] and at.one("#count").text == "1 of 1 that pass, 3 records"
    at.choose("#only", "changed")
    assert ids() == ["box", "evil"]
    at.choose("#task", "detection")
    assert ids() == ["box"]
    at.choose("#only", "all")
    at.choose("#task", "")
    at.choose("#sort", "high")
    assert ids() == ["count", "box", "evil"]  # 2, 1.5 and 1
    at.choose("#sort", "gain")
    assert ids()[0] == "box"
    at.one("#find").send_keys("HOW many")
    assert ids() == ["count"]
    at.one("#find").send_keys("zzz")
    assert ids() == [] and at.texts(".empty") == ["No sample passes these filters."]


def test_a_run_switched_off_leaves_curves_samples_and_tables(at: Page) -> None:
    reward = ".chart[data-name=reward]"
    cells = "#all-metrics thead th"
    assert at.count(f"{reward} .smooth") == 3 and len(at.texts(".sample[data-id=box] figure")) == 3
    assert at.texts(cells) == ["metric", "chance", "first", "second", "shuffled", "grpo, mean of 2 seeds"]
    assert at.count(".chart[data-name=kl] .sign") == 2
    at.one("#legend input[data-run='2']").click()
    assert at.count(f"{reward} .smooth") == 2 and at.count(".chart[data-name=kl] .sign") == 1
    assert len(at.texts(".sample[data-id=box] figure")) == 2
    assert "shuffled" not in at.texts(cells)
    at.one("#legend input[data-run='2']").click()
    assert at.count(f"{reward} .smooth") == 3


def test_the_tables_against_the_first_run(at: Page) -> None:
    cells = at.texts("#all-metrics tbody tr:first-child td")
    assert cells[2:] == [
        "0.250 → 0.500\n+0.250",
        "0.250 → 0.375\n+0.125 · -0.125 to first",
        "0.250 → 0.250\n+0.000 · -0.250 to first",
        "0.438 ± 0.088\nchange +0.188 ± 0.088 (n 2)",
    ]
    at.one("#all-metrics summary").click()
    assert at.texts("#all-metrics td") == []
    assert at.texts(".settings td") == ["seed", "0", "1", "0", "train.control", "none", "none", "shuffled"]


def test_seeds_taken_together_smoothing_and_log_axis(at: Page) -> None:
    reward = ".chart[data-name=reward]"
    at.choose("#seeds", "range")
    assert at.count(f"{reward} .smooth") == 2 and at.count(f"{reward} .band") == 1
    assert "grpo: n 2" in at.one("#group-note").text
    before = at.one(f"{reward} .smooth").get_attribute("points")
    at.run("(e => { e.value = '0'; e.dispatchEvent(new Event('input')) })(document.getElementById('smooth'))")
    assert at.one("#smooth-value").text == "off"
    assert at.one(f"{reward} .smooth").get_attribute("points") != before
    at.one("#log").click()
    labels = [e.text for e in at.all(".chart[data-name=kl] text[text-anchor=end]")]
    assert labels == ["1e-5", "1e-4", "0.001", "0.01", "0.1", "1"]


def test_values_under_the_pointer(at: Page) -> None:
    from selenium.webdriver.common.action_chains import ActionChains

    chart = at.one(".chart[data-name='eval/mean_iou'] svg")
    at.run("arguments[0].scrollIntoView({block: 'center'})", chart)
    ActionChains(at.driver).move_to_element_with_offset(chart, chart.size["width"] // 2 - 14, 0).perform()
    (tip,) = at.texts(".chart[data-name='eval/mean_iou'] .tip")
    assert tip.split("\n") == ["step 40", "0.5 first", "0.375 second", "0.25 shuffled"]


def test_seeds_over_steps_that_differ_and_their_spread(at: Page) -> None:
    lines = [{"xs": [1, 2], "ys": [1.0, 4.0]}, {"xs": [1, 3], "ys": [3.0, 5.0]}]
    assert at.run("together(arguments[0], 'range')", lines) == {
        "xs": [1, 2, 3],
        "ys": [2, 4, 5],
        "low": [1, 4, 5],
        "high": [3, 4, 5],
    }
    assert at.run("together(arguments[0], 'std').high[0]", lines) == pytest.approx(2 + 2**0.5)


def test_ticks_are_round_and_span_the_values(at: Page) -> None:
    assert at.run("ticks(0, 1)") == [0, 0.25, 0.5, 0.75, 1.0]
    assert at.run("ticks(0.587, 0.66)") == [0.58, 0.6, 0.62, 0.64, 0.66]
    assert at.run("ticks(1, 300, {inside: true})") == [100, 200, 300]
    low, *_, high = at.run("ticks(2e-4, 2e-4)")
    assert low < 2e-4 < high
    assert at.run("ticks(3, 3)") == [2.6, 2.8, 3.0, 3.2, 3.4]
    assert at.run("ticks(0, 0)") == [0, 0.25, 0.5, 0.75, 1.0]
    assert at.run("logTicks(0.02, 3)") == [0.01, 0.1, 1, 10]
    assert at.run("logTicks(20, 90)") == [20, 50, 100]


def test_smoothing_keeps_a_constant_and_cuts_noise(at: Page) -> None:
    assert at.run("smoothed(Array(50).fill(2), 5)") == [2.0] * 50
    noisy = [1.0 if i % 2 else -1.0 for i in range(100)]
    soft = at.run("smoothed(arguments[0], 5)", noisy)
    assert max(abs(v) for v in soft[10:-10]) < 0.2
    assert at.run("smoothed(arguments[0], 0)", noisy) == noisy


def test_numbers_have_sensible_digits(at: Page) -> None:
    values = [0, 1.23456, 0.25, 12345.6, 1.25e-5, 3e7, -0.5]
    assert at.run("arguments[0].map(format)", values) == ["0", "1.235", "0.25", "12350", "1.25e-5", "3e7", "-0.5"]


@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("width", [WIDE, NARROW])
def test_nothing_overflows(browser: Any, page: Path, width: int, dark: bool) -> None:
    at = Page(browser, width, dark)
    browser.get(page.as_uri())
    for details in at.all("details:not([open]) summary"):
        details.click()
    assert at.run("document.documentElement.scrollWidth") == width
    wide = at.run(
        """[...document.querySelectorAll("body *")].filter(e => {
             const box = e.getBoundingClientRect();
             if (!box.width || e.closest(".scroll") && !e.matches(".scroll") || e.closest("svg")) return false;
             return box.right > innerWidth + 1 || box.left < -1;
           }).map(e => e.outerHTML.slice(0, 120))"""
    )
    assert wide == []
    ink, paper = at.run("(s => [s.color, s.backgroundColor])(getComputedStyle(document.body))")
    assert (ink, paper) == (
        ("rgb(232, 237, 243)", "rgb(16, 21, 27)") if dark else ("rgb(22, 32, 44)", "rgb(246, 247, 249)")
    )
