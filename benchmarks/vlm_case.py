"""What the vision-language benchmarks share: a random model of about 8 M parameters, a picture, mmrl's own trainer.

Everything lies in one folder, so that two sides in two processes use the same files.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from mmrl.rewards import reward

NEW_TOKENS = 32
KINDS = ("qwen2_5_vl", "qwen3_vl")
SIZES = {"vocabulary": 4096, "hidden": 256, "layers": 6, "heads": 8, "kv_heads": 4}
VISION = {"vision_hidden": 192, "vision_layers": 4, "vision_heads": 6, "patch": 14}
SMALL: dict[str, int] = {"vocabulary": 120, "hidden": 32, "layers": 2, "heads": 4, "kv_heads": 2}
HERE = Path(__file__).resolve().parent


def build(
    folder: str, kind: str, *, side: int = 448, prompts: int = 1, small: bool = False, text: int = 6
) -> dict[str, int]:
    """A checkpoint, `prompts` pictures of side x side pixels (patch 14, merged 2 x 2) and records, in `folder`.

    text: characters of the prompt; each is one token.
    """
    from mmrl.vlm import tiny

    root = Path(folder)
    root.mkdir(parents=True, exist_ok=True)
    sizes = SMALL if small else SIZES | VISION
    model = tiny.build(kind, root / "model", scale=0.05, **sizes)
    if kind == "qwen2_5_vl" and not small:  # the window of the published models: 8 x 8 patches
        path = model / "config.json"
        config = json.loads(path.read_text())
        config["vision_config"]["window_size"] = 8 * config["vision_config"]["patch_size"]
        path.write_text(json.dumps(config))
    lines = []
    for i in range(prompts):
        cells = np.random.default_rng(i).integers(0, 255, (-(-side // 8), -(-side // 8), 3), dtype=np.uint8)
        picture = np.kron(cells, np.ones((8, 8, 1), dtype=np.uint8))[:side, :side]
        Image.fromarray(picture).save(root / f"{i}.png")
        lines.append(
            {"id": f"b{i}", "task": "text", "prompt": ("Where? " * text)[:text], "images": [f"{i}.png"], "answer": "x"}
        )
    (root / "train.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return {"patches": (side // 14) ** 2, "picture_tokens": (side // 28) ** 2}


def value(text: str) -> float:
    """A reward that differs between the outputs of a random model."""
    return sum(map(ord, text)) % 7 / 7


@reward("bench", tasks=("text",))
def bench(outputs: list[str], records: list[Any], info: Any) -> list[float]:
    return [value(o) for o in outputs]


def trainer(
    folder: str, *, group: int = 8, prompts: int = 1, ragged: bool = False, model: dict[str, Any] | None = None
) -> Any:
    """mmrl's trainer on that folder: the settings of TRL's GRPOTrainer, NEW_TOKENS tokens a row.

    ragged: a fortieth of all tokens end a row, so that lengths differ; else no token does.
    """
    from mmrl import config_io
    from mmrl.training.setup import build_trainer

    settings = {
        "family": "vlm",
        "recipe": str(HERE / "recipe_trl.yaml"),
        "device": "cpu",
        "out": f"{folder}/run",
        "model": {"path": f"{folder}/model", **(model or {})},
        "sampling": {"max_new_tokens": NEW_TOKENS},
        "data": {"train": f"{folder}/train.jsonl", "shuffle": False},
        "rewards": {"components": [{"name": "bench"}]},
        "train": {"prompts": prompts, "group": group, "steps": 100_000},
        "optimiser": {"lr": 1e-6, "grad_norm": 1.0},
        "log": {"entropy_every": 1},  # TRL looks at the entropy in every step
    }
    made, policy, _ = build_trainer(config_io.build(settings, folder=Path(folder)), lambda line: None)
    rows = policy.shape.head.weight.shape[0]
    policy.ends = set(range(100, rows, 40)) if ragged else {-1}
    vocabulary = policy.processor.tokenizer.get_vocab()
    policy.suppressed = {i for token, i in vocabulary.items() if token.startswith("<|")}  # as TRL is told to
    return made


def clocked_step(made: Any) -> Callable[[Any], None]:
    """A whole step of mmrl's trainer with its phases on the clock: rollout (with reward), update, step."""
    clocks: list[Any] = []
    sample, updates = made._sample, made._updates

    def timed_sample(*args: Any) -> Any:
        with clocks[-1]("rollout"):
            return sample(*args)

    def timed_updates(*args: Any) -> Any:
        with clocks[-1]("update"):
            return updates(*args)

    made._sample, made._updates = timed_sample, timed_updates

    def work(clock: Any) -> None:
        clocks.append(clock)
        with nullcontext() if clock.memory else clock("step"):  # a peak inside a peak cannot be measured
            made.step()

    return work
