"""Pydantic's complaints as short lines: dotted key, what is wrong, the nearest valid key. Loads no torch."""

from __future__ import annotations

import difflib
import typing
from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import BaseModel, ValidationError

from mmrl.errors import nearest

SHOWN = 4  # a line that lists more than this is not read to its end


def join(problems: Sequence[str]) -> str:
    """One line of several problems."""
    more = f" (and {len(problems) - SHOWN} more)" if len(problems) > SHOWN else ""
    return "; ".join(problems[:SHOWN]) + more


def lines(
    error: ValidationError,
    cls: type[BaseModel],
    *,
    prefix: str = "",
    elsewhere: Mapping[str, type[BaseModel]] | None = None,
) -> list[str]:
    """A line per problem.

    prefix     dotted path of `cls` in the whole configuration.
    elsewhere  models of sections that `cls` leaves untyped, so that a key in the wrong section is found.
    """
    out: list[str] = []
    for item in error.errors():
        *above, last = item["loc"] or ("",)
        own = item["type"] in ("extra_forbidden", "missing")  # the last part is a key then, whatever it looks like
        loc = [part for part in above if not _is_branch(part)] + ([last] if own or not _is_branch(last) else [])
        path = ".".join(str(part) for part in ([prefix] if prefix else []) + loc)
        line = f"{path.rstrip('.')}: {_say(item, loc, cls, elsewhere or {})}"
        if line not in out:
            out.append(line)
    return out


def _is_branch(part: int | str) -> bool:
    """Pydantic names the branch of a union in the location (`list[str]`, `literal['a']`); users never wrote it."""
    return isinstance(part, str) and (part in ("str", "int", "float", "bool") or "[" in part)


def _say(item: Any, loc: list[int | str], cls: type[BaseModel], elsewhere: Mapping[str, type[BaseModel]]) -> str:
    kind, context, value = item["type"], item.get("ctx", {}), item["input"]
    parent = model_at(cls, loc[:-1])
    if kind == "extra_forbidden":
        return f"unknown key{_suggest(str(loc[-1]), parent, cls, elsewhere)}"
    if kind == "missing":
        field = parent.model_fields.get(str(loc[-1])) if parent else None
        return f"missing{f' ({field.description})' if field is not None and field.description else ''}"
    if kind == "literal_error":
        options = [o.strip().strip("'") for o in str(context["expected"]).replace(" or ", ", ").split(",")]
        return f"{value!r} is not a valid choice{_choice(str(value), options)}"
    if kind in ("model_type", "model_attributes_type"):
        return f"expected `key: value` lines below it, got {value!r}"
    if kind == "value_error":  # our own sentence, which says what it is about
        return str(context["error"])
    message = str(item["msg"])
    return f"{message[0].lower()}{message[1:]}, got {value!r}"


def _choice(value: str, options: list[str]) -> str:
    close = difflib.get_close_matches(value, options, n=1, cutoff=0.6)
    hint = f"; did you mean {close[0]!r}?" if close else ""
    return f" (one of {', '.join(options)}){hint}"


def _suggest(
    key: str, parent: type[BaseModel] | None, root: type[BaseModel], elsewhere: Mapping[str, type[BaseModel]]
) -> str:
    """The nearest key at this place; else the same key in another section; else the list of keys here."""
    here = list(parent.model_fields) if parent else []
    if difflib.get_close_matches(key, here, n=1, cutoff=0.6):
        return nearest(key, here)
    for path in all_keys(root, elsewhere):
        if path.split(".")[-1] == key:
            return f"; did you mean {path!r}?"
    return nearest(key, here)


def model_at(cls: type[BaseModel], loc: Sequence[int | str]) -> type[BaseModel] | None:
    """The model that sits at a location, or None when something else does."""
    here: type[BaseModel] | None = cls
    for part in loc:
        if here is None:
            return None
        if isinstance(part, int):
            continue
        field = here.model_fields.get(part)
        here = _model_in(field.annotation) if field else None
    return here


def _model_in(annotation: Any) -> type[BaseModel] | None:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    for inner in typing.get_args(annotation):
        found = _model_in(inner)
        if found is not None:
            return found
    return None


def all_keys(cls: type[BaseModel], elsewhere: Mapping[str, type[BaseModel]], prefix: str = "") -> list[str]:
    """Every dotted key, shallow ones first."""
    found: list[str] = []
    for name, field in cls.model_fields.items():
        found.append(f"{prefix}{name}")
        inner = _model_in(field.annotation) or (elsewhere.get(name) if not prefix else None)
        if inner is not None:
            found += all_keys(inner, {}, f"{prefix}{name}.")
    return sorted(found, key=lambda path: path.count("."))
