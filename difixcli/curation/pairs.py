"""A pair and its files: a render, the photo of the same view, and what stands beside them."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from difixcli.reconstruction import Reconstruction, Render
from difixcli.reference_views import References, ReferenceViews
from difixcli.runs import atomic, write_image
from difixcli.scenes import load_mask, load_photo
from difixcli.scenes.scene import Camera, Scene

PROMPT = "remove degradation"  # the only prompt the published weights know
KINDS = ("render", "target", "opacity", "aligned", "depth", "correspondence")
"""Folders of a stage's images."""
FILE_KEYS = ("image", "target_image", "ref_image", "ref_images", "aligned_refs", "opacity", "depth", "correspondence")
"""The keys of a manifest's entry whose values are paths, or lists of paths."""

_PERFECT = 100.0  # dB; JSON knows no infinity


@dataclass(frozen=True, eq=False)
class Pair:
    """A degraded render and the photo taken from the same place, (H, W, 3) float32 RGB in [0, 1] both.

    Where the photo does not count (a mask, or what undistorting could not fill) it shows the render, so that nothing is
    learnt there; `mask` (H, W) bool is where it counts (None: everywhere). `frame` is the index of the photo in its
    scene; `psnr` (dB) and `ssim` compare the two where the photo counts; `parameters` say how the strategy was set.
    `variant` tells pairs of one frame apart.
    """

    frame: int
    camera: Camera
    render: Render
    photo: np.ndarray
    references: References
    psnr: float
    ssim: float
    parameters: Mapping[str, Any]
    mask: np.ndarray | None = None
    variant: str = ""


@dataclass(frozen=True)
class PairFiles:
    """How pairs are written: the suffix of renders and photos, and whether depth, and what it says of the references,
    is written too.
    """

    suffix: str = ".png"
    depth: bool = False


def render_pairs(
    scene: Scene,
    frames: Iterable[int],
    reconstruction: Reconstruction,
    references: Sequence[int],
    views: int,
    parameters: Mapping[str, Any],
) -> Iterator[Pair]:
    """Render the given frames' views one after another; only one pair is held at a time.

    The `views` nearest of the frames `references` by pose stand beside each, without the target itself.
    """
    beside = ReferenceViews(scene, references, reconstruction, views)
    for frame in frames:
        if (pair := render_pair(scene, frame, beside, [frame], parameters)) is not None:
            yield pair


def render_pair(
    scene: Scene,
    frame: int,
    beside: ReferenceViews,
    exclude: Sequence[int],
    parameters: Mapping[str, Any],
    variant: str = "",
) -> Pair | None:
    """The pair of one frame, with the nearest references but `exclude`; None where its mask leaves nothing of it."""
    from difixcli.evaluation.metrics import psnr, ssim

    camera = scene.frames[frame].camera
    render, photo = beside.reconstruction.render(camera), load_photo(scene.frames[frame])
    mask = load_mask(scene.frames[frame])
    if mask is not None:
        if not mask.any():
            return None
        photo = np.where(mask[..., None], photo, render.color)
    return Pair(
        frame=frame,
        camera=camera,
        render=render,
        photo=photo,
        mask=mask,
        references=beside.beside(camera, render, exclude=exclude),
        psnr=min(psnr(render.color, photo, mask), _PERFECT),
        ssim=ssim(render.color, photo, mask),
        parameters=parameters,
        variant=variant,
    )


def write_pair(home: Path, scene: Scene, pair: Pair, files: PairFiles, made: Mapping[str, Any]) -> dict[str, Any]:
    """Write a pair's files into a stage's folder `home` and return its manifest entry.

    `home` is OUTPUT/SCENE/STAGE and the entry's paths are relative to OUTPUT; `made` is what the entry says of the
    stage (strategy, method, iterations).

    Renders and photos have the asked format; aligned references (RGBA, the alpha is visibility) and opacity (8-bit
    grey) are always PNG. Depth is an .npz with one float32 array `depth` (H, W): the distance along the viewing axis
    in the unit of the camera's pose, 0 where there is none; times the entry's `depth_scale` it is in the unit of the
    scene's own file (metres where `metric`). Beside it, `correspondence` is an .npz with one float32 array
    `correspondence` (V, 3, H, W): which places of the references the render's pixels show (see
    `fixer.correspondence.correspond`), to a sixteenth of a pixel. Photos are written once a scene and shared by all
    pairs, but a masked one with its pair.
    """
    name = scene.file_names[pair.frame] + pair.variant
    camera = pair.camera

    def written(kind: str, image: np.ndarray, suffix: str = ".png", number: str = "") -> str:
        path = home / kind / f"{name}{number}{suffix}"
        write_image(path, image)
        return path.relative_to(home.parents[1]).as_posix()

    references = [
        _photo(home.parent, scene, frame, photo, files.suffix)
        for frame, photo in zip(pair.references.frames, pair.references.photos, strict=True)
    ]
    aligned = [
        written("aligned", np.concatenate([color, visible[..., None]], axis=-1), number=f".{i}")
        for i, (color, visible) in enumerate(zip(pair.references.aligned, pair.references.visibility, strict=True))
    ]
    entry = {
        "image": written("render", pair.render.color, files.suffix),
        "target_image": (
            _photo(home.parent, scene, pair.frame, pair.photo, files.suffix)
            if pair.mask is None
            else written("target", pair.photo, files.suffix)
        ),
        "ref_image": references[0] if references else None,
        "prompt": PROMPT,
        "ref_images": references,
        "aligned_refs": aligned,
        "opacity": written("opacity", pair.render.accumulation),
        "scene": scene.name,
        "frame": scene.frames[pair.frame].name,
        "strategy_params": dict(pair.parameters),
        **made,
        "camera": {
            "camera_to_world": [[round(float(v), 9) for v in row] for row in camera.camera_to_world],
            "fx": camera.fx,
            "fy": camera.fy,
            "cx": camera.cx,
            "cy": camera.cy,
            "width": camera.width,
            "height": camera.height,
        },
        "psnr": round(pair.psnr, 4),
        "ssim": round(pair.ssim, 5),
    }
    if files.depth:
        entry["depth"] = _array(home, "depth", name, pair.render.depth.astype(np.float32))
        entry["depth_scale"], entry["metric"] = 1 / scene.unit_scale, scene.metric
        if pair.references.frames and pair.references.correspondence is not None:
            places = pair.references.correspondence(len(pair.references.frames))
            # what is rounded is a fraction of the size
            rounded = (np.rint(places * 16) / 16).astype(np.float32)
            entry["correspondence"] = _array(home, "correspondence", name, rounded)
    entry["files"] = recorded_files(home.parents[1], entry)
    return entry


def recorded_files(folder: Path, entry: Mapping[str, Any]) -> dict[str, list[Any]]:
    """Bytes and the beginning of the SHA-256 of every image that an entry names: whoever trains need not look."""
    values = (entry[key] for key in ("image", "target_image", "ref_images", "aligned_refs", "opacity"))
    recorded = {}
    for name in sorted({name for value in values for name in ([value] if isinstance(value, str) else value)}):
        content = (folder / name).read_bytes()
        recorded[name] = [len(content), hashlib.sha256(content).hexdigest()[:16]]
    return recorded


def _array(home: Path, kind: str, name: str, values: np.ndarray) -> str:
    """Write an array as the only one of an .npz, under its kind's name; its path relative to the output."""
    path = home / kind / f"{name}.npz"
    with atomic(path) as temporary, temporary.open("wb") as file:
        np.savez_compressed(file, allow_pickle=False, **{kind: values})
    return path.relative_to(home.parents[1]).as_posix()


def pair_id(home: Path, scene: Scene, pair: Pair) -> str:
    """A pair's key in the manifest: scene, stage and frame, with what tells it from others of the frame.

    In a tar, what follows the first dot is a suffix, so dots become `~`, which no file name of ours has.
    """
    return f"{home.parent.name}__{home.name}__{scene.file_names[pair.frame]}{pair.variant}".replace(".", "~")


def _photo(folder: Path, scene: Scene, frame: int, photo: np.ndarray, suffix: str) -> str:
    """The path, relative to the output, of a photo in the scene's `folder`; written by the first pair that has it."""
    path = folder / "photos" / f"{scene.file_names[frame]}{suffix}"
    if not path.exists():
        write_image(path, photo)
    return path.relative_to(folder.parent).as_posix()
