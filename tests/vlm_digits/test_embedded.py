"""The shipped starting checkpoint: small, safe to load, of this code, competent but improvable."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import mmrl.vlm
from mmrl import config_io, families
from mmrl.rewards.parse import well_formed
from mmrl.vlm import scenes
from mmrl.vlm.evaluate import evaluate, greedy
from mmrl.vlm.processor_tiny import CHAT_TEMPLATE, make_config, make_processor, make_tokenizer

FOLDER = Path(mmrl.vlm.__file__).parent / "embedded"


def test_size_and_format() -> None:
    files = sorted(FOLDER.iterdir())
    assert sum(f.stat().st_size for f in files) <= 6_000_000
    assert {f.suffix for f in files} == {".safetensors", ".json", ".jinja"}
    weights = load_file(FOLDER / "model.safetensors")
    assert all(w.dtype == torch.float32 and w.isfinite().all() for w in weights.values())


def test_it_was_made_by_this_code(tmp_path: Path) -> None:
    """Tokenizer, processor, template and shape on disk are those of processor_tiny; after a change, make it anew."""
    processor = make_processor()
    processor.save_pretrained(tmp_path)
    for name in ("tokenizer.json", "processor_config.json", "chat_template.jinja"):
        assert (tmp_path / name).read_text() == (FOLDER / name).read_text(), name
    assert (FOLDER / "chat_template.jinja").read_text() == CHAT_TEMPLATE
    made, stored = make_config(make_tokenizer()), make_config(make_tokenizer()).from_pretrained(FOLDER)
    for part in ("text_config", "vision_config"):
        kept = getattr(stored, part).to_dict()
        assert {k: kept[k] for k in SHAPE[part]} == {k: getattr(made, part).to_dict()[k] for k in SHAPE[part]}


SHAPE = {
    "text_config": ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads"),
    "vision_config": ("depth", "hidden_size", "intermediate_size", "patch_size", "spatial_merge_size"),
}


@pytest.fixture(scope="module")
def quickstart() -> tuple[object, object]:
    config = config_io.resolve("quickstart/vlm")
    return families.entry("vlm").load_policy(config), config


def test_no_machine_paths_in_it() -> None:
    for file in FOLDER.glob("*.json"):
        assert "/home" not in file.read_text() and "/tmp" not in file.read_text() and "/work" not in file.read_text()


def test_competent_but_improvable(quickstart) -> None:  # type: ignore[no-untyped-def]
    """The published start: greedy IoU 0.50 and IoU@0.5 0.62 on all 200 one-box scenes; here on the first 60."""
    policy, config = quickstart
    records = [r for r in scenes.builtin("digits:eval") if scenes.one_box(r)][:60]
    found = evaluate(policy, records, config)
    assert 0.40 < found["mean_iou"] < 0.62
    assert 0.45 < found["acc_50"] < 0.80
    assert found["reward"] > 1.7


def test_answers_are_short_and_well_formed(quickstart) -> None:  # type: ignore[no-untyped-def]
    policy, config = quickstart
    records = scenes.builtin("digits:eval")[:40]
    rollouts = greedy(policy, records, rows=40, seed=0)
    assert sum(well_formed(str(o)) for o in rollouts.outputs) >= 38
    lengths = [row["length"] for row in rollouts.info]
    assert sum(lengths) / len(lengths) <= 24 and all(row["finished"] for row in rollouts.info)


def test_greedy_in_batches_equals_one_by_one(quickstart) -> None:  # type: ignore[no-untyped-def]
    policy, _ = quickstart
    records = scenes.builtin("digits:eval")[:6]
    together, alone = (greedy(policy, records, rows=rows, seed=0).outputs for rows in (6, 1))
    assert together == alone
