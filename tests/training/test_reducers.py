"""Logit reducers and per-update noise reach a policy through stages, without the policy knowing them."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

from mmrl.core.channels import CHANNELS
from mmrl.core.objective import Objective
from mmrl.core.recipe import parse
from mmrl.core.reducers import REDUCERS, reducer
from mmrl.core.registry import _STAGES, stage
from mmrl.core.streams import Streams
from mmrl.errors import UserError
from mmrl.selection.request import Request
from mmrl.training.batch import Scored, table_of
from mmrl.training.policy import Bundle, Needs, Piece
from mmrl.training.update import evaluate, needs_of, streaming_update

sys.path.insert(0, str(Path(__file__).parent))
from toy import ToyPolicy, records, zeros

PLAIN = {"advantage": "grpo", "gate": "reinforce", "reduce": "token-mean"}


class Reducing(ToyPolicy):
    """The toy policy with a head walk: it calls whatever reducers it is handed."""

    def evaluate(self, piece: Piece, shared, needs: Needs):
        out = super().evaluate(piece, shared, needs)
        rollouts = piece.data
        prompts = torch.stack([self._prompt(rollouts.records[int(i)]) for i in piece.rows])
        logits = (prompts @ self.shared)[:, None, :] + self.own
        for name, fn in needs.reducers.items():
            out[name] = fn(logits, logits)
        return out


@pytest.fixture
def peak(monkeypatch: pytest.MonkeyPatch):
    """A reducer (largest probability) and a weight that reads it; unregistered afterwards."""
    monkeypatch.setattr("mmrl.core.reducers.REDUCERS", REDUCERS)

    @reducer("peak_nt", meaning="largest probability", scope="group")
    def peak_of(logits_ncv, hidden_ncd):
        return logits_ncv.softmax(-1).amax(-1)

    @stage("weight", "peak")
    def weight(*, peak_nt: torch.Tensor, power: float = 1.0) -> torch.Tensor:
        return peak_nt.detach() ** power

    yield
    del REDUCERS["peak_nt"], CHANNELS["peak_nt"], _STAGES["weight", "peak"]


def test_a_stage_asks_for_a_reducer_by_channel_name(peak: None) -> None:
    policy = Reducing(cut="prompts")
    rollouts = policy.rollout([Request(record=r, n=3) for r in records(2)], Streams(0, 0))
    reward = torch.tensor(zeros(rollouts.outputs, rollouts.records, rollouts.info), dtype=torch.float64)
    scored = Scored(rollouts, (reward + torch.arange(6) * 0.1)[:, None], torch.ones(1).double(), ["zeros"])
    recipe = parse("mine", {**PLAIN, "weight": ["peak"]})
    objective = Objective(recipe, channel="tokens", unit="decision", provides=policy.provides)
    assert objective.scope == "group"
    assert objective.needs()[""] == {"logp_nt", "peak_nt"}
    table = objective.prepare(table_of(scored, "tokens"))
    got = streaming_update(policy, objective, rollouts, table, channel="tokens").loss
    tables = evaluate(policy, rollouts, {"logp_nt", "peak_nt"}, channel="tokens")
    mask = table["mask_nt"]
    expected = (-(table["adv_nt"] * tables["logp_nt"] * tables["peak_nt"]) * mask).sum() / mask.sum()
    assert got == pytest.approx(float(expected), abs=1e-12)
    assert needs_of(policy, "tokens", {"logp_nt", "peak_nt"}).reducers.keys() == {"peak_nt"}


def objective_of(changes: dict, **names) -> Objective:
    recipe = parse("mine", {**PLAIN, **changes})
    return Objective(recipe, channel="tokens", unit="decision", provides=frozenset({"logp_nt"}), **names)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"advantage": {"name": "grpo", "key": "promt"}}, "no key 'promt'.*did you mean 'prompt'"),
        ({"gate": {"name": "ppo-clip", "level": "segment:trn"}}, "no segment 'trn'.*did you mean 'turn'"),
        ({"weight": ["tis"], "experience": "records"}, "nothing here is sampled"),
        ({"penalties": ["entropy"]}, "needs entropy_nt"),
    ],
)
def test_what_rollouts_cannot_carry_is_refused_before_weights_load(changes: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        objective_of(changes, keys=frozenset({"prompt", "task"}), segments=frozenset({"turn"}))


class Noisy(ToyPolicy):
    """Records which update index each evaluation was made for."""

    noise_per_update = True

    def __init__(self) -> None:
        super().__init__(cut="whole")
        self.asked: list[int] = []

    def bundles(self, rollouts, *, channel, update, scope) -> list[Bundle]:
        self.asked.append(update)
        return super().bundles(rollouts, channel=channel, update=update, scope=scope)


def test_old_and_reference_passes_follow_the_noise_of_each_update(monkeypatch: pytest.MonkeyPatch) -> None:
    from mmrl import config_io, families, recipes
    from mmrl.rewards.registry import reward
    from mmrl.rewards.score import Scorer
    from mmrl.selection.uniform import Uniform
    from mmrl.training.trainer import Trainer

    monkeypatch.setitem(families.FAMILIES, "toy", families.Family("toy", config="toy_config", entry="toy_family"))
    reward("zeros", tasks=("toy",))(zeros)
    config = config_io.build(
        {
            "family": "toy",
            "recipe": "grpo",
            "data": {"train": "toy:train"},
            "rewards": {"components": [{"name": "zeros"}]},
            "train": {"prompts": 2, "group": 3, "epochs": 2},
        },
        folder=Path.cwd(),
    )
    policy = Noisy()
    selector = Uniform(records(), prompts=2, group=3, seed=0)
    recipe = parse("grpo", recipes.read("grpo"), unit="decision")
    Trainer(config, recipe, policy, selector, Scorer(config.rewards, tasks={"toy"}), lambda message: None).step()
    # old and reference at update 0, then at update 1, then the two updates themselves
    assert policy.asked[:4] == [0, 0, 1, 1] and policy.asked[4:6] == [0, 1]
