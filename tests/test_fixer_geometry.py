"""Fixers that look up references by their geometry: GeoQuery's weights and pixels, windows, memory, and training."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from commands import difix, done, refused
from planes import intrinsics, pose, texture, write_plane
from planes import picture as picture_of
from test_fixer import picture
from test_fixer_inference import noisy, raw_config

from difixcli.cli.inputs import check_fixer
from difixcli.downloads import fetch
from difixcli.errors import InputError
from difixcli.evidence import fix_render
from difixcli.fixer import Fixer, FixerNetwork, new_small_fixer
from difixcli.fixer.alignment import unproject
from difixcli.fixer.correspondence import correspond, cropped, mirrored
from difixcli.fixer.geometry import GeometryAttention, Places, places_by_count
from difixcli.fixer.network import EncodedReferences
from difixcli.fixer.tiling import windows
from difixcli.fixer.weights import merge_adapters
from difixcli.reconstruction import Reconstruction
from difixcli.reference_views import ReferenceViews, opaque_depth, places_by_points
from difixcli.runs import write_image
from difixcli.scenes import load_scene, make_split
from difixcli.training import finetune
from difixcli.training.augmentation import augmented
from difixcli.training.augmentation import cropped as cropped_sample
from difixcli.training.pairs import Loaded, decode, inspect_pairs, read_manifests
from difixcli.training.parts import AllViews, with_geometry


@pytest.fixture(scope="module")
def golden(shared: Path) -> dict[str, np.ndarray]:
    return dict(np.load(shared / "golden" / "geoquery" / "expected.npz"))


@pytest.fixture(scope="module")
def geoquery(shared: Path) -> Fixer:
    return Fixer.from_pretrained(shared / "golden" / "geoquery" / "geoquery.pkl")


@pytest.fixture(scope="module")
def places(golden: dict[str, np.ndarray]) -> torch.Tensor:
    """The golden correspondence as ours, (1, 1, 3, H, W)."""
    intrinsics = torch.from_numpy(golden["intrinsics"]).clone()
    intrinsics[:2, 2] += 0.5  # theirs count from the first pixel's centre
    poses = {}
    for name in ("reference_pose", "target_pose"):
        poses[name] = torch.from_numpy(golden[name]).clone()
        poses[name][:3, 1:3] *= -1  # theirs look along +z
    depth = torch.from_numpy(golden["reference_depth"])
    reference = (depth[None, None, None], intrinsics[None, None], poses["reference_pose"][None, None])
    return correspond(*reference, intrinsics[None], poses["target_pose"][None])


def geometry_network(**changes: object) -> FixerNetwork:
    """Random weights in which geometry counts."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = FixerNetwork(raw_config(references="geometry", **changes))  # type: ignore[arg-type]
        with torch.no_grad():
            for name, parameter in network.named_parameters():
                if "lora_B" in name or "skip_conv" in name:
                    parameter.normal_(std=0.1)
                if name.endswith("geometry.weight.4.bias"):
                    parameter.fill_(1.0)
    return network.eval()


def shifted(height: int, width: int, right: float, down: float, known: float = 1.0) -> torch.Tensor:
    """(1, 1, 3, H, W): what a reference shows that stands so many pixels beside the render."""
    x, y = torch.meshgrid(torch.arange(width) + float(right), torch.arange(height) + float(down), indexing="xy")
    inside = (x >= 0) & (x <= width - 1) & (y >= 0) & (y <= height - 1)
    return (torch.stack([x, y, torch.full_like(x, known)]) * inside)[None, None]


# GeoQuery's own


def test_correspondence_is_geoquerys(golden: dict[str, np.ndarray], places: torch.Tensor) -> None:
    known = golden["validity"][0]
    assert np.array_equal(places[0, 0, 2].numpy(), known)
    assert 0.5 < known.mean() < 0.95
    assert np.abs((places[0, 0, :2].numpy() - golden["correspondence"]) * known).max() < 1e-3


def test_geoquerys_weights_give_its_pixels(
    golden: dict[str, np.ndarray], geoquery: Fixer, places: torch.Tensor
) -> None:
    image, reference = picture(golden["image"]), picture(golden["reference"])[:, None]
    told: list[str] = []
    geoquery.notice = told.append
    output = geoquery(image, reference, correspondence=places)
    assert told == []
    assert np.abs(output[0].numpy() * 2 - 1 - golden["output"]).max() < 1e-4
    alone = geoquery(image, reference)
    assert np.abs(alone[0].numpy() * 2 - 1 - golden["output_without_geometry"]).max() < 1e-4
    assert np.abs(golden["output"] - golden["output_without_geometry"]).max() > 0.1
    geoquery(image, reference)
    assert len(told) == 1  # once
    assert "without" in told[0]
    # adapters worked in, as every command has it, are the same pixels
    merged = Fixer(merge_adapters(geoquery.network))
    assert torch.allclose(merged(image, reference, correspondence=places), output, atol=1e-4)


def test_the_folder_stands_for_its_checkpoint_and_saved_as_ours_is_the_same(
    shared: Path, tmp_path: Path, golden: dict[str, np.ndarray], geoquery: Fixer, places: torch.Tensor
) -> None:
    by_folder = Fixer.from_pretrained(shared / "golden" / "geoquery")
    assert by_folder.config == geoquery.config
    # the hub's repository holds the checkpoint alone
    (tmp_path / "GeoQuery").mkdir()
    shutil.copyfile(shared / "golden" / "geoquery" / "geoquery.pkl", tmp_path / "GeoQuery" / "geoquery.pkl")
    check_fixer(str(tmp_path / "GeoQuery"))
    (tmp_path / "none").mkdir()
    with pytest.raises(InputError, match="is not a fixer"):
        check_fixer(str(tmp_path / "none"))
    assert geoquery.config.references == "geometry"
    assert geoquery.licence.startswith("MIT")
    again = Fixer.from_pretrained(geoquery.save_pretrained(tmp_path / "ours"))
    assert again.config == geoquery.config
    state = geoquery.network.state_dict()
    assert all(torch.equal(value, state[name]) for name, value in again.network.state_dict().items())
    assert all(torch.equal(value, state[name]) for name, value in by_folder.network.state_dict().items())


def test_checkpoints_that_are_not_whole_or_would_run_code_are_refused(shared: Path, tmp_path: Path) -> None:
    folder = tmp_path / "geoquery"
    shutil.copytree(shared / "golden" / "geoquery", folder, copy_function=shutil.copyfile)
    path = folder / "geoquery.pkl"
    for one in (folder, path):
        one.chmod(0o755 if one.is_dir() else 0o644)
    whole = torch.load(path, weights_only=True)
    modules = dict(whole["state_dict_geo_modules"])
    del whole["state_dict_unet"], whole["optimizer"]
    small = {**whole, "state_dict_unet": {}}
    damages = [
        ({**small, "state_dict_geo_modules": {**modules, "down_0_0_0.geo_attn.extra": torch.ones(1)}}, "no place for"),
        ({**small, "state_dict_geo_modules": {"mid_0_0.geo_attn.norm.weight": 1}}, "other things than tensors"),
        ({**small, "state_dict_geo_modules": [1]}, "not a whole checkpoint"),
        ({**small, "state_dict_geo_modules": modules}, "does not fit"),
        ({**small, "state_dict_geo_modules": FixerNetwork}, "would be run as code; nothing"),
    ]
    for saved, message in damages:
        torch.save(saved, path)
        for source in (path, folder):
            with pytest.raises(InputError, match=message) as error:
                Fixer.from_pretrained(source)
            assert "\n" not in str(error.value)
    torch.save({**small, "state_dict_geo_modules": modules}, folder / "later.pkl")
    with pytest.raises(InputError, match=r"several checkpoints .*geoquery\.pkl, later\.pkl"):
        Fixer.from_pretrained(folder)
    (folder / "later.pkl").write_bytes(path.read_bytes()[:-3000])
    with pytest.raises(InputError, match="damaged or not whole"):
        Fixer.from_pretrained(folder / "later.pkl")


def test_geoquery_is_fetched_by_its_name(
    shared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, geoquery: Fixer
) -> None:
    # a hub's cache as its client lays it out: the checkpoint in one repository, SD-Turbo in the other
    def cached(name: str) -> Path:
        repository = tmp_path / f"models--{name.replace('/', '--')}"
        (repository / "refs").mkdir(parents=True)
        (repository / "refs" / "main").write_text("0123")
        return repository / "snapshots" / "0123"

    golden, ours = shared / "golden" / "geoquery", cached("DIG-UESTC/GeoQuery")
    ours.mkdir(parents=True)
    shutil.copyfile(golden / "geoquery.pkl", ours / "geoquery.pkl")
    theirs = cached("stabilityai/sd-turbo")
    shutil.copytree(golden, theirs, ignore=shutil.ignore_patterns("*.pkl", "*.npz"), copy_function=shutil.copyfile)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "empty"))
    loaded = Fixer.from_pretrained("DIG-UESTC/GeoQuery", cache_dir=tmp_path)
    state = geoquery.network.state_dict()
    assert all(torch.equal(value, state[name]) for name, value in loaded.network.state_dict().items())
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    assert fetch("DIG-UESTC/GeoQuery") == ours
    shutil.rmtree(theirs)  # without the rest it is not fetched
    with pytest.raises(InputError, match="stabilityai/sd-turbo"):
        fetch("DIG-UESTC/GeoQuery")


# the attention


def by_all_copies(layer: GeometryAttention, states: torch.Tensor, places: Places) -> torch.Tensor:
    """What one reference (B, N, C) shows, as the paper writes it: every place of the windows sampled by itself."""
    height, width = places.height, places.width
    x, y = places.x[:, 0], places.y[:, 0]

    def at(values: torch.Tensor, right: int = 0, down: int = 0) -> torch.Tensor:
        grid = torch.stack([2 * (x + right) / (width - 1) - 1, 2 * (y + down) / (height - 1) - 1], dim=-1)
        planes = values.transpose(1, 2).unflatten(-1, (height, width))
        return F.grid_sample(planes, grid[:, :, None], padding_mode="zeros", align_corners=True)[..., 0].transpose(1, 2)

    def split(values: torch.Tensor) -> torch.Tensor:
        return values.unflatten(-1, (layer.heads, -1))

    steps = [(i, j) for j in range(-2, 3) for i in range(-2, 3)]  # x fastest
    normed = layer.norm(states)
    query = split(layer.q(layer.norm(at(states))))
    keys = torch.stack([split(at(layer.k(normed), *step)) for step in steps], dim=2) + layer.offsets.transpose(0, 1)
    values = torch.stack([split(at(layer.v(normed), *step)) for step in steps], dim=2)
    there = torch.stack([(x + i >= 0) & (x + i < width) & (y + j >= 0) & (y + j < height) for i, j in steps], dim=-1)
    scores = torch.einsum("bnhc,bnkhc->bnkh", query, keys) / keys.shape[-1] ** 0.5
    shares = scores.masked_fill(~there[..., None], -1e9).softmax(2)
    read = layer.out(torch.einsum("bnkh,bnkhc->bnhc", shares, values).flatten(2))
    within = (x >= 0) & (x <= width - 1) & (y >= 0) & (y <= height - 1)
    return read * (within & (places.valid[:, 0] > 0))[..., None]


@pytest.fixture(scope="module")
def layer() -> GeometryAttention:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        made = GeometryAttention(24, 3)
        torch.nn.init.normal_(made.offsets)
        return made.requires_grad_(False)


def random_places(views: int, height: int = 7, width: int = 9, seed: int = 0) -> Places:
    """Places in and a little outside of references of so many tokens, two thirds of them known."""
    g = torch.Generator().manual_seed(seed)
    x, y, known = (torch.rand(2, views, height * width, generator=g) for _ in range(3))
    return Places(x * (width + 1) - 1, y * (height + 1) - 1, (known > 1 / 3).float(), height, width)


def test_windows_are_those_of_all_copies(layer: GeometryAttention) -> None:
    places = random_places(1)
    states, own = noisy(2, 1, 63, 24, seed=1) - 0.5, noisy(2, 63, 24, seed=2) - 0.5
    read = by_all_copies(layer, states[:, 0], places)
    assert 0.2 < float((read == 0).all(-1).float().mean()) < 0.8
    assert torch.allclose(layer._read(states, places), read, atol=1e-5)
    weight = torch.sigmoid(layer.weight(torch.cat([read, own], dim=-1))) * places.valid[:, 0, :, None]
    assert torch.allclose(layer(own, states, places), own + weight * (read - own), atol=1e-5)
    unknown = places._replace(valid=torch.zeros_like(places.valid))
    assert torch.equal(layer(own, states, unknown), own)
    half = layer.to(torch.bfloat16)(own.bfloat16(), states.bfloat16(), places)
    layer.float()
    assert (half - layer(own, states, places)).abs().max() < 0.03


def test_several_references_share_one_softmax_and_one_is_the_papers(layer: GeometryAttention) -> None:
    states, own = noisy(2, 3, 63, 24, seed=1) - 0.5, noisy(2, 63, 24, seed=2) - 0.5
    places = random_places(3)

    def of(*views: int, valid: torch.Tensor | None = None) -> torch.Tensor:
        some = [x[:, list(views)] for x in (places.x, places.y, places.valid if valid is None else valid)]
        return layer(own, states[:, list(views)], Places(*some, places.height, places.width))

    assert torch.allclose(of(0, 0), of(0), atol=1e-6)  # twice the same is once
    assert torch.allclose(of(2, 0, 1), of(0, 1, 2), atol=1e-6)
    assert (of(0, 1) - of(0)).abs().max() > 1e-3
    nowhere = places.valid.clone()
    nowhere[:, 1:] = 0
    assert torch.allclose(of(0, 1, 2, valid=nowhere), of(0), atol=1e-6)
    # each sample by itself
    alone = layer(own[1:], states[1:], Places(*(x[1:] for x in places[:3]), places.height, places.width))
    assert torch.allclose(alone, of(0, 1, 2)[1:], atol=1e-6)


def test_windows_learn_as_they_answer(layer: GeometryAttention) -> None:
    places = random_places(2)
    states, own = noisy(2, 2, 63, 24, seed=1), noisy(2, 63, 24, seed=2)
    moved = states.clone().requires_grad_()
    output = layer(own, moved, places)
    assert torch.allclose(output.detach(), layer(own, states, places), atol=1e-6)
    output.square().sum().backward()
    step = torch.zeros_like(states)
    step[0, 1, 30] = 1e-2 * (noisy(24, seed=3) - 0.5)
    with torch.no_grad():
        change = layer(own, states + step, places).square().sum() - layer(own, states - step, places).square().sum()
    assert moved.grad is not None
    expected = 2 * float((moved.grad * step).sum())
    assert abs(float(change) - expected) < 0.02 * abs(expected) + 1e-5


# the fixer


def test_any_number_of_references_batches_and_encodings(monkeypatch: pytest.MonkeyPatch) -> None:
    fixer = Fixer(geometry_network())
    images, photos = noisy(2, 3, 40, 44), noisy(2, 3, 40, 44, seed=1)
    correspondence = torch.cat([shifted(40, 44, 6, -3), shifted(40, 44, -9, 2)], dim=1)
    beside = photos[None].expand(2, -1, -1, -1, -1)
    both = fixer(images, beside, correspondence=correspondence.expand(2, -1, -1, -1, -1))
    encoded = fixer.encode_references(photos)
    monkeypatch.setattr(fixer.network, "encode_references", lambda x: pytest.fail("photos are encoded again"))
    for i, image in enumerate(images):  # what was encoded serves every frame, whatever its places
        one = fixer(image[None], encoded, correspondence=correspondence)
        assert torch.allclose(one, both[i : i + 1], atol=1e-5)
    elsewhere = fixer(images[:1], encoded, correspondence=correspondence.flip(1))
    assert (elsewhere - both[:1]).abs().max() > 1e-3
    swapped = fixer(images[:1], photos[None].flip(1), correspondence=correspondence.flip(1))
    assert torch.allclose(swapped, both[:1], atol=1e-5)
    unknown = fixer(images[:1], encoded, correspondence=torch.zeros_like(correspondence))
    assert torch.allclose(unknown, fixer(images[:1], encoded), atol=1e-5)
    with pytest.raises(ValueError, match="correspondence must be"):
        fixer(images[:1], encoded, correspondence=correspondence[:, :1])


def test_one_way_references_bring_their_states_with_their_keys_and_values() -> None:
    network = geometry_network(reference_attention="one-way")
    image, photos = noisy(1, 3, 40, 48), noisy(1, 2, 3, 40, 48, seed=1)
    correspondence = torch.cat([shifted(40, 48, 6, -3), shifted(40, 48, -9, 2)], dim=1)
    with torch.no_grad():
        encoded = network.encode_references(photos)
        latents, skips = network.encode(image * 2 - 1)
        found = places_by_count(correspondence, (5, 6), 3)
        stack = torch.cat([latents[:, None], encoded.latents], 1)
        together = network.denoise(stack.flatten(0, 1), 3, found).unflatten(0, (1, 3))[:, 0]
        apart = network(image, encoded, correspondence=correspondence)
    assert torch.allclose(apart, (network.decode(together, skips) + 1) / 2, atol=1e-5)
    assert (apart - network(image, encoded)).abs().max() > 1e-3


def test_tiles_see_their_own_part_of_the_places() -> None:
    fixer = Fixer(geometry_network(), tile=80)
    image, photo = noisy(1, 3, 40, 200), noisy(1, 1, 3, 40, 200, seed=1)
    correspondence = shifted(40, 200, 21.5, 3)
    fixed = fixer(image, photo, correspondence=correspondence)
    first = windows(40, 200, 80, 8)[0]
    cut = correspondence[..., : first.width].clone()
    cut[:, :, 2] *= cut[:, :, 0] <= first.width - 1  # what the tile's part of the photo does not show
    with torch.no_grad():
        alone = fixer.network(first.of(image), first.of(photo), correspondence=cut).clamp(0, 1)
    assert torch.allclose(fixed[..., :8], alone[..., :8], atol=1e-4)
    assert (fixer(image, photo)[..., :8] - alone[..., :8]).abs().max() > 0.03


def test_cutting_and_turning_keep_places_on_what_they_show() -> None:
    correspondence = shifted(12, 20, 5, -2)
    cut = cropped(correspondence, 4, 6, 8, 10)
    assert torch.equal(cut[0, 0, :, 3, 2], torch.tensor([7.0, 1.0, 1.0]))
    assert torch.equal(cut[0, 0, :, 3, 7], torch.tensor([12.0, 1.0, 0.0]))  # at column 12 of 10
    assert torch.equal(cut[0, 0, :, 1, 2], torch.tensor([7.0, -1.0, 0.0]))  # above
    turned = mirrored(correspondence)
    assert torch.equal(turned[0, 0, :, 5, 19 - 3], torch.tensor([19.0 - 8, 3.0, 1.0]))
    assert torch.equal(turned[0, 0, 2], correspondence[0, 0, 2].flip(-1))
    fixer = Fixer(geometry_network())
    image, photo = noisy(1, 3, 40, 48), noisy(1, 1, 3, 40, 48, seed=1)
    places = shifted(40, 48, 6, -3)
    second = fixer.second_opinion(image, photo, correspondence=places)
    by_hand = fixer(image.flip(-1), photo.flip(-1), correspondence=shifted(40, 48, -6, -3)).flip(-1)
    assert torch.allclose(second, by_hand, atol=1e-5)
    assert fixer(noisy(1, 3, 37, 51), noisy(1, 1, 3, 37, 51), correspondence=shifted(37, 51, 4, 4)).shape[-1] == 51


def most_memory(run: Callable[[], object]) -> int:
    """The most bytes of tensors that a call has at once, beyond those there were before."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        run()
    found = [event for event in profile.profiler.kineto_results.events() if event.name() == "[memory]"]
    now = most = 0
    for event in sorted(found, key=lambda one: one.start_ns()):
        now += event.nbytes()
        most = max(most, now)
    return most


@torch.no_grad()
def test_geometry_takes_little_memory() -> None:
    """Counted at heads of 64 channels, as SD-Turbo's are, in the U-Net alone: the rest of the network takes more."""
    base = raw_config(references="geometry", lora_rank=0, lora_targets=[])
    unet = {**base.unet, "block_out_channels": [64, 128, 128]}
    network = FixerNetwork(dataclasses.replace(base, unet=unet)).eval().to(torch.bfloat16)
    height, width = 144, 256
    size = (height // 8, width // 8)
    for views, most in ((1, 1.3), (3, 1.7)):
        found = places_by_count(shifted(height, width, 9.3, -4.2).expand(-1, views, -1, -1, -1), size, 3)
        latents = noisy(1, 4, *size).bfloat16()
        references = EncodedReferences(noisy(1, views, 4, *size, seed=1).bfloat16())
        plain = most_memory(lambda x=latents, r=references: network._denoised_render(x, r, None))
        whole = most_memory(lambda x=latents, r=references, p=found: network._denoised_render(x, r, p))
        assert plain <= whole < most * plain  # the most may lie where geometry has no part
    layer, states = GeometryAttention(64, 1), noisy(1, 1, 18 * 32, 64)
    finest = found[18 * 32]
    one = Places(finest.x[:, :1], finest.y[:, :1], finest.valid[:, :1], *size)
    copies = most_memory(lambda: by_all_copies(layer, states[:, 0], one))
    assert most_memory(lambda: layer._read(states, one)) < copies / 3


@torch.no_grad()
def test_geometry_is_compiled_with_its_block_in_one_graph() -> None:
    network = geometry_network()
    block = network.unet.down_blocks[0].attentions[0].transformer_blocks[0]
    told = {"views": 2, "one_way": False, "places": places_by_count(shifted(40, 48, 6, -3), (5, 6), 1)}
    given = {"encoder_hidden_states": noisy(2, 4, 32), "cross_attention_kwargs": told}
    states = noisy(2, 30, 16, seed=1)
    compiled = torch.compile(block, backend="eager", fullgraph=True)
    assert torch.allclose(compiled(states, **given), block(states, **given), atol=1e-5)


# geometry from reconstructions


def test_places_on_a_plane_are_its_points() -> None:
    """Two cameras that look at a plane; the reference is turned, so its depth differs from pixel to pixel."""
    side, depth = 32, 3.0
    k, here = intrinsics(side), pose(0.0)
    turned = torch.eye(4)
    angle = torch.tensor(0.1)
    turned[:3, :3] = torch.tensor([[angle.cos(), 0, angle.sin()], [0, 1, 0], [-angle.sin(), 0, angle.cos()]])
    turned[:3, 3] = torch.tensor([-0.3, -0.1, 0.2])
    # where each of the reference's pixels meets the plane
    x, y = torch.meshgrid(torch.arange(side) + 0.5, torch.arange(side) + 0.5, indexing="xy")
    rays = torch.stack([(x - k[0, 2]) / k[0, 0], -(y - k[1, 2]) / k[1, 1], -torch.ones_like(x)], dim=-1)
    reach = (-depth - turned[2, 3]) / (rays @ turned[:3, :3].T)[..., 2]
    found = correspond(reach[None, None, None], k[None, None], turned[None, None], k[None], here[None])[0, 0]
    # and where what the render's pixels show is in the reference
    seen = unproject(torch.full((side, side), depth), k, here)
    local = (seen - turned[:3, 3]) @ turned[:3, :3]
    column = -k[0, 0] * local[..., 0] / local[..., 2] + k[0, 2] - 0.5
    row = k[1, 1] * local[..., 1] / local[..., 2] + k[1, 2] - 0.5
    known = found[2] > 0
    within = (column > 1) & (column < side - 2) & (row > 1) & (row < side - 2)
    assert float(known[within].float().mean()) > 0.99
    assert not known[(column < -1) | (column > side) | (row < -1) | (row > side)].any()
    both = known & within
    assert float((found[0] - column)[both].abs().max()) < 1  # splatted from whole pixels
    assert float((found[0] - column)[both].abs().mean()) < 0.4
    assert float((found[1] - row)[both].abs().mean()) < 0.4
    assert float((found[0] - x)[both].abs().mean()) > 1  # it is not the render's own
    # a wall before the plane, in the render alone, hides what is behind it
    wall = torch.full((1, 1, side, side), depth)
    wall[..., : side // 2] = 1.0
    hidden = correspond(reach[None, None, None], k[None, None], turned[None, None], k[None], here[None], wall)[0, 0]
    assert not hidden[2, :, : side // 2 - 1].any()
    assert torch.equal(hidden[:, :, side // 2 + 1 :], found[:, :, side // 2 + 1 :])
    # without depth there is nothing
    none = correspond(0 * reach[None, None, None], k[None, None], turned[None, None], k[None], here[None])
    assert not none.any()


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A narrow fixer that looks references up, untrained, as a folder of ours."""
    return Fixer(merge_adapters(geometry_network())).save_pretrained(tmp_path_factory.mktemp("fixer") / "geometry")


@pytest.fixture(scope="module")
def run(arc: Path, saved: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A distillation with it, at toy size."""
    folder = tmp_path_factory.mktemp("runs") / "arc"
    line = ("distill", arc, "--split", "every:4", "--method", "splatfacto", "--fixer", saved, "--rounds", "1", "--json")
    result = difix(*line, "--iterations", "30", "--size", "48", "--set", "max_gaussians=300", "--output", folder)
    done(result)
    assert "goes on without" not in result.stderr
    return folder


def test_reconstructions_bring_the_places(run: Path, arc: Path, saved: Path) -> None:
    scene = load_scene(str(arc), 48)
    split = make_split(scene, "every:4")
    reconstruction = Reconstruction.load(run, scene, split.train, "cpu")
    views = ReferenceViews(scene, split.train, reconstruction, 2)
    camera = scene.frames[split.test[0]].camera
    render = reconstruction.render(camera)
    beside = views.beside(camera, render, align=False)
    assert beside.correspondence is not None
    found = beside.correspondence(2)
    assert found.shape == (2, 3, *render.depth.shape)
    assert beside.correspondence(1).shape[0] == 1
    known = found[:, 2] > 0
    assert known.mean() > 0.2
    # a point that the render shows is near where the reference has it
    opaque = render.accumulation > 0.9
    row, column = np.nonzero(known[0] & opaque)
    points = camera.unproject(column + 0.5, row + 0.5, render.depth[row, column].astype(np.float64))
    x, y, _ = scene.frames[beside.frames[0]].camera.project(points)
    apart = np.hypot(x - 0.5 - found[0, 0, row, column], y - 0.5 - found[0, 1, row, column])
    assert np.median(apart) < 1.5
    fixer = Fixer.from_pretrained(saved)
    with_it = fix_render(fixer, render, beside)
    without = fix_render(fixer, render, dataclasses.replace(beside, correspondence=None))
    assert np.abs(with_it - without).mean() > 1e-3
    # what is not opaque, or hidden, is not known
    empty = dataclasses.replace(render, accumulation=np.zeros_like(render.accumulation))
    assert not opaque_depth(empty).any()
    before = dataclasses.replace(
        render, depth=np.full_like(render.depth, 0.01), accumulation=np.ones_like(render.depth)
    )
    assert not views.correspondence(beside.frames, camera, before)[:, 2].any()


def test_it_serves_where_fixers_do_and_says_what_it_goes_without(
    run: Path, arc: Path, saved: Path, tmp_path: Path
) -> None:
    enhanced = difix("enhance", run, "--fixer", saved, "--json", "--output", tmp_path / "enhanced")
    assert done(enhanced)["frames"] > 0
    assert "goes on without" not in enhanced.stderr
    # a scene alone knows no depth but that of its points
    renders = tmp_path / "renders"
    renders.mkdir()
    for name in ("train_001.png", "train_002.png"):
        shutil.copy(arc / "images" / name, renders)
    line = ("fix", renders, "--fixer", saved, "--json", "--output")
    posed = difix(*line, tmp_path / "posed", "--scene", arc)
    assert done(posed)["frames"] == 2 and "goes on without" not in posed.stderr
    # of photos alone nothing is known, which is said once
    photos = difix(*line, tmp_path / "unposed", "--reference", arc / "images" / "train_000.png")
    assert done(photos)["frames"] == 2 and photos.stderr.count("goes on without") == 1
    frames = difix("enhance", renders, "--fixer", saved, "--reference", arc / "images" / "train_000.png", "--json")
    assert done(frames)["frames"] == 2
    said = " ".join(frames.stderr.split())
    assert "difix enhance of a run knows them" in said and "difix fix with the --scene" in said  # as both above do
    bare = tmp_path / "bare"
    shutil.copytree(arc, bare, ignore=shutil.ignore_patterns("points.ply"))
    transforms = json.loads((bare / "transforms.json").read_text())
    del transforms["ply_file_path"]
    (bare / "transforms.json").write_text(json.dumps(transforms))
    without = difix(*line, tmp_path / "without", "--scene", bare)
    assert done(without)["frames"] == 2 and without.stderr.count("goes on without") == 1
    same, other = ((tmp_path / folder / "train_001.png").read_bytes() for folder in ("posed", "without"))
    assert same != other


def test_points_say_where_references_show_what_images_show(tmp_path: Path) -> None:
    scene = load_scene(str(write_plane(tmp_path / "plane", 1, side=64)))
    (found,) = places_by_points(scene, 4, [2], (32, 32))
    x, y, known = found
    assert 0.15 < known.mean() < 0.95
    # all cameras look straight at the plane: the same step everywhere
    cameras = [scene.frames[i].camera.resized(32, 32) for i in (4, 2)]
    steps = [
        a - b for a, b in zip(*(camera.project(scene.points[:1])[:2] for camera in reversed(cameras)), strict=True)
    ]
    rows, columns = np.mgrid[:32, :32]
    assert np.abs(x - columns - steps[0])[known > 0].max() < 0.5
    assert np.abs(y - rows - steps[1])[known > 0].max() < 0.5
    assert abs(steps[0]) > 1
    # where nothing is known, there is nothing
    assert (
        places_by_points(dataclasses.replace(scene, points=scene.points[:2], colors=scene.colors[:2]), 4, [2], (32, 32))
        is None
    )


# training

PLAIN = ("--crop", "32", "--perceptual-weight", "0", "--gram-weight", "0")


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pairs of a plane from two places, dim and without texture in the render, that know where the photo shows it."""
    folder, side = tmp_path_factory.mktemp("pairs"), 40
    k, entries = intrinsics(side), {}
    for i in range(4):
        views = [picture_of(texture(i), 3.0, pose(x), k, side, side) for x in (0.0, 0.6)]
        for name, image in (("target", views[0]), ("ref", views[1]), ("render", 0.8 * views[0].mean((1, 2), True))):
            write_image(folder / f"{name}{i}.png", image.expand(3, side, side).permute(1, 2, 0).numpy())
        depth = torch.full((1, 1, 1, side, side), 3.0)
        found = correspond(depth, k[None, None], pose(0.6)[None, None], k[None], pose(0.0)[None])
        np.savez_compressed(folder / f"{i}.npz", correspondence=found[0].numpy())
        entry = {"image": f"render{i}.png", "target_image": f"target{i}.png", "ref_images": [f"ref{i}.png"]}
        entries[str(i)] = {**entry, "correspondence": f"{i}.npz"}
    (folder / "data.json").write_text(json.dumps({"train": entries, "test": {"t": entries["0"]}}))
    return folder


def test_training_begins_as_the_paper_does_and_goes_on(pairs: Path, tmp_path: Path) -> None:
    base = Fixer(FixerNetwork(raw_config(lora_rank=0, lora_targets=[])))
    begun = with_geometry(base, seed=0)
    assert begun.config == dataclasses.replace(base.config, references="geometry")
    assert with_geometry(begun, seed=0) is begun
    block = begun.network.unet.mid_block.attentions[0].transformer_blocks[0]
    for mine, theirs in (("q", "to_q"), ("k", "to_k"), ("v", "to_v"), ("out", "to_out.0")):
        assert torch.equal(block.geometry.get_submodule(mine).weight, block.attn1.get_submodule(theirs).weight)
    assert torch.equal(block.geometry.norm.weight, block.norm1.weight)
    assert not block.geometry.weight[-1].weight.any() and block.geometry.weight[-1].bias.tolist() == [-2.5]
    folder = base.save_pretrained(tmp_path / "base")
    line = ("finetune", pairs, "--base", folder, "--set", "references=geometry", *PLAIN, "--json")
    line = (*line, "--batch", "2", "--warm-up", "0", "--set", "drop_references=0.4", "--set", "log_every=1")
    results = done(difix(*line, "--iterations", "4", "--output", tmp_path / "trained"))
    assert results["steps"] == 4 and results["dropped"] == {}
    trained = Fixer.from_pretrained(tmp_path / "trained")
    assert trained.config.references == "geometry"
    moved = [
        name
        for name, value in trained.network.state_dict().items()
        if ".geometry." in name and not torch.equal(value, begun.network.state_dict()[name])
    ]
    assert any("weight.4" in name for name in moved) and any(".q.weight" in name for name in moved)
    loaded = decode(read_manifests([pairs]).train[0], "geometry", 1)
    assert loaded.correspondence is not None and loaded.correspondence.shape == (1, 3, 40, 40)
    assert (loaded.correspondence[0, 2] > 0).mean() > 0.7


class Killed(Exception):
    pass


@torch.no_grad()
def test_small_ones_begin_at_their_render_and_look_references_up() -> None:
    fixer = new_small_fixer("tiny", seed=1, references="geometry")
    image, photos, places = noisy(2, 3, 40, 56), noisy(2, 2, 3, 40, 56, seed=1), shifted(40, 56, 6, -3)
    places = places.expand(2, 2, -1, -1, -1)
    fixed = fixer(image, photos, correspondence=places)
    assert fixed.shape == image.shape and 0 < (fixed - image).abs().mean() < 0.1
    assert (fixer(image, photos) - fixed).abs().max() > 1e-5  # where they are counts
    # a token stands for 8 pixels, and a photo is encoded once for all renders
    network = fixer.network
    assert network.encode_references(photos).latents.shape[-2:] == (5, 7)
    encoded = fixer(image[:1], fixer.encode_references(photos[0]), correspondence=places[:1])
    assert torch.allclose(encoded, fixed[:1], atol=1e-5)
    assert torch.allclose(fixed[1:], fixer(image[1:], photos[1:], correspondence=places[1:]), atol=1e-5)
    whole = network(image, photos, correspondence=places)
    assert torch.allclose(AllViews(network)(image, photos, correspondence=places)[:, 0], whole, atol=1e-5)
    assert new_small_fixer("tiny").config.references == "aligned" and not hasattr(network, "head")
    # the eight bits of bfloat16 are too few for what starts from the render
    assert network.config.is_small and new_small_fixer("tiny").config.is_small and not raw_config().is_small


def test_a_small_one_trains_from_scratch_and_goes_on(pairs: Path, tmp_path: Path) -> None:
    trained, cut_off = tmp_path / "trained", tmp_path / "cut-off"
    line = ("finetune", pairs, "--base", "tiny", "--set", "references=geometry", *PLAIN, "--json", "--iterations", "6")
    line = (*line, "--batch", "2", "--set", "validate_every=3", "--set", "checkpoint_every=2", "--output")
    results = done(difix(*line, trained))
    assert results["steps"] == 6 and results["dropped"] == {} and results["pairs"]["test"] == 1
    fixer = Fixer.from_pretrained(trained)
    assert fixer.config == new_small_fixer("tiny", references="geometry").config
    card = (trained / "README.md").read_text()
    assert "| references | geometry |" in card and "Apache-2.0" in card
    refused(difix(*line, tmp_path / "photos", "--photos", pairs), "have aligned references")

    def cut(step: int) -> None:
        if step == 5:
            raise Killed

    options = {"references": "geometry", "iterations": 6, "batch": 2, "crop": 32, "perceptual_weight": 0.0}
    options |= {"gram_weight": 0.0, "validate_every": 3, "checkpoint_every": 2}
    with pytest.raises(Killed):
        finetune([pairs], "tiny", cut_off, progress=cut, **options)
    finetune([pairs], "tiny", cut_off, **options)
    assert '"event": "resume", "step": 4' in (cut_off / "log.jsonl").read_text()
    same = Fixer.from_pretrained(cut_off).network.state_dict()
    assert all(torch.equal(value, same[name]) for name, value in fixer.network.state_dict().items())


def test_a_small_one_serves_as_others_do(arc: Path, tmp_path: Path) -> None:
    """With the geometry that fix, distill and enhance know."""
    fixer = new_small_fixer("tiny", references="geometry").save_pretrained(tmp_path / "tiny")
    line = ("--fixer", fixer, "--json", "--output")
    toy = ("--split", "every:4", "--method", "splatfacto", "--rounds", "1", "--iterations", "20", "--size", "48")
    distilled = difix("distill", arc, *toy, "--set", "max_gaussians=300", *line, tmp_path / "distilled")
    done(distilled)
    enhanced = difix("enhance", tmp_path / "distilled", *line, tmp_path / "enhanced")
    assert done(enhanced)["frames"] > 0
    (tmp_path / "renders").mkdir()
    shutil.copy(arc / "images" / "train_001.png", tmp_path / "renders")
    posed = difix("fix", tmp_path / "renders", "--scene", arc, *line, tmp_path / "fixed")
    assert done(posed)["frames"] == 1
    assert "goes on without" not in distilled.stderr + enhanced.stderr + posed.stderr
    refused(difix("fix", tmp_path / "renders", *line, tmp_path / "filled", "--fill-unseen"), "no noise")


def test_pairs_and_bases_without_geometry_are_refused(pairs: Path, tmp_path: Path) -> None:
    line = ("--set", "references=geometry", "--iterations", "1", *PLAIN, "--output", tmp_path / "out")
    said = ("aligned already", "stabilityai/sd-turbo", "--base tiny")
    refused(difix("finetune", pairs, "--base", "bundled", *line), *said)
    base = Fixer(FixerNetwork(raw_config(lora_rank=0, lora_targets=[]))).save_pretrained(tmp_path / "base")
    bare = tmp_path / "bare"
    shutil.copytree(pairs, bare)
    entries = json.loads((bare / "data.json").read_text())
    for split in entries.values():
        for entry in split.values():
            del entry["correspondence"]
    (bare / "data.json").write_text(json.dumps(entries))
    refused(difix("finetune", bare, "--base", base, *line), "curate --depth")


@pytest.mark.parametrize("damage", ["missing", "cut", "objects", "shape", "infinite", "vast"])
def test_damaged_places_drop_their_pair(pairs: Path, tmp_path: Path, damage: str) -> None:
    folder = tmp_path / "pairs"
    shutil.copytree(pairs, folder)
    path = folder / "0.npz"
    good = np.load(path)["correspondence"]
    if damage == "missing":
        path.unlink()
    elif damage == "cut":
        path.write_bytes(path.read_bytes()[:-200])
    else:
        wrong = {
            "objects": np.array([{}]),
            "shape": good[:, :2],
            "infinite": good + np.float32(np.inf),
            "vast": np.zeros((1, 3, 4000, 4000), np.float32),
        }
        np.savez_compressed(path, correspondence=wrong[damage])
    files = read_manifests([folder]).train
    if damage == "missing":
        assert "missing" in inspect_pairs(files, 32, 8).dropped[0]
    else:
        with pytest.raises(ValueError, match="places"):
            decode(files[0], "geometry", 1)
    assert decode(files[0], "raw", 1).correspondence is None
    assert decode(files[1], "geometry", 1).correspondence is not None


def test_augmented_samples_keep_their_places() -> None:
    """References whose pixels say where they are: what a place shows stays what it showed."""
    side = 24
    rows, columns = np.mgrid[:side, :side].astype(np.float32) / side
    view = np.stack([rows, columns, np.zeros_like(rows)], axis=-1)
    places = shifted(side, side, 3, -2)[0].numpy()
    shows = np.roll(view, (2, -3), (0, 1))  # where known: the render shows the reference's places
    opacity = np.full((side, side), 255, np.uint8)
    pair = Loaded(shows, shows, view[None], np.full((1, side, side), 255, np.uint8), opacity, places)
    for seed in range(30):
        rng = np.random.default_rng(seed)
        sample = augmented(cropped_sample(pair, 16, rng), True, False, 0.0, rng)
        strong = augmented(cropped_sample(pair, 16, rng), True, True, 0.0, rng)
        for one in (sample, strong):
            assert one.correspondence is not None
            x, y, known = one.correspondence[0]
            row, column = np.nonzero(known)
            assert len(row) > 100
            there = one.references[0][y[row, column].astype(int), x[row, column].astype(int)]
            np.testing.assert_allclose(there, one.target[row, column], atol=1e-5)
