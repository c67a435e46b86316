"""Hidden states to log-probabilities of chosen tokens, forward and backward: time and peak memory by vocabulary.

2,048 tokens (8 rows of 256), width 256, float32, with an output layer that trains and with a frozen one (LoRA). The
loss is GRPO's on the first update: minus the mean of advantage times ratio, every ratio 1.

ours            mmrl.core.head.score, blocks of positions times the vocabulary
plain           all logits, log_softmax, gather
TRL full        all logits, TRL's selective_log_softmax
TRL chunked     TRL's ChunkedLogProbFunction, the log-probabilities of its GRPOTrainer, without the entropy
liger           LigerFusedLinearGRPOLoss: its chunked torch code, which runs on CPUs; uncompiled and compiled

Equality first: log-probabilities, and the gradients of hidden states and weight, relative to the largest entry.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from benchmarks import harness
from benchmarks.harness import Side

if TYPE_CHECKING:
    import torch

NAMES = ("mmrl", "torch", "trl", "liger-kernel")
ROWS, LENGTH, WIDTH = 8, 256, 256
#: vocabulary, repeats
CASES = ((4_096, 12), (32_768, 10), (151_936, 3))
LIMIT = {"time": 1.3, "memory": 0.5}  # at 32,768, against the plain form

Numbers = dict[str, "torch.Tensor"]
Loss = Callable[["torch.Tensor", "torch.Tensor", Numbers], "torch.Tensor"]


def numbers(vocabulary: int, *, double: bool = False, length: int = LENGTH) -> Numbers:
    """Logits of a standard deviation near 1; a tenth of the tokens are likely ones."""
    import torch

    g = torch.Generator().manual_seed(0)
    dtype = torch.float64 if double else torch.float32
    weight = torch.randn(vocabulary, WIDTH, generator=g, dtype=dtype) / WIDTH**0.5
    ids = torch.randint(0, vocabulary, (ROWS, length), generator=g)
    hidden = torch.randn(ROWS, length, WIDTH, generator=g, dtype=dtype)
    hidden[:, ::10] += 10 * weight[ids[:, ::10]]
    return {"hidden": hidden, "weight": weight, "ids": ids, "advantage": torch.randn(ROWS, generator=g, dtype=dtype)}


def _surrogate(logp_nt: torch.Tensor, n: Numbers) -> torch.Tensor:
    return -((logp_nt - logp_nt.detach()).exp() * n["advantage"][:, None]).mean()


def ours_logp(hidden: torch.Tensor, weight: torch.Tensor, n: Numbers) -> torch.Tensor:
    import torch

    from mmrl.core.head import Choice, Head, score

    head = Head(weight, None, torch.zeros(len(weight), dtype=weight.dtype), weight.dtype)
    chosen = Choice(n["ids"].flatten(), torch.ones(n["ids"].numel(), dtype=weight.dtype))
    return score(hidden.flatten(0, 1), head, chosen, size=1024)[0].view(n["ids"].shape)


def plain_logp(hidden: torch.Tensor, weight: torch.Tensor, n: Numbers) -> torch.Tensor:
    logp_ntv = (hidden @ weight.T).log_softmax(-1)
    return logp_ntv.gather(-1, n["ids"][..., None])[..., 0]


def trl_full_logp(hidden: torch.Tensor, weight: torch.Tensor, n: Numbers) -> torch.Tensor:
    from trl.trainer.utils import selective_log_softmax

    return selective_log_softmax(hidden @ weight.T, n["ids"])


def trl_chunked_logp(hidden: torch.Tensor, weight: torch.Tensor, n: Numbers) -> torch.Tensor:
    from trl.trainer import utils

    found = utils._ChunkedLogProbFunction.apply(
        hidden.flatten(0, 1), weight, None, n["ids"].flatten(), 1.0, utils._CHUNKED_LOGPROB_CHUNK_SIZE, None, 1.0, ()
    )
    return found[0].view(n["ids"].shape)


def liger_logp(hidden: torch.Tensor, weight: torch.Tensor, n: Numbers) -> torch.Tensor:
    from liger_kernel.chunked_loss.grpo_loss import LigerFusedLinearGRPOFunction

    return LigerFusedLinearGRPOFunction.chunk_forward(hidden, weight, n["ids"])


LOGP = {
    "ours": ours_logp,
    "plain": plain_logp,
    "TRL full": trl_full_logp,
    "TRL chunked": trl_chunked_logp,
    "liger": liger_logp,
    "liger compiled": liger_logp,
}


def loss_of(name: str) -> Loss:
    if not name.startswith("liger"):
        return lambda hidden, weight, n: _surrogate(LOGP[name](hidden, weight, n), n)
    import torch
    from liger_kernel.chunked_loss import LigerFusedLinearGRPOLoss

    made = LigerFusedLinearGRPOLoss(beta=0.0, use_ref_model=False, loss_type="dapo", compiled=name == "liger compiled")

    def run(hidden: torch.Tensor, weight: torch.Tensor, n: Numbers) -> torch.Tensor:
        mask = torch.ones(n["ids"].shape, dtype=torch.long)
        return made(hidden, weight, n["ids"], mask, n["advantage"])[0]

    return run


def side(name: str, vocabulary: int, trains: bool) -> Callable[[Any], object]:
    n, loss = numbers(vocabulary), loss_of(name)
    hidden, weight = n["hidden"].requires_grad_(), n["weight"].requires_grad_(trains)

    def work(clock: Any) -> None:
        hidden.grad = weight.grad = None
        with clock("pass"):
            loss(hidden, weight, n).backward()

    return work


def compare(name: str, vocabulary: int, double: bool, length: int) -> dict[str, float]:
    """Largest difference from the plain form, relative to the largest entry; both kinds of head."""
    gaps: dict[str, float] = {}
    for trains in (True, False):
        found = []
        for one in ("plain", name):
            n = numbers(vocabulary, double=double, length=length)
            hidden, weight = n["hidden"].requires_grad_(), n["weight"].requires_grad_(trains)
            loss_of(one)(hidden, weight, n).backward()
            logp = LOGP[one](hidden.detach(), weight.detach(), n)
            found.append({"log-probability": logp, "hidden": hidden.grad, "weight": weight.grad})
        for key, want in found[0].items():
            if want is not None:
                gap = float((found[1][key] - want).abs().max() / want.abs().max())
                gaps[key] = max(gaps.get(key, 0.0), gap)
    return gaps


def _names() -> list[str]:
    names = ["ours", "plain"]
    names += ["TRL full", "TRL chunked"] if harness.has("trl") else []
    return names + (["liger", "liger compiled"] if harness.has("liger_kernel") else [])


def measure(quick: bool) -> dict[str, Any]:
    names = ["ours", "plain"] if quick else _names()
    cases = []
    for vocabulary, repeats in ((1_024, 2),) if quick else CASES:
        length = LENGTH if vocabulary < 100_000 else 64  # memory of the plain form
        check = "benchmarks.head:compare"
        equality = {
            name: harness.call(check, name=name, vocabulary=vocabulary, double=False, length=length)
            for name in names
            if name != "plain"
        }
        exact = harness.call(check, name="ours", vocabulary=vocabulary, double=True, length=16)
        worst = max(equality["ours"].values())
        if worst > 1e-5 or max(exact.values()) > 1e-10:
            raise SystemExit(f"V = {vocabulary}: ours differs from the plain form: {equality['ours']}, {exact}")
        for trains in (True,) if quick else (True, False):
            sides = [_side(name, vocabulary, trains) for name in names]
            times = harness.race(sides, repeats=repeats, warmups=1 if quick or vocabulary > 100_000 else 2)
            memory = {s.name: harness.peak(s, repeats=1)["pass"]["peak"] for s in sides}
            case = {"vocabulary": vocabulary, "trains": trains, "equality": equality, "exact": exact}
            cases.append(case | {"times": {n: t["pass"] for n, t in times.items()}, "memory": memory})
            print(
                f"  V {vocabulary}, {_kind(trains)}: " + "; ".join(_cells(cases[-1], n)[0] for n in names), flush=True
            )
    return {"rows": ROWS, "length": LENGTH, "width": WIDTH, "cases": cases}


def _side(name: str, vocabulary: int, trains: bool) -> Side:
    return Side(name, "benchmarks.head:side", {"name": name, "vocabulary": vocabulary, "trains": trains})


def _kind(trains: bool) -> str:
    return "trained" if trains else "frozen"


def _cells(case: dict[str, Any], name: str) -> list[str]:
    """Of one side: seconds with spread; time against the plain form; MiB; memory against the plain form."""
    times, memory = case["times"], case["memory"]
    return [
        harness.show_seconds(times[name]),
        f"{times[name]['median'] / times['plain']['median']:.2f}",
        f"{memory[name]:.0f}",
        f"{memory[name] / memory['plain']:.2f}",
    ]


def page(result: dict[str, Any]) -> str:
    rows = []
    for case in result["cases"]:
        for name in case["times"]:
            gap = max(case["equality"][name].values()) if name in case["equality"] else 0.0
            size = f"{case['vocabulary']:,}, {_kind(case['trains'])}"
            rows.append([size, name, *_cells(case, name), f"{gap:.0e}" if gap else "-"])
    header = ["vocabulary, head", "form", "time (quartiles)", "of plain", "peak MiB", "of plain", "largest difference"]
    exact = max(max(case["exact"].values()) for case in result["cases"])
    tokens = result["rows"] * result["length"]
    width = result["width"]
    return f"""Forward and backward from {tokens:,} hidden states of width {width} to GRPO's loss, float32, one
thread. `trained`: the output layer gets a gradient; `frozen`: it does not, as with LoRA. The largest difference is that
of a log-probability or a gradient from the plain form, relative to the largest entry; ours in float64: {exact:.0e}.

{harness.table(header, rows)}

Blocks of logits stay in the processor's cache, so that making them a second time in the backward pass of a trained
head costs less than writing a table of all logits. For a frozen head the gradient of the hidden states is a by-product
of the forward pass. Liger's loss computes its gradients in the forward pass too; its `compiled` form leaves the small
loss to torch.compile. TRL full and plain hold tables of all logits."""


def headline(result: dict[str, Any]) -> list[list[str]]:
    out = []
    for case in result["cases"]:
        if case["vocabulary"] == 32_768:
            _, time, _, memory = _cells(case, "ours")
            size = f"V 32,768, {_kind(case['trains'])} head"
            out.append(["log-prob with head: time of the plain form's", size, time, f"at most {LIMIT['time']}"])
            out.append(["log-prob with head: memory of the plain form's", size, memory, f"at most {LIMIT['memory']}"])
    return out
