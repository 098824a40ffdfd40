"""Posing photos and videos: found poses against true ones, what is refused, and what is not done twice."""

from __future__ import annotations

import json
import shutil
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from commands import difix, done, refused
from PIL import Image
from rich.console import Console

from difixcli import console
from difixcli.cli.inputs import open_scene
from difixcli.cli.outputs import Made
from difixcli.cli.pose import PoseRequest
from difixcli.curation.scene_list import expand_scenes
from difixcli.enhancement.video import VideoWriter
from difixcli.errors import InputError
from difixcli.posing import pose, pose_inputs
from difixcli.posing.features import DEFAULT_FOCAL, check_room, pairs_to_match
from difixcli.posing.mapping import Model, best, keep_largest_part, map_photos, parts, quiet
from difixcli.posing.photos import lens_groups, prepare, read_photos
from difixcli.posing.pose import _missing
from difixcli.posing.video import STEP, frames_apart
from difixcli.runs import Run, read_image
from difixcli.samples.sample import cached_sample
from difixcli.scenes import Camera, load_scene
from difixcli.scenes.colmap import read_colmap
from difixcli.scenes.image_paths import PHOTO_FOLDERS, read_heif
from difixcli.scenes.nerfstudio_format import read_transforms
from difixcli.scenes.scene import Frame
from difixcli.scenes.unposed import is_unposed, left_out, photo_folder, photos_in

COUNT = 12
SPACED, TURNED, MASKED = 2, 4, 6
HIDDEN = (slice(180, 240), slice(0, 100))
"""What the masked photo's mask leaves out: rows and columns."""


def _true_frames() -> list[Frame]:
    frames = load_scene("sample:room").frames
    return [frame for frame in frames if "train" in frame.name][:COUNT]


def _write_photos(folder: Path) -> Path:
    """The room's photos with their poses thrown away: one has a space in its name, one lies on its side with an EXIF
    orientation that says so, one has a mask beside the folder."""
    folder.mkdir(parents=True)
    (folder.parent / "masks").mkdir()
    for i, frame in enumerate(_true_frames()):
        photo = Image.open(frame.image_path)
        name = f"photo{' ' if i == SPACED else '_'}{i}.png"
        if i == TURNED:
            exif = photo.getexif()
            exif[0x0112] = 6  # turn by a quarter clockwise to see it upright
            photo.transpose(Image.Transpose.ROTATE_90).save(folder / name, exif=exif)
        else:
            photo.save(folder / name)
        if i == MASKED:
            mask = np.full((photo.height, photo.width), 255, np.uint8)
            mask[HIDDEN] = 0
            Image.fromarray(mask).save(folder.parent / "masks" / name)
    return folder


@pytest.fixture(scope="session")
def unposed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return _write_photos(tmp_path_factory.mktemp("posing") / "photos")


@pytest.fixture(scope="session")
def results(unposed: Path) -> dict:
    """Of `difix pose PHOTOS`; the scene is where it is put by default."""
    return done(difix("pose", unposed, "--json"))


@pytest.fixture(scope="session")
def posed(unposed: Path, results: dict) -> Path:
    return unposed.with_name("photos-posed")


def _errors(folder: Path, number_of: Callable[[str], int]) -> tuple[np.ndarray, np.ndarray]:
    """Position errors as shares of the extent, and angles in degrees, after the best similarity."""
    truth = _true_frames()
    found = read_transforms(folder / "transforms.json").frames
    true = [truth[number_of(frame.name)].camera.camera_to_world for frame in found]
    a, b = np.stack([frame.pose[:3, 3] for frame in found]), np.stack([pose[:3, 3] for pose in true])
    x, y = a - a.mean(axis=0), b - b.mean(axis=0)
    u, d, vt = np.linalg.svd(y.T @ x)
    sign = np.diag([1, 1, np.linalg.det(u @ vt)])
    rotation, scale = u @ sign @ vt, np.trace(np.diag(d) @ sign) / (x**2).sum()
    extent = 2 * np.linalg.norm(y, axis=1).max()
    between = [
        true_pose[:3, :3].T @ rotation @ frame.pose[:3, :3] for frame, true_pose in zip(found, true, strict=True)
    ]
    angles = [np.degrees(np.arccos(np.clip((np.trace(one) - 1) / 2, -1, 1))) for one in between]
    return np.linalg.norm(scale * x @ rotation.T - y, axis=1) / extent, np.array(angles)


def _photo_number(name: str) -> int:
    return int(Path(name).stem.split("_")[-1])


def test_poses_are_found_again(posed: Path, results: dict) -> None:
    assert (results["placed"], results["not_placed"], results["sensible"]) == (COUNT, {}, True)
    errors, angles = _errors(posed, _photo_number)
    assert len(errors) == COUNT
    assert errors.max() < 0.02 and angles.max() < 1.5
    true = _true_frames()[0].lens
    assert results["focal"] == pytest.approx(true.fx, rel=0.06)


def test_the_scene_is_whole_and_the_same_in_both_forms(posed: Path, tmp_path: Path) -> None:
    scene = load_scene(posed)
    assert not scene.warnings and len(scene.frames) == COUNT and len(scene.points) > 300
    assert all(frame.lens.is_pinhole for frame in scene.frames)
    inside = [_seen(frame.camera, scene.points).mean() for frame in scene.frames]
    assert min(inside) > 0.1, "points lie before the cameras that saw them"
    nerfstudio = {frame.name: frame for frame in read_transforms(posed / "transforms.json").frames}
    colmap = read_colmap(posed)
    for frame in colmap.frames:
        np.testing.assert_allclose(frame.pose, nerfstudio[frame.name].pose, atol=1e-6)
    assert len(colmap.points) == len(scene.points)
    bare = shutil.copytree(posed, tmp_path / "bare", ignore=shutil.ignore_patterns("transforms.json", "work"))
    masked = [[frame.name for frame in one.frames if frame.mask_path is not None] for one in (scene, load_scene(bare))]
    assert masked[0] == masked[1] == [f"images/photo_{MASKED}.png"]
    assert read_image(posed / "poses.png").std() > 0.02
    assert json.loads((posed / "run.json").read_text())["state"] == "done"


def _seen(camera: Camera, points: np.ndarray) -> np.ndarray:
    x, y, depth = camera.project(points)
    return (depth > 0) & (x > 0) & (x < camera.width) & (y > 0) & (y < camera.height)


def test_python_asks_for_the_same_scene(unposed: Path, posed: Path, results: dict) -> None:
    assert PoseRequest(unposed).run() == Made(posed, results)


def test_turned_photos_stand_upright(posed: Path, results: dict) -> None:
    assert results["turned"] == 1 and results["cameras"] == 1
    image = read_image(posed / "images" / f"photo_{TURNED}.png")
    true = read_image(_true_frames()[TURNED].image_path)
    # cropped by a few pixels and straightened: still the same picture, unless it lies on its side
    rows, columns = (np.linspace(0, n - 1, 40).astype(int) for n in image.shape[:2])
    true_rows, true_columns = (np.linspace(0, n - 1, 40).astype(int) for n in true.shape[:2])
    a, b = image[np.ix_(rows, columns)].ravel(), true[np.ix_(true_rows, true_columns)].ravel()
    assert np.corrcoef(a, b)[0, 1] > 0.8


def test_masks_go_with_their_photos(posed: Path) -> None:
    held = {frame.name: frame.mask_path for frame in read_transforms(posed / "transforms.json").frames}
    assert [name for name, mask in held.items() if mask] == [f"images/photo_{MASKED}.png"]
    mask = read_image(posed / "masks" / f"photo_{MASKED}.png.png")[..., 0]
    photo = read_image(posed / "images" / f"photo_{MASKED}.png")
    assert mask.shape == photo.shape[:2]
    assert mask[-20:, :60].max() == 0 and mask[:150].min() == 1 and mask[:, 140:].min() == 1


def _first_different_table(*folders: Path) -> str | None:
    """The first stage whose rows differ between the databases of two posed scenes: poses that differ come from it, or
    from mapping where none does."""
    held = []
    for folder in folders:
        with closing(sqlite3.connect(folder / "work" / "database.db")) as database:
            queries = {
                "cameras": "SELECT * FROM cameras",
                "keypoints": "SELECT image_id, data FROM keypoints",
                "descriptors": "SELECT image_id, data FROM descriptors",
                "matches": "SELECT pair_id, data FROM matches",
                "two_view_geometries": "SELECT * FROM two_view_geometries",
            }
            held.append({table: sorted(database.execute(query)) for table, query in queries.items()})
    return next((table for table in held[0] if held[0][table] != held[1][table]), None)


def test_a_stopped_run_goes_on_and_ends_the_same(unposed: Path, posed: Path, tmp_path: Path) -> None:
    reports: list[tuple[str, int]] = []

    def stopping(at: str | None) -> Callable:
        @contextmanager
        def progress(label: str, total: int) -> Iterator[Callable[[int], None]]:
            def report(so_far: int) -> None:
                reports.append((label, so_far))
                if label == at and 0 < so_far < total:
                    raise KeyboardInterrupt

            yield report

        return progress

    source, folder = unposed, tmp_path / "again"
    arguments = {"source": source, "seed": 0}
    for at in ("Finding features", "Matching pairs"):
        run = Run.open(folder, "pose", arguments, pose_inputs(source))
        with pytest.raises(KeyboardInterrupt):
            pose(source, run, 150, 0, stopping(at), print)
    reports.clear()
    done(difix("pose", source, "--output", folder, "--json"))  # the line as typed
    run = Run.open(tmp_path / "third", "pose", arguments, pose_inputs(source))
    shutil.copytree(folder / "work", run.folder / "work")
    pose(source, run, 150, 0, stopping(None), print)
    assert [n for label, n in reports if label == "Finding features"] == [COUNT]
    assert [n for label, n in reports if label == "Matching pairs"] == [COUNT * (COUNT - 1) // 2]
    assert not [n for label, n in reports if label == "Placing photos"]
    assert _first_different_table(folder, posed) is None
    for other in (folder, run.folder):
        for name in ("transforms.json", "points3D.ply", "images/photo_0.png"):
            assert (other / name).read_bytes() == (posed / name).read_bytes(), name


def test_mapping_goes_on_with_the_mapper_that_was_stopped(posed: Path, unposed: Path, tmp_path: Path) -> None:
    photos = read_photos(sorted(unposed.iterdir()))
    photos = [replace(photo, name=photo.name.replace(" ", "_")) for photo in photos]
    prepare(photos, tmp_path / "photos", tmp_path / "masks", lambda done: None)
    placed: list[int] = []

    def mapped() -> dict[str, bytes]:
        # one photo more than there is: both mappers are asked
        database = posed / "work" / "database.db"
        model = map_photos(database, tmp_path / "photos", tmp_path / "work", COUNT + 1, 0, print, placed.append)
        assert model is not None and model.placed == COUNT
        return {image.name: image.cam_from_world().matrix().tobytes() for image in model.reconstruction.images.values()}

    with quiet():
        whole = mapped()
        assert placed[-1] == COUNT
        placed.clear()
        shutil.rmtree(tmp_path / "work/global")  # killed in the second mapper
        assert mapped() == whole and not placed
        assert (tmp_path / "work/global/found.json").is_file()
        (tmp_path / "work/incremental/found.json").unlink()  # killed before the first one was done
        assert mapped() == whole and placed[-1] == COUNT


def test_commands_take_posed_photos_without_posing_them_again(unposed: Path, posed: Path) -> None:
    record = (posed / "run.json").read_bytes()
    scene = open_scene(str(unposed), 64, "cpu")
    assert scene.name == "photos" and len(scene.frames) == COUNT
    assert load_scene(unposed).frames[0].image_path.is_relative_to(posed)
    assert (posed / "run.json").read_bytes() == record


def test_a_video_is_posed_once_where_a_scene_is_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said = Console(record=True, width=300, file=(tmp_path / "said").open("w"))
    monkeypatch.setattr(console, "err", said)
    film = tmp_path / "walk.mp4"
    with VideoWriter(film, 5) as video:
        for frame in _true_frames():
            video.add(read_image(frame.image_path))
    with pytest.raises(InputError, match="difix pose"):
        load_scene(film)
    scene = open_scene(str(film), None, "gpu")
    assert scene.name == "walk" and len(scene.frames) >= 0.9 * COUNT
    assert "walk-posed" in said.export_text()
    errors, _ = _errors(tmp_path / "walk-posed", _photo_number)
    assert errors.max() < 0.03
    changed = (tmp_path / "walk-posed" / "transforms.json").stat().st_mtime_ns
    open_scene(str(film), None, "gpu")
    assert (tmp_path / "walk-posed" / "transforms.json").stat().st_mtime_ns == changed
    assert "posed before" in said.export_text()


def test_a_disk_without_room_is_told_before_pycolmap_ends_the_process(
    unposed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("difixcli.posing.features._ROOM", 2**80)
    refused(difix("pose", unposed, "--output", tmp_path / "scene"), "No space left on device", str(tmp_path / "scene"))
    if Path("/proc").is_dir():  # says that it has no room, and none that is taken
        check_room(Path("/proc/database"))


def test_what_cannot_be_posed_is_refused(tmp_path: Path) -> None:
    refused(difix("pose", tmp_path / "nowhere"), "nowhere")
    (tmp_path / "empty").mkdir()
    refused(difix("pose", tmp_path / "empty"), "holds no photos")
    flat = tmp_path / "flat"
    flat.mkdir()
    for i in range(2):
        Image.new("RGB", (120, 90), (90 + i, 80, 70)).save(flat / f"{i}.png")
    refused(difix("pose", flat), "2 photos", "sideways")
    for i in range(2, 5):
        Image.new("RGB", (120, 90), (90 + i, 80, 70)).save(flat / f"{i}.png")
    refused(difix("pose", flat, "--output", tmp_path / "out"), "0 of 5", "features", "texture")
    refused(difix("pose", cached_sample("room"), "--output", tmp_path / "out2"), "poses already")
    refused(difix("pose", flat, "--output", flat), "the photos themselves")
    broken = tmp_path / "broken.mp4"
    broken.write_bytes(b"no video")
    refused(difix("pose", broken), "broken.mp4")
    (flat / "5.png").write_bytes(b"no picture")
    refused(difix("pose", flat, "--output", tmp_path / "out3"), "5.png")


@pytest.mark.parametrize("inner", ["", *PHOTO_FOLDERS, "IMAGES"])
def test_photos_lie_in_their_folder_or_where_tools_keep_them(tmp_path: Path, inner: str) -> None:
    (tmp_path / inner).mkdir(exist_ok=True)
    Image.new("RGB", (120, 90)).save(tmp_path / inner / "0.jpg")
    assert photo_folder(tmp_path) == tmp_path / inner and is_unposed(tmp_path)
    (tmp_path / "sub").mkdir()
    Image.new("RGB", (120, 90)).save(tmp_path / "sub" / "1.jpg")
    (tmp_path / inner / "0.jpg").unlink()
    assert photo_folder(tmp_path) is None


def test_a_picture_beside_the_photos_folder_is_told_and_left_out(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    for name in ("preview.jpg", "images/0.jpg", "images/1.jpg"):
        Image.new("RGB", (120, 90)).save(tmp_path / name)
    assert photo_folder(tmp_path) == tmp_path / "images"
    result = difix("pose", tmp_path, "--output", tmp_path / "out")
    refused(result, f"{tmp_path / 'images'} holds 2 photos")
    assert f"1 photo in {tmp_path} left out" in " ".join(result.stderr.split())


HEIC = b"\x00\x00\x00\x18ftypheic\x00\x00\x00\x00mif1heic"


@pytest.mark.parametrize("inner", ["", "images"])
@pytest.mark.parametrize("suffix", ["CR2", "dng", "NEF"])
def test_a_folder_of_raw_photos_is_told_what_they_are(tmp_path: Path, suffix: str, inner: str) -> None:
    photos = tmp_path / "photos"
    (photos / inner).mkdir(parents=True)
    for i in range(4):
        (photos / inner / f"{i}.{suffix}").write_bytes(b"II*\0")
    words = (str(photos / inner), suffix.upper(), "(4)", "convert the photos to JPEG.")
    refused(difix("pose", photos), *words)
    refused(difix("distill", photos, "--preset", "cpu"), *words)
    assert not list(tmp_path.glob("*-posed"))


@pytest.mark.skipif(read_heif(), reason="pillow-heif reads it")
def test_a_folder_of_heic_photos_is_told_what_they_are(tmp_path: Path) -> None:
    for i in range(4):
        (tmp_path / f"{i}.HEIC").write_bytes(HEIC)
    words = ("holds only HEIC photos (4)", "convert the photos to JPEG, or pip install pillow-heif")
    refused(difix("pose", tmp_path), *words)
    with pytest.raises(InputError, match="holds only HEIC photos"):
        load_scene(tmp_path)
    for i in range(4):
        (tmp_path / f"{i}.HEIC").rename(tmp_path / f"{i}.jpg")
    refused(difix("pose", tmp_path), "0.jpg is HEIC", "pip install pillow-heif")


def test_photos_that_cannot_be_decoded_are_left_out_and_counted(tmp_path: Path) -> None:
    for i in range(4):
        Image.new("RGB", (120, 90), (90 + i, 80, 70)).save(tmp_path / f"{i}.jpg")
    (tmp_path / "0.DNG").write_bytes(b"II*\0")  # the same shot as 0.jpg
    assert left_out(tmp_path) is None
    for name in ("4.nef", "5.NEF", ".6.nef"):
        (tmp_path / name).write_bytes(b"MM\0*")
    result = difix("pose", tmp_path, "--output", tmp_path.parent / f"{tmp_path.name}-out")
    assert "Warning: 2 of 6 photos in" in result.stderr and "NEF (raw) cannot be decoded" in result.stderr
    refused(result, "0 of 4")


@pytest.mark.skipif(not read_heif(), reason="pillow-heif is not installed")
def test_heic_photos_are_read(tmp_path: Path) -> None:
    true = _true_frames()[0].image_path
    Image.open(true).save(tmp_path / "a.HEIC", quality=95)
    assert photos_in(tmp_path) == [tmp_path / "a.HEIC"]
    [photo] = read_photos([tmp_path / "a.HEIC"])
    prepare([photo], tmp_path / "upright", tmp_path / "masks", lambda done: None)
    assert photo.copied and photo.size == (320, 240)
    assert np.abs(read_image(tmp_path / "upright" / photo.name) - read_image(true)).mean() < 0.02


def test_masks_of_another_size_are_resized(tmp_path: Path) -> None:
    Image.new("RGB", (120, 90), (90, 80, 70)).save(tmp_path / "a.jpg")
    half = np.zeros((45, 60), np.uint8)
    half[:, 20:] = 255
    Image.fromarray(half).save(tmp_path / "a_mask.png")
    [photo] = read_photos([tmp_path / "a.jpg"])
    prepare([photo], tmp_path / "upright", tmp_path / "masks", lambda done: None)
    mask = np.asarray(Image.open(tmp_path / "masks/a.jpg.png"))
    np.testing.assert_array_equal(mask, np.kron(half, np.ones((2, 2), np.uint8)))
    Image.fromarray(half.T).save(tmp_path / "a_mask.png")
    with pytest.raises(InputError, match="another shape"):
        prepare([photo], tmp_path / "again", tmp_path / "masks", lambda done: None)


def test_photos_of_one_lens_share_a_camera(tmp_path: Path) -> None:
    def photo(name: str, size: tuple[int, int], focal: int | None = None, orientation: int = 1) -> Path:
        image = Image.new("RGB", size)
        exif = image.getexif()
        exif[0x0112] = orientation
        if focal is not None:
            exif.get_ifd(0x8769)[0xA405] = focal
        image.save(tmp_path / name, exif=exif)
        return tmp_path / name

    wide = photo("wide.jpg", (360, 240), 24)
    paths = [wide, photo("b.jpg", (360, 240), 24), photo("long.jpg", (360, 240), 48), photo("none.jpg", (360, 240))]
    paths.append(photo("turned.jpg", (240, 360), 24, orientation=6))
    photos = read_photos(paths)
    assert [[p.path.stem for p in group] for group in lens_groups(photos)] == [
        ["wide", "b", "turned"],
        ["long"],
        ["none"],
    ]
    # 36 mm of film are 360 pixels
    assert photos[0].focal == pytest.approx(240, rel=1e-3) and photos[3].focal is None
    assert photos[4].size == (360, 240) and photos[4].turned


def test_frames_of_a_video_are_sharp_and_equally_far_apart() -> None:
    random = np.random.default_rng(3)
    speed = np.where(np.arange(400) < 200, 0.002, 0.01)  # first slow, then fast
    travelled = np.cumsum(speed) - speed[0]
    sharpness = random.uniform(1, 2, 400)
    chosen = frames_apart(travelled, sharpness, 150)
    steps = np.diff(travelled[chosen])
    assert len(chosen) == round(travelled[-1] / STEP)
    assert steps.min() > 0.4 * STEP and steps.max() < 1.6 * STEP
    windows = travelled[-1] / len(chosen)
    for frame in chosen:
        place = travelled[frame] % windows / windows
        assert 0.24 < place < 0.76
        near = np.abs(travelled - (travelled[frame] // windows + 0.5) * windows) < 0.24 * windows
        assert sharpness[frame] >= sharpness[near].max()
    few = frames_apart(travelled, sharpness, 10)
    assert len(few) == 10 and few == sorted(few)
    assert frames_apart(np.array([0.0, 1.0]), np.ones(2), 9) == [0, 1]


def _model(placed: int, error: float, focal: float = DEFAULT_FOCAL, parallax: float = 9.0) -> Model:
    return Model(None, "", placed, error, focal, distortion=0.0, in_front=1.0, parallax=parallax)


def test_a_doubtful_model_gives_way_where_photos_allow_it() -> None:
    assert best([]) is None
    few, many = _model(18, 0.3), _model(25, 0.4)
    assert best([few, many]) is many
    endless = _model(25, 0.50, focal=9.0)
    assert best([endless, plain := _model(24, 0.55)]) is plain
    assert best([endless, _model(24, 0.9)]) is endless, "the photos speak against the other focal length"
    assert best([endless, _model(12, 0.3)]) is endless
    assert best([_model(25, 0.5, parallax=0.3), plain]) is plain


def test_parts_of_a_model_that_share_no_points_are_taken_apart(posed: Path) -> None:
    import pycolmap

    model = pycolmap.Reconstruction(str(posed / "work" / "model"))
    assert [len(members) for members in parts(model)] == [COUNT]
    ids = sorted(image.image_id for image in model.images.values())
    for point_id in list(model.points3D):
        seen = {element.image_id for element in model.points3D[point_id].track.elements}
        if seen & set(ids[:4]) and seen - set(ids[:4]):
            model.delete_point3D(point_id)
    found = parts(model)
    assert sorted(i for members in found for i in members) == ids
    assert all(set(members) <= set(ids[:4]) or set(members) <= set(ids[4:]) for members in found)
    assert len(found[0]) >= 6
    names = [sorted(model.images[i].name for i in members) for members in found[1:] if len(members) >= 3]
    assert [list(part) for part in keep_largest_part(model)] == names
    assert sorted(image.image_id for image in model.images.values() if image.has_pose) == found[0]
    assert parts(model) == found[:1]


def test_photos_that_are_not_placed_say_why(unposed: Path) -> None:
    photos = read_photos(photos_in(unposed))
    names = [photo.name for photo in photos]
    found, matched = dict.fromkeys(names, 900), dict.fromkeys(names, 4)
    found[names[-1]], matched[names[-2]] = 7, 0
    why = _missing(photos, names[:5], [names[3:6], names[5:9]], found, matched)
    assert list(why) == [photo.path.name for photo in photos[5:]]
    words = ["one of 3 photos", *["one of 4 photos"] * 3, *["not certain"] * (COUNT - 11)]
    words += ["no other photo", "7 features"]
    assert all(word in line for word, line in zip(words, why.values(), strict=True)), why


def test_large_sets_are_matched_with_neighbours_and_what_looks_alike(posed: Path, unposed: Path) -> None:
    photos = read_photos(sorted(unposed.iterdir(), key=lambda path: _photo_number(path.name[5:])))
    renamed = [photo.__class__(**{**vars(photo), "name": photo.name.replace(" ", "_")}) for photo in photos]
    small = pairs_to_match(posed / "work" / "database.db", renamed, in_order=False)
    assert len(small) == COUNT * (COUNT - 1) // 2
    # the same photos many times over: too many for all pairs, and each is most like its own copies
    many = renamed * 7
    pairs = pairs_to_match(posed / "work" / "database.db", many, in_order=False)
    assert len(pairs) < len(many) * (len(many) - 1) // 2
    alike = {(a, b) for a, b in pairs if a == b}
    assert len(alike) == COUNT


def test_a_posed_scene_is_a_scene_to_curate(posed: Path, unposed: Path) -> None:
    assert list(expand_scenes([str(unposed.parent / "photos*")])) == ["photos-posed"]
