"""Procedural paints for the sample scenes: coarse shapes and fine grain, from a seeded generator.

A paint is made by a function named after the material and is called with (width px, height px, texels per metre,
rng); it returns (H, W, 4) float32: sRGB colour and gloss, all in [0, 1]. Row 0 is the top.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import cv2
import numpy as np

from difixcli.samples.raycast import Painter

Color = tuple[float, float, float]


def noise(
    shape: tuple[int, int], cell: float, rng: np.random.Generator, octaves: int = 4, stretch: float = 1.0
) -> np.ndarray:
    """Fractal value noise (H, W) around 0, about −1..1: `cell` pixels per coarsest cell, `stretch` times that in x."""
    height, width = shape
    total = np.zeros(shape, dtype=np.float32)
    weight = 1.0
    for octave in range(octaves):
        size = max(1.0, cell / 2**octave)
        rows, columns = int(height / size) + 4, int(width / (size * stretch)) + 4
        grid = rng.uniform(-1, 1, (rows, columns)).astype(np.float32)
        full = cv2.resize(
            grid,
            (max(width, round(columns * size * stretch)), max(height, round(rows * size))),
            interpolation=cv2.INTER_CUBIC,
        )
        total += weight * full[:height, :width]
        weight *= 0.6
    return total


def plaster(color: Color, grain: float = 0.05, gloss: float = 0.0) -> Painter:
    """A painted wall: broad stains and fine grain."""

    def paint(width: int, height: int, density: float, rng: np.random.Generator) -> np.ndarray:
        tone = 0.5 * noise((height, width), 0.6 * density, rng) + noise((height, width), 0.03 * density, rng, 2)
        return _picture(np.asarray(color) * (1 + grain * tone[..., None]), gloss)

    return paint


def wallpaper(ground: Color, figure: Color, accent: Color, period: float = 0.42) -> Painter:
    """A damask-like wallpaper: medallions on a half-drop grid over thin stripes."""

    def paint(width: int, height: int, density: float, rng: np.random.Generator) -> np.ndarray:
        x, y = _metres(width, height, density)
        column = np.floor(x / period)
        px = x / period - column - 0.5
        py = (y / period + 0.5 * (column % 2)) % 1 - 0.5
        radius, angle = np.hypot(px, py), np.arctan2(py, px)
        petal = 0.30 + 0.10 * np.cos(6 * angle)
        color = _layers(
            ground,
            (0.35 * _soft(np.abs((x / (period / 7)) % 1 - 0.5) < 0.12), figure),
            (_soft(radius < petal), figure),
            (_soft(radius < 0.62 * petal), ground),
            (_soft(radius < 0.09), accent),
            (_soft(np.abs(radius - 0.44) < 0.016), accent),
        )
        wear = 1 + 0.05 * noise((height, width), 0.5 * density, rng) + 0.03 * noise((height, width), 4, rng, 2)
        # Every medallion is printed a little differently, so that no two places look the same.
        cell = rng.uniform(0.86, 1.1, (64, 64))
        tint = cell[(column % 64).astype(int), (np.floor(y / period) % 64).astype(int)]
        return _picture(color * (wear * tint)[..., None], 0.03)

    return paint


def planks(color: Color, board: float = 0.14, length: float = 1.3, gloss: float = 0.5, across: bool = False) -> Painter:
    """A wooden floor or furniture front: boards with their own tone, grain along them, dark gaps."""

    def paint(width: int, height: int, density: float, rng: np.random.Generator) -> np.ndarray:
        if across:
            return np.ascontiguousarray(paint_along(height, width, density, rng).transpose(1, 0, 2))
        return paint_along(width, height, density, rng)

    def paint_along(width: int, height: int, density: float, rng: np.random.Generator) -> np.ndarray:
        x, y = _metres(width, height, density)
        row = np.floor(y / board).astype(int)
        shift = rng.uniform(0, length, row.max() + 1)[row]
        column = np.floor((x + shift) / length).astype(int)
        tone = rng.uniform(0.72, 1.15, (row.max() + 1, column.max() + 1))[row, column]
        warm = rng.uniform(-0.05, 0.05, (row.max() + 1, column.max() + 1))[row, column]
        grain = noise((height, width), 0.05 * density, rng, 4, stretch=14)
        rings = np.sin(40 * noise((height, width), 0.25 * density, rng, 2, stretch=6) + 30 * y)
        seam = np.minimum(_edge(y / board) * board, _edge((x + shift) / length) * length)
        shade = tone * (1 + 0.16 * grain + 0.05 * rings) * np.where(seam < 0.004, 0.35, 1)
        rgb = np.asarray(color) * shade[..., None] * (1 + warm[..., None] * np.array([1, 0, -1]))
        return _picture(rgb, gloss * np.where(seam < 0.004, 0.1, np.clip(0.9 + 0.3 * grain, 0.3, 1)))

    return paint


def bricks(color: Color, mortar: Color = (0.72, 0.70, 0.66), wide: float = 0.24, high: float = 0.08) -> Painter:
    """A brick wall in running bond; every brick has its own tone."""

    def paint(width: int, height: int, density: float, rng: np.random.Generator) -> np.ndarray:
        x, y = _metres(width, height, density)
        row = np.floor(y / high).astype(int)
        along = x / wide + 0.5 * (row % 2)
        column = np.floor(along).astype(int)
        tone = rng.uniform(0.65, 1.2, (row.max() + 1, column.max() + 1))[row, column]
        gap = np.minimum(_edge(along) * wide, _edge(y / high) * high)
        rough = 1 + 0.14 * noise((height, width), 0.05 * density, rng, 3)
        stain = 1 + 0.12 * noise((height, width), 1.2 * density, rng, 3)
        brick = np.asarray(color) * tone[..., None]
        rgb = np.where((gap < 0.008)[..., None], np.asarray(mortar), brick) * (rough * stain)[..., None]
        return _picture(rgb, 0.0)

    return paint


def slabs(color: Color, size: float = 0.5, gloss: float = 0.05) -> Painter:
    """Square paving or tiles."""

    def paint(width: int, height: int, density: float, rng: np.random.Generator) -> np.ndarray:
        x, y = _metres(width, height, density)
        i, j = np.floor(y / size).astype(int), np.floor(x / size).astype(int)
        tone = rng.uniform(0.8, 1.12, (i.max() + 1, j.max() + 1))[i, j]
        gap = np.minimum(_edge(x / size), _edge(y / size)) * size
        speck = 1 + 0.10 * noise((height, width), 0.04 * density, rng, 2) + 0.10 * noise((height, width), density, rng)
        return _picture(np.asarray(color) * (tone * speck * np.where(gap < 0.01, 0.5, 1))[..., None], gloss)

    return paint


def carpet(ground: Color, field: Color, accent: Color) -> Painter:
    """A woven rug: borders, diamonds, a medallion, and threads."""

    def paint(width: int, height: int, density: float, rng: np.random.Generator) -> np.ndarray:
        x, y = _metres(width, height, density)
        w, h = width / density, height / density
        inset = np.minimum(np.minimum(x, w - x), np.minimum(y, h - y))
        cell = 0.22
        dx, dy = (x - w / 2) / cell, (y - h / 2) / cell
        diamond = np.abs(dx % 1 - 0.5) + np.abs(dy % 1 - 0.5)
        medallion = np.hypot((x - w / 2) / (0.34 * w), (y - h / 2) / (0.34 * h))
        medallion = medallion + 0.05 * np.cos(12 * np.arctan2(y - h / 2, x - w / 2))
        zigzag = np.abs(((x + y) / 0.09) % 1 - 0.5) < 0.22
        color = _layers(
            field,
            (_soft(diamond < 0.3), ground),
            (_soft(diamond < 0.13), accent),
            (_soft(medallion < 1), ground),
            (_soft(np.abs(medallion - 0.9) < 0.05), accent),
            (_soft(medallion < 0.55), accent),
            (_soft(medallion < 0.45), field),
            (_soft(medallion < 0.18), ground),
            (_soft(inset < 0.22), ground),
            (_soft((inset < 0.18) & (inset > 0.06) & zigzag), accent),
            (_soft((inset < 0.045) & (inset > 0.02)), field),
        )
        thread = 1 + 0.16 * rng.standard_normal((height, width)).astype(np.float32)
        thread = cv2.GaussianBlur(thread, (0, 0), 0.8) + 0.10 * noise((height, width), 0.3 * density, rng)
        return _picture(color * thread[..., None], 0.0)

    return paint


def fabric(color: Color, stripe: Color, period: float = 0.12) -> Painter:
    """Checked cloth with a visible weave."""

    def paint(width: int, height: int, density: float, rng: np.random.Generator) -> np.ndarray:
        x, y = _metres(width, height, density)
        a = ((x / period) % 1 < 0.3).astype(np.float32)
        b = ((y / period) % 1 < 0.3).astype(np.float32)
        rgb = _layers(color, (0.55 * a, stripe), (0.55 * b, stripe))
        weave = 1 + 0.08 * np.sin(2 * np.pi * x / 0.012) * np.sin(2 * np.pi * y / 0.012)
        crease = 0.14 * noise((height, width), 0.25 * density, rng, 3)
        return _picture(rgb * (weave + crease)[..., None], 0.0)

    return paint


def books(shelf: Color = (0.36, 0.24, 0.15), shelves: int = 5) -> Painter:
    """The front of a filled bookcase: boards, spines of many sizes with bands and lettering, a few gaps."""

    def paint(width: int, height: int, density: float, rng: np.random.Generator) -> np.ndarray:
        canvas = np.empty((height, width, 3), dtype=np.float32)
        canvas[:] = np.asarray(shelf) * 0.35
        board = max(1, round(0.03 * density))
        bay = (height - board) // shelves
        for k in range(shelves):
            top, bottom = board + k * bay, (k + 1) * bay
            x = board
            while x < width - board - 2:
                thick = int(rng.uniform(0.025, 0.06) * density)
                tall = int(rng.uniform(0.62, 0.93) * (bottom - top))
                right = min(x + thick, width - board)
                if rng.random() < 0.06:
                    x = right + thick
                    continue
                hue = np.asarray(hue_of(rng), dtype=np.float32)
                spine = canvas[bottom - tall : bottom, x:right]
                curve = 0.75 + 0.3 * np.sin(np.pi * (np.arange(right - x) + 0.5) / max(1, thick))
                spine[:] = hue * curve[None, :, None]
                ink = np.clip(hue + (0.55 if hue.mean() < 0.5 else -0.45), 0, 1)
                for share in rng.uniform(0.06, 0.94, rng.integers(1, 4)):
                    row = int(share * tall)
                    spine[row : row + max(1, int(0.008 * density))] = ink
                start = int(0.25 * tall)
                letters = rng.random(max(1, int(0.45 * tall / 2))) < 0.7
                marks = np.repeat(letters, 2)[: tall - start]
                third = max(1, (right - x) // 3)
                spine[start : start + len(marks), third:-third][marks] = ink
                x = right + 1
        rows = [k * bay for k in range(shelves + 1)]
        wood = planks(shelf, board=0.5, gloss=0.2)(width, height, density, rng)[..., :3]
        for row in rows:
            canvas[row : row + board] = wood[row : row + board]
        canvas[:, :board], canvas[:, -board:] = wood[:, :board], wood[:, -board:]
        canvas *= 1 + 0.05 * noise((height, width), 3, rng, 2)[..., None]
        return _picture(canvas, 0.08)

    return paint


def landscape(seed_hue: float) -> Painter:
    """A framed painting: sky, sun, hills in layers, with brush strokes."""

    def paint(width: int, height: int, density: float, rng: np.random.Generator) -> np.ndarray:
        x, y = _metres(width, height, density)
        u, v = x * density / width, y * density / height
        top, low = _rgb(seed_hue, 0.55, 0.75), _rgb(seed_hue + 0.45, 0.45, 0.95)
        rgb = top + (low - top) * v[..., None]
        rgb = _over(rgb, _soft(np.hypot((u - 0.68) * width / height, v - 0.3) < 0.1), (0.98, 0.86, 0.55))
        for k in range(5):
            ridge = 0.42 + 0.11 * k + 0.09 * noise((1, width), width / (2.5 + k), rng, 5)[0]
            rgb = _over(rgb, _soft(v > ridge[None]), _rgb(seed_hue + 0.1 + 0.08 * k, 0.5, 0.75 - 0.13 * k))
        strokes = noise((height, width), 6, rng, 3, stretch=3)
        rgb = rgb * (1 + 0.13 * strokes[..., None])
        return _framed(rgb, density, rng)

    return paint


def blocks() -> Painter:
    """A framed abstract picture: coloured fields, black bars and circles."""

    def paint(width: int, height: int, density: float, rng: np.random.Generator) -> np.ndarray:
        x, y = _metres(width, height, density)
        u, v = x * density / width, y * density / height
        rgb = np.empty((height, width, 3), dtype=np.float32)
        rgb[:] = (0.93, 0.90, 0.82)
        for _ in range(9):
            a, b = rng.uniform(0, 0.8, 2)
            w, h = rng.uniform(0.1, 0.4, 2)
            rgb = _over(rgb, _soft((u > a) & (u < a + w) & (v > b) & (v < b + h)), hue_of(rng))
        for _ in range(5):
            a, b, r = rng.uniform(0.15, 0.85), rng.uniform(0.15, 0.85), rng.uniform(0.04, 0.16)
            ring = np.abs(np.hypot((u - a) * width / height, v - b) - r) < 0.015
            rgb = _over(rgb, _soft(ring), (0.08, 0.08, 0.1))
        for at in rng.uniform(0.1, 0.9, 3):
            rgb = _over(rgb, _soft(np.abs(u - at) < 0.012), (0.08, 0.08, 0.1))
        return _framed(rgb * (1 + 0.05 * noise((height, width), 3, rng, 2)[..., None]), density, rng)

    return paint


def window(panes: int = 2, frame: Color = (0.93, 0.92, 0.90)) -> Painter:
    """A window onto a bright garden; meant for an emitting surface."""

    def paint(width: int, height: int, density: float, rng: np.random.Generator) -> np.ndarray:
        x, y = _metres(width, height, density)
        w, h = width / density, height / density
        v = y / h
        rgb = np.array([0.72, 0.84, 0.98]) + (np.array([0.95, 0.97, 1.0]) - np.array([0.72, 0.84, 0.98])) * v[..., None]
        cloud = np.clip(noise((height, width), 0.4 * density, rng, 5, stretch=2), 0, 1)
        rgb = rgb + (1 - rgb) * cloud[..., None]
        hedge = 0.58 + 0.06 * noise((1, width), 0.2 * density, rng, 5)[0]
        leaf = 0.75 + 0.35 * noise((height, width), 0.06 * density, rng, 4)
        rgb = np.where((v > hedge[None])[..., None], np.array([0.36, 0.55, 0.25]) * leaf[..., None], rgb)
        rgb = np.where((v > 0.85)[..., None], np.array([0.55, 0.68, 0.36]) * leaf[..., None], rgb)
        bar = (np.minimum(_edge(x / (w / panes)) * w / panes, _edge(y / (h / 2)) * h / 2)) < 0.03
        return _picture(np.where(bar[..., None], np.asarray(frame) * 0.72, rgb), 0.2)

    return paint


def glaze(color: Color, band: Color, bands: int = 3, gloss: float = 0.9) -> Painter:
    """Glazed pottery: speckled, with painted bands and a row of dots."""

    def paint(width: int, height: int, density: float, rng: np.random.Generator) -> np.ndarray:
        x, y = _metres(width, height, density)
        u, v = x * density / width, y * density / height
        rgb: np.ndarray = np.broadcast_to(np.asarray(color, dtype=np.float32), (height, width, 3))
        for k in range(bands):
            at = (k + 1) / (bands + 1)
            wave = at + 0.02 * np.sin(2 * np.pi * 12 * u)
            rgb = _over(rgb, _soft(np.abs(v - wave) < 0.025), band)
            dots = np.hypot((u * 24) % 1 - 0.5, (v - at - 0.09) * 12) < 0.28
            rgb = _over(rgb, _soft(dots), band)
        speck = noise((height, width), 4, rng, 2)
        return _picture(rgb * (1 + 0.10 * speck[..., None]), gloss)

    return paint


def leaves(color: Color, cell: float = 0.06) -> Painter:
    """Foliage: overlapping light and dark leaves."""

    def paint(width: int, height: int, density: float, rng: np.random.Generator) -> np.ndarray:
        shade = noise((height, width), cell * density, rng, 4)
        vein = np.abs(noise((height, width), 0.6 * cell * density, rng, 2))
        broad = noise((height, width), 5 * cell * density, rng, 2)
        tone = np.clip(0.75 + 0.45 * shade + 0.2 * broad - 0.35 * (vein < 0.08), 0.12, 1.6)
        tint = 1 + 0.15 * broad[..., None] * np.array([1.0, 0.2, -0.6])
        return _picture(np.asarray(color) * tone[..., None] * tint, 0.05)

    return paint


def marble(color: Color, vein: Color, gloss: float = 0.8) -> Painter:
    """Polished stone with veins."""

    def paint(width: int, height: int, density: float, rng: np.random.Generator) -> np.ndarray:
        flow = noise((height, width), 0.5 * density, rng, 5)
        line = np.exp(-np.abs(flow) * 14) + 0.5 * np.exp(-np.abs(noise((height, width), 0.2 * density, rng, 4)) * 18)
        rgb = np.asarray(color) + (np.asarray(vein) - np.asarray(color)) * np.clip(line, 0, 1)[..., None]
        return _picture(rgb * (1 + 0.04 * noise((height, width), 3, rng, 2)[..., None]), gloss)

    return paint


def lettering(ground: Color, ink: Color, gloss: float = 0.2) -> Painter:
    """A sign: one line of blocky made-up letters with a border."""

    def paint(width: int, height: int, density: float, rng: np.random.Generator) -> np.ndarray:
        rgb = np.empty((height, width, 3), dtype=np.float32)
        rgb[:] = ground
        edge = max(1, height // 14)
        rgb[edge : 2 * edge, edge:-edge] = rgb[-2 * edge : -edge, edge:-edge] = ink
        count = max(2, int(width / (0.6 * height)))
        for k in range(1, count):
            glyph = rng.random((5, 4)) < 0.62
            glyph[:, 0] |= rng.random() < 0.7
            left, right = round((k - 0.05) * width / (count + 0.5)), round((k + 0.6) * width / (count + 0.5))
            top, bottom = round(0.26 * height), round(0.76 * height)
            if right - left < 2 or bottom - top < 2 or rng.random() < 0.12:
                continue
            mask = cv2.resize(glyph.astype(np.float32), (right - left, bottom - top), interpolation=cv2.INTER_NEAREST)
            part = rgb[top:bottom, left:right]
            part[:] = part + (np.asarray(ink, dtype=np.float32) - part) * mask[..., None]
        return _picture(rgb * (1 + 0.05 * noise((height, width), 0.2 * density, rng, 3)[..., None]), gloss)

    return paint


def asphalt(lanes: Sequence[float], rails: Sequence[float]) -> Painter:
    """A road that runs along the texture's height: speckled, patched, cracked, dashed `lanes` and solid `rails`
    (distances in metres from the left edge)."""

    def paint(width: int, height: int, density: float, rng: np.random.Generator) -> np.ndarray:
        x, y = _metres(width, height, density)
        tone = 0.42 + 0.05 * noise((height, width), 1.5 * density, rng, 4) + 0.06 * noise((height, width), 3, rng, 2)
        crack = np.abs(noise((height, width), 2.2 * density, rng, 5)) < 0.018
        tone = np.where(crack, 0.6 * tone, tone)
        for _ in range(int(height / density / 4)):
            a, b = rng.uniform(0, width / density), rng.uniform(0, height / density)
            w, h = rng.uniform(0.4, 1.4), rng.uniform(0.6, 2.5)
            tone = np.where((np.abs(x - a) < w / 2) & (np.abs(y - b) < h / 2), 0.78 * tone, tone)
        rgb = tone[..., None] * np.array([1.0, 1.0, 1.03])
        worn = np.clip(0.9 + 0.5 * noise((height, width), 0.12 * density, rng, 4), 0, 1)
        for lane in lanes:
            rgb = _over(rgb, worn * ((np.abs(x - lane) < 0.07) & (y % 3.0 < 1.5)), (0.9, 0.9, 0.88))
        for rail in rails:
            rgb = _over(rgb, worn * (np.abs(x - rail) < 0.06), (0.88, 0.80, 0.45))
        for _ in range(int(height / density / 7)):
            a, b = rng.uniform(0.2, 0.8) * width / density, rng.uniform(0, height / density)
            lid = np.hypot(x - a, y - b)
            rgb = _over(rgb, _soft(lid < 0.33), (0.22, 0.21, 0.2))
            rgb = _over(rgb, _soft((lid < 0.28) & ((x * 14) % 1 < 0.5)), (0.34, 0.33, 0.32))
        return _picture(rgb, 0.03)

    return paint


def facade(wall: Painter, storey: float = 3.0, bay: float = 2.0, shop: Color | None = None) -> Painter:
    """A house front on a wall paint: sills, framed windows with reflections and curtains, cornices, doors or a
    shop's dark panes below."""

    def paint(width: int, height: int, density: float, rng: np.random.Generator) -> np.ndarray:
        x, y = _metres(width, height, density)
        w, h = width / density, height / density
        base = wall(width, height, density, rng)
        rgb, gloss = base[..., :3], base[..., 3]
        up = h - y  # metres above the pavement
        bays = max(1, round(w / bay))
        pitch = w / bays
        i = np.minimum(np.floor(x / pitch).astype(int), bays - 1)
        j = np.floor(up / storey).astype(int)
        across = x - (i + 0.5) * pitch
        above = up - j * storey
        frame_tone = np.asarray(_rgb(rng.uniform(), 0.1, 0.9))
        sky = 0.28 + 0.3 * np.clip(above / storey, 0, 1) + 0.10 * noise((height, width), 0.5 * density, rng, 4)
        glass = sky[..., None] * np.array([0.75, 0.9, 1.05])
        drawn = rng.uniform(0, 0.5, (j.max() + 1, bays))[j, i]
        curtain = np.abs(across) > 0.48 * (1 - drawn)
        cloth = np.asarray(_rgb(rng.uniform(), 0.25, 0.85)) * (0.85 + 0.15 * np.sin(across * 60))[..., None]
        half_wide = 0.5
        inside = (np.abs(across) < half_wide) & (above > 0.9) & (above < 2.4) & (j > 0) & (up < h - 0.6)
        border = (np.abs(across) < half_wide + 0.1) & (above > 0.8) & (above < 2.5) & (j > 0) & (up < h - 0.5)
        bars = (np.abs(across) < 0.03) | (np.abs(above - 1.9) < 0.03)
        rgb = np.where(border[..., None], frame_tone, rgb)
        rgb = np.where(inside[..., None], np.where(curtain[..., None], cloth, glass), rgb)
        rgb = np.where((inside & bars)[..., None], frame_tone, rgb)
        sill = (np.abs(across) < half_wide + 0.18) & (above > 0.72) & (above < 0.8) & (j > 0) & (up < h - 0.5)
        rgb = np.where(sill[..., None], np.array([0.55, 0.54, 0.52]), rgb)
        gloss = np.where(inside & ~curtain, 0.6, gloss)
        ground = j == 0
        if shop is not None:
            pane = ground & (np.abs(across) < 0.5 * pitch - 0.12) & (above > 0.5) & (above < 2.3)
            goods = noise((height, width), 0.25 * density, rng, 3) > 0.15
            inner = (0.10 + 0.4 * goods * (above < 1.5))[..., None] * np.asarray(hue_of(rng))
            rgb = np.where((ground & (above < 2.9))[..., None], np.asarray(shop) * 0.8, rgb)
            rgb = np.where(pane[..., None], np.clip(0.08 + inner, 0, 0.8), rgb)
            gloss = np.where(pane, 0.7, gloss)
        else:
            door = ground & (np.abs(across) < 0.5) & (above < 2.2) & (i % 2 == 0)
            panel = door & (_edge(across / 0.5) * 0.5 < 0.05)
            low = ground & (np.abs(across) < half_wide) & (above > 1.0) & (above < 2.3) & (i % 2 == 1)
            rgb = np.where(door[..., None], np.asarray(hue_of(rng)) * 0.7, rgb)
            rgb = np.where(panel[..., None], rgb * 0.7, rgb)
            rgb = np.where(low[..., None], glass, rgb)
            rgb = np.where((low & bars)[..., None], frame_tone, rgb)
            gloss = np.where(low, 0.6, gloss)
        cornice = (up > h - 0.3) | ((np.abs(above) < 0.07) & (j > 0))
        rgb = np.where(cornice[..., None], np.array([0.66, 0.64, 0.60]) * (0.85 + 0.15 * (above > 0))[..., None], rgb)
        rain = 1 - 0.10 * np.clip(noise((height, width), 0.5 * density, rng, 3, stretch=0.3), 0, 1)
        return _picture(rgb * rain[..., None], gloss)

    return paint


def patches(colors: Sequence[Color], cell: float = 0.1) -> Painter:
    """Irregular fields of a few colours with sharp borders, as of camouflage or of batik."""

    def paint(width: int, height: int, density: float, rng: np.random.Generator) -> np.ndarray:
        level = noise((height, width), cell * density, rng, 4)
        bounds = np.quantile(level[::2, ::2], np.linspace(0, 1, len(colors) + 1)[1:-1])
        rgb = _layers(
            colors[0], *((_soft(level > bound), color) for bound, color in zip(bounds, colors[1:], strict=True))
        )
        return _picture(rgb * (1 + 0.07 * noise((height, width), 4, rng, 2)[..., None]), 0.05)

    return paint


def dots(ground: Color, ink: Color, period: float = 0.08, gloss: float = 0.0) -> Painter:
    """Dots of several sizes on a grid that is out of line from row to row."""

    def paint(width: int, height: int, density: float, rng: np.random.Generator) -> np.ndarray:
        x, y = _metres(width, height, density)
        row = np.floor(y / period).astype(int)
        along = x / period + rng.uniform(0, 1, row.max() + 1)[row]
        column = np.floor(along).astype(int)
        radius = rng.uniform(0.15, 0.45, (row.max() + 1, column.max() + 1))[row, column]
        dot = np.hypot(along % 1 - 0.5, (y / period) % 1 - 0.5) < radius
        rgb = _layers(ground, (_soft(dot), ink))
        return _picture(rgb * (1 + 0.06 * noise((height, width), 0.5 * density, rng, 4)[..., None]), gloss)

    return paint


def stripes(colors: Sequence[Color], period: float = 0.2, gloss: float = 0.0, upright: bool = True) -> Painter:
    """Bands of random widths, up and down or around."""

    def paint(width: int, height: int, density: float, rng: np.random.Generator) -> np.ndarray:
        x, y = _metres(width, height, density)
        along = x if upright else y
        edges = np.cumsum(rng.uniform(0.1, 0.6, 4 + int(4 * (along.max() + 0.1) / period))) * period
        band = np.searchsorted(edges, along)
        shown = np.asarray(colors, dtype=np.float32)[rng.integers(len(colors), size=len(edges) + 1)]
        rgb = shown[band] * (1 + 0.08 * noise((height, width), 0.3 * density, rng, 4)[..., None])
        return _picture(rgb, gloss)

    return paint


def scaled(painter: Painter, factor: float) -> Painter:
    """The same paint with everything in it `factor` times as large."""

    def paint(width: int, height: int, density: float, rng: np.random.Generator) -> np.ndarray:
        return painter(width, height, density * factor, rng)

    return paint


def car_side(color: Color) -> Painter:
    """The flank of a car: doors, handles, a sill; the wheels are solids of their own."""

    def paint(width: int, height: int, density: float, rng: np.random.Generator) -> np.ndarray:
        x, y = _metres(width, height, density)
        w, h = width / density, height / density
        rgb: np.ndarray = np.broadcast_to(np.asarray(color, dtype=np.float32), (height, width, 3)).copy()
        for at in (0.30, 0.50, 0.70):
            rgb[np.abs(x - at * w) < 0.012] = np.asarray(color) * 0.3
        for at in (0.45, 0.65):
            rgb[(np.abs(x - at * w) < 0.07) & (np.abs(y - 0.25 * h) < 0.02)] = (0.75, 0.75, 0.77)
        rgb[y > 0.82 * h] = (0.12, 0.12, 0.13)
        rgb[np.abs(y - 0.5 * h) < 0.015] = np.asarray(color) * 0.7
        return _picture(rgb * (1 + 0.03 * noise((height, width), 0.3 * density, rng, 3)[..., None]), 0.35)

    return paint


def car_end(color: Color) -> Painter:
    """The front or back of a car: lamps, a plate, a dark bumper."""

    def paint(width: int, height: int, density: float, rng: np.random.Generator) -> np.ndarray:
        x, y = _metres(width, height, density)
        w, h = width / density, height / density
        across = np.abs(x - w / 2)
        rgb: np.ndarray = np.broadcast_to(np.asarray(color, dtype=np.float32), (height, width, 3)).copy()
        rgb[(across > 0.36 * w) & (np.abs(y - 0.35 * h) < 0.09)] = (0.80, 0.12, 0.10)
        rgb[(across > 0.42 * w) & (np.abs(y - 0.35 * h) < 0.09)] = (0.95, 0.75, 0.45)
        rgb[y > 0.66 * h] = (0.13, 0.13, 0.14)
        plate = (across < 0.26) & (np.abs(y - 0.55 * h) < 0.06)
        rgb[plate] = (0.92, 0.91, 0.86)
        letters = plate & (across < 0.22) & (np.abs(y - 0.55 * h) < 0.035)
        code = np.repeat(rng.random(24) < 0.6, 4)
        rgb[letters & code[np.clip((x - w / 2 + 0.26) / 0.52 * 95, 0, 95).astype(int)]] = (0.1, 0.1, 0.12)
        return _picture(rgb, 0.35)

    return paint


def glasshouse(color: Color) -> Painter:
    """A car's windows between pillars of its colour."""

    def paint(width: int, height: int, density: float, rng: np.random.Generator) -> np.ndarray:
        x, y = _metres(width, height, density)
        w, h = width / density, height / density
        rgb = np.empty((height, width, 3), dtype=np.float32)
        rgb[:] = np.array([0.16, 0.19, 0.22])
        rgb += 0.12 * np.clip(1 - y / h, 0, 1)[..., None]
        pillar = (_edge(x / (w / 2)) * w / 2 < 0.05) | (y < 0.05)
        rgb[pillar] = color
        return _picture(rgb * (1 + 0.2 * noise((height, width), 0.3 * density, rng, 3)[..., None]), 0.6)

    return paint


def wheel() -> Painter:
    """The face of a wheel: tyre, rim, spokes."""

    def paint(width: int, height: int, density: float, rng: np.random.Generator) -> np.ndarray:
        x, y = _metres(width, height, density)
        px, py = 2 * x * density / width - 1, 2 * y * density / height - 1
        radius, angle = np.hypot(px, py), np.arctan2(py, px)
        rgb = np.empty((height, width, 3), dtype=np.float32)
        rgb[:] = (0.10, 0.10, 0.11)
        rim = radius < 0.62
        spoke = rim & (np.abs(((angle / (2 * np.pi) * 5) % 1) - 0.5) < 0.27)
        rgb[rim] = (0.25, 0.25, 0.27)
        rgb[spoke | (radius < 0.16) | (np.abs(radius - 0.6) < 0.04)] = (0.72, 0.73, 0.75)
        return _picture(rgb * (1 + 0.06 * noise((height, width), 4, rng, 2)[..., None]), 0.3)

    return paint


def sky(rng: np.random.Generator) -> Callable[[np.ndarray], np.ndarray]:
    """A sky: directions (3, N) to linear colours (N, 3), blue to haze with broken clouds."""
    from scipy.ndimage import map_coordinates

    around, overlap = 1024, 128
    strip = noise((256, around + overlap), 90, rng, 6, stretch=2)
    # The last columns turn into those before the first, so that the sky has no seam behind the camera.
    clouds = strip[:, overlap:].copy()
    blend = np.linspace(0, 1, overlap, dtype=np.float32)
    clouds[:, -overlap:] = (1 - blend) * clouds[:, -overlap:] + blend * strip[:, :overlap]

    def shine(directions: np.ndarray) -> np.ndarray:
        height = np.clip(directions[2], 0, 1)
        column = (np.arctan2(directions[0], directions[1]) / (2 * np.pi) + 0.5) * (around - 1)
        cloud = map_coordinates(clouds, np.stack([(1 - height) * 255, column]), order=1, mode="nearest")
        cover = np.clip(1.3 * cloud + 0.15, 0, 1)[:, None]
        blue = np.array([0.22, 0.42, 0.80]) + (1 - height[:, None]) ** 2 * np.array([0.42, 0.34, 0.10])
        return (blue + 0.75 * cover * (np.array([1.0, 0.99, 0.97]) - blue)).astype(np.float32)

    return shine


def _metres(width: int, height: int, density: float) -> tuple[np.ndarray, np.ndarray]:
    """Texel centres in metres from the top left: x and y, each (H, W)."""
    x, y = np.meshgrid((np.arange(width) + 0.5) / density, (np.arange(height) + 0.5) / density)
    return x.astype(np.float32), y.astype(np.float32)


def _edge(phase: np.ndarray) -> np.ndarray:
    """Distance, in periods, to the nearest whole number."""
    return np.abs(phase - np.rint(phase))


def _soft(mask: np.ndarray) -> np.ndarray:
    """A mask (H, W) with edges softened over about a texel; float32 in [0, 1]."""
    return cv2.GaussianBlur(mask.astype(np.float32), (0, 0), 0.7)


def _over(below: np.ndarray, mask: np.ndarray, color: Color | np.ndarray) -> np.ndarray:
    """A colour laid over a picture (H, W, 3) through a mask (H, W)."""
    return below + mask[..., None] * (np.asarray(color, dtype=np.float32) - below)


def _layers(ground: Color, *layers: tuple[np.ndarray, Color]) -> np.ndarray:
    shape = layers[0][0].shape
    picture: np.ndarray = np.broadcast_to(np.asarray(ground, dtype=np.float32), (*shape, 3))
    for mask, color in layers:
        picture = _over(picture, mask, color)
    return picture


def _picture(rgb: np.ndarray, gloss: np.ndarray | float) -> np.ndarray:
    picture = np.empty((*rgb.shape[:2], 4), dtype=np.float32)
    picture[..., :3] = np.clip(rgb, 0, 1)
    picture[..., 3] = np.clip(gloss, 0, 1)
    return picture


def _framed(rgb: np.ndarray, density: float, rng: np.random.Generator) -> np.ndarray:
    """A picture in a wooden frame with a mount."""
    height, width = rgb.shape[:2]
    x, y = _metres(width, height, density)
    inset = np.minimum(np.minimum(x, width / density - x), np.minimum(y, height / density - y))
    wood = planks((0.42, 0.28, 0.14), board=0.5, gloss=0.3)(width, height, density, rng)
    rgb = np.where((inset < 0.09)[..., None], np.array([0.93, 0.91, 0.86]), rgb)
    rgb = np.where((inset < 0.045)[..., None], wood[..., :3], rgb)
    return _picture(rgb, np.where(inset < 0.045, 0.3, 0.1))


def _rgb(hue: float, saturation: float, value: float) -> np.ndarray:
    """sRGB (3,) of a hue in turns, saturation and value in [0, 1]."""
    k = (np.array([5, 3, 1]) + 6 * (hue % 1)) % 6
    return value - value * saturation * np.clip(np.minimum(k, 4 - k), 0, 1)


def hue_of(rng: np.random.Generator) -> Color:
    """A random, not too bright sRGB colour."""
    red, green, blue = _rgb(rng.uniform(), rng.uniform(0.25, 0.75), rng.uniform(0.3, 0.9))
    return float(red), float(green), float(blue)
