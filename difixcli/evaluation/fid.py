"""FID, the distance between two sets of images as Inception-v3 sees them; never with a network that is not its own.

Heusel et al., NeurIPS 2017. The arithmetic is torchmetrics', the network is the TensorFlow one that FID is defined by,
as torch-fidelity converted it.
"""

from __future__ import annotations

import hashlib
import warnings
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from difixcli.errors import InputError
from difixcli.tensor_files import read_pickled
from difixcli.torchvision_cure import cure

INCEPTION = "weights-inception-2015-12-05-6726825d.pth"
"""The file of Inception's weights as torch-fidelity's release 0.2.0 names it."""

FEATURES = 2048


def inception_file(path: Path | None = None) -> Path:
    """Where Inception's weights are: `path`, or else torch hub's cache; InputError where they are not."""
    if path is not None:
        if not path.is_file():
            raise InputError(f"--inception names {path}, which is no file; name {INCEPTION} of torch-fidelity.")
        return path
    cached = Path(torch.hub.get_dir()) / "checkpoints" / INCEPTION
    if not cached.is_file():
        raise InputError(
            f"FID needs Inception's weights: put torch-fidelity's {INCEPTION} into {cached.parent}, "
            "name the file with --inception, or leave fid out of --metrics."
        )
    return cached


def inception(path: Path, device: str = "cpu") -> nn.Module:
    """The network of FID from its weights, uint8 images (B, 3, H, W) → (B, 2048); InputError where they are others."""
    cure()
    from torchmetrics.image.fid import NoTrainInceptionV3

    # torch-fidelity unpickles whatever the file holds; refuse here what is more than tensors
    read_pickled(path, f"FID needs torch-fidelity's {INCEPTION}; fetch it again", mapped=True)
    try:
        network = NoTrainInceptionV3("inception-v3-compat", [str(FEATURES)], str(path))
    except (RuntimeError, KeyError, AttributeError, TypeError):
        raise InputError(f"{path} does not hold Inception's weights; FID needs torch-fidelity's {INCEPTION}.") from None
    network.num_features = FEATURES
    return network.to(device)


def identity_of(path: Path) -> str:
    """The beginning of the weights' SHA-256, which a number must carry to be compared."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(2**20):
            digest.update(block)
    return digest.hexdigest()[:8]


@dataclass(frozen=True)
class Moments:
    """What FID keeps of a set of images: the sum (D,) of their features and of their outer products (D, D), float64,
    and the number of images. Two sets together have the sum of theirs.
    """

    total: Tensor
    outer: Tensor
    count: int

    def __add__(self, other: Moments) -> Moments:
        return Moments(self.total + other.total, self.outer + other.outer, self.count + other.count)


class FrechetDistance:
    """The Fréchet distance of several sets of images from one true set, taken image by image.

    `network` maps uint8 images (1, 3, H, W) to (1, D) features and has `num_features` = D.
    """

    def __init__(self, network: nn.Module, device: str = "cpu") -> None:
        cure()
        from torchmetrics.image.fid import FrechetInceptionDistance

        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about the memory of features, which are not kept
            self._metric = FrechetInceptionDistance(feature=network, reset_real_features=False).to(device)
        self._device = device

    def add(self, image: np.ndarray, true: bool) -> None:
        """Count an image (H, W, 3) in [0, 1] to the true set or to the one being measured."""
        pixels = (np.clip(image, 0, 1) * 255 + 0.5).astype(np.uint8)
        planar = torch.from_numpy(np.ascontiguousarray(pixels.transpose(2, 0, 1)))[None]
        with torch.no_grad():
            self._metric.update(planar.to(self._device), real=true)

    def moments(self, true: bool) -> Moments:
        """Those of the true set, or of the images added to the other since the last distance."""
        kind = "real" if true else "fake"
        total, outer, count = (
            getattr(self._metric, f"{kind}_features_{what}") for what in ("sum", "cov_sum", "num_samples")
        )
        return Moments(total.clone(), outer.clone(), int(count))

    def between(self, truth: Moments, other: Moments) -> float:
        """The distance of two sets whose moments are known; forgets the images added so far."""
        for kind, held in (("real", truth), ("fake", other)):
            setattr(self._metric, f"{kind}_features_sum", held.total)
            setattr(self._metric, f"{kind}_features_cov_sum", held.outer)
            setattr(self._metric, f"{kind}_features_num_samples", torch.tensor(held.count, device=self._device))
        self._metric.orig_dtype = torch.float64  # which it otherwise has from the images it saw
        return self.distance()

    def distance(self) -> float:
        """The distance of the images added since the last call; InputError for fewer than two in either set."""
        counts = int(self._metric.real_features_num_samples), int(self._metric.fake_features_num_samples)
        if min(counts) < 2:
            raise InputError("FID needs at least two images on either side; leave fid out of --metrics.")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that nothing was added, where moments are known
            found = float(self._metric.compute())
        self._metric.reset()
        return found


class Pool:
    """The images of several scenes as one set, for each row of a table and for the truth."""

    def __init__(self) -> None:
        self._held: dict[str, Moments] = {}
        self._scenes: Counter[str] = Counter()

    def add(self, row: str, moments: Moments) -> None:
        """One more scene's images of a row."""
        self._held[row] = self._held[row] + moments if row in self._held else moments
        self._scenes[row] += 1

    def distances(self, frechet: FrechetDistance, truth: str) -> dict[str, float]:
        """Each row's distance from the row `truth`, for the rows that every scene has."""
        whole = [row for row, count in self._scenes.items() if count == self._scenes[truth] and row != truth]
        return {row: frechet.between(self._held[truth], self._held[row]) for row in whole}
