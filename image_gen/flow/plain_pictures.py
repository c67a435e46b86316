"""Velocities and pictures of an exported folder, run as a script of its own: diffusers, nothing of this package.

    python -P plain_pictures.py task.json

task.json  {"model": folder, "transformer": class or null, "lora": folder or null, "prompt", "options", "scheduler",
            "threads", "inputs", "out"}. With `transformer` the folder holds (in itself or in transformer/) that class
            and no pipeline: there are velocities, and no pictures.
inputs     written by torch.save: {"calls": [(args, kwargs) of the transformer], "noise": latents}
out        a safetensors file: output0, output1, ... (velocities) and pictures [N, 3, H, W] in [0, 1], float32
"""

import json
import os
import sys

import torch
from safetensors.torch import save_file


def main(file: str) -> None:
    with open(file, encoding="utf-8") as opened:
        task = json.load(opened)
    torch.set_num_threads(task["threads"])
    inputs = torch.load(task["inputs"], weights_only=True)
    pipe = None
    if task["transformer"]:
        transformer = _transformer(task)
    else:
        pipe = _pipeline(task)
        transformer = pipe.transformer
    found = {}
    with torch.inference_mode():
        for number, (args, kwargs) in enumerate(inputs["calls"]):
            found[f"output{number}"] = transformer(*args, **kwargs)[0]
        if pipe is not None:
            found["pictures"] = pipe(
                [task["prompt"]], latents=inputs["noise"], output_type="pt", **task["options"]
            ).images
    if {"mmrl", "image_gen"} & sys.modules.keys():
        raise SystemExit("mmrl was imported: this was not a plain reload")
    save_file({name: value.float().contiguous() for name, value in found.items()}, task["out"])


def _pipeline(task):  # type: ignore[no-untyped-def]
    from diffusers import DiffusionPipeline

    pipe = DiffusionPipeline.from_pretrained(task["model"], dtype=torch.float32, use_safetensors=True)
    pipe.set_progress_bar_config(disable=True)
    if task["lora"]:
        pipe.load_lora_weights(task["lora"])
    if task["scheduler"]:
        pipe.scheduler = type(pipe.scheduler).from_config(pipe.scheduler.config, **task["scheduler"])
    return pipe


def _transformer(task):  # type: ignore[no-untyped-def]
    import diffusers

    inner = os.path.join(task["model"], "transformer")
    folder = inner if os.path.isdir(inner) else task["model"]
    model = getattr(diffusers, task["transformer"]).from_pretrained(folder, dtype=torch.float32, use_safetensors=True)
    if task["lora"]:
        weights = {"weight_name": "pytorch_lora_weights.safetensors", "use_safetensors": True}
        model.load_lora_adapter(task["lora"], prefix="transformer", **weights)
    return model.eval()


if __name__ == "__main__":
    main(sys.argv[1])
