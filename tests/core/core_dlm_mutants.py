"""Wrong versions of the stages for several rewards, right answers and whole-row likelihoods."""

from __future__ import annotations

from core_mutants import GSPO, KL, PPO, Mutant, on

from mmrl.core import ratios, reductions
from mmrl.core.advantages import decoupled
from mmrl.core.gates import gspo, ppo_clip
from mmrl.core.penalties import kl, nll

DEC, NLL, RIGHT = on("advantage", "decoupled"), on("penalty", "nll"), on("reduce", "token-mean-correct")
KL_OLD = on("penalty", "kl-old")

DLM_MUTANTS = [
    # ---- several rewards
    Mutant("ddof of the group dropped", decoupled.component, "ddof=ddof", "ddof=1", DEC),
    Mutant("eps of the group dropped", decoupled.component, "eps=eps", "eps=0.0", DEC),
    Mutant(
        "a constant group is 0 in min-max", decoupled.component, "torch.full_like(reward_n, 0.5)", "0 * reward_n", DEC
    ),
    Mutant("min-max without the minimum", decoupled.component, "(reward_n - low_n) /", "reward_n /", DEC),
    Mutant("min-max over the maximum", decoupled.component, "(high_n - low_n)", "high_n", DEC),
    Mutant("sign of the reward itself", decoupled.component, "reward_n >= 0.5", "reward_n >= 0", DEC),
    Mutant("wrong is 0", decoupled.component, "-torch.ones_like(reward_n)", "torch.zeros_like(reward_n)", DEC),
    Mutant(
        "a missing component counts", decoupled.component, "value_n.masked_fill(~groups.valid_n, 0.0)", "value_n", DEC
    ),
    Mutant("mean of the batch stays", decoupled._over, "(sum_n - mean_n)", "sum_n", DEC),
    Mutant("floor dropped", decoupled._over, "std_n.clamp(min=floor) + eps", "std_n.clamp(min=1.0) + eps", DEC),
    Mutant("eps of the batch dropped", decoupled._over, "clamp(min=floor) + eps", "clamp(min=floor)", DEC),
    Mutant("ddof of the batch", decoupled._over, "ddof=ddof", "ddof=0", DEC),
    Mutant(
        "equal sums become noise", decoupled._over, ".masked_fill(std_n < FLAT, 0.0)", "", DEC, ("decoupled_edges",)
    ),
    Mutant("weights dropped", decoupled.decoupled, "weight * own_n if weighted", "own_n if weighted", DEC),
    Mutant("weights always", decoupled.decoupled, "weight * own_n if weighted else own_n", "weight * own_n", DEC),
    Mutant("all modes the first", decoupled.decoupled, "chosen[k]", "chosen[0]", DEC),
    Mutant(
        "unrewarded rows in the batch",
        decoupled.decoupled,
        "torch.isfinite(reward_nk).any(1)",
        "torch.isfinite(reward_nk[:, 0]) | True",
        DEC,
    ),
    Mutant("rows with every reward only", decoupled.decoupled, ".any(1)", ".all(1)", DEC),
    Mutant("flat groups speak", decoupled.decoupled, "key_n=key_n) | ~valid_n", "key_n=key_n) & ~valid_n", DEC),
    Mutant("unrewarded rows whitened", decoupled.decoupled, "mask_nt.bool() & valid_n[:, None]", "mask_nt.bool()", DEC),
    Mutant("tokens of flat groups", decoupled.decoupled, "adv_nt.masked_fill(silent_n[:, None], 0.0)", "adv_nt", DEC),
    Mutant(
        "groups by chance", decoupled.decoupled, 'key_n if batch.startswith("group")', 'key_n if batch == "group"', DEC
    ),
    Mutant("not detached", decoupled.decoupled, "(silent_n, 0.0).detach()", "(silent_n, 0.0)", DEC),
    Mutant("tokens not detached", decoupled.decoupled, "[:, None], 0.0).detach()", "[:, None], 0.0)", DEC),
    # ---- right answers
    Mutant("sign flipped", nll.nll, "-torch.where", "torch.where", NLL),
    Mutant("wrong rows imitated", nll.nll, " & correct_n.bool()[:, None]", "", NLL, ("nll_leaves_wrong_rows_alone",)),
    Mutant("right rows shunned", nll.nll, "& correct_n", "& ~correct_n", NLL),
    Mutant("mask dropped", nll.nll, "mask_nt.bool() & ", "", NLL),
    Mutant("wrong rows counted", reductions.token_mean_correct, "mask.sum()", "mask_nt.sum()", RIGHT),
    Mutant("wrong rows enter", reductions.token_mean_correct, " & correct_n.bool()[:, None]", "", RIGHT),
    Mutant("mask dropped", reductions.token_mean_correct, "mask_nt.bool() & ", "", RIGHT),
    # ---- whole rows
    Mutant("gradient of a sum over its length", gspo.gspo, 'own * shared if "-sum" in level else own', "own", GSPO),
    Mutant(
        "gradient of a mean times its length",
        gspo.gspo,
        'own * shared if "-sum" in level else own',
        "own * shared",
        GSPO,
    ),
    Mutant("length not divided out", gspo.gspo, 'out["loss_nt"] / length_n1', 'out["loss_nt"]', GSPO),
    Mutant("always divided by the length", gspo.gspo, 'if loss_norm == "length"', "if True", GSPO),
    Mutant("an empty row divides by 0", gspo.gspo, ".clamp(min=1)", "", GSPO),
    Mutant("cap above forgotten", gspo.gspo, "clamped(log_s, cap_low, cap_high)", "clamped(log_s, cap_low)", GSPO),
    Mutant(
        "cap below forgotten", gspo.gspo, "clamped(log_s, cap_low, cap_high)", "clamped(log_s, high=cap_high)", GSPO
    ),
    Mutant("caps forgotten", ppo_clip.ppo_clip, "clamped(log_ratio, cap_low, cap_high)", "clamped(log_ratio)", PPO),
    Mutant("level ignored", kl.kl_estimate, "mask_nt), mask_nt, level)", 'mask_nt), mask_nt, "decision")', KL),
    Mutant("masked decisions of a row", kl.kl_estimate, "torch.where(mask_nt.bool(), k, torch.zeros_like(k))", "k", KL),
    Mutant(
        "level of the closed form ignored",
        kl.kl,
        "torch.zeros_like(kl_nt)), mask_nt, level)",
        'torch.zeros_like(kl_nt)), mask_nt, "decision")',
        KL,
    ),
    Mutant(
        "level of the ratio ignored",
        kl.kl,
        "old_logp_nt, mask_nt), mask_nt, level)",
        'old_logp_nt, mask_nt), mask_nt, "decision")',
        KL,
    ),
    Mutant("estimator of the old policy", kl.kl_old, '"estimator": estimator', '"estimator": "k3"', KL_OLD),
    Mutant("limit of the old policy", kl.kl_old, '"max_value": max_value', '"max_value": None', KL_OLD),
    Mutant("clamp of the old policy", kl.kl_old, '"cap": cap', '"cap": 20.0', KL_OLD, ("kl_limits",)),
    Mutant("level of the old policy", kl.kl_old, '"level": level', '"level": "decision"', KL_OLD),
    Mutant(
        "upside down",
        kl.kl_old,
        "logp_nt=logp_nt, ref_logp_nt=old_logp_nt",
        "logp_nt=old_logp_nt, ref_logp_nt=logp_nt",
        KL_OLD,
    ),
    Mutant("upper limit only", ratios.clamped, "log_ratio.clamp(low, high)", "log_ratio.clamp(max=high)", GSPO),
]
