"""A pair and its manifest: the original release's `data.json` schema plus our keys."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from difixcli.reconstruction import Render
from difixcli.reference_views import References
from difixcli.runs import read_json, write_image, write_json
from difixcli.scenes import load_photo
from difixcli.scenes.scene import Camera, Scene

PROMPT = "remove degradation"  # the only prompt the published weights know


@dataclass(frozen=True, eq=False)
class Pair:
    """A degraded render and the photo taken from the same place.

    `frame` is the index of the photo in its scene; `key` tells this pair's reconstruction from others of the scene.
    """

    frame: int
    camera: Camera
    render: Render
    references: References
    strategy: str
    key: str
    parameters: Mapping[str, Any] = field(default_factory=dict)


def write_pair(folder: Path, scene: Scene, pair: Pair, method: str, iterations: int) -> dict[str, Any]:
    """Write a pair's images under `folder/SCENE/…` and return its manifest entry, paths relative to `folder`.

    Renders, aligned references (RGBA, the alpha is visibility) and opacity (8-bit grey) are PNG; photos are written
    once a scene and shared by all pairs.
    """
    from difixcli.evaluation.metrics import psnr, ssim

    name = _file_name(scene.frames[pair.frame].name)
    home = folder / _file_name(scene.name) / pair.key
    truth = load_photo(scene.frames[pair.frame])
    write_image(home / "render" / f"{name}.png", pair.render.color)
    write_image(home / "opacity" / f"{name}.png", pair.render.accumulation)
    aligned = []
    for i, (color, visible) in enumerate(zip(pair.references.aligned, pair.references.visibility, strict=True)):
        path = home / "aligned" / f"{name}.{i}.png"
        write_image(path, np.concatenate([color, visible[..., None]], axis=-1))
        aligned.append(path)
    references = [_photo(folder, scene, frame) for frame in pair.references.frames]

    def relative(path: Path) -> str:
        return path.relative_to(folder).as_posix()

    camera = pair.camera
    return {
        "image": relative(home / "render" / f"{name}.png"),
        "target_image": relative(_photo(folder, scene, pair.frame)),
        "ref_image": relative(references[0]) if references else None,
        "prompt": PROMPT,
        "ref_images": [relative(path) for path in references],
        "aligned_refs": [relative(path) for path in aligned],
        "opacity": relative(home / "opacity" / f"{name}.png"),
        "scene": scene.name,
        "frame": scene.frames[pair.frame].name,
        "strategy": pair.strategy,
        "strategy_params": dict(pair.parameters),
        "method": method,
        "iterations": iterations,
        "camera": {
            "camera_to_world": [[round(float(v), 9) for v in row] for row in camera.camera_to_world],
            "fx": camera.fx,
            "fy": camera.fy,
            "cx": camera.cx,
            "cy": camera.cy,
            "width": camera.width,
            "height": camera.height,
        },
        "psnr": round(psnr(pair.render.color, truth), 4),
        "ssim": round(ssim(pair.render.color, truth), 5),
    }


def pair_id(scene: Scene, pair: Pair) -> str:
    return f"{_file_name(scene.name)}__{pair.key}__{_file_name(scene.frames[pair.frame].name)}"


def write_manifest(folder: Path, test_scenes: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Gather the finished stages' entries into `folder/data.json`; scenes in `test_scenes` go to `test` whole."""
    manifest: dict[str, dict[str, Any]] = {"train": {}, "test": {}}
    for stage in sorted(folder.glob("*/*/pairs.json")):
        for identity, entry in read_json(stage).items():
            manifest["test" if entry["scene"] in test_scenes else "train"][identity] = entry
    write_json(folder / "data.json", manifest)
    return manifest


def _photo(folder: Path, scene: Scene, frame: int) -> Path:
    path = folder / _file_name(scene.name) / "photos" / f"{_file_name(scene.frames[frame].name)}.png"
    if not path.exists():
        write_image(path, load_photo(scene.frames[frame]))
    return path


def _file_name(name: str) -> str:
    """A frame's or scene's name as one safe file name, the suffix dropped."""
    stem = name.rsplit(".", 1)[0] if "/" in name or re.search(r"\.(jpe?g|png|webp|tiff?)$", name, re.I) else name
    return re.sub(r"[^\w.-]+", "-", stem)
