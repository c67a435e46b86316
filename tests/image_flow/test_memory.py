"""Counts of parameters and of what blocks keep, against diffusers' own classes; bytes by literal numbers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from safetensors.torch import save_file

from image_gen.flow import memory, shapes
from image_gen.pipelines.folders import attribute
from image_gen.pipelines.loading import ADAPTERS
from mmrl import yaml_io
from mmrl.config import Config
from mmrl.config_io import build, recipe_of
from mmrl.errors import UserError
from mmrl.paths import configs_dir

#: Published sizes of the transformers, in units of 1e9, to the digits that the model pages give.
PUBLISHED = {
    "stabilityai/stable-diffusion-3.5-medium": 2.24,
    "stabilityai/stable-diffusion-3.5-large": 8.06,
    "black-forest-labs/FLUX.1-dev": 11.90,
    "Efficient-Large-Model/Sana_1600M_512px_diffusers": 1.60,
    "Qwen/Qwen-Image": 20.43,
}
ROWS = dict(yaml_io.read(configs_dir() / "models" / "image.yaml")["models"])
TABLE = {name: row for name, row in ROWS.items() if row["transformer"]["_class_name"] in shapes.KINDS}

SMALL = {
    "sd3": {
        "_class_name": "SD3Transformer2DModel", "sample_size": 16, "patch_size": 2, "in_channels": 4, "out_channels": 4,
        "num_layers": 3, "attention_head_dim": 64, "num_attention_heads": 2, "joint_attention_dim": 48,
        "caption_projection_dim": 128, "pooled_projection_dim": 40, "pos_embed_max_size": 24,
        "dual_attention_layers": [0], "qk_norm": "rms_norm",
    },
    "flux": {
        "_class_name": "FluxTransformer2DModel", "in_channels": 16, "num_layers": 2, "num_single_layers": 3,
        "attention_head_dim": 64, "num_attention_heads": 2, "joint_attention_dim": 48, "pooled_projection_dim": 40,
        "guidance_embeds": True, "axes_dims_rope": [16, 24, 24],
    },
    "sana": {
        "_class_name": "SanaTransformer2DModel", "in_channels": 4, "out_channels": 4, "num_attention_heads": 4,
        "attention_head_dim": 32, "num_layers": 3, "num_cross_attention_heads": 4, "cross_attention_head_dim": 32,
        "cross_attention_dim": 128, "caption_channels": 48, "sample_size": 16, "patch_size": 1, "mlp_ratio": 2.5,
        "attention_bias": False,
    },
    "qwen": {
        "_class_name": "QwenImageTransformer2DModel", "in_channels": 16, "out_channels": 4, "num_layers": 3,
        "attention_head_dim": 64, "num_attention_heads": 2, "joint_attention_dim": 48, "axes_dims_rope": [16, 24, 24],
        "patch_size": 2,
    },
}  # fmt: skip


def make(config: dict[str, Any]) -> torch.nn.Module:
    own = {k: v for k, v in config.items() if k != "_class_name"}
    if "num_attention_heads" in own and config["_class_name"].startswith("SD3"):
        own.setdefault("caption_projection_dim", own["num_attention_heads"] * own["attention_head_dim"])
    if config["_class_name"].startswith("Sana"):
        own.setdefault("num_cross_attention_heads", 20)
        own.setdefault("cross_attention_head_dim", own["cross_attention_dim"] // 20)
    found: torch.nn.Module = getattr(diffusers, config["_class_name"])(**own)
    return found


def counted(model: torch.nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize("name", SMALL)
def test_counts_agree_with_a_model_built_from_the_same_file(name: str) -> None:
    with torch.device("meta"):
        model = make(SMALL[name])
    shape = shapes.transformer_of(SMALL[name])
    assert shape is not None and shape.parameters == counted(model)


@pytest.mark.parametrize("name", sorted(TABLE))
def test_the_shipped_shapes_agree_with_diffusers_and_with_the_published_sizes(name: str) -> None:
    with torch.device("meta"):
        model = make(TABLE[name]["transformer"])
    shape = memory.shape_of(name)
    assert shape is not None and shape.transformer.parameters == counted(model)
    assert shape.transformer.parameters / 1e9 == pytest.approx(PUBLISHED[name], abs=0.005)


@pytest.mark.parametrize("name", SMALL)
@pytest.mark.parametrize("targets", [None, ["to_q", "ff.net.2"]])
def test_adapters_are_counted_as_peft_makes_them(name: str, targets: list[str] | None) -> None:
    from peft import LoraConfig

    with torch.device("meta"):
        model: Any = make(SMALL[name])
        kind = SMALL[name]["_class_name"].replace("Transformer2DModel", "").replace("SD3", "StableDiffusion3")
        default = attribute(*ADAPTERS[f"{kind}Pipeline"]).lora_targets
        model.add_adapter(LoraConfig(r=3, target_modules=targets or list(default)))
    real = sum(p.numel() for n, p in model.named_parameters() if ".lora_" in n)
    shape = shapes.transformer_of(SMALL[name])
    assert shape is not None and shape.adapter(3, targets) == real > 0


def inputs(name: str, side: int, text: int) -> dict[str, Any]:
    """Two images: of a single one some layers keep views where they keep copies of several."""
    told = {"encoder_hidden_states": torch.randn(2, text, 48), "timestep": torch.ones(2)}
    if name == "sd3":
        x = torch.randn(2, 4, 2 * side, 2 * side)
        return {**told, "hidden_states": x, "pooled_projections": torch.randn(2, 40)}
    if name == "sana":
        return {**told, "hidden_states": torch.randn(2, 4, side, side)}
    told["hidden_states"] = torch.randn(2, side * side, 16)
    if name == "qwen":
        return {**told, "img_shapes": [[(1, side, side)]] * 2}
    places = {"img_ids": torch.zeros(side * side, 3), "txt_ids": torch.zeros(text, 3)}
    return {**told, **places, "pooled_projections": torch.randn(2, 40), "guidance": torch.ones(2)}


def saved(model: Any, kwargs: dict[str, Any]) -> float:
    """Values for each of two images that a forward pass keeps for the backward pass, parameters apart."""
    own = {p.untyped_storage().data_ptr() for p in model.parameters()}
    found: dict[int, tuple[int, torch.Tensor]] = {}

    def pack(x: torch.Tensor) -> torch.Tensor:
        storage = x.untyped_storage()
        if storage.data_ptr() not in own:
            found[storage.data_ptr()] = (storage.nbytes(), x)  # the tensor is held, so that its place stays taken
        return x

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        model(**kwargs, return_dict=False)
    return sum(size for size, _ in found.values()) / 4 / 2


#: What adds one block: the model, its changed lines, and which of `Transformer.blocks` that is.
ONE_MORE = {
    "sd3": ("sd3", {"num_layers": 4}, 0),
    "sd3 dual": ("sd3", {"num_layers": 4, "dual_attention_layers": [0, 1]}, 1),
    "flux": ("flux", {"num_layers": 3}, 0),
    "flux single": ("flux", {"num_single_layers": 4}, 1),
    "sana": ("sana", {"num_layers": 4}, 0),
    "qwen": ("qwen", {"num_layers": 4}, 0),
}


@pytest.mark.parametrize("lora", [True, False])
@pytest.mark.parametrize("case", ONE_MORE)
def test_a_block_keeps_what_is_counted(case: str, lora: bool) -> None:
    """For each token of picture and text, within a quarter of a value of width W."""
    from peft import LoraConfig

    name, more, which = ONE_MORE[case]

    def cost(config: dict[str, Any]) -> tuple[float, float]:
        model: Any = make(config)
        if lora:
            kind = config["_class_name"].replace("Transformer2DModel", "").replace("SD3", "StableDiffusion3")
            targets = list(attribute(*ADAPTERS[f"{kind}Pipeline"]).lora_targets)
            model.requires_grad_(False)
            model.add_adapter(LoraConfig(r=1, target_modules=targets))
        small, large, wordy = (saved(model, inputs(name, *size)) for size in ((8, 8), (12, 8), (8, 40)))
        return (large - small) / (144 - 64), (wordy - small) / (40 - 8)

    shape = shapes.transformer_of(SMALL[name])
    assert shape is not None
    blocks = shape.blocks[which]
    before, after = cost(SMALL[name]), cost(SMALL[name] | more)
    found = [(b - a) / shape.width for a, b in zip(before, after, strict=True)]
    column = 0 if lora else 1
    assert found == pytest.approx([blocks.kept[column], blocks.kept_text[column]], abs=0.25)


def config_of(**sections: Any) -> Config:
    plain: dict[str, Any] = {
        "family": "flow",
        "recipe": "flow-grpo",
        "model": {"path": "stabilityai/stable-diffusion-3.5-medium", "piece_rows": 1},
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


def test_an_adapter_on_sd3_5_medium() -> None:
    e = estimate(ema={"enabled": True})
    # rank 32: 8 layers of 1536 x 1536 in 24 blocks, the last of which has no text output
    assert e.trainable == 32 * (24 * 8 - 1) * 2 * 1536
    assert e.transformer == 2 * 2_243_171_520
    assert e.adapter == e.gradients == e.average == 4 * e.trainable and e.optimiser == 8 * e.trainable
    assert e.reference == 0 and e.vae == 4 * 83_819_683 and e.encoders == 2 * 5_580_620_800
    # 512 px: 32 x 32 patches and 333 text tokens; 13 dual blocks, 11 plain ones; both halves of the guidance, bf16
    assert e.activations == 1536 * (13 * (20 * 1024 + 14 * 333) + 11 * 14 * (1024 + 333)) * 2 * 2
    assert e.trajectories == 64 * 4 * (11 * 16 * 64 * 64 + 3 * 512 * 512)
    assert e.update < 24 * 2**30 and e.encoding is not None and e.encoding < 24 * 2**30


def test_full_training_keeps_float32_and_a_reference() -> None:
    e = estimate(model={"adapter": {"kind": "none"}})
    assert e.trainable == 2_243_171_520
    assert e.transformer + e.gradients + e.optimiser == 16 * e.trainable and e.reference == 4 * e.trainable
    assert estimate(model={"adapter": {"kind": "none"}}, recipe="flow-grpo-fast").reference == 0  # no KL


def test_what_saves_memory() -> None:
    base = estimate(model={"piece_rows": 8})
    assert estimate(model={"piece_rows": 4}).activations == base.activations / 2
    assert estimate(model={"piece_rows": 8, "gradient_checkpointing": True}).activations < base.activations / 5
    assert estimate(model={"piece_rows": 8}, sampling={"guidance": 1.0}).activations == base.activations / 2
    assert estimate(model={"piece_rows": 8, "detach_uncond": True}).activations == base.activations / 2
    assert estimate(sampling={"decode_rows": 1}).decoding == (base.decoding or 0) / 4
    assert estimate(device="cpu").transformer == 2 * base.transformer


def test_the_lines() -> None:
    config = config_of()
    lines = memory.describe(config, recipe_of(config))
    assert lines[0].startswith("2,243.17 M parameters of the transformer, 18.78 M trained (shape: config.json")
    assert any(line.startswith("peak of the update") and line.endswith("GiB") for line in lines)
    assert any(line.startswith("activations of a piece: one denoising step of 1 image ") for line in lines)
    unknown = config_of(model={"path": "someone/else"})
    assert memory.describe(unknown, recipe_of(unknown))[0].startswith("size unknown: someone/else")


def write(folder: Path, file: str, value: object) -> None:
    (folder / file).parent.mkdir(parents=True, exist_ok=True)
    (folder / file).write_text(json.dumps(value))


def test_a_folder_is_read(tmp_path: Path) -> None:
    write(tmp_path, "transformer/config.json", SMALL["sd3"])
    write(tmp_path, "vae/config.json", {"_class_name": "AutoencoderKL", "block_out_channels": [8, 16]})
    (tmp_path / "text_encoder").mkdir()
    save_file({"a": torch.zeros(3, 5), "b": torch.zeros(2)}, tmp_path / "text_encoder" / "model.safetensors")
    shape = memory.shape_of(str(tmp_path))
    assert shape is not None and (shape.factor, shape.decoder, shape.vae, shape.encoders) == (2, 16, None, 17)
    config = config_of(model={"path": str(tmp_path)}, inputs={"height": 32, "width": 32})
    lines = memory.describe(config, recipe_of(config))
    assert any(line.startswith("VAE") and line.endswith("size unknown") for line in lines)
    lora = tmp_path / "lora"
    write(lora, "mmrl.json", {"family": "flow", "base": str(tmp_path)})
    save_file({"a": torch.zeros(1)}, lora / "pytorch_lora_weights.safetensors")
    assert memory.shape_of(str(lora)) == shape == memory.shape_of(str(lora), str(tmp_path))


def test_folders_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="transformer/config.json"):
        memory.shape_of(str(tmp_path))
    write(tmp_path, "transformer/config.json", {"_class_name": "UVit2DModel"})
    assert memory.shape_of(str(tmp_path)) is None
    (tmp_path / "transformer" / "config.json").write_text("{\n oops")
    with pytest.raises(UserError, match="line 2"):
        memory.shape_of(str(tmp_path))
    write(tmp_path, "transformer/config.json", SMALL["qwen"])
    (tmp_path / "text_encoder").mkdir()
    (tmp_path / "text_encoder" / "model.safetensors").write_bytes(b"\x10\0\0\0\0\0\0\0{broken")
    with pytest.raises(UserError, match="not a whole safetensors file"):
        memory.shape_of(str(tmp_path))
