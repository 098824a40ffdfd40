"""The sample scenes and the ray caster that makes them."""

from __future__ import annotations

import ast
import hashlib
import shutil
import tracemalloc
from pathlib import Path

import cv2
import numpy as np
import pycolmap
import pytest

from difixcli.errors import InputError
from difixcli.samples import paint, raycast, sample
from difixcli.samples.names import NAMES
from difixcli.samples.raycast import Light, Solid, World, box, cylinder, sphere
from difixcli.samples.sample import sample_folder, write_sample
from difixcli.samples.views import sees_freely
from difixcli.scenes import (
    Camera,
    Scene,
    default_split_rule,
    load_photo,
    load_scene,
    make_split,
)
from difixcli.scenes.poses import look_at

UP = np.array([0.0, 0.0, 1.0])


@pytest.fixture(scope="module")
def room() -> Scene:
    return load_scene("sample:room")


def digest(folder: Path) -> dict[str, str]:
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def small_world() -> World:
    rng = np.random.default_rng(0)
    solids = [
        box((0, 0, -0.1), (6, 6, 0.2), paint.slabs((0.6, 0.6, 0.5)), density=60),
        box((0.8, 0.3, 0.4), (0.8, 0.6, 0.8), paint.bricks((0.7, 0.4, 0.3)), turn=25, density=60),
        sphere((-0.7, 0, 0.5), 0.5, paint.plaster((0.3, 0.5, 0.7)), density=60),
        cylinder((0, 1.2, 0.6), 0.3, 1.2, paint.glaze((0.2, 0.4, 0.6), (0.9, 0.9, 0.8)), density=60),
    ]
    lamp = Light(np.array([1.0, -2, 3]), np.array([6.0, 6, 6]), 0.1)
    return World(solids, [lamp], np.array([0.4, 0.4, 0.4]), 1.0, 8, rng)


def camera_at(position: tuple[float, float, float], width: int = 96, height: int = 72) -> Camera:
    pose = look_at(np.array(position), np.array([0, 0, 0.4]), UP)
    return Camera(pose, 90.0, 90.0, width / 2, height / 2, width, height)


def test_depth_is_exact_on_a_plane_and_a_sphere() -> None:
    world = small_world()
    camera = camera_at((0.5, -4, 2.0))
    _, depth, points = world.look(camera)
    on_floor = (np.abs(points[..., 2]) < 1e-4) & (depth > 0)
    off_sphere = np.abs(np.linalg.norm(points - [-0.7, 0, 0.5], axis=-1) - 0.5)
    assert on_floor.mean() > 0.2 and (off_sphere < 1e-4).mean() > 0.02
    # z-depth, not distance: the point's coordinate along the viewing axis.
    along = -((points - camera.position) @ camera.camera_to_world[:3, 2])
    np.testing.assert_allclose(depth[depth > 0], along[depth > 0], rtol=1e-4)


def test_a_large_picture_is_made_in_bands_that_show_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    world, camera = small_world(), camera_at((0.5, -4, 2.0), 384, 288)

    def looked(at_once: int) -> tuple[list[np.ndarray], int]:
        monkeypatch.setattr(raycast, "PIXELS_AT_ONCE", at_once)
        tracemalloc.start()
        try:
            return list(world.look(camera)), tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    (color, depth, points), peak = looked(1 << 20)
    (banded, *others), less = looked(384 * 50)  # 6 bands, the last of them lower
    assert np.abs(banded.astype(int) - color).max() <= 1
    for one, other in zip(others, (depth, points), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-5)
    assert less < peak / 3


def test_views_agree_where_they_see_the_same_surface() -> None:
    world = small_world()
    a, b = camera_at((0.5, -4, 2.0)), camera_at((1.1, -3.9, 2.1))
    image_a, depth_a, points = world.look(a)
    image_b, depth_b, _ = world.look(b)
    local = (points - b.position) @ b.camera_to_world[:3, :3]
    column = np.floor(b.fx * local[..., 0] / -local[..., 2] + b.cx).astype(int)
    row = np.floor(-b.fy * local[..., 1] / -local[..., 2] + b.cy).astype(int)
    inside = (depth_a > 0) & (column >= 0) & (column < b.width) & (row >= 0) & (row < b.height)
    row, column = row[inside], column[inside]
    visible = np.abs(depth_b[row, column] + local[inside][:, 2]) < 0.05
    assert visible.mean() > 0.7
    difference = np.abs(image_a[inside].astype(int) - image_b[row, column].astype(int)).mean(axis=1)[visible]
    assert np.median(difference) < 8


def test_highlights_depend_on_the_view() -> None:
    rng = np.random.default_rng(0)
    lamp = Light(np.array([0, 3.0, 3]), np.array([6.0, 6, 6]), 0.1)

    def brightness(gloss: float, y: float) -> float:
        plate = box((0, 0, -0.1), (6, 6, 0.2), paint.plaster((0.3, 0.3, 0.3), 0.0, gloss), density=20)
        world = World([plate], [lamp], np.array([0.1, 0.1, 0.1]), 1.0, 4, rng)
        pose = look_at(np.array([0, y, 3.0]), np.zeros(3), UP)
        return float(world.look(Camera(pose, 200.0, 200.0, 8, 8, 16, 16))[0].mean())

    assert brightness(1.0, -3.0) > brightness(1.0, 3.0) + 10
    assert abs(brightness(0.0, -3.0) - brightness(0.0, 3.0)) < 2


def test_shadows_fall_behind_solids() -> None:
    world = small_world()
    camera = camera_at((0.5, -0.5, 6.0))
    image, depth, points = world.look(camera)
    floor = (np.abs(points[..., 2]) < 1e-3) & (depth > 0)
    # The lamp is at −y: the brick box shades the floor beyond it.
    shade = floor & (np.abs(points[..., 0] - 0.75) < 0.2) & (np.abs(points[..., 1] - 0.95) < 0.15)
    free = floor & (np.abs(points[..., 0] - 0.75) < 0.2) & (np.abs(points[..., 1] + 0.8) < 0.15)
    assert shade.any() and free.any()
    assert image[shade].mean() < 0.75 * image[free].mean()


def test_room(room: Scene) -> None:
    assert room.name == "room" and room.metric and not room.warnings
    assert default_split_rule(room) == "file:split.json"
    split = make_split(room, default_split_rule(room))
    assert len(split.train) == 24 and len(split.test) == 8
    assert all("train_" in room.frames[i].name for i in split.train)
    assert all("test_" in room.frames[i].name for i in split.test)
    assert 2000 < len(room.points) <= 4000
    assert (room.frames[0].camera.width, room.frames[0].camera.height) == (320, 240)
    photos = [load_photo(room.frames[i]) for i in (*split.train[:3], *split.test[:3])]
    # Neither flat nor noise: spread of tones, and neighbours alike.
    for photo in photos:
        assert photo.std() > 0.1
        assert np.abs(np.diff(photo, axis=1)).mean() < 0.06


def test_room_points_lie_on_what_the_photos_show(room: Scene) -> None:
    frame = next(frame for frame in room.frames if frame.name == "images/train_000.png")
    camera, photo = frame.camera, load_photo(frame)
    local = (room.points - camera.position) @ camera.camera_to_world[:3, :3]
    column = np.floor(camera.fx * local[:, 0] / -local[:, 2] + camera.cx).astype(int)
    row = np.floor(-camera.fy * local[:, 1] / -local[:, 2] + camera.cy).astype(int)
    seen = (local[:, 2] < 0) & (column >= 0) & (column < 320) & (row >= 0) & (row < 240)
    difference = np.abs(photo[row[seen], column[seen]] - room.colors[seen] / 255).mean(axis=1)
    assert np.median(difference) < 0.12


def test_the_samples_say_which_photos_saw_their_points(room: Scene, tmp_path: Path) -> None:
    assert room.tracks is not None
    split = make_split(room, default_split_rule(room))
    known = room.known_to(split.train)
    assert 0.98 * len(room.points) < len(known.points) < len(room.points)
    one_side = [i for i in split.train if room.frames[i].camera.position[0] > 0]
    assert len(room.known_to(one_side).points) < 0.9 * len(room.points)
    # what they say they saw, they show
    for number in (split.train[0], split.test[0]):
        saw = room.tracks.counts([number]) == 1
        x, y, depth = room.frames[number].camera.project(room.points[saw])
        assert saw.sum() > 300 and (depth > 0).all()
        pixels = load_photo(room.frames[number])[y.astype(int), x.astype(int)]
        assert np.median(np.abs(pixels - room.colors[saw] / 255).mean(axis=1)) < 0.1
    # the model is one that COLMAP reads, of the same scene
    model = pycolmap.Reconstruction(str(room.root / "colmap/sparse/0"))
    assert model.num_points3D() == len(room.points) and model.num_reg_images() == len(room.frames)
    for point in list(model.points3D.values())[:50]:
        for element in point.track.elements:
            image = model.images[element.image_id]
            seen = image.points2D[element.point2D_idx].xy
            assert np.abs(image.project_point(point.xyz) - seen).max() < 0.01
    shutil.copytree(room.root, tmp_path / "colmap", ignore=shutil.ignore_patterns("transforms.json"))
    again = load_scene(tmp_path / "colmap")
    for frame, other in zip(room.frames, again.frames, strict=True):
        np.testing.assert_allclose(frame.camera.camera_to_world, other.camera.camera_to_world, atol=1e-9)
        np.testing.assert_allclose(frame.camera.intrinsics, other.camera.intrinsics)


def test_the_same_seed_gives_the_same_bytes(room: Scene, tmp_path: Path) -> None:
    write_sample("room", tmp_path)
    assert digest(tmp_path) == digest(room.root)


def test_the_cache_is_used_again(room: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("difixcli.samples.sample.write_sample", lambda *_: pytest.fail("written again"))
    again = load_scene("sample:room", 160)
    assert again.frames[0].camera.width == 160
    assert room.root == sample_folder("room")


def test_another_writer_keeps_its_samples_elsewhere(tmp_path: Path) -> None:
    """A sample that an earlier version of the program wrote is not taken for what this one would write."""
    package = Path(sample.__file__).parents[1]
    for name in sample.WRITERS:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        shutil.copy(package / name, tmp_path / name)
    before = sample.writers_digest(tmp_path)
    assert sample_folder("street").name == f"street-{before}"
    for name in sample.WRITERS:
        with (tmp_path / name).open("a") as module:
            module.write("#")
        after = sample.writers_digest(tmp_path)
        assert after != before, name
        before = after


def test_the_writers_are_all_that_the_samples_import() -> None:
    assert tuple(sample.SAMPLES) == NAMES
    package = Path(sample.__file__).parents[1]
    found, left = set(), {"samples/sample.py"}
    while left:
        name = left.pop()
        found.add(name)
        for node in ast.walk(ast.parse((package / name).read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith(("difixcli.sc", "difixcli.sa")):
                room, _, inner = (node.module or "").removeprefix("difixcli.").partition(".")
                names = [inner] if inner else [alias.name for alias in node.names]
                left |= {f"{room}/{one}.py" for one in names} - found
    # what a split file and the samples are called, and what is read
    read = {f"scenes/{name}.py" for name in ("splits", "sparse_views", "source", "image_paths", "lenses", "tracks")}
    read.add("samples/names.py")
    assert found - read == set(sample.WRITERS)


@pytest.mark.parametrize("kind", ["table", "interior"])
def test_every_seed_is_another_place(kind: str, tmp_path: Path) -> None:
    scenes = {}
    for name, seed, size in (("a", 7, 96), ("again", 7, 96), ("larger", 7, 144), ("b", 8, 96)):
        write_sample(kind, tmp_path / name, seed, size)
        scenes[name] = load_scene(tmp_path / name)
    assert digest(tmp_path / "a") == digest(tmp_path / "again")
    a, larger, b = scenes["a"], scenes["larger"], scenes["b"]
    for scene, side in ((a, 96), (larger, 144), (b, 96)):
        split = make_split(scene, default_split_rule(scene))
        assert (len(split.train), len(split.test)) == (20, 4) and scene.metric and not scene.warnings
        assert {max(frame.camera.width, frame.camera.height) for frame in scene.frames} == {side}
        assert scene.tracks is not None
        known = scene.known_to(split.train)
        assert len(known.points) > 0.8 * len(scene.points) > 500
        # what the photos are said to have seen, they show, in their colours
        for number in (split.train[3], split.test[1]):
            saw = scene.tracks.counts([number]) == 1
            x, y, depth = scene.frames[number].camera.project(scene.points[saw])
            assert saw.sum() > 50 and (depth > 0).all()
            pixels = load_photo(scene.frames[number])[y.astype(int), x.astype(int)]
            assert np.median(np.abs(pixels - scene.colors[saw] / 255).mean(axis=1)) < 0.12
        photos = [load_photo(scene.frames[i]) for i in split.train]
        assert min(photo.std() for photo in photos) > 0.05 and 0.1 < np.mean(photos) < 0.85
    # the size changes neither the place nor the cameras; the seed changes both
    for one, other in zip(a.frames, larger.frames, strict=True):
        np.testing.assert_allclose(one.camera.camera_to_world, other.camera.camera_to_world)
        shrunk = cv2.resize(load_photo(other), (one.camera.width, one.camera.height), interpolation=cv2.INTER_AREA)
        assert np.abs(load_photo(one) - shrunk).mean() < 0.03
    assert np.abs(a.frames[5].camera.camera_to_world - b.frames[5].camera.camera_to_world).max() > 0.1


@pytest.mark.parametrize("kind", ["table", "interior"])
def test_places_differ_in_what_stands_there_and_in_how_they_are_seen(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Unpainted:
        """A world's solids, without the paint, which is what takes long."""

        def __init__(self, solids: list[Solid], *_: object) -> None:
            self.solids = solids

    monkeypatch.setattr(f"difixcli.samples.{kind}.World", Unpainted)
    counts, lenses, shapes = set(), set(), set()
    for seed in range(12):
        world, views = sample.SAMPLES[kind](np.random.default_rng(seed))
        counts.add(len(world.solids))
        lenses.add(round(views[0].camera.fx))
        shapes.add((views[0].camera.width, views[0].camera.height))
        assert all(sees_freely(world.solids, view.camera, 0.05) for view in views), seed
        positions = np.stack([view.camera.position for view in views])
        assert np.linalg.norm(np.diff(positions[:20], axis=0), axis=1).min() > 0.01, seed
        assert np.ptp(positions, axis=0).max() > 0.5, seed
    assert len(counts) > 8 and len(lenses) > 8 and len(shapes) > 3


def test_street_is_metric_and_has_three_cameras() -> None:
    scene = load_scene("sample:street")
    assert scene.metric and {frame.camera_id for frame in scene.frames} == {"left", "centre", "right"}
    split = make_split(scene, default_split_rule(scene))
    assert {scene.frames[i].camera_id for i in split.train} == {"centre"}
    assert {scene.frames[i].camera_id for i in split.test} == {"left", "right"}
    centre = np.stack([scene.frames[i].camera.position for i in split.train]) / scene.unit_scale
    assert np.linalg.norm(centre[-1] - centre[0]) == pytest.approx(16.5, abs=0.5)


def test_bad_samples(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match="did you mean room"):
        load_scene("sample:rom")
    with pytest.raises(InputError, match="interior"):
        write_sample("castle", tmp_path)
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("DIFIX_CACHE", str(tmp_path / "file"))
    with pytest.raises(InputError, match="DIFIX_CACHE"):
        load_scene("sample:room")
