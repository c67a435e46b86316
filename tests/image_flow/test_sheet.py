"""The contact sheet: sizes, places and words."""

from __future__ import annotations

import pytest
from PIL import Image

from image_gen.sheet import GAP, INSIDE, MARGIN, WIDTH, Section, Shown, _font, contact_sheet, tile, wrap


def plain(colour: str, side: int = 256) -> Image.Image:
    return Image.new("RGB", (side, side), colour)


@pytest.mark.parametrize(
    ("size", "shown"),
    [
        ((8, 8), (160, 160)),
        ((24, 8), (144, 48)),
        ((512, 512), (256, 256)),
        ((1024, 512), (256, 128)),
        ((200, 100), (200, 100)),
    ],
)
def test_tiles_keep_their_proportions(size: tuple[int, int], shown: tuple[int, int]) -> None:
    assert tile(Image.new("RGB", size)).size == shown


def test_small_pictures_are_enlarged_without_smoothing() -> None:
    picture = plain("white", 8)
    picture.putpixel((3, 4), (0, 0, 0))
    large = tile(picture)
    assert {colour for _, colour in large.getcolors() or []} == {(0, 0, 0), (255, 255, 255)}
    assert large.getpixel((3 * 20 + 10, 4 * 20 + 10)) == (0, 0, 0)


def find(sheet: Image.Image, colour: tuple[int, int, int]) -> tuple[int, int, int, int]:
    mask = Image.frombytes("L", sheet.size, bytes(255 * (p == colour) for p in sheet.get_flattened_data()))
    box = mask.getbbox()
    assert box is not None
    return box


def test_pictures_stand_in_order_and_whole() -> None:
    colours = ("red", "lime", "blue")
    sheet = contact_sheet([Section("three", [[Shown(plain(c), ["seed 0"])] for c in colours])], title="run")
    boxes = [find(sheet, Image.new("RGB", (1, 1), c).getpixel((0, 0))) for c in colours]  # type: ignore[arg-type]
    assert [b[0] for b in boxes] == [MARGIN + i * (256 + GAP) for i in range(3)]
    assert len({b[1] for b in boxes}) == 1 and {(b[2] - b[0], b[3] - b[1]) for b in boxes} == {(256, 256)}


def test_a_pair_stands_side_by_side() -> None:
    sheet = contact_sheet([Section("pair", [[Shown(plain("red")), Shown(plain("lime"))]])])
    left, right = find(sheet, (255, 0, 0)), find(sheet, (0, 255, 0))
    assert right[0] - left[2] == INSIDE and left[1] == right[1]


def test_many_pictures_wrap_into_even_rows() -> None:
    def height(n: int) -> int:
        return contact_sheet([Section("x", [[Shown(plain("red"), ["a"])]] * n)]).height

    assert height(5) == height(1)  # five in a row
    assert height(6) == height(10) == height(1) + height(6) - height(5)
    assert contact_sheet([Section("x", [[Shown(plain("red"))]] * 6)]).width == 2 * MARGIN + 3 * (256 + GAP) - GAP
    assert contact_sheet([Section("x", [[Shown(plain("red"))]] * 40)]).width <= WIDTH


def test_words_are_wrapped_and_cannot_break_the_sheet() -> None:
    font = _font(13)
    lines = wrap("a photo of " + "x" * 300 + "\n\x1b[2J of a cat", font, 200)
    assert len(lines) > 3 and all(font.getlength(line) <= 200 for line in lines)
    assert "\x1b" not in "".join(lines) and "".join(lines).replace(" ", "").count("x") == 300
    assert wrap(" ", font, 200) == []
    contact_sheet([Section("\u4e24\u53ea\u732b " * 50, [[Shown(plain("red"), ["y" * 200])]])], title="z" * 500)
    assert contact_sheet([]).size[0] > 0
