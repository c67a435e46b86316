"""The table: every registered stage with the option settings it is tested under, and the visible list of exemptions.

A stage that is registered without a row here fails `test_every_stage_has_a_row`.
"""

from __future__ import annotations

from collections.abc import Mapping

from core_world import PASS_CHANNELS, Case

from mmrl.core.registry import KINDS, Stage, stages

WIDTHS = ("eps_low_nt", "eps_high_nt")
PACKAGES = ("mmrl", "dlm", "image_gen", "video")  # a test's own plug-ins are not ours to prove

ROWS: dict[tuple[str, str], list[Case]] = {}


def _row(
    kind: str,
    name: str,
    *options: Mapping[str, object],
    without: tuple[str, ...] = (),
    given: dict[str, object] | None = None,
) -> None:
    ROWS.setdefault((kind, name), []).extend(Case(kind, name, o, without, given or {}) for o in (options or ({},)))


_row("shape", "overlong", {}, {"max_length": 5.0, "cache": 2.0, "weight": 0.5})
_row("advantage", "constant", {}, {"value": -2.0})
_row("advantage", "raw")
_row("advantage", "grpo", {}, {"ddof": 0}, {"eps": 1e-4, "singleton": "raw"})
_row("advantage", "dr-grpo", {}, {"singleton": "raw"})
_row("advantage", "batch-std", {}, {"ddof": 0, "eps": 1e-4})
_row("advantage", "grpo-per-reward", {}, {"ddof": 0, "eps": 1e-4}, {"singleton": "raw"})
_row("advantage", "decoupled", {}, *({"batch": b} for b in ("tokens", "group", "group-centred", "none")))
_row(
    *("advantage", "decoupled", {"ddof": 1, "eps": 1e-4, "batch_eps": 1e-4, "batch_floor": 0.0}),
    *({"modes": ["min-max", "signs"]}, {"modes": ["raw", "centre"], "weighted": False, "batch": "none"}),
    *({"modes": ["raw", "min-max"], "batch": "group-centred"}, {"modes": ["centre", "raw"], "batch": "group"}),
)
_row("advantage", "tracked", {}, {"eps": 0.1})
_row(
    *("advantage", "vgpo", {}, {"gamma": 0.5, "k": 0.0}, {"n_abs": 2, "omega_level": "group"}, {"form": "inner"}),
    *({"omega_clip": [0.2, 5.0]}, {"reward_shift": -1.0}, {"skip_first": 2, "eps": 0.1}),
)
_row("advantage", "rloo", {}, {"singleton": "raw"})
_row("advantage", "reinforce-pp", {}, {"gamma": 0.9}, {"beta_kl": 0.1, "gamma": 0.95})
_row("advantage", "reinforce-pp-baseline")
_row("select", "zero-variance")
_row("weight", "tis", {}, {"cap": 1.1})
_row("weight", "tw", {}, {"alpha": 1.0}, {"alpha": 3.0})
_row("weight", "tw", *({"form": form} for form in ("active", "calibrated", "calibrated-active")))
_row("bounds", "constant", {}, {"low": None, "high": 5.0})
_row("gate", "ppo-clip", {}, without=WIDTHS)
_row("gate", "ppo-clip", {}, {"dual_clip": 1.2}, {"delta": 1.3}, {"level": "row"}, {"level": "segment:step"})
_row("gate", "ppo-clip", {"adv_clip": 0.5}, {"level": "row-sum"}, {"cap_low": -0.7, "cap_high": 1.3})
_row("gate", "ppo-clip", {"level": "segment-sum:step"}, {"level": "segment-sum:step", "dual_clip": 1.2})
_row("gate", "gspo", {}, without=WIDTHS)
_row("gate", "gspo", {}, {"dual_clip": 1.05}, {"form": "sequence"}, {"level": "segment:step"})
_row("gate", "gspo", {"cap_low": -10.0, "cap_high": 10.0}, {"loss_norm": "length"}, {"level": "row-sum"})
_row("gate", "gspo", {"level": "row-sum", "loss_norm": "length", "form": "sequence"})
_row("gate", "gspo", {"level": "segment-sum:step"}, {"level": "segment-sum:step", "form": "sequence"})
_row("gate", "cispo", {}, without=WIDTHS)
_row("gate", "cispo", {"bound": "cap"}, without=("eps_low_nt",), given={"eps_high_nt": 5.0})
_row("gate", "cispo", {}, {"level": "row"}, {"level": "row-sum"}, {"level": "segment:step"})
_row("gate", "cispo", {"level": "segment-sum:step"})
_row("gate", "grpo-guard", {}, without=WIDTHS)
_row("gate", "grpo-guard", {}, {"adv_clip": 0.5}, {"reweight": False})
_row("gate", "reinforce")
_row("gate", "supervised")
_row("gate", "reg-grpo", {}, {"s_min": 0.01}, {"s_min": 100.0})
_row("penalty", "entropy")
_row(
    *("penalty", "kl"),
    *({"estimator": e} for e in ("k1", "k2", "k3", "k3+")),
    *({"off_policy": True}, {"max_value": 0.02}, {"cap": 0.05}),
    *({"level": "row", "estimator": "k2"}, {"level": "row-sum"}, {"level": "row-sum", "off_policy": True}),
    without=("kl_nt",),
)
_row("penalty", "kl", {}, {"off_policy": True}, {"level": "row"}, {"level": "row-sum"})
_row("penalty", "kl-old", {}, {"estimator": "k2", "level": "row"}, {"max_value": 0.02}, {"cap": 0.05})
_row("penalty", "nll")
_row("reduce", "token-mean")
_row("reduce", "token-mean-correct")
_row("reduce", "seq-mean-token-mean", {}, {"rows": "all"})
_row("reduce", "seq-mean-token-sum", {}, {"rows": "all"})
_row("reduce", "seq-mean-token-sum-norm", {}, {"length": 8.0})
_row("reduce", "token-mean-local")
_row(
    *("reduce", "seq-mean-segment-mean", {}, {"rows": "all"}, {"inside": "sum"}, {"over": "sum"}, {"counted": True}),
    *({"inside": "sum", "over": "sum"}, {"inside": "sum", "counted": True, "rows": "all"}),
)

#: (property, kind, name) -> why the property does not hold there, by design.
EXEMPT: dict[tuple[str, str, str], str] = {
    ("equal_rewards_give_zero", "advantage", "constant"): "imitation: the advantage does not come from rewards",
    ("equal_rewards_give_zero", "advantage", "raw"): "no baseline: equal rewards push all samples alike",
    ("equal_rewards_give_zero", "advantage", "reinforce-pp"): "whitened over the batch, not inside the group",
    (
        "equal_rewards_give_zero",
        "advantage",
        "reinforce-pp-baseline",
    ): "whitening shifts a flat group by the batch mean",
    (
        "equal_rewards_give_zero",
        "advantage",
        "tracked",
    ): "compared with earlier rewards of the prompt, not with the group",
    ("equal_rewards_give_zero", "advantage", "vgpo"): "the absolute term acts where a group's rewards do not differ",
    ("no_reward_no_influence", "advantage", "constant"): "imitation: every row counts, rewarded or not",
    ("on_policy_gradient", "gate", "supervised"): "a supervised loss has no ratio and no log-prob",
    ("clip_regions", "gate", "supervised"): "a supervised loss has no ratio and no log-prob",
    ("on_policy_gradient", "gate", "reg-grpo"): "a regression: at log-ratio 0 twice the centred advantage over s_min",
    ("clip_regions", "gate", "reg-grpo"): "no clip: the gradient depends on the log-ratios of the whole group",
    (
        "masked_decisions_count_nothing",
        "reduce",
        "token-mean-correct",
    ): "valid decisions of wrong rows count nothing too",
    ("split_does_not_matter", "reduce", "token-mean-local"): "the mean of each micro-batch is the definition",
}

#: What a check needs of a stage, by kind; other kinds are outside its subject.
GATES_AND_PENALTIES = ("gate", "penalty")


def registered() -> dict[tuple[str, str], Stage]:
    """Every stage of the toolkit itself, by (kind, name)."""
    found = {(k, n): s for k in KINDS for n, s in stages(k).items()}
    return {key: s for key, s in found.items() if s.fn.__module__.split(".")[0] in PACKAGES}


def cases(*kinds: str) -> list[Case]:
    return [case for (kind, _), row in ROWS.items() if kind in kinds for case in row]


def takes_widths(case: Case) -> bool:
    return case.kind == "gate" and case.reads("eps_high_nt")


def reads_pass(case: Case) -> bool:
    return any(case.reads(c) for c in PASS_CHANNELS)
