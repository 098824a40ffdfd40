"""Scenes of a few photos: which are taken, and the sentences for those that are of no use together."""

from __future__ import annotations

import json
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
from commands import difix, refused
from small_scenes import small_sample

from difixcli.errors import InputError
from difixcli.scenes import Camera, Frame, Scene, load_scene, make_split
from difixcli.scenes.poses import look_at
from difixcli.scenes.sparse_views import check_sparse_views, farthest_views, overlaps, pose_spread
from difixcli.scenes.tracks import Tracks

UP = np.array([0.0, 0.0, 1.0])


def camera(position: tuple[float, float, float], target: tuple[float, float, float]) -> Camera:
    return Camera(look_at(np.array(position), np.array(target), UP), 60.0, 60.0, 32.0, 24.0, 64, 48)


def scene_of(cameras: list[Camera], points: np.ndarray, seen: np.ndarray | None = None) -> Scene:
    """A scene of those cameras; `seen` (cameras, points) bool says who saw the points, None that nobody knows."""
    frames = [Frame(f"{i}.png", Path(f"{i}.png"), one, "0", one.lens) for i, one in enumerate(cameras)]
    tracks = None
    if seen is not None:
        which, what = np.nonzero(seen)
        tracks = Tracks.of(what, which, len(points))
    return Scene(
        "here",
        Path(),
        frames,
        points.astype(np.float32),
        np.zeros((len(points), 3), np.uint8),
        np.eye(4),
        tracks=tracks,
    )


def ring(count: int) -> list[Camera]:
    angles = 2 * np.pi * np.arange(count) / count
    return [camera((3 * np.cos(a), 3 * np.sin(a), 0.5), (0, 0, 0)) for a in angles]


def cloud(count: int = 400) -> np.ndarray:
    return np.random.default_rng(0).normal(0, 0.3, (count, 3))


def facing(cameras: list[Camera], points: np.ndarray, least: float = 0.2) -> np.ndarray:
    """Who sees which points of a solid ball: those on the camera's side."""
    return np.stack([points @ one.position > least * np.linalg.norm(points, axis=1) for one in cameras])


def test_photos_that_overlap_are_as_far_apart_as_can_be() -> None:
    cameras, points = ring(12), cloud()
    scene = scene_of(cameras, points, facing(cameras, points))
    share = overlaps(scene, range(12))
    assert (share.diagonal() == 1).all() and (share[0, [1, 11]] > 0.6).all() and share[0, 6] < 0.1
    # of what one saw, what the other saw too
    assert share[0, 2] == pytest.approx((scene.tracks.counts([0, 2]) == 2).sum() / scene.tracks.counts([0]).sum())
    # of very many points some are asked
    many = cloud(9000)
    seen = facing(cameras, many)
    some = overlaps(scene_of(cameras, many, seen), range(3, 9))
    np.testing.assert_allclose(some, overlaps(scene_of(cameras, many[::3], seen[:, ::3]), range(3, 9)))
    assert np.abs(some - overlaps(scene, range(12))[3:9, 3:9]).max() < 0.1
    together = np.minimum(share, share.T) >= 0.25
    distances = pose_spread(cameras)
    taken = farthest_views(scene, range(12), 2)
    best = max(distances[i, j] for i, j in combinations(range(12), 2) if together[i, j])
    assert distances[taken[0], taken[1]] == best and together[taken[0], taken[1]]
    assert best < distances.max() - 0.5  # which do not overlap
    three = farthest_views(scene, range(12), 3)
    assert three[:2] == taken and len(set(three)) == 3 and together[three[2], taken].any()
    # of some photos only those are taken
    assert set(farthest_views(scene, [3, 4, 5, 7], 3)) < {3, 4, 5, 7}


def test_overlap_without_tracks_and_without_points() -> None:
    apart = [camera((0, -3, 0), (0, 0, 0)), camera((1, -3, 0), (0, 0, 0)), camera((0, -3, 0), (0, -6, 0))]
    for points in (cloud(), np.zeros((0, 3))):
        share = overlaps(scene_of(apart, points), range(3))
        assert share[0, 1] > 0.4 and share[1, 0] > 0.4
        assert share[0, 2] == share[2, 0] == 0
    # opposite photos have the same points in view, but never show the same side of anything
    across = [camera((0, -3, 0), (0, 0, 0)), camera((0, 3, 0), (0, 0, 0))]
    assert overlaps(scene_of(across, cloud()), range(2))[0, 1] < 0.01


def test_too_few_photos_overlap() -> None:
    cameras, points = ring(4), cloud()
    alone = np.zeros((4, 400), bool)
    alone[0, :100] = alone[1, 50:150] = alone[2, 200:250] = alone[3, 300:] = True
    scene = scene_of(cameras, points, alone)
    assert farthest_views(scene, range(4), 2) == [0, 1]
    with pytest.raises(InputError, match="Only 2 photos of here overlap with one another, fewer than the 3"):
        farthest_views(scene, range(4), 3)
    with pytest.raises(InputError, match="No two photos of here"):
        farthest_views(scene, range(1, 4), 2)
    with pytest.raises(InputError, match="here has 4 photos to train on, fewer than the 5"):
        farthest_views(scene, range(4), 5)


def test_photos_that_are_of_no_use_together() -> None:
    cameras, points = ring(12), cloud()
    scene = scene_of(cameras, points, facing(cameras, points, 1.5))
    check_sparse_views(scene, [0, 2])
    check_sparse_views(scene, [0, 2, 4])
    with pytest.raises(InputError, match=r"at least two photos, but only 3\.png trains"):
        check_sparse_views(scene, [3])
    # each sees its own side of the ball
    with pytest.raises(InputError, match=r"0\.png of here shares 0 seed points .*\(6\.png\)"):
        check_sparse_views(scene, [0, 6])
    with pytest.raises(InputError, match=r"7\.png of here shares 0 seed points"):
        check_sparse_views(scene, [0, 1, 7])
    turned = [camera((3, 0, 0), (0, 0, 0)), camera((3, 0, 0), (0, 0.5, 0)), camera((3.5, 0, 0), (6, 0, 0))]
    for points_known in (points, np.zeros((0, 3))):
        with pytest.raises(InputError, match="from one place"):
            check_sparse_views(scene_of(turned, points_known), [0, 1])
        with pytest.raises(
            InputError, match=r"1\.png of here looks away|0\.png of here looks away|2\.png of here looks"
        ):
            check_sparse_views(scene_of(turned, points_known), [1, 2])


def test_the_split_of_a_few_views(tmp_path: Path) -> None:
    folder = small_sample("room", tmp_path / "room", 64)
    scene = load_scene(folder)
    for count in (2, 3, 4):
        split = make_split(scene, f"views:{count}")
        assert len(split.train) == count and len(split.test) == 32 - count
        assert all("train_" in scene.frames[i].name for i in split.train)  # as the scene's own split has it
        check_sparse_views(scene, split.train)
    (folder / "split.json").unlink()
    again = load_scene(folder)
    assert sorted(farthest_views(again, range(32), 2)) == list(make_split(again, "views:2").train)
    for wrong in ("views", "views:1", "views:two"):
        with pytest.raises(InputError, match="at least 2, as in views:3"):
            make_split(scene, wrong)
    refused(difix("distill", folder, "--views", 2, "--split", "every:4"), "--views 2", "--split every:4")
    refused(difix("distill", folder, "--views", 40), "32 photos", "fewer than the 40")


def test_a_run_of_two_views(tmp_path: Path) -> None:
    folder = small_sample("room", tmp_path / "room", 48)
    words = ("--views", 2, "--schedule", "none", "--iterations", 3, "--device", "cpu", "--output", tmp_path / "run")
    result = difix("distill", folder, *words)
    assert result.exit_code == 0, (result.stderr, result.exception)
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    assert record["arguments"]["split"] == "views:2"
    assert len(list((tmp_path / "run" / "renders" / "plain").glob("*.png"))) == 30
