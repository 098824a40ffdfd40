"""The posed scene on disk: undistorted photos and masks, a nerfstudio data set, a COLMAP model, a picture of both."""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from difixcli.runs import atomic, write_image
from difixcli.scenes.nerfstudio_format import write_transforms
from difixcli.scenes.ply import write_points
from difixcli.scenes.poses import OPENCV_TO_OPENGL, normalisation, transform_points
from difixcli.scenes.scene import Camera

POINTS = "points3D.ply"
PICTURE = "poses.png"

_SIDE = 640  # pixels of each of the picture's two views


def write_scene(model: Path, photos: Path, masks: Path, work: Path, folder: Path) -> list[Camera]:
    """Write the scene of the COLMAP model in `model` into `folder`; its cameras, in the order of their names.

    `images/` are the photos undistorted to a pinhole and cropped to what all of the lens sees, `masks/` what is in
    `masks`, the same way; poses are OpenGL camera-to-world in the model's own world.
    """
    import pycolmap

    made = work / "undistorted"
    shutil.rmtree(made, ignore_errors=True)
    pycolmap.undistort_images(made, model, photos, jpeg_quality=97)
    undistorted = pycolmap.Reconstruction(str(made / "sparse"))
    distorted = pycolmap.Reconstruction(str(model))
    _replace(made / "images", folder / "images")
    _replace(made / "sparse", folder / "sparse" / "0")
    shutil.rmtree(made)
    lenses = {image.name: distorted.cameras[image.camera_id] for image in distorted.images.values()}
    frames, cameras = [], []
    for image in sorted((i for i in undistorted.images.values() if i.has_pose), key=lambda image: image.image_id):
        lens = undistorted.cameras[image.camera_id]
        world_to_camera = np.vstack([image.cam_from_world().matrix(), [0, 0, 0, 1]])
        pose = np.linalg.inv(world_to_camera) @ OPENCV_TO_OPENGL
        fx, fy, cx, cy = (float(value) for value in lens.params)
        camera = Camera(pose, fx, fy, cx, cy, int(lens.width), int(lens.height))
        entry: dict[str, Any] = {"file_path": f"images/{image.name}", "camera_id": str(image.camera_id)}
        mask = masks / f"{image.name}.png"
        if mask.is_file():
            entry["mask_path"] = f"masks/{image.name}.png"
            _undistort_mask(mask, lenses[image.name], folder / entry["mask_path"])
        frames.append((camera, entry))
        cameras.append(camera)
    points, colors = _points(undistorted)
    with atomic(folder / POINTS) as temporary:
        write_points(temporary, points, colors)
    write_image(folder / PICTURE, draw(cameras, points, colors))
    identity = np.eye(4)[:3].tolist()
    write_transforms(folder / "transforms.json", frames, ply_file_path=POINTS, applied_transform=identity)
    return cameras


def draw(cameras: Sequence[Camera], points: np.ndarray, colors: np.ndarray) -> np.ndarray:
    """Cameras (red) and points (N, 3), colours (N, 3) uint8, from above and from the side: (640, 1280, 3) in [0, 1].

    Up is the mean up axis of the cameras.
    """
    from PIL import Image, ImageDraw, ImageFont

    poses = np.stack([camera.camera_to_world for camera in cameras])
    level = normalisation(poses)
    moved = transform_points(level, points)
    centres = transform_points(level, poses[:, :3, 3])
    reach = 3.0 * max(float(np.abs(centres).max()), 1e-6)
    near = np.abs(moved).max(axis=1) < 4 * reach if len(moved) else np.zeros(0, bool)
    shown = np.concatenate([moved[near], centres]) if near.any() else centres
    low, high = np.percentile(shown, 2, axis=0), np.percentile(shown, 98, axis=0)
    low, high = np.minimum(low, centres.min(axis=0)), np.maximum(high, centres.max(axis=0))
    scale = 0.9 * _SIDE / max(float((high - low).max()), 1e-6)
    middle = (low + high) / 2
    picture = Image.new("RGB", (2 * _SIDE, _SIDE), (255, 255, 255))
    font = ImageFont.load_default(size=14)
    for view, (across, along, name) in enumerate(((0, 1, "from above"), (0, 2, "from the side"))):
        page = Image.new("RGB", (_SIDE, _SIDE), (255, 255, 255))
        pen = ImageDraw.Draw(page)

        def place(where: np.ndarray, across: int = across, along: int = along) -> np.ndarray:
            offset = (where - middle) * scale
            return np.stack([_SIDE / 2 + offset[..., across], _SIDE / 2 - offset[..., along]], axis=-1)

        for (x, y), color in zip(place(moved).tolist(), colors.tolist(), strict=True):
            pen.rectangle((x, y, x + 1, y + 1), fill=tuple(color))
        length = 12 / scale
        for camera in cameras:
            spread = np.array([camera.width / camera.fx, camera.height / camera.fy]) / 2
            corners = [[sx * spread[0], sy * spread[1], -1] for sx, sy in ((-1, -1), (1, -1), (1, 1), (-1, 1))]
            rotation = level[:3, :3] / np.cbrt(np.linalg.det(level[:3, :3])) @ camera.camera_to_world[:3, :3]
            apex = transform_points(level, camera.camera_to_world[None, :3, 3])[0]
            drawn = place(np.array([apex, *(apex + length * rotation @ np.array(c) for c in corners)]))
            ends = [tuple(point) for point in drawn.tolist()]
            for i in range(1, 5):
                pen.line([ends[0], ends[i]], fill=(210, 30, 30))
                pen.line([ends[i], ends[i % 4 + 1]], fill=(210, 30, 30))
        pen.text((10, 8), name, fill=(20, 20, 20), font=font)
        picture.paste(page, (view * _SIDE, 0))
    return np.asarray(picture, dtype=np.float32) / 255


def _points(reconstruction: Any) -> tuple[np.ndarray, np.ndarray]:
    """Positions (N, 3) and colours (N, 3) uint8 of a model's points, by their number."""
    ids = sorted(reconstruction.points3D)
    points = np.array([reconstruction.points3D[i].xyz for i in ids], dtype=np.float64).reshape(-1, 3)
    colors = np.array([reconstruction.points3D[i].color for i in ids], dtype=np.uint8).reshape(-1, 3)
    return points, colors


def _undistort_mask(source: Path, camera: Any, target: Path) -> None:
    """The mask of a photo as its undistorted copy needs it: a pixel counts if all it is made of did."""
    import pycolmap

    options = pycolmap.UndistortCameraOptions()
    mask = pycolmap.Bitmap.read(str(source), False)
    assert mask is not None  # written by prepare
    straight, _ = pycolmap.undistort_image(options, mask, camera)
    values = np.asarray(straight.to_array(), dtype=np.float32)
    write_image(target, (values.reshape(values.shape[:2]) > 254).astype(np.float32))


def _replace(source: Path, target: Path) -> None:
    """Move a folder to where another may be."""
    shutil.rmtree(target, ignore_errors=True)
    target.parent.mkdir(parents=True, exist_ok=True)
    os.replace(source, target)
