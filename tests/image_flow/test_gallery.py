"""Samples of a model that draws: several pictures of a prompt, from the same noise at every step."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from test_policy import RECORDS, policy_of

from image_gen.rewards import toys  # registers brightness
from mmrl.config import Rewards, RewardSpec
from mmrl.rewards.score import Scorer
from mmrl.training import gallery
from mmrl.training.gallery import write_samples

assert toys


def written(run: Path, step: int, policy: Any) -> list[dict[str, Any]]:
    write_samples(run, step, policy, Scorer(Rewards(components=[RewardSpec(name="brightness")])), RECORDS, seed=0)
    return [json.loads(line) for line in (run / "samples" / f"step-{step:06d}.jsonl").read_text().splitlines()]


def test_pictures_of_a_prompt_are_listed(tmp_path: Path) -> None:
    policy = policy_of()
    policy.gallery_rows = 3
    first, second = written(tmp_path, 0, policy)
    assert (first["id"], first["prompt"], first["output"], first["drawn"]) == ("a", "a toe", "", True)
    assert len(set(first["images"]) | set(second["images"])) == 6 and first["image"] == first["images"][0]
    assert len(first["totals"]) == 3
    for name in first["images"]:
        with Image.open(tmp_path / "samples" / name) as picture:
            assert picture.size == (4, 4) and picture.format == "PNG"


def test_the_same_noise_at_every_step(tmp_path: Path) -> None:
    assert written(tmp_path, 0, policy_of()) == written(tmp_path, 7, policy_of())
    other = written(tmp_path, 8, policy_of(seed=1))
    assert other[0]["image"] != written(tmp_path, 0, policy_of())[0]["image"]


def test_large_pictures_are_stored_with_losses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gallery, "LARGE", 3)
    row = written(tmp_path, 0, policy_of())[0]
    with Image.open(tmp_path / "samples" / row["image"]) as picture:
        assert row["image"].endswith(".jpg") and picture.format == "JPEG"


def test_what_a_policy_draws_of_itself_stands_beside_the_samples(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    policy = policy_of()
    written(tmp_path, 0, policy)
    assert not list((tmp_path / "samples").glob("profiles-*"))
    drawn = {"noise": {"x": [0.5, 1.0], "mean": [1.0, 0.0]}}
    monkeypatch.setattr(policy, "profiles", lambda rollouts: drawn if len(rollouts) == 8 else {})
    written(tmp_path, 7, policy)
    assert json.loads((tmp_path / "samples" / "profiles-step-000007.json").read_text()) == drawn


def test_how_a_picture_came_to_be_is_kept_beside_each(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    policy, describe = policy_of(), policy_of().describe

    def told(rollouts: Any, rows: Any) -> list[dict[str, Any]]:
        strips = [Image.new("RGB", (12, 4), (i, 0, 0)) for i in rows]
        return [one | {"filling": strip} for one, strip in zip(describe(rollouts, rows), strips, strict=True)]

    monkeypatch.setattr(policy, "describe", told)
    first, second = written(tmp_path, 0, policy)
    for number, name in enumerate(first["filling"] + second["filling"]):
        with Image.open(tmp_path / "samples" / name) as strip:
            assert strip.size == (12, 4) and strip.getpixel((0, 0)) == (number, 0, 0)
