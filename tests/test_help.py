"""What the help says is done by default is what the code does."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import pytest
import typer.main

from difixcli.cli import app

COMMANDS: dict[str, Any] = dict(typer.main.get_command(app).commands)  # type: ignore[attr-defined]

# nothing that a number or a name in the code says
NOT_IN_NUMBERS = {
    ("curate", "scenes"),
    ("distill", "step"),
    ("distill", "targets"),
    ("enhance", "references"),
    ("enhance", "trajectory"),
    ("eval", "metrics"),
    ("eval", "protocol"),
    ("finetune", "perceptual"),
    ("fix", "references"),
    ("fix", "trajectory"),
}


def _helps() -> Iterator[tuple[str, str, str]]:
    """Command, option and text of every help that speaks of a default."""
    for command, held in COMMANDS.items():
        for param in held.params:
            text = " ".join((getattr(param, "help", None) or "").split())
            if re.search(r"[Dd]efault|on a [CG]PU|SD-Turbo: \d", text):
                yield command, param.name, text


def _done() -> dict[tuple[str, str], list[str]]:
    """Words of each of those helps, made of what the code has."""
    from difixcli.cli import super_resolution, video, view_diffusion
    from difixcli.cli.distill import DistillRequest
    from difixcli.curation.strategies import DEFAULT_SHIFTS, DEFAULT_STOPS
    from difixcli.distillation import schedule
    from difixcli.distillation import super_resolution as rounds_of_larger
    from difixcli.distillation import view_diffusion as rounds_of_seeking
    from difixcli.distillation.filming import FRAMES, make_filming
    from difixcli.distillation.seeking import REUSE, SEEK, STEPS
    from difixcli.distillation.settings import DROP_BELOW, PROFILES
    from difixcli.enhancement.enhance import _FPS
    from difixcli.fixer.fixer import TILE
    from difixcli.fixer.weights import _DEFAULT_RANK
    from difixcli.frames.stages import Pace
    from difixcli.priors.super_resolution.enlargement import UPDATES
    from difixcli.reconstruction import default_iterations
    from difixcli.samples.views import LONG_SIDE
    from difixcli.scenes import DEFAULT_RULE
    from difixcli.training import SuperResolutionOptions, TrainingOptions, VideoOptions, ViewDiffusionOptions

    splats, others = (default_iterations(method, "cpu") for method in ("splatfacto", "nerfacto"))
    assert default_iterations("splatfacto", "gpu") == default_iterations("nerfacto", "gpu")
    iterations = [f"{splats} (splats) or {others} on a CPU, {default_iterations('nerfacto', 'gpu')} on a GPU"]
    larger = super_resolution.read_enlargement(DistillRequest(prior="super-resolution"))
    terms = " and ".join(f"{name}={weight:g}" for name, weight in super_resolution.own_terms(larger).items())
    usual = PROFILES["difix"]
    assert usual.terms["images"] == usual.terms["rays"] == {"method": 1}
    seeking, filming = ViewDiffusionOptions(), VideoOptions()
    assert seeking.epipolar_iterations == seeking.diffusion_iterations
    assert TrainingOptions.for_small().iterations == TrainingOptions.for_published().iterations
    films = make_filming("cpu", None, None, None)
    published = TrainingOptions.for_published
    assert (published("cuda").dtype, TrainingOptions.for_small("cuda").dtype) == ("bf16", "fp32")
    images = {
        "tile": [f"default {TILE['cpu']}, {TILE['cuda']} on a GPU"],
        "batch": [f"default {Pace.on('cpu').batch}, {Pace.on('cuda').batch} on a GPU"],
        "dtype": ["bf16 for raw references on a GPU, else fp32"],
        "compiled": [],
    }
    return {
        ("curate", "split"): [f"else {DEFAULT_RULE}"],
        ("curate", "shift"): [f"default {', '.join(DEFAULT_SHIFTS)}"],
        ("curate", "stop"): [f"default {', '.join(DEFAULT_STOPS)}"],
        ("curate", "iterations"): iterations,
        ("distill", "split"): [f"else {DEFAULT_RULE}"],
        ("distill", "method"): ["splatfacto (the default"],
        ("distill", "iterations"): [*iterations, f"a {_ORDINAL[rounds_of_seeking._PHOTOS_SHARE]} of those"],
        ("distill", "further"): [
            f"a {_ORDINAL[6_000 // rounds_of_larger.further_iterations('gpu', 6_000, 1)]} a round",
            f"CPU {rounds_of_larger.further_iterations('cpu', 1_000_000, 1)} at most",
        ],
        ("distill", "rounds"): [
            f"{schedule.ROUNDS_CPU} on a CPU, one per {schedule._ITERATIONS_A_ROUND:,} iterations on a GPU",
            f"super-resolution: {super_resolution._ROUNDS}; view-diffusion: {view_diffusion._ROUNDS}",
        ],
        ("distill", "share"): [
            f"{schedule.SHARE['cpu']} on a CPU, {schedule.SHARE['gpu']} on a GPU",
            f"super-resolution: {super_resolution._RAYS} of rays",
            f"view-diffusion: {view_diffusion._SHARE};",
            f"video: {video._SHARE['cpu']} on a CPU, {video._SHARE['gpu']} on a GPU",
        ],
        ("distill", "trust"): [f"{usual.trust} (default)"],
        ("distill", "drop_below"): [f"default {DROP_BELOW}"],
        ("distill", "loss"): ["method=1 (default)", f"Super-resolution: {terms}"],
        ("distill", "upscale"): [f"default {larger.upscale}"],
        ("distill", "sr"): [f"{larger.resolver} (default)"],
        ("distill", "downscale"): [f"{larger.operator} (default)"],
        ("distill", "sr_update"): [f"{UPDATES[0]} (default"],
        ("distill", "seek"): [f"{SEEK[0]} (default)"],
        ("distill", "denoise_steps"): [f"{STEPS['cpu']} on a CPU, {STEPS['gpu']} on a GPU"],
        ("distill", "reuse"): [f"{REUSE['cpu']} on a CPU, {REUSE['gpu']} on a GPU"],
        ("distill", "frames"): [f"{FRAMES['cpu']} on a CPU, {FRAMES['gpu']} on a GPU"],
        ("distill", "points"): [f"{films.points} (default)"],
        ("distill", "video"): [f"{films.video} (default)"],
        ("enhance", "fps"): [f"{_FPS:g} of a folder"],
        **{("enhance", option): words for option, words in images.items()},
        ("finetune", "iterations"): [
            f"default {TrainingOptions().iterations}",
            f"super-resolution {SuperResolutionOptions().iterations}",
            f"view-diffusion {seeking.epipolar_iterations} of each network, {seeking.vae_iterations} of",
            f"video {filming.iterations}, after {filming.structure_iterations} of",
        ],
        ("finetune", "dtype"): ["default bf16 on a GPU at full width"],
        **{("fix", option): words for option, words in images.items()},
        ("fix", "split"): [],
        ("fix", "task"): ["images (default)"],
        ("fix", "upscale"): [f"default {super_resolution.UPSCALE} "],
        ("fix", "denoise_steps"): [f"default {view_diffusion._SAMPLE_STEPS}"],
        ("fix", "layout"): ["ours (default)"],
        ("sample", "size"): [f"default {LONG_SIDE}"],
        **{(command, "max_running"): ["1 by default"] for command in ("curate", "distill", "enhance", "eval")},
        ("finetune", "lora_rank"): [f"SD-Turbo: {_DEFAULT_RANK}"],
    }


_ORDINAL = {6: "sixth", 10: "tenth"}


@pytest.fixture(scope="module")
def done() -> dict[tuple[str, str], list[str]]:
    return _done()


@pytest.mark.parametrize(("command", "option", "text"), [*_helps()])
def test_a_default_is_as_the_help_says(
    command: str, option: str, text: str, done: dict[tuple[str, str], list[str]]
) -> None:
    assert (command, option) in done.keys() | NOT_IN_NUMBERS, "say here what in the code its words are to agree with"
    for words in done.get((command, option), ()):
        assert words in text, (words, text)


def test_defaults_in_words_are_those_of_fields(done: dict[tuple[str, str], list[str]]) -> None:
    """Every line above is about an option that there is, and still speaks of its default."""
    known = {(command, param.name) for command, held in COMMANDS.items() for param in held.params}
    assert done.keys() | NOT_IN_NUMBERS <= known
