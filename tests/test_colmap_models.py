"""COLMAP models as COLMAP and other tools leave them, who saw their points, and seed points in PLY files."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pycolmap
import pytest
from PIL import Image
from plyfile import PlyData, PlyElement

from difixcli.errors import InputError
from difixcli.reconstruction import Reconstruction
from difixcli.reconstruction.seed_depth import SeedRays
from difixcli.reconstruction.seeding import seed_gaussians
from difixcli.scenes import load_scene, scene_fingerprint
from difixcli.scenes.colmap_files import (
    CAMERA_MODELS,
    count_points,
    read_cameras,
    read_images,
    read_model_points,
)
from difixcli.scenes.ply import read_points, write_points
from difixcli.scenes.scene import Scene

WIDTH, HEIGHT = 64, 48
PARAMS = {
    "PINHOLE": [60, 61, 31.5, 24.5],
    "SIMPLE_PINHOLE": [60, 31.5, 24.5],
    "SIMPLE_RADIAL": [60, 31.5, 24.5, 0.01],
    "OPENCV": [60, 61, 31.5, 24.5, 0.01, 0.002, 0.001, 0.002],
}


def names(count: int) -> list[str]:
    return [f"{i:03d}.png" for i in range(count)]


def mapped(images: list[str], model: str = "PINHOLE", points: int = 40, each: int = 2) -> pycolmap.Reconstruction:
    """What a mapper makes: images on an arc, each point seen by `each` images one after another."""
    rng = np.random.default_rng(len(images))
    made = pycolmap.Reconstruction()
    camera = pycolmap.Camera(model=model, width=WIDTH, height=HEIGHT, params=PARAMS[model], camera_id=1)
    made.add_camera_with_trivial_rig(camera)
    for i, name in enumerate(images, start=1):
        angle = 0.1 * i
        turn = np.array([[np.cos(angle), 0, np.sin(angle)], [0, 1, 0], [-np.sin(angle), 0, np.cos(angle)]])
        pose = np.column_stack([turn, [0.1 * i, 0.05, 3]])
        image = pycolmap.Image(name=name, image_id=i, camera_id=1, keypoints=rng.uniform(0, 48, (points, 2)))
        made.add_image_with_trivial_frame(image, pycolmap.Rigid3d(pose))
    for k in range(points):
        track = pycolmap.Track()
        for j in range(each):
            track.add_element((k + j) % len(images) + 1, k)
        made.add_point3D(rng.normal(size=3), track, rng.integers(0, 256, 3).astype(np.uint8))
    return made


def photographed(folder: Path, images: list[str]) -> None:
    for name in images:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (WIDTH, HEIGHT), (90, 120, 60)).save(path)


def written(made: pycolmap.Reconstruction, folder: Path, text: bool = False) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    if text:
        made.write_text(str(folder))
    else:
        made.write_binary(str(folder))
    return folder


def said(scene: Scene, *words: str) -> bool:
    return any(all(word in line for word in words) for line in scene.warnings)


# Which model


def test_the_model_of_the_most_images_is_taken_and_said(tmp_path: Path) -> None:
    photographed(tmp_path / "images", names(9))
    for number, count in enumerate((3, 7, 2)):
        written(mapped(names(9)[:count]), tmp_path / "sparse" / str(number))
    scene = load_scene(tmp_path)
    assert len(scene.frames) == 7 and len(scene.points) == 40
    assert said(scene, "3 COLMAP models", "sparse/1", "7 of 9 images")


def test_of_as_many_images_more_points_decide(tmp_path: Path) -> None:
    photographed(tmp_path / "images", names(4))
    for number, count in ((0, 10), (1, 30)):
        written(mapped(names(4), points=count), tmp_path / "sparse" / str(number), text=number == 1)
    assert len(load_scene(tmp_path).points) == 30


def test_a_broken_model_beside_a_sound_one_is_said(tmp_path: Path) -> None:
    photographed(tmp_path / "images", names(4))
    written(mapped(names(4)), tmp_path / "sparse" / "1")
    broken = written(mapped(names(4)), tmp_path / "sparse" / "0")
    (broken / "images.bin").write_bytes((broken / "images.bin").read_bytes()[:300])
    scene = load_scene(tmp_path)
    assert said(scene, "took sparse/1", "1 cannot be read", "images.bin")
    shutil.rmtree(tmp_path / "sparse" / "1")
    with pytest.raises(InputError, match=r"images\.bin.*export it again"):
        load_scene(tmp_path)


@pytest.mark.parametrize(
    ("models", "folders", "taken", "undistorted"),
    [
        ({"sparse": "PINHOLE"}, ["images"], "images", True),
        ({"sparse/0": "OPENCV", "dense/0/sparse": "PINHOLE"}, ["images", "dense/0/images"], "dense/0/images", True),
        ({"sparse/0": "OPENCV", "dense/sparse": "PINHOLE"}, ["images", "dense/images"], "dense/images", True),
        ({"sparse/0": "OPENCV", "dense/0/sparse": "PINHOLE"}, ["images"], "images", False),  # without its own photos
        ({"sparse/0": "PINHOLE", "distorted/sparse/0": "OPENCV"}, ["input", "images"], "images", True),
        ({"distorted/sparse/0": "OPENCV"}, ["images", "input"], "input", False),
        ({"colmap/sparse/0": "OPENCV"}, ["images"], "images", False),
        ({".": "SIMPLE_PINHOLE"}, ["images"], "images", True),
        ({"sparse": "PINHOLE"}, ["Images"], "Images", True),
        ({"sparse/1": "OPENCV"}, ["input"], "input", False),
    ],
)
def test_models_where_tools_leave_them(
    tmp_path: Path, models: dict[str, str], folders: list[str], taken: str, undistorted: bool
) -> None:
    for folder in folders:
        photographed(tmp_path / folder, names(4))
    for place, kind in models.items():
        written(mapped(names(4), kind), tmp_path / place)
    scene = load_scene(tmp_path)
    assert [frame.name for frame in scene.frames] == [f"{taken}/{name}" for name in names(4)]
    assert undistorted == (all(frame.lens.is_pinhole for frame in scene.frames))
    assert said(scene, "COLMAP models") == (len(models) > 1)


def test_a_database_is_no_model(tmp_path: Path) -> None:
    photographed(tmp_path / "images", names(2))
    (tmp_path / "sparse").mkdir()
    for name in ("database.db", "sparse/database.db"):
        (tmp_path / name).write_bytes(b"SQLite format 3\0")
    with pytest.raises(InputError, match="have no poses yet"):
        load_scene(tmp_path)


# Text and binary


@pytest.mark.parametrize("text", [True, False])
def test_files_are_read_as_colmap_reads_them(tmp_path: Path, text: bool) -> None:
    made = mapped(names(6), "OPENCV", each=3)
    folder = written(made, tmp_path, text)
    assert text == (folder / "images.txt").is_file()
    theirs = pycolmap.Reconstruction(str(folder))
    cameras, images, points = read_cameras(folder), read_images(folder), read_model_points(folder)
    assert {key: (c.model.name, c.width, c.height) for key, c in cameras.items()} == {
        key: (c.model.name, c.width, c.height) for key, c in theirs.cameras.items()
    }
    np.testing.assert_array_equal(cameras[1].params, theirs.cameras[1].params)
    assert len(images) == len(theirs.images)
    for image in images:
        other = theirs.images[image.id]
        assert (image.name, image.camera_id) == (other.name, other.camera_id)
        pose = other.cam_from_world() if callable(other.cam_from_world) else other.cam_from_world
        np.testing.assert_allclose(image.world_to_camera[:3], pose.matrix(), atol=1e-12)
    ids = sorted(theirs.points3D)
    np.testing.assert_array_equal(points.points, [theirs.points3D[i].xyz for i in ids])
    np.testing.assert_array_equal(points.colors, [theirs.points3D[i].color for i in ids])
    tracks = [[e.image_id for e in theirs.points3D[i].track.elements] for i in ids]
    assert points.image_ids.tolist() == [image for track in tracks for image in track]
    assert points.seen.tolist() == [k for k, track in enumerate(tracks) for _ in track]


def test_camera_models_are_colmaps() -> None:
    for number, model in CAMERA_MODELS.items():
        theirs = pycolmap.CameraModelId.__members__.get(model.name)
        if theirs is not None:  # older versions have fewer
            assert int(theirs.value) == number
            assert len(pycolmap.Camera.create_from_model_id(1, theirs, 1.0, 10, 10).params) == model.parameters


IMAGES = """# by hand
1 1 0 0 0 0 0 3 1 a photo of it.png
{first}2 1 0 0 0 0.5 0 3 1 b.png
{second}
# the last
3 2 0 0 0 1 0 3 1 sub folder/c 4.png
"""


@pytest.mark.parametrize(("first", "second"), [("", ""), ("\n", ""), ("10.5 20.5 -1 3 4 1\n", "1 2 -1"), ("", "1 2 7")])
def test_hand_written_models_lose_no_image(tmp_path: Path, first: str, second: str) -> None:
    (tmp_path / "sparse").mkdir()
    (tmp_path / "sparse/cameras.txt").write_text(f"1 PINHOLE {WIDTH} {HEIGHT} 60 60 32 24\n")
    (tmp_path / "sparse/images.txt").write_text(IMAGES.format(first=first, second=second))
    photographed(tmp_path / "images", ["a photo of it.png", "b.png", "sub folder/c 4.png"])
    scene = load_scene(tmp_path)
    assert [frame.name for frame in scene.frames] == [
        "images/a photo of it.png",
        "images/b.png",
        "images/sub folder/c 4.png",
    ]
    assert len(scene.points) == 0 and scene.tracks is None and said(scene, "no seed points")
    x = [np.linalg.inv(scene.source_to_world) @ [*frame.camera.position, 1] for frame in scene.frames]
    np.testing.assert_allclose([p[0] for p in x], [0, -0.5, -1], atol=1e-9)


@pytest.mark.parametrize(
    ("file", "text", "words"),
    [
        ("cameras.txt", "# c\n1 PINHOLE 64 48 60 60 32\n", "Line 2 .*cameras.txt.*4 parameters"),
        ("cameras.txt", "1 PINHOLE wide 48 60 60 32 24\n", "Line 1 .*WIDTH"),
        ("images.txt", "1 1 0 0 0 0 0 3 1 a.png\n\n\n2 1 0 0 0 0 0 3 1\n", "Line 4 .*images.txt.*NAME"),
        ("images.txt", "1 1 0 0 0 0 0 3 1 a.png\n1 2 x 4 5 6\n", "Line 2 .*2D points"),
        ("images.txt", "1 0 0 0 0 0 0 3 1 a.png\n", "line 1 .*no rotation"),
        ("images.txt", "1 1 0 0 0 0 0 3 5 a.png\n", "camera 5"),
        ("points3D.txt", "1 0 0 0 1 2 3 0.1 1 0\n2 0 0 0 1 2 3 0.1 1\n", "Line 2 .*points3D.txt.*IMAGE_ID"),
        ("points3D.txt", "1 0 0 0 1 2 300 0.1\n", "Line 1 "),
    ],
)
def test_wrong_lines_are_named(tmp_path: Path, file: str, text: str, words: str) -> None:
    written(mapped(names(2)), tmp_path / "sparse", text=True)
    photographed(tmp_path / "images", names(2))
    (tmp_path / "sparse" / file).write_text(text)
    with pytest.raises(InputError, match=words):
        load_scene(tmp_path)


@pytest.mark.parametrize("text", [True, False])
def test_models_without_points_load(tmp_path: Path, text: bool) -> None:
    model = written(mapped(names(3)), tmp_path / "sparse/0", text)
    assert (model / ("rigs.txt" if text else "rigs.bin")).is_file()  # as COLMAP has it since 3.12
    (model / f"points3D.{'txt' if text else 'bin'}").unlink()
    photographed(tmp_path / "images", names(3))
    scene = load_scene(tmp_path)
    assert len(scene.frames) == 3 and len(scene.points) == 0 and said(scene, "no seed points")


@pytest.mark.parametrize("text", [True, False])
def test_a_model_may_have_its_points_as_ply(tmp_path: Path, text: bool) -> None:
    """As seed points whose tracks are not known; where COLMAP's own file is there, that one counts."""
    made = mapped(names(4))
    model = written(made, tmp_path / "sparse/0", text)
    photographed(tmp_path / "images", names(4))
    whole = load_scene(tmp_path)
    given = {name: np.full(len(made.points3D), 30 + i, "u1") for i, name in enumerate(("red", "green", "blue"))}
    write_points(model / "points3D.ply", positions(made), np.stack(list(given.values()), axis=1))
    assert whole.tracks is not None and scene_fingerprint(load_scene(tmp_path)) == scene_fingerprint(whole)
    (model / f"points3D.{'txt' if text else 'bin'}").unlink()
    scene = load_scene(tmp_path)
    np.testing.assert_allclose(scene.points, whole.points, atol=1e-5)
    assert (scene.colors == [30, 31, 32]).all() and scene.tracks is None
    assert said(scene, "points3D.ply", "does not say which photos saw them") and len(scene.warnings) == 1
    assert count_points(model) == len(made.points3D)
    (model / "points3D.ply").write_bytes(b"ply\nformat ascii 1.0\nelement vertex 3\n")
    with pytest.raises(InputError, match=r"points3D.ply cannot be read as a PLY point cloud"):
        load_scene(tmp_path)
    (model / "points3D.ply").write_bytes(b"ply\nformat ascii 1.0\nend_header\n")
    with pytest.raises(InputError, match=r"PLY point cloud \(it has no vertices\)"):
        load_scene(tmp_path)


def test_names_with_backslashes_are_folders(tmp_path: Path) -> None:
    written(mapped(["left\\a b.png", "right\\a b.png"]), tmp_path / "sparse/0")
    photographed(tmp_path / "input", ["left/a b.png", "right/a b.png"])
    scene = load_scene(tmp_path)
    assert [frame.name for frame in scene.frames] == ["input/left/a b.png", "input/right/a b.png"]
    assert said(scene, "2 images have another path", "left\\a b.png is left/a b.png")


@pytest.mark.parametrize(
    ("named", "there"),
    [
        ("{}.jpg", "images/{}.png"),
        ("{}.png", "images/{}.PNG"),
        ("C:/Users/me/garden/images/{}.png", "images/{}.png"),
        ("C:\\Users\\me\\garden\\left\\{}.png", "images/left/{}.png"),
        ("/srv/garden/left/{}.jpg", "input/left/{}.png"),
    ],
)
@pytest.mark.parametrize("text", [True, False])
def test_names_of_another_machine(tmp_path: Path, named: str, there: str, text: bool) -> None:
    written(mapped([named.format(i) for i in range(3)]), tmp_path / "sparse/0", text)
    photographed(tmp_path, [there.format(i) for i in range(3)])
    scene = load_scene(tmp_path)
    assert [frame.name for frame in scene.frames] == [there.format(i) for i in range(3)]
    assert said(scene, "3 images have another path than the model in sparse/0 gives", named.format(0))
    assert scene.tracks is not None and set(scene.tracks.frames) == {0, 1, 2}
    (tmp_path / there.format(1)).unlink()  # one that is missing is missing
    assert [frame.name for frame in load_scene(tmp_path).frames] == [there.format(0), there.format(2)]


def test_models_under_a_name_of_ones_own_are_read_beside_photos(tmp_path: Path) -> None:
    written(mapped(names(3)), tmp_path / "my model", text=True)
    with pytest.raises(InputError, match="holds no scene, but its folder my model does"):
        load_scene(tmp_path)
    photographed(tmp_path / "images", names(3))
    assert len(load_scene(tmp_path).frames) == 3
    below = [f"dslr/{name}" for name in names(3)]  # ETH3D's: the folder of photos holds none itself
    written(mapped(below), tmp_path / "eth3d/calibration", text=True)
    photographed(tmp_path / "eth3d/images", below)
    assert len(load_scene(tmp_path / "eth3d").frames) == 3
    (tmp_path / "my model/images.txt").unlink()
    with pytest.raises(InputError, match="have no poses yet"):
        load_scene(tmp_path)


def test_camera_models_in_lower_case(tmp_path: Path) -> None:
    written(mapped(names(2), "OPENCV"), tmp_path / "sparse", text=True)
    photographed(tmp_path / "images", names(2))
    whole = load_scene(tmp_path).frames[0].lens
    cameras = tmp_path / "sparse/cameras.txt"
    cameras.write_text(cameras.read_text().replace("OPENCV", "opencv"))
    assert load_scene(tmp_path).frames[0].lens == whole and not whole.is_pinhole


# Who saw a point


def with_transforms(folder: Path, made: pycolmap.Reconstruction, points: np.ndarray) -> None:
    """A scene as ns-process-data leaves it: turned by applied_transform, the model in colmap/sparse/0."""
    applied = np.array([[1.0, 0, 0, 0], [0, 0, 1, 0], [0, -1, 0, 0], [0, 0, 0, 1]])
    written(made, folder / "colmap/sparse/0")
    frames = []
    for image in made.images.values():
        pose = image.cam_from_world() if callable(image.cam_from_world) else image.cam_from_world
        to_world = np.linalg.inv(np.vstack([pose.matrix(), [0, 0, 0, 1]])) @ np.diag([1.0, -1, -1, 1])
        frames.append({"file_path": f"images/{image.name}", "transform_matrix": (applied @ to_world).tolist()})
    write_points(folder / "sparse_pc.ply", points @ applied[:3, :3].T, np.full((len(points), 3), 90, np.uint8))
    meta = {"w": WIDTH, "h": HEIGHT, "fl_x": 60, "fl_y": 61, "cx": 31.5, "cy": 24.5}
    meta |= {"applied_transform": applied[:3].tolist(), "ply_file_path": "sparse_pc.ply", "frames": frames}
    (folder / "transforms.json").write_text(json.dumps(meta))


def positions(made: pycolmap.Reconstruction) -> np.ndarray:
    return np.array([made.points3D[i].xyz for i in sorted(made.points3D)])


def test_tracks_name_the_scenes_frames(tmp_path: Path) -> None:
    """In the scene's order, without frames whose photo is missing."""
    images = ["c.png", "a.png", "d.png", "b.png"]
    written(mapped(images), tmp_path / "sparse/0")
    photographed(tmp_path / "images", ["a.png", "b.png", "c.png"])
    scene = load_scene(tmp_path)
    assert scene.tracks is not None
    # points 0, 1, 2, 3 were seen by c a, a d, d b, b c
    offsets, frames = scene.tracks.offsets, scene.tracks.frames
    assert [frames[offsets[i] : offsets[i + 1]].tolist() for i in range(4)] == [[0, 2], [0], [1], [1, 2]]
    kept = scene.known_to([0, 2])
    np.testing.assert_array_equal(kept.points, scene.points[0::4])
    np.testing.assert_array_equal(kept.colors, scene.colors[0::4])
    assert len(scene.known_to([0]).points) == 20  # the one photo's own
    assert kept.tracks is not None and kept.tracks.counts([0, 2]).tolist() == [2] * 10


@pytest.mark.parametrize("shuffled", [False, True])
def test_a_model_beside_a_transforms_file_says_who_saw_its_points(tmp_path: Path, shuffled: bool) -> None:
    made = mapped(names(6), each=3)
    points = positions(made)
    order = np.random.default_rng(0).permutation(len(points)) if shuffled else np.arange(len(points))
    with_transforms(tmp_path, made, points[order])
    photographed(tmp_path / "images", names(6))
    scene = load_scene(tmp_path)
    (tmp_path / "transforms.json").rename(tmp_path / "other.json")
    direct = load_scene(tmp_path)
    assert scene.tracks is not None and direct.tracks is not None
    np.testing.assert_array_equal(scene.tracks.counts([0, 1]), direct.tracks.counts([0, 1])[order])
    assert 0 < len(scene.known_to([0, 1]).points) < 40


def test_a_model_of_other_points_says_nothing_of_them(tmp_path: Path) -> None:
    made = mapped(names(6))
    with_transforms(tmp_path, made, positions(made) + 0.01)
    photographed(tmp_path / "images", names(6))
    scene = load_scene(tmp_path)
    assert scene.tracks is None and scene.known_to([0]) is scene


def test_a_fingerprint_knows_who_saw_the_points(tmp_path: Path) -> None:
    photographed(tmp_path / "images", names(4))
    seen = []
    for each in (2, 3):
        written(mapped(names(4), each=each), tmp_path / "sparse/0")
        seen.append(scene_fingerprint(load_scene(tmp_path)))
    assert seen[0] != seen[1]


def create(scene: Scene, train: list[int], folder: Path, method: str = "splatfacto", *overrides: str) -> Any:
    return Reconstruction.create(
        scene, train, method=method, folder=folder, preset="cpu", device="cpu", iterations=10, overrides=overrides
    )


def test_training_begins_from_what_its_photos_saw(tmp_path: Path) -> None:
    photographed(tmp_path / "images", names(8))
    written(mapped(names(8), points=400), tmp_path / "sparse/0")
    scene = load_scene(tmp_path)
    made = create(scene, [0, 1, 2, 5], tmp_path / "run", "splatfacto", "max_gaussians=100")
    recipe = json.loads((tmp_path / "run/reconstruction.json").read_text())
    assert recipe["seed_points"] == [100, 400]
    assert made.notes == ["100 of 400 seed points were seen by two training photos; the others are left out."]
    assert made.warnings == []
    own = {tuple(point) for point in scene.known_to([0, 1, 2, 5]).points.tolist()}
    assert {tuple(point) for point in made._trainer.model.means.detach().numpy().tolist()} <= own
    known = create(scene.known_to([0, 1, 2, 5]), [0, 1, 2, 5], tmp_path / "known", "splatfacto", "max_gaussians=100")
    assert known.notes == []  # none is left out
    few = create(scene, [0, 2, 4], tmp_path / "few", "splatfacto", "max_gaussians=100")
    assert any("Only 0 seed points" in line for line in few.warnings)
    assert few.gaussians == 100


def test_a_scene_that_does_not_know_who_saw_its_points_says_so(tmp_path: Path) -> None:
    made = mapped(names(6))
    with_transforms(tmp_path, made, positions(made))
    shutil.rmtree(tmp_path / "colmap")
    photographed(tmp_path / "images", names(6))
    scene = load_scene(tmp_path)
    held_out = create(scene, [0, 2, 4], tmp_path / "some", "splatfacto", "max_gaussians=100")
    assert [line for line in held_out.notes if "seed points" in line and "holds out" in line]
    everything = create(scene, list(range(6)), tmp_path / "all", "splatfacto", "max_gaussians=100")
    assert everything.notes == []


def test_depth_of_held_out_points_is_not_trained_on(shared_scenes: Path) -> None:
    scene = load_scene(shared_scenes / "herzjesu_p25", 120)
    train = list(range(0, 25, 4))
    known = scene.known_to(train)
    assert 1000 < len(known.points) < len(scene.points) / 2
    assert known.tracks is not None and known.tracks.counts(train).min() == 2
    allowed = {tuple(point) for point in known.points.tolist()}
    points, _ = seed_gaussians(known, train, 500, seed=0)
    assert {tuple(point) for point in points.tolist()} <= allowed
    assert len(SeedRays.of(known, train).distances) < len(SeedRays.of(scene, train).distances)


# Seed points in PLY files


def write_ply(path: Path, channels: dict[str, np.ndarray], x: list[float]) -> Path:
    kinds = [("x", "f4"), ("y", "f4"), ("z", "f4"), *((name, values.dtype) for name, values in channels.items())]
    vertices = np.zeros(len(x), dtype=kinds)
    vertices["x"] = x
    for name, values in channels.items():
        vertices[name] = values
    PlyData([PlyElement.describe(vertices, "vertex")]).write(str(path))
    return path


@pytest.mark.parametrize(
    ("channels", "dtype", "values", "expected"),
    [
        (("red", "green", "blue"), "u1", [0, 255], [0, 255]),
        (("red", "green", "blue"), "f4", [0.2, 1.0], [51, 255]),
        (("red", "green", "blue"), "f4", [51.2, 255.0], [51, 255]),
        (("diffuse_red", "diffuse_green", "diffuse_blue"), "u1", [7, 200], [7, 200]),
        (("Red", "Green", "Blue"), "u1", [7, 200], [7, 200]),
        (("scalar_red", "scalar_green", "scalar_blue"), "f4", [7, 200], [7, 200]),
        (("r", "g", "b"), "u1", [7, 200], [7, 200]),
        (("red", "green", "blue"), "u2", [257 * 9, 65535], [9, 255]),
        (("red", "green", "blue"), "u2", [9, 255], [9, 255]),
        (("red", "green", "blue"), "i4", [9, 255], [9, 255]),
        (("f_dc_0", "f_dc_1", "f_dc_2"), "f4", [0.0, 1.0], [128, 199]),
    ],
)
def test_colours_of_every_kind(
    tmp_path: Path, channels: tuple[str, ...], dtype: str, values: list[float], expected: list[int]
) -> None:
    given = {name: np.array(values, dtype=dtype) for name in channels}
    notes: list[str] = []
    points, colors = read_points(write_ply(tmp_path / "p.ply", given, [1, 2]), notes)
    assert points[:, 0].tolist() == [1, 2]
    assert colors.dtype == np.uint8 and colors.tolist() == [[value] * 3 for value in expected]
    assert bool(notes) == channels[0].startswith("f_dc")


def test_points_that_are_not_finite_are_counted(tmp_path: Path) -> None:
    made = mapped(names(3))
    with_transforms(tmp_path, made, positions(made))
    photographed(tmp_path / "images", names(3))
    shade = {name: np.array([0.5, 0.5, np.nan, 0.5], "f4") for name in ("red", "green", "blue")}
    write_ply(tmp_path / "sparse_pc.ply", shade, [1, np.nan, 2, 3])
    scene = load_scene(tmp_path)
    assert len(scene.points) == 2 and said(scene, "2 of 4 seed points", "sparse_pc.ply", "not finite")


def test_a_compressed_splat_as_seed_points_is_named(tmp_path: Path) -> None:
    vertices = np.zeros(4, dtype=[("packed_position", "<u4"), ("packed_rotation", "<u4")])
    PlyData([PlyElement.describe(vertices, "vertex")], byte_order="<").write(str(tmp_path / "seeds.ply"))
    with pytest.raises(InputError, match="compressed splat; export it uncompressed"):
        read_points(tmp_path / "seeds.ply")


@pytest.mark.parametrize("gone", ["night/001.png", "night/002.png"])
def test_a_missing_photos_pose_is_no_other_photos(tmp_path: Path, gone: str) -> None:
    """A folder of photos is gone, and others have their names."""
    written(mapped(["000.png", "001.png", gone]), tmp_path / "sparse/0")
    photographed(tmp_path / "images", ["000.png", "001.png", "002.png"])
    scene = load_scene(tmp_path)
    assert [frame.name for frame in scene.frames] == ["images/000.png", "images/001.png"]
    assert said(scene, "1 of 3 images")
