"""Export of a masked run from the command line: weights and schedule as the run evaluated them, and the model card."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch
from masked_exporting import FILE, SCHEDULE, base_folder, in_this_process
from safetensors.torch import load_file

from mmrl.cli.main import run as main

__all__ = ["in_this_process"]  # a fixture that is used by itself
RUN = """family: masked
recipe: co-grpo
recipe_options: {channels.schedule.optimiser.lr: 0.2}
threads: 1
device: cpu
log: {tensorboard: false}
model: {path: BASE, adapter: {rank: 2, alpha: 4}}
data: {train: prompts.jsonl, eval: prompts.jsonl}
sampling: {steps: 4, guidance: 2.0}
inputs: {height: 8, width: 8, eval_images: 2, curve_steps: [2, 4], curve_images: 2}
rewards: {components: [{name: brightness}]}
eval: {judges: [{name: redness}]}
train: {steps: 2, prompts: 2, group: 3}
optimiser: {lr: 1.0e-2}
"""


def test_a_run_is_exported_with_its_schedule_and_a_card(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    base = base_folder(tmp_path / "base")
    rows = [{"id": "fox", "prompt": "a red fox"}, {"id": "hen", "prompt": "a hen"}]
    Path("prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    Path("run.yaml").write_text(RUN.replace("BASE", str(base)))
    assert main(["train", "run.yaml", "out=run"]) == 0
    capsys.readouterr()
    assert main(["export", "run", "--out", "alone", "--adapter-only", "--step", "2"]) == 0
    told = capsys.readouterr().out
    for part in (
        "largest difference of the logits",
        "of the pictures (0 black, 1 white)",
        "of the schedule (raw means and deviations) 0.0e+00",
        f"mmrl.json names its base model as {base}: change that",
        "a half-open canvas with and without the prompt of record 'fox'",
    ):
        assert part in told, told
    stored = Path("run/checkpoints/step-000002/model")
    for file in (FILE, SCHEDULE):
        before, after = load_file(stored / file), load_file(Path("alone") / file)
        assert before.keys() == after.keys() and all(torch.equal(before[k], after[k]) for k in before)
    assert load_file(stored / SCHEDULE)["means"].any()
    card = Path("alone/README.md").read_text()
    for part in (
        "library_name: diffusers\npipeline_tag: text-to-image",
        "The recipe is a reconstruction:",
        "net.load_lora_adapter(folder",
        "schedule = [",
        "AmusedPipeline takes one guidance scale",
        "| pictures a prompt | 3 |",
        "| decoding steps | 4 in training, 4 in evaluation |",
        "| schedule | table, learned (ratio, remask, sample, guidance), trained at 4 steps |",
        "Pictures by the mean of the schedule for the held-out prompts",
        "| trained tokens and schedule actions | 114 |",  # 6 canvases of 16 tokens, then 6 of 3 actions
        "Judges, never trained on: redness.",
        "LoRA, rank 2",
    ):
        assert part in card, part
    assert not re.search("answers?\\b|[Gg]reedy|denoising|" + re.escape(str(tmp_path)), card)
    assert main(["export", "run", "--out", "fused", "--step", "2"]) == 0
    assert main(["generate", "fused", "--prompt", "a hen", "--n", "1", "--height", "8", "--width", "8"]) == 0
    assert json.loads(Path("generated/pictures.json").read_text())["schedule"] == "learned"
