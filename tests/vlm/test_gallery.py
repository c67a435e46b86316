"""Pictures of samples: one for all steps, and never one of another record."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

from PIL import Image

from mmrl.config import Rewards
from mmrl.data.records import Record
from mmrl.rewards.score import Scorer
from mmrl.training.gallery import write_samples
from mmrl.vlm.policy import VlmPolicy


def test_a_picture_belongs_to_its_record(make: Callable[..., VlmPolicy], tmp_path: Path) -> None:
    policy = make(sampling={"max_new_tokens": 2})
    scorer = Scorer(Rewards())

    def shown(step: int, *colours: str, name: str = "r") -> list[str]:
        records = [
            Record(f"{name}{i}", "detection", "Where is 7?", (Image.new("RGB", (16, 16), c),), answer=[[1, 2, 3, 4]])
            for i, c in enumerate(colours)
        ]
        write_samples(tmp_path, step, policy, scorer, records, seed=0)
        lines = (tmp_path / "samples" / f"step-{step:06d}.jsonl").read_text().splitlines()
        found = [str(json.loads(line)["image"]) for line in lines]
        for file, colour in zip(found, colours, strict=True):
            assert file.startswith("images/")
            with Image.open(tmp_path / "samples" / file) as picture:
                assert picture.getpixel((0, 0)) == Image.new("RGB", (1, 1), colour).getpixel((0, 0))
        return found

    first = shown(0, "red", "blue")
    assert shown(1, "red", "blue") == first and len(set(first)) == 2
    assert shown(2, "blue", "red")[0] not in first  # the same ids, other pictures
    assert shown(3, "red", name="other")[0] not in first
    assert len(list((tmp_path / "samples" / "images").iterdir())) == 5


def test_true_boxes_in_pixels() -> None:
    from mmrl.data.records import Record
    from mmrl.vlm.show import true_boxes

    sizes = {"original_size": (200, 100), "model_size": (56, 28)}
    detection = Record("d", "detection", "?", answer=[[100, 200, 500, 1000]])
    grounding = Record("g", "grounding", "?", answer="(100,200),(500,1000)")
    pixels = Record("p", "detection", "?", answer=[[14, 7, 28, 14]], frame="pixel_model_input")
    assert true_boxes(detection, **sizes) == true_boxes(grounding, **sizes) == [[20, 20, 100, 100]]
    assert true_boxes(pixels, **sizes) == [[50, 25, 100, 50]]
    assert true_boxes(Record("n", "detection", "?", answer="No Objects"), **sizes) == []
    assert true_boxes(Record("c", "counting", "?", answer="3"), **sizes) == []
    assert true_boxes(Record("u", "detection", "?", answer=None), **sizes) == []
