"""Half precision and compiled networks, as far as a CPU has them: near single precision's pixels, at any size."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from commands import difix, told
from test_fixer_inference import raw_network, smooth
from torch._dynamo.testing import CompileCounter

from difixcli.fixer import Fixer, new_small_fixer
from difixcli.fixer.confidence import bad_fixes
from difixcli.fixer.weights import merge_adapters
from difixcli.runs import read_image, write_image

BOUND = 0.02
"""Mean difference from single precision: random networks double a rounding of 1/256 a few times."""


def mutual() -> Fixer:
    return Fixer(raw_network())


def one_way() -> Fixer:
    return Fixer(merge_adapters(raw_network(reference_attention="one-way")))


def aligned() -> Fixer:
    return new_small_fixer("tiny", seed=1)


@pytest.mark.parametrize(
    ("make", "dtype"), [(mutual, torch.bfloat16), (one_way, torch.float16), (aligned, torch.bfloat16)]
)
def test_half_precision_is_near_single(make: Callable[[], Fixer], dtype: torch.dtype) -> None:
    full, half = make(), make().to("cpu", dtype)
    images, opacity = smooth(2, 3, 56, 88), smooth(2, 1, 56, 88, seed=3)
    photos = smooth(4, 3, 56, 88, seed=1).unflatten(0, (2, 2))
    visibility = smooth(4, 1, 56, 88, seed=2).unflatten(0, (2, 2))
    for arguments in (
        (images,),
        (images, photos, None, None),
        (images, photos, opacity, visibility, 3),
        (images.to(dtype), photos.to(dtype), opacity.to(dtype), visibility.to(dtype), 3),
    ):
        found, expected = half(*arguments), full(*(x.float() if torch.is_tensor(x) else x for x in arguments))
        assert found.dtype == arguments[0].dtype and torch.isfinite(found).all()
        assert (found.float() - expected).abs().mean() < BOUND
    full.tile = half.tile = 48
    assert (half(images, photos, opacity) - full(images, photos, opacity)).abs().mean() < BOUND
    broken = images.clone()
    broken[1, :, 4, 4] = torch.nan
    fixed = half(broken, photos)
    assert bad_fixes(images, fixed).tolist()[1] and torch.isfinite(fixed[0]).all()


def test_fix_in_half_precision_from_the_command_line(tmp_path: Path) -> None:
    fixer = new_small_fixer("tiny", seed=0).save_pretrained(tmp_path / "fixer")
    color = smooth(1, 3, 40, 56)[0].permute(1, 2, 0).numpy()
    write_image(tmp_path / "in" / "a.png", color)
    photo = tmp_path / "photo.png"
    write_image(photo, smooth(1, 3, 40, 56, seed=1)[0].permute(1, 2, 0).numpy())
    line = ("fix", tmp_path / "in", "--fixer", fixer, "--reference", photo, "--confidence", "--json")
    shown = {}
    for dtype in ("fp32", "bf16", "fp16"):
        told(difix(*line, "--dtype", dtype, "--output", tmp_path / dtype))
        shown[dtype] = read_image(tmp_path / dtype / "a.png")
    for dtype in ("bf16", "fp16"):
        assert 0 < np.abs(shown[dtype] - shown["fp32"]).mean() < BOUND


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> Iterator[CompileCounter]:
    """torch.compile traces and guards as ever, but lowers nothing; how often it did is counted."""
    torch._dynamo.reset()
    counter = CompileCounter()
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend=counter))
    yield counter
    torch._dynamo.reset()


def test_images_of_many_sizes_are_not_compiled_for_each(counted: CompileCounter) -> None:
    """What the compiler then makes of it is tested where there is a GPU: for a CPU it takes minutes."""
    sizes = [(32 + 8 * i, 48 + 16 * (3 * i % 5)) for i in range(3)]
    inputs = [(smooth(1, 3, *size), smooth(2, 3, *size, seed=1)[None]) for size in sizes]
    plain, fixer = aligned(), aligned()
    fixer.compile()
    frames = []
    for image, photos in inputs:
        torch.testing.assert_close(fixer(image, photos), plain(image, photos), atol=1e-4, rtol=1e-3)
        frames.append(counted.frame_count)
    assert frames[0] >= 3  # encoder, U-Net and decoder at least
    assert frames[-1] < 3 * frames[0], f"compiled anew for every size: {frames}"
