"""Factors on each decision's loss, always detached."""
