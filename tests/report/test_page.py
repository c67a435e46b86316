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
from mmrl.report import charts as report_charts
from mmrl.report import gallery as report_gallery
from mmrl.report import write_report
from mmrl.training.diagnostics import Diagnostics

EVIL = "<script>alert(1)</script><img src=x onerror=alert(2)>"
EVIL_JSON = EVIL.replace("<", "\\u003c").replace(">", "\\u003e")


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


def data(html: str) -> dict[str, Any]:
    """What the page's script draws."""
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', html, flags=re.S)
    assert found
    value: dict[str, Any] = json.loads(found.group(1))
    return value


def test_one_run(tmp_path: Path) -> None:
    html = page(make_run(tmp_path / "run"))
    for text in ("0.500 →", "0.625", "+0.125", "0.062", "seed 0", "60 steps", "12 s", "recipe: visual-rft"):
        assert text in html, text
    (sample,) = data(html)["samples"]
    assert sample["gold"] == [[5, 6, 10, 20]] and list(sample["answers"]) == ["0"]
    assert [(a["step"], a["boxes"], a["picture"]) for a in sample["answers"]["0"]] == [
        (0, [[1, 2, 10, 20]], 0),
        (60, [[3, 4, 10, 20]], 0),
    ]
    assert [p["size"] for p in data(html)["pictures"]] == [[64, 48]]


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
    assert html.count("&lt;script&gt;alert(1)") == 1  # the warning, as text
    assert html.count(EVIL_JSON) == 3  # prompt and two outputs, as JSON that holds no markup
    assert data(html)["samples"][0]["prompt"] == data(html)["samples"][0]["answers"]["0"][1]["output"] == EVIL
    own = html.replace(str(escape(EVIL)), "").replace(EVIL_JSON, "")
    addresses = re.findall(r'(?:src|href|url)\s*[=(]\s*["\']?([^"\')\s>]+)', own)
    assert addresses and all(a.startswith("#") for a in addresses)
    assert all(p["uri"].startswith("data:image/png;base64,") for p in data(html)["pictures"])
    assert set(re.findall(r"https?://[^\"']*", own)) == {"http://www.w3.org/2000/svg"}  # a name, not an address
    assert "default-src 'none'" in html


@pytest.mark.parametrize(
    "text", ["</script><script>alert(1)</script>", "<!--<script>", "a\u2028b", "\ud800", "{{ 7*7 }}"]
)
def test_hostile_text_stays_in_its_json_block(tmp_path: Path, text: str) -> None:
    run = make_run(tmp_path / "run")
    for file in (run / "samples").glob("step-*.jsonl"):
        row = json.loads(file.read_text()) | {"id": text, "task": text, "prompt": text, "output": text}
        file.write_text(json.dumps(row | {"reward": {text: 0.5}}) + "\n")
    (run / "metrics.jsonl").write_text(
        json.dumps({"step": 1, text: 1.0, "signs": [{"step": 1, "kind": "k", "what": text}]}) + "\n"
    )
    html = page(run)
    assert html.count("</script>") == html.count("<script") == 8  # data and seven scripts
    (sample,) = data(html)["samples"]
    assert sample["id"] == sample["task"] == sample["prompt"] == text
    assert [(a["output"], a["reward"]) for a in sample["answers"]["0"]] == [(text, [[text, 0.5]])] * 2


def test_several_runs(tmp_path: Path) -> None:
    html = page(make_run(tmp_path / "a"), make_run(tmp_path / "b", seed=1, gain=0.25))
    assert "2 runs side by side" in html
    assert "+0.188 ± 0.088" in html  # mean and deviation of 0.125 and 0.25
    (reward,) = [chart for chart in data(html)["charts"] if chart["title"] == "Reward"]
    assert set(reward["lines"]) == {"0", "1"}
    assert data(html)["groups"] == [{"label": "visual-rft", "runs": [0, 1]}]


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
    assert "Did it learn?" not in html


def test_a_missing_or_foreign_picture_is_named_not_shown(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    Image.new("RGB", (4, 4)).save(tmp_path / "secret.png")
    file = run / "samples" / "step-000060.jsonl"
    row = json.loads(file.read_text())
    file.write_text(json.dumps({**row, "image": "../../secret.png"}) + "\n")
    html = page(run)
    assert "../../secret.png is not in the run folder" in html
    assert html.count("data:image/png") == 1
    assert [a["picture"] for a in data(html)["samples"][0]["answers"]["0"]] == [0, None]


@pytest.mark.parametrize("case", ["missing", "empty", "broken"])
def test_bad_folders(tmp_path: Path, case: str) -> None:
    run = tmp_path / "run"
    if case != "missing":
        run.mkdir()
    if case == "broken":
        (run / "metrics.jsonl").write_text('{"step": 1}\n{oops\n{"step": 3}\n')
    with pytest.raises(UserError, match="line 2" if case == "broken" else "run"):
        write_report([run], tmp_path / "out.html")


def test_thinning_keeps_the_ends_and_the_mean() -> None:
    points = [(float(i), float(i)) for i in range(1001)]
    thin = report_charts.thinned(points, 100)
    assert len(thin) == 100
    assert (thin[0][0], thin[-1][0]) == (0.0, 1000.0)
    assert sum(y for _, y in thin) / 100 == pytest.approx(500, rel=0.01)


def test_values_that_are_no_numbers_are_left_out() -> None:
    rows = [{"step": 1, "a": float("nan"), "b": None, "c": True, "d": "x", "e": 2}]
    assert [c.name for c in report_charts.curves([rows]).charts] == ["e"]


def test_rounding_noise_and_constants_make_a_chart() -> None:
    noise = [{"step": i, "loss": (-1) ** i * 1e-16} for i in range(6)]
    tiny = [{"step": i, "lr": i * 1e-9} for i in range(6)]
    assert [c.name for c in report_charts.curves([noise, tiny]).charts] == ["loss", "lr"]


def test_curves_of_one_run_share_their_steps_and_say_that_they_are_thinned() -> None:
    rows = [{"step": s, "reward": 1.0, "kl": 0.0} for s in range(1, 2001)]
    found = report_charts.curves([rows, rows[:3]])
    assert found.merged == 5 and [len(steps) for steps in found.steps[0]] == [400]
    assert found.steps[1] == [[1.0, 2.0, 3.0]]
    assert {line[:2] for chart in found.charts for line in chart.lines[0]} == {("", 0)}


def test_equal_warnings_become_one_line_with_their_steps(tmp_path: Path) -> None:
    from mmrl.report.runs import merged_warnings

    def rows(*steps: int, text: str = "too flat") -> list[dict[str, Any]]:
        return [{"step": step, "warnings": [text]} for step in steps]

    assert merged_warnings([*rows(3), *rows(5, text="long"), *rows(8, 21)]) == [
        "steps 3, 8 and 21: too flat",
        "step 5: long",
    ]
    many = merged_warnings(rows(*range(1, 31)))
    assert many == ["30 steps (1, 2, 3, 4, 5, 6, ..., 30): too flat"]
    run = make_run(tmp_path / "run")
    with (run / "metrics.jsonl").open("a") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows(61, 62))
    assert page(run).count("too flat") == 1 and "steps 61 and 62: too flat" in page(run)


def test_signs_of_trouble_with_their_steps_and_advice(tmp_path: Path) -> None:
    run, diagnostics = make_run(tmp_path / "run"), Diagnostics()
    with (run / "metrics.jsonl").open("a") as file:
        for step, share in enumerate([0.9] * 6 + [0.0] * 12 + [1.0] * 6, start=61):
            row: dict[str, Any] = {"step": step, "truncated": share}
            diagnostics.look(row, 0.001)
            file.write(json.dumps(row | {"signs": diagnostics.take()}) + "\n")
    html = page(run)
    troubles = html[
        html.index('<section id="trouble">') : html.index("</section>", html.index('<section id="trouble">'))
    ]
    assert troubles.index("from 81 on") < troubles.index("65 to 73, cleared")  # what is still there comes first
    assert troubles.count("most answers are cut off at the length limit") == 2
    assert "raise sampling.max_new_tokens" in troubles
    assert [(s["step"], s["until"], s["metric"]) for s in data(html)["signs"]] == [
        (65, 73, "truncated"),
        (81, None, "truncated"),
    ]


def config(folder: Path, text: str) -> Path:
    (folder / "config.yaml").write_text(text)
    return folder


def test_groups_of_one_method_are_told_apart_by_a_setting_that_no_two_share(tmp_path: Path) -> None:
    """A setting that differs from a third run only says nothing; empty mappings are no settings."""
    plain = "recipe: grpo\nrecipe_options: {}\ndata: {{train: {}}}\n"
    runs = [
        config(make_run(tmp_path / "a", control="shuffled"), plain.format("{kl: 0}", "same")),
        config(make_run(tmp_path / "b"), plain.format("{}", "loose")),
        config(make_run(tmp_path / "c"), plain.format("{}", "exact")),
    ]
    html = page(*runs)
    labels = [group["label"] for group in data(html)["groups"]]
    assert labels[1:] == ["visual-rft, data.train loose", "visual-rft, data.train exact"]
    assert "recipe_options.kl" in html and ">{}<" not in html


def test_settings_that_differ_and_groups_of_seeds(tmp_path: Path) -> None:
    plain = "recipe: grpo\nseed: {}\nout: {}\noptimiser:\n  lr: {}\n  betas: [0.9, 0.999]\nlog: {{every: {}}}\n"
    runs = [
        config(make_run(tmp_path / "a"), plain.format(0, "a", "1e-4", 1)),
        config(make_run(tmp_path / "b", seed=1), plain.format(1, "b", "1e-4", 5)),
        config(make_run(tmp_path / "c"), plain.format(0, "c", "2e-4", 1)),
    ]
    html = page(*runs)
    assert data(html)["groups"] == [
        {"label": "visual-rft, optimiser.lr 0.0001", "runs": [0, 1]},
        {"label": "visual-rft, optimiser.lr 0.0002", "runs": [2]},
    ]
    table = html[html.index('<section id="settings">') : html.index('<section id="curves">')]
    assert re.findall(r"<code>(.*?)</code>", table) == ["seed", "optimiser.lr", "log.every"]
    assert "betas" not in table and "0.0002" in table


def test_a_broken_configuration_is_named_and_shown(tmp_path: Path) -> None:
    html = page(config(make_run(tmp_path / "a"), "family: [vlm\n"), make_run(tmp_path / "b"))
    assert "its settings are not compared" in html and "family: [vlm" in html


def test_metrics_against_the_first_run_and_against_the_control(tmp_path: Path) -> None:
    runs = [
        make_run(tmp_path / f"{gain}-{seed}", seed=seed, gain=gain) for seed in (0, 1) for gain in (0.125 + seed / 16,)
    ]
    controls = [make_run(tmp_path / f"c{seed}", seed=seed, gain=seed / 64, control="shuffled") for seed in (0, 1)]
    html = page(*runs, *controls)
    assert "+0.062 to 0.125-0" in html  # run b's final value against the first run's
    assert "+0.148" in html  # 0.15625 gained by reward, 0.0078125 with shuffled rewards
    assert "visual-rft gains more than visual-rft, shuffled rewards does: beyond 2 standard errors (n 2 and 2)." in html
    level = [
        make_run(tmp_path / f"l{control}", seed=0, gain=0.125, control=control) for control in ("none", "shuffled")
    ]
    assert "gains as much as visual-rft, shuffled rewards does (n 1 and 1: too few seeds" in page(*level)
    alone = page(runs[0])
    assert "Mean IoU rose from 0.500 to 0.625; the best constant answer reaches 0.062." in alone
    assert "another seed (seed=1) and a control with shuffled rewards" in alone
    few = page(runs[0], controls[0])
    assert "too few seeds to tell it from noise" in few and "another seed" in few and "a control with" not in few


@pytest.mark.parametrize(
    ("boxes", "right"),
    [
        ([(0, 0, 10, 10)], True),
        ([(0, 0, 10, 19)], True),  # IoU 0.53
        ([(0, 0, 10, 21)], False),
        ([(0, 0, 10, 10), (50, 50, 5, 5)], False),  # one too many
        ([], False),
    ],
)
def test_right_by_boxes(boxes: list[report_gallery.Box], right: bool) -> None:
    assert report_gallery.is_right([(0, 0, 10, 10)], boxes, [("format", 0.0)]) is right


def test_right_by_rewards() -> None:
    assert report_gallery.is_right([], [], [("format", 0.0), ("accuracy", 1.0)]) is True
    assert report_gallery.is_right([], [], [("format", 1.0), ("accuracy", 0.4)]) is False
    assert report_gallery.is_right([], [], [("format", 1.0), ("accuracy", None)]) is None


def test_a_page_of_many_long_runs_stays_small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(report_gallery, "ANSWERS", 60)
    monkeypatch.setattr(report_gallery, "RECORDS", 5)
    run = make_run(tmp_path / "run", steps=900)
    for step in range(0, 901, 50):
        rows = [{"id": f"r{i}", "prompt": "p", "output": f"{step}", "reward": {"iou": 0.1}} for i in range(8)]
        (run / "samples" / f"step-{step:06d}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    html = page(run)
    assert "thinned to 400 points, each the mean of up to 3 steps" in html
    assert "The first 5 of 8 sampled records are shown." in html
    assert "12 a run are kept, evenly spaced" in html
    answers = data(html)["samples"][4]["answers"]["0"]
    assert len(answers) == 12 and (answers[0]["step"], answers[-1]["step"]) == (0, 900)


def test_large_pictures_are_made_small(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    Image.effect_noise((1600, 1200), 60).save(run / "samples" / "images" / "000.png")
    (picture,) = data(page(run))["pictures"]
    assert picture["size"] == [1600, 1200]  # the frame of the boxes
    assert picture["uri"].startswith("data:image/webp;base64,") and len(picture["uri"]) < 400_000


def test_a_sign_ends_with_the_clearing_of_its_own_kind() -> None:
    from mmrl.report.runs import troubles

    def sign(step: int, kind: str, cleared: bool) -> dict[str, Any]:
        return {"step": step, "kind": kind, "metric": kind, "what": kind, "advice": "", "cleared": cleared}

    log = [sign(1, "kl", False), sign(2, "length", False), sign(5, "kl", True), sign(7, "kl", False)]
    found = troubles([{"signs": log[:2]}, {"signs": []}, {"signs": log[2:]}, {"signs": "none"}], 0)
    assert [(t.what, t.step, t.until) for t in found] == [("kl", 1, 5), ("length", 2, None), ("kl", 7, None)]
