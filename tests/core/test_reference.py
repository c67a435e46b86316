"""The toolkit against the single-file references of examples/reference, on random ragged batches in float64."""

from __future__ import annotations

import ast
import importlib.util
import random
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from core_objective_checks import PROVIDES
from core_world import KEY, NO_REWARD, T, world

from mmrl import recipes
from mmrl.core.objective import Objective
from mmrl.core.recipe import parse
from mmrl.core.registry import bind
from mmrl.core.shaping import overlong_penalty
from mmrl.core.table import Table
from mmrl.data.records import Record
from mmrl.rewards import detection, grounding
from mmrl.rewards.classification import label_reward
from mmrl.rewards.format import format_reward

FOLDER = Path(__file__).parents[2] / "examples" / "reference"


def load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"reference_{name}", FOLDER / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


grpo, visual_rft = load("grpo"), load("visual_rft")
SEEDS = range(3)


@pytest.mark.parametrize("name", ["grpo", "visual_rft"])
def test_a_reference_is_short_and_stands_alone(name: str) -> None:
    text = (FOLDER / f"{name}.py").read_text()
    assert len(text.splitlines()) <= 300
    nodes = list(ast.walk(ast.parse(text)))
    imported = {a.name.split(".")[0] for n in nodes if isinstance(n, ast.Import) for a in n.names}
    imported |= {str(n.module).split(".")[0] for n in nodes if isinstance(n, ast.ImportFrom)}
    assert imported <= {"__future__", "ast", "json", "math", "re", "torch"}


def batch(seed: int) -> tuple[Table, list[float], list[list[int]]]:
    """The common batch with a reward in every row (the references know no missing ones)."""
    table = world(seed=seed, drift=0.3)
    reward = table["reward_n"].clone()
    reward[NO_REWARD] = 0.75
    channels = {k: v for k, v in table.channels.items() if not k.startswith("eps") and k != "kl_nt"}
    mask = table["mask_nt"].long().tolist()
    return Table({**channels, "reward_n": reward}, table.keys, table.segments), reward.tolist(), mask


def close(got: Any, expected: Any, tol: float = 1e-10) -> None:
    torch.testing.assert_close(
        torch.as_tensor(got, dtype=torch.float64), torch.as_tensor(expected, dtype=torch.float64), rtol=tol, atol=tol
    )


# ---- advantages


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("grpo", {}),
        ("grpo", {"ddof": 0, "eps": 1e-4}),
        ("dr-grpo", {}),
        ("rloo", {}),
        ("batch-std", {}),
        ("batch-std", {"ddof": 0}),
    ],
)
def test_advantages(seed: int, kind: str, options: dict[str, Any]) -> None:
    table, rewards, _ = batch(seed)
    close(bind("advantage", {"name": kind, **options})(table), grpo.advantages(rewards, KEY, kind, **options))


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("options", [{}, {"gamma": 0.9}, {"gamma": 0.95, "beta_kl": 0.2}])
def test_reinforce_pp(seed: int, options: dict[str, float]) -> None:
    table, rewards, mask = batch(seed)
    k1 = (table["old_logp_nt"] - table["ref_logp_nt"]).tolist()
    expected = grpo.reinforce_pp(rewards, mask, k1=k1, **options)
    close(bind("advantage", {"name": "reinforce-pp", **options})(table), expected)
    close(bind("advantage", "reinforce-pp-baseline")(table), grpo.reinforce_pp_baseline(rewards, KEY, mask))


def test_overlong_penalty() -> None:
    lengths = [0.0, 10.0, 15.0, 15.5, 19.9, 20.0, 20.1, 40.0]
    got = overlong_penalty(length_n=torch.tensor(lengths, dtype=torch.float64), max_length=20, cache=5)
    close(got, [grpo.overlong_penalty(length, 20, 5) for length in lengths])


# ---- whole recipes: loss and gradient


def toolkit(name: str, table: Table, **options: Any) -> tuple[torch.Tensor, torch.Tensor]:
    recipe = parse(name, recipes.read(name), options={k.replace("__", "."): v for k, v in options.items()})
    objective = Objective(recipe, channel="tokens", unit="decision", provides=PROVIDES)
    table = objective.widths_and_weights(objective.prepare(table))
    leaf = table["logp_nt"].clone().requires_grad_()
    coef, counts = objective.coefficients(table)
    loss = objective.terms(table.updated({"logp_nt": leaf}), coef, counts).loss()
    (grad,) = torch.autograd.grad(loss, [leaf])
    return loss.detach(), grad


REFERENCE: dict[str, dict[str, Any]] = {
    "dr-grpo": {"gate": "ppo-clip", "mode": "seq-mean-token-sum-norm", "kind": "dr-grpo"},
    "dapo": {"gate": "ppo-clip", "mode": "token-mean", "kind": "grpo", "high": 0.28},
    "rloo": {"gate": "reinforce", "mode": "seq-mean-token-sum", "kind": "rloo"},
    "gspo": {"gate": "gspo", "mode": "seq-mean-token-mean", "kind": "grpo", "low": 3e-4, "high": 4e-4},
    "cispo": {"gate": "cispo", "mode": "token-mean", "kind": "grpo", "high": 0.28},
    "reinforce-pp": {"gate": "ppo-clip", "mode": "token-mean", "kind": "reinforce-pp"},
}


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("name", REFERENCE)
def test_recipes(name: str, seed: int) -> None:
    table, rewards, mask = batch(seed)
    spec = REFERENCE[name]
    if name == "dapo":  # the recipe shapes the reward first
        rewards = [r + grpo.overlong_penalty(sum(m), T, T / 5) for r, m in zip(rewards, mask)]
        table = table.updated({"length_n": torch.tensor([sum(m) for m in mask])})
    if spec["kind"] == "reinforce-pp":
        adv = grpo.reinforce_pp(rewards, mask)
    else:
        adv = [[a] * T for a in grpo.advantages(rewards, KEY, spec["kind"])]
    leaf = table["logp_nt"].clone().requires_grad_()
    widths = {k: spec[k] for k in ("low", "high") if k in spec}
    loss_nt = grpo.policy_loss(spec["gate"], leaf, table["old_logp_nt"], adv, mask, **widths)
    loss = grpo.aggregate(loss_nt, mask, spec["mode"], length=T)
    (expected,) = torch.autograd.grad(loss, [leaf])
    got, grad = toolkit(name, table)
    close(got, loss.detach())
    close(grad, expected)
    assert grad.abs().max() > 1e-3


@pytest.mark.parametrize("seed", SEEDS)
def test_grpo_with_kl_or_dual_clip(seed: int) -> None:
    table, rewards, mask = batch(seed)
    leaf = table["logp_nt"].clone().requires_grad_()
    loss = grpo.grpo_loss(leaf, table["old_logp_nt"], table["ref_logp_nt"], rewards, KEY, mask)
    (expected,) = torch.autograd.grad(loss, [leaf])
    got, grad = toolkit("grpo", table)
    close(got, loss.detach())
    close(grad, expected)
    adv = [[a] * T for a in grpo.advantages(rewards, KEY)]
    loss_nt = grpo.policy_loss("ppo-clip", leaf, table["old_logp_nt"], adv, mask, dual_clip=1.5)
    loss = grpo.aggregate(loss_nt, mask, "seq-mean-token-mean")
    close(toolkit("grpo", table, gate__dual_clip=1.5, penalties__kl__coef=0.0)[0], loss.detach())


@pytest.mark.parametrize("estimator", ["k1", "k2", "k3", "k3+"])
def test_kl_estimators(estimator: str) -> None:
    table, _, _ = batch(0)
    got = bind("penalty", {"name": "kl", "estimator": estimator})(table)
    for i, t in ((0, 0), (3, 4), (7, 5)):
        close(got[i, t], grpo.kl(table["logp_nt"][i, t], table["ref_logp_nt"][i, t], estimator))


@pytest.mark.parametrize("seed", SEEDS)
def test_visual_rft_loss(seed: int) -> None:
    """One group, on-policy, as the official trainer computes it."""
    g = torch.Generator().manual_seed(seed)
    logp = -torch.rand(6, 5, generator=g, dtype=torch.float64)
    ref = logp + 0.2 * torch.randn(6, 5, generator=g, dtype=torch.float64)
    mask = torch.arange(5) < torch.randint(1, 6, (6, 1), generator=g)
    rewards = torch.rand(6, generator=g, dtype=torch.float64)
    leaf = logp.clone().requires_grad_()
    loss = visual_rft.group_loss(leaf, ref, rewards.tolist(), mask)
    (expected,) = torch.autograd.grad(loss, [leaf])
    channels = {"logp_nt": logp, "ref_logp_nt": ref, "mask_nt": mask, "reward_n": rewards}
    got, grad = toolkit("visual-rft", Table(channels, {"prompt": torch.zeros(6, dtype=torch.long)}))
    close(got, loss.detach())
    close(grad, expected)


# ---- rewards


def completion(boxes: list[tuple[list[int], float]]) -> str:
    answer = ", ".join(f"{{'Position': {b}, 'Confidence': {c}}}" for b, c in boxes)
    return f"<think>looking</think><answer>[{answer}]</answer>"


def box(rng: random.Random) -> list[int]:
    x, y = rng.randrange(0, 60, 10), rng.randrange(0, 60, 10)
    return [x, y, x + rng.randrange(10, 50, 5), y + rng.randrange(10, 50, 5)]


@pytest.mark.parametrize("seed", range(40))
def test_detection_rewards(seed: int) -> None:
    rng = random.Random(seed)
    truth = [box(rng) for _ in range(rng.randrange(1, 4))]
    near = [[c + rng.choice([0, 0, 1, 3]) for c in b] for b in truth]
    said = [(b, rng.randrange(0, 101) / 100) for b in near + [box(rng) for _ in range(rng.randrange(0, 3))]]
    rng.shuffle(said)
    text = completion(said)
    record = Record(id="r", task="detection", prompt="?", answer=[{"Position": b} for b in truth])
    pairs = [tuple(b) for b in truth]
    for divisor in ("max", "predictions"):
        got = detection.iou_reward([text], [record], [{}], divisor=divisor)  # type: ignore[arg-type]
        close(got[0], visual_rft.iou_reward(text, pairs, divisor))
    close(detection.confidence_reward([text], [record], [{}])[0], visual_rft.confidence_reward(text, pairs))
    corners = f"<answer>({said[0][0][0]},{said[0][0][1]}),({said[0][0][2]},{said[0][0][3]})</answer>"
    ground = Record(id="g", task="grounding", prompt="?", answer=truth[0])
    close(grounding.giou_reward([corners], [ground], [{}])[0], visual_rft.grounding_reward(corners, pairs[0]))


def test_the_worked_example_of_the_method() -> None:
    truth = [(0, 0, 100, 100), (200, 200, 300, 300)]
    text = completion([([0, 0, 100, 80], 0.9), ([210, 210, 310, 310], 0.6), ([500, 500, 520, 520], 0.3)])
    for divisor in ("max", "predictions"):
        close(visual_rft.iou_reward(text, truth, divisor), 0.493557, 1e-6)
    close(visual_rft.confidence_reward(text, truth), 2.2 / 3, 1e-9)
    close(visual_rft.detection_reward(text, truth), 2.226891, 1e-6)


@pytest.mark.parametrize(
    ("text", "label"),
    [
        ("<think>a</think> <answer>Boeing 747</answer>", "boeing_747"),
        ("<think>a</think><answer></answer>", "boeing"),
        ("Boeing", "boeing 747"),
        ("<think>a</think>\n<answer>A\nB</answer>", "ab"),
    ],
)
def test_label_and_format(text: str, label: str) -> None:
    record = Record(id="r", task="classification", prompt="?", answer=label)
    assert label_reward([text], [record], [{}]) == [visual_rft.label_reward(text, label)]
    assert format_reward([text], [record], [{}]) == [visual_rft.format_reward(text)]
