"""A tiny scene language and its exact pixels.

Scenes are drawn at 32 x 32 with integer geometry into a byte buffer: no fonts, no smoothing, no files. So the pixels
are the same on every machine, and a picture is known by the digest of its scene.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cache, cached_property
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from PIL.Image import Image

SIDE = 32
"""Height and width of a picture in pixels."""

COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (225, 30, 35),
    "green": (30, 165, 50),
    "blue": (45, 80, 235),
    "yellow": (245, 225, 40),
    "cyan": (50, 215, 225),
    "pink": (250, 120, 200),
    "orange": (250, 135, 15),
    "white": (245, 245, 245),
}
SHAPES = ("circle", "square", "triangle", "cross", "diamond", "ring")
SIZES = ("small", "big")
PLACES = ("top left", "top right", "bottom left", "bottom right")
RADIUS = {"small": 4, "big": 6}
REACH = 1
"""How far an object's centre may lie from its quadrant's centre, in pixels. Small on purpose: a tiny tower tells
shapes apart many times sooner when they hardly move within its patches."""
TINTS = 8
"""Slightly different inks of one colour."""

Style = Literal["filled", "outline", "striped", "grainy"]
"""How a scene looks: full shapes on dark ground (all clients), or a domain that only unseen tasks use."""


@dataclass(frozen=True, slots=True)
class Obj:
    """One object: indices into `COLOURS`, `SHAPES`, `SIZES` and `PLACES` (its quadrant; -1: not placed yet),
    its offset from the quadrant's centre in pixels, and its tint (0 .. 7, ever darker)."""

    colour: int
    shape: int
    size: int
    place: int = -1
    dx: int = 0
    dy: int = 0
    tint: int = 0


@dataclass(frozen=True, slots=True)
class Scene:
    """Up to four objects, one per quadrant, on plain ground of a grey level."""

    objects: tuple[Obj, ...]
    shade: int = 40
    style: Style = "filled"

    @property
    def layout(self) -> str:
        """All objects in one canonical line, whatever the ground and the style."""
        parts = (f"{o.colour},{o.shape},{o.size},{o.place},{o.dx},{o.dy},{o.tint}" for o in self.objects)
        return ";".join(sorted(parts))

    @property
    def text(self) -> str:
        """The whole scene in one canonical line; equal lines, equal pixels."""
        return f"{self.style};{self.shade};{self.layout}"


@dataclass(frozen=True)
class DrawnPicture:
    """A picture that is drawn when it is opened.

    >>> picture = DrawnPicture(Scene((Obj(colour=0, shape=1, size=1, place=0),)))
    >>> picture.load().size, picture.load().getpixel((8, 8))
    ((32, 32), (225, 30, 35))
    """

    scene: Scene

    @cached_property
    def key(self) -> str:
        return "drawn:" + hashlib.sha256(self.scene.text.encode()).hexdigest()[:32]

    def load(self) -> Image:
        from PIL import Image as images

        return images.frombytes("RGB", (SIDE, SIDE), pixels(self.scene))


def pixels(scene: Scene) -> bytes:
    """The scene as RGB bytes, row by row: 32 x 32 x 3."""
    canvas = bytearray(bytes([scene.shade]) * (SIDE * SIDE * 3))
    if scene.style == "grainy":
        _grain(canvas, scene)
    colours = tuple(COLOURS.values())
    for obj in sorted(scene.objects, key=lambda o: (o.place, o.colour, o.shape, o.size)):
        centre_x = 8 + 16 * (obj.place % 2) + obj.dx
        centre_y = 8 + 16 * (obj.place // 2) + obj.dy
        ink = bytes(max(0, channel - 4 * obj.tint) for channel in colours[obj.colour])
        for x, y in stencil(SHAPES[obj.shape], RADIUS[SIZES[obj.size]], scene.style):
            at = 3 * ((centre_y + y) * SIDE + centre_x + x)
            canvas[at : at + 3] = ink
    return bytes(canvas)


@cache
def stencil(shape: str, radius: int, style: Style) -> tuple[tuple[int, int], ...]:
    """Offsets (x, y) from the centre that an object covers."""
    span = range(-radius, radius + 1)
    full = {(x, y) for x in span for y in span if _inside(shape, x, y, radius)}
    if style == "outline":
        full = {(x, y) for x, y in full if not {(x + 1, y), (x - 1, y), (x, y + 1), (x, y - 1)} <= full}
    elif style == "striped":
        full = {(x, y) for x, y in full if (x + y) % 3}
    return tuple(sorted(full))


def _inside(shape: str, x: int, y: int, radius: int) -> bool:
    distance = x * x + y * y
    inside = {
        "circle": distance <= radius * radius + 1,
        "square": True,
        "triangle": 2 * abs(x) <= y + radius,
        "cross": min(abs(x), abs(y)) <= radius // 4,
        "diamond": abs(x) + abs(y) <= radius,
        "ring": radius * radius // 3 < distance <= radius * radius + 1,
    }
    return inside[shape]


def _grain(canvas: bytearray, scene: Scene) -> None:
    """Grey grain on the ground, from a linear congruential sequence that starts at the scene's digest."""
    state = int.from_bytes(hashlib.sha256(scene.text.encode()).digest()[:4], "big")
    for pixel in range(SIDE * SIDE):
        state = (1664525 * state + 1013904223) % 2**32
        grey = scene.shade + (state >> 24) % 64
        canvas[3 * pixel : 3 * pixel + 3] = bytes((grey, grey, grey))
