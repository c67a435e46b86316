"""Records of moving-digit clips by seed, and their names: `clips:train`, `clips:eval`.

Train clips and eval clips show disjoint sets of handwritten digits. A prompt is a question with lettered options and
the closing sentence of TW-GRPO's training prompts (arXiv 2505.24718); an answer is the right letters, "A,C".
"""

from __future__ import annotations

import numpy as np

from mmrl.core.streams import stream_seed
from mmrl.data.digits import PARTS, load_digits
from mmrl.data.names import read_options, whole_number
from mmrl.data.records import Record
from mmrl.errors import UserError, nearest
from video.embedded.clips import LANES, Story, tell
from video.embedded.questions import FORMAT, KINDS, LETTERS, Question, ask, fates_for

QUERY = ("kind", "n", "seed", "demos")
DEFAULT_N = {"train": 4000, "eval": 350}  # 50 of each kind
#: What a thought says of an option that is not in the clip, and of one that is right.
ABSENT = "is absent"
RIGHT = ": yes"
#: Share of demonstrations that name the first right letter only, where there are several.
HASTE = {"hasty": 0.6, "exact": 0.0}


def make_record(*, part: str, index: int, seed: int = 0, kind: str | None = None, demos: str = "hasty") -> Record:
    """One record; it depends on (part, kind, seed, index) only.

    With `kind` None the kinds of question take turns. `demos` says how the demonstration (`response`) answers: exact
    ones name every right letter, hasty ones mostly stop after the first; what they see and all `answer`s are exact.
    `meta` holds "source", "type" (the kind), "options", "lanes" (what happens) and "digits" (pictures shown, as indices
    of the UCI file).
    """
    rng = np.random.default_rng(stream_seed("digit clips", part, kind, seed, index))
    chosen = kind or KINDS[index % len(KINDS)]
    story = tell(load_digits(part), fates_for(chosen, LANES, rng), rng)
    question = ask(chosen, story, rng)
    return Record(
        id=f"clips:{part}:{kind or 'mix'}:{seed}:{index}",
        task="choice",
        prompt=f"{question.problem}\n{FORMAT}",
        videos=(story.clip,),
        answer=",".join(question.right),
        response=_say(story, question, HASTE[demos], rng),
        meta={
            "source": "clips",
            "type": chosen,
            "options": [str(d) for d in question.options],
            "lanes": [lane.read() for lane in story.lanes],
            "digits": list(story.sources),
        },
    )


def _say(story: Story, question: Question, haste: float, rng: np.random.Generator) -> str:
    """A demonstration. The thought tells what every digit does, then each option, what its digit does and whether that
    is asked for: a small model learns to look first, then to look up what it wrote, then to judge, then to name."""
    letters = question.right
    if len(letters) > 1 and rng.random() < haste:
        letters = letters[:1]
    seen = ", ".join(f"{digit} {fate}" for digit, fate in story.does.items())
    judged = "".join(
        f"\n{letter} {digit} {story.does.get(digit, ABSENT)}{RIGHT if letter in question.right else ''}"
        for letter, digit in zip(LETTERS, question.options, strict=False)
    )
    return f"<think>{seen}{judged}</think><answer>{','.join(letters)}</answer>"


def make_records(*, part: str, n: int, seed: int = 0, kind: str | None = None, demos: str = "hasty") -> list[Record]:
    """`n` records from the digits of one part; the first of them are the same for every n."""
    return [make_record(part=part, index=i, seed=seed, kind=kind, demos=demos) for i in range(n)]


# ---- names ---------------------------------------------------------------------------------------------------------


def builtin(name: str) -> list[Record]:
    """Embedded records by name: `clips:PART[?key=value&...]`.

    PART is train or eval. Keys: kind (one of KINDS; default: all in turn), n, seed, demos (hasty or exact).
    `clips:eval` alone is the fixed set of the published numbers. Raises UserError for anything else.
    """
    source, colon, rest = name.partition(":")
    part, _, query = rest.partition("?")
    if source != "clips" or not colon:
        raise UserError(f"data: unknown embedded set {name!r}; use clips:train or clips:eval")
    if part not in DEFAULT_N:
        hint = "; it is kept for reward models" if part in PARTS else nearest(part, DEFAULT_N)
        raise UserError(f"data: {name!r}: no clips from part {part!r}{hint}")
    if name.endswith("?"):
        raise UserError(f"data: {name!r}: options are missing after '?'; add kind=, n=, seed= or demos=, or drop it")
    options = read_options(name, query or None, QUERY)
    kind, demos = options.get("kind"), options.get("demos", "hasty")
    if kind is not None and kind not in KINDS:
        raise UserError(f"data: {name!r}: unknown kind {kind!r}{nearest(kind, KINDS)}")
    if demos not in HASTE:
        raise UserError(f"data: {name!r}: unknown demos {demos!r}{nearest(demos, HASTE)}")
    n = whole_number(name, "n", options["n"], least=1) if "n" in options else DEFAULT_N[part]
    seed = whole_number(name, "seed", options["seed"], least=0) if "seed" in options else 0
    return make_records(part=part, n=n, seed=seed, kind=kind, demos=demos)
