"""Token weights and strips of frames on the page: what is kept, what is named, nothing for runs without them."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parent))
from stored_runs import write_run
from weighed_runs import SAID, STEPS, write_weighed

from mmrl.report import write_report


def page(*runs: Path) -> tuple[str, dict[str, Any]]:
    html = write_report(runs, runs[0] / "report.html").read_text()
    start = html.index("{", html.index('id="data"'))
    return html, json.JSONDecoder().raw_decode(html[start:])[0]


def test_tokens_and_weights_reach_the_page(tmp_path: Path) -> None:
    html, data = page(write_weighed(tmp_path / "run"))
    for number, sample in enumerate(data["samples"]):
        for at, answer in enumerate(sample["answers"]["0"]):
            assert answer["step"] == STEPS[at]
            assert answer["tokens"] == [[text, weight] for text, weight in SAID[number][at]]
    assert data["weights"] == [1.0, 1.7] and 'class="heatkey"' in html and "1.70</span>" in html
    assert "<script>window.hacked" not in html


@pytest.mark.parametrize("runs", ["text", "video"])
def test_a_run_without_weights_says_nothing_of_them(tmp_path: Path, runs: str) -> None:
    if runs == "text":
        run = write_run(tmp_path / "run", seed=0, gain=0.25)
    else:
        run = write_weighed(tmp_path / "run", weights=False)
    html, data = page(run)
    assert data["weights"] == [] and 'class="heatkey"' not in html
    assert not any("tokens" in a for s in data["samples"] for own in s["answers"].values() for a in own)


@pytest.mark.parametrize(
    "bad",
    [
        3,
        ["A"],
        [{"text": "A"}],
        [{"text": 1, "weight": 1.0}],
        [{"text": "A", "weight": "1"}],
        [{"text": "A", "weight": float("nan")}],
        [{"text": "A", "weight": -0.5}],
        [{"text": "A", "weight": True}],
    ],
)
def test_what_are_no_weights_is_named_not_shown(tmp_path: Path, bad: Any) -> None:
    file = (run := write_weighed(tmp_path / "run")) / "samples" / "step-000040.jsonl"
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    file.write_text("".join(json.dumps(row | {"tokens": bad}) + "\n" for row in rows))
    html, data = page(run)
    assert html.count("step-000040.jsonl: tokens are no list of a text and a weight") == 1
    answers = data["samples"][0]["answers"]["0"]
    assert ["tokens" in answer for answer in answers] == [True, True, False]
    assert answers[2]["output"] == "<think>4 comes</think>\nB"


def test_long_answers_leave_steps_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from mmrl.report import gallery

    run = write_weighed(tmp_path / "run")
    monkeypatch.setattr(gallery, "TRAJECTORY_BYTES", 1)
    html, data = page(run)
    assert [a["step"] for a in data["samples"][0]["answers"]["0"]] == [0, 40]
    assert "Of the steps with samples 2 a run are kept" in html


def test_a_strip_of_small_frames_stays_as_it_is_and_a_long_one_gets_twice_the_width(tmp_path: Path) -> None:
    import base64
    import io

    from PIL import Image

    from mmrl.report.pictures import Pictures

    def shown(size: tuple[int, int]) -> tuple[str, tuple[int, int]]:
        Image.effect_noise(size, 90).convert("RGB").save(tmp_path / "picture.png")
        pictures = Pictures(3)
        uri = pictures.uris[pictures.add(tmp_path / "picture.png")]
        assert pictures.sizes == [size]
        kind, _, code = uri.removeprefix("data:image/").partition(";base64,")
        return kind, Image.open(io.BytesIO(base64.b64decode(code))).size

    assert shown((398, 32)) == ("png", (398, 32))
    assert shown((1400, 160)) == ("webp", (1280, 146))
    assert shown((1400, 700)) == ("webp", (640, 320))
