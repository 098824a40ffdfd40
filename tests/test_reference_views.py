"""Reference photos beside a render: read finer than the render where they are, never finer than they are."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from small_scenes import small_sample

from difixcli.reference_views import _detailed
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
