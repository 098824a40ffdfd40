"""What no reference shows keeps the render's tone; what one shows is left as the network made it."""

from __future__ import annotations

import numpy as np
import torch
from scipy.ndimage import gaussian_filter

from difixcli.fixer import Fixer
from difixcli.fixer.tone import keep_unseen_tone


def random_images(seed: int, *shape: int) -> torch.Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed))


def test_without_references_brightness_is_the_renders_and_detail_the_fix() -> None:
    render = 0.3 + 0.2 * random_images(0, 1, 3, 90, 120)
    fixed = 0.5 + 0.2 * random_images(1, 1, 3, 90, 120)
    for visibility in (None, torch.zeros(1, 2, 1, 90, 120), torch.zeros(1, 0, 1, 90, 120)):
        kept = keep_unseen_tone(render, fixed.clone(), visibility)
        # float64 oracle: the blurred difference goes back in
        change = (render - fixed)[0].double().numpy()
        expected = fixed[0].numpy() + np.stack([gaussian_filter(c, 4, mode="mirror", truncate=3) for c in change])
        assert np.abs(kept[0].numpy() - expected).max() < 1e-4
        assert abs(float(kept.mean() - render.mean())) < 2e-3


def test_what_references_show_is_untouched() -> None:
    render, fixed = random_images(0, 2, 3, 60, 200), random_images(1, 2, 3, 60, 200)
    visibility = torch.zeros(2, 2, 1, 60, 200)
    visibility[0, 1, :, :, :120] = 1
    visibility[1] = 1
    kept = keep_unseen_tone(render, fixed.clone(), visibility)
    assert torch.equal(kept[0, ..., :100], fixed[0, ..., :100]) and torch.equal(kept[1], fixed[1])
    everywhere = keep_unseen_tone(render, fixed.clone(), None)
    assert torch.allclose(kept[0, ..., 180:], everywhere[0, ..., 180:], atol=2e-3)
    mirrored = keep_unseen_tone(render.flip(-1), fixed.flip(-1), visibility.flip(-1)).flip(-1)
    assert torch.allclose(mirrored, kept, atol=1e-5)


def test_a_hole_darkens_nothing_around_it_and_keeps_its_filling() -> None:
    render, opacity = torch.full((1, 3, 96, 120), 0.5), torch.ones(1, 1, 96, 120)
    render[..., 40:60], opacity[..., 40:60] = 0, 0
    fixed = torch.full_like(render, 0.55)  # a filled hole, and everything a little too bright
    kept = keep_unseen_tone(render, fixed.clone(), None, opacity)
    assert (kept - 0.5).abs().max() < 5e-3
    assert keep_unseen_tone(render, fixed.clone(), None)[..., 50].max() < 0.2  # were it not known for a hole


def test_what_is_no_number_stays_where_it_is() -> None:
    render, fixed = random_images(0, 1, 3, 60, 80), random_images(1, 1, 3, 60, 80)
    fixed[..., 20, 30] = torch.nan
    kept = keep_unseen_tone(render, fixed.clone(), None)
    assert torch.isfinite(kept).sum() == kept.numel() - 3


def test_an_image_of_a_few_pixels_keeps_its_detail() -> None:
    render, fixed = random_images(0, 1, 3, 12, 16), random_images(1, 1, 3, 12, 16)
    kept = keep_unseen_tone(render, fixed.clone(), None)
    assert (kept - fixed).abs().mean() < 0.4 * (kept - render).abs().mean()


def test_the_bundled_fixer_leaves_a_renders_brightness_alone() -> None:
    """Without references it made some renders a tenth brighter."""
    fixer = Fixer.from_pretrained("bundled")
    coarse = random_images(2, 1, 3, 6, 8)
    for level in (0.2, 0.5, 0.8):
        render = torch.nn.functional.interpolate(level + 0.3 * (coarse - 0.5), (72, 96), mode="bicubic").clamp(0, 1)
        fixed = fixer(render)
        assert (fixed.mean((2, 3)) - render.mean((2, 3))).abs().max() < 0.01
        wrong = fixer(render, random_images(3, 1, 1, 3, 72, 96), visibility=torch.zeros(1, 1, 1, 72, 96))
        assert (wrong.mean((2, 3)) - render.mean((2, 3))).abs().max() < 0.01
