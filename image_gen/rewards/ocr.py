"""Text rendering: is the quoted text of the prompt written in the picture? Loads no torch.

Source: Flow-GRPO, arXiv 2505.05470 (its released OCR reward). Two differences, both on purpose: a prompt without a
quoted text has no score (there it is an error), and a recogniser that fails raises unless told otherwise.
Checked with: formula only; the TrOCR reader with random weights of the architecture.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import Field

from image_gen.rewards.pictures import prompts_of, to_arrays, warn_once
from mmrl.data.records import Record
from mmrl.rewards.registry import reward

Confidence = Annotated[float, Field(ge=0, le=1)]


def target_of(prompt: str) -> str | None:
    """The text between the first two double quotes, lower case, no spaces; None if there is none or it is empty."""
    parts = prompt.split('"')
    if len(parts) < 3:
        return None
    return plain(parts[1]) or None


def plain(text: str) -> str:
    """Lower case, spaces removed (other signs stay, as released)."""
    return text.replace(" ", "").lower()


def levenshtein(a: str, b: str) -> int:
    """Fewest insertions, deletions and replacements that turn a into b; O(len(a) len(b))."""
    row = list(range(len(b) + 1))
    for i, left in enumerate(a, start=1):
        corner, row[0] = row[0], i
        for j, right in enumerate(b, start=1):
            corner, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, corner + (left != right))
    return row[-1]


def ocr_value(recognised: str, target: str) -> float:
    """1 - d / len(target), in [0, 1]: d = 0 if the target is part of the recognised text, else Levenshtein, at most
    len(target). Both sides are lower-cased and lose their spaces; target must not be empty then.

    Known way to cheat: the target written many times earns 1.
    """
    said, wanted = plain(recognised), plain(target)
    distance = 0 if wanted in said else min(levenshtein(said, wanted), len(wanted))
    return 1.0 - distance / len(wanted)


def joined(pieces: Sequence[tuple[str, float]], *, min_confidence: float = 0.0) -> str:
    """Recognised pieces (text, confidence) with confidence above the limit, in order, put together."""
    return "".join(text for text, confidence in pieces if confidence > min_confidence)


@reward("ocr")
def ocr(
    outputs: Sequence[Any],
    records: Sequence[Record],
    info: Sequence[dict[str, Any]],
    *,
    engine: Literal["easyocr", "paddleocr", "trocr"] = "easyocr",
    path: str | None = None,
    language: str = "en",
    min_confidence: Confidence = 0.0,
    on_failure: Literal["raise", "zero"] = "raise",
    device: str = "auto",
    offload: bool = False,
    batch_size: int = 32,
) -> list[float | None]:
    """1 - d / len(target) (see `ocr_value`); None where the prompt holds no quoted text.

    engine: easyocr (`pip install 'mmrl[ocr]'`), paddleocr, or trocr (transformers; reads one line of text that fills
    the picture). path: trocr's folder or hub name; easyocr's folder of models. on_failure: zero counts a picture on
    which the recogniser fails as nothing read (the released rule), with one warning.
    """
    from image_gen.rewards.readers import reader

    targets = [target_of(prompt) for prompt in prompts_of(records)]
    asked = [i for i, target in enumerate(targets) if target is not None]
    values: list[float | None] = [None] * len(targets)
    if not asked:
        return values
    read = reader(engine, path=path, language=language, device=device, offload=offload, batch_size=batch_size)
    arrays = to_arrays([outputs[i] for i in asked])
    if on_failure == "raise":
        found = read(arrays)
    else:
        found = []
        for array in arrays:
            try:
                found += read([array])
            except RuntimeError as error:
                warn_once("ocr failure", f"reward 'ocr': the recogniser failed ({error}); such pictures score 0")
                found.append([])
    for i, pieces in zip(asked, found, strict=True):
        values[i] = ocr_value(joined(pieces, min_confidence=min_confidence), targets[i] or "")
    return values
