"""A distilled run's renders, along its test views or a camera path, fixed with the photos that its poses know.

Once more on final renders: that is the second half of Difix3D+.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from difixcli.enhancement.sequence import FILM_FILE, SIDE_BY_SIDE, SPLIT_SCREEN, VIDEO, Film, make_film
from difixcli.errors import InputError
from difixcli.evidence import fix_render, marks_of, nearer
from difixcli.frames.pictures import check_large_enough
from difixcli.frames.writing import Clean, Shot, write_frames
from difixcli.images import Operator, as_pixels, as_planes
from difixcli.reconstruction import Reconstruction, Render
from difixcli.reference_views import References, ReferenceViews, is_bad_fix, looked_up
from difixcli.runs import PHOTOS, Progress, read_image, write_image
from difixcli.scenes import Camera, Trajectory
from difixcli.scenes.scene import Scene, Split

if TYPE_CHECKING:
    from difixcli.fixer import Fixer
    from difixcli.priors.super_resolution.resolver import SuperResolver

RENDERS = "renders"
"""The folder, in an enhanced run's, of the frames as they were before the fix."""
Prepare = Callable[[Camera, Render], Callable[[], Clean]]
"""From a camera and its render, in a thread ahead, to what then makes the clean frame."""
Cleaner = Callable[[Reconstruction, Reconstruction | None], Prepare]
"""From a run's reconstruction, and what photos alone had taught it where its folder keeps that, to what cleans."""
_TEST_FPS = 8.0  # test views lie far apart


def by_fixer(
    fixer: Fixer, scene: Scene, split: Split, references: int | None, trust: str, taught: bool, marked: bool = False
) -> Cleaner:
    """Fixes renders with the nearest training photos by pose beside them, aligned through the run's depth.

    There are `references` of them, or as many as the fixer takes. With the trust `supported` a fix leaves alone what no
    evidence says is wrong (`evidence.nearer`); with `all` it is taken as it is. `taught` says that the run has learned
    from fixes. `marked`: say what photos, and what they alone had taught, say of it.
    """
    count = fixer.config.views if references is None else references
    supported = trust == "supported"

    def cleaner(reconstruction: Reconstruction, photos_only: Reconstruction | None) -> Prepare:
        beside_all = ReferenceViews(scene, split.train, reconstruction, count)

        def prepared(camera: Camera, render: Render) -> Callable[[], Clean]:
            align = marked or supported or fixer.config.references == "aligned"
            known = photos_only.render(camera) if marked and photos_only is not None else render
            beside = beside_all.beside(camera, render, align=align)
            return partial(clean, render, looked_up(beside, fixer, confirming=supported), known)

        return prepared

    def clean(render: Render, beside: References, known: Render) -> Clean:
        fixed = fix_render(fixer, render, beside)
        color = nearer(render, fixed, beside, taught) if supported else fixed
        return Clean(color, marks_of(known, color, beside) if marked else None)

    return cleaner


def by_resolver(resolver: SuperResolver, operator: Operator, seed: int) -> Cleaner:
    """Super-resolves large renders once, each from its own reduction."""
    import torch

    from difixcli.priors.super_resolution.resolver import from_render

    @torch.no_grad()
    def clean(render: Render) -> Clean:
        height, width = render.color.shape[:2]
        # a camera path may have any size
        beyond = ((0, -height % resolver.factor), (0, -width % resolver.factor), (0, 0))
        shown = as_planes(np.pad(render.color, beyond, mode="edge"), resolver.device)
        return Clean(as_pixels(from_render(resolver, shown, operator, seed))[:height, :width])

    return lambda reconstruction, photos_only: lambda camera, render: partial(clean, render)


def enhance_run(
    source: Path,
    output: Path,
    cleaner: Cleaner,
    scene: Scene,
    split: Split,
    progress: Progress,
    trajectory: Trajectory | None = None,
    film: Film | None = None,
    device: str | None = None,
    confidence: bool = False,
) -> dict[str, Any]:
    """Render the run in `source`, clean every frame and write `output`/NAME.png, renders/NAME.png and the videos.

    `cleaner` makes what cleans of the run's reconstruction: `by_fixer` or `by_resolver`. The frames are the test views
    under their photos' names, or frame_00001 onwards of a trajectory. `device` is where to render, by default where the
    run was trained. Frames that are there are kept: `output` must be new or belong to the run's present checkpoint,
    this trajectory and this choice of `film.steady`. With `confidence` NAME.confidence.png says what of a frame photos
    have seen (see `frames.marks`): what the run has learned from fixes speaks for none of them.

    Returns {"frames", "kept", "bad", "seconds_per_frame", "output"} as `enhance_images` does, and what `make_film`
    returns; there is no video where the views have several sizes, and no steadiness of test views, which do not follow
    each other. Raises InputError when `source` holds no trained reconstruction or trains on other photos than the split
    says, for steady test views, and for comparisons of views of several sizes.
    """
    film = film or Film()
    names, cameras = views(scene, split, trajectory, film)
    same_size = _of_one_size(cameras)
    reconstruction = Reconstruction.load(source, scene, split.train, device)
    photos_only = None
    if confidence and (source / PHOTOS / "config.yml").is_file():
        photos_only = Reconstruction.load(source / PHOTOS, scene, split.train, device)
    clean = cleaner(reconstruction, photos_only)

    def before(name: str, camera: Camera) -> np.ndarray:
        path = output / RENDERS / f"{name}.png"
        if not path.exists():
            write_image(path, reconstruction.render(camera).color)
        return read_image(path)

    def prepared(name: str, camera: Camera) -> tuple[Render, Callable[[], Clean]]:
        check_large_enough(name, camera.width, camera.height)
        # not from the picture on disk: depth, opacity and what 8 bits lose belong to it
        render = reconstruction.render(camera)
        write_image(output / RENDERS / f"{name}.png", render.color)
        return render, clean(camera, render)

    def shots() -> Iterator[Shot]:
        for name, camera in zip(names, cameras, strict=True):
            yield Shot(name, partial(before, name, camera), partial(prepared, name, camera))

    # one thread ahead: a reconstruction renders one view at a time
    done = write_frames(
        shots(),
        len(cameras),
        output,
        lambda batch: [finish() for _, finish in batch],
        confidence=confidence,
        steady=film.steady,
        broken=lambda prepared, color: is_bad_fix(prepared[0], color / np.float32(255)),
        stale=[output / FILM_FILE],
        progress=progress,
    )
    made: dict[str, Any] = {VIDEO: None, SIDE_BY_SIDE: None, SPLIT_SCREEN: None, "fps": None, "steadiness": None}
    if same_size:
        fps = trajectory.fps if trajectory else _TEST_FPS
        made = make_film(shots, done.frames, output, fps, film, trajectory is not None, progress)
    return {
        "frames": done.frames,
        "kept": done.kept,
        "bad": list(done.broken),
        "seconds_per_frame": done.seconds_per_frame,
        "output": str(output),
        **made,
    }


def views(
    scene: Scene, split: Split, trajectory: Trajectory | None, film: Film
) -> tuple[Sequence[str], Sequence[Camera]]:
    """The names and cameras of the frames to make: the test views', or a trajectory's.

    Raises InputError where the film cannot be made of them.
    """
    if trajectory is not None:
        names = [f"frame_{number:05d}" for number in range(1, len(trajectory.cameras) + 1)]
        return names, trajectory.cameras
    cameras = [scene.frames[i].camera for i in split.test]
    if film.steady:
        raise InputError("Test views do not follow each other, so nothing can steady them; give a --trajectory.")
    if film.asked and not _of_one_size(cameras):
        raise InputError(
            f"The test views of {scene.name} have several sizes, which make no video; give a --trajectory."
        )
    return [scene.file_names[i] for i in split.test], cameras


def _of_one_size(cameras: Sequence[Camera]) -> bool:
    return len({(camera.width, camera.height) for camera in cameras}) == 1


def path_fingerprint(cameras: Sequence[Camera]) -> str:
    """A short hash of a camera path's poses, lenses and sizes."""
    digest = hashlib.sha256()
    for camera in cameras:
        lens = [camera.fx, camera.fy, camera.cx, camera.cy, camera.width, camera.height]
        for values in (camera.camera_to_world, np.array(lens)):
            digest.update(np.round(values, 6).astype("<f8").tobytes())
    return digest.hexdigest()[:16]
