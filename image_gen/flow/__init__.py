"""Flow-matching image models: a denoising step is a decision. Importing this package loads no torch.

Axes: N images, S denoising steps. A latent is [N, ...]: the batch axis first, any trailing axes.
"""
