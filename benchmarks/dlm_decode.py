"""Decoding by unmasking: a plain LLaDA loop, our sampler, and its caches, on random models of 20 million parameters.

Completions of 128 tokens in blocks of 32, 64 steps, after prompts of 64 tokens; one thread, float32. The plain loop
computes logits, softmax and (at a temperature) float64 noise of the whole canvas at each step, as it is published.

plain           the loop, full attention
full off        our sampler: the same forwards, logits of masked positions of the block only
full prefix     keys and values of what is before the block are kept from its first step (approximate)
full dual       and those of what is after it (approximate)
block off       block attention, everything up to the end of the block at each step
block block     block attention with its exact cache

Equality first, greedy, in float64: the plain loop's tokens, the block cache's tokens, caches refreshed at each step.
"""

from __future__ import annotations

from typing import Any

from benchmarks import harness
from benchmarks.dlm_case import BLOCK, LIMIT, PROMPT
from benchmarks.harness import Side

NAMES = ("mmrl", "torch")
DECODERS = ("plain", "full off", "full prefix", "full dual", "block off", "block block")
#: what is faster than what, and the least ratio wanted
RATIOS = (
    ("plain", "full off", None),
    ("full off", "full prefix", None),
    ("full off", "full dual", 2.0),
    ("plain", "full dual", 2.0),
    ("block off", "block block", 2.0),
)
ROWS, STEPS = 1, 64


def measure(quick: bool) -> dict[str, Any]:
    shared = {"rows": ROWS, "steps": 8 if quick else STEPS, "quick": quick}
    equal = harness.call("benchmarks.dlm_case:compare", **shared)
    wrong = [k for k, same in equal.items() if same is False]
    if wrong:
        raise RuntimeError(f"not the same tokens: {', '.join(wrong)}")
    sides = [Side(n, "benchmarks.dlm_case:decoding", {"name": n, **shared}) for n in DECODERS]
    return {
        **shared,
        "equal": equal,
        "agreement": harness.call("benchmarks.dlm_case:agreement", **shared),
        "times": harness.race(sides, repeats=1 if quick else 3, warmups=0),
    }


def page(result: dict[str, Any]) -> str:
    equal, times = result["equal"], result["times"]
    tokens = result["rows"] * LIMIT
    rows = []
    for name in DECODERS:
        forwards, t = result["agreement"]["forwards"][name], times[name]
        cells = [f"{forwards['denoising']}", f"{forwards['total']}"]
        for phase in ("greedy", "T = 1"):
            timed = phase in t
            cells += [harness.show_seconds(t[phase]), f"{tokens / t[phase]['median']:.0f}"] if timed else ["-", "-"]
        rows.append([name, *cells])
    ratios = [[f"{slow} / {fast}", *_ratios(times[slow], times[fast])] for slow, fast, _ in RATIOS]
    agreement = [
        [f"{cache}, {what}", *(f"{shares[f'{cache} {refresh}']:.3f}" for refresh in (0, 4, 2))]
        for what, shares in (("a step alone", result["agreement"]["alone"]), ("a completion", result["agreement"]))
        for cache in ("prefix", "dual")
    ]
    header = ["decoder", "denoising forwards", "all", "greedy", "tokens/s", "T = 1", "tokens/s"]
    return "\n\n".join(
        [
            f"{equal['parameters'] / 1e6:.1f} million random parameters; {result['rows']} row, prompt of {PROMPT} "
            f"tokens, completion of {LIMIT} in blocks of {BLOCK}, {result['steps']} steps. In float64, at "
            f"{equal['steps']} steps, the plain loop and ours give the same greedy tokens, caches refreshed at every "
            "step too, and block attention the same with its cache and without, greedy and at T = 1.",
            harness.table(header, rows),
            harness.table(["ratio of seconds", "greedy", "T = 1", "greedy, CPU seconds"], ratios),
            "What approximate caches leave as it is, by forwards between refreshes. A step alone: share of the "
            "predictions for masked positions of the block, every step at the canvas of the exact decoder. A "
            f"completion: share of its greedy tokens ({result['agreement']['distinct']} different ones); random "
            "weights have no structure to fall back on, and a wrong token changes all that follow.",
            harness.table(["cache", "block start only", "every 4", "every 2"], agreement),
        ]
    )


def _ratios(slow: dict[str, Any], fast: dict[str, Any]) -> list[str]:
    phases = [p for p in ("greedy", "T = 1") if p in slow and p in fast]
    shown = [harness.show_ratio(harness.ratio(slow[p], fast[p])) for p in phases] + ["-"] * (2 - len(phases))
    return [*shown, harness.show_ratio(_cpu_ratio(slow["greedy"], fast["greedy"]))]


def _cpu_ratio(slow: dict[str, Any], fast: dict[str, Any]) -> dict[str, float]:
    """As `harness.ratio`, of CPU seconds: a busy machine disturbs them less."""
    low, _, high = harness.quartiles([a / b for a, b in zip(slow["all_cpu"], fast["all_cpu"], strict=True)])
    return {"median": slow["cpu"] / fast["cpu"], "low": low, "high": high}


def headline(result: dict[str, Any]) -> list[list[str]]:
    size = f"{result['equal']['parameters'] / 1e6:.0f} M parameters, {LIMIT} tokens, block {BLOCK}"
    rows = []
    for slow, fast, target in RATIOS:
        found = _cpu_ratio(result["times"][slow]["greedy"], result["times"][fast]["greedy"])
        wanted = f"at least {target:g}x" if target else "-"
        rows.append([f"greedy decoding, {slow} / {fast}, CPU seconds", size, harness.show_ratio(found), wanted])
    return rows
