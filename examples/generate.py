"""Pictures of an aligned model in plain diffusers, beside its base, with equal seeds. Nothing of mmrl is needed.

python examples/generate.py runs/my-sd3/checkpoints/step-000300/model "two cats on a blue bench" [SIDE STEPS]

The folder is a LoRA as a run stores it; its mmrl.json names the base. `mmrl generate` does the same, and more.
"""

import json
import sys
from pathlib import Path

import torch
from diffusers import DiffusionPipeline

lora, prompt, *given = sys.argv[1:]
side, steps = map(int, given or ("512", "28"))
base = json.loads((Path(lora) / "mmrl.json").read_text())["base"]
gpu = torch.cuda.is_available()
pipe = DiffusionPipeline.from_pretrained(base, torch_dtype=torch.bfloat16 if gpu else torch.float32)
pipe.to("cuda" if gpu else "cpu").load_lora_weights(lora)


def picture(seed):
    generator = torch.Generator().manual_seed(seed)
    return pipe(prompt, height=side, width=side, num_inference_steps=steps, generator=generator).images[0]


for seed in range(4):
    pipe.enable_lora()
    picture(seed).save(f"aligned-{seed}.png")
    pipe.disable_lora()
    picture(seed).save(f"base-{seed}.png")
