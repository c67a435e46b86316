"""Our forward is that of transformers' own class of the shape, its causal mask replaced by ours.

Those classes compute norms and rotations in float32 always; to compare in float64 both are replaced by the formulas.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, Qwen2Config, Qwen2ForCausalLM, Qwen3Config, Qwen3ForCausalLM

from dlm import attention
from dlm.models import tiny
from dlm.models.layers import Transformer
from dlm.models.loading import layout_named, released_tensors

CLASSES = {
    "llada": (LlamaConfig, LlamaForCausalLM),
    "sdar": (Qwen3Config, Qwen3ForCausalLM),
    "dream": (Qwen2Config, Qwen2ForCausalLM),
    "a2d": (Qwen3Config, Qwen3ForCausalLM),
}
#: LLaDA's names in Llama's words, written out by hand so that the weight map is not checked with itself.
LLAMA = {
    "transformer.wte.": "embed_tokens.",
    "transformer.ln_f.": "norm.",
    "transformer.blocks.": "layers.",
    ".attn_norm.": ".input_layernorm.",
    ".ff_norm.": ".post_attention_layernorm.",
    ".q_proj.": ".self_attn.q_proj.",
    ".k_proj.": ".self_attn.k_proj.",
    ".v_proj.": ".self_attn.v_proj.",
    ".attn_out.": ".self_attn.o_proj.",
    ".ff_proj.": ".mlp.gate_proj.",
    ".up_proj.": ".mlp.up_proj.",
    ".ff_out.": ".mlp.down_proj.",
}


def reference(model: Transformer) -> Any:
    """transformers' class with the weights of the release."""
    shape = model.shape
    config_class, model_class = CLASSES[model.traits.name]
    config = config_class(
        vocab_size=shape.vocabulary,
        hidden_size=shape.width,
        intermediate_size=shape.inner,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.kv_heads,
        head_dim=shape.head,
        rms_norm_eps=shape.eps,
        rope_parameters={"rope_type": "default", "rope_theta": shape.theta},
        tie_word_embeddings=False,
        attn_implementation="sdpa",
    )
    weights = {}
    for name, value in released_tensors(model).items():
        if model.traits.name == "llada":
            name = "lm_head.weight" if name == "model.transformer.ff_out.weight" else name
            for there, here in LLAMA.items():
                name = name.replace(there, here, 1)
        weights[name] = value
    other = model_class(config).to(model.embed.weight.dtype).eval()
    other.load_state_dict(weights)
    return other


@pytest.fixture
def exact(monkeypatch: pytest.MonkeyPatch) -> None:
    """The classes of transformers in the precision of their inputs."""
    from transformers.models.llama import modeling_llama as llama
    from transformers.models.qwen2 import modeling_qwen2 as qwen2
    from transformers.models.qwen3 import modeling_qwen3 as qwen3

    def norm(self: Any, x: Tensor) -> Tensor:
        return self.weight * (x / (x.pow(2).mean(-1, keepdim=True) + self.variance_epsilon).sqrt())

    def rope(self: Any, x: Tensor, position_ids: Tensor) -> tuple[Tensor, Tensor]:
        theta, size = self.config.rope_parameters["rope_theta"], self.config.head_dim
        rates = torch.tensor([theta ** (-2 * i / size) for i in range(size // 2)], dtype=torch.float64)
        angles = position_ids[..., None].double() * torch.cat([rates, rates])
        return angles.cos(), angles.sin()

    for module, name in ((llama, "Llama"), (qwen2, "Qwen2"), (qwen3, "Qwen3")):
        monkeypatch.setattr(getattr(module, f"{name}RMSNorm"), "forward", norm)
        monkeypatch.setattr(getattr(module, f"{name}RotaryEmbedding"), "forward", rope)


def batch() -> tuple[Tensor, Tensor, Tensor]:
    """ids, valid, positions of 3 rows of 11 columns with 0, 2 and 5 pads on the left."""
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(0, 250, (3, 11), generator=generator)
    pads = torch.tensor([0, 2, 5])[:, None]
    columns = torch.arange(11)[None]
    return ids, columns >= pads, (columns - pads).clamp(min=0)


def masks(valid: Tensor, positions: Tensor) -> dict[str, Tensor]:
    whole = attention.full(valid)
    assert whole is not None
    return {"full": whole, "blocks": attention.block_causal(positions, valid, 4)}


def logits(model: Transformer, ids: Tensor, positions: Tensor, attend: Tensor | None) -> Tensor:
    """Our logits, a shift taken back."""
    hidden = model.hidden(ids, positions_nl=positions, attend_nqk=attend)
    return model.head(hidden)


def expected(model: Transformer, ids: Tensor, positions: Tensor, attend: Tensor) -> Tensor:
    bias = torch.zeros_like(attend, dtype=model.embed.weight.dtype)
    bias = bias.masked_fill(~attend, torch.finfo(bias.dtype).min)[:, None]
    out = reference(model)(input_ids=ids, position_ids=positions, attention_mask=bias, use_cache=False).logits
    if not model.traits.logit_shift:
        return out
    shifted = torch.cat([out[:, :1], out[:, :-1]], dim=1)
    return torch.where((positions == 0)[..., None], out, shifted)


@pytest.mark.parametrize("mask", ["full", "blocks"])
@pytest.mark.parametrize("kind", tiny.KINDS)
@torch.no_grad()
def test_logits_in_float64(kind: str, mask: str, load: Callable[..., Transformer], exact: None) -> None:
    model = load(kind)
    ids, valid, positions = batch()
    attend = masks(valid, positions)[mask]
    ours, theirs = logits(model, ids, positions, attend), expected(model, ids, positions, attend)
    assert theirs.std() > 0.3  # the weights say something
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-9)


@pytest.mark.parametrize("kind", tiny.KINDS)
@torch.no_grad()
def test_logits_in_float32_of_the_untouched_classes(kind: str, load: Callable[..., Transformer]) -> None:
    model = load(kind, torch.float32)
    ids, valid, positions = batch()
    attend = masks(valid, positions)["full"]
    ours, theirs = logits(model, ids, positions, attend), expected(model, ids, positions, attend)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=2e-5)


def test_the_stored_names_cover_the_reference(load: Callable[..., Transformer]) -> None:
    """Every parameter of transformers' class has its tensor (load_state_dict above is strict); here: both ways."""
    for kind in tiny.KINDS:
        model = load(kind)
        layout = layout_named(kind)
        own = [n for n, _ in model.named_parameters()]
        stored = [layout.released(n) for n in own]
        assert len(set(stored)) == len(own)
        assert [layout.ours(n) for n in stored] == own
        modules = [n.rsplit(".", 1)[0] for n in own]
        assert [layout.ours(layout.released(n)) for n in modules] == modules


@pytest.mark.parametrize(
    ("ours", "stored"),
    [
        ("model.embed_tokens.weight", "model.transformer.wte.weight"),
        ("model.norm.weight", "model.transformer.ln_f.weight"),
        ("lm_head.weight", "model.transformer.ff_out.weight"),
        ("model.layers.31.mlp.down_proj.weight", "model.transformer.blocks.31.ff_out.weight"),
        ("model.layers.0.mlp.gate_proj.weight", "model.transformer.blocks.0.ff_proj.weight"),
        ("model.layers.7.self_attn.o_proj.weight", "model.transformer.blocks.7.attn_out.weight"),
        ("model.layers.7.self_attn.q_proj.bias", "model.transformer.blocks.7.q_proj.bias"),
    ],
)
def test_names_of_llada(ours: str, stored: str) -> None:
    layout = layout_named("llada")
    assert layout.released(ours) == stored and layout.ours(stored) == ours


@pytest.mark.parametrize("name", ["model.transformer.wpe.weight", "model.transformer.blocks.0.att_proj.weight", "x"])
def test_names_that_llada_does_not_have(name: str) -> None:
    assert layout_named("llada").ours(name) is None
