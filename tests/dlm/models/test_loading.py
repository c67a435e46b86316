"""Released folders are read whole or refused in one line, and written again as they were."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from dlm.models import tiny
from dlm.models.layers import Shape
from dlm.models.layout import LINEAR, Folder
from dlm.models.llada import LAYOUT as LLADA
from dlm.models.loading import load_model, load_tokenizer, local_folder, save_model
from dlm.models.sdar import LAYOUT as SDAR
from mmrl.errors import UserError

Edit = Callable[..., None]


@pytest.fixture
def copy(folders: dict[str, Path], tmp_path: Path) -> Callable[[str], Path]:
    """A copy that a test may spoil."""
    return lambda kind: Path(shutil.copytree(folders[kind], tmp_path / kind))


def configure(folder: Path, **changes: Any) -> Path:
    """Change keys of config.json; None takes a key away."""
    file = folder / "config.json"
    config = json.loads(file.read_text())
    file.write_text(json.dumps({k: v for k, v in (config | changes).items() if v is not None}))
    return folder


def refused(folder: Path | str, message: str, **options: Any) -> None:
    with pytest.raises(UserError, match=message) as caught:
        load_model(str(folder), **options)
    assert "\n" not in str(caught.value)


# what is read


def test_traits_of_every_layout(folders: dict[str, Path]) -> None:
    traits = {kind: load_model(str(folder))[0].traits for kind, folder in folders.items()}
    assert {k: (t.attention, t.block, t.logit_shift) for k, t in traits.items()} == {
        "llada": ("full", None, False),
        "sdar": ("block", 4, False),
        "dream": ("full", None, True),
        "a2d": ("full", None, False),
    }
    assert {t.mask_id for t in traits.values()} == {258}
    assert {t.eos_ids for t in traits.values()} == {(256, 257)} and {t.pad_id for t in traits.values()} == {256}
    assert traits["llada"].lora_targets == ("q_proj", "k_proj", "v_proj", "up_proj")
    assert all(traits[k].lora_targets == LINEAR for k in ("sdar", "dream", "a2d"))


class Words:
    """The tokenizer of a release, as far as traits ask."""

    def __init__(self, ids: dict[str, int], eos: int, mask: int | None = None) -> None:
        self.ids, self.eos_token_id, self.pad_token_id, self.mask_token_id = ids, eos, eos, mask

    def get_vocab(self) -> dict[str, int]:
        return self.ids


#: config.json of GSAI-ML/LLaDA-8B-Instruct, the keys that matter.
LLADA_8B = {
    "model_type": "llada",
    "architectures": ["LLaDAModelLM"],
    "activation_type": "silu",
    "alibi": False,
    "bias_for_layer_norm": False,
    "block_group_size": 1,
    "block_type": "llama",
    "d_model": 4096,
    "embedding_size": 126464,
    "eos_token_id": 126081,
    "include_bias": False,
    "include_qkv_bias": False,
    "layer_norm_type": "rms",
    "layer_norm_with_affine": True,
    "mask_token_id": 126336,
    "max_sequence_length": 4096,
    "mlp_hidden_size": 12288,
    "n_heads": 32,
    "n_kv_heads": 32,
    "n_layers": 32,
    "pad_token_id": 126081,
    "rms_norm_eps": 1e-5,
    "rope": True,
    "rope_theta": 500000.0,
    "vocab_size": 126464,
    "weight_tying": False,
}
#: config.json of JetLM/SDAR-8B-Chat, likewise.
SDAR_8B = {
    "model_type": "sdar",
    "architectures": ["SDARForCausalLM"],
    "attention_bias": False,
    "block_size": 4,
    "bos_token_id": 151643,
    "eos_token_id": 151643,
    "head_dim": 128,
    "hidden_act": "silu",
    "hidden_size": 4096,
    "intermediate_size": 12288,
    "mask_token_id": 151669,
    "max_position_embeddings": 32768,
    "num_attention_heads": 32,
    "num_hidden_layers": 36,
    "num_key_value_heads": 8,
    "rms_norm_eps": 1e-06,
    "rope_scaling": None,
    "rope_theta": 1000000,
    "sliding_window": None,
    "tie_word_embeddings": False,
    "use_sliding_window": False,
    "vocab_size": 151936,
}


def told(config: dict[str, Any], words: Words, **options: Any) -> Folder:
    return Folder(path="there", config=config, generation=options.pop("generation", {}), tokenizer=words, **options)


def test_llada_8b() -> None:
    words = Words({"<|eot_id|>": 126348, "<|mdm_mask|>": 126336}, eos=126081)
    folder = told(LLADA_8B, words)
    assert LLADA.shape(folder) == Shape(126464, 4096, 12288, 32, 32, 32, 128, 500000.0, 1e-5)
    traits = LLADA.traits(folder)
    assert (traits.mask_id, traits.eos_ids, traits.pad_id, traits.window) == (126336, (126081, 126348), 126081, 4096)
    without = {k: v for k, v in LLADA_8B.items() if k != "mask_token_id"}
    assert LLADA.traits(told(without, Words({}, eos=126081))).mask_id == 126336


def test_sdar_8b() -> None:
    words = Words({"<|im_end|>": 151645, "<|endoftext|>": 151643}, eos=151643)
    folder = told(SDAR_8B, words, generation={"eos_token_id": [151645, 151643]})
    assert SDAR.shape(folder) == Shape(151936, 4096, 12288, 36, 32, 8, 128, 1e6, 1e-6, qk_norm=True)
    traits = SDAR.traits(folder)
    assert (traits.mask_id, traits.eos_ids, traits.block) == (151669, (151645, 151643), 4)
    without = {k: v for k, v in SDAR_8B.items() if k not in ("mask_token_id", "block_size")}
    traits = SDAR.traits(told(without, words, block=32))  # an early release: the mask is counted from bos
    assert (traits.mask_id, traits.block) == (151669, 32)
    assert SDAR.traits(told(without, words, generation={"block_length": 8})).block == 8
    with pytest.raises(UserError, match="model.block: there/config.json has no block_size"):
        SDAR.traits(told(without, words))
    with pytest.raises(UserError, match="model.mask_id: neither config.json nor the tokenizer of 'there'"):
        SDAR.traits(told(without | {"bos_token_id": 1}, words, block=4))


def test_options_go_first(folders: dict[str, Path]) -> None:
    model, _ = load_model(str(folders["sdar"]), mask_id=7, block=16)
    assert (model.traits.mask_id, model.traits.block) == (7, 16)
    model, _ = load_model(str(folders["a2d"]), block=32)
    assert (model.traits.attention, model.traits.block) == ("block", 32)


def test_newer_configurations_keep_theta_elsewhere(copy: Callable[[str], Path]) -> None:
    folder = configure(copy("sdar"), rope_theta=None, rope_parameters={"rope_type": "default", "rope_theta": 123.0})
    assert load_model(str(folder))[0].shape.theta == 123.0


def test_shards_and_single_files_are_the_same(folders: dict[str, Path], tmp_path: Path) -> None:
    many = tiny.write_tiny(tmp_path / "many", "llada", seed=3, shard=30_000)
    assert len(list(many.glob("*.safetensors"))) > 2 and (many / "model.safetensors.index.json").is_file()
    pairs = zip(
        load_model(str(many))[0].named_parameters(),
        load_model(str(folders["llada"]))[0].named_parameters(),
        strict=True,
    )
    for (name, one), (_, other) in pairs:
        assert torch.equal(one, other), name


@pytest.mark.parametrize("kind", tiny.KINDS)
@pytest.mark.parametrize("tied", [False, True])
def test_written_again(kind: Any, tied: bool, tmp_path: Path) -> None:
    first = tiny.write_tiny(tmp_path / "a", kind, tied=tied, config={"auto_map": {"AutoModel": "modeling_x.X"}})
    (first / "modeling_x.py").write_text("raise SystemExit('code of a release is never run')")
    (first / "generation_config.json").write_text('{"eos_token_id": [257]}')
    model, tokenizer = load_model(str(first))
    assert model.traits.eos_ids == (257, 256)
    assert (model.head.weight is model.embed.weight) is tied
    save_model(model, tokenizer, tmp_path / "b")
    assert json.loads((first / "config.json").read_text()) == json.loads((tmp_path / "b/config.json").read_text())
    for name in ("modeling_x.py", "generation_config.json"):
        assert (first / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    old, new = load_file(first / "model.safetensors"), load_file(tmp_path / "b/model.safetensors")
    assert old.keys() == new.keys() and all(torch.equal(old[n], new[n]) for n in old)
    again, words = load_model(str(tmp_path / "b"))
    assert again.traits == model.traits and again.shape == model.shape
    assert words("Größe 3<|im_end|>")["input_ids"] == tokenizer("Größe 3<|im_end|>")["input_ids"]


def test_bfloat16_on_disk(tmp_path: Path) -> None:
    folder = tiny.write_tiny(tmp_path / "a", "llada", dtype=torch.bfloat16)
    stored = load_file(folder / "model.safetensors")
    assert {t.dtype for t in stored.values()} == {torch.bfloat16}
    for dtype in (torch.float32, torch.bfloat16):
        model, tokenizer = load_model(str(folder), dtype=dtype)
        assert {p.dtype for p in model.parameters()} == {dtype}
        assert torch.equal(model.embed.weight, stored["model.transformer.wte.weight"].to(dtype))
    save_model(model, tokenizer, tmp_path / "b", dtype=torch.float32)
    assert json.loads((tmp_path / "b/config.json").read_text())["torch_dtype"] == "float32"
    assert load_file(tmp_path / "b/model.safetensors")["model.transformer.ln_f.weight"].dtype == torch.float32


def test_a_model_may_be_saved_over_itself(copy: Callable[[str], Path]) -> None:
    folder = copy("sdar")
    before = load_file(folder / "model.safetensors")
    model, tokenizer = load_model(str(folder))
    save_model(model, tokenizer, folder)
    after = load_file(folder / "model.safetensors")
    assert all(torch.equal(before[n], after[n]) for n in before)


def test_a_stored_twin_of_the_embedding(tmp_path: Path) -> None:
    """Some releases of tied models store the output layer too."""
    folder = tiny.write_tiny(tmp_path / "a", "sdar", tied=True)
    file = folder / "model.safetensors"
    weights = load_file(file)
    save_file(weights | {"lm_head.weight": weights["model.embed_tokens.weight"].clone()}, file)
    assert load_model(str(folder))[0].head.weight is not None
    save_file(weights | {"lm_head.weight": weights["model.embed_tokens.weight"] + 1}, file)
    refused(folder, "lm_head.weight is another table; set tie_word_embeddings to false")


def test_a_model_of_the_hub(folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str, list[str]]] = []

    def download(name: str, *, allow_patterns: list[str]) -> str:
        asked.append((name, allow_patterns))
        return str(folders["sdar"])

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    assert local_folder("JetLM/SDAR-8B-Chat") == folders["sdar"]
    assert asked[0][0] == "JetLM/SDAR-8B-Chat" and "*.safetensors" in asked[0][1]
    assert not any(p.endswith((".bin", ".pt", "*")) for p in asked[0][1])


def test_a_tokenizer_in_two_files(folders: dict[str, Path], tmp_path: Path) -> None:
    """Dream's folder has vocab.json and merges.txt, and a class that only its own code knows."""
    vocabulary = json.loads((folders["dream"] / "tokenizer.json").read_text())["model"]["vocab"]
    (tmp_path / "vocab.json").write_text(json.dumps(vocabulary))
    (tmp_path / "merges.txt").write_text("#version: 0.2\n")
    special = {"256": "<|endoftext|>", "257": "<|im_end|>", "258": "<|mask|>"}
    added = {i: {"content": t, "special": True, "normalized": False} for i, t in special.items()}
    options = {
        "tokenizer_class": "DreamTokenizer",
        "auto_map": {"AutoTokenizer": ["tokenization_dream.DreamTokenizer", None]},
        "added_tokens_decoder": added,
        "mask_token": "<|mask|>",
        "eos_token": "<|endoftext|>",
        "pad_token": "<|endoftext|>",
    }
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(options))
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "Dream", "auto_map": {"AutoConfig": "x.Y"}}))
    found = load_tokenizer(tmp_path)
    assert found.mask_token_id == 258 and found.decode(found("a b<|im_end|>")["input_ids"]) == "a b<|im_end|>"


# what is refused


def test_no_folder_and_no_model(copy: Callable[[str], Path], tmp_path: Path) -> None:
    refused("./nowhere", "model.path: no folder './nowhere'")
    folder = copy("llada")
    refused(folder / "config.json", "is a file")
    (folder / "config.json").unlink()
    refused(folder, "has no config.json")


def test_pickles(copy: Callable[[str], Path]) -> None:
    folder = copy("llada")
    (folder / "model.safetensors").unlink()
    torch.save({}, folder / "pytorch_model.bin")
    refused(folder, r"pickle checkpoint \(pytorch_model.bin\).*convert it to safetensors")


def test_an_adapter(tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text("{}")
    refused(tmp_path, "is an adapter; load its base model")


def test_other_families(copy: Callable[[str], Path]) -> None:
    folder = configure(copy("sdar"), model_type="llama", architectures=["LlamaForCausalLM"])
    refused(folder, "is a 'llama' model; family dlm takes llada, sdar, Dream")
    configure(folder, model_type=None, architectures=["SDARForCausalLM"])
    assert load_model(str(folder))[0].traits.name == "sdar"


def test_broken_files(copy: Callable[[str], Path]) -> None:
    folder = copy("a2d")
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:5000])
    refused(folder, "model.path: cannot load")
    (folder / "config.json").write_text('{"model_type":')
    refused(folder, "config.json: broken JSON")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("missing", "it lacks 1 tensors, first model.transformer.blocks.1.ff_out.weight"),
        ("surplus", "it has surplus 1 tensors, first model.transformer.blocks.9.ff_out.weight"),
        ("foreign", "it has surplus 1 tensors, first lm_head.weight"),
        ("shape", r"blocks.1.ff_out.weight is \[3, 64\], expected \[32, 64\]"),
    ],
)
def test_weights_that_do_not_fit(change: str, message: str, copy: Callable[[str], Path]) -> None:
    folder = copy("llada")
    file, name = folder / "model.safetensors", "model.transformer.blocks.1.ff_out.weight"
    weights = load_file(file)
    if change == "missing":
        del weights[name]
    elif change == "shape":
        weights[name] = weights[name][:3].clone()
    else:
        weights[name.replace("1", "9") if change == "surplus" else "lm_head.weight"] = weights[name].clone()
    save_file(weights, file)
    refused(folder, message)


def test_a_lost_shard(tmp_path: Path) -> None:
    folder = tiny.write_tiny(tmp_path / "a", "dream", shard=30_000)
    sorted(folder.glob("*.safetensors"))[1].unlink()
    refused(folder, "lacks model-00002-of-.*, which its index names")


@pytest.mark.parametrize(
    ("kind", "changes", "message"),
    [
        ("llada", {"block_type": "sequential"}, "block_type 'sequential' is not supported"),
        ("llada", {"alibi": True}, "alibi True is not supported"),
        ("llada", {"block_group_size": 2}, "block_group_size 2 is not supported"),
        ("llada", {"d_model": None}, "config.json lacks d_model"),
        ("llada", {"n_layers": 1.5}, "n_layers is 1.5, expected a whole number"),
        ("llada", {"mask_token_id": 9999}, "model.mask_id: 9999 is no token"),
        ("sdar", {"rope_scaling": {"rope_type": "yarn", "factor": 4.0}}, "rope_type 'yarn' is not supported"),
        ("sdar", {"block_size": None}, "model.block: .*has no block_size; set model.block"),
        ("sdar", {"block_size": 0}, "model.block: 0, expected a whole number over 0"),
        ("dream", {"use_sliding_window": True}, "use_sliding_window True is not supported"),
        ("dream", {"hidden_size": "wide"}, "hidden_size is 'wide', expected a number > 0"),
        ("a2d", {"hidden_act": "gelu"}, "hidden_act 'gelu' is not supported"),
        ("a2d", {"vocab_size": 200}, "the tokenizer of .* has a token 258, its embedding ends at 199"),
    ],
)
def test_configurations_that_are_not_taken(
    kind: str, changes: dict[str, Any], message: str, copy: Callable[[str], Path]
) -> None:
    refused(configure(copy(kind), **changes), message)


def test_no_mask_token(copy: Callable[[str], Path]) -> None:
    folder = copy("a2d")
    tiny.byte_tokenizer("<|endoftext|>", "<|im_end|>", "<|unused|>", in_config=False).save_pretrained(folder)
    refused(folder, "model.mask_id: neither config.json nor the tokenizer .* set model.mask_id")
    assert load_model(str(folder), mask_id=258)[0].traits.mask_id == 258
    refused(folder, "model.mask_id: 259 is no token", mask_id=259)


def test_a_block_size_without_use(folders: dict[str, Path]) -> None:
    for kind in ("llada", "dream"):
        refused(folders[kind], "model.block: .* has full attention", block=8)
    refused(folders["a2d"], "model.block: 0, expected a whole number over 0", block=0)


def test_no_tokenizer(copy: Callable[[str], Path]) -> None:
    folder = copy("llada")
    (folder / "tokenizer.json").unlink()
    refused(folder, "has no tokenizer")


def test_what_cannot_be_saved(folders: dict[str, Path], tmp_path: Path) -> None:
    model, tokenizer = load_model(str(folders["llada"]))
    model.release = None
    with pytest.raises(ValueError, match="does not come from a folder"):
        save_model(model, tokenizer, tmp_path)
