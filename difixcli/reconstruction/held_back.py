"""Training photos that nerfstudio's datamanagers shall not draw for a while, though they know them."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any


def draw_without(manager: Any, held: Collection[int]) -> bool:
    """Let a datamanager draw no photo at these positions among its training photos; none of them: draw all again.

    Ids stay what they are, so nothing in the method that belongs to a photo has to grow or shrink. Returns whether the
    datamanager is of a kind that this knows: nerfstudio's for whole images, and those for rays that hold all images.
    """
    if hasattr(manager, "train_unseen_cameras") and hasattr(manager, "sample_train_cameras"):
        _whole_images(manager, held)
        return True
    loader = getattr(manager, "train_image_dataloader", None)
    if not getattr(loader, "cache_all_images", False):
        return not held
    _rays(loader, held)
    return True


def _whole_images(manager: Any, held: Collection[int]) -> None:
    sample = type(manager).sample_train_cameras

    def kept() -> list[int]:
        order: list[int] = []
        while not order:  # a strategy that draws some of them may draw only such as are held back
            order = [i for i in sample(manager) if i not in held]
        return order

    manager.sample_train_cameras = kept
    manager.train_unseen_cameras = [i for i in manager.train_unseen_cameras if i not in held] or kept()


def _rays(loader: Any, held: Collection[int]) -> None:
    """The images that pixels are drawn from are collected anew, in their old order and not beside the old ones:
    photos fill most of the memory.
    """
    from nerfstudio.utils.misc import get_dict_to_torch

    if not hasattr(loader, "whole_order"):
        loader.whole_order = [int(i) for i in loader.cached_collated_batch["image_idx"]]
    kept = [i for i in loader.whole_order if i not in held]
    if kept == [int(i) for i in loader.cached_collated_batch["image_idx"]]:
        return
    loader.cached_collated_batch = None
    batch = loader.collate_fn([loader.dataset[i] for i in kept])
    loader.cached_collated_batch = get_dict_to_torch(
        batch, device=loader.device, exclude=loader.exclude_batch_keys_from_device
    )
