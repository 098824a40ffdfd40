"""The fixer at work: references encoded once, windows, batches, noise where nothing was seen, and little memory."""

from __future__ import annotations

import dataclasses
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file

from difixcli.errors import InputError
from difixcli.fixer import Fixer, FixerConfig, FixerNetwork, new_small_fixer
from difixcli.fixer import convolution as convolutions
from difixcli.fixer.convolution import FastConv2d, SinglePlaneConv2d
from difixcli.fixer.network import small_config
from difixcli.fixer.tiling import fade, windows
from difixcli.fixer.weights import merge_adapters


def raw_config(width: int = 16, **changes: object) -> FixerConfig:
    """SD-Turbo's architecture, narrow, with the release's adapters."""
    groups = width // 4
    config = FixerConfig(
        unet={
            "in_channels": 4,
            "out_channels": 4,
            "block_out_channels": [width, 2 * width, 2 * width],
            "down_block_types": ["CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"],
            "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"],
            "layers_per_block": 1,
            "attention_head_dim": [1, 2, 2],
            "cross_attention_dim": 32,
            "norm_num_groups": groups,
            "use_linear_projection": True,
        },
        vae={
            "latent_channels": 4,
            "block_out_channels": [width, width, 2 * width, 2 * width],
            "down_block_types": ["DownEncoderBlock2D"] * 4,
            "up_block_types": ["UpDecoderBlock2D"] * 4,
            "layers_per_block": 1,
            "norm_num_groups": groups,
            "scaling_factor": 0.18215,
        },
        lora_rank=4,
        lora_targets=sorted(
            ["decoder.conv_in", "decoder.mid_block.attentions.0.to_q", "decoder.mid_block.attentions.0.to_out.0"]
            + [f"decoder.up_blocks.{i}.resnets.0.conv1" for i in range(4)]
            + [f"decoder.skip_conv_{i + 1}" for i in range(4)]
        ),
    )
    return dataclasses.replace(config, **changes)  # type: ignore[arg-type]


def raw_network(**changes: object) -> FixerNetwork:
    """Random weights in which adapters and skips count."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = FixerNetwork(raw_config(**changes))  # type: ignore[arg-type]
        with torch.no_grad():
            for name, parameter in network.named_parameters():
                if "lora_B" in name or "skip_conv" in name:
                    parameter.normal_(std=0.1)
    return network.eval()


@pytest.fixture(scope="module")
def raw() -> Fixer:
    return Fixer(raw_network())


def noisy(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


def smooth(*shape: int, seed: int = 0) -> torch.Tensor:
    """Images (…, H, W) without an edge anywhere."""
    coarse = noisy(*shape[:-2], shape[-2] // 32, shape[-1] // 32, seed=seed)
    return F.interpolate(coarse, shape[-2:], mode="bicubic").clamp(0, 1)


def counted(fixer: Fixer, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Grows by the number of images whenever the encoder runs."""
    calls: list[int] = []
    encode = fixer.network.encode
    monkeypatch.setattr(fixer.network, "encode", lambda x, *drawn: calls.append(x.shape[0]) or encode(x, *drawn))
    return calls


# references


def test_a_reference_is_encoded_once_for_all_frames(monkeypatch: pytest.MonkeyPatch) -> None:
    fixer = Fixer(raw_network())
    frames, photos = noisy(3, 3, 40, 48), noisy(1, 2, 3, 40, 48, seed=1)
    fresh = [Fixer(fixer.network)(frame[None], photos) for frame in frames]
    calls = counted(fixer, monkeypatch)
    for frame, expected in zip(frames, fresh, strict=True):
        assert torch.equal(fixer(frame[None], photos.clone()), expected)
    assert len(calls) == 5  # three frames and two photos
    fixer(frames[:1], photos.flip(1))  # in another order
    fixer(frames, photos.expand(3, -1, -1, -1, -1))  # beside a batch
    assert len(calls) == 7
    assert torch.equal(fixer(frames[:1], fixer.encode_references(photos[0])), fresh[0])
    assert len(calls) == 8
    changed = photos.clone()
    changed[0, 1, 0, 20, 20] += 0.5
    assert not torch.equal(fixer(frames[:1], changed), fresh[0])
    with torch.no_grad():  # trained on since: what was encoded is worthless
        fixer.network.vae.encoder.conv_in.weight.mul_(1.1)
    again = Fixer(fixer.network)(frames[:1], photos)
    assert torch.equal(fixer(frames[:1], photos), again)
    assert not torch.equal(again, fresh[0])


def test_aligned_references_cannot_be_encoded_once() -> None:
    fixer = new_small_fixer("tiny")
    with pytest.raises(ValueError, match="aligned"):
        fixer.encode_references(noisy(1, 3, 32, 32))
    with pytest.raises(ValueError, match="photos must be"):
        Fixer(raw_network()).encode_references(noisy(3, 32, 32))


def test_one_way_references_give_the_same_from_keys_and_values_alone() -> None:
    network = raw_network(reference_attention="one-way")
    image, photos = noisy(2, 3, 40, 48), noisy(2, 3, 3, 40, 48, seed=1)
    with torch.no_grad():
        encoded = network.encode_references(photos)
        assert encoded.memory
        latents, skips = network.encode(image * 2 - 1)
        stack = torch.cat([latents[:, None], encoded.latents], 1)
        together = network.denoise(stack.flatten(0, 1), 4).unflatten(0, (2, 4))
        apart = network(image, encoded)
        assert torch.allclose(apart, (network.decode(together[:, 0], skips) + 1) / 2, atol=1e-5)
        # a reference sees nothing but itself, in the mutual kind it does
        alone = network.denoise(encoded.latents.flatten(0, 1), 1).unflatten(0, (2, 3))
        assert torch.allclose(together[:, 1:], alone, atol=1e-5)
        mutual = raw_network()
        mixed = mutual.denoise(stack.flatten(0, 1), 4).unflatten(0, (2, 4))
        assert (mixed[:, 1:] - mutual.denoise(encoded.latents.flatten(0, 1), 1).unflatten(0, (2, 3))).abs().max() > 1e-3
        assert torch.allclose(network(image, photos), apart, atol=1e-5)
        assert (network(image) - apart).abs().max() > 1e-4


def test_one_way_networks_learn_and_survive_saving(tmp_path: Path) -> None:
    network = raw_network(reference_attention="one-way")
    network(noisy(1, 3, 32, 32), noisy(1, 2, 3, 32, 32)).mean().backward()
    assert all(p.grad is not None for p in network.trainable_parameters())
    again = Fixer.from_pretrained(Fixer(network).save_pretrained(tmp_path))
    assert again.config.reference_attention == "one-way"


# convolutions


def test_fast_convolutions_are_convolutions() -> None:
    if not convolutions._available():
        pytest.skip("this torch has no NNPACK for this CPU")
    layer = torch.nn.Conv2d(96, 112, 3, padding=1)
    x = torch.randn(2, 96, 37, 51)
    expected = layer(x)
    convolutions.use_fast_convolutions(torch.nn.Sequential(layer))
    assert type(layer) is FastConv2d
    assert torch.equal(layer(x), expected)  # with gradients it is torch's own
    with torch.no_grad():
        assert 0 < (layer(x) - expected).abs().max() < 1e-4
    narrow, strided = torch.nn.Conv2d(64, 96, 3, padding=1), torch.nn.Conv2d(96, 96, 3, 2)
    convolutions.use_fast_convolutions(torch.nn.Sequential(narrow, strided))
    assert type(narrow) is type(strided) is torch.nn.Conv2d


def test_convolutions_to_one_plane_are_convolutions() -> None:
    layer = torch.nn.Conv2d(24, 1, 3, padding=1)
    x = torch.randn(2, 24, 13, 17)
    expected = layer(x)
    convolutions.use_fast_convolutions(torch.nn.Sequential(layer))
    assert type(layer) is SinglePlaneConv2d
    assert torch.equal(layer(x), expected)  # with gradients it is torch's own
    with torch.no_grad():
        assert torch.allclose(layer(x), expected, atol=1e-5)


# windows


@pytest.mark.parametrize("size", [(2160, 3840), (1001, 1999), (300, 4000), (1200, 1030)])
@pytest.mark.parametrize("side", [512, 1024])
def test_windows_cover_the_image_and_fade_into_each_other(size: tuple[int, int], side: int) -> None:
    parts = windows(*size, side, 8)
    weights = torch.zeros(size)
    for window in parts:
        assert window.top % 8 == window.left % 8 == 0
        assert max(window.height, window.width) <= side + 8
        weight = fade(window, *size, weights)
        window.of(weights).add_(weight)  # type: ignore[union-attr]
        # at its own border inside the image a window has nothing to say
        for inside, line in (
            (window.top > 0, weight[0]),
            (window.left > 0, weight[:, 0]),
            (window.top + window.height < size[0], weight[-1]),
            (window.left + window.width < size[1], weight[:, -1]),
        ):
            assert not inside or line.max() < 1e-3
    assert weights.min() > 0.4
    assert len({(w.height + 7) // 8 for w in parts}) <= 1 or len(parts) == 1
    assert len(windows(*size, 4096, 8)) == 1


def test_windows_share_no_more_than_they_must() -> None:
    rows = {(w.top, w.height) for w in windows(1080, 1920, 1024, 16)}
    assert rows == {(0, 608), (480, 600)}  # 1088 with the padding: 2 · 608 − 128


@pytest.mark.parametrize("kind", ["raw", "aligned"])
def test_no_seams_between_tiles(kind: str) -> None:
    fixer = Fixer(raw_network()) if kind == "raw" else new_small_fixer("tiny", seed=1)
    image, photos = smooth(1, 3, 320, 448), smooth(1, 3, 320, 448, seed=1)[:, None]
    whole = fixer(image, photos)
    fixer.tile = 256
    done: list[tuple[int, int]] = []
    fixer.tile_done = lambda *progress: done.append(progress)
    tiled = fixer(image, photos)
    parts = windows(320, 448, 256, fixer.config.multiple)
    assert done == [(i, len(parts)) for i in range(1, len(parts) + 1)]
    assert len(parts) > 4
    borders = sorted(
        {w.left - 1 for w in parts if w.left} | {w.left + w.width - 1 for w in parts if w.left + w.width < 448}
    )

    # how much a column's gradient stands out from those around it: at borders no more than anywhere in the whole image
    def standing_out(image: torch.Tensor) -> torch.Tensor:
        steps = (image[..., 1:] - image[..., :-1]).abs().mean((0, 1, 2))
        return torch.stack([steps[c] / steps[max(c - 24, 0) : c + 25].mean() for c in range(len(steps))])

    usual = standing_out(whole)
    assert standing_out(tiled)[borders].max() <= usual.quantile(0.99)
    assert standing_out(tiled)[borders].mean() < 1.05 * usual[borders].mean()
    assert (tiled - whole).abs().mean() < 0.1  # statistics and attention are a window's own


def test_tiles_of_an_image_that_fits_are_the_image(raw: Fixer) -> None:
    image = noisy(1, 3, 200, 310)
    expected = Fixer(raw.network)(image)
    assert torch.equal(Fixer(raw.network, tile=256)(image), expected)


def test_too_little_memory_falls_back_to_tiles_with_a_message(monkeypatch: pytest.MonkeyPatch) -> None:
    fixer = Fixer(raw_network())
    said: list[str] = []
    fixer.notice = said.append
    encode = fixer.network.encode

    def small_memory(images: torch.Tensor, *drawn: torch.Tensor | None):  # type: ignore[no-untyped-def]
        if images.shape[0] * images.shape[-2] * images.shape[-1] > 300 * 300:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return encode(images, *drawn)

    image, photo = smooth(2, 3, 320, 512), smooth(2, 3, 320, 512, seed=1)[:, None]
    expected = Fixer(fixer.network, tile=256)(image, photo)
    monkeypatch.setattr(fixer.network, "encode", small_memory)
    assert (fixer(image, photo) - expected).abs().max() < 1e-4
    assert fixer.tile == 256
    assert len(said) == 1 and "tiles of 256" in said[0]
    monkeypatch.setattr(fixer.network, "encode", lambda images, *drawn: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        fixer(image)

    def no_memory(images: torch.Tensor, *drawn: torch.Tensor | None) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory.")

    monkeypatch.setattr(fixer.network, "encode", no_memory)
    with pytest.raises(torch.OutOfMemoryError):  # not even the smallest tile
        fixer(image[:1])


def test_four_times_the_pixels_need_little_more_memory() -> None:
    code = """
import resource, sys, torch
torch.set_num_threads(1)
from difixcli.fixer import new_small_fixer
fixer = new_small_fixer("tiny")
with torch.no_grad():
    fixer(torch.rand(1, 3, int(sys.argv[1]), int(sys.argv[2])))
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
"""

    def peak(height: int, width: int) -> float:
        done = subprocess.run([sys.executable, "-c", code, str(height), str(width)], capture_output=True, check=True)
        return float(done.stdout)

    assert peak(1080, 3840) < 1.5 * peak(1024, 1024)  # half of a 4K image, four tiles and more


# what was not seen


def test_noise_takes_the_place_of_what_was_not_seen(raw: Fixer, monkeypatch: pytest.MonkeyPatch) -> None:
    image, opacity = noisy(2, 3, 64, 96), torch.ones(2, 1, 64, 96)
    opacity[..., 48:] = 0
    image = image * opacity
    plain = raw(image, None, opacity)
    assert torch.equal(plain, raw(image))  # off unless asked
    assert torch.equal(raw(image, None, torch.ones_like(opacity), fill_seed=3), plain)  # nothing to fill
    filled = raw(image, None, opacity, fill_seed=3)
    assert torch.equal(filled, raw(image, None, opacity, fill_seed=3))
    assert (filled - raw(image, None, opacity, fill_seed=4)).abs().max() > 1e-3
    assert torch.allclose(raw(image[1:], None, opacity[1:], fill_seed=3), filled[1:], atol=1e-5)
    seen: list[torch.Tensor] = []
    denoise = raw.network.denoise
    monkeypatch.setattr(raw.network, "denoise", lambda latents, views: seen.append(latents) or denoise(latents, views))
    raw(image, None, opacity, fill_seed=3)
    encoded = raw.network.encode(image * 2 - 1)[0]
    assert torch.allclose(seen[0][..., :6], encoded[..., :6], atol=1e-6)
    assert torch.equal(seen[0][0, ..., 6:], seen[0][1, ..., 6:])  # every image's noise is the same
    assert abs(float(seen[0][..., 6:].std()) - 1) < 0.2
    # opacity is max-pooled: one seen pixel keeps its latent
    dotted = torch.zeros_like(opacity)
    dotted[..., ::8, ::8] = 1
    assert torch.equal(raw(image, None, dotted, fill_seed=3), plain)


def test_a_network_may_always_fill() -> None:
    fixer = Fixer(raw_network(fill_unseen=True))
    image, opacity = noisy(1, 3, 32, 32), torch.zeros(1, 1, 32, 32)
    assert torch.equal(fixer(image, None, opacity), fixer(image, None, opacity, fill_seed=0))
    a, b = (fixer.network(image, None, opacity) for _ in range(2))
    assert not torch.equal(a, b)  # in training the noise is fresh


def test_tiles_share_one_noise() -> None:
    fixer = Fixer(raw_network())
    image, opacity = torch.zeros(1, 3, 320, 320), torch.zeros(1, 1, 320, 320)
    whole = fixer(image, None, opacity, fill_seed=0)
    fixer.tile = 256
    tiled = fixer(image, None, opacity, fill_seed=0)
    assert (tiled - whole).abs().mean() < 0.5 * (fixer(image, None, opacity, fill_seed=1) - tiled).abs().mean()


# precision, merging, writing


def test_merged_adapters_give_the_same_pixels(shared: Path, tmp_path: Path) -> None:
    for name in ("difix", "difix_ref"):
        fixer = Fixer.from_pretrained(shared / "golden" / name)
        merged = Fixer.from_pretrained(shared / "golden" / name, merge=True)
        assert merged.config.lora_rank == 0
        assert not any("lora" in key for key in merged.network.state_dict())
        image, photo = noisy(1, 3, 64, 96), noisy(1, 1, 3, 64, 96, seed=1)
        assert (merged(image, photo) - fixer(image, photo)).abs().max() < 1e-4
        again = Fixer.from_pretrained(merged.save_pretrained(tmp_path / name))
        assert torch.equal(again(image, photo), merged(image, photo))
    assert merge_adapters(merged.network) is merged.network


def test_a_local_copy_of_the_hubs_repository_knows_its_references(shared: Path) -> None:
    assert Fixer.from_pretrained(shared / "golden" / "difix").config.views == 0
    assert Fixer.from_pretrained(shared / "golden" / "difix_ref").config.views == 1


def test_bfloat16_stays_close() -> None:
    network = raw_network()
    image, photo = smooth(1, 3, 64, 64), smooth(1, 3, 64, 64, seed=1)[:, None]
    expected = Fixer(network)(image, photo)
    half = Fixer(network).to("cpu", torch.bfloat16)(image, photo)
    assert half.dtype == torch.float32
    assert (half - expected).abs().mean() < 0.02


def publish(network: FixerNetwork, folder: Path, tokenizer: Path, scheduler: Path) -> None:
    """Write a network in the layout of the published weights: diffusers folders with a PEFT-wrapped VAE."""
    from transformers import CLIPTextConfig, CLIPTextModel

    tensors = network.state_dict()
    for part, class_name in (("unet", "UNet2DConditionModel"), ("vae", "AutoencoderKL")):
        own = {n.removeprefix(f"{part}."): t.contiguous() for n, t in tensors.items() if n.startswith(f"{part}.")}
        config = {"_class_name": class_name, **getattr(network.config, part)}
        if part == "vae":
            config |= {"gamma": 1.0, "ignore_skip": False, "lora_rank": network.config.lora_rank}
        (folder / part).mkdir(parents=True)
        (folder / part / "config.json").write_text(json.dumps(config))
        save_file(own, folder / part / "diffusion_pytorch_model.safetensors")
    width = network.config.unet["cross_attention_dim"]
    clip = CLIPTextConfig(hidden_size=width, intermediate_size=width, num_hidden_layers=1, num_attention_heads=4)
    CLIPTextModel(clip).save_pretrained(folder / "text_encoder")
    shutil.copytree(tokenizer, folder / "tokenizer")
    shutil.copytree(scheduler, folder / "scheduler")


def test_weights_in_the_published_layout_come_back(shared: Path, tmp_path: Path) -> None:
    golden = shared / "golden" / "difix_ref"
    network = raw_network()
    publish(network, tmp_path / "published", golden / "tokenizer", golden / "scheduler")
    loaded = Fixer.from_pretrained(tmp_path / "published")
    ours = Fixer.from_pretrained(loaded.save_pretrained(tmp_path / "ours"))
    for fixer in (loaded, ours):
        held = fixer.network.state_dict()
        for name, value in network.state_dict().items():
            assert name == "prompt" or torch.equal(held[name], value), name
    assert ours.config == loaded.config
    assert torch.equal(ours.network.prompt, loaded.network.prompt)
    assert "NVIDIA" in ours.licence


def test_small_networks_take_one_way_references_too() -> None:
    config = dataclasses.replace(small_config("tiny"), reference_attention="one-way")
    fixer = Fixer(FixerNetwork(config))
    image, photos = noisy(1, 3, 32, 48), noisy(1, 2, 3, 32, 48, seed=1)
    assert torch.allclose(fixer(image, photos.flip(1)), fixer(image, photos), atol=1e-5)


def test_the_second_opinion_is_the_mirrored_fix(raw: Fixer) -> None:
    image, photo = noisy(1, 3, 32, 48), noisy(1, 1, 3, 32, 48, seed=1)
    second = raw.second_opinion(image, photo)
    assert torch.equal(second, raw(image.flip(-1), photo.flip(-1)).flip(-1))
    assert (second - raw(image, photo)).abs().max() > 0


def damaged_nan(tensors: dict[str, torch.Tensor]) -> None:
    next(iter(tensors.values())).view(-1)[0] = float("nan")


def damaged_missing(tensors: dict[str, torch.Tensor]) -> None:
    tensors.pop(next(iter(tensors)))


@pytest.mark.parametrize(("damage", "message"), [(damaged_nan, "not numbers"), (damaged_missing, "does not fit")])
@pytest.mark.parametrize("part", ["unet", "vae"])
def test_damaged_published_weights_are_refused(
    shared: Path, tmp_path: Path, damage: Callable, message: str, part: str
) -> None:
    golden = shared / "golden" / "difix_ref"
    publish(raw_network(), tmp_path / "bad", golden / "tokenizer", golden / "scheduler")
    from safetensors.torch import load_file

    path = tmp_path / "bad" / part / "diffusion_pytorch_model.safetensors"
    tensors = load_file(path)
    damage(tensors)
    save_file(tensors, path)
    with pytest.raises(InputError, match=message):
        Fixer.from_pretrained(tmp_path / "bad")
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(InputError, match="not whole"):
        Fixer.from_pretrained(tmp_path / "bad")
