"""Camera paths by name and from nerfstudio's viewer."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from difixcli.errors import InputError
from difixcli.scenes import Camera, Frame, Scene, make_trajectory, pose_distance
from difixcli.scenes.poses import apply_similarity, look_at
from difixcli.scenes.ring import around
from difixcli.scenes.trajectories import blend_poses, path_world_note

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


def test_photos_of_several_shapes_make_a_film_whose_pixels_are_square() -> None:
    """A phone that was turned: the same lens in two shapes."""
    scene = _ring(6)
    turned = [
        replace(frame, camera=replace(frame.camera, cx=32.0, cy=48.0, width=64, height=96)) if i in (0, 3) else frame
        for i, frame in enumerate(scene.frames)
    ]
    scene = replace(scene, frames=turned)
    for kind in ("interpolate", "spiral"):
        for camera in make_trajectory(scene, range(6), f"{kind}:30").cameras:
            assert camera.fx == pytest.approx(90) and camera.fy == pytest.approx(90)
            assert (camera.cx, camera.cy) == pytest.approx((camera.width / 2, camera.height / 2))
    cameras = make_trajectory(scene, range(6), "interpolate:30").cameras
    assert {(camera.width, camera.height) for camera in cameras} == {(96, 64)}  # as most of them are
    made = around([frame.camera for frame in turned], 5)
    assert all(one.fx == pytest.approx(90) and (one.width, one.height) == (96, 64) for one in made)
    # the same view at another size, to a pixel that was rounded
    wide = scene.frames[1].camera
    assert vars(wide.reshaped(193, 128)) == vars(wide.resized(193, 128))
    assert vars(wide.reshaped(48, 32)) == vars(wide.resized(48, 32))


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
        ("orbit:0", "asks for 0 cameras"),
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


@pytest.mark.parametrize(
    ("tension", "count", "closed"), [(0.0, 5, False), (0.4, 3, False), (0.0, 5, True), (0.4, 3, True), (0.0, 2, True)]
)
def test_key_frames_alone_are_interpolated_as_the_viewer_does(
    tmp_path: Path, tension: float, count: int, closed: bool
) -> None:
    from unittest.mock import MagicMock

    import viser.transforms as tf
    from nerfstudio.viewer.render_panel import CameraPath, Keyframe

    rng = np.random.default_rng(3)
    theirs = CameraPath(MagicMock(), MagicMock())  # its server draws, which is not asked for
    theirs.loop, theirs.tension, theirs.framerate = closed, tension, 12.0
    theirs.default_fov, theirs.default_transition_sec = np.deg2rad(60), 0.75
    keyframes = []
    for i in range(count):
        pose = look_at(2 * UP + rng.uniform(-1, 1, 3), rng.uniform(-0.5, 0.5, 3), UP)
        fov, seconds = 40.0 + 15 * i, (0.4 + 0.7 * i if i % 2 == 1 else None)
        keyframes.append(
            {
                "matrix": pose.flatten().tolist(),
                "fov": fov,
                "aspect": 0.5625,
                "override_transition_enabled": seconds is not None,
                "override_transition_sec": seconds,
            }
        )
        turned = tf.SO3.from_matrix(pose[:3, :3]) @ tf.SO3.from_x_radians(np.pi)
        told = Keyframe(
            10 * pose[:3, 3], turned.wxyz, True, np.deg2rad(fov), False, 0.0, 0.5625, seconds is not None, seconds
        )
        theirs.add_camera(told)
    theirs.update_spline()
    path = tmp_path / "path.json"
    held = {
        "default_fov": 60.0,
        "default_transition_sec": 0.75,
        "keyframes": keyframes,
        "camera_type": "perspective",
        "fps": 12.0,
        "is_cycle": closed,
        "smoothness_value": tension,
    }
    path.write_text(json.dumps(held))
    made = make_trajectory(_ring(4), range(4), str(path))
    assert made.fps == 12 and len(made.cameras) == int(12 * theirs.compute_duration())
    for i, camera in enumerate(made.cameras):
        pose, fov = theirs.interpolate_pose_and_fov_rad(i / len(made.cameras))
        rotation = (pose.rotation() @ tf.SO3.from_x_radians(np.pi)).as_matrix()
        np.testing.assert_allclose(camera.position, pose.translation() / 10, atol=1e-9)
        np.testing.assert_allclose(camera.camera_to_world[:3, :3], rotation, atol=1e-7)
        # no render size: the photos' long side in the cameras' shape, here upright
        assert (camera.width, camera.height) == (54, 96)
        assert 2 * np.arctan(camera.height / 2 / camera.fy) == pytest.approx(fov, abs=1e-9)
        assert camera.fx == camera.fy and (camera.cx, camera.cy) == (27, 48)
    wanted = np.array(keyframes[0]["matrix"]).reshape(4, 4)
    np.testing.assert_allclose(made.cameras[0].camera_to_world, wanted, atol=1e-9)


def test_two_key_frames_make_an_even_way(tmp_path: Path) -> None:
    """nerfstudio's viewer fails on it."""
    ends = _ring(2, 1.0).frames
    keyframes = [
        {"matrix": end.camera.camera_to_world.flatten().tolist(), "fov": fov, "aspect": 1.5}
        for end, fov in zip(ends, (30.0, 50.0), strict=True)
    ]
    path = tmp_path / "path.json"
    path.write_text(json.dumps({"keyframes": keyframes, "default_transition_sec": 2.0, "fps": 2}))
    made = make_trajectory(_ring(4), range(4), str(path)).cameras
    assert len(made) == 4 and (made[0].width, made[0].height) == (96, 64)
    for i, camera in enumerate(made):
        wanted = blend_poses(ends[0].camera.camera_to_world, ends[1].camera.camera_to_world, i / 4)
        np.testing.assert_allclose(camera.camera_to_world, wanted, atol=1e-9)
        assert np.rad2deg(2 * np.arctan(32 / camera.fy)) == pytest.approx(30 + 5 * i)


def test_an_upright_path_with_a_lens_for_each_camera_is_what_nerfstudio_reads(tmp_path: Path) -> None:
    from nerfstudio.cameras.camera_paths import get_path_from_json

    path = _saved(tmp_path / "path.json", render_width=1080, render_height=1920)
    held = json.loads(path.read_text())
    for entry, fov in zip(held["camera_path"], (30.0, 60.0, 90.0), strict=True):
        entry["fov"] = fov
    path.write_text(json.dumps(held))
    theirs = get_path_from_json(held)
    made = make_trajectory(_ring(4), range(4), str(path)).cameras
    for i, (camera, fov) in enumerate(zip(made, (30.0, 60.0, 90.0), strict=True)):
        assert (camera.width, camera.height) == (54, 96)
        assert np.rad2deg(2 * np.arctan(48 / camera.fy)) == pytest.approx(fov)
        np.testing.assert_allclose(camera.intrinsics[:2], theirs[i].get_intrinsics_matrices()[:2] / 20, rtol=1e-5)
    del held["render_width"], held["render_height"], held["camera_path"][0]["aspect"]
    path.write_text(json.dumps(held))
    with pytest.raises(InputError, match="aspect is None"):
        make_trajectory(_ring(4), range(4), str(path))


def _told(scene: Scene, applied: np.ndarray) -> Scene:
    """The scene as if its file's world were another, and had gone through `applied` before."""
    turn = np.eye(4)
    turn[:3, :3] = 0.3 * look_at(np.array([1.0, 2, 3]), np.zeros(3), UP)[:3, :3]
    turn[:3, 3] = [0.1, -0.4, 0.2]
    return replace(scene, source_to_world=turn, applied=applied)


@pytest.mark.parametrize("where", [".", "camera_paths", "scene/camera_paths"])
def test_a_path_of_another_runs_viewer_is_brought_into_the_scenes_world(tmp_path: Path, where: str) -> None:
    import torch
    from nerfstudio.data.dataparsers.base_dataparser import DataparserOutputs

    applied = np.array([[1, 0, 0, 0.5], [0, 0, 1, 0], [0, -1, 0, 2], [0, 0, 0, 1.0]])
    scene = _told(_ring(4), applied)
    transform = look_at(np.array([0.5, -1, 2]), np.zeros(3), UP)
    told = {"transform": transform[:3].tolist(), "scale": 0.6}
    (tmp_path / where).mkdir(parents=True, exist_ok=True)
    path = _saved(tmp_path / where / "path.json")
    assert "normalised world" in (path_world_note(str(path)) or "")
    plain = make_trajectory(scene, range(4), str(path)).cameras
    (tmp_path / "dataparser_transforms.json").write_text(json.dumps(told))
    assert path_world_note(str(path)) is None and path_world_note("spiral") is None
    made = make_trajectory(scene, range(4), str(path)).cameras
    saved = np.stack(
        [np.array(e["camera_to_world"]).reshape(4, 4) for e in json.loads(path.read_text())["camera_path"]]
    )
    np.testing.assert_allclose([camera.camera_to_world for camera in plain], saved, atol=1e-12)
    world = SimpleNamespace(dataparser_transform=torch.tensor(transform[:3]), dataparser_scale=0.6)
    original = DataparserOutputs.transform_poses_to_original_space(world, torch.tensor(saved[:, :3]), "opengl").numpy()
    for camera, pose in zip(made, original, strict=True):
        # in the file's world: what nerfstudio says is the original one, and what the file says it went through
        file_pose = applied @ np.vstack([pose, [0, 0, 0, 1]])
        np.testing.assert_allclose(
            camera.camera_to_world, apply_similarity(scene.source_to_world, file_pose), atol=1e-9
        )
    # of a run of ours, its own word counts; and it has to be of this scene
    frames = [frame.name for frame in scene.frames]
    (tmp_path / "reconstruction.json").write_text(json.dumps({"frames": frames, "world": None}))
    for camera, pose in zip(make_trajectory(scene, range(4), str(path)).cameras, saved, strict=True):
        np.testing.assert_allclose(camera.camera_to_world, pose, atol=1e-12)
    (tmp_path / "reconstruction.json").write_text(json.dumps({"frames": frames[1:]}))
    with pytest.raises(InputError, match="other photos"):
        make_trajectory(scene, range(4), str(path))
    (tmp_path / "reconstruction.json").unlink()
    (tmp_path / "dataparser_transforms.json").write_text(json.dumps({**told, "scale": 0}))
    with pytest.raises(InputError, match="no positive scale"):
        make_trajectory(scene, range(4), str(path))


def test_broken_key_frames_are_refused(tmp_path: Path) -> None:
    pose = np.eye(4).flatten().tolist()
    key = {"matrix": pose, "fov": 50.0, "aspect": 1.0}
    for keyframes, changes, words in [
        ([key], {}, "one key frame"),
        ([], {}, "no camera path"),
        ([key, {"fov": 50.0}], {}, "no matrix for key frame 1"),
        ([key, "x"], {}, "no matrix for key frame 1"),
        ([key, {**key, "matrix": "[1, 0]"}], {}, "not 16 numbers"),
        ([key, {"matrix": pose, "aspect": 1.0}], {"default_fov": None}, "fov is None"),
        ([key, {**key, "override_transition_enabled": True, "override_transition_sec": 0}], {}, "sec is 0"),
        ([key, key], {"default_transition_sec": math.nan}, "sec is nan"),
        ([key, key], {"default_transition_sec": 0.01}, "makes 0 cameras"),
        ([key, key], {"smoothness_value": 2}, "smoothness_value is 2"),
    ]:
        path = _saved(tmp_path / "path.json", keyframes=keyframes, camera_path=None, **changes)
        with pytest.raises(InputError, match=words):
            make_trajectory(_ring(4), range(4), str(path))


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
