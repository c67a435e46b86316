"""Train a masked diffusion language model: load a configuration, train, see before and after.

python examples/train_dlm.py                                       # Countdown, generated; one GPU of 48 GB
python examples/train_dlm.py dlm/llada_8b_gsm8k_gdpo data.train=my/train.jsonl data.eval=my/test.jsonl
python examples/train_dlm.py dlm/sdar_8b_lightningrl_gsm8k data.train=my/train.jsonl train.prompts=32
"""

import json
import sys

from dlm.generate import generate
from mmrl.config_io import resolve
from mmrl.report import write_report
from mmrl.training.run import train

name, *overrides = sys.argv[1:] or ["dlm/llada_8b_countdown_gdpo"]
config = resolve(name, overrides)
run = train(config)

summary = json.loads((run / "summary.json").read_text())
for metric, before in summary["before"].items():
    print(f"{metric:>16}  {before:8.3f} -> {summary['after'][metric]:8.3f}")

print("report:", write_report([run], run / "report.html"))
generate(run, prompt="What is 12 + 30?", out=run / "answers")  # unmasked before your eyes
