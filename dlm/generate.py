"""Answers of a stored model, unmasked before one's eyes: `mmrl generate` for masked diffusion language models."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from mmrl import config_io
from mmrl.config import Config
from mmrl.errors import UserError

if TYPE_CHECKING:
    from dlm.policy import ElboPolicy

#: Frames of a trajectory that are printed where there is no terminal.
FRAMES = 6
SAMPLES, TRAJECTORIES = "samples.jsonl", "trajectories.txt"


def generate(
    checkpoint: Path,
    *,
    prompt: str,
    n: int = 1,
    seed: int = 0,
    steps: int | None = None,
    overrides: list[str] | None = None,
    config: str | None = None,
    base: str | None = None,
    out: Path = Path("generated"),
) -> list[Path]:
    """Answer a prompt; in a terminal the canvas is redrawn after every step. Returns the files written below `out`.

    n           one answer is greedy, several are sampled; answer i depends on (seed, prompt, i) alone, up to rounding.
    steps       forwards of the fixed schedule: sampling.rule steps, sampling.steps.
    overrides   `sampling.rule=threshold` and the like, for the configuration that is used.
    config      default the run's own. base: where the base model of an adapter is, if it is not found.
    """
    resolved = overridden(settings(checkpoint, config, base=base), overrides or [], steps, where=str(checkpoint))
    from mmrl import families
    from mmrl.training.setup import prepare_machine

    prepare_machine(resolved)
    policy: ElboPolicy = families.entry(resolved.family).load_policy(resolved)
    answers = answer(policy, prompt, n=n, seed=seed)
    told = {"checkpoint": str(checkpoint), "seed": seed, "sampling": config_io.plain(resolved)["sampling"]}
    return write(answers, out, told)


def settings(checkpoint: Path, config: str | None, *, base: str | None = None) -> Config:
    """The configuration given, else the run's own, else the defaults (an exported or released folder has none); its
    model.path is the checkpoint's model."""
    from mmrl.training.stored import model_folder, run_config, run_folder

    model = model_folder(checkpoint)
    if config is not None or run_folder(checkpoint) is not None:
        return run_config(checkpoint, config, model=model, base=base)
    plain = {
        "family": "dlm",
        "recipe": "sft",
        "model": {"path": str(model.resolve()), "base": base},
        "data": {"train": "unread:records"},
    }
    return config_io.build(plain, folder=Path.cwd(), where=str(checkpoint))


def overridden(config: Config, overrides: Sequence[str], steps: int | None, *, where: str) -> Config:
    """With `key=value` settings of sections that a loaded model reads. Raises UserError for others."""
    given = [*overrides, *([] if steps is None else ["sampling.rule=steps", f"sampling.steps={steps}"])]
    if not given:
        return config
    raw = config_io.plain(config) | {"data": {"train": "unread:records"}}
    for one in given:
        section = one.partition("=")[0].partition(".")[0]
        if section not in ("sampling", "inputs", "model", "device", "threads"):
            raise UserError(f"{one}: has no effect on answers; give keys of sampling, inputs or model")
        config_io.apply_override(raw, one)
    return config_io.build(raw, folder=Path.cwd(), where=where)


def answer(policy: ElboPolicy, prompt: str, *, n: int, seed: int) -> list[dict[str, Any]]:
    """`n` answers as {"prompt", "output", "tokens", "forwards", "tpf", "finished", "ids", "steps", "trajectory"}; one
    is greedy. Shown on standard output as they come."""
    from rich.console import Console

    from mmrl.core.streams import Streams
    from mmrl.data.records import Record
    from mmrl.training.rollouts import Request, Rollouts

    console = Console()
    request = Request(Record("generate", "text", prompt), n)

    def rollout() -> Rollouts:
        return policy.rollout([request], Streams(seed, 0, "generate"), greedy=n == 1)

    if console.is_terminal:
        from dlm.live import Board

        with Board(policy.tokenizer, policy.traits.mask_id, n, console) as board:
            policy.on_step = board
            rollouts = rollout()
    else:
        rollouts = rollout()
    shown = policy.describe(rollouts, range(n))
    answers = [_told(rollouts, i) | {"trajectory": shown[i]["trajectory"]} for i in range(n)]
    for i, one in enumerate(answers):
        _print(policy, rollouts.rows[i], one, console, i, n)
    return answers


def _told(rollouts: Any, i: int) -> dict[str, Any]:
    row, info = rollouts.rows[i], rollouts.info[i]
    return {
        "prompt": rollouts.records[i].prompt,
        "output": str(rollouts.outputs[i]),
        "tokens": info["length"],
        "forwards": info["forwards"],
        "tpf": info["tpf"],
        "finished": info["finished"],
        "ids": row.ids.tolist(),
        "steps": row.steps.tolist(),
    }


def _print(policy: ElboPolicy, row: Any, one: dict[str, Any], console: Any, i: int, n: int) -> None:
    """An answer with its counts; before it, where nothing was seen live, how it came to be."""
    from rich.text import Text

    from dlm.live import counts
    from dlm.show import printable, trajectory_lines

    if n > 1:
        console.print(Text(f"answer {i + 1} of {n}", style="bold"))
    if not console.is_terminal:
        for line in trajectory_lines(policy.tokenizer, row, most=FRAMES, width=console.width):
            typer.echo(line)
        typer.echo("")
    typer.echo(printable(one["output"]))
    cut = "" if one["finished"] else ", no end token"
    console.print(Text(f"{one['tokens']} tokens, {counts(one['forwards'], one['tokens'])}{cut}", style="dim"))


def write(answers: list[dict[str, Any]], out: Path, told: dict[str, Any]) -> list[Path]:
    """samples.jsonl, a line an answer, and trajectories.txt; in place of those of an earlier call."""
    out.mkdir(parents=True, exist_ok=True)
    samples, trajectories = out / SAMPLES, out / TRAJECTORIES
    rows = [{k: v for k, v in one.items() if k != "trajectory"} | {"sample": i} for i, one in enumerate(answers)]
    samples.write_text("".join(json.dumps(row | told, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    texts = ["\n".join((f"answer {i + 1} of {len(answers)}", *one["trajectory"])) for i, one in enumerate(answers)]
    trajectories.write_text("\n\n".join(texts) + "\n", encoding="utf-8")
    return [samples, trajectories]
