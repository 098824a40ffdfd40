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
from difixcli.runs import write_image
from difixcli.scenes import Camera, load_photo, load_scene


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
    scene = load_scene(str(plane.folder.parent / "plane"), 48)
    middle, leftmost = scene.frames[4].camera, scene.frames[0].camera
    depth = 3 * float(np.linalg.norm(scene.frames[5].camera.position - middle.position) / np.hypot(0.15, 0.05))
    wall = np.full((48, 48), depth, np.float32)
    render = Render(np.zeros((48, 48, 3), np.float32), np.ones((48, 48), np.float32), wall)
    x, y = np.meshgrid(np.arange(48) + 0.5, np.arange(48) + 0.5)
    # a whole picture's width to the left of the middle, only the leftmost photos see something
    beyond = _moved(middle, -depth)
    u, v, _ = leftmost.project(beyond.unproject(x, y, wall.astype(np.float64)))
    inside = (u >= 0) & (u < 48) & (v >= 0) & (v < 48)
    assert 0.2 < inside.mean() < 0.8
    by_it, by_all, by_another = (
        ReferenceViews(scene, frames, plane, 2).seen_by_any(beyond, render) for frames in ([0], range(9), [8])
    )
    assert (by_it == inside).mean() > 0.97 and not by_another.any()
    assert not (by_it & ~by_all).any() and by_all.sum() > by_it.sum()  # others stand higher and lower
    # what is behind the wall is hidden; what a mask leaves out is not seen
    views = ReferenceViews(scene, range(9), plane, 2)
    assert views.seen_by_any(middle, render).mean() > 0.97
    assert views.seen_by_any(middle, replace(render, depth=1.5 * wall)).mean() < 0.03
    mask = np.zeros((48, 48), np.uint8)
    mask[:, :24] = 255
    write_image(plane.folder.parent / "mask.png", mask / 255)
    masked = [replace(frame, mask_path=plane.folder.parent / "mask.png") for frame in scene.frames]
    half = ReferenceViews(replace(scene, frames=masked), [4], plane, 2).seen_by_any(middle, render)
    assert half[:, :22].mean() > 0.97 and not half[:, 26:].any()
    assert views.beside(middle, plane.render(middle)).seen_by_any().mean() > 0.97


def test_photos_of_any_size_are_asked_by_a_small_depth_made_once(
    plane: Reconstruction, monkeypatch: pytest.MonkeyPatch
) -> None:
    scene = load_scene(str(plane.folder.parent / "plane"), 48)
    large = [replace(frame, camera=frame.camera.resized(1200, 1200)) for frame in scene.frames]
    views = ReferenceViews(replace(scene, frames=large), range(9), plane, 2)
    made, render = [], plane.render

    def counted(camera: Camera) -> Render:
        made.append((camera.width, camera.height))
        return render(camera)

    shown = plane.render(scene.frames[4].camera)
    beside = _moved(scene.frames[4].camera, -float(shown.depth[24, 24]))  # much of it no photo sees, so all are asked
    shown = plane.render(beside)
    wall = replace(
        shown, accumulation=np.ones_like(shown.accumulation), depth=np.full_like(shown.depth, shown.depth[24, 40])
    )
    small = ReferenceViews(scene, range(9), plane, 2).seen_by_any(beside, wall)
    monkeypatch.setattr(plane, "render", counted)
    seen = views.seen_by_any(beside, wall)
    assert 0.1 < seen.mean() < 0.9 and (seen == small).mean() > 0.95
    assert made == [(200, 200)] * 9
    views.seen_by_any(beside, wall)
    assert len(made) == 9
    views.refresh()
    views.seen_by_any(beside, wall)
    assert made == [(200, 200)] * 18


def test_emptiness_is_a_hole_where_photos_show_something_everywhere(plane: Reconstruction) -> None:
    scene = load_scene(str(plane.folder.parent / "plane"), 48)
    camera = scene.frames[4].camera
    shown = plane.render(camera)
    left = np.zeros((48, 48), bool)
    left[:, :20] = True
    hole = replace(shown, depth=np.where(left, 0, shown.depth), accumulation=np.where(left, 0, shown.accumulation))
    assert not ReferenceViews(scene, range(9), plane, 2).seen_by_any(camera, hole)[:, :18].any()
    # an object that masks cut out of its surroundings: what lies around it may well be empty
    mask = np.ones((48, 48), np.float32)
    mask[:, :12] = 0
    write_image(plane.folder.parent / "object.png", mask)
    cut = [replace(frame, mask_path=plane.folder.parent / "object.png") for frame in scene.frames]
    assert ReferenceViews(replace(scene, frames=cut), range(9), plane, 2).seen_by_any(camera, hole)[:, :18].all()
    # masks of a little leave the scene as full as it is
    mask = np.ones((48, 48), np.float32)
    mask[:, -1] = 0
    write_image(plane.folder.parent / "rim.png", mask)
    rim = [replace(frame, mask_path=plane.folder.parent / "rim.png") for frame in scene.frames]
    assert not ReferenceViews(replace(scene, frames=rim), range(9), plane, 2).seen_by_any(camera, hole)[:, :18].any()
    # photos that look past the end of what there is
    away = [replace(frame, camera=_moved(frame.camera, 40 * np.ptp(shown.depth[24]) + 20)) for frame in scene.frames]
    past = ReferenceViews(replace(scene, frames=[*scene.frames[:5], *away[5:]]), range(9), plane, 2)
    assert past.seen_by_any(camera, hole)[:, :18].all()


def _moved(camera: Camera, across: float) -> Camera:
    """The camera, so far to its right."""
    moved = camera.camera_to_world.copy()
    moved[:3, 3] += across * moved[:3, 0]
    return replace(camera, camera_to_world=moved)
