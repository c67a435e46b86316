"""What a step costs as groups and prompts grow, and what the shared prefix gives: G = 2 to 64, prompts of 128 to 2048.

The forms of the update (`model.shared_prefix`): cache (the default), packed, off (every row carries its own copy of
prompt and picture: the plain form) on equal rollouts; their gradients are compared first.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from typing import Any

from benchmarks import harness
from benchmarks.harness import Side

NAMES = ("mmrl", "torch", "transformers", "trl")
KIND, THREADS, PIXELS = "qwen3_vl", 2, 448
GROUPS, TRL_GROUPS, MEMORY_GROUPS = (2, 4, 8, 16, 32, 64), (16,), (8, 64)
PROMPTS, TRL_PROMPTS = (128, 512, 1024, 2048), (1024,)
AROUND = 21  # tokens of the chat template, and of the picture's marks, around picture and text
FORMS = ("cache", "packed", "off")


def form(folder: str, form: str) -> Callable[[Any], None]:
    from benchmarks import vlm_case

    return vlm_case.clocked_step(vlm_case.trainer(folder, model={"shared_prefix": form, "piece_tokens": 100_000}))


def gaps(folder: str) -> dict[str, float]:
    """Largest difference of a gradient entry from the plain form's, relative to the largest entry of its tensor."""
    import torch

    from benchmarks import step

    kept = {}
    for name in FORMS:
        step.save_update(folder, f"{folder}/{name}.pt", 8, 1, {"shared_prefix": name})
        kept[name] = torch.load(f"{folder}/{name}.pt")
    plain = kept["off"]["gradients"]
    return {
        name: max(
            float((kept[name]["gradients"][k] - g).abs().max() / g.abs().max().clamp(min=1e-12))
            for k, g in plain.items()
        )
        for name in FORMS[:-1]
    }


def ours(name: str, folder: str, group: int, threads: int | None = None) -> Side:
    return Side(name, "benchmarks.step:ours", {"folder": folder, "group": group, "prompts": 1}, threads or THREADS)


def trl(name: str, folder: str, group: int) -> list[Side]:
    arguments = {"folder": folder, "group": group, "prompts": 1, "threads": THREADS}
    return [Side(name, "benchmarks.trl_side:step", arguments, THREADS)] if harness.has("trl") else []


def series(points: Sequence[tuple[int, list[Side]]], repeats: int, warmups: int = 1) -> dict[str, Any]:
    """{point: {side: times}}; the sides of one point alternate."""
    found = {}
    for at, sides in points:
        found[str(at)] = harness.race(sides, repeats=repeats, warmups=warmups)
        print(
            f"  {at}: " + "; ".join(f"{n} {harness.show_seconds(t['step'])}" for n, t in found[str(at)].items()),
            flush=True,
        )
    return found


def measure(quick: bool) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        if quick:
            harness.call("benchmarks.vlm_case:build", folder=folder, kind=KIND, side=56, small=True)
            groups = series([(g, [ours("mmrl", folder, g, 1)]) for g in (2,)], 1, warmups=0)
            return {"groups": groups, "prompts": {}, "memory": {}, "forms": {}, "gaps": {}, "threads": 1}
        harness.call("benchmarks.vlm_case:build", folder=folder, kind=KIND, side=PIXELS)
        forms = [Side(name, "benchmarks.cost:form", {"folder": folder, "form": name}, THREADS) for name in FORMS]
        found = {
            "gaps": harness.call("benchmarks.cost:gaps", folder=folder),
            "forms": harness.race(forms, repeats=5, warmups=1),
            "groups": series(
                [(g, [ours("mmrl", folder, g)] + (trl("TRL", folder, g) if g in TRL_GROUPS else [])) for g in GROUPS], 3
            ),
            "memory": {str(g): harness.peak(ours("mmrl", folder, g), repeats=1)["update"] for g in MEMORY_GROUPS},
            "prompts": series([(p, _long(folder, p)) for p in PROMPTS], 3),
        }
    return found | {"threads": THREADS}


def _long(folder: str, prompt: int) -> list[Side]:
    """Sides on a prompt of that many tokens: a picture of 16, the rest text."""
    own = f"{folder}/{prompt}"
    harness.call("benchmarks.vlm_case:build", folder=own, kind=KIND, side=112, text=prompt - 16 - AROUND)
    return [ours("mmrl", own, 8)] + (trl("TRL", own, 8) if prompt in TRL_PROMPTS else [])


def _rows(points: dict[str, Any]) -> list[list[str]]:
    rows = []
    for at, sides in points.items():
        mine, peer = sides["mmrl"], sides.get("TRL")
        shown = [harness.show_seconds(mine[p]) for p in ("rollout", "update", "step")]
        beside = (
            [harness.show_seconds(peer["step"]), harness.show_ratio(harness.ratio(peer["step"], mine["step"]))]
            if peer
            else ["", ""]
        )
        rows.append([at, *shown, *beside])
    return rows


def page(result: dict[str, Any]) -> str:
    header = ["rollout", "update", "step", "step of TRL", "TRL / mmrl"]
    parts = [
        f"One prompt with a picture of 256 tokens, threads: {result['threads']}; by group size G:",
        harness.table(["G", *header], _rows(result["groups"])),
    ]
    if result["memory"]:
        peaks = ", ".join(f"{m['peak']:.0f} MiB at G = {g}" for g, m in result["memory"].items())
        parts.append(f"Peak memory of the update with the default `model.piece_tokens`: {peaks}.")
    if result["prompts"]:
        parts += ["G = 8, by prompt length (a picture of 16 tokens, the rest text):"]
        parts.append(harness.table(["prompt tokens", *header], _rows(result["prompts"])))
    if result["forms"]:
        plain = result["forms"]["off"]["update"]
        rows = [
            [
                n,
                f"{result['gaps'][n]:.1e}" if n in result["gaps"] else "",
                harness.show_seconds(t["update"]),
                harness.show_ratio(harness.ratio(plain, t["update"])),
            ]
            for n, t in result["forms"].items()
        ]
        parts.append("The update by form of the shared prefix, G = 8 (`off` is the plain one):")
        parts.append(harness.table(["form", "gradient gap", "update", "off / form"], rows))
    return "\n\n".join(parts)


def headline(result: dict[str, Any]) -> list[list[str]]:
    memory, groups = result["memory"], result["groups"]
    few, many = (groups[str(g)]["mmrl"]["step"]["median"] for g in (8, 64))
    grown = memory["64"]["peak"] / memory["8"]["peak"]
    return [
        ["step at G = 64 against G = 8", "256 picture tokens", f"{many / few:.2f}x the time for 8x the rows", "-"],
        ["peak of the update at G = 64 against G = 8", "256 picture tokens", f"{grown:.2f}x", "-"],
    ]
