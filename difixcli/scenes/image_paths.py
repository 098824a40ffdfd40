"""The image files of a scene as they are called on this machine: photos, their smaller copies, masks, headers."""

from __future__ import annotations

import os
import posixpath
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from PIL import features

from difixcli.errors import InputError
from difixcli.runs import IMAGE_SUFFIXES, open_image
from difixcli.wording import counted

# Of formats that PIL reads only with a library that it may lack.
_LIBRARY_FORMATS = {".avif": "AVIF", ".heic": "HEIC", ".heif": "HEIC", ".hif": "HEIC"}
_LIBRARIES = {"AVIF": "pip install --upgrade pillow", "HEIC": "pip install pillow-heif"}
# Of cameras' raw files: of some of them PIL reads the thumbnail.
_RAW_SUFFIXES = frozenset({".arw", ".cr2", ".cr3", ".dng", ".nef", ".orf", ".pef", ".raf", ".rw2", ".srw"})
PHOTO_SUFFIXES = IMAGE_SUFFIXES | frozenset(_LIBRARY_FORMATS)
PHOTO_FOLDERS = ("images", "images_raw", "rgb", "input")
"""Where a scene's photos lie that no file names, or names without a folder, or with one of another machine."""
MASK_FOLDERS = ("masks", "mask")
"""Where masks lie beside the photos' folder, whatever the case of the name."""
_MASK_SUFFIXES = (".png", *sorted(IMAGE_SUFFIXES - {".png"}))

_LONGEST_NAME, _LONGEST_PATH = 255, 4096  # bytes, of Linux's file systems
_ON_ITS_SIDE = (5, 6, 7, 8)  # EXIF orientations that swap width and height
_ORIENTATION = 0x0112
_LLFF_COPY = re.compile(r"image\d+")
# ISO base media files say what they hold in their first box.
_BRANDS = {
    b"heic": "HEIC", b"heix": "HEIC", b"heim": "HEIC", b"heis": "HEIC", b"hevc": "HEIC", b"mif1": "HEIC",
    b"msf1": "HEIC", b"avif": "AVIF", b"avis": "AVIF",
}  # fmt: skip


@dataclass(frozen=True)
class ImageHeader:
    """What an image's header says: its stored size in pixels, and whether it has transparency."""

    width: int
    height: int
    transparent: bool


def image_header(path: Path) -> ImageHeader:
    """Reads an image's header alone. InputError if it is no image, or of a format that cannot be decoded here."""
    read_heif()
    if path.suffix.lower() in _RAW_SUFFIXES and (error := undecoded(path)):
        raise error
    try:
        with open_image(path) as image:
            transparent = "A" in image.getbands() or "transparency" in image.info
            return ImageHeader(*image.size, transparent)
    except InputError as error:
        raise undecoded(path) or error from None


def undecoded(path: Path) -> InputError | None:
    """The error for a photo of a format that cannot be decoded here, as its first bytes or its name say; None for any
    other file."""
    kind = _brand(path)
    kind = undecoded_format(path) if kind is None else None if _is_decoded(kind) else kind
    if kind is None:
        return None
    return InputError(f"The image {path} is {kind}, which cannot be decoded here; {format_cure([kind])}.")


def undecoded_format(path: Path) -> str | None:
    """The format of a photo that cannot be decoded here, by its name alone; None for any other file."""
    suffix = path.suffix.lower()
    if suffix in _RAW_SUFFIXES:
        return f"{suffix[1:].upper()} (raw)"
    kind = _LIBRARY_FORMATS.get(suffix)
    return None if kind is None or _is_decoded(kind) else kind


def format_cure(formats: Iterable[str]) -> str:
    """What to do about photos of formats that cannot be decoded here, as the second half of a sentence."""
    lines = [f"{_LIBRARIES[kind]} to read {kind}" for kind in sorted(set(formats)) if kind in _LIBRARIES]
    return ", or ".join(["convert the photos to JPEG", *lines])


def lies_on_its_side(path: Path) -> bool:
    """Whether an image's EXIF orientation swaps its width and height."""
    with open_image(path) as image:
        # a PNG would be decoded to look for it
        return image.format != "PNG" and image.getexif().get(_ORIENTATION, 1) in _ON_ITS_SIDE


@lru_cache(maxsize=1)
def read_heif() -> bool:
    """Lets PIL open HEIC files where pillow-heif is installed; whether it does."""
    try:
        from pillow_heif import register_heif_opener
    except ImportError:
        return False
    register_heif_opener()
    return True


def same_shape(size: tuple[int, int], other: tuple[int, int]) -> bool:
    """Whether one (width, height) is another one scaled, to a pixel of rounding."""
    (w, h), (v, g) = size, other
    return abs(h - w * g / v) <= 1 or abs(w - h * v / g) <= 1


def is_path(text: object) -> bool:
    """Whether it is a text that may be the path of a file on any system; the empty one is."""
    if not isinstance(text, str):
        return False
    parts = text.replace("\\", "/").split("/")
    return len(text) < _LONGEST_PATH and all(len(os.fsencode(part)) <= _LONGEST_NAME for part in parts)


def plain_path(text: str) -> str:
    """A path that any system wrote, with slashes and without a drive's letter, `./` or doubled slashes."""
    return posixpath.normpath(re.sub(r"^[A-Za-z]:(?=[\\/])", "", text).replace("\\", "/"))


def find_images(root: Path, declared: Sequence[str], usual: Sequence[str] = PHOTO_FOLDERS) -> list[Path]:
    """Where the images lie that a file in `root` names; for one that is nowhere, where it ought to.

    A path that exists as it is written is taken. Else its folder is looked for under `root` by its longest tail (so
    that paths of another machine are found), whatever its case, and the image in there by its name, by its name
    whatever the case, or by its stem with another suffix (`.png` first for a name without one). Last come the `usual`
    folders, for bare names and paths of another machine. A folder is looked up once for all of its images, so that one
    that is missing is never taken from elsewhere. Raises InputError where several files may be the one meant.
    """
    found = {text: root / text for text in dict.fromkeys(declared) if (root / text).is_file()}
    whole = {posixpath.dirname(plain_path(text)) for text in found}
    wanted: dict[str, list[str]] = {}
    for text in dict.fromkeys(declared):
        if text not in found:
            wanted.setdefault(posixpath.dirname(plain_path(text)), []).append(text)
    for parent, texts in wanted.items():
        names = [posixpath.basename(plain_path(text)) for text in texts]
        folders = [root / parent] if parent in whole else _places(root, parent, usual)
        for folder in map(_Folder, folders):
            files = [folder.find(name) for name in names]
            if any(file is not None for file in files):
                found |= {t: folder.path / (file or name) for t, file, name in zip(texts, files, names, strict=True)}
                break
        else:
            found |= {text: root / _tail(plain_path(text)) for text in texts}
    return [found[text] for text in declared]


def renamed_images(root: Path, declared: Sequence[str], found: Sequence[Path], file: str) -> str | None:
    """The line that says which images are called otherwise than a scene's `file` says, but for `./` and a suffix that
    it leaves out; None where none is."""
    renamed = [
        f"{text} is {_below(path, root)}"
        for text, path in zip(declared, found, strict=True)
        if path.is_file() and _is_renamed(text, path, root)
    ]
    if not renamed:
        return None
    images = counted(len(renamed), "image has", "images have")
    return f"{images} another path than {file} gives (first: {renamed[0]})"


def _is_renamed(text: str, found: Path, root: Path) -> bool:
    if found == root / text:
        return False
    name, plain = _below(found, root), posixpath.normpath(text)
    return name not in (plain, f"{plain}{found.suffix}")


def _below(path: Path, root: Path) -> str:
    return Path(os.path.relpath(path, root)).as_posix()


def find_copies(photos: Sequence[Path], factor: int) -> list[Path]:
    """The smaller copies of photos: `…/images/a/b.JPG` → `…/images_4/a/b.JPG`, or `b.png`, whatever its case.

    Copies that LLFF numbered (`image000.png`, …) belong to the photos in the order of their names, where there is one
    for each. A copy that is not there has its photo's name.
    """
    folders: dict[Path, list[Path]] = {}
    for photo in dict.fromkeys(photos):
        parts = list(photo.parent.parts)
        if "images" in parts:
            last = len(parts) - 1 - parts[::-1].index("images")
            parts[last] = f"images_{factor}"
        folders.setdefault(Path(*parts), []).append(photo)
    copies: dict[Path, Path] = {}
    for path, members in folders.items():
        folder = _Folder(path)
        files = [folder.find(photo.name) for photo in members]
        if not any(files) and len(folder.names) == len(members) and all(map(_LLFF_COPY.match, folder.names)):
            copies |= {photo: path / file for photo, file in zip(sorted(members), folder.names, strict=True)}
        else:
            copies |= {photo: path / (file or photo.name) for photo, file in zip(members, files, strict=True)}
    return [copies[photo] for photo in photos]


def find_masks(root: Path, names: Sequence[str]) -> tuple[list[Path | None], str | None]:
    """The masks under `root` of frames by name, and one line about them where there are any.

    They lie in `masks/` or `mask/`, or in such a folder within the photos' own, that of `images/left/a.jpg` in
    `masks/left/` or in `masks/images/left/`; where there is no such folder, beside the photo. `mask_names` says how
    they are called; beside the photo only with `mask` in the name. Names without the photo's suffix count only where no
    other photo beside it has the same stem.
    """
    stems = Counter(_stem(name).casefold() for name in names)
    alone = [stems[_stem(name).casefold()] == 1 for name in names]
    tops = dict.fromkeys(name.partition("/")[0] for name in names if "/" in name and name[0] != ".")
    bases = [[], *([top] for top in tops)]
    folder = next(
        (
            path
            for base in bases
            for masks in MASK_FOLDERS
            if (path := folder_on_disk(root, [*base, masks])) is not None
        ),
        None,
    )
    folders: dict[Path, _Folder] = {}

    def first_in(places: Iterable[Path], wanted: Sequence[str]) -> Path | None:
        for place in places:
            if place not in folders:
                folders[place] = _Folder(place)
            files = folders[place].folded
            hit = next((files[one.casefold()][0] for one in wanted if one.casefold() in files), None)
            if hit is not None:
                return place / hit
        return None

    found = []
    for name, own in zip(names, alone, strict=True):
        parent, base = posixpath.split(name)
        if folder is None:
            places = [root / parent]
        else:
            places = [folder / inner for inner in dict.fromkeys((parent.partition("/")[2], parent))]
        found.append(first_in(places, mask_names(base, own, beside=folder is None)))
    count = sum(mask is not None for mask in found)
    where = "beside them" if folder is None else f"in {folder.name}/"
    if count:
        return found, f"{count} of {counted(len(names), 'photo')} with a mask {where}, which is used (white counts)"
    if folder is None:
        return found, None
    return found, f"no file {where} is called like a photo (a.png or a.jpg.png for a.jpg): no masks are used"


def mask_names(photo: str, alone: bool = True, beside: bool = False) -> list[str]:
    """What the mask of a photo may be called, the likeliest first; by its stem only where it is `alone` with that.

    `a.jpg.png` is COLMAP's way, `a.mask.png` and `a.jpg.mask.png` RealityScan's, `a_mask.png` Metashape's; any image
    format will do, PNG first. `beside` its photo a mask is one only by the word.
    """
    stem = posixpath.basename(_stem(photo))
    stems = [f"{photo}.mask", f"{photo}_mask"]
    if alone:
        stems += [] if beside else [stem]
        stems += [f"{stem}.mask", f"{stem}_mask", f"{stem}-mask", f"mask_{stem}"]
    names = [name + suffix for name in stems for suffix in _MASK_SUFFIXES]
    return names if beside else [*(photo + suffix for suffix in _MASK_SUFFIXES), photo, *names]


class _Folder:
    """The image files of one folder by name, by name whatever its case, and by stem; none where it does not exist."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            with os.scandir(path) as entries:
                images = (e for e in entries if Path(e.name).suffix.lower() in PHOTO_SUFFIXES and e.name[0] != ".")
                self.names = sorted(entry.name for entry in images if entry.is_file())
        except OSError:
            self.names = []
        self._known = set(self.names)
        self.folded: dict[str, list[str]] = {}
        self._stems: dict[str, list[str]] = {}
        for name in self.names:
            self.folded.setdefault(name.casefold(), []).append(name)
            self._stems.setdefault(Path(name).stem.casefold(), []).append(name)

    def find(self, name: str) -> str | None:
        """The file that is meant by a name, or None. InputError where it may be several."""
        if name in self._known:
            return name
        stem = _stem(name)
        files = self.folded.get(name.casefold()) or self._stems.get(stem.casefold(), [])
        files = [file for file in files if Path(file).stem == stem] or files
        if stem == name:  # without a suffix, Blender and instant-ngp mean .png
            files = [file for file in files if file.lower().endswith(".png")] or files
        if len(files) > 1:
            raise InputError(
                f"{self.path / name} does not exist, and any of {', '.join(files)} may be meant; write the whole name."
            )
        return files[0] if files else None


def _places(root: Path, parent: str, usual: Sequence[str]) -> list[Path]:
    """The folders under `root` that a folder's path may mean, the longest tail first."""
    parts = [part for part in parent.split("/") if part not in ("", ".", "..")]
    tails = [parts[i:] for i in range(len(parts) + 1)]
    if not parts or parent.startswith("/"):
        tails += [[folder] for folder in usual]
    found = (folder_on_disk(root, tail) for tail in tails)
    return list(dict.fromkeys(folder for folder in found if folder is not None))


def folder_on_disk(root: Path, parts: Sequence[str]) -> Path | None:
    """The folder below `root`, whatever the case of its name; None where there is none, or several."""
    for part in parts:
        if (root / part).is_dir():
            root = root / part
            continue
        if not root.is_dir():
            return None
        alike = [one for one in root.iterdir() if one.name.casefold() == part.casefold() and one.is_dir()]
        if len(alike) != 1:
            return None
        root = alike[0]
    return root


def _tail(path: str) -> str:
    """Where in a scene's folder an image of another machine ought to be: from its `images` on; others as they are."""
    if not path.startswith("/"):
        return path
    parts = path.strip("/").split("/")
    last = len(parts) - 1 - parts[::-1].index("images") if "images" in parts[:-1] else 0
    return "/".join(parts[last:])


def _stem(name: str) -> str:
    """A name without an image's suffix; `frame.0001` has none."""
    suffix = posixpath.splitext(name)[1]
    return name[: -len(suffix)] if suffix.lower() in PHOTO_SUFFIXES else name


def _brand(path: Path) -> str | None:
    """The name of a format that PIL reads only with its library, by the file's first bytes."""
    try:
        with path.open("rb") as file:
            head = file.read(12)
    except OSError:
        return None
    return _BRANDS.get(head[8:12]) if head[4:8] == b"ftyp" else None


def _is_decoded(kind: str) -> bool:
    return read_heif() if kind == "HEIC" else bool(features.check("avif"))
