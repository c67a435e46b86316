"""Zero-shot object detection for the `composition` reward: OWL-ViT, OWLv2 and Grounding DINO of transformers.

Axes: Q boxes a picture, C classes. Boxes (x1, y1, x2, y2) in pixels of the picture. No gradient.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from image_gen.rewards.composition_rules import Found
from image_gen.rewards.models import need_words, pretrained, unreadable
from mmrl.errors import UserError

if TYPE_CHECKING:
    from PIL import Image

KINDS = ("owlv2", "owlvit", "grounding-dino", "mm-grounding-dino")


class Detector(nn.Module):
    """Any of `KINDS`, with its processor. The same weights give sigmoid scores per class; a box has its best class."""

    def __init__(self, path: str) -> None:
        super().__init__()
        from transformers import AutoConfig, AutoModelForZeroShotObjectDetection, AutoProcessor

        try:
            self.kind = str(AutoConfig.from_pretrained(path).model_type)
            if self.kind not in KINDS:
                raise UserError(f"{path} holds a {self.kind!r} model; zero-shot detectors: {', '.join(KINDS)}")
            self.processor = AutoProcessor.from_pretrained(path)
        except (OSError, ValueError, TypeError) as error:
            raise unreadable(path, error) from None
        need_words(self.processor.tokenizer, path)
        self.model: Any = pretrained(AutoModelForZeroShotObjectDetection, path)

    def forward(self, image: Image.Image, classes: Sequence[str], query: str | None) -> tuple[Tensor, Tensor]:
        """Boxes [Q, 4] and scores [Q, C], float32 on the CPU. query: text with {} for the class; None = as the model
        was trained ("a photo of a {}" for OWL, the bare name for Grounding DINO)."""
        if "dino" in self.kind:
            return self._dino(image, [(query or "{}").format(name).lower() for name in classes])
        return self._owl(image, [(query or "a photo of a {}").format(name) for name in classes])

    def _owl(self, image: Image.Image, phrases: list[str]) -> tuple[Tensor, Tensor]:
        inputs = self.processor(text=[phrases], images=image, return_tensors="pt").to(self.model.device)
        found = self.model(**inputs)
        width, height = image.size
        if self.kind == "owlv2":  # padded to a square at the right and below
            width = height = max(width, height)
        return _pixels(found.pred_boxes[0], width, height), found.logits[0].sigmoid().float().cpu()

    def _dino(self, image: Image.Image, phrases: list[str]) -> tuple[Tensor, Tensor]:
        text = " ".join(f"{phrase}." for phrase in phrases)
        inputs = self.processor(images=image, text=text, return_tensors="pt").to(self.model.device)
        words = self.processor.tokenizer(text, return_offsets_mapping=True)
        limit = int(self.model.config.max_text_len)
        if len(words["input_ids"]) > limit:
            raise UserError(f"{len(phrases)} classes make more than {limit} tokens for Grounding DINO")
        found = self.model(**inputs)
        score_qt = found.logits[0].sigmoid().float().cpu()
        score_qc = torch.stack(
            [score_qt[:, tokens].amax(dim=1) for tokens in spans(phrases, words["offset_mapping"])], dim=1
        )
        return _pixels(found.pred_boxes[0], *image.size), score_qc


def spans(phrases: Sequence[str], offsets: Sequence[tuple[int, int]]) -> list[list[int]]:
    """Token numbers of each phrase in "a. b. c.", from the characters that each token covers."""
    out, start = [], 0
    for phrase in phrases:
        stop = start + len(phrase)
        out.append([i for i, (a, b) in enumerate(offsets) if a < b and start <= a and b <= stop])
        if not out[-1]:
            raise UserError(f"the detector's tokenizer knows no part of {phrase!r}")
        start = stop + 2  # ". "
    return out


def _pixels(centre_q4: Tensor, width: int, height: int) -> Tensor:
    """Relative (cx, cy, w, h) to (x1, y1, x2, y2) in pixels."""
    from torchvision.ops import box_convert

    corners = box_convert(centre_q4.float().cpu(), "cxcywh", "xyxy")
    return corners * torch.tensor([width, height, width, height])


def kept(
    boxes: Tensor, scores: Tensor, classes: Sequence[str], *, threshold: float, nms: float, max_objects: int
) -> dict[str, list[Found]]:
    """Objects by class, by falling score, in GenEval's order: above the threshold, the surest `max_objects`, then of
    boxes that overlap by more than `nms` (IoU) the surest (1 = keep all)."""
    from torchvision.ops import nms as suppress

    best, label = scores.max(dim=1)
    out: dict[str, list[Found]] = {}
    for c, name in enumerate(classes):
        mine = torch.nonzero((label == c) & (best > threshold)).flatten()
        mine = mine[best[mine].argsort(descending=True, stable=True)][:max_objects]
        if nms < 1 and len(mine):
            mine = mine[suppress(boxes[mine], best[mine], nms)]
        if len(mine):
            out[name] = [Found(tuple(boxes[i].tolist()), float(best[i])) for i in mine]
    return out
