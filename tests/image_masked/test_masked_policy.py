"""The masked policy on a toy model: both likelihoods, pieces, overrides, what gets gradient, checkpoints."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from toy_tokens import CODEBOOK, ToyTokens, policy_over

from image_gen.masked.config import Inputs, Model, Sampling
from image_gen.masked.policy import MaskedPolicy
from mmrl.core.streams import Streams
from mmrl.data.records import Record
from mmrl.errors import RecordError, UserError
from mmrl.masked.steps import check_partition
from mmrl.training.policy import Needs
from mmrl.training.rollouts import Request, Rollouts
from mmrl.training.update import evaluate

RECORDS = [Record("a", "image", "a toe"), Record("b", "image", "one oak")]


def policy_of(*, model: ToyTokens | None = None, schedule: Any = None, **sampling: Any) -> MaskedPolicy:
    inputs = {"height": 4, "width": 4} | sampling.pop("inputs", {})
    options = {"path": "toy", "adapter": {"kind": "none"}, "schedule": schedule or {}} | sampling.pop("options", {})
    policy: MaskedPolicy = policy_over(
        model or ToyTokens(),
        Model.model_validate(options),
        Sampling.model_validate({"steps": 5, "explore": True, "batch_rows": 4} | sampling),
        Inputs.model_validate(inputs),
    )
    return policy


def rolled(policy: MaskedPolicy, n: int = 3, step: int = 0, **kwargs: Any) -> Rollouts:
    return policy.rollout([Request(r, n) for r in RECORDS], Streams(0, step), **kwargs)


def shaken(policy: MaskedPolicy) -> MaskedPolicy:
    """A schedule whose mean is not the base's: a net's last layer (it is zero at the start), a table's means."""
    with torch.no_grad():
        for p in [p for p in policy.parameters_of("schedule") if not bool(p.any())]:
            scale = 0.3 if p.shape[-1] == 4 else 0.02
            p.add_(scale * torch.randn(p.shape, generator=torch.Generator().manual_seed(1)).to(p))
    return policy


KINDS: list[dict[str, Any]] = [
    {},
    {"kind": "net"},
    {"smooth": 0.5},
    {"base": "adanat"},
    {"learn": ["ratio", "sample"]},
    {"deviation": {"learned": True}},
]


@pytest.mark.parametrize("schedule", KINDS, ids=str)
@pytest.mark.parametrize("rows", [1, 4, 64])
def test_the_update_sees_the_samplers_likelihoods_whatever_the_batch_shapes(
    schedule: dict[str, Any], rows: int
) -> None:
    policy = shaken(policy_of(schedule=schedule, options={"piece_rows": rows}))
    rollouts = rolled(policy)
    for channel, width in (("tokens", 16), ("schedule", 4)):
        table = rollouts.tables[channel]
        assert table["mask_nt"].shape == (6, width) and bool(table["mask_nt"].all())
        found = evaluate(policy, rollouts, {"logp_nt"}, channel=channel)["logp_nt"]
        ratio = (found - table["sampler_logp_nt"]).exp()
        assert float((ratio - 1).abs().max()) < 1e-5
        assert float(table["sampler_logp_nt"].std()) > 0.01


def test_a_row_tells_all_that_its_likelihood_needs() -> None:
    policy = shaken(policy_of())
    rollouts = rolled(policy)
    steps_nl = torch.stack([row.steps for row in rollouts.rows])
    check_partition(steps_nl, torch.ones_like(steps_nl, dtype=torch.bool))
    for row in rollouts.rows:
        assert row.raw.shape == row.value.shape == (5, 4)
        assert bool((row.raw[-1] == 0).all()) and bool((row.raw[:-1] != 0).all())
        assert int(row.ids.max()) < CODEBOOK
    assert torch.equal(rollouts.segments["tokens"]["step"], steps_nl)
    assert rollouts.info[0] == {"length": 5, "limit": 5, "finished": True, "sample": 0}


def test_a_picture_depends_on_seed_prompt_and_number_only() -> None:
    many, few = policy_of(batch_rows=16), policy_of(batch_rows=1)
    a, b = rolled(many), rolled(few)
    for one, other in zip(a.rows, b.rows, strict=True):
        assert torch.equal(one.ids, other.ids) and torch.equal(one.raw, other.raw)
    alone = few.rollout([Request(RECORDS[1], 1, first_sample=2)], Streams(0, 0))
    assert torch.equal(alone.rows[0].ids, a.rows[5].ids)
    assert not torch.equal(rolled(many, step=1).rows[0].raw, a.rows[0].raw)


def test_pieces_are_single_steps_that_fill_the_table_once() -> None:
    policy = policy_of(options={"piece_rows": 4})
    rollouts = rolled(policy)
    bundles = policy.bundles(rollouts, channel="tokens", update=0, scope="decision")
    total = torch.zeros(6, 16, dtype=torch.long)
    for piece in (p for b in bundles for p in b.pieces):
        assert piece.own is not None and bool(piece.own.any(1).all()) and len(piece.rows) <= 4
        total[piece.rows] += piece.own.long()
    assert bool((total == 1).all())
    assert sum(len(b.pieces) for b in policy.bundles(rollouts, channel="schedule", update=0, scope="decision")) == 1
    net = policy_of(schedule={"kind": "net"}, options={"piece_rows": 4})
    assert len(net.bundles(rolled(net), channel="schedule", update=0, scope="decision")) == 2 * 4


def test_each_channel_sends_gradient_to_its_own_parameters_only() -> None:
    for kind in ("table", "net"):
        policy = shaken(policy_of(schedule={"kind": kind}))
        rollouts = rolled(policy)
        theta, phi = policy.parameters_of("tokens"), policy.parameters_of("schedule")
        assert not {id(p) for p in theta} & {id(p) for p in phi}
        for channel, own, other in (("tokens", theta, phi), ("schedule", phi, theta)):
            for bundle in policy.bundles(rollouts, channel=channel, update=0, scope="decision"):
                raw = policy.evaluate(bundle.pieces[0], None, Needs(frozenset({"logp_nt"})))
                raw["logp_nt"].sum().backward()
            assert any(p.grad is not None and bool(p.grad.any()) for p in own)
            assert all(p.grad is None for p in other)
            for p in own:
                p.grad = None


def test_the_mean_schedule_starts_at_the_hand_made_one() -> None:
    from diffusers import AmusedScheduler

    policy = policy_of(eval_steps=8)
    row = rolled(policy, n=1, greedy=True).rows[0]
    scheduler = AmusedScheduler(mask_token_id=6)
    scheduler.set_timesteps(8)
    assert torch.equal(row.value[:, 1], scheduler.temperatures)
    assert row.value[:, 2].tolist() == [1.0] * 8 and row.value[:, 3].tolist() == [1.5] * 8
    left = [int((row.steps > t).sum()) for t in range(8)]
    assert left == [15, 14, 13, 11, 8, 6, 3, 0]  # floor(16 cos(pi (t + 1) / 16))
    assert bool((row.raw == 0).all())


def test_requests_may_change_steps_schedule_and_guidance_and_nothing_else() -> None:
    policy = shaken(policy_of())
    learned = policy.rollout([Request(RECORDS[0], 1, sampling={"steps": 3})], Streams(0, 0), greedy=True).rows[0]
    base = policy.rollout(
        [Request(RECORDS[0], 1, sampling={"steps": 3, "schedule": "base"})], Streams(0, 0), greedy=True
    ).rows[0]
    assert learned.n_steps == base.n_steps == 3
    assert bool((learned.raw[:-1] != 0).all()) and bool((base.raw == 0).all())
    guided = {"schedule": "base", "guidance": 7.0}
    assert policy.rollout([Request(RECORDS[0], 1, sampling=guided)], Streams(0, 0)).rows[0].value[0, 3] == 7.0
    for wrong, what in (({"step": 3}, "nearest|steps"), ({"steps": 0}, "at least 1"), ({"schedule": "x"}, "learned")):
        with pytest.raises(UserError, match=what):
            policy.rollout([Request(RECORDS[0], 1, sampling=wrong)], Streams(0, 0))


def test_guidance_of_one_runs_one_half() -> None:
    model = ToyTokens()
    policy = policy_of(model=model, guidance=1.0, explore=False)
    rollouts = rolled(policy)
    assert set(model.calls) == {4, 2} and rollouts.stats["forwards"] == 5 * 6
    evaluate(policy, rollouts, {"logp_nt"}, channel="tokens")
    assert max(model.calls) == 6
    assert "schedule" not in rollouts.tables
    model.calls.clear()
    assert rolled(policy_of(model=model, explore=False)).stats["forwards"] == 2 * 5 * 6
    assert set(model.calls) == {8, 4}


def test_no_gradient_through_the_unconditional_half_if_asked() -> None:
    grads = []
    for detach in (False, True):
        policy = policy_of(explore=False, guidance=3.0, options={"detach_uncond": detach})
        rollouts = rolled(policy)
        for bundle in policy.bundles(rollouts, channel="tokens", update=0, scope="decision"):
            raw = policy.evaluate(bundle.pieces[0], None, Needs(frozenset({"logp_nt"})))
            raw["logp_nt"].sum().backward()
        grads.append(torch.cat([p.grad.flatten() for p in policy.parameters_of("tokens") if p.grad is not None]))
    assert grads[0].shape == grads[1].shape and not torch.allclose(grads[0], grads[1], rtol=1e-2)


def test_one_step_and_no_action() -> None:
    policy = policy_of(steps=1)
    rollouts = rolled(policy)
    assert rollouts.tables.keys() == {"tokens"} and all(bool((r.steps == 0).all()) for r in rollouts.rows)
    with pytest.raises(UserError, match="no action was drawn"):
        policy.bundles(rollouts, channel="schedule", update=0, scope="decision")


def test_training_on_some_steps_masks_the_others() -> None:
    rollouts = rolled(policy_of(train_steps=2))
    mask = rollouts.tables["tokens"]["mask_nt"]
    for i, row in enumerate(rollouts.rows):
        kept = set(row.steps[mask[i]].tolist())
        assert len(kept) == 2 and all(bool(mask[i][row.steps == step].all()) for step in kept)
        assert rollouts.info[i]["limit"] == 2
    assert len({tuple(sorted(set(r.steps[m].tolist()))) for r, m in zip(rollouts.rows, mask, strict=True)}) > 1


def test_entropy_and_the_divergence_to_the_hand_made_schedule() -> None:
    policy = shaken(policy_of())
    rollouts = rolled(policy)
    found = evaluate(policy, rollouts, {"kl_nt", "entropy_nt"}, channel="schedule")
    mean_tv = policy.parameters_of("schedule")[0].detach()[:4]
    torch.testing.assert_close(found["kl_nt"][0], (mean_tv.square() / (2 * 0.6**2)).sum(1))
    assert float(found["entropy_nt"][0, 0]) == pytest.approx(3.632451, abs=1e-5)  # 4 (ln 0.6 + (1 + ln 2 pi) / 2)
    entropy = evaluate(policy, rollouts, {"entropy_nt"}, channel="tokens")["entropy_nt"]
    assert float(entropy.min()) > 0 and float(entropy.max()) <= torch.tensor(float(CODEBOOK)).log() + 1e-5


def test_a_picture_to_imitate_is_masked_in_part_and_scored_there() -> None:
    picture = torch.tensor([[[i % CODEBOOK / (CODEBOOK - 1) for i in range(16)]]]).view(1, 4, 4).expand(3, -1, -1)
    records = [Record(f"d{i}", "image", "a toe", images=(picture,)) for i in range(40)]
    policy = policy_of(inputs={"dropped_prompts": 0.5})
    rollouts = policy.demonstrations(records, Streams(0, 0))
    mask = rollouts.tables["tokens"]["mask_nt"]
    counts = set(mask.sum(1).tolist())
    assert min(counts) >= 1 and len(counts) > 5
    assert {row.prompt for row in rollouts.rows} == {"", "a toe"}
    assert all(row.ids.tolist() == [i % CODEBOOK for i in range(16)] for row in rollouts.rows)
    found = evaluate(policy, rollouts, {"supervised_nt"}, channel="tokens")["supervised_nt"]
    assert bool((found[mask] > 0).all()) and bool((found[~mask] == 0).all())
    with pytest.raises(RecordError, match="no picture to imitate"):
        policy.demonstrations([RECORDS[0]], Streams(0, 0))


@pytest.mark.parametrize("kind", ["table", "net"])
def test_a_learned_deviation_that_moved_is_the_current_one_in_every_pass(kind: str) -> None:
    """With gradient or without, and against the deviation of the rollout the ratio is not 1."""
    policy = policy_of(schedule={"kind": kind, "deviation": {"learned": True}})
    rollouts = rolled(policy)
    with torch.no_grad():
        next(p for n, p in policy.schedule.named_parameters() if n.endswith("log_v")).add_(0.5)
    names = {"logp_nt", "kl_nt", "entropy_nt"}
    without = evaluate(policy, rollouts, names, channel="schedule")
    bundles = policy.bundles(rollouts, channel="schedule", update=0, scope="decision")
    for piece in (p for b in bundles for p in b.pieces):
        with_gradient = policy.evaluate(piece, None, Needs(frozenset(names)))
        for name, value in with_gradient.items():
            columns = slice(None) if piece.columns is None else piece.columns
            torch.testing.assert_close(value.detach(), without[name][piece.rows][:, columns])
    assert float((without["logp_nt"] - rollouts.tables["schedule"]["sampler_logp_nt"]).abs().min()) > 1e-3
    sd = 0.6 * 2.718281828**0.5
    expected = 4 * (torch.tensor(0.6 / sd).log() + (sd / 0.6) ** 2 / 2 - 0.5)
    assert float(without["kl_nt"][0, 0]) == pytest.approx(float(expected), rel=1e-5)  # to the first deviation


def test_a_falling_deviation_leaves_no_distance_to_the_hand_made_schedule() -> None:
    policy = policy_of(schedule={"deviation": {"every": 1}})
    policy.stepped("schedule")
    rollouts = rolled(policy)
    assert rollouts.rows[0].deviation.tolist() == pytest.approx([0.3] * 4)
    assert not evaluate(policy, rollouts, {"kl_nt"}, channel="schedule")["kl_nt"].any()


def test_positions_given_from_the_start_have_no_likelihood() -> None:
    policy = policy_of()
    rollouts = rolled(policy)
    for row in rollouts.rows:
        row.steps = torch.where(torch.arange(16) < 5, -1, row.steps)
    for i in (0, 1):
        rollouts.rows[i].steps = torch.full_like(rollouts.rows[i].steps, -1)  # whole from the start
    found = evaluate(policy, rollouts, {"logp_nt"}, channel="tokens")["logp_nt"]
    given = torch.stack([row.steps for row in rollouts.rows]) < 0
    assert not found[given].any() and bool((found[~given] < 0).all()) and bool(given[:2].all())


def test_state_holds_both_channels_and_the_count_of_schedule_updates() -> None:
    policy = shaken(policy_of(schedule={"deviation": {"every": 2}}))
    for _ in range(2):
        policy.stepped("tokens")
    assert float(policy.schedule.deviation()[0]) == pytest.approx(0.6)
    for _ in range(2):
        policy.stepped("schedule")
    assert float(policy.schedule.deviation()[0]) == pytest.approx(0.3)
    state = policy.state_dict()
    other = policy_of(model=ToyTokens(seed=5), schedule={"deviation": {"every": 2}})
    other.load_state_dict(state)
    a, b = rolled(policy), rolled(other)
    assert all(torch.equal(x.ids, y.ids) and torch.equal(x.raw, y.raw) for x, y in zip(a.rows, b.rows, strict=True))
    with pytest.raises(UserError, match="schedule is another one"):
        policy_of(schedule={"kind": "net"}).load_state_dict(state)


def test_a_model_that_says_nan_is_told_and_not_trained_on() -> None:
    model = ToyTokens()
    plain = model.encode
    model.encode = lambda prompts: [  # type: ignore[method-assign]
        {"told": c["told"] * (float("nan") if "oak" in p else 1)} for p, c in zip(prompts, plain(prompts), strict=True)
    ]
    rollouts = rolled(policy_of(model=model))
    assert ["unusable" in info for info in rollouts.info] == [False] * 3 + [True] * 3
    for table in rollouts.tables.values():
        assert table["mask_nt"].any(1).tolist() == [True] * 3 + [False] * 3
    assert all(bool(torch.isfinite(o).all()) for o in rollouts.outputs)
