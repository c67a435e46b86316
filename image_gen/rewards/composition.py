"""Composition: are the objects of the prompt there, in number, colour and place? Loads no torch.

Source: GenEval, arXiv 2310.11513, with a zero-shot detector of transformers in place of its Mask2Former, so scores are
not comparable with published ones; shaped score after Flow-GRPO, arXiv 2505.05470 (differences: `shaped_score`).
Checked with: random weights of the architecture (OWLv2, Grounding DINO, CLIP); the rules by literal detections.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import cache, partial
from typing import Annotated, Any, Literal

from pydantic import Field

from image_gen.rewards.composition_rules import Found, Spec, read_spec, shaped_score, strict_score
from image_gen.rewards.pictures import to_image
from mmrl.data.records import Record
from mmrl.rewards.registry import reward

Share = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[int, Field(ge=1)]
GET = (
    "google/owlv2-base-patch16-ensemble (https://huggingface.co/google/owlv2-base-patch16-ensemble, "
    "licence Apache-2.0) or IDEA-Research/grounding-dino-tiny (licence Apache-2.0)"
)
GET_CLIP = (
    "openai/clip-vit-large-patch14 (https://huggingface.co/openai/clip-vit-large-patch14, licence MIT), "
    "or choose colour: pixels"
)


@reward("composition")
def composition(
    outputs: Sequence[Any],
    records: Sequence[Record],
    info: Sequence[dict[str, Any]],
    *,
    path: str | None = None,
    mode: Literal["strict", "shaped"] = "strict",
    threshold: Share = 0.3,
    counting_threshold: Share | None = None,
    nms: Share = 0.5,
    max_objects: Positive = 16,
    margin: Share = 0.1,
    query: str | None = None,
    colour: Literal["clip", "pixels"] = "clip",
    colour_path: str | None = None,
    device: str = "auto",
    offload: bool = False,
    batch_size: int = 32,
) -> list[float | None]:
    """strict: 1 when all conditions hold, else 0; shaped: the mean of graded parts. None without `include` in the meta.

    path: OWLv2, OWL-ViT or Grounding DINO. threshold: least score of an object; counting_threshold: that of records
    with tag `counting` (GenEval: 0.9 for its own detector; None = threshold). nms: IoU above which the less sure box of
    a class goes (GenEval: 1, none; zero-shot detectors need it). query: text with {} for the class.
    colour: clip needs colour_path (any CLIP model); pixels needs none. batch_size: crops per CLIP call.
    Raises UserError for metadata that cannot be read and for missing weights. Detached: everything.
    """
    specs = [read_spec(record.meta, f"record {record.id!r}") for record in records]
    asked = [(to_image(output), spec) for output, spec in zip(outputs, specs, strict=True) if spec is not None]
    if not asked:
        return [None] * len(specs)
    if colour == "clip" and any(clause.colour for _, spec in asked for clause in spec.include):
        need_clip(colour_path)
    limits = [
        counting_threshold if spec.tag == "counting" and counting_threshold is not None else threshold
        for _, spec in asked
    ]
    objects = find_objects(
        asked, limits, path=path, nms=nms, max_objects=max_objects, query=query, device=device, offload=offload
    )
    judge = strict_score if mode == "strict" else shaped_score
    with ExitStack() as stack:
        namer = _by_pixels if colour == "pixels" else _by_clip(stack, colour_path, device, offload, batch_size)
        found = [
            judge(one, spec, partial(namer, image), margin=margin)
            for one, (image, spec) in zip(objects, asked, strict=True)
        ]
    scores = iter(found)
    return [None if spec is None else next(scores) for spec in specs]


def need_clip(path: str | None) -> str:
    """Raises UserError when the CLIP model for colours is missing."""
    from image_gen.rewards.models import need_weights

    return need_weights(path, get=GET_CLIP, option="colour_path")


def find_objects(
    asked: Sequence[tuple[Any, Spec]],
    limits: Sequence[float],
    *,
    path: str | None,
    nms: float,
    max_objects: int,
    query: str | None,
    device: str,
    offload: bool,
) -> list[dict[str, list[Found]]]:
    """For each (picture, spec): the objects of its classes above the limit, by class and falling score."""
    from image_gen.rewards.detectors import Detector, kept
    from image_gen.rewards.models import in_use, loaded, need_weights

    weights = need_weights(path, get=GET)
    held = loaded(("detector", weights), device, lambda: Detector(weights))
    out = []
    with in_use(held, offload=offload) as detector:
        for (image, spec), least in zip(asked, limits, strict=True):
            boxes, scores = detector(image, spec.classes, query)
            out.append(kept(boxes, scores, spec.classes, threshold=least, nms=nms, max_objects=max_objects))
    return out


def _by_pixels(image: Any, name: str, objects: Sequence[Found]) -> list[str]:
    from image_gen.rewards.colours import colours_by_pixels

    return colours_by_pixels(image, objects)


def _by_clip(
    stack: ExitStack, path: str | None, device: str, offload: bool, batch_size: int
) -> Callable[[Any, str, Sequence[Found]], list[str]]:
    """A function (picture, class, objects) -> colours; its model is loaded and moved at the first colour, for the rest
    of the call."""

    @cache
    def model() -> Any:
        from image_gen.rewards.clip_towers import towers
        from image_gen.rewards.models import in_use

        return stack.enter_context(in_use(towers(need_clip(path), device=device), offload=offload))

    def name_colours(image: Any, name: str, objects: Sequence[Found]) -> list[str]:
        from image_gen.rewards.colours import colours_by_clip

        return colours_by_clip(model(), image, name, objects, batch_size=batch_size)

    return name_colours
