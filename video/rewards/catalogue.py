"""Importing this module registers the rewards of video tasks and says which `auto` uses. Loads no torch.

Counting needs none of its own: `count` (task `counting`) has the exact and the graded form.
"""

from mmrl.rewards.registry import set_task_rewards
from video.rewards import choice, format, number, ocr, similarity, tiou, tracking

__all__ = ["choice", "format", "number", "ocr", "similarity", "tiou", "tracking"]

#: Task -> rewards that `auto` stands for. `choice`: those of TW-GRPO (arXiv 2505.24718), r = r_acc + r_format.
AUTO = {
    "choice": ("choice", "think_format"),
    "grounding-time": ("tiou", "think_format"),
    "tracking": ("tracking_iou", "think_format"),
    "ocr": ("ocr_words", "think_format"),
    "open-ended": ("rouge", "think_format"),
    "number": ("number", "think_format"),
    "regression": ("regression", "think_format"),
}
for _task, _names in AUTO.items():
    set_task_rewards(_task, _names)
