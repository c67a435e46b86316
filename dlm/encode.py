"""A record becomes prompt ids and, to be imitated, a completed canvas. Axes: P prompt tokens, L canvas positions."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from dlm.config import Inputs
from dlm.models.base import Traits
from mmrl.data.records import Record
from mmrl.errors import RecordError, UserError


class Encoder:
    """Turns records into ids of one model.

    ends   ids that end an answer, the one to write first.
    """

    def __init__(self, tokenizer: Any, traits: Traits, inputs: Inputs, *, ends: tuple[int, ...]) -> None:
        self.tokenizer, self.traits, self.inputs, self.ends = tokenizer, traits, inputs, ends
        self.chats = bool(getattr(tokenizer, "chat_template", None)) and inputs.chat != "off"
        if inputs.chat == "on" and not self.chats:
            raise UserError("inputs.chat: the tokenizer has no chat template; set inputs.chat to off")
        if inputs.system is not None and not self.chats:
            raise UserError("inputs.system: without a chat template there are no system messages; remove it")

    def prompt(self, record: Record, edit: str | None, room: int) -> Tensor:
        """int64 [P]. `room`: canvas positions that follow it. RecordError where both together exceed a limit."""
        if record.images or record.videos:
            raise RecordError(record.id, "family dlm reads text only; remove `images` and `videos`")
        ids = self._ids(self.text(record, edit), special=not self.chats)
        most = min(self.inputs.max_prompt_tokens, self.traits.window - room)
        if most < 1:
            raise UserError(
                f"sampling.max_new_tokens: {room} positions leave no room for a prompt in the model's window of "
                f"{self.traits.window}; lower it"
            )
        if len(ids) > most:
            if self.inputs.prompt_overflow == "error":
                raise RecordError(
                    record.id,
                    f"the prompt has {len(ids)} tokens, room is for {most} (inputs.max_prompt_tokens "
                    f"{self.inputs.max_prompt_tokens}, window {self.traits.window} less {room} for the completion); "
                    "shorten it, or set inputs.prompt_overflow to left",
                )
            ids = ids[-most:]
        if not ids:
            raise RecordError(record.id, "the prompt is empty; give some text")
        return torch.tensor(ids, dtype=torch.long)

    def text(self, record: Record, edit: str | None = None) -> str:
        """The prompt as the model reads it."""
        if not self.chats:
            if not isinstance(record.prompt, str):
                raise RecordError(record.id, "the prompt is a list of messages, and the tokenizer has no chat template")
            return record.prompt + (edit or "")
        messages = _messages(record, self.inputs.system, edit)
        with _rendering(record.id):
            return str(self.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True))

    def demonstration(self, record: Record, limit: int) -> tuple[Tensor, int]:
        """(ids of a whole canvas, length of the answer with its end token) for a record's `response`.

        With full attention the canvas is `limit` positions, filled up with the end token: that is how such a model
        says that nothing follows. With block attention it ends with the answer, the last block is filled up later.
        """
        if record.response is None:
            raise RecordError(record.id, "no `response` to imitate; add one, or use another recipe than sft")
        ids = [*self._ids(record.response, special=False), self.ends[0]]
        if self.traits.mask_id in ids:
            raise RecordError(record.id, "`response` contains the mask token, which stands for nothing; remove it")
        if len(ids) > limit:
            raise RecordError(
                record.id,
                f"`response` has {len(ids)} tokens with its end, more than sampling.max_new_tokens {limit}; raise it",
            )
        fill = limit - len(ids) if self.traits.attention == "full" else 0
        return torch.tensor(ids + [self.ends[0]] * fill, dtype=torch.long), len(ids)

    def decode(self, ids: Tensor) -> str:
        """Text up to the first end token; unfilled positions are left out."""
        kept = []
        for token in ids.tolist():
            if token in self.ends:
                break
            if token != self.traits.mask_id:
                kept.append(token)
        return str(self.tokenizer.decode(kept, skip_special_tokens=False, clean_up_tokenization_spaces=False))

    def _ids(self, text: str, *, special: bool) -> list[int]:
        return list(self.tokenizer(text, add_special_tokens=special)["input_ids"])


@contextmanager
def _rendering(record_id: str) -> Iterator[None]:
    """A chat template is a program. What it refuses by itself (`raise_exception`) is the record's fault, the rest its
    own."""
    from jinja2 import TemplateError

    try:
        yield
    except Exception as error:
        said = next(iter(str(error).splitlines()), "") or type(error).__name__
        if type(error) is TemplateError:
            raise RecordError(record_id, f"the chat template does not take its messages: {said}") from error
        raise UserError(
            f"inputs.chat: the chat template of the tokenizer is broken ({type(error).__name__}: {said}); mend "
            "chat_template.jinja (or chat_template in tokenizer_config.json) of model.path, or set inputs.chat to off"
        ) from error


def _messages(record: Record, system: str | None, edit: str | None) -> list[dict[str, Any]]:
    """Chat messages with plain text; `edit` is appended to the last one of the user."""
    if isinstance(record.prompt, str):
        messages = [{"role": "user", "content": record.prompt}]
    else:
        messages = [{**m, "content": _plain(m["content"])} for m in record.prompt]
    users = [m for m in messages if m.get("role") == "user"]
    if not users:
        raise RecordError(record.id, "prompt has no message of role 'user'; add one")
    if edit:
        users[-1]["content"] += edit
    if system is not None and all(m.get("role") != "system" for m in messages):
        messages.insert(0, {"role": "system", "content": system})
    return messages


def _plain(content: Any) -> str:
    return content if isinstance(content, str) else "".join(part.get("text", "") for part in content)
