"""Step rules: the worked numbers, their likelihoods against torch's, and what the samplers preserve."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from image_gen.flow import divergence, steps
from image_gen.flow.sigmas import sigma_table
from mmrl.errors import UserError

BOTH = pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
NOISY = [("sde", 0.7), ("cps", 0.8), ("dance", 0.3)]
TABLE = sigma_table(steps=10)


def rule(name: str, noise: float, table: Tensor = TABLE) -> steps.Rule:
    return steps.make_rule(name=name, noise=noise, sigmas=table)


def one(
    name: str, noise: float, dtype: torch.dtype = torch.float64, *, x: float = 1.0, v: float = 0.5
) -> steps.Transition:
    """The pages' scalar latent: 0.8 -> 0.6."""
    x_n, v_n = torch.full((1, 1), x, dtype=dtype), torch.full((1, 1), v, dtype=dtype)
    return steps.transition(rule=rule(name, noise), x_n=x_n, v_n=v_n, sigma=0.8, sigma_next=0.6)


def latents(seed: int = 0, shape: tuple[int, ...] = (3, 2, 4, 4), dtype: torch.dtype = torch.float64) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=generator, dtype=dtype) for _ in range(4)]


@BOTH
def test_worked_example(dtype: torch.dtype) -> None:
    step = one("sde", 0.7, dtype)
    x_next = torch.full((1, 1), 0.9, dtype=dtype)
    assert step.mean_n.dtype == dtype
    assert step.diffusion_n.item() == pytest.approx(1.4, abs=1e-6)
    assert step.dt_n.item() == pytest.approx(-0.2, abs=1e-6)
    assert step.mean_n.item() == pytest.approx(0.6305, abs=1e-6)
    assert step.std_n.item() == pytest.approx(0.626099, abs=1e-6)
    assert steps.log_prob(step=step, x_next_n=x_next).item() == pytest.approx(-0.543333, abs=1e-6)
    cps = one("cps", 0.8, dtype)
    assert cps.std_n.item() == pytest.approx(0.570634, abs=1e-6)
    assert cps.mean_n.item() == pytest.approx(0.443951, abs=1e-6)
    assert steps.log_prob(step=cps, x_next_n=x_next).item() == pytest.approx(-((0.9 - 0.443951) ** 2), abs=1e-5)
    dance = one("dance", 0.3, dtype)
    assert dance.std_n.item() == pytest.approx(0.134164, abs=1e-6)
    assert dance.mean_n.item() == pytest.approx(0.887625, abs=1e-6)


def test_the_pages_forms_of_the_means() -> None:
    """The shared linear form against each rule written out with its score and its projections."""
    x, v, _, _ = latents()
    s, t = 0.8, 0.6
    dt, a = t - s, 0.7
    x0, x1 = x - s * v, x + (1 - s) * v
    got = steps.transition(rule=rule("dance", 0.3), x_n=x, v_n=v, sigma=s, sigma_next=t).mean_n
    score = -(x - (1 - s) * x0) / s**2
    torch.testing.assert_close(got, x + dt * v - 0.5 * 0.3**2 * score * dt)
    got = steps.transition(rule=rule("sde", a), x_n=x, v_n=v, sigma=s, sigma_next=t).mean_n
    square = a**2 * s / (1 - s)
    torch.testing.assert_close(got, x * (1 + square / (2 * s) * dt) + v * (1 + square * (1 - s) / (2 * s)) * dt)
    cps = steps.transition(rule=rule("cps", a), x_n=x, v_n=v, sigma=s, sigma_next=t)
    torch.testing.assert_close(cps.mean_n, (1 - t) * x0 + (t**2 - cps.std_n**2).sqrt() * x1)


def test_the_first_step_uses_s_1_in_the_denominator_only() -> None:
    x, v, _, _ = latents()
    step = steps.transition(rule=rule("sde", 0.7), x_n=x, v_n=v, sigma=TABLE[0], sigma_next=TABLE[1])
    torch.testing.assert_close(step.diffusion_n.flatten()[0], 0.7 * (1 / (1 - TABLE[1])) ** 0.5)
    assert step.mean_n.isfinite().all()


@pytest.mark.parametrize(("name", "noise"), [("sde", 0.7), ("dance", 0.3)])
def test_log_prob_is_the_mean_of_torchs_normal(name: str, noise: float) -> None:
    x, v, x_next, _ = latents()
    step = steps.transition(rule=rule(name, noise), x_n=x, v_n=v, sigma=0.8, sigma_next=0.6)
    normal = torch.distributions.Normal(step.mean_n, step.std_n.expand_as(x))
    want = normal.log_prob(x_next).mean((1, 2, 3))
    torch.testing.assert_close(steps.log_prob(step=step, x_next_n=x_next), want)


@pytest.mark.parametrize(("name", "noise"), NOISY)
def test_sigmas_of_each_row_and_any_rank(name: str, noise: float) -> None:
    """Rows at different steps in one call equal the rows alone; [N], [N, L, D] and [N, C, H, W] agree."""
    x, v, x_next, _ = latents()
    s, t = TABLE[[1, 4, 7]], TABLE[[2, 5, 8]]
    whole = steps.transition(rule=rule(name, noise), x_n=x, v_n=v, sigma=s, sigma_next=t)
    lp = steps.log_prob(step=whole, x_next_n=x_next)
    assert lp.shape == (3,)
    for i in range(3):
        part = [y[i : i + 1].reshape(1, 8, 4) for y in (x, v, x_next)]
        alone = steps.transition(
            rule=rule(name, noise), x_n=part[0], v_n=part[1], sigma=float(s[i]), sigma_next=float(t[i])
        )
        torch.testing.assert_close(steps.log_prob(step=alone, x_next_n=part[2])[0], lp[i], atol=0, rtol=1e-12)
    flat = steps.transition(rule=rule(name, noise), x_n=x[:, 0, 0, 0], v_n=v[:, 0, 0, 0], sigma=s, sigma_next=t)
    assert steps.log_prob(step=flat, x_next_n=x_next[:, 0, 0, 0]).shape == (3,)
    torch.testing.assert_close(flat.mean_n, whole.mean_n[:, 0, 0, 0])


@pytest.mark.parametrize("name", ["sde", "cps", "dance"])
def test_without_noise_every_rule_is_the_euler_step(name: str) -> None:
    x, v, noise, _ = latents()
    step = steps.transition(rule=rule(name, 0.0), x_n=x, v_n=v, sigma=0.8, sigma_next=0.6)
    ode = steps.transition(rule=rule("ode", 0.0), x_n=x, v_n=v, sigma=0.8, sigma_next=0.6)
    torch.testing.assert_close(step.mean_n, x - 0.2 * v)
    torch.testing.assert_close(ode.mean_n, x - 0.2 * v)
    for still in (step, ode):
        assert torch.equal(steps.draw(step=still), still.mean_n)
        with pytest.raises(ValueError, match="has no log-probability"):
            steps.log_prob(step=still, x_next_n=noise)
        with pytest.raises(ValueError, match="no KL"):
            divergence.gaussian_kl(step=still, ref_mean_n=noise)


def test_cps_keeps_its_coefficients_and_has_no_density_at_the_end() -> None:
    """(coefficient of x1_hat)^2 + std^2 = sigma'^2; at sigma' = 0 the step lands on x0_hat and refuses a log-prob."""
    s, t = TABLE[:-2], TABLE[1:-1]
    c = rule("cps", 0.8).coefficients(sigma=s, sigma_next=t)
    k = c.state - (1 - t)
    torch.testing.assert_close(k**2 + c.std**2, t**2)
    torch.testing.assert_close(c.velocity, k * (1 - s) - (1 - t) * s)
    x, v, noise, _ = latents()
    last = steps.transition(rule=rule("cps", 0.8), x_n=x, v_n=v, sigma=TABLE[-2], sigma_next=TABLE[-1])
    torch.testing.assert_close(steps.draw(step=last, noise_n=noise), x - TABLE[-2] * v)
    with pytest.raises(ValueError, match="leave the last step out"):
        steps.log_prob(step=last, x_next_n=noise)


def velocity(x: Tensor, sigma: float, mean: float, std: float) -> Tensor:
    """E[x1 - x0 | x_sigma] for x0 ~ N(mean, std^2)."""
    variance = (1 - sigma) ** 2 * std**2 + sigma**2
    centred = (x - (1 - sigma) * mean) / variance
    return sigma * centred - (mean + (1 - sigma) * std**2 * centred)


@pytest.mark.parametrize(("name", "noise"), [("ode", 0.0), ("sde", 0.7), ("dance", 0.7)])
def test_marginals_are_preserved(name: str, noise: float) -> None:
    """The ODE and both SDEs end with the data's mean and deviation, N(1.5, 0.5^2), on a fine table."""
    table = sigma_table(steps=200, shift=1.0)
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(20_000, 1, generator=generator)
    for s, t in zip(table[:-1], table[1:]):
        v = velocity(x, float(s), 1.5, 0.5)
        step = steps.transition(rule=rule(name, noise, table), x_n=x, v_n=v, sigma=s, sigma_next=t)
        x = steps.draw(step=step, noise_n=torch.randn(x.shape, generator=generator))
    assert x.mean().item() == pytest.approx(1.5, abs=0.02)
    assert x.std().item() == pytest.approx(0.5, abs=0.02)


@pytest.mark.parametrize("noise", [0.3, 0.8])
def test_cps_keeps_data_and_noise_in_proportion(noise: float) -> None:
    """For data that are one point, every state on a coarse table has mean (1 - sigma) m and deviation sigma."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(20_000, 1, generator=generator)
    for s, t in zip(TABLE[:7], TABLE[1:8]):
        v = velocity(x, float(s), 1.5, 0.0)
        step = steps.transition(rule=rule("cps", noise), x_n=x, v_n=v, sigma=s, sigma_next=t)
        x = steps.draw(step=step, noise_n=torch.randn(x.shape, generator=generator))
        assert x.mean().item() == pytest.approx(1.5 * (1 - float(t)), abs=0.03)
        assert x.std().item() == pytest.approx(float(t), rel=0.03)


@pytest.mark.parametrize(("name", "noise"), NOISY)
def test_gradient_reaches_the_velocity_only(name: str, noise: float) -> None:
    x, v, x_next, ref = (y.requires_grad_() for y in latents())
    step = steps.transition(rule=rule(name, noise), x_n=x, v_n=v, sigma=0.8, sigma_next=0.6)
    loss = steps.log_prob(step=step, x_next_n=x_next).sum() + divergence.gaussian_kl(step=step, ref_mean_n=ref).sum()
    loss.backward()
    assert v.grad is not None and v.grad.abs().sum() > 0
    assert x.grad is None and x_next.grad is None and ref.grad is None
    assert not steps.draw(step=step, noise_n=x_next).requires_grad


@pytest.mark.parametrize(("name", "noise"), NOISY)
def test_half_precision_is_computed_in_float32(name: str, noise: float) -> None:
    x, v, x_next, _ = (y.bfloat16() for y in latents())
    step = steps.transition(rule=rule(name, noise), x_n=x, v_n=v, sigma=0.8, sigma_next=0.6)
    full = steps.transition(rule=rule(name, noise), x_n=x.double(), v_n=v.double(), sigma=0.8, sigma_next=0.6)
    assert step.mean_n.dtype == torch.float32
    lp = steps.log_prob(step=step, x_next_n=x_next)
    torch.testing.assert_close(lp.double(), steps.log_prob(step=full, x_next_n=x_next), atol=1e-5, rtol=1e-6)


def test_a_row_draws_from_its_own_generator() -> None:
    """Row 1 alone and row 1 among others take the same path; given noise is taken as it is."""
    x, v, noise, _ = latents()
    step = steps.transition(rule=rule("sde", 0.7), x_n=x, v_n=v, sigma=0.8, sigma_next=0.6)
    got = steps.draw(step=step, generators=[torch.Generator().manual_seed(i) for i in range(3)])
    alone = steps.transition(rule=rule("sde", 0.7), x_n=x[1:2], v_n=v[1:2], sigma=0.8, sigma_next=0.6)
    assert torch.equal(steps.draw(step=alone, generators=[torch.Generator().manual_seed(1)])[0], got[1])
    torch.testing.assert_close(steps.draw(step=step, noise_n=noise), step.mean_n + step.std_n * noise)
    with pytest.raises(ValueError, match="not both"):
        steps.draw(step=step, noise_n=noise, generators=[])
    with pytest.raises(ValueError, match="one generator a row"):
        steps.draw(step=step, generators=[torch.Generator()])
    with pytest.raises(ValueError, match="needs generators or noise"):
        steps.draw(step=step)
    with pytest.raises(ValueError, match="shape of the state"):
        steps.draw(step=step, noise_n=noise[:1])


def test_closed_form_kl() -> None:
    """exact is torch's KL of the two Gaussians; code is it without -dt; the two agree for cps."""
    x, v, ref, _ = latents()
    step = steps.transition(rule=rule("sde", 0.7), x_n=x, v_n=v, sigma=0.8, sigma_next=0.6)
    std = step.std_n.expand_as(x)
    normal = torch.distributions.Normal
    want = torch.distributions.kl_divergence(normal(step.mean_n, std), normal(ref, std)).mean((1, 2, 3))
    exact = divergence.gaussian_kl(step=step, ref_mean_n=ref, kl_form="exact")
    torch.testing.assert_close(exact, want)
    torch.testing.assert_close(divergence.gaussian_kl(step=step, ref_mean_n=ref), want * 0.2)
    cps = steps.transition(rule=rule("cps", 0.8), x_n=x, v_n=v, sigma=0.8, sigma_next=0.6)
    both = [divergence.gaussian_kl(step=cps, ref_mean_n=ref, kl_form=form) for form in ("code", "exact")]
    assert torch.equal(*both)
    with pytest.raises(ValueError, match="kl_form must be"):
        divergence.gaussian_kl(step=step, ref_mean_n=ref, kl_form="codes")  # type: ignore[arg-type]


@BOTH
def test_guard(dtype: torch.dtype) -> None:
    """1 where the passes agree; otherwise the page's formula by hand (scale = 1.4 sqrt(0.2) = 0.626099)."""
    old, new = one("sde", 0.7, dtype), one("sde", 0.7, dtype, v=0.6)
    x_next = torch.full((1, 1), 0.9, dtype=dtype)
    lp_old, lp_new = (steps.log_prob(step=s, x_next_n=x_next) for s in (old, new))
    same = divergence.guard_ratio(step=old, old_mean_n=old.mean_n, logp_n=lp_old, old_logp_n=lp_old)
    assert same.item() == 1.0
    moved = new.mean_n.item() - old.mean_n.item()
    assert moved == pytest.approx(-0.0249, abs=1e-6)
    away = 0.9 - 0.6305
    log_ratio = (away**2 - (away - moved) ** 2 + moved**2) / (2 * 0.392) * 0.392**0.5
    got = divergence.guard_log_ratio(step=new, old_mean_n=old.mean_n, logp_n=lp_new, old_logp_n=lp_old)
    assert got.item() == pytest.approx(log_ratio, abs=1e-6)
    assert divergence.guard_weight(step=new).item() == pytest.approx(5.0, rel=1e-6)
    with pytest.raises(ValueError, match="use sde or dance"):
        divergence.guard_ratio(step=one("cps", 0.8), old_mean_n=x_next, logp_n=lp_new, old_logp_n=lp_old)


def test_guard_takes_the_bias_out() -> None:
    """On actions of the old policy the plain log-ratio is negative in the mean and GRPO-Guard's is 0."""
    generator = torch.Generator().manual_seed(0)
    x = torch.zeros(40_000, 1, dtype=torch.float64)
    old = steps.transition(rule=rule("sde", 0.7), x_n=x, v_n=x + 0.5, sigma=0.8, sigma_next=0.6)
    new = steps.transition(rule=rule("sde", 0.7), x_n=x, v_n=x + 2.5, sigma=0.8, sigma_next=0.6)
    x_next = steps.draw(step=old, noise_n=torch.randn(x.shape, generator=generator, dtype=x.dtype))
    lp_old, lp_new = (steps.log_prob(step=s, x_next_n=x_next) for s in (old, new))
    assert (lp_new - lp_old).mean().item() < -0.25
    got = divergence.guard_log_ratio(step=new, old_mean_n=old.mean_n, logp_n=lp_new, old_logp_n=lp_old)
    assert got.mean().item() == pytest.approx(0.0, abs=0.01)


def test_guidance() -> None:
    """v_u + w (v_c - v_u); gradient through both unless the unconditional half is left out."""
    c, u, _, _ = (y.requires_grad_() for y in latents())
    assert torch.equal(steps.guided_velocity(v_cond=c, v_uncond=u, guidance=0.0), u)
    got = steps.guided_velocity(v_cond=c, v_uncond=u, guidance=4.5)
    torch.testing.assert_close(got, 4.5 * c - 3.5 * u)
    got.sum().backward()
    assert c.grad is not None and u.grad is not None
    torch.testing.assert_close(u.grad, torch.full_like(u, -3.5))
    torch.testing.assert_close(c.grad, torch.full_like(c, 4.5))
    u.grad = None
    steps.guided_velocity(v_cond=c, v_uncond=u, guidance=4.5, detach_uncond=True).sum().backward()
    assert u.grad is None


def test_on_policy_ratio_is_one_for_any_batch_shape() -> None:
    x, v, x_next, _ = latents(shape=(6, 4, 8, 8), dtype=torch.float32)
    for name, noise in NOISY:
        whole = steps.transition(rule=rule(name, noise), x_n=x, v_n=v, sigma=TABLE[3], sigma_next=TABLE[4])
        lp = steps.log_prob(step=whole, x_next_n=x_next)
        for rows in (slice(0, 1), slice(2, 6)):
            part = steps.transition(
                rule=rule(name, noise), x_n=x[rows], v_n=v[rows], sigma=TABLE[3], sigma_next=TABLE[4]
            )
            ratio = (steps.log_prob(step=part, x_next_n=x_next[rows]) - lp[rows]).exp()
            torch.testing.assert_close(ratio, torch.ones_like(ratio), atol=1e-5, rtol=0)


def test_bad_input() -> None:
    x, v, _, _ = latents()
    with pytest.raises(UserError, match="unknown rule 'sd'; did you mean 'sde'"):
        rule("sd", 0.7)
    with pytest.raises(UserError, match="ode takes no noise"):
        rule("ode", 0.7)
    for name, noise in (("sde", -0.1), ("cps", 1.1), ("dance", float("nan"))):
        with pytest.raises(UserError, match=f"{name}: noise must be"):
            rule(name, noise)
    with pytest.raises(UserError, match="sigmas must fall"):
        rule("sde", 0.7, TABLE.flip(0))
    with pytest.raises(ValueError, match="one shape"):
        steps.transition(rule=rule("sde", 0.7), x_n=x, v_n=v[:1], sigma=0.8, sigma_next=0.6)
    with pytest.raises(ValueError, match="one per row"):
        steps.transition(rule=rule("sde", 0.7), x_n=x, v_n=v, sigma=TABLE[1:3], sigma_next=TABLE[2:4])
    with pytest.raises(ValueError, match="0 <= sigma_next < sigma <= 1"):
        steps.transition(rule=rule("sde", 0.7), x_n=x, v_n=v, sigma=0.6, sigma_next=0.8)
    step = steps.transition(rule=rule("sde", 0.7), x_n=x, v_n=v, sigma=0.8, sigma_next=0.6)
    with pytest.raises(ValueError, match="next state must have shape"):
        steps.log_prob(step=step, x_next_n=x[:1])


def test_a_table_that_begins_a_little_below_1_has_a_usual_first_deviation() -> None:
    exact = steps.make_rule(name="sde", noise=0.7, sigmas=torch.tensor([1.0, 0.9852, 0.5, 0.0]))
    near = steps.make_rule(name="sde", noise=0.7, sigmas=torch.tensor([0.99967, 0.9852, 0.5, 0.0]))
    after = torch.tensor(0.9852, dtype=torch.float64)
    a = exact.coefficients(sigma=torch.tensor(1.0, dtype=torch.float64), sigma_next=after)
    b = near.coefficients(sigma=torch.tensor(0.99967, dtype=torch.float64), sigma_next=after)
    assert float(b.std) == pytest.approx(float(a.std), rel=0.02)
    late = steps.make_rule(
        name="sde", noise=0.7, sigmas=torch.tensor([0.8, 0.6, 0.0])
    )  # no table near 1: nothing replaced
    one = late.coefficients(sigma=torch.tensor(0.8, dtype=torch.float64), sigma_next=torch.tensor(0.6).double())
    assert float(one.diffusion) == pytest.approx(1.4)
