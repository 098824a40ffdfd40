"""CO3D's own folders as scenes, written here as they are published."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from commands import difix, refused
from PIL import Image

from difixcli.errors import InputError
from difixcli.scenes import load_mask, load_scene, make_split
from difixcli.scenes.ply import write_points

SEQUENCE = "189_20393_38136"


def around(count: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """R and T of PyTorch3D cameras on a ring that look at the origin: X_cam = X·R + T, x left, y up, z ahead."""
    made = []
    for angle in 2 * np.pi * np.arange(count) / count:
        position = np.array([4 * np.sin(angle), 1.0, -4 * np.cos(angle)])
        ahead = -position / np.linalg.norm(position)
        left = np.cross([0, 1, 0], ahead)
        left /= np.linalg.norm(left)
        rotation = np.stack([left, np.cross(ahead, left), ahead], axis=1)
        made.append((rotation, -position @ rotation))
    return made


def seen_at(points: np.ndarray, view: dict, width: int, height: int) -> tuple[np.ndarray, np.ndarray]:
    """Pixels (N, 2) and depths (N,) of points by PyTorch3D's own words: NDC (f·X/Z + p, f·Y/Z + p), +1 at the left and
    upper border (of the short side if isotropic, of each axis' own else), pixels counted from the upper left corner."""
    local = points @ np.array(view["R"]) + np.array(view["T"])
    ndc = np.array(view["focal_length"]) * local[:, :2] / local[:, 2:] + np.array(view["principal_point"])
    short = min(width, height)
    reach = (
        np.array([width / short, height / short]) if view.get("intrinsics_format") == "ndc_isotropic" else np.ones(2)
    )
    return (reach - ndc) / (2 * reach) * [width, height], local[:, 2]


def write_co3d(category: Path, count: int = 36, width: int = 96, height: int = 64, kind: str | None = "ndc_isotropic"):
    """A category with one sequence: a ball of points, photos that show a disc, its masks; the viewpoints by name."""
    folder = category / SEQUENCE
    (folder / "images").mkdir(parents=True)
    (folder / "masks").mkdir()
    rng = np.random.default_rng(0)
    points = rng.normal(size=(3000, 3))
    points /= np.linalg.norm(points, axis=1)[:, None]
    entries, views = [], {}
    for number, (rotation, shift) in enumerate(around(count), start=1):
        view = {
            "R": rotation.tolist(),
            "T": shift.tolist(),
            "focal_length": [2.0, 2.1],
            "principal_point": [0.11, -0.07],
        }
        if kind is not None:
            view["intrinsics_format"] = kind
        pixels, _ = seen_at(points, view, width, height)
        middle = pixels.mean(axis=0)
        y, x = np.mgrid[:height, :width] + 0.5
        far = np.hypot(x - middle[0], y - middle[1]) / np.ptp(pixels[:, 1]) * 2
        probability = (255 * np.clip(1.6 - far, 0, 1)).astype(np.uint8)
        name = f"frame{number:06d}"
        photo = np.where(probability[..., None] > 0, [200, 120, 60], 30).astype(np.uint8)
        Image.fromarray(photo).save(folder / "images" / f"{name}.jpg", quality=95)
        Image.fromarray(probability).save(folder / "masks" / f"{name}.png")
        base = f"{category.name}/{SEQUENCE}"
        entries.append(
            {
                "sequence_name": SEQUENCE,
                "frame_number": number,
                "image": {"path": f"{base}/images/{name}.jpg", "size": [height, width]},
                "mask": {"path": f"{base}/masks/{name}.png", "mass": 1.0},
                "viewpoint": view,
            }
        )
        views[f"images/{name}.jpg"] = view
    write_points(folder / "pointcloud.ply", points, np.full((3000, 3), 90, np.uint8))
    annotate(category, entries)
    return entries, views, points


def annotate(category: Path, entries: list) -> None:
    other = {"sequence_name": "110_13051_23361", "image": {"path": "x", "size": [1, 1]}}
    with gzip.open(category / "frame_annotations.jgz", "wt", encoding="utf-8") as file:
        json.dump([other, *entries], file)
    with gzip.open(category / "sequence_annotations.jgz", "wt", encoding="utf-8") as file:
        json.dump([{"sequence_name": SEQUENCE, "category": category.name}], file)


@pytest.mark.parametrize("kind", ["ndc_isotropic", "ndc_norm_image_bounds", None])
@pytest.mark.parametrize("shape", [(96, 64), (64, 96)])
def test_points_are_where_pytorch3d_projects_them(tmp_path: Path, kind: str | None, shape: tuple[int, int]) -> None:
    width, height = shape
    _, views, points = write_co3d(tmp_path / "apple", 8, width, height, kind)
    scene = load_scene(tmp_path / "apple" / SEQUENCE)
    assert len(scene.frames) == 8 and len(scene.points) == 3000 and not scene.warnings
    moved = points @ scene.source_to_world[:3, :3].T + scene.source_to_world[:3, 3]
    np.testing.assert_allclose(scene.points, moved, atol=1e-5)
    for frame in scene.frames:
        assert (frame.camera.width, frame.camera.height) == shape
        pixels, depth = seen_at(points, views[frame.name], width, height)
        x, y, z = frame.camera.project(scene.points.astype(np.float64))
        np.testing.assert_allclose(np.stack([x, y], axis=1), pixels, atol=1e-3)
        np.testing.assert_allclose(z, depth * scene.unit_scale, rtol=1e-4)
        # and back
        again = frame.camera.unproject(pixels[:, 0], pixels[:, 1], depth * scene.unit_scale)
        np.testing.assert_allclose(again, scene.points, atol=1e-4)


def test_masks_and_who_saw_the_points(tmp_path: Path) -> None:
    _, views, points = write_co3d(tmp_path / "apple")
    scene = load_scene(tmp_path / "apple" / SEQUENCE)
    mask = load_mask(scene.frames[3])
    assert mask is not None and 0.05 < mask.mean() < 0.8
    assert scene.tracks is not None
    # a frame saw the near half of the ball and not the far one
    for number in (0, 7):
        view = views[scene.frames[number].name]
        _, depth = seen_at(points, view, 96, 64)
        saw = scene.tracks.counts([number]) == 1
        middle = np.linalg.norm(np.array(view["T"]))
        assert saw[depth < middle - 0.6].mean() > 0.9 and saw[depth > middle + 0.3].mean() < 0.1
    split = make_split(scene, "co3d:2")
    known = scene.known_to(split.train)
    assert 0 < len(known.points) < 0.6 * len(scene.points)
    assert len(split.train) == 2 and len(split.test) == 30


def test_annotations_without_masks_and_points_and_of_a_moved_category(tmp_path: Path) -> None:
    entries, _, _ = write_co3d(tmp_path / "apple", 6)
    for entry in entries:
        entry["mask"] = None
    annotate(tmp_path / "apple", entries)
    moved = (tmp_path / "apple").rename(tmp_path / "fruit")
    (moved / SEQUENCE / "pointcloud.ply").unlink()
    scene = load_scene(moved / SEQUENCE)
    assert len(scene.frames) == 6 and load_mask(scene.frames[0]) is None and scene.tracks is None


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda e: e[2]["viewpoint"].pop("R"), ("frame000003.jpg", "viewpoint")),
        (lambda e: e[0]["viewpoint"].update(R=[[1, 0, 0], [0, 2, 0], [0, 0, 1]]), ("frame000001.jpg", "not rigid")),
        (lambda e: e[0]["viewpoint"].update(focal_length=[0, 1]), ("frame000001.jpg", "focal length")),
        (lambda e: e[1]["viewpoint"].update(intrinsics_format="pixels"), ("'pixels'", "ndc_isotropic")),
        (lambda e: e[1]["image"].update(size=[64]), ("frame000002.jpg", "size")),
        (lambda e: e[1].pop("image"), ("names no image",)),
        (lambda e: [one.update(sequence_name="189_20393_38137") for one in e], ("did you mean 189_20393_38137",)),
    ],
)
def test_broken_annotations_are_named(tmp_path: Path, spoil: Callable, words: tuple[str, ...]) -> None:
    entries, _, _ = write_co3d(tmp_path / "apple", 6)
    spoil(entries)
    annotate(tmp_path / "apple", entries)
    refused(difix("distill", tmp_path / "apple" / SEQUENCE, "--device", "cpu"), *words)


def test_a_category_is_no_scene(tmp_path: Path) -> None:
    write_co3d(tmp_path / "apple", 6)
    refused(difix("distill", tmp_path / "apple", "--device", "cpu"), "category of CO3D", "folder of one of them")


def test_annotations_that_are_no_archive(tmp_path: Path) -> None:
    write_co3d(tmp_path / "apple", 6)
    (tmp_path / "apple" / "frame_annotations.jgz").write_bytes(b"{}")
    with pytest.raises(InputError, match="gzipped JSON"):
        load_scene(tmp_path / "apple" / SEQUENCE)
    with gzip.open(tmp_path / "apple" / "frame_annotations.jgz", "wt") as file:
        file.write("{}")
    with pytest.raises(InputError, match="no list of frames"):
        load_scene(tmp_path / "apple" / SEQUENCE)
