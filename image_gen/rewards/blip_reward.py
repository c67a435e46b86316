"""ImageReward's network in transformers' BLIP classes: ViT, text encoder that looks at the picture, affine head.

The released file names its weights as the original code does; `renamed` translates. Shapes (also those of a small model
of the same kind) are read from the file. The reward is of the text encoder's first position.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from image_gen.rewards.mlp_head import Head
from image_gen.rewards.models import fill, need_words, read_state, unreadable
from image_gen.rewards.pictures import chunks, warn_once
from mmrl.errors import UserError

if TYPE_CHECKING:
    from PIL import Image

HEAD_WIDTH = 64  # of one attention head, in ViT-L (1024 / 16) and in BERT base (768 / 12)
TEXT_LENGTH = 35
MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)

#: (pattern of the original code, name in `BlipReward`); the text encoder's names are the same in both.
_NAMES = (
    (r"^blip\.visual_encoder\.cls_token$", "vision.embeddings.class_embedding"),
    (r"^blip\.visual_encoder\.pos_embed$", "vision.embeddings.position_embedding"),
    (r"^blip\.visual_encoder\.patch_embed\.proj\.", "vision.embeddings.patch_embedding."),
    (r"^blip\.visual_encoder\.norm\.", "vision.post_layernorm."),
    (r"^blip\.visual_encoder\.blocks\.(\d+)\.norm([12])\.", r"vision.encoder.layers.\1.layer_norm\2."),
    (r"^blip\.visual_encoder\.blocks\.(\d+)\.attn\.qkv\.", r"vision.encoder.layers.\1.self_attn.qkv."),
    (r"^blip\.visual_encoder\.blocks\.(\d+)\.attn\.proj\.", r"vision.encoder.layers.\1.self_attn.projection."),
    (r"^blip\.visual_encoder\.blocks\.(\d+)\.mlp\.", r"vision.encoder.layers.\1.mlp."),
    (r"^blip\.text_encoder\.", "text."),
    (r"^mlp\.", "head."),
)
#: In the file, not part of the score: projections for contrastive training and a table of position numbers.
_UNUSED = re.compile(r"^blip\.(vision_proj|text_proj)\.|\.position_ids$")


def renamed(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The released names as `BlipReward` has them, without what the score does not use."""
    out = {}
    for name, value in state.items():
        if _UNUSED.search(name):
            continue
        for pattern, ours in _NAMES:
            found, hits = re.subn(pattern, ours, name)
            if hits:
                out[found] = value
                break
        else:
            out[name] = value  # unknown: refused when the weights are filled in
    return out


class BlipReward(nn.Module):
    """Built to the shapes of `state` (renamed)."""

    def __init__(self, state: dict[str, Tensor], tokenizer: Any) -> None:
        super().__init__()
        from transformers.models.blip.configuration_blip import BlipTextConfig, BlipVisionConfig
        from transformers.models.blip.modeling_blip import BlipVisionModel
        from transformers.models.blip.modeling_blip_text import BlipTextModel

        width, _, patch, _ = state["vision.embeddings.patch_embedding.weight"].shape
        side = round((state["vision.embeddings.position_embedding"].shape[1] - 1) ** 0.5)
        self.size, self.tokenizer = side * patch, tokenizer
        words, text_width = state["text.embeddings.word_embeddings.weight"].shape
        self.vision = BlipVisionModel(
            BlipVisionConfig(
                hidden_size=width,
                intermediate_size=state["vision.encoder.layers.0.mlp.fc1.weight"].shape[0],
                num_hidden_layers=_layers(state, "vision.encoder.layers"),
                num_attention_heads=width // HEAD_WIDTH,
                image_size=self.size,
                patch_size=patch,
                layer_norm_eps=1e-6,
                attn_implementation="eager",
            )
        )
        self.text = BlipTextModel(
            BlipTextConfig(
                vocab_size=words,
                hidden_size=text_width,
                encoder_hidden_size=width,
                intermediate_size=state["text.encoder.layer.0.intermediate.dense.weight"].shape[0],
                num_hidden_layers=_layers(state, "text.encoder.layer"),
                num_attention_heads=text_width // HEAD_WIDTH,
                max_position_embeddings=state["text.embeddings.position_embeddings.weight"].shape[0],
                layer_norm_eps=1e-12,
                hidden_act="gelu",
                is_decoder=True,  # builds the layers that look at the picture; the mask stays bidirectional
                pad_token_id=0,
                bos_token_id=None,
                sep_token_id=None,
                attn_implementation="eager",
            ),
            add_pooling_layer=False,
        )
        self.head = Head(text_width)

    @property
    def device(self) -> torch.device:
        return next(self.parameters()).device

    def pixels(self, images: Sequence[Image.Image]) -> Tensor:
        """float32 [N, 3, size, size]: shorter side resized (bicubic), centre cropped, CLIP's mean and deviation."""
        from torchvision.transforms import CenterCrop, Compose, InterpolationMode, Normalize, Resize, ToTensor

        steps = Compose(
            [
                Resize(self.size, interpolation=InterpolationMode.BICUBIC),
                CenterCrop(self.size),
                ToTensor(),
                Normalize(MEAN, STD),
            ]
        )
        return torch.stack([steps(image) for image in images]).to(self.device)

    def tokens(self, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Token ids and mask, [N, 35]; longer texts are cut, which is told once."""
        long = self.tokenizer(list(texts), truncation=True, max_length=TEXT_LENGTH + 1)["input_ids"]
        cut = sum(len(row) > TEXT_LENGTH for row in long)
        if cut:
            warn_once(
                "overlong image_reward",
                f"reward 'image_reward': {cut} prompts are longer than {TEXT_LENGTH} tokens and are cut for scoring",
            )
        found = self.tokenizer(
            list(texts), padding="max_length", truncation=True, max_length=TEXT_LENGTH, return_tensors="pt"
        )
        return found["input_ids"].to(self.device), found["attention_mask"].to(self.device)

    def forward(self, images: Sequence[Image.Image], texts: Sequence[str]) -> Tensor:
        """Head output of each pair, float32 [N]."""
        seen = self.vision(pixel_values=self.pixels(images)).last_hidden_state
        ids, mask = self.tokens(texts)
        read = self.text(
            input_ids=ids,
            attention_mask=mask,
            encoder_hidden_states=seen,
            encoder_attention_mask=torch.ones(seen.shape[:-1], dtype=torch.long, device=seen.device),
            is_decoder=False,
        )
        value: Tensor = self.head(read.last_hidden_state[:, 0, :].float())
        return value


def _layers(state: dict[str, Tensor], prefix: str) -> int:
    depth = len(prefix.split("."))
    return 1 + max(int(name.split(".")[depth]) for name in state if name.startswith(f"{prefix}."))


def load_blip_reward(file: str, tokenizer: str) -> BlipReward:
    """The released .pt file (opened with weights_only) and a BERT tokenizer. Raises UserError when either is wrong."""
    from transformers import AutoTokenizer

    state = renamed(read_state(file))
    try:
        words = AutoTokenizer.from_pretrained(tokenizer)
    except (OSError, ValueError) as error:
        raise unreadable(tokenizer, error) from None
    try:
        model = BlipReward({name: value.float() for name, value in state.items()}, words)
    except (KeyError, ValueError) as error:
        raise UserError(f"{file} lacks the weight {error}; is it ImageReward.pt?") from None
    need_words(words, tokenizer, most=model.text.config.vocab_size)
    fill(model, state, path=file)
    return model.float()


def blip_values(
    model: BlipReward, images: Sequence[Image.Image], texts: Sequence[str], *, batch_size: int
) -> list[float]:
    """Head output for each picture with its prompt."""
    values: list[float] = []
    for at in chunks(len(images), batch_size):
        values += model(images[at], texts[at]).cpu().tolist()
    return values
