"""Prompt and picture encoded once: update against repeated prompts, rollout against `generate`, peak memory over G.

    python benchmarks/vlm_prefix.py [--kind qwen3_vl] [--repeats 10] [--threads 1] [--json FILE]

A random model of about 8 M parameters, one 448 x 448 picture (patch 14, merged 2 x 2: 256 picture tokens), 32 new
tokens. Equality is checked and printed first. Times are medians with the interquartile range. Memory is the largest
resident size during the update minus that just before it, one fresh process a case.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from mmrl.core.streams import Streams
from mmrl.data.records import Record
from mmrl.training.policy import Needs
from mmrl.training.rollouts import Request, Rollouts
from mmrl.vlm import tiny
from mmrl.vlm.config import Inputs, Model, Sampling
from mmrl.vlm.family import load
from mmrl.vlm.policy import VlmPolicy

NEW_TOKENS = 32
SIZES = {"vocabulary": 4096, "hidden": 256, "layers": 6, "heads": 8, "kv_heads": 4}
VISION = {"vision_hidden": 192, "vision_layers": 4, "vision_heads": 6, "patch": 14}


def record() -> Record:
    pixels = np.random.default_rng(0).integers(0, 255, (448, 448, 3), dtype=np.uint8)
    return Record("bench", "none", "Where?", (Image.fromarray(pixels),))


def policy(folder: Path, form: str, piece_tokens: int = 1_000_000) -> VlmPolicy:
    options = Model(path=str(folder), shared_prefix=form, piece_tokens=piece_tokens)  # type: ignore[arg-type]
    made = load(options, Sampling(max_new_tokens=NEW_TOKENS), Inputs(), device="cpu")
    made.ends = {-1}  # every row gets exactly NEW_TOKENS tokens
    return made


def roll(p: VlmPolicy, group: int) -> Rollouts:
    return p.rollout([Request(record(), group)], Streams(0, 0))


def update(p: VlmPolicy, rollouts: Rollouts) -> torch.Tensor:
    """Forward and backward of a loss on every token; returns the log-probs [N, T]."""
    p.model.zero_grad(set_to_none=True)
    table = torch.zeros_like(rollouts.tables["tokens"]["sampler_logp_nt"])
    for bundle in p.bundles(rollouts, channel="tokens", update=0, scope="decision"):
        shared = p.open(bundle, grad=True)
        for piece in bundle.pieces:
            logp = p.evaluate(piece, shared, Needs(frozenset({"logp_nt"})))["logp_nt"]
            (-logp.sum() / table.numel()).backward()
            table[piece.rows] = logp.detach()
            del logp
        p.close(shared)
    return table


def timed(runs: dict[str, Callable[[], Any]], repeats: int) -> dict[str, tuple[float, ...]]:
    """Quartiles of seconds on the clock, and the median of CPU seconds, which a busy machine disturbs less.

    The runs alternate, so that neighbours disturb all of them alike.
    """
    wall: dict[str, list[float]] = {name: [] for name in runs}
    cpu: dict[str, list[float]] = {name: [] for name in runs}
    for i in range(repeats + 2):
        for name, run in runs.items():
            began, spent = time.perf_counter(), time.process_time()
            run()
            if i >= 2:
                wall[name].append(time.perf_counter() - began)
                cpu[name].append(time.process_time() - spent)
    return {n: (*(float(q) for q in np.percentile(wall[n], [25, 50, 75])), float(np.median(cpu[n]))) for n in runs}


def check_equal(fast: VlmPolicy, plain: VlmPolicy, rollouts: Rollouts) -> tuple[float, float]:
    """Largest difference of a log-prob, and of a gradient relative to the largest entry of its tensor."""
    a, b = update(fast, rollouts), update(plain, rollouts)
    worst = 0.0
    for x, y in zip(fast.model.parameters(), plain.model.parameters(), strict=True):
        assert x.grad is not None and y.grad is not None
        worst = max(worst, float((x.grad - y.grad).abs().max() / y.grad.abs().max().clamp(min=1e-12)))
    return float((a - b).abs().max()), worst


def generate(p: VlmPolicy, group: int) -> Callable[[], Any]:
    """transformers' own `generate` on the prompt repeated `group` times."""
    prompt = p.encoder(record())
    ids = prompt.ids.expand(group, -1)
    inputs = {
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),
        "mm_token_type_ids": p.shape.token_types(ids),
        "pixel_values": prompt.media["pixel_values"].repeat(group, 1),
        "image_grid_thw": prompt.media["image_grid_thw"].repeat(group, 1),
    }
    options = {"do_sample": True, "top_k": 0, "top_p": 1.0, "min_new_tokens": NEW_TOKENS, "max_new_tokens": NEW_TOKENS}
    return lambda: p.model.generate(**inputs, **options)


def speed(folder: Path, group: int, repeats: int) -> dict[str, Any]:
    fast, plain = policy(folder, "cache"), policy(folder, "off")
    packed = policy(folder, "packed")
    rollouts = roll(fast, group)
    prompt = len(rollouts.rows[0].prompt)
    ratio = group * (prompt + NEW_TOKENS) / (prompt + group * NEW_TOKENS)
    logp_gap, grad_gap = check_equal(fast, plain, rollouts)
    times = timed(
        {
            "update, repeated prompts": lambda: update(plain, rollouts),
            "update, cache": lambda: update(fast, rollouts),
            "update, packed": lambda: update(packed, rollouts),
            "rollout, generate": generate(plain, group),
            "rollout, mmrl": lambda: roll(fast, group),
        },
        repeats,
    )
    return {
        "prompt_tokens": prompt,
        "parameters": sum(p.numel() for p in fast.model.parameters()),
        "token_ratio": ratio,
        "logp_gap": logp_gap,
        "grad_gap": grad_gap,
        "seconds": times,
    }


def _status(name: str) -> float:
    """A memory line of /proc/self/status in MiB (Linux)."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(name + ":"):
            return int(line.split()[1]) / 1024
    raise RuntimeError(f"no {name} in /proc/self/status")


def peak(folder: Path, group: int, piece_tokens: int, form: str) -> dict[str, float]:
    """Run in a process of its own: MiB resident before the update and at its peak."""
    p = policy(folder, form, piece_tokens)
    p.sampling.batch_rows = 8  # keep the rollout small: its memory must not hide the update's
    rollouts = roll(p, group)
    update(p, rollouts.select(range(2)))  # libraries load, gradients exist
    for parameter in p.model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    before = _status("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # resets the high-water mark
    for bundle in p.bundles(rollouts, channel="tokens", update=0, scope="decision"):
        shared = p.open(bundle, grad=True)
        for piece in bundle.pieces:
            logp = p.evaluate(piece, shared, Needs(frozenset({"logp_nt"})))["logp_nt"]
            logp.sum().backward()
            del logp
        p.close(shared)
    return {"before": before, "peak": _status("VmHWM")}


def memory(folder: Path, piece_tokens: int, groups: list[int], form: str, threads: int) -> dict[int, dict[str, float]]:
    found = {}
    for group in groups:
        case = ["--peak", str(folder), str(group), str(piece_tokens), form, "--threads", str(threads)]
        # every tensor goes back to the system when it is freed: resident memory is then live memory
        env = os.environ | {
            "MALLOC_MMAP_THRESHOLD_": "65536",
            "MALLOC_TRIM_THRESHOLD_": "65536",
            "MALLOC_ARENA_MAX": "1",
        }
        out = subprocess.run([sys.executable, __file__, *case], check=True, capture_output=True, text=True, env=env)
        found[group] = json.loads(out.stdout.splitlines()[-1])
    return found


def versions() -> str:
    import transformers

    return (
        f"torch {torch.__version__}, transformers {transformers.__version__}, Python {platform.python_version()}, "
        f"{torch.get_num_threads()} threads of {os.cpu_count()} CPUs"
    )


def print_speed(kind: str, group: int, found: dict[str, Any]) -> None:
    print(
        f"\n{kind}, {found['parameters'] / 1e6:.1f} M parameters, P {found['prompt_tokens']}, R {NEW_TOKENS}, G {group}"
    )
    print(f"equality: log-prob {found['logp_gap']:.1e}, gradient {found['grad_gap']:.1e} (relative)")
    print(f"token-count ratio {found['token_ratio']:.2f}")
    base = {"update": "update, repeated prompts", "rollout": "rollout, generate"}
    for name, (low, median, high, cpu) in found["seconds"].items():
        _, other, _, other_cpu = found["seconds"][base[name.split(",")[0]]]
        times = f"{median:7.3f} s (IQR {low:.3f} .. {high:.3f}) {other / median:5.2f}x"
        print(f"  {name:26s} {times}   CPU {cpu:7.3f} s {other_cpu / cpu:5.2f}x")


def print_memory(found: dict[int, dict[str, float]], title: str) -> None:
    print(f"\npeak of the update, {title}")
    first = next(iter(found.values()))
    for group, case in found.items():
        grown, base = case["peak"] - case["before"], first["peak"] - first["before"]
        change = f"{100 * (grown / base - 1):+.1f} % against the first"
        print(f"  G {group:3d}: {grown:7.1f} MiB over {case['before']:.0f}  ({change})")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kind", choices=tiny.KINDS, nargs="+", default=["qwen3_vl"])
    parser.add_argument("--group", type=int, default=8)
    parser.add_argument("--groups", type=int, nargs="+", default=[8, 16, 32, 64], help="for the memory table")
    parser.add_argument("--repeats", type=int, default=10)
    parser.add_argument("--threads", type=int, default=1, help="more threads than idle cores spoil every number")
    parser.add_argument("--json", type=Path, help="write the numbers here as well")
    parser.add_argument("--skip", choices=["speed", "memory"], nargs="*", default=[])
    parser.add_argument("--peak", nargs=4, metavar=("FOLDER", "G", "PIECE_TOKENS", "FORM"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    if args.peak:
        folder, group, tokens, form = args.peak
        print(json.dumps(peak(Path(folder), int(group), int(tokens), form)))
        return
    print(versions())
    results: dict[str, Any] = {"versions": versions()}
    for kind in args.kind:
        with tempfile.TemporaryDirectory() as root:
            folder = tiny.build(kind, Path(root) / kind, scale=0.05, **SIZES, **VISION)
            results[kind] = {}
            if "speed" not in args.skip:
                results[kind]["speed"] = speed(folder, args.group, args.repeats)
                print_speed(kind, args.group, results[kind]["speed"])
            if "memory" not in args.skip:
                probe = policy(folder, "cache")
                budget = 8 * (len(probe.encoder(record())) + NEW_TOKENS)
                results[kind]["memory"] = memory(folder, budget, args.groups, "cache", args.threads)
                print_memory(results[kind]["memory"], f"{kind}, cache, piece_tokens {budget} (8 rows a piece)")
    if args.json:
        args.json.write_text(json.dumps(results, indent=2))


if __name__ == "__main__":
    main()
