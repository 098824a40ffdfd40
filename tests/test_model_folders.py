"""What kind of model a folder holds, and that suggestions and refusals go by it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from commands import difix, refused

from difixcli.errors import InputError
from difixcli.fixer import Fixer
from difixcli.fixer.fixer import new_small_fixer
from difixcli.fixer.weights import BUNDLED, load_network
from difixcli.model_folders import NAMES, OPTIONS, Kind, beside, check_kind, kind_of
from difixcli.priors.super_resolution.files import BUNDLED as RESOLVER
from difixcli.priors.super_resolution.opening import open_super_resolver
from difixcli.priors.video.files import around, save_film
from difixcli.priors.video.opening import open_video_model
from difixcli.priors.view_diffusion.model import ViewDiffusion, new_small_view_diffusion

KINDS: dict[str, Kind] = {
    "model-fixer": "fixer",
    "model-resolver": "super-resolver",
    "model-video": "video",
    "model-views": "view-diffusion",
}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a model of each kind, as each is saved, and with others that are none."""
    home = tmp_path_factory.mktemp("models")
    new_small_fixer("tiny").save_pretrained(home / "model-fixer")
    shutil.copytree(RESOLVER, home / "model-resolver")
    save_film(around(load_network("bundled"), "bundled"), home / "model-video")
    new_small_view_diffusion().save_pretrained(home / "model-views")
    for name, text in (("model-broken", "{"), ("model-deep", "[" * 10000), ("model-foreign", '{"format": "x"}')):
        (home / name).mkdir()
        (home / name / "config.json").write_text(text)
    (home / "model-file").write_text("no folder")
    return home


def test_kinds_are_told_apart(models: Path) -> None:
    assert {name: kind_of(models / name) for name in KINDS} == KINDS
    for name in ("model-broken", "model-deep", "model-foreign", "model-file", "absent"):
        assert kind_of(models / name) is None
    assert kind_of(BUNDLED) == "fixer"


@pytest.mark.parametrize(
    ("files", "kind"),
    [
        ({"model_index.json": {"_class_name": "StableDiffusionUpscalePipeline"}}, "super-resolver"),
        ({"model_index.json": {"_class_name": "WanImageToVideoPipeline"}}, "video"),
        ({"unet/config.json": {"in_channels": 4, "out_channels": 4}, "vae/config.json": {}}, "fixer"),
        ({"unet/config.json": {"in_channels": 7, "out_channels": 4}, "vae/config.json": {}}, None),
        ({"unet/config.json": {"in_channels": 4, "out_channels": 4}}, None),
        ({"model_index.json": {"_class_name": ["x"]}}, None),
    ],
)
def test_published_layouts(files: dict[str, object], kind: Kind | None, tmp_path: Path) -> None:
    for name, values in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(json.dumps(values))
    assert kind_of(tmp_path) == kind


def test_suggestions_are_of_the_kind_asked_for(models: Path) -> None:
    for name, kind in KINDS.items():
        assert beside(models / "modell", kind) == [name]
    asked = str(models / "model-fix")
    for load in (
        Fixer.from_pretrained,
        lambda name: open_super_resolver(name, 4, "area", "cpu"),
        open_video_model,
        ViewDiffusion.from_pretrained,
    ):
        with pytest.raises(InputError, match="There is no") as told:
            load(asked)
        found = {name for name in KINDS if name in str(told.value).replace(asked, "")}
        assert len(found) == 1 and not any(other in str(told.value) for other in ("model-broken", "model-deep"))


def test_a_model_of_another_kind_is_named_as_what_it_is(models: Path) -> None:
    for name, kind in KINDS.items():
        check_kind(models / name, kind)
        for other in set(KINDS.values()) - {kind}:
            with pytest.raises(InputError, match=f"holds {NAMES[kind]}, which {OPTIONS[kind]} takes"):
                check_kind(models / name, other)
    for name in KINDS:
        folder = str(models / name)
        if name != "model-fixer":
            with pytest.raises(InputError, match="and not a fixer"):
                load_network(folder)
        if name != "model-resolver":
            with pytest.raises(InputError, match="and not a super-resolver"):
                open_super_resolver(folder, 4, "area", "cpu")
        if name != "model-video":
            with pytest.raises(InputError, match="and not a video model"):
                open_video_model(folder)
        if name != "model-views":
            with pytest.raises(InputError, match="and not networks of view diffusion"):
                ViewDiffusion.from_pretrained(folder)


def test_options_that_name_a_model_of_another_kind(models: Path, arc: Path, tmp_path: Path) -> None:
    picture = next((arc / "images").iterdir())
    fixer, resolver = models / "model-fixer", models / "model-resolver"
    distill = ("distill", arc, "-o", tmp_path / "run")
    for words in (
        ("fix", picture, "--fixer", resolver),
        ("enhance", picture.parent, "--fixer", resolver),
        (*distill, "--fixer", resolver),
        (*distill, "--prior", "video", "--video", resolver),
        (*distill, "--prior", "view-diffusion", "--view-diffusion", resolver),
    ):
        refused(difix(*words), "holds a super-resolver, which --sr takes")
    for words in (
        ("fix", picture, "--upscale", "4", "--sr", fixer),
        (*distill, "--prior", "super-resolution", "--sr", fixer),
    ):
        refused(difix(*words), "holds a fixer, which --fixer takes")
    refused(difix(*distill, "--fixer", models / "model-fixr"), "did you mean model-fixer?")
    assert not (tmp_path / "run").exists()
