"""ImageReward: human preference by BLIP with an affine head. Loads no torch.

Source: ImageReward, arXiv 2304.05977. The released file is loaded into transformers' BLIP classes by our own code (its
package needs an old transformers). Checked with: random weights of the architecture, against a plain computation.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from image_gen.rewards.pictures import prompts_of, to_images
from mmrl.data.records import Record
from mmrl.rewards.registry import reward

MEAN, STD = 0.16717362830052426, 1.0333394966054072
GET = "ImageReward.pt of zai-org/ImageReward (https://huggingface.co/zai-org/ImageReward, licence Apache-2.0)"
GET_TOKENIZER = (
    "google-bert/bert-base-uncased (its tokenizer files; https://huggingface.co/google-bert/bert-base-uncased)"
)


def image_reward_value(head: float) -> float:
    """(head - 0.16717) / 1.0333: standardised on the authors' data."""
    return (head - MEAN) / STD


@reward("image_reward")
def image_reward(
    outputs: Sequence[Any],
    records: Sequence[Record],
    info: Sequence[dict[str, Any]],
    *,
    path: str | None = None,
    tokenizer: str | None = None,
    device: str = "auto",
    offload: bool = False,
    batch_size: int = 32,
) -> list[float]:
    """(head - 0.16717) / 1.0333, about -2.3 to 2. Prompts are cut at 35 tokens, as released.

    path: ImageReward.pt; tokenizer: folder or hub name of bert-base-uncased. Alone it corrupts pictures: mix it.
    Raises UserError when either is missing, the file holds code, or does not fit. Detached: everything.
    """
    from image_gen.rewards.blip_reward import blip_values, load_blip_reward
    from image_gen.rewards.models import in_use, loaded, need_file, need_weights

    file = need_file(path, get=GET)
    words = need_weights(tokenizer, get=GET_TOKENIZER, option="tokenizer")
    held = loaded(("image_reward", file, words), device, lambda: load_blip_reward(file, words))
    texts = prompts_of(records)
    with in_use(held, offload=offload) as model:
        raw = blip_values(model, to_images(outputs), texts, batch_size=batch_size)
    return [image_reward_value(value) for value in raw]
