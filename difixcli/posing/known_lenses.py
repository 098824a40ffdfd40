"""Poses of images whose lenses are known, found anew: what `difix eval` asks of renders."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable, Sequence
from itertools import combinations
from pathlib import Path

import numpy as np

from difixcli.posing import features
from difixcli.posing.mapping import incremental, quiet
from difixcli.runs import write_image
from difixcli.scenes.poses import OPENCV_TO_OPENGL
from difixcli.scenes.scene import Camera


def found_poses(
    images: Iterable[np.ndarray], cameras: Sequence[Camera], seed: int = 0, done: Callable[[int], None] | None = None
) -> dict[int, np.ndarray]:
    """Camera-to-world poses (4, 4) with OpenGL axes, in a world of their own, by the image's number; without those of
    images that could not be placed.

    Of `cameras` only the lenses are used. Images are (H, W, 3) in [0, 1] at their cameras' sizes. SIFT, all pairs
    matched, pycolmap's incremental mapper with the lenses held fixed; the same images give the same poses.
    """
    import pycolmap

    with tempfile.TemporaryDirectory() as temporary, quiet():
        work = Path(temporary)
        folder, database = work / "images", work / "database.db"
        with pycolmap.Database.open(database):
            pass  # makes the file
        names = []
        for i, (image, camera) in enumerate(zip(images, cameras, strict=True)):
            names.append(f"{i:05d}.png")
            write_image(folder / names[-1], image)
            options = pycolmap.ImageReaderOptions()
            options.camera_model = "PINHOLE"
            options.camera_params = ",".join(repr(float(x)) for x in (camera.fx, camera.fy, camera.cx, camera.cy))
            pycolmap.import_images(database, folder, pycolmap.CameraMode.PER_IMAGE, names[-1:], options)
        features.find_features(database, folder, work / "masks", _silent)
        features.match(database, list(combinations(names, 2)), seed, _silent)
        model = incremental(database, folder, work / "model", seed, True, done or _silent)
        if model is None:
            return {}
        poses = {}
        for image in model.reconstruction.images.values():
            if image.has_pose:
                world_to_camera = np.vstack([image.cam_from_world().matrix(), [0, 0, 0, 1]])
                poses[names.index(image.name)] = np.linalg.inv(world_to_camera) @ OPENCV_TO_OPENGL
        return poses


def _silent(done: int) -> None:
    pass
