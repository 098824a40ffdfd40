"""The sample scenes `interior`: with every seed another furnished room, walked through on another path."""

from __future__ import annotations

import numpy as np

from difixcli.samples import paint
from difixcli.samples.furniture import DEPTH, Hull, chair, furnished, hull, table, topped
from difixcli.samples.raycast import Light, Solid, World
from difixcli.samples.things import Place, color_of, material, wood
from difixcli.samples.views import UP, View, lens, pinhole, sees_freely
from difixcli.scenes.poses import look_at

TRAINING, TEST = 20, 4


def interior(rng: np.random.Generator) -> tuple[World, list[View]]:
    """A room of 3.6 to 7.5 m: 20 training views on a path through it, 4 test views beside the path.

    Its size, paint, furniture, what stands in its middle, its lamps, the lens and the path (a round that looks inwards,
    a turn on a small circle that looks outwards, a walk past something, a walk ahead) differ with every seed.
    """
    room = hull(rng, *(float(side) for side in rng.uniform((3.6, 3.4, 2.35), (7.5, 6.5, 3.2))))
    solids = [room.solid, *furnished(room, rng, rng.uniform(0.45, 0.95)), *_middle(room, rng)]
    lights = []
    for _ in range(rng.integers(1, 4)):
        x, y = rng.uniform(-0.35, 0.35, 2) * (room.wide, room.deep)
        drop = float(rng.uniform(0.2, 0.7))
        at = np.array([x, y, room.high - drop])
        tint = np.array([1.0, rng.uniform(0.82, 1.0), rng.uniform(0.6, 1.05)])
        lights.append(Light(at, tint, float(rng.uniform(0.08, 0.3))))
        cord = Place(x, y, room.high - drop, 0, 160, 18)
        shade = paint.plaster((1.0, 0.94, 0.82), 0.03)
        solids.append(cord.ball((0, 0, 0), rng.uniform(0.08, 0.16), shade, emission=1.5))
        solids.append(cord.drum((0, 0, drop / 2), 0.01, drop, paint.plaster((0.1, 0.1, 0.1))))
    strength = rng.uniform(2.0, 3.6) / len(lights) * (room.wide * room.deep / 25)
    lights = [Light(light.position, strength * light.color, light.radius) for light in lights]
    ambient = rng.uniform(0.26, 0.42) * np.array([1.0, 0.98, 0.97])
    views = _views(room, solids, rng)
    return World(solids, lights, ambient, float(rng.uniform(0.7, 1.3)), 12, rng), views


def _middle(room: Hull, rng: np.random.Generator) -> list[Solid]:
    """What stands in the middle of a room, if anything, and a rug below."""
    x, y = (float(v) for v in rng.uniform(-0.3, 0.3, 2))
    place = Place(x, y, 0.0, float(rng.uniform(0, 360)), 200, 24)
    solids: list[Solid] = []
    if rng.random() < 0.6:
        rug = paint.carpet(color_of(rng), color_of(rng), color_of(rng))
        size = (float(rng.uniform(1.4, 2.4)), float(rng.uniform(1.0, 1.7)), 0.012)
        solids.append(place.box((0, 0, 0.006), size, rug))
    kind = rng.random()
    if kind < 0.6:  # a table, high with chairs or low
        half = (float(rng.uniform(0.35, 0.75)), float(rng.uniform(0.3, 0.5)))
        dining, round_ = bool(rng.random() < 0.5), bool(rng.random() < 0.3)
        half = (half[0], half[0]) if round_ else half
        high = float(rng.uniform(0.68, 0.78) if dining else rng.uniform(0.3, 0.48))
        solids += table(place, half, high, rng, round_)
        within = (0.7 * half[0], 0.7 * half[1]) if round_ else half
        solids += topped(place.shifted(0, 0, high), within, rng, int(rng.integers(1, 8)))
        for turn in (0, 90, 180, 270) if dining else ():
            if rng.random() < 0.6:
                reach = half[1] if turn % 180 == 0 else half[0]
                solids += chair(place.shifted(0, 0, 0, turn).shifted(0, -reach - 0.2, 0, rng.uniform(-25, 25)), rng)
    elif kind < 0.75:  # a pillar
        wide = float(rng.uniform(0.25, 0.5))
        centre = (0.0, 0.0, room.high / 2)
        if rng.random() < 0.5:
            solids.append(place.box(centre, (wide, wide, room.high), material(rng)))
        else:
            solids.append(place.drum(centre, wide / 2, room.high, material(rng)))
    elif kind < 0.9:  # poufs and parcels
        for _ in range(rng.integers(1, 4)):
            x, y = rng.uniform(-0.7, 0.7, 2)
            side, high = float(rng.uniform(0.3, 0.6)), float(rng.uniform(0.25, 0.5))
            skin = material(rng)
            if rng.random() < 0.5:
                solids.append(place.drum((x, y, high / 2), side / 2, high, skin))
            else:
                solids.append(place.box((x, y, high / 2), (side, side, high), skin, rng.uniform(0, 90)))
    else:  # a standing screen
        panel = {"+y": material(rng), "-y": material(rng), "*": wood(rng)}
        solids.append(place.box((0, 0, 0.75), (rng.uniform(0.9, 1.5), 0.05, 1.5), panel))
    return solids


def _views(room: Hull, solids: list[Solid], rng: np.random.Generator) -> list[View]:
    """Cameras on a random path that is free of furniture; paths are drawn anew until one is."""
    width, height, angle = lens(rng, (58, 82))
    best: list = []
    fewest = TRAINING + TEST + 1
    for _ in range(300):
        ts = np.concatenate([np.arange(TRAINING) / TRAINING, (np.arange(TEST) + rng.uniform(0.2, 0.8, TEST)) / TEST])
        positions, targets = _path(room, ts, rng)
        jitter = rng.normal(0, 0.05, (TEST, 3))
        positions[TRAINING:] += 2 * jitter
        tilts = np.deg2rad(rng.normal(0, 2, len(ts)))
        cameras = []
        for position, target, tilt in zip(positions, targets, tilts, strict=True):
            ahead = (target - position) / np.linalg.norm(target - position)
            right = np.cross(ahead, UP)
            pose = look_at(position, target, np.cos(tilt) * UP + np.sin(tilt) * right)
            cameras.append(pinhole(pose, width, height, angle))
        blocked = sum(not sees_freely(solids, camera, 0.12) for camera in cameras)
        if blocked < fewest:
            best, fewest = cameras, blocked
        if not blocked:
            break
    names = [f"train_{i:03d}" for i in range(TRAINING)] + [f"test_{i:03d}" for i in range(TEST)]
    return [View(name, camera, "0", i < TRAINING) for i, (name, camera) in enumerate(zip(names, best, strict=True))]


def _path(room: Hull, ts: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Positions and targets (N, 3) at the shares `ts` (N,) of a random path through a room, eyes at 1.0 to 1.8 m."""
    free = np.array([room.wide / 2 - DEPTH, room.deep / 2 - DEPTH])
    kind = int(rng.integers(4))
    eyes = rng.uniform(1.05, min(1.75, room.high - 0.45)) + 0.18 * np.sin(2 * np.pi * ts + rng.uniform(0, 6))
    begin, sense = rng.uniform(0, 2 * np.pi), rng.choice([-1, 1])
    if kind == 0:  # around, looking at the middle
        turn = begin + sense * ts * (2 * np.pi if rng.random() < 0.6 else rng.uniform(1.5, 4))
        flat = np.stack([np.cos(turn), np.sin(turn)], axis=1) * free * rng.uniform(0.85, 1.15)
        targets = np.column_stack([0.12 * np.cos(3 * turn), 0.12 * np.sin(2 * turn), np.full(len(ts), 0.6)])
        targets[:, 2] += rng.uniform(-0.1, 0.4)
    elif kind == 1:  # on a small circle, looking outwards
        turn = begin + sense * ts * rng.uniform(1.2, 2 * np.pi)
        flat = rng.uniform(-0.4, 0.4, 2) * free + np.stack([np.cos(turn), np.sin(turn)], axis=1) * -0.5 * free
        ahead = np.stack([np.cos(turn), np.sin(turn)], axis=1)
        targets = np.column_stack([flat + 2 * ahead, eyes - rng.uniform(0, 0.6)])
    else:  # straight on: past something (2) or ahead (3)
        start, end = rng.uniform(-1, 1, (2, 2)) * free
        length = np.linalg.norm(end - start)
        end = start + (end - start) * max(1.0, 1.2 / max(float(length), 0.1))
        end = np.clip(end, -free, free)
        flat = start + ts[:, None] * (end - start)
        side = rng.uniform(0, 2 * np.pi)
        edge = np.array([np.cos(side) * room.wide / 2, np.sin(side) * room.deep / 2])
        if kind == 2:
            aim = edge * rng.uniform(0.3, 0.9)
            targets = np.column_stack([np.tile(aim, (len(ts), 1)), np.full(len(ts), rng.uniform(0.5, 1.2))])
        else:
            ahead = (end - start) / max(float(np.linalg.norm(end - start)), 1e-6)
            sway = rng.uniform(0.1, 0.5) * np.sin(2 * np.pi * ts + begin)
            turned = np.stack([ahead[0] - sway * ahead[1], ahead[1] + sway * ahead[0]], axis=1)
            targets = np.column_stack([flat + 2.5 * turned, eyes - rng.uniform(0.1, 0.7)])
    return np.column_stack([flat, eyes]), targets
