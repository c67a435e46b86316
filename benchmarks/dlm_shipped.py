"""Parallel decoding and approximate caches on the shipped checkpoints: what they save, and what they cost in accuracy.

Trained weights, greedy, one thread, 256 held-out problems in batches of 64. Each decoder beside one token a forward of
the same model. The models are tiny, so that seconds say more about the work around a forward than forwards do.

sudoku   block attention, blocks of 8, exact cache: confidence thresholds.
sort     full attention, two blocks of 6: no cache, prefix and dual cache, one and several tokens a forward.
"""

from __future__ import annotations

import time
from typing import Any

from benchmarks import harness

NAMES = ("mmrl", "torch")
SETS = {"sudoku": "sudoku4_open:eval?holes=12&n=256", "sort": "sort:eval?n=256"}
LIMITS = {"sudoku": 24, "sort": 12}
ONE = "one token a forward"
#: model -> (name, settings); the first of each is what the others are compared with
DECODERS: dict[str, list[tuple[str, dict[str, Any]]]] = {
    "sudoku": [
        (ONE, {"rule": "threshold", "threshold": 1.0, "cache": "block"}),
        (f"{ONE}, no cache", {"rule": "threshold", "threshold": 1.0}),
        *((f"threshold {x}", {"rule": "threshold", "threshold": x, "cache": "block"}) for x in (0.95, 0.9, 0.7, 0.5)),
    ],
    "sort": [
        (ONE, {"rule": "steps", "steps": 12}),
        ("two tokens a forward", {"rule": "steps", "steps": 6}),
        *((f"threshold {x}", {"rule": "threshold", "threshold": x}) for x in (0.9, 0.5)),
        *((f"{ONE}, {cache} cache", {"rule": "steps", "steps": 12, "cache": cache}) for cache in ("prefix", "dual")),
        ("two tokens a forward, dual cache", {"rule": "steps", "steps": 6, "cache": "dual"}),
    ],
}


def decoded(name: str, rows: int, repeats: int) -> dict[str, Any]:
    """By decoder: forwards and tokens a completion, accuracy, share of texts as those of the first, seconds."""
    import torch

    from dlm.embedded import resolve
    from dlm.models.loading import load_model
    from dlm.rewards.correct import is_correct
    from dlm.sampling.sampler import Job, Sampler, Settings
    from dlm.tasks.catalogue import builtin
    from mmrl.core.head import Head

    torch.set_num_threads(1)
    model, tokenizer = load_model(resolve(f"embedded:{name}"))
    weight = model.head.weight.detach()
    head = Head(weight, None, torch.zeros(len(weight)), weight.dtype)
    sampler = Sampler(model, head=head, ends=set(model.traits.eos_ids), suppressed=set(), block=6, batch_rows=64)
    records = builtin(SETS[name])[:rows]
    prompts = [torch.tensor(tokenizer(record.prompt)["input_ids"]) for record in records]
    found: dict[str, Any] = {}
    first: list[str] = []
    for label, options in DECODERS[name]:
        jobs = [Job(p, LIMITS[name], Settings(temperature=0.0, **options), torch.Generator()) for p in prompts]
        seconds = []
        for _ in range(repeats):
            began = time.process_time()
            done = sampler(jobs)
            seconds.append(time.process_time() - began)
        texts = [tokenizer.decode(row.ids[: row.length].tolist(), skip_special_tokens=True) for row in done]
        first = first or texts
        found[label] = {
            "forwards": sum(row.forwards for row in done) / len(done),
            "tokens": sum(row.length for row in done) / len(done),
            "accuracy": sum(is_correct(t, r) for t, r in zip(texts, records, strict=True)) / len(done),
            "same": sum(a == b for a, b in zip(texts, first, strict=True)) / len(done),
            "cpu": sorted(seconds)[len(seconds) // 2],
        }
    return found


def measure(quick: bool) -> dict[str, Any]:
    shared = {"rows": 32 if quick else 256, "repeats": 1 if quick else 5}
    return {**shared, "models": {n: harness.call("benchmarks.dlm_shipped:decoded", name=n, **shared) for n in SETS}}


def page(result: dict[str, Any]) -> str:
    header = ["decoder", "forwards", "tokens a forward", "accuracy", "same texts", "CPU seconds", "faster"]
    parts = [f"{result['rows']} held-out problems, batches of 64, greedy; seconds are medians of {result['repeats']}."]
    for name, found in result["models"].items():
        base = next(iter(found.values()))
        rows = [
            [
                label,
                f"{one['forwards']:.1f}",
                f"{one['tokens'] / one['forwards']:.2f}",
                f"{one['accuracy']:.3f}",
                f"{one['same']:.3f}",
                f"{one['cpu']:.2f}",
                f"{base['cpu'] / one['cpu']:.2f}x",
            ]
            for label, one in found.items()
        ]
        parts += [f"`embedded:{name}`:", harness.table(header, rows)]
    return "\n\n".join(parts)


def headline(result: dict[str, Any]) -> list[list[str]]:
    found = result["models"]["sudoku"]
    base, fast = found[ONE], found["threshold 0.9"]
    size = f"embedded:sudoku, accuracy {base['accuracy']:.3f} and {fast['accuracy']:.3f}"
    told = [["parallel decoding at threshold 0.9, forwards", size, f"{base['forwards'] / fast['forwards']:.2f}x", "-"]]
    return [*told, ["the same, CPU seconds", size, f"{base['cpu'] / fast['cpu']:.2f}x", "-"]]
