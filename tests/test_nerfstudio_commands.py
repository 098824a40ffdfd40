"""nerfstudio's own commands open runs of ours on a CPU, without a network."""

from __future__ import annotations

import importlib
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from difixcli.reconstruction import Reconstruction, start_from
from difixcli.scenes import load_photo, load_scene
from difixcli.scenes.ply import read_points
from difixcli.scenes.scene import Scene

TRAIN = [0, 2, 4, 6, 8]

# The console scripts as they are installed, one after another in one process because importing nerfstudio takes longer
# than all that they do here. Nothing of this package is imported by hand.
RUNNER = """
import json, os, runpy, sys, threading, time, urllib.request
assert not any(name.startswith("difixcli") for name in sys.modules)
for arguments in json.loads(sys.argv[1]):
    script, sys.argv = arguments[0], arguments
    if not script.endswith("ns-viewer"):
        try:
            runpy.run_path(script, run_name="__main__")
        except SystemExit as end:
            assert not end.code, (arguments, end.code)
        continue
    viewer = threading.Thread(target=runpy.run_path, args=(script,), kwargs={"run_name": "__main__"}, daemon=True)
    viewer.start()
    page, until = b"", time.monotonic() + 600  # a busy machine takes minutes
    while not page and viewer.is_alive() and time.monotonic() < until:
        time.sleep(0.1)
        try:
            page = urllib.request.urlopen(f"http://127.0.0.1:{arguments[-1]}", timeout=60).read()
        except OSError:
            pass
    assert b"<html" in page.lower(), "the viewer does not answer"
print("ALL DONE")
sys.stdout.flush()
os._exit(0)
"""


@pytest.fixture(scope="module")
def scene(arc: Path) -> Scene:
    return load_scene(arc, size=48)


def trained(scene: Scene, folder: Path, method: str, overrides: list[str]) -> Reconstruction:
    made = Reconstruction.create(
        scene,
        TRAIN,
        method=method,
        folder=folder,
        preset="cpu",
        device="cpu",
        iterations=40,
        overrides=overrides,
    )
    made.train(40)
    made.save()
    return made


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that has of this package what installing it writes beside it: its entry points."""
    folder = tmp_path_factory.mktemp("installed")
    text = (Path(__file__).parents[1] / "pyproject.toml").read_text(encoding="utf-8")
    [group] = re.findall(r'\[project.entry-points."torch.backends"\]\n((?:.+\n)+)', text)
    made = folder / "difixcli_entry_points-0.1.dist-info"
    made.mkdir()
    (made / "METADATA").write_text("Metadata-Version: 2.1\nName: difixcli-entry-points\nVersion: 0.1\n")
    (made / "entry_points.txt").write_text("[torch.backends]\n" + group.replace('"', ""))
    return folder


def run(installed: Path, *commands: list[str]) -> None:
    scripts = [[str(Path(sys.executable).with_name(command[0])), *command[1:]] for command in commands]
    if not Path(scripts[0][0]).is_file():
        pytest.skip("nerfstudio's console scripts are not beside this Python")
    offline = {**os.environ, "PYTHONPATH": os.pathsep.join([str(installed), *sys.path]), "TORCH_HOME": "/nonexistent"}
    command = [sys.executable, "-c", RUNNER, json.dumps(scripts)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=offline)
    assert "ALL DONE" in done.stdout, done.stdout[-3000:] + done.stderr[-3000:]


def opens(module: str) -> bool:
    """Whether a package can be imported: open3d also needs libraries that a bare machine lacks."""
    try:
        importlib.import_module(module)
    except ImportError:
        return False
    return True


def psnr(a: np.ndarray, b: np.ndarray) -> float:
    return float(-10 * np.log10(np.mean((a - b) ** 2)))


def test_splats(scene: Scene, installed: Path, tmp_path: Path) -> None:
    made = trained(scene, tmp_path / "run", "splatfacto", ["max_gaussians=2000"])
    config = str(tmp_path / "run" / "config.yml")
    render = ["ns-render", "dataset", "--load-config", config, "--output-path", str(tmp_path / "renders")]
    export = ["ns-export", "gaussian-splat", "--load-config", config, "--output-dir", str(tmp_path / "export")]
    exports = opens("open3d")
    run(
        installed,
        ["ns-eval", "--load-config", config, "--output-path", str(tmp_path / "eval.json")],
        [*render, "--split", "test", "--rendered-output-names", "rgb", "--image-format", "png"],
        *([export] if exports else []),
        ["ns-viewer", "--load-config", config, "--viewer.websocket-port", "7391"],
    )
    held_out = [i for i in range(len(scene.frames)) if i not in TRAIN]
    results = json.loads((tmp_path / "eval.json").read_text())["results"]
    ours = [psnr(made.render(scene.frames[i].camera).color, load_photo(scene.frames[i])) for i in held_out]
    assert np.isclose(results["psnr"], np.mean(ours), atol=0.05)
    assert np.isnan(results["lpips"])  # its weights are not here, and nothing stands in for them
    assert len(list((tmp_path / "renders").rglob("*.png"))) == len(held_out)
    if not exports:
        pytest.skip("ns-eval and ns-render were right; ns-export needs open3d, which cannot be imported here")
    again = start_from(tmp_path / "export" / "splat.ply", scene, TRAIN, tmp_path / "again", "cpu", "cpu", 10, [], 0)
    for i in (0, 1):
        camera = scene.frames[i].camera
        np.testing.assert_allclose(again.render(camera).color, made.render(camera).color, atol=2e-3)


def test_fields(scene: Scene, installed: Path, tmp_path: Path) -> None:
    pytest.importorskip("open3d", exc_type=ImportError)
    rays = "pipeline.datamanager.train_num_rays_per_batch=256"
    made = trained(scene, tmp_path / "first", "nerfacto", [rays])
    shutil.move(tmp_path / "first", tmp_path / "run")
    made = Reconstruction.load(tmp_path / "run", scene, TRAIN)
    made.save()  # a folder that was moved opens as soon as it is written to
    config = str(tmp_path / "run" / "config.yml")
    normals = ["--normal-method", "open3d", "--remove-outliers", "False", "--reorient-normals", "False"]
    cloud = ["ns-export", "pointcloud", "--load-config", config, "--output-dir", str(tmp_path / "cloud")]
    run(
        installed,
        ["ns-eval", "--load-config", config, "--output-path", str(tmp_path / "eval.json")],
        [*cloud, "--num-points", "500", "--num-rays-per-batch", "512", *normals],
    )
    held_out = [i for i in range(len(scene.frames)) if i not in TRAIN]
    results = json.loads((tmp_path / "eval.json").read_text())["results"]
    ours = [psnr(made.render(scene.frames[i].camera).color, load_photo(scene.frames[i])) for i in held_out]
    assert np.isclose(results["psnr"], np.mean(ours), atol=0.05)
    theirs, _ = read_points(tmp_path / "cloud" / "point_cloud.ply")
    assert len(theirs) >= 500
    points, colors = read_points(made.export(tmp_path / "points.ply", world="normalised"))
    # Points at the surfaces a photo shows, of its render's colours.
    camera = scene.frames[0].camera
    render = made.render(camera)
    shown = points[: camera.width * camera.height]
    local = (shown - camera.position) @ camera.camera_to_world[:3, :3]
    row = np.floor(-local[:, 1] / -local[:, 2] * camera.fy + camera.cy).astype(int)
    column = np.floor(local[:, 0] / -local[:, 2] * camera.fx + camera.cx).astype(int)
    inside = (row >= 0) & (row < camera.height) & (column >= 0) & (column < camera.width) & (local[:, 2] < 0)
    near = np.abs(-local[inside, 2] - render.depth[row[inside], column[inside]]) < 1e-3
    assert near.sum() > 100
    apart = colors[: len(shown)][inside] / 255 - render.color[row[inside], column[inside]]
    assert np.abs(apart[near]).max() < 0.01


def test_difix_export(scene: Scene, tmp_path: Path) -> None:
    from typer.testing import CliRunner

    from difixcli.cli import app
    from difixcli.reconstruction.gaussians import Gaussians

    def files(folder: Path) -> dict[str, tuple[bytes, int]]:
        found = (path for path in folder.rglob("*") if path.is_file())
        return {str(path): (path.read_bytes(), path.stat().st_mtime_ns) for path in found}

    trained(scene, tmp_path / "first", "splatfacto", ["max_gaussians=500"])
    shutil.copytree(tmp_path / "first", tmp_path / "run")
    made = Reconstruction.load(tmp_path / "run", scene, TRAIN)
    before = files(tmp_path / "run")
    done = CliRunner().invoke(app, ["export", str(tmp_path / "run"), "-o", str(tmp_path / "out" / "a.ply"), "--json"])
    assert done.exit_code == 0, done.output
    assert len(Gaussians.read(tmp_path / "out" / "a.ply")) == made.gaussians
    assert files(tmp_path / "run") == before  # reading writes nothing
    (tmp_path / "out" / "a.ply").write_text("mine")
    again = ["export", str(tmp_path / "run"), "-o", str(tmp_path / "out" / "a.ply")]
    done = CliRunner().invoke(app, again)
    assert done.exit_code == 2 and "--force" in done.output, done.output
    assert (tmp_path / "out" / "a.ply").read_text() == "mine"
    assert CliRunner().invoke(app, [*again, "--force"]).exit_code == 0
    assert len(Gaussians.read(tmp_path / "out" / "a.ply")) == made.gaussians
    for arguments in (["run", "-o", "a.obj"], ["nowhere", "-o", "a.ply"], [".", "-o", "a.ply"]):
        folder, option, name = arguments
        done = CliRunner().invoke(app, ["export", str(tmp_path / folder), option, str(tmp_path / name)])
        assert done.exit_code == 2, done.output
