"""Two gloo processes give the image run of one: rewards of single steps, running statistics, parts scored beside."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from launch import launch, log, tensors
from toy_flow import settings

from mmrl import config_io, families
from mmrl.training.exchange import thumbnail
from mmrl.training.run import train

CASES: dict[str, dict[str, Any]] = {
    "flow-grpo": {"ema": {"enabled": True}},
    "vgpo": {"recipe": "vgpo"},
    "guard": {"recipe": "grpo-guard", "recipe_options": {}},
    "tracked": {
        "recipe_options": {"advantage": {"name": "tracked"}},
        "train": {"prompt_statistics": {"buffer": 8, "min_count": 4}},
    },
    "beside": {"rewards": {"beside": 2}},
}


def image(out: Path, **sections: Any) -> dict[str, Any]:
    """float64, three short steps."""
    few = {"train": {"steps": 3, "group": 3, **sections.pop("train", {})}, "eval": {"samples": 0}}
    return settings(out, **{"model": {"path": "toy64"}, **few, **sections})


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("image-ranks")
    one = families.Family(
        "toy-flow", config="image_gen.flow.config", entry="toy_flow", extra_stages=("image_gen.flow.stages",)
    )
    families.FAMILIES["toy-flow"] = one
    try:
        for name, change in CASES.items():
            train(config_io.build(image(root / "one" / name, **change), folder=Path.cwd()), progress=False)
    finally:
        del families.FAMILIES["toy-flow"]
    jobs = [{"config": image(root / "run-of-two" / name, **change)} for name, change in CASES.items()]
    assert launch(jobs, root) == [["done"] * len(jobs)] * 2
    return root


@pytest.mark.parametrize("case", CASES)
def test_two_ranks_give_the_run_of_one(runs: Path, case: str) -> None:
    one, two = log(runs / "one" / case), log(runs / "run-of-two" / case)
    assert len(one) == 4
    for a, b in zip(one, two, strict=True):
        assert a.keys() == b.keys()
        for key, value in a.items():
            assert b[key] == (pytest.approx(value, rel=1e-5, abs=1e-6) if isinstance(value, float) else value), key
    alone, shared = tensors(runs / "one" / case, 3), tensors(runs / "run-of-two" / case, 3)
    assert alone.keys() == shared.keys()
    for name, value in alone.items():
        torch.testing.assert_close(shared[name], value, rtol=1e-6, atol=1e-7, msg=name)


def test_ranks_tell_each_other_small_pictures() -> None:
    large = torch.arange(3 * 64 * 96.0).reshape(3, 64, 96)
    assert thumbnail(large).shape == (3, 32, 32)
    assert float(thumbnail(large).mean()) == pytest.approx(float(large.mean()))
    assert thumbnail(large[:, :8, :8]).shape == (3, 8, 8) and thumbnail("text") == "text"
