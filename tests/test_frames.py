"""The pipeline that carries frames: order, batches, what goes wrong in threads, memory."""

from __future__ import annotations

import itertools
import os
import signal
import subprocess
import sys
import threading
import time
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from difixcli.errors import InputError
from difixcli.fixer import confidence, new_small_fixer, tiling
from difixcli.fixer.registered import register_photos
from difixcli.fixer.tiling import Window
from difixcli.frames import pictures, references
from difixcli.frames.marks import marks
from difixcli.frames.pictures import Picture
from difixcli.frames.pipeline import FrameOptions, FramePipeline
from difixcli.frames.stages import Behind, Pace, carried, read_ahead
from difixcli.frames.writing import BROKEN, Clean, Shot, _Broken, write_frames
from difixcli.images import as_bytes, as_floats, as_planes, averaged, fitted, flow, flows, resized_to
from difixcli.runs import read_image

PACES = [Pace(), Pace(batch=3, readers=2, writers=2)]


def twice(batch: list[tuple[int, int]]) -> list[int]:
    return [2 * value for _, value in batch]


@pytest.mark.parametrize("pace", PACES)
def test_things_come_out_in_order_and_batches_hold_what_is_alike(pace: Pace) -> None:
    batches: list[list[int]] = []

    def prepared(number: int) -> int:
        time.sleep(0.002 * (number % 3))
        return number

    def work(batch: list[tuple[int, int]]) -> list[int]:
        batches.append([number for number, _ in batch])
        return twice(batch)

    found = list(carried(range(11), prepared, work, lambda i, p, made: made + 1, pace, lambda a, b: a // 4 == b // 4))
    assert found == [(i, 2 * i + 1) for i in range(11)]
    assert [number for batch in batches for number in batch] == list(range(11))
    if pace.batch == 3:
        assert batches == [[0, 1, 2], [3], [4, 5, 6], [7], [8, 9, 10]]


@pytest.mark.parametrize("pace", PACES)
def test_little_is_ahead_and_little_behind(pace: Pace) -> None:
    held, most = set(), 0
    lock = threading.Lock()

    def prepare(number: int) -> int:
        nonlocal most
        with lock:
            held.add(number)
            most = max(most, len(held))
        return number

    def write(number: int, prepared: int, made: int) -> None:
        time.sleep(0.002)
        with lock:
            held.discard(number)

    assert len(list(carried(range(60), prepare, twice, write, pace))) == 60
    assert most <= 3 * pace.batch + pace.readers + pace.writers


@pytest.mark.parametrize("pace", PACES)
def test_the_next_is_drawn_while_this_is_worked_on(pace: Pace) -> None:
    """As a video's frames, which are decoded as they are drawn; and none is drawn long before its turn."""
    begun, most = threading.Event(), 0
    done: list[int] = []

    def source() -> Iterator[int]:
        nonlocal most
        for number in range(40):
            if number == 3:
                assert begun.wait(20), "nothing is worked on while an item is drawn"
            most = max(most, number - len(done))
            yield number

    def work(batch: list[tuple[int, int]]) -> list[int]:
        if batch[-1][0] == 2:
            begun.set()
        done.extend(number for number, _ in batch)
        return twice(batch)

    assert len(list(carried(source(), lambda n: n, work, lambda i, p, made: made, pace))) == 40
    assert most <= 2 * pace.batch + pace.readers


def test_what_is_skipped_does_not_hold_up_the_end() -> None:
    """Of a source without an end, all of which but the first is there already."""

    def prepare(number: int) -> int:
        raise ValueError(number)

    with pytest.raises(ValueError, match="0"):
        list(carried(itertools.count(), prepare, lambda batch: batch, lambda *_: None, Pace(), skip=lambda n: n > 0))


def test_what_is_read_ahead_comes_in_order_and_errors_at_their_turn() -> None:
    def read(number: int) -> int:
        if number == 3:
            raise InputError("number 3")
        return 2 * number

    def source(end: int) -> Iterator[int]:
        yield from range(end)
        raise InputError("the video ends here")

    for end, told, count in ((9, "number 3", 3), (2, "ends here", 2)):
        seen = []
        with pytest.raises(InputError, match=told):
            for item, found in read_ahead(source(end), read):
                seen.append((item, found))
        assert seen == [(i, 2 * i) for i in range(count)]
    assert not [t for t in threading.enumerate() if t.name.startswith("read") and t.is_alive()]


@pytest.mark.parametrize("pace", PACES)
def test_what_cannot_be_read_is_told_after_all_before_it_is_written(pace: Pace) -> None:
    written: list[int] = []

    def prepare(number: int) -> int:
        if number in (4, 7):
            raise InputError(f"number {number} is broken")
        return number

    def write(number: int, prepared: int, made: int) -> int:
        written.append(number)
        return made

    with pytest.raises(InputError, match="number 4"):
        list(carried(range(20), prepare, twice, write, pace))
    assert sorted(written) == [0, 1, 2, 3]
    failed: dict[int, InputError] = {}
    found = [number for number, _ in carried(range(9), prepare, twice, write, pace, unreadable=failed)]
    assert found == [0, 1, 2, 3, 5, 6, 8] and list(failed) == [4, 7]

    def source() -> Iterator[int]:
        yield from range(5)
        raise InputError("the video ends here")

    for kept in (None, failed):  # what follows is lost, whatever becomes of things that cannot be read
        seen: list[int] = []
        written.clear()
        with pytest.raises(InputError, match="ends here"):
            for number, _ in carried(source(), lambda n: n, twice, write, pace, unreadable=kept):
                seen.append(number)
        assert sorted(written) == seen == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("pace", PACES)
def test_what_cannot_be_written_stops_the_work(pace: Pace) -> None:
    def write(number: int, prepared: int, made: int) -> None:
        if number == 3:
            raise OSError("no space left")

    worked: list[int] = []

    def work(batch: list[tuple[int, int]]) -> list[int]:
        worked.extend(number for number, _ in batch)
        return twice(batch)

    with pytest.raises(OSError, match="no space"):
        list(carried(range(1000), lambda n: n, work, write, pace))
    assert len(worked) < 30
    with pytest.raises(OSError, match="no space"), Behind(2) as behind:
        for number in range(10):
            behind.do(write, number, 0, 0)
    assert not [t for t in threading.enumerate() if t.name.startswith(("read", "write")) and t.is_alive()]


def test_an_interrupt_stops_promptly_and_leaves_whole_frames(tmp_path: Path) -> None:
    code = (
        "import signal, sys, time, numpy as np\n"
        "from pathlib import Path\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"  # whoever started the tests may ignore it
        "from difixcli.frames.writing import Clean, Shot, write_frames\n"
        "def work(batch):\n"
        "    print('at work', flush=True)\n"
        "    time.sleep(0.2)\n"
        "    return [Clean(image) for image in batch]\n"
        "image = np.zeros((64, 64, 3), np.float32)\n"
        "shots = [Shot(f'{i}', lambda: image, lambda: image) for i in range(10000)]\n"
        "write_frames(shots, len(shots), Path(sys.argv[1]), work)\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert process.stdout is not None
    for _ in range(3):
        process.stdout.readline()
    begun = time.monotonic()
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=30)
    assert time.monotonic() - begun < 10 and b"KeyboardInterrupt" in said and process.returncode != 0
    assert not list(tmp_path.glob(".*.part")) and list(tmp_path.glob("*.png"))
    for path in tmp_path.glob("*.png"):
        read_image(path)


def shots_of(count: int, size: tuple[int, int]) -> Iterator[Shot]:
    def image() -> np.ndarray:
        return np.full((*size, 3), 0.5, np.float32)

    return (Shot(f"{i:04}", image, image) for i in range(count))


def peak(function: Callable[[], object]) -> int:
    """Bytes of arrays and Python's objects at most, beyond those at the beginning."""
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        function()
        return tracemalloc.get_traced_memory()[1] - before
    finally:
        tracemalloc.stop()


def test_many_frames_need_no_more_memory_than_few(tmp_path: Path) -> None:
    def work(batch: list[np.ndarray]) -> list[Clean]:
        return [Clean(1 - image) for image in batch]

    few, many = (
        peak(lambda count=count: write_frames(shots_of(count, (120, 160)), count, tmp_path / f"{count}", work))  # type: ignore[misc]
        for count in (6, 60)
    )
    frame = 120 * 160 * 3 * 4
    # how full the queues are when there are few depends on which thread gets the processor
    assert many < few + 5 * frame and many < 12 * frame
    assert len(list((tmp_path / "60").glob("*.png"))) == 60


@pytest.mark.parametrize("steady", [False, True])
def test_steady_or_not_what_is_there_is_kept(steady: bool, tmp_path: Path) -> None:
    def work(batch: list[np.ndarray]) -> list[Clean]:
        return [Clean(x) for x in batch]

    said = write_frames(shots_of(4, (20, 24)), 4, tmp_path, work, Pace(2, 2, 2), steady=steady)
    assert (said.frames, said.kept, said.sizes) == (4, 0, {(24, 20)})
    whole = (tmp_path / "0002.png").read_bytes()
    (tmp_path / "0002.png").unlink()
    (tmp_path / "film.json").write_text("{}")
    stale = [tmp_path / "film.json"]
    said = write_frames(shots_of(4, (20, 24)), 4, tmp_path, work, steady=steady, stale=stale)
    assert (said.frames, said.kept, list(said.told)) == (4, 3, ["0002"]) and not stale[0].exists()
    assert (tmp_path / "0002.png").read_bytes() == whole


def textured(height: int, width: int, seed: int = 0) -> np.ndarray:
    coarse = torch.rand(1, 3, height // 8, width // 8, generator=torch.Generator().manual_seed(seed))
    wide = torch.nn.functional.interpolate(coarse, (height, width), mode="bicubic").clamp(0, 1)
    return np.ascontiguousarray(wide[0].permute(1, 2, 0).numpy())


def test_marks_say_what_a_photo_saw_and_what_is_invented() -> None:
    image = textured(64, 96)
    pipeline = FramePipeline(new_small_fixer("tiny"), options=FrameOptions(confidence=True))
    (alone,) = pipeline.fix([pipeline.beside(Picture(image), ())])
    (beside,) = pipeline.fix([pipeline.beside(Picture(image), [image])])
    assert alone.confidence is not None and beside.confidence is not None
    for one in (alone, beside):
        np.testing.assert_allclose(one.confidence.sum(-1), 1, atol=0.01)
    assert alone.confidence[..., 1].max() == 0 and beside.confidence[8:-8, 8:-8, 1].mean() > 0.5
    np.testing.assert_allclose(marks(np.array([[0.75]]), np.array([[0.5]])), [[[0.25, 0.375, 0.375]]], atol=1e-6)


def test_a_batch_is_the_same_as_one_by_one() -> None:
    fixer = new_small_fixer("tiny")
    pipeline = FramePipeline(fixer, options=FrameOptions(confidence=True))
    images = [textured(48, 64, seed) for seed in range(3)]
    prepared = [pipeline.beside(Picture(image), [images[0], images[1]]) for image in images]
    assert pipeline.alike(*prepared[:2])
    together, alone = pipeline.fix(prepared), [pipeline.fix([one])[0] for one in prepared]
    for one, other in zip(together, alone, strict=True):
        assert np.abs(one.color.astype(int) - other.color).max() <= 1


def test_registered_photos_are_aligned_references() -> None:
    """In windows, too, and mirrored: the network gets what it would get as tensors."""
    fixer = new_small_fixer("tiny")
    # darker than the image: where they agree, its own detail would be kept
    image, photo = textured(96, 136), 0.8 * np.roll(textured(96, 136), 3, axis=1)
    planes, registered = as_planes(image), register_photos(as_planes(image), [photo, photo])
    aligned, visible = registered.cut(Window(0, 0, 96, 136))
    for tile in (None, 64):
        fixer.tile = tile
        torch.testing.assert_close(fixer(planes, registered), fixer(planes, aligned, None, visible), atol=2e-3, rtol=0)
    fixer.tile = None
    two = [f(planes, r, None, v) for f in (fixer.second_opinion,) for r, v in ((registered, None), (aligned, visible))]
    torch.testing.assert_close(*two, atol=2e-3, rtol=0)
    with pytest.raises(ValueError, match="like the images"):
        fixer(planes[..., :-8], registered)


def test_images_are_resized_as_before() -> None:
    """One resize of each kind: what the several did that it took the place of."""
    import cv2

    image = textured(48, 64)
    for size in ((24, 30), (70, 90), (48, 64)):
        how = cv2.INTER_AREA if size[0] < 48 else cv2.INTER_CUBIC
        wanted = image if size == (48, 64) else np.clip(cv2.resize(image, size[::-1], interpolation=how), 0, 1)
        np.testing.assert_array_equal(resized_to(image, size), wanted)
        planes = as_planes(image)
        assert planes.is_contiguous() and planes.shape == (1, 3, 48, 64)
        area = torch.nn.functional.interpolate(planes, size, mode="area")
        torch.testing.assert_close(averaged(planes, size), area, atol=0, rtol=0)
        assert fitted(planes[0], size).shape == (3, *size) and 0 <= fitted(planes[0], size).min() <= 1
    read_only = image.copy()
    read_only.setflags(write=False)
    planes = as_planes(read_only)
    planes += 1
    assert read_only.max() <= 1
    pixels = (image * 255).astype(np.uint8)
    np.testing.assert_array_equal(as_planes(pixels)[0, 1].numpy(), pixels[..., 1])
    grey = [(textured(40, 48, seed)[..., 0] * 255).astype(np.uint8) for seed in (0, 1)]
    there, back = flows(*grey)
    np.testing.assert_array_equal(back, flow(grey[1], grey[0]))
    assert there.shape == (40, 48, 2) and not flow(grey[0][:10], grey[1][:10]).any()


@pytest.mark.parametrize("band", [2**21, 700])
def test_signs_of_bad_fixes_are_the_same_band_by_band(band: int, monkeypatch: pytest.MonkeyPatch) -> None:
    images = torch.cat([as_planes(textured(61, 83, seed)) for seed in (0, 1)])
    grey = images.mean(1, keepdim=True)
    detail = grey - confidence.smooth(grey, 2.0)
    power = detail.square().mean((1, 2, 3))
    alike = (detail[..., 1:] * detail[..., :-1]).mean((1, 2, 3))
    alike = alike + (detail[..., 1:, :] * detail[..., :-1, :]).mean((1, 2, 3))
    monkeypatch.setattr(confidence, "_BAND", band)
    spread, likeness = confidence._detail(images)
    torch.testing.assert_close(spread, power.sqrt())
    torch.testing.assert_close(likeness, alike / (2 * power))


def saved(path: Path, mode: str, seed: int = 0, **options: object) -> Path:
    pixels = (textured(48, 64, seed) * 255).round().astype(np.uint8)
    Image.fromarray(pixels).convert(mode).save(path, **options)
    return path


@pytest.mark.parametrize("mode", ["RGB", "L", "P", "CMYK", "RGBA", "LA", "I;16"])
def test_bytes_that_are_read_are_the_floats_that_are_read(
    mode: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also in strips, and turned upright."""
    monkeypatch.setattr(pictures, "_ROWS", 7)
    turned = Image.Exif()
    turned[0x0112] = 6
    path = saved(tmp_path / ("x.jpg" if mode == "CMYK" else "x.png"), mode, exif=turned)
    found = pictures.read_pixels(path)
    assert found.shape == (64, 48, 3) and (found.dtype == np.uint8) == (mode not in ("RGBA", "LA", "I;16"))
    np.testing.assert_array_equal(as_floats(found), read_image(path, upright=True))
    np.testing.assert_array_equal(as_bytes(as_floats(found)), as_bytes(found))
    small = pictures.read_picture(path, 20).color
    np.testing.assert_array_equal(small, resized_to(read_image(path, upright=True), (20, 15)))


def test_an_image_is_read_without_a_second_copy(tmp_path: Path) -> None:
    Image.new("RGB", (900, 1200), (10, 20, 30)).save(tmp_path / "large.png")
    assert peak(lambda: pictures.read_picture(tmp_path / "large.png")) < 1.6 * 900 * 1200 * 3


def test_bytes_of_images_are_what_floats_of_them_are() -> None:
    """Reduced, registered, fixed in windows and judged, to the bit."""
    image, photo = ((textured(136, 200, seed) * 255).round().astype(np.uint8) for seed in (0, 1))
    photo[40:] = np.roll(image, 2, axis=1)[40:]
    whole, beside = (torch.from_numpy(pixels).permute(2, 0, 1)[None] for pixels in (image, photo))
    floats = as_planes(image) / 255
    for size in ((17, 25), (61, 150), (136, 200), (160, 300)):
        assert torch.equal(averaged(whole, size), averaged(floats, size))
        assert torch.equal(fitted(whole[0], size), fitted(floats[0], size))
    matches = [register_photos(x, [photo, as_floats(photo)]) for x in (whole, floats)]
    windows = [matched.cut(Window(8, 16, 64, 72)) for matched in matches]
    for one, other in zip(*windows, strict=True):
        assert torch.equal(one, other) and torch.equal(one[:, 0], one[:, 1])
    fixer = new_small_fixer("tiny")
    for tile in (None, 64):
        fixer.tile = tile
        fixed = fixer(whole, matches[0])
        assert fixed.dtype == torch.float32 and torch.equal(fixed, fixer(floats, matches[1]))
        assert torch.equal(fixer.second_opinion(whole, matches[0]), fixer.second_opinion(floats, matches[1]))
    signs = [confidence.bad_fix_signs(*pair) for pair in ((whole, beside), (floats, beside / 255))]
    assert all(torch.equal(signs[0][name], signs[1][name]) for name in signs[0])
    trust = [confidence.fix_confidence(x, fixed) for x in (whole, floats)]
    assert torch.equal(*trust)


def test_windows_are_blended_as_if_all_their_weights_were_there() -> None:
    fixer = new_small_fixer("tiny")
    fixer.tile = 64
    image = as_planes(textured(200, 168))
    fixed = fixer._tiled(fixer.network, image, None, None, None, None, None, 64)
    total, weights = torch.zeros_like(image), torch.zeros(200, 168)
    parts = tiling.windows(200, 168, 64, fixer.config.multiple)
    assert len({part.top for part in parts}) > 2
    with torch.no_grad():
        for part in parts:
            weight = tiling.fade(part, 200, 168, weights)
            whole = fixer._fixed(fixer.network, part, image, None, None, None, None, None, None)
            total[..., part.top : part.top + part.height, part.left : part.left + part.width] += whole * weight
            weights[part.top : part.top + part.height, part.left : part.left + part.width] += weight
    assert torch.equal(fixed, total / weights)


def test_confidence_is_the_same_band_by_band(monkeypatch: pytest.MonkeyPatch) -> None:
    images = torch.cat([as_planes(textured(160, 64, seed)) for seed in (0, 1)])
    fixed, second = images.flip(0), (images + images.flip(-1)) / 2
    fixed[0, 0, 30, 7] = torch.nan
    opacity = images[:, :1]
    whole = confidence.fix_confidence(images, fixed, opacity, second)
    monkeypatch.setattr(confidence, "_BAND", 64 * 37)
    torch.testing.assert_close(confidence.fix_confidence(images, fixed, opacity, second), whole, atol=1e-6, rtol=0)


def test_photos_in_use_are_there_once_however_large(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As frames follow each other, those of one are beside the next."""
    monkeypatch.setattr(references, "_HELD_BYTES", 0)
    photos = references.ReferencePhotos.by_likeness([saved(tmp_path / f"{i}.png", "RGB", i) for i in range(2)])
    image = textured(48, 64)
    first = list(photos.beside("a", image, as_they_are=True))
    second = list(photos.beside("b", image, as_they_are=True))
    assert all(one is other for one, other in zip(first, second, strict=True))
    assert len(photos._in_use) == 2 and not photos._held
    del first, second
    assert not photos._in_use


def test_broken_frames_of_any_name_are_remembered(tmp_path: Path) -> None:
    """File names need not be UTF-8, nor free of what ends a line elsewhere."""
    names = {"a", os.fsdecode(b"b\xff"), "c\x0bd", "e\u2028f"}
    for name in sorted(names):
        _Broken(tmp_path / BROKEN).add(name)
    assert _Broken(tmp_path / BROKEN).names() >= names
