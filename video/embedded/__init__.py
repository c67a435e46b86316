"""The embedded default of the family: clips of moving digits, questions about them, a tiny model."""
