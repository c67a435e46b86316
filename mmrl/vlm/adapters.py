"""What the three Qwen-VL shapes have in common, seen from outside: where the parts are, positions, forbidden tokens.

Axes: B prompts, P prompt positions, V vocabulary.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from mmrl.errors import UserError

#: `model_type` of the checkpoints that this family takes.
SUPPORTED = ("qwen2_vl", "qwen2_5_vl", "qwen3_vl")

#: Tokens of the tokenizer that only ever stand for a picture or a clip.
_PLACEHOLDERS = ("<|image_pad|>", "<|video_pad|>", "<|vision_pad|>", "<|vision_start|>", "<|vision_end|>")


class Shape:
    """The parts of one loaded `*ForConditionalGeneration` model, below a peft wrapper if there is one."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        peft: Any = model
        whole: Any = peft.get_base_model() if hasattr(model, "get_base_model") else model
        self.whole = whole
        self.inner: Any = whole.model  # vision tower + language model, gives hidden states
        self.head: Any = whole.get_output_embeddings()
        self.config: Any = whole.config
        layers = getattr(self.config.get_text_config(), "layer_types", None) or []
        if "sliding_attention" in layers:
            raise UserError(
                "model.path: this checkpoint uses sliding-window attention, which the sampler does not support; "
                "set use_sliding_window to false in its config.json or take another checkpoint"
            )

    @property
    def vision(self) -> nn.Module:
        return self.inner.visual  # type: ignore[no-any-return]

    @property
    def language(self) -> nn.Module:
        return self.inner.language_model  # type: ignore[no-any-return]

    @property
    def projectors(self) -> list[nn.Module]:
        """The modules that carry picture features into the width of the language model."""
        found = [self.inner.visual.merger]
        deep = getattr(self.inner.visual, "deepstack_merger_list", None)
        return found + ([deep] if deep is not None else [])

    @property
    def attention(self) -> str:
        return str(self.config.get_text_config()._attn_implementation)

    @property
    def device(self) -> torch.device:
        return self.head.weight.device  # type: ignore[no-any-return]

    def picture_sizes(self, grid_thw: torch.Tensor) -> list[tuple[int, int]]:
        """(width, height) in pixels that the vision tower sees; `grid_thw` [pictures, 3] counts patches."""
        patch = self.config.vision_config.patch_size
        high, wide = (patch, patch) if isinstance(patch, int) else patch
        return [(int(w) * wide, int(h) * high) for _, h, w in grid_thw.tolist()]

    def token_types(self, ids_bp: torch.Tensor) -> torch.Tensor:
        """0 text, 1 picture, 2 video, [B, P]: what M-RoPE calls `mm_token_type_ids`."""
        image = ids_bp == self.config.image_token_id
        video = ids_bp == self.config.video_token_id
        return image.int() + 2 * video.int()

    def positions(self, ids_p: torch.Tensor, media: dict[str, torch.Tensor]) -> torch.Tensor:
        """M-RoPE position ids of one prompt, int64 [3, P], computed by the model's own rule."""
        ids_bp = ids_p[None]
        grids = {k: media[k] for k in ("image_grid_thw", "video_grid_thw", "second_per_grid_ts") if k in media}
        position, _ = self.inner.get_rope_index(ids_bp, mm_token_type_ids=self.token_types(ids_bp), **grids)
        return position[:, 0]  # type: ignore[no-any-return]

    def hidden(
        self,
        ids: torch.Tensor,
        *,
        mask: torch.Tensor | None,
        positions: torch.Tensor,
        media: dict[str, torch.Tensor] | None = None,
        cache: Any = None,
    ) -> torch.Tensor:
        """Last hidden states [B, L, d] of ids [B, L]; `positions` [3, B, L]; `mask` 2-D padding or 4-D attention."""
        out = self.inner(
            input_ids=ids,
            attention_mask=mask,
            position_ids=positions,
            past_key_values=cache,
            use_cache=cache is not None,
            **(media or {}),
        )
        return out.last_hidden_state  # type: ignore[no-any-return]

    def suppressed(self, tokenizer: Any) -> set[int]:
        """Ids that are never sampled: picture and clip tokens, rows of the head that the tokenizer cannot write."""
        named = ("image_token_id", "video_token_id", "vision_start_token_id", "vision_end_token_id")
        ids = {int(getattr(self.config, n)) for n in named if getattr(self.config, n, None) is not None}
        vocabulary = tokenizer.get_vocab()
        ids |= {vocabulary[t] for t in _PLACEHOLDERS if t in vocabulary}
        rows = self.head.weight.shape[0]
        ids |= set(range(rows)) - set(vocabulary.values())
        if tokenizer.pad_token_id is not None:
            ids.add(int(tokenizer.pad_token_id))
        return {i for i in ids if 0 <= i < rows} - self.ends(tokenizer)

    def ends(self, tokenizer: Any) -> set[int]:
        """Ids that end a completion: of the tokenizer and of the generation settings (may be several)."""
        generation = getattr(self.whole, "generation_config", None)
        found: list[Any] = [tokenizer.eos_token_id, getattr(generation, "eos_token_id", None)]
        ids: set[int] = set()
        for value in found:
            ids |= set(value) if isinstance(value, (list, tuple)) else {value} if value is not None else set()
        if not ids:
            raise UserError("model.path: neither the tokenizer nor generation_config.json names an end token")
        return {int(i) for i in ids}
