"""Scenes: reading, normalisation, splits, distances, paths, and the sentences for bad input."""

from __future__ import annotations

import json
import shutil
from itertools import pairwise
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from PIL import Image
from scipy.spatial.transform import Rotation
from small_scenes import write_colmap

from difixcli.errors import InputError
from difixcli.reconstruction.dataset import write_dataset
from difixcli.scenes import (
    default_split_rule,
    interpolate,
    load_mask,
    load_photo,
    load_scene,
    make_split,
    nearest_cameras,
    pose_distance,
    scene_fingerprint,
    spiral,
    step_towards,
)
from difixcli.scenes.ply import read_points, write_points
from difixcli.scenes.poses import look_at, normalisation, rotation_between

SHARED = ["herzjesu_p25", "cut3r_livingroom", "fountain_p11", "monstree", "bundler_kermit"]
WIDTH, HEIGHT = 64, 48


def orbit(count: int, seed: int = 0) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    angles = np.linspace(0, 2 * np.pi, count, endpoint=False)
    return [
        look_at(np.array([3 * np.cos(a), 3 * np.sin(a), 1 + rng.uniform(-0.2, 0.2)]), np.zeros(3), np.array([0, 0, 1]))
        for a in angles
    ]


def write_scene(folder: Path, count: int = 8, names: list[str] | None = None, **meta: Any) -> dict[str, Any]:
    """A small orbit with noise photos; returns the transforms.json it wrote."""
    rng = np.random.default_rng(1)
    names = names or [f"images/{i:02d}.png" for i in range(count)]
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)).save(path)
    data = {
        "fl_x": 60.0,
        "fl_y": 61.0,
        "cx": 31.5,
        "cy": 24.5,
        "w": WIDTH,
        "h": HEIGHT,
        **meta,
        "frames": [
            {"file_path": name, "transform_matrix": pose.tolist()}
            for name, pose in zip(names, orbit(len(names)), strict=True)
        ],
    }
    save(folder, data)
    return data


def save(folder: Path, data: dict[str, Any]) -> None:
    (folder / "transforms.json").write_text(json.dumps(data))


def refused(*words: str) -> Any:
    return pytest.raises(InputError, match="(?s)" + ".*".join(words))


# Reading


@pytest.mark.parametrize("name", SHARED)
def test_transforms_and_colmap_give_the_same_scene(shared_scenes: Path, tmp_path: Path, name: str) -> None:
    (tmp_path / "images").symlink_to(shared_scenes / name / "images")
    (tmp_path / "sparse").symlink_to(shared_scenes / name / "sparse")
    a, b = load_scene(shared_scenes / name, 240), load_scene(tmp_path, 240)
    assert [frame.name for frame in a.frames] == [frame.name for frame in b.frames]
    for x, y in zip(a.frames, b.frames, strict=True):
        np.testing.assert_allclose(x.camera.camera_to_world, y.camera.camera_to_world, atol=1e-9)
        np.testing.assert_allclose(x.camera.intrinsics, y.camera.intrinsics, rtol=1e-9)
        assert x.camera_id == y.camera_id
    assert len(a.points) == len(b.points) > 500
    np.testing.assert_allclose(a.points.mean(axis=0), b.points.mean(axis=0), atol=1e-5)
    assert max(a.frames[0].camera.width, a.frames[0].camera.height) == 240


def test_text_models_and_binary_ones_read_like_transforms(arc: Path, tmp_path: Path) -> None:
    import pycolmap

    text, binary = tmp_path / "text", tmp_path / "binary"
    for folder, model in ((text, "colmap/sparse/0"), (binary, "sparse")):
        (folder / model).mkdir(parents=True)
        (folder / "images").symlink_to(arc / "images")
    write_colmap(arc, text / "colmap/sparse/0")
    pycolmap.Reconstruction(str(text / "colmap/sparse/0")).write_binary(str(binary / "sparse"))
    expected = load_scene(arc)
    for scene in (load_scene(text), load_scene(binary)):
        for x, y in zip(scene.frames, expected.frames, strict=True):
            assert x.name == y.name and x.camera_id == y.camera_id
            np.testing.assert_allclose(x.camera.camera_to_world, y.camera.camera_to_world, atol=1e-6)
            np.testing.assert_allclose(x.camera.intrinsics, y.camera.intrinsics, rtol=1e-9)
        np.testing.assert_allclose(scene.points, expected.points, atol=1e-6)
        np.testing.assert_array_equal(scene.colors, expected.colors)


def test_the_points_project_onto_the_photos(shared_scenes: Path) -> None:
    scene = load_scene(shared_scenes / "herzjesu_p25")
    camera = scene.frames[12].camera
    local = (scene.points - camera.position) @ camera.camera_to_world[:3, :3]
    local = local[local[:, 2] < -0.01]
    x = camera.fx * local[:, 0] / -local[:, 2] + camera.cx
    y = -camera.fy * local[:, 1] / -local[:, 2] + camera.cy
    assert ((x > 0) & (x < camera.width) & (y > 0) & (y < camera.height)).mean() > 0.3


def test_normalised_world(tmp_path: Path) -> None:
    write_scene(tmp_path)
    scene = load_scene(tmp_path)
    poses = np.stack([frame.camera.camera_to_world for frame in scene.frames])
    np.testing.assert_allclose(poses[:, :3, 3].mean(axis=0), 0, atol=1e-12)
    assert np.abs(poses[:, :3, 3]).max() == pytest.approx(1)
    up = poses[:, :3, 1].mean(axis=0)
    np.testing.assert_allclose(up / np.linalg.norm(up), [0, 0, 1], atol=1e-12)
    np.testing.assert_allclose(
        poses[:, :3, :3] @ poses[:, :3, :3].transpose(0, 2, 1), np.eye(3)[None].repeat(8, 0), atol=1e-12
    )


def test_source_to_world_maps_the_files_own_coordinates(tmp_path: Path) -> None:
    data = write_scene(tmp_path)
    applied = np.eye(4)
    applied[:3, :3], applied[:3, 3] = Rotation.from_euler("xyz", [0.4, -1, 2]).as_matrix(), [1, 2, 3]
    plain = load_scene(tmp_path)
    for frame in data["frames"]:
        frame["transform_matrix"] = (applied @ np.array(frame["transform_matrix"])).tolist()
    save(tmp_path, {**data, "applied_transform": applied[:3].tolist()})
    moved = load_scene(tmp_path)
    for a, b, entry in zip(plain.frames, moved.frames, data["frames"], strict=True):
        np.testing.assert_allclose(a.camera.camera_to_world, b.camera.camera_to_world, atol=1e-9)
        position = moved.source_to_world @ np.array(entry["transform_matrix"])[:, 3]
        np.testing.assert_allclose(position[:3], b.camera.position, atol=1e-9)
    assert moved.unit_scale == pytest.approx(plain.unit_scale)


def test_normalisation_of_awkward_sets() -> None:
    assert np.isfinite(normalisation(np.eye(4)[None])).all()
    upside_down = rotation_between(np.array([0, 0, -1.0]), np.array([0, 0, 1.0]))
    np.testing.assert_allclose(upside_down @ [0, 0, -1], [0, 0, 1], atol=1e-12)
    assert np.linalg.det(upside_down) == pytest.approx(1)


def test_missing_images_are_left_out_and_the_world_stays(tmp_path: Path) -> None:
    write_scene(tmp_path)
    whole = load_scene(tmp_path)
    (tmp_path / "images" / "03.png").unlink()
    rest = load_scene(tmp_path)
    assert len(rest.frames) == 7
    assert "images/03.png" in rest.warnings[0]
    np.testing.assert_array_equal(whole.source_to_world, rest.source_to_world)


def test_the_releases_layout(tmp_path: Path) -> None:
    """Difix3D's: a COLMAP model in colmap/sparse/0 beside images called image_train_* and image_eval_*."""
    import pycolmap

    names = [f"image_{'eval' if i % 3 else 'train'}_{i:06d}.png" for i in range(9)]
    model = pycolmap.Reconstruction()
    camera = pycolmap.Camera(model="PINHOLE", width=WIDTH, height=HEIGHT, params=[60, 61, 31.5, 24.5], camera_id=1)
    model.add_camera_with_trivial_rig(camera)
    (tmp_path / "images").mkdir()
    for i, (name, pose) in enumerate(zip(names, orbit(9), strict=True), start=1):
        Image.new("RGB", (WIDTH, HEIGHT), (i, i, i)).save(tmp_path / "images" / name)
        inverse = np.linalg.inv(pose @ np.diag([1, -1, -1, 1]))
        image = pycolmap.Image(name=name, image_id=i, camera_id=1)
        model.add_image_with_trivial_frame(image, pycolmap.Rigid3d(inverse[:3]))
    (tmp_path / "colmap" / "sparse" / "0").mkdir(parents=True)
    model.write(tmp_path / "colmap" / "sparse" / "0")
    scene = load_scene(tmp_path)
    split = make_split(scene, default_split_rule(scene))
    assert [scene.frames[i].name for i in split.train] == [f"images/{name}" for name in names if "train" in name]
    assert len(split.test) == 6


@pytest.mark.parametrize(
    ("first", "second"), [("frame_train", "frame_eval"), ("frame_0", "frame_1"), ("frame_1", "frame_2")]
)
def test_nerfbusters_layout(tmp_path: Path, first: str, second: str) -> None:
    write_scene(tmp_path, names=[f"images/{path}_{i:05d}.png" for path in (first, second) for i in range(1, 5)])
    scene = load_scene(tmp_path)
    split = make_split(scene, default_split_rule(scene))
    assert {Path(scene.frames[i].name).name.rsplit("_", 1)[0] for i in split.train} == {first}
    assert {Path(scene.frames[i].name).name.rsplit("_", 1)[0] for i in split.test} == {second}


@pytest.mark.parametrize("top", [".", "nerfstudio"])
def test_dl3dv_layout(tmp_path: Path, top: str) -> None:
    """transforms.json names images/ of full size, of which only images_4/ and images_8/ were downloaded."""
    folder = tmp_path / top
    data = write_scene(folder, names=[f"images/frame_{i:05d}.png" for i in range(1, 7)])
    whole = load_scene(tmp_path)
    for factor in (4, 8):
        for photo in sorted((folder / "images").iterdir()):
            (folder / f"images_{factor}").mkdir(exist_ok=True)
            smaller = Image.open(photo).resize((WIDTH // factor, HEIGHT // factor), Image.Resampling.BOX)
            smaller.save(folder / f"images_{factor}" / photo.name)
    shutil.rmtree(folder / "images")
    scene = load_scene(tmp_path)
    assert scene.name == tmp_path.name and default_split_rule(scene) == "test-every:8"
    assert [frame.name for frame in scene.frames] == [frame["file_path"] for frame in data["frames"]]
    for frame, full in zip(scene.frames, whole.frames, strict=True):
        assert frame.image_path.parent.name == "images_4" and load_photo(frame).shape == (HEIGHT // 4, WIDTH // 4, 3)
        np.testing.assert_allclose(frame.camera.intrinsics[:2], full.camera.intrinsics[:2] / 4)
        np.testing.assert_array_equal(frame.camera.camera_to_world, full.camera.camera_to_world)


def test_frames_are_in_natural_order(tmp_path: Path) -> None:
    # a superscript is a digit, and no number
    names = [f"images/f{i}.png" for i in ("10", "9", "2", "1", "1²3")]
    write_scene(tmp_path, names=names)
    assert [frame.name for frame in load_scene(tmp_path).frames] == [names[3], names[4], names[2], names[1], names[0]]


def test_file_names_are_one_for_each_frame(tmp_path: Path) -> None:
    write_scene(tmp_path, names=["images/a.png", "images/a.jpg", "images-a.png", "images/A.webp", "images/b.png"])
    scene = load_scene(tmp_path)
    names = dict(zip([frame.name for frame in scene.frames], scene.file_names, strict=True))
    assert names["images/b.png"] == "images-b"
    assert len({name.casefold() for name in names.values()}) == 5
    assert all(name.casefold().startswith("images-a-") for frame, name in names.items() if frame != "images/b.png")


def test_no_file_name_is_another_s_and_more_behind_a_dot(tmp_path: Path) -> None:
    """`a.target` would be where files stand that belong to `a`, as a round's a.target.png and its confidence."""
    written = ["a.png", "a.target.png", "a.target.confidence.png", "A.photo.png", "b.1.png", "b.10.png"]
    write_scene(tmp_path, names=[f"images/{name}" for name in written])
    scene = load_scene(tmp_path)
    names = scene.file_names
    called = dict(zip((frame.name for frame in scene.frames), names, strict=True))
    plain = {f"images/{name}": f"images-{name.removesuffix('.png')}" for name in ("a.png", "b.1.png", "b.10.png")}
    assert {frame: called[frame] for frame in plain} == plain
    belonging = {
        f"{name}{kind}".casefold() for name in names for kind in (".target", ".confidence", ".target.confidence")
    }
    assert len(belonging) == 3 * len(names) and not belonging & {name.casefold() for name in names}
    assert len({name.casefold() for name in names}) == len(names)


def test_fingerprints_see_all_that_a_scene_is_read_from(arc: Path, tmp_path: Path) -> None:
    import pycolmap

    (tmp_path / "images").symlink_to(arc / "images")
    model = tmp_path / "sparse" / "0"
    write_colmap(arc, tmp_path / "text")
    model.mkdir(parents=True)
    pycolmap.Reconstruction(str(tmp_path / "text")).write_binary(str(model))
    seen = [scene_fingerprint(load_scene(tmp_path, size)) for size in (None, 64)]
    assert seen[0] == seen[1]
    read = pycolmap.Reconstruction(str(model))
    for camera in read.cameras.values():
        camera.params = [value * 1.01 for value in camera.params]
    read.write_binary(str(model))
    seen.append(scene_fingerprint(load_scene(tmp_path)))
    read.delete_point3D(min(read.point3D_ids()))
    read.write_binary(str(model))
    seen.append(scene_fingerprint(load_scene(tmp_path)))
    name = Path(load_scene(tmp_path).frames[2].name).name
    (tmp_path / "masks").mkdir()
    with Image.open(arc / "images" / name) as photo:
        for level in (255, 254):  # as many bytes, other content
            Image.new("L", photo.size, level).save(tmp_path / "masks" / f"{name}.png", compress_level=0)
            seen.append(scene_fingerprint(load_scene(tmp_path)))
    assert len(set(seen)) == len(seen) - 1


def test_cameras_by_folder_by_lens_and_by_name(tmp_path: Path) -> None:
    names = [f"{side}/{i}.png" for side in ("left", "right") for i in range(3)]
    data = write_scene(tmp_path, names=names)
    assert [frame.camera_id for frame in load_scene(tmp_path).frames] == ["left"] * 3 + ["right"] * 3
    for i, frame in enumerate(data["frames"]):
        frame["camera_id"] = i % 2
    save(tmp_path, data)
    assert {frame.camera_id for frame in load_scene(tmp_path).frames} == {"0", "1"}
    one = tmp_path / "one"
    data = write_scene(one, 4)
    data["frames"][3]["fl_x"] = 70.0
    save(one, data)
    scene = load_scene(one)
    assert [frame.camera_id for frame in scene.frames] == ["0", "0", "0", "1"]
    assert scene.frames[3].camera.fx == 70


def test_seed_points_follow_the_world(tmp_path: Path) -> None:
    data = write_scene(tmp_path)
    points, colors = np.array([[0, 0, 0.0], [1, 2, 3]]), np.array([[1, 2, 3], [4, 5, 6]], np.uint8)
    write_points(tmp_path / "p.ply", points, colors)
    np.testing.assert_array_equal(read_points(tmp_path / "p.ply")[1], colors)
    save(tmp_path, {**data, "ply_file_path": "p.ply"})
    scene = load_scene(tmp_path)
    expected = (scene.source_to_world @ [1, 2, 3, 1])[:3]
    np.testing.assert_allclose(scene.points[1], expected, atol=1e-6)
    save(tmp_path, {**data, "ply_file_path": "absent.ply"})
    assert any("absent.ply" in warning for warning in load_scene(tmp_path).warnings)
    (tmp_path / "p.ply").write_text("ply? no")
    save(tmp_path, {**data, "ply_file_path": "p.ply"})
    with refused("p.ply", "PLY"):
        load_scene(tmp_path)


# Pixels


def test_working_size_scales_the_lens_exactly(tmp_path: Path) -> None:
    write_scene(tmp_path)
    frame = load_scene(tmp_path, 33).frames[0]
    assert (frame.camera.width, frame.camera.height) == (33, 25)
    assert frame.camera.fx == pytest.approx(60 * 33 / 64)
    assert frame.camera.cy == pytest.approx(24.5 * 25 / 48)
    photo = load_photo(frame)
    assert photo.shape == (25, 33, 3) and photo.dtype == np.float32 and 0 <= photo.min() <= photo.max() <= 1
    assert load_scene(tmp_path, 1000).frames[0].camera.width == WIDTH


def test_photos_keep_their_pixels_at_their_own_size(tmp_path: Path) -> None:
    write_scene(tmp_path)
    frame = load_scene(tmp_path).frames[2]
    stored = np.asarray(Image.open(frame.image_path), dtype=np.float32) / 255
    np.testing.assert_array_equal(load_photo(frame), stored)
    assert load_mask(frame) is None


def test_undistortion_straightens_points(tmp_path: Path) -> None:
    data = write_scene(tmp_path, k1=-0.25, k2=0.05, p1=0.002, p2=-0.001)
    path = tmp_path / data["frames"][0]["file_path"]
    lens = np.array([[60, 0, 31.0], [0, 61, 24.0], [0, 0, 1]])  # OpenCV: the first pixel's centre is 0
    spot = np.array([[0.3, 0.2, 1.0]])
    pixel, _ = cv2.projectPoints(spot, np.zeros(3), np.zeros(3), lens, np.array([-0.25, 0.05, 0.002, -0.001]))
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    blob = np.exp(-((x - pixel[0, 0, 0]) ** 2 + (y - pixel[0, 0, 1]) ** 2) / 8)
    Image.fromarray(np.repeat((blob * 255).astype(np.uint8)[..., None], 3, axis=2)).save(path)
    frame = load_scene(tmp_path).frames[0]
    photo = load_photo(frame)[..., 0]
    centre = np.array([(photo * x).sum(), (photo * y).sum()]) / photo.sum()
    np.testing.assert_allclose(centre, [60 * 0.3 + 31, 61 * 0.2 + 24], atol=0.15)


def test_undistortion_masks_what_it_cannot_fill(tmp_path: Path) -> None:
    write_scene(tmp_path, k1=0.4)
    mask = load_mask(load_scene(tmp_path).frames[0])
    assert mask is not None and not mask[0, 0] and mask[HEIGHT // 2, WIDTH // 2]


def test_masks_come_from_files_and_transparency(tmp_path: Path) -> None:
    data = write_scene(tmp_path)
    half = np.zeros((HEIGHT, WIDTH), np.uint8)
    half[:, WIDTH // 2 :] = 255
    Image.fromarray(half).save(tmp_path / "mask.png")
    data["frames"][0]["mask_path"] = "mask.png"
    photo = np.asarray(Image.open(tmp_path / "images/01.png"))
    Image.fromarray(np.dstack([photo, half])).save(tmp_path / "images/01.png")
    save(tmp_path, data)
    scene = load_scene(tmp_path)
    for frame in scene.frames[:2]:
        mask = load_mask(frame)
        assert mask is not None and not mask[:, : WIDTH // 2].any() and mask[:, WIDTH // 2 :].all()
    assert load_photo(scene.frames[1]).shape == (HEIGHT, WIDTH, 3)
    data["frames"][0]["mask_path"] = "none.png"
    save(tmp_path, data)
    with refused("none.png", "mask_path"):
        load_scene(tmp_path)


def test_written_scene_reads_back_as_it_was(tmp_path: Path) -> None:
    data = write_scene(tmp_path / "a", k1=0.4)
    write_points(tmp_path / "a" / "p.ply", np.array([[0.1, 0.2, 0.3]]), np.array([[9, 8, 7]], np.uint8))
    save(tmp_path / "a", {**data, "ply_file_path": "p.ply"})
    scene = load_scene(tmp_path / "a", 40)
    write_dataset(scene, [0, 3], tmp_path / "b")
    again = load_scene(tmp_path / "b")
    for x, y in zip(scene.frames, again.frames, strict=True):
        np.testing.assert_allclose(x.camera.camera_to_world, y.camera.camera_to_world, atol=1e-9)
        np.testing.assert_allclose(x.camera.intrinsics, y.camera.intrinsics)
        np.testing.assert_allclose(load_photo(x), load_photo(y), atol=0.5 / 255 + 1e-6)
        np.testing.assert_array_equal(load_mask(x), load_mask(y))
    assert again.frames[0].lens.is_pinhole
    written = json.loads((tmp_path / "b" / "transforms.json").read_text())
    assert len(written["train_filenames"]) == 2 and len(written["test_filenames"]) == len(scene.frames) - 2


# Bad input


def test_bad_folders(tmp_path: Path) -> None:
    with refused("There is no scene", "nowhere"):
        load_scene(tmp_path / "nowhere")
    (tmp_path / "herzjesu_p25").mkdir()
    with refused("Did you mean", str(tmp_path / "herzjesu_p25")):
        load_scene(tmp_path / "herzjesu")
    (tmp_path / "herzjesu_p25").rmdir()
    with refused("neither", "COLMAP"):
        load_scene(tmp_path)
    (tmp_path / "transforms.json").write_text("{")
    with refused("JSON"):
        load_scene(tmp_path)
    save(tmp_path, {"frames": []})
    with refused("no frames"):
        load_scene(tmp_path)
    with refused("size"):
        load_scene(tmp_path, 0)


def test_bad_colmap_model(tmp_path: Path) -> None:
    model = tmp_path / "sparse" / "0"
    model.mkdir(parents=True)
    (model / "cameras.bin").write_bytes(b"\x01")
    with refused("COLMAP model", "cannot be read"):
        load_scene(tmp_path)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"w": 128}, ("64×48", "128×48")),
        ({"fl_x": "wide"}, ("fl_x", "wide")),
        ({"fl_x": -3}, ("focal",)),
    ],
)
def test_bad_lenses(tmp_path: Path, change: dict[str, Any], words: tuple[str, ...]) -> None:
    data = write_scene(tmp_path)
    save(tmp_path, {**data, **change})
    with refused(*words):
        load_scene(tmp_path)


def test_bad_poses_and_frames(tmp_path: Path) -> None:
    data = write_scene(tmp_path)

    def with_pose(pose: Any) -> None:
        frames = [dict(frame) for frame in data["frames"]]
        frames[2]["transform_matrix"] = pose
        save(tmp_path, {**data, "frames": frames})

    with_pose(np.full((4, 4), np.nan).tolist())
    with refused("images/02.png", "not finite"):
        load_scene(tmp_path)
    for wrong in (2 * np.eye(4), np.diag([1.0, 1, -1, 1])):
        with_pose(wrong.tolist())
        with refused("images/02.png", "not rigid"):
            load_scene(tmp_path)
    with_pose([[1, 2], [3, 4]])
    with refused("4×4"):
        load_scene(tmp_path)
    with_pose(None)
    with refused("Frame 2", "no transform_matrix"):
        load_scene(tmp_path)
    other = {**data["frames"][0], "transform_matrix": data["frames"][1]["transform_matrix"]}
    save(tmp_path, {**data, "frames": [*data["frames"], other]})
    with refused("images/00.png", "more than once"):
        load_scene(tmp_path)
    save(tmp_path, {**data, "frames": [{"transform_matrix": np.eye(4).tolist()}]})
    with refused("file_path"):
        load_scene(tmp_path)


def test_bad_images(tmp_path: Path) -> None:
    write_scene(tmp_path)
    broken = tmp_path / "images" / "04.png"
    whole = broken.read_bytes()
    broken.write_bytes(b"no picture")
    with refused("04.png", "cannot be read"):
        load_scene(tmp_path)
    broken.write_bytes(whole[: len(whole) // 2])
    with refused("04.png", "cannot be read"):
        load_photo(load_scene(tmp_path).frames[4])
    shutil.rmtree(tmp_path / "images")
    with refused("None of the 8 images"):
        load_scene(tmp_path)


# Splits


def test_every_nth_trains(tmp_path: Path) -> None:
    write_scene(tmp_path, 9)
    scene = load_scene(tmp_path)
    split = make_split(scene, "every:4")
    assert tuple(split.train) == (0, 4, 8) and tuple(split.test) == (1, 2, 3, 5, 6, 7)
    assert split.rule == "every:4"


@pytest.mark.parametrize(("count", "test"), [(17, (0, 8, 16)), (9, (0, 8)), (8, (0,)), (7, (0,)), (2, (0,))])
def test_every_eighth_is_held_out_unless_a_scene_says_otherwise(tmp_path: Path, count: int, test: tuple) -> None:
    """Counted in the scene's own order, whatever the file's."""
    write_scene(tmp_path, names=[f"images/{i}.png" for i in reversed(range(count))])
    scene = load_scene(tmp_path)
    split = make_split(scene, default_split_rule(scene))
    assert split.rule == "test-every:8" and split.test == test
    assert split.train == tuple(i for i in range(count) if i not in test)
    assert [Path(scene.frames[i].name).stem for i in split.test] == [str(i) for i in test]


def test_a_lone_photo_cannot_be_held_out(tmp_path: Path) -> None:
    write_scene(tmp_path, 1)
    scene = load_scene(tmp_path)
    with refused("test-every:8", "no training view among the 1", "choose another --split"):
        make_split(scene, default_split_rule(scene))
    assert make_split(scene, "all", need_test=False).train == (0,)


def test_clusters_are_two_sides(tmp_path: Path) -> None:
    data = write_scene(tmp_path, 7)
    for i, frame in enumerate(data["frames"]):
        frame["transform_matrix"] = np.eye(4).tolist()
        frame["transform_matrix"][0][3] = (0.0 if i < 3 else 10.0) + 0.1 * i
    save(tmp_path, data)
    split = make_split(load_scene(tmp_path), "clusters")
    assert tuple(split.train) == (3, 4, 5, 6) and tuple(split.test) == (0, 1, 2)


def test_groups_are_seeded_by_the_farthest_pair(tmp_path: Path) -> None:
    write_scene(tmp_path, 12)
    scene = load_scene(tmp_path)
    poses = np.stack([frame.camera.camera_to_world for frame in scene.frames])

    def distance(i: int, j: int) -> float:
        between = poses[i] - poses[j]
        return float(np.linalg.norm(between[:3, :3]) + np.linalg.norm(between[:3, 3]))

    seeds = max(((i, j) for i in range(12) for j in range(i)), key=lambda pair: distance(*pair))
    groups = [{i for i in range(12) if distance(i, a) <= distance(i, b)} for a, b in (seeds, seeds[::-1])]
    split = make_split(scene, "groups")
    assert set(split.train) in groups and set(split.test) in groups
    assert set(split.train) | set(split.test) == set(range(12)) and len(split.train) >= len(split.test)
    few = make_split(scene, "groups:3")
    assert len(few.train) == 3 and set(few.train) < set(split.train) and set(few.train) & set(seeds)
    assert set(few.test) == set(range(12)) - set(few.train)
    apart = min(distance(i, j) for i in few.train for j in few.train if i != j)
    assert apart > min(distance(i, j) for i in split.train for j in split.train if i != j)
    assert set(make_split(scene, "groups:99").train) == set(split.train)


def test_names_cameras_and_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = [f"left/{kind}_{i}.png" for kind in ("train", "eval") for i in range(3)] + ["right/other.png"]
    write_scene(tmp_path, names=names)
    scene = load_scene(tmp_path)
    by_name = {frame.name: i for i, frame in enumerate(scene.frames)}
    train = tuple(sorted(by_name[n] for n in names[:3]))
    evaluation = tuple(sorted(by_name[n] for n in names[3:6]))
    assert tuple(make_split(scene, "names:train_*").train) == train
    assert tuple(make_split(scene, "names:train_").train) == train
    both = make_split(scene, "names:train=*train_*,test=*eval_*")
    assert (tuple(both.train), tuple(both.test)) == (train, evaluation)
    assert tuple(make_split(scene, "names:test=eval_").test) == evaluation
    assert tuple(make_split(scene, "camera:right").train) == (by_name["right/other.png"],)
    (tmp_path / "split.json").write_text(json.dumps({"train": names[:3], "test": ["eval_0", "eval_1.png"]}))
    assert default_split_rule(scene) == "file:split.json"
    split = make_split(scene, "file:split.json")
    stranger = tmp_path / "elsewhere"
    stranger.mkdir()
    (stranger / "split.json").write_text("{}")
    monkeypatch.chdir(stranger)
    assert make_split(scene, "file:split.json") == split
    assert tuple(split.train) == train and len(split.test) == 2


@pytest.mark.parametrize(
    ("rule", "words"),
    [
        ("evry:4", ("evry", "every")),
        ("nonsense", ("camera, clusters",)),
        ("every:1", ("every:1",)),
        ("every:x", ("every:x",)),
        ("test-every:1", ("test-every:1", "at least 2", "as in test-every:8")),
        ("test-every", ("whole number", "test-every:8")),
        ("tst-every:8", ("did you mean test-every",)),
        ("every:99", ()),
        ("names:", ("pattern",)),
        ("names:zzz", ("no training view",)),
        ("names:png", ("no test view",)),
        ("names:train=png,test=png", ("both halves",)),
        ("names:train=a,b", ("names:train=PATTERN",)),
        ("camera:middle", ("middle", "0")),
        ("clusters:3", ("no argument",)),
        ("file:absent.json", ("absent.json",)),
        ("file:", ("path",)),
    ],
)
def test_bad_splits(tmp_path: Path, rule: str, words: tuple[str, ...]) -> None:
    write_scene(tmp_path)
    scene = load_scene(tmp_path)
    if rule == "every:99":
        assert tuple(make_split(scene, rule).train) == (0,)
        return
    with refused(*words):
        make_split(scene, rule)


def test_bad_split_files(tmp_path: Path) -> None:
    write_scene(tmp_path)
    scene = load_scene(tmp_path)
    path = tmp_path / "s.json"
    for text, words in [
        ("{", ("JSON",)),
        ("[]", ("must hold",)),
        ('{"train": ["0"]}', ("no frame", "called 0")),
        ('{"train": ["images/0.png"]}', ("no frame", "did you mean images/0")),
        ('{"train": ["00"], "test": ["00"]}', ("both halves",)),
        ('{"train": ["00"], "test": []}', ("no test view",)),
    ]:
        path.write_text(text)
        with refused(*words):
            make_split(scene, f"file:{path}")


# Distances and paths


def test_pose_distance_adds_translation_and_angle() -> None:
    a, b = np.eye(4), np.eye(4)
    b[:3, :3] = Rotation.from_rotvec([0, 0.7, 0]).as_matrix()
    b[:3, 3] = [0, 3, 4]
    assert pose_distance(a, b) == pytest.approx(5.7)
    assert pose_distance(a, b, 0) == pytest.approx(5)
    b[:3, :3] = np.diag([-1, 1, -1])
    assert pose_distance(a, b) == pytest.approx(5 + np.pi)


def test_nearest_cameras_are_sorted(tmp_path: Path) -> None:
    write_scene(tmp_path)
    cameras = [frame.camera for frame in load_scene(tmp_path).frames]
    nearest = nearest_cameras(cameras[3], cameras, 3)
    assert nearest[0] == 3 and set(nearest[1:]) == {2, 4}
    assert len(nearest_cameras(cameras[3], cameras, 50)) == 8


def test_steps_reach_the_target() -> None:
    start, target = orbit(4)[:2]
    pose = start
    for _ in range(100):
        before = np.linalg.norm(target[:3, 3] - pose[:3, 3])
        pose = step_towards(pose, target, 0.5)
        after = np.linalg.norm(target[:3, 3] - pose[:3, 3])
        np.testing.assert_allclose(pose[:3, :3] @ pose[:3, :3].T, np.eye(3), atol=1e-12)
        if after == 0:
            break
        assert before - after == pytest.approx(0.5)
    np.testing.assert_array_equal(pose, target)


def test_interpolation_passes_its_ends(tmp_path: Path) -> None:
    write_scene(tmp_path)
    cameras = [frame.camera for frame in load_scene(tmp_path).frames]
    path = interpolate(cameras, 29)
    assert len(path) == 29
    np.testing.assert_allclose(path[0].camera_to_world, cameras[0].camera_to_world, atol=1e-9)
    np.testing.assert_allclose(path[-1].camera_to_world, cameras[-1].camera_to_world, atol=1e-9)
    steps = [pose_distance(a, b) for a, b in pairwise(path)]
    assert max(steps) < 2 * np.median(steps)
    assert len(interpolate(cameras[:1] * 3, 4)) == 4
    with refused("at least one"):
        interpolate([], 3)


def test_spiral_stays_near_and_looks_at_the_subject(tmp_path: Path) -> None:
    write_scene(tmp_path)
    cameras = [frame.camera for frame in load_scene(tmp_path).frames]
    path = spiral(cameras, 20)
    centre = np.mean([camera.position for camera in path], axis=0)
    assert min(np.linalg.norm(camera.position - centre) for camera in cameras) < 0.5
    assert len(path) == 20
    for camera in path:
        np.testing.assert_allclose(np.linalg.det(camera.camera_to_world[:3, :3]), 1)
    assert len(spiral(cameras[:1], 5)) == 5
