"""transforms.json of nerfstudio, instant-ngp and Blender: reading any of its lenses, writing the pinhole one."""

from __future__ import annotations

import math
import os
from collections.abc import Container, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from difixcli.errors import InputError, short, unknown
from difixcli.runs import read_json, write_json
from difixcli.scenes.image_paths import (
    MASK_FOLDERS,
    find_images,
    image_header,
    is_path,
    plain_path,
    renamed_images,
)
from difixcli.scenes.lenses import KINDS, Lens, distortion_of, model_kind
from difixcli.scenes.ply import read_points
from difixcli.scenes.poses import rigid_pose, unscaled_pose
from difixcli.scenes.scene import Camera
from difixcli.scenes.source import Source, SourceFrame
from difixcli.wording import counted

_LARGEST = 1e30  # far beyond any length, in any unit; NaN is not below it
HALVES = ("train", "val", "test")
_NGP_LENSES = {
    "ftheta_p0": "FTHETA",
    "latlong": "EQUIRECTANGULAR",
    "equirectangular": "EQUIRECTANGULAR",
    "orthographic": "ORTHOGRAPHIC",
}
"""Keys by which instant-ngp tells lenses that are neither perspective nor a fisheye."""
LISTED_DISTORTION = ("k1", "k2", "k3", "k4", "p1", "p2")
"""What nerfstudio's `distortion_params` lists, in its order; for FISHEYE624 it lists that model's twelve numbers."""


def read_transforms(path: Path) -> Source:
    """Reads a transforms.json as nerfstudio, instant-ngp and Blender write it: shared or per-frame intrinsics, masks,
    seed points, the split of `train_filenames` and its like.

    Poses and points are returned in the world they had before the file's `applied_transform`, so that the same
    photos read from COLMAP come out the same. Images are found as `find_images` says; what had to be repaired is in
    the warnings. Raises InputError with the frame and key at fault.
    """
    meta = _meta(path)
    warnings: list[str] = []
    applied = _applied_transform(meta, path)
    frames = _frames(meta, path, np.linalg.inv(applied), warnings)
    points, colors = _seed_points(meta, path, np.linalg.inv(applied), warnings)
    return Source(
        path=path,
        frames=frames,
        points=points,
        colors=colors,
        applied=applied,
        metric=bool(meta.get("metric", False)),
        split=_own_split(meta, path, frames, warnings),
        warnings=warnings,
    )


def read_split_transforms(paths: Mapping[str, Path]) -> Source:
    """Reads `transforms_train.json` and its like (by `train`, `val`, `test`) of one folder as one scene.

    The frames of `train` train; those of `test` are targets, those of `val` where there is no `test`. Points are those
    of the first file that has some. See `read_transforms` for the rest.
    """
    sources = {half: read_transforms(path) for half, path in paths.items()}
    first = next(iter(sources.values()))
    for source in sources.values():
        if not np.allclose(source.applied, first.applied) or source.metric != first.metric:
            raise InputError(
                f"{first.path} and {source.path.name} have another applied_transform or metric, so they are not of one "
                "world; export them together."
            )
    # The folders are halves of one camera's photos, not cameras of a rig: a camera is a lens here.
    frames = [frame for source in sources.values() for frame in source.frames]
    lenses = {lens: str(i) for i, lens in enumerate(dict.fromkeys(frame.lens for frame in frames))}
    frames = [
        frame if frame.camera_id is not None else replace(frame, camera_id=lenses[frame.lens]) for frame in frames
    ]
    names = {half: frozenset(frame.name for frame in source.frames) for half, source in sources.items()}
    train, test = names.get("train", frozenset()), names.get("test") or names.get("val") or frozenset()
    seeded = next((source for source in sources.values() if len(source.points)), first)
    return replace(
        first,
        frames=frames,
        points=seeded.points,
        colors=seeded.colors,
        split=(train, test - train) if train and test - train else None,
        warnings=[warning for source in sources.values() for warning in source.warnings],
    )


def write_transforms(path: Path, frames: Sequence[tuple[Camera, Mapping[str, Any]]], **meta: Any) -> None:
    """Write a pinhole `transforms.json`, whole or not at all.

    `frames` are the cameras and what else their entries say (`file_path` at least); `meta` is what the file says of
    all of them.
    """
    entries = [
        {
            **entry,
            "transform_matrix": camera.camera_to_world.tolist(),
            "fl_x": camera.fx,
            "fl_y": camera.fy,
            "cx": camera.cx,
            "cy": camera.cy,
            "w": camera.width,
            "h": camera.height,
        }
        for camera, entry in frames
    ]
    write_json(path, {"camera_model": "PINHOLE", **meta, "frames": entries})


def frame_name(image_path: Path, root: Path) -> str:
    """The name of a frame: its image's path relative to the scene's folder, POSIX style, without `./`."""
    return Path(os.path.relpath(image_path, root)).as_posix()


def _meta(path: Path) -> dict[str, Any]:
    meta: Any = read_json(path, cure="export the scene again")
    if not isinstance(meta, dict) or not isinstance(meta.get("frames"), list) or not meta["frames"]:
        raise InputError(f"{path} has no frames; export the scene again or name another folder.")
    targets = meta.get("test_frames") or []  # ScanNet++ lists what is held out apart
    if not isinstance(targets, list):
        raise InputError(f"test_frames in {path} is no list of frames; correct or remove it.")
    meta["frames"] += targets
    for number, entry in enumerate(meta["frames"]):
        if not isinstance(entry, dict) or not is_path(entry.get("file_path")):
            raise InputError(f"Frame {number} of {path} has no file_path; add it or remove the frame.")
        if entry.get("transform_matrix") is None:
            raise InputError(f"Frame {number} of {path} has no transform_matrix; add its pose or remove the frame.")
        if not is_path(entry.get("mask_path") or ""):
            raise InputError(f"The mask_path of frame {number} of {path} is no path; correct or remove it.")
    if not is_path(meta.get("ply_file_path") or ""):
        raise InputError(f"The ply_file_path of {path} is no path; correct or remove it.")
    if targets and not any(f"{half}_filenames" in meta for half in HALVES):
        meta["test_filenames"] = [entry["file_path"] for entry in targets]
    return meta


def _frames(meta: Mapping[str, Any], path: Path, undo: np.ndarray, warnings: list[str]) -> list[SourceFrame]:
    """The frames of a file. `undo` (4, 4) takes its world to the original one."""
    root = path.parent
    entries = meta["frames"]
    declared = [entry["file_path"] for entry in entries]
    images = find_images(root, declared)
    named = [entry["mask_path"] for entry in entries if entry.get("mask_path")]
    masks = _masks(root, named, set(images))
    shared = {key: value for key, value in meta.items() if key != "frames"}
    size: dict[str, int] | None = None
    frames, scales = [], []
    for entry, image_path in zip(entries, images, strict=True):
        name = frame_name(image_path, root)
        where = f"{name} in {path}"
        pose, scale = unscaled_pose(entry.get("transform_matrix"), where)
        if scale != 1:
            scales.append(scale)
        merged = {**shared, **entry}
        if isinstance(merged.get("camera_model"), str):
            merged["camera_model"] = merged["camera_model"].upper()
        if merged.get("fl_x") is None and (merged.get("w") is None or merged.get("h") is None):
            if image_path.is_file() or size is None:
                size = _size_of(image_path if image_path.is_file() else _first_there(images, path))
            merged |= size
        camera_id = entry.get("camera_id")
        frames.append(
            SourceFrame(
                name=name,
                image_path=image_path,
                pose=undo @ pose,
                lens=_lens(merged, where),
                camera_id=None if camera_id is None else str(camera_id),
                mask_path=masks[entry["mask_path"]] if entry.get("mask_path") else None,
            )
        )
    if line := renamed_images(root, [*declared, *masks], [*images, *masks.values()], path.name):
        warnings.append(line)
    if scales:
        warnings.append(
            f"the rotations of {counted(len(scales), 'pose')} in {path.name} were scaled (the first by {scales[0]:.4g})"
            "; their scale is removed, their positions are kept"
        )
    return frames


def _masks(root: Path, named: Sequence[str], images: Container[Path]) -> dict[str, Path]:
    """Where the masks lie that a file names, by what it says. A photo is nobody's mask."""
    found = zip(named, find_images(root, named, MASK_FOLDERS), strict=True)
    return {text: root / plain_path(text) if path in images else path for text, path in found}


def _size_of(image_path: Path) -> dict[str, int]:
    header = image_header(image_path)
    return {"w": header.width, "h": header.height}


def _first_there(images: Sequence[Path], path: Path) -> Path:
    """The first of a file's images that exists."""
    for image_path in images:
        if image_path.is_file():
            return image_path
    raise InputError(
        f"None of the {counted(len(images), 'image')} that {path} names exists (first: {images[0]}), and it gives no w "
        "and h; put the photos beside it."
    )


def _seed_points(
    meta: Mapping[str, Any], path: Path, undo: np.ndarray, warnings: list[str]
) -> tuple[np.ndarray, np.ndarray]:
    """The points (N, 3) in the original world and colours (N, 3) that a file names; none where it names none."""
    if meta.get("ply_file_path"):
        ply_path = path.parent / meta["ply_file_path"]
        if ply_path.is_file():
            points, colors = read_points(ply_path, warnings)
            return points @ undo[:3, :3].T + undo[:3, 3], colors
        warnings.append(f"the seed points {ply_path} that {path.name} names are missing")
    return np.zeros((0, 3)), np.zeros((0, 3), np.uint8)


def _own_split(
    meta: Mapping[str, Any], path: Path, frames: Sequence[SourceFrame], warnings: list[str]
) -> tuple[frozenset[str], frozenset[str]] | None:
    """Names of the frames that train and that are targets as `train_filenames`, `test_filenames` and
    `val_filenames` say; None where they say nothing, or leave out none of those that train."""
    if not any(f"{half}_filenames" in meta for half in HALVES):
        return None
    known = {frame.name: frame.name for frame in frames}
    known |= {plain_path(e["file_path"]): f.name for e, f in zip(meta["frames"], frames, strict=True)}
    halves: dict[str, frozenset[str]] = {}
    for half in HALVES:
        listed = meta.get(f"{half}_filenames") or []
        if not isinstance(listed, list) or not all(isinstance(name, str) for name in listed):
            raise InputError(f"{half}_filenames in {path} is no list of names; correct or remove it.")
        for name in listed:
            if plain_path(name) not in known:
                raise unknown("frame", name, known, f"{half}_filenames in {path} names it.")
        halves[half] = frozenset(known[plain_path(name)] for name in listed)
    test = halves["test"] or halves["val"]
    train = halves["train"] or frozenset(known.values()) - halves["test"] - halves["val"]
    if not train or not test - train:
        return None
    if test & train:
        both = counted(len(test & train), "frame is", "frames are")
        warnings.append(f"{both} listed in {path.name} to train and as targets: they train")
    return train, test - train


def _applied_transform(meta: Mapping[str, Any], path: Path) -> np.ndarray:
    if "applied_transform" not in meta:
        return np.eye(4)
    return rigid_pose(meta["applied_transform"], f"applied_transform in {path}")


def _lens(entry: Mapping[str, Any], where: str) -> Lens:
    """The lens of one frame from its own keys over the file's shared ones."""
    kind, distortion = _distortion(entry, where)
    width, height = _number(entry, "w", where), _number(entry, "h", where)
    fx = _number(entry, "fl_x", where)
    angle_x, angle_y = _number(entry, "camera_angle_x", where), _number(entry, "camera_angle_y", where)
    if angle_x is None and (degrees := _number(entry, "x_fov", where)) is not None:
        angle_x = math.radians(degrees)
    if angle_y is None and (degrees := _number(entry, "y_fov", where)) is not None:
        angle_y = math.radians(degrees)
    if fx is None and angle_x is not None and width is not None:
        fx = 0.5 * width / math.tan(0.5 * angle_x)
    fy = _number(entry, "fl_y", where)
    if fy is None and angle_y is not None and height is not None:
        fy = 0.5 * height / math.tan(0.5 * angle_y)
    fy = fx if fy is None else fy
    if fx is None or fy is None or fx <= 0 or fy <= 0:
        raise InputError(f"{where} has no positive focal length; give fl_x and fl_y (pixels), shared or per frame.")
    circle = _number(entry, "fisheye_crop_radius", where) if kind.startswith("fisheye") else None
    if circle is not None and circle <= 0:
        raise InputError(f"fisheye_crop_radius of {where} is {circle:g}; give the radius in pixels or leave it out.")
    return Lens(
        fx=fx,
        fy=fy,
        cx=_number(entry, "cx", where),
        cy=_number(entry, "cy", where),
        width=None if width is None else int(width),
        height=None if height is None else int(height),
        kind=kind,
        distortion=distortion,
        circle=None if circle is None else circle / fx,
    )


def _distortion(entry: Mapping[str, Any], where: str) -> tuple[str, tuple[float, ...]]:
    """The kind of one frame's lens and its numbers: `distortion_params` where given, as in nerfstudio, or by name."""
    # a p0 of an f-theta lens may be 0, which says that there is one all the same
    by_key = (model for key, model in _NGP_LENSES.items() if entry.get(key) is not None and entry[key] is not False)
    model = short(str(next(by_key, None) or entry.get("camera_model") or "OPENCV").upper())
    kind = model_kind(model, where)
    if entry.get("is_fisheye") and kind == "perspective":
        model, kind = "OPENCV_FISHEYE", "fisheye"
    listed = entry.get("distortion_params")
    if listed is not None:
        names = KINDS["fisheye624"] if kind == "fisheye624" else LISTED_DISTORTION
        if not isinstance(listed, list) or len(listed) > len(names):
            raise InputError(
                f"distortion_params of {where} is not a list of at most {len(names)} numbers ({', '.join(names)}); "
                "correct it, or give the numbers by name."
            )
        entry = dict(zip(names, listed, strict=False))
    wanted = dict.fromkeys((*KINDS["perspective"], *KINDS[kind]))
    terms = {name: _number(entry, name, where) or 0.0 for name in wanted}
    if kind == "perspective" and model != "FULL_OPENCV":
        # Outside FULL_OPENCV, nerfstudio's k4 is a fourth radial power, which OpenCV's model cannot express.
        kind = "four_radial" if terms["k4"] else kind
        alien = [name for name in ("k5", "k6") if terms[name]]
    else:
        alien = [name for name, value in terms.items() if value and name not in KINDS[kind]]
    if alien:
        raise InputError(
            f"{where} has {' and '.join(alien)}, which the camera model {model} does not; name the model that has "
            "them (FULL_OPENCV for k5 and k6), or undistort the photos first."
        )
    return kind, distortion_of(kind, terms, where)


def _number(entry: Mapping[str, Any], key: str, where: str) -> float | None:
    value = entry.get(key)
    if value is None:
        return None
    if isinstance(value, str):  # some exporters quote their numbers
        try:
            value = float(value)
        except ValueError:
            raise InputError(f"{key} of {where} is {value!r}, not a number; export the scene again.") from None
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not abs(value) < _LARGEST:
        raise InputError(f"{key} of {where} is {value!r}, not a number; export the scene again.")
    return float(value)
