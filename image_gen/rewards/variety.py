"""How far a picture is from the others of its prompt: a reward of the whole group, against collapse. Loads no torch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from image_gen.rewards.pictures import to_array
from mmrl.data.records import Record
from mmrl.rewards.registry import reward


@reward("variety", rowwise=False, cacheable=False)
def variety(outputs: Sequence[Any], records: Sequence[Record], info: Sequence[dict[str, Any]]) -> list[float | None]:
    """Root mean square distance of the pixels (in [0, 1]) to the mean of the OTHER pictures of the same prompt.

    None for a picture without others. With rewards per denoising step, pictures of one step are compared. Our own rule,
    no paper. Checked with: formula only.
    """
    import numpy as np

    groups: dict[tuple[str, int | None], list[int]] = {}
    for i, record in enumerate(records):
        groups.setdefault((record.id, info[i].get("decision")), []).append(i)
    found: list[float | None] = [None] * len(outputs)
    for rows in groups.values():
        if len(rows) < 2:
            continue
        x_n = np.stack([to_array(outputs[i]) / 255.0 for i in rows])
        others_n = (x_n.sum(0) - x_n) / (len(rows) - 1)
        far_n = np.sqrt(((x_n - others_n) ** 2).mean((1, 2, 3)))
        for i, value in zip(rows, far_n.tolist(), strict=True):
            found[i] = value
    return found
