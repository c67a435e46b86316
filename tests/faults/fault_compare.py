"""What must be equal between a run and the same run, killed and resumed: everything but clock readings."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from mmrl.training import checkpoint
from mmrl.training.metrics import untimed


def flat(value: Any, path: str = "") -> dict[str, Any]:
    """Dotted path -> leaf, without clock readings."""
    if isinstance(value, dict):
        return {k: v for key, item in untimed(value).items() for k, v in flat(item, f"{path}.{key}").items()}
    if isinstance(value, list):
        return {k: v for i, item in enumerate(value) for k, v in flat(item, f"{path}.{i}").items()}
    return {path.lstrip("."): value}


def unequal(name: str, a: Any, b: Any) -> list[str]:
    """`name: path` of every leaf that differs."""
    one, two = flat(a), flat(b)
    keys = [k for k in (one | two) if k not in one or k not in two or one[k] != two[k]]
    return [f"{name}: {k} is {two.get(k, 'missing')!r:.80}, was {one.get(k, 'missing')!r:.80}" for k in keys[:5]]


def _lines(file: Path) -> list[Any]:
    return [json.loads(line) for line in file.read_text().splitlines()]


def _tensors(name: str, a: Path, b: Path) -> list[str]:
    one, two = load_file(a), load_file(b)
    if one.keys() != two.keys():
        return [f"{name}: tensors {sorted(one.keys() ^ two.keys())[:5]} are in one only"]
    return [
        f"{name}: tensor {k} differs" for k in one if one[k].dtype != two[k].dtype or not torch.equal(one[k], two[k])
    ]


def differences(whole: Path, resumed: Path) -> list[str]:
    """A line per item that differs; empty when the two runs are equal."""
    out = unequal("metrics.jsonl", _lines(whole / "metrics.jsonl"), _lines(resumed / "metrics.jsonl"))
    out += unequal("summary.json", *(json.loads((r / "summary.json").read_text()) for r in (whole, resumed)))
    one, two = ([p.name for p in checkpoint.folders(r)] for r in (whole, resumed))
    if one != two:
        return [*out, f"checkpoints: {two}, were {one}"]
    for step in one:
        a, b = (r / "checkpoints" / step for r in (whole, resumed))
        out += [f"{step}: {problem}" for problem in (checkpoint.fault(a), checkpoint.fault(b)) if problem]
        out += _tensors(f"{step}/trainable.safetensors", a / "trainable.safetensors", b / "trainable.safetensors")
        states = [json.loads((r / "state.json").read_text()) for r in (a, b)]
        for state in states:
            state["config"].pop("out")
        out += unequal(f"{step}/state.json", *states)
        out += _files(f"{step}/model", a / "model", b / "model")
    out += _files("samples", whole / "samples", resumed / "samples")
    left = [str(p.relative_to(resumed)) for p in resumed.rglob("*") if p.name.startswith(".") or p.suffix == ".tmp"]
    return out + [f"left behind: {name}" for name in left]


def _files(name: str, a: Path, b: Path) -> list[str]:
    one, two = ({str(p.relative_to(r)): p.read_bytes() for p in r.rglob("*") if p.is_file()} for r in (a, b))
    return [f"{name}: {key} differs" for key in sorted(one | two) if one.get(key) != two.get(key)]
