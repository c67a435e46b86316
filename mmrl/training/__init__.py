"""One loop for all families: trainer, streaming update, checkpoint, metrics, report."""
