"""What a render shows as its photos do keeps its detail; where they differ, or it is blurred, detail is the fix's."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from difixcli.fixer import new_small_fixer
from difixcli.fixer.confidence import smooth
from difixcli.fixer.detail import keep_known_detail
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


def error(image: Tensor, truth: Tensor) -> float:
    return float((image - truth).square().mean().sqrt())


def test_a_good_render_keeps_its_detail_and_takes_the_tone() -> None:
    truth = scene()
    render = truth + 0.01  # good but for its tone
    fixed = smooth(truth, 0.8)  # the tone is right, the detail a little soft
    kept = keep_known_detail(render, fixed, *beside(moved(truth, 0.2), moved(truth, 0.3)), 120)
    assert error(kept, truth) < 0.3 * min(error(render, truth), error(fixed, truth))


def test_a_blurred_or_differing_render_takes_all_of_the_fix() -> None:
    truth, other = scene(), scene(1)
    fixed = smooth(truth, 0.5)
    photos = beside(moved(truth, 0.2), moved(truth, 0.3))
    # blurred: like the photos but for what they have and it lacks
    assert torch.allclose(keep_known_detail(smooth(truth, 1.5), fixed, *photos, 120), fixed, atol=1e-5)
    # differing: where, and only where, there is something else
    render = truth.clone()
    render[..., :40] = other[..., :40]
    kept, right = keep_known_detail(render, fixed, *photos, 120), slice(70, 105)
    assert torch.allclose(kept[..., :32], fixed[..., :32], atol=1e-3)
    assert error(kept[..., right], truth[..., right]) < 0.25 * error(fixed[..., right], truth[..., right])


def test_what_no_photo_sees_is_the_fix() -> None:
    truth = scene()
    fixed = smooth(truth, 0.8)
    aligned, visible = beside(truth, truth)
    assert torch.allclose(keep_known_detail(truth, fixed, aligned, 0 * visible, 120), fixed, atol=1e-6)
    visible[..., 60:] = 0
    kept = keep_known_detail(truth, fixed, aligned * visible, visible, 120)
    assert torch.allclose(kept[..., 90:], fixed[..., 90:], atol=1e-6)
    assert error(kept[..., :40], truth[..., :40]) < 0.2 * error(fixed[..., :40], truth[..., :40])


def test_it_follows_the_image_and_not_its_pixels() -> None:
    """Twice the pixels give the same picture; samples of a batch and mirrored ones do not mind each other."""
    truth = scene()
    render, fixed, photos = truth + 0.01, smooth(truth, 0.8), beside(moved(truth, 0.2), smooth(truth, 0.5))
    kept = keep_known_detail(render, fixed, *photos, 240)

    def twice(x: Tensor) -> Tensor:
        return x.repeat_interleave(2, -1).repeat_interleave(2, -2)

    large = keep_known_detail(*map(twice, (render, fixed, *photos)), 480)
    assert error(large[..., ::2, ::2], kept) < 2e-3
    two = keep_known_detail(*(torch.cat([x, x.flip(-1)]) for x in (render, fixed, *photos)), 240)
    assert torch.allclose(two[:1], kept, atol=1e-6) and torch.allclose(two[1:].flip(-1), kept, atol=1e-5)


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
