"""Training pairs: from manifests (the release's `data.json`, with or without the keys our curation adds) and tars."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import count, takewhile
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from difixcli.errors import InputError
from difixcli.runs import read_image, read_json
from difixcli.training.synthetic import PhotoPairs, Sample
from difixcli.training.tars import Member, members_by_key

_PHOTOS_HELD = 256
References = Literal["raw", "aligned"]
Picture = Path | Member


@dataclass(frozen=True)
class PairFiles:
    """One pair's images: files that exist, or members of a tar. `aligned` are RGBA (colour and visibility);
    `references` raw photos."""

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


def pair_files(source: Path) -> list[Path]:
    """What holds the pairs of a folder: its `data.json`, else the tars in its `train` and `test`; a file is itself.

    Raises InputError for a folder that has neither.
    """
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
    """Read pair folders (with a `data.json`, or with tars) or `data.json` files in the order given.

    Paths in a manifest are relative to its folder, else to the current directory as the release has them, or absolute.
    Entries whose files are missing are dropped. Tars are read where they stand, and their pairs come in the order in
    which a manifest of the same pairs would list them. Raises InputError when a manifest is missing or no manifest,
    or a tar is damaged.
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
            try:
                into.append(_entry(key, entries[key], file.parent))
            except ValueError as error:
                pairs.dropped[f"{file}: {key}"] = str(error)


def _read_tars(tars: Sequence[Path], pairs: PairSet) -> None:
    for split, into in (("train", pairs.train), ("test", pairs.test)):
        chosen = [tar for tar in tars if (tar.parent.name == "test") == (split == "test")]
        found = {key: members for tar in chosen for key, members in members_by_key(tar).items()}
        for key in sorted(found):
            members = found[key]
            if "image" not in members or "target_image" not in members:
                pairs.dropped[key] = "has no image or no target_image"
                continue
            into.append(
                PairFiles(
                    id=key,
                    render=members["image"],
                    target=members["target_image"],
                    references=_numbered(members, "ref_image"),
                    aligned=_numbered(members, "aligned_ref"),
                    opacity=members.get("opacity"),
                )
            )


def _numbered(members: Mapping[str, Member], name: str) -> tuple[Member, ...]:
    """The members `name_0`, `name_1`… as far as there are any."""
    keys = takewhile(members.__contains__, (f"{name}_{i}" for i in count()))
    return tuple(members[key] for key in keys)


def _entry(key: str, entry: Any, folder: Path) -> PairFiles:
    if not isinstance(entry, dict):
        raise ValueError("is not an object")

    def found(value: Any) -> Path:
        if not isinstance(value, str):
            raise ValueError(f"has no file name where one is needed ({value!r})")
        path = folder / value  # an absolute value replaces the folder
        if path.is_file():
            return path
        if Path(value).is_file():
            return Path(value)
        raise ValueError(f"{value} is missing")

    raw = entry.get("ref_images") or [r for r in (entry.get("ref_image"),) if r]
    return PairFiles(
        id=key,
        render=found(entry.get("image")),
        target=found(entry.get("target_image")),
        references=tuple(found(value) for value in raw),
        aligned=tuple(found(value) for value in entry.get("aligned_refs") or ()),
        opacity=found(entry["opacity"]) if entry.get("opacity") else None,
    )


class Loaded(NamedTuple):
    """A decoded pair, 8 bits a channel; the same layout as `synthetic.Sample`."""

    render: np.ndarray  # (H, W, 3)
    target: np.ndarray  # (H, W, 3)
    references: np.ndarray  # (V, H, W, 3)
    visibility: np.ndarray  # (V, H, W), all 255 for raw references
    opacity: np.ndarray  # (H, W)


class PairStore:
    """Decoded pairs, kept in memory as long as they fit and read again from disk beyond that.

    Every pair is decoded once when the store is made; those that cannot be are left out and listed in `dropped`.
    References are brought to the kind the fixer wants: raw ones to the render's size, aligned ones as curation wrote
    them, or registered by optical flow where a manifest has only raw ones.
    """

    def __init__(self, files: Sequence[PairFiles], kind: References, views: int, memory_gib: float = 4.0) -> None:
        self.kind, self.views = kind, views
        self.files: list[PairFiles] = []
        self.dropped: dict[str, str] = {}
        self._kept: dict[int, Loaded] = {}
        # photos stand in many pairs; held, as small as they are used, only while the store is filled
        self._photos: dict[tuple[Picture, int, int], np.ndarray] | None = {}
        free = memory_gib * 2**30
        for pair in files:
            try:
                loaded = self._load(pair)
            except (InputError, ValueError) as error:
                self.dropped[pair.id] = str(error)
                continue
            size = sum(part.nbytes for part in loaded)
            if size <= free:
                self._kept[len(self.files)] = loaded
                free -= size
            self.files.append(pair)
        self._photos = None

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> Loaded:
        return self._kept[index] if index in self._kept else self._load(self.files[index])

    def _load(self, pair: PairFiles) -> Loaded:
        render = _bytes(read_image(pair.render))
        height, width = render.shape[:2]
        if min(height, width) < 16:
            raise ValueError(f"{pair.render} is smaller than 16 pixels")
        target = self._photo(pair.target, height, width)
        opacity = np.full((height, width), 255, np.uint8)
        if pair.opacity is not None:
            opacity = _bytes(read_image(pair.opacity).mean(axis=-1))
            if opacity.shape != (height, width):
                raise ValueError(f"{pair.opacity} has another size than its render")
        references, visibility = self._references(pair, render)
        return Loaded(render, target, references, visibility, opacity)

    def _references(self, pair: PairFiles, render: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        height, width = render.shape[:2]
        if self.kind == "aligned" and pair.aligned:
            layers = np.stack([_bytes(read_image(path, alpha=True)) for path in pair.aligned[: self.views]])
            if layers.shape[1:3] != (height, width):
                raise ValueError(f"{pair.aligned[0]} has another size than its render")
            return np.ascontiguousarray(layers[..., :3]), np.ascontiguousarray(layers[..., 3])
        # a reference may come from another lens; the release stretches it to the render's shape too
        photos = [self._photo(path, height, width, stretch=4) for path in pair.references[: self.views]]
        if not photos:
            return np.zeros((0, height, width, 3), np.uint8), np.zeros((0, height, width), np.uint8)
        stacked = np.stack(photos)
        if self.kind == "raw":
            return stacked, np.full(stacked.shape[:3], 255, np.uint8)
        from difixcli.fixer.alignment import register_references

        aligned, visible = register_references(_planar(render[None]), _planar(stacked)[None])
        return _bytes(aligned[0].permute(0, 2, 3, 1).numpy()), _bytes(visible[0, :, 0].numpy())

    def _photo(self, path: Picture, height: int, width: int, stretch: float = 1.03) -> np.ndarray:
        """A photo at the render's size, area-averaged; ValueError when its shape differs by more than `stretch`."""
        key = (path, height, width)
        if self._photos is not None and key in self._photos:
            return self._photos[key]
        photo = self._resized(path, height, width, stretch)
        if self._photos is not None:
            if len(self._photos) >= _PHOTOS_HELD:
                self._photos.clear()
            self._photos[key] = photo
        return photo

    @staticmethod
    def _resized(path: Picture, height: int, width: int, stretch: float) -> np.ndarray:
        photo = _bytes(read_image(path))
        if photo.shape[:2] == (height, width):
            return photo
        ratio = (photo.shape[1] / photo.shape[0]) / (width / height)
        if max(ratio, 1 / ratio) > stretch:
            raise ValueError(
                f"{path} is {photo.shape[1]}×{photo.shape[0]} pixels, another shape than the render's {width}×{height}"
            )
        import cv2

        return cv2.resize(photo, (width, height), interpolation=cv2.INTER_AREA)


class Batch(NamedTuple):
    """Tensors of one step, float32 in [0, 1]. `references` and `visibility` are None when this step goes without."""

    images: Tensor  # (B, 3, H, W)
    targets: Tensor  # (B, 3, H, W)
    references: Tensor | None  # (B, V, 3, H, W)
    visibility: Tensor | None  # (B, V, 1, H, W)
    opacity: Tensor  # (B, 1, H, W)


class TrainingBatches(Dataset):
    """The batch of every step, a function of the step and the seed alone: what makes resuming exact.

    Random crops and flips are the same for a pair's images; the number and order of references are random, so that
    one set of weights serves with many, few and none.

    Args:
        pairs: real pairs, or None.
        photos: photos from which synthetic pairs are made, or None; `photo_share` of the samples come from them.
        steps: how many batches there are.
        crop: pixels, a multiple of `multiple`; a batch with a smaller image is cropped smaller.
        multiple: what the network needs sizes to be divisible by.
        strong: also flip vertically, transpose, permute channels and change the exposure of all images alike; good
            for small networks that know nothing, bad for pretrained ones that know which way is up.
    """

    def __init__(
        self,
        pairs: PairStore | None,
        photos: PhotoPairs | None,
        *,
        steps: int,
        batch: int,
        crop: int,
        views: int,
        photo_share: float = 0.5,
        multiple: int = 8,
        without_references: float = 0.1,
        strong: bool = True,
        seed: int = 0,
    ) -> None:
        if not (pairs and len(pairs)) and photos is None:
            raise InputError("There is nothing to train on: no usable pair, and no folder of photos.")
        self.pairs = pairs if pairs is not None and len(pairs) else None
        self.photos, self.steps, self.batch, self.crop, self.views = photos, steps, batch, crop, views
        self.photo_share = 1.0 if self.pairs is None else photo_share if photos is not None else 0.0
        self.multiple, self.without_references, self.strong, self.seed = multiple, without_references, strong, seed

    def __len__(self) -> int:
        return self.steps

    def __getitem__(self, step: int) -> Batch:
        rng = np.random.default_rng((self.seed, step))
        real: list[Loaded | None] = []
        for slot in range(self.batch):
            synthetic = rng.random() < self.photo_share
            real.append(None if synthetic or self.pairs is None else self.pairs[self._index(step, slot)])
        sides = [min(pair.render.shape[:2]) for pair in real if pair is not None]
        crop = min([self.crop, *(side // self.multiple * self.multiple for side in sides)])
        samples = [self._sample(pair, crop, rng) for pair in real]
        views = min(self.views, *(len(s.references) for s in samples)) if samples else 0
        if rng.random() < self.without_references:
            views = 0
        elif views > 1:
            views = int(rng.integers(1, views + 1)) if rng.random() < 0.4 else views
        return _batch(samples, views)

    def _index(self, step: int, slot: int) -> int:
        """Goes through all pairs in a new order every epoch."""
        assert self.pairs is not None
        position = step * self.batch + slot
        epoch, offset = divmod(position, len(self.pairs))
        if getattr(self, "_epoch", None) != epoch:
            self._epoch = epoch
            self._order = np.random.default_rng((self.seed, 1, epoch)).permutation(len(self.pairs))
        return int(self._order[offset])

    def _sample(self, pair: Loaded | None, crop: int, rng: np.random.Generator) -> Sample:
        if pair is None:
            assert self.photos is not None
            sample = self.photos.draw(crop, self.views, rng)
        else:
            height, width = pair.render.shape[:2]
            top, left = rng.integers(height - crop + 1), rng.integers(width - crop + 1)
            window = (slice(top, top + crop), slice(left, left + crop))
            order = rng.permutation(len(pair.references))
            sample = Sample(
                _unit(pair.render[window]),
                _unit(pair.target[window]),
                _unit(pair.references[(order, *window)]),
                _unit(pair.visibility[(order, *window)]),
                _unit(pair.opacity[window]),
            )
        return self._augmented(sample, rng)

    def _augmented(self, sample: Sample, rng: np.random.Generator) -> Sample:
        """The same flips and colour changes for all of a pair's images."""
        images = [sample.render, sample.target, *sample.references]
        masks = [*sample.visibility, sample.opacity]
        if rng.random() < 0.5:
            images, masks = [a[:, ::-1] for a in images], [a[:, ::-1] for a in masks]
        if self.strong:
            if rng.random() < 0.5:
                images, masks = [a[::-1] for a in images], [a[::-1] for a in masks]
            if rng.random() < 0.5:
                images, masks = [a.swapaxes(0, 1) for a in images], [a.T for a in masks]
            if rng.random() < 0.3:
                channels = rng.permutation(3)
                images = [a[..., channels] for a in images]
            if rng.random() < 0.5:
                gain = np.float32(rng.uniform(0.6, 1.15))
                images = [np.minimum(a * gain, np.float32(1)) for a in images]
        if rng.random() < 0.1:  # not every caller knows the opacity
            masks[-1] = np.ones_like(masks[-1])
        size = masks[-1].shape
        return Sample(
            images[0],
            images[1],
            np.stack(images[2:]) if len(images) > 2 else np.zeros((0, *size, 3), np.float32),
            np.stack(masks[:-1]) if len(masks) > 1 else np.zeros((0, *size), np.float32),
            masks[-1],
        )


def whole(sample: Sample | Loaded, views: int) -> Batch:
    """A whole pair with its first `views` references as a batch of one, for validation."""
    pair = Sample(
        _unit(sample.render),
        _unit(sample.target),
        _unit(sample.references[:views]),
        _unit(sample.visibility[:views]),
        _unit(sample.opacity),
    )
    return _batch([pair], len(pair.references))


def _batch(samples: Sequence[Sample], views: int) -> Batch:
    references = visibility = None
    if views:
        references = torch.from_numpy(np.stack([s.references[:views] for s in samples])).permute(0, 1, 4, 2, 3)
        references = references.contiguous()
        visibility = torch.from_numpy(np.stack([s.visibility[:views] for s in samples]))[:, :, None]
    return Batch(
        torch.from_numpy(np.stack([s.render for s in samples])).permute(0, 3, 1, 2).contiguous(),
        torch.from_numpy(np.stack([s.target for s in samples])).permute(0, 3, 1, 2).contiguous(),
        references,
        visibility,
        torch.from_numpy(np.stack([s.opacity for s in samples]))[:, None],
    )


def _unit(values: np.ndarray) -> np.ndarray:
    return values.astype(np.float32) * np.float32(1 / 255) if values.dtype == np.uint8 else values


def _bytes(values: np.ndarray) -> np.ndarray:
    return (np.clip(values, 0, 1) * 255 + 0.5).astype(np.uint8)


def _planar(images: np.ndarray) -> Tensor:
    """(N, H, W, 3) uint8 → (N, 3, H, W) float32 in [0, 1]."""
    return torch.from_numpy(_unit(images)).permute(0, 3, 1, 2).contiguous()
