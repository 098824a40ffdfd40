"""Images, folders and videos go through a fixer frame by frame, whole or not at all, and go on where they stopped."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from difixcli.enhancement import Film, check_images, enhance_images, fix_image
from difixcli.enhancement.video import VideoWriter, read_video
from difixcli.errors import InputError
from difixcli.fixer.fixer import new_small_fixer
from difixcli.runs import read_image, write_image


class Inverter:
    """Stands in for a network where only what goes in and comes out counts: inverts, and remembers its inputs."""

    def __init__(self, references: str = "raw") -> None:
        self.config = SimpleNamespace(references=references, views=1)
        self.calls: list[tuple[torch.Tensor, torch.Tensor | None, torch.Tensor | None]] = []

    def __call__(self, images, references=None, opacity=None, visibility=None):
        self.calls.append((images, references, visibility))
        return 1 - images


@pytest.fixture
def frames(tmp_path, photos) -> Path:
    """A folder of three frames that pan over a photo, 65×47 pixels."""
    with Image.open(photos[0]) as opened:
        image = np.asarray(opened.convert("RGB").resize((96, 64)), np.float32) / 255
    for i in range(3):
        write_image(tmp_path / "renders" / f"frame_{i + 8}.png", image[i : i + 47, 2 * i : 2 * i + 65])
    return tmp_path / "renders"


def write_video(frames: Path, path: Path, fps: float) -> Path:
    with VideoWriter(path, fps) as video:
        for file in sorted(frames.iterdir()):
            video.add(read_image(file))
    return path


def test_a_folder_with_references_and_a_small_fixer(frames, photos, tmp_path):
    fixer = new_small_fixer("tiny")
    result = enhance_images(frames, tmp_path / "out", fixer, references=photos[:2])
    assert result["frames"] == 3 and result["kept"] == 0 and result["video"] is None
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["frame_10.png", "frame_8.png", "frame_9.png"]
    assert read_image(tmp_path / "out/frame_8.png").shape == (47, 65, 3)
    enhance_images(frames / "frame_9.png", tmp_path / "again", fixer, references=photos[:2])
    assert (tmp_path / "out/frame_9.png").read_bytes() == (tmp_path / "again/frame_9.png").read_bytes()


def test_frames_already_there_are_kept(frames, tmp_path):
    out, fixer = tmp_path / "out", Inverter()
    enhance_images(frames, out, fixer)
    (out / "frame_9.png").unlink()
    before = (out / "frame_8.png").stat().st_mtime_ns
    result = enhance_images(frames, out, fixer)
    assert result["kept"] == 2 and len(fixer.calls) == 4
    assert (out / "frame_8.png").stat().st_mtime_ns == before
    np.testing.assert_allclose(read_image(out / "frame_9.png"), 1 - read_image(frames / "frame_9.png"), atol=1 / 255)
    assert enhance_images(frames, out, fixer)["seconds_per_frame"] is None


def test_a_sequence_becomes_a_video_in_its_order(frames, tmp_path):
    for i in (8, 9, 10):
        write_image(frames / f"frame_{i}.png", np.full((47, 65, 3), i / 20, np.float32))
    result = enhance_images(frames, tmp_path / "out", Inverter(), film=Film())
    video = read_video(Path(result["video"]))
    shown = list(video.frames)
    assert video.fps == 24 and [f.shape for f in shown] == [(48, 66, 3)] * 3  # even sides
    np.testing.assert_allclose([f.mean() for f in shown], [1 - i / 20 for i in (8, 9, 10)], atol=0.02)
    assert not list((tmp_path / "out").glob("*.part"))


def test_photos_that_are_no_sequence_make_no_video(frames, tmp_path):
    (frames / "frame_8.png").rename(frames / "door.png")
    assert enhance_images(frames, tmp_path / "out", Inverter(), film=Film())["video"] is None


def test_a_video_in_and_out(frames, tmp_path):
    source = write_video(frames, tmp_path / "in.mp4", 10)
    result = enhance_images(source, tmp_path / "out", Inverter(), film=Film())
    assert result["frames"] == 3 and (tmp_path / "out/frame_00001.png").is_file()
    video = read_video(tmp_path / "out/video.mp4")
    assert video.fps == 10 and len(list(video.frames)) == 3
    inverted = 1 - next(read_video(source).frames)
    np.testing.assert_allclose(read_image(tmp_path / "out/frame_00001.png"), inverted, atol=1 / 255)


def test_one_image_at_a_smaller_size(photos, tmp_path):
    with Image.open(photos[0]) as opened:
        width, height = opened.size
    result = enhance_images(photos[0], tmp_path / "out", Inverter(), size=80)
    assert result["frames"] == 1
    fixed = read_image(tmp_path / "out" / f"{photos[0].stem}.png")
    assert max(fixed.shape) == 80 and fixed.shape[1] / fixed.shape[0] == pytest.approx(width / height, rel=0.03)


def test_references_are_brought_to_the_frames_size(frames, photos, tmp_path):
    fixer = Inverter()
    enhance_images(frames, tmp_path / "out", fixer, references=photos[:2])
    _, references, visibility = fixer.calls[0]
    assert references is not None and references.shape == (1, 2, 3, 47, 65) and visibility is None
    assert references.min() >= 0 and references.max() <= 1


def test_a_reference_of_another_shape_is_told(frames, photos, tmp_path):
    for name, size in (("same.png", (130, 94)), ("tall.png", (47, 65))):
        Image.new("RGB", size).save(tmp_path / name)
    assert check_images(frames, tmp_path / "out", [tmp_path / "same.png"]) == []
    (warning,) = check_images(frames, tmp_path / "out", [tmp_path / "same.png", tmp_path / "tall.png"])
    assert "tall.png (47×65)" in warning and "same.png" not in warning
    turned = Image.Exif()
    turned[0x0112] = 6
    Image.new("RGB", (47, 65)).save(tmp_path / "phone.jpg", exif=turned)
    assert check_images(frames, tmp_path / "out", [tmp_path / "phone.jpg"]) == []
    fixer = Inverter()
    enhance_images(tmp_path / "phone.jpg", tmp_path / "phone", fixer)
    assert fixer.calls[0][0].shape == (1, 3, 47, 65)
    assert not (tmp_path / "out").exists()


def test_aligned_references_are_registered(frames):
    fixer = Inverter("aligned")
    image, shifted = read_image(frames / "frame_8.png"), read_image(frames / "frame_9.png")
    fix_image(fixer, image, [shifted])  # type: ignore[arg-type]
    _, aligned, visibility = fixer.calls[0]
    assert aligned is not None and visibility is not None and visibility.shape == (1, 1, 1, 47, 65)
    seen = visibility[0, 0, 0].numpy() > 0.5
    error = np.abs(aligned[0, 0].permute(1, 2, 0).numpy() - image).mean(-1)
    assert seen.mean() > 0.5 and error[seen].mean() < 0.5 * np.abs(shifted - image).mean()


def test_bad_input_is_named(frames, photos, tmp_path):
    out, fixer = tmp_path / "out", Inverter()
    with pytest.raises(InputError, match="nowhere"):
        enhance_images(tmp_path / "nowhere", out, fixer)
    with pytest.raises(InputError, match=r"lost\.jpg"):
        enhance_images(frames, out, fixer, references=[tmp_path / "lost.jpg"])
    with pytest.raises(InputError, match="one by one"):
        enhance_images(frames, out, fixer, references=[frames])
    with pytest.raises(InputError, match="choose another --output"):
        enhance_images(frames, frames, fixer)
    (tmp_path / "notes.txt").write_text("no")
    with pytest.raises(InputError, match="neither an image nor a video"):
        enhance_images(tmp_path / "notes.txt", out, fixer)
    (tmp_path / "broken.mp4").write_bytes(b"no video")
    with pytest.raises(InputError, match=r"broken\.mp4 cannot be read as a video"):
        enhance_images(tmp_path / "broken.mp4", out, fixer)
    write_image(tmp_path / "speck.png", np.zeros((4, 40, 3)))
    with pytest.raises(InputError, match="40×4"):
        enhance_images(tmp_path / "speck.png", out, fixer)
    Image.open(frames / "frame_8.png").save(frames / "frame_8.bmp")
    with pytest.raises(InputError, match=r"frame_8\.bmp and frame_8\.png"):
        enhance_images(frames, out, fixer)
    assert not any(out.glob("frame_*"))


@pytest.mark.parametrize("content", [b"", b"\x89PNG but not really"])
def test_a_corrupt_frame_stops_before_the_work(frames, tmp_path, content):
    (frames / "frame_9.png").write_bytes(content)
    fixer = Inverter()
    with pytest.raises(InputError, match=r"frame_9\.png cannot be read"):
        enhance_images(frames, tmp_path / "out", fixer)
    assert not fixer.calls


def test_a_truncated_frame_leaves_the_whole_ones(frames, tmp_path):
    whole = (frames / "frame_9.png").read_bytes()
    (frames / "frame_9.png").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(InputError, match=r"frame_9\.png"):
        enhance_images(frames, tmp_path / "out", Inverter())
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["frame_8.png"]
    (frames / "frame_9.png").write_bytes(whole)
    assert enhance_images(frames, tmp_path / "out", Inverter())["kept"] == 1
