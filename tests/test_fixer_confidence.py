"""Confidence of fixes, and broken fixes told from good ones."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from difixcli.fixer.confidence import bad_fix_score, bad_fix_signs, bad_fixes, fix_confidence


@pytest.fixture(scope="module")
def pictures(photos: list[Path]) -> torch.Tensor:
    """(12, 3, 128, 192) true photos."""
    found = []
    for path in photos[:: len(photos) // 12][:12]:
        with Image.open(path) as opened:
            found.append(np.asarray(opened.convert("RGB").resize((192, 128)), np.float32) / 255)
    return torch.from_numpy(np.stack(found)).permute(0, 3, 1, 2)


@pytest.fixture(scope="module")
def renders(pictures: torch.Tensor) -> torch.Tensor:
    """What a bad reconstruction makes of them: blurred, a floater, a hole, a slight haze."""
    height = pictures.shape[-2]
    images = F.avg_pool2d(F.pad(pictures, (3, 3, 3, 3), mode="reflect"), 7, 1)
    images = images * 0.95 + 0.03
    images[:, :, height // 2 : height // 2 + 20, 30:60] = 0.4
    images[:, :, :24, -30:] = 0
    return images


def colour_blocks(images: torch.Tensor) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    height, width = images.shape[-2:]
    grid = (len(images), -1, height // 16, width // 16)
    colours = torch.rand(len(images), 3, *grid[2:], generator=generator)
    chosen = (torch.rand(len(images), 1, *grid[2:], generator=generator) < 0.3).float()
    colours, chosen = (F.interpolate(x, (height, width)) for x in (colours, chosen))
    return images * (1 - chosen) + colours * chosen


def noisy(images: torch.Tensor) -> torch.Tensor:
    noise = torch.randn(images.shape, generator=torch.Generator().manual_seed(0))
    return (images + 0.2 * noise).clamp(0, 1)


BREAKS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "blocks": colour_blocks,
    "tinted": lambda x: (x * torch.tensor([0.7, 0.9, 1.3])[:, None, None]).clamp(0, 1),
    "dark": lambda x: x * 0.3,
    "black": torch.zeros_like,
    "constant": lambda x: torch.zeros_like(x) + x.mean((2, 3), keepdim=True),
    "not numbers": lambda x: torch.where(torch.arange(x.shape[-1]) == 5, torch.nan, x),
    "noise": lambda x: torch.rand(x.shape, generator=torch.Generator().manual_seed(0)),
    "noisy": noisy,
    "shifted": lambda x: F.pad(x, (16, 0, 0, 0), mode="replicate")[..., : x.shape[-1]],
    "inverted": lambda x: 1 - x,
    "smeared": lambda x: F.interpolate(F.avg_pool2d(x, 32), x.shape[-2:], mode="bilinear"),
}


@pytest.mark.parametrize("name", BREAKS)
def test_broken_fixes_are_found(pictures: torch.Tensor, renders: torch.Tensor, name: str) -> None:
    found = bad_fixes(renders, BREAKS[name](pictures))
    assert found.shape == (12,) and found.dtype == torch.bool
    assert found.float().mean() >= 0.75, bad_fix_score(renders, BREAKS[name](pictures))


def test_good_fixes_are_left_alone(pictures: torch.Tensor, renders: torch.Tensor) -> None:
    opacity = (renders.amax(1, keepdim=True) > 0).float()
    sharpened = (renders + 0.7 * (renders - F.avg_pool2d(renders, 5, 1, 2, count_include_pad=False))).clamp(0, 1)
    for fixed in (pictures, renders, sharpened, 0.5 * (pictures + renders)):
        assert bad_fixes(renders, fixed, opacity).sum() <= 1, bad_fix_signs(renders, fixed, opacity)


def test_every_fix_is_judged_alone_and_at_any_size(pictures: torch.Tensor, renders: torch.Tensor) -> None:
    fixed = pictures.clone()
    fixed[3] = torch.nan
    score = bad_fix_score(renders, fixed)
    assert score[3] == torch.inf
    assert torch.allclose(bad_fix_score(renders[5:6], fixed[5:6]), score[5:6], rtol=1e-3)
    tiny = renders[..., :5, :7]
    assert torch.isfinite(bad_fix_score(tiny, tiny)).all()
    empty = torch.zeros(1, 3, 32, 32)  # a render of nothing has no structure that a fix could lose
    assert not bad_fix_signs(empty, pictures[:1, :, :32, :32])["structure"].any()


def test_confidence_follows_what_is_there(pictures: torch.Tensor, renders: torch.Tensor) -> None:
    trusted = fix_confidence(renders, renders)
    assert trusted.shape == (12, 1, 128, 192)
    assert torch.allclose(trusted, torch.ones_like(trusted))
    opacity = torch.ones(12, 1, 128, 192)
    opacity[..., :40] = 0
    assert not fix_confidence(renders, renders, opacity)[..., :40].any()
    changed = renders.clone()
    changed[..., 40:90, 100:150] = 1 - changed[..., 40:90, 100:150]
    low = fix_confidence(renders, changed)
    strong = (changed - renders).abs().amax(1, keepdim=True)[..., 50:80, 110:140] > 0.5
    assert low[..., 50:80, 110:140][strong].mean() < 0.2
    assert low[..., :90].min() > 0.9
    # texture may change, tone may not; where two fixes differ, one has guessed
    second = renders.clone()
    second[..., 20:60, 20:60] = (second[..., 20:60, 20:60] + 0.3) % 1
    doubtful = fix_confidence(renders, renders, None, second)
    assert doubtful[..., 30:50, 30:50].mean() < 0.1
    assert doubtful[..., 70:, :].min() > 0.99
    broken = renders.clone()
    broken[0, 1, 7, 9] = torch.nan
    judged = fix_confidence(renders, broken)
    assert judged[0, 0, 7, 9] == 0 and torch.isfinite(judged).all()


def test_confidence_is_lower_where_the_fix_is_wrong(pictures: torch.Tensor, renders: torch.Tensor) -> None:
    fixed = colour_blocks(pictures)
    confidence = fix_confidence(renders, fixed)
    wrong = (fixed - pictures).abs().amax(1, keepdim=True) > 0.3
    right = (fixed - pictures).abs().amax(1, keepdim=True) < 0.01
    assert confidence[wrong].mean() < 0.5 * confidence[right].mean()


def test_shapes_that_do_not_belong_together_are_refused(renders: torch.Tensor) -> None:
    for wrong in ((renders, renders[..., 1:]), (renders[0], renders[0]), (renders, renders, renders)):
        with pytest.raises(ValueError, match="must be"):
            fix_confidence(*wrong)
        with pytest.raises(ValueError, match="must be"):
            bad_fixes(*wrong)
