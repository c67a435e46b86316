"""`mmrl generate` for masked-image models, through the real loading path, on a tiny model and a run of two steps."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from masked_exporting import adapter, base_folder, moved_schedule
from PIL import Image

from image_gen.masked import family
from image_gen.masked import generate as module
from mmrl.cli.main import run


@pytest.fixture(autouse=True)
def entry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(family, "generate", module.generate, raising=False)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny aMUSEd and a finished run on it: one step of each phase."""
    root = tmp_path_factory.mktemp("generate")
    base_folder(root / "amused")
    (root / "train.jsonl").write_text('{"prompt": "two sevens"}\n{"prompt": "a three"}\n')
    (root / "run.yaml").write_text(
        "family: masked\nrecipe: co-grpo\ndevice: cpu\nmodel: {path: amused, adapter: {rank: 2, alpha: 4}}\n"
        "recipe_options: {channels.schedule.optimiser.lr: 0.5}\n"
        "inputs: {height: 8, width: 8, eval_images: 1}\ndata: {train: train.jsonl}\n"
        "sampling: {steps: 4, guidance: 2.0}\nrewards: {components: [{name: brightness}]}\n"
        "train: {steps: 2, prompts: 2, group: 4}\noptimiser: {lr: 0.05}\neval: {judges: [{name: redness}]}\n"
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


SIZE = ["--height", "8", "--width", "8"]


def test_pictures_a_sheet_and_their_scores(world: Path, tmp_path: Path) -> None:
    told = generate(world / "finished", tmp_path, "--prompt", "two sevens", "--n", "3", "--seed", "5")
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        *(f"picture-0-{i}.png" for i in range(3)), "pictures.json", "sheet.png",
    ]  # fmt: skip
    assert (told["seed"], told["steps"], told["guidance"], told["schedule"], told["height"]) == (
        5,
        4,
        2.0,
        "learned",
        8,
    )
    for row in told["pictures"]:
        assert set(row["scores"]) == {"brightness", "redness"}  # the run's reward and its judge
        shown = pixels(tmp_path / row["file"])
        assert shown.shape == (8, 8, 3)
        assert row["scores"]["brightness"] == pytest.approx(shown.mean() / 255, abs=1e-6)
    assert told["pictures"][0]["scores"] != told["pictures"][1]["scores"]


def test_a_picture_depends_on_seed_prompt_and_number_only(world: Path, tmp_path: Path) -> None:
    (tmp_path / "p.txt").write_text("a three\ntwo sevens\n")
    generate(world / "finished", tmp_path / "many", "--prompts", str(tmp_path / "p.txt"), "--n", "3")
    generate(world / "finished", tmp_path / "one", "--prompt", "two sevens", "--n", "1")
    one = pixels(tmp_path / "one" / "picture-0-0.png")
    assert (pixels(tmp_path / "many" / "picture-1-0.png") == one).all()
    for other in ("picture-1-1.png", "picture-0-0.png"):
        assert (pixels(tmp_path / "many" / other) != one).any()


def test_the_learned_and_the_hand_made_schedule(world: Path, tmp_path: Path) -> None:
    more = ["--prompt", "two sevens", "--n", "4"]
    learned = generate(world / "finished", tmp_path / "a", *more)
    hand_made = generate(world / "finished", tmp_path / "b", *more, "--schedule", "base")
    assert (learned["schedule"], hand_made["schedule"]) == ("learned", "base")
    shown = [[pixels(tmp_path / x / f"picture-0-{i}.png") for i in range(4)] for x in "ab"]
    assert any((a != b).any() for a, b in zip(*shown, strict=True))
    again = generate(world / "finished", tmp_path / "c", *more, "--schedule", "learned")
    assert again["mean_scores"] == learned["mean_scores"]


def test_steps_and_guidance_are_those_asked_for(world: Path, tmp_path: Path) -> None:
    more = ["--prompt", "two sevens", "--n", "4", "--schedule", "base"]
    told = generate(world / "finished", tmp_path / "a", *more, "--steps", "2", "--guidance", "9")
    assert (told["steps"], told["guidance"]) == (2, 9.0)
    plain = generate(world / "finished", tmp_path / "b", *more)
    assert told["mean_scores"] != plain["mean_scores"]


def test_the_base_beside_it_has_the_hand_made_schedule(world: Path, tmp_path: Path) -> None:
    told = generate(world / "finished", tmp_path / "a", "--prompt", "a three", "--n", "2", "--compare", "base")
    assert told["compared_with"] == str(world / "amused") and set(told["mean_scores"]) == {"checkpoint", "base"}
    plain = ["--prompt", "a three", "--n", "2", "--steps", "4", "--guidance", "2", *SIZE]
    generate(world / "amused", tmp_path / "b", *plain)
    assert (pixels(tmp_path / "a" / "base-0-1.png") == pixels(tmp_path / "b" / "picture-0-1.png")).all()
    assert (pixels(tmp_path / "a" / "base-0-1.png") != pixels(tmp_path / "a" / "picture-0-1.png")).any()


def test_another_checkpoint_beside_it_keeps_its_own_schedule(world: Path, tmp_path: Path) -> None:
    other = adapter(world / "amused", tmp_path / "other", schedule=moved_schedule(learn=["ratio"]))
    told = generate(world / "finished", tmp_path / "a", "--prompt", "a three", "--n", "2", "--compare", str(other))
    assert told["compared_with"] == str(other)
    alone = generate(other, tmp_path / "b", "--prompt", "a three", "--n", "2", "--steps", "4", "--guidance", "2", *SIZE)
    assert alone["model"] == str(other)
    assert (pixels(tmp_path / "a" / "base-0-1.png") == pixels(tmp_path / "b" / "picture-0-1.png")).all()


def test_a_lora_taken_out_of_its_run_keeps_its_schedule(world: Path, tmp_path: Path) -> None:
    step = world / "finished" / "checkpoints" / "step-000002"
    more = ["--prompt", "x", "--n", "1", "--steps", "4", "--guidance", "2", *SIZE]
    generate(step, tmp_path / "a", *more)
    lora = Path(shutil.copytree(step / "model", tmp_path / "lora"))
    told = generate(lora, tmp_path / "b", *more, "--compare", "base")
    assert told["compared_with"] == str(world / "amused") and told["pictures"][0]["scores"] == {}
    assert (pixels(tmp_path / "a" / "picture-0-0.png") == pixels(tmp_path / "b" / "picture-0-0.png")).all()
    shutil.rmtree(lora / "schedule")
    generate(lora, tmp_path / "c", *more)
    generate(step, tmp_path / "d", *more, "--schedule", "base")
    assert (pixels(tmp_path / "c" / "picture-0-0.png") == pixels(tmp_path / "d" / "picture-0-0.png")).all()


def test_a_reward_of_the_runs_own_program_is_told_and_left_out(
    world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = (world / "finished" / "config.yaml").read_text().replace("name: redness", "name: only_there")
    (tmp_path / "own.yaml").write_text(text)
    more = ["--prompt", "x", "--n", "2", "--config", str(tmp_path / "own.yaml")]
    told = generate(world / "finished", tmp_path / "o", *more)
    assert capsys.readouterr().out.count("no scores of only_there: rewards: unknown reward") == 1
    assert [set(r["scores"]) for r in told["pictures"]] == [{"brightness"}] * 2


REFUSED: dict[str, tuple[list[str], list[str]]] = {
    "an option of other models": (["--prompt", "x", "--frame", "norm1"], ["--frame", "does not take it", "--schedule"]),
    "a size it cannot take": (["--prompt", "x", "--height", "9"], ["9", "nearest: 8 or 12"]),
    "no prompt": ([], ["--prompt and --prompts"]),
    "unknown schedule": (["--prompt", "x", "--schedule", "best"], ["--schedule", "learned", "base"]),
    "too much guidance": (["--prompt", "x", "--guidance", "31"], ["--guidance 31", "at most 30"]),
}


@pytest.mark.parametrize("case", REFUSED)
def test_bad_input(case: str, world: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments, parts = REFUSED[case]
    assert run(["generate", str(world / "finished"), *arguments]) == 2
    shown = capsys.readouterr().err
    assert shown.startswith("error: ") and shown.count("\n") == 1
    for part in parts:
        assert part in shown


def test_other_families_do_not_take_a_schedule(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "model_index.json").write_text('{"_class_name": "StableDiffusion3Pipeline"}')
    assert run(["generate", str(tmp_path), "--prompt", "x", "--schedule", "base"]) == 2
    assert "--schedule: a model of family 'flow' does not take it" in capsys.readouterr().err
