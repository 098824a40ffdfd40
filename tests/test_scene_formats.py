"""Scenes as nerfstudio, instant-ngp, Blender and LLFF write them, and as copying between machines leaves them."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, features
from scipy.spatial.transform import Rotation
from small_scenes import write_colmap

from difixcli.errors import InputError
from difixcli.posing.photos import read_photos
from difixcli.reconstruction.dataset import write_dataset
from difixcli.scenes import default_split_rule, load_mask, load_photo, load_scene, make_split, scene_fingerprint
from difixcli.scenes.image_paths import find_masks, read_heif
from difixcli.scenes.other_tools import poses_of_another_tool
from difixcli.scenes.poses import look_at
from difixcli.scenes.scene import Scene
from difixcli.scenes.unposed import photos_in

WIDTH, HEIGHT = 64, 48
LENS = {"fl_x": 60.0, "fl_y": 61.0, "cx": 31.5, "cy": 24.5, "w": WIDTH, "h": HEIGHT}
_ORIENTATION = 0x0112


def pose(i: int) -> np.ndarray:
    return look_at(np.array([3 * np.cos(i), 3 * np.sin(i), 1 + 0.1 * i]), np.zeros(3), np.array([0, 0, 1]))


def noise(seed: int, size: tuple[int, int] = (WIDTH, HEIGHT), channels: int = 3) -> np.ndarray:
    """Soft noise, so that a JPEG of it is near it."""
    rng = np.random.default_rng(seed)
    small = rng.integers(0, 256, (size[1] // 8, size[0] // 8, channels), dtype=np.uint8)
    return np.asarray(Image.fromarray(small).resize(size, Image.Resampling.BICUBIC))


def draw(path: Path, pixels: np.ndarray, **options: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path, **options)


def write(folder: Path, said: list[str], there: list[str], **meta: Any) -> dict[str, Any]:
    """A scene whose transforms.json names photos as `said`, while they are called as `there`."""
    for i, name in enumerate(there):
        draw(folder / name, noise(i))
    frames = [{"file_path": name, "transform_matrix": pose(i).tolist()} for i, name in enumerate(said)]
    data = {**LENS, **meta, "frames": frames}
    save(folder, data)
    return data


def save(folder: Path, data: dict[str, Any], name: str = "transforms.json") -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text(json.dumps(data))


def plain(folder: Path, count: int = 4, **meta: Any) -> dict[str, Any]:
    names = [f"images/{i}.png" for i in range(count)]
    return write(folder, names, names, **meta)


def refused(*words: str) -> Any:
    return pytest.raises(InputError, match="(?s)" + ".*".join(words))


def said(scene: Scene, *words: str) -> str:
    """The one warning that has all the words."""
    found = [line for line in scene.warnings if all(word in line for word in words)]
    assert len(found) == 1, scene.warnings
    return found[0]


def quiet(scene: Scene) -> bool:
    """Whether nothing was repaired."""
    return all("seed points" in line for line in scene.warnings)


def shows(scene: Scene, number: int, seed: int) -> bool:
    """Whether a frame shows the photo and has the pose of a number."""
    frame = scene.frames[number]
    where = (scene.source_to_world @ np.append(pose(seed)[:3, 3], 1))[:3]
    photo = np.abs(load_photo(frame) - noise(seed) / 255).mean() < 0.04
    return bool(photo and np.allclose(frame.camera.position, where))


# The split that the file makes


def test_nerfstudios_lists_are_the_split(tmp_path: Path) -> None:
    """As nerfstudio reads them: a frame on no list is in neither half, and `./` does not count."""
    names = [f"images/{i}.png" for i in range(7)]
    halves = {"train_filenames": [*names[:2], f"./{names[4]}"], "val_filenames": [names[3]]}
    data = write(tmp_path, names, names, **halves, test_filenames=[names[5], names[2]])
    scene = load_scene(tmp_path)
    assert default_split_rule(scene) == "own"
    split = make_split(scene, "own")
    assert (split.train, split.test, split.rule) == ((0, 1, 4), (2, 5), "own")
    del data["test_filenames"]
    save(tmp_path, data)
    assert make_split(load_scene(tmp_path), "own").test == (3,)
    apart = {"frames": data["frames"][:5], "test_frames": data["frames"][5:]}
    save(tmp_path, {key: value for key, value in data.items() if not key.endswith("_filenames")} | apart)
    split = make_split(load_scene(tmp_path), "own")  # as ScanNet++ has it
    assert (split.train, split.test) == ((0, 1, 2, 3, 4), (5, 6))
    save(tmp_path, data)
    (tmp_path / names[0]).unlink()  # indices follow the photos that are there
    assert make_split(load_scene(tmp_path), "own").train == (0, 3)
    (tmp_path / "split.json").write_text(json.dumps({"train": ["1"], "test": ["2"]}))
    scene = load_scene(tmp_path)
    assert default_split_rule(scene) == "file:split.json"
    assert make_split(scene, "own").train == make_split(scene, "file:split.json").train != (0, 3)
    assert make_split(scene, "own").rule == "own"


def test_lists_that_cannot_be_the_split(tmp_path: Path) -> None:
    names = [f"images/{i}.png" for i in range(4)]
    data = write(tmp_path, names, names, train_filenames=names[:2], test_filenames=["images/9.png"])
    with refused("no frame", "images/9.png", "test_filenames"):
        load_scene(tmp_path)
    save(tmp_path, {**data, "test_filenames": "images/3.png"})
    with refused("test_filenames", "no list"):
        load_scene(tmp_path)
    save(tmp_path, {**data, "test_filenames": names[1:3]})
    scene = load_scene(tmp_path)
    said(scene, "1 frame is listed", "they train")
    assert make_split(scene, "own").train == (0, 1) and make_split(scene, "own").test == (2,)
    plain(tmp_path)
    scene = load_scene(tmp_path)
    assert default_split_rule(scene) == "test-every:8"
    with refused("no split of its own", "another --split"):
        make_split(scene, "own")
    with refused("own:3", "no argument"):
        make_split(scene, "own:3")


def test_a_written_dataset_keeps_its_split(tmp_path: Path) -> None:
    plain(tmp_path / "a", 5)
    scene = load_scene(tmp_path / "a")
    write_dataset(scene, [0, 2, 3], tmp_path / "b")
    again = load_scene(tmp_path / "b")
    assert default_split_rule(again) == "own" and make_split(again, "own").train == (0, 2, 3)
    # where all train, nerfstudio is given the same photos to test on: that holds out nothing
    write_dataset(scene, range(5), tmp_path / "c")
    assert default_split_rule(load_scene(tmp_path / "c")) == "test-every:8"


# Blender and instant-ngp


def blender(folder: Path, halves: tuple[str, ...] = ("train", "val", "test")) -> None:
    """A scene as the NeRF-synthetic set has it: one angle, RGBA photos without suffix, depth and normals beside."""
    for k, half in enumerate(halves):
        frames = []
        for i in range(3):
            number = 3 * k + i
            alpha = np.zeros((HEIGHT, WIDTH, 1), np.uint8)
            alpha[:, WIDTH // 2 :] = 255
            draw(folder / half / f"r_{i}.png", np.dstack([noise(number), alpha]))
            for companion in (f"r_{i}_depth_0001.png", f"r_{i}_normal_0001.png"):
                draw(folder / half / companion, np.zeros((HEIGHT, WIDTH, 3), np.uint8))
            frames.append({"file_path": f"./{half}/r_{i}", "rotation": 0.01, "transform_matrix": pose(number).tolist()})
        save(folder, {"camera_angle_x": 0.7, "frames": frames}, f"transforms_{half}.json")


def test_blenders_files_are_one_scene(tmp_path: Path) -> None:
    blender(tmp_path)
    scene = load_scene(tmp_path)
    assert [frame.name for frame in scene.frames] == [
        f"{h}/r_{i}.png" for h in ("test", "train", "val") for i in range(3)
    ]
    assert all(shows(scene, n, seed) for n, seed in enumerate((6, 7, 8, 0, 1, 2, 3, 4, 5)))
    for frame in scene.frames:
        focal = WIDTH / 2 / np.tan(0.35)
        np.testing.assert_allclose(frame.camera.intrinsics, [[focal, 0, 32], [0, focal, 24], [0, 0, 1]])
        assert frame.camera_id == "0"
        mask = load_mask(frame)
        assert mask is not None and not mask[:, : WIDTH // 2].any() and mask[:, WIDTH // 2 :].all()
    said(scene, "9 of 9 photos", "alpha", "mask")
    assert len(scene.warnings) == 2
    split = make_split(scene, default_split_rule(scene))
    assert (split.rule, split.train, split.test) == ("own", (3, 4, 5), (0, 1, 2))
    (tmp_path / "transforms_test.json").unlink()
    assert make_split(load_scene(tmp_path), "own").test == (3, 4, 5)  # val, sorted behind train
    (tmp_path / "transforms_val.json").unlink()
    assert default_split_rule(load_scene(tmp_path)) == "test-every:8"


def test_blenders_files_of_two_worlds_are_refused(tmp_path: Path) -> None:
    blender(tmp_path, ("train", "test"))
    data = json.loads((tmp_path / "transforms_test.json").read_text())
    save(tmp_path, {**data, "applied_transform": pose(1)[:3].tolist()}, "transforms_test.json")
    with refused("transforms_train.json", "transforms_test.json", "one world"):
        load_scene(tmp_path)


def test_instant_ngp(tmp_path: Path) -> None:
    """Its own keys are nothing to us; where it gives no size, the photos do."""
    data = plain(tmp_path, aabb_scale=16, scale=0.33, offset=[0.5, 0.5, 0.5], camera_angle_x=0.7, camera_angle_y=0.6)
    for key in LENS:
        del data[key]
    for frame in data["frames"]:
        frame["sharpness"] = 31.4
    save(tmp_path, data)
    scene = load_scene(tmp_path)
    assert quiet(scene)
    camera = scene.frames[1].camera
    np.testing.assert_allclose([camera.fx, camera.fy], [32 / np.tan(0.35), 24 / np.tan(0.3)])
    in_degrees = {"x_fov": np.degrees(0.7), "y_fov": np.degrees(0.6)}
    save(tmp_path, {"frames": data["frames"], **in_degrees})
    lens = load_scene(tmp_path).frames[1].lens
    np.testing.assert_allclose([lens.fx, lens.fy], [camera.fx, camera.fy])
    (tmp_path / "images/0.png").unlink()
    assert load_scene(tmp_path).frames[0].camera.fx == camera.fx
    shutil.rmtree(tmp_path / "images")
    with refused("None of the 4 images", "no w and h"):
        load_scene(tmp_path)


# Paths of other machines


@pytest.mark.parametrize(
    ("name", "there"),
    [
        (r"images\{}.png", "images/{}.png"),
        (r"C:\Users\me\garden\images\{}.png", "images/{}.png"),
        ("/srv/garden/images/left/{}.png", "images/left/{}.png"),
        (r"D:\shoot\{}.png", "images/{}.png"),
        ("images/{}.JPG", "images/{}.png"),
        ("images/{}.png", "Images/{}.PNG"),
        ("{}.jpeg", "images/{}.jpg"),
    ],
)
def test_paths_of_another_machine(tmp_path: Path, name: str, there: str) -> None:
    write(tmp_path, [name.format(f"a{i}") for i in range(3)], [there.format(f"a{i}") for i in range(3)])
    draw(tmp_path / "images_4" / "a0.png", noise(7))  # never in place of the photo
    scene = load_scene(tmp_path)
    assert [frame.name for frame in scene.frames] == [there.format(f"a{i}") for i in range(3)]
    assert all(shows(scene, i, i) for i in range(3))
    said(scene, "3 images have another path", there.format("a0"))
    # a photo that is missing is missing, whatever else is called so
    (tmp_path / there.format("a1")).unlink()
    draw(tmp_path / "other" / Path(there.format("a1")).name, noise(8))
    rest = load_scene(tmp_path)
    assert [shows(rest, n, i) for n, i in enumerate((0, 2))] == [True, True]
    said(rest, "1 of 3 images is missing")


def test_a_folder_is_not_replaced_by_another(tmp_path: Path) -> None:
    """Of two folders with the same names one was not copied: its frames are missing, not the other's."""
    names = [f"{side}/{i}.png" for side in ("left", "right") for i in range(3)]
    write(tmp_path, names, names)
    shutil.rmtree(tmp_path / "left")
    scene = load_scene(tmp_path)
    assert [frame.name for frame in scene.frames] == names[3:] and shows(scene, 0, 3)


def test_photos_of_another_machine_that_were_not_copied(tmp_path: Path) -> None:
    write(tmp_path, [rf"C:\rig\{side}\0.png" for side in ("left", "right")], [])
    with refused("None of the 2 images", "rig/left/0.png"):
        load_scene(tmp_path)


def test_several_files_may_be_meant(tmp_path: Path) -> None:
    write(tmp_path, ["images/a.tif", "images/b"], ["images/a.png", "images/b.png"])
    draw(tmp_path / "images/b.jpg", noise(5))
    assert shows(load_scene(tmp_path), 1, 1)  # without a suffix .png is meant
    draw(tmp_path / "images/a.jpg", noise(5))
    with refused("images/a.tif", "a.jpg, a.png", "whole name"):
        load_scene(tmp_path)


# Sizes and orientation


@pytest.mark.parametrize("factor", [2, 0.5])
def test_photos_of_another_size_scale_the_lens(tmp_path: Path, factor: float) -> None:
    data = plain(tmp_path, k1=-0.1)
    whole = load_scene(tmp_path)
    save(tmp_path, {**data, **{key: value * factor for key, value in LENS.items()}})
    scene = load_scene(tmp_path)
    for frame, same in zip(scene.frames, whole.frames, strict=True):
        np.testing.assert_allclose(frame.camera.intrinsics, same.camera.intrinsics)
        np.testing.assert_array_equal(load_photo(frame), load_photo(same))
    said(scene, "4 of 4 photos", "another size", f"not {WIDTH * factor:.0f}×")


@pytest.mark.parametrize("orientation", [5, 6, 7, 8])
def test_photos_declared_upright_are_turned(tmp_path: Path, orientation: int) -> None:
    """A telephone's JPEG lies on its side with a tag; who posed it saw it upright."""
    upright = {**LENS, "w": HEIGHT, "h": WIDTH}
    data = write(tmp_path, ["0.jpg", "1.jpg"], [], **upright)
    back = {
        5: Image.Transpose.TRANSPOSE, 6: Image.Transpose.ROTATE_90, 7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }  # fmt: skip
    exif = Image.Exif()
    exif[_ORIENTATION] = orientation
    seen = [noise(i, (HEIGHT, WIDTH)) for i in range(2)]
    for i, pixels in enumerate(seen):
        stored = Image.fromarray(pixels).transpose(back[orientation])
        stored.save(tmp_path / f"{i}.jpg", quality=98, exif=exif)
    mask = np.zeros((WIDTH, HEIGHT), np.uint8)
    mask[:30] = 255
    draw(tmp_path / "masks/0.png", mask)
    scene = load_scene(tmp_path)
    said(scene, "2 of 2 photos", "EXIF")
    assert scene.frames[0].turned and (scene.frames[0].camera.width, scene.frames[0].camera.height) == (HEIGHT, WIDTH)
    for frame, pixels in zip(scene.frames, seen, strict=True):
        assert np.abs(load_photo(frame) - pixels / 255).max() < 0.1
    np.testing.assert_array_equal(load_mask(scene.frames[0]), mask > 0)
    # declared as stored, the pixels stay as they are
    shutil.rmtree(tmp_path / "masks")
    save(tmp_path, {**data, **LENS})
    scene = load_scene(tmp_path)
    assert quiet(scene) and not scene.frames[0].turned and load_photo(scene.frames[0]).shape == (HEIGHT, WIDTH, 3)


def test_photos_on_their_side_without_a_tag_are_refused(tmp_path: Path) -> None:
    plain(tmp_path, w=HEIGHT, h=WIDTH)
    with refused("0.png is 64×48", "48×64 is declared", "another shape"):
        load_scene(tmp_path)


# Smaller copies


@pytest.mark.parametrize(
    ("photo", "copy"),
    [("images/a_{}.JPG", "images_4/a_{}.png"), ("images/left/a_{}.jpg", "images_4/left/a_{}.JPG"),
     ("images/IMG_40{}.JPG", "images_4/image00{}.png")],
)  # fmt: skip
@pytest.mark.parametrize("reader", ["transforms", "colmap"])
def test_smaller_copies_by_stem_and_by_llffs_order(tmp_path: Path, photo: str, copy: str, reader: str) -> None:
    names = [photo.format(i) for i in range(3)]
    write(tmp_path, names, names, cx=32, cy=24)
    if reader == "colmap":
        for i in range(3):  # the names of images are relative to images/
            shutil.copy(tmp_path / names[i], tmp_path / Path(names[i]).name)
        write_colmap(tmp_path, tmp_path / "sparse/0")
        text = (tmp_path / "sparse/0/images.txt").read_text()
        for name in names:
            text = text.replace(f" {Path(name).name}\n", f" {name.removeprefix('images/')}\n")
            (tmp_path / Path(name).name).unlink()
        (tmp_path / "sparse/0/images.txt").write_text(text)
        (tmp_path / "transforms.json").unlink()
    whole = load_scene(tmp_path)
    for i in range(3):
        draw(tmp_path / copy.format(i), noise(i, (WIDTH // 4, HEIGHT // 4)))
    shutil.rmtree(tmp_path / "images")
    scene = load_scene(tmp_path)
    said(scene, "taken from images_4")
    assert len(scene.warnings) == 2
    for i, (frame, full) in enumerate(zip(scene.frames, whole.frames, strict=True)):
        assert frame.name == names[i] and frame.image_path == tmp_path / copy.format(i)
        np.testing.assert_allclose(frame.camera.intrinsics[:2], full.camera.intrinsics[:2] / 4)


def test_llffs_order_needs_a_copy_for_each_photo(tmp_path: Path) -> None:
    write(tmp_path, [f"images/IMG_{i}.JPG" for i in range(3)], [f"images_4/image00{i}.png" for i in range(2)])
    with refused("None of the 3 images"):
        load_scene(tmp_path)


# How exporters write


def quoted(data: dict[str, Any]) -> dict[str, Any]:
    lens = {key: str(value) for key, value in data.items() if key in LENS}
    frames = [
        {**frame, "transform_matrix": [[str(value) for value in row] for row in frame["transform_matrix"]]}
        for frame in data["frames"]
    ]
    return {**data, **lens, "frames": frames}


@pytest.mark.parametrize(
    "written",
    [
        lambda data: b"\xef\xbb\xbf" + json.dumps(data).encode(),
        lambda data: json.dumps(quoted(data)).encode(),
        lambda data: json.dumps({**data, "camera_model": "opencv"}).encode(),
        lambda data: json.dumps({**data, "camera_model": "Simple_Pinhole"}).encode(),
    ],
    ids=["a byte order mark", "numbers as strings", "a model in lower case", "a model in mixed case"],
)
def test_exporters_habits(tmp_path: Path, written: Callable[[dict[str, Any]], bytes]) -> None:
    data = plain(tmp_path)
    expected = scene_fingerprint(load_scene(tmp_path))
    (tmp_path / "transforms.json").write_bytes(written(data))
    scene = load_scene(tmp_path)
    assert scene_fingerprint(scene) == expected and quiet(scene)


def test_scaled_rotations_lose_their_scale(tmp_path: Path) -> None:
    data = plain(tmp_path)
    expected = load_scene(tmp_path)
    for i, frame in enumerate(data["frames"][:3]):
        matrix = pose(i)
        matrix[:3, :3] *= 0.25
        frame["transform_matrix"] = matrix.tolist()
    save(tmp_path, data)
    scene = load_scene(tmp_path)
    said(scene, "3 poses", "0.25")
    for frame, same in zip(scene.frames, expected.frames, strict=True):
        np.testing.assert_allclose(frame.camera.camera_to_world, same.camera.camera_to_world, atol=1e-12)
    sheared = pose(3)
    sheared[:3, :3] = sheared[:3, :3] @ np.diag([0.25, 0.25, 0.3])
    mirrored = pose(3)
    mirrored[:3, :3] *= -0.25
    flat = pose(3)
    flat[:3, :3] = 0
    for wrong in (sheared, mirrored, flat):
        data["frames"][3]["transform_matrix"] = wrong.tolist()
        save(tmp_path, data)
        with refused("images/3.png", "not rigid"):
            load_scene(tmp_path)


def test_a_frame_that_is_listed_twice_is_one(tmp_path: Path) -> None:
    data = plain(tmp_path)
    expected = scene_fingerprint(load_scene(tmp_path))
    frames = [*data["frames"], data["frames"][2], {**data["frames"][1], "file_path": "./images/1.png"}]
    save(tmp_path, {**data, "frames": frames})
    scene = load_scene(tmp_path)
    said(scene, "2 frames are listed again")
    assert scene_fingerprint(scene) == expected  # the world, too: each pose counts once
    save(tmp_path, {**data, "frames": [*data["frames"], {**data["frames"][1], "fl_x": 70}]})
    with refused("images/1.png", "more than once"):
        load_scene(tmp_path)


# Masks that nobody names


@pytest.mark.parametrize("folder", ["masks", "mask"])
@pytest.mark.parametrize("name", ["a0.png", "a0.jpg.png", "a0.mask.png", "mask_a0.png", "a0.jpg", "A0.PNG"])
@pytest.mark.parametrize("reader", ["transforms", "colmap"])
def test_masks_beside_the_photos(tmp_path: Path, folder: str, name: str, reader: str) -> None:
    names = [f"images/a{i}.jpg" for i in range(3)]
    write(tmp_path, names, names)
    if reader == "colmap":
        write_colmap(tmp_path, tmp_path / "sparse/0")
        (tmp_path / "transforms.json").unlink()
    half = np.zeros((HEIGHT, WIDTH), np.uint8)
    half[:, WIDTH // 2 :] = 255
    draw(tmp_path / folder / name, half)
    scene = load_scene(tmp_path)
    said(scene, "1 of 3 photos with a mask", f"{folder}/")
    np.testing.assert_array_equal(load_mask(scene.frames[0]), half > 0)
    assert load_mask(scene.frames[1]) is None


def test_masks_in_mirrored_folders(tmp_path: Path) -> None:
    names = [f"images/{side}/0.jpg" for side in ("left", "right")]
    draw(tmp_path / "masks/left/0.png", noise(0))
    draw(tmp_path / "masks/images/right/0.png", noise(0))
    found, _ = find_masks(tmp_path, names)
    assert found == [tmp_path / "masks/left/0.png", tmp_path / "masks/images/right/0.png"]
    draw(tmp_path / "masks/0.png", noise(0))  # whose is it?
    shutil.rmtree(tmp_path / "masks/left")
    assert find_masks(tmp_path, names)[0][0] is None
    # of two photos with one stem, only the whole name says whose a mask is
    draw(tmp_path / "masks/a.png", noise(0))
    draw(tmp_path / "masks/a.jpg.png", noise(0))
    found, _ = find_masks(tmp_path, ["images/a.jpg", "images/a.webp"])
    assert found == [tmp_path / "masks/a.jpg.png", None]


@pytest.mark.parametrize(
    "name",
    [
        *("masks/{}_mask.png", "masks/{}.jpg.mask.png", "Masks/{}.png", "MASK/{}-mask.png"),
        "images/masks/{}.png",
        *("images/{}.jpg.mask.png", "images/{}.mask.png", "images/{}_mask.png"),
        *("masks/{}.jpg", "masks/{}.jpg.tif", "Mask/{}.webp", "masks/mask_{}.bmp", "masks/{}_MASK.JPG"),
        *("images/{}_mask.jpg", "images/mask_{}.jpg", "images/{}-mask.JPEG", "images/{}.jpg_mask.jpg"),
    ],
)
def test_masks_as_other_tools_call_them(tmp_path: Path, name: str) -> None:
    photos = [f"images/{i}.jpg" for i in range(3)]
    write(tmp_path, photos, photos)
    half = np.zeros((HEIGHT, WIDTH), np.uint8)
    half[10:] = 255
    draw(tmp_path / name.format(1), half)
    scene = load_scene(tmp_path)
    said(
        scene,
        "1 of 3 photos with a mask",
        "beside them" if Path(name).parent.name == "images" else Path(name).parent.name,
    )
    assert [frame.mask_path is not None for frame in scene.frames] == [False, True, False]
    np.testing.assert_array_equal(load_mask(scene.frames[1]), half > 0)
    (tmp_path / "transforms.json").unlink()  # nor is it a photo to pose
    assert [path.name for path in photos_in(tmp_path / "images")] == ["0.jpg", "1.jpg", "2.jpg"]
    draw(tmp_path / "images" / "1.CONFIDENCE.png", half)  # nor what difix writes beside a picture
    assert [path.name for path in photos_in(tmp_path / "images")] == ["0.jpg", "1.jpg", "2.jpg"]
    (tmp_path / "images" / "1.CONFIDENCE.png").unlink()
    assert [photo.mask for photo in read_photos(photos_in(tmp_path / "images"))] == [
        None,
        tmp_path / name.format(1),
        None,
    ]


def test_masks_that_fit_nothing_and_masks_that_are_named(tmp_path: Path) -> None:
    data = plain(tmp_path)
    draw(tmp_path / "masks/else.png", np.zeros((HEIGHT, WIDTH), np.uint8))
    scene = load_scene(tmp_path)
    said(scene, "masks/", "no masks are used")
    assert load_mask(scene.frames[0]) is None
    # what the file names is all there is
    draw(tmp_path / "masks/0.png", np.zeros((HEIGHT, WIDTH), np.uint8))
    data["frames"][1]["mask_path"] = r"C:\scene\masks\else.png"
    save(tmp_path, data)
    scene = load_scene(tmp_path)
    assert [frame.mask_path is not None for frame in scene.frames] == [False, True, False, False]
    # a photo is never taken for a mask
    for named in ("0.png", "/elsewhere/images/0.png"):
        data["frames"][1]["mask_path"] = named
        (tmp_path / "masks/0.png").unlink(missing_ok=True)
        save(tmp_path, data)
        with refused("mask", "0.png", "does not exist"):
            load_scene(tmp_path)


def test_masks_of_another_size(tmp_path: Path) -> None:
    plain(tmp_path)
    small = np.zeros((HEIGHT // 4, WIDTH // 4), np.uint8)
    small[3:, 5:] = 255
    draw(tmp_path / "masks/0.png", small)
    scene = load_scene(tmp_path)
    said(scene, "1 mask has another size", "16×12", "64×48")
    np.testing.assert_array_equal(load_mask(scene.frames[0]), np.kron(small > 0, np.ones((4, 4), bool)))
    draw(tmp_path / "masks/0.png", np.zeros((WIDTH, HEIGHT), np.uint8))
    with refused("masks/0.png is 48×64", "64×48", "another shape"):
        load_scene(tmp_path)


# Other tools


@pytest.mark.parametrize(
    ("file", "text", "words"),
    [
        ("cameras.xml", '<?xml version="1.0"?>\n<document version="2.0.0">\n<chunk/>', ("Metashape", "metashape")),
        ("poses.csv", "#name,x,y,alt,heading,pitch,roll,f,px,py\n", ("RealityScan", "realitycapture")),
        ("metadata.json", '{"w": 3, "poses": []}', ("Record3D", "record3d")),
        ("opensfm/reconstruction.json", "[]", ("OpenDroneMap", "odm")),
        ("scene.nvm", "NVM_V3 \n", ("VisualSFM", "COLMAP")),
        ("sfm_data.json", "{}", ("OpenMVG", "openMVG_main_openMVG2Colmap")),
        ("metadata", json.dumps({"K": [1.0] * 4000, "poses": []}), ("Record3D", "record3d")),
        ("images/0.xmp", '<x:xmpmeta xmlns:x="adobe:ns:meta/">\n<xcr:Rotation>1 0 0', ("RealityScan", "COLMAP")),
        ("cameras.json", '[{"id": 0, "img_name": "0", "position": [0, 0, 0]}]', ("trained splat", "cfg_args")),
        ("cams/00000000_cam.txt", "extrinsic\n1 0 0 0\n", ("MVSNet", "transforms.json")),
        ("groundtruth.txt", "# timestamp tx ty tz qx qy qz qw\n", ("TUM", "transforms.json")),
        ("pose/0.txt", "1 0 0 0\n", ("ScanNet", "transforms.json")),
    ],
)
def test_poses_of_other_tools_are_named(tmp_path: Path, file: str, text: str, words: tuple[str, str]) -> None:
    draw(tmp_path / "images/0.jpg", noise(0))
    (tmp_path / file).parent.mkdir(exist_ok=True)
    (tmp_path / file).write_text(text)
    with refused("holds no scene", Path(file).name, *words, "difix pose"):
        load_scene(tmp_path)
    (tmp_path / file).write_bytes(b"")  # only what it holds makes it a tool's, where the name alone does not
    by_name = ("opensfm/reconstruction.json", "sfm_data.json", "pose/0.txt")
    assert (poses_of_another_tool(tmp_path) is None) == (file not in by_name)


def test_a_raw_export_of_polycam_is_named(tmp_path: Path) -> None:
    draw(tmp_path / "keyframes/images/1.jpg", noise(0))
    (tmp_path / "keyframes/cameras").mkdir()
    (tmp_path / "keyframes/cameras/1.json").write_text("{}")
    with refused("holds no scene", "Polycam", "ns-process-data polycam"):
        load_scene(tmp_path)
    (tmp_path / "keyframes/cameras/1.json").write_text('{"t_00": 1.0}')
    with refused("holds no scene", "Polycam", "ns-process-data polycam", "folder above"):
        load_scene(tmp_path / "keyframes")


@pytest.mark.parametrize("model", ["equirectangular", "SPHERICAL", "VR180_L", "ORTHOPHOTO"])
def test_models_that_are_no_lens_are_named(tmp_path: Path, model: str) -> None:
    plain(tmp_path, camera_model=model)
    with refused(model.upper(), "perspective"):
        load_scene(tmp_path)


@pytest.mark.parametrize(
    ("lens", "model"),
    [({"ftheta_p0": 0.0}, "FTHETA"), ({"latlong": True}, "EQUIRECTANGULAR"), ({"orthographic": True}, "ORTHOGRAPHIC")],
)
def test_lenses_that_instant_ngp_names_by_a_key(tmp_path: Path, lens: dict[str, Any], model: str) -> None:
    data = plain(tmp_path, **lens)
    with refused(model, "images/0.png", "perspective"):
        load_scene(tmp_path)
    save(tmp_path, {**data, **dict.fromkeys(lens, None)})
    assert quiet(load_scene(tmp_path))


def test_a_scene_a_folder_below_is_named(tmp_path: Path) -> None:
    plain(tmp_path / "export")
    with refused("holds no scene", "export", "name .*/export"):
        load_scene(tmp_path)


# Formats


@pytest.mark.skipif(not features.check("avif"), reason="PIL was built without AVIF")
def test_avif(tmp_path: Path) -> None:
    write(tmp_path, ["images/0.avif", "images/1.jpg"], ["images/0.avif", "images/1.avif"])
    scene = load_scene(tmp_path)
    assert shows(scene, 0, 0) and shows(scene, 1, 1)


@pytest.mark.skipif(not read_heif(), reason="pillow-heif is not installed")
def test_heic(tmp_path: Path) -> None:
    """By a JPEG's name, with transparency, and with an orientation, whose pixels come upright."""
    write(tmp_path, [f"images/{i}.jpg" for i in range(3)], ["images/0.heic", "images/1.HEIF", "images/2.jpg"])
    there = np.full((HEIGHT, WIDTH), 255, np.uint8)
    there[:10] = 0
    exif = Image.Exif()
    exif[_ORIENTATION] = 6
    draw(tmp_path / "images/0.heic", np.dstack([noise(0), there]))
    draw(tmp_path / "images/1.HEIF", noise(1), exif=exif)
    scene = load_scene(tmp_path)
    assert all(shows(scene, i, i) for i in range(3))
    said(scene, "1 of 3 photos have an alpha channel")
    mask = load_mask(scene.frames[0])
    assert mask is not None and not mask[:9].any() and mask[12:].all()
    assert photos_in(tmp_path / "images") == [tmp_path / "images" / name for name in ("0.heic", "1.HEIF", "2.jpg")]


@pytest.mark.skipif(read_heif(), reason="pillow-heif reads it")
@pytest.mark.parametrize("name", ["images/0.HEIC", "images/0.jpg"])
def test_heic_is_named(tmp_path: Path, name: str) -> None:
    """Also where it was only renamed."""
    write(tmp_path, [name], [])
    (tmp_path / "images").mkdir()
    (tmp_path / name).write_bytes(b"\x00\x00\x00\x18ftypheic\x00\x00\x00\x00mif1heic")
    with refused(name, "HEIC", "convert the photos to JPEG", "pip install pillow-heif"):
        load_scene(tmp_path)


def test_raw_photos_of_a_scene_are_named(tmp_path: Path) -> None:
    """PIL would read the thumbnail."""
    write(tmp_path, ["images/0.NEF"], ["images/0.tif"])
    (tmp_path / "images/0.tif").rename(tmp_path / "images/0.NEF")
    with refused("0.NEF is NEF", "convert the photos to JPEG"):
        load_scene(tmp_path)


# Cost


def test_reading_is_linear_in_the_frames(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each folder is listed once and each header read once, and names are made once, whatever is asked for."""
    count = 40
    write(tmp_path, [rf"C:\x\images\{i}.JPG" for i in range(count)], [f"images/{i}.png" for i in range(count)])
    listed, opened = [], []
    scan, open_image = os.scandir, Image.open
    monkeypatch.setattr(os, "scandir", lambda path: (listed.append(path), scan(path))[1])
    monkeypatch.setattr(Image, "open", lambda *a, **k: (opened.append(a), open_image(*a, **k))[1])
    scene = load_scene(tmp_path)
    assert len(scene.frames) == count and len(opened) == count and 1 <= listed.count(tmp_path / "images") <= 2
    assert scene.file_names is scene.file_names and len(scene.file_names) == count


def test_rotated_worlds_stay(tmp_path: Path) -> None:
    """`own` and the repairs do not touch the world that `applied_transform` undoes."""
    applied = np.eye(4)
    applied[:3, :3] = Rotation.from_euler("xyz", [0.4, -1, 2]).as_matrix()
    data = plain(tmp_path)
    expected = load_scene(tmp_path)
    for i, frame in enumerate(data["frames"]):
        matrix = applied @ pose(i)
        matrix[:3, :3] *= 3
        frame["transform_matrix"] = matrix.tolist()
    save(tmp_path, {**data, "applied_transform": applied[:3].tolist()})
    for frame, same in zip(load_scene(tmp_path).frames, expected.frames, strict=True):
        np.testing.assert_allclose(frame.camera.camera_to_world, same.camera.camera_to_world, atol=1e-9)
