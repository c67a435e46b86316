"""The recipes tw-grpo and reg-grpo against examples/reference/tw_grpo.py: losses and gradients of ragged groups."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from test_reference import FOLDER, close, load

from mmrl import recipes
from mmrl.core.objective import Objective
from mmrl.core.recipe import parse
from mmrl.core.reducers import REDUCERS
from mmrl.core.table import Table

reference = load("tw_grpo")
LENGTH = [5, 2, 4, 1]
REWARD = [1.0, 0.0, 0.5, 0.25]
FORMS = {
    "official": ("divergence_nt", {}),
    "active": ("divergence_active_nt", {"active": True}),
    "calibrated": ("js_nt", {"calibrated": True}),
    "calibrated-active": ("js_active_nt", {"calibrated": True, "active": True}),
}


def problem(seed: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    g = torch.Generator().manual_seed(seed)
    logits = 2 * torch.randn(4, 5, 7, generator=g, dtype=torch.float64)
    old = -torch.rand(4, 5, generator=g, dtype=torch.float64)
    logp = old + 0.3 * torch.randn(4, 5, generator=g, dtype=torch.float64)
    return logits, old, logp, torch.arange(5) < torch.tensor(LENGTH)[:, None]


def ours(name: str, old: torch.Tensor, logp: torch.Tensor, mask: torch.Tensor, more: Any, **options: Any) -> Any:
    recipe = parse(name, recipes.read(name), unit="decision", options=options)
    objective = Objective(recipe, channel="tokens", unit="decision", provides=frozenset({"logp_nt"}))
    leaf = logp.clone().requires_grad_()
    channels = {"mask_nt": mask, "old_logp_nt": old, "reward_n": torch.tensor(REWARD, dtype=torch.float64), **more}
    table = objective.prepare(Table(channels, {"prompt": torch.zeros(4, dtype=torch.long)}))
    table = objective.widths_and_weights(table)
    loss = objective.terms(table.updated({"logp_nt": leaf}), *objective.coefficients(table)).loss()
    return loss.detach(), torch.autograd.grad(loss, [leaf])[0]


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("form", FORMS)
def test_tw_grpo(form: str, seed: int) -> None:
    logits, old, logp, mask = problem(seed)
    channel, how = FORMS[form]
    found = REDUCERS[channel].fn(logits, logits, mask_nc=mask, group_n=torch.zeros(4, dtype=torch.long))
    d = reference.divergence(logits, LENGTH, **how)
    close(found, [d] * 4)
    weight = reference.weights(d, LENGTH, 1.9, active="active" in form)
    leaf = logp.clone().requires_grad_()
    loss = reference.tw_grpo(leaf, old, reference.advantages(REWARD), weight)
    got = ours("tw-grpo", old, logp, mask, {channel: found}, **{"weight.tw.form": form, "weight.tw.alpha": 1.9})
    close(got[0], loss.detach())
    close(got[1], torch.autograd.grad(loss, [leaf])[0])


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("s_min", [0.01, 0.1, 5.0])
def test_reg_grpo(s_min: float, seed: int) -> None:
    _, old, logp, mask = problem(seed)
    leaf = logp.clone().requires_grad_()
    adv = reference.advantages(REWARD, ddof=0, eps=1e-8)
    loss = reference.reg_grpo(leaf, old, adv, LENGTH, s_min)
    got = ours("reg-grpo", old, logp, mask, {}, **{"penalties.kl.coef": 0.0, "gate.s_min": s_min})
    close(got[0], loss.detach())
    close(got[1], torch.autograd.grad(loss, [leaf])[0])


def test_the_reference_runs_and_stands_alone(capsys: pytest.CaptureFixture[str]) -> None:
    import ast

    text = (FOLDER / "tw_grpo.py").read_text()
    nodes = list(ast.walk(ast.parse(text)))
    imported = {a.name.split(".")[0] for n in nodes if isinstance(n, ast.Import) for a in n.names}
    imported |= {str(n.module).split(".")[0] for n in nodes if isinstance(n, ast.ImportFrom)}
    assert imported == {"__future__", "math", "torch"} and len(text.splitlines()) <= 300
    reference.main()
    assert "TW-GRPO" in capsys.readouterr().out
