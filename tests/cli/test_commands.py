"""The command line: light start, dry run, and one clear line with exit code 2 for every mistake."""

from __future__ import annotations

import json
import resource
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image

from mmrl import recipes
from mmrl.cli.main import run
from mmrl.cli.plan import arithmetic, pieces
from mmrl.cli.quickstart import free_folder
from mmrl.cli.tables import metric_rows
from mmrl.config_io import recipe_of, resolve
from mmrl.paths import shipped_configs
from mmrl.vlm.generate import draw_boxes, printable, write_answers


def mmrl(*arguments: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", "from mmrl.cli.main import main; main()", *arguments]
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd, timeout=120)


def fails(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert run(arguments) == 2
    shown = capsys.readouterr()
    assert shown.err.startswith("error: ")
    assert shown.err.count("\n") == 1
    assert "Traceback" not in shown.err
    return shown.err


# ---- start -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "statement",
    [
        "import mmrl",
        "from mmrl.cli.main import run; run(['--help'])",
        "from mmrl.cli.main import run; run(['recipes'])",
        "from mmrl.cli.main import run; run(['recipes', 'visual-rft'])",
        "from mmrl import config_io; config_io.resolve('quickstart/vlm')",
        "import mmrl.report, mmrl.training.memory",
    ],
)
def test_light_commands_load_no_torch(statement: str) -> None:
    check = "heavy = {'torch', 'transformers', 'numpy'} & set(sys.modules); assert not heavy, heavy"
    code = f"import sys; {statement}; {check}"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("arguments", [["--help"], ["recipes"], ["--version"]])
def test_light_commands_answer_at_once(arguments: list[str]) -> None:
    """Processor time, which is wall time on an idle machine; the machine that runs the tests is not idle."""
    spent = []
    for _ in range(3):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        assert mmrl(*arguments).returncode == 0
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        spent.append(after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime)
    assert min(spent) < 0.5


def test_help_names_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["--help"]) == 0
    text = capsys.readouterr().out
    for name in (
        "quickstart",
        "train",
        "eval",
        "generate",
        "export",
        "report",
        "recipes",
        "doctor",
        "check-data",
        "check-reward",
    ):
        assert name in text
        assert run([name, "--help"]) == 0


def test_recipes_lists_all_and_shows_one(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["recipes"]) == 0
    shown = capsys.readouterr().out
    assert [line.split()[0] for line in shown.splitlines()] == recipes.available()
    assert run(["recipes", "dapo"]) == 0
    assert 'arxiv: "2503.14476"' in capsys.readouterr().out


# ---- mistakes --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (["trian"], ["trian", "train"]),
        (["train"], ["config"]),
        (["train", "nope.yaml"], ["nope.yaml", "no such configuration"]),
        (["train", "quickstart/vlm", "--dryrun"], ["--dryrun", "--dry-run"]),
        (["train", "quickstart/vlm", "train.group=1", "--dry-run"], ["train.group", "group-relative"]),
        (["train", "quickstart/vlm", "recipe_options.gate.dual_clp=3", "--dry-run"], ["dual_clp", "'dual_clip'"]),
        (["train", "quickstart/vlm", "recipe_options.gate.name=ppo_clp", "--dry-run"], ["ppo_clp", "'ppo-clip'"]),
        (["train", "quickstart/vlm", "rewards.components=[{name: detectoin}]", "--dry-run"], ["detectoin", "valid:"]),
        (["train", "quickstart/vlm", "plugins=[no_such_plugin]", "--dry-run"], ["no_such_plugin"]),
        (["recipes", "grop"], ["grop", "'grpo'"]),
        (["recipes", "gdpo"], ["gdpo-diffusion", "gdpo-decoupled"]),
        (["quickstart", "vml"], ["vml", "'vlm'"]),
        (["quickstart", "vlm", "--control", "shufled"], ["shufled", "shuffled"]),
        (["quickstart", "vlm", "--steps", "-1"], ["--steps", "0"]),
        (["eval", "nowhere"], ["nowhere", "no such checkpoint"]),
        (["generate", "nowhere", "--prompt", "x"], ["nowhere", "no such checkpoint"]),
        (["export", "nowhere", "--out", "new"], ["nowhere", "no such checkpoint"]),
        (["report", "nowhere"], ["nowhere", "no such run folder"]),
        (["check-reward", "os.path"], ["module:function"]),
        (["check-reward", "os.path:jion"], ["jion", "'join'"]),
        (["check-reward", "no_such_module:f"], ["no_such_module"]),
    ],
)
def test_mistakes_are_one_line(capsys: pytest.CaptureFixture[str], arguments: list[str], parts: list[str]) -> None:
    message = fails(capsys, *arguments)
    for part in parts:
        assert part in message, message


@pytest.mark.parametrize(
    "arguments", [["train", "quickstart/vlm", "lr=1", "--dry-run"], ["eval", "nowhere"], ["report", "."], ["nonsense"]]
)
def test_mistakes_in_a_real_process(tmp_path: Path, arguments: list[str]) -> None:
    done = mmrl(*arguments, cwd=tmp_path)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1


def test_pickle_checkpoints_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "pytorch_model.bin").write_bytes(b"\x80\x04")
    assert "pickle" in fails(capsys, "eval", str(tmp_path))
    assert "pickle" in fails(capsys, "eval", str(tmp_path / "pytorch_model.bin"))


def test_an_interrupt_ends_with_130(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("mmrl.recipes.available", interrupted)
    assert run(["recipes"]) == 130
    assert "Traceback" not in capsys.readouterr().err


def test_a_stopped_run_says_how_to_go_on(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    from mmrl.training import run as training
    from mmrl.training.interrupt import Interrupted

    def stopped(*_: object, **__: object) -> None:
        raise Interrupted(15, 7)

    monkeypatch.setattr(training, "train", stopped)
    assert run(["train", "quickstart/vlm"]) == 128 + 15
    shown = capsys.readouterr().err
    assert "after step 7" in shown and "--resume" in shown and "Traceback" not in shown


def test_a_size_without_a_rank_is_no_launcher(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "8")
    told = fails(capsys, "train", "quickstart/vlm", f"out={tmp_path / 'run'}")
    assert "start several processes with torchrun" in told


def test_dry_run_tells_how_prompts_fall_on_ranks(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "4")
    assert run(["train", "quickstart/vlm", "--dry-run", "distributed.mode=fsdp2"]) == 0
    assert "4 ranks: up to 2 prompts = 32 rollouts each" in capsys.readouterr().out


@pytest.mark.parametrize("setting", ["optimiser.kind=adamw8bit", "model.shared_prefix=cache"])
def test_shards_refuse_what_they_cannot_do(capsys: pytest.CaptureFixture[str], tmp_path: Path, setting: str) -> None:
    told = fails(capsys, "train", "quickstart/vlm", "distributed.mode=fsdp2", setting, f"out={tmp_path / 'run'}")
    assert setting.split("=")[0] in told and "fsdp2" in told


def test_a_bug_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr("mmrl.recipes.available", broken)
    with pytest.raises(ZeroDivisionError):
        run(["recipes"])


# ---- dry run ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", shipped_configs())
def test_every_shipped_configuration_passes_the_dry_run(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["train", name, "--dry-run"]) == 0
    text = capsys.readouterr().out
    assert "# group arithmetic" in text
    assert "peak of the update" in text or "size unknown" in text


def test_group_arithmetic() -> None:
    config = resolve("quickstart/vlm", ["train.prompts=6", "train.group=4", "train.minibatches=3", "train.epochs=2"])
    lines = arithmetic(config, recipe_of(config), ranks=4)
    assert lines[0].startswith("6 prompts x 4 samples = 24 rollouts")
    assert lines[1].startswith("4 ranks: up to 2 prompts = 8 rollouts each")
    assert lines[2].startswith("2 passes x 3 minibatches = 6 optimiser steps")
    assert lines[2].endswith("about 8 rollouts")


def test_a_plan_of_shards_for_one_process_says_so() -> None:
    config = resolve("quickstart/vlm", ["distributed.mode=fsdp2"])
    recipe = recipe_of(config)
    for ranks in (1, 2):
        told = any("dry run under torchrun" in line for line in arithmetic(config, recipe, ranks=ranks))
        assert told == (ranks == 1)


def test_the_plan_of_a_recipe_that_compares_rows_cuts_no_group() -> None:
    options = ["train.prompts=6", "train.group=4", "train.minibatches=2", "model.piece_tokens=64"]
    for recipe, whole in (("tw-grpo", True), ("reg-grpo", True), ("grpo", False)):
        config = resolve("quickstart/vlm", [*options, f"recipe={recipe}", "recipe_options={}"])
        text = "\n".join(arithmetic(config, recipe_of(config), ranks=1))
        assert ("pieces of whole groups" in text) == whole and (
            "rows a piece" in text or "row a piece" in text
        ) != whole
        if whole:
            assert "at most 3 pieces an optimiser step and rank" in text


def test_pieces_are_those_of_the_policy() -> None:
    """Literal numbers, and equal to the plan that training cuts by."""
    from mmrl.vlm.batching import plan
    from mmrl.vlm.encode import Prompt
    from mmrl.vlm.rows import Row

    assert pieces(8, 8, prompt=100, completion=50, budget=1500) == 7  # 10 rows a piece
    for prompts, group, prompt, completion, budget in [
        (8, 8, 100, 50, 1500),
        (5, 4, 100, 10, 350),  # three prompts a bundle: 12 rows in fours, 8 rows in threes
        (3, 2, 40, 40, 50),  # nothing fits: a row a piece
        (2, 3, 60, 5, 50),
    ]:
        encoded = [
            Prompt(torch.zeros(prompt, dtype=torch.long), torch.zeros(3, prompt, dtype=torch.long), prompt)
            for _ in range(prompts)
        ]
        rows = [Row(p, torch.zeros(completion, dtype=torch.long)) for p in encoded for _ in range(group)]
        groups = [i // group for i in range(len(rows))]
        bundles = plan(rows, groups, width=completion, scope="decision", form="cache", budget=budget)
        counted = sum(len(b.pieces) for b in bundles)
        assert pieces(prompts, group, prompt=prompt, completion=completion, budget=budget) == counted


def test_the_plan_tells_pieces_by_prompt_length() -> None:
    options = ["model.piece_tokens=2000", "sampling.max_new_tokens=100", "inputs.max_prompt_tokens=900"]
    config = resolve("quickstart/vlm", [*options, "train.prompts=6", "train.group=4", "train.minibatches=3"])
    text = "\n".join(arithmetic(config, recipe_of(config), ranks=1))
    assert "prompts of 256 tokens: 5 rows a piece, 2 pieces an optimiser step" in text
    assert "prompts of 900 tokens (the limit, inputs.max_prompt_tokens): 2 rows a piece, 4 pieces an" in text
    assert "1024" not in text


def test_imitation_takes_one_row_a_record() -> None:
    options = ["recipe=sft", "recipe_options={}", "train.prompts=6", "train.group=4", "train.minibatches=1"]
    config = resolve("quickstart/vlm", options)
    lines = arithmetic(config, recipe_of(config), ranks=1)
    assert lines[0].startswith("6 records a step")
    assert lines[1].startswith("1 rank: up to 6 prompts = 6 rollouts each")
    assert lines[2].endswith("each over about 6 rollouts")
    assert lines[-1].startswith(f"{config.train.steps} steps = {config.train.steps * 6} rollouts")


# ---- what the commands write -----------------------------------------------------------------------------------


def test_generate_draws_the_boxes(tmp_path: Path) -> None:
    picture = Image.new("RGB", (64, 64), "white")
    drawn = draw_boxes(picture, [[8, 16, 24, 40]])
    assert drawn.size == (512, 512)
    red = (0xE4, 0x57, 0x2E)
    assert drawn.getpixel((8 * 8, 30 * 8)) == red  # left edge
    assert drawn.getpixel((16 * 8, 16 * 8)) == red  # upper edge
    assert drawn.getpixel((16 * 8, 30 * 8)) == (255, 255, 255)  # inside
    assert picture.getpixel((8, 30)) == (255, 255, 255)  # the original is untouched
    answers = [{"output": "<answer>one</answer>", "images": [picture], "boxes": [[8, 16, 24, 40]]}]
    files = write_answers(answers, tmp_path / "out", prompt="find it", checkpoint="run", seed=1, frame="norm1")
    assert [f.name for f in files] == ["answer-0.png", "answers.json"]
    written = json.loads(files[1].read_text())
    assert written["prompt"] == "find it" and written["frame"] == "norm1"
    assert written["answers"] == [
        {"output": "<answer>one</answer>", "boxes": [[8, 16, 24, 40]], "image": "answer-0.png"}
    ]


def test_model_output_cannot_steer_the_terminal() -> None:
    assert printable("one\n\x1b[2Jtwo\x07") == "one\n\ufffd[2Jtwo\ufffd"


def test_a_second_quickstart_takes_another_folder(tmp_path: Path) -> None:
    assert free_folder(tmp_path, "a") == tmp_path / "a"
    (tmp_path / "a").mkdir()
    assert free_folder(tmp_path, "a") == tmp_path / "a"  # still empty
    (tmp_path / "a" / "x").touch()
    assert free_folder(tmp_path, "a") == tmp_path / "a-2"


def test_summary_rows() -> None:
    summary = {"chance": {"iou": 0.1}, "before": {"iou": 0.5, "n": 3, "text": "x"}, "after": {"iou": 0.625}}
    assert metric_rows(summary) == [("iou", "0.100", "0.500", "0.625", "+0.125")]


REWARDS = """
import random
def good(outputs, records, info): return [float(len(o)) for o in outputs]
def short(outputs, records, info): return [1.0]
def nan(outputs, records, info): return [float("nan")] * len(outputs)
def noisy(outputs, records, info): return [random.random() for _ in outputs]
"""


@pytest.mark.parametrize(("name", "code"), [("good", 0), ("short", 2), ("nan", 2), ("noisy", 2)])
def test_check_reward(
    name: str, code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "rewards_under_test.py").write_text(REWARDS)
    monkeypatch.syspath_prepend(tmp_path)
    assert run(["check-reward", f"rewards_under_test:{name}"]) == code
    assert name in capsys.readouterr().out


GOOD = {"id": "a", "task": "classification", "prompt": "Which digit?", "answer": "7"}


def jsonl(path: Path, *rows: object) -> Path:
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return path


def test_check_data_lists_every_bad_row(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = jsonl(
        tmp_path / "bad.jsonl",
        GOOD,
        {**GOOD, "id": "b", "answer": None},
        "{broken",
        {**GOOD, "id": "c", "images": ["no.png"]},
    )
    assert run(["check-data", str(file)]) == 2
    text = capsys.readouterr().out
    assert "1 good records, 3 bad" in text
    assert "bad.jsonl:2" in text and "bad.jsonl:3" in text and "no.png" in text
    assert run(["check-data", str(jsonl(tmp_path / "good.jsonl", GOOD))]) == 0


def test_check_data_of_an_empty_or_missing_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "empty" in fails(capsys, "check-data", str(jsonl(tmp_path / "empty.jsonl")))
    assert "no such file" in fails(capsys, "check-data", str(tmp_path / "none.jsonl"))


def test_doctor_describes_the_machine(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["doctor"]) == 0
    text = capsys.readouterr().out
    for word in ("mmrl ", "torch ", "transformers ", "cores: ", "memory: ", "free disk", "device"):
        assert word in text


def test_doctor_lists_all_problems_of_a_configuration(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = tmp_path / "model"
    model.mkdir()
    (model / "pytorch_model.bin").touch()
    jsonl(tmp_path / "train.jsonl", {**GOOD, "answer": None})
    config = tmp_path / "run.yaml"
    config.write_text(
        "family: vlm\nrecipe: grpo\nrecipe_options: {gate.dual_clp: 3}\nmodel: {path: model}\n"
        "data: {train: train.jsonl}\nrewards: {components: [{name: nonsense}]}\n"
    )
    assert run(["doctor", str(config)]) == 2
    problems = [line for line in capsys.readouterr().out.splitlines() if line.startswith("problem: ")]
    for word in ("dual_clp", "nonsense", "train.jsonl:1", "config.json", "pickle", "tokenizer"):
        assert sum(word in line for line in problems) == 1, problems
