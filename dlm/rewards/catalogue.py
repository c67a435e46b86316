"""Importing this module registers the rewards of language tasks and says which `auto` uses. Loads no torch."""

from dlm.rewards import countdown, exact, formats, mathematics, speed, sudoku
from mmrl.rewards.registry import set_task_rewards

__all__ = ["countdown", "exact", "formats", "mathematics", "speed", "sudoku"]

#: Task -> rewards that `auto` stands for. Those of published data are the sets of d1 (arXiv 2504.12216).
AUTO = {
    "sorting": ("exact",),
    "arithmetic": ("exact",),
    "sums": ("exact",),
    "countdown": ("countdown",),
    "sudoku4": ("sudoku_cells",),
    "sudoku4_open": ("sudoku_solved",),
    "gsm8k": ("xml_count", "soft_format", "strict_format", "int", "gsm8k"),
    "math": ("math", "boxed"),
}
for _task, _names in AUTO.items():
    set_task_rewards(_task, _names)
