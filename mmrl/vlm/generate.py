"""Answers of a stored model about pictures: `mmrl generate` for vision-language models."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from mmrl.config import Config
from mmrl.data.records import FRAMES
from mmrl.errors import UserError, nearest
from mmrl.training.exported import NOTE

if TYPE_CHECKING:
    from PIL import Image

COLOURS = ("#e4572e", "#2e86ab", "#3bb273", "#7768ae", "#e1bc29")
DEFAULT_FRAME = "norm1000"


def generate(
    checkpoint: Path,
    *,
    prompt: str,
    image: list[Path] | None = None,
    n: int = 1,
    seed: int = 0,
    frame: str | None = None,
    config: str | None = None,
    base: str | None = None,
    out: Path = Path("generated"),
) -> list[Path]:
    """Answer a question about pictures; write the answers and the pictures with the boxes drawn on them.

    n       one answer is greedy, several are sampled.
    frame   coordinates of the answers' boxes; default as in the run's records, else norm1000.
    config  default the run's own. base: where the base model of an adapter is, if it is not found.
    """
    if frame is not None and frame not in FRAMES:
        raise UserError(f"--frame {frame}: unknown{nearest(frame, FRAMES)}")
    resolved = settings(checkpoint, config, base=base)
    used = frame or (frame_of(resolved) if image else DEFAULT_FRAME)
    answers = answer(resolved, prompt, image or [], n=n, seed=seed, frame=used)
    return write_answers(answers, out, prompt=prompt, checkpoint=str(checkpoint), seed=seed, frame=used)


def answer(
    resolved: Config,
    prompt: str,
    images: list[Path],
    *,
    n: int,
    seed: int,
    frame: str = DEFAULT_FRAME,
    task: str = "detection",
    videos: list[Path] | None = None,
) -> list[dict[str, Any]]:
    """`n` answers of the configuration's model as {"prompt", "output", "images": [PIL], "boxes": [pixel boxes on the
    first picture]}.

    frame   the coordinates the model writes its boxes in. videos: where its family reads them.
    """
    from mmrl import families
    from mmrl.core.streams import Streams
    from mmrl.data.records import Record
    from mmrl.training.rollouts import Request
    from mmrl.training.setup import prepare_machine

    prepare_machine(resolved)
    policy = families.entry(resolved.family).load_policy(resolved)
    pictures, clips = (tuple(str(p.resolve()) for p in paths) for paths in (images, videos or []))
    record = Record(id="generate", task=task, prompt=prompt, images=pictures, videos=clips, frame=frame)
    rollouts = policy.rollout([Request(record, n)], Streams(seed, 0, "generate"), greedy=n == 1)
    answers: list[dict[str, Any]] = policy.describe(rollouts, range(len(rollouts)))
    return answers


def settings(
    checkpoint: Path,
    config: str | None,
    *,
    base: str | None = None,
    family: str = "vlm",
    train: str = "digits:train",
) -> Config:
    """The configuration given, else the run's own, else what the note of an exported folder says, and the defaults; its
    model.path is the checkpoint's model."""
    from mmrl import config_io, json_io
    from mmrl.training.stored import model_folder, run_config, run_folder

    model = model_folder(checkpoint)
    exported = any((model / name).is_file() for name in ("config.json", "adapter_config.json"))
    if config is not None or run_folder(checkpoint) is not None or not exported:
        return run_config(checkpoint, config, model=model, base=base)
    plain = {
        "family": family,
        "recipe": "grpo",
        "model": {"path": str(model.resolve()), "base": base},
        "data": {"train": train},
    }
    if (model / NOTE).is_file():
        note = json_io.read_object(model / NOTE, remedy="export the model again")
        plain["inputs"] = note.get("inputs", {})
        plain["sampling"] = {k: note[k] for k in ("max_new_tokens",) if k in note}
    return config_io.build(plain, folder=Path.cwd(), where=str(checkpoint))


def frame_of(config: Config) -> str:
    """The coordinate frame of the training records, if they can still be read and all have the same."""
    from mmrl import config_io, families
    from mmrl.data.read import scan
    from mmrl.data.records import Record
    from mmrl.training.setup import needed

    entries = config.data.train
    require = needed(config, imitation=config_io.recipe_of(config).experience == "records")
    found = set()
    for name in [entries] if isinstance(entries, str) else entries:
        if config_io.is_embedded(name):
            found |= {record.frame for record in families.entry(config.family).builtin(name)}
        elif Path(name).exists():
            found |= {row.frame for row in scan(Path(name), require=require) if isinstance(row, Record)}
        else:
            return DEFAULT_FRAME
    return found.pop() if len(found) == 1 else DEFAULT_FRAME


def write_answers(
    answers: list[dict[str, Any]], out: Path, *, prompt: str, checkpoint: str, seed: int, frame: str
) -> list[Path]:
    """Print the answers; write answers.json and one PNG an answer that has a picture. Returns the files."""
    out.mkdir(parents=True, exist_ok=True)
    for old in out.glob("answer-*.png") if (out / "answers.json").exists() else ():
        old.unlink()  # of an earlier call: the file beside them tells of these answers only
    written, rows = [], []
    for i, item in enumerate(answers):
        typer.echo(printable(item["output"]))
        row = {"output": item["output"], "boxes": item.get("boxes") or []}
        if item.get("images"):
            path = out / f"answer-{i}.png"
            draw_boxes(item["images"][0], row["boxes"]).save(path)
            row["image"] = path.name
            written.append(path)
        rows.append(row)
    file = out / "answers.json"
    body = {"checkpoint": checkpoint, "prompt": prompt, "seed": seed, "frame": frame, "answers": rows}
    file.write_text(json.dumps(body, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    return [*written, file]


def printable(text: str) -> str:
    """Model output for a terminal: control characters, which could steer it, become a replacement sign."""
    return "".join(c if c.isprintable() or c in "\n\t" else "\N{REPLACEMENT CHARACTER}" for c in text)


def draw_boxes(image: Image.Image, boxes: list[list[float]], *, side: int = 512) -> Image.Image:
    """A copy with the boxes (pixels, x1 y1 x2 y2) outlined; pictures smaller than `side` are enlarged first."""
    from PIL import Image, ImageDraw

    scale = max(1, side // max(image.size))
    large = image.convert("RGB").resize((image.width * scale, image.height * scale), Image.Resampling.NEAREST)
    pen = ImageDraw.Draw(large)
    for i, (x1, y1, x2, y2) in enumerate(boxes):
        corners = [min(x1, x2) * scale, min(y1, y2) * scale, max(x1, x2) * scale, max(y1, y2) * scale]
        pen.rectangle(corners, outline=COLOURS[i % len(COLOURS)], width=max(2, side // 170))
    return large
