"""LLFF's poses_bounds.npy: a known scene written into one and read again, and what is refused."""

from __future__ import annotations

import io
import json
import pickle
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from commands import difix, refused
from PIL import Image

from difixcli.errors import InputError
from difixcli.reconstruction.adoption import moved
from difixcli.reconstruction.configuration import measure_extent
from difixcli.reconstruction.seeding import seed_gaussians
from difixcli.scenes import load_scene
from difixcli.scenes.loading import scene_fingerprint
from difixcli.scenes.poses import look_at
from difixcli.scenes.unposed import is_unposed

WIDTH, HEIGHT, FOCAL = 64, 48, 55.0
NAMES = ["10.png", "11.png", "9.png"]  # in the order of bytes, not of numbers
POSES = [look_at(np.array([x, -4.0, 1.5 - x / 4]), np.array([0, 0, 0.3]), np.array([0, 0, 1.0])) for x in (-2, 0.5, 3)]
BOUNDS = np.array([[2.0, 9.0], [1.5, 8.0], [2.5, 30.0]])


def claiming(rows: int) -> bytes:
    """A header of that many poses, and nothing more."""
    file = io.BytesIO()
    np.lib.format.write_array_header_1_0(file, {"descr": "<f8", "fortran_order": False, "shape": (rows, 17)})
    return file.getvalue()


def table() -> np.ndarray:
    """As LLFF writes it: the camera's x down, y right and z backwards, then height, width and focal length."""
    rows = []
    for pose, bounds in zip(POSES, BOUNDS, strict=True):
        right, up, back, centre = pose[:3].T
        matrix = np.stack([-up, right, back, centre, [HEIGHT, WIDTH, FOCAL]], axis=1)
        rows.append(np.concatenate([matrix.ravel(), bounds]))
    return np.array(rows)


def write(root: Path, folder: str = "images", factor: int = 1, numbers: np.ndarray | None = None) -> None:
    (root / folder).mkdir(parents=True)
    for i, name in enumerate(NAMES):
        Image.new("RGB", (WIDTH // factor, HEIGHT // factor), (80 * i, 0, 0)).save(root / folder / name)
    np.save(root / "poses_bounds.npy", table() if numbers is None else numbers)


def test_a_known_scene_comes_back(tmp_path: Path) -> None:
    write(tmp_path / "llff")
    write(tmp_path / "known")
    (tmp_path / "known/poses_bounds.npy").unlink()
    frames = [
        {"file_path": f"images/{name}", "transform_matrix": pose.tolist()}
        for name, pose in zip(NAMES, POSES, strict=True)
    ]
    lens = {"fl_x": FOCAL, "fl_y": FOCAL, "cx": WIDTH / 2, "cy": HEIGHT / 2, "w": WIDTH, "h": HEIGHT}
    (tmp_path / "known/transforms.json").write_text(json.dumps({**lens, "frames": frames}))
    scene, known = load_scene(tmp_path / "llff"), load_scene(tmp_path / "known")
    assert [frame.name for frame in scene.frames] == [f"images/{i}.png" for i in (9, 10, 11)]
    for frame, other in zip(scene.frames, known.frames, strict=True):
        np.testing.assert_allclose(frame.camera.camera_to_world, other.camera.camera_to_world, atol=1e-12)
        assert frame.name == other.name and frame.camera.intrinsics.tolist() == other.camera.intrinsics.tolist()
        assert other.depths is None
    np.testing.assert_allclose([frame.depths for frame in scene.frames], BOUNDS[[2, 0, 1]] * known.unit_scale)
    assert scene.warnings == (
        "there are no seed points: splats will start from random ones, as near and far as poses_bounds.npy says",
    )
    assert not is_unposed(tmp_path / "llff") and scene_fingerprint(scene) != scene_fingerprint(known)
    # masks are no photos
    Image.new("L", (WIDTH, HEIGHT), 255).save(tmp_path / "llff/images/9_mask.jpg")
    assert [frame.mask_path is not None for frame in load_scene(tmp_path / "llff").frames] == [True, False, False]
    refused(difix("pose", tmp_path / "llff"), "has poses already")


def test_smaller_copies_alone(tmp_path: Path) -> None:
    write(tmp_path, "images_4", 4)
    (tmp_path / "images").mkdir()
    Image.new("RGB", (WIDTH, HEIGHT)).save(tmp_path / "images/9.png")  # which pose is its own?
    scene = load_scene(tmp_path)
    assert [frame.name for frame in scene.frames] == [f"images_4/{i}.png" for i in (9, 10, 11)]
    camera = scene.frames[0].camera
    assert (camera.width, camera.height, camera.fx, camera.cx) == (16, 12, FOCAL / 4, 8)
    assert any("images_4" in line for line in scene.warnings)


def test_a_colmap_model_beside_it_is_taken(tmp_path: Path) -> None:
    write(tmp_path)
    model = tmp_path / "sparse/0"
    model.mkdir(parents=True)
    (model / "cameras.txt").write_text(f"1 PINHOLE {WIDTH} {HEIGHT} 70 70 32 24\n")
    (model / "images.txt").write_text("".join(f"{i} 1 0 0 0 {i} 0 0 1 {name}\n\n" for i, name in enumerate(NAMES, 1)))
    scene = load_scene(tmp_path)
    assert scene.frames[0].camera.fx == 70 and scene.frames[0].depths is None


@pytest.mark.parametrize(
    ("numbers", "words"),
    [
        (table()[:2], "has 2 poses.*images/ has 3"),
        (table()[:, :15], "is 3×15.*17 numbers"),
        (table()[0], "is 17, but"),
        (table().astype(str), "no finite number"),
        (np.where(np.arange(17) == 4, 0, table()), "row 0 .*height 0"),
        (np.where(np.arange(17) == 16, 0.1, table()), "depths from 2 to 0.1"),
        (np.where(np.arange(17) == 3, np.nan, table()), "no finite number"),
        (table() * ([-1, 1, 1, 1, 1] * 3 + [1, 1]), "row 0 of"),  # mirrored
    ],
)
def test_arrays_that_are_no_poses(tmp_path: Path, numbers: np.ndarray, words: str) -> None:
    write(tmp_path, numbers=numbers)
    with pytest.raises(InputError, match=f"(?s){words}"):
        load_scene(tmp_path)


@pytest.mark.parametrize(
    "content",
    [b"", b"\x93NUMPY", b"text", b"PK\3\4", pickle.dumps([1]), claiming(10**12), claiming(10**30)],
    ids=["empty", "cut", "text", "zip", "pickle", "claims more", "claims far more"],
)
def test_files_that_are_no_array(tmp_path: Path, content: bytes) -> None:
    write(tmp_path)
    (tmp_path / "poses_bounds.npy").write_bytes(content)
    with pytest.raises(InputError, match=r"poses_bounds.npy cannot be read.*difix pose"):
        load_scene(tmp_path)


def test_without_photos_it_says_so(tmp_path: Path) -> None:
    np.save(tmp_path / "poses_bounds.npy", table())
    with pytest.raises(InputError, match=r"3 poses.*there is no photo"):
        load_scene(tmp_path)


def test_splats_and_rays_begin_where_the_file_says(tmp_path: Path) -> None:
    write(tmp_path)
    scene = load_scene(tmp_path)
    twice = np.diag([2.0, 2.0, 2.0, 1.0])
    for one, factor in ((scene, 1.0), (moved(scene, twice), 2.0)):
        bounds = BOUNDS[[2, 0, 1]] * scene.unit_scale * factor
        for i, (near, far) in enumerate(bounds):
            points, _ = seed_gaussians(one, [i], 200, 0)
            depth = one.frames[i].camera.project(points)[2]
            assert near * 0.999 < depth.min() < near * 1.2 and far / 1.2 < depth.max() < far * 1.001
        extent = measure_extent(one.frames[:2], one.points)
        assert extent is not None
        assert (extent.near, extent.far) == pytest.approx((0.9 * bounds[:2, 0].min(), bounds[:2, 1].max()))
    bare = [replace(frame, depths=None) for frame in scene.frames]
    assert measure_extent(bare, scene.points) is None
