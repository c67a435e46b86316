"""RMSE against forwards of the ELBO's estimators as one small SVG: two panels, both axes logarithmic."""

from __future__ import annotations

import math
from html import escape
from pathlib import Path
from typing import Any

from studies.study_figure import COLOURS, apart

WIDTH, HEIGHT, TOP, BOTTOM = 920, 360, 56, 46
CASES = ("b", "c")
PANELS = ((52, 340), (530, 340))  # left edge, width
SHOWN = ("mc", "strat_mc", "complementary", "sdmc gauss, 1/t", "sdmc gauss, L/k", "sdmc gauss, L/k, ceil")
TICKS = (0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50)


def draw(result: dict[str, Any], titles: dict[str, str], path: Path) -> None:
    """`result` of `dlm_estimators.measure`; a panel for each of two cases."""
    title = "RMSE of ELBO estimates against the exact value, nats, by forwards"
    out = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}" height="{HEIGHT}" '
        f'font-family="system-ui, sans-serif" font-size="12" role="img" aria-label="{title}">',
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="#ffffff"/>',
        f'<text x="{PANELS[0][0]}" y="20" fill="#1f2937" font-size="13" font-weight="600">{title}</text>',
    ]
    for key, (left, width) in zip(CASES, PANELS):
        name = titles[key]
        curves = {label: cells for label, cells in result["cases"][key]["errors"].items() if label in SHOWN}
        out += _panel(f"({key}) {name}", curves, left, width - 130)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join([*out, "</svg>"]) + "\n", encoding="utf-8")


def _centred(x: float, y: float, text: str) -> str:
    return f'<text x="{x:.1f}" y="{y}" fill="#4b5563" text-anchor="middle">{text}</text>'


def _panel(title: str, curves: dict[str, Any], left: int, width: int) -> list[str]:
    values = [cell["rmse"] for cells in curves.values() for cell in cells.values()]
    low, high = math.log(min(values) * 0.9), math.log(max(values) * 1.1)

    def x(forwards: float) -> float:
        return left + math.log2(forwards) / 3 * width

    def y(value: float) -> float:
        return HEIGHT - BOTTOM - (math.log(value) - low) / (high - low) * (HEIGHT - TOP - BOTTOM)

    out = [f'<text x="{left}" y="44" fill="#1f2937">{escape(title)}</text>']
    for tick in TICKS:
        if low <= math.log(tick) <= high:
            out.append(
                f'<line x1="{left}" x2="{left + width}" y1="{y(tick):.1f}" y2="{y(tick):.1f}" stroke="#e5e7eb"/>'
            )
            out.append(f'<text x="{left - 8}" y="{y(tick) + 4:.1f}" fill="#4b5563" text-anchor="end">{tick:g}</text>')
    for forwards in (1, 2, 3, 4, 8):
        out.append(_centred(x(forwards), HEIGHT - BOTTOM + 18, str(forwards)))
    out.append(_centred(left + width / 2, HEIGHT - 8, "forwards"))
    ends = []
    for label, colour in zip(SHOWN, COLOURS):
        points = [(x(int(f)), y(cell["rmse"])) for f, cell in curves[label].items()]
        line = " ".join(f"{a:.1f},{b:.1f}" for a, b in points)
        out.append(f'<polyline points="{line}" fill="none" stroke="{colour}" stroke-width="2"/>')
        out += [f'<circle cx="{a:.1f}" cy="{b:.1f}" r="2.5" fill="{colour}"/>' for a, b in points]
        ends.append((points[-1][1], list(curves[label].values())[-1]["rmse"], label, colour))
    for (_, value, label, colour), at in zip(ends, apart([e[0] for e in ends])):
        name = escape(label)
        out.append(f'<text x="{left + width + 8}" y="{at + 4:.1f}" fill="{colour}">{value:.2f} {name}</text>')
    return out
