"""Answers of a stored model about clips and pictures: `mmrl generate` for video-language models."""

from __future__ import annotations

from pathlib import Path

from mmrl.vlm.generate import DEFAULT_FRAME, settings, write_answers


def generate(
    checkpoint: Path,
    *,
    prompt: str,
    video: list[Path] | None = None,
    image: list[Path] | None = None,
    n: int = 1,
    seed: int = 0,
    config: str | None = None,
    base: str | None = None,
    out: Path = Path("generated"),
) -> list[Path]:
    """Answer a question about videos, pictures or both; write the answers, and frames of the first video as a strip.

    n       one answer is greedy, several are sampled.
    config  default the run's own. base: where the base model of an adapter is, if it is not found.
    """
    from mmrl import families
    from mmrl.core.streams import Streams
    from mmrl.data.records import Record
    from mmrl.training.rollouts import Request
    from mmrl.training.setup import prepare_machine

    resolved = settings(checkpoint, config, base=base, family="video", train="clips:train")
    prepare_machine(resolved)
    policy = families.entry(resolved.family).load_policy(resolved)
    pictures, clips = (tuple(str(p.resolve()) for p in paths or []) for paths in (image, video))
    record = Record(id="generate", task="open-ended", prompt=prompt, images=pictures, videos=clips)
    rollouts = policy.rollout([Request(record, n)], Streams(seed, 0, "generate"), greedy=n == 1)
    answers = policy.describe(rollouts, range(len(rollouts)))
    return write_answers(answers, out, prompt=prompt, checkpoint=str(checkpoint), seed=seed, frame=DEFAULT_FRAME)
