"""Completions cut at the token limit: kept, masked or penalised."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from mmrl.core.streams import Streams
from mmrl.data.records import Record
from mmrl.selection.request import Request
from mmrl.training.batch import with_penalties
from mmrl.vlm import tiny
from mmrl.vlm.config import Inputs, Model, Sampling
from mmrl.vlm.family import load


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.build("qwen3_vl", tmp_path_factory.mktemp("tiny") / "model")


def roll(folder: Path, truncated: str):
    sampling = Sampling(max_new_tokens=3, truncated=truncated, truncation_penalty=-0.5)  # type: ignore[arg-type]
    policy = load(Model(path=str(folder)), sampling, Inputs(), device="cpu")
    record = Record(id="a", task="classification", prompt="hello", answer="x")
    return policy.rollout([Request(record=record, n=4)], Streams(0, 0))


def test_keep_mask_penalise(folder: Path) -> None:
    keep, mask, penalise = (roll(folder, how) for how in ("keep", "mask", "penalise"))
    cut = torch.tensor([not row["finished"] for row in keep.info])
    assert cut.any(), "a random model does not end within three tokens"
    assert all(row["limit"] == 3 and row["length"] <= 3 for row in keep.info)
    assert bool(keep.tables["tokens"]["mask_nt"][cut].any(1).all())
    assert not mask.tables["tokens"]["mask_nt"][cut].any()
    assert not any("penalty" in row for row in keep.info)
    reward = torch.zeros(4, 1, dtype=torch.float64)
    reward_nk, weight_k, names = with_penalties(reward, torch.ones(1, dtype=torch.float64), ["label"], penalise.info)
    assert names == ["label", "truncation"] and weight_k.tolist() == [1.0, 1.0]
    assert reward_nk[:, 1].tolist() == [-0.5 if c else 0.0 for c in cut.tolist()]
