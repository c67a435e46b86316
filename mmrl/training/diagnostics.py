"""Signs of a run going wrong, each with advice. Thresholds are constants here and documented in docs/metrics.md."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

from mmrl.training.signs import (
    FIRST,
    Series,
    Sign,
    Test,
    above,
    below,
    counted_up,
    grown,
    jumped,
    outside,
    shrunk,
)

DISTINCT_LOW = 0.1  # share of different outputs in a step
DISTINCT_FALL = 3.0  # the share at the start over the share now
SPREAD_FALL = 2.0  # deviation of the pixels of a prompt's pictures, at the start over now
TRUNCATED_HIGH = 0.5  # share of samples cut at the length limit
FLAT_HIGH = 0.9  # share of groups without reward variance
ENTROPY_LOW = 0.01  # nats per decision
ENTROPY_FALL = 5.0  # at the start over now
ENTROPY_GROWTH = 3.0  # now over the start
LENGTH_GROWTH = 3.0  # mean length against the first steps
LENGTH_FALL = 3.0
KL_HIGH = 1.0  # nats per decision
KL_JUMP = 10.0  # times the median of the last 20 steps
KL_JUMP_LEAST = 0.1  # smaller values may jump
RATIO_FAR = 2.0  # mean ratio of a step, or its inverse
CLIPPED_HIGH = 0.3  # share of decisions at either bound
GRAD_JUMP = 10.0  # times the median of the last 20 steps

#: Metrics that an update measures, of the channel that its phase trains; all others are of rollouts or counts.
OF_UPDATES = ("entropy", "kl", "ratio", "clipped", "grad_norm", "sampler_gap", "unguarded_rewards")

WINDOW = 5  # steps that are averaged where one step says little
DIVERSITY_WINDOW = 10
ENTROPY_WINDOW = 2  # looks; there is one every log.entropy_every steps
CLEAR_AFTER = 5  # quiet looks in a row until a sign is said to have cleared
CONSTANT_CLEAR_AFTER = 25  # longer than ConstantWatch's patience: a single step that differs clears nothing


class Texts(NamedTuple):
    what: str
    clear: str
    advice: str


@dataclass(frozen=True)
class Rule:
    """One kind of trouble: what is said of it, and what when it has cleared. `{value}` and `{start}` are means over
    `window` values, now and at the start."""

    kind: str
    metric: str
    test: Test
    what: str
    clear: str
    advice: str
    window: int = 1

    def texts(self, series: Series) -> Texts:
        value, start = series.mean(self.window), series.start(self.window)
        return Texts(self.what.format(value=value, start=start), self.clear.format(value=value), self.advice)


RULES: tuple[Rule, ...] = (
    Rule(
        "distinct",
        "distinct",
        below(DISTINCT_LOW, window=WINDOW),
        "nearly all answers of a prompt are equal ({value:.0%} differ)",
        "answers of a prompt differ again ({value:.0%})",
        "raise sampling.temperature, lower optimiser.lr, or add a KL term or an entropy bonus",
        WINDOW,
    ),
    Rule(
        "diversity",
        "distinct",
        shrunk(DISTINCT_FALL, window=DIVERSITY_WINDOW),
        "answers of a prompt have become alike ({value:.0%} differ, {start:.0%} at the start)",
        "answers of a prompt are more varied again ({value:.0%} differ)",
        "natural when the reward is near its best; otherwise raise sampling.temperature or lower optimiser.lr",
        DIVERSITY_WINDOW,
    ),
    Rule(
        "spread",
        "spread",
        shrunk(SPREAD_FALL, window=DIVERSITY_WINDOW),
        "pictures of a prompt have become alike (deviation of a pixel {value:.2g}, {start:.2g} at the start)",
        "pictures of a prompt are more varied again (deviation of a pixel {value:.2g})",
        "end earlier, add or raise the KL term, narrow the clip, or add a second reward; compare held-out diversity",
        DIVERSITY_WINDOW,
    ),
    Rule(
        "unguarded",
        "unguarded_rewards",
        above(0.0),
        "{value:.0%} of the rewards are negative, and the temporal weight of this recipe takes ratios of them",
        "rewards are no longer negative",
        "set recipe_options advantage.omega_clip to [0.2, 5], or advantage.reward_shift to the smallest reward",
    ),
    Rule(
        "truncated",
        "truncated",
        above(TRUNCATED_HIGH, window=WINDOW),
        "most answers are cut off at the length limit ({value:.0%})",
        "fewer answers are cut off ({value:.0%})",
        "raise sampling.max_new_tokens, or discourage length (sampling.truncated: penalise)",
        WINDOW,
    ),
    Rule(
        "flat",
        "flat_groups",
        above(FLAT_HIGH, window=WINDOW),
        "hardly any group has answers of different reward ({value:.0%} of the groups are flat)",
        "fewer groups are flat ({value:.0%})",
        "nothing is learned from flat groups: use easier or harder prompts, a larger train.group or a finer reward",
        WINDOW,
    ),
    Rule(
        "entropy",
        "entropy",
        below(ENTROPY_LOW, window=ENTROPY_WINDOW),
        "the policy is nearly deterministic (entropy {value:.2g} nats a token)",
        "the policy is less deterministic (entropy {value:.2g} nats a token)",
        "lower optimiser.lr, raise sampling.temperature, or add an entropy bonus",
        ENTROPY_WINDOW,
    ),
    Rule(
        "entropy_fall",
        "entropy",
        shrunk(ENTROPY_FALL, window=ENTROPY_WINDOW),
        "entropy has fallen from {start:.2g} to {value:.2g} nats a token",
        "entropy has risen again, to {value:.2g} nats a token",
        "a collapse may follow: lower optimiser.lr, widen the upper clip bound, or add a KL term or an entropy bonus",
        ENTROPY_WINDOW,
    ),
    Rule(
        "entropy_growth",
        "entropy",
        grown(ENTROPY_GROWTH, window=ENTROPY_WINDOW, floor=0.1),
        "entropy has grown from {start:.2g} to {value:.2g} nats a token: answers become random",
        "entropy is back at {value:.2g} nats a token",
        "lower optimiser.lr or the entropy bonus, and check that a better answer earns the higher reward",
        ENTROPY_WINDOW,
    ),
    Rule(
        "length",
        "length",
        grown(LENGTH_GROWTH, window=WINDOW, floor=1.0),
        "answers have grown from {start:.0f} to {value:.0f} tokens",
        "answers are shorter again ({value:.0f} tokens)",
        "read some: does length itself earn reward? Add the overlong reward, or a reducer that does not favour length",
        WINDOW,
    ),
    Rule(
        "length_fall",
        "length",
        shrunk(LENGTH_FALL, window=WINDOW),
        "answers have shrunk from {start:.0f} to {value:.0f} tokens",
        "answers are longer again ({value:.0f} tokens)",
        "read some: is thinking dropped because only the end earns reward? Reward the format, or lower optimiser.lr",
        WINDOW,
    ),
    Rule(
        "kl",
        "kl",
        above(KL_HIGH, window=WINDOW),
        "the policy has moved far from its start (KL {value:.2g} nats a token)",
        "KL to the start is back at {value:.2g} nats a token",
        "lower optimiser.lr or raise the coefficient of the KL term; compare held-out metrics with an earlier step",
        WINDOW,
    ),
    Rule(
        "kl_jump",
        "kl",
        jumped(KL_JUMP, least=KL_JUMP_LEAST),
        "KL to the start jumped to {value:.2g} nats a token",
        "KL to the start is back at {value:.2g} nats a token",
        "lower optimiser.lr or optimiser.grad_norm; if it stays up, go back to the checkpoint before",
    ),
    Rule(
        "ratio",
        "ratio",
        outside(RATIO_FAR),
        "the new policy is far from the one that sampled (mean ratio {value:.2g})",
        "the mean ratio is back at {value:.2g}",
        "fewer updates on one batch (train.epochs, train.minibatches), a lower optimiser.lr, or tighter clip bounds",
    ),
    Rule(
        "clipped",
        "clipped",
        above(CLIPPED_HIGH, window=WINDOW),
        "many tokens stand at a clip bound ({value:.0%})",
        "fewer tokens stand at a clip bound ({value:.0%})",
        "fewer updates on one batch (train.epochs, train.minibatches), or a lower optimiser.lr",
        WINDOW,
    ),
    Rule(
        "grad_norm",
        "grad_norm",
        jumped(GRAD_JUMP),
        "the gradient norm jumped to {value:.2g}",
        "the gradient norm is back at {value:.2g}",
        "harmless once, as it is clipped to optimiser.grad_norm; if it recurs, lower optimiser.lr and read that step's "
        "answers",
    ),
    Rule(
        "skipped_updates",
        "skipped_updates",
        counted_up,
        "updates were left out because loss or gradient was not finite ({value:.0f} since the start)",
        "no further update was left out",
        "lower optimiser.lr, or train with model.autocast: off",
    ),
    Rule(
        "reward_failures",
        "reward_failures",
        counted_up,
        "a reward failed on some answers, which were left out ({value:.0f} since the start)",
        "no further reward failed",
        "the lines `reward skipped` name the records; try the reward with `mmrl check-reward MODULE:FUNCTION`",
    ),
    Rule(
        "skipped_records",
        "skipped_records",
        counted_up,
        "records could not be used and were passed over ({value:.0f} times since the start)",
        "no further record was passed over",
        "the lines `record skipped` name them; look at the file with `mmrl check-data FILE`",
    ),
)


def gap_texts(gap: float) -> Texts:
    """`gap`: the largest |ratio - 1| before the first update of the step."""
    return Texts(
        f"the update's likelihoods differ from the sampler's, by a ratio of up to {1 + gap:.4f}",
        f"the update's likelihoods agree with the sampler's again (ratio up to {1 + gap:.4f})",
        "usual causes: half precision (train with model.autocast: off), a kernel whose result depends on the batch "
        "size, dropout, or a sampling option that scoring does not know",
    )


def constant_texts(name: str, value: float | None) -> Texts:
    """`value`: what the component says; None once it differs."""
    return Texts(
        f"reward {name!r} gave every answer the same ({value:g}) for many steps" if value is not None else "",
        f"reward {name!r} differs between answers again",
        "it teaches nothing now; unless it is solved, check task, coordinate frame, answer format and the reward's "
        "options",
    )


class Diagnostics:
    """Looks at each step's metrics. Each kind of trouble is told once, and once more when it has cleared.

    by_phase   several channels are trained in turns: what an update measures is compared inside its phase only.
    densities  phases whose decisions are real-valued: their entropy may have any sign, so no rule reads it.
    """

    def __init__(self, *, by_phase: bool = False, densities: frozenset[str] = frozenset()) -> None:
        self.by_phase, self.densities = by_phase, densities
        self.active: dict[str, int] = {}  # kind -> quiet looks in a row
        self.series: dict[str, Series] = {}
        self.unlogged: list[dict[str, Any]] = []  # told, but not in metrics.jsonl yet

    def state_dict(self) -> dict[str, Any]:
        series = {name: asdict(s) for name, s in self.series.items()}
        return {"active": dict(self.active), "series": series, "unlogged": list(self.unlogged)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        if "first_length" in state:  # an older form: kinds without counts, and the first length alone
            self.active = dict.fromkeys(state["active"], 0)
            length = state["first_length"]
            self.series = {} if length is None else {"length": Series(first=[length] * FIRST)}
            self.unlogged = []
            return
        self.active = {str(kind): int(quiet) for kind, quiet in state["active"].items()}
        self.series = {name: Series(**values) for name, values in state["series"].items()}
        self.unlogged = list(state["unlogged"])

    def look(
        self, m: Mapping[str, Any], ratio_tolerance: float, constant: Mapping[str, float] | None = None
    ) -> list[Sign]:
        """After each step. Returns what began or cleared now.

        m                the step's metrics; what is missing or not finite is passed over.
        ratio_tolerance  the largest `sampler_gap` that is not told.
        constant         reward components that have said the same for long, with that value; None when this step had
                         no fresh samples to see.
        """
        step, fresh, phase = int(m.get("step", 0)), self._add(m), str(m.get("phase"))
        signs: list[Sign] = []
        for rule in RULES:
            if rule.metric in fresh:
                series, kind = self.series[fresh[rule.metric]], self._of_phase(rule.metric, phase, rule.kind)
                metric = "clip_high" if rule.metric == "clipped" else rule.metric
                texts = self._named(rule.metric, phase, rule.texts(series))
                self._tell(signs, step, kind, metric, texts, found=rule.test(series))
        if "sampler_gap" in fresh:
            gap, kind = self.series[fresh["sampler_gap"]].recent[-1], self._of_phase("sampler_gap", phase, "gap")
            texts = self._named("sampler_gap", phase, gap_texts(gap))
            self._tell(signs, step, kind, "sampler_gap", texts, found=gap > ratio_tolerance)
        if constant is not None:
            self._look_at_rewards(signs, step, constant)
        self.unlogged += [sign.plain() for sign in signs]
        return signs

    def take(self) -> list[dict[str, Any]]:
        """What was told since the last line of metrics.jsonl, for the next one."""
        taken, self.unlogged = self.unlogged, []
        return taken

    def _of_phase(self, metric: str, phase: str, name: str) -> str:
        """The name, of this phase where the metric is of an update and phases alternate."""
        return f"{phase}/{name}" if self.by_phase and metric in OF_UPDATES else name

    def _named(self, metric: str, phase: str, texts: Texts) -> Texts:
        """Which phase it is about, where that matters."""
        if self._of_phase(metric, phase, "") == "":
            return texts
        return Texts(f"{phase}: {texts.what}", f"{phase}: {texts.clear}", texts.advice)

    def _add(self, m: Mapping[str, Any]) -> dict[str, str]:
        """The step's values into the series; returns the metrics that had one, with the series of each."""
        phase = str(m.get("phase"))
        values = dict(m)
        if "clip_low" in m and "clip_high" in m:
            values["clipped"] = m["clip_low"] + m["clip_high"]
        if phase in self.densities:
            values.pop("entropy", None)
        fresh = {}
        for name in {rule.metric for rule in RULES} | {"sampler_gap"}:
            value = values.get(name)
            if isinstance(value, int | float) and math.isfinite(value):
                fresh[name] = self._of_phase(name, phase, name)
                self.series.setdefault(fresh[name], Series()).add(float(value))
        return fresh

    def _look_at_rewards(self, signs: list[Sign], step: int, constant: Mapping[str, float]) -> None:
        known = {kind.removeprefix("constant/") for kind in self.active if kind.startswith("constant/")}
        for name in sorted(known | set(constant)):
            texts = constant_texts(name, constant.get(name))
            kind, metric, found = f"constant/{name}", f"reward/{name}", name in constant
            self._tell(signs, step, kind, metric, texts, found=found, clear_after=CONSTANT_CLEAR_AFTER)

    def _tell(
        self,
        signs: list[Sign],
        step: int,
        kind: str,
        metric: str,
        texts: Texts,
        *,
        found: bool,
        clear_after: int = CLEAR_AFTER,
    ) -> None:
        """Add a sign when the trouble is new, or has been away for `clear_after` looks in a row."""
        known = kind in self.active
        if found:
            self.active[kind] = 0
            if not known:
                signs.append(Sign(step, kind, metric, texts.what, texts.advice))
        elif known:
            self.active[kind] += 1
            if self.active[kind] >= clear_after:
                del self.active[kind]
                signs.append(Sign(step, kind, metric, texts.clear, "", cleared=True))
