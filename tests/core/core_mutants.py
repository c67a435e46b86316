"""Wrong versions of the core's functions: a place, the text that stands there, the text that must not."""

from __future__ import annotations

import ast
import inspect
import textwrap
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import FunctionType
from typing import Any

from mmrl.core import groups, objective, ratios, reductions, registry, shaping
from mmrl.core.advantages import constant, grpo, reinforce_pp, rloo
from mmrl.core.gates import cispo, gspo, ppo_clip, reinforce
from mmrl.core.penalties import entropy, kl
from mmrl.core.select import zero_variance
from mmrl.core.weights import tis

Keys = tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Mutant:
    """`old` must occur exactly once in the source of `target`. watched: the stages whose checks must notice."""

    what: str
    target: Callable[..., Any]
    old: str
    new: str
    watched: Keys
    also: tuple[str, ...] = field(default=())  # names of OBJECTIVE_CHECKS, EXAMPLES or GROUP_CHECKS to run as well

    def __str__(self) -> str:
        return f"{self.target.__qualname__}: {self.what}"


def mutated(mutant: Mutant) -> FunctionType:
    """The function compiled from its changed source, in its own module's names."""
    source = textwrap.dedent(inspect.getsource(mutant.target))
    assert source.count(mutant.old) == 1, f"{mutant}: {mutant.old!r} occurs {source.count(mutant.old)} times"
    tree = ast.parse(source.replace(mutant.old, mutant.new))
    function = tree.body[0]
    assert isinstance(function, ast.FunctionDef)
    function.decorator_list = []  # a stage is registered already; staticmethods are swapped by their code
    namespace: dict[str, Any] = {}
    exec(compile(tree, f"<mutant {mutant}>", "exec"), mutant.target.__globals__, namespace)
    made = namespace[function.name]
    assert isinstance(made, FunctionType)
    return made


@contextmanager
def in_place(mutant: Mutant) -> Iterator[None]:
    """Swap the code object, so that every module that imported the function runs the mutant."""
    target = mutant.target
    assert isinstance(target, FunctionType)
    code, defaults = target.__code__, target.__kwdefaults__
    made = mutated(mutant)
    target.__code__, target.__kwdefaults__ = made.__code__, made.__kwdefaults__
    try:
        yield
    finally:
        target.__code__, target.__kwdefaults__ = code, defaults


def on(kind: str, *names: str) -> Keys:
    return tuple((kind, n) for n in names)


RELATIVE = on("advantage", "grpo", "dr-grpo", "batch-std", "rloo")
GATES = on("gate", "ppo-clip", "gspo", "cispo")
PPO, GSPO, CISPO, KL = on("gate", "ppo-clip"), on("gate", "gspo"), on("gate", "cispo"), on("penalty", "kl")
PLAIN = on("gate", "reinforce", "supervised")
REDUCE = on("reduce", "token-mean", "seq-mean-token-mean", "seq-mean-token-sum", "seq-mean-token-sum-norm")
LOCAL = on("reduce", "token-mean-local")
GRPO, DR, BATCH, RLOO = (on("advantage", n) for n in ("grpo", "dr-grpo", "batch-std", "rloo"))
RPP, RPPB = on("advantage", "reinforce-pp"), on("advantage", "reinforce-pp-baseline")

MUTANTS = [
    # ---- gates
    Mutant("sign flipped", ppo_clip.clipped_surrogate, "loss = -torch.minimum(free", "loss = torch.minimum(free", PPO),
    Mutant("min becomes max", ppo_clip.clipped_surrogate, "-torch.minimum(free", "-torch.maximum(free", PPO),
    Mutant("low and high swapped", ppo_clip.clipped_surrogate, "limit(1 + eps_high_nt", "limit(1 + eps_low_nt", PPO),
    Mutant(
        "no lower bound",
        ppo_clip.clipped_surrogate,
        "torch.maximum(torch.minimum(ratio_nt, high), low)",
        "torch.minimum(ratio_nt, high)",
        PPO,
    ),
    Mutant("no upper bound", ppo_clip.clipped_surrogate, "torch.minimum(ratio_nt, high)", "ratio_nt", PPO),
    Mutant("dual clip on A > 0", ppo_clip.clipped_surrogate, "torch.where(adv_nt < 0", "torch.where(adv_nt > 0", PPO),
    Mutant("dual clip sign", ppo_clip.clipped_surrogate, "-dual_clip * adv_nt", "dual_clip * adv_nt", PPO),
    Mutant("dual clip max", ppo_clip.clipped_surrogate, "torch.minimum(loss, -dual", "torch.maximum(loss, -dual", PPO),
    Mutant("delta ignored", ppo_clip.clipped_surrogate, "ratio_nt.clamp(max=delta)", "ratio_nt", PPO),
    Mutant("ratio not detached", ppo_clip.clipped_surrogate, "ratio = ratio_nt.detach()", "ratio = ratio_nt", PPO),
    Mutant(
        "clip_low counts A > 0",
        ppo_clip.clipped_surrogate,
        "(ratio < low) & (adv_nt < 0)",
        "(ratio < low) & (adv_nt > 0)",
        PPO,
    ),
    Mutant(
        "clip_high counts A < 0",
        ppo_clip.clipped_surrogate,
        "(ratio > high) & (adv_nt > 0)",
        "(ratio > high) & (adv_nt < 0)",
        PPO,
    ),
    Mutant("no clamp", ppo_clip.ppo_clip, "clamped(log_ratio, cap_low, cap_high).exp()", "log_ratio.exp()", PPO),
    Mutant("level ignored", ppo_clip.ppo_clip, "mask_nt, level, segments", "mask_nt, 'decision', segments", PPO),
    Mutant(
        "advantage not masked", ppo_clip.ppo_clip, "adv_nt = factor(adv_nt, mask_nt, adv_clip=adv_clip)", "pass", PPO
    ),
    Mutant(
        "ratio upside down",
        ppo_clip.ppo_clip,
        "masked_difference(logp_nt, old_logp_nt",
        "-masked_difference(logp_nt, old_logp_nt",
        PPO,
    ),
    Mutant("row ratio keeps its gradient", gspo.gspo, "log_s.detach()", "log_s", GSPO),
    Mutant("missing detach of itself", gspo.gspo, "logp_nt.detach(), mask_nt", "logp_nt.detach() * 0, mask_nt", GSPO),
    Mutant("decision ratios", gspo.gspo, "mask_nt, level, segments", "mask_nt, 'decision', segments", GSPO),
    Mutant("no clamp", gspo.gspo, "clamped(log_s, cap_low, cap_high).exp()", "log_s.exp()", GSPO),
    Mutant("advantage not masked", gspo.gspo, "factor(adv_nt, mask_nt)", "adv_nt", GSPO),
    Mutant("dual clip dropped", gspo.gspo, "dual_clip=dual_clip", "dual_clip=None", GSPO),
    Mutant("forms swapped", gspo.gspo, 'form == "token"', 'form == "sequence"', GSPO),
    Mutant("sign flipped", cispo.cispo, "-weight * factor", "weight * factor", CISPO),
    Mutant("weight keeps its gradient", cispo.cispo, "logp_nt.detach(), old_logp_nt", "logp_nt, old_logp_nt", CISPO),
    Mutant("upper bound as lower", cispo.cispo, "torch.minimum(ratio, high)", "torch.maximum(ratio, high)", CISPO),
    Mutant("lower bound as upper", cispo.cispo, "torch.maximum(weight, low)", "torch.minimum(weight, low)", CISPO),
    Mutant(
        "cap read as offset",
        cispo.cispo,
        '1 + eps_high_nt if bound == "offset" else eps_high_nt',
        "1 + eps_high_nt",
        CISPO,
    ),
    Mutant(
        "log-prob not masked", cispo.cispo, "torch.where(mask, logp_nt, torch.zeros_like(logp_nt))", "logp_nt", CISPO
    ),
    Mutant("no clamp", cispo.cispo, "clamped(diff).exp()", "diff.exp()", CISPO),
    Mutant("advantage not masked", cispo.cispo, "factor(adv_nt, mask_nt)", "adv_nt", CISPO),
    Mutant("sign flipped", reinforce.reinforce, "-factor", "factor", PLAIN),
    Mutant(
        "log-prob not masked",
        reinforce.reinforce,
        "torch.where(mask_nt.bool(), logp_nt, torch.zeros_like(logp_nt))",
        "logp_nt",
        PLAIN,
    ),
    Mutant("advantage dropped", reinforce.reinforce, "-factor(adv_nt, mask_nt) *", "-", PLAIN),
    Mutant("sign flipped", reinforce.supervised, "factor(adv_nt, mask_nt) *", "-factor(adv_nt, mask_nt) *", PLAIN),
    Mutant(
        "loss not masked",
        reinforce.supervised,
        "torch.where(mask_nt.bool(), supervised_nt, torch.zeros_like(supervised_nt))",
        "supervised_nt",
        PLAIN,
    ),
    # ---- ratios
    Mutant(
        "mask after the difference",
        ratios.masked_difference,
        "torch.where(use, torch.where(use, logp_nt, zero) - torch.where(use, old_logp_nt, zero).to(logp_nt), zero)",
        "(logp_nt - old_logp_nt) * use",
        GATES,
    ),
    Mutant("no mask", ratios.masked_difference, "mask_nt.bool() & ", "", GATES + KL),
    Mutant("lost log-probs stay", ratios.masked_difference, " & torch.isfinite(old_logp_nt)", "", GATES),
    Mutant("old pass not detached", ratios.masked_difference, "old_logp_nt.detach()", "old_logp_nt", GATES),
    Mutant("advantage not detached", ratios.factor, "adv_nt.detach()", "adv_nt", GATES + PLAIN),
    Mutant("widths not detached", ratios.limit, ".detach()", "", PPO),
    Mutant(
        "sum instead of mean",
        ratios.row_mean,
        " / mask_nt.bool().sum(1).clamp(min=1).to(x_nt.dtype)",
        "",
        GSPO,
    ),
    Mutant("mean over padding too", ratios.row_mean, "mask_nt.bool().sum(1)", "torch.ones_like(mask_nt).sum(1)", GSPO),
    Mutant("product taken as mean", ratios.at_level, 'row_mean if level == "row" else row_sum', "row_mean", PPO),
    Mutant("mean taken as product", ratios.at_level, 'row_mean if level == "row" else row_sum', "row_sum", PPO),
    Mutant("limit of the advantage ignored", ratios.factor, "adv_nt.clamp(-adv_clip, adv_clip)", "adv_nt", PPO),
    Mutant("limit above only", ratios.factor, "clamp(-adv_clip, adv_clip)", "clamp(max=adv_clip)", PPO),
    Mutant("no clamp of an empty row", ratios.row_mean, ".clamp(min=1)", "", GSPO),
    Mutant("segments shared by rows", ratios.segment_groups, "row_nt * width + ", "", PPO),
    Mutant("segments ignored", ratios.segment_groups, "row_nt * width + (number_nt - low)", "row_nt", PPO),
    Mutant("clamp removed", ratios.clamped, "log_ratio.clamp(low, high)", "log_ratio", GATES),
    Mutant(
        "number rounded to float32",
        ratios.limit,
        "torch.as_tensor(value, dtype=like.dtype, device=like.device)",
        "torch.as_tensor(value).to(like)",
        PPO,
    ),
    Mutant(
        "level does not widen the scope",
        registry.Bound.scope.fget,  # type: ignore[attr-defined]
        'least = "decision" if level == "decision" else "segment" if level_segment(level) else "row"',
        'least = "decision"',
        PPO,
    ),
    # ---- KL and entropy
    Mutant("k1 sign", kl.kl_estimate, "k = -d\n", "k = d\n", KL),
    Mutant(
        "k2 not halved",
        kl.kl_estimate,
        'elif estimator == "k2":\n        k = d.square() / 2',
        'elif estimator == "k2":\n        k = d.square()',
        KL,
    ),
    Mutant("k3 without the linear term", kl.kl_estimate, "k = torch.expm1(d) - d\n", "k = torch.expm1(d)\n", KL),
    Mutant("k3 of the reverse", kl.kl_estimate, "k = torch.expm1(d) - d\n", "k = torch.expm1(-d) + d\n", KL),
    Mutant("k3+ with the gradient of k3", kl.kl_estimate, "(torch.expm1(d) - d).detach()", "(torch.expm1(d) - d)", KL),
    Mutant("k3+ without detach", kl.kl_estimate, "k2 - k2.detach()", "k2", KL),
    Mutant(
        "no clamp",
        kl.kl_estimate,
        "clamped(at_level(-masked_difference(logp_nt, ref_logp_nt, mask_nt), mask_nt, level), -cap, cap)",
        "at_level(-masked_difference(logp_nt, ref_logp_nt, mask_nt), mask_nt, level)",
        KL,
    ),
    Mutant("own clamp ignored", kl.kl_estimate, "level), -cap, cap)", "level))", KL, ("kl_limits",)),
    Mutant("max_value ignored", kl.kl_estimate, "k if max_value is None else k.clamp(-max_value, max_value)", "k", KL),
    Mutant(
        "correction without clamp",
        kl.kl,
        "clamped(log_rho).exp()",
        "log_rho.exp()",
        KL,
    ),
    Mutant(
        "correction upside down",
        kl.kl,
        "clamped(log_rho).exp()",
        "(-clamped(log_rho)).exp()",
        KL,
    ),
    Mutant("closed form not masked", kl.kl, "torch.where(mask_nt.bool(), kl_nt, torch.zeros_like(kl_nt))", "kl_nt", KL),
    Mutant("sign flipped", entropy.entropy, "-torch.where", "torch.where", on("penalty", "entropy")),
    Mutant(
        "not masked",
        entropy.entropy,
        "torch.where(mask_nt.bool(), entropy_nt, torch.zeros_like(entropy_nt))",
        "entropy_nt",
        on("penalty", "entropy"),
    ),
    # ---- weights, select, shape
    Mutant("no cap", tis.tis, ".clamp(max=cap)", "", on("weight", "tis")),
    Mutant(
        "upside down",
        tis.tis,
        "masked_difference(old_logp_nt.detach(), sampler_logp_nt, mask_nt)",
        "masked_difference(sampler_logp_nt, old_logp_nt.detach(), mask_nt)",
        on("weight", "tis"),
    ),
    Mutant("not detached", tis.tis, "old_logp_nt.detach()", "old_logp_nt", on("weight", "tis")),
    Mutant(
        "no clamp",
        tis.tis,
        "clamped(masked_difference(old_logp_nt.detach(), sampler_logp_nt, mask_nt)).exp().clamp(max=cap)",
        "masked_difference(old_logp_nt.detach(), sampler_logp_nt, mask_nt).exp()",
        on("weight", "tis"),
    ),
    Mutant("inverted", zero_variance.zero_variance, "~flat_rows", "flat_rows", on("select", "zero-variance")),
    Mutant("any component", groups.flat_rows, "flat &=", "flat |=", on("select", "zero-variance")),
    Mutant(
        "missing components count", groups.flat_rows, "torch.isfinite(part_n)", "None", on("select", "zero-variance")
    ),
    Mutant("a bonus", shaping.overlong, "detach() + weight", "detach() - weight", on("shape", "overlong")),
    Mutant("not detached", shaping.overlong, "reward_n.detach()", "reward_n", on("shape", "overlong")),
    Mutant(
        "slope sign",
        shaping.overlong_penalty,
        "(free - length_n) / cache",
        "(length_n - free) / cache",
        on("shape", "overlong"),
    ),
    Mutant(
        "no floor",
        shaping.overlong_penalty,
        "torch.where(length_n > max_length, torch.full_like(soft, -1.0), soft)",
        "soft",
        on("shape", "overlong"),
    ),
    # ---- advantages
    Mutant("ddof swapped", grpo.grpo, "ddof=ddof", "ddof=1 - ddof", GRPO),
    Mutant("divided by the variance", grpo.grpo, "(std_n + eps)", "(std_n * std_n + eps)", GRPO),
    Mutant("eps dropped", grpo.grpo, "(std_n + eps)", "std_n.clamp(min=1e-12)", GRPO),
    Mutant("mean not subtracted", grpo.grpo, "(reward_n - mean_n)", "reward_n", GRPO),
    Mutant("sign flipped", grpo.grpo, "reward_n - mean_n", "mean_n - reward_n", GRPO),
    Mutant(
        "keys ignored",
        grpo.grpo,
        "rewards_and_groups(reward_n, keys[key])",
        "rewards_and_groups(reward_n, keys[key] * 0)",
        GRPO,
    ),
    Mutant("mean not subtracted", grpo.dr_grpo, "reward_n - groups.mean(reward_n)", "reward_n", DR),
    Mutant("group deviation", grpo.batch_std, "whole.std", "groups.std", BATCH),
    Mutant("group mean lost", grpo.batch_std, "groups.mean", "whole.mean", BATCH),
    Mutant("ddof swapped", grpo.batch_std, "ddof=ddof", "ddof=1 - ddof", BATCH),
    Mutant("flat groups keep noise", grpo.relative, "adv_n.masked_fill(groups.flat(reward_n), 0.0)", "adv_n", RELATIVE),
    Mutant("not detached", grpo.relative, ".detach()", "", RELATIVE),
    Mutant("unrewarded rows count", grpo.relative, "adv_n.masked_fill(~groups.valid_n, 0.0)", "adv_n", DR),
    Mutant("singleton raw everywhere", grpo.relative, 'if singleton == "raw"', "if True", RELATIVE),
    Mutant(
        "NaN becomes a reward of 0",
        grpo.rewards_and_groups,
        "Groups(key_n, None if finite else torch.isfinite(reward_n))",
        "Groups(key_n)",
        RELATIVE,
    ),
    Mutant("the mean of all", rloo.rloo, "groups.leave_one_out(reward_n)", "groups.mean(reward_n)", RLOO),
    Mutant("not detached", constant.raw, ".detach()", "", on("advantage", "raw")),
    Mutant(
        "NaN kept",
        constant.raw,
        "torch.nan_to_num(as_float(reward_n), nan=0.0)",
        "as_float(reward_n)",
        on("advantage", "raw"),
    ),
    Mutant("biased variance", reinforce_pp.masked_whiten, "(n - 1)", "n", RPP),
    Mutant("mean over padding too", reinforce_pp.masked_whiten, "kept.sum() / n", "kept.mean()", RPP),
    Mutant(
        "no mask", reinforce_pp.masked_whiten, "mask = mask_nt.bool()", "mask = torch.ones_like(mask_nt.bool())", RPPB
    ),
    Mutant("not centred", reinforce_pp.masked_whiten, "kept - kept.sum() / n", "kept", RPP),
    Mutant(
        "reward on the first decision",
        reinforce_pp._reward_at_last,
        "torch.full_like(positions, -1)).amax(1)",
        "torch.full_like(positions, 99)).amin(1)",
        RPP,
    ),
    Mutant(
        "holes are discounted",
        reinforce_pp.reinforce_pp,
        "torch.where(mask[:, t], rtok[:, t] + gamma * running, running)",
        "rtok[:, t] + gamma * running",
        RPP,
        ("reinforce_pp_hole",),
    ),
    Mutant("gamma dropped", reinforce_pp.reinforce_pp, "gamma * running", "running", RPP),
    Mutant("KL is paid out", reinforce_pp.reinforce_pp, "rtok - beta_kl", "rtok + beta_kl", RPP, ("reinforce_pp_kl",)),
    Mutant(
        "KL upside down",
        reinforce_pp.reinforce_pp,
        "old_logp_nt - ref_logp_nt",
        "ref_logp_nt - old_logp_nt",
        RPP,
        ("reinforce_pp_kl",),
    ),
    Mutant("not detached", reinforce_pp.reinforce_pp, ".detach()", "", RPP),
    Mutant(
        "unrewarded rows count", reinforce_pp.reinforce_pp, "mask_nt.bool() & valid_n[:, None]", "mask_nt.bool()", RPP
    ),
    Mutant(
        "mean not subtracted", reinforce_pp.reinforce_pp_baseline, "reward_n - groups.mean(reward_n)", "reward_n", RPPB
    ),
    Mutant(
        "unrewarded rows count",
        reinforce_pp.reinforce_pp_baseline,
        "mask_nt.bool() & groups.valid_n[:, None]",
        "mask_nt.bool()",
        RPPB,
    ),
    # ---- reductions
    Mutant("count of all entries", reductions.token_mean, "mask.sum().to", "torch.as_tensor(mask.numel()).to", REDUCE),
    Mutant("count of rows", reductions.token_mean, "mask.sum().to", "mask.any(1).sum().to", REDUCE),
    Mutant("no length", reductions.seq_mean_token_mean, " / mask.sum(1, keepdim=True).clamp(min=1)", "", REDUCE),
    Mutant("an empty row divides by 0", reductions.seq_mean_token_mean, ".clamp(min=1)", "", REDUCE),
    Mutant("rows swapped", reductions._row_count, 'if rows == "nonempty"', 'if rows == "all"', REDUCE),
    Mutant(
        "divided by the length",
        reductions.seq_mean_token_sum,
        "mask.to(torch.float64),",
        "mask.to(torch.float64) / mask.sum(1, keepdim=True).clamp(min=1),",
        REDUCE,
    ),
    Mutant("without N", reductions.seq_mean_token_sum_norm, "len(mask) * length", "length", REDUCE),
    Mutant("global instead of local", reductions.token_mean_local, "Groups(part_n)", "Groups(part_n * 0)", LOCAL),
    Mutant("empty parts count", reductions.token_mean_local, "part_n[tokens_n > 0]", "part_n", LOCAL, ("empty_rows",)),
    Mutant(
        "masked NaN multiplied",
        reductions.reduce_loss,
        "torch.where(coef_nt != 0, loss_nt, torch.zeros_like(loss_nt))",
        "loss_nt",
        REDUCE,
    ),
    Mutant("no count", reductions.reduce_loss, "total / count.clamp(min=1e-12).to(loss_nt)", "total", REDUCE),
    # ---- groups
    Mutant(
        "invalid rows summed",
        groups.Groups._zeroed,
        "torch.where(self.valid_n, x_n, torch.zeros_like(x_n))",
        "x_n",
        (),
        ("groups",),
    ),
    Mutant(
        "invalid rows counted",
        groups.Groups._sizes,
        "self._sum_s(self.valid_n)",
        "self._sum_s(torch.ones_like(self.valid_n))",
        (),
        ("groups",),
    ),
    Mutant("ddof ignored", groups.Groups.mean_and_std, "self._size_s - ddof", "self._size_s", (), ("groups",)),
    Mutant("variance", groups.Groups.mean_and_std, ".sqrt_()", "", (), ("groups",)),
    Mutant("own row stays", groups.Groups.leave_one_out, " - self._zeroed(x_n)", "", (), ("groups",)),
    Mutant("size of the group", groups.Groups.leave_one_out, " - self.valid_n.to(torch.float64)", "", (), ("groups",)),
    Mutant(
        "invalid rows win",
        groups.Groups._range_s,
        "torch.where(self.valid_n, x_n, torch.full_like(x_n, -torch.inf))",
        "x_n",
        (),
        ("groups",),
    ),
    Mutant("largest instead of smallest", groups.Groups.min, "(x_n)[0]", "(x_n)[1]", (), ("groups",)),
    Mutant(
        "descending",
        groups.Groups.rank,
        "torch.argsort(filled, stable=True)",
        "torch.argsort(filled, stable=True, descending=True)",
        (),
        ("groups",),
    ),
    Mutant("rank over the batch", groups.Groups.rank, " - start_s[self.index_n[order]]", "", (), ("groups",)),
    Mutant("lower median", groups.Groups.median, " | (rank == size // 2)", "", (), ("groups",)),
    Mutant(
        "range not tested",
        groups.Groups.flat,
        "high_s - low_s <= FLAT",
        "high_s <= FLAT",
        (),
        ("groups",),
    ),
    Mutant(
        "a group in two blocks is two groups",
        groups._equal_blocks,
        " or not bool((first[1:] > first[:-1]).all())",
        "",
        (),
        ("groups",),
    ),
    Mutant(
        "blocks of mixed keys",
        groups._equal_blocks,
        "not bool((table == first[:, None]).all()) or ",
        "",
        (),
        ("groups",),
    ),
    Mutant("blocks of another size", groups._equal_blocks, "key_n.numel() % size", "False", (), ("groups",)),
    Mutant(
        "NaN is a reward",
        groups.total_reward,
        "torch.where(applies, reward_nk, torch.zeros_like(reward_nk))",
        "reward_nk",
        (),
        ("total_reward",),
    ),
    Mutant("weights dropped", groups.total_reward, " * weight_k", "", (), ("total_reward",)),
    Mutant(
        "no reward is a reward of 0",
        groups.total_reward,
        "torch.where(applies.any(-1), total, torch.full_like(total, torch.nan))",
        "total",
        (),
        ("total_reward",),
    ),
    # ---- the objective
    Mutant(
        "local count",
        objective.Objective.terms,
        "term.coef, part, counts[term.name]",
        "term.coef, part, mask.sum()",
        PPO,
    ),
    Mutant(
        "stand-in not detached",
        objective.Objective.terms,
        'table["logp_nt"].detach()',
        'table["logp_nt"]',
        (),
        ("old_stand_in_is_detached", "no_old_pass_means_ratio_one"),
    ),
    Mutant(
        "masked NaN multiplied",
        objective.Objective.terms,
        "torch.where(c != 0, loss, torch.zeros_like(loss)).mul(c)",
        "loss.mul(c)",
        (),
        ("masked_nan_in_terms",),
    ),
    Mutant(
        "weight on every term",
        objective.Objective.terms,
        "if term.weighted and weight_nt is not None",
        "if weight_nt is not None",
        (),
        ("weights_scale_the_policy_term_only",),
    ),
    Mutant(
        "weights add",
        objective.Objective._weights,
        "total * part",
        "total + part",
        (),
        ("weights_scale_the_policy_term_only",),
    ),
    Mutant(
        "lost log-probs counted",
        objective.Objective.prepare,
        'mask & torch.isfinite(table["old_logp_nt"])',
        "mask",
        (),
        ("lost_behaviour_leaves_the_count",),
    ),
    Mutant(
        "shape after the advantage",
        objective.Objective.prepare,
        'table.updated({"reward_n": bound(table)})',
        "table",
        (),
        ("advantages_are_prepared",),
    ),
    Mutant(
        "masked advantages kept",
        objective.Objective.prepare,
        "torch.where(mask, adv_nt, torch.zeros_like(adv_nt))",
        "adv_nt",
        (),
        ("advantages_are_prepared",),
    ),
    Mutant(
        "coefficient dropped",
        objective.Term.value,
        "self.coef * self.sum",
        "self.sum",
        (),
        ("weights_scale_the_policy_term_only",),
    ),
    Mutant(
        "count dropped",
        objective.Term.value,
        " / self.count.to(self.sum).clamp(min=1e-12)",
        "",
        (),
        ("weights_scale_the_policy_term_only",),
    ),
    Mutant(
        "statistics over padding",
        objective.Objective._stat,
        "torch.where(mask, x, torch.zeros_like(x)).sum()",
        "x.sum()",
        (),
        ("lost_behaviour_leaves_the_count", "masked_nan_in_terms"),
    ),
]
