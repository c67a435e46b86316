"""Answers of a stored model about clips and pictures: `mmrl generate` for video-language models."""

from __future__ import annotations

from pathlib import Path

from mmrl.vlm.generate import DEFAULT_FRAME, answer, settings, write_answers


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
    resolved = settings(checkpoint, config, base=base, family="video", train="clips:train")
    answers = answer(resolved, prompt, image or [], n=n, seed=seed, task="open-ended", videos=video or [])
    return write_answers(answers, out, prompt=prompt, checkpoint=str(checkpoint), seed=seed, frame=DEFAULT_FRAME)
