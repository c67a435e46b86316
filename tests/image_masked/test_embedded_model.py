"""The embedded masked model: the interface of every token model, its files, and the level of the shipped weights."""

from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import Tensor

from image_gen.embedded.masked_model import EmbeddedTokens, load, make_transformer
from image_gen.embedded.prompts import builtin
from image_gen.embedded.words import WordEncoder
from image_gen.masked.models.compact import CompactTokens, _patches, _tokens
from image_gen.pipelines import lora
from mmrl.data.digits import load_digits
from mmrl.errors import UserError

CPU = torch.device("cpu")
SIZE = {"height": 8, "width": 8}
PROMPTS = ["a seven", "an eight", ""]
MASK = 17


@pytest.fixture(scope="module")
def shipped() -> EmbeddedTokens:
    return load(dtype=torch.float32, device=CPU)


def canvases(rows: int = 3) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    ids_nl = torch.randint(17, (rows, 64), generator=generator)
    return ids_nl.masked_fill(torch.rand(rows, 64, generator=generator) < 0.6, MASK)


def logits(model: EmbeddedTokens, ids_nl: Tensor | None = None) -> Tensor:
    with torch.no_grad():
        batch = model.collate(model.encode(PROMPTS))
        return model.predict(canvases() if ids_nl is None else ids_nl, batch, **SIZE).logits_nlk


def test_shapes_and_slicing(shipped: EmbeddedTokens) -> None:
    """Ids beyond the codebook never come out, and the head really has them."""
    assert (shipped.codebook, shipped.mask_id, shipped.guidance) == (17, MASK, 1.0)
    assert shipped.grid(8, 8) == (8, 8) and shipped.scheduler.config.mask_token_id == MASK
    assert logits(shipped).shape == (3, 64, 17) and shipped.transformer.head.out_features == 20
    with torch.no_grad():
        batch = shipped.collate(shipped.encode(PROMPTS))
        found = shipped.predict(canvases(), batch, **SIZE, features=True)
    assert found.features_nld is not None and found.features_nld.shape == (3, 64, shipped.feature_width)
    torch.testing.assert_close(shipped.transformer.head(found.features_nld)[..., :17], found.logits_nlk)
    assert 250_000 < sum(p.numel() for p in shipped.transformer.parameters()) < 600_000


def test_a_patch_holds_the_tokens_of_its_corner() -> None:
    token_nhwc = torch.arange(2 * 4 * 6).reshape(2, 4, 6, 1).float()
    patch_npx = _patches(token_nhwc)
    assert patch_npx.shape == (2, 6, 4)
    assert patch_npx[0, 0].tolist() == [0, 1, 6, 7] and patch_npx[0, 1].tolist() == [2, 3, 8, 9]
    assert patch_npx[0, 3].tolist() == [12, 13, 18, 19]
    assert torch.equal(_tokens(patch_npx, (4, 6)), token_nhwc.flatten(1, 2))


def test_a_token_is_seen_everywhere_and_prompts_matter(shipped: EmbeddedTokens) -> None:
    ids_nl = canvases(1).expand(3, -1).clone()
    before = logits(shipped, ids_nl)
    assert not torch.allclose(before[0], before[1], atol=1e-2) and not torch.allclose(before[0], before[2], atol=1e-2)
    at = int((ids_nl[0] != MASK).nonzero()[0])
    ids_nl[:, at] = (ids_nl[:, at] + 8) % 17
    changed_l = (logits(shipped, ids_nl) - before)[0].abs().amax(-1)
    assert bool((changed_l > 1e-5).all())


def test_a_row_does_not_depend_on_its_neighbours(shipped: EmbeddedTokens) -> None:
    together, ids_nl = logits(shipped), canvases()
    with torch.no_grad():
        for i, prompt in enumerate(PROMPTS):
            alone = shipped.predict(ids_nl[i : i + 1], shipped.collate(shipped.encode([prompt])), **SIZE)
            torch.testing.assert_close(alone.logits_nlk[0], together[i], atol=1e-5, rtol=1e-5)


def test_decoding_inverts_tokenising(shipped: EmbeddedTokens) -> None:
    real_nl = torch.from_numpy(load_digits("train").images[:20].astype("int64")).flatten(1)
    picture_n = shipped.decode(real_nl, **SIZE)
    assert picture_n.shape == (20, 3, 8, 8) and picture_n.dtype == torch.float32
    assert picture_n[0, :, 0, 2].tolist() == [float(real_nl[0, 2]) / 16] * 3
    for picture, ids in zip(picture_n, real_nl, strict=True):
        assert torch.equal(shipped.tokenise(picture, **SIZE), ids)
        stored = Image.fromarray((255 * picture).round().byte().permute(1, 2, 0).numpy())  # a file has 256 levels
        assert torch.equal(shipped.tokenise(stored, **SIZE), ids)
    demonstration = builtin("digits:class?demos=1")[0]
    assert demonstration.images is not None
    assert shipped.tokenise(demonstration.images[0], **SIZE).shape == (64,)
    assert shipped.tokenise(torch.full((3, 8, 8), 0.47), **SIZE).unique().tolist() == [8]  # 7.52 of 16


def test_canvases_without_a_picture(shipped: EmbeddedTokens) -> None:
    for bad in (MASK, -1):
        with pytest.raises(ValueError, match="not whole"):
            shipped.decode(torch.full((1, 64), bad), **SIZE)


def test_sizes_and_words_it_does_not_know(shipped: EmbeddedTokens) -> None:
    with pytest.raises(UserError, match="draws 8x8; set inputs.height"):
        shipped.check_size(16, 16)
    with pytest.raises(UserError, match="draws 8x8"):
        shipped.grid(8, 24)
    with pytest.raises(UserError, match="trained at 8x8"):
        shipped.tokenise(torch.zeros(3, 8, 24), **SIZE)
    with pytest.raises(UserError, match="'sevn'; did you mean 'seven'"):
        shipped.encode(["a sevn"])


def test_saved_folder_loads_again_and_by_its_class(shipped: EmbeddedTokens, tmp_path: Path) -> None:
    shipped.save(tmp_path / "kept")
    again = load(tmp_path / "kept", dtype=torch.float32, device=CPU)
    assert torch.equal(logits(again), logits(shipped)) and not again.transformer.training
    assert dict(again.scheduler.config) == dict(shipped.scheduler.config)
    plain = CompactTokens.from_pretrained(tmp_path / "kept" / "transformer")
    for name, value in shipped.transformer.state_dict().items():
        assert torch.equal(plain.state_dict()[name], value), name


def test_lora_round_trip(shipped: EmbeddedTokens, tmp_path: Path) -> None:
    def fresh() -> EmbeddedTokens:
        return load(dtype=torch.float32, device=CPU)

    model = fresh()
    lora.attach_lora(model, rank=2, alpha=4)
    torch.testing.assert_close(logits(model), logits(shipped))
    for name, parameter in model.transformer.named_parameters():
        assert parameter.requires_grad == (".lora_" in name)
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    changed = logits(model)
    assert not torch.allclose(changed, logits(shipped), atol=1e-3)
    with lora.reference(model):
        torch.testing.assert_close(logits(model), logits(shipped))
    model.save_lora(tmp_path / "lora")
    with pytest.raises(ValueError, match="LoRA is attached"):
        model.save(tmp_path / "whole")
    other = fresh()
    other.load_lora(tmp_path / "lora")
    torch.testing.assert_close(logits(other), changed, atol=1e-6, rtol=1e-6)
    lora.merge(other)
    other.save(tmp_path / "whole")
    torch.testing.assert_close(logits(load(tmp_path / "whole", dtype=torch.float32, device=CPU)), changed)


def test_gradient_checkpointing_gives_the_same_gradient() -> None:
    """Gates are zero at the start, so they are opened first: else the blocks would not count."""
    torch.manual_seed(0)
    model = EmbeddedTokens(make_transformer(), WordEncoder())
    for block in model.transformer.blocks:
        torch.nn.init.normal_(block.modulate.bias, std=0.5)
    batch = model.collate(model.encode(PROMPTS))

    def gradients() -> list[Tensor]:
        model.transformer.zero_grad()
        model.predict(canvases(), batch, **SIZE).logits_nlk.square().mean().backward()
        return [p.grad.clone() for p in model.transformer.parameters() if p.grad is not None]

    plain = gradients()
    model.transformer.enable_gradient_checkpointing()
    for one, other in zip(plain, gradients(), strict=True):
        torch.testing.assert_close(one, other)
    assert len(plain) == len(list(model.transformer.parameters()))


def test_free_encoders() -> None:
    model = EmbeddedTokens(make_transformer(), WordEncoder())
    model.free_encoders()
    with pytest.raises(RuntimeError, match="freed"):
        model.encode(["a seven"])


def test_folders_that_are_none(shipped: EmbeddedTokens, tmp_path: Path) -> None:
    def refused(said: str) -> None:
        with pytest.raises(UserError, match=said):
            load(tmp_path / "m", dtype=torch.float32, device=CPU)

    refused("no folder of an embedded model; give embedded:masked")
    shipped.save(tmp_path / "m")
    (tmp_path / "m" / "words" / "vocabulary.json").write_text('{"words": ["", "a"]}')
    refused("another vocabulary")
    shipped.save(tmp_path / "m")
    weights = tmp_path / "m" / "transformer" / "diffusion_pytorch_model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:1000])
    refused("cannot load .* take a whole copy")
    weights.write_bytes(whole)
    (tmp_path / "m" / "scheduler" / "scheduler_config.json").unlink()
    refused("cannot load .* take a whole copy")
