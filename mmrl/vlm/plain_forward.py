"""One forward pass of an exported folder, run as a script of its own: transformers and peft, nothing of this package.

    python -P plain_forward.py task.json

task.json  {"model", "adapter" or null, "messages", "pictures": [files], "last", "threads", "trust", "out"}
out        a safetensors file: input_ids [P] and the logits of the last positions [last, V] in float32
"""

import json
import sys

import torch
from PIL import Image
from safetensors.torch import save_file
from transformers import AutoModelForImageTextToText, AutoProcessor


def main(file: str) -> None:
    with open(file, encoding="utf-8") as opened:
        task = json.load(opened)
    torch.set_num_threads(task["threads"])
    model = AutoModelForImageTextToText.from_pretrained(
        task["model"], dtype=torch.float32, use_safetensors=True, trust_remote_code=task["trust"]
    )
    if task["adapter"]:
        from peft import PeftModel

        model = PeftModel.from_pretrained(model, task["adapter"])
    processor = AutoProcessor.from_pretrained(task["adapter"] or task["model"], trust_remote_code=task["trust"])
    text = processor.apply_chat_template(task["messages"], tokenize=False, add_generation_prompt=True)
    pictures = [Image.open(name).convert("RGB") for name in task["pictures"]]
    batch = processor(text=[text], images=pictures or None, return_tensors="pt")
    with torch.inference_mode():
        logits = model.eval()(**batch).logits[0, -task["last"] :]
    if "mmrl" in sys.modules:
        raise SystemExit("mmrl was imported: this was not a plain reload")
    save_file({"input_ids": batch["input_ids"][0].contiguous(), "logits": logits.float().contiguous()}, task["out"])


if __name__ == "__main__":
    main(sys.argv[1])
