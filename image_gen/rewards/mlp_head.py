"""The five-layer head of the LAION aesthetic predictor, which ImageReward uses too."""

from __future__ import annotations

from torch import Tensor, nn

WIDTHS = (1024, 128, 64, 16)


class Head(nn.Module):
    """D -> 1024 -> 128 -> 64 -> 16 -> 1 without activations: affine in eval mode. Dropout 0.2, 0.2, 0.1 after the
    first three layers; the names of the weights (layers.0, 2, 4, 6, 7) are those of the released files."""

    def __init__(self, width: int) -> None:
        super().__init__()
        a, b, c, d = WIDTHS
        self.layers = nn.Sequential(
            nn.Linear(width, a),
            nn.Dropout(0.2),
            nn.Linear(a, b),
            nn.Dropout(0.2),
            nn.Linear(b, c),
            nn.Dropout(0.1),
            nn.Linear(c, d),
            nn.Linear(d, 1),
        )

    def forward(self, x_nd: Tensor) -> Tensor:
        """[N, D] -> [N]."""
        value: Tensor = self.layers(x_nd)
        return value.squeeze(-1)
