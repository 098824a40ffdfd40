"""Point maps that other programs wrote: DUSt3R's, MASt3R's and VGGT's as .npz, and point clouds as .ply.

An .npz holds, for N photos, under the first of these names that is there:

| names | shape | what |
|---|---|---|
| `points`, `pts3d`, `world_points` | (N, h, w, 3) | for each pixel the point of one world |
| `confidence`, `conf`, `im_conf`, `world_points_conf` | (N, h, w) | how sure that is (optional) |
| `poses`, `im_poses`, `cam2world` | (N, 4, 4) | camera-to-world, OpenCV's axes, the same world (optional) |
| `extrinsic` | (N, 3, 4) or (N, 4, 4) | world-to-camera, OpenCV's axes, in place of these |
| `names` | (N,) | the photos' names in the scene (optional) |

That is what `np.savez` makes of VGGT's predictions, and of a DUSt3R or MASt3R scene's `get_pts3d()`, `im_conf` and
`get_im_poses()`, stacked. A leading axis of length 1 is left out. Without names, the maps are those of all photos of
the scene in the order of their names or, where there are as many, of those that train. The maps' world is brought
into the scene's by a similarity: the one that takes the cameras to the scene's. Where the file has no poses they are
found from the maps themselves (each pixel's point lies on its ray). Maps may be smaller than the photos, and cut to
their middle part. Confidences beyond 1, as DUSt3R's c = 1 + eˢ, become 1 − 1/c: its usual bound 3 is two thirds here.

A .ply holds points in the world of the poses in the scene's file, as its seed points. What a photo sees of them is
known wholly, all other pixels not at all.
"""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import cv2
import numpy as np

from difixcli.errors import InputError
from difixcli.point_maps.maps import PointMap, PointMapper, map_of_depth
from difixcli.point_maps.names import AUTO, check_points, check_zip
from difixcli.point_maps.two_view import TwoViewGeometry
from difixcli.scenes.ply import read_points
from difixcli.scenes.poses import OPENCV_TO_OPENGL, transform_points
from difixcli.scenes.scene import Camera, Scene
from difixcli.scenes.visibility import CELL, unhidden

_POINTS = ("points", "pts3d", "world_points")
_CONFIDENCES = ("confidence", "conf", "im_conf", "world_points_conf")
_POSES = ("poses", "im_poses", "cam2world")
_WORLD_TO_CAMERA = "extrinsic"
_NAMES = "names"
_SHAPE = 0.12  # by how much a map's shape may differ from the photo's, since it is cut to whole blocks
_TURNED = np.deg2rad(15)  # how far a file's cameras may look elsewhere than the scene's
_OFF = 0.2  # and how far off they may stand, as a part of the way between the cameras
_MISSED = 0.05  # of the photo's long side: by how much its points may miss their pixels
_FEW = 100  # points of a .ply that photos must see
_BEHIND = 1.15  # so many times as deep as what is nearest around it, a point is behind it
_LIKE = 0.65  # of the difference of colours by chance, at which points are where photos show them


def point_mapper(name: str, scene: Scene, frames: Sequence[int]) -> PointMapper:
    """What makes the point maps of the photos `frames` of a scene: `auto`, or a file.

    Raises InputError for a file that is missing or of no kind that is read.
    """
    check_points(name)
    if name == AUTO:
        return TwoViewGeometry()
    path = Path(name).expanduser()
    return (_Maps if path.suffix.lower() == ".npz" else _Cloud)(path, scene, frames)


def write_maps(path: Path, maps: Sequence[PointMap], names: Sequence[str]) -> None:
    """Write the point maps of the photos `names`, which are of one size, as an .npz that `point_mapper` reads."""
    with path.open("wb") as file:  # numpy adds a suffix to a name
        np.savez_compressed(
            file,
            points=np.stack([one.points for one in maps]),
            confidence=np.stack([one.confidence for one in maps]).astype(np.float16),
            poses=np.stack([one.camera.camera_to_world @ OPENCV_TO_OPENGL for one in maps]),
            names=np.array(list(names)),
        )


class _Maps:
    """Point maps in an .npz."""

    def __init__(self, path: Path, scene: Scene, frames: Sequence[int]) -> None:
        self._path, self._scene, self._frames = path, scene, list(frames)

    def maps(
        self, photos: Sequence[np.ndarray], cameras: Sequence[Camera], done: Callable[[int], None] | None = None
    ) -> list[PointMap]:
        held = _read(self._path)
        points, confidences = self._points(held), None
        if (name := _found(held, _CONFIDENCES)) is not None:
            confidences = _without_batch(held[name], 3)
            if confidences.shape != points.shape[:3]:
                raise InputError(
                    f"{self._path} has {name} of shape {confidences.shape} for points of {points.shape}; write it "
                    "again."
                )
        rows = self._rows(held, len(points))
        points = points[rows]
        sure = np.ones(points.shape[:3], np.float32) if confidences is None else _in_unit(confidences[rows])
        sure = np.where(np.isfinite(points).all(axis=3), sure, 0)
        points = np.where(np.isfinite(points), points, 0)
        grids = [_grid(one.shape[:2], camera, self._path) for one, camera in zip(points, cameras, strict=True)]
        poses = self._poses(held, rows)
        if poses is None:
            poses = np.stack([
                _pose_of_map(one, weight, grid, camera, self._path)
                for one, weight, grid, camera in zip(points, sure, grids, cameras, strict=True)
            ])  # fmt: skip
        to_scene = _similarity(poses, cameras, self._path)
        made = []
        for number, camera in enumerate(cameras):
            found = transform_points(to_scene, points[number].reshape(-1, 3)).reshape(points[number].shape)
            _check_on_rays(found, sure[number], grids[number], camera, self._path)
            made.append(_as_photo(found, sure[number], grids[number], camera))
            if done is not None:
                done(number + 1)
        return made

    def _points(self, held: Mapping[str, np.ndarray]) -> np.ndarray:
        name = next(name for name in _POINTS if name in held)
        points = _without_batch(held[name], 4)
        if points.ndim != 4 or points.shape[3] != 3 or points.dtype.kind != "f" or not points.size:
            raise InputError(f"{self._path} has {name} of shape {held[name].shape}, not (photos, rows, columns, 3).")
        return points.astype(np.float64)

    def _rows(self, held: Mapping[str, np.ndarray], count: int) -> list[int]:
        """Which of the file's maps are those of the photos."""
        wanted = [self._scene.frames[i].name for i in self._frames]
        if _NAMES in held:
            names = [str(name) for name in held[_NAMES].ravel()]
            if len(names) != count:
                raise InputError(f"{self._path} has {len(names)} names for {count} maps; write it again.")
            places = {key: place for place, name in enumerate(names) for key in (name, Path(name).name)}
            rows = [places.get(name, places.get(Path(name).name, -1)) for name in wanted]
            if -1 in rows:
                raise InputError(
                    f"{self._path} has no map of {wanted[rows.index(-1)]}, which trains; make one of all that train."
                )
            return rows
        if count == len(self._scene.frames):
            return self._frames
        if count == len(wanted):
            return list(range(count))
        raise InputError(
            f"{self._path} holds {count} maps without names, but {len(wanted)} photos train of "
            f"{len(self._scene.frames)}; write their names into it, as `names`."
        )

    def _poses(self, held: Mapping[str, np.ndarray], rows: Sequence[int]) -> np.ndarray | None:
        """(n, 4, 4) camera-to-world of the maps, OpenCV's axes, or None."""
        name = _found(held, _POSES) or (_WORLD_TO_CAMERA if _WORLD_TO_CAMERA in held else None)
        if name is None:
            return None
        given = _without_batch(held[name], 3)
        if given.ndim != 3 or given.shape[1:] not in ((3, 4), (4, 4)) or len(given) <= max(rows):
            raise InputError(
                f"{self._path} has {name} of shape {held[name].shape}, not (photos, 4, 4); write it again."
            )
        poses = np.tile(np.eye(4), (len(rows), 1, 1))
        poses[:, :3] = given[list(rows), :3]
        if not np.isfinite(poses).all() or np.abs(np.linalg.det(poses[:, :3, :3]) - 1).max() > 0.05:
            raise InputError(f"{self._path} has {name} that are no rotations and places; write it again.")
        return np.linalg.inv(poses) if name == _WORLD_TO_CAMERA else poses


class _Cloud:
    """Points in a .ply."""

    def __init__(self, path: Path, scene: Scene, frames: Sequence[int]) -> None:
        self._path, self._scene = path, scene

    def maps(
        self, photos: Sequence[np.ndarray], cameras: Sequence[Camera], done: Callable[[int], None] | None = None
    ) -> list[PointMap]:
        points, colors = read_points(self._path)
        points = transform_points(self._scene.source_to_world, points)
        made, differences = [], []
        rng = np.random.default_rng(0)
        for number, (photo, camera) in enumerate(zip(photos, cameras, strict=True), start=1):
            chosen = _in_front(points, camera)
            x, y, z = camera.project(points[chosen])
            row, column = y.astype(int), x.astype(int)
            depth = np.zeros((camera.height, camera.width), np.float32)
            order = np.argsort(-z)  # the nearest last
            depth[row[order], column[order]] = z[order]
            made.append(map_of_depth(camera, np.where(depth > 0, depth, 1), (depth > 0).astype(np.float32)))
            if len(chosen):
                seen, given = photo[row, column], colors[chosen] / 255
                by_chance = np.abs(seen - given[rng.permutation(len(given))]).mean()
                differences.append((len(chosen), np.abs(seen - given).mean(), by_chance))
            if done is not None:
                done(number)
        seen = sum(count for count, *_ in differences)
        if seen < _FEW:
            raise InputError(
                f"The photos that train see {seen} of the {len(points)} points of {self._path}; they must be in the "
                "world of the poses in the scene's file, as its seed points are."
            )
        own = sum(count * one for count, one, _ in differences) / seen
        chance = sum(count * other for count, _, other in differences) / seen
        if np.ptp(colors, axis=0).max(initial=0) > 0 and own > _LIKE * chance:
            raise InputError(
                f"The points of {self._path} are not where the photos show their colours, so they are of another scene "
                "or world; export them in the world of the poses in the scene's file."
            )
        return made


def _read(path: Path) -> dict[str, np.ndarray]:
    """The arrays of known names in an .npz, points among them."""
    wanted = (*_POINTS, *_CONFIDENCES, *_POSES, _WORLD_TO_CAMERA, _NAMES)
    check_zip(path)
    try:
        with np.load(path, allow_pickle=False) as held:
            if _found(held, _POINTS) is None:
                raise InputError(
                    f"{path} holds no points (none of {', '.join(_POINTS)}, but {', '.join(held.files) or 'nothing'}); "
                    "write those of DUSt3R, MASt3R or VGGT into it."
                )
            return {name: held[name] for name in held.files if name in wanted}
    except (OSError, ValueError, zipfile.BadZipFile, zlib.error, EOFError, KeyError) as error:
        reason = " ".join(str(error).split())
        if "allow_pickle" in reason or "Object arrays" in reason:
            raise InputError(
                f"{path} holds Python objects, which could run code; stack its maps into arrays of numbers."
            ) from None
        raise InputError(f"{path} cannot be read as an .npz of point maps ({reason}); write it again.") from None


def _found(held: Mapping[str, np.ndarray], names: Sequence[str]) -> str | None:
    return next((name for name in names if name in held), None)


def _without_batch(values: np.ndarray, dimensions: int) -> np.ndarray:
    return values[0] if values.ndim == dimensions + 1 and len(values) == 1 else values


def _in_unit(confidences: np.ndarray) -> np.ndarray:
    """Confidences (n, h, w) in [0, 1]; those from 1 on are brought there."""
    values = np.nan_to_num(np.asarray(confidences, np.float32), nan=0, posinf=1e6, neginf=0)
    return np.clip(values, 0, 1) if values.max(initial=0) <= 1 else (1 - 1 / np.maximum(values, 1)).astype(np.float32)


def _grid(shape: tuple[int, int], camera: Camera, path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Where in the photo the columns (w,) and the rows (h,) of a map lie, in pixels."""
    height, width = shape
    if abs(np.log(width / height * camera.height / camera.width)) > _SHAPE:
        raise InputError(
            f"{path} has maps of {width}×{height}, which is not the shape of the photos ({camera.width}×"
            f"{camera.height}); make them of whole photos."
        )
    scale = max(width / camera.width, height / camera.height)  # the middle part that remains
    x = (np.arange(width) + 0.5 - width / 2) / scale + camera.width / 2
    y = (np.arange(height) + 0.5 - height / 2) / scale + camera.height / 2
    return x, y


def _pose_of_map(
    points: np.ndarray, sure: np.ndarray, grid: tuple[np.ndarray, np.ndarray], camera: Camera, path: Path
) -> np.ndarray:
    """(4, 4) camera-to-world, OpenCV's axes, from which the points (h, w, 3) are seen at their pixels."""
    x, y = np.meshgrid(*grid)
    chosen = np.flatnonzero((sure >= np.median(sure)).ravel() & (sure.ravel() > 0))
    chosen = chosen[:: max(1, len(chosen) // 2000)]
    pixels = np.stack([x.ravel(), y.ravel()], axis=1)[chosen]
    found = False
    if len(chosen) >= 6:
        try:
            found, turn, shift, _ = cv2.solvePnPRansac(
                points.reshape(-1, 3)[chosen], pixels, camera.intrinsics, None,
                reprojectionError=0.02 * max(camera.width, camera.height), iterationsCount=200,
            )  # fmt: skip
        except cv2.error:
            found = False
    if not found:
        raise InputError(
            f"{path} has no poses, and its points are not what a photo of the scene's lens sees; write the poses into "
            "it, as `poses`."
        )
    to_camera = np.eye(4)
    to_camera[:3, :3], to_camera[:3, 3] = cv2.Rodrigues(turn)[0], shift.ravel()
    return np.linalg.inv(to_camera)


def _similarity(poses: np.ndarray, cameras: Sequence[Camera], path: Path) -> np.ndarray:
    """(4, 4): from the file's world into the scene's, such that its poses come to the scene's cameras."""
    ours = np.stack([camera.camera_to_world for camera in cameras])
    theirs = poses @ OPENCV_TO_OPENGL
    u, _, vt = np.linalg.svd(np.einsum("nij,nkj->ik", ours[:, :3, :3], theirs[:, :3, :3]))
    turn = u @ np.diag([1, 1, np.sign(np.linalg.det(u @ vt))]) @ vt
    angles = [
        np.arccos(np.clip((np.trace(own[:3, :3].T @ turn @ other[:3, :3]) - 1) / 2, -1, 1))
        for own, other in zip(ours, theirs, strict=True)
    ]
    centres, places = ours[:, :3, 3], theirs[:, :3, 3] @ turn.T
    middle, mean = centres.mean(axis=0), places.mean(axis=0)
    scale = ((centres - middle) * (places - mean)).sum() / max(((places - mean) ** 2).sum(), 1e-12)
    made = np.eye(4)
    made[:3, :3], made[:3, 3] = scale * turn, middle - scale * mean
    extent = float(np.linalg.norm(centres - middle, axis=1).max())
    off = float(np.linalg.norm(scale * places + made[:3, 3] - centres, axis=1).max())
    if max(angles) > _TURNED or scale <= 0 or off > _OFF * 2 * extent:
        raise InputError(
            f"The cameras of {path} do not stand as those of the scene do (turned by up to "
            f"{np.rad2deg(max(angles)):.0f}°): it is of another scene or other photos, or in another order; write the "
            "photos' names into it, as `names`."
        )
    return made


def _check_on_rays(
    points: np.ndarray, sure: np.ndarray, grid: tuple[np.ndarray, np.ndarray], camera: Camera, path: Path
) -> None:
    """InputError unless points (h, w, 3) of the scene's world are seen near their pixels, or none of them is known."""
    if not (sure > 0).any():
        return
    x, y, z = camera.project(points)
    kept = (sure > 0) & (sure >= np.median(sure)) & (z > 0)
    missed = np.hypot(x - grid[0][None], y - grid[1][:, None])[kept]
    bound = _MISSED * max(camera.width, camera.height)
    if not len(missed) or np.median(missed) > bound:
        far = f"by {np.median(missed):.0f} pixels" if len(missed) else "altogether"
        raise InputError(
            f"The points of {path} miss the pixels that they belong to {far}: they are of another world than its "
            "poses, or of other photos; write it again."
        )


def _as_photo(points: np.ndarray, sure: np.ndarray, grid: tuple[np.ndarray, np.ndarray], camera: Camera) -> PointMap:
    """The map of a photo's size from one (h, w, 3) in the scene's world."""
    _, _, z = camera.project(points)
    sure = np.where(z > 0, sure, 0).astype(np.float32)
    z = np.where(z > 0, z, 1).astype(np.float32)
    column, row = (np.interp(np.arange(size) + 0.5, at, np.arange(len(at)))
                   for size, at in ((camera.width, grid[0]), (camera.height, grid[1])))  # fmt: skip
    across, down = np.meshgrid(column.astype(np.float32), row.astype(np.float32))
    depth = cv2.remap(z, across, down, cv2.INTER_NEAREST)
    outside = (np.arange(camera.width) + 0.5 < grid[0][0] - 1) | (np.arange(camera.width) + 0.5 > grid[0][-1] + 1)
    below = (np.arange(camera.height) + 0.5 < grid[1][0] - 1) | (np.arange(camera.height) + 0.5 > grid[1][-1] + 1)
    confidence = cv2.remap(sure, across, down, cv2.INTER_NEAREST)
    confidence[:, outside], confidence[below] = 0, 0
    return map_of_depth(camera, depth, confidence)


def _in_front(points: np.ndarray, camera: Camera) -> np.ndarray:
    """Indices of the points (N, 3) that a camera sees: inside its image, and with nothing much nearer around them."""
    x, y, z = camera.project(points)
    with np.errstate(invalid="ignore"):
        inside = np.flatnonzero((z > 0) & (x >= 0) & (y >= 0) & (x < camera.width) & (y < camera.height))
    if not len(inside):
        return inside
    # of few points the nearest are farther apart
    apart = float(np.sqrt(camera.width * camera.height / len(inside)))
    cell = max(CELL, 2 / 5 * apart / max(camera.width, camera.height))
    return inside[unhidden(x[inside], y[inside], z[inside], (camera.height, camera.width), _BEHIND, cell)]
