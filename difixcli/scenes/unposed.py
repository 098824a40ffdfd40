"""Photos and videos of no known pose: how they are told from scenes, and where the scene made of them is kept."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from difixcli.errors import InputError
from difixcli.runs import CONFIDENCE, VIDEO_SUFFIXES, read_json
from difixcli.scenes.image_paths import (
    PHOTO_FOLDERS,
    PHOTO_SUFFIXES,
    folder_on_disk,
    format_cure,
    mask_names,
    undecoded_format,
)
from difixcli.wording import counted


def is_video(path: Path) -> bool:
    return path.is_file() and path.suffix.lower() in VIDEO_SUFFIXES


def photo_folder(root: Path) -> Path | None:
    """The folder that holds the photos of `root`: itself or one of `PHOTO_FOLDERS` in it, the one with the most; None
    where there are none.
    """
    counts = {folder: sum(1 for path in folder.iterdir() if _is_photo(path)) for folder in _places(root)}
    found = max(counts, key=counts.__getitem__, default=None)
    return found if found is not None and counts[found] else None


def photos_in(folder: Path) -> list[Path]:
    """The photos directly in a folder, in natural order (`9.jpg` before `10.jpg`), without masks of others there."""
    from difixcli.scenes.loading import natural_order

    photos = [path for path in folder.iterdir() if _is_photo(path)]
    # nor is the map that difix writes beside a picture a photo
    others = {name.casefold() for path in photos for name in mask_names(path.name, beside=True)}
    others |= {f"{path.stem}{CONFIDENCE}".casefold() for path in photos}
    return sorted(
        (path for path in photos if path.name.casefold() not in others), key=lambda path: natural_order(path.name)
    )


def left_out(folder: Path) -> str | None:
    """What to say of the photos directly in a folder whose format cannot be decoded here; None where there are none.

    A raw file beside the JPEG of the same shot is no photo of its own.
    """
    formats, others = _undecoded_formats(folder)
    if not formats:
        return None
    count = formats.total()
    return (
        f"{count} of {counted(count + others, 'photo')} in {folder} left out, because {_listed(formats)} cannot be "
        f"decoded here; {format_cure(formats)}."
    )


def other_photos(root: Path) -> str | None:
    """What to say of photos of `root` that do not lie where most of them are (see `photo_folder`); None without any."""
    chosen = photo_folder(root)
    others = [(len(photos_in(folder)), folder) for folder in _places(root) if folder != chosen]
    told = " and ".join(f"{counted(count, 'photo')} in {folder}" for count, folder in others if count)
    return f"{told} left out: those in {chosen} are taken; move them there if they belong to them." if told else None


def check_formats(root: Path) -> None:
    """Raises InputError for a folder without photos to read, but with some whose format cannot be decoded here."""
    for folder in _places(root):
        formats, _ = _undecoded_formats(folder)
        if formats:
            raise InputError(
                f"{folder} holds only {_listed(formats)} photos ({formats.total()}), which cannot be decoded here; "
                f"{format_cure(formats)}."
            )


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


def _places(root: Path) -> list[Path]:
    return [folder for name in (".", *PHOTO_FOLDERS) if (folder := folder_on_disk(root, [name])) is not None]


def _is_photo(path: Path) -> bool:
    known = path.suffix.lower() in PHOTO_SUFFIXES and undecoded_format(path) is None
    return known and not path.name.startswith(".")


def _undecoded_formats(folder: Path) -> tuple[Counter[str], int]:
    """How many photos directly in a folder there are of each format that cannot be decoded here, and how many others.

    Those beside another photo of the same stem do not count.
    """
    files = [path for path in folder.iterdir() if not path.name.startswith(".")]
    stems = [path.stem.lower() for path in files if _is_photo(path)]
    known = set(stems)
    lost = {path.stem.lower(): kind for path in sorted(files) if (kind := undecoded_format(path)) is not None}
    return Counter(kind for stem, kind in lost.items() if stem not in known), len(stems)


def _listed(formats: Counter[str]) -> str:
    return " and ".join(sorted(formats))
