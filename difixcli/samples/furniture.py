"""Random furniture along the walls of random rooms."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from difixcli.samples import paint
from difixcli.samples.raycast import Painter, Solid, box
from difixcli.samples.things import Place, color_of, material, scattered, thing, wood

DEPTH = 0.95
"""How far from its wall furniture reaches at most, in metres."""


@dataclass(frozen=True)
class Hull:
    """An empty room around the origin, `wide` × `deep` × `high` metres, its floor at z = 0; `solid` is its walls."""

    wide: float
    deep: float
    high: float
    solid: Solid

    def walls(self) -> list[tuple[Place, float]]:
        """For each wall a place on the floor at its middle, whose y axis leads into the room, and its length."""
        at = ((0, -self.deep / 2, 0, self.wide), (self.wide / 2, 0, 90, self.deep))
        back = ((0, self.deep / 2, 180, self.wide), (-self.wide / 2, 0, 270, self.deep))
        return [(Place(x, y, 0, turn, 160, 18), length) for x, y, turn, length in (*at, *back)]


def hull(rng: np.random.Generator, wide: float, deep: float, high: float) -> Hull:
    """A room of that size in random paint, some walls alike."""
    common, other = _wall_paint(rng), _wall_paint(rng)
    paints: dict[str, Painter] = {side: common if rng.random() < 0.6 else other for side in ("-x", "+x", "-y", "+y")}
    paints |= {"-z": _floor_paint(rng), "+z": paint.plaster((0.88, 0.87, 0.84), 0.05)}
    if rng.random() < 0.2:
        paints["+z"] = wood(rng)
    return Hull(wide, deep, high, box((0, 0, high / 2), (wide, deep, high), paints, inside=True, density=110))


def furnished(room: Hull, rng: np.random.Generator, filled: float) -> list[Solid]:
    """What stands along and hangs on the walls of a room; about the share `filled` of their length is taken."""
    solids: list[Solid] = []
    for wall, length in room.walls():
        x = -length / 2 + DEPTH  # corners stay free: what stands at the next wall may reach into them
        while x < length / 2 - DEPTH - 0.5:
            free = length / 2 - DEPTH - x
            if rng.random() > filled:
                step = min(free, rng.uniform(0.5, 1.4))
                if rng.random() < 0.7:
                    solids += _hung(wall.shifted(x + step / 2, 0, 0), step, room.high, 0.6, rng)
                x += step
                continue
            wide = min(free, float(rng.uniform(0.6, 2.0)))
            pieces, top = _PIECES[int(rng.integers(len(_PIECES)))](wall.shifted(x + wide / 2, 0, 0), wide, rng)
            solids += pieces
            if top < 0.6 * room.high:
                solids += _hung(wall.shifted(x + wide / 2, 0, 0), wide, room.high, top + 0.35, rng)
            x += wide + rng.uniform(0.05, 0.3)
    return solids


def table(place: Place, half: tuple[float, float], high: float, rng: np.random.Generator, round_: bool) -> list[Solid]:
    """A table whose top, at `high` metres, reaches ±`half` from the place's origin; half[0] all around if `round_`."""
    top, leg = _top_paint(rng), wood(rng)
    thick = float(rng.uniform(0.02, 0.06))
    legs_high = high - thick
    if round_:
        board = place.drum((0, 0, high - thick / 2), half[0], thick, {"+z": top, "*": leg})
        return [board, place.drum((0, 0, legs_high / 2), 0.12 * half[0] + 0.02, legs_high, leg)]
    board = place.box((0, 0, high - thick / 2), (2 * half[0], 2 * half[1], thick), {"+z": top, "*": leg})
    if rng.random() < 0.3:  # a chest
        return [board, place.box((0, 0, legs_high / 2), (1.8 * half[0], 1.8 * half[1], legs_high), material(rng))]
    corners = [(a * (half[0] - 0.06), b * (half[1] - 0.06)) for a in (-1, 1) for b in (-1, 1)]
    return [board, *(place.box((x, y, legs_high / 2), (0.06, 0.06, legs_high), leg) for x, y in corners)]


def chair(place: Place, rng: np.random.Generator) -> list[Solid]:
    """A chair that looks along the place's y axis."""
    seat, frame = material(rng), wood(rng)
    legs = [place.box((x, y, 0.21), (0.04, 0.04, 0.42), frame) for x in (-0.18, 0.18) for y in (-0.18, 0.18)]
    back = place.box((0, -0.2, 0.72), (0.42, 0.04, rng.uniform(0.2, 0.5)), seat)
    posts = [place.box((x, -0.2, 0.66), (0.04, 0.04, 0.5), frame) for x in (-0.18, 0.18)]
    return [*legs, place.box((0, 0, 0.44), (0.44, 0.44, 0.05), seat), *posts, back]


def topped(place: Place, half: tuple[float, float], rng: np.random.Generator, count: int) -> list[Solid]:
    """Up to `count` things on a surface that reaches ±`half` from the place's origin."""
    solids = []
    for x, y, radius in scattered(rng, count, half, (0.05, max(0.06, min(0.2, 0.9 * min(half))))):
        solids += thing(place.shifted(x, y, 0, rng.uniform(0, 360)), radius, rng)
    return solids


def _wall_paint(rng: np.random.Generator) -> Painter:
    a, b, c = color_of(rng), color_of(rng), color_of(rng)
    pale = tuple(float(v) for v in 0.45 + 0.5 * np.asarray(a))
    kind = rng.random()
    if kind < 0.3:
        return paint.plaster(pale, rng.uniform(0.05, 0.15))  # type: ignore[arg-type]
    if kind < 0.55:
        return paint.wallpaper(pale, b, c, rng.uniform(0.25, 0.7))  # type: ignore[arg-type]
    if kind < 0.7:
        return paint.bricks(a, wide=rng.uniform(0.18, 0.4), high=rng.uniform(0.06, 0.15))
    if kind < 0.85:
        return paint.stripes((pale, b), rng.uniform(0.3, 1.0))  # type: ignore[arg-type]
    return paint.planks(a, rng.uniform(0.1, 0.3), 2.5, 0.0, across=True)


def _floor_paint(rng: np.random.Generator) -> Painter:
    kind = rng.random()
    if kind < 0.5:
        return wood(rng)
    if kind < 0.75:
        return paint.slabs(color_of(rng), rng.uniform(0.2, 0.7))
    if kind < 0.9:
        return paint.marble(color_of(rng), color_of(rng), 0.0)
    return paint.carpet(color_of(rng), color_of(rng), color_of(rng))


def _top_paint(rng: np.random.Generator) -> Painter:
    kind = rng.random()
    if kind < 0.35:
        return wood(rng)
    if kind < 0.5:
        return paint.scaled(paint.carpet(color_of(rng), color_of(rng), color_of(rng)), 0.4)
    if kind < 0.65:
        return paint.fabric(color_of(rng), color_of(rng), rng.uniform(0.05, 0.25))
    return paint.scaled(material(rng), rng.uniform(0.4, 1.0))


def _hung(place: Place, wide: float, high: float, above: float, rng: np.random.Generator) -> list[Solid]:
    """A picture, window, shelf or nothing on a wall, `wide` metres at most, between `above` and the ceiling."""
    tall = min(high - above - 0.25, float(rng.uniform(0.4, 1.2)))
    broad = min(wide - 0.1, float(rng.uniform(0.4, 1.4)))
    if tall < 0.3 or broad < 0.3:
        return []
    z = above + tall / 2 + float(rng.uniform(0, 0.3)) * (high - above - tall)
    kind = rng.random()
    if kind < 0.25:
        window = paint.window(int(rng.integers(1, 4)))
        glow = float(rng.uniform(0.9, 1.3))
        return [place.box((0, 0.02, z), (broad, 0.04, tall), {"+y": window, "*": wood(rng)}, emission=glow)]
    if kind < 0.4:
        shelf = place.box((0, 0.13, z), (broad, 0.26, 0.03), wood(rng))
        return [shelf, *topped(place.shifted(0, 0.13, z + 0.015), (broad / 2, 0.13), rng, int(rng.integers(1, 5)))]
    if kind < 0.85:
        picture = paint.blocks() if rng.random() < 0.4 else paint.landscape(rng.uniform())
        if rng.random() < 0.2:
            picture = paint.lettering(color_of(rng), color_of(rng))
        return [place.box((0, 0.02, z), (broad, 0.04, tall), {"+y": picture, "*": wood(rng)})]
    return []


Piece = tuple[list[Solid], float]
"""The solids of a piece of furniture and how high they reach."""


def _cabinet(place: Place, wide: float, rng: np.random.Generator) -> Piece:
    deep, high = float(rng.uniform(0.35, 0.55)), float(rng.uniform(0.5, 1.1))
    body = place.box((0, deep / 2, high / 2), (wide, deep, high), {"+y": _front(rng), "*": wood(rng)})
    top = place.shifted(0, deep / 2, high)
    return [body, *topped(top, (wide / 2, deep / 2), rng, int(rng.integers(0, 5)))], high


def _bookcase(place: Place, wide: float, rng: np.random.Generator) -> Piece:
    deep, high, shelves = float(rng.uniform(0.25, 0.4)), float(rng.uniform(1.0, 2.1)), int(rng.integers(3, 7))
    front = paint.books(shelves=shelves)
    return [place.box((0, deep / 2, high / 2), (wide, deep, high), {"+y": front, "*": wood(rng)})], high


def _wardrobe(place: Place, wide: float, rng: np.random.Generator) -> Piece:
    deep, high = float(rng.uniform(0.5, 0.65)), float(rng.uniform(1.6, 2.15))
    return [place.box((0, deep / 2, high / 2), (wide, deep, high), {"+y": _front(rng), "*": material(rng)})], high


def _door(place: Place, wide: float, rng: np.random.Generator) -> Piece:
    front = paint.planks(color_of(rng), rng.uniform(0.2, 0.5), 2.0, 0.1, across=True)
    knob = place.ball((0.32, 0.09, 1.0), 0.03, paint.marble((0.9, 0.8, 0.5), (0.7, 0.6, 0.3)))
    return [place.box((0, 0.03, 1.0), (0.85, 0.06, 2.0), {"+y": front, "*": wood(rng)}), knob], 2.0


def _sofa(place: Place, wide: float, rng: np.random.Generator) -> Piece:
    cloth, wide = material(rng), max(wide, 0.9)
    solids = [
        place.box((0, 0.45, 0.21), (wide, 0.75, 0.42), cloth),
        place.box((0, 0.14, 0.55), (wide, 0.22, 0.6), cloth),
        *(place.box((s * (wide / 2 - 0.09), 0.45, 0.31), (0.18, 0.78, 0.62), cloth) for s in (-1, 1)),
    ]
    for x in np.arange(-wide / 2 + 0.45, wide / 2 - 0.4, 0.5):
        if rng.random() < 0.6:
            cushion = place.box((x, 0.34, 0.58), (0.4, 0.14, 0.36), material(rng), rng.uniform(-15, 15))
            solids.append(cushion)
    return solids, 0.85


def _desk(place: Place, wide: float, rng: np.random.Generator) -> Piece:
    wide, high, deep = max(wide, 0.9), float(rng.uniform(0.68, 0.78)), float(rng.uniform(0.5, 0.65))
    stand = place.shifted(0, deep / 2, 0)
    solids = table(stand, (wide / 2, deep / 2), high, rng, False)
    solids += topped(stand.shifted(0, 0, high), (wide / 2, deep / 2), rng, int(rng.integers(2, 7)))
    return solids, high + 0.3


def _plant(place: Place, wide: float, rng: np.random.Generator) -> Piece:
    radius, high = float(rng.uniform(0.14, 0.24)), float(rng.uniform(0.25, 0.5))
    pot = paint.glaze(color_of(rng), color_of(rng), 2, 0.2)
    leaf = paint.leaves((rng.uniform(0.15, 0.4), rng.uniform(0.35, 0.6), rng.uniform(0.1, 0.3)), 0.08)
    y, rise = 0.42, float(rng.uniform(0.2, 0.9))
    solids = [place.drum((0, y, high / 2), radius, high, pot)]
    solids.append(place.drum((0, y, high + rise / 2), 0.03, rise, wood(rng)))
    for _ in range(rng.integers(3, 8)):
        dx, dy, dz = rng.uniform(-0.2, 0.2, 3)
        solids.append(place.ball((dx, y + dy, high + rise + dz), rng.uniform(0.12, 0.24), leaf))
    return solids, high + rise + 0.4


def _lamp(place: Place, wide: float, rng: np.random.Generator) -> Piece:
    high = float(rng.uniform(1.3, 1.8))
    shade = paint.stripes(((0.98, 0.9, 0.72), color_of(rng)), 0.15)
    return [
        place.drum((0, 0.35, 0.02), 0.16, 0.04, wood(rng)),
        place.drum((0, 0.35, high / 2), 0.02, high, wood(rng)),
        place.drum((0, 0.35, high), rng.uniform(0.14, 0.24), 0.28, shade, emission=rng.uniform(0.6, 1.0)),
    ], high + 0.2


def _boxes(place: Place, wide: float, rng: np.random.Generator) -> Piece:
    solids, top, y = [], 0.0, 0.4
    for _ in range(rng.integers(1, 5)):
        side, high = float(rng.uniform(0.3, 0.55)), float(rng.uniform(0.2, 0.45))
        body = place.box((0, y, top + high / 2), (side, side, high), material(rng), rng.uniform(-20, 20))
        solids.append(body)
        top += high
    return solids, top


def _bed(place: Place, wide: float, rng: np.random.Generator) -> Piece:
    wide = max(wide, 1.2)
    solids = [
        place.box((0, 0.46, 0.16), (wide, 0.9, 0.32), wood(rng)),
        place.box((0, 0.46, 0.42), (wide - 0.06, 0.84, 0.2), material(rng)),
        place.box((-wide / 2 + 0.03, 0.46, 0.45), (0.06, 0.9, 0.9), wood(rng)),
        place.box((-wide / 2 + 0.3, 0.46, 0.57), (0.34, 0.55, 0.12), material(rng), rng.uniform(-12, 12)),
    ]
    return solids, 0.9


def _chairs(place: Place, wide: float, rng: np.random.Generator) -> Piece:
    return chair(place.shifted(0, 0.4, 0, rng.uniform(-40, 40)), rng), 1.0


def _front(rng: np.random.Generator) -> Painter:
    if rng.random() < 0.6:
        return paint.planks(color_of(rng), rng.uniform(0.15, 0.5), rng.uniform(0.4, 1.2), rng.choice([0.0, 0.3]))
    return material(rng)


_PIECES: Sequence[Callable[[Place, float, np.random.Generator], Piece]] = (
    _cabinet, _cabinet, _bookcase, _bookcase, _wardrobe, _door, _sofa, _desk, _plant, _lamp, _boxes, _bed, _chairs,
)  # fmt: skip
