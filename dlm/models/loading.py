"""Load a released checkpoint into the native model and write it again: safetensors only, every tensor accounted for."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from dlm.models import a2d, dream, llada, sdar
from dlm.models.layers import Release, Transformer
from dlm.models.layout import Folder, Layout
from mmrl import json_io
from mmrl.errors import UserError
from mmrl.training.model_folder import check_folder, is_adapter, quiet, reading

LAYOUTS = (llada.LAYOUT, sdar.LAYOUT, dream.LAYOUT, a2d.LAYOUT)
INDEX = "model.safetensors.index.json"
#: Small files that belong to a release and are written again as they are. Code among them is never run.
_KEPT = ("generation_config.json", "*.py")
_WHOLE = "take a whole copy of the model"


def layout_of(config: dict[str, Any], path: str) -> Layout:
    """By model_type, else by architectures. Raises UserError for a model of another family."""
    kind, classes = config.get("model_type"), config.get("architectures") or []
    for layout in LAYOUTS:
        if kind in layout.kinds:
            return layout
    for layout in LAYOUTS:
        if kind is None and any(c in layout.classes for c in classes):
            return layout
    known = ", ".join(k for layout in LAYOUTS for k in layout.kinds)
    raise UserError(f"model.path: {path!r} is a {kind or classes!r} model; family dlm takes {known}")


def layout_named(name: str) -> Layout:
    """The layout that `Traits.name` names."""
    return next(layout for layout in LAYOUTS if layout.name == name)


def local_folder(path: str) -> Path:
    """A folder as it is; the snapshot of a hub id, downloaded if it is not there yet. Raises UserError."""
    check_folder(path)
    if Path(path).is_dir():
        return Path(path)
    from huggingface_hub import snapshot_download

    wanted = ["*.json", "*.safetensors", "*.jinja", "*.txt", "*.model", "*.py"]
    with reading(repr(path)):
        folder = snapshot_download(path, allow_patterns=wanted)
    check_folder(folder)
    return Path(folder)


def load_model(
    path: str, *, mask_id: int | None = None, block: int | None = None, dtype: torch.dtype = torch.float32
) -> tuple[Transformer, Any]:
    """A released checkpoint, all weights in `dtype`, on the CPU, in eval mode, and its tokenizer.

    path     folder or hub id. mask_id, block  over what the folder says; needed where it says nothing.
    Raises UserError in one line: missing folder, pickle, adapter, other family, missing, surplus or wrongly shaped
    tensors, no tokenizer, no mask token, no block size.
    """
    if is_adapter(path):
        raise UserError(f"model.path: {path!r} is an adapter; load its base model and then the adapter")
    folder = local_folder(path)
    config = json_io.read_object(folder / "config.json", remedy=_WHOLE)
    layout = layout_of(config, path)
    generation = folder / "generation_config.json"
    tokenizer = load_tokenizer(folder)
    told = Folder(
        path=path,
        config=config,
        generation=json_io.read_object(generation, remedy=_WHOLE) if generation.is_file() else {},
        tokenizer=tokenizer,
        mask_id=mask_id,
        block=block,
    )
    files = {f.name: f.read_bytes() for pattern in _KEPT for f in sorted(folder.glob(pattern))}
    shape = layout.shape(told)
    last = max(tokenizer.get_vocab().values())
    if last >= shape.vocabulary:
        raise UserError(
            f"model.path: the tokenizer of {path!r} has a token {last}, its embedding ends at {shape.vocabulary - 1}; "
            "use the tokenizer of this model"
        )
    with torch.device("meta"):
        model = Transformer(shape, layout.traits(told), Release(config=config, files=files))
    _fill(model, layout, folder, path, dtype)
    return model.eval(), tokenizer


def load_tokenizer(folder: Path) -> Any:
    """The tokenizer beside the weights, without code of its own."""
    from transformers import AutoTokenizer, PreTrainedTokenizerFast, Qwen2Tokenizer

    names = {f.name for f in folder.iterdir()}
    if not names & {"tokenizer.json", "vocab.json", "tokenizer.model"}:
        raise UserError(f"model.path: {str(folder)!r} has no tokenizer (tokenizer.json); copy the original's")
    with reading(f"the tokenizer of {str(folder)!r}"), quiet():
        try:
            return AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
        except Exception as error:  # a class or a model type that only the release's own code knows
            if "tokenizer.json" in names:
                return PreTrainedTokenizerFast.from_pretrained(folder)
            if {"vocab.json", "merges.txt"} <= names:  # Dream: Qwen's tokenizer under another name
                return Qwen2Tokenizer.from_pretrained(folder)
            raise UserError(
                f"model.path: the tokenizer of {str(folder)!r} cannot be read without code of its own, which is not "
                "run; save it as tokenizer.json"
            ) from error


def stored_tensors(folder: Path) -> dict[str, Path]:
    """Stored name -> file, by the index of a sharded checkpoint, else of all *.safetensors. Raises UserError."""
    from safetensors import safe_open

    index = folder / INDEX
    if index.is_file():
        table = json_io.read_object(index, remedy=_WHOLE).get("weight_map")
        if not isinstance(table, dict):
            raise UserError(f"model.path: {index}: weight_map is missing; {_WHOLE}")
        for name in sorted({str(n) for n in table.values()}):
            if not (folder / name).is_file():
                raise UserError(f"model.path: {str(folder)!r} lacks {name}, which its index names; {_WHOLE}")
        return {str(name): folder / str(file) for name, file in table.items()}
    found: dict[str, Path] = {}
    for file in sorted(folder.glob("*.safetensors")):
        with reading(repr(str(file))), safe_open(str(file), framework="pt") as opened:
            found.update(dict.fromkeys(opened.keys(), file))
    return found


def _tensors(files: dict[str, Path]) -> Iterator[tuple[str, Tensor]]:
    """Each stored tensor, file by file."""
    from safetensors import safe_open

    for file in sorted(set(files.values())):
        with reading(repr(str(file))), safe_open(str(file), framework="pt") as opened:
            for name in (n for n, f in files.items() if f == file):
                yield name, opened.get_tensor(name)


def _fill(model: Transformer, layout: Layout, folder: Path, path: str, dtype: torch.dtype) -> None:
    """Put the stored tensors in the place of the model's empty ones."""
    wanted = dict(model.named_parameters(remove_duplicate=True))
    files = stored_tensors(folder)
    names = {stored: layout.ours(stored) for stored in files}
    twin = layout.released("lm_head.weight") if model.shape.tied else None
    surplus = sorted(s for s, own in names.items() if own not in wanted and s != twin)
    lacking = sorted(layout.released(n) for n in wanted.keys() - set(names.values()))
    for what, which in (("lacks", lacking), ("has surplus", surplus)):
        if which:
            raise UserError(
                f"model.path: the weights of {path!r} do not fit its config.json: it {what} {len(which)} tensors, "
                f"first {which[0]}; use a checkpoint of this model"
            )
    head: Tensor | None = None
    for stored, tensor in _tensors(files):
        if stored == twin:
            head = tensor
            continue
        own = str(names[stored])
        if tensor.shape != wanted[own].shape:
            raise UserError(
                f"model.path: the weights of {path!r} do not fit its config.json: {stored} is {list(tensor.shape)}, "
                f"expected {list(wanted[own].shape)}; use a checkpoint of this model"
            )
        put(model, own, tensor.to(dtype, copy=True))  # safetensors' own memory is the file, which may be written over
    model.tie()
    if head is not None and not torch.equal(head.to(dtype), model.embed.weight):
        raise UserError(
            f"model.path: {path!r} says that the output layer is the embedding, but {twin} is another table; set "
            f"{'weight_tying' if layout.name == 'llada' else 'tie_word_embeddings'} to false in its config.json"
        )


def put(model: nn.Module, name: str, tensor: Tensor) -> None:
    """Make `tensor` the parameter of that name."""
    module, _, last = name.rpartition(".")
    setattr(model.get_submodule(module), last, nn.Parameter(tensor))


def released_tensors(model: Transformer) -> dict[str, Tensor]:
    """The weights under the names of the release, but for a tied output layer. Raises ValueError with an adapter."""
    layout = layout_named(model.traits.name)
    named = dict(model.named_parameters(remove_duplicate=True))
    if any(".lora_" in name for name in named):
        raise ValueError("the model has an adapter: merge it, or save the adapter alone (dlm.models.lora)")
    return {layout.released(name): p.detach() for name, p in named.items()}


def save_model(
    model: Transformer, tokenizer: Any, path: str | Path, *, dtype: torch.dtype | None = None, shard: int = 5 * 10**9
) -> None:
    """Write a folder in the layout of the release: its names, its config.json (but for the dtype), its small files.

    dtype  of the weights; None keeps the model's. shard  bytes of one file at most. Raises ValueError for a model that
    has an adapter, or that does not come from a folder.
    """
    from huggingface_hub import save_torch_state_dict

    if model.release is None:
        raise ValueError("the model does not come from a folder: there is no config.json to write")
    tensors = {n: t.to("cpu", dtype or t.dtype).contiguous() for n, t in released_tensors(model).items()}
    folder = Path(path)
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in model.release.files.items():
        (folder / name).write_bytes(content)
    config = dict(model.release.config)
    key = "dtype" if "dtype" in config else "torch_dtype"
    config[key] = str(dtype or model.embed.weight.dtype).removeprefix("torch.")
    (folder / "config.json").write_text(json.dumps(config, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    save_torch_state_dict(tensors, folder, max_shard_size=shard, metadata={"format": "pt"})
    tokenizer.save_pretrained(folder)
