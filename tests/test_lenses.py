"""Lenses of both formats: their formulas against COLMAP's, OpenCV's and nerfstudio's own, and what is undistorted."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pycolmap
import pytest
import torch
from nerfstudio.cameras.camera_utils import fisheye624_project, radial_and_tangential_undistort
from PIL import Image

from difixcli.errors import InputError
from difixcli.scenes import load_mask, load_photo, load_scene, scene_fingerprint
from difixcli.scenes.lenses import KINDS, UNFILLED, Lens, colmap_lens, pinhole, project, sampling_maps, view_limit
from difixcli.scenes.poses import look_at

WIDTH, HEIGHT = 160, 120
# Parameters of a real-looking lens for each of COLMAP's models.
PARAMS: dict[str, list[float]] = {
    "SIMPLE_PINHOLE": [70, 79, 61],
    "PINHOLE": [70, 72, 79, 61],
    "SIMPLE_RADIAL": [70, 79, 61, 0.03],
    "RADIAL": [70, 79, 61, -0.04, 0.01],
    "OPENCV": [70, 72, 79, 61, -0.04, 0.01, 0.001, -0.002],
    "FULL_OPENCV": [70, 72, 79, 61, -0.04, 0.01, 0.001, -0.002, 0.01, 0.02, 0.01, 0.001],
    "SIMPLE_FISHEYE": [50, 79, 61],
    "FISHEYE": [50, 52, 79, 61],
    "SIMPLE_RADIAL_FISHEYE": [50, 79, 61, -0.05],
    "RADIAL_FISHEYE": [50, 79, 61, -0.05, 0.01],
    "OPENCV_FISHEYE": [50, 52, 79, 61, 0.05, -0.02, 0.01, -0.002],
    "THIN_PRISM_FISHEYE": [50, 52, 79, 61, 0.05, -0.02, 0.003, -0.002, 0.01, -0.002, 0.004, -0.003],
    "RAD_TAN_THIN_PRISM_FISHEYE": [
        *(50, 52, 79, 61, 0.05, -0.02, 0.01, -0.002, 0.001, -1e-4),
        *(0.003, -0.002, 0.004, -0.003, 0.002, 0.001),
    ],
    "FOV": [45, 46, 79, 61, 0.95],
    "SIMPLE_DIVISION": [70, 79, 61, -0.2],
    "DIVISION": [70, 72, 79, 61, -0.2],
    "EUCM": [60, 62, 79, 61, 0.6, 1.1],
}
INSTALLED = [name for name in pycolmap.CameraModelId.__members__ if name not in ("INVALID", "EQUIRECTANGULAR")]


def refused(*words: str) -> Any:
    return pytest.raises(InputError, match="(?s)" + ".*".join(words))


def lens_of(model: str) -> Lens:
    return colmap_lens(model, PARAMS[model], WIDTH, HEIGHT, "a.png")


def colmap_camera(model: str, params: Sequence[float]) -> pycolmap.Camera:
    return pycolmap.Camera(model=model, width=WIDTH, height=HEIGHT, params=params)


def plane_grid(degrees: float) -> tuple[np.ndarray, np.ndarray]:
    """Rays all around the axis, up to so far from it."""
    away = np.tan(np.radians(np.linspace(0, degrees, 41)))
    around = np.linspace(0, 2 * np.pi, 24, endpoint=False)[:, None]
    return (away * np.cos(around)).ravel(), (away * np.sin(around)).ravel()


# Formulas


@pytest.mark.parametrize("model", INSTALLED)
def test_every_model_of_colmap_projects_as_colmap_does(model: str) -> None:
    u, v = plane_grid(60)
    theirs = colmap_camera(model, PARAMS[model]).img_from_cam(np.stack([u, v, np.ones_like(u)], axis=1))
    lens = lens_of(model)
    assert view_limit(lens.kind, lens.distortion) > math.radians(60)
    np.testing.assert_allclose(np.stack(project(lens, u, v), axis=1), theirs, atol=1e-6)


def test_opencv_fisheye_projects_as_opencv_does() -> None:
    u, v = plane_grid(80)
    lens = lens_of("OPENCV_FISHEYE")
    matrix = np.array([[lens.fx, 0, 79], [0, lens.fy, 61], [0, 0, 1.0]])
    terms = np.array(PARAMS["OPENCV_FISHEYE"][4:])
    rays = np.stack([u, v, np.ones_like(u)], axis=1)[None]
    theirs, _ = cv2.fisheye.projectPoints(rays, np.zeros(3), np.zeros(3), matrix, terms)
    np.testing.assert_allclose(np.stack(project(lens, u, v), axis=1), theirs[0], atol=1e-6)


def test_fisheye624_projects_as_nerfstudio_does() -> None:
    u, v = plane_grid(70)
    rays = torch.tensor(np.stack([u, v, np.ones_like(u)], axis=1))[None]
    theirs = fisheye624_project(rays, torch.tensor(PARAMS["RAD_TAN_THIN_PRISM_FISHEYE"], dtype=torch.float64)[None])
    ours = project(lens_of("RAD_TAN_THIN_PRISM_FISHEYE"), u, v)
    np.testing.assert_allclose(np.stack(ours, axis=1), theirs[0], atol=1e-6)


def test_fourth_radial_power_is_undone_by_nerfstudio() -> None:
    terms = (-0.08, 0.03, -0.01, 0.02, 0.001, -0.002)
    lens = Lens(90.0, 91.0, 79.0, 61.0, WIDTH, HEIGHT, "four_radial", terms)
    map_x, map_y = sampling_maps(lens)
    filled = map_x != UNFILLED
    assert filled.mean() > 0.95
    seen = torch.tensor(np.stack([(map_x + 0.5 - 79) / 90, (map_y + 0.5 - 61) / 91], axis=-1)[filled]).double()
    back = radial_and_tangential_undistort(seen, torch.tensor(terms, dtype=torch.float64), eps=1e-12, max_iterations=50)
    y, x = np.mgrid[:HEIGHT, :WIDTH] + 0.5
    ours = np.stack([(x - 79), (y - 61)], axis=-1)[filled]
    np.testing.assert_allclose(back.numpy() * [90, 91], ours, atol=0.01)


@pytest.mark.parametrize("model", PARAMS)
def test_maps_send_the_pixels_of_the_pinhole_to_the_photo(model: str) -> None:
    lens = lens_of(model)
    fx, fy, cx, cy = pinhole(lens)
    y, x = np.mgrid[:HEIGHT, :WIDTH] + 0.5
    map_x, map_y = sampling_maps(lens)
    assert map_x.dtype == np.float32 and map_x.shape == (HEIGHT, WIDTH)
    there = project(lens, (x - cx) / fx, (y - cy) / fy)
    np.testing.assert_allclose(map_x + 0.5, np.nan_to_num(there[0], nan=UNFILLED + 0.5), atol=1e-3)
    np.testing.assert_allclose(map_y + 0.5, np.nan_to_num(there[1], nan=UNFILLED + 0.5), atol=1e-3)


@pytest.mark.parametrize("model", PARAMS)
def test_pinhole_keeps_the_resolution_at_the_centre(model: str) -> None:
    lens = replace(lens_of(model), width=100, height=80)
    step = 1e-4
    right, _ = project(lens, np.array([-step, step]), np.zeros(2))
    _, down = project(lens, np.zeros(2), np.array([-step, step]))
    fx, fy, *centre = pinhole(lens)
    np.testing.assert_allclose([fx, fy], [np.diff(right)[0] / 2 / step, np.diff(down)[0] / 2 / step], rtol=1e-4)
    assert tuple(centre) == (79, 61)


def test_pinhole_of_a_very_wide_lens_shows_110_degrees() -> None:
    whole = Lens(WIDTH / math.radians(200), WIDTH / math.radians(190), None, None, WIDTH, HEIGHT, "fisheye")
    fx, fy, *_ = pinhole(whole)
    assert 2 * math.degrees(math.atan(WIDTH / 2 / fx)) == pytest.approx(110)
    assert fy / fx == pytest.approx(200 / 190)


# What a lens does not see


@pytest.mark.parametrize(("kind", "k1", "turn"), [("fisheye", -0.4, "angle"), ("perspective", -0.5, "tangent")])
def test_pixels_beyond_the_turn_of_a_polynomial_are_unfilled(kind: str, k1: float, turn: str) -> None:
    distortion = (k1, *[0.0] * (len(KINDS[kind]) - 1))
    # r + k1·r³ stops rising at r² = −1 / (3·k1)
    radius = math.sqrt(-1 / (3 * k1))
    angle = radius if turn == "angle" else math.atan(radius)
    assert view_limit(kind, distortion) == pytest.approx(angle, abs=math.radians(0.02))
    lens = Lens(60.0, 60.0, None, None, WIDTH, HEIGHT, kind, distortion)
    y, x = np.mgrid[:HEIGHT, :WIDTH] + 0.5
    off_axis = np.arctan(np.hypot(x - WIDTH / 2, y - HEIGHT / 2) / pinhole(lens)[0])
    unfilled = sampling_maps(lens)[0] == UNFILLED
    assert unfilled[off_axis > angle + 0.002].all() and not unfilled[off_axis < angle - 0.002].any()
    assert 0.05 < unfilled.mean() < 0.9


# Scenes


def content(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    """(…, 3) colours in [0, 1] that depend smoothly on a ray's direction."""
    long = np.sqrt(u * u + v * v + 1)
    x, y, z = u / long, v / long, 1 / long
    return np.stack([0.5 + 0.4 * np.sin(5 * x + 1), 0.5 + 0.4 * np.cos(4 * y - x), 0.2 + 0.7 * z], axis=-1)


def drawn(model: str) -> np.ndarray:
    """(HEIGHT, WIDTH, 3) uint8: what a lens sees, from COLMAP's own inverse of it; black at 89° and beyond."""
    camera = colmap_camera(model, PARAMS[model])
    y, x = np.mgrid[:HEIGHT, :WIDTH] + 0.5
    plane = camera.cam_from_img(np.stack([x.ravel(), y.ravel()], axis=1))
    plane = np.where(np.isfinite(plane), plane, 1e6).reshape(HEIGHT, WIDTH, 2)
    seen = np.hypot(plane[..., 0], plane[..., 1]) < math.tan(math.radians(89))
    return np.where(seen[..., None], content(plane[..., 0], plane[..., 1]) * 255, 0).round().astype(np.uint8)


def write_scene(folder: Path, photo: np.ndarray | None = None, **meta: Any) -> Path:
    """Three frames that show `photo` (grey by default) as a transforms.json with the keys of `meta`."""
    pixels = np.full((HEIGHT, WIDTH, 3), 128, np.uint8) if photo is None else photo
    (folder / "images").mkdir(parents=True, exist_ok=True)
    frames = []
    for i in range(3):
        Image.fromarray(pixels).save(folder / f"images/{i}.png")
        pose = look_at(np.array([3.0, i, 1]), np.zeros(3), np.array([0, 0, 1.0]))
        frames.append({"file_path": f"images/{i}.png", "transform_matrix": pose.tolist()})
    data = {"fl_x": 50.0, "fl_y": 52.0, "cx": 79.0, "cy": 61.0, "w": WIDTH, "h": HEIGHT, **meta, "frames": frames}
    (folder / "transforms.json").write_text(json.dumps(data))
    return folder


def write_colmap(folder: Path, photo: np.ndarray, model: str, params: Sequence[float]) -> Path:
    """Three frames that show `photo` as a COLMAP model."""
    (folder / "images").mkdir(parents=True)
    (folder / "sparse/0").mkdir(parents=True)
    numbers = " ".join(map(repr, params))
    (folder / "sparse/0/cameras.txt").write_text(f"1 {model} {WIDTH} {HEIGHT} {numbers}\n")
    lines = []
    for i in range(3):
        Image.fromarray(photo).save(folder / f"images/{i}.png")
        lines += [f"{i + 1} 1 0 0 0 {i} 0 1 1 {i}.png", ""]
    (folder / "sparse/0/images.txt").write_text("\n".join(lines) + "\n")
    (folder / "sparse/0/points3D.txt").write_text("")
    return folder


def as_transforms(folder: Path, photo: np.ndarray, model: str) -> Path:
    params = PARAMS[model]
    terms = dict(zip(("k1", "k2", "k3", "k4"), params[4:], strict=True))
    return write_scene(folder, photo, camera_model=model, **terms)


def as_colmap(folder: Path, photo: np.ndarray, model: str) -> Path:
    return write_colmap(folder, photo, model, PARAMS[model])


@pytest.mark.parametrize(
    ("write", "model"),
    [(as_transforms, "OPENCV_FISHEYE"), *((as_colmap, model) for model in INSTALLED if "PINHOLE" not in model)],
)
def test_photo_through_any_lens_comes_out_as_the_pinhole_sees_it(
    tmp_path: Path, write: Callable[[Path, np.ndarray, str], Path], model: str
) -> None:
    frame = load_scene(write(tmp_path / "scene", drawn(model), model)).frames[0]
    camera = frame.camera
    y, x = np.mgrid[:HEIGHT, :WIDTH] + 0.5
    u, v = (x - camera.cx) / camera.fx, (y - camera.cy) / camera.fy
    rays = np.stack([u, v, np.ones_like(u)], axis=-1).reshape(-1, 3)
    place = colmap_camera(model, PARAMS[model]).img_from_cam(rays).reshape(HEIGHT, WIDTH, 2)
    inside = ((place >= 0.5) & (place <= [WIDTH - 0.5, HEIGHT - 0.5])).all(axis=2)
    mask = load_mask(frame)
    mask = np.ones((HEIGHT, WIDTH), bool) if mask is None else mask
    # what lies less than a sixteenth of a pixel outside the photo may round to its rim
    near = np.abs(place - np.clip(place, 0.5, [WIDTH - 0.5, HEIGHT - 0.5])).max(axis=2) < 1 / 16
    assert (mask == inside)[~near | inside].mean() > 0.999
    assert mask.mean() > 0.6
    error = np.abs(load_photo(frame) - content(u, v))[mask]
    assert error.max() < 0.02
    half_a_pixel = np.abs(content(u + 0.5 / camera.fx, v) - content(u, v))[mask]
    assert error.mean() < half_a_pixel.mean() / 3


def test_is_fisheye_and_lower_case_and_lists_say_the_same(tmp_path: Path) -> None:
    terms = {"k1": 0.05, "k2": -0.02, "k3": 0.01, "k4": -0.002}
    ways: list[dict[str, Any]] = [
        {"camera_model": "OPENCV_FISHEYE", **terms},
        {"camera_model": "opencv_fisheye", **terms},
        {"is_fisheye": True, **terms},
        {"camera_model": "OPENCV_FISHEYE", "distortion_params": list(terms.values())},
        {"camera_model": "OPENCV_FISHEYE", "distortion_params": [*terms.values(), 0.0, 0.0]},
    ]
    lenses = {load_scene(write_scene(tmp_path / str(i), **way)).frames[0].lens for i, way in enumerate(ways)}
    assert lenses == {lens_of("OPENCV_FISHEYE")}


def test_listed_distortion_has_the_order_of_nerfstudio(tmp_path: Path) -> None:
    named = {"k1": 0.1, "k2": 0.02, "k3": 0.003, "k4": 0.0, "p1": 0.004, "p2": 0.005}
    by_name = load_scene(write_scene(tmp_path / "a", **named)).frames[0].lens
    listed = load_scene(write_scene(tmp_path / "b", distortion_params=list(named.values()))).frames[0].lens
    assert by_name == listed
    assert dict(zip(KINDS["perspective"], listed.distortion, strict=True)) == {**named, "k5": 0, "k6": 0}
    fourth = load_scene(write_scene(tmp_path / "c", distortion_params=[0.1, 0.02, 0.003, 0.01])).frames[0].lens
    assert (fourth.kind, fourth.distortion) == ("four_radial", (0.1, 0.02, 0.003, 0.01, 0, 0))
    rational = load_scene(write_scene(tmp_path / "d", camera_model="FULL_OPENCV", k4=0.01, k5=0.02)).frames[0].lens
    assert (rational.kind, rational.distortion) == ("perspective", (0, 0, 0, 0, 0, 0.01, 0.02, 0))
    numbers = PARAMS["RAD_TAN_THIN_PRISM_FISHEYE"][4:]
    aria = load_scene(write_scene(tmp_path / "e", camera_model="FISHEYE624", distortion_params=numbers))
    assert aria.frames[0].lens == lens_of("RAD_TAN_THIN_PRISM_FISHEYE")


def test_nothing_beyond_the_image_circle_counts(tmp_path: Path) -> None:
    scene = load_scene(write_scene(tmp_path, camera_model="OPENCV_FISHEYE", fisheye_crop_radius=40), 80)
    frame = scene.frames[0]
    mask = load_mask(frame)
    assert mask is not None
    y, x = np.mgrid[:60, :80] + 0.5
    u, v = (x - frame.camera.cx) / frame.camera.fx, (y - frame.camera.cy) / frame.camera.fy
    away = np.hypot(*(np.stack(project(frame.lens, u, v)) - np.array([80, 60])[:, None, None]))
    # a pixel at half the size is made of four, and each of those of four in the photo
    assert mask[away < 37].all() and not mask[away > 41].any() and 0.1 < mask.mean() < 0.9


def test_lens_is_part_of_what_a_scene_is(tmp_path: Path) -> None:
    kinds: list[dict[str, Any]] = [{}, {"camera_model": "FISHEYE"}, {"camera_model": "FISHEYE", "k1": 0.1}, {"k4": 0.1}]
    kinds.append({"camera_model": "FISHEYE", "fisheye_crop_radius": 40})
    seen = [scene_fingerprint(load_scene(write_scene(tmp_path / "s", **kind))) for kind in kinds]
    assert len(set(seen)) == len(kinds)
    assert scene_fingerprint(load_scene(tmp_path / "s", 40)) == seen[-1]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"camera_model": "EQUIRECTANGULAR"}, ("EQUIRECTANGULAR", "ns-process-data images --camera-type")),
        ({"camera_model": "VR180_L"}, ("VR180_L", "0.png", "undistort")),
        ({"k5": 0.1}, ("k5", "FULL_OPENCV")),
        ({"camera_model": "OPENCV_FISHEYE", "k6": 0.1}, ("k6", "OPENCV_FISHEYE")),
        ({"distortion_params": [0.0] * 8}, ("distortion_params", "at most 6")),
        ({"distortion_params": "none"}, ("distortion_params", "list")),
        ({"distortion_params": ["wide"]}, ("k1", "wide")),
        ({"camera_model": "FISHEYE", "fisheye_crop_radius": 0}, ("fisheye_crop_radius", "leave it out")),
        ({"camera_model": "FOV", "omega": 4}, ("omega", "field of view")),
        ({"camera_model": "EUCM", "alpha": 0.5}, ("beta", "positive")),
    ],
)
def test_lenses_that_are_none_in_a_transforms_json(
    tmp_path: Path, change: dict[str, Any], words: Sequence[str]
) -> None:
    with refused(*words):
        load_scene(write_scene(tmp_path, **change))


def test_lenses_that_are_none_in_a_colmap_model(tmp_path: Path) -> None:
    photo = np.full((HEIGHT, WIDTH, 3), 128, np.uint8)
    with refused("PINHOLE", "no positive focal length"):
        load_scene(write_colmap(tmp_path / "a", photo, "PINHOLE", [0.0, 50, 80, 60]))
    with refused("EQUIRECTANGULAR", "perspective crops"):
        colmap_lens("EQUIRECTANGULAR", [WIDTH, HEIGHT], WIDTH, HEIGHT, "a.png")
    with refused("MAGIC", "a.png", "undistort"):
        colmap_lens("MAGIC", [1, 2, 3], WIDTH, HEIGHT, "a.png")
