"""Rules of quadrature on [0, 1]: at which shares of masked tokens a likelihood is measured, and what each counts."""

from __future__ import annotations

import re

import numpy as np

from mmrl.errors import UserError, nearest

MOST = 64
#: Names that are shown where a name is not known.
EXAMPLES = ("gauss-1", "gauss-2", "gauss-3", "gauss-4", "gauss-5", "simpson", "midpoint-2", "midpoint-3", "midpoint-4")


def rule(name: str) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Times, ascending in (0, 1], and weights, which sum to 1.

    gauss-N     Gauss-Legendre, exact for polynomials up to degree 2N - 1.
    midpoint-N  (n - 1/2) / N, equal weights.
    simpson     0.1, 0.5, 1 with 1/6, 4/6, 1/6: the left end is moved off the pole at 0, so it is no exact rule.

    Raises UserError for other names.
    """
    if name == "simpson":
        return (0.1, 0.5, 1.0), (1 / 6, 4 / 6, 1 / 6)
    found = re.fullmatch(r"(gauss|midpoint)-([1-9]\d?)", str(name))
    if found is None or int(found[2]) > MOST:
        raise UserError(f"likelihood: unknown rule {name!r} (N of gauss-N: 1 to {MOST}){nearest(str(name), EXAMPLES)}")
    n = int(found[2])
    if found[1] == "midpoint":
        return tuple((i + 0.5) / n for i in range(n)), (1 / n,) * n
    x, w = np.polynomial.legendre.leggauss(n)
    return tuple(float(v) for v in (x + 1) / 2), tuple(float(v) for v in w / 2)
