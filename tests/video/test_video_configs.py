"""The shipped configurations for video-language models: complete, within the memory that their first line names."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from mmrl.cli import preflight
from mmrl.cli.main import run
from mmrl.config_io import recipe_of, resolve
from mmrl.data.read import read_records
from mmrl.data.records import Record
from mmrl.errors import UserError
from mmrl.paths import configs_dir
from mmrl.rewards.score import Scorer
from mmrl.training.setup import load_records
from mmrl.vlm import memory as vlm_memory
from video import memory

FOLDER = configs_dir() / "video"
#: Tokens of the largest video and of 8 answers behind it.
WHOLE_GROUPS = {
    "qwen2_5_vl_3b_deepvideo_r1": 8 * 81 + 8 * 1024,
    "qwen2_5_vl_3b_tw_grpo_lora_1gpu": 8 * 196 + 8 * 1024,
    "qwen2_5_vl_7b_tw_grpo_8gpu": 8 * 196 + 8 * 4096,
    "qwen3_vl_4b_tw_grpo_lora": 8 * 196 + 8 * 1024,
}
NAMES = sorted(p.stem for p in FOLDER.glob("*.yaml"))


def test_the_configurations_are_there() -> None:
    small = ["qwen2_5_vl_3b_deepvideo_r1", "qwen2_5_vl_3b_tw_grpo_lora_1gpu", "qwen3_vl_4b_tw_grpo_lora"]
    assert sorted(NAMES) == sorted([*small, "qwen2_5_vl_7b_tw_grpo_8gpu"])


@pytest.mark.parametrize("name", NAMES)
def test_it_can_start_and_fits(name: str) -> None:
    found = re.search(r"on (one GPU|8 GPUs) of (\d+) GB", (FOLDER / f"{name}.yaml").read_text().splitlines()[0])
    assert found is not None
    ranks = 1 if found[1] == "one GPU" else 8
    config = resolve(f"video/{name}")
    recipe = recipe_of(config)
    assert preflight.problems(config) == []
    shape = vlm_memory.shape_of(config.model.path)
    assert shape is not None
    frames = memory.frames_of(config.inputs, shape)
    assert frames.tokens < config.inputs.max_prompt_tokens / 2
    text = "\n".join(memory.describe(config, recipe, ranks=ranks))
    peaks = [float(n) for n in re.findall(r"peak of the \w+\s+([\d.]+) GiB", text)]
    assert len(peaks) == 2
    assert max(peaks) * 2**30 < int(found[2]) * 1e9 * 0.8  # what the allocator fragments


@pytest.mark.parametrize("name", NAMES)
def test_the_dry_run(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["train", f"configs/video/{name}.yaml", "--dry-run"]) == 0
    shown = capsys.readouterr().out
    assert "# group arithmetic" in shown and "M parameters" in shown and "vision tower, frozen" in shown
    whole = re.search(r"a piece holds a whole group \((\d+) tokens", shown.partition("# memory")[2])
    assert whole is not None and int(whole[1]) == WHOLE_GROUPS[name]


def test_published_numbers() -> None:
    one = resolve("video/qwen2_5_vl_7b_tw_grpo_8gpu")
    tw = recipe_of(one)
    assert (one.train.group, one.train.prompts, one.train.steps, one.optimiser.lr) == (8, 8, 500, 1e-6)
    assert (one.optimiser.grad_norm, one.sampling.max_new_tokens, one.inputs.max_prompt_tokens) == (20.0, 4096, 4096)
    assert (one.inputs.fps, one.inputs.min_frames, one.inputs.max_frames) == (2.0, 4, 16)
    assert (one.inputs.frame_min_pixels, one.inputs.frame_max_pixels) == (128 * 28 * 28, 196 * 28 * 28)
    assert "vision" in one.model.freeze and one.model.adapter.kind == "none"
    assert [spec["alpha"] for c in tw.channels.values() for spec in c.weight] == [1.7]
    other = resolve("video/qwen2_5_vl_3b_deepvideo_r1")
    assert other.selection.options["window"] == 100 and other.train.group == 8
    assert (other.inputs.max_frames, other.inputs.frame_max_pixels) == (16, 252 * 252)
    assert [s["coef"] for c in recipe_of(other).channels.values() for s in c.penalties] == [0.1]


def samples(folder: Path, name: str) -> list[Record]:
    """The sample records, with files where they name videos."""
    lines = (FOLDER / "samples" / f"{name}.jsonl").read_text(encoding="utf-8")
    (folder / "videos").mkdir(exist_ok=True)
    for line in lines.splitlines():
        for video in json.loads(line)["videos"]:
            (folder / video).touch()
    (folder / f"{name}.jsonl").write_text(lines, encoding="utf-8")
    return read_records(folder / f"{name}.jsonl")[0]


def test_a_demonstration_of_the_samples_earns_the_full_reward(tmp_path: Path) -> None:
    config = resolve("video/qwen2_5_vl_3b_tw_grpo_lora_1gpu")
    preflight.problems(config)  # registers the rewards of videos
    records = [r for r in samples(tmp_path, "choice") if r.response]
    assert len(records) == 3
    assert not {r.prompt for r in samples(tmp_path, "choice")} & {r.prompt for r in samples(tmp_path, "choice_eval")}
    with Scorer(config.rewards) as scorer:
        scored = scorer.score([r.response or "" for r in records], records, [{} for _ in records])
    assert scored.reward_nk.tolist() == [[1.0, 1.0]] * 3


def test_the_adapter_that_the_file_of_deepvideo_r1_names_fits_a_smaller_gpu() -> None:
    text = (FOLDER / "qwen2_5_vl_3b_deepvideo_r1.yaml").read_text()
    found = re.search(r"^# A GPU of (\d+) GB: add (.*)$", text, flags=re.M)
    assert found is not None
    config = resolve("video/qwen2_5_vl_3b_deepvideo_r1", found[2].split())
    assert preflight.problems(config) == []
    told = "\n".join(memory.describe(config, recipe_of(config)))
    assert max(map(float, re.findall(r"peak of the \w+\s+([\d.]+) GiB", told))) * 2**30 < int(found[1]) * 0.8e9


def test_a_run_says_which_video_is_missing() -> None:
    """The samples name videos that a user has to bring: one line, before weights load."""
    config = resolve("video/qwen3_vl_4b_tw_grpo_lora")
    with pytest.raises(UserError, match=r"choice\.jsonl:1 .*: missing video .*table_1\.mp4"):
        load_records(config, "train")
    assert not (Path(FOLDER) / "samples" / "videos").exists()
