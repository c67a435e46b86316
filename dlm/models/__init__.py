"""Native masked diffusion language models that load the released checkpoints, and what tells them apart."""
