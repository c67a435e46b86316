"""Reward tables -> advantages, always detached. One file a method family: the listing is the catalogue."""
