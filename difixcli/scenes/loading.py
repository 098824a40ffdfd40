"""From a folder (or `sample:NAME`) to a Scene."""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from PIL import Image

from difixcli.errors import InputError
from difixcli.runs import fingerprint
from difixcli.scenes.colmap import MODEL_FOLDERS, find_model, read_colmap
from difixcli.scenes.nerfstudio_format import read_transforms
from difixcli.scenes.poses import apply_similarity, normalisation, transform_points
from difixcli.scenes.scene import Camera, Frame, Scene
from difixcli.scenes.source import Lens, Source, SourceFrame
from difixcli.scenes.unposed import is_unposed, is_video, posed_already

SAMPLE_PREFIX = "sample:"
TRANSFORMS = "transforms.json"
TRANSFORMS_FOLDERS = (".", "nerfstudio")
DOWNSCALES = (2, 4, 8)
"""Factors of the smaller copies that data sets bring as `images_2`, `images_4`, `images_8`."""


def load_scene(spec: str | Path, size: int | None = None) -> Scene:
    """Loads a posed photo set.

    `spec` is a folder with a nerfstudio `transforms.json` or, failing that, a COLMAP model in `sparse/0`,
    `colmap/sparse/0` or `sparse` (text or binary); or `sample:NAME`, which is written once into the user's cache.
    Published layouts are read as they come: Difix3D's release (`colmap/sparse/0` beside `images/image_train_*` and
    `image_eval_*`), Nerfbusters' captures (`transforms.json`, two paths told by name, see `default_split_rule`), and
    DL3DV (`transforms.json` at the top or in `nerfstudio/`). Where `images/` was not downloaded but `images_2/`,
    `images_4/` or `images_8/` was, photos are taken from there and their lens is scaled.
    A folder of photos without poses, or a video, stands for the scene that `difix pose` has made of it beside it.
    `size` is the long side in pixels to work at; photos are never enlarged, and None keeps their own size.

    The world is normalised from all frames the file lists, whichever of their images are there: cameras centred,
    mean up axis to +z, largest absolute position component 1. Frames whose image is missing are left out with a
    warning in `Scene.warnings`. Raises InputError for a missing folder, no frames, no images, an unreadable image or
    one of another size than declared, and a broken pose.
    """
    if size is not None and size < 1:
        raise InputError(f"The working size {size} is not a number of pixels; give a positive --size.")
    check_scene(spec)
    if str(spec).startswith(SAMPLE_PREFIX):
        from difixcli.scenes.sample import cached_sample

        return _build_scene(scene_name(spec), cached_sample(scene_name(spec)), size)
    root = Path(spec)
    if is_unposed(root):
        posed = posed_already(root)
        if posed is None:
            raise InputError(f"The photos of {root} have no poses yet; run difix pose {root} first.")
        root = posed
    return _build_scene(scene_name(spec), root.parent if root.is_file() else root, size)


def check_scene(spec: str | Path) -> None:
    """Raises InputError for what names no scene at all (see `load_scene`); what is in its folder is not read."""
    if str(spec).startswith(SAMPLE_PREFIX):
        from difixcli.scenes.sample import check_sample

        check_sample(scene_name(spec))
        return
    root = Path(spec)
    if not root.exists():
        raise InputError(f"The scene folder {root} does not exist; give a folder with posed photos or sample:room.")
    if root.is_file() and root.name != TRANSFORMS and not is_video(root):
        raise InputError(f"{root} is a file; name the folder that holds transforms.json or a COLMAP model.")


def scene_name(spec: str | Path) -> str:
    """The name a scene will have, from what `load_scene` takes, without reading it."""
    if str(spec).startswith(SAMPLE_PREFIX):
        return str(spec)[len(SAMPLE_PREFIX) :]
    root = Path(spec).resolve()
    if is_video(root):
        return root.stem
    return root.parent.name if root.name == TRANSFORMS else root.name


def scene_fingerprint(scene: Scene) -> str:
    """A short hash of everything a scene was read from, whatever its layout and working size.

    Photos count by name and size, masks by content, and poses, lenses and seed points by value.
    """
    digest = hashlib.sha256(fingerprint([frame.image_path for frame in scene.frames]).encode())
    masks = [frame.mask_path for frame in scene.frames if frame.mask_path is not None]
    digest.update(fingerprint(masks, content=True).encode())
    for frame in scene.frames:
        camera = frame.source_camera
        lens = np.array([camera.fx, camera.fy, camera.cx, camera.cy, *frame.distortion])
        for values in (camera.camera_to_world, lens):
            digest.update(np.round(values, 6).astype("<f8").tobytes())
        digest.update(frame.name.encode())
    digest.update(np.ascontiguousarray(scene.points, dtype="<f4").tobytes())
    digest.update(np.ascontiguousarray(scene.colors).tobytes())
    return digest.hexdigest()[:16]


def natural_order(name: str) -> list[tuple[int, int, str]]:
    """Sort key under which `frame_9` comes before `frame_10`."""
    parts = re.split(r"(\d+)", name)
    return [(1, int(part), part) if part.isdigit() else (0, 0, part) for part in parts]


def working_size(width: int, height: int, size: int | None) -> tuple[int, int]:
    """(width, height) whose long side is `size`, never larger than the source."""
    long_side = max(width, height)
    if size is None or size >= long_side:
        return width, height
    scale = size / long_side
    return max(1, round(width * scale)), max(1, round(height * scale))


def _read_source(root: Path) -> Source:
    for folder in TRANSFORMS_FOLDERS:
        if (root / folder / TRANSFORMS).is_file():
            return read_transforms(root / folder / TRANSFORMS)
    model = find_model(root)
    if model is not None:
        return read_colmap(root, model)
    raise InputError(
        f"{root.absolute()} holds no scene: there is neither a transforms.json nor a COLMAP model in "
        f"{', '.join(MODEL_FOLDERS)}."
    )


def _build_scene(name: str, root: Path, size: int | None) -> Scene:
    source = _read_source(root)
    repeated = sorted(n for n, count in Counter(frame.name for frame in source.frames).items() if count > 1)
    if repeated:
        raise InputError(f"{source.path} lists {repeated[0]} more than once; keep one frame for each image.")
    transform = normalisation(np.stack([frame.pose for frame in source.frames]))
    warnings = list(source.warnings)
    listed = _downscaled(source.frames)
    missing = [frame for frame in listed if not frame.image_path.is_file()]
    if len(missing) == len(listed):
        raise InputError(
            f"None of the {len(missing)} images that {source.path} names exists (first: {missing[0].image_path}); "
            "put the photos beside it."
        )
    if missing:
        shown = ", ".join(frame.name for frame in missing[:3]) + (", …" if len(missing) > 3 else "")
        warnings.append(f"{len(missing)} of {len(listed)} images are missing and left out: {shown}")
    present = sorted((frame for frame in listed if frame.image_path.is_file()), key=lambda f: natural_order(f.name))
    frames = [
        _frame(frame, camera_id, transform, size)
        for frame, camera_id in zip(present, _camera_ids(present), strict=True)
    ]
    if not len(source.points):
        warnings.append("there are no seed points: splats will start from random ones")
    return Scene(
        name=name,
        root=root,
        frames=tuple(frames),
        points=transform_points(transform, source.points),
        colors=source.colors,
        source_to_world=transform @ np.linalg.inv(source.applied),
        metric=source.metric,
        warnings=tuple(warnings),
        applied=source.applied,
    )


def _downscaled(frames: Sequence[SourceFrame]) -> Sequence[SourceFrame]:
    """The frames with photos and lenses of `images_2`, `images_4` or `images_8` (the largest that holds any of them),
    where none of the photos that the scene's file names is there; else as they are."""
    if any(frame.image_path.is_file() for frame in frames):
        return frames
    for factor in DOWNSCALES:
        smaller = [_smaller_copy(frame.image_path, factor) for frame in frames]
        if any(path.is_file() for path in smaller):
            return [
                replace(frame, image_path=path, lens=_shrunk(frame.lens, path))
                for frame, path in zip(frames, smaller, strict=True)
            ]
    return frames


def _smaller_copy(path: Path, factor: int) -> Path:
    """`…/images/a/b.png` → `…/images_4/a/b.png`."""
    parts = [f"images_{factor}" if part == "images" else part for part in path.parts]
    return Path(*parts)


def _shrunk(lens: Lens, image_path: Path) -> Lens:
    """The lens at the size of a smaller copy of its photo."""
    if lens.width is None or lens.height is None or not image_path.is_file():
        return lens
    width, height = _image_size(image_path)
    # From the real size: 1080 lines divided by 8 are 135, but 1620 are 202 or 203.
    sx, sy = width / lens.width, height / lens.height
    return replace(
        lens,
        fx=lens.fx * sx,
        fy=lens.fy * sy,
        cx=None if lens.cx is None else lens.cx * sx,
        cy=None if lens.cy is None else lens.cy * sy,
        width=width,
        height=height,
    )


def _image_size(path: Path) -> tuple[int, int]:
    """(width, height) from the header alone: load_scene stays cheap for thousands of photos."""
    try:
        with Image.open(path) as image:
            return image.size
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError):
        raise InputError(f"The image {path} cannot be read; replace it or remove its frame.") from None


def _camera_ids(frames: Sequence[SourceFrame]) -> list[str]:
    """Which camera took each frame.

    The file's own word where every frame has one; else the image's folder where there are several; else one id for
    each lens. Lenses that differ in every frame (refined one by one) are one camera.
    """
    declared = [frame.camera_id for frame in frames]
    if all(value is not None for value in declared):
        return [str(value) for value in declared]
    folders = [Path(frame.name).parent.as_posix() for frame in frames]
    if len(set(folders)) > 1:
        return [Path(folder).name for folder in folders] if _unique_tails(folders) else folders
    lenses = list(dict.fromkeys(frame.lens for frame in frames))
    if len(lenses) == len(frames):
        return ["0"] * len(frames)
    return [str(lenses.index(frame.lens)) for frame in frames]


def _unique_tails(folders: Sequence[str]) -> bool:
    return len({Path(folder).name for folder in folders}) == len(set(folders))


def _frame(source: SourceFrame, camera_id: str, transform: np.ndarray, size: int | None) -> Frame:
    lens = source.lens
    width, height = _image_size(source.image_path)
    declared = (lens.width or width, lens.height or height)
    if declared != (width, height):
        raise InputError(
            f"The image {source.image_path} is {width}×{height} pixels but {declared[0]}×{declared[1]} is declared; "
            "use the photos that were posed, or correct the intrinsics."
        )
    if source.mask_path is not None and not source.mask_path.is_file():
        raise InputError(f"The mask {source.mask_path} of {source.name} does not exist; add it or remove mask_path.")
    camera = Camera(
        camera_to_world=apply_similarity(transform, source.pose),
        fx=lens.fx,
        fy=lens.fy,
        cx=width / 2 if lens.cx is None else lens.cx,
        cy=height / 2 if lens.cy is None else lens.cy,
        width=width,
        height=height,
    )
    return Frame(
        name=source.name,
        image_path=source.image_path,
        camera=camera.resized(*working_size(width, height, size)),
        camera_id=camera_id,
        source_camera=camera,
        distortion=np.array(lens.distortion),
        mask_path=source.mask_path,
    )
