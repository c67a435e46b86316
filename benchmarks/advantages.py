"""The group advantage of GRPO by number of rows: equal groups in order, and ragged groups in any order.

ours              mmrl.core: any order, any sizes, rows without reward
TRL's formula     rewards as a table [prompts, G], as GRPOTrainer writes it, with TRL's `nanstd`; equal groups in order
verl vectorised   verl's compute_grpo_vectorized_outcome_advantage: any order, any sizes
verl looped       verl's compute_grpo_outcome_advantage, its default

verl runs in an environment of its own (benchmarks/verl_env.py), on the same saved rewards. Equality first.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from benchmarks import harness, verl_env
from benchmarks.harness import Side

if TYPE_CHECKING:
    import torch

NAMES = ("mmrl", "torch", "trl")
EPS = 1e-6  # verl's; TRL writes 1e-4, which takes as long
#: rows, rows of a group (None: 2 to 32, rows in random order)
CASES = ((512, 8), (512, None), (4_096, 8), (8_192, 16), (65_536, 8), (65_536, 16), (65_536, None))

Advantage = Callable[["torch.Tensor", "torch.Tensor"], "torch.Tensor"]


def save_case(saved: str, rows: int, group: int | None) -> None:
    """Rewards and prompt of each row, into a file."""
    import torch

    g = torch.Generator().manual_seed(rows)
    if group is None:
        sizes = torch.randint(2, 33, (rows,), generator=g)
        key_n = torch.repeat_interleave(torch.arange(rows), sizes)[:rows]
        key_n[-1] = key_n[-2]  # no group of one: the rules for it differ
        key_n = key_n[torch.randperm(rows, generator=g)]
    else:
        key_n = torch.arange(rows // group).repeat_interleave(group)
    torch.save((torch.rand(rows, generator=g), key_n), saved)


def ours() -> Advantage:
    from mmrl.core.advantages.grpo import grpo

    return lambda reward_n, key_n: grpo(reward_n=reward_n, keys={"prompt": key_n}, eps=EPS)


def trl(group: int) -> Advantage:
    import torch
    from trl.trainer.utils import nanstd

    def run(reward_n: torch.Tensor, key_n: torch.Tensor) -> torch.Tensor:
        mean = torch.nanmean(reward_n.view(-1, group), dim=1).repeat_interleave(group, dim=0)
        std = nanstd(reward_n.view(-1, group), dim=1).repeat_interleave(group, dim=0)
        return torch.nan_to_num((reward_n - mean) / (std + EPS), nan=0.0)

    return run


def verl(looped: bool) -> Advantage:
    import torch
    from verl.trainer.ppo import core_algos

    name = "compute_grpo_outcome_advantage" if looped else "compute_grpo_vectorized_outcome_advantage"
    function = getattr(core_algos, name)

    def run(reward_n: torch.Tensor, key_n: torch.Tensor) -> torch.Tensor:
        """One token a row: verl spreads an advantage over the tokens, which ours leaves to the loss."""
        mask = torch.ones(len(reward_n), 1)
        return function(reward_n[:, None], mask, key_n.numpy(), epsilon=EPS)[0][:, 0]  # type: ignore[no-any-return]

    return run


def _made(name: str, group: int | None) -> Advantage:
    if name == "ours":
        return ours()
    if name == "TRL's formula":
        assert group is not None
        return trl(group)
    return verl(looped=name == "verl looped")


def values(name: str, saved: str, group: int | None) -> list[float]:
    import torch

    return _made(name, group)(*torch.load(saved)).tolist()  # type: ignore[no-any-return]


def side(name: str, saved: str, group: int | None, calls: int) -> Callable[[Any], object]:
    import torch

    reward_n, key_n = torch.load(saved)
    function = _made(name, group)

    def work(clock: Any) -> None:
        with clock("calls"):
            for _ in range(calls):
                function(reward_n, key_n)

    return work


def measure(quick: bool) -> dict[str, Any]:
    other = None if quick else verl_env.python()
    cases = [_case(rows, group, other, quick) for rows, group in (((512, 8), (512, None)) if quick else CASES)]
    versions = harness.versions(["verl", "ray", "torch", "transformers"], python=other) if other else None
    return {"cases": cases, "verl": versions}


def _case(rows: int, group: int | None, other: str | None, quick: bool) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        saved = f"{folder}/case.pt"
        harness.call("benchmarks.advantages:save_case", saved=saved, rows=rows, group=group)
        names = ["ours"]
        if group and not quick and harness.has("trl"):
            names.append("TRL's formula")
        if other:
            names += ["verl vectorised", "verl looped"]
        sides, found = [], {}
        for name in names:
            interpreter = other if other and name.startswith("verl") else sys.executable
            given = {"name": name, "saved": saved, "group": group}
            found[name] = harness.call("benchmarks.advantages:values", python=interpreter, **given)
            calls = 1 if name == "verl looped" else max(5, min(200, 400_000 // rows))
            sides.append(Side(name, "benchmarks.advantages:side", given | {"calls": calls}, 1, interpreter))
        gaps = {n: max(abs(a - b) for a, b in zip(v, found["ours"], strict=True)) for n, v in found.items()}
        if max(gaps.values()) > 1e-4:
            raise SystemExit(f"{rows} rows, groups of {group}: the implementations differ: {gaps}")
        times = harness.race(sides, repeats=3 if quick else 15)
    for one in sides:
        spent = times[one.name]["calls"]
        scaled = {k: spent[k] / one.arguments["calls"] for k in ("median", "low", "high", "cpu")}
        times[one.name] = scaled | {"all": [x / one.arguments["calls"] for x in spent["all"]]}
    print(f"  {rows} rows, groups of {group}: " + "; ".join(f"{n} {harness.show_seconds(t)}" for n, t in times.items()))
    return {"rows": rows, "group": group, "gaps": gaps, "times": times}


def page(result: dict[str, Any]) -> str:
    names = ("ours", "TRL's formula", "verl vectorised", "verl looped")
    rows = []
    for case in result["cases"]:
        shown = [harness.show_seconds(case["times"][n]) if n in case["times"] else "-" for n in names]
        group = f"groups of {case['group']}" if case["group"] else "ragged, scattered"
        rows.append([f"{case['rows']:,} rows, {group}", *shown, f"{max(case['gaps'].values()):.0e}"])
    said = "verl is left out: it could not be installed."
    if result["verl"]:
        v = result["verl"]
        said = f"verl {v['verl']} ran in an environment of its own (transformers {v['transformers']}, ray {v['ray']})."
    return f"""Time of one call, one thread, float32. The largest difference is between any peer and ours, absolute.

{harness.table(["batch", *names, "largest difference"], rows)}

{said} TRL's formula needs groups of one size, one after the other; ours finds out whether they lie so, and adds in
float64, so that the order of the rows does not change the result."""


def headline(result: dict[str, Any]) -> list[list[str]]:
    out = []
    for case in result["cases"]:
        times = case["times"]
        if case["rows"] == 65_536 and "verl vectorised" in times:
            group = f"groups of {case['group']}" if case["group"] else "ragged"
            shown = [
                harness.show_ratio(harness.ratio(times[n], times["ours"])) for n in ("verl vectorised", "verl looped")
            ]
            out.append(
                ["group advantages against verl", f"65,536 rows, {group}", f"{shown[0]}; looped {shown[1]}", "-"]
            )
    return out
