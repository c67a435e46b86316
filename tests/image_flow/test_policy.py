"""The flow policy on a toy model: likelihoods, pieces, windows, guidance, projections."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from toy_model import ToyModel

from image_gen.flow.config import Inputs, Model, Sampling
from image_gen.flow.policy import FlowPolicy
from mmrl.core.streams import Streams
from mmrl.data.records import Record
from mmrl.errors import RecordError, UserError
from mmrl.training.policy import Needs
from mmrl.training.rollouts import Request
from mmrl.training.update import evaluate

RECORDS = [Record("a", "image", "a toe"), Record("b", "image", "one oak")]


def policy_of(*, model: ToyModel | None = None, seed: int = 0, **sampling: Any) -> FlowPolicy:
    inputs = {"height": 4, "width": 4} | sampling.pop("inputs", {})
    options = Model.model_validate({"path": "toy", "adapter": {"kind": "none"}} | sampling.pop("options", {}))
    return FlowPolicy(
        model or ToyModel(seed=seed),
        options=options,
        sampling=Sampling.model_validate({"steps": 6, "guidance": 2.0, "eval_steps": 9} | sampling),
        inputs=Inputs.model_validate(inputs),
    )


def rolled(policy: FlowPolicy, n: int = 3, step: int = 0, **kwargs: Any) -> Any:
    return policy.rollout([Request(r, n) for r in RECORDS], Streams(0, step), **kwargs)


RULES = [{"rule": "sde", "noise": 0.7}, {"rule": "cps", "noise": 0.8}, {"rule": "dance", "noise": 0.3}]


@pytest.mark.parametrize("rule", RULES, ids=lambda r: str(r["rule"]))
@pytest.mark.parametrize("rows", [1, 2, 5, 64])
def test_the_update_sees_the_samplers_likelihood_whatever_the_batch_shapes(rule: dict[str, Any], rows: int) -> None:
    policy = policy_of(**rule, batch_rows=4, options={"piece_rows": rows})
    rollouts = rolled(policy)
    tables = rollouts.tables["steps"]
    found = evaluate(policy, rollouts, {"logp_nt"}, channel="steps")["logp_nt"]
    mask = tables["mask_nt"]
    assert mask.sum() == 6 * 5  # all steps but the last
    torch.testing.assert_close(found[mask].exp(), tables["sampler_logp_nt"][mask].exp(), rtol=1e-5, atol=1e-6)
    ratio = (found - tables["sampler_logp_nt"])[mask].exp()
    assert float((ratio - 1).abs().max()) < 1e-5


def test_a_picture_depends_on_seed_prompt_and_number_only() -> None:
    many, few = policy_of(batch_rows=16), policy_of(batch_rows=1)
    a, b = rolled(many), rolled(few)
    for one, other in zip(a.outputs, b.outputs, strict=True):
        torch.testing.assert_close(one, other)
    alone = few.rollout([Request(RECORDS[1], 1, first_sample=2)], Streams(0, 0))
    torch.testing.assert_close(alone.outputs[0], a.outputs[5])


def test_only_the_window_is_stochastic_kept_and_trained() -> None:
    policy = policy_of(window={"name": "first", "options": {"n": 2}})
    rollouts = rolled(policy)
    assert rollouts.tables["steps"]["mask_nt"].tolist() == [[True, True, False, False, False, False]] * 6
    assert all(sorted(row.states) == [0, 1, 2] and not row.means for row in rollouts.rows)
    pieces = [p for b in policy.bundles(rollouts, channel="steps", update=0, scope="row") for p in b.pieces]
    assert [int(p.columns[0]) for p in pieces if p.columns is not None] == [0, 1]
    assert [row["length"] for row in rollouts.info] == [2] * 6


def test_the_window_of_a_step_is_the_same_for_all_and_changes_with_the_step() -> None:
    policy = policy_of(window={"name": "random", "options": {"width": 1}}, batch_rows=2)
    starts = set()
    for step in range(12):
        mask = rolled(policy, step=step).tables["steps"]["mask_nt"]
        assert bool((mask == mask[0]).all()) and int(mask[0].sum()) == 1
        starts.add(int(mask[0].int().argmax()))
    assert len(starts) > 2


def test_noiseless_pictures_are_the_euler_path_of_diffusers() -> None:
    from diffusers import FlowMatchEulerDiscreteScheduler

    policy = policy_of(guidance=1.0, eval_steps=7)
    rollouts = rolled(policy, n=1, greedy=True)
    scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0)
    scheduler.set_timesteps(7)
    model = policy.model
    told = model.collate(policy.conditions([str(r.prompt) for r in RECORDS]))
    x_n = torch.stack([torch.randn(1, 4, 4, generator=Streams(0, 0).generator(r.id, 0)) for r in RECORDS])
    with torch.no_grad():
        for i, t in enumerate(scheduler.timesteps):
            v_n = model.velocity(x_n, float(scheduler.sigmas[i]), told, height=4, width=4, scale=None)
            x_n = scheduler.step(v_n, t, x_n, return_dict=False)[0]
    expected = model.decode(x_n, height=4, width=4)
    torch.testing.assert_close(torch.stack(rollouts.outputs), expected, rtol=1e-6, atol=1e-6)
    assert not rollouts.tables["steps"]["mask_nt"].any()
    assert bool(rollouts.tables["steps"]["sampler_logp_nt"].isnan().all())


def test_guidance_mixes_both_halves_and_one_is_a_single_forward() -> None:
    calls: list[int] = []
    model = ToyModel()
    plain = model.velocity

    def counted(x_n: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        calls.append(len(x_n))
        return plain(x_n, *args, **kwargs)

    model.velocity = counted  # type: ignore[method-assign]
    policy = policy_of(model=model, guidance=1.0)
    x_n = torch.randn(2, 1, 4, 4)
    conditional = policy._velocity(["a", "b"], greedy=False)(x_n, 0.5)
    assert calls == [2]
    mixed = policy_of(model=model, guidance=3.0)
    nothing = mixed._plain_velocity([type("P", (), {"prompt": ""})()] * 2)(x_n, 0.5)
    both = mixed._velocity(["a", "b"], greedy=False)(x_n, 0.5)
    torch.testing.assert_close(both, nothing + 3 * (conditional - nothing))
    assert calls[-1] == 4


def test_no_gradient_through_the_unconditional_half_when_asked() -> None:
    x_n = torch.randn(2, 1, 4, 4)
    slopes = []
    for detach in (False, True):
        policy = policy_of(guidance=3.0, options={"detach_uncond": detach})
        value = policy._velocity(["a", "b"], greedy=False)(x_n, 0.5)
        value.sum().backward()
        slopes.append(policy.model.transformer.outer.bias.grad.clone())  # type: ignore[union-attr]
    assert float(slopes[0].sum()) == pytest.approx(2 * 16)  # (1 - w) + w = 1 for each element
    assert float(slopes[1].sum()) == pytest.approx(3 * 2 * 16)  # w of the conditional half alone


def test_closed_form_kl_to_the_weights_of_step_0() -> None:
    policy = policy_of()
    policy.keep_reference("steps")
    rollouts = rolled(policy)
    assert float(evaluate(policy, rollouts, {"kl_nt"}, channel="steps")["kl_nt"].abs().max()) == 0
    with torch.no_grad():
        policy.model.transformer.outer.bias += 0.3  # type: ignore[operator]
    found = evaluate(policy, rollouts, {"kl_nt"}, channel="steps")["kl_nt"]
    exact = policy_of(model=policy.model, options={"kl_form": "exact"})  # type: ignore[arg-type]
    exact._reference = policy._reference
    tables = rollouts.tables["steps"]
    scaled = evaluate(exact, rollouts, {"kl_nt"}, channel="steps")["kl_nt"] * -tables["dt_nt"]
    mask = tables["mask_nt"]
    assert float(found[mask].min()) > 0
    torch.testing.assert_close(found[mask], scaled[mask].float(), rtol=1e-5, atol=1e-7)
    # the velocity moved by 0.3 everywhere (both halves), so the mean by its coefficient times 0.3
    v = policy.rule.coefficients(sigma=policy.sigma_s[:-1], sigma_next=policy.sigma_s[1:])
    expected = (0.3 * v.velocity / v.diffusion).square() / 2
    torch.testing.assert_close(found[0, :5].double(), expected[:5], rtol=1e-4, atol=1e-7)


def test_means_are_kept_for_the_guard_only_and_agree_at_first() -> None:
    policy = policy_of()
    policy.expect(frozenset({"mean_gap_nt"}))
    rollouts = rolled(policy)
    found = evaluate(policy, rollouts, {"mean_gap_nt"}, channel="steps")["mean_gap_nt"]
    assert float(found.abs().max()) < 1e-12
    with torch.no_grad():
        policy.model.transformer.outer.bias += 0.3  # type: ignore[operator]
    found = evaluate(policy, rollouts, {"mean_gap_nt"}, channel="steps")["mean_gap_nt"]
    assert float(found[:, :5].min()) > 0
    with pytest.raises(UserError, match="cps drops its factor"):
        policy_of(rule="cps").expect(frozenset({"mean_gap_nt"}))


def test_projections_cost_no_forward_and_end_in_the_picture() -> None:
    policy = policy_of(window={"name": "random", "options": {"width": 2, "low": 1, "end": 3}})
    plain = rolled(policy)
    policy.expect(frozenset({"reward_ntk"}))
    rollouts = rolled(policy)
    assert rollouts.stats["forwards"] == plain.stats["forwards"]
    for row, picture in zip(rollouts.steps, rollouts.outputs, strict=True):
        assert [cell is not None for cell in row] == [False, True, True, True, True, True]
        torch.testing.assert_close(row[-1], picture)
    assert rollouts.tables["steps"]["scored_nt"][0].tolist() == [False, True, True, True, True, True]
    # x0_hat = x - sigma v of the state after the step, with the sampler's own velocity
    state = rollouts.rows[0].states[2][None]
    level = float(policy.sigma_s[2])
    with torch.no_grad():
        v_n = policy._velocity([rollouts.rows[0].prompt], greedy=False)(state, level)
    expected = policy.model.decode(state - level * v_n, height=4, width=4)[0]
    torch.testing.assert_close(rollouts.steps[0][1], expected, rtol=1e-5, atol=1e-6)


def test_every_other_projection_and_always_the_first_and_the_last() -> None:
    policy = policy_of(score_every=2)
    policy.expect(frozenset({"reward_ntk"}))
    rollouts = rolled(policy)
    assert [cell is not None for cell in rollouts.steps[0]] == [True, True, False, True, False, True]


def test_the_same_first_noise_in_a_group_and_its_own_path() -> None:
    rollouts = rolled(policy_of(same_noise=True))
    first = [row.states[0] for row in rollouts.rows]
    assert torch.equal(first[0], first[2]) and not torch.equal(first[0], first[3])
    assert not torch.equal(rollouts.rows[0].states[1], rollouts.rows[1].states[1])


def test_latents_that_are_not_finite_are_left_out_and_told() -> None:
    model = ToyModel()
    plain = model.velocity

    def broken(x_n: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        v_n = plain(x_n, *args, **kwargs)
        return torch.cat([v_n[:-1], v_n[-1:] * float("nan")]) if len(v_n) == 6 else v_n

    model.velocity = broken  # type: ignore[method-assign]
    rollouts = rolled(policy_of(model=model, guidance=1.0))
    assert [("unusable" in info) for info in rollouts.info] == [False] * 5 + [True]
    assert rollouts.tables["steps"]["mask_nt"].any(1).tolist() == [True] * 5 + [False]


def test_encoders_go_when_all_prompts_fit_and_stay_otherwise() -> None:
    small = policy_of()
    assert small.meet(RECORDS) == []
    assert small.model.freed and small.model.encoded == ["", "a toe", "one oak"]  # type: ignore[attr-defined]
    with pytest.raises(UserError, match="was not among the run's prompts"):
        small.conditions(["another"])
    large = policy_of(inputs={"cached_prompts": 1})
    told = large.meet([*RECORDS, Record("c", "image", "x" * 50)])
    assert len(told) == 2 and "1 of 3 prompts are longer" in told[0] and "the encoders stay" in told[1]
    assert len(large.conditions(["a toe", "one oak"])) == 2 and not large.model.freed  # type: ignore[attr-defined]


def test_imitation_of_pictures() -> None:
    policy = policy_of()
    records = [
        Record("p", "image", "a", images=(torch.rand(3, 4, 4),)),
        Record("q", "image", "b", images=(torch.rand(3, 4, 4),)),
    ]
    rollouts = policy.demonstrations(records, Streams(0, 3))
    (bundle,) = policy.bundles(rollouts, channel="steps", update=0, scope="decision")
    found = policy.evaluate(bundle.pieces[0], None, Needs(frozenset({"supervised_nt"})))["supervised_nt"]
    one = rollouts.rows[0]
    told = policy.model.collate(policy.conditions(["a"]))
    v = policy.model.velocity(one.state[None], one.sigma, told, height=4, width=4, scale=None)[0]
    torch.testing.assert_close(found[0, 0], (v - (one.noise - one.latent)).square().mean())
    with pytest.raises(RecordError, match="no picture to imitate"):
        policy.demonstrations([RECORDS[0]], Streams(0, 0))


def test_what_cannot_work_is_refused() -> None:
    with pytest.raises(UserError, match="window 'first' has no option 'm'"):
        policy_of(window={"name": "first", "options": {"m": 2}})
    with pytest.raises(UserError, match="is not 4 x 4"):
        policy_of(inputs={"height": 5})
    with pytest.raises(RecordError, match="plain text, not as chat messages"):
        policy_of().rollout([Request(Record("m", "image", [{"role": "user"}]), 1)], Streams(0, 0))
