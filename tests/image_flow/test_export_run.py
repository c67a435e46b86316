"""Export from the command line: of a run, with its averages, and what the model card says."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch
from flow_exporting import FILE, in_this_process, settings
from safetensors.torch import load_file

from image_gen.pipelines import tiny
from mmrl.cli.main import run as main
from mmrl.training.export import sample_record

__all__ = ["in_this_process"]  # a fixture that is used by itself
RUN = """family: flow
recipe: flow-grpo
threads: 1
device: cpu
log: {tensorboard: false}
model: {path: BASE, adapter: {rank: 2, alpha: 4}}
data: {train: prompts.jsonl, eval: prompts.jsonl}
sampling: {steps: 3, eval_steps: 2, guidance: 2.0}
inputs: {height: 32, width: 32, eval_images: 2}
rewards: {components: [{name: brightness}]}
eval: {judges: [{name: redness}]}
train: {steps: 1, prompts: 2, group: 2}
optimiser: {lr: 1.0e-2}
ema: {enabled: true, decay: 0.5}
"""


def test_a_run_is_exported_with_its_averages_and_a_card(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    base = tiny.write("StableDiffusion3Pipeline", tmp_path / "base")
    rows = [{"id": "fox", "prompt": "a red fox"}, {"id": "hen", "prompt": "a hen"}]
    Path("prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    Path("lora.yaml").write_text(RUN.replace("BASE", str(base)))
    assert main(["train", "lora.yaml", "out=lora"]) == 0
    capsys.readouterr()
    assert main(["export", "lora", "--out", "alone", "--adapter-only", "--step", "1"]) == 0
    told = capsys.readouterr().out
    for part in (
        "largest difference of the velocities",
        "of the pictures (0 black, 1 white)",
        f"mmrl.json names its base model as {base}: change that",
        "3 noise levels of the prompt of record 'fox'",
    ):
        assert part in told, told
    step = Path("lora/checkpoints/step-000001")
    averaged, written = load_file(step / "model" / FILE), load_file(Path("alone") / FILE)
    assert all(torch.equal(written[k], averaged[k]) for k in averaged) and written.keys() == averaged.keys()
    trained = load_file(step / "trainable.safetensors")
    layer = "transformer_blocks.0.attn.to_q.lora_B"
    (last,) = (value for name, value in trained.items() if name.startswith("policy/") and layer in name)
    assert last.any() and not torch.equal(last, written[f"transformer.{layer}.weight"])
    card = Path("alone/README.md").read_text()
    for part in (
        "library_name: diffusers\npipeline_tag: text-to-image",
        "pipe.load_lora_weights(folder)",
        "| pictures a prompt | 2 |",
        "| denoising steps | 3 in training, 2 in evaluation |",
        "| trained denoising steps | 8 |",
        "Pictures of the noiseless sampler for the held-out prompts",
        "| judge |",
        "| diversity |",
        "Judges, never trained on: redness.",
        "LoRA, rank 2",
    ):
        assert part in card, part
    assert not re.search("answer|token|[Gg]reedy|logit|" + re.escape(str(tmp_path)), card)


def test_prompts_that_are_gone(tmp_path: Path) -> None:
    told: list[str] = []
    config = settings(tmp_path)
    config.data.train = config.data.eval = str(tmp_path / "gone.jsonl")
    record = sample_record(config, told.append)
    assert (record.id, record.images) == ("made", ()) and "compared on a made prompt" in told[0]
    (tmp_path / "gone.jsonl").write_text(json.dumps({"id": "back", "prompt": "a red fox"}) + "\n")
    assert sample_record(config, told.append).id == "back"  # it needs no picture
