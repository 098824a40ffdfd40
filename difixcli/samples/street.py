"""The sample scene `street`: a street that is driven along with three cameras."""

from __future__ import annotations

import numpy as np

from difixcli.samples import paint
from difixcli.samples.raycast import Light, Solid, World, box, cylinder, sphere
from difixcli.samples.views import UP, View, pinhole
from difixcli.scenes.poses import look_at

CAR_COLORS = (
    (0.72, 0.73, 0.75),
    (0.20, 0.22, 0.26),
    (0.62, 0.14, 0.13),
    (0.16, 0.28, 0.46),
    (0.86, 0.84, 0.78),
    (0.30, 0.40, 0.34),
)


def street(rng: np.random.Generator) -> tuple[World, list[View]]:
    """A street driven along +y for 17 m with a left, a centre and a right camera; the centre one trains."""
    near, far = -6.0, 44.0
    middle, length = (near + far) / 2, far - near
    curb = paint.slabs((0.62, 0.61, 0.58), 0.9)
    solids: list[Solid] = [
        box((0, middle, -0.25), (7.4, length, 0.5), {"+z": paint.asphalt((3.7,), (1.75, 5.65))}, density=44),
    ]
    for side in (-1, 1):
        yard = paint.slabs((0.45, 0.46, 0.40), 1.2)
        solids.append(box((side * 16.2, middle, -0.25), (20, length + 60, 0.6), {"+z": yard}, density=10))
        pavement = {"+z": paint.slabs((0.58, 0.56, 0.53), 0.6), "-x" if side > 0 else "+x": curb}
        solids.append(box((side * 5.0, middle, -0.18), (2.6, length, 0.6), pavement, density=40))
        solids += _houses(side, near, far, rng)
        at = near + 3.0 + 2.5 * (side > 0)
        while at < far - 6:
            solids += _tree(side * 4.7, at, rng)
            at += rng.uniform(7.5, 9.5)
        for y in np.arange(near + (4 if side < 0 else 10), far, 13.0):
            metal = paint.plaster((0.22, 0.26, 0.24), 0.2, 0.3)
            solids.append(cylinder((side * 4.05, y, 2.3), 0.06, 4.4, metal, density=40))
            solids.append(cylinder((side * 3.75, y, 4.45), 0.035, 0.7, metal, axis="x", density=40))
            solids.append(sphere((side * 3.4, y, 4.38), 0.17, paint.plaster((0.95, 0.93, 0.85)), density=40))
        at = near + rng.uniform(1, 3)
        while at < far - 8:
            if rng.random() < 0.66:
                solids += _car(side * 2.85, at, rng)
            at += rng.uniform(5.3, 6.4)
    for i, x in enumerate((-9.5, 0.0, 9.5)):
        front = paint.facade(paint.bricks(((0.60, 0.40, 0.32), (0.70, 0.62, 0.50), (0.52, 0.44, 0.42))[i]))
        solids.append(box((x, far + 5, 6.0), (9.4, 8, 12 + 1.5 * i), {"-y": front}, density=24))
    sky = paint.sky(rng)
    sun = Light(np.array([-0.34, -0.44, 0.83]), np.array([1.7, 1.52, 1.25]), 0.02, distant=True, samples=4)
    world = World(solids, [sun], sky, 7.0, 4, rng)
    views = []
    for name, offset, turn in (("centre", 0.0, 0.0), ("left", -0.5, -32.0), ("right", 0.5, 32.0)):
        for i in range(16):
            y = 1.1 * i
            position = np.array([0.4 + offset + 0.12 * np.sin(0.35 * i), y, 1.55])
            heading = np.deg2rad(turn)
            target = position + np.array([np.sin(heading), np.cos(heading), -0.04])
            camera = pinhole(look_at(position, target, UP), 320, 200, 72)
            views.append(View(f"{name}/{i:03d}", camera, name, name == "centre"))
    return world, views


def _houses(side: int, near: float, far: float, rng: np.random.Generator) -> list[Solid]:
    """A row of houses on one side (−1 left, 1 right), with an alley now and then."""
    solids: list[Solid] = []
    tones = [(0.66, 0.38, 0.28), (0.80, 0.70, 0.52), (0.56, 0.60, 0.62), (0.74, 0.48, 0.36), (0.70, 0.72, 0.60)]
    y, number = near, 0
    while y < far - 3:
        wide, high = rng.uniform(6, 9), rng.uniform(8, 12.5)
        tone = tones[int(rng.integers(len(tones)))]
        wall = paint.bricks(tone) if rng.random() < 0.55 else paint.plaster(tone, 0.09)
        shop = paint.hue_of(rng) if rng.random() < 0.5 else None
        front = paint.facade(wall, rng.uniform(2.9, 3.3), rng.uniform(1.8, 2.4), shop)
        setback = rng.uniform(0, 0.5)
        x = side * (6.3 + setback + 3)
        inner = "+x" if side < 0 else "-x"
        solids.append(box((x, y + wide / 2, high / 2), (6, wide, high), {inner: front, "-y": wall}, density=44))
        if shop is not None:
            wall_x = side * (6.3 + setback)
            sign = paint.lettering(shop, (0.96, 0.93, 0.84))
            solids.append(box((wall_x, y + wide / 2, 2.65), (0.24, 0.8 * wide, 0.5), sign, density=70))
            awning = paint.fabric((0.92, 0.90, 0.84), shop, 0.5)
            solids.append(box((wall_x - side * 0.45, y + wide / 2, 2.38), (1.0, 0.7 * wide, 0.06), awning, density=44))
        if number % 2:
            plate = paint.lettering((0.12, 0.25, 0.42), (0.95, 0.95, 0.95))
            solids.append(box((side * (5.9 + setback), y + 0.6, 3.6), (0.8, 0.1, 0.7), plate, density=70))
        y += wide + (1.8 if number % 3 == 2 else 0.0)
        number += 1
    return solids


def _tree(x: float, y: float, rng: np.random.Generator) -> list[Solid]:
    """A street tree: a trunk in an iron ring and a crown of leafy balls."""
    bark = paint.planks((0.36, 0.29, 0.22), board=0.07, length=0.3, gloss=0.0, across=True)
    leaf = paint.leaves((0.34, 0.50, 0.20), 0.22)
    high = rng.uniform(3.2, 4.0)
    solids = [cylinder((x, y, high / 2), 0.14, high, bark, density=60)]
    for _ in range(5):
        dx, dy, dz = rng.uniform(-0.75, 0.75, 3)
        solids.append(sphere((x + dx, y + dy, high + 0.5 + dz), rng.uniform(0.55, 0.9), leaf, density=40))
    return solids


def _car(x: float, y: float, rng: np.random.Generator) -> list[Solid]:
    """A parked car, 4.2 m long, its middle at (x, y)."""
    color = CAR_COLORS[int(rng.integers(len(CAR_COLORS)))]
    side, end, plain = paint.car_side(color), paint.car_end(color), paint.plaster(color, 0.02, 0.35)
    glass = {"+z": plain, "*": paint.glasshouse(color)}
    shift = float(rng.uniform(-0.2, 0.1))
    solids = [
        box((x, y, 0.62), (1.72, 4.2, 0.62), {"-x": side, "+x": side, "-y": end, "+y": end, "*": plain}, density=70),
        box((x, y + shift, 1.17), (1.5, 2.3, 0.5), glass, density=70),
        box((x, y + shift, 1.44), (1.4, 1.9, 0.06), plain, density=40),
    ]
    tyre = {"side": paint.plaster((0.1, 0.1, 0.11)), "*": paint.wheel()}
    # Only the wheels on the road's side are ever seen.
    at = x - float(np.sign(x)) * 0.76
    solids += [cylinder((at, y + dy, 0.33), 0.33, 0.22, tyre, axis="x", density=70) for dy in (-1.3, 1.3)]
    return solids
