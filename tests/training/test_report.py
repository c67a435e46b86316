"""The report page: complete, self-contained, and safe with whatever a model writes."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from markupsafe import escape
from PIL import Image

from mmrl.errors import UserError
from mmrl.training import report_charts
from mmrl.training.report import write_report

EVIL = "<script>alert(1)</script><img src=x onerror=alert(2)>"


def make_run(folder: Path, *, seed: int = 0, steps: int = 60, gain: float = 0.125, **summary: Any) -> Path:
    samples = folder / "samples"
    (samples / "images").mkdir(parents=True)
    rows = [{"step": 0, "eval/mean_iou": 0.5}]
    rows += [{"step": s, "reward": s / steps, "kl": 0.01, "loss": None} for s in range(1, steps + 1)]
    rows[10]["warnings"] = [f"entropy is low {EVIL}"]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    body = {
        "family": "vlm",
        "recipe": "visual-rft",
        "seed": seed,
        "chance": {"mean_iou": 0.0625},
        "before": {"mean_iou": 0.5, "acc_50": 0.25},
        "after": {"mean_iou": 0.5 + gain, "acc_50": 0.5},
        "steps": steps,
        "seconds": 12.4,
        **summary,
    }
    (folder / "summary.json").write_text(json.dumps(body))
    (folder / "config.yaml").write_text("family: vlm\nrecipe: visual-rft\n")
    Image.new("RGB", (64, 48), "white").save(samples / "images" / "000.png")
    for step, box in ((0, [1, 2, 11, 22]), (steps, [3, 4, 13, 24])):
        line = {
            "id": "r0",
            "prompt": EVIL,
            "output": EVIL,
            "image": "images/000.png",
            "boxes": [box],
            "gold": [[5, 6, 15, 26]],
            "reward": {"iou": 0.5},
        }
        (samples / f"step-{step:06d}.jsonl").write_text(json.dumps(line) + "\n")
    return folder


def page(*runs: Path) -> str:
    out = runs[0] / "report.html"
    assert write_report(list(runs), out) == out
    return out.read_text()


def test_one_run(tmp_path: Path) -> None:
    html = page(make_run(tmp_path / "run"))
    for text in ("0.500 →", "0.625", "+0.125", "0.062", "seed 0", "60 steps", "12 s", "recipe: visual-rft"):
        assert text in html, text
    assert "before (step 0)" in html and "after (step 60)" in html
    assert html.count('class="guess" x="') == 2 and html.count('class="gold" x="') == 2
    assert '<rect class="guess" x="3" y="4" width="10" height="20"/>' in html
    assert '<rect class="gold" x="5" y="6" width="10" height="20"/>' in html


def test_training_rollouts_are_listed(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    row = {"id": "t", "sample": 0, "output": "<b>seven</b>", "finished": False, "reward": {"iou": 0.25}}
    (run / "samples" / "rollouts-step-000060.jsonl").write_text(json.dumps(row) + "\n")
    html = page(run)
    assert "Training rollouts of step 60" in html
    assert "&lt;b&gt;seven&lt;/b&gt; <i>(cut off)</i>" in html and "iou 0.250" in html


def test_nothing_is_loaded_from_elsewhere_and_model_text_stays_text(tmp_path: Path) -> None:
    html = page(make_run(tmp_path / "run"))
    assert "<script>alert" not in html and "<img src=x" not in html
    assert html.count("&lt;script&gt;alert(1)") == 4  # warning, prompt, two outputs
    own = html.replace(str(escape(EVIL)), "")
    addresses = re.findall(r'(?:src|href|url)\s*[=(]\s*["\']?([^"\')\s>]+)', own)
    assert addresses and all(a.startswith("data:image/png;base64,") for a in addresses)
    assert "default-src 'none'" in html


def test_several_runs(tmp_path: Path) -> None:
    html = page(make_run(tmp_path / "a"), make_run(tmp_path / "b", seed=1, gain=0.25))
    assert "2 runs side by side" in html
    assert "+0.188 ± 0.088" in html  # mean and deviation of 0.125 and 0.25
    reward = html[html.index("<h3>Reward</h3>") :]
    assert reward[: reward.index("</section>")].count('class="smooth"') == 2


def test_no_mean_over_different_methods(tmp_path: Path) -> None:
    html = page(make_run(tmp_path / "a"), make_run(tmp_path / "b", control="shuffled"))
    assert "±" not in html.split("<tbody>")[1].split("</tbody>")[0]
    assert "control: shuffled" in html


def test_an_unfinished_run_says_so(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    (run / "summary.json").unlink()
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"step": 61, "rew')
    html = page(run)
    assert "the run has not finished" in html and "is cut off" in html
    assert "Before and after" not in html


def test_a_missing_or_foreign_picture_is_named_not_shown(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    Image.new("RGB", (4, 4)).save(tmp_path / "secret.png")
    file = run / "samples" / "step-000060.jsonl"
    row = json.loads(file.read_text())
    file.write_text(json.dumps({**row, "image": "../../secret.png"}) + "\n")
    html = page(run)
    assert "../../secret.png is not in the run folder" in html
    assert html.count("data:image/png") == 1


@pytest.mark.parametrize("case", ["missing", "empty", "broken"])
def test_bad_folders(tmp_path: Path, case: str) -> None:
    run = tmp_path / "run"
    if case != "missing":
        run.mkdir()
    if case == "broken":
        (run / "metrics.jsonl").write_text('{"step": 1}\n{oops\n{"step": 3}\n')
    with pytest.raises(UserError, match="line 2" if case == "broken" else "run"):
        write_report([run], tmp_path / "out.html")


def test_ticks_are_round_and_span_the_values() -> None:
    assert report_charts.ticks(0.0, 1.0) == [0, 0.25, 0.5, 0.75, 1.0]
    assert report_charts.ticks(0.587, 0.66) == [0.58, 0.6, 0.62, 0.64, 0.66]
    assert report_charts.ticks(1, 300, inside=True) == [100, 200, 300]
    low, *_, high = report_charts.ticks(2e-4, 2e-4)
    assert low < 2e-4 < high


def test_thinning_keeps_the_ends_and_the_mean() -> None:
    points = [(float(i), float(i)) for i in range(1001)]
    thin = report_charts.thinned(points, 100)
    assert len(thin) == 100
    assert (thin[0][0], thin[-1][0]) == (0.0, 1000.0)
    assert sum(y for _, y in thin) / 100 == pytest.approx(500, rel=0.01)


def test_smoothing_keeps_a_constant_and_cuts_noise() -> None:
    assert report_charts.smoothed([2.0] * 50) == [2.0] * 50
    noisy = [1.0 if i % 2 else -1.0 for i in range(100)]
    assert max(abs(v) for v in report_charts.smoothed(noisy)[10:-10]) < 0.2


def test_values_that_are_no_numbers_are_left_out() -> None:
    rows = [{"step": 1, "a": float("nan"), "b": None, "c": True, "d": "x", "e": 2}]
    assert [c.name for c in report_charts.charts([rows])] == ["e"]


def test_rounding_noise_and_constants_make_a_chart() -> None:
    from mmrl.training.report_charts import charts, ticks

    noise = [{"step": i, "loss": (-1) ** i * 1e-16} for i in range(6)]
    tiny = [{"step": i, "lr": i * 1e-9} for i in range(6)]
    assert [c.name for c in charts([noise, tiny])] == ["loss", "lr"]
    assert ticks(3.0, 3.0) == [2.6, 2.8, 3.0, 3.2, 3.4]


def test_equal_warnings_become_one_line_with_their_steps(tmp_path: Path) -> None:
    from mmrl.training.report import merged_warnings

    def rows(*steps: int, text: str = "flat") -> list[dict[str, Any]]:
        return [{"step": step, "warnings": [text]} for step in steps]

    assert merged_warnings([*rows(3), *rows(5, text="long"), *rows(8, 21)]) == [
        "steps 3, 8 and 21: flat",
        "step 5: long",
    ]
    many = merged_warnings(rows(*range(1, 31)))
    assert many == ["30 steps (1, 2, 3, 4, 5, 6, ..., 30): flat"]
    run = make_run(tmp_path / "run")
    with (run / "metrics.jsonl").open("a") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows(61, 62))
    assert page(run).count("flat") == 1 and "steps 61 and 62: flat" in page(run)
