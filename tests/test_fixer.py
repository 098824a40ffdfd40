"""The fixer: the release's pixels from the release's weights, any number of views, and what it refuses."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from difixcli.errors import InputError
from difixcli.fixer import Fixer, FixerNetwork, new_small_fixer
from difixcli.fixer.blending import split_bands
from difixcli.fixer.diagnostics import collapse_signs
from difixcli.fixer.weights import BUNDLED

LAYOUTS = ["", "model_1001.pkl"]


@pytest.fixture(scope="module")
def tiny() -> Fixer:
    return new_small_fixer("tiny", seed=1)


def inputs(views: int, height: int = 32, width: int = 48, batch: int = 2) -> tuple[torch.Tensor, ...]:
    g = torch.Generator().manual_seed(0)
    return (
        torch.rand(batch, 3, height, width, generator=g),
        torch.rand(batch, views, 3, height, width, generator=g),
        torch.rand(batch, 1, height, width, generator=g),
        torch.rand(batch, views, 1, height, width, generator=g),
    )


def picture(array: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(array).permute(2, 0, 1)[None].float() / 255


@pytest.fixture
def published(shared: Path, tmp_path: Path) -> Path:
    """A writable copy of the published folder layout."""
    folder = tmp_path / "difix"
    shutil.copytree(shared / "golden" / "difix", folder, copy_function=shutil.copyfile)
    for path in [folder, *folder.rglob("*")]:
        path.chmod(0o755 if path.is_dir() else 0o644)
    return folder


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", ["difix", "difix_ref"])
def test_published_weights_give_the_releases_pixels(shared: Path, name: str, layout: str) -> None:
    fixer = Fixer.from_pretrained(shared / "golden" / name / layout)
    expected = np.load(shared / "golden" / name / "expected.npz")
    image, reference = picture(expected["image"]), picture(expected["reference"])
    views = expected["output"].shape[0]
    output = fixer(image, reference[:, None] if views == 2 else None)
    assert np.abs(output.numpy() * 2 - 1 - expected["output"][:1]).max() < 1e-4

    network = fixer.network  # every station on the way, and the reference's own output, which training supervises
    assert np.abs(network.prompt.detach().numpy() - expected["prompt_embeds"][0]).max() < 1e-4
    with torch.no_grad():
        latents, skips = network.encode(torch.cat([image, reference])[:views] * 2 - 1)
        noise = network.predict_noise(latents, views)
        decoded = network.decode(network.denoise(latents, views), skips).clamp(-1, 1)
    assert np.abs(latents.numpy() - expected["latents"]).max() < 1e-4
    assert np.abs(noise.numpy() - expected["epsilon"]).max() < 1e-4
    assert np.abs(decoded.numpy() - expected["output"]).max() < 1e-4


def test_the_trainers_file_brings_its_own_unet_adapters_and_skips(published: Path) -> None:
    expected = Fixer.from_pretrained(published)
    vae_file = published / "vae" / "diffusion_pytorch_model.safetensors"
    tensors = load_file(vae_file)
    # a plain base without adapters, as SD-Turbo is, and with another U-Net
    plain = {n.replace(".base_layer", ""): t for n, t in tensors.items() if ".lora_" not in n and "skip_conv" not in n}
    save_file(plain, vae_file)
    unet_file = published / "unet" / "diffusion_pytorch_model.safetensors"
    save_file({n: torch.zeros_like(t) for n, t in load_file(unet_file).items()}, unet_file)
    loaded = Fixer.from_pretrained(published / "model_1001.pkl")
    for name, value in expected.network.state_dict().items():
        assert torch.equal(value, loaded.network.state_dict()[name]), name

    begun = Fixer.from_pretrained(published)  # the folder alone: new adapters that change nothing yet
    assert begun.config.lora_rank == 4
    assert "Stability" in begun.licence
    assert "NVIDIA" in loaded.licence
    names = {n for n, p in begun.network.named_parameters() if p.requires_grad}
    assert names == {n for n, p in expected.network.named_parameters() if p.requires_grad}
    assert all("lora_B" not in n or not p.any() for n, p in begun.network.named_parameters())
    adapters = [p for n, p in begun.network.named_parameters() if "lora_A" in n]
    assert np.isclose(float(torch.cat([p.flatten() for p in adapters]).std()), 1 / 4, rtol=0.05)
    torch.rand(3)  # whatever came before, they begin the same
    again = Fixer.from_pretrained(published).network.state_dict()
    assert all(torch.equal(value, again[name]) for name, value in begun.network.state_dict().items())


def test_fine_tuning_moves_what_the_paper_moves(shared: Path, tiny: Fixer) -> None:
    network = Fixer.from_pretrained(shared / "golden" / "difix").network
    moved = {name for name, parameter in network.named_parameters() if parameter.requires_grad}
    assert all(f"unet.{name}" in moved for name, _ in network.unet.named_parameters())
    rest = {name for name in moved if not name.startswith("unet.")}
    assert len(rest) == 90  # what the release's trainer saves of the VAE
    assert all(name.startswith("vae.decoder.") for name in rest)
    assert all(parameter.requires_grad for parameter in tiny.network.parameters())


def test_raw_references_change_the_picture_in_any_number(shared: Path) -> None:
    fixer = Fixer.from_pretrained(shared / "golden" / "difix_ref")
    image, references, _, _ = inputs(4, batch=1)
    alone = fixer(image)
    assert torch.allclose(alone, fixer(image, references[:, :0]), atol=1e-6)
    seen = [alone]
    for views in (1, 2, 4):
        output = fixer(image, references[:, :views])
        assert output.shape == image.shape
        assert (output - seen[-1]).abs().max() > 1e-4
        seen.append(output)
    # self-attention does not know the references' order
    assert torch.allclose(fixer(image, references.flip(1)), seen[-1], atol=1e-4)


@pytest.mark.parametrize("views", [0, 1, 3, 5])
def test_aligned_references_in_any_number(tiny: Fixer, views: int) -> None:
    images, references, opacity, visibility = inputs(views)
    output = tiny(images, references, opacity, visibility)
    assert output.shape == images.shape
    assert output.min() >= 0
    assert output.max() <= 1
    assert torch.allclose(tiny(images, references.flip(1), opacity, visibility.flip(1)), output, atol=1e-5)
    assert torch.allclose(tiny(images[:1], references[:1], opacity[:1], visibility[:1]), output[:1], atol=1e-5)


def test_what_is_not_visible_does_not_show(tiny: Fixer) -> None:
    images, references, opacity, visibility = inputs(2)
    visibility.zero_()
    blended = tiny.network(images, references, opacity, visibility)
    alone = tiny.network(images, None, opacity)
    assert (blended - alone).abs().max() < 0.05  # nothing but what the latent path makes of it
    assert (alone - images).abs().mean() < 0.05  # and it starts near doing nothing


def test_an_untrained_small_fixer_takes_texture_from_references_and_tone_from_the_render(tiny: Fixer) -> None:
    g = torch.Generator().manual_seed(0)
    clean = torch.nn.functional.interpolate(torch.rand(1, 3, 24, 24, generator=g), (96, 96), mode="bicubic").clamp(0, 1)
    blurred = torch.nn.functional.avg_pool2d(clean, 9, 1, 4, count_include_pad=False)
    brighter = (clean * 0.9 + 0.1)[:, None].expand(-1, 3, -1, -1, -1)
    output = tiny(blurred, brighter, None, torch.ones(1, 3, 1, 96, 96))
    assert (output - clean).square().mean() < 0.5 * (blurred - clean).square().mean()


@pytest.mark.parametrize("size", [(37, 51), (160, 90), (16, 16), (5, 3)])
def test_any_image_size(tiny: Fixer, size: tuple[int, int]) -> None:
    images, references, opacity, visibility = inputs(2, *size)
    assert tiny(images, references, opacity, visibility).shape == images.shape


def test_any_image_size_with_raw_references(shared: Path) -> None:
    fixer = Fixer.from_pretrained(shared / "golden" / "difix_ref")
    images, references, _, _ = inputs(1, 37, 51)
    assert fixer(images, references).shape == images.shape


def test_bands_add_up_to_the_image() -> None:
    images = inputs(3, 37, 51)[1]
    assert torch.allclose(sum(split_bands(images)), images, atol=1e-6)


def test_saving_and_loading_changes_nothing(tiny: Fixer, tmp_path: Path) -> None:
    arguments = inputs(2)
    folder = tiny.save_pretrained(tmp_path / "new" / "fixer")
    assert sorted(p.name for p in folder.iterdir()) == ["config.json", "model.safetensors"]
    again = Fixer.from_pretrained(folder)
    assert again.config == tiny.config
    assert torch.equal(again(*arguments), tiny(*arguments))
    assert again.licence == "Apache-2.0"


def test_between_careful_and_bolder_weights(tiny: Fixer, tmp_path: Path) -> None:
    bolder = new_small_fixer("tiny", seed=5)
    both = Fixer(tiny.network, bolder=bolder.network)
    image, beside = torch.rand(2, 3, 40, 56), torch.rand(2, 2, 3, 40, 56)
    careful, bold = tiny(image, beside), bolder(image, beside)
    assert torch.equal(both(image, beside), careful) and torch.equal(both(image, beside, boldness=1.0), bold)
    half = both(image, beside, boldness=0.5)
    assert min(float((half - one).abs().max()) for one in (careful, bold)) > 0.01
    assert torch.equal(both(image, beside), careful)  # nothing was written into either
    assert torch.equal(tiny(image, beside, boldness=1.0), careful)
    folder = both.save_pretrained(tmp_path / "both")
    again = Fixer.from_pretrained(folder, merge=True)
    assert both.is_saved_in(folder) and not tiny.is_saved_in(folder)
    assert torch.equal(again(image, beside, boldness=0.5), half)
    (folder / "bolder.safetensors").write_bytes((folder / "bolder.safetensors").read_bytes()[:5000])
    with pytest.raises(InputError, match=r"bolder\.safetensors"):
        Fixer.from_pretrained(folder)
    tiny.save_pretrained(folder)  # what was there is no part of it
    assert tiny.is_saved_in(folder) and Fixer.from_pretrained(folder).bolder is None


def test_published_weights_saved_as_ours_need_no_text_encoder(shared: Path, tmp_path: Path) -> None:
    fixer = Fixer.from_pretrained(shared / "golden" / "difix_ref")
    assert "non-commercial" in fixer.licence
    again = Fixer.from_pretrained(fixer.save_pretrained(tmp_path))
    images, references, _, _ = inputs(1, batch=1)
    assert torch.equal(again(images, references), fixer(images, references))
    assert again.licence == fixer.licence


def test_float16_weights_load_into_float32(tiny: Fixer, tmp_path: Path) -> None:
    folder = tiny.save_pretrained(tmp_path)
    path = folder / "model.safetensors"
    save_file({name: value.half() for name, value in load_file(path).items()}, path)
    again = Fixer.from_pretrained(folder)
    assert again.dtype == torch.float32
    assert (again(*inputs(2)) - tiny(*inputs(2))).abs().max() < 0.01


def test_the_bundled_fixer_loads() -> None:
    if not (BUNDLED / "model.safetensors").is_file():
        with pytest.raises(InputError, match="no bundled fixer"):
            Fixer.from_pretrained("bundled")
        return
    fixer = Fixer.from_pretrained("bundled")
    assert fixer.config.references == "aligned"
    assert sum(p.stat().st_size for p in BUNDLED.iterdir()) < 25e6
    images, references, opacity, visibility = inputs(3)
    assert fixer(images, references, opacity, visibility).shape == images.shape


def test_the_same_seed_gives_the_same_weights() -> None:
    a, b, c = (new_small_fixer("tiny", seed=s).network.state_dict() for s in (3, 3, 4))
    assert all(torch.equal(a[name], b[name]) for name in a)
    assert any(not torch.equal(a[name], c[name]) for name in a)


def test_every_part_of_the_small_network_learns(tiny: Fixer) -> None:
    network = new_small_fixer("tiny").network
    images, references, opacity, visibility = inputs(2)
    (network(images, references, opacity, visibility) - images.flip(-1)).abs().mean().backward()
    still = [name for name, p in network.named_parameters() if p.grad is None or not p.grad.any()]
    assert still == []


def test_signs_of_collapse(tiny: Fixer) -> None:
    images, references, opacity, visibility = inputs(2)
    signs = collapse_signs(tiny.network, images, references, opacity, visibility)
    assert 0 < signs.unet_std < 50
    assert signs.reference_change > 1e-4
    assert signs.output_change > 1e-4
    assert collapse_signs(tiny.network, images).reference_change == 0


def test_shapes_that_do_not_belong_together_are_refused(tiny: Fixer) -> None:
    images, references, opacity, visibility = inputs(2)
    with pytest.raises(ValueError, match="images"):
        tiny(images[0])
    with pytest.raises(ValueError, match="references"):
        tiny(images, references[..., :16])
    with pytest.raises(ValueError, match="opacity"):
        tiny(images, None, opacity[..., :16])
    with pytest.raises(ValueError, match="visibility"):
        tiny(images, references, opacity, visibility[:, :1])


@pytest.mark.parametrize(
    ("name", "near"),
    [
        ("bundeld", "bundled"),
        ("difix_reff", "nvidia/difix_ref"),
        ("./nowhere/at/all", "no fixer called"),
        ("x.pkl", "x.pkl"),
    ],
)
def test_unknown_names_are_answered_with_near_ones(name: str, near: str) -> None:
    with pytest.raises(InputError, match=near):
        Fixer.from_pretrained(name)
    with pytest.raises(InputError, match="tiny"):
        new_small_fixer("tinny")


def test_a_hub_model_without_network_is_one_sentence(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(InputError, match=r"nvidia/difix_ref.*network") as error:
        Fixer.from_pretrained("nvidia/difix_ref")
    assert "\n" not in str(error.value)


def truncated(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1000])


def not_numbers(folder: Path) -> None:
    path = folder / "model.safetensors"
    tensors = load_file(path)
    tensors["prompt"][0, 0] = float("nan")
    save_file(tensors, path)


def lacking(folder: Path) -> None:
    path = folder / "model.safetensors"
    tensors = load_file(path)
    del tensors["prompt"]
    save_file(tensors, path)


def no_weights(folder: Path) -> None:
    (folder / "model.safetensors").unlink()


def no_config(folder: Path) -> None:
    (folder / "config.json").unlink()


def broken_config(folder: Path) -> None:
    (folder / "config.json").write_text("{", encoding="utf-8")


def foreign_config(folder: Path) -> None:
    (folder / "config.json").write_text('{"_class_name": "AutoencoderKL"}', encoding="utf-8")


def newer_config(folder: Path) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "invented": 1}), encoding="utf-8")


def incomplete_config(folder: Path) -> None:
    path = folder / "config.json"
    values = json.loads(path.read_text())
    del values["unet"]
    path.write_text(json.dumps(values), encoding="utf-8")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (truncated, "damaged"),
        (not_numbers, "not numbers"),
        (lacking, "prompt"),
        (no_weights, "missing"),
        (no_config, "not a fixer"),
        (broken_config, "JSON"),
        (foreign_config, "not a fixer's configuration"),
        (newer_config, "invented"),
        (incomplete_config, "unet"),
    ],
)
def test_damaged_folders_are_refused(tiny: Fixer, tmp_path: Path, damage, message: str) -> None:
    folder = tiny.save_pretrained(tmp_path / "fixer")
    damage(folder)
    with pytest.raises(InputError, match=message) as error:
        Fixer.from_pretrained(folder)
    assert str(folder) in str(error.value)
    assert "\n" not in str(error.value)


def test_damaged_published_folders_are_refused(published: Path) -> None:
    scheduler = published / "scheduler" / "scheduler_config.json"
    whole = scheduler.read_text()
    scheduler.write_text(whole.replace("epsilon", "v_prediction"))
    with pytest.raises(InputError, match="epsilon"):
        Fixer.from_pretrained(published)
    scheduler.write_text(whole)
    shutil.rmtree(published / "tokenizer")
    with pytest.raises(InputError, match="tokenizer"):
        Fixer.from_pretrained(published)


def test_a_checkpoint_that_would_run_code_or_is_cut_short_is_refused(published: Path) -> None:
    path = published / "model_1001.pkl"
    path.write_bytes(path.read_bytes()[:-5000])
    with pytest.raises(InputError, match="damaged or not whole"):
        Fixer.from_pretrained(path)
    whole = {"state_dict_unet": {"a": 1}, "state_dict_vae": {}, "rank_vae": 4, "vae_lora_target_modules": []}
    torch.save(whole, path)
    with pytest.raises(InputError, match="other things than tensors"):
        Fixer.from_pretrained(path)
    torch.save({"state_dict_unet": FixerNetwork}, path)  # a class: unpickling it would import code
    with pytest.raises(InputError, match="would be run as code; nothing"):
        Fixer.from_pretrained(path)
