"""Curation: the geometry of `cycle`, and manifests that the original trainer could read."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from difixcli.curation.cycle import shift_distance, shift_sideways
from difixcli.errors import InputError
from difixcli.scenes.scene import Camera, Scene


def _camera(position: np.ndarray, heading: float, pitch: float = 0.0) -> Camera:
    """A camera at `position` looking along `heading` (radians from +y, clockwise from above), tilted by `pitch`."""
    forward = np.array([np.sin(heading) * np.cos(pitch), np.cos(heading) * np.cos(pitch), np.sin(pitch)])
    right = np.array([np.cos(heading), -np.sin(heading), 0.0])
    pose = np.eye(4)
    pose[:3, 0], pose[:3, 1], pose[:3, 2], pose[:3, 3] = right, np.cross(right, forward), -forward, position
    return Camera(pose, 100.0, 100.0, 32.0, 24.0, 64, 48)


def _check_level_and_same_heading(before: list[Camera], after: list[Camera], distance: float) -> np.ndarray:
    moves = np.stack([b.position - a.position for a, b in zip(before, after, strict=True)])
    assert np.allclose(np.linalg.norm(moves, axis=1), abs(distance), atol=1e-12)
    assert np.allclose(moves[:, 2], 0, atol=1e-12)
    for a, b in zip(before, after, strict=True):
        assert np.array_equal(a.camera_to_world[:3, :3], b.camera_to_world[:3, :3])
    return moves


@pytest.mark.parametrize("distance", [0.3, -0.3])
def test_a_straight_path_shifts_to_the_right_of_travel(distance: float) -> None:
    cameras = [_camera(np.array([0.0, y, 0.1 * y]), 0.0, pitch=-0.2) for y in np.linspace(-1, 1, 5)]
    moves = _check_level_and_same_heading(cameras, shift_sideways(cameras, distance), distance)
    assert np.allclose(moves, [distance, 0, 0])


def test_a_curved_path_shifts_radially() -> None:
    angles = np.linspace(0, np.pi, 181)
    cameras = [_camera(np.array([np.cos(a), np.sin(a), 0.0]), -a) for a in angles]
    moves = _check_level_and_same_heading(cameras, shift_sideways(cameras, 0.2), 0.2)
    outward = np.stack([np.cos(angles), np.sin(angles), 0 * angles], axis=1)
    # counter-clockwise travel has its right outside; only the end points' one-sided tangents tilt, by half a step
    assert np.allclose(moves[1:-1], 0.2 * outward[1:-1], atol=1e-6)
    assert np.allclose(moves, 0.2 * outward, atol=0.2 * 0.01)


def test_a_single_frame_shifts_to_its_own_level_right() -> None:
    cameras = [_camera(np.zeros(3), heading=0.5, pitch=-0.6)]
    moves = _check_level_and_same_heading(cameras, shift_sideways(cameras, 0.1), 0.1)
    assert np.allclose(moves[0], 0.1 * np.array([np.cos(0.5), -np.sin(0.5), 0]))


def _scene(metric: bool, scale: float = 0.25) -> Scene:
    to_world = np.diag([scale, scale, scale, 1.0])
    from difixcli.scenes.scene import Frame

    frames = []
    for i, y in enumerate((-1.0, 0.0, 1.0)):
        camera = _camera(np.array([0.0, y, 0.0]), 0.0)
        frames.append(Frame(f"{i}.png", Path(f"{i}.png"), camera, "0", camera, np.zeros(6)))
    return Scene("s", Path("."), frames, np.zeros((0, 3)), np.zeros((0, 3)), to_world, metric)


def test_metres_become_scene_units_and_shares_become_extent() -> None:
    assert shift_distance(_scene(metric=True), "2m") == pytest.approx(0.5)
    assert shift_distance(_scene(metric=True), "-2m") == pytest.approx(-0.5)
    assert shift_distance(_scene(metric=False), "0.1") == pytest.approx(0.2)


@pytest.mark.parametrize(("shift", "words"), [("2m", "no metric scale"), ("far", "not a distance"), ("0", "nothing")])
def test_shifts_that_make_no_sense_are_refused(shift: str, words: str) -> None:
    with pytest.raises(InputError, match=words):
        shift_distance(_scene(metric=False), shift)
