"""COLMAP models, text or binary, through pycolmap."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from difixcli.errors import InputError
from difixcli.scenes.lenses import Lens, colmap_lens
from difixcli.scenes.nerfstudio_format import frame_name
from difixcli.scenes.poses import OPENCV_TO_OPENGL, rigid_pose
from difixcli.scenes.source import Source, SourceFrame

MODEL_FOLDERS = ("sparse/0", "colmap/sparse/0", "sparse")
IMAGE_FOLDERS = ("images", "images_raw", "rgb", "input", ".")


def find_model(root: Path) -> Path | None:
    """The folder of the COLMAP model in a scene's folder, or None."""
    for name in MODEL_FOLDERS:
        folder = root / name
        if any((folder / f"cameras{suffix}").is_file() for suffix in (".bin", ".txt")):
            return folder
    return None


def read_colmap(root: Path, model: Path) -> Source:
    """Reads the COLMAP model in `model` whose images lie under `root`.

    COLMAP's world-to-camera with OpenCV axes becomes camera-to-world with OpenGL axes; its world is kept. Images are
    found by name, never by order. Raises InputError if the model is broken or a camera's model is not supported.
    """
    import pycolmap

    try:
        reconstruction = pycolmap.Reconstruction(str(model))
    except (ValueError, RuntimeError, OSError, IndexError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise InputError(f"The COLMAP model {model} cannot be read ({reason}); export it again.") from None
    posed = [image for image in reconstruction.images.values() if image.has_pose]
    if not posed:
        raise InputError(f"The COLMAP model {model} has no posed images; run the mapper again.")
    folder = _image_folder(root, [image.name for image in posed])
    frames = []
    for image in posed:
        image_path = folder / image.name
        name = frame_name(image_path, root)
        camera = reconstruction.cameras[image.camera_id]
        # A property before pycolmap 3.13, a method since.
        pose = image.cam_from_world() if callable(image.cam_from_world) else image.cam_from_world
        world_to_camera = rigid_pose(pose.matrix(), f"{name} in {model}")
        frames.append(
            SourceFrame(
                name=name,
                image_path=image_path,
                pose=np.linalg.inv(world_to_camera) @ OPENCV_TO_OPENGL,
                lens=_lens(camera, f"{name} in {model}"),
            )
        )
    ids = sorted(reconstruction.points3D)
    points = np.array([reconstruction.points3D[i].xyz for i in ids], dtype=np.float64).reshape(-1, 3)
    colors = np.array([reconstruction.points3D[i].color for i in ids], dtype=np.uint8).reshape(-1, 3)
    return Source(path=model, frames=frames, points=points, colors=colors)


def _image_folder(root: Path, names: list[str]) -> Path:
    """The folder that holds most of the named images (COLMAP stores no folder); `images` when none holds any."""
    counts = [sum((root / folder / name).is_file() for name in names) for folder in IMAGE_FOLDERS]
    return root / IMAGE_FOLDERS[int(np.argmax(counts))]


def _lens(camera: Any, where: str) -> Lens:
    params = [float(value) for value in camera.params]
    return colmap_lens(camera.model.name, params, int(camera.width), int(camera.height), where)
