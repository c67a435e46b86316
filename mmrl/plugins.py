"""Importing what a user adds: plug-in modules, and functions named `module:function`. Loads no torch."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Any

from mmrl.errors import UserError, nearest


def load_plugins(modules: Sequence[str]) -> list[ModuleType]:
    """Import each module (from the working folder or the environment) so that its decorators register.

    Raises UserError when one cannot be imported.
    """
    return [import_module(name, f"plugins: {name}") for name in modules]


def import_module(name: str, where: str) -> ModuleType:
    """`importlib.import_module` with the working folder on the path and its failures as UserError."""
    if name.endswith(".py") or "/" in name:
        hint = name.removesuffix(".py").strip("/").replace("/", ".")
        raise UserError(f"{where}: give a module name, not a file, e.g. {hint}")
    here = os.getcwd()
    if here not in sys.path:
        sys.path.append(here)
    importlib.invalidate_caches()
    try:
        return importlib.import_module(name)
    except UserError:
        raise
    except ModuleNotFoundError as error:
        if error.name and (name == error.name or name.startswith(error.name + ".")):
            raise UserError(f"{where}: no module of that name in {here} or among the installed packages") from error
        raise UserError(f"{where}: it imports {error.name!r}, which is not installed") from error
    except (Exception, SystemExit) as error:  # a module that ends the program would end it without a word
        raise UserError(f"{where}: importing it failed: {type(error).__name__}: {error}") from error


def import_function(target: str) -> Callable[..., Any]:
    """The object named `module:function`. Raises UserError when there is none or it cannot be called."""
    module_name, colon, attribute = target.partition(":")
    if not colon or not module_name or not attribute:
        raise UserError(f"{target}: write it as module:function, e.g. my_rewards:tidy")
    module = import_module(module_name, target)
    found = getattr(module, attribute, None)
    if found is None:
        names = [n for n, v in vars(module).items() if callable(v) and not n.startswith("_")]
        raise UserError(f"{target}: module {module_name!r} has no {attribute!r}{nearest(attribute, names)}")
    if not callable(found):
        raise UserError(f"{target}: {attribute!r} is a {type(found).__name__}, not a function")
    function: Callable[..., Any] = found
    return function
