"""Features of photos and matches between them, in pycolmap's database, in parts that need not be done twice."""

from __future__ import annotations

import errno
import os
import tempfile
from collections.abc import Callable, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np

from difixcli.disk import free_bytes
from difixcli.posing.photos import Photo, lens_groups

LONGEST = 1600
"""Long side in pixels above which features are found in a smaller copy."""
FEATURES = 6000
"""The most features a photo has."""
MODEL = "SIMPLE_RADIAL"
DEFAULT_FOCAL = 1.2
"""Focal length that a photo without EXIF begins with, as a share of its long side."""
EXHAUSTIVE = 80
"""Up to so many photos all pairs are matched."""
NEIGHBOURS = 10
"""Frames of a video, or photos of a large set, matched with those before and after in order."""
SIMILAR = 20
"""Photos of a large set matched with the most similar ones, wherever these stand."""

_COARSE = 192  # features compared to tell how similar two photos are
_ROOM = 32 * 2**20  # bytes: eight photos' features, or fifty pairs' matches, twice, as SQLite writes them
_FEATURES_AT_ONCE, _PAIRS_AT_ONCE, _PHOTOS_AT_ONCE = 8, 50, 64


def check_room(database: Path) -> None:
    """Raises OSError, naming the folder, where the disk has no room for what is found at once: pycolmap ends the
    process where it is full."""
    if free_bytes(database.parent) < _ROOM:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(database.parent))


def register(database: Path, folder: Path, photos: Sequence[Photo]) -> dict[str, int]:
    """Enter photos and their cameras in the database, in order, so that ids do not depend on threads; ids by name."""
    import pycolmap

    if database.is_file():
        ids = _ids(database)
        if set(ids) == {photo.name for photo in photos}:
            return ids
        database.unlink()  # killed before all were in
    check_room(database)
    with _opened(database):
        pass  # makes the file
    for group in lens_groups(photos):
        options = pycolmap.ImageReaderOptions()
        options.camera_model = MODEL
        options.default_focal_length_factor = DEFAULT_FOCAL
        width, height = group[0].size
        if group[0].focal is not None:
            options.camera_params = f"{group[0].focal!r},{width / 2!r},{height / 2!r},0"
        names = [photo.name for photo in group]
        pycolmap.import_images(database, folder, pycolmap.CameraMode.SINGLE, names, options)
    return _ids(database)


def find_features(database: Path, folder: Path, masks: Path, done: Callable[[int], None]) -> dict[str, int]:
    """SIFT of every photo in the database that has none yet; how many each photo has, by name.

    None are taken where a photo's mask, `masks/NAME.png` if there is one, is black.
    """
    import pycolmap

    counts = feature_counts(database)
    missing = [name for name, count in counts.items() if count is None]
    plain, masked = pycolmap.ImageReaderOptions(), pycolmap.ImageReaderOptions()
    masked.mask_path = masks
    options = pycolmap.FeatureExtractionOptions()
    options.max_image_size, options.use_gpu = LONGEST, False
    options.sift.max_num_features = FEATURES
    done(len(counts) - len(missing))
    for start in range(0, len(missing), _FEATURES_AT_ONCE):
        check_room(database)
        part = missing[start : start + _FEATURES_AT_ONCE]
        # with a folder of masks, a photo that has none there counts as broken
        having = [name for name in part if (masks / f"{name}.png").is_file()]
        for reader, names in ((masked, having), (plain, [name for name in part if name not in having])):
            if names:
                pycolmap.extract_features(
                    database,
                    folder,
                    names,
                    reader_options=reader,
                    extraction_options=options,
                    device=pycolmap.Device.cpu,
                )
        done(len(counts) - len(missing) + start + len(part))
    return {name: count or 0 for name, count in feature_counts(database).items()}


def feature_counts(database: Path) -> dict[str, int | None]:
    """How many features each photo has, by name; None where they have not been looked for."""
    with _opened(database) as held:
        return {
            image.name: held.num_keypoints_for_image(image.image_id)
            if held.exists_keypoints(image.image_id) and held.exists_descriptors(image.image_id)
            else None
            for image in held.read_all_images()
        }


def pairs_to_match(database: Path, photos: Sequence[Photo], in_order: bool) -> list[tuple[str, str]]:
    """Which photos to match with each other.

    All of a small set. Of a video (`in_order`) or a large set each with its neighbours, also some farther and farther
    away, and with those whose coarsest features are most alike, which closes loops.
    """
    names = [photo.name for photo in photos]
    if len(names) <= (EXHAUSTIVE // 2 if in_order else EXHAUSTIVE):
        return list(combinations(names, 2))
    pairs = {
        (i, i + step)
        for i in range(len(names))
        for step in [*range(1, NEIGHBOURS + 1), *(2**power for power in range(4, 9) if in_order)]
        if i + step < len(names)
    }
    scores = _similarity(database, names)
    for i, row in enumerate(scores):
        ranked = np.argsort(-row, kind="stable")[: SIMILAR // 2 if in_order else SIMILAR]
        pairs |= {(min(i, int(j)), max(i, int(j))) for j in ranked if row[j] > 0}
    return [(names[i], names[j]) for i, j in sorted(pairs)]


def match(database: Path, pairs: Sequence[tuple[str, str]], seed: int, done: Callable[[int], None]) -> None:
    """Match and verify the pairs that are not in the database yet."""
    import pycolmap

    ids = _ids(database)
    with _opened(database) as held:
        left = [pair for pair in pairs if not held.exists_two_view_geometry(ids[pair[0]], ids[pair[1]])]
    options, verification = pycolmap.FeatureMatchingOptions(), pycolmap.TwoViewGeometryOptions()
    options.use_gpu = False
    verification.ransac.random_seed = seed
    done(len(pairs) - len(left))
    with tempfile.TemporaryDirectory() as temporary:
        pairing = pycolmap.ImportedPairingOptions()
        pairing.match_list_path = listed = Path(temporary) / "pairs.txt"
        for start in range(0, len(left), _PAIRS_AT_ONCE):
            check_room(database)
            part = left[start : start + _PAIRS_AT_ONCE]
            listed.write_text("".join(f"{a} {b}\n" for a, b in part), encoding="utf-8")
            pycolmap.match_image_pairs(database, options, pairing, verification, device=pycolmap.Device.cpu)
            done(len(pairs) - len(left) + start + len(part))


def matched_photos(database: Path, least: int) -> dict[str, int]:
    """With how many others each photo shares at least `least` verified matches, by name."""
    import pycolmap

    with _opened(database) as held:
        names = {image.image_id: image.name for image in held.read_all_images()}
        pairs, inliers = held.read_two_view_geometry_num_inliers()
    counts = dict.fromkeys(names.values(), 0)
    for pair, number in zip(pairs, inliers, strict=True):
        if number >= least:
            for image_id in pycolmap.pair_id_to_image_pair(int(pair)):
                counts[names[image_id]] += 1
    return counts


def _similarity(database: Path, names: Sequence[str]) -> np.ndarray:
    """(N, N) how many of the coarsest features of two photos are each other's best match by far; 0 on the diagonal."""
    ids = _ids(database)
    # photos with fewer features are filled up with zeros, which are like nothing
    coarse = np.zeros((len(names), _COARSE, 128), np.float32)
    with _opened(database) as held:
        for row, name in zip(coarse, names, strict=True):
            keypoints = np.asarray(held.read_keypoints(ids[name]), dtype=np.float32)
            data = np.asarray(held.read_descriptors(ids[name]).data, dtype=np.float32)
            # columns 2 to 5 are the keypoint's affine shape
            scale = np.abs(keypoints[:, 2] * keypoints[:, 5] - keypoints[:, 3] * keypoints[:, 4])
            kept = data[np.argsort(-scale, kind="stable")[:_COARSE]]
            row[: len(kept)] = kept / np.maximum(np.linalg.norm(kept, axis=1, keepdims=True), 1e-6)
    scores = np.zeros((len(names), len(names)))
    for i in range(len(names) - 1):
        for start in range(i + 1, len(names), _PHOTOS_AT_ONCE):
            others = coarse[start : start + _PHOTOS_AT_ONCE]
            counts = _mutual(coarse[i], others)
            scores[i, start : start + len(others)] = scores[start : start + len(others), i] = counts
    return scores


def _mutual(one: np.ndarray, others: np.ndarray) -> np.ndarray:
    """(M,) how many of `one`'s unit descriptors (K, D) have a mutual best match in each of `others` (M, K, D), nearer
    by a fifth than the second best."""
    rows = np.arange(len(one))
    alike = (one @ others.reshape(-1, one.shape[1]).T).reshape(len(one), len(others), -1).swapaxes(0, 1)
    counts = np.zeros(len(others))
    for m, table in enumerate(alike):
        best, back = table.argmax(axis=1), table.argmax(axis=0)
        first = table[rows, best]
        rest = table.copy()
        rest[rows, best] = -1
        # of unit vectors: squared distance 2 - 2 · cosine
        nearer = 1 - first < 0.64 * (1 - rest.max(axis=1))
        counts[m] = int(((back[best] == rows) & nearer & (first > 0)).sum())
    return counts


def _ids(database: Path) -> dict[str, int]:
    with _opened(database) as held:
        return {image.name: image.image_id for image in held.read_all_images()}


def _opened(database: Path) -> Any:
    import pycolmap

    return pycolmap.Database.open(database)
