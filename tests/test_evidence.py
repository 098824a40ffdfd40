"""What photos say about fixes: what is taken of one, how far it is trusted, and when a round did harm."""

from __future__ import annotations

from dataclasses import replace

import cv2
import numpy as np
import pytest

from difixcli.distillation.guard import BOUND, compare
from difixcli.evidence import (
    agreement,
    boldness,
    confidence,
    confirmed,
    fix_render,
    mean_support,
    nearer,
    settled,
    tone_sigma,
)
from difixcli.fixer import Fixer
from difixcli.images import continued
from difixcli.reconstruction import Render
from difixcli.reference_views import References

RNG = np.random.default_rng(0)
SIZES = [(48, 64), (180, 240)]


def _render(color: np.ndarray, accumulation: float = 1.0) -> Render:
    shape = color.shape[:2]
    return Render(color.astype(np.float32), np.full(shape, accumulation, np.float32), np.ones(shape, np.float32))


def _beside(image: np.ndarray, visibility: float | np.ndarray) -> References:
    seen = np.broadcast_to(np.asarray(visibility, np.float32), image.shape[:2])
    return References([0], [image], image[None].astype(np.float32), seen[None].copy())


def _photo(height: int, width: int) -> np.ndarray:
    """Texture at every scale, as photos have it."""
    image = np.zeros((height, width, 3), np.float32)
    for scale in (1, 2, 4, 8, 16):
        small = RNG.random((height // scale + 1, width // scale + 1, 3)).astype(np.float32)
        image += cv2.resize(small, (width, height), interpolation=cv2.INTER_CUBIC)
    return np.clip(0.2 + 0.6 * image / 5, 0, 1)


def _soft(image: np.ndarray, width: float) -> np.ndarray:
    return cv2.GaussianBlur(image, (0, 0), width * tone_sigma(image))


@pytest.mark.parametrize("size", SIZES)
def test_a_fix_does_not_soften_what_it_trains(size: tuple[int, int]) -> None:
    photo = _photo(*size)
    fixed = np.clip(_soft(photo, 0.4) - 0.1, 0, 1)  # a better tone, and a little smooth
    taken = confirmed(_render(photo), fixed, _beside(photo, 1.0), False)
    wanted = photo - 0.1
    assert np.abs(taken - wanted).mean() < 0.4 * np.abs(fixed - wanted).mean()


def test_a_render_unlike_the_photos_is_mended_boldly() -> None:
    photo = _photo(120, 160)
    fixer = Fixer.from_pretrained("bundled")
    assert fixer.bolder is not None
    beside = _beside(photo, 1.0)
    render = _render(np.clip(photo + 0.1 * np.sin(np.arange(160) / 12, dtype=np.float32)[:, None], 0, 1))
    assert boldness(render.color, beside) == 1 and boldness(photo, beside) == 0
    assert boldness(render.color, _beside(photo, 0.0)) == 0  # nothing says that it is bad
    assert boldness(render.color, _beside(photo[::-1, ::-1].copy() ** 3, 1.0)) == 0  # another scene, said to be seen
    careful, bold = (np.abs(fix_render(one, render, beside) - photo).mean() for one in (Fixer(fixer.network), fixer))
    assert bold < 0.8 * careful < 0.8 * np.abs(render.color - photo).mean()


@pytest.mark.parametrize("size", SIZES)
def test_that_aligning_softens_a_photo_denies_no_detail(size: tuple[int, int]) -> None:
    photo = _photo(*size)
    beside = _beside(_soft(photo, 0.4), 1.0)
    fixed = _soft(photo, 0.6)
    kept, lost = (
        np.abs(
            confirmed(_render(photo), fixed, References([0], [own], beside.aligned, beside.visibility), False) - photo
        )
        for own in (photo, beside.aligned[0])
    )
    assert kept.mean() < 0.5 * np.abs(fixed - photo).mean() < lost.mean() * 0.75


@pytest.mark.parametrize("size", SIZES)
def test_detail_that_only_the_fix_has_is_taken(size: tuple[int, int]) -> None:
    photo = _photo(*size)
    soft = _soft(photo, 1.0)
    taken = confirmed(_render(soft), photo, _beside(photo, 1.0), False)
    assert np.abs(taken - photo).mean() < 0.2 * np.abs(soft - photo).mean()


@pytest.mark.parametrize("size", SIZES)
def test_needles_that_no_photo_has_are_removed(size: tuple[int, int]) -> None:
    photo = _soft(_photo(*size), 1.0)
    needles = photo.copy()
    needles[:, ::7] = np.clip(needles[:, ::7] + 0.3, 0, 1)
    taken = confirmed(_render(needles), photo, _beside(photo, 1.0), False)
    assert np.abs(taken - photo).mean() < 0.1 * np.abs(needles - photo).mean()
    # where no photo sees the place, the render's detail stays: nothing denies it
    kept = confirmed(_render(needles), photo, _beside(photo, 0.0), False)
    assert np.abs(kept - photo).mean() > 0.3 * np.abs(needles - photo).mean()


def test_a_perfect_fix_beside_a_perfect_photo_is_trusted_to_the_border() -> None:
    photo = _photo(180, 240)
    seen = np.zeros(photo.shape[:2], np.float32)
    seen[4:-4, 4:-4] = 1  # what aligning leaves of a photo's border
    assert confidence(_render(photo * 0.5), photo, _beside(photo * seen[..., None], seen)).min() > 0.99


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


def test_support_is_judged_where_the_render_shows_something() -> None:
    photo = np.full((48, 64, 3), 0.6, np.float32)
    half = _render(photo)
    half.accumulation[:, 32:] = 0
    weight = confidence(half, photo, _beside(photo, 1.0))
    assert weight.mean() < 0.6 and mean_support(half, weight) > 0.95
    block = photo.copy()
    block[:24, :, 0] = 1.0
    assert mean_support(_render(photo), confidence(_render(photo), block, _beside(photo, 1.0))) < 0.75
    assert mean_support(_render(photo, 0.0), np.zeros((48, 64), np.float32)) == 0


def test_nothing_is_trusted_where_the_render_was_empty() -> None:
    photo = np.full((48, 64, 3), 0.6, np.float32)
    assert confidence(_render(photo * 0, accumulation=0.0), photo, _beside(photo, 1.0)).max() == 0


def test_what_is_no_number_is_not_trusted() -> None:
    photo = _photo(48, 64)
    broken = photo.copy()
    broken[20, 30] = np.nan
    for beside in (_beside(photo, 1.0), _beside(photo, 0.0)):
        trusted = confidence(_render(photo), broken, beside)
        assert np.isfinite(trusted).all() and trusted[20, 30] == 0


def test_agreement_is_with_what_photos_see() -> None:
    photo = _photo(48, 64)
    left = np.zeros((48, 64), np.float32)
    left[:, :32] = 1
    wrong = photo.copy()
    wrong[:, 40:] = 0
    right, worse = agreement(wrong, _beside(photo, left)), agreement(wrong, _beside(photo, 1.0))
    assert right is not None and worse is not None and right > 60 and worse < 30
    assert agreement(photo, _beside(photo, 0.0)) is None
    # of several photos the one that is nearest counts at each pixel
    both = References([0, 1], [photo] * 2, np.stack([photo, 1 - photo]), np.ones((2, 48, 64), np.float32))
    assert agreement(photo, both) == pytest.approx(80)


def test_a_final_render_takes_of_a_fix_what_brings_it_nearer_to_a_photo() -> None:
    photo = _photo(180, 240)
    half = np.zeros(photo.shape[:2], np.float32)
    half[:, :120] = 1
    better, worse = nearer(_render(photo - 0.1), photo, _beside(photo, 1.0), False), photo - 0.1
    assert np.abs(better - photo).mean() < 0.01
    # away from what a photo shows nothing is taken; where none sees the place, all of it
    shown = nearer(_render(photo), worse, _beside(photo, half), False)
    assert np.abs(shown - photo)[:, :100].max() < 0.01 and np.abs(shown - worse)[:, 140:].max() < 0.01
    # without photos the fix counts as `confirmed` has it
    none = References([], [], np.zeros((0, *photo.shape), np.float32), np.zeros((0, 180, 240), np.float32))
    np.testing.assert_array_equal(
        nearer(_render(photo), worse, none, False), confirmed(_render(photo), worse, none, False)
    )


# The guard


def test_sound_rounds_are_rarely_taken_back_and_harmful_ones_are() -> None:
    taken_back, caught = 0, 0
    for _ in range(2000):
        before = RNG.normal(30, 3, 8)
        taken_back += compare(list(before), list(before - BOUND + RNG.normal(0, 0.4, 8))).harmful
        caught += compare(list(before), list(before - 2.0 + RNG.normal(0, 0.6, 8))).harmful
    assert taken_back < 0.06 * 2000 and caught > 0.95 * 2000


def test_one_view_alone_proves_nothing_and_none_says_nothing() -> None:
    assert not compare([30.0], [20.0]).harmful
    nothing = compare([None, 30.0], [25.0, None])
    assert nothing.views == 0 and not nothing.harmful
    assert compare([30.0, 31.0, None], [20.0, 21.1, 1.0]).harmful


@pytest.mark.parametrize("size", SIZES)
def test_what_no_photo_has_seen_is_calmed(size: tuple[int, int]) -> None:
    """Nearer to what goes on there, more and less of it alike; what is seen, and slits, stay to the bit."""
    height, width = size
    ramp = np.linspace(0.2, 0.8, width, dtype=np.float32)
    truth = np.repeat(np.repeat(ramp[None, :, None], height, 0), 3, 2)
    shards = truth.copy()
    seen = np.ones(size, bool)
    seen[: height // 2, : width // 4] = False
    shards[~seen] = RNG.random((int((~seen).sum()), 3))
    opaque = np.ones(size, np.float32)
    calmed = settled(shards, seen, opaque, own=0.5)
    error = [np.sqrt(((image - truth)[~seen] ** 2).mean()) for image in (shards, calmed)]
    assert error[1] < 0.65 * error[0]
    far = cv2.dilate((~seen).astype(np.uint8), np.ones((9, 9))) == 0
    np.testing.assert_array_equal(calmed[far], shards[far])
    slit = np.ones(size, bool)
    slit[:, width // 2] = False
    for none in (slit, np.ones(size, bool), np.zeros(size, bool)):  # nor where nothing is known to go on from
        assert settled(shards, none, opaque, own=0.5) is shards
    # of a model that has learned from calmed views, only holes are filled
    beside = replace(_beside(truth, 0.0), seen_by_any=lambda: seen)
    for taught, wanted in ((False, calmed), (True, shards)):
        for made in (
            confirmed(_render(shards), shards, beside, taught),
            nearer(_render(shards), shards, beside, taught),
        ):
            np.testing.assert_allclose(made, wanted, atol=1e-6)
    holes = np.where(seen[..., None], truth, 0)  # nothing of black is left
    filled = settled(holes, seen, seen.astype(np.float32), own=0.5)
    np.testing.assert_array_equal(settled(holes, seen, seen.astype(np.float32), own=1.0), filled)
    deep = cv2.erode((~seen).astype(np.uint8), np.ones((9, 9)), borderValue=1) > 0
    np.testing.assert_allclose(filled[deep], continued(holes, seen)[deep], atol=1e-3)
    assert filled[deep].min() > 0.15


def test_what_is_known_goes_on_smoothly() -> None:
    image = _photo(37, 53)
    known = RNG.random((37, 53)) < 0.3
    made = continued(image, known)
    np.testing.assert_allclose(made[known], image[known], atol=1e-6)
    low, high = image[known].min(0), image[known].max(0)
    assert ((made >= low - 1e-5) & (made <= high + 1e-5)).all()
    one = np.zeros((37, 53), bool)
    one[20, 30] = True
    np.testing.assert_allclose(continued(image, one), np.broadcast_to(image[20, 30], image.shape), atol=1e-5)
