"""Align Stable Diffusion 3.5 Medium with LoRA: the whole program. One GPU of 24 GB.

python examples/align_sd3.py prompts.txt                    # one prompt a line; rewarded by PickScore
python examples/align_sd3.py prompts.txt my/pipeline-folder # any SD3, FLUX.1, Sana or Qwen-Image pipeline
"""

import sys
from pathlib import Path

from mmrl.config_io import build
from mmrl.report import write_report
from mmrl.rewards import reward
from mmrl.training.run import train


@reward("colourful")
def colourful(outputs, records, info):
    """A small bonus of one's own: outputs are float tensors [3, H, W] in [0, 1]; one value per picture."""
    return [float(picture.std(0).mean()) for picture in outputs]


prompts, *mine = sys.argv[1:]
pick = {"path": "yuvalkirstain/PickScore_v1", "processor": "laion/CLIP-ViT-H-14-laion2B-s32B-b79K"}
config = build(
    {
        "family": "flow",
        "recipe": "flow-grpo",
        "recipe_options": {"penalties.kl.coef": 0.01},
        "out": "runs/my-sd3",
        "model": {"path": mine[0] if mine else "stabilityai/stable-diffusion-3.5-medium", "piece_rows": 2},
        "data": {"train": prompts},
        "rewards": {"components": [{"name": "pick_score", "options": pick}, {"name": "colourful", "weight": 0.1}]},
        "train": {"steps": 300, "prompts": 8, "group": 8},
        "optimiser": {"lr": 3e-4, "weight_decay": 1e-4},
        "ema": {"enabled": True, "decay": 0.9, "every": 8},
    },
    folder=Path.cwd(),
)
run = train(config)
write_report([run], run / "report.html")
