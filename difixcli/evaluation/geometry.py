"""Where the surfaces of a scene lie, by one reconstruction for all that are compared, and who sees them."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from difixcli.errors import InputError
from difixcli.evaluation.run_folders import RunFolder
from difixcli.runs import fingerprint, read_json, write_image
from difixcli.scenes.scene import Camera, Scene, Split

if TYPE_CHECKING:
    from difixcli.reconstruction import Reconstruction

_TRAIN = "difix distill SCENE --split all --schedule none --targets spiral"
_RECORD = {"arguments": {"scene": str}}


@dataclass(frozen=True)
class Geometry:
    """A reconstruction whose depth is taken for the scene's own, and in words which one it is."""

    reconstruction: Reconstruction
    said: str

    def depth(self, camera: Camera) -> np.ndarray:
        """(H, W) float32 z-depth in the scene's world, 0 where there is no surface."""
        return self.reconstruction.render(camera).depth


def reference_geometry(folders: Sequence[Path], run: RunFolder, device: str) -> Geometry | None:
    """That of the folder, of those named, which was made of the run's scene; None where none was.

    Raises InputError unless it was trained on all photos of the scene: one that has not seen the views that are
    measured knows less of them than a method may.
    """
    from difixcli.reconstruction import Reconstruction, latest_checkpoint

    for folder in folders:
        file = folder / "run.json"
        if not file.is_file() or not (folder / "reconstruction.json").is_file():
            raise InputError(f"{folder} is no trained run of difix distill; name one on all photos, as of {_TRAIN}.")
        if read_json(file, _RECORD)["arguments"]["scene"] != run.scene_spec:
            continue
        scene, _ = run.scene_and_split
        reconstruction = Reconstruction.load(folder, scene, None, device)
        unseen = sorted(set(range(len(scene.frames))) - set(reconstruction.train_frames))
        if unseen:
            raise InputError(
                f"{folder} has not seen all photos of {scene.name} (not {scene.frames[unseen[0]].name}), so its depth "
                f"favours methods trained as it was; train one on all: {_TRAIN}."
            )
        digest = fingerprint([latest_checkpoint(folder)])
        return Geometry(reconstruction, f"{folder.absolute().name}, on all photos, {digest[:8]}")
    return None


def needed_geometry(folders: Sequence[Path], run: RunFolder, device: str, why: str) -> Geometry:
    """`reference_geometry`; InputError, saying what it is needed for, where there is none."""
    found = reference_geometry(folders, run, device)
    if found is None:
        raise InputError(
            f"{why} by the depth of one reconstruction for all methods, and none is named of {run.scene_name}; train "
            f"one on all its photos ({_TRAIN}) and name it with --geometry."
        )
    return found


def own_geometry(run: RunFolder, device: str) -> Geometry:
    """The run's own; InputError where it has no checkpoint, or one of another scene or split."""
    from difixcli.reconstruction import Reconstruction

    scene, split = run.scene_and_split
    return Geometry(Reconstruction.load(run.folder, scene, split.train, device), "the run's own")


def visible_pixels(depth: np.ndarray, camera: Camera, others: Iterable[Camera]) -> np.ndarray:
    """(H, W) bool: whether the surface at a pixel lies in the frustum of at least one of the other cameras.

    As in Nerfbusters (Warburg et al., ICCV 2023): before the other camera and inside its image; what may stand between
    does not count. `depth` (H, W) is the z-depth at `camera` in world units, 0 where there is no surface (such a pixel
    is not seen). OpenGL axes.
    """
    height, width = depth.shape
    camera = camera.resized(width, height)
    points = camera.unproject(np.arange(width) + 0.5, np.arange(height)[:, None] + 0.5, depth)
    seen = np.zeros((height, width), bool)
    for other in others:
        u, v, z = other.project(points)
        seen |= (z > 1e-6) & (u >= 0) & (u < other.width) & (v >= 0) & (v < other.height)
    return seen & (depth > 0)


def write_visibility(geometry: Geometry, scene: Scene, split: Split, output: Path) -> str:
    """Write `output`/NAME.png for every test view: white where its surface is in a training photo's frustum.

    Returns the beginning of the masks' SHA-256, over names, sizes and pixels: figures of one scene may be compared only
    where it is the same.
    """
    photos = [scene.frames[i].camera for i in split.train]
    masks: dict[str, np.ndarray] = {}
    for i in split.test:
        camera = scene.frames[i].camera
        masks[scene.file_names[i]] = mask = visible_pixels(geometry.depth(camera), camera, photos)
        write_image(output / f"{scene.file_names[i]}.png", mask.astype(np.float32))
    return masks_digest(masks)


def masks_digest(masks: Mapping[str, np.ndarray]) -> str:
    digest = hashlib.sha256()
    for name, mask in sorted(masks.items()):
        digest.update(f"{name} {mask.shape}\n".encode(errors="surrogateescape"))
        digest.update(np.packbits(mask).tobytes())
    return digest.hexdigest()[:12]
