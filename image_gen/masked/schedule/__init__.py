"""The schedule policy of Co-GRPO: a Gaussian over raw actions on top of a hand-made schedule.

A reconstruction after AdaNAT's code (arXiv 2409.00342), by the same group: Co-GRPO's own distribution
was not published. `targets` has the hand-made schedule, `actions` the map from raw actions to values and
their likelihood, `table` and `net` the means, `deviation` the noise, `acting` what the sampler calls.
"""
