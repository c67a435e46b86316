"""From records to prompts."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from PIL import Image

from mmrl.data.records import Record
from mmrl.errors import UserError
from mmrl.vlm import tiny
from mmrl.vlm.encode import messages_of, plain_text

SMALL = Image.new("RGB", (16, 24))


def test_text_of_a_prompt(make: Callable[..., Any]) -> None:
    encoder = make(inputs={"system": "Be brief."}).encoder
    prompt = encoder(Record("r", "t", "How many?", (SMALL,)), " Hint: two.")
    assert prompt.text == (
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\n<|vision_start|><|image_pad|><|vision_end|>"
        "How many? Hint: two.<|im_end|>\n<|im_start|>assistant\n"
    )
    pads = (prompt.ids == encoder.shape.config.image_token_id).sum()
    assert pads == 2 * 3  # 24 x 16 pixels, patch 4, merged 2 x 2


def test_messages_place_their_pictures() -> None:
    prompt = [
        {"role": "system", "content": "Mine."},
        {"role": "user", "content": [{"type": "text", "text": "A"}, {"type": "image"}, {"type": "text", "text": "B"}]},
        {"role": "assistant", "content": "C"},
        {"role": "user", "content": "D"},
    ]
    record = Record("r", "t", prompt, (SMALL,))
    messages = messages_of(record, system="Other.", edit="!")
    assert [m["role"] for m in messages] == ["system", "user", "assistant", "user"], "the record's own system stays"
    assert [p["type"] for p in messages[1]["content"]] == ["text", "image", "text"]
    assert messages[3]["content"] == [{"type": "text", "text": "D!"}]
    assert prompt[3]["content"] == "D", "the record is left alone"
    assert plain_text(record) == "system: Mine.\nuser: AB\nassistant: C\nuser: D"


def test_pictures_and_places_must_agree() -> None:
    prompt = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "?"}]}]
    with pytest.raises(UserError, match="record 'x': prompt places 1 pictures, images lists 2"):
        messages_of(Record("x", "t", prompt, (SMALL, SMALL)), system=None, edit=None)
    with pytest.raises(UserError, match="record 'x': prompt has no message of role 'user'"):
        messages_of(Record("x", "t", [{"role": "system", "content": "?"}]), system=None, edit=None)


def test_too_long_a_prompt_names_its_record(make: Callable[..., Any]) -> None:
    encoder = make(inputs={"max_prompt_tokens": 60}).encoder
    encoder(Record("fits", "t", "?"))
    with pytest.raises(UserError, match="record 'long': the prompt has .* more than inputs.max_prompt_tokens 60"):
        encoder(Record("long", "t", "word " * 20))


def test_an_extreme_picture_names_its_record(make: Callable[..., Any]) -> None:
    with pytest.raises(UserError, match="record 'thin': the processor refuses it"):
        make().encoder(Record("thin", "t", "?", (Image.new("RGB", (2000, 2)),)))


def test_a_missing_picture_is_a_clear_line(make: Callable[..., Any], tmp_path: Any) -> None:
    with pytest.raises(UserError, match="nowhere.png"):
        make().encoder(Record("r", "t", "?", (str(tmp_path / "nowhere.png"),)))


def test_videos_are_refused(make: Callable[..., Any]) -> None:
    with pytest.raises(UserError, match="record 'v': videos are not read"):
        make().encoder(Record("v", "t", "?", (), ("clip.mp4",)))


def test_prompts_are_kept_for_one_rollout(make: Callable[..., Any], records: list[Record]) -> None:
    encoder = make().encoder
    first = encoder(records[0])
    assert encoder(records[0]) is first
    assert encoder(records[0], "hint") is not first
    encoder.fresh()
    assert encoder(records[0]) is not first


@pytest.mark.parametrize("kind", tiny.KINDS)
def test_positions_by_hand(kind: str, make: Callable[..., Any]) -> None:
    """A picture of 3 x 2 merged patches advances the positions by 3, its longer side, not by 6."""
    prompt = make(kind).encoder(Record("r", "t", "?", (SMALL,)))
    at = int((prompt.ids == make(kind).shape.config.image_token_id).nonzero()[0])
    assert prompt.positions[:, at - 1].tolist() == [at - 1] * 3
    inside = prompt.positions[:, at : at + 6] - at
    assert inside.tolist() == [[0] * 6, [0, 0, 1, 1, 2, 2], [0, 1, 0, 1, 0, 1]]
    assert prompt.positions[:, at + 6].tolist() == [at + 3] * 3
    assert prompt.next_position == len(prompt) - 3


def test_a_prompt_of_text_only(make: Callable[..., Any]) -> None:
    prompt = make().encoder(Record("r", "t", "Count"))
    assert prompt.media == {} and prompt.next_position == len(prompt)
