"""Camera paths by name and from nerfstudio's viewer."""

from __future__ import annotations

import json
import math
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from difixcli.errors import InputError
from difixcli.scenes import Camera, Frame, Scene, make_trajectory, pose_distance
from difixcli.scenes.poses import look_at

UP = np.array([0.0, 0.0, 1.0])


def _scene(positions: np.ndarray, targets: np.ndarray, ids: str = "", metric: bool = False) -> Scene:
    frames = []
    for i, (position, target) in enumerate(zip(positions, targets, strict=True)):
        camera = Camera(look_at(position, target, UP), 90.0, 90.0, 48.0, 32.0, 96, 64)
        frames.append(Frame(f"{i}.png", Path(f"{i}.png"), camera, ids[i] if ids else "0", camera.lens))
    return Scene(
        "s", Path(), frames, np.zeros((0, 3)), np.zeros((0, 3)), np.diag([0.25, 0.25, 0.25, 1.0]), metric=metric
    )


def _ring(count: int, arc: float = 2 * np.pi, outwards: bool = False) -> Scene:
    angles = np.linspace(0, arc, count, endpoint=arc < 2 * np.pi)
    positions = np.stack([np.cos(angles), np.sin(angles), 0.2 + 0 * angles], axis=1)
    return _scene(positions, 2 * positions if outwards else 0 * positions)


def _positions(cameras: Any) -> np.ndarray:
    return np.stack([camera.position for camera in cameras])


@pytest.mark.parametrize("kind", ["spiral", "orbit", "interpolate"])
def test_paths_have_the_number_asked_for_and_move_evenly(kind: str) -> None:
    scene = _ring(12)
    assert len(make_trajectory(scene, range(12), kind).cameras) == 120
    path = make_trajectory(scene, [0, 3, 6, 9], f"{kind}:40")
    assert len(path.cameras) == 40 and path.fps == 24 and path.name == f"{kind}-40"
    for camera in path.cameras:
        rotation = camera.camera_to_world[:3, :3]
        np.testing.assert_allclose(rotation @ rotation.T, np.eye(3), atol=1e-9)
        assert (camera.width, camera.height) == (96, 64)
    steps = [pose_distance(a, b) for a, b in pairwise(path.cameras)]
    assert min(steps) > 0 and max(steps) < 3 * np.median(steps)
    lone = make_trajectory(scene, [2], f"{kind}:5")
    assert len(lone.cameras) == 5 and np.isfinite(_positions(lone.cameras)).all()


def test_an_orbit_goes_all_the_way_round_or_stays_where_photos_are() -> None:
    def angles(arc: float, outwards: bool = False) -> np.ndarray:
        path = make_trajectory(_ring(9, arc, outwards), range(9), "orbit:60").cameras
        positions = _positions(path)
        np.testing.assert_allclose(np.linalg.norm(positions[:, :2], axis=1), 1, atol=1e-6)
        np.testing.assert_allclose(positions[:, 2], 0.2)
        facing = np.einsum("ni,ni->n", positions, np.stack([-c.camera_to_world[:3, 2] for c in path]))
        assert (facing > 0).all() if outwards else (facing < 0).all()
        return np.arctan2(positions[:, 1], positions[:, 0])

    for outwards in (False, True):
        whole = np.sort(angles(2 * np.pi, outwards) % (2 * np.pi))
        assert np.diff(whole).max() < 0.2 and whole[-1] - whole[0] > 6
    part = angles(2.0)
    assert part.min() == pytest.approx(0, abs=1e-6) and part.max() == pytest.approx(2, abs=1e-2)


def test_parallel_cameras_have_an_orbit_too() -> None:
    row = np.stack([np.linspace(-1, 1, 5), np.zeros(5), np.zeros(5)], axis=1)
    path = make_trajectory(_scene(row, row + np.eye(3)[1]), range(5), "orbit:20").cameras
    assert all(camera.camera_to_world[1, 2] < -0.5 for camera in path)  # still looking along +y


def test_a_path_through_unordered_photos_goes_from_neighbour_to_neighbour() -> None:
    order = [0, 5, 1, 6, 2, 7, 3, 8, 4]
    along = np.linspace(0, 1, 9)[np.argsort(order)]
    positions = np.stack([along, 0 * along, 0 * along], axis=1)
    scene = _scene(positions, positions + np.eye(3)[1])
    path = _positions(make_trajectory(scene, range(9), "interpolate:30").cameras)
    assert np.linalg.norm(np.diff(path, axis=0), axis=1).sum() == pytest.approx(1, abs=1e-6)
    assert np.linalg.norm(path[0] - path[-1]) == pytest.approx(1)


def test_a_path_through_a_rig_follows_one_camera() -> None:
    y = np.repeat(np.arange(5.0), 2)
    positions = np.stack([np.tile([0.0, 1.0], 5), y, 0 * y], axis=1)[:-1]
    scene = _scene(positions, positions + np.eye(3)[1], ids="ab" * 4 + "a")
    path = _positions(make_trajectory(scene, range(9), "interpolate:30").cameras)
    np.testing.assert_allclose(path[:, 0], 0, atol=1e-9)


def test_a_shift_moves_the_training_cameras_to_the_right_of_travel() -> None:
    row = np.stack([0 * np.arange(5.0), np.linspace(-1, 1, 5), 0 * np.arange(5.0)], axis=1)
    scene = _scene(row, row + 5 * np.eye(3)[1], metric=True)
    for spec, distance in (("shift:2m", 0.5), ("shift:-0.1", -0.2)):
        path = make_trajectory(scene, [0, 2, 4], spec)
        np.testing.assert_allclose(_positions(path.cameras), row[[0, 2, 4]] + [distance, 0, 0], atol=1e-9)
        assert "/" not in path.name and path.name != "shift-"
    with pytest.raises(InputError, match="no metric scale"):
        make_trajectory(_scene(row, row + 5 * np.eye(3)[1]), range(5), "shift:2m")


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ("spirall", "did you mean spiral"),
        ("test", "no trajectory called test"),
        ("spiral:none", "how many"),
        ("orbit:0", "how many"),
        ("spiral:-3", "how many"),
        ("shift", "not a distance"),
        ("shift:0", "moves nothing"),
        ("nowhere.json", "missing"),
    ],
)
def test_paths_that_make_no_sense_are_refused(spec: str, words: str) -> None:
    with pytest.raises(InputError, match=words):
        make_trajectory(_ring(4), range(4), spec)


# The viewer's paths


def _saved(path: Path, **changes: Any) -> Path:
    """A camera path as nerfstudio's viewer writes it: three cameras that look at the origin."""
    poses = [look_at(np.array([np.cos(a), np.sin(a), 0.3]), np.zeros(3), UP) for a in (0.0, 0.1, 0.2)]
    held = {
        "default_fov": 75.0,
        "keyframes": [],
        "camera_type": "perspective",
        "render_height": 1080,
        "render_width": 1920,
        "fps": 30,
        "seconds": 0.1,
        "is_cycle": False,
        "smoothness_value": 0.0,
        "camera_path": [
            {"camera_to_world": pose.flatten().tolist(), "fov": 50.0, "aspect": 1920 / 1080} for pose in poses
        ],
        "crop": None,
    }
    path.write_text(json.dumps({**held, **changes}))
    return path


def test_a_viewers_path_is_what_nerfstudio_reads(tmp_path: Path) -> None:
    from nerfstudio.cameras.camera_paths import get_path_from_json

    path = _saved(tmp_path / "my path.json")
    ours = make_trajectory(_ring(4), range(4), str(path))
    assert ours.fps == 30 and ours.name == "my-path"
    theirs = get_path_from_json(json.loads(path.read_text()))
    assert len(ours.cameras) == 3
    scale = 96 / 1920  # the photos' long side
    for i, camera in enumerate(ours.cameras):
        assert (camera.width, camera.height) == (96, 54)
        np.testing.assert_allclose(camera.camera_to_world[:3], theirs.camera_to_worlds[i].numpy(), atol=1e-6)
        np.testing.assert_allclose(camera.intrinsics[:2], theirs[i].get_intrinsics_matrices()[:2] * scale, rtol=1e-5)
    # a size of its own that is smaller than the photos stays; upright shapes too
    small = _saved(tmp_path / "small.json", render_width=36, render_height=64, fps=None)
    made = make_trajectory(_ring(4), range(4), str(small))
    assert {(c.width, c.height) for c in made.cameras} == {(36, 64)} and made.fps == pytest.approx(30)


def test_broken_paths_are_refused(tmp_path: Path) -> None:
    pose = np.eye(4).flatten().tolist()
    view = {"camera_to_world": pose, "fov": 50.0, "aspect": 1.0}
    for changes, words in [
        ({"camera_path": []}, "holds no camera"),
        ({"camera_path": None}, "no camera path"),
        ({"camera_type": "equirectangular"}, "equirectangular"),
        ({"camera_type": "omnidirectional"}, "omnidirectional"),
        ({"crop": {"crop_scale": [1, 1, 1]}}, "crop"),
        ({"render_width": None}, "render_width is None"),
        ({"render_height": math.nan}, "render_height is nan"),
        ({"fps": 0}, "fps is 0"),
        ({"camera_path": [view, {**view, "camera_to_world": [math.nan, *pose[1:]]}]}, "camera 1 in .* not finite"),
        ({"camera_path": [{**view, "camera_to_world": pose[:12]}]}, "not 16 numbers"),
        ({"camera_path": [{**view, "camera_to_world": [2 * p for p in pose]}]}, "not rigid"),
        ({"camera_path": [{"fov": 50.0}]}, "no camera_to_world"),
        ({"camera_path": [{"camera_to_world": pose}]}, "fov is None"),
        ({"camera_path": [{**view, "fov": math.nan}]}, "fov is nan"),
        ({"camera_path": [{**view, "fov": 180.0}]}, "fov is 180"),
    ]:
        path = _saved(tmp_path / "path.json", **changes)
        with pytest.raises(InputError, match=words):
            make_trajectory(_ring(4), range(4), str(path))
    (tmp_path / "path.json").write_text("{")
    with pytest.raises(InputError, match="not valid JSON"):
        make_trajectory(_ring(4), range(4), str(tmp_path / "path.json"))
