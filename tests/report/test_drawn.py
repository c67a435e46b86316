"""The report of models that draw: which pictures go into the page, and what is said of judge and diversity."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parent))
from drawn_runs import EVIL, PROMPTS, write_drawn

from mmrl.report import gallery, verdict_lines, write_report


def page(*runs: Path) -> tuple[str, dict[str, Any]]:
    """The page, and what its script draws."""
    html = write_report(list(runs), runs[0] / "report.html").read_text()
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', html, flags=re.S)
    assert found
    return html, json.loads(found.group(1))


def test_every_step_has_its_own_pictures(tmp_path: Path) -> None:
    html, data = page(write_drawn(tmp_path / "run"))
    assert [s["prompt"] for s in data["samples"]] == PROMPTS and all(s["drawn"] for s in data["samples"])
    answers = data["samples"][0]["answers"]["0"]
    assert [a["step"] for a in answers] == [0, 20, 40]
    assert [len(a["pictures"]) for a in answers] == [4, 4, 4]
    assert len({n for a in answers for n in a["pictures"]}) == 12  # other pictures at every step
    assert [a["totals"] for a in answers] == [[0.25] * 4, [0.5] * 4, [0.75] * 4]
    assert {a["right"] for s in data["samples"] for a in s["answers"]["0"]} == {None}
    assert data["pictures"][0]["size"] == [8, 8] and data["pictures"][0]["uri"].startswith("data:image/png")
    shown = re.sub(r"(?s)<(script|style).*?</\1>", "", html)
    assert "better only" in shown and not re.search("wrong only|true box|answers", shown)
    assert EVIL not in html


def test_runs_that_begin_alike_share_their_first_pictures(tmp_path: Path) -> None:
    runs = [write_drawn(tmp_path / "a"), write_drawn(tmp_path / "b", seed=1)]
    _, data = page(*runs)
    first, second = (data["samples"][0]["answers"][i] for i in "01")
    assert first[0]["pictures"] == second[0]["pictures"] and first[1]["pictures"] != second[1]["pictures"]


def test_judge_and_diversity(tmp_path: Path) -> None:
    runs = [write_drawn(tmp_path / "a"), write_drawn(tmp_path / "b", seed=1, gain=0.375)]
    html, _ = page(*runs)
    said = (
        "Judge rose from 0.500 to 0.812 ± 0.088 over 2 seeds; the best constant picture reaches 0.125. "
        "Diversity is at 80 % of start."
    )
    assert said in html and verdict_lines(runs) == [("+0.312 ± 0.088", said)]
    row = html[html.index("<td>Diversity</td>") :]
    row = row[: row.index("</tr>")]
    assert row.count("80 % of start") == 3 and 'class="up"' not in row and 'class="down"' not in row
    titles = re.findall(r"<tr><td>(\w+)</td>", html)
    assert titles[:3] == ["Judge", "Reward", "Diversity"]


def test_curves_in_the_words_of_pictures(tmp_path: Path) -> None:
    _, data = page(write_drawn(tmp_path / "run"))
    notes = {chart["name"]: chart["note"] for chart in data["charts"]}
    assert notes["kl"].startswith("per denoising step") and notes["eval/judge"].startswith("mean of the rewards")


def test_large_pictures_are_thumbnails_of_few_steps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = write_drawn(tmp_path / "run", pictures=2, scale=64)
    monkeypatch.setattr(gallery, "DRAWN_BYTES", 400_000)  # 10 pictures a step, 30 kB each at most
    html, data = page(run)
    assert [a["step"] for a in data["samples"][0]["answers"]["0"]] == [0, 40]
    assert "Of the steps with samples 2 a run are kept" in html
    assert data["pictures"][0]["size"] == [512, 512] and data["pictures"][0]["uri"].startswith("data:image/webp")


def test_a_picture_that_is_gone_is_named(tmp_path: Path) -> None:
    run = write_drawn(tmp_path / "run")
    (run / "samples" / "images" / "0-1-20.png").unlink()
    html, data = page(run)
    assert "step-000020.jsonl: picture images/0-1-20.png is not in the run folder" in html
    answer = data["samples"][0]["answers"]["0"][1]
    assert len(answer["pictures"]) == 3 and answer["totals"] == []  # no reward under the wrong picture


def test_training_rollouts_are_named_by_their_prompts(tmp_path: Path) -> None:
    run = write_drawn(tmp_path / "run")
    row = {"id": "p7", "sample": 0, "output": "", "finished": True, "reward": {"digit": 0.5}}
    (run / "samples" / "rollouts-step-000040.jsonl").write_text(json.dumps(row) + "\n")
    html, _ = page(run)
    assert "<td>p7</td><td>digit 0.500</td>" in html and "<th>prompt</th>" in html
