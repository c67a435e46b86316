"""The policy contract: learning, saving, resuming, the reference, demonstrations, the gallery."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from mmrl.core.streams import Streams
from mmrl.data.records import Record
from mmrl.errors import UserError
from mmrl.training.policy import Needs
from mmrl.training.rollouts import Request, Rollouts
from mmrl.vlm import tiny

LORA = {"adapter": {"kind": "lora", "rank": 2, "alpha": 4, "targets": "language"}}


def logp(policy: Any, rollouts: Rollouts) -> torch.Tensor:
    table = torch.zeros(rollouts.tables["tokens"]["mask_nt"].shape)
    with torch.no_grad():
        for bundle in policy.bundles(rollouts, channel="tokens", update=0, scope="decision"):
            shared = policy.open(bundle, grad=False)
            for piece in bundle.pieces:
                table[piece.rows] = policy.evaluate(piece, shared, Needs(frozenset({"logp_nt"})))["logp_nt"]
    return table


def step(policy: Any, rollouts: Rollouts, backward: Callable[..., Any], lr: float = 1e-2) -> None:
    backward(policy, rollouts)
    optimiser = torch.optim.AdamW(policy.parameters_of("tokens"), lr=lr)
    optimiser.step()
    policy.model.zero_grad()


@pytest.mark.parametrize("kind", tiny.KINDS)
@pytest.mark.parametrize("options", [{}, LORA, {"gradient_checkpointing": True}, {"freeze": ["vision"]}])
def test_each_shape_trains_a_step(
    kind: str,
    options: dict[str, Any],
    make: Callable[..., Any],
    ragged: list[Request],
    streams: Streams,
    backward: Callable[..., Any],
) -> None:
    policy = make(kind, **options)
    rollouts = policy.rollout(ragged, streams)
    before = policy.state_dict()
    old = logp(policy, rollouts)
    step(policy, rollouts, backward)
    after = policy.state_dict()
    changed = [n for n in before if not torch.equal(before[n], after[n])]
    assert len(changed) == len(before)
    assert (logp(policy, rollouts) - old).abs().max() > 1e-3
    assert set(before) == {n for n, p in policy.model.named_parameters() if p.requires_grad}


@pytest.mark.parametrize("form", ["cache", "packed", "off"])
def test_likelihood_rises_when_it_is_asked_to(
    form: str, make: Callable[..., Any], ragged: list[Request], streams: Streams
) -> None:
    policy = make("qwen3_vl", shared_prefix=form)
    rollouts = policy.rollout(ragged, streams)
    optimiser = torch.optim.AdamW(policy.parameters_of("tokens"), lr=3e-3)
    start = logp(policy, rollouts).sum()
    for _ in range(5):
        optimiser.zero_grad()
        for bundle in policy.bundles(rollouts, channel="tokens", update=0, scope="decision"):
            shared = policy.open(bundle, grad=True)
            for piece in bundle.pieces:
                policy.evaluate(piece, shared, Needs(frozenset({"supervised_nt"})))["supervised_nt"].sum().backward()
            policy.close(shared)
        optimiser.step()
    assert logp(policy, rollouts).sum() > start + 50


@pytest.mark.parametrize("kind", tiny.KINDS)
def test_a_saved_model_loads_in_plain_transformers(
    kind: str,
    make: Callable[..., Any],
    ragged: list[Request],
    streams: Streams,
    backward: Callable[..., Any],
    tmp_path: Path,
) -> None:
    from transformers import AutoModelForImageTextToText, AutoProcessor

    policy = make(kind)
    rollouts = policy.rollout(ragged, streams)
    step(policy, rollouts, backward)
    policy.save(tmp_path / "out")
    assert (tmp_path / "out" / "model.safetensors").is_file()
    model = AutoModelForImageTextToText.from_pretrained(tmp_path / "out").eval()
    prompt = rollouts.rows[0].prompt
    inputs = {"input_ids": prompt.ids[None], "mm_token_type_ids": policy.shape.token_types(prompt.ids[None])}
    with torch.no_grad():
        assert torch.equal(model(**inputs, **prompt.media).logits, policy.model(**inputs, **prompt.media).logits)
    processor = AutoProcessor.from_pretrained(tmp_path / "out")
    assert processor.tokenizer("Where is 7?").input_ids == policy.processor.tokenizer("Where is 7?").input_ids
    again = make(kind, path=tmp_path / "out")
    assert torch.equal(logp(again, rollouts), logp(policy, rollouts))


def test_a_saved_adapter_loads_in_plain_peft_and_here(
    make: Callable[..., Any],
    checkpoints: dict[str, Path],
    ragged: list[Request],
    streams: Streams,
    backward: Callable[..., Any],
    tmp_path: Path,
) -> None:
    from peft import PeftModel
    from transformers import AutoModelForImageTextToText

    policy = make("qwen2_5_vl", **LORA)
    rollouts = policy.rollout(ragged, streams)
    step(policy, rollouts, backward)
    policy.save(tmp_path / "out")
    assert not (tmp_path / "out" / "model.safetensors").exists()
    base = AutoModelForImageTextToText.from_pretrained(checkpoints["qwen2_5_vl"])
    plain = PeftModel.from_pretrained(base, tmp_path / "out").eval()
    prompt = rollouts.rows[0].prompt
    inputs = {"input_ids": prompt.ids[None], "mm_token_type_ids": policy.shape.token_types(prompt.ids[None])}
    with torch.no_grad():
        assert torch.equal(plain(**inputs, **prompt.media).logits, policy.model(**inputs, **prompt.media).logits)
    merged = make(path=tmp_path / "out")
    assert (logp(merged, rollouts) - logp(policy, rollouts)).abs().max() < 1e-5
    assert all(p.requires_grad for p in merged.parameters_of("tokens"))
    further = make(path=tmp_path / "out", **LORA)
    assert (logp(further, rollouts) - logp(policy, rollouts)).abs().max() < 1e-5
    assert set(further.state_dict()) == set(policy.state_dict())


def test_the_adapter_sits_where_it_was_asked(make: Callable[..., Any]) -> None:
    def names(targets: Any) -> set[str]:
        return set(make("qwen3_vl", adapter={"kind": "lora", "rank": 2, "targets": targets}).state_dict())

    language, everything, some = names("language"), names("all"), names(["q_proj", "merger.linear_fc1"])
    assert language and all("language_model" in n for n in language)
    assert language < everything and any("visual" in n for n in everything)
    assert not any("lm_head" in n for n in everything)
    assert all("q_proj" in n or "linear_fc1" in n for n in some) and some < everything


@pytest.mark.parametrize("options", [{}, LORA])
def test_the_reference_is_the_policy_at_step_0(
    options: dict[str, Any],
    make: Callable[..., Any],
    ragged: list[Request],
    streams: Streams,
    backward: Callable[..., Any],
) -> None:
    policy = make("qwen3_vl", **options)
    rollouts = policy.rollout(ragged, streams)
    start = logp(policy, rollouts)
    policy.keep_reference("tokens")
    if options:
        assert policy._reference._kept == [], "an adapter that started at zero is switched off, nothing is copied"
        assert torch.equal(start, logp(make("qwen3_vl"), rollouts)), "a fresh adapter changes nothing"
    step(policy, rollouts, backward)
    now = logp(policy, rollouts)
    with policy.reference():
        assert torch.equal(logp(policy, rollouts), start)
    assert torch.equal(logp(policy, rollouts), now) and not torch.equal(now, start)
    step(policy, rollouts, backward)
    with policy.reference():
        assert torch.equal(logp(policy, rollouts), start)


def test_a_reference_nobody_kept_is_an_error(make: Callable[..., Any]) -> None:
    with pytest.raises(RuntimeError, match="keep_reference"), make("qwen3_vl").reference():
        pass


@pytest.mark.parametrize("options", [{}, LORA])
def test_state_goes_round(
    options: dict[str, Any],
    make: Callable[..., Any],
    ragged: list[Request],
    streams: Streams,
    backward: Callable[..., Any],
) -> None:
    policy = make("qwen3_vl", **options)
    rollouts = policy.rollout(ragged, streams)
    step(policy, rollouts, backward)
    other = make("qwen3_vl", **options)
    other.load_state_dict(policy.state_dict())
    assert torch.equal(logp(other, rollouts), logp(policy, rollouts))
    with pytest.raises(UserError, match="checkpoint: trainable tensors of another model"):
        other.load_state_dict({"x": torch.zeros(1)})
    state = policy.state_dict()
    name = next(iter(state))
    with pytest.raises(UserError, match="has shape"):
        other.load_state_dict(state | {name: torch.zeros(1)})


def test_demonstrations(make: Callable[..., Any], records: list[Record], streams: Streams) -> None:
    policy = make("qwen3_vl", sampling={"temperature": 0.3})
    shown = [Record("a", "t", "Where?", records[0].images, response="here 1"), Record("b", "t", "?", response="no")]
    rollouts = policy.demonstrations(shown, streams)
    tokenizer = policy.processor.tokenizer
    assert [tokenizer.decode(r.ids) for r in rollouts.rows] == ["here 1<|im_end|>", "no<|im_end|>"]
    assert rollouts.outputs == ["here 1", "no"]
    assert rollouts.tables["tokens"]["mask_nt"].sum(1).tolist() == [7, 3]
    assert rollouts.tables["tokens"]["sampler_logp_nt"][0].isnan().all()
    assert [r.temperature for r in rollouts.rows] == [1.0, 1.0]
    row = rollouts.rows[0]
    ids = torch.cat([row.prompt.ids, row.ids])[None]
    with torch.no_grad():
        logits = policy.model(
            input_ids=ids, mm_token_type_ids=policy.shape.token_types(ids), **row.prompt.media
        ).logits[0, len(row.prompt) - 1 : -1]
    logits[:, sorted(policy.suppressed)] = -torch.inf
    expected = logits.log_softmax(-1).gather(1, row.ids[:, None])[:, 0]
    assert (logp(policy, rollouts)[0] - expected).abs().max() < 1e-5
    with pytest.raises(UserError, match="record 'c': no `response`"):
        policy.demonstrations([Record("c", "t", "?")], streams)
    with pytest.raises(UserError, match=r"record 'd': `response` contains '<\|image_pad\|>'"):
        policy.demonstrations([Record("d", "t", "?", response="<|image_pad|>")], streams)


def test_rollout_keys_and_info(make: Callable[..., Any], records: list[Record], streams: Streams) -> None:
    policy = make("qwen3_vl")
    requests = [Request(records[0], 2, keys={"bundle": 4}), Request(records[2], 1, keys={"bundle": 5, "prompt": 9})]
    with pytest.raises(ValueError, match="requests disagree about keys"):
        policy.rollout(requests, streams)
    requests[0] = Request(records[0], 2, keys={"bundle": 4, "prompt": 7}, first_sample=3)
    rollouts = policy.rollout(requests, streams)
    assert rollouts.keys["prompt"].tolist() == [7, 7, 9] and rollouts.keys["bundle"].tolist() == [4, 4, 5]
    assert len(set(rollouts.keys["record"].tolist())) == 2 and len(set(rollouts.keys["task"].tolist())) == 1
    assert [i["sample"] for i in rollouts.info] == [3, 4, 0]
    assert rollouts.rows[0].prompt is rollouts.rows[1].prompt
    plain = policy.rollout([Request(r, 2) for r in records], streams)
    assert plain.keys["prompt"].tolist() == [0, 0, 1, 1, 2, 2]
    both = Rollouts.concat([plain.select([4, 1]), plain.select([0])])
    assert len(both) == 3 and logp(policy, both).shape == both.tables["tokens"]["mask_nt"].shape


def test_reducers_get_the_piece(
    make: Callable[..., Any], ragged: list[Request], streams: Streams, backward: Callable[..., Any]
) -> None:
    """A reducer over a row's own logits gives the same table and gradients in every form and chunk size."""

    def colder(logits_ncv: torch.Tensor, hidden_ncd: torch.Tensor, ids_nc: torch.Tensor) -> torch.Tensor:
        return torch.log_softmax(logits_ncv / 0.5, -1).gather(-1, ids_nc[..., None])[..., 0]

    found = {}
    for form, chunk in (("off", 1024), ("cache", 1024), ("cache", 6), ("packed", 6)):
        policy = make("qwen3_vl", shared_prefix=form, head_chunk=chunk)
        rollouts = policy.rollout(ragged, streams)
        found[form, chunk] = backward(policy, rollouts, reducers={"cold_nt": colder})
    tables, grads = found.pop(("off", 1024))
    assert (tables["cold_nt"] - tables["logp_nt"]).abs().max() > 0.1
    for key, (other, other_grads) in found.items():
        assert torch.allclose(other["cold_nt"], tables["cold_nt"], atol=1e-4), key
        for name, grad in grads.items():
            assert torch.allclose(other_grads[name], grad, atol=1e-4, rtol=1e-3), (key, name)


def test_the_gallery(make: Callable[..., Any], ragged: list[Request], streams: Streams) -> None:
    policy = make("qwen3_vl")
    rollouts = policy.rollout(ragged, streams)
    shown = policy.describe(rollouts, [0, 3, 7])
    assert [s["prompt"] for s in shown] == ["Where is 7?", "Count", "Two of them here"]
    assert [len(s["images"]) for s in shown] == [1, 0, 2]
    assert shown[0]["images"][0].size == (16, 24) and shown[0]["output"] == rollouts.outputs[0]


@pytest.mark.parametrize(
    ("frame", "said", "expected"),
    [
        ("norm1000", "[{'Position': [250, 500, 500, 1000], 'Confidence': 1}]", [[4, 12, 8, 24]]),
        ("norm1", "<answer>[0.25, 0.5, 0.5, 1.0]</answer>", [[4, 12, 8, 24]]),
        ("pixel_original", "(1,2),(3,4)", [[1, 2, 3, 4]]),
        ("pixel_model_input", "[32, 48, 16, 24]", [[16, 24, 8, 12]]),
        ("norm1000", "No Objects", []),
    ],
)
def test_boxes_are_shown_in_pixels(
    frame: str, said: str, expected: list[list[int]], make: Callable[..., Any], streams: Streams
) -> None:
    """A picture of 16 x 24 pixels that the model sees as 32 x 48."""
    from PIL import Image

    policy = make("qwen3_vl", inputs={"min_pixels": 32 * 48, "max_pixels": 32 * 48})
    record = Record("r", "grounding", "?", (Image.new("RGB", (16, 24)),), frame=frame)
    rollouts = policy.rollout([Request(record, 1)], streams)
    assert rollouts.info[0]["original_size"] == [16, 24] and rollouts.info[0]["model_size"] == [32, 48]
    rollouts.outputs[0] = said
    assert policy.describe(rollouts, [0])[0]["boxes"] == [pytest.approx(b) for b in expected]
