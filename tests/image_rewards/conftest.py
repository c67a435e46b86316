"""Tiny models with random weights, written as their real loaders expect them."""

import json

import pytest
import torch
from PIL import Image

from image_gen.rewards import models, pictures
from mmrl.data.records import Record


@pytest.fixture(autouse=True)
def fresh():
    """No model and no warning is left from another test."""
    yield
    models.forget()
    pictures._WARNED.clear()


@pytest.fixture
def records():
    def make(*prompts, meta=None):
        return [Record(str(i), "image", p, meta=meta or {}) for i, p in enumerate(prompts)]

    return make


@pytest.fixture(scope="session")
def images():
    """Three outputs of different content and shape: tensor, non-square tensor, PIL."""
    draw = torch.Generator().manual_seed(0)
    noise = torch.rand(3, 40, 40, generator=draw)
    wide = torch.linspace(0, 1, 48).expand(3, 32, 48) * torch.tensor([1.0, 0.5, 0.2])[:, None, None]
    return [noise, wide.clone(), Image.new("RGB", (36, 36), (200, 30, 60))]


def byte_tokenizer(folder):
    from tokenizers.pre_tokenizers import ByteLevel
    from transformers import CLIPTokenizer

    signs = sorted(ByteLevel.alphabet())
    words = [*signs, *(s + "</w>" for s in signs), "<|startoftext|>", "<|endoftext|>"]
    tokenizer = CLIPTokenizer(vocab={w: i for i, w in enumerate(words)}, merges=[], model_max_length=77)
    tokenizer.save_pretrained(folder)
    return tokenizer


@pytest.fixture(scope="session")
def clip_folder(tmp_path_factory):
    """A CLIPModel with its processor: vision 32 px, patch 8, width 32, two layers; embedding 16."""
    from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel, CLIPProcessor

    folder = tmp_path_factory.mktemp("clip")
    tokenizer = byte_tokenizer(folder)
    size = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 48}
    config = CLIPConfig(
        text_config={
            **size,
            "vocab_size": len(tokenizer),
            "max_position_embeddings": 77,
            "bos_token_id": tokenizer.bos_token_id,
            "eos_token_id": tokenizer.eos_token_id,
            "pad_token_id": tokenizer.pad_token_id,
        },
        vision_config={**size, "image_size": 32, "patch_size": 8},
        projection_dim=16,
    )
    torch.manual_seed(1)
    spread(CLIPModel(config)).save_pretrained(folder)
    processor = CLIPImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
    CLIPProcessor(processor, tokenizer).save_pretrained(folder)
    return str(folder)


OPEN_CLIP = {
    "embed_dim": 16,
    "vision_cfg": {"image_size": 32, "layers": 2, "width": 64, "head_width": 32, "patch_size": 8},
    "text_cfg": {"context_length": 20, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 2},
}


@pytest.fixture(scope="session")
def open_clip_folder(tmp_path_factory):
    """An open_clip CLIP in a folder: open_clip_config.json and weights."""
    from open_clip.model import CLIP

    folder = tmp_path_factory.mktemp("open_clip")
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": OPEN_CLIP, "preprocess_cfg": {}}))
    torch.manual_seed(2)
    torch.save(spread(CLIP(**OPEN_CLIP)).state_dict(), folder / "open_clip_pytorch_model.bin")
    return str(folder)


@pytest.fixture(scope="session")
def hps_file(tmp_path_factory, open_clip_folder):
    """(file as HPS is released, name of its architecture in open_clip)."""
    import open_clip

    folder = tmp_path_factory.mktemp("hps")
    (folder / "tiny-hps.json").write_text(json.dumps(OPEN_CLIP))
    open_clip.add_model_config(folder / "tiny-hps.json")
    state = torch.load(f"{open_clip_folder}/open_clip_pytorch_model.bin", weights_only=True)
    torch.save({"epoch": 1, "name": "tiny", "state_dict": state}, folder / "hps.pt")
    return str(folder / "hps.pt"), "tiny-hps"


def head_state(width, seed):
    from image_gen.rewards.mlp_head import Head

    torch.manual_seed(seed)
    return {  # values of about 1, also for bias
        name: torch.randn(w.shape) / (w.shape[1] ** 0.5 if w.ndim > 1 else 2)
        for name, w in Head(width).state_dict().items()
    }


@pytest.fixture(scope="session")
def head_file(tmp_path_factory):
    file = tmp_path_factory.mktemp("head") / "head.pth"
    torch.save(head_state(16, 3), file)
    return str(file)


def spread(model, deviation=0.2):
    """Fresh weights of some size: the usual 0.02 would make all scores nearly equal."""
    for name, weight in model.named_parameters():
        if weight.ndim > 1:
            torch.nn.init.normal_(weight, std=deviation)
        elif "bias" in name:
            torch.nn.init.normal_(weight, std=0.1)
    return model


@pytest.fixture(scope="session")
def bert_folder(tmp_path_factory):
    """A BERT tokenizer of letters."""
    from transformers import BertTokenizer

    folder = tmp_path_factory.mktemp("bert")
    letters = "abcdefghijklmnopqrstuvwxyz"
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *letters, *(f"##{c}" for c in letters)]
    BertTokenizer(vocab={w: i for i, w in enumerate(words)}).save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="session")
def image_reward_file(tmp_path_factory):
    """ImageReward.pt in small: two vision layers of width 128 (32 px, patch 8), one text layer of width 64."""
    file = tmp_path_factory.mktemp("image_reward") / "ImageReward.pt"
    torch.save(image_reward_state(), file)
    return str(file)


def image_reward_state(wide=128, narrow=64, words=60):
    """Names and shapes of the released file, from its authors' code."""
    torch.manual_seed(4)
    shapes = {
        "visual_encoder.cls_token": (1, 1, wide),
        "visual_encoder.pos_embed": (1, 17, wide),
        "visual_encoder.patch_embed.proj.weight": (wide, 3, 8, 8),
        "visual_encoder.patch_embed.proj.bias": (wide,),
        "text_encoder.embeddings.word_embeddings.weight": (words, narrow),
        "text_encoder.embeddings.position_embeddings.weight": (40, narrow),
        "vision_proj.weight": (8, wide),
        "vision_proj.bias": (8,),
        "text_proj.weight": (8, narrow),
        "text_proj.bias": (8,),
    }

    def linear(name, out, into):
        shapes[f"{name}.weight"], shapes[f"{name}.bias"] = (out, into), (out,)

    norms = ["visual_encoder.norm", "text_encoder.embeddings.LayerNorm"]
    for i in range(2):
        block = f"visual_encoder.blocks.{i}"
        norms += [f"{block}.norm1", f"{block}.norm2"]
        linear(f"{block}.attn.qkv", 3 * wide, wide)
        linear(f"{block}.attn.proj", wide, wide)
        linear(f"{block}.mlp.fc1", 2 * wide, wide)
        linear(f"{block}.mlp.fc2", wide, 2 * wide)
    layer = "text_encoder.encoder.layer.0"
    for part, source in (("attention", narrow), ("crossattention", wide)):
        linear(f"{layer}.{part}.self.query", narrow, narrow)
        linear(f"{layer}.{part}.self.key", narrow, source)
        linear(f"{layer}.{part}.self.value", narrow, source)
        linear(f"{layer}.{part}.output.dense", narrow, narrow)
        norms.append(f"{layer}.{part}.output.LayerNorm")
    linear(f"{layer}.intermediate.dense", 2 * narrow, narrow)
    linear(f"{layer}.output.dense", narrow, 2 * narrow)
    norms.append(f"{layer}.output.LayerNorm")
    for name in norms:
        width = wide if "visual" in name else narrow
        shapes[f"{name}.weight"], shapes[f"{name}.bias"] = (width,), (width,)
    state = {f"blip.{name}": 0.15 * torch.randn(shape) for name, shape in shapes.items()}
    for name in norms:
        state[f"blip.{name}.weight"] += 1.0
    state["blip.text_encoder.embeddings.position_ids"] = torch.arange(40)[None]
    state |= {f"mlp.{name}": value for name, value in head_state(narrow, 5).items()}
    return state


@pytest.fixture(scope="session")
def owl_folder(tmp_path_factory):
    """Owlv2ForObjectDetection with its processor: 32 px, patch 8: 16 boxes a picture."""
    from transformers import Owlv2Config, Owlv2ForObjectDetection, Owlv2ImageProcessor, Owlv2Processor

    folder = tmp_path_factory.mktemp("owl")
    tokenizer = byte_tokenizer(folder)
    size = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 48}
    text = {**size, "vocab_size": len(tokenizer), "max_position_embeddings": 40, "eos_token_id": tokenizer.eos_token_id}
    config = Owlv2Config(text_config=text, vision_config={**size, "image_size": 32, "patch_size": 8}, projection_dim=32)
    torch.manual_seed(6)
    spread(Owlv2ForObjectDetection(config)).save_pretrained(folder)
    tokenizer.model_max_length = 40
    Owlv2Processor(Owlv2ImageProcessor(size={"height": 32, "width": 32}), tokenizer).save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="session")
def dino_folder(tmp_path_factory, bert_folder):
    """GroundingDinoForObjectDetection with its processor: a small Swin, one layer each, 20 queries."""
    from transformers import (
        BertConfig,
        BertTokenizer,
        GroundingDinoConfig,
        GroundingDinoForObjectDetection,
        GroundingDinoImageProcessor,
        GroundingDinoProcessor,
        SwinConfig,
    )

    folder = tmp_path_factory.mktemp("dino")
    tokenizer = BertTokenizer.from_pretrained(bert_folder)
    tokenizer.add_tokens([".", "?"])
    bert = BertConfig(
        vocab_size=len(tokenizer), hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=48
    )
    swin = SwinConfig(
        image_size=32,
        patch_size=4,
        embed_dim=16,
        depths=[1, 1, 1],
        num_heads=[2, 2, 2],
        window_size=2,
        out_features=["stage2", "stage3"],
    )
    config = GroundingDinoConfig(
        backbone_config=swin,
        text_config=bert,
        d_model=32,
        encoder_layers=1,
        decoder_layers=2,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        encoder_ffn_dim=32,
        decoder_ffn_dim=32,
        num_queries=20,
        num_feature_levels=3,
        max_text_len=64,
    )
    torch.manual_seed(7)
    GroundingDinoForObjectDetection(config).save_pretrained(folder)
    processor = GroundingDinoImageProcessor(size={"shortest_edge": 64, "longest_edge": 128})
    GroundingDinoProcessor(processor, tokenizer).save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="session")
def trocr_folder(tmp_path_factory, bert_folder):
    """VisionEncoderDecoderModel of a small ViT and a small TrOCR decoder, with their preparation."""
    from transformers import (
        BertTokenizer,
        TrOCRConfig,
        TrOCRForCausalLM,
        VisionEncoderDecoderModel,
        ViTConfig,
        ViTImageProcessor,
        ViTModel,
    )

    folder = tmp_path_factory.mktemp("trocr")
    tokenizer = BertTokenizer.from_pretrained(bert_folder)
    torch.manual_seed(8)
    size = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 48}
    eye = ViTModel(ViTConfig(image_size=32, patch_size=8, **size), add_pooling_layer=False)
    config = TrOCRConfig(
        vocab_size=len(tokenizer),
        d_model=32,
        decoder_layers=1,
        decoder_attention_heads=2,
        decoder_ffn_dim=48,
        cross_attention_hidden_size=32,
        is_decoder=True,
        add_cross_attention=True,
    )
    model = spread(VisionEncoderDecoderModel(encoder=eye, decoder=TrOCRForCausalLM(config)), 0.5)
    start, end, pad = tokenizer.cls_token_id, tokenizer.sep_token_id, tokenizer.pad_token_id
    model.generation_config.update(
        decoder_start_token_id=start, eos_token_id=end, pad_token_id=pad, max_length=12, bos_token_id=start
    )
    model.config.decoder_start_token_id, model.config.pad_token_id = start, pad
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    ViTImageProcessor(size={"height": 32, "width": 32}).save_pretrained(folder)
    return str(folder)
