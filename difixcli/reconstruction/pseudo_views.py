"""Pseudo-views enter training through a second datamanager of the method's own class.

Methods that train on whole images take one of them now and then in a photo's place. Methods that train on rays get
theirs beside the photos' in every batch: a short training cannot spare steps on photos, and both kinds pull at every
step. The method never learns that they are no photos. Two things are adjusted on the way:

- Their ids are those of training photos, so that appearance embeddings, camera optimisers and bilateral grids neither
  grow nor learn about images that are not there.
- Per-pixel trust. Where a pixel's weight w is below 1, its target is blended towards what the model renders there at
  this moment: target = w · image + (1 − w) · render. An absolute difference is thereby weighted by w and a squared one
  by w², structural terms see the blended image, and w = 0 pulls at nothing. It is the same for methods that sample
  rays and for those that draw whole images, and needs no support from the method's loss.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from nerfstudio.cameras.cameras import Cameras, CameraType
from nerfstudio.data.dataparsers.base_dataparser import DataParser, DataparserOutputs
from PIL import Image
from torch import Tensor
from torch.nn import functional

from difixcli.reconstruction.dataset import UNKNOWN_DEPTH
from difixcli.reconstruction.views import PseudoView
from difixcli.scenes.scene import Camera

WEIGHT = "pseudo_weight"
"""Key of a batch's per-pixel weights: (R, 1) beside rays, (H, W, 1) beside an image."""

COLOR_OUTPUTS = ("rgb", "rgb_fine")
"""The names under which nerfstudio's models return colour, the first that is there counts."""


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

    `manager_config` is the method's own datamanager configuration, `photos` the datamanager it made for the photos,
    `ids` the training photo (its position among the training photos) each view stands in for. `share` is the number of
    rays to draw per photo ray, where rays are drawn. `order` is what `state` gave in an earlier process: the same views
    go on being drawn in the same order, others begin anew.
    """

    def __init__(
        self,
        views: Sequence[PseudoView],
        ids: Sequence[int],
        share: float,
        manager_config: Any,
        photos: Any,
        device: str,
        order: dict[str, Any] | None = None,
    ) -> None:
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
            unknown = [manager_config.dataparser.data / UNKNOWN_DEPTH] * len(views)
            outputs.metadata.update(depth_filenames=unknown, depth_unit_scale_factor=1.0)
        config = copy.deepcopy(manager_config)
        self.draws_rays = hasattr(config, "train_num_rays_per_batch")
        if self.draws_rays:
            config.train_num_rays_per_batch = max(1, round(share * config.train_num_rays_per_batch))
        config.dataparser._target = lambda parser_config: _FixedDataParser(parser_config, outputs)
        # "inference" loads no image by itself, so that nothing is cached twice as evaluation data.
        self._manager = config.setup(device=device, test_mode="inference", world_size=1, local_rank=0)
        self._manager.setup_train()
        if hasattr(self._manager, "cached_train"):
            _ = self._manager.cached_train  # loads the images now, while nerfstudio's progress bars are silent
        self._manager.to(device)
        self._names = ["/".join(view.image.parts[-2:]) for view in views]  # a run's folder may have moved
        if order is not None and order["views"] == self._names:
            restore_order(self._manager, order)
        self._ids = torch.tensor(list(ids), dtype=torch.long)
        self._weights = [_weight(view) for view in views]
        self._flat_weights = torch.cat([weight.flatten() for weight in self._weights])
        sizes = torch.tensor([[view.camera.height, view.camera.width] for view in views])
        self._widths = sizes[:, 1]
        self._starts = torch.cumsum(sizes.prod(dim=1), dim=0) - sizes.prod(dim=1)

    @property
    def state(self) -> dict[str, Any]:
        """What `order` takes."""
        return {"views": self._names, **order_of(self._manager)}

    def next_train(self, step: int) -> tuple[Any, dict[str, Any]]:
        """A batch as the method's datamanager makes them, with photo ids and `WEIGHT` added."""
        source, batch = self._manager.next_train(step)
        batch = dict(batch)
        if isinstance(source, Cameras):
            view = int(batch["image_idx"])
            source.metadata = {**(source.metadata or {}), "cam_idx": int(self._ids[view])}
            batch["image_idx"] = int(self._ids[view])
            batch[WEIGHT] = self._weights[view][..., None] / 255
            return source, batch
        view, y, x = (column.long() for column in batch["indices"].cpu().unbind(dim=-1))
        batch[WEIGHT] = self._flat_weights[self._starts[view] + y * self._widths[view] + x][:, None] / 255
        batch["indices"] = torch.stack([self._ids[view], y, x], dim=-1).to(batch["indices"].device)
        if source.camera_indices is not None:
            ids = self._ids.to(source.camera_indices.device)
            source.camera_indices = ids[source.camera_indices.long()]
        return source, batch

    def beside(self, step: int, rays: Any, batch: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        """A batch of photo rays with pseudo-views' rays after them; photos weigh 1.

        What only the photos know of their rays (known distances, a sensor's depth) is 0 for the others, which says
        "unknown" wherever it is used; masks let all of them pass.
        """
        more, other = self.next_train(step)
        count, added = len(batch["indices"]), len(other["indices"])
        joined: dict[str, Any] = {WEIGHT: torch.cat([torch.ones(count, 1), other[WEIGHT]])}
        for key, value in batch.items():
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


def weigh_targets(get_loss_dict: Callable[..., dict[str, Tensor]]) -> Callable[..., dict[str, Tensor]]:
    """A model's `get_loss_dict` that heeds the weights of a batch of pseudo-views (see the module's docstring)."""

    def weighed(outputs: dict[str, Any], batch: dict[str, Any], *args: Any, **kwargs: Any) -> dict[str, Tensor]:
        if WEIGHT in batch:
            batch = {**batch, "image": _blend(outputs[_color_key(outputs)], batch["image"], batch[WEIGHT])}
        return get_loss_dict(outputs, batch, *args, **kwargs)

    return weighed


def _color_key(outputs: dict[str, Any]) -> str:
    return next(key for key in COLOR_OUTPUTS if key in outputs)


def _blend(render: Tensor, image: Tensor, weight: Tensor) -> Tensor:
    image = (image.float() / 255 if image.dtype == torch.uint8 else image).to(render.device)
    weight = weight.to(render.device)
    render = render.detach()
    if render.shape[:-1] != image.shape[:-1]:  # splatfacto begins at lower resolutions
        enlarged = functional.interpolate(render.movedim(-1, 0)[None], size=image.shape[:2], mode="bilinear")
        render = enlarged[0].movedim(0, -1)
    return weight * image + (1 - weight) * render


def _weight(view: PseudoView) -> Tensor:
    """(H, W) uint8."""
    if view.weight is None:
        return torch.full((view.camera.height, view.camera.width), 255, dtype=torch.uint8)
    with Image.open(view.weight) as image:
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
