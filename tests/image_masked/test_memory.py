"""Counts of token transformers, schedules and of what blocks keep, against the classes; bytes by literal numbers."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from image_gen.masked import config as own
from image_gen.masked import memory, shapes
from image_gen.masked.models import tiny
from image_gen.masked.models.amused import Amused
from image_gen.masked.models.compact import CompactTokens
from image_gen.masked.schedule import storage
from mmrl import yaml_io
from mmrl.config import Config
from mmrl.config_io import build, recipe_of
from mmrl.errors import UserError
from mmrl.paths import configs_dir

ROWS = dict(yaml_io.read(configs_dir() / "models" / "image.yaml")["models"])
#: Published sizes of the transformers, in millions, and of the VQ model and text encoder that both have.
PUBLISHED = {"amused/amused-256": 603, "amused/amused-512": 608}
UVIT = {
    "_class_name": "UVit2DModel", "hidden_size": 64, "block_out_channels": 48, "in_channels": 32, "cond_embed_dim": 32,
    "micro_cond_encode_dim": 16, "micro_cond_embed_dim": 80, "encoder_hidden_size": 40, "vocab_size": 40,
    "codebook_size": 32, "num_res_blocks": 2, "block_num_heads": 4, "num_hidden_layers": 2, "num_attention_heads": 4,
    "intermediate_size": 96, "sample_size": 8,
}  # fmt: skip
COMPACT = {
    "_class_name": "CompactTokens", "vocabulary": 20, "side": 8, "words_width": 24, "width": 64, "token_width": 16,
    "layers": 2, "heads": 4, "inner": 96,
}  # fmt: skip
SMALL: dict[str, dict[str, Any]] = {
    "uvit": UVIT,
    "uvit of half the grid": UVIT | {"downsample": True, "upsample": True},
    "uvit with biases": UVIT | {"use_bias": True, "downsample": True, "upsample": True},
    "uvit of one width": UVIT | {"block_out_channels": 64},
    "uvit without scales": UVIT | {"ln_elementwise_affine": False},
    "compact": COMPACT,
}
COMPACT_TARGETS = ["to_qkv", "to_out", "up", "down"]


def make(config: dict[str, Any]) -> Any:
    from diffusers import UVit2DModel

    kinds = {"UVit2DModel": UVit2DModel, "CompactTokens": CompactTokens}
    return kinds[config["_class_name"]](**{k: v for k, v in config.items() if k != "_class_name"})


def counted(model: torch.nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize("name", SMALL)
def test_counts_agree_with_a_model_built_from_the_same_file(name: str) -> None:
    with torch.device("meta"):
        model = make(SMALL[name])
    network = shapes.network_of(SMALL[name])
    assert network is not None and network.parameters == counted(model)


@pytest.mark.parametrize("name", sorted(PUBLISHED))
def test_the_shipped_shapes_agree_with_diffusers_and_with_the_published_sizes(name: str) -> None:
    from diffusers import VQModel
    from transformers import CLIPTextConfig, CLIPTextModelWithProjection

    stages = [128, 256, 256, 512, 768]
    with torch.device("meta"):
        model = make(ROWS[name]["transformer"])
        vq = VQModel(
            block_out_channels=tuple(stages),
            down_block_types=("DownEncoderBlock2D",) * 5,
            up_block_types=("UpDecoderBlock2D",) * 5,
            latent_channels=64,
            layers_per_block=2,
            num_vq_embeddings=8192,
            mid_block_add_attention=False,
            lookup_from_codebook=True,
        )
        text = CLIPTextModelWithProjection(
            CLIPTextConfig(
                hidden_size=768,
                intermediate_size=3072,
                num_hidden_layers=12,
                num_attention_heads=12,
                projection_dim=768,
            )
        )
    shape = memory.shape_of(name)
    assert shape is not None and shape.network.parameters == counted(model)
    assert shape.network.parameters // 10**6 == PUBLISHED[name]
    assert (shape.vae, shape.encoders, shape.factor) == (counted(vq), counted(text), 2 ** (len(stages) - 1))
    assert shape.unit == (16 if name.endswith("256") else 32)


@pytest.mark.parametrize("name", SMALL)
@pytest.mark.parametrize("own_targets", [False, True])
def test_adapters_are_counted_as_peft_makes_them(name: str, own_targets: bool) -> None:
    from peft import LoraConfig

    is_compact = SMALL[name]["_class_name"] == "CompactTokens"
    some = ["to_out", "head"] if is_compact else ["to_q", "net.2", "linear_1", "project_to_hidden"]
    targets = some if own_targets else COMPACT_TARGETS if is_compact else list(Amused.lora_targets)
    with torch.device("meta"):
        model = make(SMALL[name])
        model.add_adapter(LoraConfig(r=3, target_modules=targets))
    real = sum(p.numel() for n, p in model.named_parameters() if ".lora_" in n)
    network = shapes.network_of(SMALL[name])
    assert network is not None and network.adapter(3, some if own_targets else None) == real > 0


# ---- what blocks keep --------------------------------------------------------------------------------------------


def saved(model: Any, config: dict[str, Any], side: tuple[int, int], text: int) -> float:
    """Values for each of two images that a forward pass keeps for the backward pass, parameters apart."""
    ids = torch.randint(0, 20, (2, *side))
    if config["_class_name"] == "CompactTokens":
        given: Any = {"ids_nhw": ids, "words_nsw": torch.randn(2, text, 24), "pooled_nw": torch.randn(2, 24)}
    else:
        told = {"encoder_hidden_states": torch.randn(2, text, 40), "pooled_text_emb": torch.randn(2, 32)}
        given = {"input_ids": ids, **told, "micro_conds": torch.ones(2, 5)}
    mine = {p.untyped_storage().data_ptr() for p in model.parameters()}
    found: dict[int, tuple[int, torch.Tensor]] = {}

    def pack(x: torch.Tensor) -> torch.Tensor:
        storage = x.untyped_storage()
        if storage.data_ptr() not in mine:
            found[storage.data_ptr()] = (storage.nbytes(), x)  # the tensor is held, so that its place stays taken
        return x

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        model(**given)
    return sum(size for size, _ in found.values()) / 4 / 2


#: What adds blocks: the model, its changed line, how many, which of `Network.blocks` they are.
MORE = {
    "layers": ("uvit", {"num_hidden_layers": 3}, 1, 1),
    "layers with a wide inside": ("uvit wide", {"num_hidden_layers": 3}, 1, 1),
    "ends": ("uvit", {"num_res_blocks": 3}, 2, 0),
    "compact": ("compact", {"layers": 3}, 1, 0),
    "compact with a wide inside": ("compact wide", {"layers": 3}, 1, 0),
}
BASES = SMALL | {"uvit wide": UVIT | {"intermediate_size": 160}, "compact wide": COMPACT | {"inner": 192}}


@pytest.mark.parametrize("lora", [True, False])
@pytest.mark.parametrize("case", MORE)
def test_a_block_keeps_what_is_counted(case: str, lora: bool) -> None:
    """For each position and token of text, within a quarter of a value of the block's width."""
    from peft import LoraConfig

    name, changed, count, which = MORE[case]
    config = BASES[name]
    compact = config["_class_name"] == "CompactTokens"

    def cost(config: dict[str, Any]) -> tuple[float, float]:
        found = []
        for side, text in ((8, 8), (12, 8), (8, 40)):
            model = make(config | ({"side": side} if compact else {}))
            if lora:
                model.requires_grad_(False)
                targets = COMPACT_TARGETS if compact else list(Amused.lora_targets)
                model.add_adapter(LoraConfig(r=1, target_modules=targets))
            found.append(saved(model, config, (side, side), text))
        positions = (144 - 64) / (4 if compact else 1)
        return (found[1] - found[0]) / positions, (found[2] - found[0]) / 32

    network = shapes.network_of(config)
    assert network is not None
    block = network.blocks[which]
    before, after = cost(config), cost(config | changed)
    real = [(b - a) / count / block.width for a, b in zip(before, after, strict=True)]
    column = 0 if lora else 1
    expected = [block.kept[column] / block.width, block.kept_text[column] / block.width]
    assert real == pytest.approx(expected, abs=0.25)


# ---- the schedule ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("learned", [False, True])
@pytest.mark.parametrize("kind", ["table", "net"])
def test_numbers_of_the_schedule(kind: str, learned: bool) -> None:
    config = config_of(model={"schedule": {"kind": kind, "deviation": {"learned": learned}}}, sampling={"steps": 12})
    schedule = storage.make(config.model.schedule, steps=12, feature_width=768, grid=(16, 16))
    trained = sum(p.numel() for p in schedule.parameters() if p.requires_grad)
    assert memory.schedule_parameters(config, 768) == trained


# ---- bytes -------------------------------------------------------------------------------------------------------


def config_of(**sections: Any) -> Config:
    plain: dict[str, Any] = {
        "family": "masked",
        "recipe": "co-grpo",
        "model": {"path": "amused/amused-256", "piece_rows": 1},
        "data": {"train": "unread:records"},
        "train": {"prompts": 8, "group": 8},
    }
    for key, value in sections.items():
        plain[key] = plain.get(key, {}) | value if isinstance(value, dict) else value
    return build(plain, folder=Path.cwd())


def estimate(**sections: Any) -> memory.Estimate:
    config = config_of(**sections)
    shape = memory.shape_of(config.model.path)
    assert shape is not None
    return memory.estimate(config, recipe_of(config), shape)


def test_an_adapter_on_amused_256() -> None:
    e = estimate(ema={"enabled": True})
    layers = 22 * (8 * 2 * 1024 + (1024 + 2 * 2816) + (2816 + 1024))  # attention twice, feed-forward of a gated inside
    ends = 6 * 8 * 2 * 768
    assert e.trainable == 32 * (layers + ends) + 12 * 4
    assert e.transformer == 2 * 603_537_664 + 4 * 48
    assert e.adapter == e.average == 4 * 32 * (layers + ends)
    assert e.gradients == 4 * e.trainable and e.optimiser == 8 * e.trainable
    assert e.reference == 0 and e.vae == 4 * 146_244_675 and e.encoders == 2 * 123_650_304
    logits = 256 * 8192
    kept = 6 * (18.3 * 768 * 256 + 5 * 768 * 77) + 22 * ((12.3 * 1024 + 4 * 2816) * 256 + 2 * 1024 * 77)
    assert e.activations == pytest.approx(2 * 2 * (kept + 2 * logits) + 4 * 6 * logits / 6)
    assert e.trajectories == 64 * (16 * 256 + 32 * 12 + 12 * 256 * 256)


def test_what_the_recipe_trains() -> None:
    tokens, schedule = estimate(recipe="mask-grpo"), estimate(recipe="schedule-grpo")
    assert schedule.trainable == 48 and tokens.trainable == estimate().trainable - 48
    assert schedule.transformer == tokens.transformer
    whole = estimate(model={"adapter": {"kind": "none"}})
    assert whole.trainable == 603_537_664 + 48 and whole.adapter == 0 and whole.reference == 0
    kl = estimate(model={"adapter": {"kind": "none"}}, recipe_options={"channels.tokens.penalties.kl.coef": 0.1})
    assert kl.reference == 4 * 603_537_664
    net = estimate(recipe="schedule-grpo", model={"schedule": {"kind": "net"}})
    assert net.trainable > 11_000_000 and net.optimiser == 8 * net.trainable


def test_what_saves_memory() -> None:
    base = estimate(model={"piece_rows": 8})
    assert estimate(model={"piece_rows": 4}).activations == base.activations / 2
    assert estimate(model={"piece_rows": 8, "gradient_checkpointing": True}).activations < base.activations / 4
    half = estimate(model={"piece_rows": 8, "detach_uncond": True}).activations
    assert base.activations / 2 < half < 0.55 * base.activations  # log-probabilities of the mix stay
    assert estimate(sampling={"decode_rows": 1}).decoding == (base.decoding or 0) / 4
    assert estimate(sampling={"batch_rows": 8}).denoising == base.denoising / 2
    assert estimate(device="cpu").transformer > 1.99 * base.transformer
    large = estimate(model={"path": "amused/amused-512", "piece_rows": 8}, inputs={"height": 512, "width": 512})
    assert base.activations < large.activations < 1.5 * base.activations  # four times the tokens, as many in the layers


def test_the_lines() -> None:
    config = config_of()
    lines = memory.describe(config, recipe_of(config))
    assert lines[0].startswith("603.54 M parameters of the transformer, 21.28 M trained, 48 numbers of the schedule")
    assert any(line.startswith("activations of a piece: one decoding step of 1 image ") for line in lines)
    assert any(line.startswith("VQ model, float32") and line.endswith("GiB") for line in lines)
    unknown = config_of(model={"path": "someone/else"})
    assert memory.describe(unknown, recipe_of(unknown))[0].startswith("size unknown: someone/else")
    flow = config_of(model={"path": "stabilityai/stable-diffusion-3.5-medium"})
    assert memory.describe(flow, recipe_of(flow))[0].startswith("size unknown")


def test_pieces_are_told_for_each_channel() -> None:
    config = config_of(model={"piece_rows": 10}, sampling={"steps": 12, "train_steps": 3})
    model, schedule, turns = memory.piece_lines(config, rows=64)
    assert "at most 10 images: 7 for each of 3 trained decoding steps of 12" in model
    assert "11 actions an image" in schedule and "without the model" in schedule
    assert turns.endswith("tokens 1, schedule 1")
    net = config_of(recipe="schedule-grpo", model={"schedule": {"kind": "net"}, "piece_rows": 16})
    (only,) = memory.piece_lines(net, rows=64)
    assert "each of its 44 pieces" in only
    (one,) = memory.piece_lines(config_of(recipe="mask-grpo"), rows=64)
    assert "of 12 trained decoding steps of 12" in one


def test_a_folder_and_a_lora_below_it(tmp_path: Path) -> None:
    folder = tiny.write(tmp_path / "amused", levels=3)
    shape = memory.shape_of(str(folder))
    assert shape is not None and shape.network.parameters == 5152
    assert (shape.factor, shape.unit, shape.decoder) == (4, 8, 8)
    assert shape.vae == counted(tiny.vqvae(levels=3)) and shape.encoders is not None and shape.encoders > 0
    lora = tmp_path / "lora"
    lora.mkdir()
    (lora / "mmrl.json").write_text(json.dumps({"family": "masked", "base": str(folder)}))
    save_file({"a": torch.zeros(1)}, lora / "pytorch_lora_weights.safetensors")
    assert memory.shape_of(str(lora)) == shape == memory.shape_of(str(lora), str(folder))


def test_the_embedded_model() -> None:
    from image_gen.embedded.masked_model import make_transformer

    shape = memory.shape_of("embedded:masked")
    assert shape is not None and shape.network.parameters == counted(make_transformer())
    assert (shape.factor, shape.decoder, shape.vae, shape.encoders) == (1, None, 0, 0)


def test_folders_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="transformer/config.json"):
        memory.shape_of(str(tmp_path))
    (tmp_path / "transformer").mkdir()
    (tmp_path / "transformer" / "config.json").write_text('{"_class_name": "SD3Transformer2DModel"}')
    assert memory.shape_of(str(tmp_path)) is None
    (tmp_path / "transformer" / "config.json").write_text('{"_class_name": "UVit2DModel"}')
    assert memory.shape_of(str(tmp_path)) is None  # sizes are missing


def test_a_dry_run_reads_no_torch() -> None:
    assert own.memory_lines is memory.describe and own.piece_lines is memory.piece_lines
    code = "import sys, image_gen.masked.config; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
