"""Likelihoods and advantages -> loss per decision, to minimise."""
