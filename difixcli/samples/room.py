"""The sample scene `room`: a furnished living room."""

from __future__ import annotations

import numpy as np

from difixcli.samples import paint
from difixcli.samples.raycast import Light, Solid, World, box, cylinder, sphere
from difixcli.samples.views import UP, View, pinhole
from difixcli.scenes.poses import look_at


def room(rng: np.random.Generator) -> tuple[World, list[View]]:
    """A living room of 6 × 5.4 × 2.7 m: 24 training views around a table, 8 test views on another path."""
    oak, walnut, pine = (0.72, 0.52, 0.33), (0.42, 0.27, 0.17), (0.80, 0.64, 0.42)
    paper = paint.wallpaper((0.80, 0.76, 0.64), (0.55, 0.62, 0.55), (0.76, 0.48, 0.30))
    cloth = paint.fabric((0.28, 0.38, 0.52), (0.78, 0.74, 0.62))
    wood, dark = paint.planks(oak, gloss=0.15), paint.planks(walnut, board=0.2, gloss=0.25)
    leaf = paint.leaves((0.30, 0.50, 0.20))
    solids: list[Solid] = [
        box(
            (0, 0, 1.35),
            (6, 5.4, 2.7),
            {
                "-x": paper,
                "+x": paint.bricks((0.62, 0.36, 0.27)),
                "-y": paint.plaster((0.78, 0.60, 0.46), 0.07),
                "+y": paper,
                "-z": paint.planks(oak, gloss=0.55),
                "+z": paint.plaster((0.88, 0.87, 0.84), 0.04),
            },
            inside=True,
        ),
        box((0, 0, 0.006), (2.7, 2.0, 0.012), paint.carpet((0.52, 0.14, 0.14), (0.15, 0.18, 0.32), (0.86, 0.72, 0.46))),
        # The table and what stands on it.
        box((0, 0, 0.43), (1.15, 0.75, 0.05), paint.marble((0.87, 0.85, 0.80), (0.35, 0.33, 0.36))),
        *(
            cylinder((x, y, 0.21), 0.03, 0.4, paint.plaster(walnut, 0.25, 0.4))
            for x in (-0.48, 0.48)
            for y in (-0.29, 0.29)
        ),
        cylinder((-0.30, 0.12, 0.57), 0.085, 0.24, paint.glaze((0.16, 0.34, 0.52), (0.92, 0.88, 0.78))),
        *(
            sphere((-0.30 + dx, 0.12 + dy, 0.80 + dz), r, leaf)
            for dx, dy, dz, r in (
                (0, 0, 0.05, 0.11),
                (0.09, 0.03, -0.02, 0.08),
                (-0.08, 0.05, 0.0, 0.085),
                (0.0, -0.09, -0.01, 0.075),
                (0.03, 0.05, 0.15, 0.07),
            )
        ),
        box((0.28, -0.14, 0.475), (0.30, 0.21, 0.04), paint.lettering((0.62, 0.16, 0.15), (0.95, 0.9, 0.8)), turn=18),
        box((0.28, -0.14, 0.51), (0.26, 0.19, 0.03), paint.lettering((0.14, 0.30, 0.28), (0.9, 0.85, 0.6)), turn=-6),
        box((0.28, -0.14, 0.54), (0.21, 0.15, 0.03), paint.lettering((0.88, 0.80, 0.58), (0.2, 0.2, 0.3)), turn=31),
        sphere((0.30, 0.20, 0.535), 0.08, paint.glaze((0.75, 0.36, 0.12), (0.98, 0.86, 0.62), 5, 1.0)),
        cylinder((0.05, -0.20, 0.50), 0.04, 0.09, paint.glaze((0.92, 0.90, 0.86), (0.70, 0.20, 0.18), 1)),
        # The sofa at −y.
        box((0, -2.26, 0.21), (2.1, 0.78, 0.42), cloth),
        box((0, -2.55, 0.60), (2.1, 0.22, 0.5), cloth),
        box((-1.13, -2.26, 0.31), (0.2, 0.8, 0.62), cloth),
        box((1.13, -2.26, 0.31), (0.2, 0.8, 0.62), cloth),
        box((-0.68, -2.36, 0.58), (0.42, 0.16, 0.36), paint.fabric((0.82, 0.52, 0.20), (0.95, 0.88, 0.72), 0.07), 12),
        box((0.62, -2.36, 0.58), (0.42, 0.16, 0.36), paint.fabric((0.60, 0.20, 0.24), (0.92, 0.82, 0.7), 0.05), -15),
        # The bookcase at +y.
        box((-0.55, 2.50, 1.03), (1.9, 0.36, 2.06), {"-y": paint.books(), "*": dark}),
        box((-0.2, 2.50, 2.16), (0.34, 0.26, 0.20), paint.planks(pine, board=0.1)),
        sphere((-1.0, 2.48, 2.19), 0.13, paint.marble((0.30, 0.42, 0.55), (0.85, 0.80, 0.6))),
        # The cabinet at −x, with a lamp and a bowl.
        box((-2.72, 0.1, 0.42), (0.46, 1.6, 0.84), {"+x": paint.planks(pine, board=0.4, gloss=0.3), "*": dark}),
        *(sphere((-2.475, y, 0.5), 0.025, paint.marble((0.9, 0.8, 0.5), (0.7, 0.6, 0.3))) for y in (-0.25, 0.0, 0.3)),
        cylinder((-2.72, 0.68, 1.0), 0.05, 0.32, paint.glaze((0.85, 0.82, 0.76), (0.35, 0.45, 0.5))),
        cylinder(
            (-2.72, 0.68, 1.28), 0.16, 0.26, paint.fabric((0.98, 0.88, 0.68), (0.94, 0.78, 0.52), 0.05), emission=1
        ),
        sphere((-2.70, -0.35, 0.94), 0.11, paint.glaze((0.22, 0.46, 0.36), (0.9, 0.88, 0.7), 4)),
        # An armchair, a side table and a plant in the corners.
        box((-1.95, -1.95, 0.22), (0.75, 0.75, 0.44), paint.fabric((0.55, 0.30, 0.22), (0.80, 0.62, 0.42), 0.09), 40),
        box((-2.24, -2.20, 0.62), (0.18, 0.75, 0.55), paint.fabric((0.55, 0.30, 0.22), (0.80, 0.62, 0.42), 0.09), 40),
        cylinder((2.35, -2.05, 0.22), 0.22, 0.44, paint.glaze((0.62, 0.34, 0.22), (0.30, 0.16, 0.10), 2, 0.3)),
        cylinder((2.35, -2.05, 0.75), 0.03, 0.7, paint.planks(walnut, board=0.03)),
        *(
            sphere((2.35 + dx, -2.05 + dy, 1.25 + dz), r, leaf)
            for dx, dy, dz, r in (
                (0, 0, 0.1, 0.3),
                (0.2, 0.1, -0.1, 0.22),
                (-0.22, 0.12, 0.0, 0.24),
                (0.05, -0.22, 0.05, 0.22),
                (-0.05, 0.1, 0.38, 0.2),
            )
        ),
        box((1.75, 2.42, 0.36), (0.9, 0.5, 0.72), {"-y": paint.planks(pine, board=0.24, gloss=0.3), "*": wood}),
        box((1.62, 2.45, 0.93), (0.44, 0.1, 0.42), paint.blocks(), turn=-10),
        cylinder((2.05, 2.38, 0.84), 0.07, 0.24, paint.glaze((0.80, 0.70, 0.30), (0.4, 0.2, 0.1), 2)),
        # Pictures, the window, beams, the lamp over the table.
        box((-2.985, 0.0, 1.72), (0.03, 1.0, 0.7), {"+x": paint.landscape(0.58), "*": dark}),
        box((-2.985, -1.45, 1.55), (0.03, 0.6, 0.8), {"+x": paint.blocks(), "*": dark}),
        box((-2.985, 1.50, 1.60), (0.03, 0.7, 0.9), {"+x": paint.landscape(0.05), "*": dark}),
        box((0, -2.685, 1.62), (1.3, 0.03, 0.75), {"+y": paint.landscape(0.75), "*": dark}),
        box((-1.45, -2.685, 1.72), (0.6, 0.03, 0.6), {"+y": paint.blocks(), "*": dark}),
        box((1.45, 2.685, 1.75), (0.75, 0.03, 0.55), {"-y": paint.landscape(0.33), "*": dark}),
        box((2.985, 0.35, 1.55), (0.04, 1.7, 1.25), {"-x": paint.window(3), "*": wood}, emission=1.25),
        box((2.93, 0.35, 0.89), (0.16, 1.9, 0.05), wood),
        box((2.95, -1.35, 1.6), (0.06, 0.6, 0.8), {"-x": paint.blocks(), "*": dark}),
        *(box((x, 0, 2.63), (0.16, 5.4, 0.14), dark) for x in (-1.8, 0.0, 1.8)),
        cylinder((0, 0, 2.4), 0.012, 0.5, paint.plaster((0.1, 0.1, 0.1))),
        sphere((0, 0, 2.08), 0.15, paint.plaster((1.0, 0.93, 0.80), 0.01), emission=1.6),
    ]
    lights = [
        Light(np.array([0, 0, 2.08]), np.array([1.75, 1.5, 1.15]), 0.16),
        Light(np.array([2.75, 0.35, 1.6]), np.array([1.7, 1.95, 2.3]), 0.5),
        Light(np.array([-2.6, 0.68, 1.3]), np.array([0.5, 0.38, 0.22]), 0.12),
    ]
    world = World(solids, lights, np.array([0.34, 0.33, 0.33]), 1.1, 14, rng)
    views = []
    for i in range(24):
        angle = 2 * np.pi * i / 24
        position = np.array([1.95 * np.cos(angle), 1.65 * np.sin(angle), 1.38 + 0.22 * np.sin(3 * angle)])
        target = np.array([0.12 * np.sin(2 * angle), 0.12 * np.cos(5 * angle), 0.78 + 0.12 * np.cos(2 * angle)])
        views.append(View(f"train_{i:03d}", pinhole(look_at(position, target, UP), 320, 240, 66), "0", True))
    for i in range(8):
        t = i / 7
        angle = np.deg2rad(200 + 250 * t)
        radius = 1.25 - 0.25 * np.sin(np.pi * t)
        position = np.array([radius * np.cos(angle), radius * np.sin(angle), 0.95 + 0.85 * t])
        target = np.array([-0.35 * np.cos(angle + 0.6), -0.35 * np.sin(angle + 0.6), 0.85 - 0.15 * t])
        views.append(View(f"test_{i:03d}", pinhole(look_at(position, target, UP), 320, 240, 66), "0", False))
    return world, views
