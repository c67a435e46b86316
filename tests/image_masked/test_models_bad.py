"""Folders that are no masked-diffusion model, or no whole one: one line that says what to do."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from masked_models import CPU, edit, folder, load
from safetensors.torch import load_file, save_file

from image_gen.masked.models import loading
from image_gen.masked.models.loading import load_token_model
from image_gen.pipelines.folders import FAMILIES
from image_gen.pipelines.loading import ADAPTERS, EMBEDDED, OWN, load_image_model
from mmrl.cli.checkpoints import CLASSES, family_of, require_checkpoint
from mmrl.errors import UserError


def refused(path: Path | str) -> str:
    with pytest.raises(UserError) as caught:
        load_token_model(str(path), dtype=torch.float32, device=CPU)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    return Path(shutil.copytree(folder("halved"), tmp_path / "copy"))


def test_no_such_folder(tmp_path: Path, copy: Path) -> None:
    assert "no folder '/no/such/model'; give a folder written by save_pretrained" in refused("/no/such/model")
    assert "unknown embedded model 'embedded:maskd'; did you mean 'embedded:masked'?" in refused("embedded:maskd")
    assert "has no model_index.json, so it is no diffusers pipeline" in refused(tmp_path)
    assert "this is a single model, give the folder above it" in refused(copy / "transformer")


def test_a_model_of_the_other_family(copy: Path) -> None:
    assert refused("embedded:flow") == (
        "model.path: 'embedded:flow' is no masked-diffusion model; it is trained with family: flow"
    )
    for wrong, family in ((str(copy), "masked"), ("embedded:masked", "masked")):
        with pytest.raises(UserError, match=f"; it is trained with family: {family}$"):
            load_image_model(wrong, dtype=torch.float32, device=CPU)
    edit(copy / "model_index.json", _class_name="FluxPipeline")
    assert refused(copy).endswith("is a FluxPipeline, not a masked-diffusion model; it is trained with family: flow")
    edit(copy / "model_index.json", _class_name="StableDiffusionPipeline")
    assert refused(copy).endswith("take a folder in the layout of AmusedPipeline")


def test_the_table_of_families_names_what_the_loaders_take() -> None:
    assert {k for k, v in FAMILIES.items() if v == "flow"} == {*ADAPTERS, *OWN, *EMBEDDED}
    masked = {loading.LAYOUT, *loading.OWN, *loading.EMBEDDED}
    assert {k for k, v in FAMILIES.items() if v == "masked"} == masked
    assert set(CLASSES) | {"embedded:masked"} == masked and set(CLASSES.values()) == {"masked"}


def test_the_command_line_finds_the_family(copy: Path) -> None:
    assert family_of(require_checkpoint(copy)) == "masked"
    edit(copy / "model_index.json", _class_name="EmbeddedTokens")
    assert family_of(copy) == "masked"
    edit(copy / "model_index.json", _class_name="FluxPipeline")
    assert family_of(copy) == "flow"
    (copy / "mmrl.json").write_text(json.dumps({"family": "masked"}))
    assert family_of(copy) == "masked"


@pytest.mark.parametrize("name", ["transformer", "vqvae", "text_encoder"])
def test_damaged_and_missing_weights(copy: Path, name: str) -> None:
    (file,) = (copy / name).glob("*.safetensors")
    whole = file.read_bytes()
    file.write_bytes(whole[: len(whole) // 2])
    assert "is it a whole folder written by save_pretrained?" in refused(copy)
    file.unlink()
    assert "is it a whole folder written by save_pretrained?" in refused(copy)
    file.write_bytes(whole)
    weights = load_file(file)
    first = sorted(weights)[0]
    save_file({n: w for n, w in weights.items() if n != first}, file, metadata={"format": "pt"})
    assert f"the {name}'s weights in" in refused(copy) and f"it lacks 1 tensors, first {first}" in refused(copy)
    save_file(weights, file, metadata={"format": "pt"})
    load(copy)


def test_weights_of_another_shape_and_surplus_ones(copy: Path) -> None:
    file = copy / "transformer" / "diffusion_pytorch_model.safetensors"
    weights = load_file(file)
    save_file(weights | {"extra": torch.zeros(1)}, file, metadata={"format": "pt"})
    assert "has surplus 1 tensors, first extra" in refused(copy)
    save_file(weights, file, metadata={"format": "pt"})
    edit(copy / "transformer" / "config.json", hidden_size=16)
    refused(copy)


def test_pickles_are_not_read(copy: Path) -> None:
    file = copy / "transformer" / "diffusion_pytorch_model.safetensors"
    torch.save(load_file(file), file.with_suffix(".bin"))
    file.unlink()
    assert "cannot load" in refused(copy)


def test_missing_and_broken_files(copy: Path) -> None:
    config = copy / "scheduler" / "scheduler_config.json"
    text = config.read_text()
    config.write_text("{")
    assert "scheduler_config.json: broken JSON" in refused(copy)
    config.unlink()
    assert "scheduler_config.json: cannot be read" in refused(copy)
    config.write_text(text)
    shutil.rmtree(copy / "tokenizer")
    assert "cannot load" in refused(copy)


def test_components_of_other_classes(copy: Path) -> None:
    edit(copy / "model_index.json", transformer=["my_module", "Evil"])
    assert "transformer of" in refused(copy) and "must be UVit2DModel, model_index.json says ['my_module'" in refused(
        copy
    )
    edit(copy / "model_index.json", transformer=None)
    assert "must be UVit2DModel, model_index.json says None" in refused(copy)
    edit(copy / "model_index.json", transformer=["diffusers", "UVit2DModel"])
    edit(copy / "scheduler" / "scheduler_config.json", _class_name="DDIMScheduler")
    assert "is DDIMScheduler; a mask schedule is AmusedScheduler" in refused(copy)
    edit(copy / "model_index.json", scheduler=["diffusers", "DDIMScheduler"])
    assert "scheduler of" in refused(copy) and "must be AmusedScheduler" in refused(copy)


@pytest.mark.parametrize(
    ("file", "changes", "message"),
    [
        ("transformer", {"codebook_size": 33}, "its codebook of 33 ids is larger than its vocabulary of 32"),
        ("scheduler", {"mask_token_id": 7}, "mask_token_id is 7; the mask must lie beyond the codebook (8 ids) and"),
        ("scheduler", {"mask_token_id": 32}, "mask_token_id is 32; the mask must lie beyond the codebook"),
        ("scheduler", {"mask_token_id": None}, "mask_token_id in "),
        ("scheduler", {"mask_token_id": "31"}, "must be a whole number, found '31'"),
        (
            "scheduler",
            {"masking_schedule": "sigmoid"},
            "'sigmoid' is not known; take cosine or linear",
        ),
        ("vqvae", {"num_vq_embeddings": 16}, "the transformer draws 8 ids, the VQ model decodes 16"),
        ("vqvae", {"lookup_from_codebook": False}, "lookup_from_codebook must be true"),
        ("transformer", {"upsample": False}, "downsample and upsample of the transformer must agree"),
    ],
)
def test_ids_that_do_not_fit_each_other(copy: Path, file: str, changes: dict[str, object], message: str) -> None:
    name = "scheduler_config.json" if file == "scheduler" else "config.json"
    edit(copy / file / name, **changes)
    assert message in refused(copy)


def test_the_first_id_beyond_the_codebook_may_be_the_mask(copy: Path) -> None:
    edit(copy / "scheduler" / "scheduler_config.json", mask_token_id=8)
    assert load(copy).mask_id == 8
