"""Teach a video-language model to name every right answer, with your own reward beside (TW-GRPO): the whole program.

python examples/finetune_video.py            # the small embedded model, minutes on a CPU
python examples/finetune_video.py Qwen/Qwen2.5-VL-3B-Instruct my_records.jsonl [my_held_out_records.jsonl]
"""

import sys
from pathlib import Path

from mmrl.config_io import build
from mmrl.report import write_report
from mmrl.rewards import reward
from mmrl.training.run import train


@reward("looks", tasks=("choice",))
def looks(outputs, records, info):
    """A small bonus for thoughts of a few words; info tells of each video its seconds, moments and sizes of frames."""
    return [0.2 if text.partition("</think>")[0].count(" ") >= 3 else 0.0 for text in outputs]


mine = sys.argv[1:] or ["embedded:video", "clips:train", "clips:eval"]
if len(mine) not in (2, 3):
    sys.exit(__doc__)
model, data, held_out = [*mine, None] if len(mine) == 2 else mine  # without held-out records nothing is evaluated
small = model == "embedded:video"
config = build(
    {
        "family": "video",
        "recipe": "tw-grpo",
        "out": "runs/my-video",
        "model": {"path": model, "adapter": {"kind": "none" if small else "lora"}},
        "inputs": {"fps": 2.0, "max_frames": 16}
        | ({"frame_min_pixels": 1536, "frame_max_pixels": 1536} if small else {}),
        "data": {"train": data, "eval": held_out, "eval_records": 40},
        "rewards": {"components": [{"name": "choice"}, {"name": "think_format"}, {"name": "looks", "weight": 0.5}]},
        "sampling": {"max_new_tokens": 40 if small else 512},
        "train": {"steps": 20, "prompts": 4, "group": 8},
        "optimiser": {"lr": 1e-4 if small else 1e-5},
    },
    folder=Path.cwd(),
)
run = train(config)
write_report([run], run / "report.html")
print(f"run folder: {run}; open {run}/report.html in a browser")
