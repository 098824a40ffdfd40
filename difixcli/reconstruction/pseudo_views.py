"""Pseudo-views enter training through a second datamanager of the method's own class.

Methods that train on whole images take one of them now and then in a photo's place. Methods that train on rays get
theirs beside the photos' in every batch: a short training cannot spare steps on photos, and both kinds pull at every
step. The method never learns that they are no photos: their ids are those of training photos, so that appearance
embeddings, camera optimisers and bilateral grids neither grow nor learn about images that are not there. What of the
loss counts for them, and how far each pixel is trusted, is the objective's business (`objective`).

Rays are drawn from all pixels of all views alike, but for views that cannot be taught so: where a term of the loss
needs neighbouring pixels, rays come as a square of one view; where the target is proposed anew at every draw, they come
from one view too, which is rendered whole if the proposal asks for it (without gradient: about as long as H · W / 3
rays train).
Such draws are larger and rarer, so that on average every view still gives as many rays as any other, and each ray
counts as if all batches were alike.
"""

from __future__ import annotations

import copy
import dataclasses
import random
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from nerfstudio.cameras.cameras import Cameras, CameraType
from nerfstudio.data.dataparsers.base_dataparser import DataParser, DataparserOutputs
from torch import Tensor

from difixcli.errors import InputError
from difixcli.reconstruction.dataset import UNKNOWN_DEPTH
from difixcli.reconstruction.methods import draws_images
from difixcli.reconstruction.objective import (
    DRAWN,
    RAYS,
    SMALLEST_SQUARE,
    WEIGHT,
    Drawn,
    find_term,
    needs_neighbours,
    square,
)
from difixcli.reconstruction.surroundings import RandomState
from difixcli.reconstruction.terms import METHOD
from difixcli.reconstruction.views import PseudoView, Wanted
from difixcli.runs import open_image
from difixcli.scenes.scene import Camera


def nerfstudio_cameras(cameras: Sequence[Camera]) -> Cameras:
    """Our cameras as nerfstudio's: pinhole, OpenGL camera-to-world, in the same world."""

    def column(name: str, dtype: torch.dtype) -> Tensor:
        return torch.tensor([[getattr(camera, name)] for camera in cameras], dtype=dtype)

    poses = np.stack([camera.camera_to_world[:3] for camera in cameras]).astype(np.float32)
    return Cameras(
        camera_to_worlds=torch.from_numpy(poses),
        fx=column("fx", torch.float32),
        fy=column("fy", torch.float32),
        cx=column("cx", torch.float32),
        cy=column("cy", torch.float32),
        width=column("width", torch.int32),
        height=column("height", torch.int32),
        camera_type=CameraType.PERSPECTIVE,
    )


def own_cameras(cameras: Cameras) -> list[Camera]:
    """nerfstudio's pinhole cameras as ours, in the same world."""
    found = []
    for i in range(len(cameras)):
        pose = np.eye(4)
        pose[:3] = cameras.camera_to_worlds[i].cpu().numpy()
        lens = {name: float(getattr(cameras, name)[i]) for name in ("fx", "fy", "cx", "cy")}
        found.append(Camera(pose, **lens, width=int(cameras.width[i]), height=int(cameras.height[i])))
    return found


class _FixedDataParser(DataParser):
    """Gives out what it was made with, whatever the split."""

    def __init__(self, config: Any, outputs: DataparserOutputs) -> None:
        super().__init__(config)
        self._outputs = outputs

    def _generate_dataparser_outputs(self, split: str = "train", **_: Any) -> DataparserOutputs:
        return self._outputs


class PseudoViewSource:
    """Draws training batches from pseudo-views.

    `method` is the method's configuration, `photos` the datamanager it made for the photos, `ids` the training photo
    (its position among the training photos) each view stands in for. `share` is how much of what is drawn in training
    is to come from the views, in images (1: all) or rays (below 1). Draws follow from `seed` and step, or from
    training's own random numbers. `render` shows a camera at this moment, (H, W, 3) float32, and disturbs nothing.
    `order` is what `state` gave in an earlier process: the same views go on being drawn in the same order, others begin
    anew.
    """

    def __init__(
        self,
        views: Sequence[PseudoView],
        ids: Sequence[int],
        share: float,
        method: Any,
        photos: Any,
        device: str,
        seed: int,
        render: Callable[[Camera], np.ndarray],
        order: dict[str, Any] | None = None,
    ) -> None:
        self._share, self._seed = share, seed
        self._images = draws_images(method)
        self._names = ["/".join(view.image.parts[-2:]) for view in views]  # a run's folder may have moved
        ids = list(ids)
        config = copy.deepcopy(method.pipeline.datamanager)
        alone, grouped = list(range(len(views))), []
        if not self._images:
            grouped = [i for i in alone if views[i].fresh is not None or needs_neighbours(views[i].terms)]
            alone = [i for i in alone if i not in grouped]
            rays = share / (1 - share) * config.train_num_rays_per_batch / len(views)  # of each view and step
            config.train_num_rays_per_batch = max(1, round(rays * len(alone)))
            most = photos.config.train_num_rays_per_batch
        self._manager: Any = None
        if alone:
            self._views, self._ids = [views[i] for i in alone], torch.tensor([ids[i] for i in alone], dtype=torch.long)
            self._manager = _manager(self._views, config, photos, device)
            if order is not None and order["views"] == self._names:
                restore_order(self._manager, order)
            self._weights = [_weight(view) for view in self._views]
            self._photos = [_photo(view) for view in self._views]
            if not self._images:
                self._flat_weights = torch.cat([weight.flatten() for weight in self._weights])
            sizes = torch.tensor([[view.camera.height, view.camera.width] for view in self._views])
            self._widths = sizes[:, 1]
            self._starts = torch.cumsum(sizes.prod(dim=1), dim=0) - sizes.prod(dim=1)
            self._terms: list[Mapping[str, float]] = []  # those that are different
            for view in self._views:
                if dict(view.terms) not in self._terms:
                    self._terms.append(dict(view.terms))
            self._kind = torch.tensor([self._terms.index(dict(view.terms)) for view in self._views])
        self._grouped: _OneView | None = None
        if grouped:
            self._grouped = _OneView(
                [views[i] for i in grouped], [ids[i] for i in grouped], rays, most, photos, device, seed, render
            )

    @property
    def state(self) -> dict[str, Any]:
        """What `order` takes."""
        return {"views": self._names, **({} if self._manager is None else order_of(self._manager))}

    def takes(self, step: int) -> bool:
        """Whether a step's batch is a pseudo-view's image instead of a photo; seed and step alone decide."""
        return self._images and random.Random(f"{self._seed}:{step}").random() < self._share

    def image(self, step: int) -> tuple[Any, dict[str, Any]]:
        """A camera and its image as the method's datamanager makes them, with a photo's id and what the objective
        needs.
        """
        camera, batch = self._manager.next_train(step)
        position = int(batch["image_idx"])
        view, photo = self._views[position], int(self._ids[position])
        camera.metadata = {**(camera.metadata or {}), "cam_idx": photo}
        chance = random.Random(f"{self._seed}:{step}:place")
        fresh = None
        if view.fresh is not None:

            def fresh(render: Callable[[], np.ndarray]) -> Wanted:
                return _propose(view, render, f"{self._seed}:{step}")

        place = (chance.random(), chance.random())
        drawn = Drawn(view.terms, place=place, fresh=fresh, photo=self._photos[position])
        weight = self._weights[position][..., None] / 255
        return camera, {**batch, "image_idx": photo, WEIGHT: weight, DRAWN: [drawn]}

    def beside(self, step: int, rays: Any, batch: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        """A batch of photo rays with the rays of the views that are due after them; photos weigh 1. Where images are
        drawn, the batch as it is.

        What only the photos know of their rays (known distances, a sensor's depth) is 0 for the others, which says
        "unknown" wherever it is used; masks let all of them pass.
        """
        if self._images:
            return rays, batch
        drawn: list[Drawn] = []
        photos = len(batch["indices"])
        if self._manager is not None:
            more, other = self._rays(step)
            kinds = other.pop(DRAWN)
            first = len(batch["indices"])
            for kind, terms in enumerate(self._terms):
                drawn.append(Drawn(terms, torch.nonzero(kinds == kind)[:, 0] + first))
            rays, batch = _joined(rays, batch, more, other)
        if self._grouped is None:
            return rays, {**batch, DRAWN: drawn}
        if (found := self._grouped.draw(step)) is not None:
            more, other = found
            first = len(batch["indices"])
            drawn += [dataclasses.replace(part, rays=part.rays + first) for part in other.pop(DRAWN)]
            rays, batch = _joined(rays, batch, more, other)
        weight = batch.get(WEIGHT, torch.ones(photos, 1))
        return rays, {**batch, WEIGHT: weight, DRAWN: drawn, RAYS: photos / (1 - self._share)}

    def _rays(self, step: int) -> tuple[Any, dict[str, Any]]:
        """Rays from anywhere; under `DRAWN` which of the different terms are theirs, (N,)."""
        bundle, batch = self._manager.next_train(step)
        view, y, x = (column.long() for column in batch["indices"].cpu().unbind(dim=-1))
        weight = self._flat_weights[self._starts[view] + y * self._widths[view] + x][:, None] / 255
        indices = torch.stack([self._ids[view], y, x], dim=-1).to(batch["indices"].device)
        if bundle.camera_indices is not None:
            bundle.camera_indices = self._ids.to(bundle.camera_indices.device)[bundle.camera_indices.long()]
        return bundle, {**batch, "indices": indices, WEIGHT: weight, DRAWN: self._kind[view]}


class _OneView:
    """Draws rays that belong to one view: squares where a term of the loss needs neighbours, else from anywhere in it.

    `rays` is how many each view shall give a step on average, `most` about how many one draw may hold.
    """

    def __init__(
        self,
        views: Sequence[PseudoView],
        ids: Sequence[int],
        rays: float,
        most: int,
        photos: Any,
        device: str,
        seed: int,
        render: Callable[[Camera], np.ndarray],
    ) -> None:
        self._views, self._ids, self._seed, self._render = views, ids, seed, render
        self._rays, self._most = rays * len(views), max(most, SMALLEST_SQUARE**2)
        cameras = nerfstudio_cameras([view.camera for view in views]).to(device)
        self._generator = type(photos.train_ray_generator)(cameras)
        self._images = [None if view.fresh is not None else _image(view.image) for view in views]
        self._weights = [None if view.fresh is not None else _weight(view) for view in views]
        self._photos = [_photo(view) for view in views]

    def draw(self, step: int) -> tuple[Any, dict[str, Any]] | None:
        """Rays and their batch, whose `DRAWN` counts from its first ray; None where no view is due at this step."""
        chance = random.Random(f"{self._seed}:{step}:rays")
        number = chance.randrange(len(self._views))
        view = self._views[number]
        height, width = view.camera.height, view.camera.width
        asked = [find_term(name) for name, weight in view.terms.items() if name != METHOD and weight > 0]
        asked = [term for term in asked if term.neighbours]
        size = square(asked, height, width, (0, 0), self._most)[2] ** 2 if asked else min(self._most, height * width)
        due = self._rays / size
        count = int(due) + (chance.random() < due % 1)
        if not count:
            return None
        pixels, drawn = [], []
        for part in range(count):
            shape, photo = None, None
            if asked:
                row, column, side = square(asked, height, width, (chance.random(), chance.random()), self._most)
                shape = (side, side)
                rows, columns = torch.meshgrid(torch.arange(side) + row, torch.arange(side) + column, indexing="ij")
                pixels.append(torch.stack([rows.flatten(), columns.flatten()], dim=1))
                if (whole := self._photos[number]) is not None:
                    size_there = height // len(whole)  # pixels of a photo's one; squares begin at multiples of it
                    top, left, high = (value // size_there for value in (row, column, side))
                    photo = whole[top : top + high, left : left + high]
            else:
                flat = torch.tensor([chance.randrange(height * width) for _ in range(size)])
                pixels.append(torch.stack([flat // width, flat % width], dim=1))
            drawn.append(Drawn(view.terms, torch.arange(size) + part * size, shape, photo=photo))
        y, x = torch.cat(pixels).unbind(dim=1)
        image, weight, terms = self._target(number, step)
        drawn = [dataclasses.replace(part, terms=terms) for part in drawn]
        bundle = self._generator(torch.stack([torch.full_like(y, number), y, x], dim=1))
        if bundle.camera_indices is not None:
            bundle.camera_indices = torch.full_like(bundle.camera_indices, self._ids[number])
        indices = torch.stack([torch.full_like(y, self._ids[number]), y, x], dim=1)
        return bundle, {"image": image[y, x], "indices": indices, WEIGHT: weight[y, x][:, None], DRAWN: drawn}

    def _target(self, number: int, step: int) -> tuple[Tensor, Tensor, Mapping[str, float]]:
        """A view's image (H, W, 3) and trust (H, W), float32 in [0, 1], and the terms that count."""
        view, image, weight = self._views[number], self._images[number], self._weights[number]
        if image is not None and weight is not None:
            return image.float() / 255, weight.float() / 255, view.terms
        wanted = _propose(view, partial(self._render, view.camera), f"{self._seed}:{step}")
        trust = torch.ones(wanted.image.shape[:2]) if wanted.weight is None else torch.from_numpy(wanted.weight)
        return torch.from_numpy(wanted.image), trust, wanted.terms or view.terms


def _propose(view: PseudoView, render: Callable[[], np.ndarray], when: str) -> Wanted:
    """What a view's `fresh` wants at a step, float32 in [0, 1].

    Random numbers that it draws follow from `when`, and training's go on as if it had drawn none.
    """
    assert view.fresh is not None
    device = "cuda" if torch.cuda.is_available() else "cpu"
    chance = RandomState(random.Random(f"{when}:fresh").getrandbits(32))
    with chance.active(), torch.autocast(device, enabled=False):
        wanted = view.fresh(render)
    image, weight = wanted.image, wanted.weight
    size = (view.camera.height, view.camera.width)
    if image.shape != (*size, 3) or (weight is not None and weight.shape != size):
        shapes = f"an image of {image.shape} and weights of {None if weight is None else weight.shape}"
        raise InputError(f"For a view of {size} pixels {shapes} were proposed; both must have the view's size.")
    if wanted.terms is not None and wanted.terms.keys() != view.terms.keys():
        names = f"{', '.join(wanted.terms)}, not {', '.join(view.terms)}"
        raise InputError(f"For a view the loss terms {names} were proposed; they must be the view's own.")
    return Wanted(
        np.ascontiguousarray(image, np.float32).clip(0, 1),
        None if weight is None else np.ascontiguousarray(weight, np.float32).clip(0, 1),
        wanted.terms,
    )


def _manager(views: Sequence[PseudoView], config: Any, photos: Any, device: str) -> Any:
    """A datamanager of the configuration's class for the views."""
    described = photos.train_dataparser_outputs
    outputs = DataparserOutputs(
        image_filenames=[view.image for view in views],
        cameras=nerfstudio_cameras([view.camera for view in views]),
        scene_box=described.scene_box,
        dataparser_scale=described.dataparser_scale,
        dataparser_transform=described.dataparser_transform,
    )
    if described.metadata.get("depth_filenames") is not None:
        # the photos come with depth maps: nothing is known of the views' own
        unknown = [config.dataparser.data / UNKNOWN_DEPTH] * len(views)
        outputs.metadata.update(depth_filenames=unknown, depth_unit_scale_factor=1.0)
    config.dataparser._target = lambda parser_config: _FixedDataParser(parser_config, outputs)
    # "inference" loads no image by itself, so that nothing is cached twice as evaluation data.
    manager = config.setup(device=device, test_mode="inference", world_size=1, local_rank=0)
    manager.setup_train()
    if hasattr(manager, "cached_train"):
        _ = manager.cached_train  # loads the images now, while nerfstudio's progress bars are silent
    manager.to(device)
    return manager


def _joined(rays: Any, batch: dict[str, Any], more: Any, other: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    """Rays and their batch with others after them."""
    count, added = len(batch["indices"]), len(other["indices"])
    joined: dict[str, Any] = {WEIGHT: torch.cat([batch.get(WEIGHT, torch.ones(count, 1)), other[WEIGHT]])}
    for key, value in batch.items():
        if key == WEIGHT:
            continue
        if not isinstance(value, Tensor) or len(value) != count:
            joined[key] = value
        elif key in other:
            joined[key] = torch.cat([value, other[key].to(value)])
        else:
            fill = torch.ones if key == "mask" else torch.zeros
            joined[key] = torch.cat([value, fill(added, *value.shape[1:]).to(value)])
    return _join_rays(rays, more), joined


def _join_rays(rays: Any, more: Any) -> Any:
    """Two of nerfstudio's ray bundles as one; what one of them lacks, the whole lacks."""

    def join(one: Any, other: Any) -> Any:
        if isinstance(one, dict):
            return {key: join(one[key], other[key]) for key in one.keys() & other.keys()}
        return torch.cat([one, other.to(one.device)]) if one is not None and other is not None else None

    return type(rays)(**{f.name: join(getattr(rays, f.name), getattr(more, f.name)) for f in dataclasses.fields(rays)})


def _image(path: Path) -> Tensor:
    """(H, W, 3) uint8."""
    with open_image(path) as image:
        return torch.from_numpy(np.array(image.convert("RGB")))


def _photo(view: PseudoView) -> Tensor | None:
    """(h, w, 3) uint8."""
    return None if view.photo is None else _image(view.photo)


def _weight(view: PseudoView) -> Tensor:
    """(H, W) uint8."""
    if view.weight is None:
        return torch.full((view.camera.height, view.camera.width), 255, dtype=torch.uint8)
    with open_image(view.weight) as image:
        return torch.from_numpy(np.array(image.convert("L")))


def order_of(manager: Any) -> dict[str, Any]:
    """What decides the order in which a datamanager draws whole images; empty for those that draw rays."""
    state: dict[str, Any] = {}
    if hasattr(manager, "train_unseen_cameras"):
        state["unseen_cameras"] = list(manager.train_unseen_cameras)
    if hasattr(manager, "random_generator"):
        state["camera_order"] = manager.random_generator.getstate()
    return state


def restore_order(manager: Any, state: dict[str, Any]) -> None:
    """Let a datamanager go on in the order that `order_of` told."""
    if "unseen_cameras" in state:
        manager.train_unseen_cameras = list(state["unseen_cameras"])
    if "camera_order" in state:
        version, words, gauss = state["camera_order"]
        manager.random_generator.setstate((version, tuple(words), gauss))
