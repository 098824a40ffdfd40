"""RealEstate10K's clips, the splits and protocols of two and more views, and ReconX's recipe on such clips."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import numpy as np
import pytest
from planes import intrinsics, picture, pose, texture
from test_recipes import RECIPES, _printed, _understood

from difixcli.errors import InputError
from difixcli.evaluation.protocols import check_split, parse_protocol
from difixcli.runs import write_image
from difixcli.scenes import load_scene, make_split

URL = "https://www.youtube.com/watch?v=0"


def write_clip(folder: Path, count: int, side: int = 48, step: float = 0.02) -> Path:
    """A clip of a plane at distance 3, filmed by a camera that moves sideways, as RealEstate10K describes it."""
    k, lines = intrinsics(side), [URL]
    for i in range(count):
        at = pose(step * (i - count / 2))
        time = 1_000_000 + 33_000 * i
        write_image(
            folder / "images" / f"{time}.png", picture(texture(0), 3.0, at, k, side, side).permute(1, 2, 0).numpy()
        )
        to_camera = np.linalg.inv(at.double().numpy() @ np.diag([1.0, -1, -1, 1]))[:3]
        lens = [float(k[0, 0]) / side, float(k[1, 1]) / side, 0.5, 0.5, 0.0, 0.0]
        lines.append(" ".join([str(time), *(repr(float(value)) for value in (*lens, *to_camera.ravel()))]))
    (folder / f"{folder.name}.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_clip(tmp_path_factory.mktemp("clips") / "000c3ab189999a83", 47)


def test_a_clip_is_a_scene(clip: Path, tmp_path: Path) -> None:
    scene = load_scene(str(clip))
    assert len(scene.frames) == 47 and not len(scene.points)
    camera = scene.frames[0].camera
    assert (camera.fx, camera.cx, camera.width, camera.height) == (48, 24, 48, 48)
    ways = np.diff([frame.camera.position for frame in scene.frames], axis=0)
    np.testing.assert_allclose(ways, np.tile(ways[0], (46, 1)), atol=1e-6)
    right = scene.frames[0].camera.camera_to_world[:3, 0]
    assert np.dot(ways[0], right) == pytest.approx(np.linalg.norm(ways[0]))
    images = sorted((clip / "images").iterdir())
    short = tmp_path / "short"
    (short / "images").mkdir(parents=True)
    for image in images[:3]:
        (short / "images" / image.name).write_bytes(image.read_bytes())
    (short / "clip.txt").write_text((clip / f"{clip.name}.txt").read_text())
    scene = load_scene(str(short))
    assert len(scene.frames) == 3 and any("44 of 47 frames" in warning for warning in scene.warnings)


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        ("1033000 0.9 0.9 0.5 0.5 0 0 1 0 0", r"Line 3 .* is no frame of RealEstate10K, which has 19 numbers"),
        ("1033000 0.9 x 0.5 0.5 0 0 1 0 0 0 0 1 0 0 0 0 1 0", "Line 3"),
        ("1033000 0.9 nan 0.5 0.5 0 0 1 0 0 0 0 1 0 0 0 0 1 0", "Line 3"),
        ("1033000 1 1 0.5 0.5 0 0 2 0 0 0 0 1 0 0 0 0 1 0", "is not rigid"),
    ],
)
def test_a_broken_frame_of_a_clip_is_told(line: str, sentence: str, clip: Path, tmp_path: Path) -> None:
    lines = (clip / f"{clip.name}.txt").read_text().splitlines()
    (tmp_path / "clip.txt").write_text("\n".join([lines[0], lines[1], line]))
    (tmp_path / "1000000.png").write_bytes((clip / "images" / "1000000.png").read_bytes())
    (tmp_path / "1033000.png").write_bytes((clip / "images" / "1033000.png").read_bytes())
    with pytest.raises(InputError, match=sentence):
        load_scene(str(tmp_path))


def test_a_clip_without_images_is_told(clip: Path, tmp_path: Path) -> None:
    (tmp_path / "clip.txt").write_text((clip / f"{clip.name}.txt").read_text())
    with pytest.raises(InputError, match=r"No frame of .* has an image; put them into .*images"):
        load_scene(str(tmp_path))


def test_views_between(clip: Path) -> None:
    scene = load_scene(str(clip))
    split = make_split(scene, "between:2:45")
    assert split.train == (1, 45) and split.test == tuple(range(2, 45))
    split = make_split(scene, "between:3")
    assert split.train == (0, 23, 46) and len(split.test) == 44
    for rule, sentence in (
        ("between:1", "numbers of at least 2"),
        ("between:2:x", "numbers of at least 2"),
        ("between", "numbers of at least 2"),
        ("between:2:48", "has 47 frames"),
    ):
        with pytest.raises(InputError, match=sentence):
            make_split(scene, rule)


@pytest.mark.parametrize(
    ("name", "rule"), [("re10k-2view", "between:2:45"), ("dl3dv-3", "between:3"), ("dl3dv-9", "between:9")]
)
def test_protocols_have_the_splits(name: str, rule: str, clip: Path) -> None:
    scene, protocol = load_scene(str(clip)), parse_protocol(name)
    assert protocol.name == name and protocol.known_seeds
    check_split(protocol, scene, make_split(scene, rule), "the run")
    with pytest.raises(InputError, match=f"Train it with --split {rule}"):
        check_split(protocol, scene, make_split(scene, "test-every:8"), "the run")


def test_protocols_that_are_none_are_told() -> None:
    assert parse_protocol("re10k-2view:large").rule is not None
    for name, sentence in (
        ("re10k-2view:wide", "at small angles, or re10k-2view:large"),
        ("dl3dv-4", "it has 2, 3, 6 or 9 views"),
        ("dl3dv:2", "takes no argument"),
    ):
        with pytest.raises(InputError, match=sentence):
            parse_protocol(name)


def test_the_recipe_is_at_the_papers_settings(clip: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    line = [RECIPES / "reconx" / "run.sh", "re10k", clip.parent, tmp_path / "out"]
    (name, options), (end, table) = (_understood(one) for one in _printed(*line))
    assert (name, end) == ("distill", "eval")
    assert (options["prior"], options["split"], options["frames"], options["further"], options["size"]) == (
        *("video", "between:2:45", 32, 1000, 512),
    )
    assert options["settings"] == ["pipeline.model.stop_split_at=0"] and options["compare"]
    assert table["protocol"] == "re10k-2view" and [str(run) for run in table["prediction"]] == [str(options["output"])]
    monkeypatch.setenv("ANGLE", "large")
    read = [_understood(one) for one in _printed(*line)]
    assert read[0][1]["split"] == "between:2:201" and read[1][1]["protocol"] == "re10k-2view:large"
    monkeypatch.setenv("VIEWS", "3")
    rows = [_understood(one)[1] for one in _printed(line[0], "ablation", *line[2:])][::2]
    assert [(row["points"], row["trust"], row["loss"]) for row in rows] == [
        ("none", "all", ["method=1"]),
        ("auto", "all", ["method=1"]),
        ("auto", None, ["method=1"]),
        ("auto", None, ["method=1", "perceptual=0.5"]),
    ]
    assert {row["split"] for row in rows} == {"between:3"}
    for given, said in (
        ([], "write "),
        (["dtu", str(clip.parent)], "dtu is neither"),
        (["re10k", "nothing"], "no folders"),
    ):
        made = subprocess.run(["sh", str(line[0]), *given], capture_output=True, text=True, check=False)
        assert made.returncode == 2 and made.stderr.startswith("Error: ") and said in made.stderr


@pytest.mark.usefixtures("at_once")
def test_the_recipe_ends_at_toy_size(clip: Path, tmp_path: Path) -> None:
    environment = {**os.environ, "SMOKE": "1", "METRICS": "psnr"}
    line = ["sh", str(RECIPES / "reconx" / "run.sh"), "re10k", str(clip.parent), str(tmp_path / "out")]
    made = subprocess.run(line, env=environment, capture_output=True, text=True, check=False)
    assert made.returncode == 0, made.stderr[-2000:]
    table = json.loads((tmp_path / "out" / "re10k-small" / "table-seed-0" / "eval.json").read_text())
    assert table["conditions"]["protocol"] == "re10k-2view" and table["images"] == 43
    assert set(table["results"]) >= {"plain", "points", "distilled"}
