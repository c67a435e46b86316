"""`mmrl data invert-questions IN OUT`: question-answer inversion of a JSONL file of records. Loads no torch."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

from mmrl.data.answers import inside_tags
from mmrl.data.write import write_rows, write_text
from mmrl.errors import UserError
from video.data.files import Row, moved, rows_of
from video.data.invert import Inverted, Rules, invert, item_stream
from video.data.layout import ALIKE, ASK, Ask, choice_prompt, indices_of

SHOWN = 3
#: Why a row stays as it is.
NO_QUESTION = "no task choice with question and options in its meta"
SEVERAL = "more than one right option, or only one option"
NOT_DRAWN = "not drawn (share)"
NO_RULE = "drawn, but no rule fires"


@dataclass
class Report:
    """What changed: rows kept by reason, inverted ones by rule, by number of right options, and examples."""

    rules: str
    share: float
    seed: int
    rows: int = 0
    inverted: int = 0
    kept: Counter[str] = field(default_factory=Counter)
    by_rule: Counter[str] = field(default_factory=Counter)
    by_right: Counter[int] = field(default_factory=Counter)
    responses_dropped: int = 0
    examples: list[dict[str, Any]] = field(default_factory=list)

    def lines(self) -> list[str]:
        out = [f"{self.rows} rows: {self.inverted} inverted, {self.rows - self.inverted} kept as they are"]
        out += [f"  kept, {why}: {n}" for why, n in self.kept.most_common()]
        out += [f"  inverted by {rule}: {n}" for rule, n in self.by_rule.most_common()]
        if self.by_right:
            counts = ", ".join(f"{k}: {n}" for k, n in sorted(self.by_right.items()))
            out.append(f"right options after inversion: {counts}")
        if self.responses_dropped:
            out.append(f"responses left out, as they answered the old question: {self.responses_dropped}")
        for one in self.examples:
            out.append(f"  {one['id']}: {one['question_before']} [{one['right_before']}]")
            out.append(f"    -> {one['question']} {' | '.join(one['options'])} [{one['answer']}]")
        return out

    def as_json(self) -> str:
        counts = {
            "kept": dict(self.kept),
            "by_rule": dict(self.by_rule),
            "by_right": dict(sorted(self.by_right.items())),
        }
        return json.dumps({**vars(self), **counts}, indent=2, ensure_ascii=False) + "\n"


def report_path(out: Path) -> Path:
    return out.with_name(f"{out.stem}.report.json")


def invert_file(source: Path, out: Path, *, rules: Rules, share: float = 0.5, seed: int = 0) -> Report:
    """Invert a share of the questions of `source` and write all rows, changed or not, to `out`, the report beside it.

    A row is drawn with probability `share`; the draw and all that follows depend on (seed, id) only, so a row's fate is
    the same in every file that holds it. Raises UserError, also for a source without any question to invert.
    """
    if source.resolve() == out.resolve():
        raise UserError(f"{out}: the file that is read would be overwritten; give another name to write to")
    if not 0 <= share <= 1:
        raise UserError(f"--share must be between 0 and 1, got {share:g}")
    report = Report(rules, share, seed)
    rows = []
    for i, (where, row) in enumerate(rows_of(source), start=1):
        name = str(row.get("id", f"{source.stem}-{i}"))
        rows.append(_row(moved(row, source, out), name, where, report))
    if report.kept[NO_QUESTION] == report.rows:
        raise UserError(
            f"{source}: none of its {report.rows} rows is a question that can be inverted ({NO_QUESTION}); "
            "make such a file by: mmrl data convert"
        )
    write_rows(rows, out, parents=True)
    write_text(report.as_json(), report_path(out))
    return report


def _row(row: Row, name: str, where: str, report: Report) -> Row:
    report.rows += 1
    question = _question(row, where)
    if isinstance(question, str):
        report.kept[question] += 1
        return row
    text, options, right = question
    stream = item_stream(report.seed, name)
    if stream.random() >= report.share:
        report.kept[NOT_DRAWN] += 1
        return row
    new = invert(text, options, right, rules=cast(Rules, report.rules), stream=stream)
    if new is None:
        report.kept[NO_RULE] += 1
        return row
    report.inverted += 1
    report.by_rule[new.rule] += 1
    report.by_right[len(new.right)] += 1
    report.responses_dropped += row.get("response") is not None
    if len(report.examples) < SHOWN:
        told = {"id": name, "question_before": text, "right_before": options[right], "question": new.question}
        report.examples.append({**told, "options": list(new.options), "answer": new.letters, "rule": new.rule})
    return _changed(row, new, was=(text, options[right]))


def _question(row: Row, where: str) -> tuple[str, list[str], int] | str:
    """(question, options, index of the right one), or why the row is kept."""
    meta = row.get("meta")
    meta = meta if isinstance(meta, dict) else {}
    text, options = meta.get("question"), meta.get("options")
    answer = row.get("answer", row.get("solution"))
    if row.get("task") != "choice" or not isinstance(text, str) or not isinstance(options, list):
        return NO_QUESTION
    if not options or not all(isinstance(option, str) for option in options):
        raise UserError(f"{where}: meta.options must be a list of texts, got {options!r:.60}")
    letters = [answer] if isinstance(answer, str) else answer
    if not isinstance(letters, list) or not letters or not all(isinstance(letter, str) for letter in letters):
        raise UserError(f"{where}: answer must be letters such as 'B' or 'B,C', got {answer!r:.60}")
    right = indices_of(",".join(map(inside_tags, letters)), len(options), where)
    if len(set(right)) != 1 or len(options) < 2:
        return SEVERAL
    same = sum(" ".join(option.split()).lower() == " ".join(options[right[0]].split()).lower() for option in options)
    return ALIKE if same > 1 else (text, options, right[0])


def _changed(row: Row, new: Inverted, *, was: tuple[str, str]) -> Row:
    """The row with the new question; what belonged to the old one is left out."""
    meta = dict(row["meta"])
    ask: Ask = meta["ask"] if meta.get("ask") in ASK else "mixed"
    ask = "mixed" if ask == "single" else ask  # "select one letter" would be wrong now
    meta |= {"question": new.question, "options": list(new.options), "ask": ask}
    meta["inverted"] = {"rule": new.rule, "question": was[0], "right": was[1]}
    kept = {k: v for k, v in row.items() if k not in ("prompt", "problem", "answer", "solution", "response", "meta")}
    prompt = choice_prompt(new.question, new.options, ask)
    return {**kept, "prompt": prompt, "answer": new.letters, "meta": meta}
