"""The text encoder of the embedded image model: one learned vector a word, plus one a place. N prompts, L words."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from mmrl.errors import UserError, nearest

DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
PLURALS = tuple(f"{word}es" if word == "six" else f"{word}s" for word in DIGITS)
#: Row 0 of the table is the word that is not there. The order is that of the stored weights.
VOCABULARY = ("", "a", "an", *DIGITS, *PLURALS, "left", "of")
#: "a three left of a five"
LONGEST = 6
WIDTH = 64


def split(prompt: str) -> list[str]:
    """Words of a prompt, small letters. Raises UserError for a word that the model was never told."""
    words = prompt.lower().split()
    for word in words:
        if word not in VOCABULARY:
            raise UserError(
                f"prompt {prompt!r}: the embedded model does not know the word {word!r}"
                f"{nearest(word, VOCABULARY[1:])}; it draws e.g. 'a seven', 'two sevens', 'a three left of a five'"
            )
    return words


class WordEncoder(nn.Module):
    """Vectors of the words, [N, LONGEST, WIDTH], and their projected mean, [N, WIDTH]. "" is LONGEST missing words.

    Trained together with the transformer, frozen afterwards.
    """

    def __init__(self) -> None:
        super().__init__()
        self.word = nn.Embedding(len(VOCABULARY), WIDTH)
        self.place = nn.Embedding(LONGEST, WIDTH)
        self.pool = nn.Linear(WIDTH, WIDTH)

    def ids(self, prompts: Sequence[str]) -> Tensor:
        """[N, LONGEST]; words beyond are left out."""
        known = [[VOCABULARY.index(word) for word in split(p)[:LONGEST]] for p in prompts]
        return torch.tensor([ids + [0] * (LONGEST - len(ids)) for ids in known], device=self.word.weight.device)

    def forward(self, id_nl: Tensor) -> tuple[Tensor, Tensor]:
        vector_nlc = self.word(id_nl) + self.place.weight
        there_nl1 = (id_nl > 0).to(vector_nlc)[:, :, None]
        mean_nc = (vector_nlc * there_nl1).sum(1) / there_nl1.sum(1).clamp(min=1)
        return vector_nlc, self.pool(mean_nc)
