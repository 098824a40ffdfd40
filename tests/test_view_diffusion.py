"""View-conditioned diffusion's networks: cameras, the epipolar transformer, denoising, weights on disk."""

from __future__ import annotations

import dataclasses
import math
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from planes import intrinsics, picture, pose, texture
from torch import Tensor

from difixcli.errors import InputError
from difixcli.priors.view_diffusion import epipolar as epipolar_module
from difixcli.priors.view_diffusion.denoising import SAMPLERS, NoiseSchedule, denoised, descent
from difixcli.priors.view_diffusion.epipolar import EpipolarConfig, EpipolarRender, EpipolarTransformer
from difixcli.priors.view_diffusion.model import Condition, ViewDiffusion, new_small_view_diffusion
from difixcli.priors.view_diffusion.views import InputViews, Pinhole, inverse, meeting_point

SIDE = 24
SMALL = EpipolarConfig(features=8, width=16, view_layers=1, ray_layers=1, depths=12, mending=8)
NEAR, FAR = 2.0, 8.0


def tiny(seed: int = 0) -> ViewDiffusion:
    model = new_small_view_diffusion(
        seed,
        size=32,
        vae_channels=(16, 16, 16),
        latent_channels=2,
        unet_channels=(16, 32),
        condition_channels=4,
        epipolar=dataclasses.replace(SMALL, depths=6),
    )
    return model.eval().requires_grad_(False)


def plane_views(seed: int, depth: float, places: list[tuple[float, float]], side: int = SIDE) -> InputViews:
    k = intrinsics(side)
    poses = torch.stack([pose(*place) for place in places])
    images = torch.stack([picture(texture(seed), depth, each, k, side, side) for each in poses])
    return InputViews(images, k.repeat(len(places), 1, 1), poses)


def rendered(network: EpipolarTransformer, views: InputViews, near: float = NEAR, far: float = FAR) -> EpipolarRender:
    """The query at the origin."""
    masks = torch.ones_like(views.images[:, :1]) if views.masks is None else views.masks
    k = intrinsics(SIDE)[None]
    limits = torch.tensor([near]), torch.tensor([far])
    return network(
        views.images[None],
        masks[None],
        views.intrinsics[None],
        views.poses[None],
        k,
        pose(0)[None],
        *limits,
        SIDE,
        SIDE,
    )


def psnr(one: Tensor, other: Tensor) -> float:
    return float(-10 * (one - other).square().mean().log10())


PLACES = [(-0.6, 0.0), (0.6, 0.1), (0.0, -0.5)]


@pytest.fixture(scope="module")
def trained() -> EpipolarTransformer:
    """A transformer that has learned from pictures of planes alone, without any depth."""
    torch.manual_seed(0)
    network = EpipolarTransformer(SMALL)
    optimiser = torch.optim.Adam(network.parameters(), lr=3e-3)
    steps = 240
    draw = torch.Generator().manual_seed(1)
    for step in range(steps):
        depth = 1 / (1 / FAR + (1 / NEAR - 1 / FAR) * float(torch.rand((), generator=draw)))
        shifts = (torch.rand(3, 2, generator=draw) - 0.5) * 1.4
        views = plane_views(100 + step, depth, [tuple(row) for row in shifts.tolist()])
        truth = picture(texture(100 + step), depth, pose(0), intrinsics(SIDE), SIDE, SIDE)
        render = rendered(network, views)
        loss = (render.picture[0] - truth).abs().mean() + (render.blend[0] - truth).abs().mean()
        for group in optimiser.param_groups:
            group["lr"] = 3e-3 * 0.5 * (1 + math.cos(math.pi * step / steps))
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimiser.step()
    return network.eval().requires_grad_(False)


@pytest.mark.parametrize("depth", [2.4, 3.4, 5.5])
def test_attention_peaks_at_the_depth_of_a_plane(trained: EpipolarTransformer, depth: float) -> None:
    render = rendered(trained, plane_views(7, depth, PLACES))
    place = (1 / NEAR - 1 / depth) / (1 / NEAR - 1 / FAR) * (SMALL.depths - 1)
    inner = render.weights[0, :, 4:-4, 4:-4]
    near = (inner.argmax(0) - place).abs() <= 1
    assert near.float().mean() > 0.8
    torch.testing.assert_close(render.weights.sum(1), torch.ones(1, SIDE, SIDE))
    expected = float(render.disparity[0, 0, 4:-4, 4:-4].mean())
    assert abs(expected - NEAR / depth) < 0.12


def test_pictures_need_the_right_poses(trained: EpipolarTransformer) -> None:
    views = plane_views(8, 3.0, PLACES)
    truth = picture(texture(8), 3.0, pose(0), intrinsics(SIDE), SIDE, SIDE)
    right = psnr(rendered(trained, views).picture[0], truth)
    swapped = dataclasses.replace(views, poses=views.poses[[1, 0, 2]])
    wrong = psnr(rendered(trained, swapped).picture[0], truth)
    nearest = max(psnr(image, truth) for image in views.images)
    assert right > wrong + 4 and right > nearest + 4


def test_the_worlds_frame_and_scale_do_not_matter() -> None:
    model = tiny()
    views = dataclasses.replace(plane_views(3, 3.0, PLACES), points=torch.rand(50, 3) - torch.tensor([0.5, 0.5, 3.0]))
    query = Pinhole(intrinsics(SIDE), pose(0.1, 0.0, 0.2), SIDE, SIDE)
    turn, _ = torch.linalg.qr(torch.randn(3, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(2)))
    turn = turn * torch.linalg.det(turn)
    scale, shift = 37.0, torch.tensor([300.0, -20.0, 5.0], dtype=torch.float64)

    def moved(camera: Tensor) -> Tensor:
        out = camera.double().clone()
        out[..., :3, :3] = turn @ out[..., :3, :3]
        out[..., :3, 3] = scale * (out[..., :3, 3] @ turn.T) + shift
        return out

    assert views.points is not None
    elsewhere = dataclasses.replace(
        views, poses=moved(views.poses), points=scale * (views.points.double() @ turn.T) + shift
    )
    one = model.condition(views, query)
    other = model.condition(elsewhere, dataclasses.replace(query, pose=moved(query.pose)))
    torch.testing.assert_close(one.picture, other.picture, atol=1e-4, rtol=0)
    torch.testing.assert_close(one.features, other.features, atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("count", [1, 2, 5, 9])
def test_any_number_of_photos(count: int) -> None:
    places = [(0.1 * i - 0.3, 0.05 * i) for i in range(count)]
    render = rendered(EpipolarTransformer(SMALL).eval(), plane_views(1, 3.0, places))
    assert render.picture.shape == (1, 3, SIDE, SIDE) and bool(torch.isfinite(render.picture).all())


def test_the_order_of_photos_does_not_matter() -> None:
    network, views = EpipolarTransformer(SMALL).eval(), plane_views(1, 3.0, PLACES)
    other = dataclasses.replace(views, images=views.images[[2, 0, 1]], poses=views.poses[[2, 0, 1]])
    torch.testing.assert_close(rendered(network, views).picture, rendered(network, other).picture, atol=1e-5, rtol=0)


def test_what_masks_leave_out_is_not_seen() -> None:
    network = EpipolarTransformer(SMALL).eval()
    views = plane_views(1, 3.0, PLACES)
    masks = torch.ones(3, 1, SIDE, SIDE)
    masks[0, :, :, : SIDE // 2] = 0
    spoilt = views.images.clone()
    spoilt[0, :, :, : SIDE // 2] = torch.rand(3, SIDE, SIDE // 2)
    one = rendered(network, dataclasses.replace(views, masks=masks))
    other = rendered(network, dataclasses.replace(views, masks=masks, images=spoilt))
    assert torch.equal(one.picture, other.picture) and torch.equal(one.features, other.features)
    assert not torch.equal(one.picture, rendered(network, dataclasses.replace(views, images=spoilt)).picture)
    # a photo without a single pixel counts for nothing, wherever it is
    masks[0] = 0
    gone = rendered(network, dataclasses.replace(views, masks=masks))
    assert not torch.equal(gone.picture, one.picture)
    poses = views.poses.clone()
    poses[0, :3, 3] += 0.2
    shifted = rendered(network, dataclasses.replace(views, masks=masks, poses=poses))
    absent = rendered(network, InputViews(views.images[1:], views.intrinsics[1:], views.poses[1:]))
    for other in (shifted, absent):
        torch.testing.assert_close(gone.picture, other.picture, atol=1e-5, rtol=0)
        torch.testing.assert_close(gone.features, other.features, atol=1e-4, rtol=1e-4)


def test_blended_colours_are_the_photos(trained: EpipolarTransformer) -> None:
    """A blend of photos that are all of one colour is that colour."""
    views = plane_views(1, 3.0, PLACES)
    colour = torch.tensor([0.2, 0.5, 0.9])[:, None, None].expand(3, SIDE, SIDE)
    render = rendered(trained, dataclasses.replace(views, images=colour.expand(3, -1, -1, -1).clone()))
    torch.testing.assert_close(render.blend[0], colour, atol=1e-5, rtol=0)


def test_a_batch_gives_what_each_gives_alone() -> None:
    network = EpipolarTransformer(SMALL).eval().requires_grad_(False)
    views = [plane_views(i, 3.0 + i, PLACES) for i in range(2)]
    k = intrinsics(SIDE).expand(2, 3, 3)
    together = network(
        torch.stack([each.images for each in views]),
        torch.ones(2, 3, 1, SIDE, SIDE),
        torch.stack([each.intrinsics for each in views]),
        torch.stack([each.poses for each in views]),
        k,
        pose(0).expand(2, 4, 4),
        torch.tensor([2.0, 1.5]),
        torch.tensor([8.0, 9.0]),
        SIDE,
        SIDE,
    )
    alone = [rendered(network, views[0], 2.0, 8.0), rendered(network, views[1], 1.5, 9.0)]
    for i, render in enumerate(alone):
        torch.testing.assert_close(together.picture[i], render.picture[0], atol=1e-5, rtol=0)
        torch.testing.assert_close(together.weights[i], render.weights[0], atol=1e-5, rtol=0)


def test_pieces_give_what_the_whole_gives(monkeypatch: pytest.MonkeyPatch) -> None:
    network, views = EpipolarTransformer(SMALL).eval(), plane_views(1, 3.0, PLACES)
    whole = rendered(network, views)
    row = 3 * SMALL.depths * SMALL.width * SIDE
    monkeypatch.setattr(epipolar_module, "_HELD", 9 * row)
    monkeypatch.setattr(epipolar_module, "_AT_ONCE", row // 3)
    with torch.no_grad():
        pieces = rendered(network, views)
    for one, other in zip(whole, pieces, strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-4)


def gaussian(schedule: NoiseSchedule, mean: float, deviation: float) -> Callable[[Tensor, int], Tensor]:
    """The v that a perfect network gives for latents of a normal distribution, in closed form."""
    alphas = schedule.alphas()

    def predict(noisy: Tensor, time: int) -> Tensor:
        alpha = float(alphas[time])
        signal, spread = math.sqrt(alpha), math.sqrt(1 - alpha)
        clean = mean + signal * deviation**2 * (noisy - signal * mean) / (alpha * deviation**2 + 1 - alpha)
        return (signal * noisy - clean) / spread

    return predict


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_denoising_with_a_perfect_network(sampler: str) -> None:
    schedule = NoiseSchedule()
    mean, deviation, start = 0.4, 0.3, 600
    predict = gaussian(schedule, mean, deviation)
    noisy = torch.randn(1, 2, 4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    alpha = float(schedule.alphas()[start])
    # in one move: the posterior's mean
    posterior = mean + math.sqrt(alpha) * deviation**2 * (noisy - math.sqrt(alpha) * mean) / (
        alpha * deviation**2 + 1 - alpha
    )
    torch.testing.assert_close(denoised(noisy, start, predict, schedule, 1, sampler), posterior, atol=1e-5, rtol=0)
    # in many: what the deterministic flow of probability maps the latents to
    flow = mean + (noisy - math.sqrt(alpha) * mean) * deviation / math.sqrt(alpha * deviation**2 + 1 - alpha)
    many = denoised(noisy, start, predict, schedule, 500, sampler)
    torch.testing.assert_close(many, flow, atol=2e-2, rtol=0)


@pytest.mark.parametrize("prediction", ["v_prediction", "epsilon"])
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_denoising_is_diffusers_own(sampler: str, prediction: str) -> None:
    schedule = NoiseSchedule(prediction_type=prediction)
    torch.manual_seed(0)
    layer = torch.nn.Conv2d(2, 2, 3, padding=1).requires_grad_(False)

    def predict(noisy: Tensor, time: int) -> Tensor:
        return torch.tanh(layer(noisy)) * (1 + time / 1000)

    noisy = torch.randn(1, 2, 6, 6)
    mine = denoised(noisy, 999, predict, schedule, 20, sampler)
    own = schedule.scheduler(sampler)
    own.register_to_config(timestep_spacing="trailing")
    own.set_timesteps(20)
    latents = noisy
    for time in own.timesteps:
        latents = own.step(predict(latents, int(time)), time, latents).prev_sample
    torch.testing.assert_close(mine, latents, atol=1e-5, rtol=1e-5)


def test_steps_from_a_level() -> None:
    assert descent(999, 1000, 4) == [999, 749, 499, 249]
    assert descent(300, 1000, 4) == [300, 50]
    assert descent(10, 1000, 4) == [10]
    assert NoiseSchedule().alphas()[-1] < 1e-3


def test_conditions_and_samples_of_any_size() -> None:
    model = tiny()
    k = torch.tensor([[40.0, 0, 23], [0, 40, 15], [0, 0, 1]])
    views = InputViews(torch.rand(2, 3, 30, 46), k.repeat(2, 1, 1), torch.stack([pose(0), pose(0.5)]))
    query = Pinhole(k, pose(0.2), 29, 45)
    condition = model.condition(views, query)
    assert condition.picture.shape == (3, 29, 45) and condition.features.shape == (6, 8, 12)
    assert float(condition.picture.min()) >= 0 and float(condition.picture.max()) <= 1
    for sampler in SAMPLERS:
        one = model.sample(condition, 1, steps=4, sampler=sampler)
        assert one.shape == (3, 29, 45) and torch.equal(one, model.sample(condition, 1, steps=4, sampler=sampler))
        assert not torch.equal(one, model.sample(condition, 2, steps=4, sampler=sampler))
        made, alpha = model.denoise(condition.picture, condition, 0.5, 3, sampler=sampler, steps=6)
        assert made.shape == (3, 29, 45) and alpha == pytest.approx(float(NoiseSchedule().alphas()[500]))
        again, _ = model.denoise(condition.picture, condition, 0.5, 3, sampler=sampler, steps=6)
        assert torch.equal(made, again)


def test_denoising_begins_from_the_picture() -> None:
    """A network that knows the clean latents gives them back, so only the autoencoder is left."""
    model = tiny()
    picture_ = torch.rand(3, 16, 24)
    condition = Condition(picture_, torch.zeros(6, 4, 6), 16, 24)
    clean = model.encode(picture_[None])

    def predict(noisy: Tensor, times: Tensor, told: Tensor) -> Tensor:
        alpha = float(model.alphas[int(times)])
        return (math.sqrt(alpha) * noisy - clean) / math.sqrt(1 - alpha)

    model.predict = predict  # type: ignore[method-assign]
    made, _ = model.denoise(picture_, condition, 0.7, 0, sampler="ddim")
    torch.testing.assert_close(made, model.decode(clean, 16, 24)[0].clamp(0, 1), atol=1e-4, rtol=0)


def test_what_cannot_be_denoised() -> None:
    model = tiny()
    condition = Condition(torch.rand(3, 16, 24), torch.zeros(6, 4, 6), 16, 24)
    with pytest.raises(InputError, match="between 0 and 1"):
        model.denoise(condition.picture, condition, 1.0, 0)
    with pytest.raises(InputError, match="24×16"):
        model.denoise(torch.rand(3, 24, 16), condition, 0.5, 0)
    with pytest.raises(InputError, match="ddim"):
        model.sample(condition, 0, steps=2, sampler="dpm")  # type: ignore[arg-type]


def test_weights_go_to_disk_and_back(tmp_path: Path) -> None:
    model = tiny(3)
    model.set_latent_scale(0.7)
    model.save_pretrained(tmp_path / "one")
    again = ViewDiffusion.from_pretrained(tmp_path / "one")
    assert again.config == model.config and again.latent_scale == 0.7 and again.size == 32
    assert all(torch.equal(value, again.state_dict()[name]) for name, value in model.state_dict().items())
    assert not again.training and not any(weight.requires_grad for weight in again.parameters())
    views, query = plane_views(1, 3.0, PLACES), Pinhole(intrinsics(SIDE), pose(0.1), SIDE, SIDE)
    one, other = model.condition(views, query), again.condition(views, query)
    assert torch.equal(one.picture, other.picture) and torch.equal(one.features, other.features)
    assert torch.equal(model.sample(one, 0, steps=2), again.sample(other, 0, steps=2))
    half = model.half().save_pretrained(tmp_path / "half")
    assert (half / "model.safetensors").stat().st_size < 0.6 * (tmp_path / "one" / "model.safetensors").stat().st_size
    assert ViewDiffusion.from_pretrained(half).dtype == torch.float32


def test_weights_that_cannot_be_used(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="difix finetune --task view-diffusion"):
        ViewDiffusion.from_pretrained(tmp_path)
    folder = tiny().save_pretrained(tmp_path / "one")
    config = (folder / "config.json").read_text()
    for old, new, said in (
        ('"size": 32', '"size": 32, "colour": 1', "unknown entries"),
        ('"format": "difixcli-view-diffusion-1"', '"format": "x"', "not a view-conditioned"),
        ('"condition_channels": 4', '"condition_channels": 8', "does not fit"),
    ):
        assert old in config
        (folder / "config.json").write_text(config.replace(old, new))
        with pytest.raises(InputError, match=said):
            ViewDiffusion.from_pretrained(folder)
    (folder / "config.json").write_text(config)
    shutil.copy(folder / "config.json", folder / "model.safetensors")
    with pytest.raises(InputError, match="damaged"):
        ViewDiffusion.from_pretrained(folder)


def test_depths_come_from_the_points_that_a_query_sees() -> None:
    rng = torch.Generator().manual_seed(0)
    points = torch.rand(200, 3, generator=rng) * torch.tensor([0.5, 0.5, 2.0]) - torch.tensor([0.25, 0.25, 5.0])
    behind = points * torch.tensor([1.0, 1.0, -100.0])
    views = InputViews(
        torch.rand(2, 3, 8, 8), intrinsics(8).repeat(2, 1, 1), torch.stack([pose(0), pose(1)]), None,
        torch.cat([points, behind]),
    )  # fmt: skip
    near, far = views.depth_range(Pinhole(intrinsics(8), pose(0), 8, 8))
    assert 2 < near < 3.1 and 5 <= far < 9
    # without points: around where the cameras look
    toward = torch.eye(4)
    toward[:3, :3] = torch.tensor([[0.0, 0, 1], [0, 1, 0], [-1, 0, 0]])  # looks along −x
    toward[:3, 3] = torch.tensor([4.0, 0, -4])
    crossing = InputViews(torch.rand(1, 3, 8, 8), intrinsics(8)[None], toward[None])
    near, far = crossing.depth_range(Pinhole(intrinsics(8), pose(0), 8, 8))
    assert near == pytest.approx(4 / 3) and far == pytest.approx(12)
    # cameras that look the same way: by their distance
    side = InputViews(torch.rand(1, 3, 8, 8), intrinsics(8)[None], pose(0.5)[None])
    near, far = side.depth_range(Pinhole(intrinsics(8), pose(0), 8, 8))
    assert near == pytest.approx(0.5) and far > 10


def test_cameras() -> None:
    axes = torch.tensor([[0.0, 0, -1], [-1, 0, 0]])
    centres = torch.tensor([[1.0, 2, 5], [4, 2, 3]])
    torch.testing.assert_close(meeting_point(centres, axes), torch.tensor([1.0, 2, 3]))
    turn, _ = torch.linalg.qr(torch.randn(3, 3))
    camera = pose(1, 2, 3)
    camera[:3, :3] = turn
    torch.testing.assert_close(inverse(camera) @ camera, torch.eye(4), atol=1e-5, rtol=0)


def test_resized_views_see_the_same() -> None:
    k = torch.tensor([[40.0, 0, 20], [0, 42, 12], [0, 0, 1]])
    image = torch.zeros(1, 3, 24, 40)
    image[..., 8:16, 20:30] = 1
    masks = torch.ones(1, 1, 24, 40)
    masks[..., :3] = 0
    small = InputViews(image, k[None], pose(0)[None], masks).resized(20)
    assert small.images.shape == (1, 3, 12, 20)
    assert small.masks is not None and float(small.masks[0, 0, 5, 0]) == 0 and float(small.masks[0, 0, 5, 2]) == 1
    torch.testing.assert_close(small.intrinsics[0], torch.tensor([[20.0, 0, 10], [0, 21, 6], [0, 0, 1]]))
    assert Pinhole(k, pose(0), 24, 40).resized(20).height == 12
