"""Protocols: named ways to measure, each fixing what a number depends on besides the images.

A figure means something only beside its split, its views, its crop, its size and its mask. A protocol fixes them all,
so that two numbers of one protocol may stand in one table.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from difixcli.errors import InputError, unknown
from difixcli.scenes.scene import Scene, Split
from difixcli.scenes.splits import DEFAULT_RULE, default_split_rule, make_split

_DL3DV_SIDE = 960  # DL3DV's 960P release


@dataclass(frozen=True)
class ObjectCrop:
    """A square picture of an object before black: everything outside its mask is black, in renders and photos alike.

    The box around the mask is made larger by `context` of its width and height (half of it on each side), cut where the
    photo ends, scaled until its longer side has `side` pixels, and filled up with black to the right and below.
    """

    context: float
    side: int

    def cut(self, image: np.ndarray, mask: np.ndarray) -> np.ndarray:
        """(side, side, 3) of an image (H, W, 3) in [0, 1] and its object's mask (H, W) bool, which is not empty."""
        import cv2

        rows, columns = (np.flatnonzero(mask.any(axis=axis)) for axis in (1, 0))
        spans = []
        for found, end in ((rows, mask.shape[0]), (columns, mask.shape[1])):
            margin = self.context / 2 * (found[-1] + 1 - found[0])
            spans.append(slice(max(0, round(found[0] - margin)), min(end, round(found[-1] + 1 + margin))))
        part = np.where(mask[..., None], image, 0)[spans[0], spans[1]]
        scale = self.side / max(part.shape[:2])
        height, width = (max(1, round(size * scale)) for size in part.shape[:2])
        how = cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR
        picture = np.zeros((self.side, self.side, 3), dtype=np.float32)
        picture[:height, :width] = np.clip(
            cv2.resize(part.astype(np.float32), (width, height), interpolation=how), 0, 1
        )
        return picture


@dataclass(frozen=True)
class Protocol:
    """How images are measured.

    `enlargement` says what a run of super-resolution was asked for, as its record has it, or is None.

    `split` says which views train and which are measured; `rule` makes it for a scene, given the split that the run
    was made with, or is None where the run's own stands. `views` says which of the measured views count. `long_side`
    is the size in pixels that larger images are shrunk to (area-averaged) together with their truth and mask; `crop`
    is how a view is cut to its object, or None. With `visibility` only pixels count that a training photo sees too.
    With `by_camera` the figures are also given for each camera of a rig. With `known_seeds` the scene must say which
    photos saw its seed points, so that training has none from the others.
    """

    name: str
    split: str
    views: str
    rule: Callable[[Scene, Split], str] | None = None
    long_side: int | None = None
    visibility: bool = False
    by_camera: bool = False
    enlargement: Mapping[str, int | str] | None = None
    crop: ObjectCrop | None = None
    known_seeds: bool = False

    def size(self, width: int, height: int) -> tuple[int, int]:
        """The (width, height) at which an image of that size is measured."""
        if self.crop is not None:
            return self.crop.side, self.crop.side
        if self.long_side is None or max(width, height) <= self.long_side:
            return width, height
        scale = self.long_side / max(width, height)
        return max(round(width * scale), 1), max(round(height * scale), 1)

    def sized(self, image: np.ndarray) -> np.ndarray:
        """An image (H, W, 3), or a mask (H, W) of bool, at the size at which it is measured."""
        import cv2

        width, height = self.size(image.shape[1], image.shape[0])
        if (width, height) == (image.shape[1], image.shape[0]):
            return image
        if image.dtype == bool:  # a pixel counts when all that it is made of does
            return cv2.resize(image.astype(np.float32), (width, height), interpolation=cv2.INTER_AREA) > 1 - 1e-4
        return np.clip(cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA), 0, 1)

    @property
    def resize(self) -> str:
        if self.crop is not None:
            return f"the object's box to a long side of {self.crop.side} pixels"
        if self.long_side is None:
            return "none"
        return f"area-averaged to a long side of at most {self.long_side} pixels"


OWN = Protocol("own", "the run's own", "all test views")
"""What is measured unless a protocol is named: the run as it is."""


def _two_paths(scene: Scene, _: Split) -> str:
    rule = default_split_rule(scene)
    if rule == DEFAULT_RULE:
        raise InputError(
            f"The protocol nerfbusters needs two camera paths, but {scene.name} does not say which photo is on which; "
            "name photos _train_ and _eval_ (or frame_1_ and frame_2_), or write split.json into the scene."
        )
    return rule


def _one_camera(scene: Scene, held: Split) -> str:
    cameras = list(dict.fromkeys(scene.frames[i].camera_id for i in held.train))
    if len({frame.camera_id for frame in scene.frames}) < 2:
        raise InputError(f"The protocol rds needs a rig, but all photos of {scene.name} are of one camera.")
    if len(cameras) != 1:
        raise InputError(
            f"The protocol rds trains on one camera and measures the others, but the run trains on cameras "
            f"{', '.join(cameras)}; train with --split camera:ID."
        )
    return f"camera:{cameras[0]}"


NERFBUSTERS = Protocol(
    "nerfbusters", "two paths: the first trains, the second is measured", "all of the second path", _two_paths,
    visibility=True,
)  # fmt: skip
DL3DV = Protocol(
    "dl3dv", "two clusters of camera positions: the larger trains", "all of the smaller cluster",
    lambda scene, held: "clusters", long_side=_DL3DV_SIDE,
)  # fmt: skip
RDS = Protocol("rds", "one camera of a rig trains", "all of its other cameras", _one_camera, by_camera=True)
_SUPER_RESOLUTION = Protocol(
    "", "every eighth photo is measured, the others train", "all of them", lambda scene, held: "test-every:8",
    enlargement={"upscale": 4, "reduce": 8, "operator": "bicubic"},
)  # fmt: skip
LLFF_SR = replace(_SUPER_RESOLUTION, name="llff-sr")
MIP360_SR = replace(_SUPER_RESOLUTION, name="mip360-sr")
CO3D = Protocol(
    "co3d-2view", "two of 32 evenly spaced frames train", "the other thirty", lambda scene, held: "co3d:2",
    crop=ObjectCrop(context=0.3, side=256), known_seeds=True,
)  # fmt: skip
SPARSE = Protocol("sparse", "every eighth view is measured, K of the others train", "all of them", known_seeds=True)
RE10K = Protocol("re10k-2view", "two frames of a clip train", "all frames between", known_seeds=True)
_RE10K_FRAMES = {"": 45, "large": 201}
"""From one of the two frames to the other, both included: at small angles, and at large ones."""
DL3DV_FEW = Protocol(
    "dl3dv-K", "K evenly spaced frames train", "all others", long_side=_DL3DV_SIDE, known_seeds=True
)  # fmt: skip
EVERY = Protocol("every", "every N-th view trains", "all others")
SPARSE_VIEWS = (2, 3, 6, 9)

PROTOCOL_NAMES = (
    "nerfbusters",
    "dl3dv",
    "rds",
    "llff-sr",
    "mip360-sr",
    "co3d-2view",
    "re10k-2view",
    "dl3dv-K",
    "sparse:K",
    "every:N",
)


def parse_protocol(text: str) -> Protocol:
    """The protocol of a name: `nerfbusters`, `dl3dv`, `rds`, `llff-sr`, `mip360-sr`, `co3d-2view`, `re10k-2view`,
    `dl3dv-K`, `sparse:K` or `every:N`.

    - `nerfbusters` (Warburg et al., ICCV 2023): two paths (see `default_split_rule`), the first trains; only pixels of
      the second count whose surface, by the depth of one reconstruction of both paths, lies in a training photo's
      frustum; size as rendered. The method's own depth, which the paper also bounds, does not count, as in Difix3D+.
    - `dl3dv` (as Difix3D+ splits it): two clusters of camera positions, the larger trains; measured at a long side of
      at most 960 pixels, the size of DL3DV's 960P release.
    - `rds` (driving rigs in Difix3D+): one camera trains, the others are measured, together and camera by camera; size
      as rendered.
    - `llff-sr`, `mip360-sr` (3DSR, ICCV 2025): photos made 8 times smaller (bicubic), results 4 times larger than that;
      every eighth photo is measured at the result's size.
    - `co3d-2view` (SparseFusion, CVPR 2023): 32 evenly spaced frames of a CO3D sequence, two of which train; measured
      in the object's box, with 0.3 of context, at 256 pixels, before black. Conventions of ours: which two (the paper
      shuffles by the sequence's number in a list, we by the seed 0), masks cut at one half and not at 0.4, and renders
      masked as the photo is, since methods other than the paper's have a background. Which network its LPIPS has is
      not known here; every figure names its own.
    - `sparse:K`, K = 2, 3, 6 or 9 (Mip-NeRF 360 with few views, as in ReconFusion and ReconX): every eighth photo is
      measured, K of the others train, evenly spaced by index; size as rendered. Conventions of ours: even spacing,
      which is RegNeRF's (ReconFusion publishes lists of its own, which `--split file:` takes).
    - `re10k-2view` (two frames of a clip of RealEstate10K, as in ReconX): the middle 45 frames of a clip, of which the
      first and the last train; `re10k-2view:large`, the middle 201 (the paper's hard set has more than 200 frames from
      one to the other). Size as rendered. Conventions of ours: 45, and the middle (published lists of frames can be
      given by `--split file:`).
    - `dl3dv-2`, `dl3dv-3`, `dl3dv-6`, `dl3dv-9` (ReconX): so many frames train, evenly spaced by index from the first
      to the last, all others are measured, at a long side of at most 960 pixels. Even spacing is ours.
    - `every:N`: every N-th view trains, all others are measured; size as rendered.

    `co3d-2view`, `re10k-2view`, `dl3dv-K` and `sparse:K` want a scene that says which photos saw its seed points (a
    COLMAP model), of which only those that training photos saw are used, or one without any. Only `co3d-2view` crops;
    in the others what a photo's own mask leaves out does not count. InputError for any other name.
    """
    name, _, argument = text.strip().partition(":")
    fixed = {protocol.name: protocol for protocol in (NERFBUSTERS, DL3DV, RDS, LLFF_SR, MIP360_SR, CO3D)}
    if name in fixed and not argument:
        return fixed[name]
    if name == EVERY.name:
        if not argument.isdecimal() or int(argument) < 2:
            raise InputError(f"The protocol {text!r} needs a whole number of at least 2, as in every:4.")
        return _by_rule(EVERY, f"every:{int(argument)}", f"every:{int(argument)}")
    if name == SPARSE.name:
        if not argument.isdecimal() or int(argument) not in SPARSE_VIEWS:
            raise InputError(
                f"The protocol {text!r} is not published: it has 2, 3, 6 or 9 training views, as in sparse:3; where "
                "every N-th view trains, name every:N."
            )
        rule = f"sparse:{int(argument)}"
        return _by_rule(SPARSE, rule, f"{SPARSE.split.replace('K', argument)}")
    if name == RE10K.name:
        if argument not in _RE10K_FRAMES:
            raise InputError(f"The protocol {text!r} is re10k-2view, at small angles, or re10k-2view:large; write one.")
        rule = f"between:2:{_RE10K_FRAMES[argument]}"
        return replace(_by_rule(RE10K, rule, RE10K.split), name=text.strip())
    few, _, views = name.rpartition("-")
    if few == DL3DV.name and not argument:
        if not views.isdecimal() or int(views) not in SPARSE_VIEWS:
            raise InputError(f"The protocol {text!r} is not published: it has 2, 3, 6 or 9 views, as in dl3dv-3.")
        return replace(_by_rule(DL3DV_FEW, f"between:{int(views)}", DL3DV_FEW.split), name=name)
    if name in fixed:
        raise InputError(f"The protocol {text!r} takes no argument; write {name}.")
    raise unknown("protocol", text, PROTOCOL_NAMES)


def _by_rule(protocol: Protocol, rule: str, split: str) -> Protocol:
    """The protocol with one rule for every scene, and called after it."""
    return replace(protocol, name=rule, split=split, rule=lambda scene, held: rule)


def check_seeds(protocol: Protocol, scene: Scene) -> None:
    """InputError where a protocol wants to know which photos saw the seed points, and the scene does not."""
    if protocol.known_seeds and scene.tracks is None and len(scene.points):
        raise InputError(
            f"The protocol {protocol.name} allows no seed points from held-out photos, and {scene.name} does not say "
            "which photos saw its own; put its COLMAP model into colmap/sparse/0, or remove the points and train again."
        )


def check_split(protocol: Protocol, scene: Scene, held: Split, where: str) -> None:
    """InputError, naming the difference, when a run's split of its scene is not the protocol's.

    `where` is what to call the run.
    """
    if protocol.rule is None:
        return
    wanted = make_split(scene, protocol.rule(scene, held))
    differences = []
    for kind, ours, theirs in (("trains on", held.train, wanted.train), ("measures", held.test, wanted.test)):
        extra, lacking = sorted(set(ours) - set(theirs)), sorted(set(theirs) - set(ours))
        if extra:
            differences.append(f"{where} {kind} {_some(scene, extra)}, the protocol does not")
        if lacking:
            differences.append(f"the protocol {kind} {_some(scene, lacking)}, {where} does not")
    if differences:
        raise InputError(
            f"{where} was made with the split {held.rule}, which is not that of the protocol {protocol.name} "
            f"({wanted.rule}): {differences[0]}. Train it with --split {wanted.rule}."
        )


def check_enlargement(protocol: Protocol, held: Mapping[str, Any] | None, where: str) -> None:
    """InputError, naming the difference, when a run was asked for another super-resolution than the protocol's.

    `held` is what the run's record says of it, `where` what to call the run.
    """
    if protocol.enlargement is None:
        return
    options = {"upscale": "--upscale", "reduce": "--reduce", "operator": "--downscale"}
    for key, wanted in protocol.enlargement.items():
        if held is None or held.get(key) != wanted:
            found = "none" if held is None else f"{options[key]} {held.get(key)}"
            line = " ".join(f"{options[name]} {value}" for name, value in protocol.enlargement.items())
            raise InputError(
                f"{where} was made with {found}, which is not the protocol {protocol.name}'s; distill it with "
                f"--prior super-resolution {line}."
            )


def _some(scene: Scene, frames: Sequence[int]) -> str:
    names = ", ".join(scene.frames[i].name for i in frames[:3])
    return names + (f" and {len(frames) - 3} more" if len(frames) > 3 else "")
