"""Training pairs on disk: manifests (the release's `data.json`, with or without our curation's keys) and tars.

Nothing is decoded before it is needed: what is known of a pair beforehand is its files and their headers.
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import count, takewhile
from pathlib import Path
from typing import IO, Any, Literal, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

from difixcli.errors import InputError, short
from difixcli.runs import open_image, read_image, read_json
from difixcli.shapes import fault_of
from difixcli.training.tars import members_by_key

SMALLEST = 16  # pixels of a render's shorter side

_STRETCH = 1.03  # how far a photo's shape may differ from its render's
_LEFT_OUT = 0.1  # share of the pairs that may be smaller than the crop
References = Literal["raw", "aligned"]


class Openable(Protocol):
    """A file's content that can be opened, and names itself."""

    def open(self, mode: Literal["rb"]) -> IO[bytes]: ...


Picture = str | Openable
"""A path, as text because sets of pairs are large, or what else opens like one."""


@dataclass(frozen=True, slots=True)
class PairFiles:
    """One pair's images. `aligned` are RGBA (colour and visibility); `references` raw photos."""

    id: str
    render: Picture
    target: Picture
    references: tuple[Picture, ...]
    aligned: tuple[Picture, ...]
    opacity: Picture | None


@dataclass
class PairSet:
    """Pairs of one or more manifests. `dropped` says for every unusable pair why it is not used."""

    train: list[PairFiles] = field(default_factory=list)
    test: list[PairFiles] = field(default_factory=list)
    dropped: dict[str, str] = field(default_factory=dict)
    _hash: Any = field(default_factory=hashlib.sha256)

    @property
    def fingerprint(self) -> str:
        """A short hash of the manifests' entries, wherever the folders lie."""
        return str(self._hash.hexdigest()[:16])

    def note(self, split: str, key: str, entry: Any) -> None:
        """Let an entry count for the fingerprint."""
        self._hash.update(json.dumps([split, key, entry], sort_keys=True).encode())


def pair_files(source: Path) -> list[Path]:
    """What holds the pairs of a folder: its `data.json`, else the tars in its `train` and `test`; a file is itself.

    Raises InputError for a folder that has neither, and for what is not there.
    """
    if not source.exists():
        raise InputError(f"There are no pairs {source}; name a folder that difix curate made, its data.json or a tar.")
    if not source.is_dir():
        return [source]
    if (source / "data.json").is_file():
        return [source / "data.json"]
    tars = [tar for split in ("train", "test") for tar in sorted((source / split).glob("*.tar"))]
    if not tars:
        raise InputError(
            f"{source} holds neither a data.json nor tars in train/; name a folder that difix curate has finished "
            "(shards need difix curate --merge)."
        )
    return tars


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
    manifest = read_json(file)
    if not isinstance(manifest, dict) or not isinstance(manifest.get("train"), dict):
        raise InputError(f'{file} is no manifest of pairs: it needs an object "train" of pairs by their id.')
    for split, into in (("train", pairs.train), ("test", pairs.test)):
        entries = manifest.get(split) or {}
        if not isinstance(entries, dict):
            raise InputError(f'{file}: "{split}" must be an object of pairs by their id.')
        for key in sorted(entries):
            pairs.note(split, key, entries[key])
            try:
                into.append(read_manifest_entry(key, entries[key], file.parent))
            except (ValueError, OSError) as error:  # names that no file can have
                pairs.dropped[f"{file}: {short(key)}"] = short(str(error), 300)


def _read_tars(tars: Sequence[Path], pairs: PairSet) -> None:
    for split, into in (("train", pairs.train), ("test", pairs.test)):
        chosen = [tar for tar in tars if (tar.parent.name == "test") == (split == "test")]
        found = {key: members for tar in chosen for key, members in members_by_key(tar).items()}
        for key in sorted(found):
            pairs.note(split, key, {name: member.size for name, member in found[key].items()})
            try:
                into.append(pair_of_members(key, found[key]))
            except ValueError as error:
                pairs.dropped[key] = str(error)


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
    )


def read_manifest_entry(key: str, entry: Any, folder: Path) -> PairFiles:
    """The files of a manifest's entry, the manifest being in `folder`; ValueError for one of another shape."""
    if (fault := fault_of(entry, _PAIR)) is not None:
        raise ValueError(fault)

    def placed(value: Any) -> str:
        if not isinstance(value, str):
            raise ValueError(f"has no file name where one is needed ({value!r})")
        path = folder / value  # an absolute value replaces the folder
        if not path.is_file() and Path(value).is_file():
            path = Path(value)
        return sys.intern(str(path))  # a photo stands in many pairs

    raw = entry.get("ref_images") or [r for r in (entry.get("ref_image"),) if r]
    return PairFiles(
        id=key,
        render=placed(entry.get("image")),
        target=placed(entry.get("target_image")),
        references=tuple(placed(value) for value in raw),
        aligned=tuple(placed(value) for value in entry.get("aligned_refs") or ()),
        opacity=placed(entry["opacity"]) if entry.get("opacity") else None,
    )


_PAIR = {
    "ref_images?": (None, [str]),
    "ref_image?": (None, str),
    "aligned_refs?": (None, [str]),
    "opacity?": (None, str),
}


class Inspection(NamedTuple):
    """What the headers of a set's images say: why pairs (by position) cannot be used, and the crop the rest allow."""

    dropped: dict[int, str]
    crop: int


def inspect_pairs(files: Sequence[PairFiles], crop: int, multiple: int) -> Inspection:
    """Look at the headers of renders and photos, and whether the other files are there.

    The crop is the asked one, or, a multiple of `multiple`, what nine tenths of the pairs are large enough for; the
    smaller ones are dropped. It is the same at every step, because whoever trains beside us must agree about it.
    """
    dropped: dict[int, str] = {}
    sides: dict[int, int] = {}
    for i, pair in enumerate(files):
        try:
            sides[i] = _shorter_side(pair)
        except (InputError, ValueError) as error:
            dropped[i] = str(error)
    if sides:
        fitting = sorted(sides.values())[int(_LEFT_OUT * len(sides))]
        crop = min(crop, max(fitting // multiple, 1) * multiple)
    for i, side in sides.items():
        if side < crop:
            dropped[i] = f"{files[i].render} is smaller than the crops of {crop} pixels"
    return Inspection(dropped, crop)


def _shorter_side(pair: PairFiles) -> int:
    """Of the render; ValueError or InputError for a pair that cannot be used."""
    height, width = _header(pair.render)
    if min(height, width) < SMALLEST:
        raise ValueError(f"{pair.render} is smaller than {SMALLEST} pixels")
    _check_shape(pair.target, _header(pair.target), (height, width), _STRETCH)
    for other in (*pair.references, *pair.aligned, *([pair.opacity] if pair.opacity else [])):
        if isinstance(other, str) and not Path(other).is_file():
            raise ValueError(f"{other} is missing")
    return min(height, width)


def _header(picture: Picture) -> tuple[int, int]:
    """Height and width of an image that is not decoded."""
    opener = _opener(picture)
    if isinstance(opener, Path) and not opener.exists():
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
    """A decoded pair, 8 bits a channel; the same layout as `synthetic.Sample`."""

    render: np.ndarray  # (H, W, 3)
    target: np.ndarray  # (H, W, 3)
    references: np.ndarray  # (V, H, W, 3)
    visibility: np.ndarray  # (V, H, W), all 255 for raw references
    opacity: np.ndarray  # (H, W)


class PairStore:
    """Pairs that are decoded when they are asked for, and kept as long as they fit into `cache_mib`.

    References are brought to the kind the fixer wants: raw ones to the render's size, aligned ones as curation wrote
    them, or registered by optical flow where a manifest has only raw ones.
    """

    def __init__(self, files: Sequence[PairFiles], kind: References, views: int, cache_mib: float = 512) -> None:
        self.files, self.kind, self.views = list(files), kind, views
        self._kept: dict[int, Loaded] = {}
        self._free = cache_mib * 2**20

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> Loaded:
        """The decoded pair; InputError or ValueError when it cannot be read."""
        if index in self._kept:
            return self._kept[index]
        loaded = decode(self.files[index], self.kind, self.views)
        size = sum(part.nbytes for part in loaded)
        if size <= self._free:
            self._kept[index] = loaded
            self._free -= size
        return loaded

    def references(self, index: int) -> int:
        """How many references the pair has, without decoding it."""
        pair = self.files[index]
        there = pair.aligned if self.kind == "aligned" and pair.aligned else pair.references
        return min(len(there), self.views)


def decode(pair: PairFiles, kind: References, views: int) -> Loaded:
    """Read a pair with at most `views` references; InputError or ValueError when it cannot be read."""
    render = _pixels(pair.render)
    height, width = render.shape[:2]
    if min(height, width) < SMALLEST:
        raise ValueError(f"{pair.render} is smaller than {SMALLEST} pixels")
    target = _photo(pair.target, height, width, _STRETCH)
    opacity = np.full((height, width), 255, np.uint8)
    if pair.opacity is not None:
        opacity = _pixels(pair.opacity).mean(axis=-1).astype(np.uint8)
        if opacity.shape != (height, width):
            raise ValueError(f"{pair.opacity} has another size than its render")
    references, visibility = _references(pair, render, kind, views)
    return Loaded(render, target, references, visibility, opacity)


def _references(pair: PairFiles, render: np.ndarray, kind: References, views: int) -> tuple[np.ndarray, np.ndarray]:
    height, width = render.shape[:2]
    if not views:
        return np.zeros((0, height, width, 3), np.uint8), np.zeros((0, height, width), np.uint8)
    if kind == "aligned" and pair.aligned:
        read = [_pixels(picture, alpha=True) for picture in pair.aligned[:views]]
        for picture, layer in zip(pair.aligned, read, strict=False):
            if layer.shape[:2] != (height, width):
                raise ValueError(f"{picture} has another size than its render")
        layers = np.stack(read)
        return np.ascontiguousarray(layers[..., :3]), np.ascontiguousarray(layers[..., 3])
    # a reference may come from another lens; the release stretches it to the render's shape too
    photos = [_photo(picture, height, width, stretch=4) for picture in pair.references[:views]]
    if not photos:
        return np.zeros((0, height, width, 3), np.uint8), np.zeros((0, height, width), np.uint8)
    stacked = np.stack(photos)
    if kind == "raw":
        return stacked, np.full(stacked.shape[:3], 255, np.uint8)
    from difixcli.fixer.alignment import register_references

    aligned, visible = register_references(_planar(render[None]), _planar(stacked)[None])
    return _bytes(aligned[0].permute(0, 2, 3, 1).numpy()), _bytes(visible[0, :, 0].numpy())


def _photo(picture: Picture, height: int, width: int, stretch: float) -> np.ndarray:
    """A photo at the render's size, area-averaged; ValueError when its shape differs by more than `stretch`."""
    photo = _pixels(picture)
    if photo.shape[:2] == (height, width):
        return photo
    _check_shape(picture, (photo.shape[0], photo.shape[1]), (height, width), stretch)
    import cv2

    return cv2.resize(photo, (width, height), interpolation=cv2.INTER_AREA)


def _pixels(picture: Picture, alpha: bool = False) -> np.ndarray:
    """(H, W, 3 or 4) uint8; images of floats may hold what is no number, which no training should see."""
    values = read_image(_opener(picture), alpha=alpha)
    if not np.isfinite(values).all():
        raise ValueError(f"{picture} holds pixels that are not numbers")
    return _bytes(values)


def _opener(picture: Picture) -> Openable:
    return Path(picture) if isinstance(picture, str) else picture


def unit(values: np.ndarray) -> np.ndarray:
    """8-bit values as float32 in [0, 1]; floats as they are."""
    return values.astype(np.float32) * np.float32(1 / 255) if values.dtype == np.uint8 else values


def _bytes(values: np.ndarray) -> np.ndarray:
    return (np.clip(values, 0, 1) * 255 + 0.5).astype(np.uint8)


def _planar(images: np.ndarray) -> Tensor:
    """(N, H, W, 3) uint8 → (N, 3, H, W) float32 in [0, 1]."""
    return torch.from_numpy(unit(images)).permute(0, 3, 1, 2).contiguous()
