"""HPS v2 and v2.1: human preference by a fine-tuned open_clip ViT-H-14. Loads no torch.

Source: HPSv2, arXiv 2306.09341. The released state dict is put into stock open_clip; the hpsv2 package (which bundles
an old open_clip) is not needed. Checked with: random weights of the architecture.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from image_gen.rewards.pictures import prompts_of, to_images
from mmrl.data.records import Record
from mmrl.rewards.registry import reward

GET = (
    "HPS_v2.1_compressed.pt (or HPS_v2_compressed.pt) of xswu/HPSv2 (https://huggingface.co/xswu/HPSv2, "
    "licence Apache-2.0)"
)


@reward("hps")
def hps(
    outputs: Sequence[Any],
    records: Sequence[Record],
    info: Sequence[dict[str, Any]],
    *,
    path: str | None = None,
    architecture: str = "ViT-H-14",
    scale: float = 1.0,
    device: str = "auto",
    offload: bool = False,
    batch_size: int = 32,
) -> list[float]:
    """scale * cos; scale 100 gives the numbers of published tables.

    path: the released .pt file, opened with weights_only. architecture: a model of open_clip; released weights are
    ViT-H-14. Raises UserError when the file is missing, holds code, or does not fit. Detached: everything.
    """
    from image_gen.rewards.clip_towers import OpenClipTowers, pair_cosines
    from image_gen.rewards.models import loaded, need_file

    file = need_file(path, get=GET)
    held = loaded(("hps", architecture, file), device, lambda: OpenClipTowers(architecture, file))
    texts = prompts_of(records)
    cos_n, _ = pair_cosines(held, to_images(outputs), texts, offload=offload, batch_size=batch_size, reward="hps")
    return [scale * cosine for cosine in cos_n.tolist()]
