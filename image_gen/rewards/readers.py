"""Recognisers of text for the `ocr` reward: uint8 pictures [H, W, 3] -> pieces (text, confidence in [0, 1])."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn

from image_gen.rewards.models import Held, in_use, loaded, need_weights, need_words, pick_device, pretrained, unreadable
from image_gen.rewards.pictures import chunks
from mmrl.errors import UserError

Pieces = list[tuple[str, float]]
Reader = Callable[[Sequence[Any]], list[Pieces]]
GET_TROCR = "microsoft/trocr-base-printed (https://huggingface.co/microsoft/trocr-base-printed, licence MIT)"


def reader(engine: str, *, path: str | None, language: str, device: str, offload: bool, batch_size: int) -> Reader:
    """The recogniser by name, loaded once a process. Raises UserError when its package or its weights are missing, and
    for options that it has no use for."""
    if engine == "trocr":
        if language != "en":
            raise UserError("trocr has no option language; choose a checkpoint of that language by path")
        found = need_weights(path, get=GET_TROCR)
        held = loaded(("trocr", found), device, lambda: Trocr(found))
        return functools.partial(_read_trocr, held, offload=offload, batch_size=batch_size)
    if offload:
        raise UserError(f"{engine} cannot offload; leave the option out, or use engine: trocr")
    if engine == "easyocr":
        return _easyocr(path, language, str(pick_device(device)))
    if path is not None:
        raise UserError("paddleocr keeps its models in its own cache; leave out the option path")
    return _paddleocr(language, str(pick_device(device)))


class Trocr(nn.Module):
    """TrOCR (arXiv 2109.10282): one line of text per picture; beside the text it tells no confidence (1 is used)."""

    def __init__(self, path: str) -> None:
        super().__init__()
        from transformers import AutoImageProcessor, AutoTokenizer, VisionEncoderDecoderModel

        # the released checkpoints come without the encoder's pooler, which the decoder does not look at
        self.model: Any = pretrained(
            VisionEncoderDecoderModel, path, kind="vision-encoder-decoder", unused="encoder.pooler."
        )
        try:
            self.images = AutoImageProcessor.from_pretrained(path)
            self.words = AutoTokenizer.from_pretrained(path)
        except (OSError, ValueError) as error:
            raise unreadable(path, error) from None
        need_words(self.words, path)

    def forward(self, arrays: Sequence[Any]) -> list[str]:
        pixels = self.images(list(arrays), return_tensors="pt")["pixel_values"].to(self.model.device)
        ids = self.model.generate(pixels, do_sample=False)
        texts: list[str] = self.words.batch_decode(ids, skip_special_tokens=True)
        return texts


def _read_trocr(held: Held, arrays: Sequence[Any], *, offload: bool, batch_size: int) -> list[Pieces]:
    texts: list[str] = []
    with in_use(held, offload=offload) as model:
        for at in chunks(len(arrays), batch_size):
            texts += model(arrays[at])
    return [[(text, 1.0)] for text in texts]


@functools.cache
def _easyocr(path: str | None, language: str, device: str) -> Reader:
    try:
        import easyocr
    except ImportError:
        raise UserError("engine easyocr is not installed; pip install 'mmrl[ocr]'") from None
    with torch.random.fork_rng(devices=[]):
        engine = easyocr.Reader(
            [language],
            gpu=device if device != "cpu" else False,
            model_storage_directory=path,
            download_enabled=path is None,
            verbose=False,
        )

    def read(arrays: Sequence[Any]) -> list[Pieces]:
        return [[(str(text), float(sure)) for _, text, sure in engine.readtext(array)] for array in arrays]

    return read


@functools.cache
def _paddleocr(language: str, device: str) -> Reader:
    try:
        from paddleocr import PaddleOCR
    except ImportError:
        raise UserError(
            "engine paddleocr is not installed; pip install 'mmrl[paddleocr]' (or engine: easyocr)"
        ) from None
    engine = PaddleOCR(
        lang=language,
        device=device.replace("cuda", "gpu"),
        use_doc_orientation_classify=False,
        use_doc_unwarping=False,
        use_textline_orientation=False,
    )

    def read(arrays: Sequence[Any]) -> list[Pieces]:
        found = engine.predict([array[..., ::-1].copy() for array in arrays])  # it takes BGR
        return [[(str(t), float(c)) for t, c in zip(one["rec_texts"], one["rec_scores"], strict=True)] for one in found]

    return read
