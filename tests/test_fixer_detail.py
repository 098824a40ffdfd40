"""What a render shows as its photos do keeps its detail; where they differ, or it is blurred, detail is the fix's."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from difixcli.fixer import new_small_fixer
from difixcli.fixer.confidence import smooth
from difixcli.fixer.detail import blur, keep_known_detail
from difixcli.fixer.registered import register_photos
from difixcli.fixer.tiling import Window


def scene(seed: int = 0, height: int = 90, width: int = 120) -> Tensor:
    """(1, 3, H, W): things of many sizes, the finest a few pixels wide."""
    drawn = torch.rand((1, 3, height, width), generator=torch.Generator().manual_seed(seed))
    return (0.5 + 0.5 * (smooth(drawn, 1.2) - 0.5) + 4 * (smooth(drawn, 8.0) - 0.5)).clamp(0, 1)


def beside(*photos: Tensor) -> tuple[Tensor, Tensor]:
    aligned = torch.stack(photos, dim=1)
    return aligned, torch.ones_like(aligned[:, :, :1])


def moved(image: Tensor, pixels: float) -> Tensor:
    """To the left, as registration that is not exact leaves photos."""
    return (1 - pixels) * image + pixels * image.roll(-1, -1)


def kept_of(render: Tensor, fixed: Tensor, aligned: Tensor, visible: Tensor, long_side: int = 120) -> Tensor:
    return keep_known_detail(render, fixed, aligned, visible, long_side, blur(render, aligned, visible))


def error(image: Tensor, truth: Tensor) -> float:
    return float((image - truth).square().mean().sqrt())


def test_a_good_render_keeps_its_detail_and_takes_the_tone() -> None:
    truth = scene()
    render = truth + 0.01  # good but for its tone
    fixed = smooth(truth, 0.8)  # the tone is right, the detail a little soft
    kept = kept_of(render, fixed, *beside(moved(truth, 0.2), moved(truth, 0.3)))
    assert error(kept, truth) < 0.3 * min(error(render, truth), error(fixed, truth))


def test_a_blurred_or_differing_render_takes_all_of_the_fix() -> None:
    truth, other = scene(), scene(1)
    fixed = smooth(truth, 0.5)
    photos = beside(moved(truth, 0.2), moved(truth, 0.3))
    # blurred: like the photos but for what they have and it lacks
    assert torch.allclose(kept_of(smooth(truth, 1.5), fixed, *photos), fixed, atol=1e-5)
    # differing: where, and only where, there is something else
    render = truth.clone()
    render[..., :40] = other[..., :40]
    kept, right = kept_of(render, fixed, *photos), slice(70, 105)
    assert torch.allclose(kept[..., :32], fixed[..., :32], atol=1e-3)
    assert error(kept[..., right], truth[..., right]) < 0.25 * error(fixed[..., right], truth[..., right])


def test_grain_that_no_photo_has_goes() -> None:
    """However much it is smoothed away before the render is compared with the photos."""
    truth = scene()
    grain = 0.06 * torch.randn(truth.shape, generator=torch.Generator().manual_seed(1))
    fixed = smooth(truth, 0.4)
    kept = kept_of((truth + grain).clamp(0, 1), fixed, *beside(moved(truth, 0.1)))
    assert error(kept, fixed) < 0.1 * float(grain.std())


def test_what_no_photo_sees_is_the_fix() -> None:
    truth = scene()
    fixed = smooth(truth, 0.8)
    aligned, visible = beside(truth, truth)
    assert torch.allclose(kept_of(truth, fixed, aligned, 0 * visible), fixed, atol=1e-6)
    visible[..., 60:] = 0
    kept = kept_of(truth, fixed, aligned * visible, visible)
    assert torch.allclose(kept[..., 90:], fixed[..., 90:], atol=1e-6)
    assert error(kept[..., :40], truth[..., :40]) < 0.2 * error(fixed[..., :40], truth[..., :40])


def test_it_follows_the_image_and_not_its_pixels() -> None:
    """Twice the pixels give the same picture; samples of a batch and mirrored ones do not mind each other."""
    truth = scene(height=180, width=240)
    render, fixed, photos = truth + 0.01, smooth(truth, 0.8), beside(moved(truth, 0.2), smooth(truth, 0.5))
    kept = kept_of(render, fixed, *photos, 240)

    def twice(x: Tensor) -> Tensor:
        return x.repeat_interleave(2, -1).repeat_interleave(2, -2)

    large = kept_of(*map(twice, (render, fixed, *photos)), 480)
    assert error(large[..., ::2, ::2], kept) < 2e-3
    two = kept_of(*(torch.cat([x, x.flip(-1)]) for x in (render, fixed, *photos)), 240)
    assert torch.allclose(two[:1], kept, atol=1e-6) and torch.allclose(two[1:].flip(-1), kept, atol=1e-5)


def test_no_number_stays_where_it_is() -> None:
    truth = scene()
    fixed = smooth(truth, 0.8)
    fixed[..., 40, 60] = torch.nan
    render = truth.clone()
    render[..., 20, 20] = torch.nan
    kept = kept_of(render, fixed, *beside(truth))
    assert torch.equal(torch.isfinite(kept), torch.isfinite(fixed))  # a broken fix is not hidden
    assert error(kept[..., 60:, :], truth[..., 60:, :]) < 0.01


def test_a_fixer_beside_photos_of_unknown_poses_leaves_the_photo_itself() -> None:
    """Untrained weights repaint everything, and of what is photographed only the tone is theirs."""
    fixer, photo = new_small_fixer("tiny"), scene()
    pixels = np.ascontiguousarray(photo[0].permute(1, 2, 0).numpy())
    registered = register_photos(photo, [pixels])
    kept = fixer(photo, registered)
    aligned, visible = registered.cut(Window(0, 0, 90, 120))
    repainted = fixer(photo, aligned, None, visible)
    fine = [x - smooth(x, 2.0) for x in (photo, kept, repainted)]
    assert error(fine[1], fine[0]) < 0.3 * error(fine[2], fine[0])
    # so does its second opinion, in windows too
    for tile in (None, 64):
        fixer.tile = tile
        for other in (fixer(photo, registered), fixer.second_opinion(photo, registered)):
            assert error(other - smooth(other, 2.0), fine[0]) < 0.3 * error(fine[2], fine[0])
