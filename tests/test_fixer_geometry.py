"""Fixers that look up references by their geometry: GeoQuery's weights and pixels, windows, memory, and training."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from test_fixer import picture
from test_fixer_inference import raw_config

from difixcli.errors import InputError
from difixcli.fixer import Fixer, FixerNetwork
from difixcli.fixer.correspondence import correspond
from difixcli.fixer.weights import merge_adapters


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
    x, y = torch.meshgrid(torch.arange(width) + right, torch.arange(height) + down, indexing="xy")
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
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    loaded = Fixer.from_pretrained("DIG-UESTC/GeoQuery")
    state = geoquery.network.state_dict()
    assert all(torch.equal(value, state[name]) for name, value in loaded.network.state_dict().items())
