"""Export of image models: alone, fused and whole; plain diffusers draws what was trained, another folder is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from flow_exporting import FILE, in_this_process, settings
from PIL import Image
from safetensors.torch import load_file, save_file

from image_gen.embedded import model as embedded
from image_gen.embedded.words import WordEncoder
from image_gen.flow import plain_pictures, plain_usage
from image_gen.flow.export import export
from image_gen.pipelines import lora, tiny
from image_gen.pipelines.loading import load_image_model
from image_gen.stored import NOTE
from mmrl.data.records import Record
from mmrl.errors import UserError
from mmrl.training.exported import Exported, Wanted

CPU = torch.device("cpu")
RECORD = Record("a", "image", "two sevens")
__all__ = ["in_this_process"]  # a fixture that is used by itself
OTHERS = [kind for kind in tiny.TINY if kind != "StableDiffusion3Pipeline"]
WHOLE = "transformer/diffusion_pytorch_model.safetensors"


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("bases")
    return {kind: tiny.write(kind, root / kind) for kind in tiny.TINY}


@pytest.fixture
def sd3(bases: dict[str, Path]) -> Path:
    return bases["StableDiffusion3Pipeline"]


def exported(model: Path, out: Path, *, base: Path | None = None, record: Record = RECORD, **wanted: Any) -> Exported:
    return export(settings(model, base), out, Wanted(**wanted), record)


def adapter(base: Path, folder: Path, *, named: str | None = None) -> Path:
    """A trained-looking LoRA (B is not zero) as a run's checkpoint holds it."""
    model = load_image_model(str(base), dtype=torch.float32, device=CPU)
    return stored(model, folder, named=named or str(base))


def stored(model: Any, folder: Path, *, named: str) -> Path:
    lora.attach_lora(model, rank=2, alpha=6)
    generator = torch.Generator().manual_seed(5)
    for parameter in model.transformer.parameters():
        if parameter.requires_grad:
            parameter.data = 0.3 * torch.randn(parameter.shape, generator=generator)
    model.save_lora(folder)
    (folder / NOTE).write_text(json.dumps({"family": "flow", "base": named}))
    return folder


def drawn(usage: str, folder: Path, monkeypatch: pytest.MonkeyPatch, room: Path) -> Any:
    """The picture that the code of the card makes, as whole numbers."""
    monkeypatch.chdir(room)
    exec(compile(usage.replace('folder = "."', f"folder = {str(folder)!r}"), "card", "exec"), {})
    return np.asarray(Image.open(room / "picture.png")).astype(int)


def compared(done: Exported) -> None:
    (pictures,) = done.further
    assert done.difference <= done.tolerance < 0.01 and pictures.difference <= pictures.tolerance == 1e-3
    assert (done.dtype, done.rounding, done.library) == ("float32", None, "diffusers")


@pytest.mark.parametrize("kind", [pytest.param(k, marks=pytest.mark.slow) for k in OTHERS])
def test_every_pipeline_takes_adapter_and_fused_weights(kind: str, bases: dict[str, Path], tmp_path: Path) -> None:
    made = adapter(bases[kind], tmp_path / "a")
    compared(exported(made, tmp_path / "alone", adapter_only=True))
    compared(exported(made, tmp_path / "fused"))


@pytest.mark.slow
@pytest.mark.parametrize("kind", tiny.TINY)
def test_the_code_of_the_card_draws_the_same_with_adapter_and_fused_weights(
    kind: str, bases: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = adapter(bases[kind], tmp_path / "a")
    alone, fused = exported(made, tmp_path / "alone", adapter_only=True), exported(made, tmp_path / "fused")
    (tmp_path / kind).symlink_to(bases[kind])  # the card names the folder only
    by_lora = drawn(alone.usage, tmp_path / "alone", monkeypatch, tmp_path)
    assert by_lora.shape == (32, 32, 3)
    assert abs(by_lora - drawn(fused.usage, tmp_path / "fused", monkeypatch, tmp_path)).max() <= 1
    assert abs(by_lora - drawn(fused.usage, bases[kind], monkeypatch, tmp_path)).max() > 2


def test_alone_and_fused(sd3: Path, tmp_path: Path) -> None:
    made = adapter(sd3, tmp_path / "a")
    alone, fused = exported(made, tmp_path / "alone", adapter_only=True), exported(made, tmp_path / "fused")
    compared(alone)
    compared(fused)
    assert (alone.form, fused.form, alone.base, fused.base) == ("adapter", "merged", str(sd3), str(sd3))
    assert sorted(p.name for p in (tmp_path / "alone").iterdir()) == [NOTE, FILE]
    assert alone.parameters == sum(t.numel() for t in load_file(made / FILE).values()) < fused.parameters


def test_an_adapter_is_written_as_it_was_trained(sd3: Path, tmp_path: Path) -> None:
    made = adapter(sd3, tmp_path / "a")
    exported(made, tmp_path / "out", adapter_only=True)
    before, after = load_file(made / FILE), load_file(tmp_path / "out" / FILE)
    assert before.keys() == after.keys() and all(torch.equal(before[k], after[k]) for k in before)
    assert json.loads((tmp_path / "out" / NOTE).read_text()) == {"family": "flow", "base": str(sd3)}


def test_fusing_adds_alpha_over_rank_times_the_product(sd3: Path, tmp_path: Path) -> None:
    made = adapter(sd3, tmp_path / "a")
    exported(made, tmp_path / "out")
    before, after, pair = load_file(sd3 / WHOLE), load_file(tmp_path / "out" / WHOLE), load_file(made / FILE)
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed == {n.split(".lora_")[0].removeprefix("transformer.") + ".weight" for n in pair}
    name = "transformer_blocks.0.attn.to_q"
    delta = 3.0 * pair[f"transformer.{name}.lora_B.weight"] @ pair[f"transformer.{name}.lora_A.weight"]
    torch.testing.assert_close(after[f"{name}.weight"] - before[f"{name}.weight"], delta, atol=1e-6, rtol=0)


def test_a_whole_model_keeps_its_weights_encoders_and_shards(sd3: Path, tmp_path: Path) -> None:
    done = exported(sd3, tmp_path / "out", max_shard_size="50KB")
    assert (done.form, done.base) == ("full", None) and done.difference < 1e-5
    files = sorted((tmp_path / "out" / "transformer").glob("*.safetensors"))
    assert len(files) > 1
    after = {name: value for file in files for name, value in load_file(file).items()}
    before = load_file(sd3 / WHOLE)
    assert before.keys() == after.keys() and all(torch.equal(before[k], after[k]) for k in before)
    for part in ("text_encoder_3", "tokenizer", "vae", "scheduler"):
        for file in (sd3 / part).iterdir():
            assert (tmp_path / "out" / part / file.name).read_bytes() == file.read_bytes()


@pytest.mark.parametrize("alone", [False, True])
def test_rounding_is_told_and_hides_nothing(alone: bool, sd3: Path, tmp_path: Path) -> None:
    made = adapter(sd3, tmp_path / "a")
    done = exported(made, tmp_path / "out", adapter_only=alone, dtype="bfloat16")
    assert done.dtype == "bfloat16" and done.rounding is not None
    assert done.difference <= done.tolerance < done.rounding
    found = load_file(tmp_path / "out" / (FILE if alone else WHOLE))
    assert {t.dtype for n, t in found.items() if "pos_embed.pos_embed" not in n} == {torch.bfloat16}


def test_a_base_in_bfloat16_stays_so(sd3: Path, tmp_path: Path) -> None:
    from diffusers import DiffusionPipeline

    DiffusionPipeline.from_pretrained(sd3, dtype=torch.bfloat16).save_pretrained(tmp_path / "half")
    made = adapter(tmp_path / "half", tmp_path / "a")
    assert exported(made, tmp_path / "out").dtype == "bfloat16"
    assert exported(made, tmp_path / "32", dtype="float32").dtype == "float32"


def test_what_the_card_is_told(sd3: Path, tmp_path: Path) -> None:
    done = exported(adapter(sd3, tmp_path / "a", named="them/model-x"), tmp_path / "out", base=sd3, adapter_only=True)
    assert done.base == str(sd3) and dict(done.settings) == {
        "picture size": "32 x 32 (height x width)",
        "noise in training": "sde, level 0.7, steps: all",
        "denoising steps": "4 in training, 5 in evaluation",
        "guidance": "2.5 in training, 2.5 in evaluation",
    }
    assert "num_inference_steps=5" in done.usage and "guidance_scale=2.5" in done.usage and not done.notes
    assert done.words.samples == "pictures" and done.compared == "3 noise levels of the prompt of record 'a'"


@pytest.mark.parametrize(
    ("kind", "scale", "arguments", "remark"),
    [
        ("StableDiffusion3Pipeline", 0.5, {"guidance_scale": 0.5}, "do not mix below 1"),
        ("QwenImagePipeline", 2.5, {"true_cfg_scale": 2.5, "negative_prompt": ""}, "at true_cfg_scale 1 only"),
        ("QwenImagePipeline", 1.0, {"true_cfg_scale": 1.0}, ""),
        ("SanaPipeline", 3.0, {"guidance_scale": 3.0, "use_resolution_binning": False}, ""),
        ("FluxPipeline", 0.5, {"guidance_scale": 0.5}, ""),
    ],
)
def test_how_a_pipeline_is_called(
    kind: str, scale: float, arguments: dict[str, Any], remark: str, bases: dict[str, Path]
) -> None:
    model = load_image_model(str(bases[kind]), dtype=torch.float32, device=CPU)
    assert plain_usage.guidance(model, scale) == arguments
    told = plain_usage.remarks(model, scale)
    assert remark in told[0] if remark else not told
    assert plain_usage.scheduler(model) == ({"solver_order": 1} if kind == "SanaPipeline" else {})


@pytest.mark.parametrize("prompt", ["a `b` ```\n# c", 'it\'s "two"\nlines\u2028', "\\"])
def test_any_prompt_leaves_the_code_of_the_card_whole(prompt: str, sd3: Path) -> None:
    model = load_image_model(str(sd3), dtype=torch.float32, device=CPU)
    usage = plain_usage.code(model, prompt=prompt, base=None, height=32, width=32, steps=2, scale=1.0)
    compile(usage, "card", "exec")
    assert "`" not in usage and usage.isascii() and usage.count("\n") == 15


# ---- the embedded model ----------------------------------------------------------------------------------------


@pytest.fixture
def digits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Random weights of the embedded shape in the place of the shipped ones."""
    torch.manual_seed(0)
    model = embedded.EmbeddedDigits(embedded.make_transformer(), WordEncoder())
    for parameter in model.transformer.parameters():
        if not parameter.any():
            parameter.data.normal_(std=0.05)
    folder = tmp_path / embedded.NAMES["embedded:flow"]
    model.save(folder)
    monkeypatch.setattr(embedded, "FOLDER", tmp_path)
    return folder


def test_the_embedded_models_adapter(digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = load_image_model("embedded:flow", dtype=torch.float32, device=CPU)
    made = stored(model, tmp_path / "a", named="embedded:flow")
    config = settings(made, inputs={"height": 8, "width": 8})
    seven = Record("a", "image", "a seven")
    done = export(config, tmp_path / "alone", Wanted(adapter_only=True), seven)
    assert (done.architecture, done.base, done.further) == ("SD3Transformer2DModel", "embedded:flow", ())
    assert done.difference <= done.tolerance and "no pipeline of diffusers" in done.notes[0]
    fused = export(config, tmp_path / "fused", Wanted(), seven)
    assert fused.form == "merged" and fused.difference <= fused.tolerance
    assert drawn(done.usage, tmp_path / "alone", monkeypatch, tmp_path).max() > 0


def test_the_embedded_model_trained_whole(digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = settings(digits, inputs={"height": 8, "width": 24})
    done = export(config, tmp_path / "out", Wanted(), Record("a", "image", "two sevens"))
    assert (done.form, done.base) == ("full", None) and done.difference <= done.tolerance
    for file in ("words/words.safetensors", WHOLE):
        before, after = load_file(digits / file), load_file(tmp_path / "out" / file)
        assert before.keys() == after.keys() and all(torch.equal(before[k], after[k]) for k in before)
    assert drawn(done.usage, tmp_path / "out", monkeypatch, tmp_path).max() > 0


# ---- refused ---------------------------------------------------------------------------------------------------


def test_options_that_do_not_fit(sd3: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="--adapter-only: .*there is no adapter"):
        exported(sd3, tmp_path / "out", adapter_only=True)
    with pytest.raises(UserError, match="is a whole model, which needs no base"):
        exported(sd3, tmp_path / "out", base=sd3)
    with pytest.raises(UserError, match=r"trained on '/gone/base', which is not there; say where with --base"):
        exported(adapter(sd3, tmp_path / "a", named="/gone/base"), tmp_path / "out")


def test_a_lora_of_another_model(bases: dict[str, Path], sd3: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="LoRA of another model"):
        exported(adapter(sd3, tmp_path / "a"), tmp_path / "out", base=bases["FluxPipeline"])


def test_nan_weights(sd3: Path, tmp_path: Path) -> None:
    made = adapter(sd3, tmp_path / "a")
    found = load_file(made / FILE)
    next(iter(found.values()))[0, 0] = float("nan")
    save_file(found, made / FILE, {"format": "pt"})
    with pytest.raises(UserError, match="velocities are not finite"):
        exported(made, tmp_path / "out")


def test_a_forgotten_adapter_is_noticed(sd3: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lora, "merge", lambda model: model.transformer.unload_lora())
    with pytest.raises(UserError, match="fusing the adapter changed what the model draws: its velocities differ by"):
        exported(adapter(sd3, tmp_path / "a"), tmp_path / "out")


@pytest.mark.parametrize(
    ("file", "what"),
    [(WHOLE, "velocities"), ("vae/diffusion_pytorch_model.safetensors", "pictures"), ("scheduler", "pictures")],
)
def test_a_folder_that_is_not_whole_is_noticed(
    file: str, what: str, sd3: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = plain_pictures.main

    def main(task: str) -> None:
        path = tmp_path / "out" / file
        if file == "scheduler":
            text = (path / "scheduler_config.json").read_text()
            (path / "scheduler_config.json").write_text(text.replace('"shift": 3.0', '"shift": 1.0'))
        else:
            found = load_file(path)
            name = next(n for n in found if "proj_out" in n or "decoder.conv_out" in n)
            found[name] += 0.5
            save_file(found, path, {"format": "pt"})
        real(task)

    monkeypatch.setattr(plain_pictures, "main", main)
    with pytest.raises(UserError, match=f"draws something else in plain diffusers: its {what} differ by"):
        exported(sd3, tmp_path / "out")


@pytest.mark.slow
def test_a_fresh_process(sd3: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    done = exported(adapter(sd3, tmp_path / "a"), tmp_path / "out")
    assert done.difference <= done.tolerance
    monkeypatch.setattr(plain_pictures, "__file__", str(broken := tmp_path / "broken.py"))
    broken.write_text("raise SystemExit('no such thing')")
    with pytest.raises(UserError, match="does not load in plain diffusers: no such thing"):
        exported(sd3, tmp_path / "again")
