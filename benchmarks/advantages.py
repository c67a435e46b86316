"""The group advantage of GRPO: segment reductions against a loop over a dictionary and against equal blocks.

    python benchmarks/advantages.py [--repeats 200] [--threads 1] [--json FILE]

loop     lists in a dictionary by group, one small tensor operation a row, as in trainers that take ragged groups
blocks   rewards.view(prompts, G), as TRL writes it; equal, contiguous groups only. Uses TRL's own `nanstd` when `trl`
         is installed (`pip install .[benchmark]`), else the same formula in torch
ours     mmrl.core: ragged, scattered, rows without reward

Equality is checked first; times are medians with the interquartile range, microseconds a call.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections import defaultdict
from collections.abc import Callable
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec

import torch
from torch import Tensor

from mmrl.core.advantages.grpo import grpo

EPS = 1e-4


def ours(reward_n: Tensor, prompt_n: Tensor) -> Tensor:
    return grpo(reward_n=reward_n, keys={"prompt": prompt_n}, eps=EPS)


def loop(reward_n: Tensor, prompt_n: Tensor) -> Tensor:
    by_group: dict[int, list[Tensor]] = defaultdict(list)
    for i, key in enumerate(prompt_n.tolist()):
        by_group[key].append(reward_n[i])
    mean, std = {}, {}
    for key, values in by_group.items():
        own = torch.stack(values)
        mean[key], std[key] = own.mean(), own.std() if len(values) > 1 else torch.ones(())
    out = [(reward_n[i] - mean[k]) / (std[k] + EPS) for i, k in enumerate(prompt_n.tolist())]
    return torch.stack(out)


def _nanstd() -> tuple[str, Callable[..., Tensor]]:
    if find_spec("trl") is None:
        return "formula of TRL in torch", lambda x, dim: x.std(dim=dim)
    nanstd = import_module("trl.trainer.utils").nanstd
    try:
        return f"trl {version('trl')}", nanstd
    except PackageNotFoundError:
        return "trl", nanstd


def blocks(group: int, nanstd: Callable[..., Tensor]) -> Callable[[Tensor, Tensor], Tensor]:
    def run(reward_n: Tensor, prompt_n: Tensor) -> Tensor:
        mean = torch.nanmean(reward_n.view(-1, group), dim=1).repeat_interleave(group, dim=0)
        std = nanstd(reward_n.view(-1, group), dim=1).repeat_interleave(group, dim=0)
        return torch.nan_to_num((reward_n - mean) / (std + EPS), nan=0.0)

    return run


def batch(kind: str, generator: torch.Generator) -> tuple[Tensor, Tensor, int | None]:
    """Rewards, prompt of each row, and the group size where all are equal and contiguous."""
    if kind == "ragged":
        sizes = torch.randint(2, 33, (512,), generator=generator)
        prompt_n = torch.repeat_interleave(torch.arange(len(sizes)), sizes)
        prompt_n = prompt_n[torch.randperm(len(prompt_n), generator=generator)]
        group = None
    else:
        prompts, group = (int(v) for v in kind.split("x"))
        prompt_n = torch.arange(prompts).repeat_interleave(group)
    return torch.rand(len(prompt_n), generator=generator), prompt_n, group


def timed(fn: Callable[[Tensor, Tensor], Tensor], args: tuple[Tensor, Tensor], repeats: int) -> tuple[float, float]:
    """Median and interquartile range, microseconds; the number of calls shrinks with their length."""
    start = time.perf_counter()
    fn(*args)
    first = time.perf_counter() - start
    calls = max(5, min(repeats, int(2.0 / max(first, 1e-6))))
    times = []
    for _ in range(calls):
        start = time.perf_counter()
        fn(*args)
        times.append((time.perf_counter() - start) * 1e6)
    low, middle, high = statistics.quantiles(times, n=4)
    return middle, high - low


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=200)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", help="also write the numbers to this file")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    peer, nanstd = _nanstd()
    print(f"torch {torch.__version__}, {options.threads} thread(s); blocks: {peer}")
    print(f"{'batch':>10} {'rows':>6} {'largest gap':>12}   microseconds a call (interquartile range)")
    rows = []
    for kind in ("64x8", "1024x16", "ragged"):
        reward_n, prompt_n, group = batch(kind, torch.Generator().manual_seed(0))
        others = {"loop": loop, **({"blocks": blocks(group, nanstd)} if group else {})}
        expected = ours(reward_n, prompt_n)
        gap = max(float((fn(reward_n, prompt_n) - expected).abs().max()) for fn in others.values())
        if gap > 1e-4:
            raise SystemExit(f"{kind}: the implementations differ by {gap:g}")
        found = {n: timed(fn, (reward_n, prompt_n), options.repeats) for n, fn in {"ours": ours, **others}.items()}
        line = "   ".join(f"{n} {median:.0f} ({spread:.0f})" for n, (median, spread) in found.items())
        ratio = found["loop"][0] / found["ours"][0]
        print(f"{kind:>10} {len(reward_n):>6} {gap:>12.1e}   {line}   loop / ours {ratio:.0f}")
        rows.append({"batch": kind, "rows": len(reward_n), "gap": gap, "microseconds": found})
    if options.json:
        with open(options.json, "w", encoding="utf-8") as file:
            json.dump({"torch": torch.__version__, "peer": peer, "results": rows}, file, indent=1)


if __name__ == "__main__":
    main()
