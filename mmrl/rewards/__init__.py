"""Verifiable rewards: plain functions by name, chosen by a record's task.

Loads no torch; `mmrl.rewards.score` does.
"""

from mmrl.rewards.registry import reward, set_task_rewards

__all__ = ["reward", "set_task_rewards"]
