"""Photos and videos of no known pose: how they are told from scenes, and where the scene made of them is kept."""

from __future__ import annotations

from pathlib import Path

from difixcli.runs import IMAGE_SUFFIXES, VIDEO_SUFFIXES, read_json

PHOTO_FOLDERS = (".", "images", "input")
"""Where photos lie in a folder that is named: in itself, or in one of these."""


def is_video(path: Path) -> bool:
    return path.is_file() and path.suffix.lower() in VIDEO_SUFFIXES


def photo_folder(root: Path) -> Path | None:
    """The folder that holds the photos of `root`, or None where there are none."""
    if not root.is_dir():
        return None
    for name in PHOTO_FOLDERS:
        folder = root / name
        if folder.is_dir() and any(_is_photo(path) for path in folder.iterdir()):
            return folder
    return None


def photos_in(folder: Path) -> list[Path]:
    """The photos directly in a folder, in natural order (`9.jpg` before `10.jpg`)."""
    from difixcli.scenes.loading import natural_order

    return sorted((path for path in folder.iterdir() if _is_photo(path)), key=lambda path: natural_order(path.name))


def is_unposed(root: Path) -> bool:
    """Whether it is a video, or a folder with photos but neither a transforms.json nor a COLMAP model."""
    from difixcli.scenes.loading import is_posed

    if is_video(root):
        return True
    if photo_folder(root) is None or (root / "run.json").is_file():  # pictures of a run are no photos
        return False
    return not is_posed(root)


def posed_folder(root: Path) -> Path:
    """Where the posed scene of photos or a video is kept unless told otherwise: `NAME-posed` beside them."""
    root = root.expanduser().absolute()
    return root.with_name(f"{root.stem if is_video(root) else root.name}-posed")


def posed_already(root: Path) -> Path | None:
    """The folder of the finished scene that `difix pose` made of photos or a video, or None."""
    record = posed_folder(root) / "run.json"
    held = read_json(record) if record.is_file() else None
    done = isinstance(held, dict) and held.get("command") == "pose" and held.get("state") == "done"
    return record.parent if done else None


def _is_photo(path: Path) -> bool:
    return path.suffix.lower() in IMAGE_SUFFIXES and not path.name.startswith(".")
