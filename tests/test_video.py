"""Videos keep their time, shape, colours and sound; what is written is read with another decoder, FFmpeg's program."""

from __future__ import annotations

import re
import subprocess
from fractions import Fraction
from pathlib import Path

import cv2
import imageio_ffmpeg
import numpy as np
import pytest
from test_enhancement import Inverter

from difixcli.enhancement import Film, enhance_images
from difixcli.enhancement.video import VideoWriter
from difixcli.tone_mapping import PEAK, WHITE, nits_to_pq, pq_to_nits, to_bt709, tone_mapped
from difixcli.video import Moment, read_video


def ffmpeg(*line: object) -> str:
    """Run FFmpeg's program; what it said."""
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-hide_banner", "-y", *map(str, line)]
    return subprocess.run(command, capture_output=True, text=True, check=True, stdin=subprocess.DEVNULL).stderr


def clip(path: Path, source: str, *options: object) -> Path:
    """A video of one of FFmpeg's patterns."""
    ffmpeg("-f", "lavfi", "-i", source, *options, path)
    return path


def times(path: Path) -> list[float]:
    """When each frame of a video is shown, in seconds."""
    said = ffmpeg("-copyts", "-i", path, "-an", "-vf", "showinfo", "-fps_mode", "passthrough", "-f", "null", "-")
    return [float(t) for t in re.findall(r"pts_time:([-\d.]+)", said)]


def seconds(path: Path) -> float:
    """How long the file says that it is."""
    line = [imageio_ffmpeg.get_ffmpeg_exe(), "-i", path]
    said = subprocess.run(line, capture_output=True, text=True, check=False).stderr
    hours, minutes, rest = re.search(r"Duration: (\d+):(\d+):([\d.]+)", said).groups()
    return 3600 * int(hours) + 60 * int(minutes) + float(rest)


def planes(path: Path, width: int, height: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Y, Cb and Cr as they stand in the first frame of a 4:2:0 video."""
    raw = path.with_suffix(".yuv")
    ffmpeg("-i", path, "-frames:v", 1, "-f", "rawvideo", "-pix_fmt", "yuv420p", raw)
    data, size = np.fromfile(raw, np.uint8), width * height
    return data[:size].reshape(height, width), data[size : size * 5 // 4], data[size * 5 // 4 :]


def first(path: Path, width: int | None = None) -> np.ndarray:
    return next(read_video(path, width).frames).image


@pytest.fixture(scope="session")
def phone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A clip of a rate that varies as a phone's does, with a tone of as long: 30 frames in 1.75 s."""
    path = tmp_path_factory.mktemp("phone") / "phone.mp4"
    late = "setpts='(N*0.033+gt(N,9)*0.25+gt(N,19)*0.5)/TB'"
    ffmpeg(
        *("-f", "lavfi", "-i", "testsrc2=s=64x48:r=30:d=1", "-f", "lavfi", "-i", "sine=440:d=1.75"),
        *("-vf", f"settb=1/600,{late}", "-fps_mode", "vfr", "-enc_time_base", "1/600", "-c:a", "aac", path),
    )
    return path


def test_a_variable_rate_stays_as_it_was_with_its_sound(phone, tmp_path):
    result = enhance_images(phone, tmp_path / "out", Inverter(), film=Film(side_by_side=True))
    before, after = times(phone), times(tmp_path / "out/video.mp4")
    assert len(before) == 30 and max(np.diff(before)) > 0.5  # the clip has the gaps that were asked for
    assert result["frames"] == 30 and len(after) == 30
    np.testing.assert_allclose(after, before, atol=1 / 600)
    np.testing.assert_allclose(times(tmp_path / "out/side_by_side.mp4"), before, atol=1 / 600)
    assert seconds(tmp_path / "out/video.mp4") == pytest.approx(seconds(phone), abs=0.02)
    sounds = []
    for path in (phone, tmp_path / "out/video.mp4"):
        ffmpeg("-i", path, "-vn", "-f", "s16le", "-ac", 1, path.with_suffix(".pcm"))
        sounds.append(np.fromfile(path.with_suffix(".pcm"), np.int16))
    np.testing.assert_array_equal(*sounds)
    assert len(sounds[0]) > 1.6 * 44100 and result["said"] == []


def test_a_rate_of_ones_own_is_even_and_silent(phone, tmp_path):
    result = enhance_images(phone, tmp_path / "out", Inverter(), film=Film(fps=10))
    np.testing.assert_allclose(times(tmp_path / "out/video.mp4"), np.arange(30) / 10, atol=1e-3)
    assert any("no sound" in sentence and "phone.mp4" in sentence for sentence in result["said"])
    assert "Audio" not in ffmpeg("-i", tmp_path / "out/video.mp4", "-f", "null", "-")


def test_sound_that_does_not_fit_is_told(tmp_path):
    source = tmp_path / "camera.mov"
    ffmpeg("-f", "lavfi", "-i", "testsrc2=s=64x48:r=5:d=0.6", "-f", "lavfi", "-i", "sine=d=0.6", "-c:a", "pcm_s16le",
           source)  # fmt: skip
    result = enhance_images(source, tmp_path / "out", Inverter(), film=Film())
    assert result["said"] == [
        "video.mp4 has no sound: that of camera.mov (pcm_s16le) does not go into an MP4 as it is."
    ]


def test_a_picture_that_begins_late_stays_late(tmp_path):
    source = tmp_path / "late.mkv"
    ffmpeg("-f", "lavfi", "-i", "sine=d=1", "-itsoffset", 0.4, "-f", "lavfi", "-i", "testsrc2=s=64x48:r=10:d=0.6",
           "-c:a", "aac", source)  # fmt: skip
    moments = [frame.moment for frame in read_video(source).frames]
    assert float(moments[0].start) == pytest.approx(0.4, abs=0.03) and len(moments) == 6
    enhance_images(source, tmp_path / "out", Inverter(), film=Film())
    np.testing.assert_allclose(times(tmp_path / "out/video.mp4"), [float(m.start) for m in moments], atol=2e-3)


def test_pure_colours_are_written_as_bt709_and_say_so(tmp_path):
    red = np.zeros((720, 1280, 3), np.float32)
    red[..., 0] = 1
    with VideoWriter(tmp_path / "red.mp4", 24) as video:
        video.add(red)
    luma, blue, ruddy = planes(tmp_path / "red.mp4", 1280, 720)
    assert (luma == 63).all() and (blue == 102).all() and (ruddy == 240).all()
    assert re.search(r"yuv420p\(tv, bt709[,)]", ffmpeg("-i", tmp_path / "red.mp4", "-f", "null", "-"))
    np.testing.assert_allclose(first(tmp_path / "red.mp4")[360, 640], [255, 0, 0], atol=1)
    capture = cv2.VideoCapture(str(tmp_path / "red.mp4"))
    assert capture.read()[1][360, 640, 2] > 250
    assert not video.notes


@pytest.mark.parametrize(
    ("size", "tags", "luma"),
    [
        ("64x48", (), 81),  # small and without a word: BT.601
        ("1280x720", (), 63),
        ("64x48", ("-colorspace", "bt709"), 63),
        ("1280x720", ("-colorspace", "smpte170m"), 81),
    ],
)
def test_colours_are_read_by_the_matrix_they_have(tmp_path, size, tags, luma):
    """Red of the Y that each matrix gives it is red, whichever it is."""
    width, height = map(int, size.split("x"))
    shape, half = (height, width), (height // 2, width // 2)
    chroma = (90, 240) if luma == 81 else (102, 240)
    parts = [np.full(shape, luma), np.full(half, chroma[0]), np.full(half, chroma[1])]
    raw = tmp_path / "raw.yuv"
    raw.write_bytes(b"".join(part.astype(np.uint8).tobytes() for part in parts))
    ffmpeg("-f", "rawvideo", "-s", size, "-pix_fmt", "yuv420p", *tags, "-i", raw, "-c:v", "ffv1", *tags,
           tmp_path / "red.mkv")  # fmt: skip
    np.testing.assert_allclose(first(tmp_path / "red.mkv")[10, 10], [255, 0, 0], atol=3)


def test_full_range_is_read_as_such(tmp_path):
    clip(tmp_path / "grey.mp4", "color=c=0x404040:s=64x48:d=0.2", "-vf", "scale=out_range=pc", "-pix_fmt", "yuvj420p")
    np.testing.assert_allclose(first(tmp_path / "grey.mp4"), 0x40, atol=1)


@pytest.mark.parametrize("turn", [90, 180, -90])
def test_turned_videos_stand_upright(tmp_path, turn):
    lying = clip(tmp_path / "lying.mp4", "testsrc2=s=96x64:d=0.2:r=10", "-crf", 4)
    ffmpeg("-display_rotation", turn, "-i", lying, "-c", "copy", tmp_path / "turned.mp4")
    np.testing.assert_array_equal(first(tmp_path / "turned.mp4"), np.rot90(first(lying), turn // 90))
    assert first(tmp_path / "turned.mp4", 32).shape[1] == 32


@pytest.mark.parametrize(("aspect", "shape"), [("2/1", (48, 128)), ("1/2", (96, 64)), ("1/1", (48, 64))])
def test_pixels_become_square(tmp_path, aspect, shape):
    clip(tmp_path / "flat.mp4", "testsrc2=s=64x48:d=0.2", "-vf", f"setsar={aspect}")
    assert first(tmp_path / "flat.mp4").shape[:2] == shape


def test_what_is_not_kept_of_colours_is_told(tmp_path):
    deep = clip(tmp_path / "deep.mkv", "testsrc2=s=64x48:d=0.1", "-pix_fmt", "yuv420p10le", "-c:v", "ffv1")
    assert read_video(deep).notes == ("deep.mkv has 10 bits a channel; frames are read with 8.",)
    clear = clip(tmp_path / "clear.mov", "testsrc2=s=64x48:d=0.1,format=argb", "-c:v", "qtrle")
    assert "transparency" in read_video(clear).notes[0]
    plain = clip(tmp_path / "plain.mp4", "testsrc2=s=64x48:d=0.1", "-pix_fmt", "yuv420p")
    assert read_video(plain).notes == ()


@pytest.mark.parametrize(("curve", "name", "white"), [("smpte2084", "PQ", 0.5807), ("arib-std-b67", "HLG", 0.75)])
def test_hdr_is_tone_mapped_with_a_word(tmp_path, curve, name, white):
    """Reference white, a signal of 0.58 or 0.75, comes out light, and grey as it was."""
    raw = tmp_path / "raw.yuv"
    luma, chroma = np.full(64 * 48, round(64 + 876 * white), "<u2"), np.full(64 * 24, 512, "<u2")
    raw.write_bytes(luma.tobytes() + chroma.tobytes())
    said = f"setparams=color_primaries=bt2020:color_trc={curve}:colorspace=bt2020nc:range=tv"
    ffmpeg("-f", "rawvideo", "-s", "64x48", "-pix_fmt", "yuv420p10le", "-i", raw, "-vf", said, "-c:v", "ffv1",
           tmp_path / "hdr.mkv")  # fmt: skip
    video = read_video(tmp_path / "hdr.mkv")
    assert len(video.notes) == 1 and name in video.notes[0] and "BT.709" in video.notes[0]
    image = next(video.frames).image[10, 10].astype(int)
    assert image.min() > 205 and image.max() < 240 and np.ptp(image) <= 1


def test_tone_mapping_keeps_the_dark_and_rolls_off_the_bright():
    nits = np.linspace(0.01, PEAK, 500)
    np.testing.assert_allclose(pq_to_nits(nits_to_pq(nits)), nits, rtol=1e-9)
    mapped = tone_mapped(nits)
    assert (np.diff(mapped) > 0).all() and mapped[-1] == pytest.approx(WHITE, rel=1e-6)
    np.testing.assert_allclose(mapped[nits < 80], nits[nits < 80], rtol=1e-6)
    # 92 nits of grey are signal 0.5 in PQ, and 0.72 of a BT.709 display whose white has 203
    grey = to_bt709(np.full((1, 1, 3), 32768, np.uint16), "PQ")[0, 0]
    np.testing.assert_allclose(grey, 255 * (92.2 / 203) ** (1 / 2.4), atol=2)
    ramp = np.linspace(0, 65535, 600).astype(np.uint16)[None, :, None].repeat(3, axis=2)
    for transfer in ("PQ", "HLG", None):
        shown = to_bt709(ramp, transfer)[0, :, 1].astype(int)
        assert shown[0] == 0 and shown[-1] == 255 and (np.diff(shown) >= 0).all()
    # without HDR greys stay what they were, and colours become stronger, since the gamut is smaller
    mixed = np.array([[[40000, 30000, 30000]]], np.uint16)
    red, green, _ = to_bt709(mixed, None)[0, 0].astype(int)
    assert red - green > (40000 - 30000) / 257


def test_a_video_that_is_interrupted_at_its_end_is_none(tmp_path):
    """The encoder still holds frames when the last one is added."""

    class Stopped:
        def encode(self, frame: object) -> list:
            raise KeyboardInterrupt

    path = tmp_path / "video.mp4"
    with pytest.raises(KeyboardInterrupt), VideoWriter(path, 24) as video:
        video.add(np.zeros((32, 32, 3), np.float32))
        video._stream = Stopped()
    assert not list(tmp_path.iterdir())


def test_odd_sizes_are_told(tmp_path):
    with VideoWriter(tmp_path / "odd.mp4", 10) as video:
        video.add(np.full((47, 65, 3), 0.5))
    assert video.notes == [
        "odd.mp4 is 66×48 pixels, as H.264 wants even sides: the last row or column of 65×47 is doubled."
    ]


def test_frames_without_times_follow_each_other(tmp_path):
    clip(tmp_path / "raw.h264", "testsrc2=s=64x48:r=25:d=0.4", "-bf", 0)
    (tmp_path / "raw.h264").rename(tmp_path / "raw.mp4")
    moments = [frame.moment for frame in read_video(tmp_path / "raw.mp4").frames]
    assert len(moments) == 10
    np.testing.assert_allclose([float(m.start) for m in moments], np.arange(10) / 25, atol=1e-6)


def test_moments_are_written_in_the_files_own_units(tmp_path):
    unit = Fraction(1001, 60000)
    with VideoWriter(tmp_path / "ntsc.mp4", 60, Fraction(1, 60000)) as video:
        for i in range(8):
            video.add(np.full((48, 64, 3), i / 8), Moment(i * unit, unit))
    frames = list(read_video(tmp_path / "ntsc.mp4").frames)
    assert [frame.moment.start for frame in frames] == [i * unit for i in range(8)]
    assert frames[-1].moment.duration == unit
