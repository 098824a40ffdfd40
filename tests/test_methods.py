"""Methods other than the two that most tests train: each learns, takes pseudo-views, is saved, and goes on exactly."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from difixcli.reconstruction import PseudoView, Reconstruction
from difixcli.runs import write_image
from difixcli.scenes import load_photo, load_scene
from difixcli.scenes.scene import Scene

TRAIN = [0, 2, 4, 6]
RAYS = "pipeline.datamanager.train_num_rays_per_batch=64"
PLUGIN = Path(__file__).parent / "plugin_method"

VARIANTS = {
    "tensorf": ("tensorf", [RAYS, "pipeline.model.init_resolution=32", "pipeline.model.num_uniform_samples=32"]),
    "vanilla-nerf": (
        "vanilla-nerf",
        [RAYS, "pipeline.model.num_coarse_samples=8", "pipeline.model.num_importance_samples=8"],
    ),
    "depth-nerfacto": ("depth-nerfacto", [RAYS]),
    "nerfacto, per photo": (
        "nerfacto",
        [RAYS, "pipeline.model.use_appearance_embedding=true", "pipeline.model.camera_optimizer.mode=SO3xR3"],
    ),
    "splatfacto, per photo": (
        "splatfacto",
        [
            "max_gaussians=500",
            "pipeline.model.use_bilateral_grid=true",
            "pipeline.model.camera_optimizer.mode=SO3xR3",
        ],
    ),
    "splatfacto-big": ("splatfacto-big", ["max_gaussians=500"]),
    "nerfacto-big": ("nerfacto-big", [RAYS]),
    "nerfacto-huge": ("nerfacto-huge", [RAYS]),
}


@pytest.fixture(scope="module")
def scene(arc: Path) -> Scene:
    return load_scene(arc, size=32)


def pseudo_views(scene: Scene, folder: Path) -> list[PseudoView]:
    views = []
    for i in (1, 3):
        camera = scene.frames[i].camera
        write_image(folder / f"{i}.png", load_photo(scene.frames[i]))
        write_image(folder / f"{i}.weight.png", np.full((camera.height, camera.width), 0.5))
        views.append(PseudoView(camera, folder / f"{i}.png", folder / f"{i}.weight.png", nearest=i - 1))
    return views


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_method_trains_and_goes_on_exactly(variant: str, scene: Scene, tmp_path: Path) -> None:
    method, overrides = VARIANTS[variant]
    made = Reconstruction.create(
        scene,
        TRAIN,
        method=method,
        folder=tmp_path / "run",
        preset="cpu",
        device="cpu",
        iterations=20,
        overrides=overrides,
        seed=1,
    )
    camera = scene.frames[1].camera
    first = made.render(camera)
    made.train(3)
    made.set_pseudo_views(pseudo_views(scene, tmp_path), share=0.5)
    made.train(3)
    made.save()
    made.train(3)
    again = Reconstruction.load(tmp_path / "run", scene, TRAIN)
    again.set_pseudo_views(pseudo_views(scene, tmp_path), share=0.5)
    again.train(3)
    last = made.render(camera)
    assert np.array_equal(last.color, again.render(camera).color)
    assert np.abs(last.color - first.color).max() > 2e-4  # vanilla-nerf begins slowly
    for image in (last.color, last.accumulation, last.depth):
        assert np.isfinite(image).all() and image.shape[:2] == (camera.height, camera.width)


def test_photos_of_depth_methods_show_the_seed_points(scene: Scene, tmp_path: Path) -> None:
    """They are given the seed points' z-depths, and what was never measured is 0, of pseudo-views everything."""
    made = Reconstruction.create(
        scene,
        TRAIN,
        method="depth-nerfacto",
        folder=tmp_path / "run",
        preset="cpu",
        device="cpu",
        iterations=5,
    )
    made.set_pseudo_views(pseudo_views(scene, tmp_path), share=0.5)
    _, batch = made._trainer.next_train(0)
    photos = len(batch["image"]) // 2
    depth, (view, row, column) = batch["depth_image"][:photos, 0].numpy(), batch["indices"][:photos].T.numpy()
    assert not batch["depth_image"][photos:].any()
    known = depth > 0
    assert 10 < known.sum() < photos
    for d, v, r, c in zip(depth[known], view[known], row[known], column[known], strict=True):
        camera = scene.frames[TRAIN[v]].camera
        local = (scene.points - camera.position) @ camera.camera_to_world[:3, :3]
        z = -local[:, 2]
        x = local[:, 0] / z * camera.fx + camera.cx
        y = -local[:, 1] / z * camera.fy + camera.cy
        # a hundredth of a pixel is rounding
        shown = z[(np.abs(x - c - 0.5) < 0.51) & (np.abs(y - r - 0.5) < 0.51) & (z > 0)]
        # a point lies anywhere in its pixel, its distance counts along the ray through the pixel's centre
        assert np.abs(shown - d).min() < 0.02 * d


def of_third_parties(script: str) -> None:
    """Run a script in a process where the test's own methods are registered; it says DONE at its end."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(PLUGIN), *sys.path])}
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False, env=environment)
    assert "DONE" in done.stdout, done.stderr[-3000:]


def test_splats_of_a_third_party(arc: Path, tmp_path: Path) -> None:
    """Whole images, seed points and the bound are what a method draws and keeps, not whose child it is."""
    script = f"""
import sys
from pathlib import Path
sys.path.insert(0, {str(Path(__file__).parent)!r})
import numpy as np
from difixcli.reconstruction import Reconstruction, draws_images, has_gaussians, is_splat, method_config
from difixcli.scenes import load_scene
from test_methods import TRAIN, pseudo_views
kinds = [[ask(method_config(name)) for ask in (draws_images, has_gaussians, is_splat)]
    for name in ("test-blobs", "test-haze", "splatfacto", "nerfacto", "vanilla-nerf")]
assert kinds == [[True, True, False], [False] * 3, [True] * 3, [False] * 3, [False] * 3], kinds
folder = Path({str(tmp_path)!r})
scene = load_scene({str(arc)!r}, size=32)
made = Reconstruction.create(scene, TRAIN, method="test-blobs", folder=folder / "run", preset="cpu", device="cpu",
    iterations=150, seed=1, overrides=["max_gaussians=600"])
assert made.gaussians == 600  # as many seeds as there may be
lost = made._trainer.model.gauss_params["means"].detach().numpy()
assert np.linalg.norm(lost - np.median(scene.points, axis=0), axis=1).mean() < 3 * scene.points.std()
made.train(20)
assert 100 < made.gaussians <= 600
made.set_pseudo_views(pseudo_views(scene, folder), share=0.3)
drawn = ["pseudo_weight" in made._trainer.next_train(step)[1] for step in range(400)]
assert 90 < sum(drawn) < 150, sum(drawn)
made.save()
made.train(20)
again = Reconstruction.load(folder / "run", scene, TRAIN)
again.set_pseudo_views(pseudo_views(scene, folder), share=0.3)
again.train(20)
camera = scene.frames[1].camera
assert np.array_equal(made.render(camera).color, again.render(camera).color)
assert made.gaussians <= 600
made.export(folder / "points.ply")
few = type(scene)(**{{**scene.__dict__, "points": scene.points[:60], "colors": scene.colors[:60], "tracks": None}})
grown = Reconstruction.create(few, TRAIN, method="test-blobs", folder=folder / "few", preset="cpu", device="cpu",
    iterations=150, seed=1, overrides=["max_gaussians=400"])
counts = [grown.gaussians]
for _ in range(8):
    grown.train(10)
    counts.append(grown.gaussians)
assert max(counts) <= 400, counts
print("DONE")
"""
    of_third_parties(script)


def test_a_method_of_a_third_party(arc: Path, tmp_path: Path) -> None:
    """Registered by an installed package's entry point alone, it does all that nerfstudio's own do."""
    script = f"""
import sys
from pathlib import Path
import numpy as np
sys.path.insert(0, {str(Path(__file__).parent)!r})
from difixcli.reconstruction import Reconstruction, known_methods, start_from
from difixcli.scenes import load_photo, load_scene
from test_methods import TRAIN, pseudo_views
folder = Path({str(tmp_path)!r})
scene = load_scene({str(arc)!r}, size=32)
assert "test-haze" in known_methods()
options = dict(preset="cpu", device="cpu", iterations=150, seed=1)
overrides = ["pipeline.model.samples=12"]
made = Reconstruction.create(scene, TRAIN, method="test-haze", folder=folder / "run", overrides=overrides, **options)
made.train(90)
made.set_pseudo_views(pseudo_views(scene, folder), share=0.5)
made.train(30)
made.save()
made.train(30)
again = Reconstruction.load(folder / "run", scene, TRAIN)
again.set_pseudo_views(pseudo_views(scene, folder), share=0.5)
again.train(30)
camera, photo = scene.frames[0].camera, load_photo(scene.frames[0])
render = made.render(camera).color
assert np.array_equal(render, again.render(camera).color)
again.save()
share = ((render - photo) ** 2).mean() / ((photo.mean(axis=(0, 1)) - photo) ** 2).mean()
assert share < 0.85, share
begun = start_from(folder / "run", scene, TRAIN[:3], folder / "next", overrides=[], **options)
assert begun.method == "test-haze" and begun._trainer.model.config.samples == 12
np.testing.assert_allclose(begun.render(camera).color, render, atol=1e-5)
print("DONE")
"""
    of_third_parties(script)
