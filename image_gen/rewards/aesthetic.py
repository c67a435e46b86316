"""LAION aesthetic predictor v2: an affine head on CLIP ViT-L/14. The prompt is not looked at. Loads no torch.

Source: github.com/christophschuhmann/improved-aesthetic-predictor. Checked with: random weights of the architecture.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from image_gen.rewards.pictures import to_images
from mmrl.data.records import Record
from mmrl.errors import UserError
from mmrl.rewards.registry import reward

if TYPE_CHECKING:
    from torch import nn

GET_CLIP = "openai/clip-vit-large-patch14 (https://huggingface.co/openai/clip-vit-large-patch14, licence MIT)"
GET_HEAD = (
    "sac+logos+ava1-l14-linearMSE.pth (https://github.com/christophschuhmann/improved-aesthetic-predictor, 3.7 MB, "
    "licence Apache-2.0)"
)


def load_head(file: str) -> nn.Module:
    """The head of a .pth file, opened with weights_only; its input width is read from the file."""
    from image_gen.rewards.mlp_head import Head
    from image_gen.rewards.models import fill, read_state

    state = read_state(file)
    first = state.get("layers.0.weight")
    if first is None:
        raise UserError(f"{file} has no weight 'layers.0.weight'; is it the released head?")
    head = Head(first.shape[1])
    fill(head, state, path=file)
    return head.float()


@reward("aesthetic")
def aesthetic(
    outputs: Sequence[Any],
    records: Sequence[Record],
    info: Sequence[dict[str, Any]],
    *,
    path: str | None = None,
    head: str | None = None,
    device: str = "auto",
    offload: bool = False,
    batch_size: int = 32,
) -> list[float]:
    """head(L2-normalised image embedding): about 1 to 10, typically 4.5 to 7.

    path: CLIP ViT-L/14 (folder or hub name); head: the .pth file. Raises UserError when either is missing, the file
    holds code, or the widths differ. Detached: everything.
    """
    import torch

    from image_gen.rewards.clip_towers import image_embeddings, towers
    from image_gen.rewards.models import in_use, loaded, need_file, need_weights

    clip = need_weights(path, get=GET_CLIP)
    file = need_file(head, get=GET_HEAD, option="head")
    eye = towers(clip, device=device)
    top = loaded(("aesthetic", file), device, lambda: load_head(file))
    if not outputs:
        return []
    with in_use(eye, offload=offload) as model:
        embed_nd = image_embeddings(model, to_images(outputs), batch_size=batch_size)
    with in_use(top, offload=offload) as judge:
        width = judge.layers[0].in_features
        if width != embed_nd.shape[1]:
            raise UserError(
                f"the head takes {width} features, {clip} gives {embed_nd.shape[1]}; "
                "use the CLIP model that the head was trained on (ViT-L/14: 768)"
            )
        values: list[float] = torch.as_tensor(judge(embed_nd.to(top.device))).cpu().tolist()
    return values
