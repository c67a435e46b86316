"""Masked diffusion language models: adapters, samplers, likelihood estimators, tasks, the policy."""
