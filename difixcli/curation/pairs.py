"""A pair and its manifest: the original release's `data.json` schema plus our keys."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from difixcli.reconstruction import Render
from difixcli.reference_views import References
from difixcli.runs import file_name, read_json, write_image, write_json
from difixcli.scenes import load_photo
from difixcli.scenes.scene import Camera, Scene

PROMPT = "remove degradation"  # the only prompt the published weights know


@dataclass(frozen=True, eq=False)
class Pair:
    """A degraded render and the photo taken from the same place.

    `frame` is the index of the photo in its scene; `parameters` say how the strategy was set.
    """

    frame: int
    camera: Camera
    render: Render
    references: References
    parameters: Mapping[str, Any]


def write_pair(home: Path, scene: Scene, pair: Pair, made: Mapping[str, Any]) -> dict[str, Any]:
    """Write a pair's images into a stage's folder `home` and return its manifest entry.

    `home` is OUTPUT/SCENE/STAGE and the entry's paths are relative to OUTPUT; `made` is what the entry says of the
    stage (strategy, method, iterations).

    Renders, aligned references (RGBA, the alpha is visibility) and opacity (8-bit grey) are PNG; photos are written
    once a scene and shared by all pairs.
    """
    from difixcli.evaluation.metrics import psnr, ssim

    name = file_name(scene.frames[pair.frame].name)
    folder = home.parents[1]
    truth = load_photo(scene.frames[pair.frame])
    write_image(home / "render" / f"{name}.png", pair.render.color)
    write_image(home / "opacity" / f"{name}.png", pair.render.accumulation)
    aligned = []
    for i, (color, visible) in enumerate(zip(pair.references.aligned, pair.references.visibility, strict=True)):
        path = home / "aligned" / f"{name}.{i}.png"
        write_image(path, np.concatenate([color, visible[..., None]], axis=-1))
        aligned.append(path)
    references = [_photo(home.parent, scene, frame) for frame in pair.references.frames]

    def relative(path: Path) -> str:
        return path.relative_to(folder).as_posix()

    camera = pair.camera
    return {
        "image": relative(home / "render" / f"{name}.png"),
        "target_image": relative(_photo(home.parent, scene, pair.frame)),
        "ref_image": relative(references[0]) if references else None,
        "prompt": PROMPT,
        "ref_images": [relative(path) for path in references],
        "aligned_refs": [relative(path) for path in aligned],
        "opacity": relative(home / "opacity" / f"{name}.png"),
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
        "psnr": round(psnr(pair.render.color, truth), 4),
        "ssim": round(ssim(pair.render.color, truth), 5),
    }


def pair_id(home: Path, scene: Scene, pair: Pair) -> str:
    """A pair's key in the manifest: scene, stage and frame."""
    return f"{home.parent.name}__{home.name}__{file_name(scene.frames[pair.frame].name)}"


def write_manifest(folder: Path, test_scenes: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Gather the finished stages' entries into `folder/data.json`; scenes in `test_scenes` go to `test` whole."""
    manifest: dict[str, dict[str, Any]] = {"train": {}, "test": {}}
    for stage in sorted(folder.glob("*/*/pairs.json")):
        for identity, entry in read_json(stage).items():
            manifest["test" if entry["scene"] in test_scenes else "train"][identity] = entry
    write_json(folder / "data.json", manifest)
    return manifest


def _photo(folder: Path, scene: Scene, frame: int) -> Path:
    path = folder / "photos" / f"{file_name(scene.frames[frame].name)}.png"
    if not path.exists():
        write_image(path, load_photo(scene.frames[frame]))
    return path
