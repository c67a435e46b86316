"""Prompts given as chat messages: their shape is checked when they are read. Loads no torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from mmrl.errors import UserError, nearest

ROLES = ("system", "user", "assistant", "tool")
PARTS = ("text", "image", "video")


def check_messages(messages: Sequence[Any], *, n_images: int, n_videos: int, where: str) -> None:
    """Raises UserError unless these are messages with known roles, at least one of the user, whose content is text or
    parts, and whose picture and video parts are none or as many as the record has."""
    for i, message in enumerate(messages):
        place = f"{where}: prompt[{i}]"
        if not isinstance(message, dict) or not {"role", "content"} <= set(message):
            raise UserError(f"{where}: prompt must be text, or messages [{{'role': ..., 'content': ...}}, ...]")
        if message["role"] not in ROLES:
            raise UserError(f"{place}: unknown role {message['role']!r}{nearest(str(message['role']), ROLES)}")
        if not isinstance(message["content"], str):
            _check_parts(message["content"], f"{place}.content")
    if all(message["role"] != "user" for message in messages):
        raise UserError(f"{where}: prompt has no message of role 'user'; add one")
    parts = [p for m in messages if not isinstance(m["content"], str) for p in m["content"]]
    for kind, have in (("image", n_images), ("video", n_videos)):
        placed = sum(part["type"] == kind for part in parts)
        if placed not in (0, have):
            raise UserError(f"{where}: prompt places {placed} {kind}s, the record lists {have}; make them equal")
    if not any(m["content"] for m in messages):
        raise UserError(f"{where}: the prompt is empty")


def without_nulls(messages: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Tables give every message and part every key; chat templates ask which keys there are."""
    whole = []
    for message in messages:
        kept = {k: v for k, v in message.items() if v is not None}
        if isinstance(kept["content"], list):
            kept["content"] = [{k: v for k, v in part.items() if v is not None} for part in kept["content"]]
        whole.append(kept)
    return whole


def _check_parts(content: Any, where: str) -> None:
    if not isinstance(content, list):
        raise UserError(f"{where} must be text or a list of parts {{'type': 'text', 'text': ...}}, got {content!r:.60}")
    for part in content:
        kind = part.get("type") if isinstance(part, dict) else None
        if not isinstance(kind, str):
            raise UserError(f"{where}: a part must be {{'type': 'text', 'text': ...}} or so, got {part!r:.60}")
        if kind not in PARTS:
            raise UserError(f"{where}: unknown type {kind!r}{nearest(kind, PARTS)}")
        if kind == "text" and not isinstance(part.get("text"), str):
            raise UserError(f"{where}: a text part needs 'text', got {part!r:.60}")
        known = ("type", "text") if kind == "text" else ("type",)
        odd = [k for k, v in part.items() if k not in known and v is not None]
        if odd:
            raise UserError(f"{where}: {odd[0]!r} in a part is not read; files belong under the record's 'images'")
