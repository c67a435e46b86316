"""Export: merged, alone and whole models; what was written is what was trained, and a folder that is not is refused."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForImageTextToText, AutoProcessor

from mmrl.config_io import build
from mmrl.data.records import Record
from mmrl.errors import UserError
from mmrl.training.export import check_target
from mmrl.training.exported import Exported, Wanted, is_hub_id, public_name
from mmrl.vlm import merge, plain_forward, tiny
from mmrl.vlm.config import Inputs, Model, Sampling
from mmrl.vlm.export import export
from mmrl.vlm.family import load

from .conftest import picture


@pytest.fixture(autouse=True)
def in_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """The script of the fresh process, run here: a process of its own takes seconds (tests/cli starts real ones)."""

    def run(command: list[str], **_: Any) -> subprocess.CompletedProcess[str]:
        assert command[1:3] == ["-P", plain_forward.__file__]
        with monkeypatch.context() as patch:
            patch.delitem(sys.modules, "mmrl")
            plain_forward.main(command[3])
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr("mmrl.vlm.reload.subprocess.run", run)


RECORD = Record("a", "detection", "Where is 7?", (picture(24, 16, 0),))


def exported(model: Path, out: Path, *, base: Path | None = None, record: Record = RECORD, **wanted: Any) -> Exported:
    plain = {
        "family": "vlm",
        "recipe": "grpo",
        "device": "cpu",
        "model": {"path": str(model), "base": base and str(base)},
        "data": {"train": "digits:train"},
    }
    return export(build(plain, folder=Path.cwd()), out, Wanted(**wanted), record)


def adapter(base: Path, folder: Path, *, seed: int = 5, **lora: Any) -> Path:
    """A trained-looking adapter (B is not zero) written by peft itself."""
    model = AutoModelForImageTextToText.from_pretrained(base, dtype=torch.float32)
    wrapped = get_peft_model(model, LoraConfig(r=2, lora_alpha=6, **lora))
    torch.manual_seed(seed)
    for parameter in wrapped.parameters():
        if parameter.requires_grad:
            parameter.data += 0.1 * torch.randn_like(parameter)
    wrapped.peft_config["default"].base_model_name_or_path = str(base)
    wrapped.save_pretrained(folder)
    return folder


def remade(base: Path, folder: Path, change: Callable[[Any], Any], **save: Any) -> Path:
    """A copy of a checkpoint with another configuration or type."""
    model = AutoModelForImageTextToText.from_pretrained(base, dtype=torch.float32)
    change(model)
    model.save_pretrained(folder, **save)
    AutoProcessor.from_pretrained(base).save_pretrained(folder)
    return folder


def tied(base: Path, folder: Path) -> Path:
    config = json.loads((base / "config.json").read_text())
    config["tie_word_embeddings"] = config["text_config"]["tie_word_embeddings"] = True
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config))
    made = AutoModelForImageTextToText.from_config(AutoConfig.from_pretrained(folder), dtype=torch.float32)
    for parameter in made.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    assert made.get_output_embeddings().weight is made.get_input_embeddings().weight
    made.save_pretrained(folder)
    AutoProcessor.from_pretrained(base).save_pretrained(folder)
    return folder


def weights(folder: Path) -> dict[str, torch.Tensor]:
    found: dict[str, torch.Tensor] = {}
    for file in folder.glob("*.safetensors"):
        found |= load_file(file)
    return found


# ---- merged ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", tiny.KINDS)
def test_an_adapter_is_added_to_the_weights(kind: str, checkpoints: dict[str, Path], tmp_path: Path) -> None:
    base, out = checkpoints[kind], tmp_path / "out"
    layers = ["q_proj", "v_proj", "qkv", "o_proj"]  # qkv: of the vision tower
    made = adapter(base, tmp_path / "adapter", target_modules=layers)
    done = exported(made, out)
    assert (done.form, done.dtype, done.rounding) == ("merged", "float32", None)
    assert done.difference <= done.tolerance < 0.01
    names = {p.name for p in out.iterdir()}
    assert {"config.json", "generation_config.json", "processor_config.json", "tokenizer.json"} <= names
    assert "chat_template.jinja" in names and not any("adapter" in name for name in names)
    before, after, lora = weights(base), weights(out), weights(made)
    assert before.keys() == after.keys()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert {name.rsplit(".", 2)[-2] for name in changed} == set(layers)
    assert any("visual" in name for name in changed)
    name = next(n for n in sorted(changed) if "visual" in n)
    # a file names layers from the outside of the wrapped model
    inner = name.removeprefix("model.").removesuffix(".weight")
    a, b = (next(v for k, v in lora.items() if k.endswith(f"{inner}.lora_{x}.weight")) for x in "AB")
    delta = 3.0 * b @ a  # alpha / rank = 3
    torch.testing.assert_close(after[name] - before[name], delta, atol=1e-6, rtol=0)


@pytest.mark.parametrize("layers", [["lm_head"], ["embed_tokens"], ["lm_head", "embed_tokens", "q_proj"]])
def test_a_shared_table_is_split_where_the_adapter_changes_one_side(
    layers: list[str], checkpoints: dict[str, Path], tmp_path: Path
) -> None:
    base = tied(checkpoints["qwen3_vl"], tmp_path / "tied")
    done = exported(adapter(base, tmp_path / "adapter", target_modules=layers), tmp_path / "out")
    assert done.difference <= done.tolerance
    model = AutoModelForImageTextToText.from_pretrained(tmp_path / "out", dtype=torch.float32)
    assert model.config.tie_word_embeddings is False
    table, head = model.get_input_embeddings().weight, model.get_output_embeddings().weight
    old = AutoModelForImageTextToText.from_pretrained(base, dtype=torch.float32).get_input_embeddings().weight
    assert torch.equal(table, old) == ("embed_tokens" not in layers)
    assert torch.equal(head, old) == ("lm_head" not in layers)


def test_a_shared_table_stays_shared(checkpoints: dict[str, Path], tmp_path: Path) -> None:
    base = tied(checkpoints["qwen3_vl"], tmp_path / "tied")
    exported(adapter(base, tmp_path / "adapter", target_modules=["q_proj"]), tmp_path / "out")
    assert json.loads((tmp_path / "out" / "config.json").read_text())["tie_word_embeddings"] is True
    assert "lm_head.weight" not in weights(tmp_path / "out")


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("alone", [False, True])
def test_layers_trained_whole_beside_an_adapter(
    shared: bool, alone: bool, checkpoints: dict[str, Path], tmp_path: Path
) -> None:
    base = tied(checkpoints["qwen3_vl"], tmp_path / "tied") if shared else checkpoints["qwen3_vl"]
    made = adapter(base, tmp_path / "a", target_modules=["q_proj"], modules_to_save=["lm_head", "merger"])
    done = exported(made, tmp_path / "out", adapter_only=alone)
    assert done.difference <= done.tolerance
    if alone:
        assert weights(tmp_path / "out").keys() == weights(made).keys()
    else:
        assert not any("lora" in name or "modules_to_save" in name for name in weights(tmp_path / "out"))
        trained = next(v for k, v in weights(made).items() if "lm_head" in k)
        torch.testing.assert_close(weights(tmp_path / "out")["lm_head.weight"], trained, atol=0, rtol=0)


def test_a_base_in_bfloat16(checkpoints: dict[str, Path], tmp_path: Path) -> None:
    base = remade(checkpoints["qwen2_5_vl"], tmp_path / "half", lambda model: model.to(torch.bfloat16))
    made = adapter(base, tmp_path / "adapter", target_modules=["q_proj"])
    half, full = exported(made, tmp_path / "out"), exported(made, tmp_path / "32", dtype="float32")
    assert half.dtype == "bfloat16" and half.rounding is not None and half.rounding > 0
    assert half.difference <= half.tolerance < half.rounding  # rounding is told, and hides nothing
    assert full.dtype == "float32" and full.rounding is None
    assert {t.dtype for t in weights(tmp_path / "out").values()} == {torch.bfloat16}
    assert {t.dtype for t in weights(tmp_path / "32").values()} == {torch.float32}
    for name, dtype in (("out", "bfloat16"), ("32", "float32")):
        config = json.loads((tmp_path / name / "config.json").read_text())
        assert {config["dtype"], config["text_config"]["dtype"], config["vision_config"]["dtype"]} == {dtype}


def test_shards_in_and_out(checkpoints: dict[str, Path], tmp_path: Path) -> None:
    base = remade(checkpoints["qwen3_vl"], tmp_path / "base", lambda model: None, max_shard_size="50KB")
    assert len(list(base.glob("*.safetensors"))) > 1
    made = adapter(base, tmp_path / "adapter", target_modules=["q_proj"])
    done = exported(made, tmp_path / "out", max_shard_size="50KB")
    assert done.difference <= done.tolerance
    assert len(list((tmp_path / "out").glob("*.safetensors"))) > 1
    assert (tmp_path / "out" / "model.safetensors.index.json").is_file()


# ---- full and alone --------------------------------------------------------------------------------------------


def test_a_whole_model_is_written_as_it_is(checkpoints: dict[str, Path], tmp_path: Path) -> None:
    done = exported(checkpoints["qwen2_vl"], tmp_path / "out")
    assert (done.form, done.base, done.difference) == ("full", None, 0.0)
    before, after = weights(checkpoints["qwen2_vl"]), weights(tmp_path / "out")
    assert before.keys() == after.keys() and all(torch.equal(before[k], after[k]) for k in before)


def test_an_adapter_alone_is_peft_format(checkpoints: dict[str, Path], tmp_path: Path) -> None:
    made = adapter(checkpoints["qwen2_5_vl"], tmp_path / "a", target_modules="all-linear")
    done = exported(made, tmp_path / "out", adapter_only=True)
    assert done.form == "adapter" and done.parameters == sum(t.numel() for t in weights(made).values())
    for name, value in weights(made).items():
        assert torch.equal(weights(tmp_path / "out")[name], value)
    base = AutoModelForImageTextToText.from_pretrained(checkpoints["qwen2_5_vl"])
    PeftModel.from_pretrained(base, tmp_path / "out")
    assert json.loads((tmp_path / "out" / "adapter_config.json").read_text())["inference_mode"] is True
    assert (tmp_path / "out" / "generation_config.json").is_file()


def test_a_record_without_a_picture(checkpoints: dict[str, Path], tmp_path: Path) -> None:
    done = exported(checkpoints["qwen3_vl"], tmp_path / "out", record=Record("t", "counting", "Count"))
    assert done.difference <= done.tolerance


def test_no_adapter_to_be_had(checkpoints: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no adapter"):
        exported(checkpoints["qwen3_vl"], tmp_path / "out", adapter_only=True)


# ---- refused ---------------------------------------------------------------------------------------------------


def test_a_forgotten_adapter_is_noticed(
    checkpoints: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = adapter(checkpoints["qwen3_vl"], tmp_path / "a", target_modules=["q_proj"])
    monkeypatch.setattr(merge, "merged", lambda wrapped: wrapped.unload())
    with pytest.raises(UserError, match="merging the adapter changed"):
        exported(made, tmp_path / "out")


def test_a_splitting_left_out_is_noticed(
    checkpoints: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = tied(checkpoints["qwen3_vl"], tmp_path / "tied")
    made = adapter(base, tmp_path / "a", target_modules=["lm_head"])
    monkeypatch.setattr(merge, "_split_tied", lambda inside: None)
    with pytest.raises(UserError, match="merging the adapter changed"):
        exported(made, tmp_path / "out")


def test_another_prompt_is_noticed(
    checkpoints: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = plain_forward.main

    def main(task: str) -> None:
        template = tmp_path / "out" / "chat_template.jinja"
        template.write_text(template.read_text() + "Well: ")
        real(task)

    monkeypatch.setattr(plain_forward, "main", main)
    with pytest.raises(UserError, match="makes another prompt"):
        exported(checkpoints["qwen3_vl"], tmp_path / "out")


def test_weights_that_were_not_written_whole_are_noticed(
    checkpoints: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = plain_forward.main

    def main(task: str) -> None:
        file = tmp_path / "out" / "model.safetensors"
        found = load_file(file)
        found["lm_head.weight"][7, 3] += 0.5
        save_file(found, file, {"format": "pt"})
        real(task)

    monkeypatch.setattr(plain_forward, "main", main)
    with pytest.raises(UserError, match="says something else in plain transformers: its logits differ by"):
        exported(checkpoints["qwen3_vl"], tmp_path / "out")


def test_places_that_are_taken(tmp_path: Path) -> None:
    check_target(tmp_path / "new" / "deep")
    (tmp_path / "empty").mkdir()
    check_target(tmp_path / "empty")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "a").write_text("mine")
    for place, said in (("full", "not empty"), ("full/a", "no folder")):
        with pytest.raises(UserError, match=said):
            check_target(tmp_path / place)


def test_names_for_others(tmp_path: Path) -> None:
    (tmp_path / "Qwen2.5-VL-3B").mkdir()
    assert public_name(str(tmp_path / "Qwen2.5-VL-3B")) == "Qwen2.5-VL-3B"
    assert public_name("/home/me/runs/x/checkpoints/step-000040/model") == "step-000040"
    assert public_name("Qwen/Qwen2.5-VL-3B-Instruct") == "Qwen/Qwen2.5-VL-3B-Instruct"
    assert is_hub_id("Qwen/Qwen2.5-VL-3B-Instruct") and not is_hub_id("embedded:vlm") and not is_hub_id("../x/y")


# ---- bases of adapters -----------------------------------------------------------------------------------------


def test_a_base_that_moved(checkpoints: dict[str, Path], tmp_path: Path) -> None:
    base = tmp_path / "base"
    base.symlink_to(checkpoints["qwen3_vl"])
    made = adapter(base, tmp_path / "a", target_modules=["q_proj"])
    base.unlink()
    with pytest.raises(UserError, match=r"no folder '.*base'; say where .* --base"):
        exported(made, tmp_path / "out")
    done = exported(made, tmp_path / "out2", base=checkpoints["qwen3_vl"], adapter_only=True)
    assert done.base == str(checkpoints["qwen3_vl"])
    written = json.loads((tmp_path / "out2" / "adapter_config.json").read_text())
    assert written["base_model_name_or_path"] == str(checkpoints["qwen3_vl"])
    with pytest.raises(UserError, match="is a full model, which needs no base"):
        exported(checkpoints["qwen3_vl"], tmp_path / "out3", base=checkpoints["qwen3_vl"])


def test_an_adapter_on_the_output_layer_is_merged_or_refused(checkpoints: dict[str, Path], tmp_path: Path) -> None:
    base = tied(checkpoints["qwen3_vl"], tmp_path / "tied")
    made = adapter(base, tmp_path / "a", target_modules=["lm_head"])
    policy = load(Model(path=str(made)), Sampling(), Inputs(), device="cpu")
    assert policy.shape.head.weight is not policy.model.get_input_embeddings().weight
    further = Model.model_validate({"path": str(made), "adapter": {"kind": "lora"}})
    with pytest.raises(UserError, match="on the output layer too"):
        load(further, Sampling(), Inputs(), device="cpu")


def test_an_exported_folder_is_asked_as_its_run_asked(checkpoints: dict[str, Path], tmp_path: Path) -> None:
    """Inputs and the length of answers travel in the note; a broken one is told."""
    from mmrl.vlm.generate import settings

    inputs = {"system": "Be brief.", "max_pixels": 5000}
    base = checkpoints["qwen3_vl"]
    config = build(
        {
            "family": "vlm",
            "recipe": "grpo",
            "model": {"path": str(base)},
            "data": {"train": "digits:train"},
            "inputs": inputs,
            "sampling": {"max_new_tokens": 7},
        },
        folder=tmp_path,
    )
    export(config, tmp_path / "out", Wanted(), RECORD)
    found = settings(tmp_path / "out", None)
    assert found.inputs == config.inputs and found.sampling.max_new_tokens == 7
    (tmp_path / "out" / "mmrl.json").write_text('{"family": "vlm", "inputs": {"max_pixls": 3}}')
    with pytest.raises(UserError, match="max_pixls"):
        settings(tmp_path / "out", None)
