"""The recipes print commands that the program understands, and the ablation makes one table of real runs."""

from __future__ import annotations

import csv
import importlib.util
import json
import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import click
import numpy as np
import pytest
import torch
import typer
from small_fixers import smallest_fixer
from small_scenes import HALF_ROOM, small_sample
from test_co3d import SEQUENCE, write_co3d
from test_fixer_inference import raw_config

from difixcli.cli import app
from difixcli.runs import write_json
from difixcli.samples.sample import cached_sample
from difixcli.training.options import VideoOptions, parsed_options, with_options

RECIPES = Path(__file__).parents[1] / "recipes"


def _understood(line: str) -> tuple[str, dict]:
    """The command and its options, as the program reads them; usage errors are raised, nothing is run."""
    name, *arguments = shlex.split(line)[1:]
    group = typer.main.get_command(app)
    assert isinstance(group, click.Group) or hasattr(group, "commands")
    command = group.commands[name]
    return name, command.make_context(name, arguments, resilient_parsing=False).params


def _printed(*arguments: str | Path) -> list[str]:
    made = subprocess.run(
        ["sh", *map(str, arguments)],
        env={**os.environ, "DRY_RUN": "1"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert not made.stderr
    return made.stdout.splitlines()


EXPERIMENTS = [
    ("nerfbusters", ["SCENES"], "names:train=frame_1_,test=frame_2_", ["distill", "eval"]),
    ("dl3dv", ["SCENES", "SCENES"], "clusters", ["curate", "finetune", "distill", "eval"]),
    ("rds", ["SCENES", "SCENES", "front"], "camera:front", ["curate", "finetune", "distill", "eval"]),
]


@pytest.fixture
def scenes(tmp_path: Path) -> Path:
    for scene in ("a", "b"):
        (tmp_path / "scenes" / scene / "images").mkdir(parents=True)
        for name in ("frame_1_00000.png", "frame_2_00000.png"):
            (tmp_path / "scenes" / scene / "images" / name).touch()
    return tmp_path / "scenes"


@pytest.mark.parametrize(("name", "arguments", "split", "commands"), EXPERIMENTS)
def test_published_experiments(
    name: str, arguments: list[str], split: str, commands: list[str], scenes: Path, tmp_path: Path
) -> None:
    places = [str(scenes) if a == "SCENES" else a for a in arguments]
    read = [_understood(line) for line in _printed(RECIPES / name / "run.sh", *places, tmp_path / "out")]
    assert list(dict.fromkeys(command for command, _ in read)) == commands
    distilled = [options for command, options in read if command == "distill" and options["split"] != "all"]
    assert len(distilled) == 1
    # what is measured does not depend on any method's own depth
    geometry = [options for command, options in read if command == "distill" and options["split"] == "all"]
    assert [options["schedule"] for options in geometry] == (["none"] if name == "nerfbusters" else [])
    for options in distilled:
        assert [Path(scene).name for scene in options["scene"]] == ["a", "b"]
        assert options["method"] == ["nerfacto", "splatfacto"]
        assert options["split"] == split and options["preset"].value == "gpu"
    trained = [options for command, options in read if command == "finetune"]
    fixer = str(trained[0]["output"]) if trained else "nvidia/difix_ref"
    for options in distilled:
        # as the release trains: nothing is taken back
        assert (options["profile"], options["guard"], options["compare"]) == ("published", False, True)
        assert options["iterations"] == 30_000 and options["fixer"] == fixer
    for options in trained:  # from SD-Turbo, with the paper's settings, on all the pairs that were made
        assert (options["base"], options["iterations"], options["learning_rate"]) == (
            "stabilityai/sd-turbo",
            10_000,
            2e-5,
        )
        made = [str(curated["output"]) for command, curated in read if command == "curate"]
        assert options["pairs"] == made and options["batch"] == 1
    # the end: one table of both scenes and both methods
    tables = [options for command, options in read if command == "eval"]
    assert {str(run) for options in tables for run in options["prediction"]} == {
        str(options["output"]) for options in distilled
    }
    assert {options["protocol"] for options in tables} == {name}
    assert [options["geometry"] or [] for options in tables] == [[options["output"] for options in geometry]]
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        *((name, arguments) for name, arguments, _, _ in EXPERIMENTS),
        ("reconx", ["re10k", "SCENES"]),
        ("sparse_views", ["mip360", "SCENES"]),
        ("super_resolution", ["llff-sr", "SCENES"]),
        ("video", []),
        ("bundled_fixer", []),
    ],
)
def test_every_line_over_scenes_bears_failures_and_is_told_where(
    name: str, arguments: list[str], scenes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for scene in scenes.iterdir():
        (scene / "sparse").mkdir()
    told = {"MAX_FAILED": "7", "CLUSTER": "--cluster slurm --time 20", "SCENES": "a b", "HELD_OUT": "c"}
    for variable, value in {**told, "PHOTOS": "photos", "OUTPUT": str(tmp_path / "out")}.items():
        monkeypatch.setenv(variable, value)
    places = [str(scenes) if a == "SCENES" else a for a in arguments]
    printed = _printed(RECIPES / name / "run.sh", *places, *([tmp_path / "out"] if arguments else []))
    read = [_understood(line) for line in printed if line.startswith("difix ")]
    over = [options for command, options in read if command == "distill" or options.get("strategy")]
    over = [options for options in over if not options.get("merge")]
    assert over and all(options["max_failed"] == 7 for options in over)
    assert {(options["cluster"], options["wait"]) for options in over} == {("slurm", True)}
    assert not (tmp_path / "out").exists()


def test_captures_that_cannot_be_used_are_left_out(scenes: Path, tmp_path: Path) -> None:
    """Before anything is run; more than MAX_FAILED of them end it."""
    shutil.copytree(scenes / "a", scenes / "c")
    for scene, photo in (("a", "frame_2_00000.png"), ("c", "frame_1_00000.png")):
        (scenes / scene / "images" / photo).unlink()
    (scenes / "b" / "sparse").mkdir()
    for line in (["nerfbusters", scenes], ["sparse_views", "mip360", scenes]):
        words = ["sh", str(RECIPES / str(line[0]) / "run.sh"), *map(str, line[1:]), str(tmp_path / "out")]
        for most, code in (("2", 3), ("1", 2)):
            environment = {**os.environ, "DRY_RUN": "1", "MAX_FAILED": most}
            made = subprocess.run(words, env=environment, capture_output=True, text=True, check=False)
            assert made.returncode == code
            assert [f"{scenes / name}/: failed: it has no" in made.stderr for name in "abc"] == [True, False, True]
            distilled = [_understood(line)[1] for line in made.stdout.splitlines() if line.startswith("difix distill")]
            assert bool(distilled) == (code == 3)
            assert all([Path(scene).name for scene in options["scene"]] == ["b"] for options in distilled)


def test_scenes_that_can_be_read(arc: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    readable = _recipe("", "readable")
    line = [str(tmp_path / "none"), str(arc)]
    assert readable.main(line) == 3
    shown = capsys.readouterr()
    assert shown.out.splitlines() == [str(arc)] and f"{tmp_path / 'none'}: failed: " in shown.err
    assert readable.main([*line, "--max-failed", "0"]) == readable.main(line[:1]) == 2
    assert readable.main(line[1:]) == 0


@pytest.mark.parametrize(("name", "arguments", "split", "commands"), EXPERIMENTS)
def test_published_experiments_refuse_what_they_cannot_use(
    name: str, arguments: list[str], split: str, commands: list[str], tmp_path: Path
) -> None:
    """One sentence, before anything is run."""
    (tmp_path / "bare" / "scene" / "images").mkdir(parents=True)
    places = [str(tmp_path / "nothing") if a == "SCENES" else a for a in arguments]
    wrong = [([], "write "), (places, "nothing holds no folders")]
    if name == "nerfbusters":
        wrong.append(([str(tmp_path / "bare")], "no capture with photos of two paths"))
    for given, said in wrong:
        line = ["sh", str(RECIPES / name / "run.sh"), *given]
        made = subprocess.run(line, env={**os.environ, "DRY_RUN": "1"}, capture_output=True, text=True, check=False)
        assert made.returncode == 2 and not made.stdout
        assert made.stderr.startswith("Error: ") and said in made.stderr and made.stderr.count("\n") == 1


def test_toy_size_needs_no_weights_and_no_gpu(scenes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SMOKE", "1")
    for name, *arguments in (("dl3dv", scenes, scenes), ("rds", "-", scenes, "front")):
        read = [_understood(line) for line in _printed(RECIPES / str(name) / "run.sh", *arguments, tmp_path / "out")]
        for command, options in read:
            assert command == "eval" or options["device"].value == "cpu"
            assert options.get("base") in (None, "tiny") and options.get("fixer", "bundled") in (
                "bundled",
                str(tmp_path / "out/fixer"),
            )


def _toy_scene(folder: Path, frames: int, name: Callable[[int], str], size: int = 48) -> Path:
    """Some photos of the sample room under other names, of `size` pixels, each known by `name`."""
    from difixcli.runs import write_image
    from difixcli.scenes import load_photo, load_scene

    scene = load_scene("sample:room", size)
    entries = []
    for i in range(frames):
        frame = scene.frames[i * len(scene.frames) // frames]
        camera = frame.camera
        write_image(folder / name(i), load_photo(frame))
        lens = {"fl_x": camera.fx, "fl_y": camera.fy, "cx": camera.cx, "cy": camera.cy}
        lens |= {"w": camera.width, "h": camera.height}
        entries.append({"file_path": name(i), "transform_matrix": camera.camera_to_world.tolist(), **lens})
    write_json(folder / "transforms.json", {"frames": entries, "metric": True})
    return folder


@pytest.mark.usefixtures("at_once")
@pytest.mark.parametrize(
    ("recipe", "arguments", "name"),
    [
        ("nerfbusters", ["TEST"], lambda i: f"images/frame_{1 + i % 2}_{i:05d}.png"),
        # rds has the same steps; on SLURM's processes tests/cluster runs this one
        pytest.param("dl3dv", ["TRAIN", "TEST"], lambda i: f"images/{i:05d}.png", marks=pytest.mark.long),
        ("rds", ["TRAIN", "TEST", "front"], lambda i: f"{('front', 'left')[i % 2]}/{i:05d}.png"),
    ],
)
def test_published_experiments_run_to_their_end(
    recipe: str, arguments: list[str], name: Callable[[int], str], tmp_path: Path
) -> None:
    """Their own lines, at toy size, from data to table."""
    places = {"TRAIN": tmp_path / "train", "TEST": tmp_path / "test"}
    for place in places.values():
        _toy_scene(place / "a", 8, name)
    # one scene is broken: it is told of, and the rest is finished
    bad = shutil.copytree(places["TEST"] / "a", places["TEST"] / "bad")
    (bad / "transforms.json").write_text('{"frames": [')
    environment = {**os.environ, "SMOKE": "1", "METRICS": "psnr"}
    environment["METHODS"] = "splatfacto nerfacto" if recipe == "nerfbusters" else "splatfacto"
    line = ["sh", RECIPES / recipe / "run.sh", *(places.get(word, word) for word in arguments), tmp_path / "out"]
    made = subprocess.run(list(map(str, line)), env=environment, capture_output=True, text=True, check=False)
    assert made.returncode == 3, made.stderr[-2000:]
    methods = environment["METHODS"].split()
    table = json.loads((tmp_path / "out" / "table-seed-0" / "eval.json").read_text())
    for method in methods:
        for variant in ("plain", "fixed", "distilled", "enhanced"):
            row = f"{method} {variant}" if len(methods) > 1 else variant
            assert table["results"][row]["psnr"] > 5
        assert f"bad-{method}" in made.stderr


def test_the_super_resolution_experiment(scenes: Path, tmp_path: Path) -> None:
    """The paper's lengths, sizes and operator, and one table of all scenes."""
    recipe = RECIPES / "super_resolution" / "run.sh"
    read = [_understood(line) for line in _printed(recipe, "llff-sr", scenes, tmp_path / "out")]
    distilled = [options for command, options in read if command == "distill"]
    assert len(distilled) == 1 and len(distilled[0]["scene"]) == 2
    for options in distilled:
        assert (options["iterations"], options["rounds"], options["further"]) == (30_000, 4, 20_000)
        assert (options["reduce"], options["upscale"], options["downscale"]) == (8, 4, "bicubic")
        assert options["prior"] == "super-resolution" and options["compare"] and options["split"] == "test-every:8"
    (table,) = (options for command, options in read if command == "eval")
    assert [str(run) for run in table["prediction"]] == [str(options["output"]) for options in distilled]
    assert table["protocol"] == "llff-sr"
    refused = ["sh", str(recipe), "llff-sr", str(tmp_path / "none")]
    made = subprocess.run(refused, capture_output=True, text=True, check=False)
    assert made.returncode == 2 and "none holds no folders" in made.stderr


@pytest.mark.usefixtures("at_once")
def test_the_super_resolution_experiment_runs_to_its_end(tmp_path: Path) -> None:
    """Its own lines, at toy size, from photos to the table of its protocol, past a broken scene."""
    _toy_scene(tmp_path / "scenes" / "a", 5, lambda i: f"images/{i:05d}.png", 256)
    (tmp_path / "scenes" / "bad" / "images").mkdir(parents=True)
    (tmp_path / "scenes" / "bad" / "transforms.json").write_text('{"frames": [')
    environment = {**os.environ, "SMOKE": "1", "METRICS": "psnr"}
    line = ["sh", RECIPES / "super_resolution" / "run.sh", "llff-sr", tmp_path / "scenes", tmp_path / "out"]
    made = subprocess.run(list(map(str, line)), env=environment, capture_output=True, text=True, check=False)
    assert made.returncode == 3, made.stderr[-2000:]
    assert "bad-splatfacto: failed" in made.stderr and "transforms.json" in made.stderr
    table = json.loads((tmp_path / "out" / "table-seed-0" / "eval.json").read_text())
    for variant in ("low_resolution", "bicubic", "per_image", "distilled", "enhanced"):
        assert table["results"][variant]["psnr"] > 5
    run = tmp_path / "out" / "seed-0" / "a" / "splatfacto"
    other = ["difix", "eval", run, "--protocol", "every:2", "--metrics", "psnr"]
    refused = subprocess.run(list(map(str, other)), env=environment, capture_output=True, text=True, check=False)
    assert refused.returncode == 2


@pytest.mark.parametrize(
    ("kind", "rules", "protocols"),
    [("co3d", ["co3d:2"], ["co3d-2view"]), ("mip360", ["sparse:3", "sparse:6", "sparse:9"], None)],
)
def test_sparse_views_are_trained_and_measured_by_one_rule(
    kind: str, rules: list[str], protocols: list[str] | None, scenes: Path, tmp_path: Path
) -> None:
    if kind == "co3d":
        (scenes / "set_lists").mkdir()
        (scenes / "frame_annotations.jgz").touch()
    else:
        for scene in scenes.iterdir():
            (scene / "sparse").mkdir()
    read = [_understood(line) for line in _printed(RECIPES / "sparse_views" / "run.sh", kind, scenes, tmp_path / "out")]
    distilled = [options for command, options in read if command == "distill"]
    assert len(distilled) == len(rules)
    assert all(len(options["scene"]) == len(options["method"]) == 2 for options in distilled)
    assert list(dict.fromkeys(options["split"] for options in distilled)) == rules
    assert all((options["compare"], options["prior"]) == (True, "fixer") for options in distilled)
    tables = [options for command, options in read if command == "eval"]
    assert list(dict.fromkeys(options["protocol"] for options in tables)) == (protocols or rules)
    runs = [str(run) for options in tables for run in options["prediction"]]
    assert runs == [str(options["output"]) for options in distilled]


def test_sparse_views_refuse_what_they_cannot_use(scenes: Path, tmp_path: Path) -> None:
    for given, said in (
        (["co3d", str(scenes)], "no frame_annotations.jgz"),
        (["llff", str(scenes)], "neither co3d nor mip360"),
        (["mip360", str(tmp_path / "none")], "holds no folders"),
        (["mip360", str(scenes)], "no folder in"),
        (["mip360"], "write "),
    ):
        line = ["sh", str(RECIPES / "sparse_views" / "run.sh"), *given]
        made = subprocess.run(line, env={**os.environ, "DRY_RUN": "1"}, capture_output=True, text=True, check=False)
        assert made.returncode == 2 and not made.stdout
        assert made.stderr.startswith("Error: ") and said in made.stderr and made.stderr.count("\n") == 1


@pytest.mark.usefixtures("at_once")
@pytest.mark.parametrize("kind", ["co3d", "mip360"])
def test_sparse_views_end_at_toy_size(kind: str, tmp_path: Path) -> None:
    data = tmp_path / "data"
    if kind == "co3d":
        write_co3d(data, 12, 64, 48)
        protocol, scene, images = "co3d-2view", SEQUENCE, 10
    else:
        shutil.copytree(cached_sample("room"), data / "a", ignore=shutil.ignore_patterns("split.json"))
        protocol, scene, images = "sparse:3", "a", 4
    bad = shutil.copytree(data / scene, data / "bad")  # told of, and the rest is finished
    for photo in (bad / "images").iterdir():
        photo.write_bytes(b"no image")
    environment = {**os.environ, "SMOKE": "1", "METRICS": "psnr"}
    environment |= {"METHODS": "splatfacto", "VIEWS": "3"}
    line = ["sh", str(RECIPES / "sparse_views" / "run.sh"), kind, str(data), str(tmp_path / "out")]
    made = subprocess.run(line, env=environment, capture_output=True, text=True, check=False)
    assert made.returncode == 3, made.stderr[-2000:]
    assert "bad-splatfacto: failed" in made.stderr
    table = json.loads((tmp_path / "out" / protocol / "table-seed-0" / "eval.json").read_text())
    assert table["conditions"]["protocol"] == protocol and table["images"] == images
    for variant in ("plain", "distilled"):
        assert table["results"][variant]["psnr"] > 5
    assert (tmp_path / "out" / protocol / "seed-0" / scene / "splatfacto" / "run.json").is_file()


def _recipe(folder: str, name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, RECIPES / folder / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # where dataclasses look for their module
    spec.loader.exec_module(module)
    return module


def _ablation() -> ModuleType:
    return _recipe("ablation", "ablation")


def test_ablation_prints_its_commands(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    line = ["sample:room", "scenes/b", "--method", "splatfacto", "nerfacto", "--seed", "0", "1", "--dry-run"]
    assert _ablation().main([*line, "--output", str(tmp_path / "out"), "--", "--size", "48"]) == 0
    read = [_understood(line) for line in capsys.readouterr().out.splitlines()]
    assert len(read) == 2 * 2 * 2 * 2 and {name for name, _ in read} == {"distill"}
    assert len({options["output"] for _, options in read}) == len(read)
    assert {options["schedule"] for _, options in read} == {"one-shot", "progressive"}
    assert all(options["size"] == 48 for _, options in read)
    # what only rounds heed goes to the runs that have them
    assert _ablation().main([*line, "--", "--rounds", "3", "--step=0.5", "--size", "48"]) == 0
    for _, options in [_understood(line) for line in capsys.readouterr().out.splitlines()]:
        assert options["rounds"] == (3 if options["schedule"] == "progressive" else None) and options["size"] == 48
        assert options["step"] == (0.5 if options["schedule"] == "progressive" else None)
    assert not (tmp_path / "out").exists()


@pytest.mark.usefixtures("at_once")
def test_ablation_table_is_of_real_runs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    module = _ablation()
    fixer = smallest_fixer().save_pretrained(tmp_path / "fixer")
    scene = small_sample("room", tmp_path / "room", 32, HALF_ROOM)
    more = ["--iterations", "10", "--rounds", "2", "--size", "32", "--set", "max_gaussians=300", "--fixer", str(fixer)]
    line = [str(scene), "--seed", "0", "--output", str(tmp_path / "out"), "--", *more]
    assert module.main(line) == 0
    rows = [row for row in (tmp_path / "out" / "ablation.md").read_text().splitlines() if row.startswith("| (")]
    assert len(rows) == 4 and "±" not in "".join(rows)
    # a second seed as if it had been run, so that there is a spread
    for schedule in module.SCHEDULES:
        first = tmp_path / "out" / "room" / "splatfacto" / "every-4" / "seed-0" / schedule / "run.json"
        record = json.loads(first.read_text())
        for figures in record["results"].values():
            figures["psnr"] += 2.0
        write_json(Path(str(first).replace("seed-0", "seed-1")), record)
    names, cells = {str(scene): "room"}, [(str(scene), "splatfacto", "every:4", seed) for seed in (0, 1)]
    module._write(tmp_path / "out", names, module._collect(tmp_path / "out", names, cells))
    summary = json.loads((tmp_path / "out" / "ablation.json").read_text())["summary"]
    assert [entry["variant"] for entry in summary] == list(module.VARIANTS)
    for entry in summary:
        assert entry["psnr_std"] == pytest.approx(2**0.5) and entry["psnr_gain_std"] == pytest.approx(0, abs=1e-9)
        variant = module.VARIANTS[entry["variant"]]
        own = tmp_path / "out" / "room" / "splatfacto" / "every-4" / "seed-0" / variant[0] / "run.json"
        assert entry["psnr"] == pytest.approx(json.loads(own.read_text())["results"][variant[1]]["psnr"] + 1)
    rows = list(csv.DictReader((tmp_path / "out" / "ablation.csv").open()))
    assert len(rows) == 2 * len(module.VARIANTS)
    table = (tmp_path / "out" / "ablation.md").read_text()
    assert "(c) progressive" in table and "± 1.41" in table
    capsys.readouterr()


def test_the_bench_for_gpus_runs_on_any_device(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same code as on CUDA, on a network as wide as a toy's; what compiling does is tested elsewhere."""
    bench = _recipe("bench", "fixer")
    monkeypatch.setattr(bench, "sd_turbo_config", lambda width: raw_config(int(16 * width)))
    monkeypatch.setattr(torch, "compile", lambda function: function)
    line = ["gpu", "--device", "cpu", "--size", "32", "48", "--batch", "1", "2", "--calls", "2"]
    bench.main([*line, "--dtype", "bf16"])
    printed = [row for row in capsys.readouterr().out.splitlines() if row.startswith("| bf16")]
    rows = [[cell.strip() for cell in row.strip("|").split("|")] for row in printed]
    kinds = [("bf16", compiled, batch) for compiled in ("no", "yes") for batch in "12"]
    assert [tuple(row[:3]) for row in rows] == kinds
    for row in rows:
        assert float(row[3]) >= float(row[4]) > 0 and row[6] == "nan"
        assert float(row[7]) < 0.02


@pytest.mark.usefixtures("at_once")
def test_the_super_resolver_is_trained_again(arc: Path, photos: list[Path], tmp_path: Path) -> None:
    """The recipe's commands are understood, and at toy size it ends in weights that load and the card's table."""
    from difixcli.priors.super_resolution.network import SuperResolutionNetwork

    (tmp_path / "photos").mkdir()
    for photo in photos[:3]:
        shutil.copy(photo, tmp_path / "photos")
    places = {"PHOTOS": tmp_path / "photos", "SCENES": arc, "HELD_OUT": arc, "OUTPUT": tmp_path / "out"}
    environment = {**os.environ, **{name: str(place) for name, place in places.items()}}
    none = tmp_path / "none"  # told of, and the rest is finished
    environment |= {name: f"{arc} {none}" for name in ("SCENES", "HELD_OUT")}
    line = ["sh", str(RECIPES / "super_resolution" / "bundled.sh")]
    shown = subprocess.run(line, env={**environment, "DRY_RUN": "1"}, capture_output=True, text=True, check=True)
    name, options = _understood(shown.stdout.splitlines()[0])
    assert name == "finetune" and options["pairs"] == [str(arc), str(none)] and options["base"] == "scratch"
    assert options["task"].value == "super-resolution" and not (tmp_path / "out").exists()
    made = subprocess.run(line, env={**environment, "SMOKE": "1"}, capture_output=True, text=True, check=False)
    # twice of those that train, once of those held out
    assert made.returncode == 3 and made.stderr.count("none: failed: ") == 3, made.stderr[-2000:]
    rows = [row.split(" | ")[0] for row in made.stdout.splitlines() if row.startswith("| ")]
    assert rows == ["| PSNR / SSIM / st-LPIPS (VGG)", "| 1 photos", "| arc"]
    assert SuperResolutionNetwork.from_pretrained(tmp_path / "out" / "bundled").factor == 4
    training = json.loads((tmp_path / "out" / "second" / "training.json").read_text())
    assert training["results"]["scenes"] == ["arc"]
    # where the data are others now, it is said what has to go for that
    shutil.copy(photos[3], tmp_path / "photos")
    made = subprocess.run(line, env={**environment, "SMOKE": "1"}, capture_output=True, text=True, check=False)
    shown = " ".join(made.stderr.split())
    assert made.returncode == 2 and "this changed: photos" in shown
    assert f"remove {tmp_path / 'out' / 'first'} and {tmp_path / 'out' / 'second'}." in shown


def test_the_video_models_recipe_reads_as_it_should(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"SCENES": "a b", "HELD_OUT": "c", "OUTPUT": str(tmp_path / "out"), "SMOKE": ""}.items():
        monkeypatch.setenv(name, value)
    for smoke in ("", "1"):
        monkeypatch.setenv("SMOKE", smoke)
        clips, held, trained = (_understood(line) for line in _printed(RECIPES / "video" / "run.sh"))
        assert clips[0] == held[0] == "curate" and clips[1]["strategy"] == held[1]["strategy"] == "clips"
        assert clips[1]["scenes"] == ["a", "b"] and held[1]["scenes"] == ["c"] and held[1]["test_scene"] == ["*"]
        assert trained[1]["task"].value == "video"
        assert trained[1]["pairs"] == [str(clips[1]["output"]), str(held[1]["output"])]
        given = parsed_options(trained[1]["settings"], VideoOptions)
        assert with_options(VideoOptions(), given, "cpu")


@pytest.mark.usefixtures("at_once")
def test_the_view_diffusion_model_is_trained_again(arc: Path, photos: list[Path], tmp_path: Path) -> None:
    """Scenes are packed small, and at toy size the recipe ends in weights that load and a model card."""
    from difixcli.priors.view_diffusion.model import ViewDiffusion
    from difixcli.scenes import load_scene

    (tmp_path / "photos").mkdir()
    for photo in photos[:2]:
        shutil.copy(photo, tmp_path / "photos")
    recipes, small = RECIPES / "view_diffusion", tmp_path / "small"
    environment = {**os.environ}
    line = [sys.executable, str(recipes / "pack.py"), str(arc), "--size", "32", "--output", str(small)]
    line += ["--photos", str(tmp_path / "photos")]
    subprocess.run(line, env=environment, capture_output=True, check=True)
    packed, whole = load_scene(small / "arc"), load_scene(arc, 32)
    assert [f.camera.width for f in packed.frames] == [f.camera.width for f in whole.frames]
    for one, other in zip(packed.frames, whole.frames, strict=True):
        np.testing.assert_allclose(one.camera.camera_to_world, other.camera.camera_to_world, atol=1e-6)
        np.testing.assert_allclose(one.camera.intrinsics, other.camera.intrinsics, atol=1e-6)
    assert len(list((small / "photos").iterdir())) == 2
    places = {"PHOTOS": small / "photos", "SCENES": small / "arc", "HELD_OUT": arc, "OUTPUT": tmp_path / "out"}
    environment |= {name: str(place) for name, place in places.items()}
    line = ["sh", str(recipes / "bundled.sh")]
    shown = subprocess.run(line, env={**environment, "DRY_RUN": "1"}, capture_output=True, text=True, check=True)
    name, options = _understood(shown.stdout.splitlines()[0])
    assert name == "finetune" and options["task"].value == "view-diffusion" and options["base"] == "scratch"
    made = subprocess.run(line, env={**environment, "SMOKE": "1"}, capture_output=True, text=True, check=False)
    assert made.returncode == 0, made.stderr[-2000:]
    assert ViewDiffusion.from_pretrained(tmp_path / "out" / "bundled").size == 32
    card = (tmp_path / "out" / "bundled" / "README.md").read_text()
    assert "| arc, 2 photos" in card and "1 scenes at 32 pixels" in card
