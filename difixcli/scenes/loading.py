"""From a folder (or `sample:NAME`) to a Scene."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from difixcli.errors import InputError, near, short
from difixcli.runs import fingerprint, run_record
from difixcli.scenes.co3d import ANNOTATIONS, annotations_of, read_co3d
from difixcli.scenes.colmap import MODEL_FOLDERS, borrow_tracks, find_model, read_colmap
from difixcli.scenes.image_paths import find_copies, find_masks, image_header, lies_on_its_side, same_shape
from difixcli.scenes.lenses import pinhole
from difixcli.scenes.llff import poses_bounds, read_llff
from difixcli.scenes.nerfstudio_format import HALVES, read_split_transforms, read_transforms
from difixcli.scenes.other_tools import poses_of_another_tool
from difixcli.scenes.poses import apply_similarity, normalisation, transform_points
from difixcli.scenes.real_estate import clip_text, read_real_estate
from difixcli.scenes.scene import Camera, Frame, Scene, Split
from difixcli.scenes.source import Source, SourceFrame
from difixcli.scenes.unposed import check_formats, is_unposed, is_video, posed_already
from difixcli.wording import counted

SAMPLE_PREFIX = "sample:"
TRANSFORMS = "transforms.json"
TRANSFORMS_FOLDERS = (".", "nerfstudio")
DOWNSCALES = (2, 4, 8)
"""Factors of the smaller copies that data sets bring as `images_2`, `images_4`, `images_8`."""


def load_scene(spec: str | Path, size: int | None = None) -> Scene:
    """Loads a posed photo set.

    `spec` is a folder with a nerfstudio `transforms.json` or, failing that, a COLMAP model in one of `MODEL_FOLDERS`
    (text or binary; see `read_colmap`); or `sample:NAME`, which is written once into the user's cache.
    Without a `transforms.json`, Blender's `transforms_train.json`, `transforms_val.json` and `transforms_test.json`
    are read as one. Published layouts are read as they come: Difix3D's release (`colmap/sparse/0` beside
    `images/image_train_*` and `image_eval_*`), Nerfbusters' captures (`transforms.json`, two paths told by name, see
    `default_split_rule`), and DL3DV (`transforms.json` at the top or in `nerfstudio/`). Where `images/` was not
    downloaded but `images_2/`, `images_4/` or `images_8/` was, photos are taken from there.
    A sequence's folder of CO3D is read with the annotations in its category's folder (see `read_co3d`), a clip of
    RealEstate10K with its text of cameras (see `read_real_estate`), LLFF's array of poses where there is neither of the
    two above (see `read_llff`).
    Photos of any lens that `lenses.MODELS` names are read, and undistorted to its `pinhole`. Those of another size than
    declared, but of its shape, have their lens scaled; those that are declared upright are turned as their EXIF
    orientation says. An alpha channel is a photo's mask, and where no frame names a mask those in `masks/` or `mask/`
    are used.
    A folder of photos without poses, or a video, stands for the scene that `difix pose` has made of it beside it.
    `size` is the long side in pixels to work at; photos are never enlarged, and None keeps their own size.

    The world is normalised from all frames the file lists, whichever of their images are there: cameras centred,
    mean up axis to +z, largest absolute position component 1. Frames whose image is missing are left out with a
    warning in `Scene.warnings`, which also says, in one line for each kind, what of the files was not taken as it
    stands. Raises InputError for a missing folder, no frames, no images, an unreadable image, an image or a mask of
    another shape than declared, an image that two frames pose differently, and a broken pose.
    """
    if size is not None and size < 1:
        raise InputError(f"The working size {size} is not a number of pixels; give a positive --size.")
    check_scene(spec)
    if str(spec).startswith(SAMPLE_PREFIX):
        from difixcli.samples.sample import cached_sample

        return _build_scene(scene_name(spec), cached_sample(scene_name(spec)), size)
    root = Path(spec)
    if is_unposed(root):
        posed = posed_already(root)
        if posed is None:
            other = poses_of_another_tool(root)
            raise InputError(
                f"The photos of {root} have no poses yet; run difix pose {root} first."
                if other is None
                else f"{root} holds no scene: {other}, or run difix pose {root} to find poses anew."
            )
        root = posed
    return _build_scene(scene_name(spec), root.parent if root.is_file() else root, size)


def check_scene(spec: str | Path) -> None:
    """Raises InputError for what names no scene at all (see `load_scene`); what is in its folder is not read."""
    if str(spec).startswith(SAMPLE_PREFIX):
        from difixcli.samples.names import check_sample

        check_sample(scene_name(spec))
        return
    root = Path(spec)
    if not root.exists():
        beside: list[str] = []
        with suppress(OSError):
            beside = os.listdir(root.parent)
        close = near(short(root.name), beside)
        hint = f" Did you mean {' or '.join(str(root.parent / name) for name in close)}?" if close else ""
        raise InputError(
            f"There is no scene {root}; name a folder of photos, posed or not, a video, or sample:room.{hint}"
        )
    if not os.access(root, os.R_OK | (os.X_OK if root.is_dir() else 0)):
        raise InputError(f"{root} cannot be read (Permission denied); allow it to be read and run the same line again.")
    if not root.is_dir() and (not root.is_file() or (root.name != TRANSFORMS and not is_video(root))):
        raise InputError(f"{root} is a file; name the folder that holds transforms.json or a COLMAP model.")


def is_posed(root: Path) -> bool:
    """Whether a folder holds what `load_scene` reads poses from: a transforms.json, Blender's files, a COLMAP model, or
    the annotations of CO3D beside it, RealEstate10K's or LLFF's file."""
    names = (TRANSFORMS, *(f"transforms_{half}.json" for half in HALVES))
    listed = any((root / folder / name).is_file() for folder in TRANSFORMS_FOLDERS for name in names)
    return listed or any(find(root) is not None for find in (find_model, annotations_of, clip_text, poses_bounds))


def scene_name(spec: str | Path) -> str:
    """The name a scene will have, from what `load_scene` takes, without reading it."""
    if str(spec).startswith(SAMPLE_PREFIX):
        return str(spec)[len(SAMPLE_PREFIX) :]
    root = Path(spec).resolve()
    if is_video(root):
        return root.stem
    return root.parent.name if root.name == TRANSFORMS else root.name


def scene_root(spec: str | Path) -> Path | None:
    """The folder that a scene will be read from, without reading it; None where it is not made yet: a sample that is
    painted first, photos that are posed first."""
    if str(spec).startswith(SAMPLE_PREFIX):
        from difixcli.samples.sample import sample_folder

        root = sample_folder(scene_name(spec))
        return root if root.is_dir() else None
    root = Path(spec)
    if is_unposed(root):
        return posed_already(root)
    return root.parent if root.is_file() else root


def scene_fingerprint(scene: Scene) -> str:
    """A short hash of everything a scene was read from, whatever its layout and working size.

    Photos and masks count by name and content, and poses, lenses and seed points by value.
    """
    digest = hashlib.sha256(fingerprint([frame.image_path for frame in scene.frames]).encode())
    masks = [frame.mask_path for frame in scene.frames if frame.mask_path is not None]
    digest.update(fingerprint(masks).encode())
    for frame in scene.frames:
        lens = frame.lens
        numbers = np.array([lens.fx, lens.fy, *lens.centre, *lens.distortion])
        for values in (frame.camera.camera_to_world, numbers):
            digest.update(np.round(values, 6).astype("<f8").tobytes())
        if lens.kind != "perspective":
            digest.update(f"{lens.kind} {lens.circle}".encode())
        if frame.depths is not None:
            digest.update(np.round(frame.depths, 6).astype("<f8").tobytes())
        digest.update(os.fsencode(frame.name))
    digest.update(np.ascontiguousarray(scene.points, dtype="<f4").tobytes())
    digest.update(np.ascontiguousarray(scene.colors).tobytes())
    if scene.tracks is not None:
        digest.update(scene.tracks.offsets.tobytes() + scene.tracks.frames.tobytes())
    return digest.hexdigest()[:16]


def natural_order(name: str) -> list[tuple[int, int, str]]:
    """Sort key under which `frame_9` comes before `frame_10`."""
    parts = re.split(r"(\d+)", name)
    return [(1, int(part), part) if part.isdecimal() else (0, 0, part) for part in parts]


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
        halves = {half: root / folder / f"transforms_{half}.json" for half in HALVES}
        if halves := {half: path for half, path in halves.items() if path.is_file()}:
            return read_split_transforms(halves)
    if find_model(root) is not None:
        return read_colmap(root)
    if annotations_of(root) is not None:
        return read_co3d(root)
    if clip_text(root) is not None:
        return read_real_estate(root)
    if poses_bounds(root) is not None:
        return read_llff(root)
    if (root / ANNOTATIONS).is_file():
        raise InputError(f"{root} is a category of CO3D with many sequences; name the folder of one of them.")
    if (record := run_record(root)) is not None:
        made = record["arguments"].get("scene")
        of = f", which is {made}" if isinstance(made, str) else ""
        raise InputError(f"{root} is a run of difix {record['command']}, no scene; name the scene that it is of{of}.")
    check_formats(root)
    if (other := poses_of_another_tool(root)) is not None:
        raise InputError(f"{root} holds no scene: {other}.")
    within = [path.name for path in sorted(root.iterdir()) if path.is_dir() and is_posed(path)]
    if within:
        raise InputError(f"{root} holds no scene, but its folder {short(within[0])} does; name {root / within[0]}.")
    raise InputError(
        f"{root.absolute()} holds no scene: there is neither a transforms.json (or transforms_train.json) nor "
        f"a COLMAP model in {', '.join(MODEL_FOLDERS)}, and there are no photos to pose; name another folder."
    )


def _build_scene(name: str, root: Path, size: int | None) -> Scene:
    source = _read_source(root)
    if source.path.is_file():
        source = borrow_tracks(source, root)
    warnings = list(source.warnings)
    posed = _without_repeats(source, warnings)
    transform = normalisation(np.stack([frame.pose for frame in posed]))
    listed = _downscaled(posed, warnings)
    missing = [frame for frame in listed if not frame.image_path.is_file()]
    if len(missing) == len(listed):
        raise InputError(
            f"None of the {counted(len(missing), 'image')} that {source.path} names exists (first: "
            f"{missing[0].image_path}); put the photos beside it."
        )
    if missing:
        shown = ", ".join(frame.name for frame in missing[:3]) + (", …" if len(missing) > 3 else "")
        are = "is" if len(missing) == 1 else "are"
        warnings.append(f"{len(missing)} of {counted(len(listed), 'image')} {are} missing and left out: {shown}")
    present = sorted((frame for frame in listed if frame.image_path.is_file()), key=lambda f: natural_order(f.name))
    repairs = _Repairs(smaller=listed is not posed)
    masked = _with_masks(source, root, present, warnings)
    frames = [
        _frame(frame, camera_id, transform, size, repairs)
        for frame, camera_id in zip(masked, _camera_ids(masked), strict=True)
    ]
    warnings += repairs.lines(len(frames))
    if not len(source.points):
        where = f", as near and far as {source.path.name} says" if any(frame.depths for frame in frames) else ""
        warnings.append(f"there are no seed points: splats will start from random ones{where}")
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
        own_split=_own_split(source, frames),
        tracks=source.tracks
        and source.tracks.renamed([frame.name for frame in source.frames], [frame.name for frame in frames]),
    )


def _without_repeats(source: Source, warnings: list[str]) -> Sequence[SourceFrame]:
    """The frames of a file, each image once. InputError where one has two poses, lenses or masks."""
    first: dict[str, SourceFrame] = {}
    repeated = []
    for frame in source.frames:
        other = first.setdefault(frame.name, frame)
        if other is frame:
            continue
        same = (frame.lens, frame.camera_id, frame.mask_path) == (other.lens, other.camera_id, other.mask_path)
        if not same or not np.allclose(frame.pose, other.pose, rtol=1e-9, atol=1e-9):
            raise InputError(
                f"{source.path} lists {frame.name} more than once, with different poses or lenses; keep one frame for "
                "each image."
            )
        repeated.append(frame.name)
    if repeated:
        again = counted(len(repeated), "frame is", "frames are")
        warnings.append(f"{again} listed again, all alike, and left out (first: {repeated[0]})")
    return list(first.values()) if repeated else source.frames


def _downscaled(frames: Sequence[SourceFrame], warnings: list[str]) -> Sequence[SourceFrame]:
    """The frames with photos of `images_2`, `images_4` or `images_8` (the largest that holds any of them), where none
    of the photos that the scene's file names is there; else as they are."""
    if any(frame.image_path.is_file() for frame in frames):
        return frames
    for factor in DOWNSCALES:
        copies = find_copies([frame.image_path for frame in frames], factor)
        if any(path.is_file() for path in copies):
            line = f"photos are taken from images_{factor}, as those that the scene's file names are missing"
            renamed = (
                (frame, path) for frame, path in zip(frames, copies, strict=True) if frame.image_path.name != path.name
            )
            if one := next(renamed, None):
                line += f" ({one[0].image_path.name} is {one[1].name} there)"
            warnings.append(line)
            return [replace(frame, image_path=path) for frame, path in zip(frames, copies, strict=True)]
    return frames


def _with_masks(
    source: Source, root: Path, frames: Sequence[SourceFrame], warnings: list[str]
) -> Sequence[SourceFrame]:
    """The frames with the masks that lie beside the photos, where no frame of the scene's file names one."""
    if any(frame.mask_path is not None for frame in source.frames):
        return frames
    beside = source.path.parent if source.path.is_file() else root
    masks, line = find_masks(beside, [frame.name for frame in frames])
    if line is not None:
        warnings.append(line)
    return [replace(frame, mask_path=mask) for frame, mask in zip(frames, masks, strict=True)]


def _own_split(source: Source, frames: Sequence[Frame]) -> Split | None:
    if source.split is None:
        return None
    train, test = (tuple(i for i, frame in enumerate(frames) if frame.name in half) for half in source.split)
    return Split(train=train, test=test, rule="own")


@dataclass
class _Repairs:
    """What of the photos and masks was not taken as the scene's file declares it; `smaller` copies scale as a rule."""

    smaller: bool
    scaled: list[str] = field(default_factory=list)
    turned: list[str] = field(default_factory=list)
    masks: list[str] = field(default_factory=list)
    transparent: int = 0

    def lines(self, count: int) -> list[str]:
        """One line for each kind of repair among `count` photos."""
        lines = []
        if self.scaled and not self.smaller:
            lines.append(
                f"{len(self.scaled)} of {count} photos have another size than declared; their lenses are scaled to it "
                f"(first: {self.scaled[0]})"
            )
        if self.turned:
            lines.append(
                f"{len(self.turned)} of {count} photos are declared upright and turned as their EXIF orientation says "
                f"(first: {self.turned[0]})"
            )
        if self.transparent:
            lines.append(
                f"{self.transparent} of {count} photos have an alpha channel, which is their mask: what is transparent "
                "does not count"
            )
        if self.masks:
            resized = counted(
                len(self.masks),
                "mask has another size than its photo and is",
                "masks have another size than their photos and are",
            )
            lines.append(f"{resized} resized to it (first: {self.masks[0]})")
        return lines


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
    lenses = {lens: str(i) for i, lens in enumerate(dict.fromkeys(frame.lens for frame in frames))}
    if len(lenses) == len(frames):
        return ["0"] * len(frames)
    return [lenses[frame.lens] for frame in frames]


def _unique_tails(folders: Sequence[str]) -> bool:
    return len({Path(folder).name for folder in folders}) == len(set(folders))


def _frame(source: SourceFrame, camera_id: str, transform: np.ndarray, size: int | None, repairs: _Repairs) -> Frame:
    lens = source.lens
    header = image_header(source.image_path)
    repairs.transparent += header.transparent
    stored = (header.width, header.height)
    declared = (lens.width or header.width, lens.height or header.height)
    turned = not same_shape(stored, declared) and same_shape(stored[::-1], declared)
    turned = turned and lies_on_its_side(source.image_path)
    width, height = stored[::-1] if turned else stored
    if turned:
        repairs.turned.append(source.name)
    if not same_shape((width, height), declared):
        raise InputError(
            f"The image {source.image_path} is {width}×{height} pixels but {declared[0]}×{declared[1]} is declared, "
            "which is another shape; use the photos that were posed, or correct the intrinsics."
        )
    if (width, height) != declared:
        repairs.scaled.append(f"{source.name} is {width}×{height}, not {declared[0]}×{declared[1]}")
    lens = replace(lens, width=declared[0], height=declared[1]).resized(width, height)
    camera = Camera(apply_similarity(transform, source.pose), *pinhole(lens), width, height)
    if source.mask_path is not None:
        _check_mask(source, camera, turned, repairs)
    return Frame(
        name=source.name,
        image_path=source.image_path,
        camera=camera.resized(*working_size(width, height, size)),
        camera_id=camera_id,
        lens=lens,
        mask_path=source.mask_path,
        turned=turned,
        depths=source.depths and _scaled(source.depths, transform),
    )


def _scaled(depths: tuple[float, float], transform: np.ndarray) -> tuple[float, float]:
    scale = float(np.cbrt(np.linalg.det(transform[:3, :3])))
    return depths[0] * scale, depths[1] * scale


def _check_mask(source: SourceFrame, camera: Camera, turned: bool, repairs: _Repairs) -> None:
    """Notes a mask of another size than its photo. InputError where it is missing or of another shape."""
    path = source.mask_path
    assert path is not None
    if not path.is_file():
        raise InputError(f"The mask {path} of {source.name} does not exist; add it or remove mask_path.")
    header = image_header(path)
    size = (header.width, header.height)
    if turned and lies_on_its_side(path):
        size = size[::-1]
    if not same_shape(size, (camera.width, camera.height)):
        raise InputError(
            f"The mask {path} is {size[0]}×{size[1]} pixels but its photo {camera.width}×{camera.height}, which is "
            "another shape; make them the same size."
        )
    if size != (camera.width, camera.height):
        repairs.masks.append(f"{path.name} is {size[0]}×{size[1]}, its photo {camera.width}×{camera.height}")
