"""What `difix export` writes, in the scene's own world and in the normalised one."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from difixcli.cli import app
from difixcli.errors import InputError
from difixcli.reconstruction import Reconstruction
from difixcli.reconstruction.gaussians import Gaussians
from difixcli.reconstruction.rasteriser import rasterization
from difixcli.scenes import load_scene
from difixcli.scenes.ply import read_points
from difixcli.scenes.poses import OPENCV_TO_OPENGL
from difixcli.scenes.scene import Camera, Scene

TRAIN = [0, 2, 4, 6]
ITERATIONS = 60


@pytest.fixture(scope="module")
def scene(shared_scenes: Path, tmp_path_factory: pytest.TempPathFactory) -> Scene:
    """A scene whose file tells of a turn that its world went through, which its poses have in them."""
    source, folder = shared_scenes / "fountain_p11", tmp_path_factory.mktemp("scene")
    for name in ("images", "points3D.ply"):
        os.symlink(source / name, folder / name)
    told = json.loads((source / "transforms.json").read_text())
    told["applied_transform"] = [[1, 0, 0, 0.5], [0, 0, 1, 0], [0, -1, 0, 2]]
    (folder / "transforms.json").write_text(json.dumps(told))
    return load_scene(folder, size=64)


def in_the_files_world(scene: Scene, i: int) -> Camera:
    """A frame's camera at the pose that stands in the scene's file."""
    told = json.loads((scene.root / "transforms.json").read_text())
    [pose] = [f["transform_matrix"] for f in told["frames"] if f["file_path"].endswith(scene.frames[i].name[-8:])]
    return scene.frames[i].camera.moved(np.array(pose))


def create(scene: Scene, folder: Path, method: str, overrides: list[str]) -> Reconstruction:
    return Reconstruction.create(
        scene,
        TRAIN,
        method=method,
        folder=folder,
        preset="cpu",
        device="cpu",
        iterations=ITERATIONS,
        overrides=overrides,
        seed=2,
    )


@pytest.fixture(scope="module")
def splats(scene: Scene, tmp_path_factory: pytest.TempPathFactory) -> Reconstruction:
    made = create(scene, tmp_path_factory.mktemp("runs") / "splats", "splatfacto", ["max_gaussians=1500"])
    made.train(ITERATIONS)
    model = made._trainer.model
    with torch.no_grad():  # a training this short hardly learns how colours depend on the direction
        model.gauss_params["features_rest"].normal_(0, 0.15, generator=torch.Generator().manual_seed(0))
    made.save()
    return made


def shown(gaussians: Gaussians, camera: Camera, unit: float, degree: int) -> np.ndarray:
    """A render of Gaussians at a camera of their own world, of which one unit of the model's world is `unit`."""
    view = np.linalg.inv(camera.camera_to_world @ OPENCV_TO_OPENGL)
    image, _, _ = rasterization(
        gaussians.means,
        gaussians.quats,
        gaussians.scales.exp(),
        torch.sigmoid(gaussians.opacities[:, 0]),
        gaussians.harmonics,
        torch.tensor(view, dtype=torch.float32)[None],
        torch.tensor(camera.intrinsics, dtype=torch.float32)[None],
        camera.width,
        camera.height,
        near_plane=0.01 * unit,
        sh_degree=degree,
    )
    return image[0].clamp(0, 1).numpy()


def test_gaussians_show_the_same_from_the_scenes_own_cameras(
    splats: Reconstruction, scene: Scene, tmp_path: Path
) -> None:
    unit = 1 / scene.unit_scale
    assert unit > 2  # else sizes would hardly matter
    own = Gaussians.read(splats.export(tmp_path / "own.ply"))
    normalised = Gaussians.read(splats.export(tmp_path / "normalised.ply", world="normalised"))
    for i in (1, 4, 8):
        render = splats.render(scene.frames[i].camera).color
        camera = in_the_files_world(scene, i)
        np.testing.assert_allclose(shown(own, camera, unit, 3), render, atol=2e-4)
        np.testing.assert_allclose(shown(normalised, scene.frames[i].camera, 1, 3), render, atol=1e-5)
        flat = np.abs(shown(own, camera, unit, 0) - render)
        assert flat.mean() > 0.02  # the colours do depend on the direction


def test_points_lie_where_the_scenes_own_cameras_see_them(scene: Scene, tmp_path: Path) -> None:
    made = create(scene, tmp_path / "run", "nerfacto", ["pipeline.datamanager.train_num_rays_per_batch=128"])
    made.train(30)
    own, colors = read_points(made.export(tmp_path / "own.ply"))
    normalised, same = read_points(made.export(tmp_path / "normalised.ply", world="normalised"))
    assert len(own) > 100 and np.array_equal(colors, same)
    seen = []
    for points, camera in ((own, in_the_files_world(scene, 0)), (normalised, scene.frames[0].camera)):
        seen.append((points - camera.position) @ camera.camera_to_world[:3, :3])
    np.testing.assert_allclose(seen[0] * scene.unit_scale, seen[1], rtol=1e-4, atol=1e-4)


def test_the_command_says_which_world(splats: Reconstruction, tmp_path: Path) -> None:
    def export(*more: str, run: Path = splats.folder) -> tuple[int, str]:
        done = CliRunner().invoke(app, ["export", str(run), "-o", str(tmp_path / "a.ply"), "--force", "--json", *more])
        return done.exit_code, done.output

    code, said = export()
    assert code == 0 and '"world": "scene"' in said
    own = (tmp_path / "a.ply").read_bytes()
    assert own == splats.export(tmp_path / "b.ply", world="scene").read_bytes()
    code, said = export("--world", "normalised")
    assert code == 0 and (tmp_path / "a.ply").read_bytes() != own
    code, said = export("--world", "normalized")
    assert code == 2 and "did you mean normalised?" in said
    older = shutil.copytree(splats.folder, tmp_path / "older")
    recipe = json.loads((older / "reconstruction.json").read_text())
    del recipe["source_to_world"]
    (older / "reconstruction.json").write_text(json.dumps(recipe))
    code, said = export(run=older)
    assert code == 2 and "--world normalised" in said
    assert export("--world", "normalised", run=older)[0] == 0
    with pytest.raises(InputError, match="no world called mine"):
        splats.export(tmp_path / "c.ply", world="mine")
