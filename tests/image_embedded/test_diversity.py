import pytest
import torch

from image_gen.diversity import pixel_diversity


def test_two_prompts_by_hand() -> None:
    """Prompt 5: one pixel 0, 1 (deviation 0.5), one constant: mean 0.25. Prompt 2: both 0, 0, 0.3 -> sqrt(0.02)."""
    pictures = torch.tensor([[0.0, 0.7], [0.0, 0.0], [1.0, 0.7], [0.0, 0.0], [0.3, 0.3]])[:, None, None]
    found = pixel_diversity(pictures, torch.tensor([5, 2, 5, 2, 2]))
    assert found.item() == pytest.approx((0.25 + 0.02**0.5) / 2)


def test_equal_pictures_have_none_and_order_does_not_matter() -> None:
    torch.manual_seed(0)
    pictures, keys = torch.rand(6, 3, 4, 4), torch.tensor([0, 1, 0, 1, 0, 1])
    order = torch.randperm(6)
    assert pixel_diversity(pictures[:1].repeat(6, 1, 1, 1), keys) == 0
    assert pixel_diversity(pictures[order], keys[order]) == pytest.approx(pixel_diversity(pictures, keys).item())
    assert pixel_diversity(pictures.double(), keys).dtype == torch.float64


def test_what_it_refuses() -> None:
    with pytest.raises(ValueError, match="one key each"):
        pixel_diversity(torch.zeros(2, 3, 4, 4), torch.zeros(3))
    with pytest.raises(ValueError, match="pictures"):
        pixel_diversity(torch.zeros(0, 3, 4, 4), torch.zeros(0))
