"""scripts/make_video_start.py on a few records: stopped and started again it ends with the same weights."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest
import torch
from safetensors.torch import load_file

from video.embedded.records import make_records

SCRIPT = Path(__file__).resolve().parents[2] / "scripts" / "make_video_start.py"


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    spec = importlib.util.spec_from_file_location("make_video_start", SCRIPT)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setattr(module, "ROWS", 4)
    monkeypatch.setattr(module, "KEEP_EVERY", 1)
    monkeypatch.setattr(module, "builtin", lambda name: make_records(part="train", n=2, seed=1))
    return module


def test_it_goes_on_where_it_was(script: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("whole", "parts"):
        (tmp_path / name).mkdir()
    script.make(steps=3, work=tmp_path / "whole", out=tmp_path / "one")
    script.make(steps=2, work=tmp_path / "parts", out=tmp_path / "early")
    script.make(steps=3, work=tmp_path / "parts", out=tmp_path / "two")
    one, two, early = (load_file(tmp_path / name / "model.safetensors") for name in ("one", "two", "early"))
    assert all(torch.equal(one[k], two[k]) for k in one) and any(not torch.equal(one[k], early[k]) for k in one)
    told = capsys.readouterr().out.splitlines()
    assert [line.split(":")[0] for line in told] == ["1/3", "2/3", "3/3", "1/2", "2/2", "3/3"]
    assert (tmp_path / "two" / "processor_config.json").is_file()


def test_a_batch_is_what_the_policy_encodes(script: ModuleType) -> None:
    """Row by row: ids, mask and labels of a batch against the encoder and the demonstration."""
    from transformers import Qwen3VLForConditionalGeneration

    processor = script.make_processor()
    model = Qwen3VLForConditionalGeneration(script.make_config(processor.tokenizer))
    policy = script.policy_of(model, processor)
    records = make_records(part="train", n=3)
    given, labels = script.Batches(policy)(records)
    end = processor.tokenizer.eos_token_id
    for record, ids, mask, label in zip(records, given["input_ids"], given["attention_mask"], labels, strict=True):
        prompt = policy.encoder(record).ids.tolist()
        said = [*processor.tokenizer(record.response, add_special_tokens=False)["input_ids"], end]
        assert ids[mask.bool()].tolist() == [*prompt, *said]
        assert label[label != script.UNSEEN].tolist() == said
