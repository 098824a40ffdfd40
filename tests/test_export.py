"""What `difix export` writes, in the scene's own world and in the normalised one."""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.lib import recfunctions as rfn
from plyfile import PlyData, PlyElement
from typer.testing import CliRunner

from difixcli.cli import app
from difixcli.errors import InputError
from difixcli.reconstruction import Reconstruction
from difixcli.reconstruction.gaussians import Gaussians
from difixcli.reconstruction.rasteriser import rasterization
from difixcli.reconstruction.start import start_from
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


def gaussians_of_degree(degree: int, count: int = 300) -> Gaussians:
    generator = torch.Generator().manual_seed(degree)
    shapes = ((3,), (3,), (4,), ((degree + 1) ** 2, 3), (1,))
    drawn = (torch.randn(count, *shape, generator=generator) for shape in shapes)
    means, scales, quats, harmonics, opacities = drawn
    return Gaussians(means, scales - 3, torch.nn.functional.normalize(quats, dim=-1), 0.5 * harmonics, opacities)


NAMES = ("means", "scales", "quats", "harmonics", "opacities")


@pytest.mark.parametrize("degree", range(4))
@pytest.mark.parametrize("antialiased", [False, True])
def test_a_file_says_how_its_gaussians_are_to_be_rendered(tmp_path: Path, degree: int, antialiased: bool) -> None:
    made = replace(gaussians_of_degree(degree), antialiased=antialiased)
    path = tmp_path / "a.ply"
    assert made.write(path) == 0
    read = Gaussians.read(path)
    assert read.degree == degree and read.antialiased == antialiased and read.left_out == 0
    for name in NAMES:
        assert torch.equal(getattr(read, name), getattr(made, name))
    assert PlyData.read(str(path)).comments == (["SplatRenderMode: mip"] if antialiased else [])
    similarity = np.diag([2.0, 2.0, 2.0, 1.0])
    assert made.moved(similarity).antialiased == made.of_degree(3).antialiased == antialiased


def test_rows_that_are_not_finite_are_counted(splats: Reconstruction, scene: Scene, tmp_path: Path) -> None:
    spoilt = Reconstruction.load(shutil.copytree(splats.folder, tmp_path / "run"))
    with torch.no_grad():
        held = spoilt._trainer.model.gauss_params
        held["means"][3, 0], held["opacities"][5, 0], held["features_rest"][9, 2, 1] = np.nan, np.inf, -np.inf
    spoilt.save()
    arguments = ["export", str(tmp_path / "run"), "-o", str(tmp_path / "a.ply"), "--json"]
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code == 0, done.output
    count = splats.gaussians
    assert f"3 of {count} Gaussians" in " ".join(done.output.split())
    assert f'"gaussians": {count - 3}' in done.output and '"left_out": 3' in done.output
    assert len(Gaussians.read(tmp_path / "a.ply")) == count - 3
    # reading: from a file that has kept them
    file = PlyData.read(str(splats.export(tmp_path / "b.ply")), mmap=False)
    file["vertex"].data["scale_1"][[4, 8]] = np.nan
    file.write(str(tmp_path / "b.ply"))
    assert Gaussians.read(tmp_path / "b.ply").left_out == 2
    begun = start_from(tmp_path / "b.ply", scene, TRAIN, tmp_path / "begun", "cpu", "cpu", 10, [], 0)
    assert begun.gaussians == count - 2 and f"2 of {count} Gaussians of b.ply" in begun.warnings[0]
    none = replace(gaussians_of_degree(0), opacities=torch.full((300, 1), np.nan))
    with pytest.raises(InputError, match="none of the model's is finite"):
        none.write(tmp_path / "c.ply")


def packed(shares: np.ndarray, bits: list[int]) -> np.ndarray:
    """(N, K) in [0, 1] as K fields of so many bits in (N,) words, the first uppermost."""
    word = np.zeros(len(shares), np.uint32)
    for share, width in zip(shares.T, bits, strict=True):
        word = (word << width) | np.rint(share * (2**width - 1)).astype(np.uint32)
    return word


def compressed(made: Gaussians, path: Path, bounds_of_colors: bool = True) -> None:
    """Write Gaussians as splat-transform compresses them."""
    colors = (0.5 + 0.28209479177387814 * made.harmonics[:, 0]).numpy()
    opacity = torch.sigmoid(made.opacities).numpy()
    chunks, words = [], []
    for begin in range(0, len(made), 256):
        part = slice(begin, begin + 256)
        bounds, shares = [], []
        for values in (made.means[part].numpy(), made.scales[part].numpy(), colors[part]):
            low, high = values.min(axis=0), values.max(axis=0)
            if len(bounds) == 4 and not bounds_of_colors:
                low, high = np.zeros(3), np.ones(3)
            bounds += [low, high]
            shares.append(np.clip((values - low) / (high - low), 0, 1))
        quats = made.quats[part].numpy()
        largest = np.abs(quats).argmax(axis=1)
        quats = quats * np.sign(quats[np.arange(len(quats)), largest])[:, None]
        others = quats[np.arange(4)[None] != largest[:, None]].reshape(-1, 3)
        rotation = packed(others / np.sqrt(2) + 0.5, [10, 10, 10]) | (largest.astype(np.uint32) << 30)
        color = packed(np.concatenate([shares[2], opacity[part]], axis=1), [8] * 4)
        words.append(np.stack([packed(shares[0], [11, 10, 11]), rotation, packed(shares[1], [11, 10, 11]), color], 1))
        chunks.append(np.concatenate(bounds if bounds_of_colors else bounds[:4]))
    kinds = [("", "xyz"), ("scale_", "xyz"), *([("", "rgb")] if bounds_of_colors else [])]
    names = [f"{side}_{what}{axis}" for what, axes in kinds for side in ("min", "max") for axis in axes]
    chunk = np.stack(chunks).astype("<f4").view([(name, "<f4") for name in names])[:, 0]
    packs = ("packed_position", "packed_rotation", "packed_scale", "packed_color")
    vertex = np.ascontiguousarray(np.concatenate(words)).view([(name, "<u4") for name in packs])[:, 0]
    elements = [PlyElement.describe(chunk, "chunk"), PlyElement.describe(vertex, "vertex")]
    if made.degree:
        rest = made.harmonics[:, 1:].transpose(1, 2).reshape(len(made), -1).numpy()
        bytes_ = np.clip(np.trunc((rest / 8 + 0.5) * 256), 0, 255).astype("u1")
        shape = [(f"f_rest_{i}", "u1") for i in range(rest.shape[1])]
        elements.append(PlyElement.describe(np.ascontiguousarray(bytes_).view(shape)[:, 0], "sh"))
    PlyData(elements, byte_order="<", comments=["SplatRenderMode: mip"]).write(str(path))


@pytest.mark.parametrize("degree", range(4))
def test_compressed_gaussians_are_read_to_the_bits_they_have(tmp_path: Path, degree: int) -> None:
    made, path = gaussians_of_degree(degree), tmp_path / "a.compressed.ply"
    compressed(made, path)
    read = Gaussians.read(path)
    assert len(read) == 300 and read.degree == degree and read.antialiased
    torch.testing.assert_close(read.means, made.means, atol=8 / 1023, rtol=0)
    torch.testing.assert_close(read.scales, made.scales, atol=8 / 1023, rtol=0)
    torch.testing.assert_close(read.harmonics[:, 0], made.harmonics[:, 0], atol=4 / 255, rtol=0)
    torch.testing.assert_close(read.harmonics[:, 1:], made.harmonics[:, 1:], atol=4.01 / 256, rtol=0)
    torch.testing.assert_close(torch.sigmoid(read.opacities), torch.sigmoid(made.opacities), atol=1 / 255, rtol=0)
    # the same turn, whichever sign; the component left out is what the others leave
    assert (read.quats * made.quats).sum(dim=-1).abs().min() > 1 - 1e-4
    compressed(replace(made, harmonics=made.harmonics.clamp(-1, 1)), path, bounds_of_colors=False)
    older = Gaussians.read(path).harmonics
    torch.testing.assert_close(older[:, 0], made.harmonics[:, 0].clamp(-1, 1), atol=4 / 255, rtol=0)


def test_broken_compressed_files_are_one_sentence(tmp_path: Path) -> None:
    path = tmp_path / "a.compressed.ply"
    compressed(gaussians_of_degree(1), path)
    whole = {element.name: element.data for element in PlyData.read(str(path), mmap=False).elements}
    for changes, words in [
        ({"chunk": None}, "chunk"),
        ({"chunk": whole["chunk"][:1]}, "1 chunks are not those of 300"),
        ({"sh": whole["sh"][:7]}, "harmonics of 7 of 300"),
        ({"chunk": whole["chunk"][["min_x", "max_x"]]}, "no min_y"),
        ({"vertex": whole["vertex"][["packed_position", "packed_scale", "packed_color"]]}, "no packed_rotation"),
        ({"sh": whole["sh"][["f_rest_0", "f_rest_1"]]}, "no spherical harmonics"),
    ]:
        kept = {name: rfn.repack_fields(data) for name, data in {**whole, **changes}.items() if data is not None}
        PlyData([PlyElement.describe(data, name) for name, data in kept.items()]).write(str(path))
        with pytest.raises(InputError, match=words):
            Gaussians.read(path)


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
