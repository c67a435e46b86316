"""Chat-style rows (`conversations`, as in LISA and LLaVA data) as prompt, pictures and answer. Loads no torch."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from mmrl.errors import UserError, nearest

_ROLES = {"human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant", "system": "system"}
_MEDIA = re.compile(r"<(image|video)>|<(img)>([^<>]{1,4096})</img>")


@dataclass(frozen=True)
class Dialogue:
    """`prompt`: a string for one question after its pictures, else chat messages; `images`: paths named in the text."""

    prompt: Any
    answer: str | None
    images: tuple[str, ...]
    placeholders: dict[str, int]  # "image" / "video" -> how many the text asks for


def read_dialogue(turns: Any, where: str) -> Dialogue:
    """`[{"from": "human", "value": ...}, {"from": "gpt", "value": ...}]` (or role/content). The last assistant turn is
    the answer. Raises UserError."""
    if not isinstance(turns, list) or not turns:
        raise UserError(f"{where}: conversations must be a list of turns")
    said = [_turn(t, f"{where}: conversations[{i}]") for i, t in enumerate(turns)]
    answer = said.pop()[1] if said[-1][0] == "assistant" else None
    if not any(role == "user" for role, _ in said):
        raise UserError(f"{where}: conversations has no question before the answer")
    images: list[str] = []
    counts = {"image": 0, "video": 0}
    messages: list[dict[str, Any]] = [{"role": role, "content": _parts(text, images, counts)} for role, text in said]
    if len(messages) == 1 and _media_first(messages[0]["content"]):
        texts = [p["text"] for p in messages[0]["content"] if p["type"] == "text"]
        return Dialogue("".join(texts).strip(), answer, tuple(images), counts)
    for message in messages:
        if all(p["type"] == "text" for p in message["content"]):
            message["content"] = "".join(p["text"] for p in message["content"])
    return Dialogue(messages, answer, tuple(images), counts)


def _turn(turn: Any, where: str) -> tuple[str, str]:
    if not isinstance(turn, dict):
        raise UserError(f"{where} is no object with from and value")
    role, text = turn.get("from", turn.get("role")), turn.get("value", turn.get("content"))
    if not isinstance(role, str) or role not in _ROLES:
        raise UserError(f"{where}: unknown speaker {role!r}{nearest(str(role), _ROLES)}")
    if not isinstance(text, str):
        raise UserError(f"{where}: value must be text, got {type(text).__name__}")
    return _ROLES[role], text


def _parts(text: str, images: list[str], counts: dict[str, int]) -> list[dict[str, str]]:
    """Text cut at its <image>, <video> and <img>path</img> marks; paths are appended to `images`."""
    parts: list[dict[str, str]] = []
    at = 0
    for mark in _MEDIA.finditer(text):
        if text[at : mark.start()].strip():
            parts.append({"type": "text", "text": text[at : mark.start()]})
        kind = mark[1] or "image"
        counts[kind] += 1
        parts.append({"type": kind})
        if mark[2]:
            images.append(mark[3].strip())
        at = mark.end()
    if text[at:].strip():
        parts.append({"type": "text", "text": text[at:].lstrip("\n") if parts else text[at:]})
    return parts


def _media_first(parts: list[dict[str, str]]) -> bool:
    """Pictures, then text: what a plain string prompt stands for."""
    kinds = [p["type"] != "text" for p in parts]
    return kinds == sorted(kinds, reverse=True)
