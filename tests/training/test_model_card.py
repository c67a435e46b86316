"""The model card: untrusted names stay text, and its front matter says only what is known."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from mmrl import config_io
from mmrl.training.exported import Exported
from mmrl.training.model_card import Facts, card, text


def facts(**changes: Any) -> Facts:
    plain = {"family": "vlm", "recipe": "grpo", "model": {"path": "o/m"}, "data": {"train": "digits:train"}}
    config = config_io.build(plain, folder=Path.cwd())
    done = Exported(
        "merged", "bfloat16", "Some", 12, "o/m", "transformers", "image-text-to-text", "x", 0, 1e-4, 2e-3, ""
    )
    known: dict[str, Any] = {
        "config": config,
        "recipe": config_io.recipe_of(config),
        "done": done,
        "start": "owner/model",
    }
    known |= {"step": 3, "seconds": 1.0, "tokens": 5, "before": {}, "after": {}, "chance": {}, "data": {}}
    return Facts(**(known | changes))


@pytest.mark.parametrize(
    ("given", "written"),
    [
        ("a|b\n# c", "a\\|b \\# c"),
        ("<script>x</script>", "&lt;script&gt;x&lt;/script&gt;"),
        ("[a](http://b)", "\\[a\\](http:&#47;&#47;b)"),
        ("\x1b[31m`", "\N{REPLACEMENT CHARACTER}\\[31m\\`"),
    ],
)
def test_text_stays_text(given: str, written: str) -> None:
    assert text(given) == written


def test_front_matter_says_what_is_known() -> None:
    front = yaml.safe_load(card(facts()).split("---\n")[1])
    assert (front["base_model"], front["base_model_relation"]) == ("owner/model", "finetune")
    for start in ("/home/me/models/mine", "embedded:vlm", None):
        body = card(facts(start=start))
        assert "base_model" not in yaml.safe_load(body.split("---\n")[1]) and "/home" not in body


def test_unknown_facts_are_called_so() -> None:
    body = card(facts(step=None, seconds=None, tokens=None, data={"train": [("a.jsonl", None)]}))
    assert "| steps | not known |" in body and "| training | a.jsonl | not counted |" in body
    assert "## Results" not in body
    body = card(facts(before={"m": 0.25}, chance={"m": 0.5}))  # not evaluated at the exported step
    assert "| m | 0.500 | 0.250 | not known |" in body
