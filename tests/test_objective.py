"""The loss of a batch by its terms: their closed forms, trust in pixels, squares of rays, fresh proposals."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import Tensor

from difixcli.errors import InputError
from difixcli.evaluation.perceptual import lpips_available, shared_network
from difixcli.images import reduced
from difixcli.reconstruction import PseudoView, Reconstruction, Wanted
from difixcli.reconstruction import objective as terms_of_the_loss
from difixcli.reconstruction.objective import (
    DRAWN,
    RAYS,
    WEIGHT,
    Drawn,
    Term,
    add_term,
    check_terms,
    find_term,
    install,
    square,
)
from difixcli.runs import write_image
from difixcli.scenes import load_photo, load_scene
from difixcli.scenes.scene import Scene

TRAIN = [0, 2, 4, 6]
OVERRIDES = {
    "splatfacto": ["max_gaussians=500"],
    "nerfacto": ["pipeline.datamanager.train_num_rays_per_batch=64"],
    "vanilla-nerf": [
        "pipeline.datamanager.train_num_rays_per_batch=64",
        "pipeline.model.num_coarse_samples=8",
        "pipeline.model.num_importance_samples=8",
    ],
}


@pytest.fixture(scope="module")
def scene(shared_scenes: Path) -> Scene:
    return load_scene(shared_scenes / "fountain_p11", size=64)


def create(scene: Scene, folder: Path, method: str, iterations: int = 40) -> Reconstruction:
    options: dict = {"preset": "cpu", "device": "cpu", "iterations": iterations, "seed": 3}
    return Reconstruction.create(scene, TRAIN, method=method, folder=folder, overrides=OVERRIDES[method], **options)


def view_of(scene: Scene, folder: Path, frame: int = 1, trust: float | None = None, **changes: object) -> PseudoView:
    camera = scene.frames[frame].camera
    view = PseudoView(camera, folder / f"{frame}.png", None, nearest=0)
    write_image(view.image, load_photo(scene.frames[frame])[::-1])  # upside down: no render is near it
    if trust is not None:
        view = replace(view, weight=folder / f"{frame}.{trust}.png")
        write_image(view.weight, np.full((camera.height, camera.width), trust, np.float32))
    return replace(view, **changes)


def pictures(height: int = 12, width: int = 20) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    render, target = (torch.rand(height, width, 3, generator=generator, dtype=torch.float64) for _ in range(2))
    return render, target, torch.rand(height, width, 1, generator=generator, dtype=torch.float64)


def closed_l2(render: Tensor, target: Tensor, weight: Tensor) -> Tensor:
    return sum(
        weight[y, x, 0] * (render[y, x, c] - target[y, x, c]) ** 2
        for y in range(render.shape[0])
        for x in range(render.shape[1])
        for c in range(3)
    ) / (render.numel())


def closed_low_resolution(render: Tensor, target: Tensor, weight: Tensor) -> Tensor:
    """Blocks of 4×4: how far the trusted means of both lie apart, counted by mean trust."""
    found = []
    for y in range(0, render.shape[0] - 3, 4):
        for x in range(0, render.shape[1] - 3, 4):
            one, other, trust = (values[y : y + 4, x : x + 4].flatten(0, 1) for values in (render, target, weight))
            apart = (one * trust).sum(dim=0) / trust.sum() - (other * trust).sum(dim=0) / trust.sum()
            found.append(trust.mean() * apart.abs())
    return 0.8 * torch.stack(found).mean()


@pytest.mark.parametrize(("name", "closed"), [("l2", closed_l2), ("low_resolution:4", closed_low_resolution)])
@pytest.mark.parametrize("size", [(12, 20), (14, 23)])
def test_terms_are_their_closed_forms(name: str, closed: object, size: tuple[int, int]) -> None:
    render, target, weight = pictures(*size)
    measure = find_term(name).measure
    for trust in (weight, torch.ones_like(weight), (weight > 0.5).double()):
        torch.testing.assert_close(measure(render, target, trust), closed(render, target, trust))
    plain = torch.ones_like(weight)
    if name != "l2":
        small = [torch.nn.functional.avg_pool2d(image.movedim(-1, 0), 4) for image in (render, target)]
        torch.testing.assert_close(measure(render, target, plain), 0.8 * (small[0] - small[1]).abs().mean())
    render.requires_grad_()
    (gradient,) = torch.autograd.grad(measure(render, target, (weight > 0.5).double()), render)
    assert not gradient[weight[..., 0] <= 0.5].any() and gradient.abs().sum() > 0


@pytest.mark.parametrize("operator", ["area", "bicubic"])
def test_the_low_resolution_term_is_3dsrs(operator: str) -> None:
    """0.8·L1 + 0.2·D-SSIM of what is made smaller, the same against a photo as against the image it was made of."""
    from pytorch_msssim import ssim

    render, target, _ = (values.float() for values in pictures(48, 64))
    ones = torch.ones(48, 64, 1)
    small = [reduced(image.movedim(-1, 0)[None], 4, operator) for image in (render, target)]
    expected = 0.8 * (small[0] - small[1]).abs().mean() + 0.2 * (1 - ssim(*small, data_range=1.0))
    measure = find_term(f"low_resolution:4:{operator}").measure
    photo = small[1][0].movedim(0, -1)
    for wanted in (target, photo):
        torch.testing.assert_close(measure(render, wanted, ones), expected, rtol=1e-4, atol=1e-6)
    # what is not trusted teaches nothing, whether the target is large or small
    shown = render.clone().requires_grad_()
    for wanted in (target, photo):
        (nothing,) = torch.autograd.grad(measure(shown, wanted, 0 * ones), shown)
        (something,) = torch.autograd.grad(measure(shown, wanted, ones), shown)
        assert nothing.abs().max() < 1e-3 * something.abs().max()


def test_a_low_resolution_photo_stands_in_for_the_reduced_target() -> None:
    """A view's own photo is compared with, in whole images and in squares of rays alike."""
    render, target, _ = (values.float() for values in pictures(16, 16))
    photo = torch.randint(0, 255, (4, 4, 3), dtype=torch.uint8)
    model = SimpleNamespace(get_loss_dict=lambda outputs, batch: {})
    install(model)
    terms = {"low_resolution:4": 1.0}
    expected = 0.8 * (reduced(render.movedim(-1, 0)[None], 4)[0].movedim(0, -1) - photo / 255).abs().mean()
    ones = torch.ones(16, 16, 1)
    batch = {"image": target, WEIGHT: ones, DRAWN: [Drawn(terms, photo=photo)]}
    (loss,) = model.get_loss_dict({"rgb": render}, batch).values()
    torch.testing.assert_close(loss, expected)
    rays = torch.arange(256)
    batch = {"image": target.reshape(-1, 3), WEIGHT: ones.reshape(-1, 1)}
    batch[DRAWN] = [Drawn(terms, rays, (16, 16), photo=photo)]
    (loss,) = model.get_loss_dict({"rgb": render.reshape(-1, 3)}, batch).values()
    torch.testing.assert_close(loss, expected)


def test_a_photo_that_its_terms_do_not_meet_is_refused(scene: Scene, tmp_path: Path) -> None:
    made = create(scene, tmp_path / "run", "splatfacto")
    view = view_of(scene, tmp_path)
    view = replace(view, camera=view.camera.resized(64, 48))
    write_image(view.image, np.zeros((48, 64, 3), np.float32))
    for name, (height, width), message in (("half", (24, 32), "2 times smaller"), ("odd", (12, 32), "no whole part")):
        write_image(tmp_path / f"{name}.png", np.zeros((height, width, 3), np.float32))
        asked = replace(view, photo=tmp_path / f"{name}.png", terms={"low_resolution:4": 1.0})
        with pytest.raises(InputError, match=message):
            made.set_pseudo_views([asked], share=1.0)


def test_the_perceptual_term_is_the_networks_distance_and_lowers_it() -> None:
    render, target, weight = (values.float() for values in pictures(48, 40))
    measure, network = find_term("perceptual").measure, shared_network("st_lpips", "vgg")
    ones = torch.ones_like(weight)
    own = shared_network("lpips", "vgg") if lpips_available("vgg") else shared_network("st_lpips", "alex")
    expected = own(render.movedim(-1, 0)[None], target.movedim(-1, 0)[None])[0]
    torch.testing.assert_close(measure(render, target, ones), expected)
    torch.testing.assert_close(measure(render, target, 0.25 * ones), 0.25 * measure(render, target, ones))
    # another network than the one it learns by says that it comes nearer
    target = torch.nn.functional.interpolate(target.movedim(-1, 0)[None, :, :6, :6], size=(48, 40), mode="bicubic")
    target = target[0].movedim(0, -1).clamp(0, 1)
    image = torch.full_like(target, 0.5).requires_grad_()
    adam = torch.optim.Adam([image], lr=0.02)

    def distance() -> float:
        return float(network(image.detach().movedim(-1, 0)[None], target.movedim(-1, 0)[None]))

    before = distance()
    for _ in range(40):
        adam.zero_grad()
        measure(image, target, ones).backward()
        adam.step()
    assert distance() < 0.7 * before


@pytest.mark.parametrize("size", [(1, 1), (5, 40), (31, 33)])
def test_the_perceptual_term_looks_at_images_of_any_size(size: tuple[int, int]) -> None:
    """Also at what is smaller than its network's field of view, and at pixels that are wholly alike."""
    render, target, weight = (values.float() for values in pictures(*size))
    weight[:, size[1] // 2 :] = 0
    for drawn_from in (render, torch.zeros_like(render)):
        shown = drawn_from.requires_grad_()
        model = SimpleNamespace(get_loss_dict=lambda outputs, batch: {})
        install(model)
        for terms in ({"perceptual": 1.0}, {"perceptual:1": 1.0}, {"perceptual:0.01": 1.0}):
            check_terms(terms, *size)
            drawn = Drawn(terms, place=(0.999, 0.999))
            (loss,) = model.get_loss_dict({"rgb": shown}, {"image": target, WEIGHT: weight, DRAWN: [drawn]}).values()
            (gradient,) = torch.autograd.grad(loss, shown)
            assert torch.isfinite(loss) and torch.isfinite(gradient).all()


@pytest.mark.parametrize(
    ("terms", "message"),
    [
        ({"percptual": 1.0}, "did you mean perceptual"),
        ({"mehtod": 1.0}, "did you mean method"),
        ({"depth": 1.0}, "d_ssim, l1, l2, low_resolution, method and perceptual"),
        ({"l2:3": 1.0}, "takes no parameter"),
        ({"low_resolution": 1.0}, "low_resolution:4"),
        ({"low_resolution:half": 1.0}, "low_resolution:4"),
        ({"low_resolution:64": 1.0}, "needs 64 pixels"),
        ({"perceptual:2": 1.0}, "perceptual:0.5"),
        ({"l2": -1.0}, "no number of 0 or more"),
        ({"method": 0.0}, "no term of the loss that counts"),
        ({}, "no term of the loss that counts"),
    ],
)
def test_terms_that_make_no_sense_are_one_sentence(terms: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        terms_of_the_loss.check_terms(terms, 40, 50)


def test_other_packages_add_terms(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(terms_of_the_loss, "_TERMS", dict(terms_of_the_loss._TERMS))

    def green(parameter: str | None) -> Term:
        return Term(lambda render, _, weight: float(parameter or 1) * (weight * render[..., 1:2]).mean())

    add_term("green", green)
    model = SimpleNamespace(get_loss_dict=lambda outputs, batch, metrics: {"own": metrics})
    install(model)
    render, target, weight = pictures()
    batch = {"image": target, WEIGHT: weight, DRAWN: [Drawn({"green:3": 0.5})]}
    losses = model.get_loss_dict({"rgb": render}, batch, torch.tensor(7.0))
    torch.testing.assert_close(losses["pseudo_green:3"], (0.5 * 3 * weight * render[..., 1:2]).mean())
    assert losses["own"] == 7 and set(losses) == {"own", "pseudo_green:3"}


def test_rays_count_as_one_of_those_that_batches_have_on_average() -> None:
    """Where only some batches hold pseudo-views' rays, photos' rays count no more in the others."""
    render, target, weight = (values.flatten(0, 1) for values in pictures())
    render.requires_grad_()
    model = SimpleNamespace(
        get_loss_dict=lambda outputs, batch: {"own": ((outputs["rgb"] - batch["image"]) ** 2).mean()}
    )
    install(model)
    photos = torch.ones_like(weight)
    plain = 2 * (render - target).detach() / render.numel()

    def gradient(**batch: object) -> Tensor:
        losses = model.get_loss_dict({"rgb": render}, {"image": target, **batch})
        return torch.autograd.grad(torch.stack(list(losses.values())).sum(), render)[0]

    rays = torch.arange(60, 100)
    photos[rays] = weight[rays]
    torch.testing.assert_close(gradient(), plain)
    alone = gradient(**{WEIGHT: torch.ones_like(weight), DRAWN: [], RAYS: 4.0 * len(render)})
    torch.testing.assert_close(alone, plain / 4)
    for terms in ({"method": 1.0}, {"l2": 1.0}, {"method": 0.5, "l2": 0.5}):
        both = gradient(**{WEIGHT: photos, DRAWN: [Drawn(terms, rays)], RAYS: len(render) / 3})
        torch.testing.assert_close(both, 3 * photos * plain)


def test_squares_lie_in_the_image_on_the_grid_of_their_blocks() -> None:
    for height, width in ((40, 57), (20, 33), (270, 480)):
        for place in ((0.0, 0.0), (0.999, 0.999), (0.3, 0.8)):
            terms = [find_term("low_resolution:4"), find_term("perceptual")]
            row, column, side = square(terms, height, width, place, 1500)
            assert row % 4 == column % 4 == side % 4 == 0 and side <= 38
            assert 0 <= row <= height - side and 0 <= column <= width - side
            assert side >= min(32, height - 3)
    assert square([find_term("perceptual:0.25")], 400, 600, (0.5, 0.5))[2] == 100


def gradients(made: Reconstruction, step: int) -> dict[str, Tensor]:
    """Each parameter's gradient of the entries of the loss that compare with the image."""
    trainer = made._trainer
    torch.manual_seed(step)
    with trainer._working():
        trainer.pipeline.train()
        trainer.pipeline.zero_grad()
        _, losses, _ = trainer.pipeline.get_train_loss_dict(step)
        kept = [v for k, v in losses.items() if k in ("main_loss", "rgb_loss", "rgb_loss_coarse", "rgb_loss_fine")]
        kept += [value for key, value in losses.items() if key.startswith("pseudo_")]
        torch.stack(kept).sum().backward()
    return {
        name: parameter.grad.clone()
        for name, parameter in trainer.model.named_parameters()
        if parameter.grad is not None and parameter.numel()
    }


@contextlib.contextmanager
def only_pseudo(made: Reconstruction) -> Iterator[None]:
    """Inside the block batches hold pseudo-views' pixels alone."""
    trainer = made._trainer
    photos = trainer._photos_next

    def no_photos(step: int) -> tuple:
        rays, batch = photos(step)
        return rays[:0], {key: value[:0] for key, value in batch.items() if isinstance(value, Tensor)}

    beside = trainer._pseudo.beside

    def alone(step: int, rays: object, batch: dict) -> tuple:
        rays, batch = beside(step, rays, batch)
        return rays, {key: value for key, value in batch.items() if key != RAYS}

    trainer._photos_next, trainer._pseudo.beside = no_photos, alone
    takes, mixer, trainer._mixer = trainer._pseudo.takes, trainer._mixer, None
    trainer._pseudo.takes = lambda step: trainer._pseudo._images
    try:
        with trainer._undisturbed():
            yield
    finally:
        trainer._photos_next, trainer._pseudo.takes, trainer._mixer = photos, takes, mixer
        trainer._pseudo.beside = beside


@pytest.mark.parametrize("method", OVERRIDES)
def test_trust_scales_what_every_network_learns(method: str, scene: Scene, tmp_path: Path) -> None:
    """Nothing learns where trust is 0; trust 1 is the plain loss; `method: 0.3` is 0.3 times its gradient."""
    made = create(scene, tmp_path / "run", method)
    made.train(4)
    found = {}
    for name, trust, terms in (
        ("plain", None, {"method": 1.0}),
        ("whole", 1.0, {"method": 1.0}),
        ("none", 0.0, {"method": 1.0, "l2": 1.0, "low_resolution:2": 2.0}),
        ("third", None, {"method": 0.3}),
        ("absent", None, {"method": 0.0, "l2": 1e-30}),
    ):
        made.set_pseudo_views([view_of(scene, tmp_path, trust=trust, terms=terms)], share=0.5)
        with only_pseudo(made):
            step = next(s for s in range(100) if made._trainer.next_train(s)[1].get(DRAWN))
        with only_pseudo(made):
            found[name] = gradients(made, step)
    plain = found["plain"]
    learning = [key for key, value in plain.items() if value.abs().max() > 0]
    assert len(learning) >= 3
    if method == "vanilla-nerf":
        assert any("coarse" in key for key in learning) and any("fine" in key for key in learning)
    for key in plain:
        assert torch.equal(found["whole"][key], plain[key])
        assert not found["none"][key].any()
        assert found["absent"][key].abs().max() < 1e-20
        torch.testing.assert_close(found["third"][key], 0.3 * plain[key], rtol=1e-4, atol=1e-9)


def test_l2_along_rays_is_the_fields_own_loss(scene: Scene, tmp_path: Path) -> None:
    """Terms and the method's own loss count in one currency: nerfacto's is a squared error, too."""
    made = create(scene, tmp_path / "run", "nerfacto")
    made.train(4)
    found = []
    for terms in ({"method": 1.0}, {"l2": 1.0}, {"method": 0.25, "l2": 0.75}):
        made.set_pseudo_views([view_of(scene, tmp_path, trust=0.4, terms=terms)], share=0.4)
        with made._trainer._undisturbed():
            found.append(gradients(made, 7))
    for other in found[1:]:
        for key, value in found[0].items():
            torch.testing.assert_close(other[key], value, rtol=1e-3, atol=1e-8)


def test_rays_come_as_squares_where_neighbours_are_asked_for(scene: Scene, tmp_path: Path) -> None:
    made = create(scene, tmp_path / "run", "nerfacto")
    asked = view_of(scene, tmp_path, 1, terms={"method": 1.0, "perceptual": 0.1, "low_resolution:4": 1.0})
    alone = view_of(scene, tmp_path, 3, terms={"method": 1.0})
    made.set_pseudo_views([asked, alone], share=0.5)
    photo = torch.from_numpy(load_photo(scene.frames[1])[::-1].copy())
    squares, counted, singles = 0, 0.0, []
    for step in range(300):
        rays, batch = made._trainer.next_train(step)
        assert len(rays) == len(batch["image"]) == len(batch[WEIGHT]) == len(batch["indices"])
        assert batch[RAYS] == 128
        for part in batch[DRAWN]:
            if part.shape is None:
                singles.append(len(part.rays))
                continue
            squares, counted = squares + 1, counted + len(part.rays) / batch[RAYS]
            height, width = part.shape
            place = batch["indices"][part.rays][:, 1:].reshape(height, width, 2)
            first = place[0, 0]
            grid = torch.stack(torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij"), dim=-1)
            assert torch.equal(place, first + grid) and not (first % 4).any()
            assert height == width == 32
            seen = photo[place[..., 0], place[..., 1]]
            torch.testing.assert_close(batch["image"][part.rays].reshape(height, width, 3), seen, atol=2e-3, rtol=0)
            assert torch.allclose(rays.origins[part.rays[0]], torch.tensor(asked.camera.position).float(), atol=1e-5)
    assert set(singles) == {32}  # half of the 64 for each view
    assert 0.15 < counted / 300 < 0.35 and squares > 3  # as much as the other, whose rays are a quarter


@pytest.mark.parametrize("method", ["splatfacto", "nerfacto"])
def test_views_are_proposed_anew_from_their_render(method: str, scene: Scene, tmp_path: Path) -> None:
    """Once for each draw, from what the model shows then; training's random numbers go on as with a file."""
    made = create(scene, tmp_path / "run", method)
    made.train(2)
    seen: list[np.ndarray] = []
    trainer = made._trainer

    def propose(show: Callable[[], np.ndarray]) -> Wanted:
        render = show()
        seen.append(render)
        terms = {"method": 0.5, "l2": 3.0}
        return Wanted(np.random.rand(*render.shape).astype(np.float32), torch.rand(render.shape[:2]).numpy(), terms)

    camera = scene.frames[1].camera
    view = view_of(scene, tmp_path, fresh=propose, terms={"method": 1.0, "l2": 0.5})
    share = {"splatfacto": 0.6, "nerfacto": 0.9}[method]  # a draw of rays is as large as many steps' rays
    made.set_pseudo_views([view], share)
    targets = []
    own = trainer.model.get_loss_dict

    def looking(outputs: dict, batch: dict, *rest: object) -> dict:
        if batch.get(DRAWN):
            targets.append(batch)
        losses = own(outputs, batch, *rest)
        if batch.get(DRAWN):  # what the proposal says counts is what counts
            plain = [replace(drawn, terms={"method": 1.0, "l2": 1.0}, fresh=None) for drawn in batch[DRAWN]]
            if method == "nerfacto":
                assert all(drawn.terms == {"method": 0.5, "l2": 3.0} for drawn in batch[DRAWN])
                single = own(outputs, {**batch, DRAWN: plain}, *rest)
                torch.testing.assert_close(losses["pseudo_l2"], 3 * single["pseudo_l2"])
        return losses

    trainer.model.get_loss_dict = looking
    expected = []
    for _ in range(12):
        before, shown = len(targets), made.render(camera).color
        made.train(1)
        assert len(targets) - before == len(seen) - len(expected) <= 1
        if len(seen) > len(expected):
            expected.append(shown)
    assert 2 < len(seen) < 12
    for shown, render in zip(expected, seen, strict=True):
        assert render.dtype == np.float32 and render.shape == (camera.height, camera.width, 3)
        np.testing.assert_allclose(render, shown, atol=2e-5)
    made.save()
    again = Reconstruction.load(tmp_path / "run", scene)
    again.set_pseudo_views([view], share)
    for one in (made, again):
        one.train(6)
    assert np.array_equal(made.render(camera).color, again.render(camera).color)
    made.set_pseudo_views([replace(view, fresh=lambda render: Wanted(render()[1:]))], share)
    with pytest.raises(InputError, match="view's size"):
        made.train(12)


@pytest.mark.parametrize("method", ["splatfacto", "nerfacto"])
def test_training_by_terms_teaches_and_goes_on_exactly(method: str, scene: Scene, tmp_path: Path) -> None:
    terms = {"l2": 1.0, "perceptual": 0.1, "low_resolution:2": 1.0}
    views = [view_of(scene, tmp_path, 1, terms=terms), view_of(scene, tmp_path, 3, trust=0.6)]
    made, alone = (create(scene, tmp_path / name, method, iterations=200) for name in ("run", "alone"))
    made.train(2)
    made.set_pseudo_views(views, share=0.95)
    made.train(12)
    made.save()
    again = Reconstruction.load(tmp_path / "run", scene)
    again.set_pseudo_views(views, share=0.95)
    for one in (made, again):
        one.train(10)
    camera = views[0].camera
    assert np.array_equal(made.render(camera).color, again.render(camera).color)
    made.train(80)
    alone.train(104)
    last, plain = (one.render(camera).color for one in (made, alone))
    target = load_photo(scene.frames[1])[::-1]
    assert ((last - target) ** 2).mean() < 0.8 * ((plain - target) ** 2).mean()
