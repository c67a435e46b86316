"""Damaged weights, broken chat templates and folders that are no model end in one line that says what to do."""

from __future__ import annotations

import math
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_policy import RECORDS, policy, sampled
from tiny_runs import config
from torch import Tensor

from dlm.sampling.draw import Drawer
from dlm.sampling.settings import Settings
from mmrl import recipes
from mmrl.core.head import Head
from mmrl.core.objective import Objective
from mmrl.core.recipe import parse
from mmrl.errors import RecordError, UserError
from mmrl.training.run import train

SIZE = 5
WAYS: dict[str, dict[str, Any]] = {
    "plain": {},
    "cut": {"top_k": 2, "top_p": 0.9},
    "greedy": {"temperature": 0.0},
    "guided": {"guidance": 1.0},
    "entropy": {"order": "entropy"},
    "margin": {"order": "margin", "rule": "factor"},
}


def drawer(bias: list[float], size: int = 2, **settings: Any) -> Drawer:
    """A head whose logits are the state's first number and `bias`."""
    weight = torch.zeros(SIZE, 1)
    weight[0] = 1.0
    head = Head(weight, torch.tensor(bias), torch.zeros(SIZE), torch.float32)
    return Drawer(head, torch.tensor([0.0, 0.0, 0.0, 0.0, -math.inf]), Settings(**settings), "model", size)


def draw(one: Drawer, states: list[float]) -> Tensor:
    hidden = torch.tensor(states)[:, None]
    both = [hidden, hidden] if one.settings.guidance else [hidden]
    uniform = torch.full((2, len(states)), 0.999, dtype=torch.float64)
    return one(both, uniform, torch.arange(len(states))).ids


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_single_logit_that_is_not_finite_ends_in_one_line(way: str, bad: float) -> None:
    assert (draw(drawer([0.0] * SIZE, **WAYS[way]), [1.0, 2.0, 3.0]) < SIZE - 1).all()
    for states in ([bad, 1.0, 1.0], [1.0, 1.0, bad]):  # in the first and in the last chunk
        with pytest.raises(UserError, match=r"the model's output is not finite \(NaN.*lower optimiser.lr") as caught:
            draw(drawer([0.0] * SIZE, **WAYS[way]), states)
        assert "\n" not in str(caught.value)
        assert ("sampling.guidance (1)" in str(caught.value)) is (way == "guided")


def test_a_logit_of_minus_infinity_is_a_token_that_never_comes() -> None:
    bias = [-math.inf, -math.inf, 0.0, -math.inf, 0.0]
    for settings in WAYS.values():
        if "guidance" not in settings:
            assert draw(drawer(bias, **settings), [1.0] * 3).tolist() == [2, 2, 2]


def test_options_that_overflow_are_named() -> None:
    with pytest.raises(UserError, match=r"lower sampling.guidance \(1e\+39\)"):
        draw(drawer([1.0] * SIZE, guidance=1e39), [1.0])
    with pytest.raises(UserError, match=r"raise sampling.temperature \(1e-42; 0 takes the most likely token\)"):
        draw(drawer([1.0] * SIZE, temperature=1e-42), [1.0])


def test_one_look_a_step_at_what_is_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a GPU each look waits for the device."""
    looks, plain = [], torch.Tensor.__bool__
    monkeypatch.setattr(torch.Tensor, "__bool__", lambda self: looks.append(1) or plain(self))
    draw(drawer([0.0] * SIZE, size=1), [1.0] * 7)
    assert len(looks) == 1


@pytest.mark.parametrize("kind", ["llada", "sdar", "dream"])
def test_a_model_that_diverged(kind: str, folders: dict[str, Path]) -> None:
    one = policy(folders[kind], cache={"llada": "dual", "sdar": "block", "dream": "off"}[kind])
    assert len(sampled(one).records) == 2 * len(RECORDS)
    with torch.no_grad():
        one.model.get_submodule("model.layers.1.mlp.down_proj").weight[0, 0] = math.nan
    with pytest.raises(UserError, match="the model's output is not finite"):
        sampled(one)


def copied(folder: Path, to: Path) -> Path:
    return Path(shutil.copytree(folder, to))


def test_a_run_from_damaged_weights(folders: dict[str, Path], tmp_path: Path) -> None:
    folder = copied(folders["llada"], tmp_path / "model")
    tensors = load_file(folder / "model.safetensors")
    tensors["model.transformer.ff_out.weight"][0, 0] = math.nan
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(UserError, match="the weights of model.path are damaged, take a whole copy"):
        train(config(tmp_path / "run", folder), progress=False)


@pytest.mark.parametrize("inner", ["checkpoints/step-000012/model", "model"])
def test_a_run_is_no_model_but_has_one(inner: str, folders: dict[str, Path], tmp_path: Path) -> None:
    """Both a run (its newest step is named) and one of its steps."""
    copied(folders["llada"], tmp_path / "run" / inner)
    if inner != "model":
        copied(folders["llada"], tmp_path / "run/checkpoints/step-000003/model")
    with pytest.raises(UserError, match=f"is not the folder of a model; give its model/ folder: .*/run/{inner}$"):
        policy(tmp_path / "run")
    assert policy(tmp_path / "run" / inner).model.shape.layers == 2


# levels of a recipe


@pytest.mark.parametrize("level", ["decision", "segment:block"])
def test_a_level_below_the_row_is_refused_for_its_own_reason(level: str) -> None:
    """And not for that of log-probabilities that are means over elements."""
    provides = frozenset({"logp_nt"})
    for fits in ("row", "row-sum"):
        recipe = parse("gdpo-diffusion", recipes.read("gdpo-diffusion"), options={"gate.level": fits})
        Objective(recipe, channel="tokens", unit="row", provides=provides)
    recipe = parse("gdpo-diffusion", recipes.read("gdpo-diffusion"), options={"gate.level": level})
    with pytest.raises(UserError, match=f"gate 'gspo' with level {level} .* per row: only the row's sum") as caught:
        Objective(recipe, channel="tokens", unit="row", provides=provides)
    assert str(caught.value).endswith("set level: row (per decision) or row-sum (of the whole)")
    with pytest.raises(UserError, match="per element-mean: a mean over steps of mean log-probs is tiny"):
        Objective(recipe, channel="tokens", unit="element-mean", provides=provides)


# chat templates


def templated(folder: Path, to: Path, template: str) -> Path:
    folder = copied(folder, to)
    (folder / "chat_template.jinja").write_text(template)
    return folder


@pytest.mark.parametrize(
    ("template", "told"),
    [
        ("{% if %}", "TemplateSyntaxError: Expected an expression"),
        ("{{ messages[0].nope.nope }}", "UndefinedError: .*has no attribute 'nope'"),
        ("{{ messages[0]['content'] + 1 }}", "TypeError: "),
    ],
)
def test_a_broken_chat_template(template: str, told: str, folders: dict[str, Path], tmp_path: Path) -> None:
    one = policy(templated(folders["llada"], tmp_path / "m", template))
    assert one.encoder.chats
    with pytest.raises(
        UserError, match=rf"the chat template of the tokenizer is broken \({told}.*inputs.chat"
    ) as caught:
        sampled(one)
    assert "\n" not in str(caught.value) and not isinstance(caught.value, RecordError)


def test_messages_that_a_chat_template_refuses_are_the_fault_of_the_record(
    folders: dict[str, Path], tmp_path: Path
) -> None:
    template = (
        "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system role') }}{% endif %}"
        "{% for m in messages %}[{{ m['content'] }}]{% endfor %}"
    )
    encoder = policy(templated(folders["llada"], tmp_path / "m", template)).encoder
    assert encoder.text(RECORDS[0]) == "[12+3=]"
    strict = [{"role": "system", "content": "be brief"}, {"role": "user", "content": "12+3="}]
    with pytest.raises(RecordError, match="record 'r0': the chat template does not take its messages: no system role"):
        encoder.text(replace(RECORDS[0], prompt=strict))
