"""Images, folders, videos and runs go through a fixer frame by frame, whole or not at all, and go on where they
stopped; what is made of the frames is steadier and shown.
"""

from __future__ import annotations

import json
import os
import random
import resource
import shutil
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from types import SimpleNamespace

import conftest  # noqa: F401 (mends torchvision, also in processes that import this file alone)
import imageio_ffmpeg
import numpy as np
import pytest
import torch
from commands import difix, done, killed, refused
from PIL import Image
from small_fixers import smallest_fixer

from difixcli.cli.enhancing import _verdict
from difixcli.enhancement import Film, check_images, enhance_images
from difixcli.enhancement.sequence import _Steadiness
from difixcli.enhancement.video import VideoWriter
from difixcli.errors import InputError
from difixcli.evaluation.consistency import frame_motion, warped_difference
from difixcli.fixer.fixer import new_small_fixer
from difixcli.fixer.registered import RegisteredPhotos
from difixcli.fixer.tiling import Window
from difixcli.frames.pictures import Picture
from difixcli.frames.pipeline import FramePipeline
from difixcli.frames.similar import SimilarPhotos
from difixcli.frames.steadiness import steadied
from difixcli.frames.writing import BROKEN
from difixcli.images import in_unit
from difixcli.runs import read_image, write_image
from difixcli.scenes.poses import look_at
from difixcli.video import read_video

KILLS = int(os.environ.get("DIFIX_TEST_KILLS", "2"))


class Inverter:
    """Stands in for a network where only what goes in and comes out counts: inverts, and remembers its inputs."""

    def __init__(self, references: str = "raw") -> None:
        self.config = SimpleNamespace(references=references, views=1)
        self.device = torch.device("cpu")
        self.calls: list[tuple[torch.Tensor, torch.Tensor | None, torch.Tensor | None]] = []

    def __call__(self, images, references=None, opacity=None, visibility=None, fill_seed=None, correspondence=None):
        self.calls.append((images, references, visibility))
        return 1 - in_unit(images)


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
    assert result["frames"] == 3 and result["kept"] == 0 and result["video"] is None and not result["bad"]
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["frame_10.png", "frame_8.png", "frame_9.png"]
    assert read_image(tmp_path / "out/frame_8.png").shape == (47, 65, 3)
    enhance_images(frames / "frame_9.png", tmp_path / "again", fixer, references=photos[:2])
    assert (tmp_path / "out/frame_9.png").read_bytes() == (tmp_path / "again/frame_9.png").read_bytes()


def test_frames_already_there_are_kept(frames, tmp_path):
    out, fixer = tmp_path / "out", Inverter()
    first = enhance_images(frames, out, fixer)
    (out / "frame_9.png").unlink()
    before = (out / "frame_8.png").stat().st_mtime_ns
    result = enhance_images(frames, out, fixer)
    assert result["kept"] == 2 and len(fixer.calls) == 4
    assert first["bad"] == result["bad"] == ["frame_8", "frame_9", "frame_10"]  # a negative is no fix
    assert (out / "frame_8.png").stat().st_mtime_ns == before
    np.testing.assert_allclose(read_image(out / "frame_9.png"), 1 - read_image(frames / "frame_9.png"), atol=1 / 255)
    assert enhance_images(frames, out, fixer)["seconds_per_frame"] is None


def test_a_sequence_becomes_a_video_in_its_order(frames, tmp_path):
    for i in (8, 9, 10):
        write_image(frames / f"frame_{i}.png", np.full((47, 65, 3), i / 20, np.float32))
    result = enhance_images(frames, tmp_path / "out", Inverter(), film=Film())
    video = read_video(Path(result["video"]))
    shown = [frame.image / 255 for frame in video.frames]
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
    inverted = 1 - next(read_video(source).frames).image / 255
    np.testing.assert_allclose(read_image(tmp_path / "out/frame_00001.png"), inverted, atol=1 / 255)


def test_a_phones_video_stands_upright_without_a_word(frames, tmp_path, capfd):
    source = write_video(frames, tmp_path / "in.mp4", 10)
    ffmpeg = imageio_ffmpeg.get_ffmpeg_exe()
    line = [ffmpeg, "-v", "error", "-display_rotation", "90", "-i", source, "-c", "copy", tmp_path / "turned.mp4"]
    subprocess.run(line, check=True)
    lying, upright = (next(read_video(path).frames).image / 255 for path in (source, tmp_path / "turned.mp4"))
    np.testing.assert_allclose(upright, np.rot90(lying), atol=2 / 255)
    assert capfd.readouterr().err == ""


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
    pipeline = FramePipeline(fixer)  # type: ignore[arg-type]
    pipeline.fix([pipeline.beside(Picture(image), [shifted])])
    _, registered, _ = fixer.calls[0]
    assert isinstance(registered, RegisteredPhotos)
    aligned, visibility = registered.cut(Window(0, 0, 47, 65))
    assert visibility.shape == (1, 1, 1, 47, 65)
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
    assert [p.name for p in (tmp_path / "out").glob("*.png")] == ["frame_8.png"]
    (frames / "frame_9.png").write_bytes(whole)
    assert enhance_images(frames, tmp_path / "out", Inverter())["kept"] == 1


# Steadiness


def _pan(photo: Path, count: int, size: tuple[int, int] = (48, 64), step: int = 2) -> list[np.ndarray]:
    """Frames (H, W, 3) that pan to the right over a photo, `step` pixels each."""
    height, width = size
    with Image.open(photo) as opened:
        image = opened.convert("RGB").resize((width + step * count, height), Image.Resampling.LANCZOS)
        pixels = np.asarray(image, np.float32) / 255
    return [pixels[:, step * i : step * i + width] for i in range(count)]


def _flicker(frames: list[np.ndarray], amount: float, seed: int = 0) -> list[np.ndarray]:
    """The frames, each with another low-frequency change of colour, as a fixer that sees each alone gives."""
    import cv2

    rng = np.random.default_rng(seed)
    fields = [rng.standard_normal((4, 5, 3)).astype(np.float32) for _ in frames]
    size = frames[0].shape[1::-1]
    return [
        np.clip(frame + amount * cv2.resize(field, size, interpolation=cv2.INTER_CUBIC), 0, 1)
        for frame, field in zip(frames, fields, strict=True)
    ]


def _unsteadiness(frames: Iterable[np.ndarray], guides: Iterable[np.ndarray] | None = None) -> float:
    return float(np.mean([pair.difference for pair in warped_difference(frames, guides)]))


def test_what_only_moves_is_steady_and_what_flickers_is_not(photos):
    frames = _pan(photos[3], 6)
    still, calm = np.mean(np.abs(np.diff(frames, axis=0))), _unsteadiness(frames)
    assert calm < 0.3 * still
    noisy = [_unsteadiness(_flicker(frames, amount), frames) for amount in (0.02, 0.05)]
    assert calm < noisy[0] < noisy[1] and noisy[1] > calm + 0.02
    assert _unsteadiness(iter(frames), iter(frames)) == calm
    # what comes into the picture is no flicker: the right edge of a pan, painted black there, does not count
    motion = frame_motion(frames[0], frames[1])
    assert not motion.visible[:, -2:].any() and motion.visible[8:-8, 8:-8].mean() > 0.9
    np.testing.assert_allclose(np.median(motion.places[..., 0] - np.arange(frames[0].shape[1])), 2, atol=0.2)


def test_steadied_fixes_flicker_less_and_stay_true(photos):
    renders = _pan(photos[3], 10)
    truth = [np.clip(0.9 * frame + 0.08, 0, 1) for frame in renders]
    fixed = _flicker(truth, 0.04)
    out = [fixed[0]]
    for i in range(1, len(renders)):
        motion = frame_motion(renders[i - 1], renders[i])
        out.append(steadied(renders[i], fixed[i], renders[i - 1], out[-1], motion))

    def error(frames: list[np.ndarray]) -> float:
        return float(np.mean([np.abs(a - b).mean() for a, b in zip(frames[1:], truth[1:], strict=True)]))

    assert _unsteadiness(out, renders) < 0.8 * _unsteadiness(fixed, renders)
    assert error(out) < 0.95 * error(fixed)


def test_a_cut_carries_nothing_over(photos):
    (before,), (after,) = _pan(photos[3], 1), _pan(photos[8], 1)
    fixed = np.clip(after + 0.1, 0, 1)
    out = steadied(after, fixed, before, np.clip(before - 0.2, 0, 1), frame_motion(before, after))
    assert np.abs(out - fixed).mean() < 0.01


# References by what they show


def test_the_photos_that_show_what_a_frame_shows_are_found(photos):
    rng = np.random.default_rng(0)
    many = [_pan(path, 1, (60, 80))[0] for path in photos[:30]]
    similar = SimilarPhotos(many)
    for i in (0, 11, 29):
        moved = np.roll(many[i], (4, -9), axis=(0, 1))[6:54, :68]  # another view, darker, with floaters
        moved = np.clip(0.7 * moved + 0.1 * rng.random(moved.shape), 0, 1).astype(np.float32)
        assert similar.nearest(moved, 3)[0] == i
    assert similar.nearest(many[0], 99) == similar.nearest(many[0], 30) and len(set(similar.nearest(many[0], 30))) == 30
    twice = SimilarPhotos([many[0], many[1], many[1]])
    assert twice.nearest(many[1], 2) == [1, 2]
    assert np.isfinite(similar.similarities(np.zeros((20, 20, 3), np.float32))).all()


def test_of_many_references_the_most_similar_stand_beside_a_frame(photos, tmp_path):
    fixer = Inverter()
    enhance_images(_sequence(photos[4], tmp_path / "in", 4), tmp_path / "out", fixer, references=photos[:9], count=2)
    with Image.open(photos[4]) as opened:
        shown = np.asarray(opened.convert("RGB").resize((64, 48), Image.Resampling.BOX), np.float32) / 255
    for _, references, _ in fixer.calls:
        assert references is not None and references.shape == (1, 2, 3, 48, 64)
        first, second = (np.abs(photo.permute(1, 2, 0).numpy() - shown).mean() for photo in references[0])
        assert first < 0.03 < second


# Videos of before and after


def test_comparisons_show_both(frames, tmp_path):
    film = Film(fps=12, side_by_side=True, split_screen=True)
    result = enhance_images(frames, tmp_path / "out", Inverter(), film=film)
    before = [read_image(frames / f"frame_{i}.png") for i in (8, 9, 10)]
    shown = read_video(tmp_path / "out/side_by_side.mp4")
    assert shown.fps == 12 and result["fps"] == 12
    for image, frame in zip(before, shown.frames, strict=True):
        np.testing.assert_allclose(frame.image[:47, :64] / 255, image[:, :64], atol=0.2)
        np.testing.assert_allclose(frame.image[:47, 65:130].mean() / 255, 1 - image.mean(), atol=0.02)
    first = next(read_video(tmp_path / "out/split_screen.mp4").frames).image / 255
    np.testing.assert_allclose(first[:47, :30].mean((0, 1)), before[0][:, :30].mean((0, 1)), atol=0.02)
    np.testing.assert_allclose(first[:47, 36:65].mean((0, 1)), 1 - before[0][:, 36:].mean((0, 1)), atol=0.02)
    assert first[:47, 32].mean() > 0.8
    assert result["steadiness"]["input"] == pytest.approx(result["steadiness"]["output"], rel=0.1)


def test_panoramas_become_films_too(tmp_path):
    """They are not looked at smaller than optical flow needs."""
    for number in range(2):
        write_image(tmp_path / "in" / f"{number}.png", np.random.default_rng(0).random((20, 1000, 3), np.float32))
    result = enhance_images(tmp_path / "in", tmp_path / "out", Inverter(), film=Film())
    assert result["steadiness"] == {"input": 0.0, "output": 0.0}


def test_without_motion_between_frames_nothing_is_said_of_it():
    measured = _Steadiness()
    measured._figures = [(np.nan, np.nan)]
    assert measured.figures() is None
    measured._figures.append((0.25, 0.5))
    assert measured.figures() == {"input": 0.25, "output": 0.5}


def test_videos_are_made_anew_of_the_same_frames(frames, tmp_path):
    fixer = Inverter()
    first = enhance_images(frames, tmp_path / "out", fixer, film=Film())
    held = (tmp_path / "out/video.mp4").stat().st_mtime_ns
    again = enhance_images(frames, tmp_path / "out", fixer, film=Film())
    assert again["steadiness"] == first["steadiness"] and (tmp_path / "out/video.mp4").stat().st_mtime_ns == held
    other = enhance_images(frames, tmp_path / "out", fixer, film=Film(fps=5, side_by_side=True))
    assert len(fixer.calls) == 3 and other["kept"] == 3
    assert read_video(Path(other["video"])).fps == 5 and Path(other["side_by_side"]).is_file()
    (tmp_path / "out/frame_9.png").unlink()
    enhance_images(frames, tmp_path / "out", fixer, film=Film(fps=5))
    assert (tmp_path / "out/video.mp4").stat().st_mtime_ns != held and len(fixer.calls) == 4


def test_a_film_wants_frames_of_one_size(frames, photos, tmp_path):
    steady = Film(steady=True)
    with pytest.raises(InputError, match="is one image"):
        check_images(frames / "frame_9.png", tmp_path / "out", film=steady)
    write_image(frames / "frame_11.png", np.zeros((60, 65, 3)))
    with pytest.raises(InputError, match=r"frame_8\.png is 65×47 and frame_11\.png 65×60"):
        enhance_images(frames, tmp_path / "out", Inverter(), film=steady)
    assert not (tmp_path / "out").exists()
    assert enhance_images(frames, tmp_path / "out", Inverter(), film=Film())["video"] is None


@pytest.mark.parametrize("suffix", ["mkv", "mp4"])
def test_only_a_video_that_is_cut_short_is_called_so(suffix, tmp_path):
    """Frames need not be evenly long: what counts is how long they last, or how many the file says it has."""
    import imageio_ffmpeg

    whole, cut = tmp_path / f"whole.{suffix}", tmp_path / f"cut.{suffix}"
    line = [imageio_ffmpeg.get_ffmpeg_exe(), "-v", "error", "-f", "lavfi", "-i", "testsrc2=s=64x48:r=30:d=1"]
    line += ["-vf", "setpts='(N*0.033+gt(N,5)*1.5)/TB'", "-fps_mode", "vfr", "-g", "5", "-movflags", "faststart"]
    subprocess.run([*line, str(whole)], check=True)
    assert enhance_images(whole, tmp_path / "a", Inverter(), film=Film())["cut_short"] is None
    content = whole.read_bytes()
    cut.write_bytes(content[: len(content) // 2])
    result = enhance_images(cut, tmp_path / "b", Inverter(), film=Film())
    assert "only" in result["cut_short"] and result["frames"] < 27


def test_a_video_without_pictures_is_refused(frames, tmp_path):
    import imageio_ffmpeg

    sound = tmp_path / "sound.mp4"
    line = [imageio_ffmpeg.get_ffmpeg_exe(), "-v", "error", "-f", "lavfi", "-i", "anullsrc", "-t", "0.5", str(sound)]
    subprocess.run(line, check=True)
    with pytest.raises(InputError, match=r"sound\.mp4 cannot be read as a video"):
        enhance_images(sound, tmp_path / "out", Inverter(), film=Film())
    whole = write_video(frames, tmp_path / "whole.mp4", 24).read_bytes()
    (tmp_path / "cut.mp4").write_bytes(whole[:1200])  # the header is there, the pictures are not
    with pytest.raises(InputError, match=r"cut\.mp4"):
        enhance_images(tmp_path / "cut.mp4", tmp_path / "out", Inverter(), film=Film())


def test_a_full_disk_loses_no_frame(frames, tmp_path):
    """FFmpeg may write less than the video needs: the frames stay, no half video does, and the sentence says why."""
    code = (
        "import resource, sys, conftest\n"
        "from pathlib import Path\n"
        "from difixcli.errors import InputError\n"
        "from test_enhancement import Film, Inverter, enhance_images\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (20000, 20000))\n"
        "try:\n enhance_images(Path(sys.argv[1]), Path(sys.argv[2]), Inverter(), film=Film())\n"
        "except InputError as error:\n print(error)\n"
    )
    rng = np.random.default_rng(0)
    for i in range(8, 24):
        write_image(frames / f"frame_{i}.png", rng.random((47, 65, 3)))
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), *sys.path])}
    line = [sys.executable, "-c", code, str(frames), str(tmp_path / "out")]
    shown = subprocess.run(line, capture_output=True, text=True, env=env, check=True).stdout
    assert "video.mp4 could not be written" in shown and "run the same line again" in shown
    assert sorted(p.suffix for p in (tmp_path / "out").iterdir() if p.name != BROKEN) == [".png"] * 16
    assert enhance_images(frames, tmp_path / "out", Inverter(), film=Film())["kept"] == 16
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[0] == resource.RLIM_INFINITY


# Going on where it stopped


def _sequence(photo: Path, folder: Path, count: int) -> Path:
    for i, frame in enumerate(_pan(photo, count), start=1):
        write_image(folder / f"{i}.png", frame)
    return folder


@pytest.mark.parametrize("as_video", [False, True])
def test_steadied_frames_go_on_exactly_where_they_stopped(photos, tmp_path, as_video):
    source = _sequence(photos[4], tmp_path / "in", 7)
    if as_video:
        source = write_video(source, tmp_path / "in.mp4", 24)
    fixer, film = new_small_fixer("tiny"), Film(steady=True)
    enhance_images(source, tmp_path / "whole", fixer, film=film)
    names = sorted(path.name for path in (tmp_path / "whole").glob("*.png"))
    for stop in (1, 4):
        shutil.copytree(tmp_path / "whole", tmp_path / f"part-{stop}")
        for name in names[stop:]:
            (tmp_path / f"part-{stop}" / name).unlink()
        result = enhance_images(source, tmp_path / f"part-{stop}", fixer, film=film)
        assert result["kept"] == stop
        for name in [*names, "video.mp4"]:
            assert (tmp_path / f"part-{stop}" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    plain = enhance_images(source, tmp_path / "plain", fixer, film=Film())
    assert (tmp_path / "plain" / names[0]).read_bytes() == (tmp_path / "whole" / names[0]).read_bytes()
    assert (tmp_path / "plain" / names[3]).read_bytes() != (tmp_path / "whole" / names[3]).read_bytes()
    assert plain["steadiness"]["output"] > 0


@pytest.fixture(scope="session")
def tiny_fixer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return smallest_fixer().save_pretrained(tmp_path_factory.mktemp("fixer") / "tiny")


def test_killed_at_any_moment_frames_and_video_are_the_same(
    photos: list[Path], tiny_fixer: Path, forked: Path, tmp_path: Path
) -> None:
    source = _sequence(photos[4], tmp_path / "in", 16)
    line = ["enhance", source, "--fixer", tiny_fixer, "--reference", photos[4], "--steady", "--side-by-side"]

    done(difix(*line, "--output", tmp_path / "whole", "--json"))
    moments, line = random.Random(0), [*line, "--output", tmp_path / "out"]
    for share in ((kill + moments.uniform(0.1, 0.9)) / KILLS for kill in range(KILLS)):  # early ones and late ones
        killed(forked, line, tmp_path / "out", tmp_path / "whole", share)
    done(difix(*line, "--json"))
    whole = {p.name: p.read_bytes() for p in (tmp_path / "whole").iterdir() if p.suffix in {".png", ".mp4"}}
    assert {p.name: p.read_bytes() for p in (tmp_path / "out").iterdir() if p.name in whole} == whole
    assert len(whole) == 18 and not list((tmp_path / "out").glob(".*.part"))
    records = [json.loads((tmp_path / name / "run.json").read_text()) for name in ("whole", "out")]
    assert records[0]["results"]["steadiness"] == records[1]["results"]["steadiness"]
    assert records[1]["state"] == "done"


# A run along a camera path


@pytest.fixture(scope="session")
def run(tiny_fixer: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A distillation of the sample room, at toy size."""
    folder = tmp_path_factory.mktemp("runs") / "room"
    line = ("distill", "sample:room", "--method", "splatfacto", "--fixer", tiny_fixer, "--rounds", "1", "--json")
    done(difix(*line, "--iterations", "30", "--size", "48", "--set", "max_gaussians=300", "--output", folder))
    return folder


def test_a_run_along_a_camera_path(run: Path, tiny_fixer: Path, tmp_path: Path) -> None:
    line = ("enhance", run, "--fixer", tiny_fixer, "--trajectory", "spiral:6", "--steady", "--json")
    said = done(difix(*line, "--side-by-side", "--split-screen"))
    folder = run / "enhanced-spiral-6-steady"
    assert said["output"] == str(folder) and said["frames"] == 6
    names = [f"frame_{i:05d}.png" for i in range(1, 7)]
    assert (
        sorted(p.name for p in folder.glob("*.png")) == sorted(p.name for p in (folder / "renders").iterdir()) == names
    )
    assert read_image(folder / names[0]).shape == (36, 48, 3)
    for name in ("video", "side_by_side", "split_screen"):
        assert read_video(folder / f"{name}.mp4").fps == 24
    assert said["steadiness"]["input"] > 0 and said["steadiness"]["output"] > 0
    # from the third frame on once more: the same frames, and a frame rate costs no fixing
    held = {name: (folder / name).read_bytes() for name in names}
    for name in names[3:]:
        (folder / name).unlink()
    said = done(difix(*line, "--fps", "10"))
    assert said["kept"] == 3 and held == {name: (folder / name).read_bytes() for name in names}
    assert read_video(folder / "video.mp4").fps == 10
    # without --steady they are other frames, in another folder
    done(difix("enhance", run, "--fixer", tiny_fixer, "--trajectory", "spiral:6", "--json"))
    assert (run / "enhanced-spiral-6" / names[0]).read_bytes() == held[names[0]]
    assert (run / "enhanced-spiral-6" / names[3]).read_bytes() != held[names[3]]


def test_a_run_along_a_viewers_path(run: Path, tiny_fixer: Path, tmp_path: Path) -> None:
    poses = [look_at(np.array([0.3 * np.cos(a), 0.3 * np.sin(a), 0.1]), np.zeros(3), np.eye(3)[2]) for a in (0, 0.1)]
    views = [{"camera_to_world": pose.flatten().tolist(), "fov": 60.0, "aspect": 0.5} for pose in poses]
    path = tmp_path / "upright.json"
    path.write_text(json.dumps({"camera_path": views, "render_width": 540, "render_height": 1080, "fps": 5}))
    line = ("enhance", run, "--fixer", tiny_fixer, "--trajectory", path, "--json")
    said = done(difix(*line))
    assert said["output"] == str(run / "enhanced-upright") and said["fps"] == 5
    assert read_image(run / "enhanced-upright" / "frame_00002.png").shape == (48, 24, 3)
    # another path under the same name is not what these frames show
    path.write_text(json.dumps({"camera_path": views[:1] * 2, "render_width": 540, "render_height": 1080, "fps": 5}))
    refused(difix(*line), "another run")
    path.write_text(json.dumps({"camera_path": views, "camera_type": "equirectangular"}))
    refused(difix(*line), "equirectangular")


@pytest.mark.parametrize(
    ("before", "after", "told"),
    [(0.02, 0.03, "less steady."), (0.0363, 0.0362, "about as steady."), (0.05, 0.04, "steadier."), (0, 0, "about as")],
)
def test_frames_are_called_steadier_only_where_they_are(before: float, after: float, told: str) -> None:
    assert _verdict(before, after).startswith(told)


def test_lines_that_differ_have_folders_that_differ(frames: Path, photos: list[Path], tiny_fixer: Path) -> None:
    plain = ("enhance", frames, "--fixer", tiny_fixer, "--json")
    beside = frames.with_name("renders_enhanced")
    wanted = [
        (plain, beside, 0),
        ((*plain, "--reference", photos[0]), beside.with_name("renders_enhanced-2"), 0),
        ((*plain, "--steady"), beside.with_name("renders_enhanced-3"), 0),
        (plain, beside, 3),
        ((*plain, "--reference", photos[0]), beside.with_name("renders_enhanced-2"), 3),
    ]
    for line, folder, kept in wanted:
        result = difix(*line)
        said = done(result)
        assert (said["output"], said["kept"]) == (str(folder), kept)
        before, after = (said["steadiness"][which] for which in ("input", "output"))
        assert f"{before:.4f} before the fixes" in result.stderr
        assert f"after: {_verdict(before, after)}" in " ".join(result.stderr.split())
    # of changed images they are not kept, and the folder is not another's to replace
    (frames / "frame_9.png").write_bytes((frames / "frame_8.png").read_bytes())
    refused(difix(*plain, "--reference", photos[0]), "renders_enhanced-2 already holds another run")
    done(difix(*plain, "--reference", photos[0], "--force"))
    assert (beside / "frame_9.png").is_file()


def test_folders_that_hold_the_images_are_named(run: Path, tiny_fixer: Path) -> None:
    refused(
        difix("enhance", run / "renders", "--fixer", tiny_fixer), "no image", "in it that do:", "distilled", "plain"
    )


def test_what_a_source_cannot_give_is_refused(run: Path, tiny_fixer: Path, frames: Path, tmp_path: Path) -> None:
    given = ("--fixer", tiny_fixer, "--output", tmp_path / "out")
    refused(difix("enhance", frames, *given, "--trajectory", "spiral"), "no run of difix distill", "name a run")
    refused(difix("enhance", frames, *given, "--references", "2"), "--reference")
    refused(difix("enhance", frames / "frame_8.png", *given, "--steady"), "one image")
    refused(difix("enhance", run, *given, "--references", "2"), "--references")
    refused(difix("enhance", run, *given, "--steady"), "--trajectory")
    refused(difix("enhance", run, *given, "--trajectory", "spirall"), "did you mean spiral")
    refused(difix("enhance", run, *given, "--trajectory", tmp_path / "no.json"), "no.json is missing")
    assert not (tmp_path / "out").exists()
