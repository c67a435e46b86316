"""CLIPScore: how well picture and prompt agree, by any CLIP model. Loads no torch.

Source: Hessel et al., arXiv 2104.08718 (2.5 max(cos, 0)); torchmetrics reports 100 max(cos, 0), MixGRPO the raw cosine.
Checked with: random weights of the architecture (transformers CLIPModel and open_clip CLIP).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from image_gen.rewards.pictures import prompts_of, to_images
from mmrl.data.records import Record
from mmrl.rewards.registry import reward

Form = Literal["cos", "clipscore", "torchmetrics"]
GET = (
    "openai/clip-vit-large-patch14 (https://huggingface.co/openai/clip-vit-large-patch14, licence MIT) or an open_clip "
    "model such as hf-hub:apple/DFN5B-CLIP-ViT-H-14-384"
)


def clip_value(cosine: float, form: Form) -> float:
    """cos: as it is; clipscore: 2.5 max(cos, 0); torchmetrics: 100 max(cos, 0)."""
    if form == "cos":
        return cosine
    return (2.5 if form == "clipscore" else 100.0) * max(cosine, 0.0)


@reward("clip_score")
def clip_score(
    outputs: Sequence[Any],
    records: Sequence[Record],
    info: Sequence[dict[str, Any]],
    *,
    path: str | None = None,
    processor: str | None = None,
    form: Form = "cos",
    device: str = "auto",
    offload: bool = False,
    batch_size: int = 32,
) -> list[float]:
    """Cosine of the embeddings of picture and prompt, in the chosen form.

    path: a folder or hub name of a transformers CLIPModel, a folder with open_clip_config.json, or hf-hub:owner/name.
    processor: another folder for tokenizer and picture preparation (transformers only).
    Raises UserError when the weights are missing or of another kind. Detached: everything.
    """
    from image_gen.rewards.clip_towers import pair_cosines, towers
    from image_gen.rewards.models import need_weights

    found = need_weights(path, get=GET)
    held = towers(found, device=device, processor=processor)
    texts = prompts_of(records)
    cos_n, _ = pair_cosines(
        held, to_images(outputs), texts, offload=offload, batch_size=batch_size, reward="clip_score"
    )
    return [clip_value(cosine, form) for cosine in cos_n.tolist()]
