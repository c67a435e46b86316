"""Runs of the toy family, killed with SIGKILL at a named point and resumed. Started by `test_kills.py` as one process
that forks for every run, so that the imports are paid once. Prints a JSON line per point: name, steps resumed from,
differences from the uninterrupted run."""

from __future__ import annotations

import json
import os
import random
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parent / "training")]

import fault_compare  # noqa: E402
import numpy as np  # noqa: E402
import torch  # noqa: E402
import toy_family  # noqa: E402

from mmrl import config_io, families  # noqa: E402
from mmrl.rewards.registry import reward  # noqa: E402
from mmrl.training import checkpoint, run  # noqa: E402
from mmrl.training.metrics import MetricsLog  # noqa: E402
from mmrl.training.trainer import Trainer  # noqa: E402

torch.set_num_threads(1)
families.FAMILIES["toy"] = families.Family("toy", config="toy_config", entry="toy_family")
families.FAMILIES["toy-two"] = families.Family("toy-two", config="toy_two_config", entry="toy_two_family")


#: Names of points that begin so are of a run that trains two channels in turns: checkpoints lie before either phase.
TURNS = "turns:"


@reward("noisy", tasks=("toy",))
def noisy(outputs: list[str], records: Any, info: Any) -> list[float]:
    """Draws from every global generator, as a user's reward may."""
    return [o.count("0") + random.random() + np.random.rand() + float(torch.rand(())) for o in outputs]


def config(out: Path, *, turns: bool = False) -> Any:
    raw: dict[str, Any] = {
        "family": "toy",
        "recipe": "grpo",
        "out": str(out),
        "data": {"train": "toy:train", "eval": "toy:eval"},
        "rewards": {"components": [{"name": "noisy"}]},
        "train": {"steps": 7, "prompts": 4, "group": 4},
        "optimiser": {"lr": 0.1},
        "ema": {"enabled": True, "decay": 0.9},
        "eval": {"every": 3, "samples": 2},
        "checkpoint": {"every": 2},
        "log": {"tensorboard": False},
    }
    if turns:
        raw |= {"family": "toy-two", "recipe": "co-grpo", "data": {"train": "toy_two:train", "eval": "toy_two:eval"}}
        raw["recipe_options"] = {"phases": [["tokens", 2], ["schedule", 1]]}
        raw["train"] |= {"epochs": 2}
    return config_io.build(raw, folder=Path.cwd())


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def at_call(
    owner: Any,
    name: str,
    number: int,
    instead: Callable[..., None] | None = None,
    only: Callable[..., bool] = lambda *_: True,
) -> Callable[[], None]:
    """Call `number` (from 1) of owner.name, counting `only` some, does `instead`, then dies."""

    def arm() -> None:
        original, calls = getattr(owner, name), [0]

        def replaced(*arguments: Any, **options: Any) -> Any:
            calls[0] += only(*arguments)
            if calls[0] == number:
                if instead is not None:
                    instead(*arguments)
                die()
            return original(*arguments, **options)

        setattr(owner, name, replaced)

    return arm


def half_a_file(tensors: Any, path: Path) -> None:
    path.write_bytes(b"\x10\0\0\0")


def half_a_line(log: MetricsLog, values: Any) -> None:
    log.file.write('{"step": 5, "rew')
    log.file.flush()


def half_removed(folder: Path) -> None:
    (folder / "state.json").unlink()


def half_config(path: Path, text: str) -> None:
    path.with_name(path.name + ".tmp").write_text(text[:20])


#: name -> what to arm in the first process, in the second, ...; a last one goes on to the end
POINTS: dict[str, list[Callable[[], None]]] = {
    "before the first evaluation": [at_call(toy_family, "evaluate", 1)],
    "before the first step": [at_call(Trainer, "step", 1)],
    "in mid-step": [at_call(Trainer, "_updates", 6)],
    "in an evaluation": [at_call(toy_family, "evaluate", 3)],
    "while samples are written": [at_call(run, "write_rollouts", 1)],
    "in mid-line of the log": [at_call(MetricsLog, "write", 6, half_a_line)],
    "in a save, the model written": [at_call(checkpoint, "save_file", 3)],
    "in a save, a file half written": [at_call(checkpoint, "save_file", 3, half_a_file)],
    "in a save, before it has its name": [at_call(checkpoint, "_put", 3)],
    "in the first save": [at_call(checkpoint, "_put", 1)],
    "after a save, before old ones are removed": [at_call(checkpoint, "prune", 3)],
    "while an old one is removed": [
        at_call(checkpoint.shutil, "rmtree", 1, half_removed, only=lambda path, *_: "gone" in path.name)
    ],
    "after the last save, before the summary": [at_call(run.Session, "finish", 1)],
    "while the summary is written": [
        at_call(run, "replace", 1, half_config, only=lambda path, _: path.name == "summary.json")
    ],
    "twice": [at_call(Trainer, "_updates", 4), at_call(checkpoint, "_put", 1)],
    "while it resumes": [at_call(Trainer, "_updates", 6), at_call(run, "replace", 1, half_config)],
    "while it sets a damaged one aside": [at_call(Trainer, "_updates", 6), at_call(checkpoint, "newest_whole", 1)],
    "turns: in a token phase, resumed before one of the schedule": [at_call(Trainer, "_updates", 4)],
    "turns: between two updates of a schedule phase, resumed in tokens": [at_call(Trainer, "_one_update", 12)],
    "turns: in both, one after the other": [at_call(Trainer, "_one_update", 6), at_call(Trainer, "_updates", 3)],
}


def forked(work: Callable[[], Any]) -> int:
    """The signal that ended it, or 0 after a good end."""
    pid = os.fork()
    if pid == 0:
        try:
            work()
        except BaseException as error:
            print(f"{type(error).__name__}: {error}", file=sys.stderr, flush=True)
            os._exit(1)
        os._exit(0)
    status = os.waitpid(pid, 0)[1]
    if os.WIFEXITED(status) and os.WEXITSTATUS(status):
        raise SystemExit(f"a run failed with {os.WEXITSTATUS(status)}")
    return os.WTERMSIG(status) if os.WIFSIGNALED(status) else 0


def main(folder: Path) -> None:
    run.train(config(folder / "whole"), progress=False)  # in this process: what it imports, the others have
    run.train(config(folder / "whole-turns", turns=True), progress=False)
    for name, arms in POINTS.items():
        out, turns = folder / name.replace(" ", "-").replace(":", ""), name.startswith(TURNS)
        for arm in [*arms, None]:

            def work(out: Path = out, arm: Any = arm, turns: bool = turns) -> None:
                if arm is not None:
                    arm()
                run.train(config(out, turns=turns), resume=(out / "config.yaml").exists(), progress=False)

            ended = forked(work)
            if (ended == signal.SIGKILL) == (arm is None):
                print(json.dumps([name, [f"ended by signal {ended}"]]), flush=True)
                break
        else:
            whole = folder / ("whole-turns" if turns else "whole")
            print(json.dumps([name, fault_compare.differences(whole, out)[:5]]), flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
