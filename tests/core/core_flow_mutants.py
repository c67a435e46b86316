"""Wrong versions of what came with image models; continues core_mutants.py."""

from __future__ import annotations

from core_mutants import Mutant, on

from image_gen.flow import divergence, stages, values
from mmrl.core import objective
from mmrl.core.advantages import grpo, tracked

GUARD, VGPO = on("gate", "grpo-guard"), on("advantage", "vgpo")
PER_REWARD, TRACKED = on("advantage", "grpo-per-reward"), on("advantage", "tracked")

FLOW_MUTANTS = [
    # ---- grpo-guard
    Mutant("sign flipped", stages.grpo_guard, "/ width_nt}", "/ -width_nt}", GUARD),
    Mutant("not reweighted", stages.grpo_guard, " / width_nt} if reweight", "} if reweight", GUARD),
    Mutant("always reweighted", stages.grpo_guard, "if reweight else out", "", GUARD),
    Mutant("reweighted by the root", stages.grpo_guard, "/ width_nt}", "/ width_nt.sqrt()}", GUARD),
    Mutant(
        "no bias",
        stages.grpo_guard,
        "torch.where(use, mean_gap_nt, torch",
        "torch.where(use, 0 * mean_gap_nt, torch",
        GUARD,
    ),
    Mutant(
        "gap not masked",
        stages.grpo_guard,
        "torch.where(use, mean_gap_nt, torch.zeros_like(mean_gap_nt))",
        "mean_gap_nt",
        GUARD,
    ),
    Mutant(
        "gap without a log-ratio",
        stages.grpo_guard,
        "mask & torch.isfinite(old_logp_nt.detach())",
        "mask",
        GUARD,
        ("guard_of_a_lost_log_prob",),
    ),
    Mutant(
        "gap detached",
        stages.grpo_guard,
        "torch.where(use, mean_gap_nt,",
        "torch.where(use, mean_gap_nt.detach(),",
        GUARD,
    ),
    Mutant("width not in the scale", stages.grpo_guard, " * width_nt.sqrt()", "", GUARD),
    Mutant("width instead of its root", stages.grpo_guard, "width_nt.sqrt()", "width_nt", GUARD),
    Mutant("sigma not in the scale", stages.grpo_guard, "sigma_nt.detach().to(logp_nt), one", "one, one", GUARD),
    Mutant(
        "sigma not masked",
        stages.grpo_guard,
        "torch.where(mask, sigma_nt.detach().to(logp_nt), one)",
        "sigma_nt.detach().to(logp_nt)",
        GUARD,
    ),
    Mutant(
        "width not masked",
        stages.grpo_guard,
        "torch.where(mask, -dt_nt.detach().to(logp_nt), one)",
        "-dt_nt.detach().to(logp_nt)",
        GUARD,
    ),
    Mutant("width not detached", stages.grpo_guard, "-dt_nt.detach()", "-dt_nt", GUARD),
    Mutant("advantage not masked", stages.grpo_guard, "factor(adv_nt, mask_nt, adv_clip=adv_clip)", "adv_nt", GUARD),
    Mutant("advantage not limited", stages.grpo_guard, "adv_clip=adv_clip", "adv_clip=None", GUARD),
    Mutant("no clamp", stages.grpo_guard, "clamped(log_ratio).exp()", "log_ratio.exp()", GUARD),
    Mutant(
        "bias with the wrong sign", divergence.corrected, "return (log_ratio + mean", "return (log_ratio - mean", GUARD
    ),
    Mutant("bias not halved", divergence.corrected, "(2 * scale.square())", "scale.square()", GUARD),
    Mutant("bias over the scale", divergence.corrected, "scale.square()", "scale", GUARD),
    Mutant("ratio not normalised", divergence.corrected, "square())) * scale", "square()))", GUARD),
    Mutant(
        "bias not normalised",
        divergence.corrected,
        "(log_ratio + mean_gap / (2 * scale.square())) * scale",
        "log_ratio * scale + mean_gap / (2 * scale.square())",
        GUARD,
    ),
    Mutant("scale not detached", divergence.corrected, "scale.detach()", "scale", (), ("the_scale_is_detached",)),
    # ---- vgpo
    Mutant(
        "components not weighted",
        stages.vgpo,
        "weight_k=weight_k.to(as_float(reward_ntk))",
        "weight_k=torch.ones_like(weight_k)",
        VGPO,
    ),
    Mutant("unscored steps read", stages.vgpo, "scored_s=scored.any(0)", "scored_s=None", VGPO),
    Mutant("untrained steps paid", stages.vgpo, "got.advantage_ns.masked_fill(~mask, 0.0)", "got.advantage_ns", VGPO),
    Mutant("keys ignored", stages.vgpo, "key_n=keys[key]", "key_n=keys[key] * 0", VGPO),
    Mutant("shift ignored", stages.vgpo, "reward_shift=reward_shift", "reward_shift=None", VGPO),
    Mutant("clip of omega ignored", stages.vgpo, "omega_clip=omega_clip", "omega_clip=None", VGPO),
    Mutant("skip ignored", stages.vgpo, "skip_first=skip_first", "skip_first=0", VGPO),
    Mutant("level ignored", stages.vgpo, "omega_level=omega_level", "omega_level='sample'", VGPO),
    Mutant("unguarded although guarded", stages.vgpo, "if guarded else negative", "if False else negative", VGPO),
    Mutant("positive rewards counted", stages.vgpo, "finite & (reward_nt < 0)", "finite & (reward_nt > 0)", VGPO),
    Mutant("starts with the score", stages.vgpo, "(scored | mask).any(0)", "scored.any(0)", VGPO),
    Mutant(
        "starts with the training",
        stages.vgpo,
        "(scored | mask).any(0)",
        "mask.any(0)",
        VGPO,
        ("vgpo_before_a_window",),
    ),
    Mutant("not discounted", values.discounted, "gamma * running_n", "running_n", VGPO),
    Mutant(
        "discounted backwards",
        values.discounted,
        "range(reward_ns.shape[1] - 1, start - 1, -1)",
        "range(start, reward_ns.shape[1])",
        VGPO,
    ),
    Mutant(
        "omega upside down",
        values.temporal_weight,
        "value_ns / mean_n1.masked_fill(degenerate, 1.0)",
        "mean_n1 / value_ns",
        VGPO,
    ),
    Mutant("mean not subtracted", values.relative_part, "(value_n - mean_n)", "value_n", VGPO),
    Mutant("unbiased deviation", values.relative_part, "ddof=0", "ddof=1", VGPO),
    Mutant("absolute part everywhere", values.absolute_part, "step_s < n_abs", "step_s >= 0", VGPO),
    Mutant("absolute part divided by the deviation away", values.absolute_part, "k * value_ns", "0 * value_ns", VGPO),
    Mutant("forms swapped", values.combine, 'form == "outer"', 'form == "inner"', VGPO),
    Mutant("absolute part lost", values.combine, "relative_ns + absolute_ns", "relative_ns", VGPO),
    Mutant("not detached", values.discounted, "reward_ns.detach()", "reward_ns", (), ("values_are_detached",)),
    Mutant(
        "nearest instead of line", values.interpolated, "share_s * (high_ns - low_ns)", "0 * (high_ns - low_ns)", VGPO
    ),
    Mutant(
        "line the wrong way",
        values.interpolated,
        "(step_s - at[before])",
        "(at[after] - step_s)",
        (),
        ("interpolation",),
    ),
    Mutant("beyond the last known step", values.interpolated, ".clamp(max=len(at) - 1)", "", (), ("interpolation",)),
    Mutant(
        "missing rewards are 0",
        values.trusted_rewards,
        "reward_ns, mean_n[:, None]",
        "reward_ns, 0 * mean_n[:, None]",
        VGPO,
    ),
    # ---- per reward, tracked
    Mutant("weights dropped", grpo.grpo_per_reward, "weight_k[k].to(own_n) * own_n", "own_n", PER_REWARD),
    Mutant("last component only", grpo.grpo_per_reward, "adv_n + weight_k", "weight_k", PER_REWARD),
    Mutant("keys ignored", grpo.grpo_per_reward, "keys=keys", "keys={key: keys[key] * 0}", PER_REWARD),
    Mutant("ddof ignored", grpo.grpo_per_reward, "ddof=ddof", "ddof=1", PER_REWARD),
    Mutant("mean not subtracted", tracked.tracked, "(reward_n - mean_n)", "reward_n", TRACKED),
    Mutant("deviation not used", tracked.tracked, "(std_n + eps)", "(1 + eps)", TRACKED),
    Mutant("eps dropped", tracked.tracked, "(std_n + eps)", "std_n", TRACKED),
    Mutant(
        "rows without reward paid",
        tracked.tracked,
        "torch.where(torch.isfinite(reward_n), adv_n, torch.zeros_like(adv_n))",
        "adv_n",
        TRACKED,
    ),
    Mutant("not detached", tracked.tracked, ".detach()", "", TRACKED),
    # ---- the objective
    Mutant(
        "numbers for the log lost",
        objective.Objective.told,
        "if k.startswith(LOGGED)",
        "if False",
        (),
        ("numbers_for_the_log",),
    ),
    Mutant(
        "dense rewards not asked for",
        objective.Objective.needs_dense.fget,
        '"reward_ntk"',
        '"reward_nk"',
        (),
        ("dense_rewards_are_asked_for",),
    ),  # type: ignore[attr-defined]
]
