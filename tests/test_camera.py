"""A camera's projection: there and back, and the conventions that everything else counts on."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from difixcli.scenes import Camera
from difixcli.scenes.poses import OPENCV_TO_OPENGL, look_at
from difixcli.scenes.visibility import unhidden


@pytest.fixture(params=range(5))
def camera(request: pytest.FixtureRequest) -> Camera:
    rng = np.random.default_rng(request.param)
    pose = np.eye(4)
    pose[:3, :3] = Rotation.from_rotvec(rng.normal(size=3)).as_matrix()
    pose[:3, 3] = rng.normal(size=3)
    return Camera(pose, *rng.uniform(40, 200, 2), *rng.uniform(10, 90, 2), 96, 72)


def test_projection_and_its_inverse(camera: Camera) -> None:
    """Any pixel and depth comes back, also outside the image and behind the camera, and so does any point."""
    rng = np.random.default_rng(7)
    x, y = rng.uniform(-100, 200, (2, 5, 40))
    depth = rng.uniform(0.1, 9, (5, 40)) * rng.choice([-1, 1], (5, 40))
    points = camera.unproject(x, y, depth)
    assert points.shape == (5, 40, 3)
    for found, given in zip(camera.project(points), (x, y, depth), strict=True):
        np.testing.assert_allclose(found, given, rtol=1e-9, atol=1e-9)
    points = rng.normal(size=(50, 3)).astype(np.float32)
    np.testing.assert_allclose(camera.unproject(*camera.project(points)), points, atol=1e-9)
    grid = camera.unproject(np.arange(4) + 0.5, np.arange(3)[:, None] + 0.5, np.full((3, 4), 2.0))
    np.testing.assert_allclose(grid[2, 1], camera.unproject(1.5, 2.5, 2.0))
    right, up = camera.plane(x, y)
    lengths = np.linalg.norm(points := camera.unproject(x, y, np.ones_like(x)) - camera.position, axis=-1)
    np.testing.assert_allclose(lengths, np.sqrt(right**2 + up**2 + 1))
    np.testing.assert_allclose(points @ camera.camera_to_world[:3, :2], np.stack([right, up], axis=-1), atol=1e-9)


def test_projection_is_opencvs_half_a_pixel_on(camera: Camera) -> None:
    """OpenCV looks along +z with y down, and counts pixels from the first one's centre."""
    points = camera.unproject(*np.random.default_rng(1).uniform(0, 70, (2, 30)), np.linspace(0.5, 8, 30))
    to_camera = np.linalg.inv(camera.camera_to_world @ OPENCV_TO_OPENGL)
    turn, _ = cv2.Rodrigues(to_camera[:3, :3])
    lens = camera.intrinsics - [[0, 0, 0.5], [0, 0, 0.5], [0, 0, 0]]
    theirs, _ = cv2.projectPoints(points, turn, to_camera[:3, 3], lens, None)
    x, y, _ = camera.project(points)
    np.testing.assert_allclose(np.stack([x, y], axis=1) - 0.5, theirs[:, 0], atol=1e-6)


def test_x_runs_right_and_y_down() -> None:
    camera = Camera(look_at(np.zeros(3), np.array([0, 5, 0]), np.array([0, 0, 1])), 50.0, 50.0, 48.0, 36.0, 96, 72)
    x, y, depth = camera.project(np.array([[0, 5, 0], [1, 5, 0], [0, 5, 1], [1, -5, 0], [1, 0, 0]]))
    np.testing.assert_allclose(x[:4], [48, 58, 48, 38])
    np.testing.assert_allclose(y[:3], [36, 36, 26])
    np.testing.assert_allclose(depth, [5, 5, 5, -5, 0], atol=1e-12)


def test_what_nearer_points_hide_is_the_same_at_any_size() -> None:
    """A wall of points before another one with a gap between them: through the gap, what is away from its rims."""
    rng = np.random.default_rng(0)
    x, y = rng.uniform(0, 1, 60_000), rng.uniform(0, 0.75, 60_000)
    far = np.arange(60_000) % 2 == 1
    kept = far | (np.abs(x - 0.5) > 0.1)  # the gap is a fifth of the image
    x, y, depth = x[kept], y[kept], np.where(far, 2.0, 1.0)[kept]
    found = [unhidden(side * x, side * y, depth, (side * 3 // 4, side), 1.1) for side in (48, 128, 1000, 4000)]
    for one in found:
        assert np.array_equal(one, found[0])
    seen, behind = found[0], depth == 2
    assert seen[~behind].all()
    assert seen[behind & (np.abs(x - 0.5) < 0.07)].all()
    assert seen[behind & (np.abs(x - 0.5) > 0.13)].mean() < 0.2
    assert unhidden(128 * x, 128 * y, depth, (96, 128), 2.0).all()  # no farther than what hides
    wide = unhidden(128 * x, 128 * y, depth, (96, 128), 1.1, cell=1 / 32)
    assert wide.sum() < seen.sum() and not wide[behind & (np.abs(x - 0.5) > 0.2)].any()


@pytest.mark.parametrize("side", [240, 1920])
def test_a_floor_does_not_hide_itself(side: int) -> None:
    """Its depth grows from row to row, the faster the nearer the horizon."""
    rng = np.random.default_rng(0)
    height = side * 9 // 16
    x, y = rng.uniform(0, side, 20_000), rng.uniform(0.6 * height, height, 20_000)
    depth = 1 / (y / height - 0.4)  # the horizon lies at two fifths of the height
    assert unhidden(x, y, depth, (height, side), 1.05).mean() > 0.85
