"""A span in, its pictures out: our video model as distillation knows it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from difixcli.errors import InputError
from difixcli.fixer import Fixer
from difixcli.priors.video.files import load_film
from difixcli.priors.video.network import FilmNetwork
from difixcli.priors.video.span import Span
from difixcli.priors.video.structure import in_unit_cube
from difixcli.priors.video.views import Geometry
from difixcli.priors.video.windows import joined, windows


class FixerFilm:
    """Cleans a span's renders beside both of its photos, all pictures of a window together, in a single step."""

    def __init__(self, network: FilmNetwork, device: str = "cpu", dtype: torch.dtype = torch.float32) -> None:
        self.network = network.eval().to(device, dtype)
        self.fixer = Fixer(network.fixer).to(device, dtype)

    @classmethod
    def from_pretrained(cls, name: str | Path, device: str = "cpu", dtype: torch.dtype = torch.float32) -> FixerFilm:
        """`bundled`, or a folder that `difix finetune --task video` wrote; InputError as `load_film` raises it."""
        return cls(load_film(name), device, dtype)

    @property
    def licence(self) -> str:
        return self.network.config.licence

    @torch.no_grad()
    def film(self, span: Span, seed: int) -> np.ndarray:
        """(T, H, W, 3) float32 in [0, 1], one picture for each of the span's cameras.

        Fixers with aligned references see both photos through the renders' depth, others as they are, and beside them,
        if they look there, which of their places each picture shows. The seed is of
        the noise that fixers trained for that fill holes with; nothing else is drawn. Raises InputError for fewer than
        two pictures and where the memory is too small.
        """
        count = len(span.cameras)
        if count < 2:
            raise InputError("A film leads from one photo to another; ask for two pictures at least.")
        config = self.network.config
        tokens = tokens_of(self.network, span)
        places = torch.linspace(0, 1, count, device=self.fixer.device)
        chosen = windows(count, config.window, min(config.shared, config.window - 1))
        seen = Seen.of(span)
        return joined(((window, self._window(seen, window, places, tokens, seed)) for window in chosen), count)

    def _window(self, seen: Seen, window: range, places: Tensor, tokens: Tensor | None, seed: int) -> np.ndarray:
        """The pictures (length, H, W, 3) of one window."""
        fixer, part = self.fixer, slice(window.start, window.stop)
        renders, opacity = seen.renders[part], seen.opacity[part]
        if fixer.config.references == "aligned":
            beside, visibility = seen.beside(window)
        else:
            # while the layers are not at work: photos are no pictures of the film
            beside = fixer.encode_references(seen.photos).photos.expand(len(window), -1, -1, -1, -1)
            visibility = None
        found = seen.places(window) if fixer.config.references == "geometry" else None
        # 1. every picture's fix beside both photos, all of them knowing of each other and of the structure
        with self.network.told(places[None, part], tokens):
            fill = seed if fixer.config.fill_unseen else None
            fixes = fixer(renders, beside, opacity, visibility, fill, found)
        # 2. neighbouring pictures' fixes weigh in
        pictures = fixes
        if float(self.network.neighbours.gate.detach()):
            pictures = torch.stack([self._weighed(seen, i, window, fixes) for i in window])
        return pictures.permute(0, 2, 3, 1).float().cpu().numpy()

    def _weighed(self, seen: Seen, i: int, window: range, fixes: Tensor) -> Tensor:
        near, visibility = seen.geometry.near(i, window, fixes)
        given = (fixes[i - window.start], seen.renders[i], seen.opacity[i], near, visibility)
        told = [values[None].to(self.fixer.device, self.fixer.dtype) for values in given]
        return self.network.neighbours(*told)[0].clamp(0, 1).to(fixes)


@dataclass(frozen=True, eq=False)
class Seen:
    """A span as tensors: renders (T, 3, H, W), photos (2, 3, H, W), opacity (T, 1, H, W)."""

    renders: Tensor
    photos: Tensor
    opacity: Tensor
    geometry: Geometry

    @classmethod
    def of(cls, span: Span) -> Seen:
        opacity = torch.from_numpy(np.ascontiguousarray(span.opacity, np.float32))[:, None]
        return cls(planar(span.renders), planar(span.photos), opacity, Geometry.of(span.cameras, span.depth))

    def beside(self, pictures: range) -> tuple[Tensor, Tensor]:
        """Both photos as these pictures' cameras see them, (N, 2, 3, H, W), and where that is believable,
        (N, 2, 1, H, W).
        """
        views = [self.geometry.beside(i, self.renders[i], self.photos) for i in pictures]
        return torch.stack([view[0] for view in views]), torch.stack([view[1] for view in views])

    def places(self, pictures: range) -> Tensor:
        """Which places of both photos these pictures show, (N, 2, 3, H, W)."""
        return torch.cat([self.geometry.places(i) for i in pictures])


def tokens_of(network: FilmNetwork, span: Span) -> Tensor | None:
    """A span's structure tokens (1, M, width); None of one without points."""
    points, colors = (torch.from_numpy(np.asarray(x, np.float32)) for x in (span.points, span.colors))
    if not len(points):
        return None
    device = network.neighbours.gate.device
    points = in_unit_cube(points, torch.from_numpy(span.cameras[0].camera_to_world))
    return network.tokens(points.to(device), colors.to(device))


def planar(images: np.ndarray) -> Tensor:
    """(N, H, W, 3) → (N, 3, H, W) float32."""
    return torch.from_numpy(np.ascontiguousarray(np.asarray(images, np.float32).transpose(0, 3, 1, 2)))
