"""Beginning from a model that was trained elsewhere: a nerfstudio run, or Gaussians in a PLY file.

Such a model lives in a world of its own. Gaussians are moved into the scene's normalised world (harmonics turned
along). A radiance field cannot be moved; there the training data is moved into the field's world, and every camera
that goes in and every depth that comes out is converted (`Recipe.world`).

nerfstudio writes how a run's world came from the data's (`dataparser_transforms.json`). A PLY file does not say which
world it is in: each that is plausible is tried, and the one whose renders are most like the photos is taken.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from difixcli.errors import InputError
from difixcli.reconstruction.adoption import Origin
from difixcli.reconstruction.checkpoints import read_checkpoint
from difixcli.reconstruction.gaussians import Gaussians, not_finite
from difixcli.reconstruction.methods import is_splat, method_config
from difixcli.reconstruction.reconstruction import Reconstruction
from difixcli.reconstruction.run_config import read_config
from difixcli.reconstruction.run_files import check_method, check_start, latest_checkpoint, own_method
from difixcli.runs import read_json
from difixcli.scenes import load_mask, load_photo
from difixcli.scenes.run_worlds import TRANSFORMS, worlds_of_run
from difixcli.scenes.scene import Scene

_COMPARED = 4  # training photos
_COMPARED_SIZE = 128  # pixels, the long side
_BETTER_THAN_PLAIN = 1.0  # dB


def start_from(
    path: Path,
    scene: Scene,
    train: Sequence[int],
    folder: Path,
    preset: str,
    device: str,
    iterations: int,
    overrides: Sequence[str],
    seed: int,
    method: str | None = None,
) -> Reconstruction:
    """A new reconstruction in `folder` that begins from the model at `path`, to be trained for `iterations` more.

    `path` is the folder of a nerfstudio run (with config.yml, dataparser_transforms.json and nerfstudio_models, as
    ns-train or difix leave it) or a `.ply` of 3D Gaussians. The world of a `.ply` may be that of the scene's file, of
    the COLMAP model behind it, the scene's normalised one, or a nerfstudio run's whose `dataparser_transforms.json`
    stands beside it or one folder up; one that says that it was trained antialiased is trained on so. `method` may be
    left out: it is the run's, and splatfacto for Gaussians. The model's networks are those that the run's
    configuration describes; the rest is as in `Reconstruction.create`, whose `origin` says how the schedule goes on.

    `Reconstruction.warnings` says how many Gaussians of a `.ply` are not finite, where a run of ours has seen photos
    that `train` leaves out (of other models that is not known), and where renders of training photos are hardly better
    than one plain colour: the scene is probably another one. Raises InputError for a path that is neither, a run
    without a checkpoint or with a configuration that asks to run code (which is never run), a `.ply` without Gaussians
    or harmonics, another method than the run's, and what `Reconstruction.create` raises.
    """
    path = Path(path).expanduser().absolute()
    notes: list[str] = []
    check_start(path, method)
    if path.is_file():
        method = method or "splatfacto"
        if not is_splat(method_config(method)):
            raise InputError(f"{path} holds Gaussians, which {method} has none of; choose splatfacto.")
        gaussians = Gaussians.read(path)
        told = {"pipeline.model.rasterize_mode": "antialiased"} if gaussians.antialiased else {}
        if gaussians.left_out:
            notes.append(not_finite(gaussians.left_out, len(gaussians) + gaussians.left_out, path.name))
        origins = _of_gaussians(gaussians, told, method, _worlds_of_ply(path, scene))
    else:
        method, origins = _of_run(path, scene, method)
    first, *others = origins
    made = Reconstruction.create(
        scene,
        train,
        method=method,
        folder=folder,
        preset=preset,
        device=device,
        iterations=iterations,
        overrides=overrides,
        seed=seed,
        origin=first,
    )
    made.warnings += notes
    best, plain = _likeness(made, scene)
    chosen = first
    for other in others:
        made.adopt(other.state)
        if (psnr := _likeness(made, scene)[0]) > best:
            best, chosen = psnr, other
    if others and chosen is not others[-1]:
        made.adopt(chosen.state)
    if seen := sorted(set(_own_photos(path)) - set(train)):
        made.warnings.append(
            f"{path.name} was trained on {len(seen)} of the photos that this split holds out (see "
            f"{scene.frames[seen[0]].name}): figures of them flatter it. Restore its split, or train anew."
        )
    if best < plain + _BETTER_THAN_PLAIN:
        made.warnings.append(
            f"Renders of {path.name} are at {best:.1f} dB to the photos of {scene.name}, where one plain colour is at "
            f"{plain:.1f} dB: it was probably made from another scene, or its world is unknown."
        )
    return made


def method_of(run: Path) -> str:
    """The method of a nerfstudio run in nerfstudio's registry; InputError for what is none."""
    return own_method(run) or read_config(run / "config.yml").method


def _of_run(path: Path, scene: Scene, method: str | None) -> tuple[str, list[Origin]]:
    """The method of a nerfstudio run and what to begin from; several where its world is not certain."""
    held = read_config(path / "config.yml")
    name, settings = method_of(path), held.settings
    state = {key.removeprefix("module.").removeprefix("_model."): value for key, value in _model_state(path).items()}
    worlds = worlds_of_run(path, scene)
    check_method(path, name, method)
    if is_splat(method_config(name)):
        moved = [np.linalg.inv(world) for world in worlds]
        return name, _of_gaussians(Gaussians.of_state(state), settings, name, moved, state)
    box = state.get("field.aabb")
    return name, [Origin(settings, worlds[0], None if box is None else float(box.abs().max()), state)]


def _own_photos(path: Path) -> list[int]:
    """The frames that a run of ours was trained on; of others it is not known, and there are none."""
    own = path / "reconstruction.json"
    return list(read_json(own, {"train": [int]})["train"]) if own.is_file() else []


def _model_state(path: Path) -> dict[str, Tensor]:
    state = read_checkpoint(latest_checkpoint(path))["pipeline"]
    return {key: value for key, value in state.items() if key.removeprefix("module.").startswith("_model.")}


def _of_gaussians(
    gaussians: Gaussians,
    settings: dict[str, Any],
    method: str,
    worlds: Sequence[np.ndarray],
    state: dict[str, Tensor] | None = None,
) -> list[Origin]:
    """One origin for each (4, 4) similarity that may lead from the Gaussians' world into the scene's normalised one.

    Harmonics of a lower degree than the method's are filled up with 0: it may learn them. `state` has what the model
    consists of beside its Gaussians.
    """
    model: Any = method_config(method).pipeline.model
    degree = max(gaussians.degree, model.sh_degree)
    settings = {**settings, "pipeline.model.sh_degree": degree}
    full = gaussians.of_degree(degree)
    rest = {key: value for key, value in (state or {}).items() if not key.startswith("gauss_params.")}
    return [Origin(settings, np.eye(4), None, {**rest, **full.moved(world).state()}) for world in worlds]


def _worlds_of_ply(path: Path, scene: Scene) -> list[np.ndarray]:
    """The (4, 4) similarities that may lead from a PLY file's world into the scene's normalised one."""
    found = []
    for folder in (path.parent, path.parent.parent):
        if (folder / "reconstruction.json").is_file():
            break  # a run of ours, whose exports are in one of the worlds below
        if (folder / TRANSFORMS).is_file():
            found += [np.linalg.inv(world) for world in worlds_of_run(folder, scene)]
            break
    found += [scene.source_to_world @ scene.applied, scene.source_to_world, np.eye(4)]
    distinct: list[np.ndarray] = []
    for world in found:
        if not any(np.allclose(world, other, atol=1e-4) for other in distinct):
            distinct.append(world)
    return distinct


def _likeness(reconstruction: Reconstruction, scene: Scene) -> tuple[float, float]:
    """PSNR of renders of a few training photos, and that of each photo's mean colour, over all their pixels."""
    import cv2

    frames = reconstruction.train_frames
    chosen = sorted({frames[round(i)] for i in np.linspace(0, len(frames) - 1, _COMPARED)})
    squares, plain = [], []
    for i in chosen:
        frame, photo = scene.frames[i], load_photo(scene.frames[i])
        camera = frame.camera
        share = min(1.0, _COMPARED_SIZE / max(camera.width, camera.height))
        camera = camera.resized(max(1, round(camera.width * share)), max(1, round(camera.height * share)))
        size = (camera.width, camera.height)
        small = cv2.resize(photo, size, interpolation=cv2.INTER_AREA)
        mask = load_mask(frame)
        keep = np.ones(small.shape[:2]) if mask is None else cv2.resize(mask.astype(np.float64), size)
        counted = small[keep > 0.999]
        render = reconstruction.render(camera).color[keep > 0.999]
        squares.append(((render - counted) ** 2).ravel())
        plain.append(((counted.mean(axis=0) - counted) ** 2).ravel() if len(counted) else np.zeros(0))
    return _psnr(np.concatenate(squares)), _psnr(np.concatenate(plain))


def _psnr(squares: np.ndarray) -> float:
    return float(-10 * np.log10(max(squares.mean(), 1e-10))) if len(squares) else 0.0
