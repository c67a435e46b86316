"""A labelled contact sheet: pictures in a grid under their prompt, with captions. Loads no torch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from PIL import Image, ImageDraw, ImageFont

TILE = 256  # the side that pictures are shown at, at most
SMALL = 160  # smaller ones are enlarged to about this
WIDTH = 1400  # of a sheet, at most
GAP, INSIDE, MARGIN, LINE = 14, 3, 24, 18
PAPER, INK, GREY, RULE = "#ffffff", "#1b1f24", "#6a737d", "#e1e4e8"
Font = ImageFont.FreeTypeFont | ImageFont.ImageFont


@dataclass(frozen=True)
class Shown:
    """One picture and the lines under it."""

    picture: Image.Image
    caption: Sequence[str] = ()


@dataclass(frozen=True)
class Section:
    """A prompt and its cells; a cell holds pictures that belong together (a model and its base), shown side by side."""

    title: str
    cells: list[Sequence[Shown]] = field(default_factory=list)


def contact_sheet(sections: Sequence[Section], *, title: str = "", subtitle: str = "") -> Image.Image:
    """All sections on one RGB picture, as wide as they need and at most about WIDTH pixels.

    Pictures keep their proportions: larger ones are reduced to TILE, small ones enlarged by a whole factor without
    smoothing, so that their pixels can be seen.
    """
    plans = [_Plan(section) for section in sections]
    width = max([plan.natural_width for plan in plans], default=0) + 2 * MARGIN
    head, small = _font(22), _font(14)
    words = [(line, head, INK, 30) for line in wrap(title, head, width - 2 * MARGIN)]
    words += [(line, small, GREY, LINE) for line in wrap(subtitle, small, width - 2 * MARGIN)]
    top = MARGIN + sum(step for *_, step in words) + (GAP if words else 0)
    height = top + sum(plan.height(width) for plan in plans) + MARGIN
    sheet = Image.new("RGB", (width, height), PAPER)
    pen, y = ImageDraw.Draw(sheet), MARGIN
    for line, font, colour, step in words:
        pen.text((MARGIN, y), line, font=font, fill=colour)
        y += step
    y = top
    for plan in plans:
        plan.draw(sheet, pen, y)
        y += plan.height(width)
    return sheet


def tile(picture: Image.Image) -> Image.Image:
    """The picture at the size it is shown at."""
    large, longest = picture.convert("RGB"), max(picture.size)
    if longest > TILE:
        sides = tuple(max(1, round(side * TILE / longest)) for side in large.size)
        return large.resize((sides[0], sides[1]), Image.Resampling.LANCZOS)
    factor = max(1, SMALL // longest)
    return large.resize((large.width * factor, large.height * factor), Image.Resampling.NEAREST)


def wrap(text: str, font: Font, width: float) -> list[str]:
    """Lines no wider than `width` pixels; a word that is too long is cut. Control characters become spaces."""
    words = "".join(c if c.isprintable() else " " for c in text).split()
    lines: list[str] = []
    for word in (piece for whole in words for piece in _pieces(whole, font, width)):
        longer = f"{lines[-1]} {word}" if lines else word
        if lines and font.getlength(longer) <= width:
            lines[-1] = longer
        else:
            lines.append(word)
    return lines


def _pieces(word: str, font: Font, width: float) -> Iterator[str]:
    while word:
        end = len(word)
        while end > 1 and (wide := font.getlength(word[:end])) > width:
            end = max(1, min(end - 1, int(end * width / wide)))
        yield word[:end]
        word = word[end:]


def _font(size: int) -> Font:
    return ImageFont.load_default(size)


class _Plan:
    """Where the tiles and captions of a section go: all cells are as large as the largest."""

    def __init__(self, section: Section) -> None:
        self.section, self.font, self.bold = section, _font(13), _font(16)
        self.cells = [[(tile(one.picture), one.caption) for one in cell] for cell in section.cells]
        every = [shown for cell in self.cells for shown in cell]
        self.tile_width = max((t.width for t, _ in every), default=TILE)
        self.tile_height = max((t.height for t, _ in every), default=0)
        self.captions = max((len(self._lines(caption)) for _, caption in every), default=0)
        pictures = max((len(cell) for cell in self.cells), default=1)
        self.cell_width = pictures * (self.tile_width + INSIDE) - INSIDE
        self.cell_height = self.tile_height + 4 + self.captions * LINE + GAP

    def columns(self, width: int) -> int:
        """Cells in a row: as many as fit, but no row much shorter than the others."""
        room = max(1, (width - 2 * MARGIN + GAP) // (self.cell_width + GAP))
        rows = max(1, -(-len(self.cells) // room))
        return max(1, -(-len(self.cells) // rows))

    @property
    def natural_width(self) -> int:
        """Room for the cells of a row of at most about WIDTH pixels, and for a readable title."""
        return max(self.columns(WIDTH) * (self.cell_width + GAP) - GAP, 420)

    def height(self, width: int) -> int:
        rows = -(-len(self.cells) // self.columns(width))
        return GAP + len(self._title(width)) * 22 + 6 + rows * self.cell_height + GAP

    def draw(self, sheet: Image.Image, pen: ImageDraw.ImageDraw, y: int) -> None:
        pen.line([(MARGIN, y), (sheet.width - MARGIN, y)], fill=RULE)
        y += GAP
        for line in self._title(sheet.width):
            pen.text((MARGIN, y), line, font=self.bold, fill=INK)
            y += 22
        y += 6
        columns = self.columns(sheet.width)
        for i, cell in enumerate(self.cells):
            row, column = divmod(i, columns)
            x, at = MARGIN + column * (self.cell_width + GAP), y + row * self.cell_height
            for picture, caption in cell:
                sheet.paste(picture, (x, at))
                pen.rectangle([x - 1, at - 1, x + picture.width, at + picture.height], outline=RULE)
                for k, line in enumerate(self._lines(caption)):
                    pen.text((x + 1, at + self.tile_height + 4 + k * LINE), line, font=self.font, fill=GREY)
                x += self.tile_width + INSIDE

    def _title(self, width: int) -> list[str]:
        return wrap(self.section.title, self.bold, width - 2 * MARGIN)

    def _lines(self, caption: Sequence[str]) -> list[str]:
        return [line for text in caption for line in wrap(text, self.font, self.tile_width - 4)]
