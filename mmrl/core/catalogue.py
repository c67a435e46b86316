"""Importing this module registers every stage of the core."""

from __future__ import annotations

import importlib
import pkgutil

from mmrl.core import advantages, bounds, gates, penalties, reducers, reductions, select, shaping, weights  # noqa: F401

for _package in (advantages, select, weights, bounds, gates, penalties, reducers):
    for _module in pkgutil.iter_modules(_package.__path__, _package.__name__ + "."):
        importlib.import_module(_module.name)
