"""A whole GRPO step on a vision-language model, one picture, G completions a prompt; against TRL's GRPOTrainer.

Equality first: mmrl rolls out (rows of different lengths), TRL's own code gets these rollouts and rewards, and
advantages, loss and all gradients are compared. Then seconds of rollout (with reward), update (forward, backward,
clipping, AdamW) and step, the sides alternating in processes of their own, and the peak memory of the update.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from typing import Any

from benchmarks import harness
from benchmarks.harness import Side

NAMES = ("mmrl", "torch", "transformers", "trl", "accelerate")
GROUP = 8

#: Other settings of TRL, by name: one row at a time needs less memory; the lean head is what TRL does on GPUs.
SETTINGS: dict[str, dict[str, Any]] = {
    "TRL": {},
    "TRL, one row at a time": {"rows_at_once": 1},
    "TRL, lean head": {"head": "completions"},
}


@dataclass(frozen=True)
class Case:
    """One comparison: `peers` are keys of SETTINGS; memory: also the peak of the update."""

    kind: str
    pixels: int
    prompts: int = 1
    threads: int = 2
    repeats: int = 10
    warmups: int = 2
    peers: tuple[str, ...] = ("TRL",)
    memory: bool = True
    equality: bool = True
    target: float | None = None


CASES = (
    Case("qwen2_5_vl", 448, target=4.0),
    Case("qwen3_vl", 448, target=4.0),
    Case("qwen2_5_vl", 896, repeats=3, warmups=1, target=6.0),
    Case("qwen3_vl", 896, repeats=3, warmups=1, memory=False, equality=False, target=6.0),  # TRL: half a minute a step
    Case("qwen3_vl", 448, threads=1, repeats=3, warmups=1, memory=False, equality=False, target=4.0),
    Case("qwen3_vl", 448, prompts=2, repeats=2, warmups=1, memory=False),
    Case("qwen3_vl", 448, repeats=3, warmups=1, peers=tuple(SETTINGS)[1:], equality=False),
)
QUICK = (Case("qwen3_vl", 56, repeats=1, warmups=0, threads=1, peers=(), equality=False, memory=False),)


def ours(folder: str, group: int, prompts: int, model: dict[str, Any] | None = None) -> Callable[[Any], None]:
    from benchmarks import vlm_case

    return vlm_case.clocked_step(vlm_case.trainer(folder, group=group, prompts=prompts, model=model))


def save_update(
    folder: str, saved: str, group: int, prompts: int, model: dict[str, Any] | None = None
) -> dict[str, float]:
    """One step of mmrl on ragged rows; rollouts, rewards, advantages, loss and gradients go into the file `saved`."""
    import torch

    from benchmarks import vlm_case
    from mmrl.training import update

    made = vlm_case.trainer(folder, group=group, prompts=prompts, ragged=True, model=model)
    kept: dict[str, Any] = {}
    plain = update.streaming_update

    def keeping(policy: Any, objective: Any, rollouts: Any, table: Any, **options: Any) -> Any:
        policy.suppressed = set()  # TRL's likelihood knows no suppressed tokens
        result = plain(policy, objective, rollouts, table, **options)
        kept.update(
            loss=result.loss,
            advantages=table["adv_nt"][:, 0],  # the same for all tokens of a row
            gradients={n: p.grad.clone() for n, p in policy.model.named_parameters() if p.grad is not None},
            prompt_ids=[row.prompt.ids.tolist() for row in rollouts.rows],
            completion_ids=[row.ids.tolist() for row in rollouts.rows],
        )
        return result

    update.streaming_update = keeping
    try:
        made.step()
    finally:
        update.streaming_update = plain
    kept["rewards"] = made.last.reward_n.tolist()
    torch.save(kept, saved)
    return {"loss": kept["loss"], "rows": len(kept["rewards"])}


def sides(case: Case, folder: str) -> list[Side]:
    shared = {"folder": folder, "group": GROUP, "prompts": case.prompts}
    found = [Side("mmrl", "benchmarks.step:ours", shared, case.threads)]
    if harness.has("trl"):
        for name in case.peers:
            options = shared | {"threads": case.threads} | SETTINGS[name]
            found.append(Side(name, "benchmarks.trl_side:step", options, case.threads))
    return found


def measure(quick: bool) -> dict[str, Any]:
    if not quick and not harness.has("trl"):
        print("  trl is not installed: mmrl alone (pip install 'mmrl[benchmark]')")
    return {"group": GROUP, "cases": [_case(case, small=quick) for case in (QUICK if quick else CASES)]}


def _case(case: Case, *, small: bool) -> dict[str, Any]:
    found: dict[str, Any] = asdict(case)
    with tempfile.TemporaryDirectory() as folder:
        build = {"kind": case.kind, "side": case.pixels, "prompts": case.prompts, "small": small}
        found |= harness.call("benchmarks.vlm_case:build", folder=folder, **build)
        with ThreadPoolExecutor(2) as pool:  # nothing here is timed
            equal = pool.submit(_equality, case, folder)
            ends = {x.name: pool.submit(harness.peak, x, repeats=1) for x in sides(case, folder) if case.memory}
            found["equality"] = equal.result()
            found["peaks"] = {name: end.result()["update"] for name, end in ends.items()}
        print(f"  {case.kind} {case.pixels}: {found['equality']}", flush=True)
        found["times"] = harness.race(sides(case, folder), repeats=case.repeats, warmups=case.warmups)
    print("  " + "; ".join(f"{n} {harness.show_seconds(t['step'])}" for n, t in found["times"].items()))
    print("  " + "; ".join(f"{n} {m['peak']:.0f} MiB" for n, m in found["peaks"].items()), flush=True)
    return found


def _equality(case: Case, folder: str) -> dict[str, float] | None:
    if not case.equality or not harness.has("trl"):
        return None
    shared = {"folder": folder, "saved": f"{folder}/update.pt", "group": GROUP, "prompts": case.prompts}
    harness.call("benchmarks.step:save_update", **shared)
    return harness.call("benchmarks.trl_side:compare", **shared)  # type: ignore[no-any-return]


def _size(case: dict[str, Any]) -> str:
    many = f"{case['prompts']} prompts, " if case["prompts"] > 1 else ""
    threads = "1 thread" if case["threads"] == 1 else f"{case['threads']} threads"
    return f"{case['kind']}, {many}{case['picture_tokens']} picture tokens, {threads}"


def page(result: dict[str, Any]) -> str:
    equal = [
        [
            _size(c),
            str(e["completion_tokens"]),
            *(f"{e[k]:.1e}" for k in ("advantage_gap", "loss_gap", "gradient_gap", "gradient_gap_worst_tensor")),
        ]
        for c in result["cases"]
        if (e := c.get("equality"))
    ]
    rows = [row for case in result["cases"] for row in _time_rows(case)]
    memory = [row for case in result["cases"] for row in _memory_rows(case)]
    parts = []
    if equal:
        header = ["case", "completion tokens", "advantage", "loss", "gradient", "gradient, worst tensor"]
        parts += [
            "Gaps between mmrl and TRL on equal rollouts (the gradient's relative to its norm; of the worst tensor, "
            "to its largest entry):",
            harness.table(header, equal),
        ]
    parts += [
        f"Seconds, G = {result['group']}:",
        harness.table(["case", "side", "rollout", "update", "step", "repeats"], rows),
    ]
    if memory:
        parts += [
            "Peak memory of the update, above what was resident before it:",
            harness.table(["case", "side", "MiB", "against mmrl"], memory),
        ]
    return "\n\n".join(parts)


def _time_rows(case: dict[str, Any]) -> list[list[str]]:
    mine = case["times"]["mmrl"]
    rows = []
    for name, times in case["times"].items():
        phases = ("rollout", "update", "step")
        rows.append([_size(case), name, *(harness.show_seconds(times[p]) for p in phases), str(case["repeats"])])
        if name != "mmrl":
            ratios = [harness.show_ratio(harness.ratio(times[p], mine[p])) for p in phases]
            rows.append(["", f"{name} / mmrl", *ratios, ""])
    return rows


def _memory_rows(case: dict[str, Any]) -> list[list[str]]:
    peaks = case["peaks"]
    return [[_size(case), n, f"{m['peak']:.0f}", f"{m['peak'] / peaks['mmrl']['peak']:.2f}x"] for n, m in peaks.items()]


def headline(result: dict[str, Any]) -> list[list[str]]:
    rows = []
    for case in result["cases"]:
        for name in case["peers"]:
            if name not in case["times"]:
                continue
            r = harness.ratio(case["times"][name]["step"], case["times"]["mmrl"]["step"])
            target = f"at least {case['target']:g}x" if case["target"] else "-"
            rows.append([f"GRPO step, {name} / mmrl", _size(case), harness.show_ratio(r), target])
            if name in case["peaks"]:
                grown = case["peaks"][name]["peak"] / case["peaks"]["mmrl"]["peak"]
                target = "at least 2x" if name == "TRL" else "-"
                rows.append([f"peak of the update, {name} / mmrl", _size(case), f"{grown:.2f}x", target])
    return rows
