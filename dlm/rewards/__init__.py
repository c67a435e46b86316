"""Verifiable rewards of language tasks; importing `dlm.rewards.catalogue` registers them. Loads no torch."""
