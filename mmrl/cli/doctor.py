"""`mmrl doctor [CONFIG]`: what this machine has, and what a configuration would stumble over."""

from __future__ import annotations

from pathlib import Path

import typer

from mmrl.cli.checkpoints import PICKLES
from mmrl.errors import UserError

PACKAGES = (
    "torch",
    "torchvision",
    "transformers",
    "diffusers",
    "accelerate",
    "peft",
    "safetensors",
    "tokenizers",
    "pydantic",
    "pillow",
    "av",
)


def doctor(
    config: str | None = typer.Argument(None, help="Also check this configuration."),
) -> None:
    """Report versions, devices, memory, disk and cores; with a configuration, list every problem found."""
    for line in machine():
        typer.echo(line)
    if config is None:
        return
    problems = diagnose(config)
    typer.echo("")
    if not problems:
        typer.echo(f"{config}: no problems found")
        return
    for problem in problems:
        typer.echo(f"problem: {' '.join(problem.split())}")
    found = "1 problem" if len(problems) == 1 else f"{len(problems)} problems"
    raise UserError(f"{config}: {found}, listed above; mend the configuration or what it names")


def machine() -> list[str]:
    """Versions and resources, a line each."""
    import os
    import platform
    import shutil
    from importlib import metadata

    import torch

    from mmrl import __version__

    out = [f"mmrl {__version__}, Python {platform.python_version()}, {platform.system()} {platform.machine()}"]
    for name in PACKAGES:
        try:
            out.append(f"{name} {metadata.version(name)}")
        except metadata.PackageNotFoundError:
            out.append(f"{name}: not installed")
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    out.append(f"cores: {cores}, torch threads: {torch.get_num_threads()}")
    if hasattr(os, "sysconf") and "SC_PHYS_PAGES" in os.sysconf_names:
        total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        out.append(f"memory: {total / 2**30:.1f} GiB")
    out.append(f"free disk here: {shutil.disk_usage('.').free / 2**30:.1f} GiB")
    if torch.cuda.is_available():
        for i in range(torch.cuda.device_count()):
            card = torch.cuda.get_device_properties(i)
            out.append(f"device cuda:{i}: {card.name}, {card.total_memory / 2**30:.1f} GiB")
    else:
        out.append("device: cpu only")
    return out


def diagnose(config: str) -> list[str]:
    """All problems of a configuration, its data files and its model folder; empty when there are none."""
    from mmrl import config_io
    from mmrl.cli import preflight
    from mmrl.cli.check import data_problems

    try:
        resolved = config_io.resolve(config)
    except UserError as error:
        return [str(error)]
    problems = preflight.problems(resolved) + device_problems(resolved.device)
    for entry in (resolved.data.train, resolved.data.eval):
        for item in [entry] if isinstance(entry, str) else entry or []:
            problems += data_problems(item, resolved)
    return problems + model_problems(resolved.model.path)


def device_problems(name: str) -> list[str]:
    """Whether this machine has the device."""
    from mmrl.training.devices import find_device

    try:
        find_device(name)
    except UserError as error:
        return [str(error)]
    return []


def model_problems(path: str) -> list[str]:
    """What would stop a model folder from loading. A hub id is not looked up."""
    import json

    folder = Path(path)
    if not folder.is_dir() or (folder / "pytorch_lora_weights.safetensors").is_file():
        return []
    if (folder / "model_index.json").is_file():
        return pipeline_problems(folder)
    problems = []
    try:
        json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except FileNotFoundError:
        if not (folder / "adapter_config.json").is_file():
            problems.append(f"model.path: {folder} has no config.json; give a folder written by save_pretrained")
    except ValueError as error:
        problems.append(f"model.path: {folder}/config.json: broken JSON: {error}")
    if not any(folder.glob("*.safetensors")):
        pickles = [p.name for p in sorted(folder.iterdir()) if p.suffix in PICKLES]
        what = (
            f"only pickle weights ({pickles[0]}), which are refused; convert them to safetensors"
            if pickles
            else "no weights"
        )
        problems.append(f"model.path: {folder} holds {what}")
    if not any(
        (folder / name).is_file() for name in ("tokenizer.json", "tokenizer_config.json", "adapter_config.json")
    ):
        problems.append(f"model.path: {folder} has no tokenizer; save the processor beside the model")
    return problems


def pipeline_problems(folder: Path) -> list[str]:
    """The same for the folder of a diffusers pipeline: every component that its index names is there."""
    from mmrl import json_io

    try:
        index = json_io.read_object(folder / "model_index.json", remedy="take a whole copy of the model")
    except UserError as error:
        return [f"model.path: {error}"]
    named = [name for name, value in index.items() if isinstance(value, list) and any(value)]
    problems = [f"model.path: {folder} lacks the component {name}" for name in named if not (folder / name).is_dir()]
    for name in ("transformer", "vae"):
        if (folder / name).is_dir() and not any((folder / name).glob("*.safetensors")):
            problems.append(f"model.path: {folder / name} holds no safetensors weights")
    return problems
