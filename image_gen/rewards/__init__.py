"""Rewards for pictures. `image_gen.rewards.catalogue` registers them all; importing this package loads nothing."""
