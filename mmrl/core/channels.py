"""THE table of channels: every tensor that a stage may ask for by naming it as a parameter.

A name ends in its axes (`_n`, `_nt`, `_nk`, `_ntk`, `_t`, `_k`). Channels of the policy exist once per pass; a prefix
names it: `sampler_` (while sampling), `old_` (start of the update), none (current, carries gradient), `ref_` (step 0).
"""

from __future__ import annotations

from dataclasses import dataclass

PASSES = ("sampler", "old", "ref")

#: What every policy's rollouts carry; all else that a policy gives it names in `provides`.
COMMON = frozenset({"mask_nt", "length_n", "limit_n", "finished_n"})


@dataclass(frozen=True)
class Channel:
    """axes: letters of the suffix. grad: carries gradient in the current pass. provider: who fills it."""

    name: str
    axes: str
    grad: bool
    provider: str
    meaning: str


_ROWS = [
    # rewards and keys: known once the rollouts are scored
    ("reward_n", "n", False, "rewards", "weighted sum of the components; NaN = no reward applies to the row"),
    ("reward_nk", "nk", False, "rewards", "reward components; NaN = the component does not apply"),
    ("reward_ntk", "ntk", False, "rewards", "reward components of single decisions; NaN = not scored or no reward"),
    ("weight_k", "k", False, "rewards", "weight of each component in reward_n"),
    ("correct_n", "n", False, "rewards", "the row's answer is truly right, by the component marked with `success`"),
    ("mask_nt", "nt", False, "policy", "decisions that enter the loss"),
    ("length_n", "n", False, "policy", "decisions taken, end included"),
    ("limit_n", "n", False, "policy", "most decisions the sampler would have taken"),
    ("finished_n", "n", False, "policy", "the row ended by itself"),
    ("dt_nt", "nt", False, "policy", "step width of each denoising step, negative"),
    ("sigma_nt", "nt", False, "policy", "diffusion coefficient sigma_t of each denoising step, without sqrt(-dt)"),
    ("scored_nt", "nt", False, "policy", "decisions whose own output was scored (reward_ntk)"),
    ("prompt_mean_n", "n", False, "tracker", "running mean of the rewards of the row's prompt, over steps of training"),
    ("prompt_std_n", "n", False, "tracker", "their running deviation"),
    ("part_n", "n", False, "trainer", "which micro-batch the row belongs to"),
    # the policy's passes
    ("logp_nt", "nt", True, "policy", "log-probability of each decision"),
    ("entropy_nt", "nt", True, "policy", "entropy of each decision's distribution, nats"),
    ("kl_nt", "nt", True, "policy", "closed-form KL to the reference, where a family has one"),
    ("mean_gap_nt", "nt", True, "policy", "mean over elements of (mean now - mean while sampling)^2, of Gaussians"),
    ("supervised_nt", "nt", True, "policy", "the family's own supervised loss, per decision"),
    # results of stages
    ("adv_n", "n", False, "advantage", "advantage of each row"),
    ("adv_nt", "nt", False, "advantage", "advantage of each decision"),
    ("keep_n", "n", False, "select", "rows that are trained on"),
    ("weight_nt", "nt", False, "weight", "factor on each decision's loss"),
    ("eps_low_nt", "nt", False, "bounds", "lower clip width; a number or a table"),
    ("eps_high_nt", "nt", False, "bounds", "upper clip width; a number or a table"),
    ("loss_nt", "nt", True, "gate", "loss of each decision, to minimise"),
]
CHANNELS: dict[str, Channel] = {row[0]: Channel(*row) for row in _ROWS}  # type: ignore[arg-type]


def add_channel(channel: Channel) -> None:
    """For plug-ins and families: a new name. Raises ValueError when the name is taken or its suffix is not its axes."""
    if channel.name in CHANNELS:
        raise ValueError(f"channel {channel.name!r} exists already")
    if not channel.name.endswith("_" + channel.axes):
        raise ValueError(f"channel {channel.name!r} must end in its axes '_{channel.axes}'")
    CHANNELS[channel.name] = channel


def split_pass(name: str) -> tuple[str, str]:
    """`old_logp_nt` -> ("old", "logp_nt"); a name without prefix is the current pass, ""."""
    head, _, rest = name.partition("_")
    if head in PASSES and rest in CHANNELS and CHANNELS[rest].provider == "policy":
        return head, rest
    return "", name


def is_channel(name: str) -> bool:
    return split_pass(name)[1] in CHANNELS


def axes_of(name: str) -> str:
    """Axes by suffix, so that a stage's own metrics slice as well."""
    tail = name.rsplit("_", 1)[-1]
    return tail if tail and set(tail) <= set("ntk") and "_" in name else ""


def carries_gradient(name: str) -> bool:
    prefix, base = split_pass(name)
    return not prefix and base in CHANNELS and CHANNELS[base].grad
