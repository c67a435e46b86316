"""CLIP's two towers, from transformers folders or open_clip, behind one interface. Axes: N pictures, D embedding.

Embeddings are float32 on the CPU and L2-normalised. No gradient.
"""

from __future__ import annotations

import json
import pickle
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from image_gen.rewards.models import Held, in_use, loaded, need_words, pretrained, unreadable
from image_gen.rewards.pictures import chunks, distinct, warn_once
from mmrl.errors import UserError

if TYPE_CHECKING:
    from PIL import Image


class Towers(nn.Module, ABC):
    """Text and image encoder of one CLIP model. `context` is how many tokens the text encoder reads."""

    context: int

    @property
    def device(self) -> torch.device:
        return next(self.parameters()).device

    @abstractmethod
    def scale(self) -> float:
        """exp(logit_scale)."""

    @abstractmethod
    def image_features(self, images: Sequence[Image.Image]) -> Tensor:
        """[N, D], not normalised."""

    @abstractmethod
    def text_features(self, texts: Sequence[str]) -> Tensor:
        """[N, D], not normalised; texts are cut at `context` tokens."""

    @abstractmethod
    def overlong(self, texts: Sequence[str]) -> int:
        """How many of the texts are cut."""


class TransformersTowers(Towers):
    """`CLIPModel` with the processor of its folder, or of another one (released reward models come without)."""

    def __init__(self, path: str, processor: str | None) -> None:
        super().__init__()
        from transformers import CLIPModel, CLIPProcessor

        self.model: Any
        self.processor: Any
        self.model = pretrained(CLIPModel, path, kind="clip")
        try:
            self.processor = CLIPProcessor.from_pretrained(processor or path)
        except (OSError, ValueError, TypeError) as error:
            hint = "" if processor else " (a model without its own processor: name one with the option `processor`)"
            raise UserError(f"{unreadable(processor or path, error)}{hint}") from None
        text = self.model.config.text_config
        need_words(self.processor.tokenizer, processor or path, most=text.vocab_size)
        self.context = int(text.max_position_embeddings)

    def scale(self) -> float:
        return float(self.model.logit_scale.exp())

    def image_features(self, images: Sequence[Image.Image]) -> Tensor:
        inputs = self.processor.image_processor(list(images), return_tensors="pt")
        return tensor_of(self.model.get_image_features(pixel_values=inputs["pixel_values"].to(self.device)))

    def text_features(self, texts: Sequence[str]) -> Tensor:
        tokens = self.processor.tokenizer(
            list(texts), padding=True, truncation=True, max_length=self.context, return_tensors="pt"
        ).to(self.device)
        found = self.model.get_text_features(input_ids=tokens["input_ids"], attention_mask=tokens["attention_mask"])
        return tensor_of(found)

    def overlong(self, texts: Sequence[str]) -> int:
        ids = self.processor.tokenizer(list(texts), truncation=True, max_length=self.context + 1)["input_ids"]
        return sum(len(row) > self.context for row in ids)


class OpenClipTowers(Towers):
    """open_clip: a folder with open_clip_config.json, `hf-hub:owner/name`, or an architecture and a weights file."""

    def __init__(self, name: str, weights: str | None) -> None:
        super().__init__()
        try:
            import open_clip
        except ImportError:
            raise UserError("it needs open_clip: pip install open_clip_torch") from None
        try:
            # without require_pretrained a hub model whose weights do not arrive would stay random, with a log line
            self.model, _, self.transform = open_clip.create_model_and_transforms(
                name, pretrained=weights, precision="fp32", weights_only=True, require_pretrained=True
            )
            self.tokenizer = open_clip.get_tokenizer(name)
        except pickle.UnpicklingError:
            raise UserError(
                f"{weights or name} holds more than tensors (Python objects or code) or is damaged, "
                "and is not opened; download the released file again"
            ) from None
        except (OSError, ValueError, RuntimeError) as error:
            raise unreadable(weights or name, error) from None
        self.context = int(self.model.context_length)

    def scale(self) -> float:
        return float(self.model.logit_scale.exp())

    def image_features(self, images: Sequence[Image.Image]) -> Tensor:
        pixels = torch.stack([self.transform(image) for image in images]).to(self.device)
        found: Tensor = self.model.encode_image(pixels)
        return found

    def text_features(self, texts: Sequence[str]) -> Tensor:
        tokens = self.tokenizer(list(texts), context_length=self.context).to(self.device)
        found: Tensor = self.model.encode_text(tokens)
        return found

    def overlong(self, texts: Sequence[str]) -> int:
        rows = self.tokenizer(["", *texts], context_length=self.context + 1)
        return int((rows[1:, -1] != rows[0, -1]).sum())  # the first row ends in padding


def tensor_of(found: Any) -> Tensor:
    """Projected features: a tensor in transformers 4, in 5 an object that holds them as `pooler_output`."""
    features: Tensor = found if isinstance(found, Tensor) else found.pooler_output
    return features


def is_open_clip(path: str) -> bool:
    """A hub name with the prefix hf-hub:, or a folder that only open_clip reads."""
    if path.startswith("hf-hub:"):
        return True
    config = Path(path) / "config.json"
    if (Path(path) / "open_clip_config.json").is_file():
        return not config.is_file() or json.loads(config.read_text(encoding="utf-8")).get("model_type") != "clip"
    return False


def towers(path: str, *, device: str, processor: str | None = None) -> Held:
    """The CLIP model at `path`, shared by all rewards of the process that name it."""
    if is_open_clip(path):
        if processor is not None:
            raise UserError("the option `processor` is for transformers folders, not open_clip")
        name = path if path.startswith("hf-hub:") else f"local-dir:{path}"
        return loaded(("open_clip", name), device, lambda: OpenClipTowers(name, None))
    key = ("clip", path, processor)
    return loaded(key, device, lambda: TransformersTowers(path, processor))


def image_embeddings(model: Towers, images: Sequence[Image.Image], *, batch_size: int) -> Tensor:
    """[N, D] on the CPU, unit length."""
    parts = [model.image_features(images[at]).float().cpu() for at in chunks(len(images), batch_size)]
    return normalize(torch.cat(parts), dim=-1)


def text_embeddings(model: Towers, texts: Sequence[str], *, batch_size: int, reward: str) -> Tensor:
    """[N, D] on the CPU, unit length; equal texts are encoded once, texts that are cut are told once."""
    unique, place = distinct(texts)
    cut = model.overlong(unique)
    if cut:
        warn_once(
            f"overlong {reward}",
            f"reward {reward!r}: {cut} prompts are longer than {model.context} tokens and are cut for scoring",
        )
    parts = [model.text_features(unique[at]).float().cpu() for at in chunks(len(unique), batch_size)]
    return normalize(torch.cat(parts), dim=-1)[place]


def pair_cosines(
    held: Held, images: Sequence[Image.Image], texts: Sequence[str], *, offload: bool, batch_size: int, reward: str
) -> tuple[Tensor, float]:
    """cos of picture i with text i, float32 [N] on the CPU (the diagonal, never the full matrix); exp(logit_scale)."""
    if not images:
        return torch.zeros(0), 1.0
    with in_use(held, offload=offload) as model:
        image_nd = image_embeddings(model, images, batch_size=batch_size)
        text_nd = text_embeddings(model, texts, batch_size=batch_size, reward=reward)
        return (image_nd * text_nd).sum(-1), model.scale()
