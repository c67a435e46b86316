"""Token weights of TW-GRPO: what the divergence of a group costs beside one pass of the head over the same rows.

8 rows of one group, hidden size 2,048, vocabulary 32,768, float32, one thread.

weights         mmrl.vlm.head.reduce_logits with the divergence of the group, as an update calls it
pass            logits, log_softmax and gather of the same tokens, without gradient, by equally large chunks
score           mmrl.core.head.score without gradient, the head pass of an update's own log-probabilities

In `ragged` rows end at an eighth, two eighths, ... of the longest: `pass` and `score` run the tokens that exist.
Equality first: all four forms in float64 against whole log-softmax tables.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from benchmarks import harness
from benchmarks.harness import Side

if TYPE_CHECKING:
    import torch

NAMES = ("mmrl", "torch")
ROWS, WIDTH, VOCABULARY = 8, 2_048, 32_768
LENGTH, LONG = 64, 1_000
LIMIT = {"time": 1.3, "memory": 400}
FORMS = {"official": "divergence_nt", "calibrated": "js_nt"}


def problem(
    length: int, *, ragged: bool, width: int = WIDTH, vocabulary: int = VOCABULARY, double: bool = False
) -> Any:
    """(hidden [8, length, width], head, mask [8, length])"""
    import torch

    from mmrl.core.head import Head

    g = torch.Generator().manual_seed(0)
    dtype = torch.float64 if double else torch.float32
    weight = torch.randn(vocabulary, width, generator=g, dtype=dtype) / width**0.5
    hidden = torch.randn(ROWS, length, width, generator=g, dtype=dtype)
    ends = torch.tensor([math.ceil(length * (i + 1) / ROWS) if ragged else length for i in range(ROWS)])
    mask = torch.arange(length) < ends[:, None]
    return hidden, Head(weight, None, torch.zeros(vocabulary, dtype=dtype), dtype), mask


def divergence(hidden: torch.Tensor, head: Any, mask: torch.Tensor, channel: str) -> torch.Tensor:
    import torch

    import mmrl.core.catalogue  # noqa: F401  (registers the reducers)
    from mmrl.core.reducers import REDUCERS
    from mmrl.vlm.head import reduce_logits

    context = {"mask_nc": mask, "group_n": torch.zeros(ROWS, dtype=torch.long)}
    return reduce_logits(hidden, head, {channel: REDUCERS[channel].fn}, context, size=1024)[channel]


def side(kind: str, length: int, ragged: bool, quick: bool = False) -> Callable[[Any], object]:
    import torch

    from mmrl.core.head import Choice, score
    from mmrl.vlm.head import BLOCK_ON_CPU

    small = {"width": 64, "vocabulary": 512} if quick else {}
    hidden, head, mask = problem(length, ragged=ragged, **small)
    flat = hidden[mask]
    ids = torch.zeros(len(flat), dtype=torch.long)
    size = max(1, BLOCK_ON_CPU // len(head.weight))

    def run() -> object:
        if kind in FORMS:
            return divergence(hidden, head, mask, FORMS[kind])
        if kind == "score":
            return score(flat, head, Choice(ids, torch.ones(len(flat))), size=1024)
        parts = []
        for part, own in zip(flat.split(size), ids.split(size), strict=True):
            parts.append(head.raw(part).log_softmax(-1).gather(-1, own[:, None]))
        return torch.cat(parts)

    def work(clock: Any) -> None:
        with torch.no_grad(), clock("pass"):
            run()

    return work


def compare() -> dict[str, float]:
    """Largest difference from whole tables of log-probabilities, by channel; ragged, float64."""
    import torch

    hidden, head, mask = problem(24, ragged=True, width=32, vocabulary=5_000, double=True)
    logp = torch.where(mask[..., None], (hidden @ head.weight.T).log_softmax(-1), -math.log(5_000))
    out = {}
    for channel in ("divergence_nt", "divergence_active_nt", "js_nt", "js_active_nt"):
        share = mask.double() / mask.sum(0) if "active" in channel else torch.full(mask.shape, 1 / ROWS)
        share = share.double()[..., None]
        if channel.startswith("js"):
            mean = (logp.exp() * share).sum(0)
            want = (logp.exp() * (logp - mean.log()) * share).sum((0, -1))
        else:
            d = ((logp * share).sum(0) - logp).clamp(-11, 11)
            want = ((d.exp() - d - 1) * share).sum((0, -1))
        got = divergence(hidden, head, mask, channel)
        out[channel] = float((got - want).abs().max() / want.abs().max())
    return out


def measure(quick: bool) -> dict[str, Any]:
    exact = harness.call("benchmarks.token_weights:compare")
    if max(exact.values()) > 1e-10:
        raise SystemExit(f"the divergence differs from that of whole tables: {exact}")
    length, cases = 16 if quick else LENGTH, []
    for ragged in (True,) if quick else (False, True):
        sides = [
            Side(
                kind,
                "benchmarks.token_weights:side",
                {"kind": kind, "length": length, "ragged": ragged, "quick": quick},
            )
            for kind in (("official", "pass") if quick else (*FORMS, "pass", "score"))
        ]
        times = harness.race(sides, repeats=2 if quick else 5, warmups=1)
        cases.append({"ragged": ragged, "length": length, "times": {n: t["pass"] for n, t in times.items()}})
        print(f"  ragged {ragged}: " + "; ".join(f"{n} {harness.show_seconds(t['pass'])}" for n, t in times.items()))
    long = 32 if quick else LONG
    one = Side(
        "official",
        "benchmarks.token_weights:side",
        {"kind": "official", "length": long, "ragged": False, "quick": quick},
    )
    peak = harness.peak(one, warmups=0, repeats=1)["pass"]["peak"]
    sizes = {"width": 64, "vocabulary": 512} if quick else {"width": WIDTH, "vocabulary": VOCABULARY}
    return {"exact": exact, "cases": cases, "long": long, "peak": peak, **sizes}


def page(result: dict[str, Any]) -> str:
    rows = []
    for case in result["cases"]:
        for name, t in case["times"].items():
            of = t["median"] / case["times"]["pass"]["median"]
            rows.append(["ragged" if case["ragged"] else "equal", name, harness.show_seconds(t), f"{of:.2f}"])
    header = ["lengths", "what", "time (quartiles)", "of the pass"]
    length = result["cases"][0]["length"]
    peak, exact = f"{result['peak']:.0f} MiB", f"{max(result['exact'].values()):.0e}"
    size = f"{ROWS} rows of up to {length} tokens, hidden size {result['width']:,}, vocabulary {result['vocabulary']:,}"
    return f"""A group of {size}, float32, no gradient, one thread.
`official` and `calibrated`: the divergence that the weights are made of; `pass`: logits, log-softmax and gather of the
tokens that exist, in equally large chunks; `score`: what an update's own log-probabilities cost. Memory beside hidden
states and weights for {ROWS} x {result["long"]:,} tokens: {peak}. Largest relative difference from whole tables in
float64: {exact}.

{harness.table(header, rows)}"""


def headline(result: dict[str, Any]) -> list[list[str]]:
    out = []
    for case in result["cases"]:
        size = f"{ROWS} x {case['length']}, V {VOCABULARY:,}, {'ragged' if case['ragged'] else 'equal'} lengths"
        of = case["times"]["official"]["median"] / case["times"]["pass"]["median"]
        out.append(["token weights: time of one head pass", size, f"{of:.2f}", f"at most {LIMIT['time']}"])
    size = f"{ROWS} x {result['long']:,}, V {VOCABULARY:,}"
    return [*out, ["token weights: peak memory, MiB", size, f"{result['peak']:.0f}", f"at most {LIMIT['memory']}"]]
