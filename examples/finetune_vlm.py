"""Fine-tune a vision-language model with your own reward: the whole program.

python examples/finetune_vlm.py            # the small embedded model, minutes on a CPU
python examples/finetune_vlm.py Qwen/Qwen2.5-VL-3B-Instruct my_records.jsonl [my_held_out_records.jsonl]
"""

import sys
from pathlib import Path

from mmrl.config_io import build
from mmrl.report import write_report
from mmrl.rewards import reward
from mmrl.training.run import train


@reward("short", tasks=("detection",))
def short(outputs, records, info):
    """A small bonus for brief answers; one value per output, None where it does not apply."""
    return [0.1 if row["length"] < 24 else 0.0 for row in info]


mine = sys.argv[1:] or ["embedded:vlm", "digits:train?task=detection", "digits:eval"]
model, data, held_out = [*mine, None] if len(mine) == 2 else mine  # without held-out records nothing is evaluated
small = model == "embedded:vlm"
config = build(
    {
        "family": "vlm",
        "recipe": "visual-rft",
        "out": "runs/my-run",
        "model": {"path": model, "adapter": {"kind": "none" if small else "lora"}},
        "data": {"train": data, "eval": held_out, "eval_records": 50},
        "rewards": {"components": [{"name": "auto"}, {"name": "short", "weight": 0.5}]},
        "sampling": {"max_new_tokens": 48},
        "train": {"steps": 20, "prompts": 8, "group": 8},
        "optimiser": {"lr": 2e-4 if small else 1e-6},
    },
    folder=Path.cwd(),
)
run = train(config)
write_report([run], run / "report.html")
