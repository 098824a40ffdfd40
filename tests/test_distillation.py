"""The update's schedule and what a fix is allowed to change."""

from __future__ import annotations

import numpy as np
import pytest

from difixcli.distillation.confidence import confidence, target
from difixcli.distillation.schedule import make_schedule, pseudo_cameras
from difixcli.errors import InputError
from difixcli.reconstruction import Render
from difixcli.reference_views import References
from difixcli.scenes.scene import Camera

RNG = np.random.default_rng(0)


def _camera(x: float) -> Camera:
    pose = np.eye(4)
    pose[0, 3] = x
    return Camera(pose, 50.0, 50.0, 32.0, 24.0, 64, 48)


def _render(color: np.ndarray, accumulation: float = 1.0) -> Render:
    shape = color.shape[:2]
    return Render(color, np.full(shape, accumulation, np.float32), np.ones(shape, np.float32))


def _beside(image: np.ndarray, visibility: float) -> References:
    return References([0], [image], image[None], np.full((1, *image.shape[:2]), visibility, np.float32))


@pytest.mark.parametrize(("preset", "iterations"), [("cpu", 1000), ("cpu", 2001), ("gpu", 30_000)])
def test_a_schedule_spends_exactly_its_iterations(preset: str, iterations: int) -> None:
    schedule = make_schedule(preset, False, iterations, None)
    assert schedule.iterations == iterations
    assert schedule.finished_rounds(schedule.start - 1) == -1
    assert schedule.finished_rounds(schedule.start) == 0
    assert schedule.finished_rounds(iterations - 1) == schedule.rounds - 1
    assert schedule.finished_rounds(iterations) == schedule.rounds


def test_too_many_rounds_are_refused() -> None:
    for iterations, rounds in ((10, 20), (12, 5), (40, 0)):
        with pytest.raises(InputError, match="cannot be shared"):
            make_schedule("cpu", False, iterations, rounds)


def test_pseudo_views_start_at_the_nearest_photo_and_reach_their_targets() -> None:
    train, targets = [_camera(0.0), _camera(5.0)], [_camera(1.2), _camera(3.9)]
    along = [[c.position[0] for c in pseudo_cameras(train, targets, n, 0.5)] for n in range(5)]
    assert along[0] == [0.0, 5.0]
    assert along[1] == pytest.approx([0.5, 4.5])
    assert along[2] == pytest.approx([1.0, 4.0])
    assert along[3] == along[4] == pytest.approx([1.2, 3.9])


def test_a_fix_does_not_soften_what_it_trains() -> None:
    photo = 0.4 + 0.2 * RNG.random((48, 64, 3)).astype(np.float32)
    soft = 0.7 * photo + 0.3 * photo.mean()
    # the render was sharp: its detail stays, the fix's tone counts
    kept = target(_render(photo), soft - 0.1)
    assert kept.std() > 0.97 * photo.std() and kept.mean() == pytest.approx(photo.mean() - 0.1, abs=1e-3)
    # the render was soft: the fix's detail is what training gets
    assert np.abs(target(_render(soft), photo) - photo).mean() < 0.1 * np.abs(soft - photo).mean()


def test_a_fix_counts_as_far_as_a_reference_supports_it() -> None:
    photo = np.full((48, 64, 3), 0.6, np.float32)
    floater = np.full_like(photo, 0.2)
    assert confidence(_render(floater), photo, _beside(photo, 1.0)).mean() > 0.9
    # where no reference shows anything a fix may mend the tone, not repaint
    assert confidence(_render(floater), photo, _beside(photo, 0.0)).mean() < 0.1
    assert confidence(_render(photo - 0.01), photo, _beside(photo, 0.0)).mean() > 0.9
    # a coloured block that no reference shows: the release's poisoned fixes
    block = photo.copy()
    block[:24, :, 0] = 1.0
    weight = confidence(_render(photo), block, _beside(photo, 1.0))
    assert weight[4:20].mean() < 0.35


def test_nothing_is_trusted_where_the_render_was_empty() -> None:
    photo = np.full((48, 64, 3), 0.6, np.float32)
    assert confidence(_render(photo * 0, accumulation=0.0), photo, _beside(photo, 1.0)).max() == 0
