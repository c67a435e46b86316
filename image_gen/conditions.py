"""Prompts to conditions, each encoded once: kept on the CPU, the text encoders freed where all fit."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

from image_gen.pipelines.base import Condition, PictureModel
from mmrl.data.records import Record
from mmrl.errors import RecordError, UserError

ENCODED_TOGETHER = 16


class Conditions:
    """The newest `limit` conditions by prompt. `meet` all prompts of a run first, and the encoders may go."""

    def __init__(self, model: PictureModel, *, limit: int) -> None:
        self.model, self.limit = model, limit
        self.freed = False
        self._kept: OrderedDict[str, Condition] = OrderedDict()

    def meet(self, prompts: Sequence[str], *, unconditional: bool) -> list[str]:
        """Encode them all and free the encoders, if they are no more than `limit`. Returns what to tell people."""
        wanted = list(dict.fromkeys([*([""] if unconditional else []), *prompts]))
        told = self._overlong([p for p in wanted if p])
        if len(wanted) > self.limit:
            return [
                *told,
                f"{len(wanted)} prompts, {self.limit} encodings are kept (inputs.cached_prompts): the encoders stay",
            ]
        self._encode(wanted)
        self.model.free_encoders()
        self.freed = True
        return told

    def _overlong(self, prompts: list[str]) -> list[str]:
        beyond = [(n, p) for p, n in zip(prompts, self.model.overlong(prompts), strict=True) if n > 0]
        if not beyond:
            return []
        most, worst = max(beyond)
        return [
            f"{len(beyond)} of {len(prompts)} prompts are longer than the text encoders read; the rest is ignored "
            f"(up to {most} tokens, in: {worst[:60]!r})"
        ]

    def __call__(self, prompts: Sequence[str]) -> list[Condition]:
        """One condition a prompt, in order."""
        missing = [p for p in dict.fromkeys(prompts) if p not in self._kept]
        if missing and self.freed:
            raise UserError(
                f"prompt {missing[0]!r} was not among the run's prompts, and the text encoders are freed; lower "
                "inputs.cached_prompts to keep them"
            )
        self._encode(missing)
        for prompt in prompts:
            self._kept.move_to_end(prompt)
        found = [self._kept[p] for p in prompts]
        while len(self._kept) > self.limit:
            self._kept.popitem(last=False)
        return found

    def _encode(self, prompts: Sequence[str]) -> None:
        for start in range(0, len(prompts), ENCODED_TOGETHER):
            some = prompts[start : start + ENCODED_TOGETHER]
            self._kept.update(zip(some, self.model.encode(some), strict=True))
        if prompts:
            self.model.rest_encoders()


def prompt_of(record: Record, edit: str | None = None) -> str:
    """The text of a record, with an edit of a request behind it. Raises RecordError for chat messages."""
    if not isinstance(record.prompt, str):
        raise RecordError(record.id, "an image model takes the prompt as plain text, not as chat messages")
    return record.prompt + (edit or "")
