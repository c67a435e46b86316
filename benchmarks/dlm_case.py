"""What `dlm_decode` decodes: random models of 20 million parameters, their prompts, a plain LLaDA loop, our sampler."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

    from dlm.models.layers import Transformer
    from dlm.sampling.sampler import Sampled, Sampler

VOCABULARY, LIMIT, BLOCK, PROMPT = 8192, 128, 32, 64
SIZES = {"width": 384, "inner": 1024, "layers": 8, "heads": 6}
QUICK = {"width": 64, "inner": 128, "layers": 2, "heads": 2}
MASK, EOS, PAD = VOCABULARY - 1, VOCABULARY - 2, VOCABULARY - 3


def model(attention: str, *, quick: bool, double: bool = False) -> Transformer:
    """LLaDA's shape (untied head, no bias), random weights far from uniform; `attention`: full | block."""
    import torch

    from dlm.models.base import Traits
    from dlm.models.layers import Shape, Transformer

    sizes = QUICK if quick else SIZES
    torch.manual_seed(0)
    grid = BLOCK if attention == "block" else None
    traits = Traits("llada", MASK, (EOS,), PAD, False, attention, grid, 4096, ())  # type: ignore[arg-type]
    made = Transformer(
        Shape(
            VOCABULARY,
            sizes["width"],
            sizes["inner"],
            sizes["layers"],
            sizes["heads"],
            sizes["heads"],
            sizes["width"] // sizes["heads"],
            500_000.0,
            1e-5,
        ),
        traits,
    )
    with torch.no_grad():
        for name, weight in made.named_parameters():
            if weight.dim() == 2:
                weight.normal_(0.0, 1.0 if "embed" in name else 2.0 / weight.shape[1] ** 0.5)
    return made.to(torch.float64 if double else torch.float32).eval()


def prompts(rows: int) -> torch.Tensor:
    import torch

    return torch.randint(0, PAD, (rows, PROMPT), generator=torch.Generator().manual_seed(1))


def sampler(made: Transformer) -> Sampler:
    import torch

    from dlm.sampling.sampler import Sampler
    from mmrl.core.head import Head

    weight = made.head.weight.detach()
    head = Head(weight, None, torch.zeros(len(weight), dtype=weight.dtype), weight.dtype)
    return Sampler(made, head=head, ends={EOS}, suppressed={PAD}, block=BLOCK, batch_rows=64)


def ours(decoder: Sampler, rows: int, **options: Any) -> list[Sampled]:
    import torch

    from dlm.sampling.sampler import Job, Settings

    settings = Settings(stop_early=False, **options)
    return decoder([Job(p, LIMIT, settings, torch.Generator().manual_seed(i)) for i, p in enumerate(prompts(rows))])


def plain_loop(made: Transformer, prompts_np: torch.Tensor, *, steps: int, temperature: float) -> torch.Tensor:
    """Semi-autoregressive low-confidence decoding as it is published: logits, noise in float64 (at a temperature) and
    softmax of the whole canvas at every step, a loop over rows to commit. Mask and pad are not drawn, as in ours.
    """
    import torch

    rows, start = prompts_np.shape
    x = torch.cat([prompts_np, torch.full((rows, LIMIT), MASK)], 1)
    positions = torch.arange(x.shape[1]).expand_as(x)
    blocks = LIMIT // BLOCK
    for block in range(blocks):
        stop = start + (block + 1) * BLOCK
        per_step = BLOCK // (steps // blocks)
        for _ in range(steps // blocks):
            masked = x == MASK
            with torch.no_grad():
                logits = made.head(made.hidden(x, positions_nl=positions, attend_nqk=None))
            logits[..., [MASK, PAD]] = -torch.inf
            noisy = logits
            if temperature:
                wide = logits.double()
                noisy = wide.exp() / (-torch.log(torch.rand_like(wide))) ** temperature
            best = noisy.argmax(-1)
            confidence = torch.softmax(logits, -1).gather(-1, best[..., None])[..., 0]
            confidence[:, stop:] = -torch.inf
            confidence = torch.where(masked, confidence, -torch.inf)
            for row in range(rows):
                at = confidence[row].topk(per_step).indices
                x[row, at] = best[row, at]
    return x[:, start:]


# ---- sides


def decoding(name: str, rows: int, steps: int, quick: bool) -> Callable[[Any], object]:
    """`plain`, or attention and cache of our sampler: `full off`, `full dual`, `block block` ..."""
    attention, _, cache = name.partition(" ")
    made = model("block" if attention == "block" else "full", quick=quick)
    if name == "plain":

        def work(clock: Any) -> None:
            for phase, temperature in (("greedy", 0.0), ("T = 1", 1.0)):
                with clock(phase):
                    plain_loop(made, prompts(rows), steps=steps, temperature=temperature)

        return work
    decoder = sampler(made)

    phases = {"greedy": 0.0, "T = 1": 1.0} if name == "full off" else {"greedy": 0.0}

    def work(clock: Any) -> None:
        for phase, temperature in phases.items():
            with clock(phase):
                ours(decoder, rows, steps=steps, temperature=temperature, cache=cache)

    return work


def _ids(found: list[Sampled]) -> torch.Tensor:
    import torch

    return torch.stack([row.ids for row in found])


def compare(rows: int, steps: int, quick: bool) -> dict[str, Any]:
    """Equal tokens in float64 at a quarter of the steps: ours and the plain loop's, exact caches and none."""
    import torch

    few = max(4, steps // 4)
    made = model("full", quick=quick, double=True)
    full = sampler(made)
    exact = _ids(ours(full, rows, steps=few, temperature=0.0))
    told: dict[str, Any] = {
        "parameters": sum(p.numel() for p in made.parameters()),
        "steps": few,
        "plain": bool(torch.equal(exact, plain_loop(made, prompts(rows), steps=few, temperature=0.0))),
    }
    for cache in ("prefix", "dual"):
        found = ours(full, rows, steps=few, temperature=0.0, cache=cache, refresh=1)
        told[f"{cache} refreshed"] = bool(torch.equal(exact, _ids(found)))
    blocks = sampler(model("block", quick=quick, double=True))
    for phase, temperature in (("greedy", 0.0), ("T = 1", 1.0)):
        both = [_ids(ours(blocks, rows, steps=few, temperature=temperature, cache=c)) for c in ("off", "block")]
        told[f"block {phase}"] = bool(torch.equal(*both))
    return told


def agreement(rows: int, steps: int, quick: bool) -> dict[str, Any]:
    """Share of greedy tokens that approximate caches leave as they are, and how many different tokens there are.

    alone      share of predictions for masked positions of the block, every step at the exact decoder's canvas.
    forwards   of each decoder: denoising and total.
    """
    decoder = sampler(model("full", quick=quick))
    found = ours(decoder, rows, steps=steps, temperature=0.0)
    exact = _ids(found)
    forwards = {"plain": {"denoising": steps, "total": steps}, "full off": _forwards(decoder)}
    told: dict[str, Any] = {"distinct": len(exact.unique()), "forwards": forwards}
    told["alone"] = _alone(decoder.model, found)  # type: ignore[arg-type]
    for cache in ("prefix", "dual"):
        for refresh in (0, 4, 2):
            found = _ids(ours(decoder, rows, steps=steps, temperature=0.0, cache=cache, refresh=refresh))
            told[f"{cache} {refresh}"] = float((found == exact).double().mean())
        forwards[f"full {cache}"] = _forwards(decoder)
    decoder = sampler(model("block", quick=quick))
    for cache in ("off", "block"):
        ours(decoder, rows, steps=steps, temperature=0.0, cache=cache)
        forwards[f"block {cache}"] = _forwards(decoder)
    return told


def _alone(made: Transformer, exact: list[Sampled]) -> dict[str, float]:
    import torch

    from dlm.canvas import layout
    from dlm.sampling.full import FullReader

    canvas = layout(list(prompts(len(exact))), [LIMIT] * len(exact), made.traits, block=BLOCK)
    ids, steps = (torch.stack([getattr(row, name) for row in exact]) for name in ("ids", "steps"))
    kinds = [("off", 0)] + [(cache, refresh) for cache in ("prefix", "dual") for refresh in (0, 4, 2)]
    readers = [FullReader(made, canvas, cache=cache, refresh=refresh) for cache, refresh in kinds]
    same, seen = torch.zeros(len(kinds)), 0
    rows = torch.arange(len(exact))
    with torch.no_grad():
        for block in range(canvas.blocks):
            for reader in readers:
                reader.enter(block, rows)
            at = slice(block * BLOCK, (block + 1) * BLOCK)
            for step in steps[:, at].unique().tolist():  # every row has the same schedule
                canvas.ids_nl[:, canvas.prefix :] = ids.masked_fill(steps >= step, MASK)
                open_nb = steps[:, at] >= step
                logits = [made.head(reader.hidden(block, rows)[open_nb]) for reader in readers]
                for one in logits:
                    one[:, [MASK, PAD]] = -torch.inf
                best = torch.stack([one.argmax(-1) for one in logits])
                same += (best == best[0]).sum(-1)
                seen += best.shape[1]
    return {f"{cache} {refresh}": float(n) / seen for (cache, refresh), n in zip(kinds, same.tolist())}


def _forwards(decoder: Sampler) -> dict[str, int]:
    return {"denoising": decoder.stats.denoising, "total": decoder.stats.total}


# ---- a trained checkpoint


def checkpoint(
    path: str,
    prompts: list[str],
    *,
    limit: int,
    block: int | None = 32,
    thresholds: tuple[float, ...] = (0.5, 0.7, 0.9, 0.95),
    cache: str = "off",
    batch_rows: int = 64,
) -> list[dict[str, Any]]:
    """Parallel decoding of a checkpoint at temperature 0, against one token a forward.

    A row per decoder: forwards and tokens up to the end of the answer per completion, tokens per forward, seconds, the
    texts, and the share of texts that are those of one token a forward (what parallel decoding changes).
    """
    import torch

    from dlm.models.loading import load_model
    from dlm.sampling.sampler import Job, Sampler, Settings
    from mmrl.core.head import Head

    made, tokenizer = load_model(path)
    weight = made.head.weight.detach()
    head = Head(weight, None, torch.zeros(len(weight), dtype=weight.dtype), weight.dtype)
    ends, pads = set(made.traits.eos_ids), {made.traits.pad_id} - set(made.traits.eos_ids)
    decoder = Sampler(made, head=head, ends=ends, suppressed=pads, block=block, batch_rows=batch_rows)
    ids = [torch.tensor(tokenizer(text)["input_ids"]) for text in prompts]
    whole = [("one token a forward", {"rule": "steps", "steps": limit})]
    whole += [(f"threshold {t:g}", {"rule": "threshold", "threshold": t}) for t in thresholds]
    told: list[dict[str, Any]] = []
    for name, options in whole:
        settings = Settings(temperature=0.0, cache=cache, **options)  # type: ignore[arg-type]
        began = time.perf_counter()
        rows = decoder([Job(p, limit, settings, torch.Generator()) for p in ids])
        seconds = time.perf_counter() - began
        texts = [tokenizer.decode(row.ids[: row.length].tolist(), skip_special_tokens=True) for row in rows]
        forwards = sum(row.forwards for row in rows)
        told.append(
            {
                "name": name,
                "forwards": forwards / len(rows),
                "tokens": sum(row.length for row in rows) / len(rows),
                "tpf": sum(row.length for row in rows) / forwards,
                "batch forwards": decoder.stats.total,
                "seconds": seconds,
                "texts": texts,
                "same": sum(a == b for a, b in zip(texts, told[0]["texts"] if told else texts)) / len(texts),
            }
        )
    return told
