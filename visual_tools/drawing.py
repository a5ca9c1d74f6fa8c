"""A canvas to draw on: line widths and letters that can be read at the size at which the model sees the picture.

Every mark has a dark rim, so that it stands out from a ground of its own colour. Text is Pillow's (OpenCV knows only ASCII).

Legend: H height, W width, C colour channels (RGB).
"""

from __future__ import annotations

import functools
import unicodedata

import cv2
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from ..vlm.images import Picture
from ..vlm.records import Box
from . import boxes
from .base import Scene
from .boxes import Point
from .pixels import array_HWC

Colour = tuple[int, int, int]
PALETTE: tuple[Colour, ...] = (
    (230, 25, 25),
    (20, 110, 240),
    (30, 160, 50),
    (240, 130, 0),
    (160, 40, 200),
    (0, 160, 170),
    (240, 60, 160),
    (150, 100, 20),
)
RIM: Colour = (0, 0, 0)
WHITE: Colour = (255, 255, 255)
_MAX_LETTERS = 40
_SYSTEM_FONTS = ("DejaVuSans.ttf", "NotoSansCJK-Regular.ttc", "NotoSans-Regular.ttf", "Arial Unicode.ttf", "msyh.ttc")


def colour_of(number: int) -> Colour:
    """The colour of the n-th thing drawn."""
    return PALETTE[number % len(PALETTE)]


class Canvas:
    """A copy of a scene's picture. Positions are pixels of the picture at full resolution."""

    def __init__(self, scene: Scene) -> None:
        self.image_HWC = array_HWC(scene.picture())
        height, width = self.image_HWC.shape[:2]
        self.size_px = width, height
        longest, shrunk = max(width, height), max(width / scene.seen_px[0], height / scene.seen_px[1])
        self.line_px = max(1, round(max(longest / 300, 1.5 * shrunk)))
        self.rim_px = max(1, round(self.line_px / 3))
        self.letter_px = max(7, round(min(max(longest / 36, 14 * shrunk), longest / 8)))

    def picture(self) -> Picture:
        return Picture.of(self.image_HWC)

    def box(self, box_px: Box, colour: Colour) -> None:
        """A frame around a box, outside of it as far as the picture reaches, so that it covers nothing that it marks."""
        inner = boxes.round_out(box_px, self.size_px)
        self._frame(inner, self.line_px + self.rim_px, RIM)
        self._frame(inner, self.line_px, colour)

    def _frame(self, inner: tuple[int, int, int, int], thick_px: int, colour: Colour) -> None:
        width, height = self.size_px
        x1, y1, x2, y2 = inner
        left, top = max(0, x1 - thick_px), max(0, y1 - thick_px)
        right, bottom = min(width, x2 + thick_px), min(height, y2 + thick_px)
        sides = (
            (left, top, right, top + thick_px),
            (left, bottom - thick_px, right, bottom),
            (left, top, left + thick_px, bottom),
            (right - thick_px, top, right, bottom),
        )
        for from_x, from_y, to_x, to_y in sides:
            cv2.rectangle(self.image_HWC, (from_x, from_y), (to_x - 1, to_y - 1), colour, cv2.FILLED)

    def line(self, start_px: Point, end_px: Point, colour: Colour) -> None:
        """A straight line between two points inside the picture."""
        start, end = self._pixel(start_px), self._pixel(end_px)
        cv2.line(self.image_HWC, start, end, RIM, self.line_px + 2 * self.rim_px, cv2.LINE_8)
        cv2.line(self.image_HWC, start, end, colour, self.line_px, cv2.LINE_8)

    def dot(self, point_px: Point, colour: Colour) -> None:
        """A filled disc, with a white ring inside its rim."""
        centre, radius = self._pixel(point_px), 2 * self.line_px
        cv2.circle(self.image_HWC, centre, radius + 2 * self.rim_px, RIM, cv2.FILLED)
        cv2.circle(self.image_HWC, centre, radius + self.rim_px, WHITE, cv2.FILLED)
        cv2.circle(self.image_HWC, centre, radius, colour, cv2.FILLED)

    def label_box(self, box_px: Box, text: str, colour: Colour) -> None:
        """Text on top of a box's frame, or below it where there is no room on top."""
        edge_px = self.line_px + self.rim_px
        plate_HWC = self._plate(text, colour)
        top = round(box_px[1]) - edge_px - plate_HWC.shape[0]
        if top < 0:
            top = round(box_px[3]) + edge_px
        self._paste(plate_HWC, round(box_px[0]) - edge_px, top)

    def label_point(self, point_px: Point, text: str, colour: Colour, gap_px: int = 0) -> None:
        """Text to the right of a point, to its left, or below or above it: where there is room first."""
        plate_HWC = self._plate(text, colour)
        height, width = plate_HWC.shape[:2]
        x, y = round(point_px[0]), round(point_px[1])
        if x + gap_px + width <= self.size_px[0]:
            self._paste(plate_HWC, x + gap_px, y - height // 2)
        elif x - gap_px - width >= 0:
            self._paste(plate_HWC, x - gap_px - width, y - height // 2)
        elif y + gap_px + height <= self.size_px[1]:
            self._paste(plate_HWC, x - width // 2, y + gap_px)
        else:
            self._paste(plate_HWC, x - width // 2, y - gap_px - height)

    def _pixel(self, point_px: Point) -> tuple[int, int]:
        return min(int(point_px[0]), self.size_px[0] - 1), min(int(point_px[1]), self.size_px[1] - 1)

    def _plate(self, text: str, colour: Colour) -> np.ndarray:
        """A coloured plate with white text, no wider than the picture where three letters will do."""
        line = " ".join(text.split())
        line = line if len(line) <= _MAX_LETTERS else line[: _MAX_LETTERS - 3] + "..."
        font, line = _font_for(line, self.letter_px)
        pad = max(1, self.letter_px // 5)
        while len(line) > 4 and font.getlength(line) + 2 * pad > self.size_px[0]:
            line = line.rstrip(".")[:-1] + "..."
        ascent, descent = font.getmetrics()
        plate = Image.new("RGB", (max(1, round(font.getlength(line)) + 2 * pad), ascent + descent + pad), colour)
        ImageDraw.Draw(plate).text((pad, pad // 2), line, fill=WHITE, font=font)
        return np.asarray(plate)

    def _paste(self, plate_HWC: np.ndarray, left: int, top: int) -> None:
        """Put the plate into the picture, moved to where it is seen whole."""
        width, height = self.size_px
        left = max(0, min(left, width - plate_HWC.shape[1]))
        top = max(0, min(top, height - plate_HWC.shape[0]))
        seen_HWC = plate_HWC[: height - top, : width - left]
        self.image_HWC[top : top + seen_HWC.shape[0], left : left + seen_HWC.shape[1]] = seen_HWC


def _font_for(text: str, letter_px: int) -> tuple[ImageFont.FreeTypeFont, str]:
    """A font that has all letters, and the text as it can be written with it.

    Plain ASCII is written in Pillow's own font, so that the same call draws the same pixels on every machine. Other letters
    need a font of the system; where none has them they become plain ones or question marks.
    """
    if not text.isascii():
        for name in _SYSTEM_FONTS:
            font = _system_font(name, letter_px)
            if font is not None and _has_letters(font, text):
                return font, text
        text = unicodedata.normalize("NFKD", text)
        text = "".join(letter if letter.isascii() else "?" for letter in text if not unicodedata.combining(letter))
    return _own_font(letter_px), text


def _has_letters(font: ImageFont.FreeTypeFont, text: str) -> bool:
    missing = bytes(font.getmask("\U0010ffff"))
    return all(letter.isspace() or bytes(font.getmask(letter)) != missing for letter in text)


@functools.lru_cache(64)
def _own_font(letter_px: int) -> ImageFont.FreeTypeFont:
    font = ImageFont.load_default(letter_px)
    assert isinstance(font, ImageFont.FreeTypeFont)  # all builds of Pillow on PyPI have FreeType
    return font


@functools.lru_cache(64)
def _system_font(name: str, letter_px: int) -> ImageFont.FreeTypeFont | None:
    try:
        return ImageFont.truetype(name, letter_px)
    except OSError:
        return None
