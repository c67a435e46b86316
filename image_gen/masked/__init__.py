"""Masked-diffusion images: a canvas of tokens is filled in steps, the model and its schedule are trained together.

Two channels of decisions share one advantage: `tokens` (a position, at the step that filled it) and `schedule` (the
action of a step: mask ratio, temperatures, guidance). Co-GRPO, arXiv 2512.22288. Loads no torch.
"""
