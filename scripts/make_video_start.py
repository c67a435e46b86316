"""Make the embedded starting checkpoint of the video family: supervised steps from random weights.

    python scripts/make_video_start.py [--steps N] [--only make|measure] [--out DIR] [--work DIR]

Cross-entropy on hasty demonstrations of `clips:train`, records never seen twice, with the seed and the number of steps
below. Step i draws its batch from the seed and i alone, and the state is kept in --work every 100 steps: stopped and
started again with the same --work, it ends with the same weights. The learning rate stays high to the end, as in
make_vlm_start.py. Every 100 steps the greedy answers to other records of `clips:train` are measured, with their own
clips and with those of other questions; docs/embedded_video.md holds the curve that the number of steps was chosen by.
"""

from __future__ import annotations

import argparse
import shutil
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import Qwen3VLForConditionalGeneration

from mmrl.core.streams import Streams
from mmrl.data.records import Record
from mmrl.training.rollouts import Request
from mmrl.vlm.config import Model, Sampling
from video.config import Inputs
from video.embedded import measures
from video.embedded.clips import HEIGHT, WIDTH
from video.embedded.processor_tiny import make_config, make_processor
from video.embedded.records import builtin, make_record
from video.policy import VideoPolicy

SEED = 0
STEPS = 500
ROWS = 64
LR, WARMUP = 2e-3, 100
KEEP_EVERY = 100
EMBEDDED = Path(__file__).resolve().parent.parent / "video" / "embedded" / "start"
MAX_BYTES = 6_000_000
INPUTS = Inputs(frame_min_pixels=HEIGHT * WIDTH, frame_max_pixels=HEIGHT * WIDTH)
UNSEEN = -100  # label of positions without loss


def policy_of(model: Any, processor: Any) -> VideoPolicy:
    """The policy of the family around a model in memory: the same prompts as in a run."""
    options, sampling = Model(path=str(EMBEDDED), autocast="off"), Sampling(max_new_tokens=40)
    return VideoPolicy(model, processor, options=options, sampling=sampling, inputs=INPUTS)


class Batches:
    """Records as tensors. All clips have one shape and one timing, so the processor writes the placeholders once; after
    that it is asked for the pixels of a whole batch, and the tokenizer for what differs."""

    def __init__(self, policy: VideoPolicy) -> None:
        self.policy, self.tokenizer = policy, policy.processor.tokenizer
        record = make_record(part="train", index=0, seed=SEED)
        prompt = policy.encoder(record)
        words = self._ids(str(record.prompt))
        ids = prompt.ids.tolist()
        at = next(i for i in range(len(ids)) if ids[i : i + len(words)] == words)
        self.before, self.after = ids[:at], ids[at + len(words) :]
        pixels = self._pixels([record])
        if any(not torch.equal(pixels[k], prompt.media[k]) for k in pixels):
            raise SystemExit("a batch of clips is not what the policy's encoder makes of each of them")

    def _ids(self, text: str) -> list[int]:
        return list(self.tokenizer(text, add_special_tokens=False)["input_ids"])

    def _pixels(self, records: Sequence[Record]) -> dict[str, Tensor]:
        clips = [torch.from_numpy(r.videos[0].frames_nhwc).permute(0, 3, 1, 2) for r in records]
        found = self.policy.processor.video_processor(clips, do_sample_frames=False, return_tensors="pt")
        return {k: found[k] for k in ("pixel_values_videos", "video_grid_thw")}

    def __call__(self, records: Sequence[Record]) -> tuple[dict[str, Tensor], Tensor]:
        """(what the model takes, labels [N, L])."""
        prompts = [[*self.before, *self._ids(str(r.prompt)), *self.after] for r in records]
        answers = [[*self._ids(str(r.response)), self.tokenizer.eos_token_id] for r in records]
        width = max(len(p) + len(a) for p, a in zip(prompts, answers, strict=True))
        ids, mask = torch.zeros(2, len(records), width, dtype=torch.long)
        labels = torch.full_like(ids, UNSEEN)
        for n, (prompt, answer) in enumerate(zip(prompts, answers, strict=True)):
            end = len(prompt) + len(answer)
            ids[n, :end] = torch.tensor(prompt + answer)
            labels[n, len(prompt) : end] = torch.tensor(answer)
            mask[n, :end] = 1
        given = {"input_ids": ids, "attention_mask": mask, "mm_token_type_ids": self.policy.shape.token_types(ids)}
        return given | self._pixels(records), labels


def loss_of(policy: VideoPolicy, given: dict[str, Tensor], labels: Tensor) -> Tensor:
    """Mean cross-entropy of the demonstrations' tokens."""
    hidden = policy.shape.inner(**given, use_cache=False).last_hidden_state
    told = labels[:, 1:] != UNSEEN
    return nn.functional.cross_entropy(policy.shape.head(hidden[:, :-1][told]), labels[:, 1:][told])


def greedy(policy: VideoPolicy, records: Sequence[Record]) -> list[str]:
    found = policy.rollout([Request(r, 1) for r in records], Streams(SEED, 0, "eval"), greedy=True)
    return [str(output) for output in found.outputs]


def numbers(policy: VideoPolicy, records: list[Record]) -> dict[str, float]:
    """exact, soft, blind_soft and the share of thoughts that are right from end to end."""
    outputs = greedy(policy, records)
    blind = measures.exact_and_soft(greedy(policy, measures.blinded(records)), records)["soft"]
    read = [
        o.split("</think>")[0] == str(r.response).split("</think>")[0] for o, r in zip(outputs, records, strict=True)
    ]
    return {**measures.exact_and_soft(outputs, records), "blind_soft": blind, "read": float(np.mean(read))}


def told(found: dict[str, float]) -> str:
    return ", ".join(f"{name} {value:.3f}" for name, value in found.items())


def make(*, steps: int, work: Path, out: Path) -> None:
    torch.manual_seed(SEED)
    processor = make_processor()
    model = Qwen3VLForConditionalGeneration(make_config(processor.tokenizer))
    model.generation_config.eos_token_id = processor.tokenizer.eos_token_id
    policy = policy_of(model, processor)
    batches = Batches(policy)
    optimiser = torch.optim.AdamW(model.parameters(), lr=LR, betas=(0.9, 0.98), weight_decay=0.01)
    file, first = work / "state.pt", 0
    if file.is_file():
        state = torch.load(file, weights_only=True)
        first = state["step"]
        model.load_state_dict(state["model"])
        optimiser.load_state_dict(state["optimiser"])
    held_out = builtin(f"clips:train?n=160&seed={SEED + 1}")
    started, losses = time.monotonic(), list[float]()
    for step in range(first, steps):
        for group in optimiser.param_groups:
            group["lr"] = LR * min(1.0, (step + 1) / WARMUP)
        records = [make_record(part="train", index=step * ROWS + i, seed=SEED) for i in range(ROWS)]
        loss = loss_of(policy, *batches(records))
        optimiser.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        losses.append(loss.item())
        if (step + 1) % KEEP_EVERY == 0 or step + 1 == steps:
            seconds = (time.monotonic() - started) / (step + 1 - first)
            rest = {"model": model.state_dict(), "optimiser": optimiser.state_dict()}
            torch.save({"step": step + 1, **rest}, file.with_suffix(".new"))
            file.with_suffix(".new").replace(file)
            model.save_pretrained(work / f"step-{step + 1:05d}")
            found = told(numbers(policy, held_out))
            print(f"{step + 1}/{steps}: loss {np.mean(losses):.4f}, {found}, {seconds:.3f} s a step", flush=True)
            losses.clear()
    shutil.rmtree(out, ignore_errors=True)
    model.save_pretrained(out)
    processor.save_pretrained(out)


def report(out: Path) -> None:
    """What the shipped model does before any reinforcement."""
    model = Qwen3VLForConditionalGeneration.from_pretrained(out)
    records = builtin("clips:eval")
    policy = policy_of(model.eval(), make_processor())
    print(f"{sum(p.numel() for p in model.parameters())} weights")
    print(f"clips:eval: {told(numbers(policy, records))}")
    print(f"best constant: {told(measures.constant_levels(records))}, by kind {measures.typed_constant(records):.3f}")
    for name, found in measures.by_type(greedy(policy, records), records).items():
        print(f"  {name}: {told(found)}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=STEPS, help="in place of the published number")
    parser.add_argument("--only", choices=("make", "measure"))
    parser.add_argument("--out", type=Path, default=EMBEDDED)
    parser.add_argument("--work", type=Path, help="keep the state here (default: a temporary folder)")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as temporary:
        work = asked.work or Path(temporary)
        work.mkdir(parents=True, exist_ok=True)
        if asked.only != "measure":
            make(steps=asked.steps, work=work, out=asked.out)
    if asked.only != "make":
        report(asked.out)
    size = sum(f.stat().st_size for f in asked.out.iterdir())
    print(f"{asked.out}: {size} bytes")
    if size > MAX_BYTES:
        raise SystemExit(f"larger than the {MAX_BYTES} bytes that the package allows")


if __name__ == "__main__":
    main()
