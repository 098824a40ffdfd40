"""Training pairs on disk: manifests (the release's `data.json`, with or without our curation's keys) and tars.

Nothing is decoded before it is needed: what is known of a pair beforehand is its files and their headers.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import count, islice, takewhile
from pathlib import Path
from typing import IO, Any, Literal, NamedTuple

import numpy as np
import torch

from difixcli.errors import InputError, short
from difixcli.fixer.correspondence import resized
from difixcli.images import as_planes
from difixcli.runs import Openable, open_image, read_image, read_json, unreadable
from difixcli.shapes import Each, fault_of, parsed
from difixcli.training.pair_lists import Entries, Joined
from difixcli.training.sources import pair_files
from difixcli.training.tars import members_by_key

SMALLEST = 16  # pixels of a render's shorter side

LOOKED_AT = 2000
"""Pairs whose headers are looked at before a training begins, at most."""

_STRETCH = 1.03  # how far a photo's shape may differ from its render's
_LEFT_OUT = 0.1  # share of the pairs that may be smaller than the crop
_HEADER = 4096  # bytes of an array's file beyond its values, at most
References = Literal["raw", "aligned", "geometry"]
Reader = Callable[..., np.ndarray]
"""Reads one of a pair's pictures as bytes, with its alpha where that is asked for."""


Picture = str | Openable
"""A path, as text because sets of pairs are large, or what else opens like one."""


@dataclass(frozen=True, slots=True)
class PairFiles:
    """One pair's images. `aligned` are RGBA (colour and visibility); `references` raw photos, with
    `correspondence` an .npz of which places of theirs the render's pixels show.

    `size` is the render's (height, width) and `recorded` the number of bytes and the hash of every file, where curation
    has written them down: they are believed, and a file is looked at only when it is read.
    """

    id: str
    render: Picture
    target: Picture
    references: tuple[Picture, ...]
    aligned: tuple[Picture, ...]
    opacity: Picture | None
    size: tuple[int, int] | None = None
    recorded: Mapping[str, tuple[int, str]] = field(default_factory=dict)
    correspondence: Picture | None = None


@dataclass
class PairSet:
    """Pairs of one or more manifests, by their ids. `dropped` says for every unusable pair why it is not used."""

    train: Joined[PairFiles] = field(default_factory=Joined)
    test: Joined[PairFiles] = field(default_factory=Joined)
    dropped: dict[str, str] = field(default_factory=dict)
    _hash: Any = field(default_factory=hashlib.sha256)

    @property
    def fingerprint(self) -> str:
        """A short hash of the manifests' entries, wherever the folders lie."""
        return str(self._hash.hexdigest()[:16])

    def note(self, digests: Iterable[bytes]) -> None:
        """Let entries count for the fingerprint, by their digests."""
        for digest in digests:
            self._hash.update(digest)


def read_manifests(sources: Sequence[Path]) -> PairSet:
    """Read pair folders (with a `data.json`, or with tars), `data.json` files or single tars in the order given.

    Paths in a manifest are relative to its folder, else to the current directory as the release has them, or absolute.
    Tars are read where they stand, and their pairs come in the order in which a manifest of the same pairs would list
    them. Whether the images are there and whole is not looked at (`inspect_pairs`). Raises InputError when a manifest
    is missing or no manifest, or a tar is damaged.
    """
    pairs = PairSet()
    for source in sources:
        files = pair_files(source)
        if files[0].suffix == ".tar":
            _read_tars(files, pairs)
        else:
            _read_manifest(files[0], pairs)
    return pairs


def _read_manifest(file: Path, pairs: PairSet) -> None:
    folder = str(file.parent)
    splits = {split: _Split(folder) for split in ("train", "test")}
    for split, key, entry in manifest_entries(file):
        into = splits[split]
        into.digests[key] = hashlib.sha256(json.dumps([split, key, entry], sort_keys=True).encode()).digest()
        try:
            known = _known_of(key, entry)
        except ValueError as error:
            pairs.dropped[f"{file}: {short(key)}"] = short(str(error), 300)
            continue
        into.keys.append(key)
        into.entries.append(known)
    for split, found in splits.items():
        pairs.note(found.digests[key] for key in sorted(found.digests))
        order = sorted(range(len(found.keys)), key=found.keys.__getitem__)
        (pairs.train if split == "train" else pairs.test).add(Joined([found.entries], np.array(order, np.int64)))


class _Split:
    """What was read of a manifest's split, in the file's order."""

    def __init__(self, folder: str) -> None:
        self.keys: list[str] = []
        self.digests: dict[str, bytes] = {}
        self.entries: Entries[PairFiles] = Entries(lambda known: _pair_of(known, folder))


def manifest_entries(file: Path) -> Iterator[tuple[str, str, Any]]:
    """Split, key and entry of every pair; of a manifest with a line a pair, as curation writes them, one at a time.

    Raises InputError where the file is missing or no manifest.
    """
    lines = _lines(file)
    if next(lines, None) is None:
        yield from _whole_manifest(file)
        return
    split, told = "train", 0
    for line in lines:
        if line in _BETWEEN:
            split = "test"
        elif line != _END:
            try:
                [(key, entry)] = parsed("{" + line.removesuffix(",") + "}", file).items()
            except (InputError, ValueError):  # whole JSON may have its lines elsewhere
                yield from islice(_whole_manifest(file), told, None)
                return
            yield split, key, entry
            told += 1


def _whole_manifest(file: Path) -> Iterator[tuple[str, str, Any]]:
    """Split, key and entry of every pair of a manifest that is read at once."""
    manifest = read_json(file)
    if not isinstance(manifest, dict) or not isinstance(manifest.get("train"), dict):
        raise InputError(f'{file} is no manifest of pairs: it needs an object "train" of pairs by their id.')
    for split in ("train", "test"):
        entries = manifest.get(split) or {}
        if not isinstance(entries, dict):
            raise InputError(f'{file}: "{split}" must be an object of pairs by their id.')
        yield from ((split, key, entry) for key, entry in entries.items())


_FIRST, _BETWEEN, _END = '{"train": {', ('}, "test": {', '"test": {'), "}}"


def _lines(file: Path) -> Iterator[str]:
    """The lines of a manifest of a line a pair, its first one first; nothing for another or none."""
    try:
        with file.open(encoding="utf-8") as opened:
            first = opened.readline(100).strip()
            last = deque(opened, maxlen=1)
            if first != _FIRST or not last or last[0].strip() != _END:
                return
    except (OSError, UnicodeDecodeError):  # whoever reads it whole says what is wrong
        return
    with file.open(encoding="utf-8") as opened:
        for line in opened:
            yield line.strip()


def _read_tars(tars: Sequence[Path], pairs: PairSet) -> None:
    for split, into in (("train", pairs.train), ("test", pairs.test)):
        chosen = [tar for tar in tars if (tar.parent.name == "test") == (split == "test")]
        found = {key: members for tar in chosen for key, members in members_by_key(tar).items()}
        made = []
        for key in sorted(found):
            sizes = {name: member.size for name, member in found[key].items()}
            pairs.note([hashlib.sha256(json.dumps([split, key, sizes], sort_keys=True).encode()).digest()])
            try:
                made.append(pair_of_members(key, found[key]))
            except ValueError as error:
                pairs.dropped[key] = str(error)
        into.add(made)


def pair_of_members(key: str, members: Mapping[str, Openable]) -> PairFiles:
    """The pair of a tar's sample, its members by name without suffix; ValueError for one that is incomplete."""
    if "image" not in members or "target_image" not in members:
        raise ValueError("has no image or no target_image")

    def numbered(name: str) -> tuple[Openable, ...]:
        keys = takewhile(members.__contains__, (f"{name}_{i}" for i in count()))
        return tuple(members[key] for key in keys)

    return PairFiles(
        id=key,
        render=members["image"],
        target=members["target_image"],
        references=numbered("ref_image"),
        aligned=numbered("aligned_ref"),
        opacity=members.get("opacity"),
        correspondence=members.get("correspondence"),
    )


def _known_of(key: str, entry: Any) -> list[Any]:
    """What is kept of a manifest's entry; ValueError for one that is no pair."""
    if (fault := fault_of(entry, _PAIR)) is not None:
        raise ValueError(fault)
    raw = entry.get("ref_images") or [r for r in (entry.get("ref_image"),) if r]
    names = [entry.get("image"), entry.get("target_image"), *raw, *(entry.get("aligned_refs") or ())]
    for value in names:
        if not isinstance(value, str):
            raise ValueError(f"has no file name where one is needed ({value!r})")
    opacity = entry.get("opacity") or None
    files, camera = entry.get("files"), entry.get("camera")
    recorded = size = None
    if files is not None and camera is not None:
        recorded = [files[name] for name in (*names, *([opacity] if opacity else [])) if name in files]
        size = [camera["height"], camera["width"]] if len(recorded) == len(names) + bool(opacity) else None
    return [key, names, len(raw), opacity, size, recorded if size else None, entry.get("correspondence") or None]


def pair_of_entry(key: str, entry: Any, folder: Path) -> PairFiles:
    """The files of an entry of a manifest that is in `folder`; ValueError for one that is no pair."""
    return _pair_of(_known_of(key, entry), str(folder))


def _pair_of(known: list[Any], folder: str) -> PairFiles:
    """A pair of what is kept of it. Nothing is looked at where curation wrote down what there is."""
    key, names, raw, opacity, size, recorded, places = known

    def placed(value: str) -> str:
        path = os.path.join(folder, value)  # an absolute value replaces the folder
        return value if recorded is None and not os.path.isfile(path) and os.path.isfile(value) else path

    paths = [placed(name) for name in names]
    mask = placed(opacity) if opacity else None
    facts = dict(zip([*paths, *([mask] if mask else [])], map(tuple, recorded or ()), strict=False))
    return PairFiles(
        key,
        paths[0],
        paths[1],
        tuple(paths[2 : 2 + raw]),
        tuple(paths[2 + raw :]),
        mask,
        size and tuple(size),
        facts,
        placed(places) if places else None,
    )


_PAIR = {
    "ref_images?": (None, [str]),
    "ref_image?": (None, str),
    "aligned_refs?": (None, [str]),
    "opacity?": (None, str),
    "correspondence?": (None, str),
    "files?": (None, Each([object])),
    "camera?": (None, {"height?": int, "width?": int}),
}


class Inspection(NamedTuple):
    """What the headers of a set's images say: why pairs (by position) cannot be used, the crop the rest allow, and the
    middle one of their shorter sides in pixels (0 where none is known).
    """

    dropped: dict[int, str]
    crop: int
    side: int = 0


def inspect_pairs(files: Sequence[PairFiles], crop: int, multiple: int) -> Inspection:
    """Look at the headers of renders and photos, and whether the other files are there, where curation has not said.

    Of more than `LOOKED_AT` pairs of which it has not, so many are looked at, evenly spread; the others' headers are
    looked at when they are read, and those that do not fit are skipped then. The crop is the asked one (0 for whole
    frames, which any size makes), or, a multiple of `multiple`, what nine tenths of the pairs are large enough for; the
    smaller ones are dropped. It is the same at every step, because whoever trains beside us must agree about it.
    """
    dropped: dict[int, str] = {}
    sides: dict[int, int] = {}
    stride = max(1, -(-len(files) // LOOKED_AT))
    for i, pair in enumerate(files):
        if pair.size is None and i % stride:
            continue
        try:
            sides[i] = _shorter_side(pair) if pair.size is None else min(pair.size)
        except (InputError, ValueError) as error:
            dropped[i] = short(str(error), 300)
    if sides and crop:
        fitting = sorted(sides.values())[int(_LEFT_OUT * len(sides))]
        crop = min(crop, max(fitting // multiple, 1) * multiple)
    for i, side in sides.items():
        if side < crop:
            dropped[i] = f"{files[i].render} is smaller than the crops of {crop} pixels"
    return Inspection(dropped, crop, sorted(sides.values())[len(sides) // 2] if sides else 0)


def _shorter_side(pair: PairFiles) -> int:
    """Of the render; ValueError or InputError for a pair that cannot be used."""
    height, width = _header(pair.render)
    if min(height, width) < SMALLEST:
        raise ValueError(f"{pair.render} is smaller than {SMALLEST} pixels")
    _check_shape(pair.target, _header(pair.target), (height, width), _STRETCH)
    for other in (*pair.references, *pair.aligned, pair.opacity, pair.correspondence):
        if isinstance(other, str) and not os.path.isfile(other):  # Path's raises for a name that is too long
            raise ValueError(f"{other} is missing")
    return min(height, width)


def _header(picture: Picture) -> tuple[int, int]:
    """Height and width of an image that is not decoded."""
    opener = _opener(picture)
    if isinstance(opener, Path) and not os.path.exists(opener):
        raise ValueError(f"{picture} is missing")
    with open_image(opener) as opened:
        return opened.height, opened.width


def _check_shape(picture: Picture, size: tuple[int, int], render: tuple[int, int], stretch: float) -> None:
    ratio = (size[1] / size[0]) / (render[1] / render[0])
    if max(ratio, 1 / ratio) > stretch:
        raise ValueError(
            f"{picture} is {size[1]}×{size[0]} pixels, another shape than the render's {render[1]}×{render[0]}"
        )


class Loaded(NamedTuple):
    """A decoded pair, 8 bits a channel, and its places; the same layout as `synthetic.Sample`."""

    render: np.ndarray  # (H, W, 3)
    target: np.ndarray  # (H, W, 3)
    references: np.ndarray  # (V, H, W, 3)
    visibility: np.ndarray  # (V, H, W), all 255 for raw references
    opacity: np.ndarray  # (H, W)
    correspondence: np.ndarray | None = None  # (V, 3, H, W) float32, where references are wanted with their geometry


class PairStore:
    """Pairs that are decoded when they are asked for, and kept as long as they fit into `cache_mib`.

    References are brought to the kind the fixer wants: raw ones to the render's size, with geometry also what curation
    wrote of their places (where it wrote none, none is known), aligned ones as curation wrote them, or registered by
    optical flow where a manifest has only raw ones.
    """

    def __init__(
        self,
        files: Sequence[PairFiles],
        kind: References,
        views: int,
        cache_mib: float = 512,
        frame: tuple[int, int] | None = None,
    ) -> None:
        self.files, self.kind, self.views, self.frame = files, kind, views, frame
        self._kept: dict[int, Loaded] = {}
        self._free = cache_mib * 2**20

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> Loaded:
        """The decoded pair; InputError or ValueError when it cannot be read."""
        if index in self._kept:
            return self._kept[index]
        loaded = decode(self.files[index], self.kind, self.views, self.frame)
        size = sum(part.nbytes for part in loaded if part is not None)
        if size <= self._free:
            self._kept[index] = loaded
            self._free -= size
        return loaded

    def references(self, index: int) -> int:
        """How many references the pair has, without decoding it."""
        pair = self.files[index]
        there = pair.aligned if self.kind == "aligned" and pair.aligned else pair.references
        return min(len(there), self.views)


def decode(pair: PairFiles, kind: References, views: int, frame: tuple[int, int] | None = None) -> Loaded:
    """Read a pair with at most `views` references; InputError or ValueError when it cannot be read.

    With a `frame` (height, width) all of its images are stretched to that, each from its own pixels, as the release
    does; aligned references and opacity with the render.
    """

    def read(picture: Picture, alpha: bool = False) -> np.ndarray:
        return _pixels(picture, alpha, pair.recorded.get(picture) if isinstance(picture, str) else None)

    render = read(pair.render)
    height, width = render.shape[:2]
    if min(height, width) < SMALLEST:
        raise ValueError(f"{pair.render} is smaller than {SMALLEST} pixels")
    if frame is not None and kind != "aligned":  # from the photo's own pixels
        photo = read(pair.target)
        _check_shape(pair.target, (photo.shape[0], photo.shape[1]), (height, width), _STRETCH)
        target = resized_bytes(photo, *frame)
    else:
        target = _photo(pair.target, height, width, _STRETCH, read)
    opacity = np.full((height, width), 255, np.uint8)
    if pair.opacity is not None:
        opacity = read(pair.opacity).mean(axis=-1).astype(np.uint8)
        if opacity.shape != (height, width):
            raise ValueError(f"{pair.opacity} has another size than its render")
    if frame is not None and kind != "aligned":
        photos = [resized_bytes(read(picture), *frame) for picture in pair.references[:views]]
        references = np.stack(photos) if photos else np.zeros((0, *frame, 3), np.uint8)
        visibility = np.full(references.shape[:3], 255, np.uint8)
    else:
        references, visibility = _references(pair, render, kind, views, read)
    places = _places(pair, (len(references), 3, height, width)) if kind == "geometry" else None
    loaded = Loaded(render, target, references, visibility, opacity, places)
    return loaded if frame is None else _stretched(loaded, frame)


def _stretched(pair: Loaded, frame: tuple[int, int]) -> Loaded:
    """A decoded pair, aligned with its render, at another size."""
    references = [resized_bytes(view, *frame) for view in pair.references]
    visibility = [resized_bytes(view, *frame) for view in pair.visibility]
    return Loaded(
        resized_bytes(pair.render, *frame),
        resized_bytes(pair.target, *frame),
        np.stack(references) if references else np.zeros((0, *frame, 3), np.uint8),
        np.stack(visibility) if visibility else np.zeros((0, *frame), np.uint8),
        resized_bytes(pair.opacity, *frame),
        None if pair.correspondence is None else resized(torch.from_numpy(pair.correspondence), frame).numpy(),
    )


def resized_bytes(pixels: np.ndarray, height: int, width: int) -> np.ndarray:
    """(H, W) or (H, W, C) uint8 at another size: antialiased bilinear, as the release's data set does it."""
    from PIL import Image

    if pixels.shape[:2] == (height, width):
        return pixels
    return np.asarray(Image.fromarray(pixels).resize((width, height), Image.Resampling.BILINEAR))


def _references(
    pair: PairFiles, render: np.ndarray, kind: References, views: int, read: Reader
) -> tuple[np.ndarray, np.ndarray]:
    height, width = render.shape[:2]
    if not views:
        return np.zeros((0, height, width, 3), np.uint8), np.zeros((0, height, width), np.uint8)
    if kind == "aligned" and pair.aligned:
        opened = [read(picture, True) for picture in pair.aligned[:views]]
        for picture, layer in zip(pair.aligned, opened, strict=False):
            if layer.shape[:2] != (height, width):
                raise ValueError(f"{picture} has another size than its render")
        layers = np.stack(opened)
        return np.ascontiguousarray(layers[..., :3]), np.ascontiguousarray(layers[..., 3])
    # a reference may come from another lens; the release stretches it to the render's shape too
    photos = [_photo(picture, height, width, 4, read) for picture in pair.references[:views]]
    if not photos:
        return np.zeros((0, height, width, 3), np.uint8), np.zeros((0, height, width), np.uint8)
    stacked = np.stack(photos)
    if kind != "aligned":
        return stacked, np.full(stacked.shape[:3], 255, np.uint8)
    from difixcli.fixer.alignment import register_references

    beside = torch.cat([as_planes(unit(photo)) for photo in stacked])
    aligned, visible = register_references(as_planes(unit(render)), beside[None])
    return _bytes(aligned[0].permute(0, 2, 3, 1).numpy()), _bytes(visible[0, :, 0].numpy())


def _places(pair: PairFiles, wanted: tuple[int, int, int, int]) -> np.ndarray:
    """(V, 3, H, W) as wanted, all 0 where the pair knows no places; ValueError for broken ones."""
    views, _, height, width = wanted
    if pair.correspondence is None or not views:
        return np.zeros(wanted, np.float32)
    most = 4 * len(pair.references) * 3 * height * width + _HEADER
    try:
        with _opener(pair.correspondence).open("rb") as file, np.load(file, allow_pickle=False) as held:
            if held.zip.getinfo("correspondence.npy").file_size > most:
                raise ValueError("it is larger than its pair")
            values = held["correspondence"]
    except Exception as error:  # numpy and zipfile raise many kinds for a damaged file
        raise ValueError(
            f"{pair.correspondence} holds no places of the pair's references ({short(str(error))})"
        ) from error
    fits = values.ndim == 4 and values.shape[0] >= views and values.shape[1:] == wanted[1:]
    if not fits or values.dtype != np.float32 or not np.isfinite(values).all():
        raise ValueError(f"{pair.correspondence} does not hold float32 places {wanted} of the pair's references")
    return values[:views]


def _photo(picture: Picture, height: int, width: int, stretch: float, read: Reader) -> np.ndarray:
    """A photo at the render's size, area-averaged; ValueError when its shape differs by more than `stretch`."""
    photo = read(picture)
    if photo.shape[:2] == (height, width):
        return photo
    _check_shape(picture, (photo.shape[0], photo.shape[1]), (height, width), stretch)
    import cv2

    return cv2.resize(photo, (width, height), interpolation=cv2.INTER_AREA)


def _pixels(picture: Picture, alpha: bool = False, recorded: tuple[int, str] | None = None) -> np.ndarray:
    """(H, W, 3 or 4) uint8, as `read_image` would have it; ValueError where the file is not the one recorded.

    Images of floats may hold what is no number, which no training should see.
    """
    opener = _opener(picture)
    if recorded is not None:
        opener = _recorded(Path(str(picture)), recorded)
    with open_image(opener) as image:
        if image.mode in _EIGHT_BITS:
            image.load()
            transparent = "A" in image.getbands() or "transparency" in image.info
            pixels = np.asarray(image.convert("RGBA" if transparent else "RGB"))
            if transparent and not alpha:
                return ((pixels[..., :3].astype(np.uint32) * pixels[..., 3:] * 2 + 255) // 510).astype(np.uint8)
            if alpha and not transparent:
                return np.pad(pixels, ((0, 0), (0, 0), (0, 1)), constant_values=255)
            return pixels
    values = read_image(opener, alpha=alpha)
    if not np.isfinite(values).all():
        raise ValueError(f"{picture} holds pixels that are not numbers")
    return _bytes(values)


_EIGHT_BITS = frozenset({"1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK", "YCbCr", "HSV", "LAB"})


def _recorded(path: Path, recorded: tuple[int, str]) -> Held:
    """A file's bytes, once they are those that curation wrote down."""
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        raise ValueError(f"{path} is missing") from None
    except OSError as error:
        raise unreadable(path, error) from error
    if len(content) != recorded[0] or hashlib.sha256(content).hexdigest()[: len(recorded[1])] != recorded[1]:
        raise ValueError(f"{path} has changed since it was curated; run difix curate again")
    return Held(content, str(path))


class Held:
    """A file's bytes; opens as a path does."""

    def __init__(self, content: bytes, name: str) -> None:
        self.content, self.name = content, name

    def open(self, mode: Literal["rb"]) -> IO[bytes]:
        return io.BytesIO(self.content)

    def __str__(self) -> str:
        return self.name


def _opener(picture: Picture) -> Openable:
    return Path(picture) if isinstance(picture, str) else picture


def unit(values: np.ndarray) -> np.ndarray:
    """8-bit values as float32 in [0, 1]; floats as they are."""
    return values.astype(np.float32) * np.float32(1 / 255) if values.dtype == np.uint8 else values


def _bytes(values: np.ndarray) -> np.ndarray:
    return (np.clip(values, 0, 1) * 255 + 0.5).astype(np.uint8)
