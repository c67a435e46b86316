"""`mmrl generate` of this family: what is printed, written and refused; the live board frame by frame."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console

from dlm import live
from dlm.generate import generate, overridden, settings
from mmrl.cli.checkpoints import family_of
from mmrl.cli.generate import check_options
from mmrl.cli.main import run
from mmrl.core.streams import Streams
from mmrl.data.records import Record
from mmrl.errors import UserError
from mmrl.training.rollouts import Request

from .conftest import tiny_config

SHORT = ["sampling.max_new_tokens=12", "sampling.block=4", "device=cpu"]


def rows(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "samples.jsonl").read_text().splitlines()]


def test_answers_of_a_released_folder(
    tiny: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for kind in tiny:
        assert family_of(tiny[kind]) == "dlm"
    arguments = ["generate", str(tiny["llada"]), *SHORT, "--prompt", "1+1=", "--steps", "6", "--out", str(tmp_path)]
    assert run(arguments) == 0
    shown = capsys.readouterr().out.splitlines()
    (one,) = rows(tmp_path)
    assert (one["forwards"], one["sampling"]["steps"], one["sampling"]["rule"]) == (6, 6, "steps")
    assert len(one["ids"]) == len(one["steps"]) == 12 and sorted(set(one["steps"])) == list(range(6))
    assert shown[0].startswith("0/6  ···") and any(line.startswith("6/6  ") for line in shown)
    assert any(
        f"{one['tokens']} tokens, 6 forwards, {one['tokens'] / 6:.1f} tokens a forward" in line for line in shown
    )
    assert (tmp_path / "trajectories.txt").read_text().startswith("answer 1 of 1\n0/6  ")


def test_one_answer_is_greedy_and_samples_do_not_depend_on_their_number(
    tiny: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    block = ["sampling.max_new_tokens=12", "sampling.cache=block", "device=cpu"]

    def ids(n: int, seed: int) -> list[list[int]]:
        generate(tiny["sdar"], prompt="1+1=", n=n, seed=seed, overrides=block, out=tmp_path)
        return [row["ids"] for row in rows(tmp_path)]

    assert ids(1, 0) == ids(1, 7)
    three = ids(3, 0)
    assert ids(2, 0) == three[:2] and three[0] != three[1] and ids(3, 1) != three
    assert "answer 2 of 3" in capsys.readouterr().out


def test_settings_that_answers_do_not_read_are_refused(tiny: dict[str, Path]) -> None:
    config = settings(tiny["llada"], None)
    with pytest.raises(UserError, match=r"train\.steps=3: has no effect on answers"):
        overridden(config, ["train.steps=3"], None, where="x")
    with pytest.raises(UserError, match=r"sampling\.treshold: unknown key.*threshold"):
        overridden(config, ["sampling.treshold=0.5"], None, where="x")
    changed = overridden(config, ["sampling.threshold=0.5"], 3, where="x")
    assert (changed.sampling.threshold, changed.sampling.rule, changed.sampling.steps) == (0.5, "steps", 3)
    assert overridden(config, [], None, where="x") is config


def test_settings_are_for_families_that_take_them() -> None:
    def make(checkpoint: Path, *, prompt: str) -> list[Path]:
        return []

    with pytest.raises(UserError, match=r"sampling\.steps=3: a model of family 'vlm' does not take it"):
        check_options({"prompt": "x", "overrides": ["sampling.steps=3"]}, make, "vlm")
    with pytest.raises(UserError, match="--height: a model of family 'dlm' does not take it; it takes .*KEY=VALUE"):
        check_options({"prompt": "x", "height": 3}, generate, "dlm")


def test_every_step_of_every_row_is_told_and_only_inside(tiny: dict[str, Path]) -> None:
    from dlm.family import load_policy

    policy = load_policy(tiny_config(tiny["llada"]))
    told: list[tuple[int, int]] = []
    request = [Request(Record("r", "text", "1+1="), 2)]
    policy.on_step = lambda row, ids_l, step: told.append((row, step))
    inside = policy.rollout(request, Streams(0, 0, "generate"))
    policy.on_step = None
    assert sorted(told) == [(row, step) for row in (0, 1) for step in range(4)]
    assert inside.stats["denoising"] == 4
    outside = policy.rollout(request, Streams(0, 0, "generate"))
    assert len(told) == 8
    assert all(torch.equal(a.ids, b.ids) for a, b in zip(inside.rows, outside.rows, strict=True))


class Digits:
    def decode(self, ids: list[int], skip_special_tokens: bool = False) -> str:
        return "".join(str(i) for i in ids if i < 10)


def board(rows: int, monkeypatch: pytest.MonkeyPatch) -> live.Board:
    monkeypatch.setattr(live, "SECONDS_A_STEP", 0.0)
    return live.Board(Digits(), 99, rows, Console(file=io.StringIO(), force_terminal=True, width=40))


def drawn(one: live.Board) -> tuple[str, str]:
    """(plain text, with codes of colours)."""
    plain, coloured = (Console(file=io.StringIO(), force_terminal=c, width=40) for c in (False, True))
    for console in (plain, coloured):
        console.print(one.picture())
    return plain.file.getvalue(), coloured.file.getvalue()  # type: ignore[attr-defined]


def test_the_board_shows_masks_dim_and_new_tokens_bright(monkeypatch: pytest.MonkeyPatch) -> None:
    one = board(1, monkeypatch)
    with one:
        one(0, torch.tensor([99, 4, 99, 99]), 0)
        one(0, torch.tensor([7, 4, 99, 99]), 1)
        plain, coloured = drawn(one)
    assert plain == "74░░\n2 of 4 tokens, 2 forwards, 1.0 tokens a \nforward\n"
    assert "\x1b[1;32m7\x1b[0m4\x1b[2m░░\x1b[0m" in coloured


def test_the_board_draws_once_a_step_of_all_rows_and_at_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    one, seen = board(2, monkeypatch), []
    monkeypatch.setattr(one, "_draw", lambda: seen.append(drawn(one)[0]))
    with one:
        for step, token in enumerate((1, 2)):
            for row in (0, 1):
                one(row, torch.tensor([3] * step + [token] + [99] * (1 - step)), step)
        one(1, torch.tensor([3, 2]), 2)  # the other row is done
    assert len(seen) == 4 and seen[0].strip() == ""
    assert "answer 2 of 2\n1░" in seen[1] and "answer 1 of 2\n32" in seen[2]


def test_an_error_while_decoding_is_not_swallowed(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(RuntimeError, match="broken"), board(1, monkeypatch) as one:
        one(0, torch.tensor([1, 99]), 0)
        raise RuntimeError("broken")
