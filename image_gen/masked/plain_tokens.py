"""Logits, a picture and the schedule of an exported folder, run as a script of its own: diffusers, nothing of this
package unless the model is one of this package.

    python -P plain_tokens.py task.json

task.json  {"own": bool, "model": folder, "lora": folder or null, "exported": folder, "shape": of the decoder's entries,
            "threads", "inputs", "out"}. own: a token model of this package, which it has to load itself.
inputs     written by torch.save: {"calls": [(args, kwargs) of the transformer], "whole": ids [1, L]}
out        a safetensors file: output0, output1, ... (logits), pictures [1, 3, H, W] in [0, 1], and schedule, all its
           tensors one after another by name; float32
"""

import json
import os
import sys

import torch
from safetensors.torch import load_file, save_file


def main(file: str) -> None:
    with open(file, encoding="utf-8") as opened:
        task = json.load(opened)
    torch.set_num_threads(task["threads"])
    inputs = torch.load(task["inputs"], weights_only=True)
    transformer, decode = _own(task) if task["own"] else _plain(task)
    found = {}
    with torch.inference_mode():
        for number, (args, kwargs) in enumerate(inputs["calls"]):
            said = transformer(*args, **kwargs)
            found[f"output{number}"] = said[0] if isinstance(said, tuple) else said
        found["pictures"] = decode(inputs["whole"])
    stored = load_file(os.path.join(task["exported"], "schedule", "schedule.safetensors"))
    found["schedule"] = torch.cat([stored[name].flatten().float() for name in sorted(stored)])
    if not task["own"] and {"mmrl", "image_gen"} & sys.modules.keys():
        raise SystemExit("mmrl was imported: this was not a plain reload")
    save_file({name: value.float().contiguous() for name, value in found.items()}, task["out"])


def _plain(task):  # type: ignore[no-untyped-def]
    from diffusers import UVit2DModel, VQModel

    settings = {"dtype": torch.float32, "use_safetensors": True}
    net = UVit2DModel.from_pretrained(task["model"], subfolder="transformer", **settings)
    if task["lora"]:
        net.load_lora_adapter(
            task["lora"], prefix="transformer", weight_name="pytorch_lora_weights.safetensors", use_safetensors=True
        )
    vq = VQModel.from_pretrained(task["model"], subfolder="vqvae", **settings)

    def decode(ids):  # type: ignore[no-untyped-def]
        return vq.decode(ids, force_not_quantize=True, shape=tuple(task["shape"])).sample.clip(0, 1)

    return net.eval(), decode


def _own(task):  # type: ignore[no-untyped-def]
    from pathlib import Path

    from image_gen.masked.models.loading import load_token_model

    model = load_token_model(task["model"], dtype=torch.float32, device=torch.device("cpu"))
    if task["lora"]:
        model.load_lora(Path(task["lora"]))
    height, width = task["size"]
    return model.transformer.eval(), lambda ids: model.decode(ids, height=height, width=width)


if __name__ == "__main__":
    main(sys.argv[1])
