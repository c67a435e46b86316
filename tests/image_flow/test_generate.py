"""`mmrl generate` for image models, through the real loading path, on a tiny pipeline and a run of one step."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from image_gen import album, generating
from image_gen.flow import family
from image_gen.flow import generate as module
from image_gen.pipelines import tiny
from mmrl.cli.main import run
from mmrl.data.records import Record

PROMPTS = [{"prompt": "two sevens", "tag": "counting"}, {"prompt": "a three", "tag": "one"}]


@pytest.fixture(autouse=True)
def entry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(family, "generate", module.generate, raising=False)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Stable Diffusion 3 and a finished run on it."""
    root = tmp_path_factory.mktemp("generate")
    tiny.write("StableDiffusion3Pipeline", root / "sd3")
    (root / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in PROMPTS))
    (root / "run.yaml").write_text(
        "family: flow\nrecipe: flow-grpo\ndevice: cpu\nmodel: {path: sd3, adapter: {rank: 2, alpha: 4}}\n"
        "inputs: {height: 32, width: 32, eval_images: 1}\ndata: {train: train.jsonl}\n"
        "selection: {name: balanced}\n"
        "sampling: {steps: 3, eval_steps: 3, guidance: 2.0}\nrewards: {components: [{name: brightness}]}\n"
        "train: {steps: 1, prompts: 2, group: 2}\noptimiser: {lr: 0.05}\neval: {judges: [{name: redness}]}\n"
        "log: {tensorboard: false}\n"
    )
    assert run(["train", str(root / "run.yaml"), f"out={root / 'finished'}"]) == 0
    return root


def generate(model: Path, out: Path, *more: str) -> dict[str, Any]:
    assert run(["generate", str(model), "--out", str(out), *more]) == 0
    found: dict[str, Any] = json.loads((out / "pictures.json").read_text())
    return found


def pixels(path: Path) -> np.ndarray[Any, Any]:
    with Image.open(path) as picture:
        return np.asarray(picture).astype(int)


def test_pictures_a_sheet_and_their_scores(world: Path, tmp_path: Path) -> None:
    told = generate(
        world / "finished", tmp_path, "--prompt", "two sevens", "--n", "3", "--seed", "5", "--guidance", "3"
    )
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        *(f"picture-0-{i}.png" for i in range(3)), "pictures.json", "sheet.png",
    ]  # fmt: skip
    assert (told["seed"], told["steps"], told["guidance"], told["height"]) == (5, 3, 3.0, 32)
    rows = told["pictures"]
    assert [r["index"] for r in rows] == [0, 1, 2] and {r["prompt"] for r in rows} == {"two sevens"}
    for row in rows:
        assert set(row["scores"]) == {"brightness", "redness"}  # the run's reward and its judge
        shown = pixels(tmp_path / row["file"])
        assert shown.shape == (32, 32, 3)
        assert row["scores"]["brightness"] == pytest.approx(shown.mean() / 255, abs=1e-6)
    mean = told["mean_scores"]["checkpoint"]["brightness"]
    assert mean == pytest.approx(sum(r["scores"]["brightness"] for r in rows) / 3)


def test_a_picture_depends_on_seed_prompt_and_number_only(world: Path, tmp_path: Path) -> None:
    (tmp_path / "p.txt").write_text("a three\n# not this\ntwo sevens\n")
    many = generate(world / "finished", tmp_path / "many", "--prompts", str(tmp_path / "p.txt"), "--n", "3")
    generate(world / "finished", tmp_path / "one", "--prompt", "two sevens", "--n", "1")
    generate(world / "finished", tmp_path / "other", "--prompt", "two sevens", "--n", "1", "--seed", "1")
    assert [(r["prompt"], r["index"]) for r in many["pictures"]] == [
        (p, i) for p in ("a three", "two sevens") for i in range(3)
    ]
    same = np.abs(pixels(tmp_path / "many" / "picture-1-0.png") - pixels(tmp_path / "one" / "picture-0-0.png"))
    assert same.max() <= 1  # rounding
    for other in ("many/picture-1-1.png", "many/picture-0-0.png", "other/picture-0-0.png"):
        assert np.abs(pixels(tmp_path / other) - pixels(tmp_path / "one" / "picture-0-0.png")).max() > 5


def test_the_base_beside_it_with_equal_seeds(world: Path, tmp_path: Path) -> None:
    told = generate(world / "finished", tmp_path / "a", "--prompt", "a three", "--n", "2", "--compare", "base")
    assert told["compared_with"] == str(world / "sd3")
    assert [(r["file"], r["model"]) for r in told["pictures"]] == [
        ("picture-0-0.png", "checkpoint"), ("picture-0-1.png", "checkpoint"),
        ("base-0-0.png", "base"), ("base-0-1.png", "base"),
    ]  # fmt: skip
    assert set(told["mean_scores"]) == {"checkpoint", "base"}
    generate(
        world / "sd3",
        tmp_path / "b",
        "--prompt",
        "a three",
        "--n",
        "2",
        *["--steps", "3", "--guidance", "2", "--height", "32", "--width", "32"],
    )
    assert (pixels(tmp_path / "a" / "base-0-1.png") == pixels(tmp_path / "b" / "picture-0-1.png")).all()
    assert (pixels(tmp_path / "a" / "base-0-1.png") != pixels(tmp_path / "a" / "picture-0-1.png")).any()


def test_a_step_and_a_lora_taken_out_of_its_run(world: Path, tmp_path: Path) -> None:
    import shutil

    step = world / "finished" / "checkpoints" / "step-000001"
    size = ["--prompt", "x", "--n", "1", "--steps", "3", "--guidance", "2", "--height", "32", "--width", "32"]
    generate(step, tmp_path / "a", *size)
    lora = shutil.copytree(step / "model", tmp_path / "lora")
    told = generate(Path(lora), tmp_path / "b", *size, "--compare", "base")
    assert told["compared_with"] == str(world / "sd3") and told["pictures"][0]["scores"] == {}
    assert (pixels(tmp_path / "a" / "picture-0-0.png") == pixels(tmp_path / "b" / "picture-0-0.png")).all()


def test_a_second_call_leaves_nothing_of_the_first(
    world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    generate(world / "finished", tmp_path, "--prompt", "x", "--n", "3")
    (tmp_path / "mine.png").write_bytes(b"")
    assert run(["generate", str(world / "finished"), "--out", str(tmp_path), "--prompt", "x", "--height", "33"]) == 2
    assert (tmp_path / "picture-0-2.png").exists()  # a call that fails takes nothing away
    generate(world / "finished", tmp_path, "--prompt", "x", "--n", "1")
    assert sorted(p.name for p in tmp_path.glob("*.png")) == ["mine.png", "picture-0-0.png", "sheet.png"]


REFUSED: dict[str, tuple[list[str], list[str]]] = {
    "an option of other models": (["--prompt", "x", "--frame", "norm1"], ["--frame", "does not take it", "--steps"]),
    "a size it cannot take": (["--prompt", "x", "--height", "33"], ["33", "nearest: 32 or 36"]),
    "no prompt": ([], ["--prompt and --prompts"]),
    "both": (["--prompt", "x", "--prompts", "train.jsonl"], ["--prompt and --prompts"]),
    "an empty file": (["--prompts", "empty.txt"], ["no prompts in", "empty.txt"]),
    "no file": (["--prompts", "none.txt"], ["no such file", "none.txt"]),
    "unknown model to compare with": (
        ["--prompt", "x", "--compare", "./none"],
        ["--compare", "none", "no such folder"],
    ),
    "no steps": (["--prompt", "x", "--steps", "0"], ["--steps"]),
}


@pytest.mark.parametrize("case", REFUSED)
def test_bad_input(
    case: str, world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "train.jsonl").write_text('{"prompt": "x"}\n')
    (tmp_path / "empty.txt").write_text("# nothing\n")
    arguments, parts = REFUSED[case]
    assert run(["generate", str(world / "finished"), *arguments]) == 2
    shown = capsys.readouterr().err
    assert shown.startswith("error: ") and shown.count("\n") == 1
    for part in parts:
        assert part in shown


def test_a_lora_of_another_model(world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import shutil

    lora = Path(shutil.copytree(world / "finished" / "checkpoints" / "step-000001" / "model", tmp_path / "lora"))
    tiny.write("StableDiffusion3Pipeline", tmp_path / "wide", heads=3)
    capsys.readouterr()
    assert run(["generate", str(lora), "--prompt", "x", "--base", str(tmp_path / "wide")]) == 2
    assert "LoRA of another model" in capsys.readouterr().err
    (lora / "mmrl.json").unlink()
    assert run(["generate", str(lora), "--prompt", "x"]) == 2
    assert "does not say of which model" in capsys.readouterr().err


def test_a_reward_that_cannot_be_had_is_told_and_the_pictures_are_made(
    world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = (world / "finished" / "config.yaml").read_text().replace("name: redness", "name: pick_score")
    (tmp_path / "own.yaml").write_text(text)
    told = generate(
        world / "finished", tmp_path / "o", "--prompt", "x", "--n", "2", "--config", str(tmp_path / "own.yaml")
    )
    said = capsys.readouterr().out
    assert said.count("no scores of pick_score") == 1 and "weights" in said
    assert [set(r["scores"]) for r in told["pictures"]] == [{"brightness"}] * 2


def test_prompts_of_the_run_bring_their_metadata(world: Path) -> None:
    config = module.settings(world / "finished", None)
    (known,) = generating.records_of("two sevens", None, config)
    (other,) = generating.records_of("two eights", None, config)
    assert known.meta == {"tag": "counting"} and other.meta == {} and known.id != other.id
    assert known.id == generating.records_of("two sevens", None, config)[0].id


def test_many_pictures_make_several_sheets(tmp_path: Path) -> None:
    made = []
    for i in range(70):
        Image.new("RGB", (8, 8)).save(tmp_path / f"picture-0-{i}.png")
        made.append(album.Made("picture", Record("a", "image", "x"), i, f"picture-0-{i}.png"))
    told = {"checkpoint": "c", "seed": 0, "steps": 1, "guidance": 1.0, "height": 8, "width": 8}
    assert [p.name for p in album.write_sheets(made, tmp_path, told)] == ["sheet.png", "sheet-2.png"]
