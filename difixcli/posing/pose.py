"""Poses of a folder of photos or of a video, stage by stage; each stage that is done is not done again."""

from __future__ import annotations

import re
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from difixcli.errors import InputError
from difixcli.posing import features, mapping
from difixcli.posing.photos import Photo, lens_groups, prepare, read_photos
from difixcli.posing.video import choose_frames, write_frames
from difixcli.posing.writing import write_scene
from difixcli.runs import Progress, Run, fingerprint, read_json, write_json
from difixcli.scenes.unposed import check_formats, is_unposed, is_video, photo_folder, photos_in
from difixcli.wording import counted

FEW_FEATURES = 100
"""A photo with fewer is blurred or shows nothing that could be told apart."""
LEAST_PHOTOS = 3
LEAST_SHARE = 0.5
"""Fewer photos than that, or a smaller share of those given, is no scene."""

ADVICE = (
    "Photograph more: move sideways between photos (not only turning on the spot), so that neighbours share two thirds "
    "of the picture; do not zoom; keep things with texture in view, and the camera still."
)


def pose_inputs(source: Path) -> dict[str, str]:
    """Fingerprints of what is posed: photos, masks and videos by content.

    Raises InputError for what is neither a folder of photos nor a video, and for too few photos.
    """
    photos = _photos(source)
    if photos is None:
        return {"video": fingerprint([source])}
    found = {"photos": fingerprint(photos)}
    if masks := [photo.mask for photo in read_photos(photos) if photo.mask is not None]:
        found["masks"] = fingerprint(masks)
    return found


def _photos(source: Path) -> list[Path] | None:
    """The photos of a folder, None of a video; InputError as `pose_inputs` raises it."""
    if not source.exists():
        raise InputError(f"There is no folder or video {source}; check its name.")
    if is_video(source):
        return None
    folder = photo_folder(source)
    if folder is None:
        check_formats(source)
        what = "is neither a folder nor a video" if source.is_file() else "holds no photos"
        raise InputError(f"{source} {what}; name a folder of photos, or a video file.")
    photos = photos_in(folder)
    if len(photos) < LEAST_PHOTOS:
        raise InputError(
            f"{folder} holds {counted(len(photos), 'photo')}, which is too few to tell where they stood. {ADVICE}"
        )
    return photos


def pose(
    source: Path, run: Run, frames: int, seed: int, progress: Progress, say: Callable[[str], None]
) -> dict[str, Any]:
    """Pose photos or a video into the run's folder; what there is to say of it.

    `frames` is the most that are taken of a video. Poses, lenses and points are found by pycolmap on CPUs, with the
    same result for the same photos, seed and versions; what an earlier call has done (frames, features, matches, the
    model) is used. Raises InputError when too few photos can be placed, saying which and what to do.
    """
    work = run.folder / "work"
    database, pictures, masks = work / "database.db", work / "photos", work / "masks"
    with mapping.quiet():
        files = _files(source, work, frames, progress, say)
        photos = _named(read_photos(files))
        with _timed(run, "photos"), progress("Reading photos", len(photos)) as done:
            prepare(photos, pictures, masks, done)
        with _timed(run, "features"), progress("Finding features", len(photos)) as done:
            features.register(database, pictures, photos)
            found = features.find_features(database, pictures, masks, done)
        with _timed(run, "matching"):
            pairs = features.pairs_to_match(database, photos, is_video(source))
            with progress("Matching pairs", len(pairs)) as done:
                features.match(database, pairs, seed, done)
        with _timed(run, "mapping"):
            facts = _model(work, database, pictures, len(photos), seed, say, progress)
        matches = features.matched_photos(database, mapping.LEAST_MATCHES)
        missing = _missing(photos, facts["names"], facts["other_models"], found, matches)
        placed = len(facts["names"])
        if placed < LEAST_PHOTOS or placed < LEAST_SHARE * len(photos):
            raise InputError(_too_few(source, placed, len(photos), missing))
        with _timed(run, "undistortion"):
            cameras = write_scene(work / "model", pictures, masks, work, run.folder)
    for name in ("photos", "masks", "frames"):
        shutil.rmtree(work / name, ignore_errors=True)
    groups = lens_groups(photos)
    return {
        **{key: value for key, value in facts.items() if key != "names"},
        "photos": len(photos),
        "placed": placed,
        "not_placed": missing,
        "cameras": len(groups),
        "exif_focal": sum(group[0].focal is not None for group in groups),
        "turned": sum(photo.turned for photo in photos),
        "masks": sum(1 for camera in (run.folder / "masks").glob("*.png")),
        "focal": round(cameras[0].fx, 2),
        "width": cameras[0].width,
        "height": cameras[0].height,
    }


def check_source(source: Path) -> None:
    """Raises InputError as `pose_inputs` does, but reads no photo, and for what has poses already: nothing would be
    gained, and its own might be lost.
    """
    _photos(source)
    if source.is_dir() and photo_folder(source) is not None and not is_unposed(source):
        raise InputError(f"{source} has poses already; name its folder of photos alone to pose them anew.")


def _files(source: Path, work: Path, frames: int, progress: Progress, say: Callable[[str], None]) -> list[Path]:
    """The photos, or the chosen frames of a video, written once."""
    if not is_video(source):
        folder = photo_folder(source)
        assert folder is not None  # pose_inputs has looked
        return photos_in(folder)
    listed = work / "frames.json"
    if not listed.is_file():
        write_json(listed, choose_frames(source, frames, say, progress))
    numbers: list[int] = read_json(listed, [int])
    with progress("Writing frames", len(numbers)) as done:
        return write_frames(source, numbers, work / "frames", done)


def _named(photos: list[Photo]) -> list[Photo]:
    """The photos with names that differ and have no space, which COLMAP's lists end a name at."""
    taken: set[str] = set()
    named = []
    for photo in photos:
        name = base = re.sub(r"\s", "_", photo.name)
        number = 2
        while name.lower() in taken:
            name, number = f"{Path(base).stem}_{number}{Path(base).suffix}", number + 1
        taken.add(name.lower())
        named.append(replace(photo, name=name))
    return named


def _model(
    work: Path,
    database: Path,
    pictures: Path,
    count: int,
    seed: int,
    say: Callable[[str], None],
    progress: Progress,
) -> dict[str, Any]:
    """Map, unless that is done, and write the model to `work/model`; what there is to say of it."""
    listed = work / "model.json"
    if listed.is_file():
        facts: dict[str, Any] = read_json(listed, {"names": [str], "other_models": [[str]]})
        return facts
    with progress("Placing photos", count) as done:
        model = mapping.map_photos(database, pictures, work, count, seed, say, lambda placed: done(min(placed, count)))
    if model is None:
        return {"names": [], "other_models": []}
    folder = work / "model"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    model.reconstruction.write(str(folder))
    if model.others:
        say(
            f"The photos fall into {1 + len(model.others)} separate models ({model.placed}, "
            f"{', '.join(str(len(names)) for names in model.others)} photos); the largest is kept. Photograph the way "
            "from one to the next to join them."
        )
    facts = {
        "names": list(mapping.placed_names(model.reconstruction)),
        "mapper": model.how,
        "reprojection_error": round(model.error, 4),
        "parallax": round(model.parallax, 2),
        "points": model.reconstruction.num_points3D(),
        "sensible": model.sensible,
        "other_models": [list(names) for names in model.others],
    }
    write_json(listed, facts)
    for name in ("incremental", "global", "fixed"):  # last: until then a kill needs what they have found
        shutil.rmtree(work / name, ignore_errors=True)
    return facts


def _missing(
    photos: list[Photo],
    placed: list[str],
    others: list[list[str]],
    features_of: dict[str, int],
    matches_of: dict[str, int],
) -> dict[str, str]:
    """Why photos were not placed, by their file's name. `others` are the names in models beside the one of `placed`."""
    there = set(placed)
    apart = {name: len(names) for names in reversed(others) for name in names}
    why = {}
    for photo in photos:
        if photo.name in there:
            continue
        count = features_of.get(photo.name, 0)
        if count < FEW_FEATURES:
            why[photo.path.name] = f"only {count} features: blurred, dark or without texture"
        elif not matches_of.get(photo.name, 0):
            why[photo.path.name] = "it matches no other photo: they do not overlap enough"
        elif photo.name in apart:
            why[photo.path.name] = (
                f"it is one of {apart[photo.name]} photos that fit each other, but hardly overlap with those placed"
            )
        else:
            why[photo.path.name] = "it matches others, but its place among them is not certain"
    return why


def _too_few(source: Path, placed: int, count: int, missing: dict[str, str]) -> str:
    shown = "; ".join(f"{name}: {why}" for name, why in list(missing.items())[:3])
    return f"Only {placed} of {counted(count, 'photo')} of {source} can be placed ({shown}). {ADVICE}"


@contextmanager
def _timed(run: Run, name: str) -> Iterator[None]:
    begun = time.monotonic()
    yield
    run.time(name, time.monotonic() - begun)
    run.save()
