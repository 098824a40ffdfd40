"""The loss of a batch as named, weighted terms: the method's own, and those that pseudo-views ask for.

A batch of photos has the method's own loss. A pseudo-view says which terms count for it and how much:

- `method`: the method's own loss. The gradient that reaches each pixel of its outputs is multiplied by the pixel's
  trust and by the term's weight, whatever the outputs are called and however many of them show colour. So trust 0
  teaches nothing, trust 1 is the plain loss, and a weight of 0.3 is 0.3 times everything that compares with the image.
  What a method asks of its samples or parameters (distortion, interlevel and scale regularisation) is left as it is.
  Where a whole image is drawn its target is blended as well: trust · image + (1 − trust) · render, since structural
  terms would carry what is not trusted over to the pixels beside it. An absolute difference thereby counts with the
  trust, a squared one with the trust along rays and with its square in images.
- `l2`, `l1`: squared and absolute error, weighted by trust.
- `d_ssim` or `d_ssim:S`: 1 - SSIM of a random square with S (by default 0.5) times the image's shorter side; what is
  not trusted learns nothing, nor does an image of fewer than 11 pixels a side. 0.8·`l1` + 0.2·`d_ssim` is what splats
  learn by, also where rays are drawn.
- `perceptual` or `perceptual:S`: distance between deep features (LPIPS on VGG-16 where its weights are on this machine,
  else st-LPIPS on AlexNet), each layer's map weighted by trust, on a random square with S (by default 0.5) times the
  image's shorter side.
- `low_resolution:N`, or `low_resolution:N:bicubic`: (1 - δ)·L1 + δ·D-SSIM, δ = 0.2, after both images are made N times
  smaller, as 3DSR has it (`images.reduced`: by area, or bicubic). Where the view brings a low-resolution photo, what is
  compared with is that. Pixels count by their trust. D-SSIM is left out where fewer than 11 pixels a side are left.

Other packages add theirs with `add_term`. A term is measured on the final colour the model renders. Where rays are
drawn it counts by its part of the batch's rays, as the method's own mean over rays does; for a term that needs
neighbouring pixels they are drawn as squares, in batches larger and rarer than others (`RAYS`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from difixcli.errors import InputError, unknown
from difixcli.images import reduced
from difixcli.reconstruction.terms import METHOD, check_weights, no_parameter, reduction_of, share_of
from difixcli.reconstruction.views import Fresh

WEIGHT = "pseudo_weight"
"""Key of a batch's per-pixel trust: (R, 1) beside rays (1 for photos'), (H, W, 1) beside an image."""
DRAWN = "pseudo_drawn"
"""Key of what pseudo-views brought into a batch: a list of `Drawn`."""
RAYS = "pseudo_rays"
"""Key of how many rays a batch has on average, where pseudo-views' come in some batches only: each ray counts as one of
so many, or photos would count for more in the batches that hold nothing else."""

COLOR_OUTPUTS = ("rgb", "rgb_fine")
"""The names under which nerfstudio's models return their final colour, the first that is there counts."""

SMALLEST_SQUARE = 32
"""Pixels: in smaller squares perceptual networks see little but their padding."""

SSIM_WINDOW = 11
"""Pixels a side that SSIM's window has, and an image at least."""
_D_SSIM = 0.2  # δ, splatting's and 3DSR's

Losses = dict[str, Tensor]
Measure = Callable[[Tensor, Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Term:
    """How one term of the loss is measured.

    `measure(render, target, weight)` gives a mean () over pixels. Render and target are (h, w, 3) RGB in [0, 1] and
    weight (h, w, 1) is the trust in [0, 1]; the gradient flows into the render alone. No trust gives 0, trust 1
    everywhere the plain term. Where `neighbours` is False, the same may be asked of pixels from anywhere: (N, 3) and
    (N, 1). `share` is the side of the square that is looked at as a part of the image's shorter side; 1 is the whole
    image. Squares begin at, and have sides of, multiples of `block` pixels. `reduces` says that target and trust may as
    well be `block` times smaller than the render.
    """

    measure: Measure
    neighbours: bool = True
    share: float = 1.0
    block: int = 1
    reduces: bool = False


@dataclass(frozen=True, eq=False)
class Drawn:
    """Pixels of a batch that are pseudo-views', and what counts for them.

    `rays` (N,) int64 are the rays' positions in the batch, None where the batch is one whole image. `shape` is (h, w)
    where the rays are a square's pixels, row by row. `place`, two numbers in [0, 1), says where squares are cut out of
    an image. `fresh` proposes a whole image's target; what is proposed for rays is in their batch already. `photo`, if
    there is one, is the part of a low-resolution photo that shows the same, (h / n, w / n, 3) uint8.
    """

    terms: Mapping[str, float]
    rays: Tensor | None = None
    shape: tuple[int, int] | None = None
    place: tuple[float, float] = (0.0, 0.0)
    fresh: Fresh | None = None
    photo: Tensor | None = None


def add_term(name: str, make: Callable[[str | None], Term]) -> None:
    """Let pseudo-views ask for a term `name` or `name:parameter`; `make` gets the parameter's text, or None.

    `make` raises InputError for a parameter that makes no sense.
    """
    if ":" in name or name == METHOD:
        raise ValueError(f"{name!r} cannot be the name of a term")
    _TERMS[name] = make


def find_term(name: str) -> Term:
    """The term that a pseudo-view calls `name`; InputError for one that is not known, with those that are."""
    kind, colon, parameter = name.partition(":")
    if kind not in _TERMS:
        raise unknown("loss term", kind, [METHOD, *_TERMS])
    return _TERMS[kind](parameter if colon else None)


def check_terms(terms: Mapping[str, float], height: int, width: int) -> None:
    """InputError unless a view of this size can be taught by these terms."""
    for name in terms:
        if name != METHOD and (block := find_term(name).block) > min(height, width):
            raise InputError(f"The loss term {name} needs {block} pixels a side; a pseudo-view has {width}×{height}.")
    check_weights(terms)


def needs_neighbours(terms: Mapping[str, float]) -> bool:
    """Whether any of the terms looks at pixels that lie side by side."""
    return any(term.neighbours for _, _, term in _counted(terms))


def square(
    terms: Iterable[Term], height: int, width: int, place: tuple[float, float], most: int | None = None
) -> tuple[int, int, int]:
    """The row, column and side of the square of an image that the terms look at.

    It is as large as the one that looks at most needs, but at least `SMALLEST_SQUARE` where the image is, and holds no
    more than `most` pixels unless it would be smaller than that.
    """
    terms = list(terms)
    block = math.lcm(*(term.block for term in terms))
    side = max(round(max(term.share for term in terms) * min(height, width)), SMALLEST_SQUARE)
    if most is not None:
        side = min(side, max(math.isqrt(most), SMALLEST_SQUARE))
    side = max(min(side, height, width) // block, 1) * block
    row, column = (
        int(part * ((length - side) // block + 1)) * block for part, length in zip(place, (height, width), strict=True)
    )
    return row, column, side


def install(model: Any, extras: Sequence[Callable[[dict[str, Any], dict[str, Any]], Losses]] = ()) -> None:
    """Let a nerfstudio model's `get_loss_dict` be the objective.

    `extras` are further losses of every batch, functions of (outputs, batch).
    """
    own = model.get_loss_dict

    def get_loss_dict(outputs: dict[str, Any], batch: dict[str, Any], *args: Any, **kwargs: Any) -> Losses:
        losses: Losses
        if DRAWN in batch:
            batch = _proposed(outputs, batch)
            losses = own(*_trusted(outputs, batch), *args, **kwargs)
            for name, value in _asked(outputs, batch):
                losses[name] = losses[name] + value if name in losses else value
        else:
            losses = own(outputs, batch, *args, **kwargs)
        for extra in extras:
            losses |= extra(outputs, batch)
        return losses

    model.get_loss_dict = get_loss_dict


def _proposed(outputs: dict[str, Any], batch: dict[str, Any]) -> dict[str, Any]:
    """The batch with what is proposed for its image at this moment, in [0, 1] and on the model's device."""
    color = final_color(outputs)
    image, weight = batch["image"].to(color.device), batch[WEIGHT].to(color.device)
    image = image.float() / 255 if image.dtype == torch.uint8 else image
    parts = []
    for drawn in batch[DRAWN]:
        if drawn.fresh is not None and drawn.rays is None:
            render = _resized(color.detach().float().clamp(0, 1), image.shape[:2]).cpu().numpy()
            wanted = drawn.fresh(partial(np.copy, render))
            image = torch.from_numpy(wanted.image).to(image)
            trust = wanted.weight
            weight = torch.ones_like(weight) if trust is None else torch.from_numpy(trust)[..., None].to(weight)
            parts.append(replace(drawn, terms=wanted.terms or drawn.terms))
        else:
            parts.append(drawn)
    return {**batch, "image": image, WEIGHT: weight, DRAWN: parts}


def _trusted(outputs: dict[str, Any], batch: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Outputs whose pixels learn as far as they are trusted, and the batch to compare them with."""
    color, image, weight = final_color(outputs), batch["image"], batch[WEIGHT]
    if any(drawn.rays is None for drawn in batch[DRAWN]):
        (drawn,) = batch[DRAWN]
        factor = _resized(weight, color.shape[:2]) * drawn.terms.get(METHOD, 0.0)
        image = weight * image[..., :3] + (1 - weight) * _resized(color.detach(), image.shape[:2])
    else:
        factor = weight * (len(color) / batch.get(RAYS, len(color)))
        for drawn in batch[DRAWN]:
            factor[drawn.rays] *= drawn.terms.get(METHOD, 0.0)
    learning = {key: _learn(value, factor) for key, value in outputs.items()}
    return {**outputs, **learning}, {**batch, "image": image}


def _asked(outputs: dict[str, Any], batch: dict[str, Any]) -> Iterable[tuple[str, Tensor]]:
    """The terms beside the method's own that a batch's pseudo-views ask for."""
    for drawn in batch[DRAWN]:
        color, target, weight = final_color(outputs).float(), batch["image"][..., :3].float(), batch[WEIGHT]
        counts = 1.0
        if drawn.rays is not None:
            counts = len(drawn.rays) / batch.get(RAYS, len(color))
            color, target, weight = (values[drawn.rays] for values in (color, target, weight))
            if drawn.shape is not None:
                color, target, weight = (values.reshape(*drawn.shape, -1) for values in (color, target, weight))
        elif color.shape != target.shape:  # splatfacto begins at lower resolutions
            target, weight = (_resized(values, color.shape[:2]) for values in (target, weight))
        for name, factor, term in _counted(drawn.terms):
            render, wanted, trust = color, target, weight
            if drawn.rays is None and term.share < 1:
                row, column, side = square([term], color.shape[0], color.shape[1], drawn.place)
                cut = (slice(row, row + side), slice(column, column + side))
                render, wanted, trust = color[cut], target[cut], weight[cut]
            if term.reduces and drawn.photo is not None:
                wanted = drawn.photo.to(color.device).float() / 255
            with torch.autocast(color.device.type, enabled=False):
                yield f"pseudo_{name}", factor * counts * term.measure(render, wanted, trust)


def _counted(terms: Mapping[str, float]) -> list[tuple[str, float, Term]]:
    return [(name, weight, find_term(name)) for name, weight in terms.items() if name != METHOD and weight > 0]


def final_color(outputs: dict[str, Any]) -> Tensor:
    """The colour that a nerfstudio model's outputs end in, of several networks' the last one's."""
    color: Tensor = next(outputs[key] for key in COLOR_OUTPUTS if key in outputs)
    return color


class _Learn(torch.autograd.Function):
    """The value itself, whose gradient is multiplied by a factor."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, factor: Tensor) -> Tensor:
        ctx.save_for_backward(factor)
        return value.view_as(value)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]
        (factor,) = ctx.saved_tensors
        return (gradient * factor).to(gradient.dtype), None


def _learn(value: Any, factor: Tensor) -> Any:
    """An output whose gradient is multiplied by the pixels' factor (…, 1), if it has a value for each pixel."""
    if not isinstance(value, Tensor) or not value.requires_grad or value.ndim < 2:
        return value
    if math.prod(value.shape[:-1]) != factor.numel():
        return value
    return _Learn.apply(value, factor.reshape(*value.shape[:-1], 1))


def _resized(image: Tensor, size: Sequence[int]) -> Tensor:
    """An image (H, W, C) of another size: averaged over areas when it shrinks, bilinear when it grows."""
    if tuple(image.shape[:2]) == tuple(size):
        return image
    mode = "area" if size[0] <= image.shape[0] and size[1] <= image.shape[1] else "bilinear"
    return functional.interpolate(image.movedim(-1, 0)[None], size=tuple(size), mode=mode)[0].movedim(0, -1)


def _l2(parameter: str | None) -> Term:
    no_parameter("l2", parameter)
    return Term(lambda render, target, weight: (weight * (render - target) ** 2).mean(), neighbours=False)


def _l1(parameter: str | None) -> Term:
    no_parameter("l1", parameter)
    return Term(lambda render, target, weight: (weight * (render - target).abs()).mean(), neighbours=False)


def _structural(parameter: str | None) -> Term:
    def measure(render: Tensor, target: Tensor, weight: Tensor) -> Tensor:
        shown = weight * render + (1 - weight) * render.detach()
        if min(shown.shape[:2]) < SSIM_WINDOW:
            return 0 * shown.mean()
        wanted = weight * target + (1 - weight) * render.detach()
        return 1 - _ssim(shown, wanted)

    return Term(measure, share=share_of("d_ssim", parameter))


def _perceptual(parameter: str | None) -> Term:
    return Term(_perceptual_distance, share=share_of("perceptual", parameter))


def _perceptual_distance(render: Tensor, target: Tensor, weight: Tensor) -> Tensor:
    from difixcli.evaluation.perceptual import lpips_available, shared_network

    kind, net = ("lpips", "vgg") if lpips_available("vgg") else ("st_lpips", "alex")
    network = shared_network(kind, net, str(render.device))  # type: ignore[arg-type]
    one, other, trust = (values.movedim(-1, 0)[None] for values in (render, target, weight))
    with torch.no_grad():
        wanted = network.features(other)
    return network.between(network.features(one), wanted, trust).mean()


def _low_resolution(parameter: str | None) -> Term:
    size, way = reduction_of(parameter)

    def measure(render: Tensor, target: Tensor, weight: Tensor) -> Tensor:
        """Of a render (H, W, 3) and a target of that size or `size` times smaller."""
        rows, columns = (side // size * size for side in render.shape[:2])  # what lies beyond whole blocks is left out

        def small(image: Tensor) -> Tensor:
            return reduced(image[:rows, :columns].movedim(-1, 0)[None], size, way)[0].movedim(0, -1)

        shown = small(weight * render + (1 - weight) * render.detach())  # what is not trusted learns nothing
        if size > 1 and target.shape[0] < render.shape[0]:
            target = _resized(target, shown.shape[:2])
            trust = _resized(weight[:rows, :columns], shown.shape[:2])
            wanted = trust * target + (1 - trust) * shown.detach()
        else:
            wanted = small(weight * target + (1 - weight) * render.detach())
        distance = (1 - _D_SSIM) * (shown - wanted).abs().mean()
        if min(shown.shape[:2]) < SSIM_WINDOW:
            return distance
        return distance + _D_SSIM * (1 - _ssim(shown, wanted))

    return Term(measure, block=size, reduces=True)


def _ssim(one: Tensor, other: Tensor) -> Tensor:
    """Mean SSIM of two images (H, W, C) in [0, 1]."""
    pair = (image.movedim(-1, 0)[None].float() for image in (one, other))
    if one.device.type == "cpu":
        from difixcli.reconstruction.ssim import CpuSsim

        return CpuSsim()(*pair)
    from pytorch_msssim import ssim

    return ssim(*pair, data_range=1.0)


_TERMS: dict[str, Callable[[str | None], Term]] = {
    "l2": _l2,
    "l1": _l1,
    "d_ssim": _structural,
    "perceptual": _perceptual,
    "low_resolution": _low_resolution,
}
