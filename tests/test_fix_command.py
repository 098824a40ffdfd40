"""`difix fix` as typed: references by scene, confidence, tiles, export, and what it refuses."""

from __future__ import annotations

import json
import shutil
import struct
import zlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from commands import difix, refused, told
from PIL import Image

from difixcli.enhancement import fix as fix_room
from difixcli.errors import InputError
from difixcli.evaluation.pictures import image_files
from difixcli.fixer import Fixer, new_small_fixer
from difixcli.frames import pictures as images_room
from difixcli.frames.pipeline import FramePipeline
from difixcli.frames.references import ReferencePhotos
from difixcli.runs import read_image, write_image, write_json
from difixcli.scenes import load_scene
from difixcli.scenes.scene import Scene


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return new_small_fixer("tiny", seed=0).save_pretrained(tmp_path_factory.mktemp("fixer") / "tiny")


@pytest.fixture
def images(tmp_path: Path, photos: list[Path]) -> Path:
    """Two photos of 96×64 and one of 64×96."""
    (tmp_path / "in").mkdir()
    for i, size in enumerate(((96, 64), (96, 64), (64, 96))):
        with Image.open(photos[i]) as opened:
            opened.convert("RGB").resize(size).save(tmp_path / "in" / f"{i}.png")
    return tmp_path / "in"


def test_images_come_out_whole_and_a_second_run_keeps_them(images: Path, tiny: Path, photos: list[Path]) -> None:
    line = ("fix", images, "--fixer", tiny, "--reference", photos[9], "--confidence", "--json")
    said = told(difix(*line))
    folder = Path(said["output"])
    assert folder == images.with_name("in_fixed")
    assert said["results"]["frames"] == 3 and said["results"]["kept"] == 0 and said["results"]["bad"] == []
    for i in range(3):
        fixed, confidence = Image.open(folder / f"{i}.png"), Image.open(folder / f"{i}.confidence.png")
        assert fixed.size == confidence.size == Image.open(images / f"{i}.png").size
        assert fixed.mode == "RGB" and confidence.mode == "RGB"
        invented, seen, agreed = np.asarray(confidence, int).transpose(2, 0, 1)
        assert np.abs(invented + seen + agreed - 255).max() <= 2 and seen.max() > 0
    whole = {path.name: path.read_bytes() for path in folder.glob("*.png")}
    (folder / "1.confidence.png").unlink()
    again = told(difix(*line))["results"]
    assert again["kept"] == 2 and (folder / "1.confidence.png").is_file()
    # enhance does the same to a folder, and heeds the same options
    same = Path(told(difix("enhance", *line[1:], "--tile", "256", "--batch", "2"))["output"])
    assert {path.name: path.read_bytes() for path in same.glob("*.png")} == whole and len(whole) == 6


def test_a_broken_image_stops_none_of_the_others(images: Path, tiny: Path, tmp_path: Path) -> None:
    whole = (images / "1.png").read_bytes()
    (images / "1.png").write_bytes(whole[: len(whole) // 2])
    (images / "3.png").write_bytes(whole)
    (images / "4.png").write_bytes(whole[: len(whole) // 3])
    output = tmp_path / "out"
    output.mkdir()
    line = ("fix", images, "--fixer", tiny, "-o", output, "--json")
    refused(difix(*line), "1.png", "1 more cannot be read", "All others are fixed (3 of 5)")
    assert sorted(path.name for path in output.glob("*.png")) == ["0.png", "2.png", "3.png"]
    before = (output / "0.png").stat().st_mtime_ns
    (output / ".0.png.1.part").write_bytes(b"of a run that was killed")
    refused(difix(*line), "(3 of 5)")
    assert (output / "0.png").stat().st_mtime_ns == before and not (output / ".0.png.1.part").exists()


def test_a_run_that_goes_on_tells_the_same_and_reads_what_it_fixes_once(
    images: Path, tiny: Path, photos: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fixer = Fixer.from_pretrained(tiny)
    files = sorted(images.iterdir())
    read: list[Path] = []

    def counted(path: Path, size: int | None = None) -> images_room.Picture:
        read.append(path)
        return images_room.read_picture(path, size)

    monkeypatch.setattr(fix_room, "read_picture", counted)
    choice = ReferencePhotos.by_likeness(photos[:5], 2)
    first = fix_room.fix_images(files, tmp_path / "out", fixer, choice)
    assert read == files
    (tmp_path / "out" / "1.png").unlink()
    second = fix_room.fix_images(files, tmp_path / "out", fixer, choice)
    assert [result.pop("kept") for result in (first, second)] == [0, 2]
    assert first.pop("seconds_per_frame") and second.pop("seconds_per_frame")
    assert first == second and list(first["references"]) == ["0", "1", "2"]
    pipeline = FramePipeline(fixer)
    pictures = [images_room.read_picture(path) for path in files[:2]]
    assert not pipeline.alike(pipeline.beside(pictures[0], [pictures[1].color]), pipeline.beside(pictures[1], ()))


def test_what_transparent_pixels_hide_does_not_come_out_when_an_image_shrinks(tmp_path: Path) -> None:
    """A render's empty pixels are often white; averaged with what stands beside them they would make a light edge."""
    pixels = np.full((40, 40, 4), 255, np.uint8)
    pixels[:, 19:, :3] = 100
    pixels[:, :19, 3] = 0
    Image.fromarray(pixels).save(tmp_path / "edge.png")
    picture = images_room.read_picture(tmp_path / "edge.png", 20)
    assert picture.opacity is not None and 0.4 < picture.opacity[5, 9] < 0.6
    np.testing.assert_allclose(picture.color, (picture.opacity * 100 / 255)[..., None] * np.ones(3), atol=1e-5)
    Image.fromarray(np.full((37, 41, 4), 255, np.uint8)).save(tmp_path / "whole.png")
    assert images_room.read_picture(tmp_path / "whole.png", 20).opacity is None


def test_broken_fixes_are_counted_and_named(images: Path, tmp_path: Path) -> None:
    fixer = new_small_fixer("tiny", seed=0)
    for parameter in fixer.network.vae.decoder.conv_out.parameters():
        parameter.data.normal_(std=20)
    folder = fixer.save_pretrained(tmp_path / "broken")
    result = difix("fix", images, "--fixer", folder, "--json")
    assert told(result)["results"]["bad"] == ["0", "1", "2"]
    assert "3 of 3 fixes look broken" in result.stderr
    again = difix("fix", images, "--fixer", folder, "--json")  # all of them are kept
    assert told(again)["results"]["bad"] == ["0", "1", "2"] and told(again)["results"]["kept"] == 3


def test_a_transparent_render_brings_its_opacity(images: Path, tiny: Path, tmp_path: Path) -> None:
    refused(difix("fix", images, "--fixer", tiny, "--fill-unseen"), "no noise to invent from")
    colour = np.asarray(Image.open(images / "0.png"))
    alpha = np.full(colour.shape[:2], 255, np.uint8)
    alpha[:, 48:] = 0
    (tmp_path / "holes").mkdir()
    Image.fromarray(np.dstack([colour, alpha])).save(tmp_path / "holes" / "0.png")
    Image.fromarray(np.where(alpha[..., None], colour, 0).astype(np.uint8)).save(tmp_path / "black.png")
    told(difix("fix", tmp_path / "holes", "--fixer", tiny, "--json", "--confidence"))
    told(difix("fix", tmp_path / "black.png", "--fixer", tiny, "--json", "--confidence"))
    with_opacity, without = (
        read_image(tmp_path / folder / name)
        for folder, name in (("holes_fixed", "0.png"), ("black_fixed", "black.png"))
    )
    assert np.abs(with_opacity - without).max() > 1 / 255
    assert np.asarray(Image.open(tmp_path / "holes_fixed" / "0.confidence.png"))[:, 52:, 1:].max() == 0


def test_the_releases_resize_and_tiles(
    images: Path, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told(difix("fix", images / "0.png", "--fixer", tiny, "--resize", "release", "--json", "-o", tmp_path / "a"))
    assert Image.open(tmp_path / "a" / "0.png").size == (96, 64)
    Image.open(images / "0.png").resize((600, 300)).save(tmp_path / "wide.png")
    monkeypatch.setattr("difixcli.console._EVERY", 0)
    tiled = difix("fix", tmp_path / "wide.png", "--fixer", tiny, "--tile", "256", "--json", "-o", tmp_path / "b")
    told(tiled)
    assert "fix: 0/1, and tile 1 of " in tiled.stderr  # one large image shows that it goes on
    assert Image.open(tmp_path / "b" / "wide.png").size == (600, 300)


def test_references_by_scene(arc: Path, tiny: Path, tmp_path: Path) -> None:
    scene = load_scene(arc, 96)
    (tmp_path / "renders").mkdir()
    for i in (0, 5):
        Image.open(scene.frames[i].image_path).resize((96, 72)).save(tmp_path / f"renders/{scene.file_names[i]}.png")
    files = sorted((tmp_path / "renders").iterdir())
    choice = ReferencePhotos.by_pose(scene, files, 3)
    for path in files:
        own = next(f for f in scene.frames if Path(f.name).stem in path.stem)
        names = choice.chosen(path.stem, read_image(path))
        assert len(names) == 3 and own.name not in names
        distances = {f.name: np.linalg.norm(f.camera.position - own.camera.position) for f in scene.frames}
        assert max(distances[name] for name in names) <= sorted(distances.values())[5]
    line = ("fix", tmp_path / "renders", "--fixer", tiny, "--scene", arc, "--json")
    assert told(difix(*line, "--references", "2"))["results"]["frames"] == 2
    (tmp_path / "renders" / "unposed.png").write_bytes(files[0].read_bytes())
    refused(difix(*line, "-o", tmp_path / "o"), "unposed.png", "no frame of the scene")
    with pytest.raises(InputError, match="no frame"):
        ReferencePhotos.by_pose(scene, [tmp_path / "renders" / "unposed.png"], 1)


def test_photos_that_were_held_out_stand_beside_no_image(arc: Path, tiny: Path, tmp_path: Path) -> None:
    """By --split, by the run that the images are a part of, and by the scene's own split; without any, it is said."""
    arc = shutil.copytree(arc, tmp_path / "arc")
    (arc / "split.json").unlink()
    scene = load_scene(arc, 48)
    run, own = tmp_path / "run", shutil.copytree(arc, tmp_path / "own")
    train = [0, 2, 4]
    held_out = [i for i in range(len(scene.frames)) if i not in train]
    names = [frame.name for frame in scene.frames]
    (run / "renders").mkdir(parents=True)
    for i in (0, held_out[0]):
        Image.open(scene.frames[i].image_path).resize((48, 36)).save(run / "renders" / f"{scene.file_names[i]}.png")
    shutil.copytree(run / "renders", tmp_path / "renders")
    trained = {names[i] for i in train}

    def beside(source: Path, *more: object, of: Path = arc) -> tuple[set[str], str]:
        line = ("fix", source, "--fixer", tiny, "--scene", of, "--size", "48", "--references", "3", "--json", *more)
        made = difix(*line)
        found = told(made)["results"]["references"]
        assert names[0] not in found[scene.file_names[0]]
        return {name for each in found.values() for name in each}, made.stderr

    found, said = beside(tmp_path / "renders", "-o", tmp_path / "any")
    assert not found <= trained and "were some held out?" in said
    file = tmp_path / "split.json"
    file.write_text(json.dumps({"train": sorted(trained)}))
    found, said = beside(tmp_path / "renders", "--split", f"file:{file}", "-o", tmp_path / "asked")
    assert found == trained and "of the 3 that train" in said
    shutil.copy(file, own / "split.json")
    assert beside(tmp_path / "renders", "-o", tmp_path / "of-scene", of=own)[0] == trained
    (tmp_path / "reconstruction.json").write_text("[]")  # other programs call files so, too
    (run / "reconstruction.json").write_text(json.dumps({"frames": names, "train": train}))
    assert not beside(run / "renders", "-o", tmp_path / "of-others")[0] <= trained
    record = {"command": "distill", "state": "done", "arguments": {}, "inputs": {}, "results": {}, "seconds": 0.0}
    (run / "run.json").write_text(json.dumps({**record, "timings": {}, "versions": {"difixcli": "0"}}))
    assert beside(run / "renders", "-o", tmp_path / "of-run")[0] == trained
    (run / "reconstruction.json").write_text(json.dumps({"frames": ["elsewhere.png"], "train": [0]}))
    assert beside(run / "renders", "-o", tmp_path / "of-scene-too", of=own)[0] == trained
    # points that only held-out photos saw say nothing about where things are
    asked: list[Scene] = []
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("difixcli.frames.references.places_by_points", lambda scene, *_: asked.append(scene))
        files = sorted((run / "renders").iterdir())
        ReferencePhotos.by_pose(scene, files, 2, train).places(files[0].stem, [2, 4], (36, 48))
    assert len(asked[0].points) == len(scene.known_to(train).points)
    refused(difix("fix", tmp_path / "renders", "--split", "every:2"), "--split belongs to --scene")
    refused(difix("fix", tmp_path / "renders", "--scene", arc, "--split", "evry:2"), "did you mean")
    lone = tmp_path / "one.json"
    lone.write_text(json.dumps({"train": [names[0]]}))
    refused(
        difix("fix", tmp_path / "renders", "--fixer", tiny, "--scene", arc, "--split", f"file:{lone}"),
        "the only photo",
    )


def test_a_scene_of_few_photos_says_how_many_stand_beside_an_image(arc: Path, tiny: Path, tmp_path: Path) -> None:
    scene = load_scene(arc, 48)
    (tmp_path / "in").mkdir()
    Image.open(scene.frames[0].image_path).resize((48, 36)).save(tmp_path / "in" / f"{scene.file_names[0]}.png")
    few = len(scene.frames) - 1
    result = difix(
        "fix", tmp_path / "in", "--fixer", tiny, "--scene", arc, "--size", "48", "--references", 99, "--json"
    )
    (beside,) = told(result)["results"]["references"].values()
    assert len(beside) == few and f"nearest {few} photos" in result.stderr
    with pytest.raises(InputError, match="one photo"):
        ReferencePhotos.by_pose(replace(scene, frames=scene.frames[:1]), list((tmp_path / "in").iterdir()), 1)


def test_an_image_that_is_its_own_reference_is_told(images: Path, tiny: Path, tmp_path: Path) -> None:
    for command in ("fix", "enhance"):
        line = (command, images, "--fixer", tiny, "--reference", images, "-o", tmp_path / command)
        assert "among the images to fix" in " ".join(difix(*line).stderr.split())
    said = difix("fix", images, "--fixer", tiny, "--reference", images / ".." / "in" / "0.png", "-o", tmp_path / "one")
    assert "among the images to fix" in said.stderr and "1.png" not in said.stderr


def test_of_a_folder_of_photos_the_most_similar_stand_beside_an_image(
    images: Path, tiny: Path, photos: list[Path], tmp_path: Path
) -> None:
    """The images are the first three photos, so each is most like its own."""
    (tmp_path / "photos").mkdir()
    for path in photos[:8]:
        (tmp_path / "photos" / path.name).write_bytes(path.read_bytes())
    line = ("fix", images, "--fixer", tiny, "--reference", tmp_path / "photos", "--json")
    result = difix(*line)
    beside = told(result)["results"]["references"]
    count = Fixer.from_pretrained(tiny).config.views
    assert [len(names) for names in beside.values()] == [count] * 3 and count < 8
    assert [beside[str(i)][0] for i in range(3)] == [path.name for path in photos[:3]]
    assert f"References of 1: {', '.join(beside['1'])}" in result.stderr
    two = told(difix(*line, "--references", "2", "-o", tmp_path / "two"))["results"]["references"]
    assert {name: names[:2] for name, names in beside.items()} == two
    # those and only those: the other photos change nothing
    named = [word for name in two["0"] for word in ("--reference", tmp_path / "photos" / name)]
    alone = ("fix", images / "0.png", "--fixer", tiny, *named, "--references", "2", "-o", tmp_path / "alone", "--json")
    assert told(difix(*alone))["results"]["references"]["0"] == two["0"]
    assert (tmp_path / "alone/0.png").read_bytes() == (tmp_path / "two/0.png").read_bytes()


def test_by_default_nothing_is_written_into_a_run(tiny: Path, images: Path, tmp_path: Path) -> None:
    """What lies in a run's renders is taken for a variant of that run."""
    run = tmp_path / "runs" / "room"
    for name in ("truth", "distilled"):
        shutil.copytree(images, run / "renders" / name)
    write_json(run / "run.json", {"command": "distill", "arguments": {}, "state": "done"})
    for command, source, output in (
        ("fix", run / "renders" / "distilled", "room-renders-distilled_fixed"),
        ("fix", run / "renders" / "distilled" / "0.png", "room-renders-distilled-0_fixed"),
        ("enhance", run / "renders" / "distilled", "room-renders-distilled_enhanced"),
    ):
        said = told(difix(command, source, "--fixer", tiny, "--json"))
        assert said["output"] == str(run.with_name(output)) and Path(said["output"]).is_dir()
    line = ("eval", run / "renders" / "distilled", run / "renders" / "truth", "--metrics", "psnr", "--json")
    assert told(difix(*line))["report"] == str(run.with_name("room-renders-distilled_eval") / "report.html")
    assert list(told(difix("eval", run, "--metrics", "psnr", "--json"))["results"]) == ["distilled"]


def test_fix_and_enhance_take_transparency_alike(images: Path, tiny: Path, tmp_path: Path) -> None:
    alpha = np.full((64, 96), 255, np.uint8)
    alpha[:, 48:] = 100
    alpha[:20] = 0
    (tmp_path / "holes").mkdir()
    Image.fromarray(np.dstack([np.asarray(Image.open(images / "0.png")), alpha])).save(tmp_path / "holes" / "0.png")
    outputs = {}
    for command in ("fix", "enhance"):
        line = (command, tmp_path / "holes", "--fixer", tiny, "--reference", images / "1.png")
        made = difix(*line, "-o", tmp_path / command, "--json")
        assert told(made) and "1 of 1 image has an alpha channel" in " ".join(made.stderr.split())
        outputs[command] = read_image(tmp_path / command / "0.png")
    np.testing.assert_array_equal(outputs["fix"], outputs["enhance"])
    Image.fromarray((read_image(tmp_path / "holes" / "0.png") * 255 + 0.5).astype(np.uint8)).save(tmp_path / "0.png")
    line = ("enhance", tmp_path / "0.png", "--fixer", tiny, "--reference", images / "1.png")
    made = difix(*line, "-o", tmp_path / "black", "--json")
    assert told(made) and "alpha" not in made.stderr
    assert np.abs(read_image(tmp_path / "black" / "0.png") - outputs["enhance"]).max() > 1 / 255


def test_export_needs_no_images_and_says_the_licence_once(shared: Path, images: Path, tmp_path: Path) -> None:
    golden = shared / "golden" / "difix_ref"
    result = difix("fix", "--fixer", golden, "--export", tmp_path / "kept", "--json")
    assert told(result) == {"exported": str(tmp_path / "kept")}
    assert result.stderr.count("non-commercial") == 1
    assert Fixer.from_pretrained(tmp_path / "kept").config.lora_rank == 4
    result = difix("fix", images, "--fixer", golden, "--export", tmp_path / "merged", "--merge-lora", "--json")
    assert told(result)["exported"] and told(result)["results"]["frames"] == 3
    assert result.stderr.count("non-commercial") == 1
    assert "trained with a reference" in result.stderr
    assert Fixer.from_pretrained(tmp_path / "merged").config.lora_rank == 0
    refused(difix("fix", "--fixer", golden, "--export", tmp_path / "merged"), "not empty")
    assert told(difix("fix", "--fixer", golden, "--export", tmp_path / "kept", "--json"))  # the same line again
    (tmp_path / "kept/config.json").rename(tmp_path / "kept/config.json.part")  # and after it was killed
    assert told(difix("fix", "--fixer", golden, "--export", tmp_path / "kept", "--json"))
    assert Fixer.from_pretrained(golden).is_saved_in(tmp_path / "kept")
    told(difix("fix", "--fixer", golden, "--export", tmp_path / "merged", "--force", "--dtype", "fp16", "--json"))
    half, whole = (sum(f.stat().st_size for f in (tmp_path / x).iterdir()) for x in ("merged", "kept"))
    assert half < 0.55 * whole
    refused(difix("fix", "--fixer", tmp_path / "kept", "--export", tmp_path / "kept", "--force"), "choose another")


def test_a_name_that_several_frames_have_is_no_pose(arc: Path, tmp_path: Path) -> None:
    """A rig's cameras often number their photos alike."""
    scene = load_scene(arc, 64)
    frames = [replace(scene.frames[i], name=f"{side}/0.png") for i, side in enumerate(("left", "right"))]
    rig = replace(scene, frames=[*frames, *scene.frames[2:]])
    for name in (tmp_path / "left-0.png", tmp_path / "right-0.png"):
        assert ReferencePhotos.by_pose(rig, [name], 1).chosen(name.stem, np.zeros((9, 9, 3))) != []
    with pytest.raises(InputError, match="several frames"):
        ReferencePhotos.by_pose(rig, [tmp_path / "0.png"], 1)


def test_confidence_is_no_image_of_its_own(images: Path, tmp_path: Path) -> None:
    write_image(images / "0.confidence.png", np.ones((64, 96)))
    write_image(images / "lone.confidence.png", np.ones((64, 96)))
    assert [path.name for path in image_files(images)] == ["0.png", "1.png", "2.png", "lone.confidence.png"]


def test_an_image_of_absurd_size_is_refused(images: Path, tiny: Path, tmp_path: Path) -> None:
    """Pillow takes it for an attack, with an error of its own kind."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 30000, 30000, 8, 2, 0, 0, 0))
    bomb = tmp_path / "bomb.png"
    bomb.write_bytes(b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b""))
    refused(difix("fix", bomb, "--fixer", tiny, "--output", tmp_path / "out"), "bomb.png")
    refused(difix("fix", images, "--fixer", tiny, "--reference", bomb, "--output", tmp_path / "out"), "bomb.png")
    refused(difix("enhance", images, "--fixer", tiny, "--reference", bomb, "--output", tmp_path / "out"), "bomb.png")


def test_what_does_not_belong_together_is_refused(images: Path, tiny: Path, tmp_path: Path, photos: list[Path]) -> None:
    refused(difix("fix"), "Nothing to fix")
    refused(difix("fix", images, "--merge-lora"), "--export")
    export = ("fix", "--fixer", tiny, "--export", tmp_path / "exported")
    refused(difix(*export, "--tile", "256", "--confidence"), "Without images --tile, --confidence would say nothing")
    refused(
        difix(*export, "--reference", photos[0], "-o", tmp_path / "out"), "Without images --reference, --output would"
    )
    assert not (tmp_path / "exported").exists()
    refused(difix("fix", images, "--references", "2"), "--reference, or a --scene")
    refused(difix("fix", images, "--scene", "sample:room", "--reference", photos[0]), "leave one of them out")
    refused(difix("fix", images, "--fixer", images), "not a fixer")
    refused(difix("fix", tmp_path / "nothing.png"), "nothing.png")
    (tmp_path / "film.mp4").write_bytes(b"")
    refused(difix("fix", tmp_path / "film.mp4"), "difix enhance")
    Image.new("RGB", (8, 40)).save(images / "speck.png")
    refused(difix("fix", images, "--fixer", tiny), "speck.png", "8×40")
