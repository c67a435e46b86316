"""How near the update is to the machine's limit: FLOPs with every prompt token counted once, over the matmul rate.

Counted are the multiply-adds (two each) of matrix products: patch embedding, vision layers with their attention inside
windows or over the picture, mergers, language layers, attention over visible pairs only, output layer on completion
positions only; the backward pass costs twice the forward. Norms, rotations, softmax, the entropy's second look, AdamW
and all bookkeeping are counted as nothing, so 1.0 cannot be reached. Two rates are measured beside every update: of a
large square product, and of products of the shapes that this update has, weighted by their FLOPs. Update and rates are
in CPU seconds of one thread, which a busy machine disturbs little.
"""

from __future__ import annotations

import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks import harness
from benchmarks.harness import Side

NAMES = ("mmrl", "torch", "transformers")
CASES = [("qwen2_5_vl", 448, 8), ("qwen3_vl", 448, 8), ("qwen3_vl", 896, 4)]  # kind, pixels, repeats
GROUP, THREADS = 8, 1

Product = tuple[str, int, int, int, int]  # what, count, and m, k, n of one product [m, k] @ [k, n]


def vision_products(config: Any, patches: int) -> list[Product]:
    """Matrix products of the vision tower's forward pass on one square picture of `patches` patches."""
    v, d, layers = config.vision_config, config.vision_config.hidden_size, config.vision_config.depth
    merge = v.spatial_merge_size**2
    inputs = v.in_channels * v.temporal_patch_size * v.patch_size**2
    gated = config.model_type == "qwen2_5_vl"
    found: list[Product] = [
        ("patches", 1, patches, inputs, d),
        ("vision linear", layers, patches, d, 3 * d),
        ("vision linear", layers, patches, d, d),
        ("vision linear", layers * (3 if gated else 2), patches, d, v.intermediate_size),
    ]
    heads, width = v.num_heads, d // v.num_heads
    for layer in range(layers):
        windowed = gated and layer not in v.fullatt_block_indexes
        sizes = windows(patches, v) if windowed else [patches]
        for size in sorted(set(sizes)):
            found.append(("vision attention", 2 * heads * sizes.count(size), size, width, size))
    mergers = 1 + len(getattr(v, "deepstack_visual_indexes", []) or [])
    found += [("merger", mergers, patches // merge, merge * d, merge * d)]
    found += [("merger", mergers, patches // merge, merge * d, v.out_hidden_size)]
    return found


def windows(patches: int, v: Any) -> list[int]:
    """Patches in each attention window of a square picture; windows at the edges are smaller."""
    side = int(patches**0.5)
    window = v.window_size // v.patch_size
    cuts = [min(window, side - at) for at in range(0, side, window)]
    return [a * b for a in cuts for b in cuts]


def text_products(config: Any, prompt: int, group: int, new: int) -> list[Product]:
    """Of the language model: the prompt once, `group` completions whose last token predicts nothing."""
    t = config.get_text_config()
    d, layers, heads = t.hidden_size, t.num_hidden_layers, t.num_attention_heads
    width = getattr(t, "head_dim", None) or d // heads
    pairs = group * sum(prompt + i + 1 for i in range(new - 1))  # visible pairs of completion queries
    found: list[Product] = []
    for name, tokens in (("prompt linear", prompt), ("completion linear", group * (new - 1))):
        found += [
            (name, layers, tokens, d, heads * width),
            (name, 2 * layers, tokens, d, t.num_key_value_heads * width),
            (name, layers, tokens, heads * width, d),
            (name, 3 * layers, tokens, d, t.intermediate_size),
        ]
    found.append(("prompt attention", 2 * layers * heads, (prompt + 1) // 2, width, prompt))  # the causal half
    found.append(("completion attention", 2 * layers * heads, round(pairs / prompt), width, prompt))
    return [*found, ("output layer", 1, group * new, d, t.vocab_size)]


def flops(products: list[Product]) -> dict[str, float]:
    """Forward and backward, by what."""
    total: dict[str, float] = {}
    for name, count, m, k, n in products:
        total[name] = total.get(name, 0.0) + 3.0 * 2.0 * count * m * k * n
    return total


def rate(m: int, k: int, n: int, repeats: int = 15) -> float:
    """FLOP/s of [m, k] @ [k, n], by the median of repeats of at least about a millisecond (CPU seconds, one thread)."""
    import torch

    a, b, out = torch.randn(m, k), torch.randn(k, n), torch.empty(m, n)
    inner = max(1, int(1e8 / (2 * m * k * n)))
    times = []
    for _ in range(repeats + 2):
        start = time.process_time()
        for _ in range(inner):
            torch.mm(a, b, out=out)
        times.append((time.process_time() - start) / inner)
    return 2 * m * k * n / statistics.median(times[2:])


def both(folder: str, patches: int) -> Callable[[Any], None]:
    """A side whose every run takes one step and, right beside it, the rates of the products.

    What was counted goes into the file `counted.json` of the folder.
    """
    from benchmarks import vlm_case

    made = vlm_case.trainer(folder, group=GROUP)
    products = _products(made, patches)
    sizes = {
        "parameters": sum(p.numel() for p in made.policy.model.parameters()),
        "prompt": len(made.policy.encoder(made.selector.records[0])),
        "flops": flops(products),
    }
    (Path(folder) / "counted.json").write_text(json.dumps(sizes))
    step = vlm_case.clocked_step(made)

    def work(clock: Any) -> None:
        step(clock)
        square, weighted = rate(1024, 1024, 1024, 3), shape_rate(products)
        clock.found["square"] = {"seconds": square, "cpu": 0.0}
        clock.found["shapes"] = {"seconds": weighted, "cpu": 0.0}

    return work


def shape_rate(products: list[Product]) -> float:
    """Of the update's own shapes: all FLOPs over the time they would take at the measured rates."""
    shapes = {(m, k, n) for _, _, m, k, n in products}
    measured = {shape: rate(*shape, repeats=3) for shape in shapes}
    work = [(2.0 * count * m * k * n, measured[m, k, n]) for _, count, m, k, n in products]
    return sum(w for w, _ in work) / sum(w / r for w, r in work)


def _products(made: Any, patches: int) -> list[Product]:
    from benchmarks.vlm_case import NEW_TOKENS

    prompt = len(made.policy.encoder(made.selector.records[0]))
    config = made.policy.shape.config
    return vision_products(config, patches) + text_products(config, prompt, GROUP, NEW_TOKENS)


def measure(quick: bool) -> dict[str, Any]:
    cases = []
    for kind, pixels, repeats in [("qwen3_vl", 56, 1)] if quick else CASES:
        with tempfile.TemporaryDirectory() as folder:
            build = {"folder": folder, "kind": kind, "side": pixels, "small": quick}
            patches = harness.call("benchmarks.vlm_case:build", **build)["patches"]
            side = Side("mmrl", "benchmarks.roofline:both", {"folder": folder, "patches": patches}, THREADS)
            times = harness.race([side], repeats=repeats, warmups=0 if quick else 1)["mmrl"]
            counted = json.loads((Path(folder) / "counted.json").read_text())
            cases.append({"kind": kind, "pixels": pixels, **counted, "times": times})
    return {"group": GROUP, "threads": THREADS, "cases": cases}


def ratios(case: dict[str, Any]) -> dict[str, tuple[float, float, float]]:
    """CPU seconds of the update over those at each rate: quartiles over the runs, rate and update of the same run."""
    total = sum(case["flops"].values())
    seconds = case["times"]["update"]["all_cpu"]
    found = {}
    for name in ("square", "shapes"):
        low, median, high = harness.quartiles([s * r / total for s, r in zip(seconds, case["times"][name]["all"])])
        found[name] = (low, median, high)
    return found


def page(result: dict[str, Any]) -> str:
    header = [
        "shape",
        "prompt tokens",
        "GFLOP",
        "update, CPU s",
        "GFLOP/s square",
        "GFLOP/s own shapes",
        "of square",
        "of own shapes",
    ]
    rows, parts = [], []
    for case in result["cases"]:
        total, r, t = sum(case["flops"].values()), ratios(case), case["times"]
        speeds = [f"{t[name]['median'] / 1e9:.0f}" for name in ("square", "shapes")]
        shown = [f"{r[name][1]:.2f}x ({r[name][0]:.2f} - {r[name][2]:.2f})" for name in ("square", "shapes")]
        name = f"{case['kind']}, {case['parameters'] / 1e6:.1f} M"
        rows.append([name, str(case["prompt"]), f"{total / 1e9:.1f}", f"{t['update']['cpu']:.3f}", *speeds, *shown])
        share = sorted(case["flops"].items(), key=lambda item: -item[1])
        parts.append(
            f"- {case['kind']}, {case['prompt']} prompt tokens: "
            + ", ".join(f"{what} {100 * value / total:.0f} %" for what, value in share)
        )
    return f"{harness.table(header, rows)}\n\nWhere the FLOPs are:\n\n" + "\n".join(parts)


def headline(result: dict[str, Any]) -> list[list[str]]:
    rows = []
    for case in result["cases"]:
        low, median, high = ratios(case)["shapes"]
        size = f"{case['kind']}, {case['prompt']} prompt tokens, {result['threads']} thread"
        target = "at most 2x" if case["pixels"] == 448 else "-"
        rows.append(["update against the roofline", size, f"{median:.2f}x ({low:.2f} - {high:.2f})", target])
    return rows
