"""A small batch with everything that goes wrong in practice, and how to call any stage on it.

15 rows in 6 scattered groups (sizes 4, 3, 3, 2, 2, 1), 6 decisions, ragged masks with an inner hole and an empty row, a
row without reward, a group whose rewards are all equal. As a table of denoising steps: all but two of them scored.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

import image_gen.flow.stages  # noqa: F401  (registers the stages native to a family)
import mmrl.core.catalogue  # noqa: F401  (registers the stages)
from mmrl.core.channels import carries_gradient
from mmrl.core.groups import total_reward
from mmrl.core.reductions import reduce_loss
from mmrl.core.registry import Bound, bind, find
from mmrl.core.table import Table

KEY = [7, 3, 7, 11, 0, 3, 7, 5, 11, 3, 5, 7, 5, 20, 20]
LENGTH = [6, 4, 1, 6, 3, 2, 5, 6, 3, 0, 4, 2, 6, 5, 1]
NO_REWARD = 10
FLAT_GROUP = 20  # rows 13 and 14 have equal rewards
SINGLE = 4  # the row that is alone in its group
N, T = len(KEY), 6
PASS_CHANNELS = ("logp_nt", "entropy_nt", "kl_nt", "supervised_nt", "mean_gap_nt")
UNSCORED = (0, 3)


def world(dtype: torch.dtype = torch.float64, seed: int = 0, drift: float = 0.4) -> Table:
    """The batch above. `drift` is the typical log-ratio between the current and the old pass."""
    g = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=g, dtype=torch.float64)

    old = -normal(N, T).abs() - 0.1
    reward_nk = torch.stack([normal(N), (normal(N) > 0).double()], 1)
    reward_nk[13] = reward_nk[14] = torch.tensor([0.1, 1.0])
    reward_nk[NO_REWARD] = torch.nan
    reward_nk[1, 1] = torch.nan  # one component does not apply
    weight_k = torch.tensor([1.0, 0.5], dtype=torch.float64)
    mask = torch.arange(T) < torch.tensor(LENGTH)[:, None]
    mask[0, 2] = False
    floats = {
        "reward_nk": reward_nk,
        "weight_k": weight_k,
        "reward_n": total_reward(reward_nk=reward_nk, weight_k=weight_k),
        "logp_nt": old + drift * normal(N, T),
        "old_logp_nt": old,
        "ref_logp_nt": old + 0.3 * normal(N, T),
        "sampler_logp_nt": old + 0.5 * normal(N, T),
        "entropy_nt": normal(N, T).abs(),
        "kl_nt": normal(N, T).square(),
        "supervised_nt": normal(N, T).square(),
        "adv_nt": normal(N, T),
        "eps_low_nt": 0.1 + 0.1 * normal(N, T).abs(),
        "eps_high_nt": 0.1 + 0.2 * normal(N, T).abs(),
    }
    reward_ntk = normal(N, T, 2).abs()
    reward_ntk[14] = reward_ntk[13]
    reward_ntk[NO_REWARD] = torch.nan
    reward_ntk[1, :, 1] = reward_ntk[0, 4] = torch.nan
    floats |= {
        "reward_ntk": reward_ntk,
        "dt_nt": -0.05 - 0.2 * normal(N, T).abs(),
        "sigma_nt": 0.5 + normal(N, T).abs(),
        "mean_gap_nt": 0.1 * normal(N, T).square(),
        "prompt_mean_n": normal(N),
        "prompt_std_n": normal(N).abs(),
    }
    divergences = ("divergence_nt", "divergence_active_nt", "js_nt", "js_active_nt")
    floats |= {name: normal(N, T).square() for name in divergences}
    channels: dict[str, Any] = {k: v.to(dtype) for k, v in floats.items()}
    channels["scored_nt"] = torch.tensor([t not in UNSCORED for t in range(T)]).repeat(N, 1)
    channels["mask_nt"] = mask
    channels["correct_n"] = torch.tensor([i % 3 != 1 for i in range(N)])
    channels["length_n"] = torch.tensor(LENGTH)
    channels["limit_n"] = torch.full((N,), T)
    channels["finished_n"] = torch.tensor(LENGTH) < T
    channels["part_n"] = torch.arange(N) // 4
    segments = {"step": (torch.arange(T) // 2).expand(N, T).clone()}
    return Table(channels, {"prompt": torch.tensor(KEY)}, segments)


@dataclass(frozen=True)
class Case:
    """One stage under one set of options.

    without: channels that the table must not offer (closed forms, widths). given: channels that it must hold instead.
    """

    kind: str
    name: str
    options: Mapping[str, Any] = field(default_factory=dict)
    without: tuple[str, ...] = ()
    given: Mapping[str, Any] = field(default_factory=dict)

    @property
    def key(self) -> tuple[str, str]:
        return self.kind, self.name

    def __str__(self) -> str:
        parts = [f"{k}={v}" for k, v in self.options.items()] + [f"no-{c}" for c in self.without]
        parts += [f"{k}={v}" for k, v in self.given.items()]
        return "-".join([self.kind, self.name, *parts])

    def bound(self) -> Bound:
        return bind(self.kind, {"name": self.name, **self.options})

    def reads(self, channel: str) -> bool:
        stage = find(self.kind, self.name)
        return channel in (*stage.required, *stage.optional) and channel not in self.without

    def table(self, dtype: torch.dtype = torch.float64, **kwargs: Any) -> Table:
        return drop(world(dtype, **kwargs), *self.without).updated(dict(self.given))

    def but(self, **options: Any) -> Case:
        return replace(self, options={**self.options, **options})


def drop(table: Table, *names: str) -> Table:
    return Table({k: v for k, v in table.channels.items() if k not in names}, table.keys, table.segments)


def outputs(case: Case, table: Table) -> dict[str, Any]:
    """What the stage returns, by name, whatever its kind. Reductions give `coef_nt` and `count`."""
    result = case.bound()(table)
    if case.kind == "reduce":
        return {"coef_nt": result[0], "count": result[1]}
    if isinstance(result, dict):
        return dict(result)
    main = {"shape": "reward_n", "select": "keep_n", "weight": "weight_nt", "penalty": "loss_nt"}
    if case.kind == "advantage":
        return {"adv_n" if result.dim() == 1 else "adv_nt": result}
    return {main[case.kind]: result}


def main_output(case: Case, table: Table) -> Tensor:
    found = outputs(case, table)
    for name in ("loss_nt", "adv_nt", "adv_n", "coef_nt", "weight_nt", "reward_n", "keep_n"):
        if name in found:
            value: Tensor = found[name]
            return value
    raise KeyError(f"{case} returns none of the known tables: {sorted(found)}")


def loss_and_gradients(case: Case, table: Table, reduction: str = "token-mean") -> tuple[Tensor, dict[str, Tensor]]:
    """Reduced loss of a gate or penalty and its gradient with respect to every floating-point table it reads."""
    leaves = {
        k: v.detach().clone().requires_grad_()
        for k, v in table.channels.items()
        if isinstance(v, Tensor) and v.is_floating_point() and case.reads(k)
    }
    loss_nt = main_output(case, table.updated(leaves))
    loss = reduce_loss(loss_nt, bind("reduce", reduction)(table))
    grads = torch.autograd.grad(loss, list(leaves.values()), allow_unused=True, materialize_grads=True)
    return loss.detach(), dict(zip(leaves, grads, strict=True))


def pass_gradients(case: Case, table: Table, reduction: str = "token-mean") -> dict[str, Tensor]:
    """The gradients with respect to the current pass only (log-probs, entropy, closed forms)."""
    grads = loss_and_gradients(case, table, reduction)[1]
    return {k: v for k, v in grads.items() if carries_gradient(k)}


def tolerance(dtype: torch.dtype) -> float:
    return 1e-10 if dtype == torch.float64 else 2e-5


def assert_same(got: Any, expected: Any, dtype: torch.dtype = torch.float64, what: str = "") -> None:
    """Equal within the dtype's tolerance, NaN equal to NaN; numbers and None too."""
    if isinstance(expected, Tensor):
        tol = tolerance(dtype)
        if isinstance(got, Tensor) and got.dtype == expected.dtype and got.shape == expected.shape:
            if got.dtype == torch.bool or not got.is_floating_point():
                assert torch.equal(got, expected), what
                return
            if torch.allclose(got, expected, rtol=tol, atol=tol, equal_nan=True):
                return
        torch.testing.assert_close(
            got.to(expected.dtype) if isinstance(got, Tensor) else got,
            expected,
            rtol=tolerance(dtype),
            atol=tolerance(dtype),
            equal_nan=True,
            msg=lambda m: f"{what}: {m}",
        )
    else:
        assert got == expected, what
