"""YAML in and out, strictly: safe loader, no duplicate keys, `1e-6` is a number, errors are one line with a place."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml

from mmrl.errors import UserError


class _Loader(yaml.SafeLoader):
    """SafeLoader that refuses a key given twice, and reads `1e-6` as a float as YAML 1.2 does."""


def _mapping(loader: _Loader, node: yaml.MappingNode) -> dict[Any, Any]:
    seen: set[Any] = set()
    for key_node, _ in node.value:
        if not isinstance(key_node, yaml.ScalarNode):
            raise yaml.constructor.ConstructorError(None, None, "a key must be plain text", key_node.start_mark)
        if key_node.value in seen:
            raise yaml.constructor.ConstructorError(
                None, None, f"key {key_node.value!r} is given twice", key_node.start_mark
            )
        seen.add(key_node.value)
    return dict(yaml.SafeLoader.construct_mapping(loader, node, deep=True))


_Loader.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, _mapping)
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?[0-9][0-9_]*(\.[0-9_]*)?[eE][-+]?[0-9]+$"), list("-+0123456789")
)


def parse(text: str, where: str) -> Any:
    """The value of a YAML text. `where` names its origin in errors. Raises UserError with line and column."""
    try:
        return yaml.load(text, Loader=_Loader)  # a SafeLoader
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        place = f", line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        problem = " ".join((error.problem or error.context or "broken YAML").split())
        raise UserError(f"{where}{place}: {problem}; mend the YAML there") from None
    except RecursionError:
        raise UserError(f"{where}: YAML nested too deeply; write fewer brackets") from None
    except (yaml.YAMLError, ValueError, OverflowError) as error:  # ValueError: a character, date or number that is none
        raise UserError(f"{where}: not readable as YAML: {' '.join(str(error).split())}") from None


def read(path: Path) -> dict[str, Any]:
    """A YAML file whose top level is a mapping with text keys."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not UTF-8 text"
        raise UserError(f"{path}: cannot be read: {reason}; give a YAML file in UTF-8") from None
    value = parse(text, str(path))
    if value is None:
        raise UserError(f"{path}: the file is empty; a configuration needs at least family, recipe, model and data")
    if not isinstance(value, dict):
        raise UserError(f"{path}: expected `key: value` lines, found a {type(value).__name__}; rewrite it so")
    return value


class _Dumper(yaml.SafeDumper):
    """Block style, with indented lists."""

    def increase_indent(self, flow: bool = False, indentless: bool = False) -> None:
        return super().increase_indent(flow, False)


def dump(value: Any) -> str:
    """YAML text of plain values, in the order given."""
    return yaml.dump(value, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=120)
