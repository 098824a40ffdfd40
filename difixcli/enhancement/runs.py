"""A distilled run's renders, fixed once more with the photos that its poses know (Difix3D+)."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from difixcli.enhancement.enhance import VIDEO_NAME, Progress
from difixcli.enhancement.video import write_video
from difixcli.reconstruction import Reconstruction
from difixcli.reference_views import ReferenceViews, fix_render
from difixcli.runs import file_name, write_image
from difixcli.scenes import make_split
from difixcli.scenes.scene import Scene

if TYPE_CHECKING:
    from difixcli.fixer import Fixer

_FPS = 8.0  # test views lie far apart


def enhance_run(
    source: Path, output: Path, fixer: Fixer, scene: Scene, split: str, progress: Progress
) -> dict[str, Any]:
    """Write `output`/NAME.png for every test view of the run in `source`, and `output`/video.mp4.

    References are the nearest training photos by pose, aligned through the run's depth where the fixer wants that.
    Frames that are there are kept. Raises InputError when `source` holds no trained reconstruction.
    """
    reconstruction = Reconstruction.load(source, scene)
    chosen = make_split(scene, split)
    references = ReferenceViews(scene, chosen.train, reconstruction, fixer.config.views)
    written = []
    with progress("render and fix", len(chosen.test)) as update:
        for i in chosen.test:
            frame = scene.frames[i]
            path = output / f"{file_name(frame.name)}.png"
            if not path.exists():
                render = reconstruction.render(frame.camera)
                write_image(path, fix_render(fixer, render, references.beside(frame.camera, render)))
            written.append(path)
            update(len(written))
    same_size = len({scene.frames[i].camera.width for i in chosen.test}) == 1
    film = write_video(written, output / VIDEO_NAME, _FPS) if same_size else None
    return {"frames": len(written), "video": str(film) if film else None, "output": str(output)}
