"""nerfstudio methods behind our interface, on a small scene and short trainings."""

from __future__ import annotations

import dataclasses
import shutil
import subprocess
import sys
import weakref
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from difixcli.errors import InputError
from difixcli.reconstruction import PseudoView, Reconstruction, default_iterations, known_methods
from difixcli.reconstruction.checkpoints import read_checkpoint
from difixcli.reconstruction.presets import most_gaussians
from difixcli.runs import write_image
from difixcli.scenes import load_photo, load_scene
from difixcli.scenes.scene import Camera, Scene

ITERATIONS = 100
STOP = 53  # no multiple of anything that is scheduled
TRAIN = [0, 2, 4, 6]


@pytest.fixture(scope="session")
def scene(arc: Path) -> Scene:
    return load_scene(arc, size=64)


def create(scene: Scene, folder: Path, method: str = "splatfacto", **changes: object) -> Reconstruction:
    options: dict = {"preset": "cpu", "device": "cpu", "iterations": ITERATIONS, "seed": 3}
    if method == "splatfacto":
        options["overrides"] = ["max_gaussians=2500"]
    elif method == "nerfacto":
        options["overrides"] = ["pipeline.datamanager.train_num_rays_per_batch=128"]
    return Reconstruction.create(scene, TRAIN, method=method, folder=folder, **{**options, **changes})


def psnr(a: np.ndarray, b: np.ndarray) -> float:
    return float(-10 * np.log10(np.mean((a - b) ** 2)))


@pytest.fixture(scope="session", params=["splatfacto", "nerfacto"])
def trained(request: pytest.FixtureRequest, scene: Scene, tmp_path_factory: pytest.TempPathFactory) -> Reconstruction:
    """A short training, saved on the way and at its end; the folder with the earlier state is `half` beside it."""
    folder = tmp_path_factory.mktemp("runs") / request.param
    made = create(scene, folder, request.param)
    made.train(STOP)
    made.save()
    subprocess.run(["cp", "-r", str(folder), str(folder.with_name("half"))], check=True)
    made.train(ITERATIONS - STOP)
    made.save()
    return made


def test_training_learns_the_photos(trained: Reconstruction, scene: Scene) -> None:
    frame = scene.frames[TRAIN[0]]
    photo = load_photo(frame)
    render = trained.render(frame.camera)
    assert render.color.shape == photo.shape and render.color.dtype == np.float32
    assert psnr(render.color, photo) > psnr(np.full_like(photo, photo.mean()), photo) + 1
    assert render.accumulation.min() >= 0 and render.accumulation.max() <= 1 + 1e-6
    assert trained.step == ITERATIONS


def test_depth_is_along_the_viewing_axis(trained: Reconstruction, scene: Scene) -> None:
    """Depths agree with those of the seed points the photo shows, in units of the normalised world."""
    camera = scene.frames[TRAIN[0]].camera
    depth = trained.render(camera).depth
    local = (scene.points - camera.position) @ camera.camera_to_world[:3, :3]
    z = -local[:, 2]
    x = np.floor(local[:, 0] / z * camera.fx + camera.cx).astype(int)
    y = np.floor(-local[:, 1] / z * camera.fy + camera.cy).astype(int)
    seen = (z > 0) & (x >= 0) & (x < camera.width) & (y >= 0) & (y < camera.height)
    ratio = depth[y[seen], x[seen]] / z[seen]
    assert 0.5 < np.median(ratio) < 1.5  # after so few iterations


def test_going_on_after_a_load_is_going_on(trained: Reconstruction, scene: Scene) -> None:
    """Loading on the way, rendering now and then, and training to the end gives what training through gave."""
    half = Reconstruction.load(trained.folder.with_name("half"), scene, TRAIN)
    assert half.step == STOP
    before = half.render(scene.frames[1].camera).color
    half.train(4)
    half.render(scene.frames[2].camera)
    half.train(ITERATIONS - STOP - 4)
    after = half.render(scene.frames[1].camera).color
    assert np.abs(after - before).max() > 1e-3
    np.testing.assert_allclose(after, trained.render(scene.frames[1].camera).color, atol=1e-5)


def test_loading_shows_the_same(trained: Reconstruction, scene: Scene) -> None:
    again = Reconstruction.load(trained.folder)
    camera = scene.frames[3].camera
    np.testing.assert_allclose(again.render(camera).color, trained.render(camera).color, atol=1e-6)
    # what only renders holds no photos, drawn as images or by rays
    photos = {"cached_train", "train_image_dataloader"}
    assert photos & vars(trained._trainer.pipeline.datamanager).keys()
    assert not photos & vars(again._trainer.pipeline.datamanager).keys()
    with pytest.raises(InputError, match="other photos"):
        Reconstruction.load(trained.folder, dataclasses.replace(scene, frames=scene.frames[:5]))
    with pytest.raises(InputError, match="restore the split"):
        Reconstruction.load(trained.folder, scene, [0, 1, 4, 6])


def test_threads_render_one_after_another(trained: Reconstruction, scene: Scene) -> None:
    """What rendering does to the process (torch's functions, random numbers) is undone whoever renders beside it."""
    cameras = [scene.frames[i].camera for i in range(6)]
    alone = [trained.render(camera).color for camera in cameras]
    numbers, cuda = torch.get_rng_state(), torch.Tensor.cuda
    with ThreadPoolExecutor(3) as threads:
        together = list(threads.map(lambda camera: trained.render(camera).color, cameras * 2))
    assert torch.Tensor.cuda is cuda and torch.equal(torch.get_rng_state(), numbers)
    for one, other in zip(alone * 2, together, strict=True):
        np.testing.assert_array_equal(one, other)


def test_the_folder_is_a_nerfstudio_run(trained: Reconstruction, forked: Path, tmp_path: Path) -> None:
    """nerfstudio's own loader opens it in another process, with the test split, and finds the checkpoint."""
    assert (trained.folder / "dataparser_transforms.json").is_file()
    script = f"""
from difixcli.torchvision_cure import cure; cure()
from difixcli.reconstruction.patches import no_perceptual_download
from nerfstudio.models.base_model import Model
from nerfstudio.utils.eval_utils import eval_setup
from pathlib import Path
with no_perceptual_download(Model):
    config, pipeline, checkpoint, step = eval_setup(Path({str(trained.folder / "config.yml")!r}), test_mode="inference")
print("RESULT", step, len(pipeline.datamanager.train_dataset), len(pipeline.datamanager.eval_dataset))
"""
    (tmp_path / "open.py").write_text(script)
    done = subprocess.run([forked / "python", tmp_path / "open.py"], capture_output=True, text=True, check=False)
    assert f"RESULT {ITERATIONS - 1} {len(TRAIN)} {11 - len(TRAIN)}" in done.stdout, done.stderr[-2000:]


def test_checkpoints_hold_nothing_but_tensors_and_plain_values(trained: Reconstruction) -> None:
    files = sorted((trained.folder / "nerfstudio_models").iterdir())
    assert [file.name for file in files] == [f"step-{ITERATIONS - 1:09d}.ckpt"]
    torch.load(files[0], weights_only=True)


@pytest.mark.parametrize("method", ["splatfacto", "nerfacto"])
def test_pseudo_views_pull_as_far_as_they_are_trusted(method: str, scene: Scene, tmp_path: Path) -> None:
    """A red pseudo-view reddens the render where it is trusted; where its weight is 0 it does nothing."""
    camera = scene.frames[1].camera
    red = np.zeros((camera.height, camera.width, 3), dtype=np.float32)
    red[..., 0] = 1
    reddened = []
    for trust in (0.0, 1.0):
        made = create(scene, tmp_path / f"run{trust}", method)
        made.train(5)
        before = made.render(camera).color
        made.set_pseudo_views([pseudo_view(tmp_path, camera, red, trust, nearest=1)], share=0.7)
        made.train(80)
        change = made.render(camera).color - before
        reddened.append(float((change[..., 0] - change[..., 1:].mean(axis=-1)).mean()))
    assert reddened[1] > 0.2
    assert abs(reddened[0]) < reddened[1] / 4


def pseudo_view(folder: Path, camera: Camera, image: np.ndarray, trust: float | None, nearest: int) -> PseudoView:
    """A pseudo-view from an array, trusted alike everywhere (None: wholly)."""
    name = f"{len(list(folder.glob('*.fixed.png')))}"
    write_image(folder / f"{name}.fixed.png", image)
    weight = None
    if trust is not None:
        weight = folder / f"{name}.confidence.png"
        write_image(weight, np.full(image.shape[:2], trust, dtype=np.float32))
    return PseudoView(camera, folder / f"{name}.fixed.png", weight, nearest)


def test_pseudo_views_borrow_photo_ids(scene: Scene, tmp_path: Path) -> None:
    made = create(scene, tmp_path / "run")
    camera = scene.frames[3].camera
    image = np.zeros((camera.height, camera.width, 3), dtype=np.float32)
    made.set_pseudo_views([pseudo_view(tmp_path, camera, image, None, nearest=4)], share=0.5)
    drawn = [made._trainer.next_train(step) for step in range(200)]
    pseudo = [batch for _, batch in drawn if "pseudo_weight" in batch]
    assert 70 < len(pseudo) < 130
    assert {batch["image_idx"] for batch in pseudo} == {TRAIN.index(4)}
    again = ["pseudo_weight" in made._trainer.next_train(step)[1] for step in range(200)]
    assert again == ["pseudo_weight" in batch for _, batch in drawn]
    made.set_pseudo_views([], 0.0)
    assert not any("pseudo_weight" in made._trainer.next_train(step)[1] for step in range(20))
    with pytest.raises(InputError, match="size"):
        made.set_pseudo_views([pseudo_view(tmp_path, camera, image[:-1], None, nearest=4)], 0.5)
    with pytest.raises(InputError, match="below 1"):
        made.set_pseudo_views([pseudo_view(tmp_path, camera, image, None, nearest=4)], 1.5)
    # of whole images all may be pseudo-views'
    made.set_pseudo_views([pseudo_view(tmp_path, camera, image, None, nearest=4)], 1.0)
    assert all("pseudo_weight" in made._trainer.next_train(step)[1] for step in range(20))
    with pytest.raises(InputError, match=r"gone\.png does not exist"):
        made.set_pseudo_views([PseudoView(camera, tmp_path / "gone.png", None, nearest=4)], 0.5)


@pytest.mark.parametrize("method", ["splatfacto", "nerfacto"])
def test_training_on_pseudo_views_goes_on_exactly_after_a_load(method: str, scene: Scene, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    cameras = [scene.frames[i].camera for i in (1, 3, 5)]
    images = [rng.random((c.height, c.width, 3)).astype(np.float32) for c in cameras]
    views = [pseudo_view(tmp_path, c, m, 0.5, i) for i, (c, m) in enumerate(zip(cameras, images, strict=True))]
    made = create(scene, tmp_path / "run", method)
    made.train(2)
    made.set_pseudo_views(views, share=0.6)
    made.train(11)
    made.save()
    made.train(12)
    again = Reconstruction.load(tmp_path / "run", scene)
    again.set_pseudo_views(views, share=0.6)
    again.train(12)
    assert np.array_equal(made.render(cameras[0]).color, again.render(cameras[0]).color)


def test_what_is_saved_before_its_first_step_goes_on_exactly(scene: Scene, tmp_path: Path) -> None:
    """Photos that are drawn by rays are shuffled when they are first read."""
    made = create(scene, tmp_path / "run", "nerfacto")
    made.save()
    made.train(2)
    again = Reconstruction.load(tmp_path / "run", scene)
    again.train(2)
    shown = made.render(scene.frames[1].camera).color
    assert np.array_equal(shown, again.render(scene.frames[1].camera).color)


def test_rays_of_pseudo_views_join_those_of_photos(scene: Scene, tmp_path: Path) -> None:
    made = create(scene, tmp_path / "run", "nerfacto")
    camera = scene.frames[3].camera
    black = np.zeros((camera.height, camera.width, 3), dtype=np.float32)
    with pytest.raises(InputError, match="below 1"):
        made.set_pseudo_views([pseudo_view(tmp_path, camera, black, None, nearest=4)], 1.0)
    made._trainer.train(0)  # photos are read when training begins
    photos = len(made._trainer.next_train(0)[1]["image"])
    camera = scene.frames[3].camera
    red = np.zeros((camera.height, camera.width, 3), dtype=np.float32)
    red[..., 0] = 1
    made.set_pseudo_views([pseudo_view(tmp_path, camera, red, 0.4, nearest=4)], share=0.2)
    rays, batch = made._trainer.next_train(1)
    added = round(0.25 * photos)
    assert len(rays) == len(batch["image"]) == len(batch["indices"]) == photos + added
    assert torch.equal(batch["image"][photos:, 0], torch.ones(added)) and not batch["image"][photos:, 1:].any()
    assert torch.equal(batch["pseudo_weight"][:photos], torch.ones(photos, 1))
    assert torch.allclose(batch["pseudo_weight"][photos:], torch.tensor(0.4))
    assert set(batch["indices"][photos:, 0].tolist()) == {TRAIN.index(4)}
    assert (rays.camera_indices[photos:] == TRAIN.index(4)).all()
    origin = torch.tensor(camera.position, dtype=torch.float32)
    assert torch.allclose(rays.origins[photos:], origin.expand(added, 3), atol=1e-6)


def test_splats_densify_within_their_bound_reset_and_export(scene: Scene, tmp_path: Path) -> None:
    overrides = [
        "max_gaussians=1200",
        "pipeline.model.warmup_length=5",
        "pipeline.model.refine_every=10",
        "pipeline.model.reset_alpha_every=2",
        "pipeline.model.densify_grad_thresh=1e-7",
        "pipeline.model.stop_split_at=35",
    ]
    few = dataclasses.replace(scene, points=scene.points[:100], colors=scene.colors[:100], tracks=None)
    made = create(few, tmp_path / "run", overrides=overrides)
    counts = []
    for _ in range(4):
        made.train(10)
        counts.append(made.gaussians)
    assert max(counts) <= 1200
    path = made.export(tmp_path / "splat.ply")
    from plyfile import PlyData

    vertices = PlyData.read(str(path))["vertex"]
    assert len(vertices) == made.gaussians
    assert {"x", "f_dc_2", "f_rest_44", "opacity", "scale_2", "rot_3"} <= set(vertices.data.dtype.names)


def test_the_same_seed_gives_the_same_bytes(scene: Scene, tmp_path: Path) -> None:
    images = []
    for name in ("a", "b"):
        torch.manual_seed(len(images))  # what happens outside does not matter
        made = create(scene, tmp_path / name, iterations=10)
        made.train(10)
        images.append(made.render(scene.frames[1].camera).color)
    np.testing.assert_array_equal(*images)


@pytest.mark.parametrize("method", ["splatfacto", "nerfacto"])
def test_the_seed_moves_the_order_of_the_photos(method: str, scene: Scene, tmp_path: Path) -> None:
    """Whole images as well as rays: two seeds draw two orders, the same seed draws the same."""
    orders = []
    for number, seed in enumerate((1, 2, 1)):
        trainer = create(scene, tmp_path / f"{number}", method, seed=seed)._trainer
        trainer.train(0)  # photos are read when training begins
        with trainer._working():
            batches = [trainer.next_train(step)[1] for step in range(12)]
        orders.append([batch["indices"].tolist() if "indices" in batch else batch["image_idx"] for batch in batches])
    assert orders[0] == orders[2] != orders[1]


def test_method_names() -> None:
    assert {"nerfacto", "splatfacto", "tensorf", "instant-ngp"} <= set(known_methods())
    assert default_iterations("splatfacto", "cpu") < default_iterations("splatfacto", "gpu")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"method": "nerfakto"}, "nerfacto"),
        ({"method": "instant-ngp"}, "needs CUDA"),
        ({"method": "generfacto"}, "posed photos"),
        ({"preset": "tpu"}, "preset called tpu"),
        ({"device": "tpu"}, "device called tpu"),
        ({"iterations": 0}, "at least 1"),
        ({"overrides": ["pipeline.model.sh_degre=2"]}, r"pipeline\.model\.sh_degree"),
        ({"overrides": ["pipeline.model.sh_degree=two"]}, "no value"),
        ({"overrides": ["pipeline.model.sh_degree"]}, "a.b.c=value"),
        ({"overrides": ["pipeline.datamanager.data=x"]}, "cannot be set"),
        ({"overrides": ["pipeline.datamanager.images_on_gpu=true"]}, "cannot be set"),
        ({"overrides": ["max_gaussians=few"]}, "not a number"),
        ({"overrides": ["max_gaussians=5"]}, "at least 100"),
    ],
)
def test_bad_requests_are_one_sentence(changes: dict, message: str, scene: Scene, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=message):
        create(scene, tmp_path / "run", **changes)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("method", ["splatfacto", "nerfacto"])
def test_the_configuration_for_cuda_serves_several_datamanagers(method: str, scene: Scene, tmp_path: Path) -> None:
    """A run has two of them and a process several runs; what one is asked for is none of the others' business."""
    from nerfstudio.data.datasets.base_dataset import InputDataset

    from difixcli.reconstruction.configuration import configure

    recipe = dataclasses.replace(create(scene, tmp_path / "run", method)._recipe, device="cuda")
    shared = list(InputDataset.exclude_batch_keys_from_device)
    for _ in range(2):
        config = configure(recipe, tmp_path / "run")
        config.pipeline.datamanager.setup(device="cpu", test_mode="inference", world_size=1, local_rank=0)
        assert InputDataset.exclude_batch_keys_from_device == shared


def test_photos_cached_beside_the_device_need_no_cuda(scene: Scene, tmp_path: Path) -> None:
    """nerfstudio caches more than 500 photos in pinned memory, which there is none of without an accelerator."""
    made = create(scene, tmp_path / "run", overrides=["pipeline.datamanager.cache_images=cpu", "max_gaussians=500"])
    made.train(2)
    assert made.step == 2


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without CUDA")
def test_splats_on_cuda_need_compiled_kernels(scene: Scene, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    # in place of gsplat's own module, which would begin to compile where it finds a compiler
    monkeypatch.setitem(sys.modules, "gsplat.cuda._backend", SimpleNamespace(_C=None))
    with pytest.raises(InputError, match="no compiled CUDA kernels"):
        create(scene, tmp_path / "run", device="cuda")
    assert not (tmp_path / "run").exists()


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without CUDA")
def test_a_run_of_another_device_is_rendered_here(scene: Scene, tmp_path: Path) -> None:
    made = create(scene, tmp_path / "run", iterations=10)
    made.train(3)
    made.save()
    recipe = tmp_path / "run" / "reconstruction.json"
    recipe.write_text(recipe.read_text().replace('"device": "cpu"', '"device": "cuda"'))
    described = (tmp_path / "run" / "config.yml").read_bytes()
    with pytest.raises(InputError, match="CUDA"):
        Reconstruction.load(tmp_path / "run", scene)
    again = Reconstruction.load(tmp_path / "run", scene, device="cpu")
    camera = scene.frames[1].camera
    np.testing.assert_allclose(again.render(camera).color, made.render(camera).color, atol=1e-6)
    assert (tmp_path / "run" / "config.yml").read_bytes() == described


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without CUDA")
def test_cuda_that_is_not_there(scene: Scene, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="CUDA"):
        create(scene, tmp_path / "run", device="cuda")


def test_no_training_frames(scene: Scene, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="split"):
        Reconstruction.create(scene, [], method="nerfacto", folder=tmp_path, preset="cpu", device="cpu", iterations=5)


def test_damaged_checkpoint(scene: Scene, tmp_path: Path) -> None:
    made = create(scene, tmp_path / "run", iterations=10)
    checkpoint = made.save()
    checkpoint.write_bytes(checkpoint.read_bytes()[:1000])
    with pytest.raises(InputError, match="damaged or not whole"):
        Reconstruction.load(tmp_path / "run")


@pytest.mark.parametrize("zipped", [True, False])
def test_checkpoints_cut_anywhere_are_told(tmp_path: Path, zipped: bool) -> None:
    """torch raises a dozen kinds of errors for them, also in the layout of torch before 1.6."""
    path = tmp_path / "step-000000001.ckpt"
    torch.save({"pipeline": {"a": torch.zeros(3)}}, path, _use_new_zipfile_serialization=zipped)
    whole = path.read_bytes()
    assert read_checkpoint(path)["pipeline"]["a"].shape == (3,)
    for length in range(0, len(whole) - 1, 29 if zipped else 5):
        path.write_bytes(whole[:length])
        with pytest.raises(InputError, match="damaged or not whole"):
            read_checkpoint(path)


def test_going_back_is_loading_anew_with_one_model_in_memory(trained: Reconstruction, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    shutil.copytree(trained.folder.with_name("half"), folder)
    made, loaded = Reconstruction.load(folder), Reconstruction.load(folder)
    camera = Camera(np.eye(4), 32, 32, 16, 12, 32, 24)
    loaded.train(2)
    expected = loaded.render(camera).color
    del loaded
    made.train(5)
    held = weakref.ref(made._trainer.model)
    made.go_back()
    assert held() is None and made.step == STOP
    made.train(2)
    np.testing.assert_array_equal(made.render(camera).color, expected)


def test_overrides_take_the_fields_type() -> None:
    from difixcli.reconstruction.methods import method_config
    from difixcli.reconstruction.overrides import apply_overrides

    config = method_config("nerfacto")
    settings = [
        "pipeline.model.num_proposal_samples_per_ray=[64, 32]",
        "pipeline.model.background_color=white",
        "pipeline.model.predict_normals=true",
        "optimizers.fields.optimizer.lr=2e-3",
        "optimizers.fields.scheduler.lr_final=none",
        "pipeline.model.proposal_net_args_list.0.max_res=64",
    ]
    apply_overrides(config, settings, "nerfacto")
    model = config.pipeline.model
    assert model.num_proposal_samples_per_ray == (64, 32)
    assert model.background_color == "white" and model.predict_normals is True
    assert config.optimizers["fields"]["optimizer"].lr == 2e-3
    assert config.optimizers["fields"]["scheduler"].lr_final is None
    assert model.proposal_net_args_list[0]["max_res"] == 64
    with pytest.raises(InputError, match="one of random, last_sample, black, white"):
        apply_overrides(config, ["pipeline.model.background_color=green"], "nerfacto")


@pytest.mark.parametrize("shape", [(2, 3, 20, 31), (1, 3, 40, 11), (1, 1, 11, 12)])
def test_compiled_ssim_is_ssim(shape: tuple[int, ...]) -> None:
    from pytorch_msssim import SSIM

    from difixcli.reconstruction.ssim import CpuSsim

    torch.manual_seed(0)
    first = torch.rand(shape, requires_grad=True)
    second = (first.detach() + 0.2 * torch.randn(shape)).clamp(0, 1).requires_grad_()
    gradients = []
    for measure in (SSIM(data_range=1.0, size_average=True, channel=shape[1]), CpuSsim()):
        value = measure(first, second)
        gradients.append((value, *torch.autograd.grad(value, (first, second))))
    for expected, found in zip(*gradients, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-7)


def test_compiled_hash_encoding_is_nerfstudios() -> None:
    from nerfstudio.field_components.encodings import HashEncoding

    from difixcli.reconstruction.hash_encoding import encode

    torch.manual_seed(0)
    module = HashEncoding(num_levels=4, max_res=128, log2_hashmap_size=10, implementation="torch", hash_init_scale=1.0)
    positions = torch.rand(6, 50, 3)
    positions[0, :2] = torch.tensor([[0.0, 1.0, 0.5], [0.25, 0.0, 1.0]])  # on the corners of cells
    positions.requires_grad_()
    weight = torch.randn(6, 50, 8)
    results = []
    for function in (HashEncoding.pytorch_fwd, encode):
        value = function(module, positions)
        results.append((value, *torch.autograd.grad((value * weight).sum(), (positions, module.hash_table))))
    for expected, found in zip(*results, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_more_and_larger_photos_get_more_gaussians_on_a_cpu() -> None:
    assert most_gaussians("cpu", 7 * 240 * 180) == 25_000
    assert most_gaussians("cpu", 37 * 240 * 160) == 37 * 240 * 160 // 32
    assert most_gaussians("cpu", 300 * 1920 * 1080) == 50_000
    assert most_gaussians("gpu", 300 * 1920 * 1080) == most_gaussians("gpu", 1) == 1_000_000
