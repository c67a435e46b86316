"""Run by torchrun on every rank: `worker.py JOBS.json` trains the configurations of the list one after the other."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT
sys.path[:0] = [
    str(Path(__file__).parent.parent / name) for name in ("distributed", "training", "vlm", "image_flow", "video")
]

import torch  # noqa: E402

from mmrl import config_io, families  # noqa: E402
from mmrl.errors import UserError  # noqa: E402
from mmrl.training.run import train  # noqa: E402


def refuse_to_write(event: str, arguments: tuple) -> None:
    """Rank 1 leaves every run folder alone."""
    if event == "open" and isinstance(arguments[0], str) and "/run-of-two/" in arguments[0] and arguments[2] & WRITES:
        raise AssertionError(f"rank 1 writes {arguments[0]}")
    if event in ("os.mkdir", "os.rename", "os.remove", "os.rmdir") and "/run-of-two/" in str(arguments[0]):
        raise AssertionError(f"rank 1 changes {arguments[0]}")


def main() -> None:
    torch.set_num_threads(1)
    families.FAMILIES["toy"] = families.Family("toy", config="toy_config", entry="toy_family")
    families.FAMILIES["toy-two"] = families.Family("toy-two", config="toy_two_config", entry="toy_two_family")
    families.FAMILIES["toy-flow"] = families.Family(
        "toy-flow", config="image_gen.flow.config", entry="toy_flow", extra_stages=("image_gen.flow.stages",)
    )
    outcomes = []
    if os.environ.get("RANK") == "1":
        sys.addaudithook(refuse_to_write)
    for job in json.loads(Path(sys.argv[1]).read_text()):
        config = config_io.build(job["config"], folder=Path.cwd())
        if job.get("double"):
            from mmrl.vlm import family

            family._dtype = lambda options, device: torch.float64
        try:
            train(config, resume=job.get("resume", False), progress=False)
            outcomes.append("done")
        except UserError as error:
            outcomes.append(f"{'quiet' if error.quiet else 'loud'}: {error}")
    rank = int(torch.distributed.get_rank()) if torch.distributed.is_initialized() else 0
    Path(f"{sys.argv[1]}.rank{rank}").write_text(json.dumps(outcomes))


if __name__ == "__main__":
    if "RANK" in os.environ:
        torch.distributed.init_process_group("gloo")
    main()
    if "RANK" in os.environ:
        torch.distributed.destroy_process_group()
