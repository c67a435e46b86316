"""Video input: what decoding and preprocessing a clip cost beside a TW-GRPO step on it.

A Qwen2.5-VL shape of 8 M parameters, one clip of 16 frames at 224 px a prompt, 8 answers of 32 tokens, float32, one
thread. Every step reads another file; clips are not cached.

decode      frames from an H.264 file of 8 seconds, chosen at 2 a second and resized
encode      the processor: patches, ids, positions
step        rollout and update of the trainer, with `inputs.read_ahead` off and on (the next step's clips are read and
            encoded by another thread beside the update), in runs that take turns
wait        what a step then still waits for that thread

Equality first: all runs end with the same weights.
"""

from __future__ import annotations

import json
import statistics
import tempfile
import time
from fractions import Fraction
from pathlib import Path
from typing import Any

from benchmarks import harness

NAMES = ("mmrl", "torch", "transformers", "av")
FRAMES, SIDE, SECONDS, RATE = 16, 224, 8, 30
SOURCES = ((224, 224), (640, 360))
LIMIT = 0.10
ROUNDS = 3  # runs of each kind, in turns: a machine that slows down slows both


def write(path: Path, size: tuple[int, int], seed: int) -> None:
    """A file of moving patterns, `size` (width, height), at the encoder's own distance of key frames."""
    import av
    import numpy as np

    width, height = size
    ground = np.random.default_rng(seed).integers(0, 256, (height // 8, width // 8, 3), dtype=np.uint8)
    ground = ground.repeat(8, 0).repeat(8, 1)
    with av.open(str(path), "w") as out:
        stream: Any = out.add_stream("libx264", rate=RATE)
        stream.width, stream.height, stream.pix_fmt = ground.shape[1], ground.shape[0], "yuv420p"
        for number in range(SECONDS * RATE):
            frame = av.VideoFrame.from_ndarray(np.roll(ground, 2 * number, axis=1), format="rgb24")
            frame.pts, frame.time_base = number, Fraction(1, RATE)
            out.mux(stream.encode(frame))
        out.mux(stream.encode())


def case(size: list[int], steps: int, quick: bool) -> dict[str, Any]:
    """Seconds of the parts and of the steps, and whether both runs gave the same weights."""
    import torch
    from safetensors.torch import load_file

    from benchmarks.vlm_case import SIZES, VISION
    from mmrl import config_io
    from mmrl.training.run import train
    from video import tiny

    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        tiny.build("qwen2_5_vl", folder / "model", **({"patch": 14} if quick else SIZES | VISION))
        rows = []
        for i in range(steps):
            write(folder / f"{i}.mp4", (size[0], size[1]), i)
            rows.append({"id": str(i), "task": "choice", "prompt": "Which?", "videos": [f"{i}.mp4"], "answer": "A"})
        (folder / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        body: dict[str, Any] = {
            "family": "video",
            "recipe": "tw-grpo",
            "threads": 1,
            "device": "cpu",
            "model": {"path": str(folder / "model"), "piece_tokens": 8192},
            "sampling": {"max_new_tokens": 4 if quick else 32},
            "inputs": {"frame_min_pixels": SIDE**2, "frame_max_pixels": SIDE**2, "cached_clips": 0},
            "data": {"train": str(folder / "train.jsonl")},
            "rewards": {"components": [{"name": "overlong", "options": {"max_length": 32, "cache": 31}}]},
            "train": {"steps": steps, "prompts": 1, "group": 8},
            "checkpoint": {"every": steps},
            "log": {"tensorboard": False, "rollouts": 0},
        }
        found: dict[str, Any] = _parts(body, folder, steps)
        states, found["plain"], found["ahead"] = [], list[float](), list[float]()
        found["wait"] = _timed_waits()
        for i, ahead in enumerate((False, True) * (1 if quick else ROUNDS)):
            own = {"out": str(folder / f"run-{i}"), "inputs": body["inputs"] | {"read_ahead": ahead}}
            run = train(config_io.build(body | own, folder=folder))
            lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
            seconds = [line["seconds/step"] for line in lines if "seconds/step" in line]
            found["ahead" if ahead else "plain"] += seconds[1:]  # the first warms up, and its clip is never read ahead
            (file,) = run.glob(f"checkpoints/*{steps}/model/*.safetensors")
            states.append(load_file(file))
        found["same"] = all(torch.equal(states[0][k], other[k]) for other in states[1:] for k in states[0])
    return found


def _timed_waits() -> list[float]:
    """From now on, the seconds of each wait for clips that are being read ahead."""
    from video.policy import VideoPolicy

    waits, settle = list[float](), VideoPolicy._settle

    def timed(self: VideoPolicy) -> None:
        reading, began = self._reading, time.perf_counter()
        settle(self)
        if reading is not None:
            waits.append(time.perf_counter() - began)

    VideoPolicy._settle = timed  # type: ignore[method-assign]
    return waits


def _parts(body: dict[str, Any], folder: Path, files: int) -> dict[str, Any]:
    from mmrl import config_io
    from mmrl.data.records import Record
    from video.family import load_policy

    policy = load_policy(config_io.build(body | {"out": str(folder / "none")}, folder=folder))
    decode, encode, tokens = [], [], 0
    for i in range(files):
        record = Record(str(i), "choice", "Which?", videos=(str(folder / f"{i}.mp4"),), answer="A")
        began = time.perf_counter()
        clips = policy.encoder.clips_of(record)
        middle = time.perf_counter()
        tokens = len(policy.encoder._with_clips(record, None, clips))
        decode.append(middle - began)
        encode.append(time.perf_counter() - middle)
        assert len(clips[0]) == FRAMES
    millions = sum(p.numel() for p in policy.model.parameters()) / 1e6
    return {"decode": decode[1:], "encode": encode[1:], "tokens": tokens, "millions": millions}


def measure(quick: bool) -> dict[str, Any]:
    steps, cases = 2 if quick else 9, []
    for size in SOURCES[:1] if quick else SOURCES:
        raw = harness.call("benchmarks.video_input:case", size=list(size), steps=steps, quick=quick)
        if not raw.pop("same"):
            raise SystemExit("a run that reads ahead gives other weights")
        shown = {"size": list(size), "tokens": raw["tokens"], "millions": raw["millions"]}
        parts = {k: _spread(raw[k]) for k in ("decode", "encode", "plain", "ahead", "wait")}
        cases.append(shown | parts)
        print(f"  {size}: " + "; ".join(f"{k} {harness.show_seconds(t)}" for k, t in parts.items()), flush=True)
    return {"cases": cases, "steps": steps}


def _spread(values: list[float]) -> dict[str, float]:
    low, _, high = harness.quartiles(values)
    return {"median": statistics.median(values), "low": low, "high": high}


def share(one: dict[str, Any]) -> float:
    """Decoding and preprocessing, of a step that waits for them."""
    return float((one["decode"]["median"] + one["encode"]["median"]) / one["plain"]["median"])


def page(result: dict[str, Any]) -> str:
    rows = []
    for one in result["cases"]:
        times = [harness.show_seconds(one[k]) for k in ("decode", "encode", "plain", "ahead", "wait")]
        rows.append([f"{one['size'][0]} x {one['size'][1]}", *times, f"{share(one):.3f}"])
    header = ["file", "decode", "encode", "step", "step, read ahead", "wait", "of a step"]
    first, sizes = result["cases"][0], f"{FRAMES} frames of at most {SIDE} x {SIDE} pixels"
    return f"""{first["millions"]:.1f} M parameters, prompts of {first["tokens"]} tokens, {sizes} from H.264
files of {SECONDS} seconds at {RATE} frames a second; 8 answers of 32 tokens; one thread; medians and quartiles of
{result["steps"] - 1} files, and of {result["steps"] - 1} steps of each of {ROUNDS} runs of either kind, in turns.
`of a step`: decode and encode, of the step that waits for them. Read ahead, the weights after the run are the same;
`wait` is what a step then still waits.

{harness.table(header, rows)}"""


def headline(result: dict[str, Any]) -> list[list[str]]:
    return [
        [
            "video: decoding and preprocessing, of a step",
            f"{FRAMES} frames, file of {one['size'][0]} x {one['size'][1]}",
            f"{share(one):.3f}",
            f"at most {LIMIT:.2f}",
        ]
        for one in result["cases"]
    ]
