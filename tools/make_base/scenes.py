"""Drawn scenes with captions: an animal or a toy somewhere, with something. What the small pipeline learns to draw."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch
from PIL import Image, ImageDraw

Colour = tuple[int, int, int]
T = TypeVar("T")

COLOURS: dict[str, Colour] = {
    "brown": (140, 88, 48), "golden": (214, 164, 92), "white": (240, 238, 232), "black": (44, 42, 46),
    "grey": (138, 138, 142), "orange": (234, 120, 32), "yellow": (246, 212, 48), "red": (204, 40, 44),
    "blue": (54, 92, 206), "green": (62, 154, 72), "pink": (240, 152, 184), "purple": (124, 76, 172),
}  # fmt: skip
KINDS = ("dog", "cat", "bear", "duck", "robot", "monster")
THINGS = ("", "eating nachos", "wearing glasses", "wearing a hat", "with a ball")
PLACES = ("grass", "beach", "snow", "room", "street")
_SIDE = 128  # drawn at this size, then averaged down
_DARK: Colour = (24, 22, 26)


class Dice:
    """Draws from one torch generator, in the order asked."""

    def __init__(self, generator: torch.Generator) -> None:
        self._generator = generator

    def uniform(self, low: float, high: float) -> float:
        return low + (high - low) * float(torch.rand((), generator=self._generator))

    def chance(self, probability: float) -> bool:
        return self.uniform(0.0, 1.0) < probability

    def one_of(self, options: Sequence[T]) -> T:
        return options[int(torch.randint(len(options), (), generator=self._generator))]


@dataclass(frozen=True)
class Scene:
    """What is in a picture; ``place`` is one of PLACES or a colour."""

    kind: str
    colour: str
    thing: str
    place: str


def draw_scene(scene: Scene, dice: Dice, *, side: int = 64) -> Image.Image:
    """The picture, RGB [side, side]; pose, size and shades are drawn."""
    image = Image.new("RGB", (_SIDE, _SIDE))
    brush = ImageDraw.Draw(image)
    _background(brush, scene.place, dice)
    size = dice.uniform(0.82, 1.12)
    x, y = dice.uniform(54, 74), dice.uniform(50, 60)
    _Subject(brush, x, y, size, _shade(COLOURS[scene.colour], dice, 16), dice).draw(scene.kind, scene.thing)
    if dice.chance(0.5):
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    return image.resize((side, side), Image.Resampling.BOX)


def caption(scene: Scene, dice: Dice) -> str:
    """One of the ways to say it: colour and place may be left out, a toy may be called one, a letter may name it."""
    kind = f"toy {scene.kind}" if dice.chance(0.35) else scene.kind
    if dice.chance(0.12):  # "v_dog": one of its kind, whatever it is called
        kind = f"{dice.one_of('abcdefghijklmnopqrstuvwxyz')}_{kind}"
    words = [dice.one_of(("a photo of a", "a picture of a", "a", "a photo of"))]
    if dice.chance(0.6):
        words.append(scene.colour)
    words.append(kind)
    if scene.thing:
        words.append(scene.thing)
    if dice.chance(0.7):
        words.append(_PHRASES.get(scene.place) or f"in front of a {scene.place} wall")
    return " ".join(words)


_PHRASES = {
    "grass": "on the grass", "beach": "on the beach", "snow": "in the snow", "room": "in a room",
    "street": "on the street",
}  # fmt: skip


def draw_at_random(dice: Dice) -> Scene:
    """A scene: every kind, thing and place about as often."""
    plain = dice.chance(0.5)
    return Scene(
        kind=dice.one_of(KINDS),
        colour=dice.one_of(tuple(COLOURS)),
        thing="" if dice.chance(0.3) else dice.one_of(THINGS),
        place=dice.one_of(tuple(COLOURS)) if plain else dice.one_of(PLACES),
    )


def _shade(colour: Colour, dice: Dice, spread: float) -> Colour:
    step = dice.uniform(-spread, spread)
    return tuple(max(0, min(255, round(c + step))) for c in colour)  # type: ignore[return-value]


def _mix(one: Colour, other: Colour, share: float) -> Colour:
    return tuple(round(a + share * (b - a)) for a, b in zip(one, other, strict=True))  # type: ignore[return-value]


def _rows(brush: ImageDraw.ImageDraw, top: float, bottom: float, above: Colour, below: Colour) -> None:
    for y in range(int(top), int(bottom)):
        share = (y - top) / max(1.0, bottom - top)
        brush.line([(0, y), (_SIDE, y)], fill=_mix(above, below, share))


def _background(brush: ImageDraw.ImageDraw, place: str, dice: Dice) -> None:
    horizon = dice.uniform(58, 80)
    sky = _shade((150, 196, 236), dice, 20)
    if place == "grass":
        _rows(brush, 0, horizon, sky, (206, 226, 240))
        _rows(brush, horizon, _SIDE, (110, 172, 74), (58, 118, 44))
    elif place == "beach":
        _rows(brush, 0, horizon - 16, sky, (206, 226, 240))
        _rows(brush, horizon - 16, horizon + 4, (40, 110, 170), (70, 150, 196))
        _rows(brush, horizon + 4, _SIDE, (236, 214, 164), (216, 186, 130))
    elif place == "snow":
        _rows(brush, 0, horizon, (176, 194, 214), (214, 224, 236))
        _rows(brush, horizon, _SIDE, (250, 250, 253), (226, 232, 242))
    elif place == "room":
        wall = _shade((226, 208, 184), dice, 24)
        _rows(brush, 0, horizon + 8, wall, _mix(wall, _DARK, 0.1))
        _rows(brush, horizon + 8, _SIDE, (150, 100, 62), (116, 74, 44))
        left = dice.uniform(4, 84)
        brush.rectangle([left, 10, left + 34, 42], fill=sky, outline=(250, 250, 250), width=3)
    elif place == "street":
        wall = _shade((170, 100, 84), dice, 24)
        _rows(brush, 0, horizon, wall, _mix(wall, _DARK, 0.2))
        _rows(brush, horizon, _SIDE, (120, 120, 124), (84, 84, 88))
        for x in range(-10, _SIDE, 36):
            brush.rectangle([x, 112, x + 18, 116], fill=(236, 236, 228))
    else:
        wall = _shade(COLOURS[place], dice, 18)
        _rows(brush, 0, _SIDE, _mix(wall, (255, 255, 255), 0.08), _mix(wall, _DARK, 0.16))


class _Subject:
    """Draws one figure whose head is around (x, y); lengths are multiplied by ``size``."""

    def __init__(self, brush: ImageDraw.ImageDraw, x: float, y: float, size: float, coat: Colour, dice: Dice) -> None:
        self._brush, self._x, self._y, self._size = brush, x, y, size
        self._coat, self._dice = coat, dice
        self._light = _mix(coat, (255, 250, 240), 0.6)
        self._shadow = _mix(coat, _DARK, 0.3)

    def draw(self, kind: str, thing: str) -> None:
        getattr(self, f"_{kind}")()
        eyes = {"duck": 2.0, "monster": -9.0}.get(kind, 0.0)
        if thing == "wearing glasses":
            self._glasses(eyes)
        elif thing == "wearing a hat":
            self._hat()
        elif thing == "eating nachos":
            self._nachos()
        elif thing == "with a ball":
            colour = COLOURS[self._dice.one_of(("red", "blue", "green", "yellow"))]
            self._round(-34, 52, 13, 13, colour)
            self._round(-38, 47, 4, 4, _mix(colour, (255, 255, 255), 0.6))

    def _point(self, x: float, y: float) -> tuple[float, float]:
        return self._x + self._size * x, self._y + self._size * y

    def _round(self, x: float, y: float, rx: float, ry: float, fill: Colour) -> None:
        left, top = self._point(x - rx, y - ry)
        right, bottom = self._point(x + rx, y + ry)
        self._brush.ellipse([left, top, right, bottom], fill=fill)

    def _box(self, x: float, y: float, rx: float, ry: float, fill: Colour, radius: float = 4) -> None:
        left, top = self._point(x - rx, y - ry)
        right, bottom = self._point(x + rx, y + ry)
        self._brush.rounded_rectangle([left, top, right, bottom], radius=radius * self._size, fill=fill)

    def _shape(self, points: Sequence[tuple[float, float]], fill: Colour) -> None:
        self._brush.polygon([self._point(x, y) for x, y in points], fill=fill)

    def _eyes(self, spread: float, y: float, radius: float) -> None:
        for side in (-1, 1):
            self._round(side * spread, y, radius, radius, _DARK)
            self._round(side * spread + 1, y - 1, radius / 3, radius / 3, (255, 255, 255))

    def _sitting(self) -> None:
        """A body seen from the front, with a light chest and paws."""
        self._round(0, 48, 25, 30, self._coat)
        for side in (-1, 1):
            self._round(side * 22, 66, 12, 12, self._shadow)
            self._round(side * 10, 74, 8, 6, self._light)
        self._round(0, 40, 13, 24, self._light)

    def _dog(self) -> None:
        upright = self._dice.chance(0.5)
        self._sitting()
        for side in (-1, 1):
            if upright:
                self._shape([(side * 8, -14), (side * 40, -34), (side * 22, 4)], self._coat)
                self._shape(
                    [(side * 14, -14), (side * 34, -29), (side * 21, -3)], _mix(self._light, (230, 150, 140), 0.5)
                )
            else:
                self._round(side * 24, 2, 8, 20, self._shadow)
        self._round(0, 0, 24, 22, self._coat)
        self._round(0, 8, 11, 13, self._light)
        self._shape([(-4, -20), (4, -20), (5, 2), (-5, 2)], self._light)
        self._eyes(10, -3, 4)
        self._round(0, 4, 5, 4, _DARK)
        if self._dice.chance(0.5):
            self._round(0, 16, 4, 6, (226, 96, 110))

    def _cat(self) -> None:
        self._round(36, 62, 6, 22, self._shadow)
        self._sitting()
        for side in (-1, 1):
            self._shape([(side * 6, -16), (side * 22, -34), (side * 24, -4)], self._coat)
        self._round(0, 0, 24, 20, self._coat)
        for x in (-8, 0, 8):
            self._shape([(x - 2, -19), (x + 2, -19), (x, -8)], self._shadow)
        self._round(0, 9, 9, 7, self._light)
        for side in (-1, 1):
            self._round(side * 10, -2, 5, 4, (150, 190, 80))
            self._round(side * 10, -2, 1.6, 4, _DARK)
        self._shape([(-3, 4), (3, 4), (0, 8)], (220, 110, 120))

    def _bear(self) -> None:
        self._sitting()
        for side in (-1, 1):
            self._round(side * 19, -18, 9, 9, self._coat)
            self._round(side * 19, -18, 5, 5, self._light)
            self._round(side * 26, 40, 8, 14, self._coat)
        self._round(0, 0, 25, 23, self._coat)
        self._round(0, 9, 12, 10, self._light)
        self._eyes(9, -4, 3)
        self._round(0, 5, 5, 3.5, _DARK)

    def _duck(self) -> None:
        self._round(14, 44, 38, 24, self._coat)
        self._shape([(44, 40), (58, 22), (48, 54)], self._coat)
        self._round(20, 42, 18, 12, self._shadow)
        self._round(0, 4, 23, 22, self._coat)
        self._round(-24, 10, 13, 6, (240, 126, 34))
        self._round(-24, 13, 11, 4, (208, 92, 24))
        self._round(-8, -2, 4, 5, _DARK)
        self._round(-7, -4, 1.5, 1.5, (255, 255, 255))

    def _robot(self) -> None:
        metal, lamp = self._coat, COLOURS[self._dice.one_of(("blue", "red", "green", "yellow"))]
        for side in (-1, 1):
            self._box(side * 32, 44, 7, 20, self._shadow)
            self._box(side * 12, 74, 9, 8, self._shadow)
        self._box(0, 44, 24, 26, metal)
        self._round(0, 40, 9, 9, lamp)
        self._box(0, -26, 2, 8, self._shadow, 1)
        self._round(0, -34, 4, 4, lamp)
        self._box(0, 0, 24, 19, metal, 8)
        self._box(0, -2, 19, 9, _DARK, 6)
        for side in (-1, 1):
            self._round(side * 9, -2, 4, 4, _mix(lamp, (255, 255, 255), 0.4))

    def _monster(self) -> None:
        for side in (-1, 1):
            self._shape([(side * 20, 30), (side * 50, 48), (side * 46, 56), (side * 16, 44)], self._coat)
            self._shape([(side * 8, 56), (side * 30, 78), (side * 20, 82), (side * 2, 60)], self._coat)
        self._round(0, 26, 30, 40, self._coat)
        self._round(0, 44, 16, 16, self._light)
        for side in (-1, 1):
            self._round(side * 14, -14, 11, 11, (246, 246, 240))
            self._round(side * 14, -12, 5, 5, _DARK)
        self._round(0, 14, 14, 7, _DARK)
        for x in (-7, 0, 7):
            self._shape([(x - 3, 8), (x + 3, 8), (x, 14)], (250, 250, 246))

    def _glasses(self, lower: float) -> None:
        frame = self._dice.one_of((_DARK, (150, 30, 40), (40, 60, 150)))
        for side in (-1, 1):
            self._round(side * 11, -3 + lower, 10, 9, frame)
            self._round(side * 11, -3 + lower, 7, 6, (170, 205, 230))
        self._box(0, -4 + lower, 4, 1.6, frame, 1)

    def _hat(self) -> None:
        cloth = COLOURS[self._dice.one_of(("red", "blue", "green", "purple", "black"))]
        self._box(0, -34, 15, 14, cloth, 3)
        self._box(0, -24, 15, 3, _mix(cloth, (255, 255, 255), 0.6), 1)
        self._box(0, -20, 26, 4, cloth, 3)

    def _nachos(self) -> None:
        """A plate before the subject, triangular chips on it and one at the mouth."""
        self._round(0, 70, 38, 11, (250, 250, 250))
        self._round(0, 69, 31, 8, (214, 220, 226))
        for i in range(9):
            angle = math.tau * self._dice.uniform(0, 1)
            x, y = -24 + 6 * i, 63 + self._dice.uniform(-5, 4)
            corners = [(x + 9 * math.cos(angle + k * 2.09), y + 7 * math.sin(angle + k * 2.09)) for k in range(3)]
            self._shape(corners, _mix((244, 176, 44), (216, 120, 24), self._dice.uniform(0, 1)))
        for _ in range(3):
            self._round(self._dice.uniform(-18, 18), self._dice.uniform(60, 66), 2.5, 2, (200, 44, 36))
        self._shape([(-7, 12), (8, 14), (0, 26)], (240, 170, 40))
