"""Which colour has a detected object: by CLIP, as GenEval does, or by the mean of its middle pixels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn.functional import normalize

from image_gen.rewards.clip_towers import Towers, image_embeddings
from image_gen.rewards.composition_rules import COLOURS, Found

if TYPE_CHECKING:
    from PIL import Image

TEMPLATES = ("a photo of a {colour} {name}", "a photo of a {colour}-colored {name}", "a photo of a {colour} object")

#: CSS values of the ten names, for `colour: pixels`.
RGB = {
    "red": (255, 0, 0),
    "orange": (255, 165, 0),
    "yellow": (255, 255, 0),
    "green": (0, 128, 0),
    "blue": (0, 0, 255),
    "purple": (128, 0, 128),
    "pink": (255, 192, 203),
    "brown": (165, 42, 42),
    "black": (0, 0, 0),
    "white": (255, 255, 255),
}


def crop(image: Image.Image, one: Found, *, middle: float = 1.0) -> Image.Image:
    """The part of the picture in the box, at least one pixel; middle: this share of each side, around the centre."""
    x1, y1, x2, y2 = one.box
    cx, cy, half_w, half_h = (x1 + x2) / 2, (y1 + y2) / 2, middle * (x2 - x1) / 2, middle * (y2 - y1) / 2
    left = min(max(int(cx - half_w), 0), image.width - 1)
    top = min(max(int(cy - half_h), 0), image.height - 1)
    right = min(max(round(cx + half_w), left + 1), image.width)
    bottom = min(max(round(cy + half_h), top + 1), image.height)
    return image.crop((left, top, right, bottom))


def colours_by_pixels(image: Image.Image, objects: Sequence[Found]) -> list[str]:
    """The name whose RGB value is nearest (Euclidean) to the mean colour of the middle half of the box. Our own rule:
    good for flat drawings, not for photographs."""
    names = []
    for one in objects:
        part = crop(image, one, middle=0.5).resize((1, 1), resample=4)  # 4 = box filter: the mean
        pixel = part.convert("RGB").tobytes()
        names.append(min(COLOURS, key=lambda name: sum((a - b) ** 2 for a, b in zip(pixel, RGB[name], strict=True))))
    return names


def colour_classifier(model: Towers, name: str) -> Tensor:
    """One direction a colour, [10, D]: the mean of the three templates' unit embeddings, of unit length again."""
    texts = [template.format(colour=colour, name=name) for colour in COLOURS for template in TEMPLATES]
    embed = normalize(model.text_features(texts).float(), dim=-1).cpu()
    return normalize(embed.view(len(COLOURS), len(TEMPLATES), -1).mean(dim=1), dim=-1)


def colours_by_clip(
    model: Towers, image: Image.Image, name: str, objects: Sequence[Found], *, batch_size: int
) -> list[str]:
    """The colour whose text is nearest to the crop of each object (GenEval masks the background, which needs a
    segmentation; a box has none)."""
    if not objects:
        return []
    classifier = colour_classifier(model, name)
    embed_nd = image_embeddings(model, [crop(image, one) for one in objects], batch_size=batch_size)
    return [COLOURS[int(i)] for i in torch.argmax(embed_nd @ classifier.T, dim=1)]
