"""The sample scenes `table`: with every seed other things on another table, seen from arcs around it."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from difixcli.samples import paint
from difixcli.samples.furniture import furnished, hull
from difixcli.samples.furniture import table as a_table
from difixcli.samples.raycast import Light, Solid, World, box
from difixcli.samples.things import Place, color_of, scattered, thing, wood
from difixcli.samples.views import UP, View, lens, pinhole, sees_freely
from difixcli.scenes.poses import look_at

Ambient = np.ndarray | Callable[[np.ndarray], np.ndarray]
"""What `World` takes for it."""

TRAINING, TEST = 20, 4


def table(rng: np.random.Generator) -> tuple[World, list[View]]:
    """Things on a table or on the ground, indoors or under the sky: 20 training views on arcs, 4 test views off them.

    What stands there, where and of what make, what is around, the light, the lens, and the arcs' radius, extent and
    heights differ with every seed.
    """
    half = (float(rng.uniform(0.35, 0.75)), float(rng.uniform(0.3, 0.6)))
    round_ = bool(rng.random() < 0.35)
    if round_:
        half = (half[0], half[0])
    place = Place(float(rng.uniform(-0.3, 0.3)), float(rng.uniform(-0.3, 0.3)), 0.0, float(rng.uniform(0, 360)))
    high = float(rng.uniform(0.35, 0.85)) if rng.random() < 0.75 else 0.0
    solids = a_table(place, half, high, rng, round_) if high else []
    if not high and rng.random() < 0.6:  # a rug
        rug = paint.scaled(paint.carpet(color_of(rng), color_of(rng), color_of(rng)), rng.uniform(0.4, 0.9))
        solids.append(place.box((0, 0, 0.005), (2.6 * half[0], 2.6 * half[1], 0.01), rug))
    largest = float(rng.uniform(0.12, 0.3))
    top = place.shifted(0, 0, high)
    for x, y, radius in scattered(rng, int(rng.integers(3, 13)), half, (0.06, largest), round_):
        solids += thing(top.shifted(x, y, 0, rng.uniform(0, 360)), radius, rng)
    middle = np.array([place.x, place.y, high + 0.5 * largest])
    if rng.random() < 0.7:
        around, lights, ambient, reach = _indoors(middle, rng)
    else:
        around, lights, ambient, reach = _outdoors(rng)
    solids += around
    views = _views(solids, middle, max(half), rng)
    return World(solids, lights, ambient, reach, 14, rng), views


def _indoors(middle: np.ndarray, rng: np.random.Generator) -> tuple[list[Solid], list[Light], Ambient, float]:
    """A room around the table, 5 to 8 m wide, and one or two lamps in it."""
    room = hull(rng, *(float(side) for side in rng.uniform((5.0, 5.0, 2.5), (8.0, 7.0, 3.4))))
    solids = [room.solid, *furnished(room, rng, rng.uniform(0.3, 0.8))]
    lights = []
    for share in (1.0,) if rng.random() < 0.5 else (0.65, 0.35):
        away, angle = rng.uniform(0.2, 1.8), rng.uniform(0, 2 * np.pi)
        at = np.array([away * np.cos(angle), away * np.sin(angle), room.high - rng.uniform(0.15, 0.6)])
        tint = np.array([1.0, rng.uniform(0.82, 1.0), rng.uniform(0.65, 1.05)])
        strength = share * rng.uniform(0.6, 1.1) * float(np.square(at - middle).sum())
        lights.append(Light(at, strength * tint, float(rng.uniform(0.05, 0.3))))
    return solids, lights, rng.uniform(0.22, 0.42) * np.array([1.0, 0.98, 0.97]), float(rng.uniform(0.5, 1.1))


def _outdoors(rng: np.random.Generator) -> tuple[list[Solid], list[Light], Ambient, float]:
    """Open ground with house fronts, walls and trees at some distance, a sky and a sun."""
    ground = [
        paint.slabs(color_of(rng), rng.uniform(0.3, 0.8)),
        paint.leaves((0.34, 0.50, 0.20), 0.12),
        paint.asphalt((), ()),
        wood(rng),
    ][int(rng.integers(4))]
    solids = [box((0, 0, -0.25), (9, 9, 0.5), {"+z": ground}, density=90)]
    solids.append(box((0, 0, -0.3), (60, 60, 0.5), {"+z": paint.leaves((0.40, 0.48, 0.26), 0.8)}, density=12))
    start = rng.uniform(0, 360)
    for k in range(8):
        turn, away = start + 45 * k + rng.uniform(-12, 12), rng.uniform(5.5, 10)
        spot = Place(0, 0, 0, turn, 30, 4).shifted(0, away, 0)
        kind = rng.random()
        if kind < 0.45:
            wide, high = float(rng.uniform(4, 7)), float(rng.uniform(4, 9))
            skin = paint.bricks(color_of(rng)) if rng.random() < 0.5 else paint.plaster(color_of(rng), 0.1)
            front = paint.facade(skin, rng.uniform(2.6, 3.2), rng.uniform(1.6, 2.4))
            solids.append(spot.box((0, 2, high / 2), (wide, 4, high), {"-y": front, "*": skin}))
        elif kind < 0.7:
            leaf = paint.leaves((rng.uniform(0.2, 0.45), rng.uniform(0.4, 0.55), 0.2), 0.22)
            high = float(rng.uniform(1.5, 3.0))
            solids.append(spot.drum((0, 0, high / 2), 0.14, high, wood(rng)))
            for _ in range(4):
                x, y, z = rng.uniform(-0.7, 0.7, 3)
                solids.append(spot.ball((x, y, high + 0.4 + z), rng.uniform(0.5, 0.9), leaf))
        else:
            high = float(rng.uniform(0.8, 2.0))
            solids.append(spot.box((0, 0, high / 2), (rng.uniform(2, 4), 0.3, high), paint.bricks(color_of(rng))))
    angle, height = rng.uniform(0, 2 * np.pi), rng.uniform(0.5, 1.6)
    sun = Light(np.array([np.cos(angle), np.sin(angle), height]), np.array([1.6, 1.45, 1.2]), 0.02, True, 4)
    return solids, [sun], paint.sky(rng), 2.5


def _views(solids: list[Solid], middle: np.ndarray, half: float, rng: np.random.Generator) -> list[View]:
    """Cameras on arcs about the table's middle; `half` is how far it reaches.

    Arcs are drawn anew, and come nearer and higher, until no solid is in the way.
    """
    width, height, angle = lens(rng, (42, 68))
    half_angle = np.deg2rad(angle) / 2 * min(1, height / width)
    for attempt in range(200):
        # as far as the table fills the picture, or less
        away = min(half * rng.uniform(0.7, 1.3) / np.tan(half_angle), 2.1) * 0.99**attempt
        away = max(away, half + 0.25)
        lowest = np.deg2rad(rng.uniform(12, 35) + 0.2 * attempt)
        highest = min(lowest + np.deg2rad(rng.uniform(5, 35)), np.deg2rad(72))
        kind, begin = int(rng.integers(4)), rng.uniform(0, 2 * np.pi)
        extent = 2 * np.pi if rng.random() < 0.5 else np.deg2rad(rng.uniform(80, 240))
        waves, swing = int(rng.integers(1, 4)), rng.uniform(0, 0.12)
        aim = rng.uniform(-0.08, 0.08, (TRAINING + TEST, 3)) * half
        tilt = np.deg2rad(rng.normal(0, 2.5, TRAINING + TEST))
        cameras = []
        for i in range(TRAINING + TEST):
            train = i < TRAINING
            t = i / TRAINING if train else (i - TRAINING + rng.uniform(0.2, 0.8)) / TEST
            azimuth = begin + extent * t
            if kind == 0:  # one wave-like round
                share = 0.5 + 0.5 * np.sin(2 * np.pi * waves * t)
            elif kind == 1:  # two rounds at two heights
                share, azimuth = float(2 * t % 2 >= 1), begin + extent * (2 * t % 1)
            elif kind == 2:  # rising
                share = t
            else:  # all over the dome
                share, azimuth = (i * 0.618) % 1, begin + extent * ((i * 0.382 + 0.2) % 1)
            elevation = lowest + (highest - lowest) * (share if train else rng.uniform(0, 1))
            radius = away * (1 + swing * np.sin(5 * azimuth)) * (1.0 if train else rng.uniform(0.85, 1.1))
            towards = (np.cos(azimuth), np.sin(azimuth))
            flat = radius * np.cos(elevation)
            position = middle + np.array([flat * towards[0], flat * towards[1], radius * np.sin(elevation)])
            right = np.array([-towards[1], towards[0], 0.0])
            up = np.cos(tilt[i]) * UP + np.sin(tilt[i]) * right
            cameras.append(pinhole(look_at(position, middle + aim[i], up), width, height, angle))
        if all(sees_freely(solids, camera, 0.08) for camera in cameras):
            break
    names = [f"train_{i:03d}" for i in range(TRAINING)] + [f"test_{i:03d}" for i in range(TEST)]
    return [View(name, camera, "0", i < TRAINING) for i, (name, camera) in enumerate(zip(names, cameras, strict=True))]
