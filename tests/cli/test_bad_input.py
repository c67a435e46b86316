"""Bad input of every kind: one line that begins with `error:`, exit code 2, and no file of a run folder changed.

The runs are real ones of a tiny random checkpoint. What `test_commands`, `test_config_io` and `test_bad_data` cover is
not repeated here.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import struct
import subprocess
import sys
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from mmrl.cli.main import run
from mmrl.rewards import registry
from mmrl.training import checkpoint
from mmrl.vlm import tiny

torch.set_num_threads(1)

GOOD = {
    "id": "a",
    "task": "detection",
    "prompt": "Where is 7?",
    "images": ["a.png"],
    "answer": [[100, 200, 300, 400]],
    "response": "<answer>[]</answer>",
}
REWARDS = """
from mmrl.rewards.registry import reward

calls = []


@reward("short")
def short(outputs, records, info):
    return [1.0]


@reward("nan_first")
def nan_first(outputs, records, info):
    return [float("nan") if i["sample"] == 0 else 1.0 for i in info]


@reward("leaves")
def leaves(outputs, records, info):
    raise SystemExit(3)


@reward("raises_later")
def raises_later(outputs, records, info):
    calls.append(1)
    if len(calls) > 4:  # two evaluations' worth of calls and two steps are fine
        raise RuntimeError("boom")
    return [float(i["sample"]) for i in info]


@reward("takes_pictures_away")
def takes_pictures_away(outputs, records, info):
    import os
    from pathlib import Path

    calls.append(1)
    gone = Path("gone.png")
    if len(calls) == 4 and gone.exists():
        os.unlink(gone)
    return [float(i["sample"]) for i in info]


def needs_a_limit(outputs, records, info, *, limit: int):
    return [float(len(o) > limit) for o in outputs]
"""


def write_records(path: Path, *rows: Any) -> Path:
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return path


def bomb(width: int, height: int) -> bytes:
    """A PNG of a few bytes that says it has width x height pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0")) + chunk(b"IEND", b"")


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tiny model, pictures, records, a configuration and one finished run."""
    root = tmp_path_factory.mktemp("world")
    tiny.build("qwen3_vl", root / "model")
    picture = Image.new("RGB", (32, 32), "white")
    for name in ("a.png", "gone.png"):
        picture.save(root / name)
    whole = (root / "a.png").read_bytes()
    (root / "cut.png").write_bytes(whole[: len(whole) // 2])
    (root / "text.png").write_text("no picture")
    (root / "bomb.png").write_bytes(bomb(90_000, 90_000))
    (root / "large.png").write_bytes(bomb(15_000, 9_000))
    (root / "folder").mkdir()
    (root / "file").write_text("x")
    (root / "bad_rewards.py").write_text(REWARDS)
    (root / "leaving_plugin.py").write_text("import sys\nsys.exit(3)\n")
    write_records(root / "train.jsonl", *[{**GOOD, "id": f"t{i}"} for i in range(4)])
    write_records(root / "eval.jsonl", {**GOOD, "id": "e"})
    (root / "run.yaml").write_text(
        "family: vlm\nrecipe: grpo\ndevice: cpu\nmodel: {path: model}\ndata: {train: train.jsonl, eval: eval.jsonl}\n"
        "sampling: {max_new_tokens: 2}\ntrain: {steps: 2, prompts: 2, group: 2}\neval: {samples: 1}\n"
        "checkpoint: {every: 1}\nlog: {tensorboard: false}\n"
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        assert run(["train", "run.yaml", "out=finished"]) == 0
    return root


@pytest.fixture
def here(world: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(world)
    monkeypatch.syspath_prepend(str(world))
    # rewards of these plug-ins stay in here
    monkeypatch.setattr(registry, "_REWARDS", dict(registry.registered()))
    return world


@pytest.fixture
def copied(here: Path, tmp_path: Path) -> Path:
    """A copy of the finished run."""
    return Path(shutil.copytree(here / "finished", tmp_path / "run"))


def error_of(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    """The one error line of a command that fails with exit code 2. Lines before it tell of a run under way."""
    capsys.readouterr()
    assert run([str(a) for a in arguments]) == 2
    shown = capsys.readouterr().err
    lines = shown.splitlines()
    assert shown.endswith("\n") and lines[-1].startswith("error: "), shown
    assert sum(line.startswith("error: ") for line in lines) == 1 and "Traceback" not in shown
    return lines[-1]


def only_error_of(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    """The same, when the mistake shows before a run begins: nothing else on stderr."""
    capsys.readouterr()
    assert run([str(a) for a in arguments]) == 2
    shown = capsys.readouterr().err
    assert shown.startswith("error: ") and shown.count("\n") == 1, shown
    return shown


def says(message: str, *parts: str) -> None:
    for part in parts:
        assert part in message, message


def contents(folder: Path) -> dict[str, str]:
    files = (p for p in folder.rglob("*") if p.is_file())
    return {str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


# ---- configurations --------------------------------------------------------------------------------------------

OVERRIDES = {
    "selector": ("selection.name=unifrom", "unifrom", "'uniform'"),
    "selector option": ("selection.options={foo: 1}", "'uniform' has no option 'foo'"),
    "reward option": ("rewards.components=[{name: iou, options: {divisr: 1}}]", "divisr", "'divisor'"),
    "plug-in that ends the program": ("plugins=[leaving_plugin]", "leaving_plugin", "SystemExit"),
    "plug-in given as a file": ("plugins=[bad_rewards.py]", "module name", "bad_rewards"),
    "negative learning rate": ("optimiser.lr=-1", "optimiser.lr", "greater than 0"),
    "betas": ("optimiser.betas=[2, 0.9]", "optimiser.betas.0", "less than 1"),
    "negative seed": ("seed=-1", "seed", "greater than or equal to 0"),
    "seed above 64 bits": (f"seed={2**70}", "seed", "less than"),
    "a thousand million samples": ("train.group=1e9", "train.group", "lower one of them"),
    "a thousand million tokens": ("sampling.max_new_tokens=1000000000", "max_new_tokens", "1000000"),
    "empty run folder": ('out=""', "out", "at least 1 character"),
    "device of another kind": ("device=meta", "device", "'meta'", "cpu"),
    "no device": ("device=gpu", "device", "'gpu'", "cuda"),
    "embedded set": ("data.train=digts:train", "digts", "digits:train"),
    "part of an embedded set": ("data.eval=digits:tset", "tset", "valid: eval, train"),
    "folder as data": ("data.train=folder", "folder", "save_to_disk"),
    "metric": ("eval.metric=rewrd", "eval.metric", "'reward'"),
    "prompt budget": ("inputs.max_prompt_tokens=5", "record 'e'", "max_prompt_tokens 5"),
    "nothing to train": ("model.freeze=[vision, projector, language, embeddings]", "model.freeze"),
    "timeout without workers": ("rewards.timeout_s=1", "rewards.timeout_s", "rewards.workers"),
    "out is a file": ("out=file", "file is no folder", "out="),
    "out below a file": ("out=file/run", "is no folder", "out="),
}


@pytest.mark.parametrize("case", OVERRIDES)
def test_an_override(case: str, here: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    override, *parts = OVERRIDES[case]
    out = [] if override.startswith("out=") else [f"out={tmp_path / 'out'}"]
    says(only_error_of(capsys, "train", "run.yaml", *out, override), *parts)
    assert not (tmp_path / "out" / "checkpoints").exists()


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
@pytest.mark.parametrize("name", ["cuda", "cuda:3"])
def test_a_gpu_that_is_not_there(name: str, here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    says(only_error_of(capsys, "train", "run.yaml", f"device={name}", "out=never"), "no GPU", "cpu or auto")
    assert not (here / "never").exists()


YAML = {
    "key given twice": ("seed: 1\nseed: 2\n", "line 2", "'seed'", "twice"),
    "not text": (b"\xff\x00", "not UTF-8"),
    "recursion": ("a: &a [*a]\n", "recursive"),
    "nested too deeply": ("a: " + "[" * 4000, "nested too deeply"),
    "control character": ('a: "\x07"\n', "special characters"),
}


@pytest.mark.parametrize("case", YAML)
def test_a_configuration_file(case: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text, *parts = YAML[case]
    file = tmp_path / "bad.yaml"
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    says(only_error_of(capsys, "train", file), "bad.yaml", *parts)


def test_a_failed_start_leaves_the_folder_free(here: Path, tmp_path: Path) -> None:
    assert run(["train", "run.yaml", f"out={tmp_path}", "eval.metric=rewrd"]) == 2
    assert run(["train", "run.yaml", f"out={tmp_path}", "train.steps=0"]) == 0


# ---- records ---------------------------------------------------------------------------------------------------

MESSAGE = {"role": "user", "content": "Where?"}
RECORDS: dict[str, tuple[Any, ...]] = {
    "decompression bomb": ({"images": ["bomb.png"]}, "bomb.png", "absurdly large", "smaller"),
    "above the limit": ({"images": ["large.png"]}, "large.png", "15000 x 9000", "inputs.max_image_side"),
    "bomb in its own pixels": ({"images": ["bomb.png"], "frame": "pixel_original"}, "bomb.png", "absurdly large"),
    "no picture": ({"images": ["text.png"]}, "text.png", "not a picture"),
    "folder as picture": ({"images": ["folder"]}, "folder", "missing picture"),
    "list as id": ({"id": [1]}, "id must be text", "[1]"),
    "number too large": ({"answer": [[0, 0, 1, 10**400]]}, "too large"),
    "half a character": ({"prompt": "\ud800"}, "surrogate", "whole characters"),
    "no user": ({"prompt": [{**MESSAGE, "role": "system"}]}, "role 'user'"),
    "misspelt role": ({"prompt": [{**MESSAGE, "role": "usr"}]}, "'usr'", "'user'"),
    "content of another kind": ({"prompt": [{**MESSAGE, "content": 5}]}, "prompt[0].content", "got 5"),
    "part of another kind": ({"prompt": [{**MESSAGE, "content": [5]}]}, "prompt[0].content", "got 5"),
    "misspelt part": ({"prompt": [{**MESSAGE, "content": [{"type": "txt"}]}]}, "'txt'", "'text'"),
    "more pictures than there are": (
        {"prompt": [{**MESSAGE, "content": [{"type": "image"}, {"type": "image"}]}]},
        "places 2 images",
        "lists 1",
    ),
    "picture named in the prompt": (
        {"prompt": [{**MESSAGE, "content": [{"type": "image", "image": "a.png"}]}]},
        "'images'",
    ),
    "empty messages": ({"prompt": [{**MESSAGE, "content": ""}]}, "prompt is empty"),
}


@pytest.mark.parametrize("case", RECORDS)
def test_a_record(case: str, here: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The reader stops at the line, before weights load; check-data and a skipping run name the same fault."""
    change, *parts = RECORDS[case]
    file = write_records(here / "bad.jsonl", {**GOOD, "id": "good"}, {**GOOD, "id": "bad", **change})
    message = only_error_of(capsys, "train", "run.yaml", "data.train=bad.jsonl", f"out={tmp_path / 'out'}")
    says(message, "bad.jsonl:2", *parts)
    assert run(["check-data", str(file)]) == 2
    shown = capsys.readouterr()
    says(shown.out, *parts)
    assert shown.err == f"error: {file}: 1 of 2 records are bad, listed above; mend or remove them\n"


FILES: dict[str, tuple[Any, ...]] = {
    "latin-1": ('{"prompt": "caf\u00e9"}'.encode("latin-1"), "latin-1.jsonl:1", "UTF-8"),
    "utf-16": ('{"prompt": "x"}\n'.encode("utf-16"), "utf-16.jsonl:1", "UTF-8"),
    "a picture": (bomb(1, 1), "a picture.jsonl:1", "UTF-8"),
    "nothing but bad rows": (b"{}\n[]\n", "all 2 rows are bad", "nothing but bad rows.jsonl:1"),
}


@pytest.mark.parametrize("case", FILES)
def test_a_data_file(case: str, here: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data, *parts = FILES[case]
    file = tmp_path / f"{case}.jsonl"
    file.write_bytes(data)
    skip = ["data.on_error=skip"] if "all" in parts[0] else []
    says(only_error_of(capsys, "train", "run.yaml", f"data.train={file}", f"out={tmp_path / 'out'}", *skip), *parts)


def test_records_without_response_cannot_be_imitated(
    here: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = write_records(here / "mute.jsonl", {**GOOD, "response": None})
    message = only_error_of(capsys, "train", "run.yaml", "recipe=sft", f"data.train={file}", f"out={tmp_path / 'o'}")
    says(message, "mute.jsonl:1", "response")


def test_skipped_records_are_counted(here: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One row is bad when it is read, one picture when it is decoded: its place is taken by the next record."""
    rows = [{**GOOD, "id": "a"}, {**GOOD, "id": "b", "answer": None}, {**GOOD, "id": "c", "images": ["cut.png"]}]
    write_records(here / "some.jsonl", *rows)
    options = [
        "data.train=some.jsonl",
        "data.shuffle=false",
        "data.on_error=skip",
        "train.steps=1",
        f"out={tmp_path / 'out'}",
    ]
    assert run(["train", "run.yaml", *options]) == 0
    told = [line for line in capsys.readouterr().err.splitlines() if line.startswith("record skipped")]
    assert len(told) == 2 and "some.jsonl:2" in told[0] and "record 'c'" in told[1] and "cut.png" in told[1]
    assert json.loads((tmp_path / "out" / "summary.json").read_text())["skipped_records"] == 2
    last = json.loads((tmp_path / "out" / "metrics.jsonl").read_text().splitlines()[-1])
    assert last["skipped_records"] == 1 and last["rows"] == 4


# ---- faults in mid-run -----------------------------------------------------------------------------------------


def fresh_plugin() -> None:
    sys.modules.pop("bad_rewards", None)


def with_reward(name: str) -> list[str]:
    fresh_plugin()
    return ["plugins=[bad_rewards]", f"rewards.components=[{{name: {name}}}]"]


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        ("short", ["'short'", "1 values for"]),
        ("nan_first", ["'nan_first'", "nan"]),
        ("leaves", ["'leaves'", "SystemExit"]),
    ],
)
def test_a_reward_that_breaks_its_contract(
    name: str, parts: list[str], here: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """One record in the evaluation and two samples a prompt: a list of one is right by chance there, and only there."""
    message = error_of(capsys, "train", "run.yaml", *with_reward(name), f"out={tmp_path / 'out'}")
    says(message, "record", *parts, "rewards.on_error: skip")


def test_a_failing_reward_is_skipped_and_counted(
    here: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = [*with_reward("nan_first"), "rewards.on_error=skip", f"out={tmp_path / 'out'}"]
    assert run(["train", "run.yaml", *options]) == 0
    assert json.loads((tmp_path / "out" / "summary.json").read_text())["reward_failures"] == 4
    rows = [json.loads(line) for line in (tmp_path / "out" / "metrics.jsonl").read_text().splitlines()]
    assert [row.get("reward_failures") for row in rows] == [None, 2, 4]


def test_what_was_learnt_before_a_reward_raises_is_kept(
    here: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """No checkpoint is due, yet the steps done are saved, and the same step is tried again after the repair."""
    out = tmp_path / "out"
    options = [*with_reward("raises_later"), "train.steps=4", "checkpoint.every=0", f"out={out}"]
    says(error_of(capsys, "train", "run.yaml", *options), "'raises_later'", "RuntimeError: boom")
    (saved,) = checkpoint.folders(out)
    done = int(saved.name.removeprefix("step-"))
    assert done >= 1
    assert json.loads((saved / "state.json").read_text())["trainer"]["selector"] == {"drawn": 2 * done}
    fresh_plugin()
    text = (here / "bad_rewards.py").read_text()
    (here / "bad_rewards.py").write_text(text.replace("len(calls) > 4", "False"))
    try:
        assert run(["train", "run.yaml", *options, "--resume"]) == 0
    finally:
        (here / "bad_rewards.py").write_text(text)
        fresh_plugin()
    steps = [json.loads(line)["step"] for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert steps == [0, 1, 2, 3, 4]


def test_a_picture_that_vanishes_in_mid_run(here: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_records(here / "gone.jsonl", {**GOOD, "id": "stays"}, {**GOOD, "id": "goes", "images": ["gone.png"]})
    picture = (here / "gone.png").read_bytes()
    options = ["data.train=gone.jsonl", "train.steps=4"]
    for on_error in ("stop", "skip"):
        (here / "gone.png").write_bytes(picture)
        out = tmp_path / on_error
        arguments = [*options, *with_reward("takes_pictures_away"), f"data.on_error={on_error}", f"out={out}"]
        if on_error == "stop":
            says(error_of(capsys, "train", "run.yaml", *arguments), "record 'goes'", "gone.png", "no such file")
            assert checkpoint.folders(out)
        else:
            assert run(["train", "run.yaml", *arguments]) == 0
            assert json.loads((out / "summary.json").read_text())["skipped_records"] > 0


# ---- models ----------------------------------------------------------------------------------------------------


def change(file: str, text: str | bytes | None) -> Callable[[Path], None]:
    """Write the file; None deletes it."""

    def apply(folder: Path) -> None:
        if text is None:
            (folder / file).unlink()
        else:
            (folder / file).write_bytes(text if isinstance(text, bytes) else text.encode())

    return apply


def other_weights(folder: Path) -> None:
    wide = tiny.build("qwen3_vl", folder.parent / "wide", hidden=64)
    shutil.copy(wide / "model.safetensors", folder / "model.safetensors")


def text_model(folder: Path) -> None:
    config = {"model_type": "llama", "architectures": ["LlamaForCausalLM"], "hidden_size": 32}
    (folder / "config.json").write_text(json.dumps(config))


def remote_code(folder: Path) -> None:
    config = {"model_type": "mine", "auto_map": {"AutoConfig": "mine.Config"}}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "mine.py").write_text(f"open({str(folder / 'ran')!r}, 'w')\nclass Config: pass\n")


MODELS: dict[str, tuple[Any, ...]] = {
    "text only": (text_model, "'llama'", "qwen3_vl"),
    "unknown kind": (change("config.json", '{"model_type": "foo_vl"}'), "foo_vl"),
    "broken config": (change("config.json", "{"), "config.json", "save_pretrained"),
    "config of another kind": (change("config.json", '{"model_type": "qwen3_vl", "text_config": 5}'), "text_config"),
    "truncated weights": (change("model.safetensors", b"\x10\0\0\0"), "cannot load", "save_pretrained"),
    "weights of another size": (other_weights, "do not fit", "wrong", "lm_head"),
    "no tokenizer": (change("tokenizer.json", None), "processor", "tokenizer"),
    "broken tokenizer": (change("tokenizer.json", "{}"), "processor", "added_tokens"),
    "broken chat template": (change("chat_template.jinja", "{% for x in %}"), "chat template"),
    "code of its own": (remote_code, "custom code", "model.trust_remote_code"),
}


@pytest.mark.parametrize("case", MODELS)
def test_a_model(case: str, here: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    damage, *parts = MODELS[case]
    folder = Path(shutil.copytree(here / "model", tmp_path / "model"))
    damage(folder)
    says(only_error_of(capsys, "train", "run.yaml", f"model.path={folder}", f"out={tmp_path / 'o'}"), *parts)
    assert not (folder / "ran").exists()


def test_adapters(here: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """An adapter whose base is another model, is gone, or whose own files are damaged."""
    out = tmp_path / "out"
    assert run(["train", "run.yaml", "train.steps=0", "model.adapter={kind: lora, rank: 2}", f"out={out}"]) == 0
    made = checkpoint.folders(out)[-1] / "model"
    config = json.loads((made / "adapter_config.json").read_text())
    wide, other = tiny.build("qwen3_vl", tmp_path / "wide", hidden=64), tiny.build("qwen2_vl", tmp_path / "other")

    def message(name: str, **changes: Any) -> str:
        folder = Path(shutil.copytree(made, tmp_path / name))
        (folder / "adapter_config.json").write_text(json.dumps({**config, **changes}))
        if name == "broken":
            (folder / "adapter_config.json").write_text("{")
        if name == "cut":
            (folder / "adapter_model.safetensors").write_bytes(b"abc")
        return error_of(capsys, "generate", folder, "--prompt", "x", "--config", "run.yaml", "--out", tmp_path / "g")

    says(message("size", base_model_name_or_path=str(wide)), "adapter", "size mismatch")
    says(message("kind", base_model_name_or_path=str(other)), "Qwen3VL", "Qwen2VL", "adapter_config.json")
    says(message("gone", base_model_name_or_path="/no/such"), "/no/such")
    says(message("broken"), "adapter_config.json", "broken JSON")
    says(message("cut"), "cannot load the adapter")


# ---- run folders -----------------------------------------------------------------------------------------------

RESUMED = {
    "other recipe": ("recipe=rloo", "recipe", "'grpo'", "'rloo'", "out="),
    "other seed": ("seed=3", "seed", "was made with 0"),
    "adapter": ("model.adapter.kind=lora", "model.adapter.kind", "'none'"),
    "averaged weights": ("ema.enabled=true", "ema.enabled"),
    "frozen parts": ("model.freeze=[vision]", "model.freeze"),
    "metric": ("eval.metric=rewrd", "eval.metric", "'reward'"),
    "bad records": ("data.train=mute_answer.jsonl", "mute_answer.jsonl:1", "answer"),
}


@pytest.mark.parametrize("case", RESUMED)
def test_resuming_as_another_run(case: str, copied: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_records(Path("mute_answer.jsonl"), {**GOOD, "answer": None})
    override, *parts = RESUMED[case]
    before = contents(copied)
    says(error_of(capsys, "train", "run.yaml", f"out={copied}", "train.steps=4", override, "--resume"), *parts)
    assert contents(copied) == before


def test_resuming_with_a_model_of_another_size(
    copied: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    wide = tiny.build("qwen3_vl", tmp_path / "wide", hidden=64)
    before = contents(copied)
    message = error_of(capsys, "train", "run.yaml", f"out={copied}", f"model.path={wide}", "train.steps=4", "--resume")
    says(message, "has shape", "resume")
    assert contents(copied) == before


@pytest.mark.parametrize("out", ["new", "folder"])
def test_resuming_nothing(out: str, here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    says(only_error_of(capsys, "train", "run.yaml", f"out={out}", "--resume"), "nothing to resume", "without --resume")
    assert not (here / "new").exists() and not any((here / "folder").iterdir())


def resume(folder: Path) -> list[str]:
    return ["train", "run.yaml", f"out={folder}", "train.steps=4", "--resume"]


def report(folder: Path) -> list[str]:
    return ["report", str(folder)]


def evaluate(folder: Path) -> list[str]:
    return ["eval", str(folder)]


def generate(folder: Path) -> list[str]:
    return ["generate", str(folder), "--prompt", "x", "--out", str(folder.parent / "answers")]


DAMAGES = {"cut": b'{"a": [1,\n{x: y: z', "binary": b"\xff\xfe\x00\x80", "list": b"[1, 2]\n"}
STATE = "checkpoints/step-000002/state.json"
DAMAGED: list[tuple[str, Callable[[Path], list[str]]]] = [
    ("metrics.jsonl", resume),
    ("metrics.jsonl", report),
    ("summary.json", report),
    ("config.yaml", evaluate),
    ("config.yaml", generate),
    (STATE, evaluate),
    (STATE, generate),
    ("checkpoints/step-000002/manifest.json", evaluate),
    ("samples/step-000002.jsonl", report),
    ("samples/rollouts-step-000002.jsonl", report),
]


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize(("file", "command"), DAMAGED, ids=[f"{c.__name__} {f}" for f, c in DAMAGED])
def test_a_damaged_run_folder(
    file: str, command: Callable[[Path], list[str]], damage: str, copied: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (copied / file).write_bytes(DAMAGES[damage])
    before = contents(copied)
    name = "step-000002" if file == STATE else Path(file).name
    says(error_of(capsys, *command(copied)), name, ";" if file != STATE else "use another step folder")
    assert contents(copied) == before


def test_damaged_checkpoints_are_passed_over_but_a_run_never_begins_again(
    copied: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    newest, older = reversed(checkpoint.folders(copied))
    (newest / "state.json").write_text("{}")
    (older / "state.json").write_text("{}")
    before = contents(copied)
    says(error_of(capsys, *resume(copied)), "every checkpoint is damaged", "out=")
    assert contents(copied) == before


def test_a_config_above_the_run_folder_is_not_taken_for_its_own(
    copied: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (copied / "config.yaml").rename(copied.parent / "config.yaml")
    says(only_error_of(capsys, *evaluate(copied)), "config.yaml", "--config")


def test_a_damaged_picture_is_named_on_the_page(copied: Path) -> None:
    (picture,) = (copied / "samples" / "images").iterdir()
    picture.write_text("no picture")
    assert run(report(copied)) == 0
    assert "not a picture" in (copied / "report.html").read_text()


# ---- the other commands ----------------------------------------------------------------------------------------

COMMANDS: dict[str, tuple[list[str], list[str]]] = {
    "report of no run": (["report", "folder"], ["folder", "neither metrics.jsonl nor summary.json"]),
    "report to a folder": (["report", "finished", "--out", "folder"], ["folder", "written to"]),
    "report below a file": (["report", "finished", "--out", "file/page.html"], ["file", "written to"]),
    "eval of a folder with nothing": (["eval", "folder"], ["no checkpoint in it"]),
    "no picture": (["generate", "model", "--prompt", "x", "--image", "none.png"], ["none.png", "no such file"]),
    "text as picture": (["generate", "model", "--prompt", "x", "--image", "text.png"], ["text.png", "not a picture"]),
    "folder as picture": (["generate", "model", "--prompt", "x", "--image", "folder"], ["folder", "no such file"]),
    "empty question": (["generate", "model", "--prompt", " "], ["--prompt"]),
    "half a character": (["generate", "model", "--prompt", "\udcff"], ["--prompt", "UTF-8"]),
    "answers to a file": (["generate", "model", "--prompt", "x", "--out", "file"], ["file", "written to"]),
    "too many answers": (["generate", "model", "--prompt", "x", "--n", "100000000"], ["--n", "10000"]),
    "seed above 64 bits": (["generate", "model", "--prompt", "x", "--seed", str(2**70)], ["--seed"]),
    "check-data of a folder": (["check-data", "folder"], ["folder", "save_to_disk"]),
    "doctor of nothing": (["doctor", "none.yaml"], ["none.yaml", "1 problem"]),
    "option not given": (["check-reward", "bad_rewards:needs_a_limit"], ["needs the option 'limit'"]),
    "option misspelt": (["check-reward", "bad_rewards:needs_a_limit", "--option", "limt=3"], ["limt", "'limit'"]),
    "option of another kind": (["check-reward", "bad_rewards:needs_a_limit", "--option", "limit=x"], ["limit", "'x'"]),
    "option without value": (["check-reward", "bad_rewards:needs_a_limit", "--option", "limit"], ["key=value"]),
    "option twice": (
        ["check-reward", "bad_rewards:needs_a_limit", "--option", "limit=1", "--option", "limit=2"],
        ["twice"],
    ),
    "reward of the wrong length": (["check-reward", "bad_rewards:short"], ["bad_rewards:short", "contract"]),
    "reward that ends the program": (["check-reward", "bad_rewards:leaves"], ["bad_rewards:leaves", "contract"]),
}


@pytest.mark.parametrize("case", COMMANDS)
def test_a_command(case: str, here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments, parts = COMMANDS[case]
    before = contents(here / "finished")
    fresh_plugin()
    says(only_error_of(capsys, *arguments), *parts)
    assert contents(here / "finished") == before


def test_a_reward_with_a_required_option_can_be_checked(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fresh_plugin()
    assert run(["check-reward", "bad_rewards:needs_a_limit", "--option", "limit=3"]) == 0
    assert "keeps the contract" in capsys.readouterr().out


def test_in_a_real_process(here: Path, copied: Path) -> None:
    """Libraries that warn on their own would show here and not above."""
    code = "from mmrl.cli.main import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", code, *resume(copied), "recipe=rloo"], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1, done.stderr
