"""Parsing and scoring 10,000 detection completions on one core, and strings that no model should write.

Completions are made up from a fixed seed, eight to a record, in the spellings that models use: quotes of both kinds,
other key names, code fences, lists in lists, missing confidences, long thoughts, "No Objects", answers cut off in the
middle, prose. Boxes are the true ones moved a little, plus wrong ones, so that matching has work to do.
"""

from __future__ import annotations

import json
import random
import statistics
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from benchmarks import harness
from benchmarks.harness import Side

if TYPE_CHECKING:
    from mmrl.data.records import Record

NAMES = ("mmrl", "torch")
COUNT, GROUP = 10_000, 8
BATCH = 1_000  # completions scored together, as in a training step
LIMIT = 2.0  # seconds, for the rewards of Visual-RFT
#: name of the measured phase: components and their options
PHASES: dict[str, tuple[tuple[str, dict[str, Any]], ...]] = {
    "Visual-RFT: iou, confidence, format": (("iou", {}), ("confidence", {}), ("format", {})),
    "the same, released parser": (
        ("iou", {"parser": "official"}),
        ("confidence", {"parser": "official"}),
        ("format", {}),
    ),
    "VLM-R1: weighted_sum": (("weighted_sum", {}),),
    "VLM-R1: ap": (("ap", {}),),
    "VLM-R1: od_length": (("od_length", {}),),
}
WORDS = ("the", "object", "on", "left", "near", "a", "road", "car", "person", "stands", "behind", "partly", "hidden")


def _box(rng: random.Random) -> list[int]:
    x, y = rng.randrange(900), rng.randrange(900)
    return [x, y, x + rng.randrange(10, 100), y + rng.randrange(10, 100)]


def _answer(rng: random.Random, truth: list[list[int]]) -> str:
    """The text inside the answer tags."""
    if not truth or rng.random() < 0.04:
        return rng.choice(["No Objects", "[]", "None", "no objects."])
    found = [[v + rng.randrange(-9, 10) for v in box] for box in truth if rng.random() < 0.85]
    found += [_box(rng) for _ in range(rng.choice([0, 0, 0, 1, 2]))]
    place, sure = rng.choice([("Position", "Confidence")] * 4 + [("bbox_2d", "score"), ("bbox", "confidence")])
    records: list[dict[str, Any]] = []
    for box in found:
        shown: list[Any] = [v + rng.random() for v in box] if rng.random() < 0.1 else box
        record: dict[str, Any] = {place: shown}
        if rng.random() < 0.95:
            record[sure] = round(rng.random(), 2)
        if rng.random() < 0.2:
            record["label"] = rng.choice(["car", "person", "traffic light", "man's hat"])
        records.append(record)
    spelled = rng.choice([json.dumps, json.dumps, str, str, lambda r: json.dumps(r, indent=1)])(records)
    kind = rng.random()
    if kind < 0.04:
        return spelled[: rng.randrange(len(spelled) + 1)]  # cut off in the middle
    if kind < 0.10:
        return f"```json\n{spelled}\n```"
    if kind < 0.13:
        return f"[{spelled}]"
    if kind < 0.16:
        return spelled[:-1] + ", ...]"
    if kind < 0.18:
        return f"There are {len(found)} of them: {spelled}"
    return spelled


def completions(count: int, seed: int = 0) -> tuple[list[str], list[Record]]:
    from mmrl.data.records import Record

    rng = random.Random(seed)
    outputs, records = [], []
    while len(outputs) < count:
        truth = [_box(rng) for _ in range(rng.choice([0, 1, 1, 2, 3, 4, 6]))]
        record = Record(f"r{len(outputs)}", "detection", "Find them.", answer=truth)
        for _ in range(min(GROUP, count - len(outputs))):
            thought = " ".join(rng.choices(WORDS, k=rng.randrange(5, 120)))
            answer = _answer(rng, truth)
            kind = rng.random()
            if kind < 0.9:
                output = f"<think>{thought}</think>{rng.choice(['', chr(10)])}<answer>{answer}</answer>"
            else:
                output = rng.choice(
                    [answer, f"<answer>{answer}", f"<think>{thought}", f"<answer>\n{answer}\n</answer>"]
                )
            outputs.append(output)
            records.append(record)
    return outputs, records


def nonsense(count: int, seed: int = 0, longest: int = 400) -> list[str]:
    """Brackets, tags, numbers no float holds, words of three languages, control characters, in any order."""
    rng = random.Random(seed)
    pieces = [*"[](){}<>'\"`,:;.-+eE\\/|_ \n\t\r\0", *"0123456789", "[[", "]]", "},", "{'", "```", "```json\n", "..."]
    pieces += ["<think>", "</think>", "<answer>", "</answer>", "'Position'", '"Confidence"', "bbox_2d", "Position: "]
    pieces += ["NaN", "-Infinity", "1e999", "-1e-999", "9" * 400, "0x1F", "null", "None", "True", "No Objects", "()"]
    pieces += ["\u202e", "\ud800", "\U0001f600", "猫", "İ", "ß", "½", "٣", "\x7f", "\u2028", "[1,2,3,4]", "(1,2),(3,4)"]
    return ["".join(rng.choices(pieces, k=rng.randrange(longest))) for _ in range(count)]


def _components(names: Sequence[tuple[str, dict[str, Any]]]) -> list[Callable[..., list[float]]]:
    from functools import partial

    from mmrl.rewards import registry

    return [partial(registry.find(name).function, **options) for name, options in names]


def side(count: int) -> Callable[[Any], object]:
    from mmrl.data import boxtext

    outputs, records = completions(count)
    info: list[dict[str, Any]] = [{} for _ in outputs]
    made = {phase: _components(names) for phase, names in PHASES.items()}

    def work(clock: Any) -> None:
        for phase, components in made.items():
            boxtext._parse_short.cache_clear()  # each phase reads every completion anew
            with clock(phase):
                for i in range(0, count, BATCH):
                    for component in components:
                        component(outputs[i : i + BATCH], records[i : i + BATCH], info[i : i + BATCH])

    return work


def survive(count: int) -> dict[str, float]:
    """Every reward on strings without sense; raises if one does."""
    from mmrl.data.records import Record

    outputs = nonsense(count)
    records = [Record("r", "detection", "Find them.", answer=[[1, 2, 30, 40], [5, 5, 9, 9]])] * count
    scores = [
        value
        for names in PHASES.values()
        for component in _components(names)
        for value in component(outputs, records, [{}] * count)
    ]
    return {"strings": count, "scores": len(scores), "largest": max(scores), "characters": sum(map(len, outputs))}


def measure(quick: bool) -> dict[str, Any]:
    count = 500 if quick else COUNT
    times = harness.race([Side("mmrl", "benchmarks.parsing:side", {"count": count})], repeats=2 if quick else 10)[
        "mmrl"
    ]
    outputs, _ = completions(count)
    survived = harness.call("benchmarks.parsing:survive", count=count)
    return {"count": count, "median_length": statistics.median(map(len, outputs)), "times": times, "survived": survived}


def page(result: dict[str, Any]) -> str:
    count = result["count"]
    rows = [
        [phase, harness.show_seconds(t), f"{t['median'] / count * 1e6:.0f}"] for phase, t in result["times"].items()
    ]
    survived, length = result["survived"], result["median_length"]
    return f"""{count:,} detection completions, {length:.0f} characters in the median, made up from a seed; one core,
{BATCH:,} at a time. A parsed answer is remembered for the components that follow, as in training.

{harness.table(["components", "seconds (quartiles)", "µs a completion"], rows)}

{survived["strings"]:,} strings without sense ({survived["characters"]:,} characters of brackets, tags, numbers that no
float holds, control characters and halves of characters): {survived["scores"]:,} scores of all components, and none
raised."""


def headline(result: dict[str, Any]) -> list[list[str]]:
    time = next(iter(result["times"].values()))
    return [["parse and score detections", f"{result['count']:,}", harness.show_seconds(time), f"under {LIMIT:.0f} s"]]
