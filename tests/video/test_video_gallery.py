"""The sample gallery of clips: a strip for each, and the weight of each token within a group."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from video_models import make

from mmrl.config import Rewards
from mmrl.core.objective import Objective
from mmrl.core.recipe import parse
from mmrl.core.streams import Streams
from mmrl.data.records import Record
from mmrl.rewards.score import Scorer
from mmrl.training import token_weights, update
from mmrl.training.gallery import ROW, write_samples
from mmrl.training.rollouts import Request, Rollouts
from mmrl.training.token_weights import Weighing, groups_of, weighing
from video import tiny
from video.policy import VideoPolicy

CLIP = tiny.noise_clip(4, 16, 24)
RECORDS = [
    Record("a", "counting", "Which?", (), (CLIP,), answer=1),
    Record("b", "counting", "Two", (Image.new("RGB", (16, 400)),), (tiny.noise_clip(2, 8, 8, seed=1), CLIP), answer=2),
]
GROUP = 4


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> VideoPolicy:
    return make(tiny.build("qwen3_vl", tmp_path_factory.mktemp("tiny") / "model"))


def objective(policy: VideoPolicy, weight: list[dict[str, Any]]) -> Objective:
    recipe = parse(
        "t",
        {
            "title": "t",
            "advantage": {"name": "grpo"},
            "weight": weight,
            "gate": {"name": "reinforce"},
            "reduce": {"name": "token-mean"},
        },
    )
    return Objective(recipe, channel="tokens", unit="decision", provides=policy.provides, keys=policy.keys)


def weighed(policy: VideoPolicy, **options: Any) -> Weighing:
    found = weighing("tokens", objective(policy, [{"name": "tw", **options}]), GROUP)
    assert found is not None
    return found


def written(run: Path, policy: VideoPolicy, how: Weighing | None, step: int = 0) -> list[dict[str, Any]]:
    write_samples(run, step, policy, Scorer(Rewards()), RECORDS, seed=0, weighing=how)
    return [json.loads(line) for line in (run / "samples" / f"step-{step:06d}.jsonl").read_text().splitlines()]


def test_which_recipes_weigh_tokens(policy: VideoPolicy) -> None:
    assert weighed(policy).needs == {"divergence_nt"} and weighed(policy, form="calibrated").needs == {"js_nt"}
    assert weighing("tokens", objective(policy, []), GROUP) is None
    assert weighing("tokens", objective(policy, [{"name": "tw"}]), 1) is None  # nobody to disagree with
    assert weighing("tokens", objective(policy, [{"name": "tw", "key": "record"}]), GROUP) is None


@pytest.mark.parametrize("form", ["official", "calibrated-active"])
def test_weights_of_the_shown_answer_are_those_of_its_group(policy: VideoPolicy, tmp_path: Path, form: str) -> None:
    how = weighed(policy, form=form, alpha=2.5)
    lines = written(tmp_path, policy, how)
    greedy = policy.rollout([Request(r, 1) for r in RECORDS], Streams(0, 0, "gallery"), greedy=True)
    others = groups_of(policy, RECORDS, how, seed=0)
    assert others.keys["prompt"].tolist() == [0] * (GROUP - 1) + [1] * (GROUP - 1)
    name = next(iter(how.needs))
    for number, line in enumerate(lines):
        own = Rollouts.concat(
            [greedy.select([number]), others.select((others.keys["prompt"] == number).nonzero()[:, 0])]
        )
        mask_nt = own.tables["tokens"]["mask_nt"]
        d_nt = update.evaluate(policy, own, {name}, channel="tokens")[name]
        d_t = torch.where(mask_nt, d_nt, -torch.inf).amax(0)
        use_t = mask_nt.sum(0) >= (2 if "active" in form else 1)
        low, high = d_t[use_t].min(), d_t[use_t].max()
        want = torch.where(use_t, 1 + 1.5 * (d_t - low) / (high - low + 1e-8), 1.0)[mask_nt[0]]
        got = torch.tensor([token["weight"] for token in line["tokens"]])
        assert got == pytest.approx(want.tolist(), abs=1e-3)
        assert len(got) > 1 and got.max() > got.min()


def test_tokens_are_the_answer_and_its_end(policy: VideoPolicy, tmp_path: Path) -> None:
    lines, plain = written(tmp_path, policy, weighed(policy)), written(tmp_path, policy, None, step=1)
    for line, other in zip(lines, plain, strict=True):
        text = "".join(token["text"] for token in line.pop("tokens"))
        assert text.startswith(line["output"])
        assert line == other  # nothing else depends on the weights


def test_a_character_of_several_tokens_stands_at_the_last(policy: VideoPolicy) -> None:
    rollouts = policy.rollout([Request(RECORDS[0], 1)], Streams(0, 0))
    for text in ("aé!", "日本語", "plain"):
        ids = policy.encoder.response_ids(text)
        rollouts.rows[0] = replace(rollouts.rows[0], ids=torch.tensor(ids))
        told = policy.token_texts(rollouts, 0)
        assert len(told) == len(ids) and "".join(told) == policy.text(rollouts.rows[0])


def test_the_same_weights_at_every_step_and_groups_for_the_first_records(
    policy: VideoPolicy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    how = weighed(policy)
    assert written(tmp_path, policy, how) == written(tmp_path, policy, how, step=7)
    monkeypatch.setattr(token_weights, "RECORDS", 1)
    assert ["tokens" in line for line in written(tmp_path, policy, how, step=8)] == [True, False]


def test_clips_and_pictures_of_a_record_are_one_sheet(policy: VideoPolicy, tmp_path: Path) -> None:
    one, several = written(tmp_path, policy, None)
    with Image.open(tmp_path / "samples" / one["image"]) as strip:
        assert strip.size == (4 * 26 - 2, 16)
    with Image.open(tmp_path / "samples" / several["image"]) as sheet:
        assert sheet.size == (4 * 26 - 2, 8 + 4 + 16 + 4 + ROW)
        assert sheet.getpixel((100, 0)) == (255, 255, 255)  # beside the shorter strip
