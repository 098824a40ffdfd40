"""A small ray caster for the sample scenes: boxes, spheres and cylinders with baked light and true depth.

Diffuse light (lamps or sun with soft shadows, ambient light with occlusion) is baked once into each surface's texture;
what depends on the view (highlights, mirror reflections) is added per pixel. World axes: x right, y forward, z up,
in metres; colours are linear RGB until the picture is encoded.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import cv2
import numpy as np

from difixcli.scenes.scene import Camera

Painter = Callable[[int, int, float, np.random.Generator], np.ndarray]
"""(width px, height px, texels per metre, rng) → (H, W, 4) float32: sRGB colour and gloss, all in [0, 1]."""

SUPERSAMPLING = 2
SHININESS = 48.0
MIRROR_THRESHOLD = 0.03
SURFACE_OFFSET = 2e-3
FAR = np.float32(1e6)
BOUNCE = 0.35
"""How much ambient light an occluder gives back in place of what it takes."""
RAYS_AT_ONCE = 1 << 15
PIXELS_AT_ONCE = 1 << 17
"""Of a picture: what is known of a pixel's rays takes a thousand bytes."""
LEVELS = 8
GAMMA = 2.2

_BOX_FACES = ("-x", "+x", "-y", "+y", "-z", "+z")


@dataclass(eq=False)
class Solid:
    """A convex solid in its own frame: `rotation` (3, 3) and `centre` (3,) take local to world coordinates.

    `half` is (3,): a box's half extents, a sphere's radii (equal), or a cylinder's (radius, radius, half height) with
    its axis along local z. `painters` maps face names (`-x` … `+z` for a box, `side`, `-z`, `+z` for a cylinder,
    `side` for a sphere) to painters; `*` is the rest; a face without either is never seen and stays black. `inside`
    shows the inner faces of a box (a room). `emission` multiplies the paint of surfaces that shine and take no baked
    light (0: none). `density` is texels per metre, `light_density` those of baked light (None: as the world has it).
    """

    kind: str
    centre: np.ndarray
    half: np.ndarray
    painters: dict[str, Painter]
    rotation: np.ndarray = field(default_factory=lambda: np.eye(3, dtype=np.float32))
    inside: bool = False
    emission: float = 0.0
    density: float = 160.0
    light_density: float | None = None

    @property
    def faces(self) -> tuple[str, ...]:
        return {"box": _BOX_FACES, "cylinder": ("side", "-z", "+z"), "sphere": ("side",)}[self.kind]

    def face_size(self, face: int) -> tuple[float, float]:
        """(width, height) of a face in metres."""
        x, y, z = (2 * float(value) for value in self.half)
        if self.kind == "box":
            return ((y, z), (x, z), (x, y))[face // 2]
        if self.kind == "cylinder":
            return (np.pi * x, z) if face == 0 else (x, y)
        return np.pi * x, np.pi * x / 2

    def __post_init__(self) -> None:
        self._turned = not np.array_equal(self.rotation, np.eye(3))

    @property
    def radius(self) -> float:
        """Of the bounding sphere around `centre`, in metres."""
        return float(self.half[0] if self.kind == "sphere" else np.linalg.norm(self.half))

    def to_local(self, vectors: np.ndarray) -> np.ndarray:
        """World directions (3, N) in the solid's frame."""
        return self.rotation.T @ vectors if self._turned else vectors

    def hit(self, origin: np.ndarray, direction: np.ndarray) -> np.ndarray:
        """Distance (N,) along `direction` (3, N) from `origin` (3, N) or (3, 1), both world; FAR where missed."""
        o = self.to_local(origin - self.centre[:, None])
        d = self.to_local(direction)
        with np.errstate(divide="ignore", invalid="ignore"):
            if self.kind == "box":
                near, far = _slabs(o, d, self.half)
                if self.inside:
                    return np.where((far > 0) & (near < far), far, FAR)
                return np.where((near > 0) & (near < far), near, FAR)
            if self.kind == "sphere":
                return _quadric(d, o, 3, self.half[0])
            near_z, far_z = _slabs(o[2:], d[2:], self.half[2:])
            near_r, far_r = _quadric_range(d, o, 2, self.half[0])
            near, far = np.maximum(near_z, near_r), np.minimum(far_z, far_r)
            return np.where((near > 0) & (near < far), near, FAR)

    def surface(self, points: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """At world points (3, N) on the solid: face index (N,), u and v (N,) in [0, 1], world normal (3, N).

        u runs to the right and v downwards as somebody who looks at the face sees it.
        """
        p = self.to_local(points - self.centre[:, None])
        q = p / self.half[:, None]
        normal = np.zeros_like(p)
        columns = np.arange(p.shape[1])
        if self.kind == "box":
            axis = np.abs(q).argmax(axis=0)
            sign = np.sign(q[axis, columns])
            normal[axis, columns] = sign
            face = 2 * axis + (sign > 0)
            across = np.select([axis == 0, axis == 1], [q[1] * sign, -q[0] * sign], q[0])
            up = np.where(axis == 2, q[1], q[2])
            if self.inside:
                across, normal = -across, -normal
        else:
            angle = np.arctan2(p[1], p[0]) / np.float32(np.pi)
            if self.kind == "sphere":
                normal = q
                face = np.zeros(p.shape[1], dtype=np.int64)
                across, up = angle, 1 - 2 * np.arccos(np.clip(q[2], -1, 1)) / np.float32(np.pi)
            else:
                cap = np.abs(q[2]) > np.hypot(q[0], q[1])
                normal[:2] = np.where(cap, 0, q[:2])
                normal[2] = np.where(cap, np.sign(q[2]), 0)
                face = np.where(cap, np.where(q[2] > 0, 2, 1), 0)
                across, up = np.where(cap, q[0], angle), np.where(cap, q[1], q[2])
        u = np.clip((across + 1) / 2, 0, 1)
        v = np.clip((1 - up) / 2, 0, 1)
        return face, u.astype(np.float32), v.astype(np.float32), (self.rotation @ normal).astype(np.float32)

    def positions(self, face: int, columns: int, rows: int) -> tuple[np.ndarray, np.ndarray]:
        """World points and normals, each (3, rows·columns), at the texel centres of a face: inverse of `surface`."""
        u, v = np.meshgrid((np.arange(columns) + 0.5) / columns, (np.arange(rows) + 0.5) / rows)
        across, up = 2 * u.ravel() - 1, 1 - 2 * v.ravel()
        if self.kind == "box":
            axis, sign = face // 2, 1.0 if face % 2 else -1.0
            normal = np.zeros((3, across.size))
            normal[axis] = sign
            if self.inside:
                across = -across
            level = np.full_like(across, sign)
            q = np.stack(
                [(level, across * sign, up), (-across * sign, level, up), (across, up, level)][axis]  # type: ignore
            )
            normal = -normal if self.inside else normal
        elif self.kind == "sphere":
            polar = np.pi * (1 - up) / 2
            angle = np.pi * across
            q = np.stack([np.sin(polar) * np.cos(angle), np.sin(polar) * np.sin(angle), np.cos(polar)])
            normal = q
        elif face == 0:
            q = np.stack([np.cos(np.pi * across), np.sin(np.pi * across), up])
            normal = q * np.array([[1], [1], [0]])
        else:
            q = np.stack([across, up, np.full_like(across, 1.0 if face == 2 else -1.0)])
            normal = np.zeros_like(q)
            normal[2] = q[2]
        points = self.rotation @ (q * self.half[:, None]) + self.centre[:, None]
        return points.astype(np.float32), (self.rotation @ normal).astype(np.float32)

    def corners(self) -> np.ndarray:
        """(8, 3) world corners of the bounding box."""
        signs = np.array(np.meshgrid([-1, 1], [-1, 1], [-1, 1])).reshape(3, 8)
        return (self.rotation @ (signs * self.half[:, None])).T + self.centre


def box(
    centre: Sequence[float],
    size: Sequence[float],
    painters: dict[str, Painter] | Painter,
    turn: float = 0.0,
    inside: bool = False,
    emission: float = 0.0,
    density: float = 160.0,
) -> Solid:
    """A box of `size` (full extents, metres) turned by `turn` degrees about z."""
    a = np.deg2rad(turn)
    rotation = np.array([[np.cos(a), -np.sin(a), 0], [np.sin(a), np.cos(a), 0], [0, 0, 1]], dtype=np.float32)
    half = np.asarray(size, dtype=np.float32) / 2
    return Solid("box", _vector(centre), half, _painters(painters), rotation, inside, emission, density)


def sphere(
    centre: Sequence[float],
    radius: float,
    painter: Painter,
    emission: float = 0.0,
    density: float = 160.0,
) -> Solid:
    """A sphere."""
    half = np.full(3, radius, dtype=np.float32)
    return Solid("sphere", _vector(centre), half, _painters(painter), emission=emission, density=density)


def cylinder(
    centre: Sequence[float],
    radius: float,
    height: float,
    painters: dict[str, Painter] | Painter,
    axis: str = "z",
    emission: float = 0.0,
    density: float = 160.0,
) -> Solid:
    """A cylinder whose axis is world `x`, `y` or `z`."""
    turn = {"x": [[0, 0, 1], [0, 1, 0], [-1, 0, 0]], "y": [[1, 0, 0], [0, 0, 1], [0, -1, 0]], "z": np.eye(3)}[axis]
    half = np.array([radius, radius, height / 2], dtype=np.float32)
    return Solid(
        "cylinder",
        _vector(centre),
        half,
        _painters(painters),
        np.array(turn, dtype=np.float32),
        emission=emission,
        density=density,
    )


@dataclass(frozen=True, eq=False)
class Light:
    """A lamp (`radius` > 0 at `position`, metres) or, with `distant`, a sun in direction `position`.

    `color` (3,) is what a white surface square to it reflects: at one metre for a lamp, anywhere for a sun. `radius`
    is the lamp's in metres or the sun's as the tangent of its half angle; it softens shadows, which are sampled at
    `samples` points of the disc.
    """

    position: np.ndarray
    color: np.ndarray
    radius: float
    distant: bool = False
    samples: int = 16


class World:
    """Solids under lights, baked and ready to be looked at.

    `ambient` (3,) is the light from everywhere, or a function from directions (3, N) to colours (N, 3) (a sky);
    `reach` is how far an occluder shades ambient light, in metres; `light_density` is baked light texels per metre.
    """

    def __init__(
        self,
        solids: Sequence[Solid],
        lights: Sequence[Light],
        ambient: np.ndarray | Callable[[np.ndarray], np.ndarray],
        reach: float,
        light_density: float,
        rng: np.random.Generator,
    ) -> None:
        self.solids, self.lights, self.ambient, self.reach = list(solids), list(lights), ambient, reach
        self._ambient_directions = _hemisphere(24)
        texels: list[np.ndarray] = []
        self._first = np.zeros(len(self.solids), dtype=np.int64)
        offsets: list[np.ndarray] = []
        sizes: list[list[tuple[int, ...]]] = []
        densities: list[float] = []
        at = 0
        textures = iter(self._bake(light_density, rng))
        for i, solid in enumerate(self.solids):
            self._first[i] = len(offsets)
            for _ in solid.faces:
                levels = _pyramid(next(textures))
                offsets.append(at + np.cumsum([0] + [level.shape[0] * level.shape[1] for level in levels])[:-1])
                sizes.append([level.shape[:2] for level in levels])
                densities.append(solid.density)
                texels += [level.reshape(-1, 4) for level in levels]
                at += sum(level.shape[0] * level.shape[1] for level in levels)
        self._texels = np.concatenate(texels)
        self._offsets = np.array(offsets)
        self._sizes = np.array(sizes)
        self._density = np.array(densities, dtype=np.float32)

    def look(self, camera: Camera) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The view of a camera: (H, W, 3) uint8 sRGB, z-depth (H, W) float32 in metres (0: sky), and the world
        point (H, W, 3) float32 of each pixel."""
        color = np.empty((camera.height, camera.width, 3), dtype=np.uint8)
        depth = np.empty((camera.height, camera.width), dtype=np.float32)
        points = np.empty((camera.height, camera.width, 3), dtype=np.float32)
        high = max(1, PIXELS_AT_ONCE // camera.width)
        for top in range(0, camera.height, high):
            rows = slice(top, min(top + high, camera.height))
            color[rows], depth[rows], points[rows] = self._look(camera, rows)
        return color, depth, points

    def _look(self, camera: Camera, shown: slice) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Some rows of `look`."""
        s = SUPERSAMPLING
        width, height, rows = camera.width * s, (shown.stop - shown.start) * s, shown.stop - shown.start
        x = (np.arange(width, dtype=np.float32) + 0.5) / s
        y = (np.arange(shown.start * s, shown.stop * s, dtype=np.float32) + 0.5) / s
        gx, gy = np.meshgrid(*camera.plane(x, y))
        local = np.stack([gx, gy, np.full_like(gx, -1)]).astype(np.float32)
        length = np.sqrt(_dot(local, local))
        rotation = camera.camera_to_world[:3, :3].astype(np.float32)
        directions = np.einsum("ij,jhw->ihw", rotation, local) / length
        origin = camera.position.astype(np.float32)[:, None]
        t = np.full((height, width), FAR, dtype=np.float32)
        hit = np.full((height, width), -1, dtype=np.int16)
        for i, solid in enumerate(self.solids):
            window = _window(solid, camera, shown)
            if window is None:
                continue
            part = directions[(slice(None), *window)]
            distance = solid.hit(origin, part.reshape(3, -1)).reshape(part.shape[1:])
            nearer = distance < t[window]
            t[window][nearer] = distance[nearer]
            hit[window][nearer] = i

        def by_sample(grid: np.ndarray) -> np.ndarray:
            """(…, H·s, W·s) to (…, s², H·W)."""
            split = grid.reshape(*grid.shape[:-2], rows, s, camera.width, s)
            return np.moveaxis(split, (-3, -1), (-4, -3)).reshape(*grid.shape[:-2], s * s, -1)

        rays = by_sample(directions)
        distances, solids = by_sample(t), by_sample(hit)
        hits = self._surfaces(origin, rays.reshape(3, -1), distances.ravel(), solids.ravel())
        hits.footprint = hits.distance / np.float32(camera.fx)
        surface, u = hits.surface.reshape(s * s, -1), hits.u.reshape(s * s, -1)
        # Where all samples of a pixel lie on one surface, it is shaded once; edges and seams are shaded by sample.
        plain = (surface == surface[0]).all(axis=0) & (np.ptp(u, axis=0) < 0.25)
        color = np.empty((plain.size, 3), dtype=np.float32)
        color[plain] = self._shade(hits.averaged(s * s, np.flatnonzero(plain)), mirror=True)
        edges = np.flatnonzero(~plain)
        samples = (np.arange(s * s)[:, None] * plain.size + edges).ravel()
        color[edges] = self._shade(hits.chosen(samples), mirror=True).reshape(s * s, -1, 3).mean(axis=0)
        depth = np.where(hit >= 0, t, 0) / length
        # One sample speaks for a pixel's depth: an average across an edge would lie on no surface.
        points = np.moveaxis(origin[:, :, None] + directions[:, ::s, ::s] * t[::s, ::s], 0, -1)
        return encode(color.reshape(rows, camera.width, 3)), depth[::s, ::s].astype(np.float32), points

    def _surfaces(self, origin: np.ndarray, directions: np.ndarray, t: np.ndarray, hit: np.ndarray) -> _Hits:
        """Where rays (3, N) that meet solids `hit` (N,) (−1: sky) at distances `t` (N,) land on their surfaces."""
        hits = _Hits(
            directions=directions,
            distance=t,
            points=origin + directions * t,
            normal=np.zeros_like(directions),
            surface=np.full(t.size, -1),
            u=np.zeros_like(t),
            v=np.zeros_like(t),
            footprint=np.zeros_like(t),
        )
        order = np.argsort(hit, kind="stable")
        ids, starts = np.unique(hit[order], return_index=True)
        for i, start, stop in zip(ids, starts, [*starts[1:], order.size], strict=True):
            if i >= 0:
                rays = order[start:stop]
                face, hits.u[rays], hits.v[rays], hits.normal[:, rays] = self.solids[i].surface(hits.points[:, rays])
                hits.surface[rays] = self._first[i] + face
        return hits

    def _shade(self, hits: _Hits, mirror: bool) -> np.ndarray:
        """Linear colours (N, 3) of rays that have landed; without `mirror`, glossy surfaces show no reflection."""
        color = np.empty((hits.surface.size, 3), dtype=np.float32)
        sky = np.flatnonzero(hits.surface < 0)
        if sky.size:
            color[sky] = self._background(hits.directions[:, sky])
        landed = np.flatnonzero(hits.surface >= 0)
        hits = hits.chosen(landed)
        facing = np.clip(-_dot(hits.directions, hits.normal), 0.02, 1)
        texel = self._sample(hits.surface, hits.u, hits.v, hits.footprint / np.sqrt(facing))
        shaded, gloss = texel[:, :3].copy(), texel[:, 3]
        glossy = np.flatnonzero(gloss > MIRROR_THRESHOLD)
        reflected = hits.directions[:, glossy] + 2 * facing[glossy] * hits.normal[:, glossy]
        reflected /= np.sqrt(_dot(reflected, reflected))
        for light in self.lights:
            towards = light.position.astype(np.float32)[:, None] - (0 if light.distant else hits.points[:, glossy])
            distance2 = _dot(towards, towards)
            lobe = np.clip(_dot(reflected, towards) / np.sqrt(distance2), 0, 1) ** SHININESS
            if not light.distant:
                lobe = lobe / np.maximum(distance2, 0.25)
            shaded[glossy] += (0.6 * gloss[glossy] * lobe)[:, None] * light.color
        # Schlick's Fresnel term, scaled by the surface's gloss.
        share = gloss[glossy] * (0.08 + 0.92 * (1 - facing[glossy]) ** 5)
        clear = np.flatnonzero(share > MIRROR_THRESHOLD)
        if mirror and clear.size:
            rays, away, share = glossy[clear], reflected[:, clear], share[clear, None]
            start = hits.points[:, rays] + SURFACE_OFFSET * hits.normal[:, rays]
            second = self._surfaces(start, away, *self._nearest(start, away))
            # A mirrored picture may be coarser: gloss is never perfect.
            second.footprint = 2 * hits.footprint[rays] * (1 + second.distance / hits.distance[rays])
            shaded[rays] = (1 - share) * shaded[rays] + share * self._shade(second, mirror=False)
        color[landed] = shaded
        return color

    def _background(self, directions: np.ndarray) -> np.ndarray:
        if callable(self.ambient):
            return self.ambient(directions)
        return np.broadcast_to(self.ambient, (directions.shape[1], 3)).astype(np.float32)

    def _nearest(self, origin: np.ndarray, directions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Distance (N,) and solid (N,) that rays (3, N) meet first."""
        t = np.full(directions.shape[1], FAR, dtype=np.float32)
        hit = np.full(directions.shape[1], -1, dtype=np.int16)
        for i, solid in enumerate(self.solids):
            rays = _passing(solid, origin, directions, 0.0, FAR)
            distance = solid.hit(origin[:, rays], directions[:, rays])
            nearer = distance < t[rays]
            t[rays[nearer]], hit[rays[nearer]] = distance[nearer], i
        return t, hit

    def _bake(self, light_density: float, rng: np.random.Generator) -> list[np.ndarray]:
        """The lit textures of all faces: (H, W, 4) float32 each, linear radiance and gloss."""
        textures, grids, points, normals = [], [], [], []
        for solid in self.solids:
            for face, name in enumerate(solid.faces):
                wide, high = solid.face_size(face)
                columns, rows = (max(4, round(side * solid.density)) for side in (wide, high))
                painter = solid.painters.get(name) or solid.painters.get("*")
                if painter is None:
                    textures.append(np.zeros((1, 1, 4), dtype=np.float32))
                    grids.append((0, 0))
                    continue
                texture = painter(columns, rows, solid.density, rng).astype(np.float32)
                texture[..., :3] = np.clip(texture[..., :3], 0, 1) ** GAMMA
                textures.append(texture)
                if solid.emission:
                    texture[..., :3] *= solid.emission
                    grids.append((0, 0))
                    continue
                lit = solid.light_density or light_density
                columns, rows = (max(4, round(side * lit)) for side in (wide, high))
                grids.append((rows, columns))
                where, normal = solid.positions(face, columns, rows)
                points.append(where + SURFACE_OFFSET * normal)
                normals.append(normal)
        # All faces at once: the light's cost is in the number of calls.
        light = self._irradiance(np.concatenate(points, axis=1), np.concatenate(normals, axis=1))
        start = 0
        for texture, (rows, columns) in zip(textures, grids, strict=True):
            if rows:
                part = light[start : start + rows * columns].reshape(rows, columns, 3)
                start += rows * columns
                part = cv2.GaussianBlur(part, (0, 0), 0.7, borderType=cv2.BORDER_REPLICATE)
                texture[..., :3] *= cv2.resize(part, texture.shape[1::-1], interpolation=cv2.INTER_LINEAR)
        return textures

    def _irradiance(self, points: np.ndarray, normals: np.ndarray) -> np.ndarray:
        """Diffuse light (N, 3) at points (3, N) with normals (3, N)."""
        parts = []
        for i in range(0, points.shape[1], RAYS_AT_ONCE):
            at, normal = points[:, i : i + RAYS_AT_ONCE], normals[:, i : i + RAYS_AT_ONCE]
            parts.append(self._ambient_light(at, normal) + sum(self._lamp_light(at, normal, l) for l in self.lights))
        return np.concatenate(parts)

    def _ambient_light(self, points: np.ndarray, normals: np.ndarray) -> np.ndarray:
        # The same directions for every point, mirrored into its half sphere: smooth, without noise.
        sides = (self._ambient_directions @ normals).astype(np.float32)
        blocked = np.zeros(sides.shape, dtype=bool)

        def away(k: int, rays: np.ndarray | slice) -> np.ndarray:
            direction = self._ambient_directions[k][:, None]
            return np.where(sides[k, rays] < 0, -direction, direction).astype(np.float32)

        for solid in self._shading():
            offset = points - solid.centre[:, None]
            near = np.flatnonzero(_dot(offset, offset) < (solid.radius + self.reach) ** 2)
            for k in range(len(sides)) if near.size else ():
                blocked[k, near] |= solid.hit(points[:, near], away(k, near)) < self.reach
        total = np.zeros((points.shape[1], 3), dtype=np.float32)
        for k, side in enumerate(sides):
            share = np.abs(side) * np.where(blocked[k], BOUNCE, 1)
            total += (2 / len(sides)) * share[:, None] * self._background(away(k, slice(None)))
        return total

    def _lamp_light(self, points: np.ndarray, normals: np.ndarray, light: Light) -> np.ndarray:
        """Light from one lamp or sun, its disc sampled for soft shadows; (N, 3)."""
        if light.distant:
            middle = (light.position / np.linalg.norm(light.position)).astype(np.float32)
            right, up = _across(middle)
            axis, reach = np.broadcast_to(middle[:, None], points.shape), np.full(points.shape[1], FAR)
        else:
            right, up = np.eye(3)[:2]
            axis = light.position.astype(np.float32)[:, None] - points
            reach = np.sqrt(_dot(axis, axis))
            axis = axis / reach
        towards = []
        for a, b in _disc(light.samples):
            shift = (light.radius * (a * right + b * up)).astype(np.float32)[:, None]
            aim = axis + shift if light.distant else axis * reach + shift
            towards.append(aim / np.sqrt(_dot(aim, aim)))
        free = np.ones((len(towards), points.shape[1]), dtype=bool)
        lit = np.flatnonzero(_dot(axis, normals) > -0.2)
        for solid in self._shading():
            rays = lit[_passing(solid, points[:, lit], axis[:, lit], light.radius, reach[lit])]
            for k in range(len(towards)) if rays.size else ():
                free[k, rays] &= solid.hit(points[:, rays], towards[k][:, rays]) > reach[rays]
        strength = sum(np.clip(_dot(aim, normals), 0, None) * seen for aim, seen in zip(towards, free, strict=True))
        strength = strength / len(towards) / (1 if light.distant else np.maximum(reach**2, 0.04))
        return strength[:, None] * light.color

    def _shading(self) -> list[Solid]:
        """The solids that cast shadows: those that neither shine nor surround."""
        return [solid for solid in self.solids if not solid.emission and not solid.inside]

    def _sample(self, surface: np.ndarray, u: np.ndarray, v: np.ndarray, footprint: np.ndarray) -> np.ndarray:
        """Trilinear texels (N, 4) at u, v (N,) for a `footprint` (N,) in metres."""
        level = np.clip(np.log2(np.maximum(footprint * self._density[surface], 1e-6)), 0, LEVELS - 1.001)
        finer = level.astype(np.int64)
        blend = (level - finer).astype(np.float32)[:, None]
        return (1 - blend) * self._bilinear(surface, finer, u, v) + blend * self._bilinear(surface, finer + 1, u, v)

    def _bilinear(self, surface: np.ndarray, level: np.ndarray, u: np.ndarray, v: np.ndarray) -> np.ndarray:
        offset = self._offsets[surface, level]
        rows, columns = self._sizes[surface, level].T
        x, y = u * columns - np.float32(0.5), v * rows - np.float32(0.5)
        x0, y0 = np.floor(x).astype(np.int64), np.floor(y).astype(np.int64)
        fx, fy = (x - x0).astype(np.float32)[:, None], (y - y0).astype(np.float32)[:, None]
        left, right = np.clip(x0, 0, columns - 1), np.clip(x0 + 1, 0, columns - 1)
        top, bottom = offset + np.clip(y0, 0, rows - 1) * columns, offset + np.clip(y0 + 1, 0, rows - 1) * columns
        above = self._texels[top + left] * (1 - fx) + self._texels[top + right] * fx
        below = self._texels[bottom + left] * (1 - fx) + self._texels[bottom + right] * fx
        return above * (1 - fy) + below * fy


@dataclass(eq=False)
class _Hits:
    """Where N rays landed: arrays whose last axis is N. `surface` is −1 for the sky; `footprint` is a pixel's width
    there in metres."""

    directions: np.ndarray
    distance: np.ndarray
    points: np.ndarray
    normal: np.ndarray
    surface: np.ndarray
    u: np.ndarray
    v: np.ndarray
    footprint: np.ndarray

    def chosen(self, rays: np.ndarray) -> _Hits:
        """Some of the rays."""
        return _Hits(**{name: np.ascontiguousarray(value[..., rays]) for name, value in vars(self).items()})

    def averaged(self, samples: int, pixels: np.ndarray) -> _Hits:
        """The mean over each pixel's samples, for `pixels` whose samples share a surface; the sample axis is outer."""

        def mean(value: np.ndarray) -> np.ndarray:
            return value.reshape(*value.shape[:-1], samples, -1)[..., pixels].mean(axis=-2, dtype=value.dtype)

        merged = {name: mean(value) for name, value in vars(self).items() if name != "surface"}
        return _Hits(surface=self.surface[pixels], **merged)


def encode(linear: np.ndarray) -> np.ndarray:
    """Linear colour to 8-bit, with a soft shoulder so that highlights do not clip hard."""
    exposed = np.where(linear < 0.7, linear, 0.7 + 0.3 * (1 - np.exp(-(np.maximum(linear, 0.7) - 0.7) / 0.3)))
    return np.rint(np.clip(exposed, 0, 1) ** (1 / GAMMA) * 255).astype(np.uint8)


def _vector(values: Sequence[float]) -> np.ndarray:
    return np.asarray(values, dtype=np.float32)


def _painters(painters: dict[str, Painter] | Painter) -> dict[str, Painter]:
    return painters if isinstance(painters, dict) else {"*": painters}


def _passing(
    solid: Solid, origin: np.ndarray, directions: np.ndarray, spread: float, reach: np.ndarray | np.float32
) -> np.ndarray:
    """Indices of the rays (3, N) that may come near a solid before `reach`: those that meet its bounding sphere,
    widened by `spread` (and by as much for each unit of distance)."""
    offset = solid.centre[:, None] - origin
    along = _dot(offset, directions)
    apart2 = _dot(offset, offset)
    radius = solid.radius + spread * (1 + np.sqrt(apart2)) if spread else np.float32(solid.radius)
    inside = apart2 < radius**2
    return np.flatnonzero(inside | ((along > 0) & (apart2 - along**2 < radius**2) & (along - radius < reach)))


def _dot(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """The dot products (N,) of vectors (k, N)."""
    total = a[0] * b[0]
    for k in range(1, len(a)):
        total = total + a[k] * b[k]
    return total


def _slabs(o: np.ndarray, d: np.ndarray, half: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Entry and exit distances (N,) of rays (k, N) through |p_i| ≤ half_i."""
    inverse = 1 / d
    middle, reach = -o * inverse, np.abs(inverse) * half[:, None]
    near, far = middle - reach, middle + reach
    # Row by row: reducing over a short first axis is several times slower.
    first, last = near[0], far[0]
    for k in range(1, len(near)):
        first, last = np.maximum(first, near[k]), np.minimum(last, far[k])
    return first, last


def _quadric_range(d: np.ndarray, o: np.ndarray, axes: int, radius: float) -> tuple[np.ndarray, np.ndarray]:
    """Entry and exit distances through the ball (`axes` 3) or endless cylinder (2) of `radius` at the origin."""
    d, o = d[:axes], o[:axes]
    a, b = _dot(d, d), _dot(d, o)
    root = b * b - a * (_dot(o, o) - radius * radius)
    missed = root < 0
    root = np.sqrt(np.maximum(root, 0))
    return np.where(missed, FAR, (-b - root) / a), np.where(missed, -FAR, (-b + root) / a)


def _quadric(d: np.ndarray, o: np.ndarray, axes: int, radius: float) -> np.ndarray:
    near, far = _quadric_range(d, o, axes, radius)
    return np.where((near > 0) & (near < far), near, FAR)


def _window(solid: Solid, camera: Camera, shown: slice) -> tuple[slice, slice] | None:
    """The rows and columns of the supersampled rows `shown` of the image that a solid can cover; None if none."""
    s = SUPERSAMPLING
    top, height = shown.start * s, (shown.stop - shown.start) * s
    x, y, z = camera.project(solid.corners())
    if solid.inside or (z < 1e-3).any():
        return None if (z < 1e-3).all() and not solid.inside else (slice(0, height), slice(0, camera.width * s))
    x, y = x * s, y * s
    rows = slice(max(0, int(y.min()) - 1 - top), min(height, int(y.max()) + 2 - top))
    columns = slice(max(0, int(x.min()) - 1), min(camera.width * s, int(x.max()) + 2))
    return (rows, columns) if rows.start < rows.stop and columns.start < columns.stop else None


def _pyramid(texture: np.ndarray, levels: int = LEVELS) -> list[np.ndarray]:
    """The texture and its halvings, always `levels` of them (the last repeat at one texel)."""
    pyramid = [texture]
    for _ in range(levels - 1):
        rows, columns = pyramid[-1].shape[:2]
        half = (max(1, columns // 2), max(1, rows // 2))
        pyramid.append(cv2.resize(pyramid[-1], half, interpolation=cv2.INTER_AREA))
    return pyramid


def _hemisphere(count: int) -> np.ndarray:
    """(count, 3) unit directions spread evenly over the upper half sphere (Fibonacci)."""
    i = np.arange(count) + 0.5
    z = i / count
    angle = np.pi * (1 + 5**0.5) * i
    return np.stack([np.sqrt(1 - z**2) * np.cos(angle), np.sqrt(1 - z**2) * np.sin(angle), z], axis=1)


def _disc(count: int) -> np.ndarray:
    """(count, 2) points spread evenly over the unit disc (Fibonacci)."""
    i = np.arange(count) + 0.5
    angle = np.pi * (1 + 5**0.5) * i
    return np.stack([np.cos(angle), np.sin(angle)], axis=1) * np.sqrt(i / count)[:, None]


def _across(direction: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Two unit vectors (3,) that span the plane across a unit direction."""
    right = np.cross(direction, np.eye(3)[np.argmin(np.abs(direction))])
    right /= np.linalg.norm(right)
    return right, np.cross(right, direction)
