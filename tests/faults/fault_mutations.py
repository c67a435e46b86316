"""Hypothesis strategies that spoil a valid tree of YAML/JSON values, and its text and bytes."""

from __future__ import annotations

import copy
import datetime
import os
from typing import Any

from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st

#: Ordinary runs look at 100 examples each, `make chaos` at 1,000.
EXAMPLES = int(os.environ.get("MMRL_FUZZ_EXAMPLES", "100"))
FUZZ = settings(
    max_examples=EXAMPLES,
    deadline=None,
    derandomize="MMRL_FUZZ_SEED" not in os.environ,
    database=None,
    phases=[Phase.explicit, Phase.generate, Phase.shrink],
    suppress_health_check=list(HealthCheck),
)


def nested(depth: int, leaf: Any, kind: str) -> Any:
    for _ in range(depth):
        leaf = [leaf] if kind == "list" else {"a": leaf}
    return leaf


NUMBERS = st.sampled_from(
    [0, -1, 1, 2**31, 2**63 - 1, 2**63, 2**64, -(2**63) - 1, 10**30, 10**400, 0.0, -0.0, 1e-320, 1e308, 1e-6, 0.5]
    + [float("nan"), float("inf"), float("-inf"), True, False]
)
TEXTS = st.one_of(
    st.sampled_from(
        [
            "",
            " ",
            "auto",
            "none",
            "null",
            "~",
            "yes",
            "1e3",
            "0x10",
            "1_000",
            "12:30:00",
            "2001-01-01",
            "/",
            ".",
            "..",
            "~x",
        ]
        + ["/dev/null", "a/../b", "C:\\x", "http://x/y.yaml", "digits:train", "digits:", "embedded:vlm", "embedded:x"]
        + ["é", "日本語", "\u202e", "\u2028", "\x85", "a\nb", "\ufeffx", "💥", "%s %(x)s {0}", "grpo.yaml", "x" * 5000]
        + ["'", '"', "[bold]x[/]", "\x1b[31m", "toy", "cuda:99", "meta", "cpu:1", "os.path", "mmrl.errors", "a.b.c"]
    ),
    st.text(max_size=12),
)
PLAIN = st.one_of(st.none(), NUMBERS, TEXTS, st.integers(), st.floats())
JUNK = st.one_of(
    PLAIN,
    st.recursive(
        PLAIN, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3), max_leaves=6
    ),
    st.builds(nested, st.integers(1, 40), PLAIN, st.sampled_from(["list", "dict"])),
)
DATES = st.sampled_from([datetime.date(2001, 1, 1), datetime.datetime(2001, 1, 1, 12), b"\x00\xff", {1: 2}, {None: 1}])


def places(tree: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Paths of every key and item below the root."""
    found: list[tuple[Any, ...]] = []
    items = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    for key, value in items:
        found += [(*path, key), *places(value, (*path, key))]
    return found


@st.composite
def spoilt(draw: Any, valid: Any, *, most: int = 3, junk: Any = JUNK) -> Any:
    """One of the `valid` trees with up to `most` changes: a value replaced, a key lost, added, misspelt, or wrapped."""
    tree = copy.deepcopy(draw(st.sampled_from(valid)))
    for _ in range(draw(st.integers(0, most))):
        at = places(tree)
        if not at:
            break
        *above, last = draw(st.sampled_from(at))
        parent = tree
        for key in above:
            parent = parent[key]
        what = draw(st.sampled_from(["value", "value", "lose", "add", "misspell", "wrap"]))
        if what == "value":
            parent[last] = copy.deepcopy(draw(junk))  # a sampled object must not change for the next example
        elif what == "lose":
            del parent[last]
        elif what == "wrap":
            parent[last] = draw(st.sampled_from([lambda v: [v], lambda v: {"name": v}, lambda v: [], lambda v: {}]))(
                parent[last]
            )
        elif isinstance(parent, dict):
            key = draw(TEXTS) if what == "add" or not isinstance(last, str) else last[::-1] + draw(st.text(max_size=2))
            parent[key] = copy.deepcopy(draw(junk)) if what == "add" else parent.pop(last)
    return tree


TOKENS = st.sampled_from(
    ["\t", "\0", ": ", "- ", "&a ", "*a", "<<: *a", "!!python/object:os.system ", "!!binary ", "!!set ", "!x ", "---\n"]
    + ["...\n", "%YAML 9.9\n", "? ", "| \n", "> \n", "{", "}", "[", "]", "'", '"', "#", ",", "@", "`", "\ufeff", "\r"]
    + ["0o9", ".inf", ".nan", "1:60:60", "=", "\x85", "\u2028", "\\ud800", "9" * 5000, "&a [*a]", "\ud83d"]
)


@st.composite
def spoilt_text(draw: Any, text: Any, *, most: int = 2) -> bytes:
    """Its bytes, after up to `most` cuts and insertions; rarely in another encoding, with a bit turned."""
    out: str = draw(text)
    for _ in range(draw(st.integers(0, most))):
        at, width = draw(st.integers(0, len(out))), draw(st.integers(0, 20))
        what = draw(st.sampled_from(["insert", "cut", "again", "end"]))
        piece = {"insert": draw(TOKENS), "cut": "", "again": out[at : at + width] * 2, "end": ""}[what]
        out = out[:at] + piece + ("" if what == "end" else out[at + (width if what in ("cut", "again") else 0) :])
    encoding = draw(st.sampled_from(["utf-8"] * 9 + ["utf-16", "latin-1", "utf-8-sig", "utf-32"]))
    data = out.encode(encoding, "surrogatepass" if encoding.startswith("utf") else "replace")
    if data and draw(st.integers(0, 9)) == 0:
        at = draw(st.integers(0, len(data) - 1))
        data = data[:at] + bytes([data[at] ^ (1 << draw(st.integers(0, 7)))]) + data[at + 1 :]
    return data
