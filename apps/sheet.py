"""The contact sheet: every image with what was seen in it, as one picture."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

if TYPE_CHECKING:
    from PIL.Image import Image as Picture

PER_PAGE = 100
_TILE, _GAP, _MARGIN = 168, 16, 28  # pixels
_CAPTION, _HEADER = 62, 56
_PAPER, _INK, _FAINT, _TRACK = "#fbfbf9", "#1f2328", "#7a828a", "#e3e5e4"
_BLUE, _GREEN, _RED = "#3d6fb4", "#2f8f5b", "#c4453c"


@dataclass(frozen=True)
class Tile:
    """One image of the sheet.

    Attributes:
        image: what `thumbnail` gave; None if the file could not be read.
        name: of the file.
        label: the best guess, or why there is none.
        score: its probability in [0, 1].
        truth: the right label, where it is known; colours the tile.
    """

    image: Picture | None
    name: str
    label: str
    score: float = 0.0
    truth: str | None = None


def draw(tiles: Sequence[Tile], title: str, subtitle: str = "") -> list[Picture]:
    """Return the pages, at most `PER_PAGE` images each."""
    pages = [tiles[i : i + PER_PAGE] for i in range(0, len(tiles), PER_PAGE)]
    return [_page(page, title, subtitle, (n + 1, len(pages))) for n, page in enumerate(pages)]


def thumbnail(image: NDArray[np.uint8]) -> Picture:
    """Return uint8 (H, W, C), C 1 or 3, as a picture that fills a tile."""
    array = image[..., 0] if image.ndim == 3 and image.shape[2] == 1 else image
    picture = Image.fromarray(array).convert("RGB")
    scale = _TILE / max(picture.size)
    size = tuple(max(1, round(side * scale)) for side in picture.size)
    # Pixels of very small pictures stay sharp squares.
    how = Image.Resampling.NEAREST if scale > 3 else Image.Resampling.LANCZOS
    return picture.resize((size[0], size[1]), how)


def _page(tiles: Sequence[Tile], title: str, subtitle: str, number: tuple[int, int]) -> Picture:
    across = max(3, min(8, math.ceil(math.sqrt(1.6 * len(tiles)))))
    across = min(across, max(len(tiles), 3))
    down = math.ceil(len(tiles) / across)
    width = 2 * _MARGIN + across * _TILE + (across - 1) * _GAP
    height = 2 * _MARGIN + _HEADER + down * (_TILE + _CAPTION) + (down - 1) * _GAP
    page = Image.new("RGB", (width, height), _PAPER)
    pen = ImageDraw.Draw(page)
    tail = f"page {number[0]} of {number[1]}" if number[1] > 1 else ""
    tail_width = round(pen.textlength(tail, font=_font(13)))
    room = width - 2 * _MARGIN
    pen.text((_MARGIN, _MARGIN - 6), _fit(pen, title, 20, room), _INK, font=_font(20))
    pen.text(
        (_MARGIN, _MARGIN + 21), _fit(pen, subtitle, 13, room - tail_width), _FAINT, font=_font(13)
    )
    pen.text((width - _MARGIN - tail_width, _MARGIN + 21), tail, _FAINT, font=_font(13))
    for place, tile in enumerate(tiles):
        left = _MARGIN + (place % across) * (_TILE + _GAP)
        top = _MARGIN + _HEADER + (place // across) * (_TILE + _CAPTION + _GAP)
        _tile(page, pen, tile, left, top)
    return page


def _tile(page: Picture, pen: ImageDraw.ImageDraw, tile: Tile, left: int, top: int) -> None:
    box = (left, top, left + _TILE - 1, top + _TILE - 1)
    pen.rectangle(box, fill=_TRACK)
    if tile.image is None:
        pen.text((left + 12, top + 12), "not read", _RED, font=_font(13))
        pen.text((left, top + _TILE + 5), _fit(pen, tile.name, 14, _TILE), _INK, font=_font(14))
        pen.text((left, top + _TILE + 25), _fit(pen, tile.label, 11, _TILE), _RED, font=_font(11))
        return
    small = tile.image
    page.paste(small, (left + (_TILE - small.width) // 2, top + (_TILE - small.height) // 2))
    right = tile.truth is None or tile.truth == tile.label
    colour = _BLUE if tile.truth is None else _GREEN if right else _RED
    if not right:
        pen.rectangle(box, outline=_RED, width=3)
    score = f"{100 * tile.score:.0f} %"
    room = _TILE - round(pen.textlength(score, font=_font(14))) - 8
    pen.text((left, top + _TILE + 5), _fit(pen, tile.label, 14, room), _INK, font=_font(14))
    pen.text((left + _TILE, top + _TILE + 5), score, colour, font=_font(14), anchor="ra")
    bar = (left, top + _TILE + 27, left + _TILE - 1, top + _TILE + 30)
    pen.rectangle(bar, fill=_TRACK)
    if tile.score > 0:
        pen.rectangle((*bar[:2], left + round((_TILE - 1) * tile.score), bar[3]), fill=colour)
    below = tile.name if right else f"is {tile.truth}"
    ink = _FAINT if right else _RED
    pen.text((left, top + _TILE + 36), _fit(pen, below, 11, _TILE), ink, font=_font(11))


def _font(points: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(points)


def _fit(pen: ImageDraw.ImageDraw, text: str, points: int, room: int) -> str:
    """Return `text`, cut with dots if it is wider than `room` pixels."""
    font = _font(points)
    if pen.textlength(text, font=font) <= room:
        return text
    while text and pen.textlength(text + "...", font=font) > room:
        text = text[:-1]
    return text.rstrip() + "..."
