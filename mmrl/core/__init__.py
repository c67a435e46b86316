"""Pure tensor functions of group-relative policy optimisation: no model, no I/O, no logging, no collectives.

Axes, used as name suffixes everywhere: N rollouts, T decisions, K reward components, V vocabulary, S segments.
"""
