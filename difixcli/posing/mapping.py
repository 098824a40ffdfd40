"""From matches to cameras and points: mappers tried in turn, their models held against each other and against sense."""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np

from difixcli.runs import read_json, write_json

FOCALS = (0.4, 3.5)
"""Focal lengths, as shares of a photo's long side, outside of which a model is doubted."""
IN_FRONT = 0.99
"""Share of what a model's cameras see that has to lie in front of them."""
PARALLAX = 1.5
"""Degrees; where the median point is seen under less, photos hardly tell the focal length."""
DISTORTION = 0.5
"""Largest radial distortion, by size, of a lens that a model is not doubted for."""
SMALLEST = 3
"""The fewest photos a model may have."""
LEAST_MATCHES = 15
"""Verified matches from which two photos count as overlapping."""

_GIVE = 1.25  # how much larger the error of a sensible model may be


@dataclass(frozen=True)
class Model:
    """A reconstruction of pycolmap's, which mapper made it, and what there is to judge it by.

    `error` is the mean reprojection error in pixels, `focal` the focal length as a share of the long side (of the
    camera with most photos), `in_front` the share of observations in front of their camera, `parallax` in degrees.
    `others` are the names of the photos of each separate model that the same mapper made beside it.
    """

    reconstruction: Any
    how: str
    placed: int
    error: float
    focal: float
    distortion: float
    in_front: float
    parallax: float
    others: tuple[tuple[str, ...], ...] = ()

    @property
    def sensible(self) -> bool:
        lens = FOCALS[0] <= self.focal <= FOCALS[1] and abs(self.distortion) <= DISTORTION
        return lens and self.in_front >= IN_FRONT and self.parallax >= PARALLAX


def map_photos(
    database: Path, folder: Path, work: Path, count: int, seed: int, say: Callable[[str], None], done: Callable
) -> Model | None:
    """The best model of `count` photos that pycolmap's mappers find, or None.

    First the incremental mapper. If that leaves photos out, the global one, too; if the best of both is not sensible
    (see `Model`), or has less than half of the photos, the incremental one again with the focal length as it was given
    (EXIF's, else 1.2 × the long side). One thread and a fixed seed: the same photos give the same model. What a mapper
    has found is kept in `work`, and it is not asked again. One that is stopped begins anew: pycolmap goes on from a
    snapshot, but to poses whose last digits are others.
    """
    tried = [
        _kept(
            work / "incremental",
            lambda output: incremental(database, folder, output, seed, False, done),
        )
    ]
    if tried[0] is None or tried[0].placed < count:
        tried.append(_kept(work / "global", lambda output: _global(database, folder, output, seed)))
    found = best([model for model in tried if model is not None])
    if found is None or not found.sensible or found.placed < count / 2:
        if found is not None and not found.sensible:
            say(
                f"The focal length found is {found.focal:.2f} × the long side, under a median parallax of "
                f"{found.parallax:.1f}°: trying again with it fixed."
            )
        tried.append(_kept(work / "fixed", lambda output: incremental(database, folder, output, seed, True, done)))
        found = best([model for model in tried if model is not None])
    return found


def _kept(output: Path, find: Callable[[Path], Model | None]) -> Model | None:
    """What a mapper finds into `output`, from there where it has found it before.

    It is always read back, so that mapping which was stopped between two mappers ends as if it had not been.
    """
    import pycolmap

    listed, kept = output / "found.json", output / "found"
    if not listed.is_file():
        model = find(output)
        if model is not None:
            kept.mkdir()
            model.reconstruction.write(str(kept))
        write_json(listed, {"how": model.how if model else "", "others": list(model.others) if model else []})
    facts: dict[str, Any] = read_json(listed, {"how": str, "others": [[str]]})
    others = tuple(map(tuple, facts["others"]))
    return judge(pycolmap.Reconstruction(str(kept)), facts["how"], others) if facts["how"] else None


def best(models: list[Model]) -> Model | None:
    """The model with most photos, of these the one with the smallest reprojection error.

    One that is not sensible gives way to a sensible one with nearly as many photos (nine in ten), unless the photos
    speak against that: its error is more than a quarter larger.
    """
    ranked = sorted(models, key=lambda model: (-model.placed, model.error))
    if not ranked or ranked[0].sensible:
        return ranked[0] if ranked else None
    first = ranked[0]
    for model in ranked[1:]:
        if model.sensible and model.placed >= 0.9 * first.placed and model.error <= _GIVE * first.error:
            return model
    return first


def judge(reconstruction: Any, how: str, others: tuple[tuple[str, ...], ...] = ()) -> Model:
    """What there is to say of a reconstruction."""
    images = [image for image in reconstruction.images.values() if image.has_pose]
    owners = [image.camera_id for image in images]
    camera = reconstruction.cameras[max(sorted(set(owners)), key=owners.count)]
    centres = {image.image_id: image.projection_center() for image in images}
    looks = {image.image_id: image.cam_from_world().matrix()[2] for image in images}
    front, angles = [], []
    for point in reconstruction.points3D.values():
        seen = [element.image_id for element in point.track.elements if element.image_id in centres]
        if len(seen) < 2:
            continue
        place = point.xyz
        front += [float(looks[i][:3] @ place + looks[i][3]) > 0 for i in seen]
        rays = np.stack([place - centres[i] for i in seen])
        rays /= np.maximum(np.linalg.norm(rays, axis=1, keepdims=True), 1e-12)
        angles.append(float(np.degrees(np.arccos(np.clip((rays @ rays.T).min(), -1, 1)))))
    return Model(
        reconstruction=reconstruction,
        how=how,
        placed=len(images),
        error=float(reconstruction.compute_mean_reprojection_error()),
        focal=float(camera.mean_focal_length()) / max(camera.width, camera.height),
        distortion=float(camera.params[3]) if len(camera.params) > 3 else 0.0,
        in_front=float(np.mean(front)) if front else 0.0,
        parallax=float(np.median(angles)) if angles else 0.0,
        others=others,
    )


def parts(reconstruction: Any) -> list[list[int]]:
    """Ids of the placed images that hang together by points that two of them share (`LEAST_MATCHES` or more), the
    largest such part first."""
    shared: Counter[tuple[int, int]] = Counter()
    for point in reconstruction.points3D.values():
        shared.update(combinations(sorted({element.image_id for element in point.track.elements}), 2))
    part = {image.image_id: {image.image_id} for image in reconstruction.images.values() if image.has_pose}
    for (a, b), count in sorted(shared.items()):
        if count >= LEAST_MATCHES and part[a] is not part[b]:
            part[a] |= part[b]
            for one in part[b]:
                part[one] = part[a]
    found = {id(members): sorted(members) for members in part.values()}
    return sorted(found.values(), key=lambda members: (-len(members), members))


def keep_largest_part(reconstruction: Any) -> list[tuple[str, ...]]:
    """Take the images outside the largest part out of a reconstruction; the names of those of each part that goes and
    is a model of its own."""
    _, *others = parts(reconstruction) or [[]]
    for members in others:
        for image_id in members:
            reconstruction.deregister_frame(reconstruction.images[image_id].frame_id)
    return [
        tuple(sorted(reconstruction.images[image_id].name for image_id in members))
        for members in others
        if len(members) >= SMALLEST
    ]


def placed_names(reconstruction: Any) -> tuple[str, ...]:
    """The names of a reconstruction's placed images, sorted."""
    return tuple(sorted(image.name for image in reconstruction.images.values() if image.has_pose))


def _largest(models: dict[int, Any], how: str) -> Model | None:
    # a mapper may have put parts into one model that hardly share a point: where one stands to the other is chance
    apart = [names for _, model in sorted(models.items()) for names in keep_largest_part(model)]
    judged = [judge(model, how) for _, model in sorted(models.items()) if model.num_reg_images() >= SMALLEST]
    judged = [model for model in judged if np.isfinite(model.error) and model.reconstruction.num_points3D()]
    if not judged:
        return None
    judged.sort(key=lambda model: (-model.placed, model.error))
    others = (*(placed_names(model.reconstruction) for model in judged[1:]), *apart)
    return judge(judged[0].reconstruction, how, others)


def incremental(database: Path, folder: Path, output: Path, seed: int, fixed: bool, done: Callable) -> Model | None:
    """The largest model of pycolmap's incremental mapper, with the lenses as they were given where they are `fixed`."""
    import pycolmap

    options = pycolmap.IncrementalPipelineOptions()
    options.num_threads, options.random_seed = 1, seed
    options.mapper.num_threads, options.mapper.random_seed, options.triangulation.random_seed = 1, seed, seed
    options.min_model_size, options.min_num_matches = SMALLEST, LEAST_MATCHES
    if fixed:
        options.ba_refine_focal_length = options.mapper.abs_pose_refine_focal_length = False
        options.ba_refine_extra_params = options.mapper.abs_pose_refine_extra_params = False
    placed = 2

    def next_image() -> None:
        nonlocal placed
        placed += 1
        done(placed)

    shutil.rmtree(output, ignore_errors=True)
    output.mkdir(parents=True)
    pycolmap.set_random_seed(seed)
    models = pycolmap.incremental_mapping(database, folder, output, options, next_image_callback=next_image)
    return _largest(models, "incremental, focal length fixed" if fixed else "incremental")


def _global(database: Path, folder: Path, output: Path, seed: int) -> Model | None:
    import pycolmap

    options = pycolmap.GlobalPipelineOptions()
    options.num_threads, options.random_seed, options.min_num_matches = 1, seed, LEAST_MATCHES
    options.mapper.num_threads, options.mapper.random_seed = 1, seed
    options.mapper.bundle_adjustment.ceres.use_gpu = False
    shutil.rmtree(output, ignore_errors=True)
    output.mkdir(parents=True)
    pycolmap.set_random_seed(seed)
    return _largest(pycolmap.global_mapping(database, folder, output, options), "global")


@contextmanager
def quiet() -> Iterator[None]:
    """Keep pycolmap's log, which goes past the program's own progress, to its errors."""
    import pycolmap

    before = pycolmap.logging.minloglevel
    pycolmap.logging.minloglevel = 3
    try:
        yield
    finally:
        pycolmap.logging.minloglevel = before
