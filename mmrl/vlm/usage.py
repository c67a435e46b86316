"""The code of a model card, in pieces: a model that answers questions is loaded, asked and heard in plain transformers.

Texts are Python literals on one line: they come from data.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from mmrl.training.exported import public_name
from mmrl.vlm import loading
from mmrl.vlm.config import Inputs, Model


def usage(options: Model, inputs: Inputs, prompt: Any, *, adapter_only: bool) -> str:
    """Code that loads the folder and asks the question of a held-out record about a picture."""
    lines = [
        *opening(options, ["from PIL import Image"], adapter_only=adapter_only),
        "",
        *asking(inputs, "image", question(prompt, "What is in the picture?")),
        'picture = Image.open("picture.png").convert("RGB")',
        'batch = processor(text=[text], images=[picture], return_tensors="pt")',
        *answering(),
    ]
    return "\n".join(lines)


def question(prompt: Any, otherwise: str) -> str:
    """The wording of a record, since a trained model knows that best; `otherwise` where the card cannot show it."""
    return prompt if isinstance(prompt, str) and "`" not in prompt else otherwise


def opening(options: Model, imports: Sequence[str], *, adapter_only: bool) -> list[str]:
    """What is imported, `imports` among it; then `folder`, `model` and `processor`."""
    trust = ", trust_remote_code=True" if options.trust_remote_code else ""
    needed = {"import torch", "from transformers import AutoModelForImageTextToText, AutoProcessor", *imports}
    if adapter_only:
        name = public_name(loading.adapter_base(options))
        embedded = name.startswith("embedded:")
        needed |= {"from peft import PeftModel"}
        needed |= {"from mmrl.vlm.embedded_models import resolve"} if embedded else set()
        loaded = [
            f"base = {f'resolve({ascii(name)})' if embedded else ascii(name)}  # the model it was trained on",
            f'model = AutoModelForImageTextToText.from_pretrained(base, dtype="auto"{trust})',
            "model = PeftModel.from_pretrained(model, folder).eval()",
        ]
    else:
        loaded = [f'model = AutoModelForImageTextToText.from_pretrained(folder, dtype="auto"{trust}).eval()']
    return [
        *sorted(needed, key=lambda line: (line.startswith("from"), line.lower())),
        "",
        'folder = "."  # this folder',
        *loaded,
        f"processor = AutoProcessor.from_pretrained(folder{trust})",
    ]


def asking(inputs: Inputs, medium: str, words: str) -> list[str]:
    """`messages`, a part of type `medium` before the words, and `text`, which the chat template makes of them."""
    lines = ["messages = ["]
    if inputs.system is not None:
        system = f'{{"type": "text", "text": {ascii(inputs.system)}}}'
        lines += [f'    {{"role": "system", "content": [{system}]}},']
    parts = f'{{"type": "{medium}"}}, {{"type": "text", "text": {ascii(words)}}}'
    return [
        *lines,
        f'    {{"role": "user", "content": [{parts}]}},',
        "]",
        "text = processor.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)",
    ]


def answering() -> list[str]:
    """The greedy answer to `batch`, printed."""
    return [
        "with torch.inference_mode():",
        "    rows = model.generate(**batch, do_sample=False, max_new_tokens=256)",
        'print(processor.decode(rows[0, batch["input_ids"].shape[1] :], skip_special_tokens=True))',
    ]
