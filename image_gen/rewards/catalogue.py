"""Importing this module registers every image reward. Loads no torch: the first call of a reward loads its model."""

from image_gen.rewards import (
    aesthetic,
    clip_score,
    composition,
    hps,
    image_reward,
    jpeg,
    ocr,
    pick_score,
    remote,
    scorer_process,
    toys,
    variety,
)

__all__ = [
    "aesthetic",
    "clip_score",
    "composition",
    "hps",
    "image_reward",
    "jpeg",
    "ocr",
    "pick_score",
    "remote",
    "scorer_process",
    "toys",
    "variety",
]
