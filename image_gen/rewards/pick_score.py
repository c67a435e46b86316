"""PickScore: human preference by a fine-tuned CLIP-H. Loads no torch.

Source: Pick-a-Pic, arXiv 2305.01569. Toolkits scale it differently: divided by 26 (flow_grpo, the default here),
(s - 18) / 8 (MixGRPO), raw cosine (DanceGRPO). Checked with: random weights of the architecture.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any

from pydantic import Field

from image_gen.rewards.pictures import prompts_of, to_images
from mmrl.data.records import Record
from mmrl.rewards.registry import reward

Divisor = Annotated[float, Field(gt=0)]
GET = (
    "yuvalkirstain/PickScore_v1 (https://huggingface.co/yuvalkirstain/PickScore_v1, licence MIT) and, for `processor`, "
    "laion/CLIP-ViT-H-14-laion2B-s32B-b79K"
)


def pick_value(cosine: float, scale: float, *, divisor: float = 26.0, shift: float = 0.0) -> float:
    """(scale * cos - shift) / divisor, scale = exp(logit_scale)."""
    return (scale * cosine - shift) / divisor


@reward("pick_score")
def pick_score(
    outputs: Sequence[Any],
    records: Sequence[Record],
    info: Sequence[dict[str, Any]],
    *,
    path: str | None = None,
    processor: str | None = None,
    divisor: Divisor = 26.0,
    shift: float = 0.0,
    device: str = "auto",
    offload: bool = False,
    batch_size: int = 32,
) -> list[float]:
    """(exp(logit_scale) * cos - shift) / divisor; MixGRPO's form is shift 18, divisor 8.

    path: folder or hub name of the released model; processor: of the CLIP-H it was tuned from, when `path` holds none.
    Raises UserError when the weights are missing or of another kind. Detached: everything.
    """
    from image_gen.rewards.clip_towers import pair_cosines, towers
    from image_gen.rewards.models import need_weights

    found = need_weights(path, get=GET)
    held = towers(found, device=device, processor=processor)
    texts = prompts_of(records)
    cos_n, scale = pair_cosines(
        held, to_images(outputs), texts, offload=offload, batch_size=batch_size, reward="pick_score"
    )
    return [pick_value(cosine, scale, divisor=divisor, shift=shift) for cosine in cos_n.tolist()]
