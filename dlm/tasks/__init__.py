"""Language tasks with verifiable answers: generators by seed, and readers of published data sets. Loads no torch."""

from dlm.tasks.catalogue import builtin, chance

__all__ = ["builtin", "chance"]
