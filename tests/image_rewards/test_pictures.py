"""Outputs to 8-bit pictures, prompts to text, and the rewards of pixels alone."""

import ast
import subprocess
import sys
import warnings

import numpy as np
import pytest
import torch
from PIL import Image

from image_gen.rewards.jpeg import (
    compressibility,
    incompressibility,
    jpeg_compressibility,
    jpeg_incompressibility,
    kilobytes,
)
from image_gen.rewards.pictures import chunks, distinct, prompts_of, to_array, to_image
from image_gen.rewards.toys import brightness, nan_share, redness, smoothness, target_colour
from mmrl.config import Rewards
from mmrl.data.records import Record
from mmrl.errors import UserError
from mmrl.rewards.registry import registered
from mmrl.rewards.score import Scorer


def flat(red, green, blue, size=8):
    return torch.tensor([red, green, blue]).view(3, 1, 1).expand(3, size, size).clone()


def test_pixels_are_rounded_and_clipped_and_channels_go_last():
    x = torch.tensor([-0.5, 0.0, 0.2, 0.5019, 1.0, 7.0]).expand(3, 1, 6)
    assert to_array(x)[0, :, 0].tolist() == [0, 0, 51, 128, 255, 255]
    assert to_array(flat(1.0, 0.5, 0.0, 2)).tolist() == [[[255, 128, 0]] * 2] * 2
    assert to_array(flat(1.0, 0.5, 0.0).double()).dtype == np.uint8
    assert to_array(torch.full((3, 1, 1), float("inf"))).max() == 255
    half = torch.rand(3, 4, 5)
    assert to_array(half).shape == (4, 5, 3) and to_image(half).size == (5, 4)
    assert (to_array(half) == to_array(to_image(half))).all()


def test_nan_pixels_are_black_counted_and_told_once():
    x = flat(1.0, 1.0, 1.0, 4)
    x[0, 0, 0] = x[1, 0, 0] = x[2, 3, 3] = float("nan")
    with pytest.warns(UserWarning, match="2 NaN pixels"):
        assert to_array(x)[0, 0].tolist() == [0, 0, 255]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert nan_share([x, flat(0.0, 0.0, 0.0), Image.new("L", (4, 4))], [], []) == [2 / 16, 0.0, 0.0]


def test_every_pil_mode_becomes_rgb():
    for mode, colour, wanted in (("L", 90, [90] * 3), ("RGBA", (9, 8, 7, 0), [9, 8, 7]), ("1", 1, [255] * 3)):
        assert to_array(Image.new(mode, (3, 2), colour))[0, 0].tolist() == wanted


@pytest.mark.parametrize("bad", [torch.zeros(1, 3, 4, 4), torch.zeros(4, 4, 3), torch.zeros(3, 4, 4).byte(), "text"])
def test_other_outputs_are_refused(bad):
    with pytest.raises(UserError, match=r"float tensors \[3, H, W\]"):
        to_array(bad)


def test_prompts_are_text_and_encoded_once():
    assert distinct(["b", "a", "b", "b"]) == (["b", "a"], [0, 1, 0, 0])
    with pytest.raises(UserError, match="record 'r': image rewards need the prompt as one string"):
        prompts_of([Record("r", "image", [{"role": "user", "content": "x"}])])
    assert [list(range(7))[at] for at in chunks(7, 3)] == [[0, 1, 2], [3, 4, 5], [6]]
    with pytest.raises(UserError, match="batch_size must be at least 1"):
        chunks(3, 0)


def test_jpeg_size_of_flat_and_noisy_pictures():
    noise = torch.rand(3, 64, 64, generator=torch.Generator().manual_seed(0))
    ramp = torch.linspace(0, 1, 64).expand(3, 64, 64)
    small, middle, large = jpeg_incompressibility([flat(0.3, 0.3, 0.3, 64), ramp, noise], [], [])
    assert 0 < small < middle < large
    assert jpeg_compressibility([noise], [], []) == [-large / 500]
    assert kilobytes(noise, quality=50) < kilobytes(noise, quality=95) == large
    assert (incompressibility(40.0), compressibility(40.0)) == (40.0, -0.08)


def test_toy_rewards_literals():
    black, white, red, cyan = flat(0.0, 0.0, 0.0), flat(1.0, 1.0, 1.0), flat(1.0, 0.0, 0.0), flat(0.0, 1.0, 1.0)
    assert brightness([black, white, red], [], []) == pytest.approx([0, 1, 1 / 3])
    assert redness([black, white, red, cyan], [], []) == pytest.approx([0, 0, 1, -1])
    assert target_colour([red, white, black], [], [], rgb=(1.0, 0.0, 0.0)) == pytest.approx(
        [0, -((2 / 3) ** 0.5), -((1 / 3) ** 0.5)]
    )
    stripes = torch.zeros(3, 4, 4)
    stripes[:, :, 1::2] = 1.0  # columns differ by 1, rows by 0
    checks = (torch.arange(4)[:, None] + torch.arange(4)) % 2 * torch.ones(3, 1, 1)
    assert smoothness([black, stripes, checks, torch.zeros(3, 1, 1)], [], []) == [0, -1, -2, 0]


def test_the_catalogue_registers_all_and_loads_nothing_heavy():
    code = (
        "import sys, image_gen.rewards.catalogue as c; from mmrl.rewards.registry import registered; "
        "assert not {'torch', 'transformers', 'open_clip', 'numpy'} & set(sys.modules); "
        "print([n for n, one in registered().items() if one.function.__module__.startswith('image_gen')])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    names = (
        "aesthetic, brightness, clip_score, composition, hps, image_reward, jpeg_compressibility, "
        "jpeg_incompressibility, nan_share, ocr, pick_score, redness, remote, scorer_process, smoothness, "
        "target_colour, variety"
    )
    assert ", ".join(ast.literal_eval(done.stdout)) == names


def test_a_mixture_is_the_weighted_sum_with_a_column_each():
    import image_gen.rewards.catalogue  # noqa: F401

    assert "redness" in registered()
    outputs, rows = [flat(1.0, 0.0, 0.0), flat(0.2, 0.2, 0.2)], [Record(str(i), "image", "p") for i in range(2)]
    info = [{"sample": i} for i in range(2)]
    parts = [{"name": "redness", "weight": 2.0}, {"name": "brightness", "weight": 0.5}, {"name": "ocr"}]
    scored = Scorer(Rewards(components=parts), tasks=["image"]).score(outputs, rows, info)
    assert scored.names == ["redness", "brightness", "ocr"]
    assert scored.reward_nk[:, 2].isnan().all()  # no quoted text: does not apply
    assert scored.reward_n.tolist() == pytest.approx([2 + 0.5 / 3, 0.5 * 0.2])
    alone = Scorer(Rewards(components=[{"name": "redness"}])).score(outputs, rows, info)
    assert alone.reward_n.tolist() == redness(outputs, rows, info)


def test_worker_processes_and_the_cache_take_tensors():
    """Rows of one batch tensor: sent by value, alone."""
    import image_gen.rewards.catalogue  # noqa: F401

    batch = torch.rand(5, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    rows, info = [Record(str(i), "image", "p") for i in range(5)], [{"sample": i} for i in range(5)]
    section = Rewards(components=[{"name": "brightness"}], workers=1, timeout_s=60, cache=True)
    with Scorer(section) as scorer:
        first = scorer.score(list(batch), rows, info)
        again = scorer.score(list(batch), rows, info)
    assert first.reward_n.tolist() == again.reward_n.tolist() == brightness(list(batch), rows, info)
    assert scorer.cache.hits == 5
