"""Exported folders: the layout of the release, the same logits, self-contained; and a difference is an error."""

from __future__ import annotations

import json
import subprocess
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from dlm import export as exporting
from dlm import reload
from dlm.config import Adapter
from dlm.models import lora
from dlm.models.loading import load_model
from dlm.reload import Probe, canvas_logits
from mmrl.config import Config
from mmrl.data.records import Record
from mmrl.errors import UserError
from mmrl.training.exported import Wanted

from .conftest import tiny_config

RECORD = Record("r1", "arithmetic", "12+30=", answer="42")


@pytest.fixture
def this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """The reload without a process of its own, whose imports take seconds; the other tests have real ones."""

    def run(command: list[str], **_: Any) -> subprocess.CompletedProcess[str]:
        reload._once(json.loads(Path(command[-1]).read_text()))
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(reload, "subprocess", SimpleNamespace(run=run))


def stored_adapter(base: Path, at: Path) -> Config:
    """A trained adapter beside its tokenizer, as a run stores it."""
    model, tokenizer = load_model(str(base))
    lora.attach(model, Adapter(kind="lora", rank=2, alpha=4), base=str(base))
    torch.manual_seed(0)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.3)
    lora.save(model, at)
    tokenizer.save_pretrained(at)
    return tiny_config(at, model={"path": str(at)})


def names(folder: Path) -> set[str]:
    with safe_open(str(folder / "model.safetensors"), framework="pt") as opened:
        return set(opened.keys())


@pytest.mark.usefixtures("this_process")
@pytest.mark.parametrize("kind", ["llada", "sdar"])
def test_a_whole_model_keeps_the_layout_of_its_release(kind: str, tiny: dict[str, Path], tmp_path: Path) -> None:
    config = tiny_config(tiny[kind])
    done = exporting.export(config, tmp_path / "out", Wanted(), RECORD)
    assert (done.form, done.dtype, done.difference) == ("full", "float32", 0.0)
    assert names(tmp_path / "out") == names(tiny[kind])
    first, again = load_file(tiny[kind] / "model.safetensors"), load_file(tmp_path / "out" / "model.safetensors")
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert done.parameters == sum(t.numel() for t in first.values())
    assert json.loads((tmp_path / "out" / "mmrl.json").read_text()) == {"family": "dlm"}


@pytest.mark.usefixtures("this_process")
@pytest.mark.parametrize("kind", ["llada", "sdar"])
def test_a_merged_adapter(kind: str, tiny: dict[str, Path], tmp_path: Path) -> None:
    config = stored_adapter(tiny[kind], tmp_path / "adapter")
    done = exporting.export(config, tmp_path / "out", Wanted(dtype="bfloat16"), RECORD)
    assert (done.form, done.dtype, done.base) == ("merged", "bfloat16", str(tiny[kind]))
    assert names(tmp_path / "out") == names(tiny[kind])
    assert 0 < done.difference < done.tolerance < (done.rounding or 0)
    model, _ = load_model(str(tmp_path / "out"))
    base, _ = load_model(str(tiny[kind]))
    ids = torch.tensor([49, 50, 43])
    adapted = canvas_logits(lora.load(base, str(tmp_path / "adapter")), ids, length=8)
    plain, _ = load_model(str(tiny[kind]))
    here = canvas_logits(model, ids, length=8)
    assert (here - adapted).abs().max() < 0.1 * (canvas_logits(plain, ids, length=8) - adapted).abs().max()


def test_an_adapter_alone(tiny: dict[str, Path], tmp_path: Path) -> None:
    config = stored_adapter(tiny["llada"], tmp_path / "adapter")
    done = exporting.export(config, tmp_path / "out", Wanted(adapter_only=True), RECORD)
    assert (done.form, done.dtype) == ("adapter", "float32") and done.difference < done.tolerance
    first = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    again = load_file(tmp_path / "out" / "adapter_model.safetensors")
    assert first.keys() == again.keys() and all(torch.equal(first[name], again[name]) for name in first)
    assert f"base={tiny['llada'].name!r}" in done.usage and str(tiny["llada"]) not in done.usage


@pytest.mark.usefixtures("this_process")
def test_mask_and_block_that_only_the_run_knew_are_written_down(tiny: dict[str, Path], tmp_path: Path) -> None:
    source = tmp_path / "silent"
    source.mkdir()
    for file in tiny["sdar"].iterdir():
        (source / file.name).write_bytes(file.read_bytes())
    told = json.loads((source / "config.json").read_text())
    mask = told.pop("mask_token_id")
    del told["block_size"]
    (source / "config.json").write_text(json.dumps(told))
    config = tiny_config(source, model={"path": str(source), "block": 8, "mask_id": mask})
    exporting.export(config, tmp_path / "out", Wanted(), RECORD)
    model, _ = load_model(str(tmp_path / "out"))  # without any option
    assert (model.traits.block, model.traits.mask_id) == (8, mask)


def test_what_is_not_the_same_model_is_refused(
    tiny: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = stored_adapter(tiny["llada"], tmp_path / "adapter")

    def badly(model: torch.nn.Module) -> torch.nn.Module:
        whole = lora.merge(model)  # type: ignore[arg-type]
        with torch.no_grad():
            next(whole.parameters()).add_(0.01)
        return whole

    monkeypatch.setattr(exporting, "lora", type("Lora", (), {**vars(lora), "merge": staticmethod(badly)}))
    with pytest.raises(UserError, match="merging the adapter changed what the model says.*record 'r1'; nothing was"):
        exporting.export(config, tmp_path / "out", Wanted(), RECORD)


def test_a_damaged_folder_does_not_pass_the_reload(tiny: dict[str, Path], tmp_path: Path) -> None:
    model, tokenizer = load_model(str(tiny["llada"]))
    ids = torch.tensor(tokenizer("1+1=")["input_ids"])
    probe = Probe(model, "1+1=", ids, special=True)
    copy = tmp_path / "copy"
    copy.mkdir()
    for file in tiny["llada"].iterdir():
        (copy / file.name).write_bytes(file.read_bytes())
    tensors = load_file(copy / "model.safetensors")
    save_file({k: v * 1.01 for k, v in tensors.items()}, copy / "model.safetensors")
    again = probe.reloaded(copy, base=None, mask_id=model.traits.mask_id, block=None)
    assert probe.difference(again) > probe.tolerance
    (copy / "config.json").write_text("{}")
    with pytest.raises(UserError, match="the exported folder does not load again"):
        probe.reloaded(copy, base=None, mask_id=model.traits.mask_id, block=None)


def test_an_adapter_is_asked_for_where_there_is_none(tiny: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(UserError, match="--adapter-only: this run trained the model itself"):
        exporting.export(tiny_config(tiny["llada"]), tmp_path / "out", Wanted(adapter_only=True), RECORD)


def test_the_probe_sees_a_canvas_of_masks_and_finds_nan(tiny: dict[str, Path]) -> None:
    model, _ = load_model(str(tiny["sdar"]))
    ids = torch.arange(5)
    found = canvas_logits(model, ids, length=7)  # a tail of one in the second block
    assert found.shape == (7, model.shape.vocabulary)
    with torch.no_grad():
        model.traits = replace(model.traits)
        model.head.weight[3] = float("nan")
    with pytest.raises(UserError, match="not finite"):
        Probe(model, "x", ids, special=True)
