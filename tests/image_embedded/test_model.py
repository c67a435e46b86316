"""The embedded model: the interface of every image model, and files that plain diffusers reads."""

from pathlib import Path

import pytest
import torch
from diffusers import SD3Transformer2DModel
from torch import Tensor

from image_gen.embedded.model import EmbeddedDigits, load, make_transformer
from image_gen.embedded.words import WordEncoder
from image_gen.pipelines import lora
from mmrl.errors import UserError

CPU = torch.device("cpu")
SIZE = {"height": 8, "width": 24}
PROMPTS = ["a seven", "two sixes", "a three left of an eight"]


@pytest.fixture(scope="module")
def shipped() -> EmbeddedDigits:
    return load(dtype=torch.float32, device=CPU)


def velocity(model: EmbeddedDigits, *, size: dict[str, int] = SIZE) -> Tensor:
    shape = model.latent_shape(**size)
    x_n = torch.randn(3, *shape, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        return model.velocity(x_n, 0.6, model.collate(model.encode(PROMPTS)), **size, scale=None)


def test_shapes(shipped: EmbeddedDigits) -> None:
    assert shipped.latent_shape(8, 8) == (1, 8, 8) and shipped.latent_shape(8, 24) == (1, 8, 24)
    assert velocity(shipped).shape == (3, 1, 8, 24)
    assert velocity(shipped, size={"height": 8, "width": 8}).shape == (3, 1, 8, 8)
    table = shipped.sigmas(4, 8, 8)
    assert table[0] == 1 and table[-1] == 0 and len(table) == 5 and table.dtype == torch.float64
    assert 500_000 < sum(p.numel() for p in shipped.transformer.parameters()) < 800_000


def test_found_by_name() -> None:
    from image_gen.pipelines.loading import load_image_model

    short, long = (load_image_model(f"embedded:{n}", dtype=torch.float32, device=CPU) for n in ("flow", "compose"))
    assert isinstance(short, EmbeddedDigits) and isinstance(long, EmbeddedDigits)
    assert not torch.equal(velocity(short), velocity(long))


def test_decode_maps_to_the_unit_interval(shipped: EmbeddedDigits) -> None:
    x_n = torch.tensor([-1.0, 0.0, 1.0, 3.0, -2.0, float("nan"), 0.5, -0.5]).repeat(1, 1, 8, 1)
    picture_n = shipped.decode(x_n, height=8, width=8)
    assert picture_n.shape == (1, 3, 8, 8)
    assert picture_n[0, 2, 0].tolist() == [0.0, 0.5, 1.0, 1.0, 0.0, 0.0, 0.75, 0.25]
    back = shipped.from_picture(picture_n[0], height=8, width=8)
    torch.testing.assert_close(back, x_n[0].clamp(-1, 1).nan_to_num(nan=-1.0))


def test_a_row_does_not_depend_on_its_neighbours(shipped: EmbeddedDigits) -> None:
    x_n = torch.randn(3, 1, 8, 24, generator=torch.Generator().manual_seed(2))
    told = shipped.collate(shipped.encode(PROMPTS))
    sigma_n = torch.tensor([0.9, 0.5, 0.1])
    with torch.no_grad():
        together = shipped.velocity(x_n, sigma_n, told, **SIZE, scale=None)
        for i, prompt in enumerate(PROMPTS):
            alone = shipped.velocity(
                x_n[i : i + 1], float(sigma_n[i]), shipped.collate(shipped.encode([prompt])), **SIZE, scale=None
            )
            torch.testing.assert_close(alone[0], together[i], atol=1e-5, rtol=1e-5)
    assert torch.equal(velocity(shipped), velocity(shipped))


def test_words_matter_and_so_does_their_order(shipped: EmbeddedDigits) -> None:
    told = shipped.encode(["a three left of a five", "a five left of a three", "", "a three"])
    texts = [t["encoder_hidden_states"] for t in told]
    assert texts[0].shape == (6, 64) and told[0]["pooled_projections"].shape == (64,)
    for i in range(4):
        assert all(not torch.equal(texts[i], texts[j]) for j in range(i))
    assert torch.equal(shipped.encode(["A Three"])[0]["encoder_hidden_states"], texts[3])


def test_unknown_and_surplus_words(shipped: EmbeddedDigits) -> None:
    with pytest.raises(UserError, match="'sevn'; did you mean 'seven'"):
        shipped.encode(["a sevn"])
    assert shipped.overlong(["a seven", "a three left of a five of a two"]) == [0, 3]
    assert not any(p.requires_grad for p in shipped.words.parameters())


def test_sizes_it_does_not_draw(shipped: EmbeddedDigits) -> None:
    with pytest.raises(UserError, match="draws 8x8 or 8x24"):
        shipped.check_size(16, 16)
    with pytest.raises(UserError, match="trained at 8x24"):
        shipped.from_picture(torch.zeros(3, 8, 8), height=8, width=24)
    with pytest.raises(ValueError, match="scale must be None"):
        shipped.velocity(torch.zeros(1, 1, 8, 8), 0.5, {}, height=8, width=8, scale=2.0)


def test_saved_folder_loads_again_and_in_plain_diffusers(shipped: EmbeddedDigits, tmp_path: Path) -> None:
    shipped.save(tmp_path / "kept")
    again = load(tmp_path / "kept", dtype=torch.float32, device=CPU)
    assert torch.equal(velocity(again), velocity(shipped))
    plain = SD3Transformer2DModel.from_pretrained(tmp_path / "kept" / "transformer")
    x_n = torch.randn(3, 1, 8, 24, generator=torch.Generator().manual_seed(1))
    told = shipped.collate(shipped.encode(PROMPTS))
    with torch.no_grad():
        answer = plain(hidden_states=x_n, timestep=torch.full((3,), 600.0), **told).sample
    torch.testing.assert_close(answer, velocity(shipped), atol=1e-6, rtol=1e-6)


def test_lora_round_trip(shipped: EmbeddedDigits, tmp_path: Path) -> None:
    def fresh() -> EmbeddedDigits:
        return load(dtype=torch.float32, device=CPU)

    model = fresh()
    lora.attach_lora(model, rank=2, alpha=4)
    for name, parameter in model.transformer.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    changed = velocity(model)
    assert not torch.allclose(changed, velocity(shipped), atol=1e-3)
    model.save_lora(tmp_path / "lora")
    with pytest.raises(ValueError, match="LoRA is attached"):
        model.save(tmp_path / "whole")
    other = fresh()
    other.load_lora(tmp_path / "lora")
    torch.testing.assert_close(velocity(other), changed, atol=1e-6, rtol=1e-6)


def test_free_encoders() -> None:
    model = EmbeddedDigits(make_transformer(), WordEncoder())
    model.free_encoders()
    with pytest.raises(RuntimeError, match="freed"):
        model.encode(["a seven"])


def test_folders_that_are_none(shipped: EmbeddedDigits, tmp_path: Path) -> None:
    def refused(said: str) -> None:
        with pytest.raises(UserError, match=said):
            load(tmp_path / "m", dtype=torch.float32, device=CPU)

    refused("no folder of an embedded model")
    shipped.save(tmp_path / "m")
    (tmp_path / "m" / "words" / "vocabulary.json").write_text('{"words": ["", "a"]}')
    refused("another vocabulary")
    shipped.save(tmp_path / "m")
    weights = tmp_path / "m" / "transformer" / "diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    refused("cannot load .* take a whole copy")
