"""Train a masked-diffusion image model and its decoding schedule together (Co-GRPO): the whole program.

python examples/finetune_masked.py                                             # embedded digits, minutes on a CPU
python examples/finetune_masked.py amused/amused-256 prompts.txt held_out.txt  # one prompt a line; a GPU of 24 GB
"""

import sys
from pathlib import Path

from image_gen.masked.generate import generate
from mmrl.config_io import build
from mmrl.report import write_report
from mmrl.rewards import reward
from mmrl.training.run import train


@reward("contrast")
def contrast(outputs, records, info):
    """A small bonus of one's own: outputs are float tensors [3, H, W] in [0, 1]; one value per picture."""
    return [float(picture.std()) for picture in outputs]


model, data, held_out = sys.argv[1:] or ["embedded:masked", "digits:class", "digits:class"]
small = model == "embedded:masked"
side, task, judge = (8, "digit", "digit_judge") if small else (256, "pick_score", "clip_score")
pick = {"path": "yuvalkirstain/PickScore_v1", "processor": "laion/CLIP-ViT-H-14-laion2B-s32B-b79K"}
clip = {"path": "openai/clip-vit-large-patch14"}
config = build(
    {
        "family": "masked",
        "recipe": "co-grpo",  # or mask-grpo, the model alone; schedule-grpo, the schedule alone
        "recipe_options": {"channels.schedule.optimiser.lr": 5e-2 if small else 1e-3},
        "out": "runs/my-masked",
        "model": {"path": model, "adapter": {"kind": "none" if small else "lora"}, "piece_rows": 128 if small else 16},
        "sampling": {"steps": 8 if small else 12, "batch_rows": 128 if small else 16},
        "inputs": {"height": side, "width": side, "eval_images": 16, "curve_steps": [2, 4, 8]},
        "data": {"train": data, "eval": held_out},
        "rewards": {
            "components": [{"name": task, "options": {} if small else pick}, {"name": "contrast", "weight": 0.1}]
        },
        "eval": {"judges": [{"name": judge, "options": {} if small else clip}]},
        "train": {"steps": 42 if small else 1000, "prompts": 10 if small else 8, "group": 8},
        "optimiser": {"lr": 1e-4},
    },
    folder=Path.cwd(),
)
run = train(config)
write_report([run], run / "report.html")
generate(run, prompt="a seven", steps=4, out=run / "four-steps")  # the learned schedule at half the steps and fewer
