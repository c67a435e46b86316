"""Estimators of a masked diffusion model's likelihood against the exact ELBO:  python benchmarks/dlm_estimators.py

Bias, standard deviation and RMSE in nats of a completion's ELBO, over many draws of masks, for every estimator of the
ELBO at 1, 2, 3, 4 and 8 forwards; and the noise of a log-ratio with masks shared or drawn anew. Writes
benchmarks/results/dlm_estimators.json, the tables of docs/dlm_estimators.md and docs/figures/dlm_estimators.svg.
`--quick`: a few draws, writes nothing. `--page`: from the stored result.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path
from typing import Any

sys.path[0] = str(Path(__file__).resolve().parent.parent)

from benchmarks import dlm_figure, harness  # noqa: E402

NAMES = ("torch",)
BUDGETS = (1, 2, 3, 4, 8)
CASES = {
    "a": "Markov chain, L = 8, every mask enumerated",
    "b": "Markov chain, L = 32",
    "c": "smooth scorer, L = 32",
    "d": "transformer with random weights, L = 8, every mask enumerated",
}
#: label -> forwards -> (estimator, options), or nothing where it does not come at that price
ESTIMATORS: dict[str, Any] = {
    "sdmc gauss, 1/t": lambda f: ("sdmc", {"rule": f"gauss-{f}"}),
    "sdmc gauss, L/k": lambda f: ("sdmc", {"rule": f"gauss-{f}", "weighting": "L/k"}),
    "sdmc gauss, L/k, ceil": lambda f: ("sdmc", {"rule": f"gauss-{f}", "weighting": "L/k", "count": "ceil"}),
    "sdmc midpoint, 1/t": lambda f: ("sdmc", {"rule": f"midpoint-{f}"}),
    "sdmc midpoint, L/k": lambda f: ("sdmc", {"rule": f"midpoint-{f}", "weighting": "L/k"}),
    "sdmc midpoint, L/k, ceil": lambda f: ("sdmc", {"rule": f"midpoint-{f}", "weighting": "L/k", "count": "ceil"}),
    "sdmc simpson, 1/t": lambda f: ("sdmc", {"rule": "simpson"}) if f == 3 else None,
    "mc": lambda f: ("mc", {"samples": f}),
    "strat_mc": lambda f: ("strat_mc", {"samples": f}),
    "complementary": lambda f: ("complementary", {"pairs": f // 2}) if f % 2 == 0 else None,
    "elbo (t, 1/t)": lambda f: ("elbo", {"t_min": 0.0}) if f == 1 else None,
    "elbo antithetic": lambda f: ("elbo", {"t_min": 0.0, "antithetic": True}) if f == 2 else None,
    "one_step": lambda f: ("one_step", {"p_mask_prompt": 0.0}) if f == 1 else None,
}
BLURS = (0.10, 0.12)  # old and new policy of the log-ratio
RATIO = {
    "sdmc gauss, 1/t": 3,
    "sdmc gauss, L/k": 3,
    "sdmc gauss, L/k, ceil": 3,
    "mc": 3,
    "strat_mc": 3,
    "complementary": 4,
}


def rows_of(draws: int, length: int, first_seed: int = 0) -> Any:
    import torch

    from dlm.likelihood.base import Completions

    return Completions(
        region_nl=torch.ones(draws, length, dtype=torch.bool),
        steps_nl=torch.full((draws, length), -1),
        block_nl=torch.zeros(draws, length, dtype=torch.long),
        prompt_np=torch.zeros(draws, 0, dtype=torch.bool),
        seed_n=torch.arange(draws) + first_seed,
    )


def estimates(case: tuple[str, dict[str, Any]], scorers: list[Any], length: int, draws: int, seed: int = 0) -> Any:
    """The estimate of each scorer's ELBO under every draw; the same masks for all scorers. [scorers, draws]"""
    import torch

    from dlm.likelihood.registry import make

    name, options = case
    estimator = make(name, options)
    views = estimator.views(rows_of(draws, length, seed))
    return torch.stack([estimator.combine([s(v.masked_nl) for v in views], views).sum(dim=1) for s in scorers])


def errors(found: Any, exact: list[float]) -> dict[str, float]:
    """Root mean square over the completions of the bias and of the standard deviation; RMSE; in nats."""
    import torch

    bias = found.mean(dim=1) - torch.tensor(exact, dtype=torch.float64)
    variance = found.var(dim=1)
    mean_error = (variance / found.shape[1]).mean().sqrt()
    return {
        "bias": float(bias.square().mean().sqrt()),
        "signed": float(bias.mean()),
        "bias_noise": float(mean_error),
        "sd": float(variance.mean().sqrt()),
        "rmse": float((variance + bias.square()).mean().sqrt()),
    }


def measure(quick: bool) -> dict[str, Any]:
    import torch

    from benchmarks import dlm_scorers as toys

    torch.set_num_threads(1)
    draws, answers = (50, 2) if quick else (2000, 16)
    scorers = {
        "a": [toys.Chain(s, blur=BLURS[0], length=toys.SHORT) for s in range(answers)],
        "b": [toys.Chain(s, blur=BLURS[0]) for s in range(answers)],
        "c": [toys.Smooth(s) for s in range(answers)],
        "d": [toys.Transformer(s) for s in range(answers)],
    }
    result: dict[str, Any] = {"draws": draws, "answers": answers, "cases": {}, "ratio": {}}
    for key, models in scorers.items():
        exact, length = [m.elbo() for m in models], models[0].length
        assert length > 8 or all(abs(enumerated(m) - e) < 1e-9 for m, e in zip(models, exact))
        table: dict[str, Any] = {}
        for label, build in ESTIMATORS.items():
            cases = {f: build(f) for f in BUDGETS}
            table[label] = {
                str(f): errors(estimates(case, models, length, draws), exact) for f, case in cases.items() if case
            }
        share = sum(time_share(m, draws) for m in models) / len(models)
        result["cases"][key] = {"elbo": sum(exact) / len(exact), "time_share": share, "errors": table}
    result["ratio"] = ratios([toys.Chain(s, blur=BLURS[1]) for s in range(answers)], scorers["b"], draws)
    return result


def enumerated(scorer: Any) -> float:
    from dlm.likelihood import exact

    return exact.elbo(scorer, scorer.length)


def time_share(scorer: Any, draws: int) -> float:
    """Share of the variance of (L/k) sum lp that comes from k, the rest from which k tokens are masked."""
    import torch

    g = torch.Generator().manual_seed(0)
    means, variances = [], []
    for k in range(1, scorer.length + 1):
        masks = torch.rand(draws, scorer.length, generator=g).argsort(dim=1) < k
        value = torch.where(masks, scorer(masks), 0.0).sum(dim=1) * scorer.length / k
        means.append(value.mean())
        variances.append(value.var())
    inner = torch.stack(variances).mean()
    between = (torch.stack(means).var(correction=0) - inner / draws).clamp(min=0)
    return float(between / (between + inner))


def ratios(new: list[Any], old: list[Any], draws: int) -> dict[str, Any]:
    """The log-ratio of two policies, ELBO_new - ELBO_old: masks shared, and drawn anew for the new one."""
    length = old[0].length
    exact = [n.elbo() - o.elbo() for n, o in zip(new, old)]
    out: dict[str, Any] = {"exact": sum(exact) / len(exact), "rows": {}}
    for label, f in RATIO.items():
        case = ESTIMATORS[label](f)
        before = estimates(case, old, length, draws)
        shared, apart = (estimates(case, new, length, draws, seed) for seed in (0, 1_000_000))
        out["rows"][label] = {
            "forwards": f,
            "shared": errors(shared - before, exact),
            "apart": errors(apart - before, exact),
        }
    return out


def advantage(result: dict[str, Any], case: str, weighting: str = "1/t") -> float:
    """Standard deviation of double Monte Carlo with 3 forwards over that of SDMC with gauss-3."""
    table = result["cases"][case]["errors"]
    return float(table["mc"]["3"]["sd"] / table[f"sdmc gauss, {weighting}"]["3"]["sd"])


def page(result: dict[str, Any]) -> str:
    out = []
    for key, title in CASES.items():
        case = result["cases"][key]
        rows = []
        for label, cells in case["errors"].items():
            shown = [cells.get(str(f)) for f in BUDGETS]
            rows.append([f"`{label}`", *("" if c is None else _cell(c) for c in shown)])
        header = ["bias / sd / RMSE at forwards:", *(str(f) for f in BUDGETS)]
        out.append(
            f"**({key}) {title}**, mean exact ELBO {case['elbo']:.2f} nats; {result['answers']} completions x "
            f"{result['draws']} draws. {case['time_share']:.0%} of the variance of one `mc` view comes from the number "
            f"of masked tokens. SDMC-3 has {advantage(result, key):.1f} times (1/t) and "
            f"{advantage(result, key, 'L/k'):.1f} times (L/k) lower standard deviation than `mc` with 3 forwards.\n\n"
            + harness.table(header, rows)
        )
    return "\n\n".join([*out, _ratio_table(result["ratio"])])


def _cell(c: dict[str, float]) -> str:
    return f"{c['signed']:+.2f} / {c['sd']:.2f} / {c['rmse']:.2f}"


def _ratio_table(ratio: dict[str, Any]) -> str:
    rows = []
    for label, row in ratio["rows"].items():
        shared, apart = row["shared"], row["apart"]
        numbers = (shared["signed"], shared["sd"], apart["sd"])
        rows.append([f"`{label}`", str(row["forwards"]), *(f"{v:.3f}" for v in numbers)])
    return (
        f"**Log-ratio of two policies**, (b), chains blurred by {BLURS[0]} and {BLURS[1]}; exact mean difference "
        f"{ratio['exact']:.3f} nats.\n\n"
        + harness.table(["estimator", "forwards", "bias, masks shared", "sd, shared", "sd, drawn anew"], rows)
    )


def headline(result: dict[str, Any]) -> list[list[str]]:
    return [
        ["sd of `mc` over sd of SDMC, 3 forwards", title, f"{advantage(result, key):.1f}x", "4x"]
        for key, title in CASES.items()
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a few draws; writes nothing")
    parser.add_argument("--page", action="store_true", help="run nothing; page and figure from the stored result")
    options = parser.parse_args()
    result = harness.read("dlm_estimators") if options.page else None
    if result is None:
        began = time.perf_counter()
        result = measure(options.quick)
        took = time.perf_counter() - began
        result = {"versions": harness.versions(NAMES), "took": took, "quick": options.quick} | result
        print(page(result) + f"\n({took:.0f} s)")
        if options.quick:
            return
        harness.save("dlm_estimators", result)
    harness.insert(harness.ROOT / "docs" / "dlm_estimators.md", "dlm_estimators", page(result))
    dlm_figure.draw(result, CASES, harness.ROOT / "docs" / "figures" / "dlm_estimators.svg")
    print("written: docs/dlm_estimators.md, docs/figures/dlm_estimators.svg")


if __name__ == "__main__":
    main()
