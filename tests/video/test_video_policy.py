"""The policy contract with clips among the inputs: forms of the shared prefix, sampler and update, noise, people."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from video_models import backward, float64_everywhere, make

from mmrl.core.streams import Streams
from mmrl.data.records import Record
from mmrl.errors import UserError
from mmrl.training.rollouts import Request
from video import tiny
from video.show import GAP, SIDE, strip

FORMS = [("cache", 100_000, {}), ("cache", 1, {}), ("packed", 100_000, {}), ("packed", 60, {}),
         ("packed", 100_000, {"gradient_checkpointing": True}), ("off", 120, {})]  # fmt: skip

CLIP = tiny.noise_clip(4, 16, 24)
RECORDS = [
    Record("a", "choice", "Which?", (), (CLIP,), answer="A"),
    Record("b", "counting", "Count", answer=1),
    Record("c", "choice", "Two", (Image.new("RGB", (16, 8)),), (tiny.noise_clip(2, 8, 8, seed=1), CLIP), answer="A,B"),
]
RAGGED = [Request(record, n) for record, n in zip(RECORDS, (3, 1, 2), strict=True)]
STREAMS = Streams(seed=0, step=0)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("tiny")
    return {kind: tiny.build(kind, root / kind) for kind in tiny.KINDS}


@pytest.mark.parametrize("kind", tiny.KINDS)
@pytest.mark.parametrize("noise", [0.0, 30.0])
def test_all_forms_equal_repeated_prompts(kind: str, noise: float, folders: dict[str, Path]) -> None:
    """Log-probabilities of the update, of the sampler, and every gradient, vision tower included; also of noised
    frames, which update and sampler both see."""
    asked = [Request(r.record, r.n, sampling={"frame_noise": noise} if noise else {}) for r in RAGGED]
    plain = make(folders[kind], double=True, shared_prefix="off")
    with float64_everywhere():
        rollouts = plain.rollout(asked, STREAMS)
        table, grads = backward(plain, rollouts)
    assert len(grads) == len(list(plain.model.parameters()))
    assert next(g for n, g in grads.items() if "visual.patch_embed" in n).abs().max() > 0
    mask = rollouts.tables["tokens"]["mask_nt"]
    assert (table - rollouts.tables["tokens"]["sampler_logp_nt"])[mask].abs().max() < 1e-10
    for form, budget, options in FORMS:
        fast = make(folders[kind], double=True, shared_prefix=form, piece_tokens=budget, **options)
        with float64_everywhere():
            again = fast.rollout(asked, STREAMS)
            fast_table, fast_grads = backward(fast, rollouts)
        assert again.outputs == rollouts.outputs
        assert (fast_table - table).abs().max() < 1e-10, (form, budget)
        for name, grad in grads.items():
            assert (fast_grads[name] - grad).abs().max() < 1e-10 * max(1.0, float(grad.abs().max())), (form, name)


@pytest.mark.parametrize("kind", tiny.KINDS)
def test_greedy_answers_are_those_of_plain_transformers(kind: str, folders: dict[str, Path]) -> None:
    """`generate` makes its own positions from ids and grids."""
    policy = make(folders[kind], sampling={"max_new_tokens": 8})
    rollouts = policy.rollout([Request(r, 1) for r in RECORDS], STREAMS, greedy=True)
    for row in rollouts.rows:
        ids = row.prompt.ids[None]
        policy.shape.inner.rope_deltas = None
        with torch.no_grad():
            found = policy.model.generate(
                input_ids=ids,
                attention_mask=torch.ones_like(ids),
                mm_token_type_ids=policy.shape.token_types(ids),
                **row.prompt.media,
                do_sample=False,
                max_new_tokens=len(row),
                suppress_tokens=sorted(policy.suppressed),
            )
        assert found[0, len(row.prompt) :].tolist() == row.ids.tolist()


@pytest.mark.parametrize("form", ["cache", "packed"])
def test_clips_are_encoded_once_per_prompt(form: str, folders: dict[str, Path]) -> None:
    policy = make(folders["qwen3_vl"], shared_prefix=form)
    seen: list[int] = []
    policy.shape.vision.register_forward_pre_hook(
        lambda module, args, kwargs: seen.append(len(kwargs["grid_thw"])), with_kwargs=True
    )
    rollouts = policy.rollout(RAGGED, STREAMS)
    assert sum(seen) == 4, "three clips and a picture"
    seen.clear()
    backward(policy, rollouts)
    assert sum(seen) == 4


def test_the_clip_moves_the_answer(folders: dict[str, Path]) -> None:
    """Guard: other frames, and the same frames in another order, give other log-probabilities."""
    policy = make(folders["qwen2_5_vl"])
    rollouts = policy.rollout(RAGGED[:1], STREAMS)
    before, _ = backward(policy, rollouts)
    for other in (tiny.noise_clip(4, 16, 24, seed=7), _backwards()):
        prompt = policy.encoder(Record("a", "choice", "Which?", (), (other,)))
        rollouts.rows[0].prompt.media = prompt.media
        assert (backward(policy, rollouts)[0] - before).abs().max() > 1e-3


def _backwards() -> Any:
    from dataclasses import replace

    return replace(CLIP, frames_nhwc=CLIP.frames_nhwc[::-1].copy())


def test_noise_depends_on_step_and_record_alone(folders: dict[str, Path]) -> None:
    policy = make(folders["qwen3_vl"])

    def pixels(streams: Streams, record: Record = RECORDS[0], **more: Any) -> torch.Tensor:
        request = Request(record, 2, **({"sampling": {"frame_noise": 25}} | more))
        rollouts = policy.rollout([request], streams)
        assert rollouts.rows[0].prompt is rollouts.rows[1].prompt, "one draw for the group"
        return rollouts.rows[0].prompt.media["pixel_values_videos"]

    first = pixels(STREAMS)
    assert torch.equal(first, pixels(Streams(0, 0))) and torch.equal(first, pixels(STREAMS, first_sample=8))
    assert torch.equal(first, pixels(STREAMS, prompt_edit=" Hint."))
    assert not torch.equal(first, pixels(Streams(0, 1))) and not torch.equal(first, pixels(Streams(1, 0)))
    other = Record("z", "choice", "Which?", (), (CLIP,))
    assert not torch.equal(first, pixels(STREAMS, other))
    clean = pixels(STREAMS, sampling={})
    assert torch.equal(clean, pixels(STREAMS, sampling={"frame_noise": 0})) and not torch.equal(clean, first)


@pytest.mark.parametrize("sd", [-1, float("nan"), float("inf"), "loud", True])
def test_noise_must_be_a_deviation(sd: Any, folders: dict[str, Path]) -> None:
    with pytest.raises(UserError, match="sampling override frame_noise: .* is no deviation"):
        make(folders["qwen3_vl"]).rollout([Request(RECORDS[0], 1, sampling={"frame_noise": sd})], STREAMS)


def test_unknown_overrides_are_refused_and_others_work(folders: dict[str, Path]) -> None:
    policy = make(folders["qwen3_vl"])
    with pytest.raises(UserError, match="unknown option 'frame_nois'; did you mean 'frame_noise'"):
        policy.rollout([Request(RECORDS[0], 1, sampling={"frame_nois": 1})], STREAMS)
    rollouts = policy.rollout([Request(RECORDS[0], 1, sampling={"frame_noise": 3, "max_new_tokens": 2})], STREAMS)
    assert rollouts.info[0]["limit"] == 2 and len(rollouts.rows[0]) <= 2


def test_what_rewards_are_told(folders: dict[str, Path]) -> None:
    rollouts = make(folders["qwen3_vl"]).rollout(RAGGED, STREAMS)
    assert rollouts.info[0]["videos"] == [
        {"seconds": 2.0, "times": [0.0, 0.5, 1.0, 1.5], "size": [24, 16], "model_size": [24, 16]}
    ]
    assert rollouts.info[0]["original_size"] == [24, 16] and len(rollouts.info[4]["videos"]) == 2
    assert "videos" not in rollouts.info[3]


def test_people_see_strips(folders: dict[str, Path]) -> None:
    policy = make(folders["qwen3_vl"])
    rollouts = policy.rollout(RAGGED, STREAMS)
    shown = policy.describe(rollouts, [0, 3, 4])
    assert [len(s["images"]) for s in shown] == [1, 0, 3] and [s["prompt"] for s in shown] == ["Which?", "Count", "Two"]
    assert shown[0]["images"][0].size == (4 * 24 + 3 * GAP, 16) and shown[0]["answer"] == "A"
    assert shown[2]["output"] == rollouts.outputs[4] and shown[2]["images"][2].size == (16, 8)


def test_a_strip_has_eight_frames_from_first_to_last() -> None:
    clip = tiny.noise_clip(15, 40, 400, seed=2)
    sheet = strip(clip)
    assert sheet.size == (8 * SIDE + 7 * GAP, 16)
    small = strip(tiny.noise_clip(15, 8, 8, seed=2))
    assert small.getpixel((0, 0)) == tuple(tiny.noise_clip(15, 8, 8, seed=2).frames_nhwc[0, 0, 0])
    assert small.getpixel((7 * (8 + GAP), 0)) == tuple(tiny.noise_clip(15, 8, 8, seed=2).frames_nhwc[14, 0, 0])


def test_a_saved_model_loads_again(folders: dict[str, Path], tmp_path: Path) -> None:
    policy = make(folders["qwen2_5_vl"])
    policy.save(tmp_path / "out")
    rollouts = policy.rollout(RAGGED, STREAMS, greedy=True)
    assert make(tmp_path / "out").rollout(RAGGED, STREAMS, greedy=True).outputs == rollouts.outputs
