"""Rewards of video tasks. `video.rewards.catalogue` registers them; nothing here loads torch."""
