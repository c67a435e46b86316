"""Which prompts are asked, how many samples each gets, and what of them is kept."""
