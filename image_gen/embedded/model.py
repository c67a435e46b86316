"""The embedded image model: a small SD3 transformer on grey pixels, with its own word encoder. No VAE.

Latents are the pixels themselves, [1, H, W], -1 paper to 1 ink. One cell (8 x 8) or the wide canvas (8 x 24).
`scripts/make_flow_start.py` makes the weights; docs/embedded_flow.md says how.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from image_gen.embedded.canvas import CELLS, SIDE
from image_gen.embedded.words import LONGEST, VOCABULARY, WIDTH, WordEncoder, split
from image_gen.flow.sigmas import sigma_table
from image_gen.pipelines import lora
from image_gen.pipelines.base import Batch, Condition, ImageModel, levels
from image_gen.pipelines.sd3 import SD3
from mmrl import json_io
from mmrl.errors import UserError

#: The two shipped starts: the second was trained for longer, since composition is learned later than single digits.
NAMES = {"embedded:flow": "flow", "embedded:compose": "compose"}
NAME = "embedded:flow"
#: In model_index.json, where diffusers has the name of a pipeline.
CLASS = "EmbeddedDigits"
FOLDER = Path(__file__).with_name("weights")
SIZES = ((SIDE, SIDE), (SIDE, SIDE * CELLS))
#: Of the table of noise levels; latents this small need no more.
SHIFT = 1.0
#: The scheduler's units: what diffusers calls a timestep is 1000 sigma.
TRAIN_STEPS = 1000


def make_transformer() -> Any:
    """Random weights of the shipped shape, by diffusers' own class."""
    from diffusers import SD3Transformer2DModel

    return SD3Transformer2DModel(
        sample_size=SIDE * CELLS,
        patch_size=2,
        in_channels=1,
        out_channels=1,
        num_layers=4,
        attention_head_dim=16,
        num_attention_heads=4,
        joint_attention_dim=WIDTH,
        caption_projection_dim=64,
        pooled_projection_dim=WIDTH,
        pos_embed_max_size=SIDE * CELLS // 2,
    )


class EmbeddedDigits(ImageModel):
    """Prompts of `image_gen.embedded.prompts`; guidance mixes with the empty prompt, which was trained as well."""

    lora_targets = SD3.lora_targets

    def __init__(self, transformer: Any, words: WordEncoder) -> None:
        self.transformer: Any = transformer
        self.words = words.requires_grad_(False)
        self._freed = False

    # prompts

    @torch.no_grad()
    def encode(self, prompts: Sequence[str]) -> list[Condition]:
        """The arguments of the transformer's forward. Raises UserError for an unknown word."""
        if self._freed:
            raise RuntimeError("the word encoder has been freed; encode every prompt before free_encoders()")
        if not prompts:
            return []
        told_n, pooled_n = self.words(self.words.ids(prompts))
        dtype = self.transformer.dtype
        return [
            {"encoder_hidden_states": told.to("cpu", dtype), "pooled_projections": pooled.to("cpu", dtype)}
            for told, pooled in zip(told_n, pooled_n, strict=True)
        ]

    def overlong(self, prompts: Sequence[str]) -> list[int]:
        return [max(0, len(split(p)) - LONGEST) for p in prompts]

    def free_encoders(self) -> None:
        self._freed = True  # its few kilobytes stay: `save` writes them

    def collate(self, conditions: Sequence[Condition]) -> Batch:
        return {key: torch.stack([c[key] for c in conditions]).to(self.transformer.device) for key in conditions[0]}

    # sampling

    def check_size(self, height: int, width: int) -> None:
        if (height, width) not in SIZES:
            known = " or ".join(f"{h}x{w}" for h, w in SIZES)
            raise UserError(
                f"picture size {height}x{width}: the embedded model draws {known}; set inputs.height and inputs.width "
                "(generate: --height, --width)"
            )

    def latent_shape(self, height: int, width: int) -> tuple[int, ...]:
        self.check_size(height, width)
        return 1, height, width

    def sigmas(self, steps: int, height: int, width: int) -> Tensor:
        return sigma_table(steps=steps, shift=SHIFT, train_steps=TRAIN_STEPS)

    def velocity(
        self,
        x_n: Tensor,
        sigma: float | Tensor,
        batch: Mapping[str, Tensor],
        *,
        height: int,
        width: int,
        scale: float | None,
    ) -> Tensor:
        if scale is not None:
            raise ValueError("guidance classifier_free: scale must be None")
        timestep_n = TRAIN_STEPS * levels(sigma, x_n.float())
        answer: Tensor = self.transformer(
            hidden_states=x_n.to(self.transformer.dtype), timestep=timestep_n, **batch, return_dict=False
        )[0]
        return answer.to(x_n.dtype)

    def from_picture(self, picture: Any, *, height: int, width: int) -> Tensor:
        """The grey of its channels. Raises UserError for another size."""
        from torchvision.transforms.functional import to_tensor

        from mmrl.data.images import open_image

        self.check_size(height, width)
        pixels: Tensor = picture if isinstance(picture, Tensor) else to_tensor(open_image(picture))
        if pixels.shape != (3, height, width):
            raise UserError(
                f"picture: the size is {list(pixels.shape)}, the model is trained at {height}x{width}; resize it"
            )
        return 2 * pixels.float().mean(0, keepdim=True).cpu() - 1

    @torch.no_grad()
    def decode(self, x_n: Tensor, *, height: int, width: int) -> Tensor:
        """NaN becomes 0; count non-finite latents before."""
        grey_n = (x_n.float() / 2 + 0.5).clamp(0, 1).nan_to_num(nan=0.0)
        return grey_n.expand(-1, 3, -1, -1).contiguous()

    # weights

    def save_lora(self, path: Path) -> None:
        """Keys and metadata of a LoRA for SD3."""
        from diffusers import StableDiffusion3Pipeline

        lora.save(self.transformer, StableDiffusion3Pipeline, path)

    def load_lora(self, path: Path) -> None:
        lora.load(self.transformer, _pipeline_around(self.transformer), path)

    def save(self, path: Path, *, max_shard_size: str = "10GB") -> None:
        """`transformer/` by diffusers' `save_pretrained`, `words/` beside it. Refused with a LoRA attached."""
        if lora.attached(self.transformer):
            raise ValueError("a LoRA is attached: save_lora stores it alone, lora.merge makes it part of the weights")
        path.mkdir(parents=True, exist_ok=True)
        self.transformer.save_pretrained(path / "transformer", max_shard_size=max_shard_size)
        (path / "words").mkdir(exist_ok=True)
        state = {name: value.detach().cpu().contiguous() for name, value in self.words.state_dict().items()}
        save_file(state, path / "words" / "words.safetensors")
        _write(path / "words" / "vocabulary.json", {"words": list(VOCABULARY)})
        _write(path / "model_index.json", {"_class_name": CLASS})


def load(name: str | Path = NAME, *, dtype: torch.dtype, device: torch.device) -> EmbeddedDigits:
    """A name of NAMES, or a folder that `EmbeddedDigits.save` wrote; eval mode, on its device.

    dtype: of the transformer; the words stay float32. Raises UserError: no such folder, damaged files, weights of
    another shape or vocabulary.
    """
    from diffusers import SD3Transformer2DModel

    folder = FOLDER / NAMES[str(name)] if str(name) in NAMES else Path(name).expanduser()
    index, vocabulary = folder / "model_index.json", folder / "words" / "vocabulary.json"
    remedy = "take a whole copy of the model"
    if not index.is_file() or json_io.read_object(index, remedy=remedy).get("_class_name") != CLASS:
        raise UserError(
            f"model.path: {str(name)!r} is no folder of an embedded model; give {NAME} or a folder it was saved in"
        )
    if json_io.read_object(vocabulary, remedy=remedy).get("words") != list(VOCABULARY):
        raise UserError(f"{vocabulary}: another vocabulary than this version's; make the model anew")
    words = WordEncoder()
    try:
        words.load_state_dict(load_file(folder / "words" / "words.safetensors"))
        transformer, report = SD3Transformer2DModel.from_pretrained(
            str(folder / "transformer"),
            dtype=dtype,
            use_safetensors=True,
            local_files_only=True,
            output_loading_info=True,
        )
    except Exception as error:  # libraries raise anything over damaged files
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
        raise UserError(f"model.path: cannot load {str(name)!r}: {reason}; {remedy}") from error
    if report["missing_keys"] or report["unexpected_keys"] or report["mismatched_keys"]:
        raise UserError(
            f"model.path: the weights in {str(folder / 'transformer')!r} do not fit its config.json; {remedy}"
        )
    return EmbeddedDigits(transformer.to(device).eval(), words.to(device).eval())


def load_compose(*, dtype: torch.dtype, device: torch.device) -> EmbeddedDigits:
    """`embedded:compose`."""
    return load("embedded:compose", dtype=dtype, device=device)


def _pipeline_around(transformer: Any) -> Any:
    """An SD3 pipeline of a transformer alone: it knows how to read a LoRA."""
    from diffusers import FlowMatchEulerDiscreteScheduler, StableDiffusion3Pipeline

    missing = ("vae", "text_encoder", "tokenizer", "text_encoder_2", "tokenizer_2", "text_encoder_3", "tokenizer_3")
    return StableDiffusion3Pipeline(
        transformer=transformer, scheduler=FlowMatchEulerDiscreteScheduler(), **dict.fromkeys(missing)
    )


def _write(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=1) + "\n", encoding="utf-8")
