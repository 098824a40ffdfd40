"""Training view-conditioned diffusion: its samples, the loop, resuming, the command."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from commands import difix, done, refused
from PIL import Image
from planes import write_plane
from test_training import Killed, terminated_at

from difixcli import interrupts
from difixcli.errors import InputError
from difixcli.priors.view_diffusion.epipolar import EpipolarConfig
from difixcli.priors.view_diffusion.model import ViewDiffusion
from difixcli.priors.view_diffusion.published import from_published
from difixcli.scenes import load_scene
from difixcli.training import ViewDiffusionOptions, train_view_diffusion
from difixcli.training.view_diffusion import baselines, depth_loss
from difixcli.training.view_diffusion_samples import ViewBatch, ViewPhotos, held_view, shares

SHARED = Path(os.environ.get("DIFIX_SHARED", "/nowhere"))
DEPTH, SIDE = 3.0, 48
FAST: dict[str, Any] = {
    "canvas": SIDE,
    "size": 32,
    "width": 8,
    "depths": 6,
    "latent_channels": 2,
    "unet_width": 16,
    "epipolar_iterations": 2,
    "vae_iterations": 2,
    "diffusion_iterations": 2,
    "batch": 2,
    "window": 16,
    "diffusion_window": 16,
    "pictures": 2,
    "repeats": 2,
    "perceptual_weight": 0.0,
    "validation_views": 1,
    "log_every": 1,
}
COMMAND = ["--iterations", 1, "--batch", 2, "--perceptual-weight", 0]
for setting in ("canvas", "size", "width", "depths", "latent_channels", "unet_width", "window", "diffusion_window"):
    COMMAND += ["--set", f"{setting}={FAST[setting]}"]
COMMAND += ["--set", "pictures=2", "--set", "repeats=1", "--set", "validation_views=1"]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two scenes of planes at a known depth."""
    root = tmp_path_factory.mktemp("planes")
    return [write_plane(root / f"plane-{seed}", seed, depth=DEPTH, side=SIDE) for seed in range(2)]


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of three photos, the last too small."""
    folder = tmp_path_factory.mktemp("photos")
    for i, side in enumerate((64, 80, 24)):
        noise = np.random.default_rng(i).integers(0, 255, (side, side + 8, 3), dtype=np.uint8)
        Image.fromarray(noise).save(folder / f"{i}.png")
    return folder


Train = Callable[..., dict[str, Any]]
Whole = tuple[dict[str, Any], dict[str, torch.Tensor]]


@pytest.fixture(scope="module")
def train(folders: list[Path], photos: Path) -> Train:
    """Three steps of the first two networks, two of the last, into a folder."""
    scenes = [load_scene(folder, SIDE) for folder in folders]
    steps = {"epipolar_iterations": 3, "vae_iterations": 3, "diffusion_iterations": 2}

    def train(output: Path, **options: Any) -> dict[str, Any]:
        return train_view_diffusion(scenes, "scratch", output, photos=photos, **(FAST | steps | options))

    return train


@pytest.fixture(scope="module")
def whole(train: Train, tmp_path_factory: pytest.TempPathFactory) -> Whole:
    """The results and the weights of a training that nothing has disturbed."""
    folder = tmp_path_factory.mktemp("whole")
    return train(folder), ViewDiffusion.from_pretrained(folder).state_dict()


def dying(at: int) -> Callable[[int], None]:
    def progress(step: int) -> None:
        if step == at:
            raise Killed

    return progress


def weights_are(folder: Path, expected: dict[str, torch.Tensor]) -> bool:
    found = ViewDiffusion.from_pretrained(folder).state_dict()
    return all(torch.equal(value, found[name]) for name, value in expected.items())


def drawn(folders: list[Path], step: int, augment: bool = False, **options: Any) -> ViewBatch:
    chosen = ViewDiffusionOptions(canvas=SIDE, **options)
    scenes = [load_scene(folder, SIDE) for folder in folders]
    return ViewPhotos(scenes, None, chosen, "cpu").batch(step, 6, 24, augment)


def carried(batch: ViewBatch, depths: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The photos (B, V, 3, h, w) seen through the plane from the queries' windows, and where (B, V, h, w)."""
    count, views = batch.images.shape[:2]
    height, width = batch.truths.shape[-2:]
    y, x = torch.meshgrid(torch.arange(height) + 0.5, torch.arange(width) + 0.5, indexing="ij")
    k = batch.query_intrinsics[:, None, None]
    rays = torch.stack(
        [(x - k[..., 0, 2]) / k[..., 0, 0], -(y - k[..., 1, 2]) / k[..., 1, 1], -torch.ones(count, height, width)], -1
    )
    points = rays * depths[:, None, None, None]
    local = (points[:, None] - batch.poses[:, :, None, None, :3, 3])[..., None, :] @ batch.poses[
        :, :, None, None, :3, :3
    ]
    local = local[..., 0, :]
    f = batch.intrinsics[:, :, None, None]
    u = local[..., 0] / -local[..., 2] * f[..., 0, 0] + f[..., 0, 2]
    v = local[..., 1] / local[..., 2] * f[..., 1, 1] + f[..., 1, 2]
    grid = torch.stack([u, v], -1) / batch.images.shape[-1] * 2 - 1
    seen = F.grid_sample(batch.images.flatten(0, 1), grid.flatten(0, 1), align_corners=False)
    return seen.unflatten(0, (count, views)), (grid.abs() < 0.95).all(-1)


def test_photos_and_cameras_of_samples_agree(folders: list[Path]) -> None:
    """Whatever the scale, the window and whether it is mirrored: a photo seen through the plane is the view."""
    for step in range(12):
        batch = drawn(folders, step)
        known = batch.depths > 0
        assert bool(known.any(1).all())
        depths = torch.stack([row[mask].median() for row, mask in zip(batch.depths, known, strict=True)])
        seen, inside = carried(batch, depths)
        there = inside & (batch.masks.amin((2, 3, 4)) > 0)[..., None, None]
        error = (seen - batch.truths[:, None]).abs().mean(2)[there]
        assert there.float().mean() > 0.1 and error.mean() < 0.03
        place = (batch.pixels[..., 0] >= 0) & (batch.pixels[..., 0] < 24) & known
        assert bool(place.any())


def test_samples_follow_from_step_and_seed(folders: list[Path]) -> None:
    one, same = (drawn(folders, 3, augment=True) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(one, same, strict=True))
    for other in (drawn(folders, 4, augment=True), drawn(folders, 3, augment=True, seed=1)):
        assert other.truths.shape != one.truths.shape or not torch.equal(other.truths, one.truths)


def test_a_held_view_is_never_drawn(folders: list[Path]) -> None:
    scenes = [load_scene(folder, SIDE) for folder in folders]
    photos = ViewPhotos(scenes, None, ViewDiffusionOptions(canvas=SIDE), "cpu")
    held = [i for i, name in enumerate(photos.names) if name.endswith("/4.png")]
    assert len(held) == 2 and len(photos.held) == 2
    assert all(float(photos.chances[i]) == 0 for i in held)
    used = photos.mates[photos.chances > 0][photos.weights[photos.chances > 0] > 0]
    assert not set(held) & set(used.tolist()) and used.numel() > 0


def test_what_photos_share_is_counted_on_some_of_many_points() -> None:
    rng = np.random.default_rng(0)
    axes = np.stack([np.sin(np.arange(9)), np.zeros(9), np.cos(np.arange(9))], axis=1)

    def seen_by(points: int) -> np.ndarray:
        seen = np.abs(rng.random(points) - np.linspace(0, 1, 9)[:, None]) < 0.3
        seen[7] = np.arange(points) % (points // 60) == 1  # few points, and none of those that are chosen
        seen[8] = np.arange(points) < 5  # too few
        return seen

    for points, apart in ((3_000, 1e-12), (100_000, 0.03)):
        seen = seen_by(points)
        found = shares(seen, axes)
        both = np.einsum("np,mp->nm", seen.astype(np.int64), seen.astype(np.int64))
        exact = both / both.diagonal()[:, None]
        np.testing.assert_allclose(found[:7, :7], exact[:7, :7], atol=apart)
        np.testing.assert_allclose(found[7], exact[7], atol=1e-12)
        np.testing.assert_allclose(found[8], np.maximum(axes @ axes[8], 0), atol=1e-12)


def test_depths_of_attention_are_told_to_the_loss(folders: list[Path]) -> None:
    batch = drawn(folders, 0)
    depths = 32
    place = (1 - 1 / batch.depths[batch.depths > 0].median()) / (1 - 1 / batch.far) * (depths - 1)
    right = torch.zeros(6, depths, 24, 24)
    wrong = torch.zeros(6, depths, 24, 24)
    for i in range(6):
        at = torch.arange(depths)
        good = 1 - (at - (1 - 1 / batch.depths[i][batch.depths[i] > 0].median()) / (1 - 1 / batch.far[i]) * 31).abs()
        right[i] = good.clamp_min(0)[:, None, None]
        wrong[i, (int(place[i]) + 10) % depths] = 1
    assert depth_loss(right, batch) < 1 and depth_loss(wrong, batch) > 5
    away = batch._replace(pixels=batch.pixels + 1000)
    assert float(depth_loss(wrong, away)) == 0


def test_the_warped_photo_of_a_plane_is_the_view(folders: list[Path]) -> None:
    view = held_view(load_scene(folders[0], SIDE), 4, 2)
    nearest, warped = baselines(view)
    inner = slice(8, -8)
    apart = [float((made - view.truth).abs()[:, inner, inner].mean()) for made in (warped, nearest)]
    assert apart[0] < 0.03 and apart[1] > 0.1


def test_training_goes_on_from_the_end_of_a_network(train: Train, whole: Whole, tmp_path: Path) -> None:
    results, weights = whole
    assert results["steps"] == {"epipolar": 3, "vae": 3, "diffusion": 2}
    assert set(results["validation"]) == {"nearest", "warped", "eft", "vldm", "vae"}
    for stop in (1, 4, 7):  # in the middle of each network, or rather before any checkpoint of it
        with pytest.raises(Killed):
            train(tmp_path / "out", progress=dying(stop))
    assert train(tmp_path / "out")["validation"] == results["validation"]
    assert weights_are(tmp_path / "out", weights)
    log = tmp_path / "out" / "log.jsonl"
    events = [json.loads(line)["event"] for line in log.read_text().splitlines()]
    assert events.count("start") == 1
    # a finished training is not done again
    assert train(tmp_path / "out")["steps"] == results["steps"]
    assert [json.loads(line)["event"] for line in log.read_text().splitlines()] == [*events, "resume"]
    with pytest.raises(InputError, match="other photos, base or options"):
        train(tmp_path / "out", seed=1)


def test_training_goes_on_within_a_network(
    train: Train, whole: Whole, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From its checkpoints, and from what a signal has saved."""

    def killed(at: int) -> None:
        with monkeypatch.context() as often, pytest.raises(Killed):
            often.setattr("difixcli.training.checkpoints.SAVE_AFTER", 0.0)
            train(tmp_path / "out", progress=dying(at), checkpoint_every=1)

    killed(1)
    for step, (stage, within) in ((2, (1, 0)), (4, (1, 2))):  # at the end of a network, and within one
        with monkeypatch.context() as asked, pytest.raises(interrupts.Terminated):
            train(tmp_path / "out", progress=terminated_at(step, asked))
        state = torch.load(tmp_path / "out" / "checkpoints" / "last.pt", weights_only=True)
        assert (state["stage"], state["step"]) == (stage, within)
    killed(7)
    train(tmp_path / "out")
    assert weights_are(tmp_path / "out", whole[1])
    steps = [json.loads(line) for line in (tmp_path / "out" / "log.jsonl").read_text().splitlines()]
    for network, begun, over in (("epipolar", 0, 3), ("vae", 3, 6), ("diffusion", 6, 8)):
        assert [record["step"] for record in steps if record["event"] == network] == [*range(begun, over)]


def test_weights_that_are_no_numbers_are_not_kept(folders: list[Path], tmp_path: Path) -> None:
    """Between two lines of the log, too."""
    scenes = [load_scene(folders[0], SIDE)]
    options = {**FAST, "learning_rate": 1e30, "epipolar_iterations": 8, "log_every": 100, "checkpoint_every": 4}
    with pytest.raises(InputError, match=r"at step 3 .* is not a number \(no checkpoint was written yet\)"):
        train_view_diffusion(scenes, "scratch", tmp_path / "out", **options)
    assert not (tmp_path / "out" / "checkpoints" / "last.pt").exists()


def test_time_ends_training(folders: list[Path], tmp_path: Path) -> None:
    scenes = [load_scene(folders[0], SIDE)]
    options = {**FAST, "epipolar_iterations": 10**6, "vae_iterations": 0, "diffusion_iterations": 1, "seconds": 2.0}
    results = train_view_diffusion(scenes, "scratch", tmp_path / "out", **options)
    assert 0 < results["steps"]["epipolar"] < 10**6 and results["steps"]["vae"] == 0
    assert results["seconds"]["epipolar"] < 60


def test_each_network_learns(folders: list[Path], tmp_path: Path) -> None:
    """Losses on samples that training has seen fall in a few steps."""
    scenes = [load_scene(folder, SIDE) for folder in folders]
    options = FAST | {"epipolar_iterations": 60, "vae_iterations": 60, "diffusion_iterations": 60, "batch": 4}
    options |= {"pictures": 4, "warm_up": 5, "ema": 0.9}
    train_view_diffusion(scenes, "scratch", tmp_path / "out", **options)
    records = [json.loads(line) for line in (tmp_path / "out" / "log.jsonl").read_text().splitlines()]
    for name, term in (("epipolar", "pixel"), ("vae", "pixel"), ("diffusion", "error")):
        values = [record[term] for record in records if record["event"] == name]
        assert np.mean(values[-10:]) < 0.8 * np.mean(values[:5]), name
    latents = ViewDiffusion.from_pretrained(tmp_path / "out")
    view = held_view(scenes[0], 4, 2)
    assert 0.3 < float(latents.encode(view.truth[None]).square().mean()) < 3  # of unit variance, roughly


def test_scenes_that_teach_nothing(folders: list[Path], tmp_path: Path) -> None:
    def refuse(scenes: list[Any], said: str, **options: Any) -> None:
        with pytest.raises(InputError, match=said):
            train_view_diffusion(scenes, "scratch", tmp_path / "out", **(FAST | options))

    scene = load_scene(folders[0], SIDE)
    alone = type(scene)(**{**scene.__dict__, "frames": scene.frames[:1], "tracks": None})
    refuse([alone], "one photo")
    refuse([scene], "larger than the canvas", canvas=32)
    backs = [frame for frame in scene.frames[:2]]
    turned = backs[1].camera.camera_to_world @ np.diag([-1.0, 1, -1, 1])
    apart = [backs[0], type(backs[1])(**{**backs[1].__dict__, "camera": backs[1].camera.moved(turned)})]
    refuse([type(scene)(**{**scene.__dict__, "frames": apart, "tracks": None})], "overlap")
    with pytest.raises(InputError, match="base's own"):
        train_view_diffusion([scene], "bundled", tmp_path / "out", **FAST)


def test_the_command(folders: list[Path], photos: Path, tmp_path: Path) -> None:
    line = ["finetune", *folders, "--task", "view-diffusion", "--base", "scratch", "--photos", photos, *COMMAND]
    # one that is broken or teaches nothing stops it, unless so many may fail
    broken, lone = tmp_path / "broken", shutil.copytree(folders[0], tmp_path / "lone")
    broken.mkdir()
    (broken / "transforms.json").write_text('{"frames": [')
    meta = json.loads((lone / "transforms.json").read_text())
    (lone / "transforms.json").write_text(json.dumps(meta | {"frames": meta["frames"][:1]}))
    refused(difix(*line, broken, "--output", tmp_path / "out"), "transforms.json is not valid JSON")
    refused(difix(*line, lone, "--output", tmp_path / "out"), "The scene lone has one photo")
    refused(difix(*line, broken, lone, "--max-failed", 1, "--output", tmp_path / "out"), "2 of 4 scenes cannot be used")
    made = difix(*line, broken, lone, "--max-failed", 2, "--output", tmp_path / "out", "--json")
    assert made.exit_code == 3 and all(f"{one}: failed: " in made.stderr for one in (broken, lone)), made.stderr
    results = json.loads(made.stdout.splitlines()[-1])["results"]
    assert list(results["failed"]) == [str(broken), str(lone)] and results["scenes"] == [
        folder.name for folder in folders
    ]
    assert json.loads((tmp_path / "out" / "run.json").read_text())["results"]["failed"] == results["failed"]
    assert results["steps"] == {"epipolar": 1, "vae": 1, "diffusion": 1} and results["photos"]["folder"] == 2
    assert (tmp_path / "out" / "validation" / "diffusion.png").is_file()
    # its weights are a base
    more = ["finetune", folders[0], "--task", "view-diffusion", "--base", tmp_path / "out", "--set", "vae_iterations=0"]
    more += ["--set", "epipolar_iterations=1", "--set", "diffusion_iterations=0", "--batch", 1, "--set", "window=16"]
    again = done(difix(*more, "--set", f"canvas={SIDE}", "--output", tmp_path / "more", "--json"))
    assert again["steps"] == {"epipolar": 1, "vae": 0, "diffusion": 0}
    one, other = (ViewDiffusion.from_pretrained(tmp_path / name).state_dict() for name in ("out", "more"))
    same = {name.split(".")[0] for name in one if torch.equal(one[name], other[name])}
    assert {"unet", "vae", "head", "prompt"} <= same and not torch.equal(
        one["epipolar.occupied.weight"], other["epipolar.occupied.weight"]
    )


def test_what_the_command_refuses(folders: list[Path], photos: Path, tmp_path: Path) -> None:
    line = ["finetune", folders[0], "--task", "view-diffusion", "--base", "scratch", "--output", tmp_path / "out"]
    refused(difix(*line, "--crop", 32), "--crop is for other tasks")
    refused(difix(*line, "--gram-weight", 1), "--gram-weight is for fixers")
    refused(difix("finetune", folders[0], "--max-failed", 1), "--max-failed is for tasks that learn from scenes")
    refused(difix(*line, "--set", "depth=3"), "depth", "depths")
    both = ["--iterations", 2, "--set", "vae_iterations=1"]
    refused(difix(*line, *both), "leave it out beside --set vae_iterations")
    photos_alone = ["finetune", "--task", "view-diffusion", "--photos", photos, "--output", tmp_path / "out"]
    refused(difix(*photos_alone), "name scenes")
    refused(difix(*line[:4], "--base", tmp_path, *line[6:]), "holds no view-conditioned")


@pytest.mark.skipif(not (SHARED / "golden" / "geoquery").is_dir(), reason="needs DIFIX_SHARED's golden weights")
def test_published_weights_are_a_start(folders: list[Path], tmp_path: Path) -> None:
    """Autoencoder and U-Net give what diffusers' classes give, whatever y says, until they are trained."""
    from diffusers import AutoencoderKL, UNet2DConditionModel

    source = SHARED / "golden" / "geoquery"
    model = from_published(source, 64, EpipolarConfig(width=8, depths=4)).eval()
    unet: Any = UNet2DConditionModel.from_pretrained(source / "unet").eval()
    vae: Any = AutoencoderKL.from_pretrained(source / "vae").eval()
    assert model.config.schedule.prediction_type in ("epsilon", "v_prediction")
    with torch.no_grad():
        image = torch.rand(1, 3, 64, 64)
        wanted = vae.encode(image * 2 - 1).latent_dist.mode() * vae.config.scaling_factor
        torch.testing.assert_close(model.encode(image), wanted, atol=1e-5, rtol=1e-4)
        noisy = torch.randn_like(wanted)
        times = torch.tensor([400])
        told = torch.randn(1, model.unet.config.in_channels - noisy.shape[1], *noisy.shape[-2:])
        given = unet(noisy, times, model.prompt[None]).sample
        torch.testing.assert_close(model.predict(noisy, times, told), given, atol=1e-5, rtol=1e-4)
    model.save_pretrained(tmp_path / "start")
    again = ViewDiffusion.from_pretrained(tmp_path / "start")
    assert all(torch.equal(value, again.state_dict()[name]) for name, value in model.state_dict().items())
    options = {
        name: FAST[name] for name in ("canvas", "size", "width", "depths", "batch", "window", "perceptual_weight")
    }
    options |= {"epipolar_iterations": 1, "vae_iterations": 0, "diffusion_iterations": 1, "repeats": 1}
    scenes = [load_scene(folders[0], SIDE)]
    results = train_view_diffusion(scenes, source, tmp_path / "out", diffusion_window=32, **options)
    assert results["steps"] == {"epipolar": 1, "vae": 0, "diffusion": 1}
    trained = ViewDiffusion.from_pretrained(tmp_path / "out")
    assert trained.latent_scale == vae.config.scaling_factor
    assert torch.equal(trained.vae.encoder.conv_in.weight, vae.encoder.conv_in.weight)


@pytest.mark.skipif(not (SHARED / "golden" / "difix").is_dir(), reason="needs DIFIX_SHARED's golden weights")
def test_published_weights_that_do_not_fit(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="vae"):  # a fixer's autoencoder has adapters
        from_published(SHARED / "golden" / "difix", 64, EpipolarConfig())
    (tmp_path / "unet").mkdir()
    with pytest.raises(InputError, match="no folder vae"):
        from_published(tmp_path, 64, EpipolarConfig())
