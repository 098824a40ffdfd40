"""Reference photos beside a render: read finer than the render where they are, never finer than they are."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from planes import write_plane
from small_scenes import small_sample

from difixcli.reconstruction import Reconstruction, Render
from difixcli.reference_views import ReferenceViews, _detailed
from difixcli.scenes import load_photo, load_scene


@pytest.mark.parametrize(("working", "detailed"), [(16, 32), (32, 64), (40, 64), (64, 64)])
def test_photos_are_read_at_twice_the_size_or_their_own(working: int, detailed: int, tmp_path: Path) -> None:
    frame = load_scene(str(small_sample("room", tmp_path / "room", 64)), working).frames[0]
    assert (frame.camera.width, frame.lens.width) == (working, 64)
    found = _detailed(frame)
    assert (found.camera.width, found.camera.height) == (detailed, detailed * 3 // 4)
    if detailed == working:
        assert found is frame
    # the same view: the same pixels of the photo, cut finer
    ratio = np.array([detailed / working, detailed / working, 1])
    np.testing.assert_allclose(found.camera.intrinsics, frame.camera.intrinsics * ratio[:, None], rtol=1e-9)
    np.testing.assert_array_equal(found.camera.camera_to_world, frame.camera.camera_to_world)
    assert replace(found, camera=frame.camera) == frame or found.lens is frame.lens
    fine = load_photo(found)
    assert fine.shape == (detailed * 3 // 4, detailed, 3)
    if detailed == 2 * working:  # both are means over the photo's pixels
        coarse = fine.reshape(fine.shape[0] // 2, 2, working, 2, 3).mean((1, 3))
        np.testing.assert_allclose(coarse, load_photo(frame), atol=0.01)


@pytest.fixture(scope="module")
def plane(tmp_path_factory: pytest.TempPathFactory) -> Reconstruction:
    """Splats of a textured plane three units away, seen by nine photos side by side."""
    folder = tmp_path_factory.mktemp("plane")
    scene = load_scene(str(write_plane(folder / "plane", 0)), 48)
    made = Reconstruction.create(
        scene,
        range(9),
        method="splatfacto",
        folder=folder / "run",
        preset="cpu",
        device="cpu",
        iterations=150,
        overrides=["max_gaussians=1500"],
    )
    made.train(150)
    return made


def test_what_photos_have_seen_is_what_lies_in_them(plane: Reconstruction) -> None:
    """Left of what the leftmost photo shows nothing is seen; one photo sees less than all."""
    scene = load_scene(str(plane.folder.parent / "plane"), 48)
    middle = scene.frames[4].camera
    scale = np.linalg.norm(scene.frames[5].camera.position - middle.position) / np.hypot(0.15, 0.05)
    beyond = replace(middle, camera_to_world=middle.camera_to_world.copy())
    depth = 3 * scale
    beyond.camera_to_world[:3, 3] -= middle.camera_to_world[:3, 0] * depth  # a whole picture's width
    everything = np.full((48, 48), depth, np.float32)
    render = Render(np.zeros((48, 48, 3), np.float32), np.ones((48, 48), np.float32), everything)
    leftmost = scene.frames[0].camera
    x, y = np.meshgrid(np.arange(48) + 0.5, np.arange(48) + 0.5)
    for frames in (range(9), [0]):
        seen = ReferenceViews(scene, frames, plane, 2).seen(beyond, render)
        u, v, _ = leftmost.project(beyond.unproject(x, y, everything.astype(np.float64)))
        inside = (u >= 0) & (u < 48) & (v >= 0) & (v < 48)
        assert 0.2 < inside.mean() < 0.8
        assert (seen == inside)[:, :40].mean() > 0.93  # the photos stand a little higher and lower
    of_itself = ReferenceViews(scene, range(9), plane, 2)
    assert of_itself.seen(middle, render).mean() > 0.99
    behind = replace(render, depth=1.5 * everything)  # hidden by the plane
    assert of_itself.seen(middle, behind).mean() < 0.02
    hole = replace(render, depth=np.where(x < 24, 0, everything).astype(np.float32))
    shown = of_itself.seen(middle, hole)
    assert not shown[:, :22].any() and shown[:, 26:].mean() > 0.99  # photos show something everywhere
    beside = of_itself.beside(middle, plane.render(middle))
    assert beside.seen is not None and beside.seen().mean() > 0.98
