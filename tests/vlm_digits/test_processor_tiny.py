from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoModelForImageTextToText, AutoProcessor, Qwen3VLForConditionalGeneration

from mmrl.vlm import scenes
from mmrl.vlm.processor_tiny import SPECIAL, make_config, make_processor, make_tokenizer

TOKENIZER = make_tokenizer()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tiny")
    processor = make_processor()
    torch.manual_seed(0)
    Qwen3VLForConditionalGeneration(make_config(processor.tokenizer)).save_pretrained(path)
    processor.save_pretrained(path)
    return path


def test_prompts_and_answers_are_short_and_exact() -> None:
    for record in scenes.builtin("digits:train?n=150"):
        prompt, answer = (TOKENIZER(str(t))["input_ids"] for t in (record.prompt, record.response))
        assert TOKENIZER.decode(prompt) == record.prompt and TOKENIZER.decode(answer) == record.response
        assert len(prompt) <= 3
        assert len(answer) <= 26 if scenes.one_box(record) else len(answer) <= 36


def test_one_coordinate_one_token() -> None:
    text = "[{'Position': [594, 141, 859, 1000], 'Confidence': 0.90}]"
    pieces = TOKENIZER.convert_ids_to_tokens(TOKENIZER(text)["input_ids"])
    head, numbers, middle = "[{'Position': [", ["594", ", ", "141", ", ", "859", ", ", "1000"], "], 'Confidence': "
    assert pieces == [head, *numbers, middle, "0.90", "}]"]


@settings(max_examples=60, deadline=None)
@given(st.text(max_size=40))
def test_any_text_comes_back(text: str) -> None:
    """Lossless, unless the text spells a special token or a byte piece."""
    if "<|" in text or "<0x" in text or "\x00" in text:
        return
    assert TOKENIZER.decode(TOKENIZER(text)["input_ids"]) == text


def test_text_outside_the_vocabulary() -> None:
    text = "Grüße, 日本! 12345\t{x}"
    assert TOKENIZER.decode(TOKENIZER(text)["input_ids"]) == text


def test_special_tokens_are_single() -> None:
    for token in SPECIAL:
        assert TOKENIZER(token)["input_ids"] == [TOKENIZER.convert_tokens_to_ids(token)]
    assert TOKENIZER.eos_token == "<|im_end|>"


def test_loads_as_any_checkpoint(folder: Path) -> None:
    processor = AutoProcessor.from_pretrained(folder)
    model = AutoModelForImageTextToText.from_pretrained(folder)
    assert type(processor).__name__ == "Qwen3VLProcessor" and type(model).__name__ == "Qwen3VLForConditionalGeneration"
    assert sum(p.numel() for p in model.parameters()) < 550_000
    record = scenes.builtin("digits:train?n=1")[0]
    message = {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": record.prompt}]}
    text = processor.apply_chat_template([message], add_generation_prompt=True, tokenize=False)
    assert text.startswith("<|im_start|>user\n<|vision_start|><|image_pad|><|vision_end|>")
    assert text.endswith("<|im_end|>\n<|im_start|>assistant\n")
    batch = processor(text=[text], images=[record.images[0]], return_tensors="pt")
    assert batch["image_grid_thw"].tolist() == [[1, 8, 8]]
    assert int((batch["input_ids"] == model.config.image_token_id).sum()) == 16
    assert model(**batch).logits.shape[-1] == len(processor.tokenizer)


def test_sections_of_the_rotary_embedding_fill_half_a_head(folder: Path) -> None:
    text = AutoModelForImageTextToText.from_pretrained(folder).config.text_config
    assert 2 * sum(text.rope_parameters["mrope_section"]) == text.head_dim
