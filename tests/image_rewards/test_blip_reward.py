"""ImageReward: the released names, and the whole network against a plain computation on them."""

import pytest
import torch
from torch.nn.functional import conv2d, gelu, layer_norm, linear

from image_gen.rewards.blip_reward import BlipReward, load_blip_reward, renamed
from image_gen.rewards.image_reward import MEAN, STD, image_reward
from image_gen.rewards.pictures import to_image
from mmrl.errors import UserError


def attend(query, key, value, heads, mask=None):
    """[L, D] each; softmax(q k / sqrt(d)) v by heads; mask: 1 = may be looked at."""
    parts = []
    for q, k, v in zip(query.chunk(heads, -1), key.chunk(heads, -1), value.chunk(heads, -1)):
        scores = q @ k.T / q.shape[-1] ** 0.5
        if mask is not None:
            scores = scores.masked_fill(mask[None] == 0, float("-inf"))
        parts.append(scores.softmax(-1) @ v)
    return torch.cat(parts, -1)


class Plain:
    """BLIP's picture and text networks as its authors wrote them, for one pair, float64, on the released names."""

    def __init__(self, state):
        self.w = {name: value.double() if value.is_floating_point() else value for name, value in state.items()}

    def dense(self, x, name):
        return linear(x, self.w[f"{name}.weight"], self.w[f"{name}.bias"])

    def norm(self, x, name, eps):
        return layer_norm(x, x.shape[-1:], self.w[f"{name}.weight"], self.w[f"{name}.bias"], eps)

    def see(self, pixels):
        eye = "blip.visual_encoder"
        x = conv2d(pixels, self.w[f"{eye}.patch_embed.proj.weight"], self.w[f"{eye}.patch_embed.proj.bias"], stride=8)
        x = torch.cat([self.w[f"{eye}.cls_token"][0], x[0].flatten(1).T]) + self.w[f"{eye}.pos_embed"][0]
        for i in range(2):
            block = f"{eye}.blocks.{i}"
            q, k, v = self.dense(self.norm(x, f"{block}.norm1", 1e-6), f"{block}.attn.qkv").chunk(3, -1)
            x = x + self.dense(attend(q, k, v, 2), f"{block}.attn.proj")
            y = gelu(self.dense(self.norm(x, f"{block}.norm2", 1e-6), f"{block}.mlp.fc1"))
            x = x + self.dense(y, f"{block}.mlp.fc2")
        return self.norm(x, f"{eye}.norm", 1e-6)

    def read(self, ids, mask, seen):
        text = "blip.text_encoder"
        x = self.w[f"{text}.embeddings.word_embeddings.weight"][ids]
        x = x + self.w[f"{text}.embeddings.position_embeddings.weight"][: len(ids)]
        x = self.norm(x, f"{text}.embeddings.LayerNorm", 1e-12)
        layer = f"{text}.encoder.layer.0"
        for part, source, seeable in (("attention", None, mask), ("crossattention", seen, None)):
            where = x if source is None else source
            name = f"{layer}.{part}"
            q, k, v = (self.dense(at, f"{name}.self.{n}") for at, n in ((x, "query"), (where, "key"), (where, "value")))
            y = self.dense(attend(q, k, v, 1, seeable), f"{name}.output.dense")
            x = self.norm(x + y, f"{name}.output.LayerNorm", 1e-12)
        y = self.dense(gelu(self.dense(x, f"{layer}.intermediate.dense")), f"{layer}.output.dense")
        x = self.norm(x + y, f"{layer}.output.LayerNorm", 1e-12)
        value = x[0]
        for i in (0, 2, 4, 6, 7):
            value = self.dense(value, f"mlp.layers.{i}")
        return value.item()


def test_the_reward_equals_a_plain_computation(records, images, image_reward_file, bert_folder):
    from transformers import BertTokenizer

    prompts = ("a red cat", "snow on a very long road by the sea and on", "x")
    found = image_reward(
        images, records(*prompts), [{}] * 3, path=image_reward_file, tokenizer=bert_folder, device="cpu"
    )
    plain = Plain(torch.load(image_reward_file, weights_only=True))
    model, words = load_blip_reward(image_reward_file, bert_folder), BertTokenizer.from_pretrained(bert_folder)
    for value, image, prompt in zip(found, images, prompts):
        pixels = model.pixels([to_image(image)]).double()
        assert pixels.shape == (1, 3, 32, 32)
        said = words(prompt, padding="max_length", truncation=True, max_length=35)
        head = plain.read(torch.tensor(said["input_ids"]), torch.tensor(said["attention_mask"]), plain.see(pixels))
        assert value == pytest.approx((head - MEAN) / STD, abs=2e-5)


def test_pixels_are_resized_cropped_and_standardised(image_reward_file, bert_folder):
    from PIL import Image

    wide = Image.new("RGB", (96, 32), (255, 0, 0))
    wide.paste((0, 255, 0), (32, 0, 64, 32))  # the middle third survives the crop
    x = load_blip_reward(image_reward_file, bert_folder).pixels([wide])
    assert x[0, :, 16, 16].tolist() == pytest.approx(
        [-0.48145466 / 0.26862954, (1 - 0.4578275) / 0.26130258, -0.40821073 / 0.27577711], abs=1e-5
    )
    assert x.shape == (1, 3, 32, 32) and float(x[0, 1].min()) > 2.0


def test_released_names_are_translated():
    names = {
        "blip.visual_encoder.cls_token": "vision.embeddings.class_embedding",
        "blip.visual_encoder.blocks.11.attn.proj.bias": "vision.encoder.layers.11.self_attn.projection.bias",
        "blip.visual_encoder.blocks.3.norm2.weight": "vision.encoder.layers.3.layer_norm2.weight",
        "blip.visual_encoder.norm.weight": "vision.post_layernorm.weight",
        "blip.text_encoder.encoder.layer.2.crossattention.self.key.weight": (
            "text.encoder.layer.2.crossattention.self.key.weight"
        ),
        "mlp.layers.7.bias": "head.layers.7.bias",
        "strange": "strange",
    }
    unused = ("blip.vision_proj.weight", "blip.text_proj.bias", "blip.text_encoder.embeddings.position_ids")
    state = {name: torch.zeros(1) for name in (*names, *unused)}
    assert list(renamed(state)) == list(names.values())


def test_weights_left_over_are_refused(tmp_path, image_reward_file, bert_folder):
    state = torch.load(image_reward_file, weights_only=True)
    torch.save(state | {"blip.itm_head.weight": torch.zeros(2)}, tmp_path / "other.pt")
    with pytest.raises(UserError, match="itm_head"):
        load_blip_reward(str(tmp_path / "other.pt"), bert_folder)


def test_the_released_size_is_read_from_shapes():
    """ViT-L at 224 and BERT base, without making them: names and shapes as in the authors' code."""
    with torch.device("meta"):
        state = {
            "vision.embeddings.patch_embedding.weight": torch.empty(1024, 3, 16, 16),
            "vision.embeddings.position_embedding": torch.empty(1, 197, 1024),
            "vision.encoder.layers.0.mlp.fc1.weight": torch.empty(4096, 1024),
            "vision.encoder.layers.23.mlp.fc1.weight": torch.empty(4096, 1024),
            "text.embeddings.word_embeddings.weight": torch.empty(30524, 768),
            "text.embeddings.position_embeddings.weight": torch.empty(512, 768),
            "text.encoder.layer.0.intermediate.dense.weight": torch.empty(3072, 768),
            "text.encoder.layer.11.intermediate.dense.weight": torch.empty(3072, 768),
        }
        model = BlipReward(state, None)
    eye, text = model.vision.config, model.text.config
    assert (model.size, eye.num_hidden_layers, eye.num_attention_heads, eye.hidden_act) == (224, 24, 16, "gelu")
    assert (text.num_hidden_layers, text.num_attention_heads, text.encoder_hidden_size) == (12, 12, 1024)
