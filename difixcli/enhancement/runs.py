"""A distilled run's renders, fixed once more with the photos that its poses know (Difix3D+)."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from difixcli.enhancement.enhance import VIDEO_NAME, Progress
from difixcli.enhancement.video import write_video
from difixcli.reconstruction import Reconstruction
from difixcli.reference_views import ReferenceViews, fix_render
from difixcli.runs import write_image
from difixcli.scenes import make_split
from difixcli.scenes.scene import Scene

if TYPE_CHECKING:
    from difixcli.fixer import Fixer

_FPS = 8.0  # test views lie far apart


def enhance_run(
    source: Path, output: Path, fixer: Fixer, scene: Scene, split: str, progress: Progress, device: str | None = None
) -> dict[str, Any]:
    """Write `output`/NAME.png for every test view of the run in `source`, and `output`/video.mp4.

    References are the nearest training photos by pose, aligned through the run's depth where the fixer wants that.
    `device` is where to render, by default where the run was trained. Frames that are there are kept: `output` must
    be new or belong to the run's present checkpoint. Raises InputError when `source` holds no trained reconstruction
    or trains on other photos than the split says.
    """
    chosen = make_split(scene, split)
    reconstruction = Reconstruction.load(source, scene, chosen.train, device)
    references = ReferenceViews(scene, chosen.train, reconstruction, fixer.config.views)
    written = []
    with progress("render and fix", len(chosen.test)) as update:
        for i in chosen.test:
            frame = scene.frames[i]
            path = output / f"{scene.file_names[i]}.png"
            if not path.exists():
                render = reconstruction.render(frame.camera)
                beside = references.beside(frame.camera, render, align=fixer.config.references == "aligned")
                write_image(path, fix_render(fixer, render, beside))
            written.append(path)
            update(len(written))
    same_size = len({scene.frames[i].camera.width for i in chosen.test}) == 1
    film = write_video(written, output / VIDEO_NAME, _FPS) if same_size else None
    return {"frames": len(written), "video": str(film) if film else None, "output": str(output)}
