"""Point maps: two-view geometry against true depth, one world from pairs, other programs' files, clouds."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from difixcli.errors import InputError
from difixcli.point_maps.alignment import Edge, align
from difixcli.point_maps.cloud import cloud_of, seeded
from difixcli.point_maps.files import point_mapper, write_maps
from difixcli.point_maps.maps import PointMap, map_of_depth
from difixcli.point_maps.two_view import TwoViewGeometry
from difixcli.samples.sample import SAMPLES
from difixcli.scenes import Camera, Scene, load_photo, load_scene
from difixcli.scenes.ply import write_points
from difixcli.scenes.poses import OPENCV_TO_OPENGL, transform_points

Photos = tuple[list[np.ndarray], list[Camera], list[np.ndarray]]


def _looked_at(name: str, seed: int, which: tuple[int, ...], size: int = 160) -> Photos:
    """Photos of a procedural scene, their cameras and their true depths."""
    world, views = SAMPLES[name](np.random.default_rng(seed))
    cameras = [[view for view in views if view.train][i].resized(size).camera for i in which]
    seen = [world.look(camera) for camera in cameras]
    return [image.astype(np.float32) / 255 for image, _, _ in seen], cameras, [depth for _, depth, _ in seen]


@pytest.fixture(scope="module")
def table() -> Photos:
    return _looked_at("table", 1, (0, 1, 3))


def _shared(i: int, j: int, cameras: list[Camera], depths: list[np.ndarray]) -> np.ndarray:
    """(H, W) bool: what photo i shows that photo j shows, too."""
    camera = cameras[i]
    x, y = np.meshgrid(np.arange(camera.width) + 0.5, np.arange(camera.height) + 0.5)
    u, v, z = cameras[j].project(camera.unproject(x, y, depths[i].astype(np.float64)))
    inside = (depths[i] > 0) & (z > 0) & (u >= 0) & (v >= 0) & (u < cameras[j].width) & (v < cameras[j].height)
    inside[inside] = np.abs(depths[j][v[inside].astype(int), u[inside].astype(int)] / z[inside] - 1) < 0.03
    return inside


@pytest.mark.parametrize(("i", "j"), [(0, 1), (0, 2)])
def test_depths_are_the_true_ones_where_two_photos_overlap(i: int, j: int, table: Photos) -> None:
    """At a small angle and at a large one: within 2 % where they count as known, which is half of what is shared."""
    photos, cameras, depths = table
    maps = TwoViewGeometry().maps([photos[i], photos[j]], [cameras[i], cameras[j]])
    for one, (own, other) in zip(maps, ((i, j), (j, i)), strict=True):
        off = np.abs(one.depth - depths[own]) / depths[own]
        known, shared = one.confidence >= 0.5, _shared(own, other, cameras, depths)
        assert known[shared].mean() >= 0.5
        assert np.median(off[known]) <= 0.02 and np.quantile(off[known & shared], 0.8) <= 0.02
        assert known[~shared].mean() < 0.2
        x, _, z = cameras[own].project(one.points.astype(np.float64))
        assert np.abs(x[known] - (np.nonzero(known)[1] + 0.5)).max() < 0.1 and (z > 0).all()


def test_a_photo_that_sees_nothing_of_the_others_knows_nothing(table: Photos) -> None:
    photos, cameras, _ = table
    away = cameras[0].camera_to_world.copy()
    away[:3, :3] = away[:3, :3] @ Rotation.from_euler("y", 180, degrees=True).as_matrix()
    maps = TwoViewGeometry().maps([*photos[:2], photos[2]], [*cameras[:2], cameras[2].moved(away)])
    assert maps[0].confidence.max() > 0.9 and (maps[2].confidence >= 0.5).mean() < 0.05


def test_photos_that_show_other_things_are_refused(table: Photos) -> None:
    photos, cameras, _ = table
    noise = [np.random.default_rng(i).random(photo.shape, np.float32) for i, photo in enumerate(photos[:2])]
    with pytest.raises(InputError, match="choose photos that overlap more, or name a point cloud with --points"):
        TwoViewGeometry().maps(noise, cameras[:2])


def test_scales_of_pairs_are_found_and_wrong_pairs_outvoted() -> None:
    rng = np.random.default_rng(0)
    true = [np.exp(rng.uniform(0, 1, (12, 16))) for _ in range(4)]
    scales = {(0, 1): 1.0, (1, 2): 3.0, (2, 3): 0.25, (0, 2): 0.5, (1, 3): 2.0}
    edges = []
    for (i, j), scale in scales.items():
        depths = tuple(true[k] / scale * np.exp(0.003 * rng.standard_normal((12, 16))) for k in (i, j))
        edges.append(Edge((i, j), depths, tuple(rng.uniform(0.5, 1, (12, 16)) for _ in range(2))))
    edges[0] = Edge((0, 1), edges[0].depths, tuple(np.ones((12, 16)) for _ in range(2)))  # the surest: its scale is 1
    # what one pair says wrongly of a corner, two others say rightly
    edges[3].depths[1][:4, :4] *= 1.7
    fused = align(edges, scales_known=False)
    np.testing.assert_allclose(fused.scales, list(scales.values()), rtol=0.01)
    for k, depth in enumerate(true):
        np.testing.assert_allclose(fused.depths[k], depth, rtol=0.02)
    assert fused.confidences[2][:4, :4].mean() < 0.8 * fused.confidences[2][4:, 4:].mean()


def test_known_scales_are_one_in_the_middle() -> None:
    true = [np.full((8, 8), 2.0 + k) for k in range(3)]
    sure = np.ones((8, 8))
    edges = [Edge((i, j), (true[i] / s, true[j] / s), (sure, sure)) for i, j, s in ((0, 1, 1), (1, 2, 1), (0, 2, 1.05))]
    np.testing.assert_allclose(align(edges).scales, [1, 1, 1.05], rtol=1e-3)


# Files


@pytest.fixture(scope="module")
def scene(arc: Path) -> Scene:
    return load_scene(str(arc), 96)


@pytest.fixture(scope="module")
def known(scene: Scene) -> list[PointMap]:
    """A map for each frame of a scene, of a surface that nobody saw: what files are read for is numbers."""
    rng, made = np.random.default_rng(0), []
    for frame in scene.frames:
        y, x = np.mgrid[: frame.camera.height, : frame.camera.width] / 20
        depth = 1 + 0.3 * np.sin(x + rng.uniform()) * np.cos(y)
        made.append(map_of_depth(frame.camera, depth.astype(np.float32), rng.uniform(0.2, 1, depth.shape)))
    return made


TRAIN = [0, 4, 8]
ELSEWHERE = np.eye(4)
ELSEWHERE[:3, :3] = 2.5 * Rotation.from_euler("xyz", [40, 20, 100], degrees=True).as_matrix()
ELSEWHERE[:3, 3] = [3, -1, 7]
"""The world of another program: turned, moved, and of another unit."""


def _there(points: np.ndarray) -> np.ndarray:
    return transform_points(ELSEWHERE, points.reshape(-1, 3)).reshape(points.shape).astype(np.float32)


def _poses_there(cameras: list[Camera]) -> np.ndarray:
    """Camera-to-world, OpenCV's axes."""
    poses = np.stack([camera.camera_to_world for camera in cameras]) @ OPENCV_TO_OPENGL
    turn = ELSEWHERE[:3, :3] / 2.5
    made = poses.copy()
    made[:, :3, :3] = turn @ poses[:, :3, :3]
    made[:, :3, 3] = transform_points(ELSEWHERE, poses[:, :3, 3])
    return made


def _read(path: Path, scene: Scene, train: list[int] = TRAIN) -> list[PointMap]:
    photos = [load_photo(scene.frames[i]) for i in train]
    return point_mapper(str(path), scene, train).maps(photos, [scene.frames[i].camera for i in train])


def _as_they_were(found: list[PointMap], known: list[PointMap], train: list[int] = TRAIN) -> None:
    for one, i in zip(found, train, strict=True):
        np.testing.assert_allclose(one.points, known[i].points, atol=0.01)


def test_what_was_written_is_read(scene: Scene, known: list[PointMap], tmp_path: Path) -> None:
    names = [frame.name for frame in scene.frames]
    write_maps(tmp_path / "maps.npz", known[::-1], names[::-1])
    found = _read(tmp_path / "maps.npz", scene)
    _as_they_were(found, known)
    for one, i in zip(found, TRAIN, strict=True):
        np.testing.assert_allclose(one.confidence, known[i].confidence, atol=1e-3)


@pytest.mark.parametrize("poses", ["im_poses", "extrinsic", None])
def test_other_programs_worlds_are_brought_into_the_scenes(
    poses: str | None, scene: Scene, known: list[PointMap], tmp_path: Path
) -> None:
    """As DUSt3R writes them, as VGGT does (a batch of one), and without poses."""
    chosen = [known[i] for i in TRAIN]
    points = np.stack([_there(one.points) for one in chosen])
    held = {"pts3d": points, "im_conf": np.stack([1 / (1 - 0.9 * one.confidence) for one in chosen])}
    there = _poses_there([one.camera for one in chosen])
    if poses == "im_poses":
        held["im_poses"] = there
    elif poses == "extrinsic":
        held = {"world_points": points[None], "world_points_conf": held["im_conf"][None]}
        held["extrinsic"] = np.linalg.inv(there)[None, :, :3]
    np.savez(tmp_path / "maps.npz", **held)
    found = _read(tmp_path / "maps.npz", scene)
    _as_they_were(found, known)
    np.testing.assert_allclose(found[1].confidence, 0.9 * chosen[1].confidence, atol=1e-3)


def test_maps_of_the_middle_of_smaller_photos_are_read(scene: Scene, known: list[PointMap], tmp_path: Path) -> None:
    chosen = [known[i] for i in TRAIN]
    cut = [one.points.reshape(36, 2, 48, 2, 3).mean(axis=(1, 3))[2:34] for one in chosen]  # 48×32 of 96×72
    poses = np.stack([one.camera.camera_to_world for one in chosen]) @ OPENCV_TO_OPENGL
    np.savez(tmp_path / "maps.npz", points=np.stack(cut), poses=poses)
    found = _read(tmp_path / "maps.npz", scene)
    assert (found[0].confidence[:3] == 0).all() and (found[0].confidence[-3:] == 0).all()
    inner = found[0].confidence > 0
    assert inner[6:-6].all()
    assert np.abs(found[0].depth - known[0].depth)[inner].max() < 0.04


def test_a_photo_of_which_nothing_is_known_is_read_too(scene: Scene, known: list[PointMap], tmp_path: Path) -> None:
    """As point maps of photos that overlap with no other are, and a run's own file of them."""
    maps = [known[i] for i in TRAIN]
    maps[1] = map_of_depth(maps[1].camera, np.ones_like(maps[1].depth), np.zeros_like(maps[1].confidence))
    write_maps(tmp_path / "maps.npz", maps, [scene.frames[i].name for i in TRAIN])
    found = _read(tmp_path / "maps.npz", scene)
    assert [bool(one.confidence.any()) for one in found] == [True, False, True]
    np.testing.assert_allclose(found[0].points, maps[0].points, atol=0.01)


def test_a_ply_is_seen_from_the_photos(scene: Scene, tmp_path: Path) -> None:
    to_file = np.linalg.inv(scene.source_to_world)
    write_points(tmp_path / "cloud.ply", transform_points(to_file, scene.points), scene.colors)
    found = _read(tmp_path / "cloud.ply", scene)
    for one, i in zip(found, TRAIN, strict=True):
        seen = one.confidence > 0
        assert 50 < seen.sum() < len(scene.points)
        shown = load_photo(scene.frames[i])[seen]
        cloud = cloud_of([one], [load_photo(scene.frames[i])])
        assert len(cloud.points) == seen.sum() and np.abs(cloud.colors / 255 - shown).max() < 0.01


def test_seeds_are_known_from_the_photos(scene: Scene, known: list[PointMap]) -> None:
    cloud = cloud_of([known[i] for i in TRAIN], [load_photo(scene.frames[i]) for i in TRAIN])
    made = seeded(scene, cloud, TRAIN)
    assert len(made.known_to(TRAIN).points) == len(scene.points) + len(cloud.points) > 1000
    assert not len(made.known_to([1, 2]).points)
    assert cloud.confidence.min() >= 0.5


def _wrong(kind: str, scene: Scene, known: list[PointMap], path: Path) -> Path:
    """A point file that is wrong in one way."""
    chosen = [known[i] for i in TRAIN]
    points = np.stack([one.points for one in chosen])
    poses = np.stack([one.camera.camera_to_world for one in chosen]) @ OPENCV_TO_OPENGL
    held: dict[str, np.ndarray] = {"points": points, "poses": poses}
    if kind in ("text", "cut off"):
        path.write_bytes(b"points: 3" if kind == "text" else b"PK\x03\x04 not a whole zip")
        return path
    if kind == "damaged":
        np.savez_compressed(path, points=points)
        written = bytearray(path.read_bytes())
        written[len(written) // 2 : len(written) // 2 + 64] = b"\xff" * 64
        path.write_bytes(written)
        return path
    if kind == "objects":
        held = {"points": np.array([points[0], "x"], dtype=object)}
    elif kind == "nothing":
        held = {"depth": points[..., 0]}
    elif kind == "flat":
        held = {"points": points[0, 0]}
    elif kind == "count":
        held = {"points": points[:2], "poses": poses[:2]}
    elif kind == "names":
        held["names"] = np.array(["one.png", "two.png", "three.png"])
    elif kind == "order":
        held = {"points": points[::-1], "poses": poses[::-1]}
    elif kind == "world":
        held["points"] = points + np.float32(1.0)
    elif kind == "shape":
        held["points"] = np.repeat(points, 2, axis=2)
    elif kind == "confidence":
        held["confidence"] = points[:, ::2, :, 0]
    elif kind == "poses":
        held["poses"] = poses * 2
    np.savez(path, **held)
    return path


@pytest.mark.parametrize(
    ("kind", "sentence"),
    [
        ("text", "is no .npz of point maps"),
        ("cut off", "is no .npz of point maps"),
        ("damaged", "cannot be read as an .npz"),
        ("objects", "could run code"),
        ("nothing", "holds no points .*, but depth"),
        ("flat", r"not \(photos, rows, columns, 3\)"),
        ("count", "2 maps without names, but 3 photos train"),
        ("names", "has no map of"),
        ("order", "another scene or other photos, or in another order"),
        ("world", "miss the pixels that they belong to"),
        ("shape", "not the shape of the photos"),
        ("confidence", "confidence of shape"),
        ("poses", "no rotations and places"),
    ],
)
def test_a_wrong_file_of_maps_is_told(
    kind: str, sentence: str, scene: Scene, known: list[PointMap], tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=sentence):
        _read(_wrong(kind, scene, known, tmp_path / "maps.npz"), scene)


def test_a_cloud_of_another_world_is_told(scene: Scene, tmp_path: Path) -> None:
    to_file = np.linalg.inv(scene.source_to_world)
    points = transform_points(to_file, scene.points)
    write_points(tmp_path / "far.ply", points + 100, scene.colors)
    with pytest.raises(InputError, match=r"see 0 of the \d+ points"):
        _read(tmp_path / "far.ply", scene)
    turned = points @ Rotation.from_euler("z", 130, degrees=True).as_matrix().T
    write_points(tmp_path / "turned.ply", turned, scene.colors)
    with pytest.raises(InputError, match="not where the photos show their colours"):
        _read(tmp_path / "turned.ply", scene)
    for name, sentence in (("cloud.obj", "neither auto nor a file"), ("none.ply", "There is no point file")):
        with pytest.raises(InputError, match=sentence):
            point_mapper(name, scene, TRAIN)
