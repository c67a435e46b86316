"""Wrong versions of what came with video models; continues core_mutants.py."""

from __future__ import annotations

from core_mutants import Mutant, on

from mmrl.core.gates import reg_grpo
from mmrl.core.reducers import divergence
from mmrl.core.weights import tw

TW, REG = on("weight", "tw"), on("gate", "reg-grpo")
DIVERGENCE = ("tw_two_members", "tw_one_member_has_ended", "tw_calibrated", "divergence_by_loops")
DIVERGENCE += ("divergence_has_no_graph", "divergence_invariances", "divergence_of_equal_members")
DIVERGENCE += ("divergence_stops_at_the_longest_row",)
WEIGHTS = ("tw_two_groups_have_their_own_range",)

VIDEO_MUTANTS = [
    # ---- the weight
    Mutant("sign flipped", tw.tw, "(d_st - low_s1) /", "(low_s1 - d_st) /", TW),
    Mutant("upside down", tw.tw, "(d_st - low_s1) /", "(high_s1 - d_st) /", TW),
    Mutant("minimum not subtracted", tw.tw, "(d_st - low_s1) /", "d_st /", TW),
    Mutant("missing detach", tw.tw, "given_nt.detach()", "given_nt", TW),
    Mutant("alpha added", tw.tw, "(alpha - 1) * score_st", "alpha * score_st", TW),
    Mutant("range of all groups", tw.tw, "nothing).amax(1, keepdim=True)", "nothing).amax()", TW, WEIGHTS),
    Mutant("minimum of all groups", tw.tw, "torch.inf)).amin(1, keepdim=True)", "torch.inf)).amin()", TW, WEIGHTS),
    Mutant("groups ignored", tw.tw, "Groups(keys[key])", "Groups(keys[key] * 0)", TW, WEIGHTS),
    Mutant(
        "padding in the range", tw.tw, "torch.where(mask, own_nt, torch.full_like(own_nt, -torch.inf))", "own_nt", TW
    ),
    Mutant("not masked", tw.tw, "groups.index_n), torch.zeros_like(own_nt))", "groups.index_n), 1.0)", TW),
    Mutant("single members weighted", tw.tw, '2 if "active" in form else 1', "1", TW),
    Mutant("single members never weighted", tw.tw, '2 if "active" in form else 1', "2", TW),
    Mutant("another form", tw.tw, '"calibrated": js_nt', '"calibrated": divergence_nt', TW),
    # ---- the divergence
    Mutant("sign flipped", divergence._official, "torch.sub(mean_cv, logp_gcv)", "logp_gcv - mean_cv", (), DIVERGENCE),
    Mutant("no clamp", divergence._official, ".clamp_(-CLAMP, CLAMP)", "", (), DIVERGENCE),
    Mutant("without the linear term", divergence._official, ".sub_(d)", "", (), DIVERGENCE),
    Mutant("sum over members", divergence._official, "sum(-1) * share_gc)", "sum(-1))", (), DIVERGENCE),
    Mutant(
        "mean of all rows of a piece",
        divergence.group_divergence,
        "torch.unique(group_n)",
        "torch.unique(group_n)[:1]",
        (),
        DIVERGENCE,
    ),
    Mutant(
        "groups ignored",
        divergence.group_divergence,
        "(group_n == group).nonzero()",
        "(group_n == group_n).nonzero()",
        (),
        DIVERGENCE,
    ),
    Mutant("not trimmed", divergence.group_divergence, "int(here[-1]) + 1", "mask.shape[1]", (), DIVERGENCE),
    Mutant(
        "graph kept",
        divergence.group_divergence,
        "with torch.no_grad():\n        logits, mask = as_float(logits_ncv.detach())",
        "if True:\n        logits, mask = as_float(logits_ncv)",
        (),
        DIVERGENCE,
    ),
    Mutant(
        "half precision", divergence.group_divergence, "as_float(logits_ncv.detach())", "logits_ncv", (), DIVERGENCE
    ),
    Mutant("rounding kept", divergence.group_divergence, "found < least", "found < 0", (), DIVERGENCE),
    Mutant("suppressed ids counted", divergence.group_divergence, "> NEVER", "> -1e30", (), DIVERGENCE),
    Mutant("ended members not uniform", divergence._one_group, "if some_ended", "if False", (), DIVERGENCE),
    Mutant("uniform over all ids", divergence._one_group, "int(drawn_v.sum())", "len(drawn_v)", (), DIVERGENCE),
    Mutant("ended members counted", divergence._one_group, "if active else", "if False else", (), DIVERGENCE),
    Mutant("ended members never counted", divergence._one_group, "if active else", "if True else", (), DIVERGENCE),
    Mutant("not normalised", divergence._one_group, " - total_gc[..., None]", "", (), DIVERGENCE),
    Mutant("entropy of the mean lost", divergence._calibrated, "own.double() -", "own.double() +", (), DIVERGENCE),
    Mutant("mean of the logs", divergence._calibrated, "_mean(p_gcv,", "_mean(logp_gcv,", (), DIVERGENCE),
    Mutant(
        "suppressed ids keep their logits",
        divergence._one_group,
        "if not all_drawn",
        "if False",
        (),
        DIVERGENCE,
    ),
    # ---- the regression
    Mutant("sign flipped", reg_grpo.reg_grpo, "adv_n - centred_n", "adv_n + centred_n", REG),
    Mutant("missing detach", reg_grpo.reg_grpo, "adv_nt.detach()", "adv_nt", REG),
    Mutant(
        "mean detached", reg_grpo.reg_grpo, "rho_n - groups.mean(rho_n)", "rho_n - groups.mean(rho_n).detach()", REG
    ),
    Mutant("not centred", reg_grpo.reg_grpo, "rho_n - groups.mean(rho_n)", "rho_n", REG),
    Mutant(
        "deviation detached",
        reg_grpo.reg_grpo,
        "groups.mean(centred_n.square())",
        "groups.mean(centred_n.square()).detach()",
        REG,
    ),
    Mutant(
        "divided by the variance",
        reg_grpo.reg_grpo,
        "torch.ones_like(variance_n)).sqrt()",
        "torch.ones_like(variance_n))",
        REG,
    ),
    Mutant("no guard", reg_grpo.reg_grpo, "variance_n.detach() > s_min**2", "variance_n.detach() > 0", REG),
    Mutant("guard not squared", reg_grpo.reg_grpo, "s_min**2", "s_min", REG),
    Mutant("always guarded", reg_grpo.reg_grpo, "variance_n.detach() > s_min**2", "variance_n.detach() < 0", REG),
    Mutant("mean of the log-ratios", reg_grpo.reg_grpo, "row_sum(diff_nt, mask_nt)", "row_mean(diff_nt, mask_nt)", REG),
    Mutant("groups ignored", reg_grpo.reg_grpo, "Groups(keys[key], valid_n)", "Groups(keys[key] * 0, valid_n)", REG),
    Mutant(
        "rows without reward count", reg_grpo.reg_grpo, "mask.any(1) & torch.isfinite(reward_n)", "mask.any(1)", REG
    ),
    Mutant(
        "empty rows count", reg_grpo.reg_grpo, "mask.any(1) & torch.isfinite(reward_n)", "torch.isfinite(reward_n)", REG
    ),
    Mutant("flat groups learn", reg_grpo.reg_grpo, "valid_n & ~groups.flat(adv_n)", "valid_n", REG),
    Mutant("not squared", reg_grpo.reg_grpo, "centred_n / std_n).square()", "centred_n / std_n)", REG),
]
