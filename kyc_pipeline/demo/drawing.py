"""Draws made-up ID cards and selfies from simple shapes: recognisable, small and fast.

A person has the same face on the card and on the selfie. The seed determines everything.
"""

import io
import random
from dataclasses import dataclass
from typing import Final

from PIL import Image, ImageDraw

Colour = tuple[int, int, int]

_SKIN: Final[tuple[Colour, ...]] = (
    (255, 224, 196),
    (234, 192, 150),
    (198, 140, 100),
    (141, 90, 60),
    (88, 56, 40),
)
_HAIR: Final[tuple[Colour, ...]] = (
    (30, 24, 20),
    (92, 58, 34),
    (170, 120, 60),
    (150, 150, 150),
    (120, 40, 24),
)
_PAPER: Final[tuple[Colour, ...]] = ((226, 236, 245), (240, 232, 220), (226, 242, 228), (240, 226, 238))
CARD_SIZE: Final = (320, 202)
SELFIE_SIZE: Final = (240, 300)


@dataclass(frozen=True, slots=True)
class Face:
    """What one person looks like."""

    skin: Colour
    hair: Colour
    width: float
    eyes: float
    mouth: float

    @classmethod
    def of(cls, person: str) -> "Face":
        """The face of `person`, always the same."""
        chance = random.Random(f"face/{person}")
        return cls(
            skin=chance.choice(_SKIN),
            hair=chance.choice(_HAIR),
            width=chance.uniform(0.62, 0.8),
            eyes=chance.uniform(0.14, 0.2),
            mouth=chance.uniform(0.12, 0.22),
        )


def id_card(face: Face, lines: list[str], shot: str, image_format: str) -> bytes:
    """A card with the face and `lines` of text. `shot` seeds the variations of one photograph."""
    chance = random.Random(f"card/{shot}")
    image = Image.new("RGB", CARD_SIZE, chance.choice(_PAPER))
    draw = ImageDraw.Draw(image)
    draw.rectangle((0, 0, CARD_SIZE[0], 34), fill=_shade((46, 84, 140), chance))
    draw.text((12, 10), "SPECIMEN IDENTITY CARD", fill=(255, 255, 255))
    _draw_face(draw, face, box=(14, 48, 104, 170))
    for number, line in enumerate(lines):
        draw.text((120, 52 + 22 * number), line, fill=(30, 30, 40))
    for _ in range(24):
        x, y = chance.randrange(120, CARD_SIZE[0]), chance.randrange(150, CARD_SIZE[1])
        draw.line((x, y, x + 14, y + 3), fill=_shade((150, 160, 180), chance))
    return _encode(image, image_format)


def selfie(face: Face, shot: str, image_format: str) -> bytes:
    """A portrait in front of a plain wall. `shot` seeds the variations of one photograph."""
    chance = random.Random(f"selfie/{shot}")
    image = Image.new("RGB", SELFIE_SIZE, _shade((180, 190, 196), chance))
    draw = ImageDraw.Draw(image)
    dx, dy = chance.randrange(-12, 13), chance.randrange(-10, 11)
    draw.ellipse((20 + dx, 230 + dy, 220 + dx, 420 + dy), fill=_shade((70, 90, 120), chance))
    _draw_face(draw, face, box=(60 + dx, 50 + dy, 180 + dx, 240 + dy))
    return _encode(image, image_format)


def _draw_face(draw: ImageDraw.ImageDraw, face: Face, box: tuple[int, int, int, int]) -> None:
    left, top, right, bottom = box
    width, height, centre = right - left, bottom - top, (left + right) / 2
    half = width * face.width / 2
    draw.ellipse((centre - half * 1.15, top, centre + half * 1.15, top + height * 0.7), fill=face.hair)
    draw.ellipse((centre - half, top + height * 0.12, centre + half, bottom), fill=face.skin)
    eye_y, radius = top + height * 0.45, width * 0.045
    for side in (-1, 1):
        x = centre + side * width * face.eyes
        draw.ellipse((x - radius, eye_y - radius, x + radius, eye_y + radius), fill=(30, 30, 40))
    mouth = width * face.mouth
    draw.arc(
        (centre - mouth, top + height * 0.6, centre + mouth, top + height * 0.8), 20, 160, (120, 40, 50), 2
    )


def _shade(colour: Colour, chance: random.Random) -> Colour:
    red, green, blue = (max(0, min(255, part + chance.randrange(-24, 25))) for part in colour)
    return red, green, blue


def _encode(image: Image.Image, image_format: str) -> bytes:
    target = io.BytesIO()
    image.save(target, image_format)
    return target.getvalue()
