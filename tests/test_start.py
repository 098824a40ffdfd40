"""Beginning from runs that nerfstudio's own trainer made, and from PLY files of Gaussians."""

from __future__ import annotations

import copy
import random
import shutil
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from small_scenes import small_sample

from difixcli.errors import InputError
from difixcli.reconstruction import Reconstruction, start_from
from difixcli.reconstruction.gaussians import Gaussians
from difixcli.scenes import load_photo, load_scene
from difixcli.scenes.nerfstudio_format import write_transforms
from difixcli.scenes.ply import write_points
from difixcli.scenes.poses import apply_similarity
from difixcli.scenes.scene import Scene

TRAIN = [0, 2, 4, 6, 8]
APPLIED = np.array([[1.0, 0, 0, 0], [0, 0, 1, 0], [0, -1, 0, 0]])  # as ns-process-data turns COLMAP's world


@pytest.fixture(scope="module")
def scene(arc: Path, tmp_path_factory: pytest.TempPathFactory) -> Scene:
    """A small scene as ns-process-data leaves it, whose file's world is neither COLMAP's nor the normalised one."""
    from difixcli.runs import write_image

    source = load_scene(arc, size=64)
    folder = tmp_path_factory.mktemp("scene")
    applied = np.vstack([APPLIED, [0, 0, 0, 1]])
    to_file = applied @ np.linalg.inv(source.source_to_world)
    frames = []
    for i, frame in enumerate(source.frames):
        write_image(folder / f"images/{i:02d}.png", load_photo(frame))
        camera = frame.camera.moved(apply_similarity(to_file, frame.camera.camera_to_world))
        frames.append((camera, {"file_path": f"images/{i:02d}.png"}))
    write_points(folder / "points.ply", source.points @ to_file[:3, :3].T + to_file[:3, 3], source.colors)
    write_transforms(folder / "transforms.json", frames, applied_transform=APPLIED.tolist(), ply_file_path="points.ply")
    return load_scene(folder)


@dataclass
class Foreign:
    """A run of nerfstudio's own trainer, and what it shows at its training photos, by frame."""

    folder: Path
    renders: dict[int, np.ndarray]


def ns_train(scene: Scene, folder: Path, method: str, change: Callable[[object], None]) -> Foreign:
    """What `ns-train` does, with its own dataparser, split, trainer and checkpoints, for a few iterations."""
    from nerfstudio.configs.method_configs import all_methods
    from nerfstudio.data.dataparsers.nerfstudio_dataparser import NerfstudioDataParserConfig

    from difixcli.reconstruction.patches import no_perceptual_download, on_device, quiet

    config = copy.deepcopy(all_methods[method])
    config.pipeline.datamanager.dataparser = NerfstudioDataParserConfig(data=scene.root, load_3D_points=False)
    config.output_dir, config.experiment_name, config.timestamp = folder, "toy", "now"
    config.machine.device_type, config.mixed_precision = "cpu", False
    config.vis, config.logging.local_writer.enable = "tensorboard", False
    config.steps_per_eval_batch = config.steps_per_eval_image = config.steps_per_eval_all_images = 10**6
    config.max_num_iterations = 120
    change(config)
    model = config.pipeline.model._target
    with ExitStack() as stack:
        for context in (quiet(), on_device("cpu", model), no_perceptual_download(model)):
            stack.enter_context(context)
        random.seed(0)  # the samplers of pixels have several sources
        np.random.seed(0)
        torch.manual_seed(0)
        config.save_config()
        trainer = config.setup(local_rank=0, world_size=1)
        trainer.setup()
        trainer.train()
        trainer.pipeline.eval()
        dataset = trainer.pipeline.datamanager.train_dataset
        names = [path.name for path in dataset.image_filenames]
        frames = [next(i for i, f in enumerate(scene.frames) if f.name.endswith(name)) for name in names]
        renders = {}
        for i, frame in list(enumerate(frames))[::3]:
            outputs = trainer.pipeline.model.get_outputs_for_camera(dataset.cameras[i : i + 1])
            renders[frame] = np.clip(
                outputs["rgb"].detach().numpy().reshape(load_photo(scene.frames[frame]).shape), 0, 1
            )
    return Foreign(config.get_base_dir(), renders)


@pytest.fixture(scope="module")
def splats(scene: Scene, tmp_path_factory: pytest.TempPathFactory) -> Foreign:
    def change(config: object) -> None:
        model = config.pipeline.model
        model.random_init, model.num_random, model.random_scale = True, 2000, 4.0
        model.sh_degree_interval, model.num_downscales, model.warmup_length = 20, 0, 1000
        model.background_color, model.rasterize_mode = "black", "antialiased"
        for group in ("means", "scales", "opacities", "features_dc", "features_rest"):
            config.optimizers[group]["optimizer"].lr *= 8

    return ns_train(scene, tmp_path_factory.mktemp("splats"), "splatfacto", change)


@pytest.fixture(scope="module")
def field(scene: Scene, tmp_path_factory: pytest.TempPathFactory) -> Foreign:
    """With appearance embeddings and camera corrections of ten photos."""

    def change(config: object) -> None:
        from nerfstudio.data.datamanagers.base_datamanager import VanillaDataManager

        model, manager = config.pipeline.model, config.pipeline.datamanager
        manager._target, manager.train_num_rays_per_batch = VanillaDataManager, 256
        model.implementation, model.num_levels, model.log2_hashmap_size, model.max_res = "torch", 6, 12, 256
        model.hidden_dim = model.hidden_dim_color = 16
        model.num_nerf_samples_per_ray, model.num_proposal_iterations = 16, 1
        model.num_proposal_samples_per_ray = (32,)
        model.proposal_net_args_list = [
            {"hidden_dim": 16, "log2_hashmap_size": 12, "num_levels": 4, "max_res": 64, "use_linear": False}
        ]
        model.proposal_weights_anneal_max_num_iters = 50
        config.max_num_iterations = 700

    return ns_train(scene, tmp_path_factory.mktemp("field"), "nerfacto", change)


def start(path: Path, scene: Scene, folder: Path, **changes: object) -> Reconstruction:
    options: dict = {"preset": "cpu", "device": "cpu", "iterations": 30, "overrides": [], "seed": 0}
    return start_from(path, scene, TRAIN, folder, **{**options, **changes})


def psnr(a: np.ndarray, b: np.ndarray) -> float:
    return float(-10 * np.log10(np.mean((a - b) ** 2)))


@pytest.mark.parametrize("kind", ["splats", "field"])
def test_a_start_shows_what_the_run_shows(
    kind: str, scene: Scene, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    foreign = request.getfixturevalue(kind)
    made = start(foreign.folder, scene, tmp_path / "run", iterations=300)  # long enough that none is split so soon
    assert made.step == 0 and not made.warnings
    for frame, theirs in foreign.renders.items():
        ours, photo = made.render(scene.frames[frame].camera).color, load_photo(scene.frames[frame])
        assert psnr(theirs, photo) > psnr(np.full_like(photo, photo.mean()), photo) + 1
        assert abs(psnr(ours, photo) - psnr(theirs, photo)) < 0.05
        assert np.abs(ours - theirs).mean() < 0.004
    # It goes on from there: soon no worse (new optimisers' first steps are full-size ones), saved, and resumed exactly.
    frame = scene.frames[TRAIN[0]]
    before = psnr(made.render(frame.camera).color, load_photo(frame))
    made.train(15)
    made.save()
    made.train(15)
    assert psnr(made.render(frame.camera).color, load_photo(frame)) > before - 1.5
    again = Reconstruction.load(tmp_path / "run", scene, TRAIN)
    again.train(15)
    assert np.array_equal(again.render(frame.camera).color, made.render(frame.camera).color)
    # And from a run of ours, once more.
    made.save()
    more = start(tmp_path / "run", scene, tmp_path / "more")
    np.testing.assert_allclose(more.render(frame.camera).color, made.render(frame.camera).color, atol=2e-3)


def test_depth_of_a_start_is_in_the_scenes_units(field: Foreign, scene: Scene, tmp_path: Path) -> None:
    """A field's own world is larger or smaller than the scene's; half as large, its renders and depths stay."""
    transforms = field.folder / "dataparser_transforms.json"
    made = start(field.folder, scene, tmp_path / "run")
    scale = np.cbrt(np.linalg.det(made._to_model[:3, :3]))
    camera = scene.frames[0].camera
    inside = made._in_model(camera)
    distance = np.linalg.norm(inside.position - made._in_model(scene.frames[2].camera).position)
    assert np.isclose(distance, scale * np.linalg.norm(camera.position - scene.frames[2].camera.position))
    assert transforms.is_file() and (tmp_path / "run" / "reconstruction.json").is_file()


@pytest.mark.parametrize("world", ["normalised", "file", "colmap", "run"])
def test_gaussians_are_found_in_whichever_world_they_are(
    world: str, splats: Foreign, scene: Scene, tmp_path: Path
) -> None:
    made = start(splats.folder, scene, tmp_path / "first")
    made.save()
    path = made.export(tmp_path / "elsewhere" / "exports" / "splat.ply", world="normalised")
    if world != "normalised":
        to_colmap = np.linalg.inv(scene.source_to_world @ scene.applied)
        to_world = {"file": np.linalg.inv(scene.source_to_world), "colmap": to_colmap}
        if world == "run":
            from difixcli.scenes.run_worlds import worlds_of_run

            shutil.copy(splats.folder / "dataparser_transforms.json", path.parent.parent)
            to_world["run"] = worlds_of_run(splats.folder, scene)[0]
        Gaussians.read(path).moved(to_world[world]).write(path)
    again = start(path, scene, tmp_path / "again")  # antialiased, as the .ply says
    assert not again.warnings and again.gaussians == made.gaussians
    for i in (0, 5):
        camera = scene.frames[i].camera
        np.testing.assert_allclose(again.render(camera).color, made.render(camera).color, atol=4e-3)


def test_harmonics_turn_with_the_world() -> None:
    from gsplat.cuda._torch_impl import _eval_sh_bases_fast
    from scipy.spatial.transform import Rotation

    torch.manual_seed(0)
    for degree in (0, 1, 3, 4):
        count = (degree + 1) ** 2
        one = Gaussians(*(torch.randn(5, k) for k in (3, 3, 4)), torch.randn(5, count, 3), torch.randn(5, 1))
        rotation = Rotation.from_rotvec([0.3, -1.1, 2.0]).as_matrix()
        similarity = np.eye(4)
        similarity[:3, :3], similarity[:3, 3] = 2.5 * rotation, [1, 2, 3]
        moved = one.moved(similarity)
        directions = torch.nn.functional.normalize(torch.randn(7, 3), dim=-1)
        turned = directions @ torch.from_numpy(rotation).float()  # the directions before the world was turned
        before = torch.einsum("dk,nkc->ndc", _eval_sh_bases_fast(count, turned), one.harmonics)
        after = torch.einsum("dk,nkc->ndc", _eval_sh_bases_fast(count, directions), moved.harmonics)
        torch.testing.assert_close(after, before, rtol=1e-4, atol=1e-4)
        own = Rotation.from_quat(one.quats.numpy()[:, [1, 2, 3, 0]]).as_matrix()
        found = Rotation.from_quat(moved.quats.numpy()[:, [1, 2, 3, 0]]).as_matrix()
        np.testing.assert_allclose(found, rotation @ own, atol=1e-5)
        np.testing.assert_allclose(moved.scales, one.scales + np.log(2.5), atol=1e-5)


def test_another_scenes_run_is_warned_of(splats: Foreign, tmp_path: Path) -> None:
    names = {f"images/test_{i:03d}.png" for i in range(8)} | {"images/train_020.png"}
    other = load_scene(small_sample("room", tmp_path / "other", 48, names))
    made = start(splats.folder, other, tmp_path / "run")
    assert len(made.warnings) == 1 and "another scene" in made.warnings[0]


def test_hostile_configurations_are_not_run(field: Foreign, scene: Scene, tmp_path: Path) -> None:
    copied = tmp_path / "run"
    shutil.copytree(field.folder, copied)
    config, mark = copied / "config.yml", tmp_path / "owned"
    honest = config.read_text()
    for attack in (
        f"!!python/object/apply:os.system ['touch {mark}']",
        f"!!python/object/new:os.system ['touch {mark}']",
        f"!!python/object/apply:subprocess.check_output [[touch, {mark}]]",
        "!!python/module:antigravity ''",
        "!danger {}",
    ):
        config.write_text(honest.replace("average_init_density: 0.01", f"average_init_density: {attack}"))
        with pytest.raises(InputError, match=r"config\.yml"):
            start(copied, scene, tmp_path / "out")
    assert not mark.exists() and not (tmp_path / "out").exists()


def test_odd_values_in_a_configuration_are_one_sentence(field: Foreign, tmp_path: Path) -> None:
    from difixcli.reconstruction.run_config import read_config

    config = tmp_path / "config.yml"
    honest = (field.folder / "config.yml").read_text()
    entry = "average_init_density: 0.01"
    assert entry in honest
    odd = ["!!int a", "!!float x", "!!bool perhaps", "2001-99-99", "!!timestamp a", "{? !!python/tuple [{}] : 1}"]
    for value in (*odd, "{? !!python/name:pathlib.Path {a: b} : 1}", "thin", "[1]"):
        config.write_text(honest.replace(entry, f"average_init_density: {value}"))
        with pytest.raises(InputError, match=r"config\.yml"):
            read_config(config)


def test_what_was_learned_photo_by_photo_is_shared_by_all() -> None:
    """Also where there are by chance as many photos: theirs are not ours."""
    from difixcli.reconstruction.adoption import fitted

    key = "field.embedding_appearance.embedding.weight"
    theirs = torch.arange(12.0).view(4, 3)
    other = {"field.weight": torch.ones(4, 3)}
    for photos in (4, 7):
        taken = fitted({key: theirs, **other}, {key: torch.zeros(photos, 3), **other}, photos)
        assert torch.equal(taken[key], theirs.mean(dim=0).expand(photos, 3))
        assert torch.equal(taken["field.weight"], other["field.weight"])


def test_a_variant_of_a_method_is_started_from_by_its_own_name(scene: Scene, tmp_path: Path) -> None:
    from difixcli.reconstruction.start import method_of

    made = Reconstruction.create(
        scene, TRAIN, method="splatfacto-big", folder=tmp_path / "run", preset="cpu", device="cpu", iterations=2
    )
    made.train(1)
    made.save()
    assert method_of(tmp_path / "run") == "splatfacto-big"
    assert start(tmp_path / "run", scene, tmp_path / "again", method="splatfacto-big").step == 0
    (tmp_path / "run" / "reconstruction.json").write_text("[]")
    with pytest.raises(InputError, match=r"reconstruction\.json"):
        method_of(tmp_path / "run")


def test_settings_of_a_run_are_plain_values(field: Foreign) -> None:
    from difixcli.reconstruction.run_config import read_config

    read = read_config(field.folder / "config.yml")
    assert read.method == "nerfacto"
    assert read.settings["pipeline.model.hidden_dim"] == 16
    assert read.settings["pipeline.model.num_proposal_samples_per_ray"] == (32,)
    assert read.settings["pipeline.model.use_appearance_embedding"] is True
    assert not any("camera_optimizer" in path or "anneal_max" in path for path in read.settings)


def test_bad_runs_are_one_sentence(field: Foreign, splats: Foreign, scene: Scene, tmp_path: Path) -> None:
    broken = tmp_path / "run"
    out = tmp_path / "out"
    shutil.copytree(field.folder, broken)
    with pytest.raises(InputError, match="trained with nerfacto, not splatfacto"):
        start(broken, scene, out, method="splatfacto")
    (checkpoint,) = (broken / "nerfstudio_models").iterdir()
    whole = checkpoint.read_bytes()
    torch.save({"step": 1, "pipeline": {"_model.field": Path("x")}}, checkpoint)
    with pytest.raises(InputError, match="would be run as code; nothing"):
        start(broken, scene, out)
    state = torch.load(field.folder / "nerfstudio_models" / checkpoint.name, weights_only=False)
    del state["pipeline"]["_model.field.mlp_head.layers.0.weight"]
    torch.save(state, checkpoint)
    with pytest.raises(InputError, match="does not fit"):
        start(broken, scene, out)
    shutil.rmtree(out)
    checkpoint.write_bytes(whole)
    (broken / "dataparser_transforms.json").write_text("{}")
    with pytest.raises(InputError, match=r"dataparser_transforms\.json"):
        start(broken, scene, out)
    checkpoint.unlink()
    with pytest.raises(InputError, match="no checkpoint"):
        start(broken, scene, out)
    (broken / "config.yml").unlink()
    with pytest.raises(InputError, match=r"config\.yml is missing"):
        start(broken, scene, out)
    with pytest.raises(InputError, match="no run folder"):
        start(tmp_path / "nowhere", scene, out)
    assert not out.exists()


def test_bad_ply_files_are_one_sentence(splats: Foreign, scene: Scene, tmp_path: Path) -> None:
    from plyfile import PlyData, PlyElement

    state = torch.load(next((splats.folder / "nerfstudio_models").iterdir()), weights_only=False)["pipeline"]
    names = ("means", "scales", "quats", "features_dc", "features_rest", "opacities")
    held = {f"gauss_params.{name}": state[f"_model.gauss_params.{name}"] for name in names}
    path = tmp_path / "splat.ply"
    Gaussians.of_state(held).write(path)
    whole = PlyData.read(str(path))["vertex"].data
    kept = {
        "spherical harmonics": [name for name in whole.dtype.names if not name.startswith("f_")],
        "plain point cloud": ["x", "y", "z"],
        "no Gaussians": [name for name in whole.dtype.names if not name.startswith("rot_")],
    }
    for message, columns in kept.items():
        fewer = np.empty(len(whole), dtype=[(name, "<f4") for name in columns])
        for name in columns:
            fewer[name] = whole[name]
        PlyData([PlyElement.describe(fewer, "vertex")]).write(str(tmp_path / "bad.ply"))
        with pytest.raises(InputError, match=message):
            start(tmp_path / "bad.ply", scene, tmp_path / "out")
    (tmp_path / "bad.ply").write_bytes(path.read_bytes()[:-1000])
    with pytest.raises(InputError, match="cannot be read"):
        start(tmp_path / "bad.ply", scene, tmp_path / "out")
    whole["opacity"][:] = np.nan
    PlyData([PlyElement.describe(whole, "vertex")]).write(str(tmp_path / "bad.ply"))
    with pytest.raises(InputError, match="finite"):
        start(tmp_path / "bad.ply", scene, tmp_path / "out")
    with pytest.raises(InputError, match="choose splatfacto"):
        start(path, scene, tmp_path / "out", method="nerfacto")
    assert not (tmp_path / "out").exists()
