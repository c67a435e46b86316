"""Export of masked-image models: plain diffusers gives what was trained, another folder is refused."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from masked_exporting import (
    CPU,
    FILE,
    SCHEDULE,
    SIDE,
    STEPS,
    adapter,
    base_folder,
    in_this_process,
    moved_schedule,
    settings,
    sharp_folder,
)
from PIL import Image
from safetensors.torch import load_file, save_file

from image_gen.masked import plain_tokens, plain_usage
from image_gen.masked.config import Inputs, Model, Sampling
from image_gen.masked.export import export
from image_gen.masked.family import load
from image_gen.masked.models.loading import load_token_model
from image_gen.pipelines import lora
from image_gen.stored import NOTE
from mmrl.core.streams import Streams
from mmrl.data.records import Record
from mmrl.errors import UserError
from mmrl.training.exported import Exported, Wanted
from mmrl.training.rollouts import Request

RECORD = Record("a", "image", "two sevens")
WHOLE = "transformer/diffusion_pytorch_model.safetensors"
__all__ = ["in_this_process"]  # a fixture that is used by itself


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return base_folder(tmp_path_factory.mktemp("bases") / "amused")


def exported(model: Path, out: Path, *, base: Path | None = None, **wanted: Any) -> Exported:
    return export(settings(model, base), out, Wanted(**wanted), RECORD)


def compared(done: Exported) -> None:
    further = {one.what: one for one in done.further}
    assert set(further) == {"pictures (0 black, 1 white)", "schedule (raw means and deviations)"}
    assert done.difference <= done.tolerance < 0.01
    assert further["pictures (0 black, 1 white)"].difference <= 1e-3
    assert further["schedule (raw means and deviations)"].difference == 0


def test_alone_and_fused(base: Path, tmp_path: Path) -> None:
    made = adapter(base, tmp_path / "a")
    alone, fused = exported(made, tmp_path / "alone", adapter_only=True), exported(made, tmp_path / "fused")
    for done in (alone, fused):
        compared(done)
        assert (done.dtype, done.rounding, done.library) == ("float32", None, "diffusers")
    assert (alone.form, fused.form, alone.base, fused.base) == ("adapter", "merged", str(base), str(base))
    assert sorted(p.name for p in (tmp_path / "alone").iterdir()) == [NOTE, FILE, "schedule"]
    assert alone.parameters == sum(t.numel() for t in load_file(made / FILE).values()) < fused.parameters
    assert json.loads((tmp_path / "alone" / NOTE).read_text()) == {"family": "masked", "base": str(base)}
    before = load_file(made / SCHEDULE)
    for folder in ("alone", "fused"):
        after = load_file(tmp_path / folder / SCHEDULE)
        assert before.keys() == after.keys() and all(torch.equal(before[k], after[k]) for k in before)
        assert after["means"].any()
    for part in ("text_encoder", "tokenizer", "vqvae", "scheduler"):
        for file in (base / part).iterdir():
            assert (tmp_path / "fused" / part / file.name).read_bytes() == file.read_bytes()


def test_a_whole_model_without_a_schedule_gets_the_hand_made_one(base: Path, tmp_path: Path) -> None:
    done = exported(base, tmp_path / "out")
    compared(done)
    assert (done.form, done.base) == ("full", None)
    before, after = load_file(base / WHOLE), load_file(tmp_path / "out" / WHOLE)
    assert before.keys() == after.keys() and all(torch.equal(before[k], after[k]) for k in before)
    assert not load_file(tmp_path / "out" / SCHEDULE)["means"].any()
    assert "hand-made" in done.notes[0] and dict(done.settings)["schedule"] == "table, hand-made, trained at 4 steps"


def test_rounding_is_told_and_leaves_the_schedule_alone(base: Path, tmp_path: Path) -> None:
    done = exported(adapter(base, tmp_path / "a"), tmp_path / "out", dtype="bfloat16")
    compared(done)
    assert done.rounding is not None and done.difference <= done.tolerance < done.rounding
    assert {t.dtype for t in load_file(tmp_path / "out" / WHOLE).values()} == {torch.bfloat16}
    assert load_file(tmp_path / "out" / SCHEDULE)["means"].dtype == torch.float32


def test_what_the_card_is_told(base: Path, tmp_path: Path) -> None:
    made = adapter(base, tmp_path / "a", schedule=moved_schedule(learn=["ratio", "guidance"]))
    done = exported(made, tmp_path / "out", adapter_only=True)
    assert dict(done.settings) == {
        "picture size": "8 x 8 (height x width)",
        "decoding steps": "4 in training, 4 in evaluation",
        "guidance": "3 in the hand-made schedule",
        "schedule": "table, learned (ratio, guidance), trained at 4 steps",
    }
    assert done.words.outputs == "logits" and "half-open canvas" in done.compared
    assert "AmusedPipeline takes one guidance scale" in done.notes[0]


# ---- the code of the card ----------------------------------------------------------------------------------------


def drawn(usage: str, folder: Path, monkeypatch: pytest.MonkeyPatch, room: Path) -> Any:
    """The picture that the code of the card makes, as whole numbers."""
    monkeypatch.chdir(room)
    exec(compile(usage.replace('folder = "."', f"folder = {str(folder)!r}"), "card", "exec"), {})
    return np.asarray(Image.open(room / "picture.png")).astype(int)


#: Nothing is left to chance; probabilities at temperature 1 decide what is kept, for at this one they all round to 1.
COLD: dict[str, Any] = {
    "steps": STEPS,
    "guidance": 3.0,
    "sample_temperature": 1e-3,
    "remask_temperature": [0.0, 0.0],
    "confidence": "untempered",
}


def test_the_loop_of_the_card_draws_what_the_policy_draws(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without noise both must fill the same canvas, by a schedule with learned ratios and guidance."""
    base = sharp_folder(tmp_path / "at" / "sharp")
    made = adapter(base, tmp_path / "a", schedule=moved_schedule(learn=["ratio", "guidance"], far=4.0))
    config = settings(made, sampling=COLD)
    alone = export(config, tmp_path / "alone", Wanted(adapter_only=True), RECORD)
    fused = export(config, tmp_path / "fused", Wanted(), RECORD)
    inputs = Inputs(height=SIDE, width=SIDE)
    policy = load(Model(path=str(made)), Sampling.model_validate(COLD), inputs, device="cpu")
    request = Request(RECORD, 1)
    by_schedule = {}
    for name in ("learned", "base"):
        asked = dataclasses.replace(request, sampling={"schedule": name})
        (told,) = policy.rollout([asked], Streams(0, 0), greedy=True).outputs
        by_schedule[name] = (255 * told).permute(1, 2, 0).numpy()
    (tmp_path / base.name).symlink_to(base)  # the card names the folder only
    for done, folder in ((alone, "alone"), (fused, "fused")):
        picture = drawn(done.usage, tmp_path / folder, monkeypatch, tmp_path)
        assert np.abs(picture - by_schedule["learned"]).max() <= 1
        assert np.abs(picture - by_schedule["base"]).max() > 20  # the schedule matters


def test_the_code_of_the_card_runs_with_noise(base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    done = exported(adapter(base, tmp_path / "a"), tmp_path / "out")
    assert "score = logp.gather" in done.usage
    assert drawn(done.usage, tmp_path / "out", monkeypatch, tmp_path).shape == (SIDE, SIDE, 3)


def test_the_table_of_the_card_is_the_learned_schedule(base: Path) -> None:
    model = load_token_model(str(base), dtype=torch.float32, device=CPU)
    schedule, sampling = moved_schedule(), Sampling(steps=STEPS, guidance=3.0)
    usage = plain_usage.code(model, schedule, sampling, prompt="x", base=None, height=SIDE, width=SIDE)
    rows = eval(usage.split("schedule = ")[1].split("]\n")[0] + "]")
    table = plain_usage.values(model, schedule, sampling)
    assert table is not None and torch.equal(torch.tensor(rows), table)
    assert len(rows) == STEPS and rows[-1] == (0, 0, 1, 3)
    plain = torch.tensor([[0.92388, 2.0, 1.0, 3.0], [0.707107, 1.33333, 1.0, 3.0], [0.382683, 0.666667, 1.0, 3.0]])
    assert bool(((table[:3] - plain).abs()[:, [0, 2, 3]] > 1e-3).all())  # moved
    fewer = plain_usage.values(model, schedule, Sampling(steps=STEPS, eval_steps=2, guidance=3.0))
    assert fewer is not None and len(fewer) == 2


@pytest.mark.parametrize("prompt", ["a `b` ```\n# c", 'it\'s "two"\nlines\u2028', "\\"])
def test_any_prompt_leaves_the_code_of_the_card_whole(prompt: str, base: Path) -> None:
    model = load_token_model(str(base), dtype=torch.float32, device=CPU)
    usage = plain_usage.code(
        model, moved_schedule(), Sampling(steps=STEPS), prompt=prompt, base=None, height=SIDE, width=SIDE
    )
    compile(usage, "card", "exec")
    assert "`" not in usage and usage.isascii()


def test_a_schedule_network_is_told_and_drawn_with_this_package(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = adapter(base, tmp_path / "a", schedule=moved_schedule("net"))
    done = exported(made, tmp_path / "out")
    compared(done)
    assert "reads the canvas" in done.notes[0] and "from image_gen.masked.family import load" in done.usage
    assert drawn(done.usage, tmp_path / "out", monkeypatch, tmp_path).max() > 0


# ---- the embedded model ------------------------------------------------------------------------------------------


def test_the_embedded_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = load_token_model("embedded:masked", dtype=torch.float32, device=CPU)
    lora.attach_lora(model, rank=2, alpha=4)
    for name, parameter in model.transformer.named_parameters():
        if ".lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    model.save_lora(tmp_path / "a")
    (tmp_path / "a" / NOTE).write_text(json.dumps({"family": "masked", "base": "embedded:masked"}))
    moved_schedule().save(tmp_path / "a" / "schedule")
    seven = Record("a", "image", "a seven")
    alone = export(settings(tmp_path / "a"), tmp_path / "alone", Wanted(adapter_only=True), seven)
    fused = export(settings(tmp_path / "a"), tmp_path / "fused", Wanted(), seven)
    for done in (alone, fused):
        compared(done)
        assert (done.library, done.architecture, done.base) == ("mmrl", "CompactTokens", "embedded:masked")
    assert "class of mmrl" in alone.notes[0]
    assert drawn(alone.usage, tmp_path / "alone", monkeypatch, tmp_path).max() > 0
    assert drawn(fused.usage, tmp_path / "fused", monkeypatch, tmp_path).max() > 0


# ---- refused -----------------------------------------------------------------------------------------------------


def test_options_that_do_not_fit(base: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="--adapter-only: .*there is no adapter"):
        exported(base, tmp_path / "out", adapter_only=True)
    with pytest.raises(UserError, match="is a whole model, which needs no base"):
        exported(base, tmp_path / "out", base=base)
    with pytest.raises(UserError, match=r"trained on '/gone/base', which is not there; say where with --base"):
        exported(adapter(base, tmp_path / "a", named="/gone/base"), tmp_path / "out")


def test_nan_weights(base: Path, tmp_path: Path) -> None:
    made = adapter(base, tmp_path / "a")
    found = load_file(made / FILE)
    next(iter(found.values()))[0, 0] = float("nan")
    save_file(found, made / FILE, {"format": "pt"})
    with pytest.raises(UserError, match="logits are not finite"):
        exported(made, tmp_path / "out")


def test_a_forgotten_adapter_is_noticed(base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lora, "merge", lambda model: model.transformer.unload_lora())
    with pytest.raises(UserError, match="fusing the adapter changed what the model draws: its logits differ by"):
        exported(adapter(base, tmp_path / "a"), tmp_path / "out")


@pytest.mark.parametrize(
    ("file", "tensor", "what"),
    [
        (WHOLE, "mlm_layer.conv2.weight", "logits"),
        ("vqvae/diffusion_pytorch_model.safetensors", "decoder.conv_out.bias", "pictures"),
        (SCHEDULE, "means", "schedule"),
    ],
)
def test_a_folder_that_is_not_what_was_trained_is_noticed(
    file: str, tensor: str, what: str, base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = plain_tokens.main

    def main(task: str) -> None:
        path = tmp_path / "out" / file
        found = load_file(path)
        found[tensor] += 0.1
        save_file(found, path, {"format": "pt"})
        real(task)

    monkeypatch.setattr(plain_tokens, "main", main)
    with pytest.raises(UserError, match=f"draws something else in plain diffusers: its {what} differ by"):
        exported(base, tmp_path / "out")


@pytest.mark.slow
def test_a_fresh_process(base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    compared(exported(adapter(base, tmp_path / "a"), tmp_path / "out"))
    monkeypatch.setattr(plain_tokens, "__file__", str(broken := tmp_path / "broken.py"))
    broken.write_text("raise SystemExit('no such thing')")
    with pytest.raises(UserError, match="does not load in plain diffusers: no such thing"):
        exported(base, tmp_path / "again")
