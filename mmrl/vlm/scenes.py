"""Digit scenes: pictures of 64 x 64 pixels with one to three handwritten digits, and questions about them.

A scene is drawn from a seed alone: real digits of `mmrl.data.digits` at random sizes and places, in a dark ink on a
light, mildly uneven paper; boxes are tight around the ink and never touch. Train scenes and eval scenes show disjoint
sets of digits. Four tasks with verifiable answers: detection ("find the 7", which may be absent or there twice),
classification, counting, grounding ("the digit on the left"). Prompts and answers follow the format of Visual-RFT
(arXiv 2503.01785), in the coordinate frame norm1000.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from mmrl.core.streams import stream_seed
from mmrl.data.digits import PARTS, Digits, load_digits
from mmrl.data.names import read_options, whole_number
from mmrl.data.records import Record
from mmrl.errors import UserError, nearest
from mmrl.vlm.scene_pictures import COORDINATES, SIDE, Box, Scene, draw, norm1000

LOOSE = 7  # pixels: how far the sides of a hastily drawn box lie outside the ink, at most
CONFIDENCES = ("0.70", "0.80", "0.90")  # of demonstrations: spread, so that sampling has something to choose from

OPTIONS = ("task", "n", "seed", "demos")
TASKS = ("detection", "classification", "counting", "grounding")
MIX = {"detection": 0.70, "classification": 0.14, "counting": 0.06, "grounding": 0.10}
DEFAULT_N = {"train": 4000, "eval": 400}
#: The published evaluation set, by kind of record, and how much of the stream fills all quotas.
HELD_OUT = {"one box": 200, "two boxes": 24, "no objects": 24, "classification": 24, "counting": 24, "grounding": 24}
HELD_OUT_STREAM = 600

FORMAT = "Write your thinking in <think> </think> and your final answer in <answer> </answer>, as in "
DETECTION = (
    "Detect all objects belonging to the category '{category}' in the image. Give bounding boxes between 0 and 1000, "
    "integer, and a confidence between 0 and 1, with two decimal places. If there are none, return 'No Objects'. "
    + FORMAT
    + "<think> ... </think><answer>[{{'Position': [x1, y1, x2, y2], 'Confidence': number}}, ...]</answer>."
)
CLASSIFICATION = (
    "This is an image containing a handwritten digit. Please identify the digit. "
    + FORMAT
    + "<think> ... </think><answer>digit</answer>."
)
COUNTING = "How many digits are in the image? " + FORMAT + "<think> ... </think><answer>number</answer>."
GROUNDING = (
    "Output the bounding box in the image corresponding to the instruction: {instruction}. "
    + FORMAT
    + "<think> ... </think><answer>(x1,y1),(x2,y2)</answer>."
)
Made = tuple[Scene, dict[str, Any]]
Demonstrate = Callable[[Box, np.random.Generator], Box]
INSTRUCTIONS = ("the digit on the left", "the digit on the right", "the upper digit", "the lower digit")


def _say(scene: Scene, answer: str, wanted: Sequence[Box] = ()) -> str:
    """A demonstration. The thought reads the digits from left to right and marks those asked for by their horizontal
    centre, as in "5, 7 at 594": a small model learns to read, to compare, and then to look there."""
    read = [
        f"{d.label} at {_centre(d.box)}" if d.box in wanted else str(d.label)
        for d in sorted(scene.digits, key=lambda d: d.box)
    ]
    return f"<think>{', '.join(read)}</think><answer>{answer}</answer>"


def _centre(box: Box) -> int:
    return COORDINATES[(box[0] + box[2]) // 2]


def _exact(box: Box, rng: np.random.Generator) -> Box:
    return box


def _hasty(box: Box, rng: np.random.Generator) -> Box:
    """Each side moved outwards by 0..LOOSE pixels, inside the picture."""
    x1, y1, x2, y2 = (int(v) for v in np.array(box) + rng.integers(0, LOOSE + 1, size=4) * (-1, -1, 1, 1))
    return max(0, x1), max(0, y1), min(SIDE, x2), min(SIDE, y2)


#: How the boxes of a demonstration relate to the true ones, by the name used in `digits:train?demos=...`.
DEMOS: dict[str, Demonstrate] = {"hasty": _hasty, "exact": _exact}


def _detection(rng: np.random.Generator, digits: Digits, demonstrate: Demonstrate) -> Made:
    """Three quarters ask for one box, the rest for two or for none."""
    target = int(rng.integers(10))
    others = [d for d in range(10) if d != target]
    times = int(rng.choice([0, 1, 2], p=[0.125, 0.75, 0.125]))
    extra = int(rng.integers(max(0, 1 - times), 4 - max(1, times)))
    labels = [target] * times + [int(d) for d in rng.choice(others, size=extra)]
    scene = draw(digits, [labels[i] for i in rng.permutation(len(labels))], rng)
    boxes = sorted(d.box for d in scene.digits if d.label == target)
    shown = [
        f"{{'Position': {norm1000(demonstrate(box, rng))}, 'Confidence': {rng.choice(CONFIDENCES)}}}" for box in boxes
    ]
    return scene, {
        "prompt": DETECTION.format(category=target),
        "answer": [{"Position": norm1000(box), "Confidence": 1.0} for box in boxes],
        "response": _say(scene, f"[{', '.join(shown)}]" if boxes else "No Objects", boxes),
        "meta": {"category": str(target)},
    }


def _classification(rng: np.random.Generator, digits: Digits, demonstrate: Demonstrate) -> Made:
    label = int(rng.integers(10))
    scene = draw(digits, [label], rng)
    return scene, {"prompt": CLASSIFICATION, "answer": str(label), "response": _say(scene, str(label))}


def _counting(rng: np.random.Generator, digits: Digits, demonstrate: Demonstrate) -> Made:
    n = int(rng.integers(1, 4))
    scene = draw(digits, [int(d) for d in rng.integers(10, size=n)], rng)
    return scene, {"prompt": COUNTING, "answer": str(n), "response": _say(scene, str(n))}


def _grounding(rng: np.random.Generator, digits: Digits, demonstrate: Demonstrate) -> Made:
    """Two digits whose centres differ by at least 10 pixels along the axis that is asked for."""
    choice = int(rng.integers(len(INSTRUCTIONS)))
    axis = choice // 2
    while True:
        scene = draw(digits, [int(d) for d in rng.integers(10, size=2)], rng)
        centres = [(d.box[axis] + d.box[axis + 2]) / 2 for d in scene.digits]
        if abs(centres[0] - centres[1]) >= 10:
            break
    wanted = scene.digits[int(np.argmin(centres)) if choice % 2 == 0 else int(np.argmax(centres))]
    instruction = INSTRUCTIONS[choice]
    x1, y1, x2, y2 = norm1000(demonstrate(wanted.box, rng))
    return scene, {
        "prompt": GROUNDING.format(instruction=instruction),
        "answer": norm1000(wanted.box),
        "response": _say(scene, f"({x1},{y1}),({x2},{y2})", [wanted.box]),
        "meta": {"instruction": instruction},
    }


_MAKE: dict[str, Callable[[np.random.Generator, Digits, Demonstrate], Made]] = {
    "detection": _detection,
    "classification": _classification,
    "counting": _counting,
    "grounding": _grounding,
}


def make_records(*, part: str, n: int, seed: int = 0, task: str | None = None, demos: str = "hasty") -> list[Record]:
    """`n` records from the digits of one part. Record i depends on (part, task, seed, i) only, not on n.

    With `task` None the tasks are mixed as in MIX. `demos` names how well the demonstrations (`response`) are drawn;
    answers are always exact. `meta` holds "source", "objects" (class and box in norm1000 of
    every digit shown) and what the task adds.
    """
    digits = load_digits(part)
    records = []
    for i in range(n):
        rng = np.random.default_rng(stream_seed("digit scenes", part, task, seed, i))
        chosen = task or str(rng.choice(list(MIX), p=list(MIX.values())))
        scene, fields = _MAKE[chosen](rng, digits, DEMOS[demos])
        objects = [{"label": str(d.label), "box": norm1000(d.box), "digit": d.source} for d in scene.digits]
        meta = {"source": "digits", "objects": objects, **fields.pop("meta", {})}
        name = f"digits:{part}:{task or 'mix'}:{seed}:{i}"
        records.append(Record(id=name, task=chosen, images=(scene.picture,), frame="norm1000", meta=meta, **fields))
    return records


def one_box(record: Record) -> bool:
    """The records of the headline metric: detection with exactly one box to find."""
    return record.task == "detection" and isinstance(record.answer, list) and len(record.answer) == 1


def kind(record: Record) -> str:
    """The task, detection told apart by what there is to find: one box, two boxes, no objects."""
    if record.task != "detection":
        return record.task
    return ("no objects", "one box", "two boxes")[len(record.answer)]


def held_out() -> list[Record]:
    """The fixed evaluation set, 320 records: the mixed stream of seed 0, each kind up to its quota."""
    left = dict(HELD_OUT)
    chosen = []
    for record in make_records(part="eval", n=HELD_OUT_STREAM):
        if left[kind(record)] > 0:
            left[kind(record)] -= 1
            chosen.append(record)
    order = list(HELD_OUT)  # what the headline metrics are about comes first, so that samples show it
    return sorted(chosen, key=lambda record: order.index(kind(record)))


# ---- names ---------------------------------------------------------------------------------------------------------


def builtin(name: str) -> list[Record]:
    """Embedded records by name: `digits:PART[?key=value&...]`.

    PART is train or eval (reward and judge belong to reward models). Keys: task (one of TASKS; default: the mix), n,
    seed, demos (hasty or exact boxes in the demonstrations). `digits:eval` without keys is the fixed set `held_out()`
    of the published numbers. Raises UserError for anything else.
    """
    kind, colon, rest = name.partition(":")
    part, _, query = rest.partition("?")
    if kind != "digits" or not colon:
        raise UserError(f"data: unknown embedded set {name!r}; use digits:train or digits:eval")
    if part not in DEFAULT_N:
        hint = "; it is kept for reward models" if part in PARTS else nearest(part, DEFAULT_N)
        raise UserError(f"data: {name!r}: no scenes from part {part!r}{hint}")
    if name.endswith("?"):
        raise UserError(f"data: {name!r}: options are missing after '?'; add task=, n= or seed=, or drop it")
    options = read_options(name, query or None, OPTIONS)
    task = options.get("task")
    if task is not None and task not in TASKS:
        raise UserError(f"data: {name!r}: unknown task {task!r}{nearest(task, TASKS)}")
    demos = options.get("demos", "hasty")
    if demos not in DEMOS:
        raise UserError(f"data: {name!r}: unknown demos {demos!r}{nearest(demos, DEMOS)}")
    n = whole_number(name, "n", options["n"], least=1) if "n" in options else DEFAULT_N[part]
    seed = whole_number(name, "seed", options["seed"], least=0) if "seed" in options else 0
    if part == "eval" and not options:
        return held_out()
    return make_records(part=part, n=n, seed=seed, task=task, demos=demos)
