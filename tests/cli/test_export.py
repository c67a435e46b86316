"""`mmrl export`: from real runs, reloaded by real processes, used by the code of the model card."""

from __future__ import annotations

import ast
import json
import re
import shutil
from pathlib import Path

import pytest
import torch
import yaml
from PIL import Image
from safetensors.torch import load_file

from mmrl.cli.main import run
from mmrl.vlm import tiny

torch.set_num_threads(1)

ROW = {
    "task": "detection",
    "prompt": "Where is 7?",
    "images": ["a.png"],
    "answer": [[1, 2, 30, 31]],
    "response": "There",
}
COMMON = (
    "family: vlm\nthreads: 1\ndevice: cpu\nlog: {tensorboard: false}\noptimiser: {lr: 1.0e-3}\n"
    "train: {steps: 2, prompts: 2, group: 2}\neval: {samples: 1}\nema: {enabled: true, decay: 0.5}\n"
)
LORA = (  # imitation, so that every step changes the weights
    "recipe: sft\nmodel: {path: base-model, adapter: {kind: lora, rank: 2, targets: all}}\n"
    "data: {train: <my>train.jsonl, eval: eval.jsonl}\nsampling: {max_new_tokens: 3}\ninputs: {system: 'Say \"it\"'}\n"
)
FULL = (
    "recipe: grpo\nmodel: {path: embedded:vlm}\ndata: {train: 'digits:train', eval: 'digits:eval', eval_records: 3}\n"
)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`lora` and `full`: two finished runs; `merged`, `alone` and `whole`: what was exported from them."""
    root = tmp_path_factory.mktemp("export")
    tiny.build("qwen3_vl", root / "base-model")
    Image.radial_gradient("L").resize((32, 32)).convert("RGB").save(root / "a.png")
    for name in ("<my>train", "eval"):
        rows = [{**ROW, "id": f"{name}{i}", "frame": "pixel_original"} for i in range(2)]
        (root / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for name, text in (("lora", LORA), ("full", FULL)):
        (root / f"{name}.yaml").write_text(COMMON + text)
        assert run(["train", str(root / f"{name}.yaml"), f"out={root / name}"]) == 0
    return root


@pytest.fixture(scope="module")
def merged(world: Path) -> Path:
    assert run(["export", str(world / "lora"), "--out", str(world / "merged"), "--step", "2"]) == 0
    return world / "merged"


@pytest.fixture(scope="module")
def alone(world: Path) -> Path:
    assert run(["export", str(world / "lora"), "--out", str(world / "alone"), "--adapter-only", "--step", "2"]) == 0
    return world / "alone"


@pytest.fixture(scope="module")
def whole(world: Path) -> Path:
    assert run(["export", str(world / "full"), "--out", str(world / "whole"), "--step", "2"]) == 0
    return world / "whole"


def card(folder: Path) -> tuple[dict[str, object], str]:
    """Front matter and text."""
    _, front, body = (folder / "README.md").read_text().split("---\n", 2)
    return yaml.safe_load(front), body


def said_by_the_card(folder: Path, picture: Path, capsys: pytest.CaptureFixture[str]) -> str:
    """What the code of the card prints when it is run beside a picture.png."""
    shutil.copy(picture, "picture.png")
    code = re.search(r"```python\n(.*?)```", card(folder)[1], re.S)
    assert code is not None
    capsys.readouterr()
    here = code[1].replace('folder = "."', f"folder = {str(folder)!r}").replace("tokens=256", "tokens=32")
    exec(compile(here, "card", "exec"), {})
    return capsys.readouterr().out.rstrip("\n")


def question(folder: Path) -> str:
    """What the code of the card asks: the prompt of a held-out record. A run has no card."""
    if not (folder / "README.md").exists():
        return "What is in the picture?"
    return str(ast.literal_eval(re.findall(r'"type": "text", "text": (.*?)\}\]', card(folder)[1])[-1]))


def answer(folder: Path, picture: Path, out: Path, *more: str) -> str:
    asked = ["--prompt", question(folder), "--image", str(picture), "--out", str(out)]
    assert run(["generate", str(folder), *asked, *more]) == 0
    return str(json.loads((out / "answers.json").read_text())["answers"][0]["output"])


def metrics(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict[str, float]:
    capsys.readouterr()
    assert run(["eval", *arguments, "--json"]) == 0
    return json.loads(capsys.readouterr().out)  # type: ignore[no-any-return]


def fails(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    capsys.readouterr()
    assert run(arguments) == 2
    shown = capsys.readouterr().err
    assert shown.startswith("error: ") and shown.count("\n") == 1
    return shown


def test_the_whole_model_with_the_embedded_processor(
    world: Path, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    averaged = load_file(world / "full" / "checkpoints" / "step-000002" / "model" / "model.safetensors")
    trained = load_file(world / "full" / "checkpoints" / "step-000002" / "trainable.safetensors")
    written = load_file(whole / "model.safetensors")
    assert written.keys() == averaged.keys() and all(torch.equal(written[k], averaged[k]) for k in written)
    name = "model.visual.pos_embed.weight"  # averages are exported, not the last weights
    assert not torch.equal(trained[f"policy/{name}"], written[name])
    assert answer(whole, world / "a.png", tmp_path / "x") == said_by_the_card(whole, world / "a.png", capsys)
    assert metrics(capsys, str(whole), "--config", str(world / "full.yaml")) == metrics(
        capsys, str(world / "full" / "checkpoints" / "step-000002")
    )
    front, body = card(whole)
    assert front == {
        "library_name": "transformers",
        "pipeline_tag": "image-text-to-text",
        "tags": ["mmrl", "grpo"],
    }
    for part in (
        "# The embedded vlm model of mmrl with GRPO",
        "arXiv [2402.03300](https://arxiv.org/abs/2402.03300)",
        "| training | digits:train | 4000 |",
        "320, the first 3 used",
        "| steps | 2 of 2 planned |",
        "exponential average, decay 0.5",
        "| metric | chance | before | this model |",
        "| reward |",
    ):
        assert part in body, part


def test_the_merged_model(
    world: Path, merged: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    said_by_the_card(merged, world / "a.png", capsys)
    step = str(world / "lora" / "checkpoints" / "step-000002")
    assert metrics(capsys, str(merged), "--config", str(world / "lora.yaml")) == metrics(capsys, step)
    before, after = load_file(world / "base-model" / "model.safetensors"), load_file(merged / "model.safetensors")
    assert any(not torch.equal(before[name], after[name]) for name in before)
    front, body = card(merged)
    assert front["tags"] == ["mmrl", "sft", "lora"] and "base_model" not in front  # a folder is no name on a hub
    assert "base-model, trained by imitation with Supervised fine-tuning" in body
    assert "&lt;my&gt;train.jsonl" in body and "<my>" not in body
    assert "'Say \"it\"'" in body  # the system prompt, as a Python literal
    assert "LoRA, rank 2" in body


def test_nothing_names_a_place_on_this_machine(merged: Path, whole: Path, alone: Path, world: Path) -> None:
    for folder in (merged, whole, alone):
        for file in folder.iterdir():
            if file.name != "adapter_config.json" and file.suffix in (".md", ".json", ".jinja"):
                assert str(world) not in file.read_text(), file
                assert "/tmp" not in file.read_text(), file


def test_the_adapter_alone(
    world: Path, alone: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "base-model").symlink_to(world / "base-model")  # the card names the folder only
    said_by_the_card(alone, world / "a.png", capsys)
    assert not list(alone.glob("model*.safetensors"))
    assert card(alone)[0]["library_name"] == "peft"
    step = str(world / "lora" / "checkpoints" / "step-000002")
    assert metrics(capsys, str(alone), "--config", str(world / "lora.yaml")) == metrics(capsys, step)


def test_a_base_that_moved_is_needed_by_adapters_only(
    world: Path, merged: Path, alone: Path, whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    away, picture = world / "moved", world / "a.png"
    step = str(world / "lora" / "checkpoints" / "step-000002")
    before = metrics(capsys, step)
    (world / "base-model").rename(away)
    try:
        for command in (["eval", step], ["export", step, "--out", str(tmp_path / "no")]):
            message = fails(capsys, *command)
            assert str(world / "base-model") in message and "--base" in message
        assert not (tmp_path / "no").exists() and not list(tmp_path.glob(".*"))
        assert metrics(capsys, step, "--base", str(away)) == before
        short = ["--config", str(world / "lora.yaml")]  # the base that it names is not needed either
        said = answer(alone, picture, tmp_path / "x", "--base", str(away), *short)
        assert answer(merged, picture, tmp_path / "y", *short) == said
        assert "needs no base" in fails(capsys, "eval", str(world / "full"), "--base", str(away))
    finally:
        away.rename(world / "base-model")


def test_a_full_run_needs_nothing_but_itself(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = Path(shutil.copytree(world / "full", tmp_path / "copy"))
    config = copy / "config.yaml"
    config.write_text(config.read_text().replace("path: embedded:vlm", "path: /gone/model"))
    assert "/gone/model" in config.read_text()
    assert metrics(capsys, str(copy)) == metrics(capsys, str(world / "full"))
    answer(copy, world / "a.png", tmp_path / "x")


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (["nowhere", "--out", "new"], ["nowhere", "no such checkpoint"]),
        (["{full}", "--out", "{full}"], ["not empty"]),
        (["{full}", "--out", "new", "--step", "7"], ["no checkpoint of that step; it keeps", "2"]),
        (["{full}/checkpoints/step-000002", "--out", "new", "--step", "2"], ["is no run folder"]),
        (["{full}", "--out", "new", "--adapter-only"], ["--adapter-only", "no adapter"]),
        (["{full}", "--out", "new", "--dtype", "float8"], ["float8", "bfloat16"]),
        (["{full}", "--out", "new", "--max-shard-size", "5"], ["5GB"]),
        (["{full}", "--out", "new", "--base", "x"], ["needs no base"]),
        (["{full}"], ["--out"]),
        (["{whole}", "--out", "new"], ["--config"]),
    ],
)
def test_mistakes(
    arguments: list[str],
    parts: list[str],
    world: Path,
    whole: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    named = [a.format(full=world / "full", whole=whole) for a in arguments]
    message = fails(capsys, "export", *named)
    for part in parts:
        assert part in message, message
    assert not list(tmp_path.iterdir())


def test_a_mismatch_leaves_nothing(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from mmrl.vlm.reload import Probe

    monkeypatch.setattr(Probe, "reloaded", lambda self, *_, **__: self.expected + 0.25)
    message = fails(capsys, "export", str(world / "full"), "--out", str(tmp_path / "new"))
    assert "logits differ by 0.25" in message and "nothing was exported" in message
    assert not list(tmp_path.iterdir())


def test_data_that_are_gone(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from mmrl.vlm.reload import Probe

    monkeypatch.setattr(Probe, "reloaded", lambda self, *_, **__: self.expected)
    copy = Path(shutil.copytree(world / "lora", tmp_path / "copy"))
    text = (copy / "config.yaml").read_text()
    (copy / "config.yaml").write_text(text.replace("train.jsonl", "t.jsonl").replace("eval.jsonl", "e.jsonl"))
    assert run(["export", str(copy), "--out", str(tmp_path / "new")]) == 0
    shown = capsys.readouterr().out
    assert "compared on a made picture" in shown and "record 'made'" in shown
    assert "| evaluation | e.jsonl | not counted |" in card(tmp_path / "new")[1]


def test_a_damaged_checkpoint_is_named(world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    copy = Path(shutil.copytree(world / "full" / "checkpoints" / "step-000002", tmp_path / "step-000002"))
    (copy / "model" / "config.json").write_text("{}")
    assert "does not match its hash" in fails(capsys, "export", str(copy), "--out", str(tmp_path / "new"))
