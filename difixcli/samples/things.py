"""Random things of random make: what stands on tables and floors of the scenes that differ with every seed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.spatial.transform import Rotation

from difixcli.samples import paint
from difixcli.samples.paint import Color
from difixcli.samples.raycast import Painter, Solid

WOODS: tuple[Color, ...] = (
    (0.72, 0.52, 0.33),
    (0.42, 0.27, 0.17),
    (0.80, 0.64, 0.42),
    (0.55, 0.36, 0.22),
    (0.86, 0.80, 0.70),
    (0.30, 0.24, 0.21),
)


@dataclass(frozen=True)
class Place:
    """A frame of its own in the world: its origin (metres) and its turn about z in degrees.

    Solids made here have local coordinates; `density` and `light_density` are those of their texels.
    """

    x: float
    y: float
    z: float
    turn: float = 0.0
    density: float = 300.0
    light_density: float = 40.0

    def shifted(self, x: float, y: float, z: float, turn: float = 0.0) -> Place:
        """The place at a local position, turned further by `turn`."""
        ax, ay, az = self._world((x, y, z))
        return Place(ax, ay, az, self.turn + turn, self.density, self.light_density)

    def box(
        self,
        centre: Sequence[float],
        size: Sequence[float],
        painters: dict[str, Painter] | Painter,
        turn: float = 0.0,
        tilt: tuple[str, float] | None = None,
        emission: float = 0.0,
    ) -> Solid:
        """A box of `size` (full extents), turned about z by `turn` after a `tilt` about its own axis, in degrees."""
        half = [side / 2 for side in size]
        return self._solid("box", centre, half, painters, self._rotation(turn, tilt), emission)

    def ball(self, centre: Sequence[float], radius: float, painter: Painter, emission: float = 0.0) -> Solid:
        """A sphere."""
        return self._solid("sphere", centre, [radius] * 3, painter, self._rotation(0, None), emission)

    def drum(
        self,
        centre: Sequence[float],
        radius: float,
        height: float,
        painters: dict[str, Painter] | Painter,
        turn: float = 0.0,
        tilt: tuple[str, float] | None = None,
        emission: float = 0.0,
    ) -> Solid:
        """A cylinder, upright unless tilted."""
        return self._solid(
            "cylinder", centre, [radius, radius, height / 2], painters, self._rotation(turn, tilt), emission
        )

    def _solid(
        self,
        kind: str,
        centre: Sequence[float],
        half: Sequence[float],
        painters: dict[str, Painter] | Painter,
        rotation: np.ndarray,
        emission: float,
    ) -> Solid:
        return Solid(
            kind,
            np.asarray(self._world(centre), dtype=np.float32),
            np.asarray(half, dtype=np.float32),
            painters if isinstance(painters, dict) else {"*": painters},
            rotation,
            emission=emission,
            density=self.density,
            light_density=self.light_density,
        )

    def _world(self, local: Sequence[float]) -> tuple[float, float, float]:
        angle = np.deg2rad(self.turn)
        x, y, z = local
        return (
            float(self.x + np.cos(angle) * x - np.sin(angle) * y),
            float(self.y + np.sin(angle) * x + np.cos(angle) * y),
            float(self.z + z),
        )

    def _rotation(self, turn: float, tilt: tuple[str, float] | None) -> np.ndarray:
        rotation = Rotation.from_euler("z", self.turn + turn, degrees=True)
        if tilt is not None:
            rotation = rotation * Rotation.from_euler(tilt[0], tilt[1], degrees=True)
        return rotation.as_matrix().astype(np.float32)


def color_of(rng: np.random.Generator) -> Color:
    """A random sRGB colour: strong, pale, dark or nearly grey."""
    kind = rng.random()
    if kind < 0.55:
        return paint.hue_of(rng)
    base = np.asarray(paint.hue_of(rng))
    if kind < 0.75:
        base = 0.55 + 0.4 * base
    elif kind < 0.88:
        base = 0.45 * base
    else:
        base = rng.uniform(0.15, 0.9) + 0.15 * (base - base.mean())
    red, green, blue = np.clip(base, 0.04, 0.97)
    return float(red), float(green), float(blue)


def wood(rng: np.random.Generator) -> Painter:
    """Boards of one of `WOODS`."""
    tone = WOODS[int(rng.integers(len(WOODS)))]
    return paint.planks(tone, rng.uniform(0.06, 0.4), rng.uniform(0.5, 2.0), rng.choice([0.0, 0.15, 0.45]))


def material(rng: np.random.Generator) -> Painter:
    """Any paint in random colours, at the scale of furniture."""
    a, b, c = color_of(rng), color_of(rng), color_of(rng)
    makers: list[Callable[[], Painter]] = [
        lambda: paint.plaster(a, rng.uniform(0.05, 0.3), rng.choice([0.0, 0.2])),
        lambda: paint.wallpaper(a, b, c, rng.uniform(0.2, 0.5)),
        lambda: wood(rng),
        lambda: paint.bricks(a, b, rng.uniform(0.1, 0.3), rng.uniform(0.05, 0.12)),
        lambda: paint.slabs(a, rng.uniform(0.08, 0.3)),
        lambda: paint.fabric(a, b, rng.uniform(0.04, 0.2)),
        lambda: paint.marble(a, b, rng.choice([0.0, 0.5])),
        lambda: paint.leaves(a, rng.uniform(0.04, 0.1)),
        lambda: paint.patches((a, b, c), rng.uniform(0.1, 0.4)),
        lambda: paint.patches((a, b), rng.uniform(0.1, 0.4)),
        lambda: paint.dots(a, b, rng.uniform(0.06, 0.2)),
        lambda: paint.stripes((a, b, c), rng.uniform(0.1, 0.5), 0.0, bool(rng.random() < 0.5)),
    ]
    return makers[int(rng.integers(len(makers)))]()


def small(rng: np.random.Generator) -> Painter:
    """Any paint in random colours, at the scale of what one can lift."""
    kind = rng.random()
    if kind < 0.1:
        return paint.lettering(color_of(rng), color_of(rng))
    if kind < 0.2:
        picture = paint.blocks() if rng.random() < 0.5 else paint.landscape(rng.uniform())
        return paint.scaled(picture, rng.uniform(0.1, 0.25))
    if kind < 0.35:
        return paint.glaze(color_of(rng), color_of(rng), int(rng.integers(1, 5)), rng.choice([0.1, 0.5]))
    return paint.scaled(material(rng), rng.uniform(0.2, 0.7))


def thing(place: Place, radius: float, rng: np.random.Generator) -> list[Solid]:
    """A random thing that stands at a place's origin and is about `radius` wide to each side."""
    return _THINGS[int(rng.integers(len(_THINGS)))](place, radius, rng)


def scattered(
    rng: np.random.Generator, count: int, half: tuple[float, float], radii: tuple[float, float], round_: bool = False
) -> list[tuple[float, float, float]]:
    """Up to `count` circles (x, y, radius) that do not touch within ±`half`, or the ellipse of those half axes."""
    found: list[tuple[float, float, float]] = []
    for _ in range(40 * count):
        radius = float(rng.uniform(*radii))
        x, y = (float(rng.uniform(-1, 1) * max(side - radius, 0)) for side in half)
        if round_ and np.hypot(x / half[0], y / half[1]) > 1 - radius / min(half):
            continue
        if all(np.hypot(x - a, y - b) > radius + r for a, b, r in found):
            found.append((x, y, radius))
        if len(found) == count:
            break
    return found


def _block(place: Place, r: float, rng: np.random.Generator) -> list[Solid]:
    wide, deep = r * rng.uniform(0.5, 1.4, 2)
    high = r * rng.uniform(0.4, 3.0)
    paints: dict[str, Painter] = {"*": small(rng)}
    if rng.random() < 0.5:  # a package: another print on some sides
        paints |= {"-x": small(rng), "+y": small(rng), "+z": small(rng)}
    return [place.box((0, 0, high / 2), (wide, deep, high), paints)]


def _stack(place: Place, r: float, rng: np.random.Generator) -> list[Solid]:
    solids, z = [], 0.0
    wide, deep = r * rng.uniform(0.9, 1.4, 2)
    for _ in range(rng.integers(2, 6)):
        high = r * rng.uniform(0.15, 0.5)
        cover = paint.lettering(color_of(rng), color_of(rng)) if rng.random() < 0.6 else small(rng)
        solids.append(place.box((0, 0, z + high / 2), (wide, deep, high), cover, rng.uniform(-35, 35)))
        z += high
        wide, deep = wide * rng.uniform(0.75, 1.0), deep * rng.uniform(0.75, 1.0)
    return solids


def _ball(place: Place, r: float, rng: np.random.Generator) -> list[Solid]:
    radius = r * rng.uniform(0.5, 0.95)
    return [place.ball((0, 0, radius), radius, small(rng))]


def _can(place: Place, r: float, rng: np.random.Generator) -> list[Solid]:
    radius, high = r * rng.uniform(0.35, 0.8), r * rng.uniform(0.5, 3.0)
    body = place.drum((0, 0, high / 2), radius, high, {"side": small(rng), "*": small(rng)})
    if rng.random() < 0.4:  # a bottle
        neck = place.drum((0, 0, high * 1.2), radius * 0.35, high * 0.4, small(rng))
        return [body, neck]
    return [body]


def _log(place: Place, r: float, rng: np.random.Generator) -> list[Solid]:
    radius, long = r * rng.uniform(0.25, 0.6), r * rng.uniform(1.0, 1.8)
    paints = {"side": small(rng), "*": small(rng)}
    return [place.drum((0, 0, radius), radius, long, paints, tilt=("x", 90.0))]


def _vase(place: Place, r: float, rng: np.random.Generator) -> list[Solid]:
    radius, high = 0.45 * r, r * rng.uniform(0.7, 1.6)
    pot = paint.glaze(color_of(rng), color_of(rng), int(rng.integers(1, 4)), rng.choice([0.1, 0.6]))
    solids = [place.drum((0, 0, high / 2), radius, high, pot)]
    leaf = paint.scaled(paint.leaves(color_of(rng) if rng.random() < 0.4 else (0.3, 0.5, 0.2)), r / 0.3)
    for _ in range(rng.integers(3, 7)):
        x, y, z = rng.uniform(-0.5, 0.5, 3) * r
        solids.append(place.ball((x, y, high + 0.4 * r + z), r * rng.uniform(0.25, 0.5), leaf))
    return solids


def _bowl(place: Place, r: float, rng: np.random.Generator) -> list[Solid]:
    high = 0.35 * r
    solids = [place.drum((0, 0, high / 2), 0.95 * r, high, small(rng))]
    fruit = small(rng)
    for k in range(rng.integers(3, 7)):
        angle, radius = 2.4 * k, r * rng.uniform(0.25, 0.4)
        away = 0.55 * r * (k > 0)
        at = (away * np.cos(angle), away * np.sin(angle), high + radius * 0.8)
        solids.append(place.ball(at, radius, fruit if rng.random() < 0.6 else small(rng)))
    return solids


def _mug(place: Place, r: float, rng: np.random.Generator) -> list[Solid]:
    radius, high, skin = 0.5 * r, 1.1 * r, small(rng)
    handle = [place.box((radius + 0.15 * r, 0, z * high), (0.4 * r, 0.14 * r, 0.14 * r), skin) for z in (0.25, 0.75)]
    grip = place.box((radius + 0.3 * r, 0, 0.5 * high), (0.14 * r, 0.14 * r, 0.6 * high), skin)
    return [place.drum((0, 0, high / 2), radius, high, skin), *handle, grip]


def _lamp(place: Place, r: float, rng: np.random.Generator) -> list[Solid]:
    high = r * rng.uniform(1.5, 3.0)
    shade = paint.stripes(((0.98, 0.88, 0.68), color_of(rng)), 0.5 * r)
    return [
        place.drum((0, 0, 0.06 * r), 0.6 * r, 0.12 * r, small(rng)),
        place.drum((0, 0, high / 2), 0.08 * r, high, small(rng)),
        place.drum((0, 0, high), r * rng.uniform(0.5, 0.8), 0.9 * r, shade, emission=rng.uniform(0.6, 1.0)),
    ]


def _house(place: Place, r: float, rng: np.random.Generator) -> list[Solid]:
    wide, deep, high = r * rng.uniform(0.9, 1.6), r * rng.uniform(0.7, 1.1), r * rng.uniform(0.5, 1.3)
    walls = paint.scaled(paint.facade(paint.bricks(color_of(rng)), 2.6, 1.6), r / 4)
    roof = paint.scaled(paint.slabs(color_of(rng), 0.25), r)
    # a square bar on its edge, half sunk into the walls
    bar = place.box((0, 0, high), (1.06 * wide, deep / np.sqrt(2), deep / np.sqrt(2)), roof, tilt=("x", 45.0))
    return [place.box((0, 0, high / 2), (wide, deep, high), {"*": walls}), bar]


def _totem(place: Place, r: float, rng: np.random.Generator) -> list[Solid]:
    solids: list[Solid] = []
    z, size = 0.0, r * rng.uniform(0.6, 0.9)
    for _ in range(rng.integers(2, 5)):
        kind = rng.integers(3)
        if kind == 0:
            solids.append(place.ball((0, 0, z + size), size, small(rng)))
            z += 1.9 * size
        elif kind == 1:
            solids.append(place.drum((0, 0, z + size / 2), size, size, small(rng)))
            z += size
        else:
            solids.append(place.box((0, 0, z + size * 0.6), (1.4 * size, 1.4 * size, 1.2 * size), small(rng), 30 * z))
            z += 1.2 * size
        size *= rng.uniform(0.6, 0.9)
    return solids


def _frame(place: Place, r: float, rng: np.random.Generator) -> list[Solid]:
    wide, high = r * rng.uniform(1.0, 1.9), r * rng.uniform(1.0, 2.0)
    picture = paint.blocks() if rng.random() < 0.5 else paint.landscape(rng.uniform())
    front = paint.scaled(picture, 0.35 * r / 0.3)
    paints = {"-y": front, "*": wood(rng)}
    return [place.box((0, 0, 0.48 * high), (wide, 0.08 * r, high), paints, tilt=("x", -rng.uniform(5, 20)))]


def _arch(place: Place, r: float, rng: np.random.Generator) -> list[Solid]:
    thick, high, skin = 0.35 * r, r * rng.uniform(0.8, 2.0), small(rng)
    post = [place.box((s * 0.7 * r, 0, high / 2), (thick, thick, high), skin) for s in (-1, 1)]
    return [*post, place.box((0, 0, high + thick / 2), (1.9 * r, 1.1 * thick, thick), small(rng))]


def _dice(place: Place, r: float, rng: np.random.Generator) -> list[Solid]:
    size = r * rng.uniform(0.6, 1.0)
    tilt = (str(rng.choice(["x", "y"])), float(rng.uniform(15, 75)))
    return [place.box((0, 0, 0.55 * size), (size, size, size), small(rng), tilt=tilt)]


def _stairs(place: Place, r: float, rng: np.random.Generator) -> list[Solid]:
    steps, skin = int(rng.integers(2, 5)), small(rng)
    deep, high = 1.6 * r / steps, r * rng.uniform(0.25, 0.5)
    return [
        place.box((-0.8 * r + (k + 0.5) * deep, 0, (k + 1) * high / 2), (deep, 1.1 * r, (k + 1) * high), skin)
        for k in range(steps)
    ]


_THINGS: tuple[Callable[[Place, float, np.random.Generator], list[Solid]], ...] = (
    _block, _block, _stack, _ball, _can, _log, _vase, _bowl, _mug, _lamp, _house, _totem, _frame, _arch, _dice, _stairs,
)  # fmt: skip
