"""How different the pictures of one prompt are. Pure."""

from __future__ import annotations

import torch
from torch import Tensor

from mmrl.core.groups import as_float


def pixel_diversity(images_nchw: Tensor, key_n: Tensor) -> Tensor:
    """Standard deviation of each pixel over the images of a prompt, averaged over pixels and prompts. []

    images_nchw: N pictures in [0, 1], any trailing axes; key_n: the prompt of each, integers [N]. Population deviation;
    every prompt counts alike, however many pictures it has. A prompt with one picture counts as 0: leave it out, or
    draw more. 0 = one picture a prompt, 0.5 = every pixel black or white at random. Detached.
    Raises ValueError without pictures and where the lengths differ.
    """
    if len(images_nchw) == 0 or images_nchw.dim() < 2 or key_n.shape != images_nchw.shape[:1]:
        raise ValueError(
            f"pictures [N, ...] and one key each are needed; got {list(images_nchw.shape)} and {list(key_n.shape)}"
        )
    images_nd = as_float(images_nchw.detach()).flatten(1)
    keys = key_n.to(images_nd.device)
    spread = [images_nd[keys == key].std(0, correction=0).mean() for key in keys.unique()]
    return torch.stack(spread).mean()
