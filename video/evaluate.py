"""Greedy metrics of held-out records about clips, and the level of the best constant answer.

exact, soft             lettered questions (task `choice`), as `video.embedded.measures` says.
exact/TYPE, soft/TYPE   the same of each meta `type`, of questions with one right letter and with several.
blind_soft              soft of the same questions about other records' clips: what is known without looking. For clips
                        in memory only; files are not read twice.

Beside them the metrics of `mmrl.vlm.evaluate` for its own tasks, and the mean reward.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations

from mmrl.config import Config
from mmrl.core.streams import Streams
from mmrl.data.records import Record
from mmrl.errors import UserError
from mmrl.rewards.score import Scorer
from mmrl.training.policy import Policy
from mmrl.training.rollouts import Request, Rollouts
from mmrl.vlm.chance import levels_of, mean_reward
from mmrl.vlm.evaluate import rewarded, task_metrics
from mmrl.vlm.frame_look import frame_advice
from video.clips import Clip
from video.embedded.measures import MOST_LETTERS, blinded, by_type, constant_by_type, constant_levels, exact_and_soft
from video.rewards.choice import right_letters

#: Prompts encoded at once: their frames are many times what a picture is.
PROMPTS = 32


def evaluate(policy: Policy, records: Sequence[Record], config: Config) -> dict[str, float]:
    """The metrics above, from one greedy answer per record. Raises UserError without records."""
    return first_look(policy, records, config)[0]


def first_look(policy: Policy, records: Sequence[Record], config: Config) -> tuple[dict[str, float], list[str]]:
    """(the same metrics, a line for each thing that looks wrong with the answers before any training)."""
    if not records:
        raise UserError("data.eval: no records to evaluate; add some")
    rollouts = greedy(policy, records, rows=config.sampling.batch_rows, seed=config.seed)
    outputs = [str(o) for o in rollouts.outputs]
    metrics = choice_metrics(outputs, records) | task_metrics(outputs, records)
    if lettered := _blindable(records):
        others = blinded(lettered, seed=config.seed)
        said = greedy(policy, others, rows=config.sampling.batch_rows, seed=config.seed).outputs
        metrics["blind_soft"] = exact_and_soft([str(o) for o in said], others)["soft"]
    metrics["reward"] = rewarded(rollouts, records, config)
    metrics = dict(sorted(metrics.items(), key=lambda item: "/" in item[0]))  # the whole before its types
    return metrics, frame_advice(outputs, records, rollouts.info)


def greedy(policy: Policy, records: Sequence[Record], *, rows: int, seed: int) -> Rollouts:
    """One greedy rollout per record, in their order; frames are let go as soon as they were answered about."""
    parts = []
    size = min(rows, PROMPTS)
    for start in range(0, len(records), size):
        requests = [Request(record=r, n=1) for r in records[start : start + size]]
        part = policy.rollout(requests, Streams(seed, 0, "eval"), greedy=True)
        for row in part.rows:
            row.prompt.media = {}
        parts.append(part)
    return Rollouts.concat(parts)


def choice_metrics(outputs: Sequence[str], records: Sequence[Record]) -> dict[str, float]:
    """exact and soft, whole and by type; empty without lettered questions."""
    rows = [i for i, record in enumerate(records) if record.task == "choice"]
    if not rows:
        return {}
    said, asked = [outputs[i] for i in rows], [records[i] for i in rows]
    found = exact_and_soft(said, asked)
    return found | _named(by_type(said, asked))


def _named(by_type: dict[str, dict[str, float]]) -> dict[str, float]:
    """{"come": {"soft": x}} as {"soft/come": x}."""
    return {f"{metric}/{name}": value for name, levels in by_type.items() for metric, value in levels.items()}


def _blindable(records: Sequence[Record]) -> list[Record]:
    """The lettered questions about clips in memory that can be given another's clips: as many, not the same."""
    lettered = [r for r in records if r.task == "choice" and r.videos and all(isinstance(v, Clip) for v in r.videos)]
    alike: dict[int, list[tuple[Clip, ...]]] = {}
    for record in lettered:
        alike.setdefault(len(record.videos), []).append(record.videos)
    return [r for r in lettered if any(videos != r.videos for videos in alike[len(r.videos)])]


def chance(records: Sequence[Record], config: Config) -> dict[str, float]:
    """The level of each metric that the best constant answer reaches."""
    lettered = [r for r in records if r.task == "choice"]
    levels = levels_of([r for r in records if r.task != "choice"], config) if len(lettered) < len(records) else {}
    if not lettered:
        return levels
    levels.pop("reward", None)  # of the other tasks alone
    levels |= constant_levels(lettered)
    levels |= _named(constant_by_type(lettered))
    if not _blindable(records):
        levels.pop("blind_soft", None)
    if len(lettered) == len(records):
        letters = sorted(frozenset().union(*(right_letters(r) for r in records)))
        said = [",".join(some) for k in range(1, MOST_LETTERS + 1) for some in combinations(letters, k)]
        with Scorer(config.rewards) as scorer:
            levels["reward"] = max(mean_reward(scorer, text, records) for text in said)
    return levels
