"""The flow policy on a tiny SD3: rollout over bare calls, cost of a window, peak memory over T, beside flow_grpo.

Equality first: a rollout against a loop written plainly from the formula, with the same random numbers; with
FLOW_GRPO=DIR, a checkout of github.com/yifan123/flow_grpo, also states, log-probabilities and gradients against it.
Where two things are compared in time, one process runs them in turns, the first one changing with every run.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from typing import Any

from benchmarks import flow_case, flow_peer, harness
from benchmarks.harness import Side

NAMES = ("mmrl", "torch", "diffusers")
ROWS, THREADS = 16, 1
GUIDANCES = (1.0, 4.5)
PARTS: dict[str, dict[str, Any]] = {
    "rollout": {"pixels": flow_case.PIXELS},
    "windows": {"pixels": flow_case.PIXELS, "firsts": [2, 5, 9]},  # 9 of 10: all but the last, which is never trained
}
LENGTHS = (10, 40)
LIMIT = {"rollout": 1.03, "window": 0.15, "memory": 1.15}


# ---- sides, each in a process of its own


def rollout(folder: str, guidance: float, pixels: int, rows: int) -> Callable[[Any], None]:
    """`FlowPolicy.rollout`, and the transformer calls and decoder calls in it, bare: same inputs, nothing between."""
    import torch

    made = flow_case.policy(folder, guidance=guidance, pixels=pixels, rows=rows)
    calls, latents = _calls(made, rows)
    transformer, vae = made.model.transformer, made.model.pipe.vae  # type: ignore[attr-defined]

    def bare() -> None:
        with torch.no_grad():
            for call in calls:
                transformer(**call)
            for latent in latents:
                vae.decode(latent, return_dict=False)

    return flow_case.taking_turns({"rollout": lambda: flow_case.roll(made, rows), "bare": bare})


def _calls(made: Any, rows: int) -> tuple[list[dict[str, Any]], list[Any]]:
    """What one rollout gives to the transformer and to the decoder."""
    calls: list[dict[str, Any]] = []
    latents: list[Any] = []
    vae = made.model.pipe.vae
    decode = vae.decode

    def kept(latent: Any, **options: Any) -> Any:
        latents.append(latent.clone())
        return decode(latent, **options)

    hook = made.model.transformer.register_forward_pre_hook(
        lambda _, args, options: calls.append({k: v.clone() if hasattr(v, "clone") else v for k, v in options.items()}),
        with_kwargs=True,
    )
    vae.decode = kept
    try:
        flow_case.roll(made, rows)
    finally:
        hook.remove()
        vae.decode = decode
    return calls, latents


def windows(folder: str, guidance: float, pixels: int, rows: int, firsts: list[int]) -> Callable[[Any], None]:
    """The update with each window; the phase is the number of its steps."""
    works = {}
    for first in firsts:
        made = flow_case.policy(folder, guidance=guidance, pixels=pixels, rows=rows, first=first)
        works[str(first)] = flow_case.Update(made, flow_case.roll(made, rows))
    return flow_case.taking_turns(works)


def long_update(folder: str, steps: int, rows: int) -> Callable[[Any], None]:
    made = flow_case.policy(folder, steps=steps, rows=rows)
    work = flow_case.Update(made, flow_case.roll(made, rows))
    return flow_case.taking_turns({"update": work})


def kept_states(folder: str, steps: int, rows: int) -> float:
    """MiB of the states that a rollout keeps on the CPU until its update is over."""
    found = flow_case.roll(flow_case.policy(folder, steps=steps, rows=rows), rows)
    numbers = sum(state.numel() * state.element_size() for row in found.rows for state in row.states.values())
    return float(numbers) / 2**20


def compare(folder: str, guidance: float, pixels: int, rows: int) -> dict[str, float]:
    """Largest absolute differences of the rollout's states and pictures from the plain loop's."""
    import torch

    made = flow_case.policy(folder, guidance=guidance, pixels=pixels, rows=rows)
    found = flow_case.roll(made, rows)
    states, pictures = flow_case.plain_rollout(made, rows)
    last = made.sampling.steps - 1
    gaps = [
        float((row.states[s] - states[s][i]).abs().max()) for i, row in enumerate(found.rows) for s in range(last + 1)
    ]
    away = (torch.stack(found.outputs) - pictures).abs().max()
    return {"states": max(gaps), "pictures": float(away), "largest state": float(states[last].abs().max())}


# ---- the parent


def measure(quick: bool) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        return _quick(folder) if quick else _whole(folder)


def _whole(folder: str) -> dict[str, Any]:
    sizes = {"rows": ROWS, "steps": flow_case.STEPS, "pixels": flow_case.PIXELS, "threads": THREADS}
    found: dict[str, Any] = sizes | harness.call("benchmarks.flow_case:build", folder=folder)
    shared: dict[str, Any] = {"folder": folder, "rows": ROWS}
    found["gaps"] = {
        str(g): harness.call("benchmarks.flow:compare", **shared, guidance=g, pixels=flow_case.PIXELS)
        for g in GUIDANCES
    }
    _refuse(found["gaps"])
    for part, sides, repeats in (("rollout", PARTS["rollout"], 30), ("windows", PARTS["windows"], 12)):
        found[part] = {}
        for g in GUIDANCES:
            side = Side("mmrl", f"benchmarks.flow:{part}", shared | sides | {"guidance": g}, THREADS)
            found[part][str(g)] = times = harness.race([side], repeats=repeats)["mmrl"]
            print(f"  {part}, guidance {g}: {_told(times)}", flush=True)
    found["memory"] = {str(steps): _memory(shared, steps) for steps in LENGTHS}
    found["peer"] = flow_peer.measure(shared, GUIDANCES) if flow_peer.checkout() else None
    return found


def _quick(folder: str) -> dict[str, Any]:
    """One turn of each part in this process: its own imports are most of the time."""
    shared: dict[str, Any] = {"folder": folder, "rows": 2, "pixels": 32, "guidance": 4.5}
    found: dict[str, Any] = {"rows": 2, "steps": flow_case.STEPS, "pixels": 32, "threads": THREADS, "memory": {}}
    found |= flow_case.build(folder)
    found["gaps"] = {"4.5": compare(**shared)}
    _refuse(found["gaps"])
    for part, work in (("rollout", rollout(**shared)), ("windows", windows(**shared, firsts=[2, 9]))):
        clock = harness.Clock(memory=False)
        work(clock)
        found[part] = {"4.5": harness.summary([clock.found])}
    return found | {"peer": None}


def _refuse(gaps: dict[str, dict[str, float]]) -> None:
    print(f"  equality: {gaps}", flush=True)
    for guidance, gap in gaps.items():
        if not max(gap["states"], gap["pictures"]) <= 1e-4:
            raise SystemExit(f"guidance {guidance}: the rollout differs from the plain loop: {gap}")


def _memory(shared: dict[str, Any], steps: int) -> dict[str, float]:
    side = Side("mmrl", "benchmarks.flow:long_update", shared | {"steps": steps}, THREADS)
    states = harness.call("benchmarks.flow:kept_states", **shared, steps=steps)
    found = {"peak": harness.peak(side, repeats=3)["update"]["peak"], "states": states}
    print(f"  memory, T = {steps}: {found}", flush=True)
    return found


def _told(times: dict[str, Any]) -> str:
    return "; ".join(f"{name} {harness.show_seconds(t)}" for name, t in times.items())


# ---- the page


def over(times: dict[str, Any]) -> list[dict[str, float]]:
    """The rollout's wall-clock and CPU time over that of its bare calls."""
    return [flow_case.paired(times["rollout"], times["bare"], key) for key in ("all", "all_cpu")]


def per_step(times: dict[str, Any], first: str) -> list[dict[str, float]]:
    """Cost of a trained step in a window of `first`, over that of a step in the largest window: 1 is k / T exactly."""
    whole = max(times, key=int)
    found = [flow_case.paired(times[first], times[whole], key) for key in ("all", "all_cpu")]
    return [{name: value * int(whole) / int(first) for name, value in r.items()} for r in found]


def page(result: dict[str, Any]) -> str:
    gap = max(max(g["states"], g["pictures"]) for g in result["gaps"].values())
    largest = max(g["largest state"] for g in result["gaps"].values())
    parts = [
        f"A random SD3 transformer of {result['parameters'] / 1e6:.2f} M parameters, all of them trained; pictures of "
        f"{result['pixels']} x {result['pixels']} pixels, batch {result['rows']}, T = {result['steps']}, rule sde, "
        f"threads: {result['threads']}. States and pictures of a rollout differ from those of a loop written plainly "
        f"from the formula by at most {gap:.0e} (largest entry of a state: {largest:.1f}).",
        "Rollout against the transformer and decoder calls in it made bare, on the same inputs with nothing between:",
        harness.table(
            ["guidance", "rollout", "bare calls", "rollout / bare", "CPU seconds"],
            [
                [
                    g,
                    harness.show_seconds(t["rollout"]),
                    harness.show_seconds(t["bare"]),
                    *(flow_case.show(r, 3) for r in over(t)),
                ]
                for g, t in result["rollout"].items()
            ],
        ),
        "The update (advantages, gradients, clipping, AdamW) with a window of the first k steps; the largest window is "
        "all that is ever trained (the last step is not), and 1.00x is a cost in proportion to k:",
        harness.table(
            ["guidance", "k", "update", "cost of a trained step, of the largest window's", "CPU seconds"],
            [
                [g, k, harness.show_seconds(t), *(flow_case.show(r) for r in per_step(times, k))]
                for g, times in result["windows"].items()
                for k, t in sorted(times.items(), key=lambda item: int(item[0]))
            ],
        ),
    ]
    if result["memory"]:
        least = result["memory"][str(min(map(int, result["memory"])))]["peak"]
        rows = [
            [t, f"{m['peak']:.1f}", f"{m['peak'] / least:.3f}x", f"{m['states']:.1f}"]
            for t, m in result["memory"].items()
        ]
        header = ["T", "peak of the update, MiB", "against the smallest T", "states kept from the rollout, MiB"]
        parts += ["Peak memory of the update, all steps but the last trained, guidance 1:", harness.table(header, rows)]
    return "\n\n".join([*parts, flow_peer.page(result["peer"])])


def headline(result: dict[str, Any]) -> list[list[str]]:
    """Rollout and windows by CPU seconds, which a busy machine disturbs less."""
    size, found = f"tiny SD3, batch {result['rows']}, T = {result['steps']}", []
    for g, t in result["rollout"].items():
        shown, bar = flow_case.show(over(t)[1], 3), f"at most {LIMIT['rollout']}x"
        found.append(["flow rollout over its bare calls, CPU seconds", f"{size}, guidance {float(g):g}", shown, bar])
    bar = f"{1 - LIMIT['window']:.2f}x to {1 + LIMIT['window']:.2f}x"
    for g, times in result["windows"].items():
        for k in sorted(times, key=int)[:-1]:
            what = f"flow update, window of {k}: a step's CPU seconds against all steps'"
            shown = flow_case.show(per_step(times, k)[1])
            found.append([what, f"{size}, guidance {float(g):g}", shown, bar])
    ends = {int(t): m["peak"] for t, m in result["memory"].items()}
    if ends:
        what = f"peak of the flow update at T = {max(ends)} against T = {min(ends)}"
        grown = ends[max(ends)] / ends[min(ends)]
        found.append([what, f"tiny SD3, batch {result['rows']}", f"{grown:.3f}x", f"at most {LIMIT['memory']}x"])
    return found + flow_peer.headline(result["peer"], size)
