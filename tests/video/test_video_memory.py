"""The estimate of a dry run about videos: patches and tokens of the real processor, bytes that the tower keeps."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import video_models

from mmrl.config_io import build, recipe_of, resolve
from mmrl.data.records import Record
from mmrl.vlm.memory import Shape, largest_piece, shape_of
from video import memory, tiny
from video.config import Inputs, memory_lines
from video.encode import grids


@pytest.fixture(scope="module", params=tiny.KINDS)
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.build(request.param, tmp_path_factory.mktemp(request.param))


def known(path: str | Path) -> Shape:
    shape = shape_of(str(path))
    assert shape is not None
    return shape


@pytest.mark.parametrize(
    ("inputs", "clip"),
    [
        ({"max_frames": 6, "frame_max_pixels": 32 * 24}, (6, 24, 32)),
        ({"max_frames": 7, "frame_max_pixels": 16 * 16}, (6, 16, 16)),  # an odd number: a pair less
        ({"frames": "count", "count": 4, "frame_max_pixels": 32 * 32, "video_max_pixels": 4 * 256}, (4, 32, 32)),
    ],
)
def test_patches_and_tokens_are_those_of_the_processor(
    folder: Path, inputs: dict[str, Any], clip: tuple[int, int, int]
) -> None:
    policy = video_models.make(folder, inputs=inputs)
    prompt = policy.encoder(Record(id="1", task="choice", prompt="q", videos=(tiny.noise_clip(*clip),), answer="A"))
    found = memory.frames_of(policy.inputs, known(folder))
    assert int(grids(prompt).prod(-1).sum()) == found.patches == len(prompt.media["pixel_values_videos"])
    assert int((prompt.ids == policy.shape.config.video_token_id).sum()) == found.tokens


def test_a_published_shape_by_hand() -> None:
    """16 frames of 196 x 28 x 28 pixels (TW-GRPO, arXiv 2505.24718): 8 positions of 28 x 28 patches."""
    config = resolve("video/qwen2_5_vl_7b_tw_grpo_8gpu")
    shape = known("Qwen/Qwen2.5-VL-7B-Instruct")
    frames = memory.frames_of(config.inputs, shape)
    assert frames == memory.Frames(count=16, pixels=153_664, patches=6272, tokens=1568)
    one = memory.seen(config, shape, frames, ranks=8)
    # of one frozen block bf16 (10 x 1280 + 3 x 3420) and the patch itself in float32, 3 x 2 x 14 x 14
    assert one.together == 1 and one.kept == one.alive == 6272 * ((12_800 + 10_260) * 2 + 1176 * 4) == 318_768_128
    assert one.clips == 64 * 16 * 153_664 * 3
    assert one.prompts == 2 * 6272 * 1176 * 4  # this step's and the next one's, read ahead
    # the group is whole: one prompt and 8 completions of 4096 tokens, packed
    piece = largest_piece(config, recipe_of(config), prompt=frames.tokens, ranks=8)
    assert piece.tokens == 1568 + 8 * 4096 == 34_336


def run_of(path: Path, **options: Any) -> Any:
    return build(
        {
            "family": "video",
            "recipe": options.pop("recipe", "grpo-soft"),
            "device": "cpu",
            "model": {"path": str(path), **options},
            "inputs": {"max_frames": 8, "frame_min_pixels": 64, "frame_max_pixels": 1024},
            "data": {"train": "clips:train"},
        },
        folder=Path.cwd(),
    )


def test_bytes_that_the_tower_keeps(tmp_path: Path) -> None:
    """Counted by hooks on a tower of several blocks; the estimate leaves out what the merger keeps."""
    path = tiny.build("qwen2_5_vl", tmp_path / "m", vision_layers=6, vision_hidden=64)
    config, shape = run_of(path, piece_tokens=1), known(path)
    policy = video_models.make(path, inputs={"max_frames": 8})
    clip = tiny.noise_clip(8, 32, 32)
    prompt = policy.encoder(Record(id="1", task="choice", prompt="q", videos=(clip,), answer="A"))
    kept: dict[int, int] = {}
    own = {p.data_ptr() for p in policy.model.parameters()}

    def pack(x: torch.Tensor) -> torch.Tensor:
        if x.data_ptr() not in own:
            kept[x.untyped_storage().data_ptr()] = x.untyped_storage().nbytes()
        return x

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        out = policy.shape.vision(prompt.media["pixel_values_videos"], grid_thw=grids(prompt))
    frames = memory.frames_of(config.inputs, shape)
    expected = memory.seen(config, shape, frames).kept
    assert out is not None and 0.6 < sum(kept.values()) / expected < 1.6


def test_what_trains_decides_what_the_tower_keeps(folder: Path) -> None:
    shape = known(folder)

    def kept(**options: Any) -> float:
        config = run_of(folder, **options)
        return memory.seen(config, shape, memory.frames_of(config.inputs, shape)).kept

    frozen = kept(freeze=["vision"])
    assert kept(adapter={"kind": "lora"}) == frozen < kept(gradient_checkpointing=True) < kept()
    assert kept(adapter={"kind": "lora", "targets": "all"}) == kept()


def test_the_lines(folder: Path) -> None:
    config = run_of(folder, piece_tokens=512)
    text = "\n".join(memory_lines(config, recipe_of(config), ranks=1))
    assert "at most 8 frames of 1024 pixels = 256 patches = 64 tokens of the 4096" in text
    assert "vision tower, with gradient" in text and "whole group" not in text
    assert "on the host" in text and "peak of the update" in text
    config.inputs.max_prompt_tokens = 64
    assert "these alone are too many: lower inputs.max_frames or" in memory_lines(config, recipe_of(config), ranks=1)[1]
    config.inputs.frames = "count"
    assert "these alone are too many: lower inputs.count or" in memory_lines(config, recipe_of(config), ranks=1)[1]
    config.inputs.frames = "fps"
    whole = run_of(folder, piece_tokens=512, recipe="tw-grpo")
    text = "\n".join(memory_lines(whole, recipe_of(whole), ranks=1))
    assert "activations of a piece of 2560 tokens" in text
    assert "a piece holds a whole group (2560 tokens at full length): the recipe compares its rows" in text
    (line,) = memory_lines(run_of(folder).model_copy(update={"model": unknown()}), recipe_of(config), ranks=1)
    assert line.startswith("size unknown: someone/else")


def unknown() -> Any:
    from mmrl.vlm.config import Model

    return Model(path="someone/else")


def test_the_estimate_loads_no_torch() -> None:
    import subprocess
    import sys

    code = "import sys, video.config; assert 'torch' not in sys.modules"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True).returncode == 0
    assert Inputs().max_frames == 16
