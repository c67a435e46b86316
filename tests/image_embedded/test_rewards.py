"""Networks, rewards and judges on real digits of the evaluation part, which neither network has seen."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from image_gen.embedded import canvas, classifiers, prompts
from image_gen.embedded.rewards import composition_judge, digit, digit_judge, digits_composition
from mmrl.data.digits import LEVELS, load_digits
from mmrl.data.records import Record
from mmrl.errors import RecordError, UserError
from mmrl.rewards.registry import bind_options, find

CLASS = prompts.builtin("digits:class")
COMPOSE = {r.prompt: r for r in prompts.builtin("digits:compose") + prompts.builtin("digits:compose?split=eval")}
FOLDER = Path(classifiers.__file__).with_name("weights")


def real() -> tuple[list[Tensor], list[int]]:
    digits = load_digits("eval")
    grey = torch.from_numpy(digits.images / np.float32(LEVELS - 1)).float()
    return list(grey[:, None].expand(-1, 3, -1, -1)), [int(d) for d in digits.labels]


def wide(cells: list[int], seed: int = 0) -> Tensor:
    grey = canvas.draw(cells, part="eval", rng=np.random.default_rng(seed))
    return torch.from_numpy(grey).expand(3, -1, -1)


def mean(score, pictures: list[Tensor], records: list[Record]) -> float:  # type: ignore[no-untyped-def]
    values = score(pictures, records, [{} for _ in pictures])
    assert len(values) == len(pictures) and all(0 <= v <= 1 for v in values)
    return float(np.mean(values))


@pytest.mark.parametrize("name", ["reward", "judge"])
def test_accuracy_on_unseen_digits(name: str) -> None:
    """Measured: reward 0.98, judge 0.97 of 269."""
    pictures, labels = real()
    best = classifiers.probabilities(name, pictures, cells=1)[:, 0].argmax(-1)
    assert float((best == torch.tensor(labels)).float().mean()) >= 0.95


def test_right_and_wrong_digits() -> None:
    pictures, labels = real()
    right, wrong = [CLASS[d] for d in labels], [CLASS[(d + 1) % 10] for d in labels]
    assert mean(digit, pictures, right) > 0.9 and mean(digit, pictures, wrong) < 0.02
    assert mean(digit_judge, pictures, right) > 0.95 and mean(digit_judge, pictures, wrong) < 0.03


def test_enough_is_enough() -> None:
    pictures, labels = real()
    records, info = [CLASS[d] for d in labels], [{}] * len(labels)
    plain, capped = digit(pictures, records, info), digit(pictures, records, info, enough=0.5)
    assert capped == pytest.approx([min(1.0, 2 * p) for p in plain]) and plain != capped
    assert bind_options(find("digit"), {"enough": 0.5}) == {"enough": 0.5}
    with pytest.raises(UserError, match="enough"):
        bind_options(find("digit"), {"enough": 0.0})


def test_paper_and_noise_are_no_digit() -> None:
    generator = torch.Generator().manual_seed(0)
    for picture in (torch.zeros(3, 8, 8), torch.rand(1, 8, 8, generator=generator).expand(3, -1, -1)):
        every = [picture] * 10
        assert mean(digit, every, CLASS) < 0.02 and mean(digit_judge, every, CLASS) == 0


def test_tensor_and_picture_score_alike() -> None:
    from torchvision.transforms.functional import to_pil_image

    pictures, labels = real()
    records = [CLASS[d] for d in labels[:20]]
    one = digit(pictures[:20], records, [{}] * 20)
    assert one == digit([to_pil_image(p.mul(255).round().byte()) for p in pictures[:20]], records, [{}] * 20)


def both(prompt: str, cells: list[int]) -> tuple[float, float]:
    """(shaped, strict), means over 40 canvases of real digits in these cells; the networks misread a few of them."""
    pictures = [wide(cells, seed) for seed in range(40)]
    records = [COMPOSE[prompt]] * 40
    return mean(digits_composition, pictures, records), mean(composition_judge, pictures, records)


@pytest.mark.parametrize(
    ("prompt", "cells"),
    [
        ("a seven", [10, 7, 10]),
        ("two sevens", [7, 10, 7]),
        ("three twos", [2, 2, 2]),
        ("a zero left of a six", [0, 10, 6]),
    ],
)
def test_what_was_asked_scores_one(prompt: str, cells: list[int]) -> None:
    shaped, strict = both(prompt, cells)
    assert shaped > 0.95 and strict > 0.85


@pytest.mark.parametrize(
    ("prompt", "cells", "shaped"),
    [
        ("two sevens", [7, 10, 10], (1 / 2 + 1) / 2),  # count of two parts: 1 of 2; nothing else there
        ("two sevens", [7, 7, 7], (1 / 2 + 1) / 2),
        ("two sevens", [7, 7, 0], (1 + 1 / 2) / 2),  # a digit too many
        ("a six left of a zero", [0, 10, 6], 3 / 4),  # the wrong way round: only the place fails
        ("a six left of a zero", [6, 6, 0], (1 + 0 + 0 + 1) / 4),
        ("a six left of a zero", [10, 10, 10], (0 + 0 + 0 + 1) / 4),
    ],
)
def test_less_scores_less(prompt: str, cells: list[int], shaped: float) -> None:
    found, strict = both(prompt, cells)
    assert found == pytest.approx(shaped, abs=0.06) and strict < 0.1


def test_wrong_size_and_wrong_records() -> None:
    with pytest.raises(UserError, match="8x8 are scored, got 8x24"):
        digit([torch.zeros(3, 8, 24)], CLASS[:1], [{}])
    with pytest.raises(RecordError, match="digit from 0 to 9"):
        digit_judge([torch.zeros(3, 8, 8)], [Record(id="x", task="digit", prompt="a cat", answer="cat")], [{}])
    with pytest.raises(RecordError, match="asks for no composition"):
        composition_judge([torch.zeros(3, 8, 24)], CLASS[:1], [{}])


def test_registered() -> None:
    for name in ("digit", "digit_judge", "digits_composition", "composition_judge"):
        assert find(name).name == name


def test_reward_and_judge_are_independent() -> None:
    """Other architectures, other pictures."""
    names = [{n for n, _ in classifiers.network(n).named_parameters()} for n in ("reward", "judge")]
    sizes = [sum(p.numel() for p in classifiers.network(n).parameters()) for n in ("reward", "judge")]
    assert names[0] != names[1] and sizes[0] != sizes[1]
    parts = [{p.tobytes() for p in load_digits(part).images} for part in ("train", "reward", "judge", "eval")]
    assert all(not parts[i] & parts[j] for i in range(4) for j in range(i))


def test_shipped_weights_are_small() -> None:
    """What ships with each family: the masked one has a folder of its own, the rest is of flow."""
    sizes = {f: f.stat().st_size for f in FOLDER.rglob("*") if f.is_file()}
    masked = sum(size for f, size in sizes.items() if FOLDER / "masked" in f.parents)
    assert 0 < masked <= 6_000_000 and 0 < sum(sizes.values()) - masked <= 6_000_000
    text = "".join(f.read_text() for f in FOLDER.rglob("*.json"))
    assert not any(place in text for place in ("/home", "/tmp", "/work"))
