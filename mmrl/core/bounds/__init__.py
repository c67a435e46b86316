"""Clip widths of the gates: numbers or [N,T] tables."""
