"""Writes small copies of scenes, with photos of few pixels and few seed points, for a machine that is far away."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from difixcli.errors import InputError
from difixcli.runs import IMAGE_SUFFIXES, make_folder, read_image, write_image
from difixcli.scenes import Scene, load_mask, load_photo, load_scene
from difixcli.scenes.nerfstudio_format import write_transforms
from difixcli.scenes.ply import write_points


def main(line: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("scenes", nargs="+", help="scenes as difix takes them")
    parser.add_argument("--output", type=Path, required=True, help="folder that gets a folder for each")
    parser.add_argument("--size", type=int, default=128, help="long side of the photos")
    parser.add_argument("--points", type=int, default=4000, help="seed points of a scene at most")
    parser.add_argument("--photos", type=Path, help="a folder of photos, whose middle squares go to OUTPUT/photos")
    given = parser.parse_args(line)
    for spec in given.scenes:
        scene = load_scene(spec, given.size)
        pack_scene(scene, make_folder(given.output / scene.name), given.points)
        print(f"{scene.name}: {len(scene.frames)} photos", file=sys.stderr, flush=True)
    if given.photos is not None:
        pack_photos(given.photos, make_folder(given.output / "photos"), given.size)


def pack_scene(scene: Scene, folder: Path, count: int) -> None:
    """A scene in its normalised world: images/, masks/ where there are any, points3D.ply and transforms.json."""
    frames = []
    for i, frame in enumerate(scene.frames):
        entry = {"file_path": f"images/{i:04}.jpg"}
        write_image(make_folder(folder / "images") / f"{i:04}.jpg", load_photo(frame))
        mask = load_mask(frame)
        if mask is not None:
            entry["mask_path"] = f"masks/{i:04}.png"
            shown = np.repeat(mask[..., None], 3, axis=2).astype(np.float32)
            write_image(make_folder(folder / "masks") / f"{i:04}.png", shown)
        frames.append((frame.camera, entry))
    chosen = np.linspace(0, len(scene.points) - 1, min(len(scene.points), count)).astype(int)
    write_points(folder / "points3D.ply", scene.points[chosen], scene.colors[chosen])
    write_transforms(folder / "transforms.json", frames, ply_file_path="points3D.ply")


def pack_photos(photos: Path, folder: Path, size: int) -> None:
    """The middle squares of a folder's photos, `size` pixels a side; smaller ones are left out."""
    import cv2

    files = sorted(path for path in photos.rglob("*") if path.suffix.lower() in IMAGE_SUFFIXES)
    for i, file in enumerate(files):
        photo = read_image(file)[..., :3]
        side = min(photo.shape[:2])
        if side < size:
            continue
        top, left = (photo.shape[0] - side) // 2, (photo.shape[1] - side) // 2
        square = np.ascontiguousarray(photo[top : top + side, left : left + side])
        write_image(folder / f"{i:05}.jpg", cv2.resize(square, (size, size), interpolation=cv2.INTER_AREA))


if __name__ == "__main__":
    try:
        main()
    except InputError as error:
        sys.exit(str(error))
