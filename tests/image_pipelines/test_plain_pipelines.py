"""Our forwards, tables and decoders beside the plain pipelines of diffusers, on the same noise and prompts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from tiny_cases import CASES, HEIGHT, PROMPTS, WIDTH, draw_plain, load, noise, plain, velocity, walk
from torch import Tensor

from mmrl.errors import UserError


def recorded(transformer: Any, key: str) -> list[Tensor]:
    """What every forward gets as `key`."""
    seen: list[Tensor] = []
    transformer.register_forward_pre_hook(lambda _, args, kwargs: seen.append(kwargs[key]), with_kwargs=True)
    return seen


@pytest.mark.parametrize("name", CASES)
def test_three_steps_give_the_latents_and_pictures_of_the_plain_pipeline(name: str, folders: dict[str, Path]) -> None:
    case, model, pipe = CASES[name], load(folders[name]), plain(folders[name])
    start = noise(model)
    theirs, ours = recorded(pipe.transformer, "timestep"), recorded(model.transformer, "timestep")
    want = draw_plain(pipe, case, start, output="latent")
    got = walk(model, case, start)
    assert {float(t) for part in ours for t in part} == {float(t) for part in theirs for t in part}
    assert want.std() > 0.5 and not torch.allclose(want, start, atol=0.1)
    torch.testing.assert_close(got, want, atol=1e-5, rtol=0)
    pictures = model.decode(got, height=HEIGHT, width=WIDTH)
    assert pictures.shape == (2, 3, HEIGHT, WIDTH) and pictures.dtype == torch.float32 and pictures.std() > 0.02
    torch.testing.assert_close(pictures, draw_plain(pipe, case, start), atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize(("steps", "height", "width"), [(1, 32, 32), (4, 32, 96), (10, 64, 64)])
def test_the_table_is_the_schedulers_as_the_pipeline_sets_it(
    name: str, steps: int, height: int, width: int, folders: dict[str, Path]
) -> None:
    case, model, pipe = CASES[name], load(folders[name]), plain(folders[name])
    if name == "qwen" and steps == 1:  # stretched to end at 0.02, one level cannot also begin at 1
        with pytest.raises(UserError, match="no falling table of 1 steps"):
            model.sigmas(steps, height, width)
        return
    pipe(["a"], height=height, width=width, num_inference_steps=steps, output_type="latent", **_single(case.options))
    got = model.sigmas(steps, height, width)
    assert got.dtype == torch.float64 and got.shape == (steps + 1,) and got[-1] == 0
    assert torch.equal(got.float(), pipe.scheduler.sigmas)
    assert got[0] == 1 or name == "sana" and got[0] > 0.999


def _single(options: dict[str, Any]) -> dict[str, Any]:
    return {k: v[:1] if isinstance(v, list) else v for k, v in options.items()}


def test_flux_shifts_by_the_resolution(folders: dict[str, Path]) -> None:
    model = load(folders["flux"])
    assert model.sigmas(4, 32, 32)[1] < model.sigmas(4, 64, 64)[1]
    assert load(folders["schnell"]).sigmas(4, 64, 64).tolist() == [1, 0.75, 0.5, 0.25, 0]


def test_whole_timesteps_of_sana(folders: dict[str, Path]) -> None:
    model = load(folders["sana"])
    seen = recorded(model.transformer, "timestep")
    batch, x_n = model.collate(model.encode(["a"])), noise(model, n=1)
    sigma_s = model.sigmas(20, HEIGHT, WIDTH)
    scheduler = model.pipe.scheduler
    scheduler.set_timesteps(20)
    with torch.no_grad():
        for sigma in (*map(float, sigma_s[:-1]), *sigma_s[:-1].float()):  # numbers, and rounded tensors
            velocity(model, CASES["sana"], x_n, sigma, batch)
    assert [int(t) for t in seen] == scheduler.timesteps.tolist() * 2


@pytest.mark.parametrize("name", CASES)
def test_a_level_for_each_row(name: str, folders: dict[str, Path]) -> None:
    case, model = CASES[name], load(folders[name])
    x_n, batch = noise(model), model.collate(model.encode(PROMPTS))
    with torch.no_grad():
        both = velocity(model, case, x_n, torch.tensor([0.9, 0.2], dtype=torch.float64), batch)
        high, low = (velocity(model, case, x_n, sigma, batch) for sigma in (0.9, 0.2))
    torch.testing.assert_close(both, torch.stack([high[0], low[1]]), atol=1e-5, rtol=0)
    assert (high - low).abs().max() > 1e-3


@pytest.mark.parametrize("name", CASES)
def test_prompts_of_other_lengths_in_the_batch_change_nothing(name: str, folders: dict[str, Path]) -> None:
    case, model = CASES[name], load(folders[name])
    x_n, conditions = noise(model), model.encode(["7", "a much longer prompt"])
    with torch.no_grad():
        both = velocity(model, case, x_n, 0.5, model.collate(conditions))
        alone = [velocity(model, case, x_n[n : n + 1], 0.5, model.collate([c])) for n, c in enumerate(conditions)]
        other = velocity(model, case, x_n[:1], 0.5, model.collate(conditions[1:]))
    torch.testing.assert_close(both, torch.cat(alone), atol=2e-5, rtol=0)
    assert (other - alone[0]).abs().max() > 1e-3  # the prompt matters


def test_conditions_are_on_the_cpu_in_the_transformers_dtype(folders: dict[str, Path]) -> None:
    for name in CASES:
        model = load(folders[name], transformer_dtype=torch.bfloat16)
        condition = model.encode(["a", "b"])[1]
        assert {v.dtype for v in condition.values() if v.is_floating_point()} == {torch.bfloat16}
        assert not any(v.requires_grad for v in condition.values())
        x_n = noise(model, n=1)
        with torch.no_grad():
            assert velocity(model, CASES[name], x_n, 0.5, model.collate([condition])).dtype == x_n.dtype


@pytest.mark.parametrize(
    ("name", "room"),  # for characters: 256 or 512 less T5's space and end, 300 less the ends, 512 less the template
    [("sd3", 254), ("flux", 510), ("sana", 298), ("qwen", 512 - 128)],
)
def test_overlong_counts_the_tokens_that_no_encoder_reads(name: str, room: int, folders: dict[str, Path]) -> None:
    model, fits = load(folders[name]), "x" * room
    assert model.overlong(["", fits, fits + "x", fits + "xxx"]) == [0, 0, 1, 3]
    told = model.encode([fits[1:], fits, fits + "x", fits + "xx"])
    less, read, cut, longer = (c["encoder_hidden_states"] for c in told)
    assert less.shape != read.shape or not torch.equal(less, read)
    if name == "qwen":  # what is cut is the end of its template
        assert len(less) == 511 and len(read) == len(cut) == len(longer) == 512
    else:
        assert torch.equal(read, cut) and torch.equal(cut, longer)
    model.free_encoders()
    assert model.overlong([fits + "xx"]) == [2]


@pytest.mark.parametrize("name", CASES)
def test_encoders_are_freed(name: str, folders: dict[str, Path]) -> None:
    model = load(folders[name])
    before = model.encode(PROMPTS)
    model.free_encoders()
    with pytest.raises(RuntimeError, match="encoders have been freed"):
        model.encode(PROMPTS)
    assert not [k for k, v in model.pipe.components.items() if k.startswith("text_encoder") and v is not None]
    with torch.no_grad():
        velocity(model, CASES[name], noise(model), 0.5, model.collate(before))


@pytest.mark.parametrize("name", CASES)
def test_nan_latents_decode_to_black(name: str, folders: dict[str, Path]) -> None:
    model = load(folders[name])
    x_n = noise(model)
    x_n[1] = float("nan")
    pictures = model.decode(x_n, height=HEIGHT, width=WIDTH)
    assert torch.equal(pictures[1], torch.zeros(3, HEIGHT, WIDTH))
    torch.testing.assert_close(pictures[:1], model.decode(x_n[:1], height=HEIGHT, width=WIDTH))
    huge = model.decode(noise(model) * 1e4, height=HEIGHT, width=WIDTH)
    assert huge.min() >= 0 and huge.max() <= 1


@pytest.mark.parametrize("name", CASES)
def test_the_latent_of_a_picture(name: str, folders: dict[str, Path]) -> None:
    model = load(folders[name])
    picture = torch.rand(3, HEIGHT, WIDTH, generator=torch.Generator().manual_seed(0))
    latent = model.from_picture(picture, height=HEIGHT, width=WIDTH)
    assert latent.shape == model.latent_shape(HEIGHT, WIDTH) and latent.dtype == torch.float32
    frames = picture[None] * 2 - 1
    with torch.no_grad():
        found = model.pipe.vae.encode(frames[:, :, None] if name == "qwen" else frames)
    encoded = found.latent if name == "sana" else found.latent_dist.mode()
    unscaled = model._unscaled(latent[None], height=HEIGHT, width=WIDTH)
    torch.testing.assert_close(unscaled, encoded, atol=1e-5, rtol=0)
    grey = Image.new("RGB", (WIDTH, HEIGHT), (51, 51, 51))
    flat = model.from_picture(torch.full((3, HEIGHT, WIDTH), 0.2), height=HEIGHT, width=WIDTH)
    torch.testing.assert_close(model.from_picture(grey, height=HEIGHT, width=WIDTH), flat)
    with pytest.raises(UserError, match="the size is 32x32"):
        model.from_picture(picture[:, :32], height=HEIGHT, width=WIDTH)


def test_packing_is_the_pipelines(folders: dict[str, Path]) -> None:
    latent_n = torch.arange(2 * 4 * 6 * 4.0).reshape(2, 4, 6, 4)
    for name in ("flux", "qwen"):
        model = load(folders[name])
        packed = model._packed(latent_n)
        assert torch.equal(packed, type(model.pipe)._pack_latents(latent_n, 2, 4, 6, 4))
        assert torch.equal(model._unpacked(packed, height=12, width=8), latent_n)


def test_a_scale_is_asked_for_or_refused(folders: dict[str, Path]) -> None:
    for name, scale in (("sd3", 4.5), ("schnell", 3.5), ("flux", None)):
        model = load(folders[name])
        with pytest.raises(ValueError, match="scale must be"):
            model.velocity(noise(model), 0.5, model.collate(model.encode(PROMPTS)), height=64, width=32, scale=scale)
