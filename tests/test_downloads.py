"""Fetching beforehand, and the hub's names with revisions and caches, all without a network."""

from __future__ import annotations

import json
import logging
import shutil
from pathlib import Path

import pytest
import torch
from commands import difix, done, refused
from test_fixer_inference import raw_network

from difixcli.downloads import Kind, fetch
from difixcli.errors import InputError
from difixcli.fixer import Fixer


@pytest.fixture
def offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache of the hub and of torch hub, and no network."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    for name in ("http_proxy", "https_proxy", "HTTPS_PROXY", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path


def cached(home: Path, name: str, revision: str, commit: str, seed: int) -> None:
    """A fixer in a cache of the hub's layout."""
    repository = home / f"models--{name.replace('/', '--')}"
    network = raw_network()
    network.unet.conv_in.weight.data += seed
    Fixer(network).save_pretrained(repository / "snapshots" / commit)
    (repository / "refs").mkdir(exist_ok=True)
    (repository / "refs" / revision).write_text(commit)


def test_without_a_network_one_sentence_says_what_to_do(offline: Path) -> None:
    refused(difix("download", "lpips-vgg"), "lpips-vgg cannot be fetched", "check the network", "vgg16-397923af.pth")
    refused(difix("download", "inception"), "inception cannot be fetched", "put the file into")
    refused(difix("download", "nvidia/difix_ref"), "nvidia/difix_ref", "check the name and the network")
    refused(difix("download", "lpips-vgc"), "did you mean lpips-vgg")
    refused(difix("download", "--", "finetun", "--base", "a/b"), "finetun is no command")
    assert not list((offline / "torch").rglob("*.p*"))


@pytest.mark.parametrize("kind", ["fixer", "super-resolver", "view-diffusion", "video"])
def test_a_network_that_is_not_there_is_asked_once(
    kind: Kind, offline: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Nobody has said that there is none, and the hub's client does not try again and again."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr(logging.getLogger("huggingface_hub"), "propagate", True)
    with caplog.at_level("WARNING", "huggingface_hub"), pytest.raises(InputError, match="nor reachable on the hub"):
        fetch("someone/model", kind)
    assert "Retrying" not in caplog.text


def test_a_line_tells_what_it_needs(offline: Path, shared: Path) -> None:
    base = shared / "golden" / "difix_ref"
    assert done(difix("download", "--json", "--", "fix", "photo.png", "--fixer", "bundled")) == {}
    line = ["finetune", "pairs", "--base", base]
    refused(difix("download", "--", *line), "lpips-vgg cannot be fetched")
    assert done(difix("download", "--json", "--", *line, "--perceptual", "st-lpips-vgg")) == {}
    refused(difix("download", "--", "finetune", "pairs", "--base", "stabilityai/sd-turbo"), "stabilityai/sd-turbo")
    refused(difix("download", "--", "eval", "a", "b", "--metrics", "psnr,fid"), "inception cannot be fetched")
    refused(difix("download", "--", "eval", "a", "b", "--metrics", "lpips"), "lpips-alex cannot be fetched")
    assert done(difix("download", "--json", "--", "eval", "a", "b", "--metrics", "psnr,st-lpips")) == {}
    film = ["distill", "scene", "--prior", "video", "--video"]
    assert done(difix("download", "--json", "--", *film, "bundled")) == {}
    refused(
        difix("download", "--", *film, "someone/film"), "video model 'someone/film'", "check the name and the network"
    )
    checkpoints = offline / "torch" / "hub" / "checkpoints"
    checkpoints.mkdir(parents=True, exist_ok=True)
    (checkpoints / "vgg16-397923af.pth").write_bytes(b"")  # what is there is not fetched again
    assert list(done(difix("download", "--json", "--", *line))) == ["lpips-vgg"]


def test_a_published_video_model_is_fetched_whole(offline: Path, tmp_path: Path) -> None:
    """What is in the hub's cache already is found there; of another kind of model nothing is fetched."""
    for name, kind in (("someone/film", "StableVideoDiffusionPipeline"), ("someone/else", "FluxPipeline")):
        repository = offline / "hub" / f"models--{name.replace('/', '--')}"
        whole = repository / "snapshots" / ("a" * 40)
        whole.mkdir(parents=True)
        (whole / "model_index.json").write_text(json.dumps({"_class_name": kind, "unet": [None, None]}))
        (repository / "refs").mkdir()
        (repository / "refs" / "main").write_text("a" * 40)
    line = ["--", "distill", "scene", "--prior", "video", "--video"]
    found = done(difix("download", "--json", *line, "someone/film"))
    assert found == {"someone/film": str(offline / "hub" / "models--someone--film" / "snapshots" / ("a" * 40))}
    refused(difix("download", *line, "someone/else"), "made for FluxPipeline", "not known as a video model")


def test_a_line_that_is_none_is_told() -> None:
    for line, said in ((["finetune", "--no-such"], "--no-such"), (["fix", "a.png", "--size", "big"], "--size")):
        ended = difix("download", "--", *line)
        assert ended.exit_code == 2 and said in ended.stderr and "Traceback" not in ended.stderr, ended.stderr


def test_a_file_of_another_content_is_not_kept(offline: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from torchvision import models

    other = tmp_path / "vgg16-397923af.pth"
    other.write_bytes(b"another file")
    weights = models.VGG16_Weights.IMAGENET1K_V1.value
    monkeypatch.setattr(weights, "url", other.as_uri())
    refused(difix("download", "lpips-vgg"), "invalid hash value")
    assert not list((offline / "torch").rglob("*.p*"))


def test_names_on_the_hub_with_revision_and_cache(offline: Path) -> None:
    for seed, (revision, commit) in enumerate((("main", "a" * 40), ("v2", "b" * 40))):
        cached(offline / "mine", "someone/fixer", revision, commit, seed)
    main, other = (
        Fixer.from_pretrained("someone/fixer", revision=revision, cache_dir=offline / "mine", token="secret")
        for revision in (None, "v2")
    )
    assert not torch.equal(main.network.unet.conv_in.weight, other.network.unet.conv_in.weight)
    with pytest.raises(InputError, match="'someone/fixer' of revision 'v3' is neither"):
        Fixer.from_pretrained("someone/fixer", revision="v3", cache_dir=offline / "mine")
    with pytest.raises(InputError, match="no revision v2"):
        Fixer.from_pretrained("bundled", revision="v2")
    shutil.copytree(offline / "mine", offline / "hub")
    assert list(done(difix("download", "someone/fixer", "--json"))) == ["someone/fixer"]
