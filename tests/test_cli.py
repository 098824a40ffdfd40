"""The command line: bad input gets one clear sentence and exit code 2, and the promised lines work as typed."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from commands import IMPORT_PATH, begun, difix, refused, told
from PIL import Image
from small_fixers import smallest_fixer
from small_scenes import HALF_ROOM, small_sample
from typer.testing import CliRunner

from difixcli.cli.options import SPLIT_DEFAULT, SPLIT_RULES
from difixcli.evaluation.protocols import PROTOCOL_NAMES
from difixcli.scenes import DEFAULT_RULE, load_scene
from difixcli.scenes.splits import RULES

QUICK = ["--iterations", "12", "--size", "48", "--set", "max_gaussians=400"]


@pytest.fixture(scope="session")
def room(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The sample room, at 64 pixels so that everything is quick."""
    return small_sample("room", tmp_path_factory.mktemp("scenes") / "room", 64, HALF_ROOM)


@pytest.fixture(scope="session")
def tiny_fixer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A fixer with random weights: quick, and real in every part."""
    return smallest_fixer().save_pretrained(tmp_path_factory.mktemp("fixer") / "tiny")


@pytest.fixture
def broken(room: Path, tmp_path: Path) -> Callable[[Callable[[dict, Path], None]], Path]:
    """A copy of the room that a function of (transforms, folder) has spoiled."""

    def spoil(how: Callable[[dict, Path], None]) -> Path:
        folder = tmp_path / "spoiled"
        shutil.copytree(room, folder)
        meta = json.loads((folder / "transforms.json").read_text())
        how(meta, folder)
        (folder / "transforms.json").write_text(json.dumps(meta))
        return folder

    return spoil


def test_a_missing_scene(tmp_path: Path) -> None:
    refused(difix("distill", tmp_path / "nowhere"), "nowhere")
    refused(difix("curate", tmp_path / "nowhere"), "nowhere")
    refused(difix("distill", "sample:romo"), "romo", "room")


def test_a_scene_without_frames(broken: Callable) -> None:
    folder = broken(lambda meta, _: meta.update(frames=[]))
    refused(difix("distill", folder), "frame")


def test_a_corrupt_image_is_named(broken: Callable) -> None:
    def spoil(meta: dict, folder: Path) -> None:
        (folder / meta["frames"][3]["file_path"]).write_bytes(b"\x89PNG\r\n\x1a\n not really")

    folder = broken(spoil)
    name = json.loads((folder / "transforms.json").read_text())["frames"][3]["file_path"]
    refused(difix("distill", folder, "--output", folder / "out"), Path(name).name)


def test_an_image_of_another_size_than_declared(broken: Callable) -> None:
    def spoil(meta: dict, folder: Path) -> None:
        path = folder / meta["frames"][0]["file_path"]
        Image.open(path).resize((50, 50)).save(path)

    refused(difix("distill", broken(spoil)), "50")


@pytest.mark.parametrize("value", [float("nan"), 3.0])
def test_poses_that_are_nan_or_not_rigid(broken: Callable, value: float) -> None:
    folder = broken(lambda meta, _: meta["frames"][1]["transform_matrix"][0].__setitem__(0, value))
    name = json.loads((folder / "transforms.json").read_text())["frames"][1]["file_path"]
    refused(difix("distill", folder), Path(name).stem)


def test_unknown_names_come_with_near_matches(room: Path, tmp_path: Path) -> None:
    refused(difix("distill", room, "--method", "splatfact"), "splatfact", "splatfacto")
    refused(difix("curate", room, "--strategy", "sprase"), "sprase", "sparse")
    refused(difix("distill", room, "--fixer", "bundeld"), "bundeld", "bundled")
    refused(difix("distill", room, "--split", "evry:4"), "evry:4", "every")
    refused(difix("curate", room, "--set", "pipeline.model.sh_degre=1", "-o", tmp_path / "o"), "sh_degre", "sh_degree")


def test_a_split_that_leaves_no_training_view(room: Path) -> None:
    refused(difix("distill", room, "--split", "names:nothing-like-this"), "no training view")


def test_a_scene_that_names_no_split_holds_out_every_eighth_photo(broken: Callable, tmp_path: Path) -> None:
    scene = broken(lambda _, folder: (folder / "split.json").unlink())
    result = difix("curate", scene, *QUICK, "--keep", "failed", "-o", tmp_path / "pairs", "--json")
    assert told(result)["results"]["pairs"] == 2 and "test-every:8" in result.stderr
    assert DEFAULT_RULE == "test-every:8" and DEFAULT_RULE in SPLIT_DEFAULT
    entries = json.loads((tmp_path / "pairs" / "data.json").read_text())["train"].values()
    names = sorted(frame.name for frame in load_scene(scene).frames[::8])
    assert sorted(f"images/{Path(entry['frame']).name}" for entry in entries) == names


def test_a_scene_of_one_photo_has_none_to_hold_out(broken: Callable) -> None:
    def spoil(meta: dict, folder: Path) -> None:
        meta["frames"] = meta["frames"][:1]
        (folder / "split.json").unlink()

    scene = broken(spoil)
    for command in ("distill", "curate"):
        refused(difix(command, scene), "test-every:8", "no training view among the 1", "choose another --split")


def test_an_output_that_cannot_be_written(room: Path, tmp_path: Path, tiny_fixer: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    refused(
        difix("distill", room, "--fixer", tiny_fixer, "--output", tmp_path / "file" / "run"), "cannot be written", "run"
    )


def test_a_hub_model_without_network(room: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    refused(difix("distill", room, "--fixer", "nvidia/difix_ref"), "nvidia/difix_ref")


def test_cuda_asked_for_and_absent(room: Path) -> None:
    import torch

    if torch.cuda.is_available():
        pytest.skip("CUDA is there")
    refused(difix("distill", room, "--device", "cuda"), "CUDA", "--device")
    refused(difix("fix", room / "images", "--device", "cuda"), "CUDA")


def test_bad_images_for_fix_and_eval(tmp_path: Path, tiny_fixer: Path) -> None:
    refused(difix("fix", tmp_path / "no.png"), "no.png")
    (tmp_path / "bad.png").write_bytes(b"no image")
    refused(difix("fix", tmp_path / "bad.png", "--fixer", tiny_fixer, "-o", tmp_path / "o"), "bad.png")
    for folder, name, size in (("a", "1.png", 40), ("b", "1.png", 40), ("b", "2.png", 40), ("c", "1.png", 44)):
        (tmp_path / folder).mkdir(exist_ok=True)
        Image.new("RGB", (size, 40)).save(tmp_path / folder / name)
    refused(difix("eval", tmp_path / "a", tmp_path / "b"), "2")
    refused(difix("eval", tmp_path / "a", tmp_path / "c"), "44")
    (tmp_path / "walk.mp4").write_bytes(b"")
    refused(difix("eval", tmp_path / "walk.mp4", tmp_path / "a"), "walk.mp4 is a video", "its frames")
    refused(difix("eval", tmp_path / "a"), "is no run", "the true ones")
    refused(difix("curate", tmp_path / "o"), "There is no scene")
    (tmp_path / "o").mkdir()
    refused(difix("curate", tmp_path / "o"), "no photos to pose")


def test_curate_writes_pairs_that_the_release_could_read(room: Path, tmp_path: Path) -> None:
    result = difix("curate", room, "--split", "every:3", *QUICK, "--output", tmp_path / "pairs", "--json")
    assert result.exit_code == 0, result.stderr
    said = json.loads(result.stdout.splitlines()[-1])["results"]
    manifest = json.loads((tmp_path / "pairs" / "data.json").read_text())
    assert set(manifest) == {"train", "test"} and len(manifest["train"]) == said["pairs"] > 5
    for entry in manifest["train"].values():
        assert entry["prompt"] == "remove degradation"
        sizes = set()
        for path in (entry["image"], entry["target_image"], entry["ref_image"], entry["opacity"]):
            assert not Path(path).is_absolute()
            sizes.add(Image.open(tmp_path / "pairs" / path).size)
        assert len(sizes) == 1
        assert entry["ref_image"] == entry["ref_images"][0] and entry["target_image"] not in entry["ref_images"]
        for path in entry["aligned_refs"]:
            assert Image.open(tmp_path / "pairs" / path).mode == "RGBA"
        assert 0 < entry["psnr"] < 60 and -1 <= entry["ssim"] <= 1
    # the very same line again finds everything done, and changes nothing
    before = (tmp_path / "pairs" / "data.json").read_bytes()
    images = {path: path.stat().st_mtime_ns for path in (tmp_path / "pairs").rglob("*.png")}
    again = difix("curate", room, "--split", "every:3", *QUICK, "--output", tmp_path / "pairs", "--json")
    assert again.exit_code == 0 and (tmp_path / "pairs" / "data.json").read_bytes() == before
    assert images == {path: path.stat().st_mtime_ns for path in (tmp_path / "pairs").rglob("*.png")}


def test_curate_cycle_inside_a_scenes_folder(room: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(room)
    result = difix("curate", "--strategy", "cycle", *QUICK, "--shift", "0.1", "--output", tmp_path / "pairs")
    assert result.exit_code == 0, result.stderr
    entries = json.loads((tmp_path / "pairs" / "data.json").read_text())["train"].values()
    frames = json.loads((room / "transforms.json").read_text())["frames"]
    assert len(entries) == len(frames)
    assert all(entry["strategy"] == "cycle" and entry["strategy_params"] == {"shift": "0.1"} for entry in entries)


@pytest.fixture(scope="session")
def distilled(room: Path, tiny_fixer: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict]:
    """A whole distillation with a comparison, at toy size."""
    folder = tmp_path_factory.mktemp("runs") / "room"
    result = difix(
        *("distill", room, "--method", "splatfacto", "--fixer", tiny_fixer, "--rounds", "2", "--compare", "--json"),
        *("--iterations", "60", "--size", "48", "--set", "max_gaussians=400", "--output", folder),
    )
    assert result.exit_code == 0, (result.stderr, result.exception)
    return folder, json.loads(result.stdout.splitlines()[-1])


def test_distill_compares_three_variants(distilled: tuple[Path, dict]) -> None:
    folder, said = distilled
    assert set(said["results"]) == {"plain", "fixed", "distilled", "enhanced"}
    for figures in said["results"].values():
        assert 3 < figures["psnr"] < 60 and -1 <= figures["ssim"] <= 1 and 0 <= figures["st_lpips"] < 2
    for variant in ("truth", "plain", "fixed", "distilled", "enhanced"):
        assert len(list((folder / "renders" / variant).glob("*.png"))) == 4
    rounds = [json.loads(p.read_text()) for p in sorted(folder.glob("rounds/*/round.json"))]
    assert [r["round"] for r in rounds] == [1, 2] and all(len(r["views"]) == 4 for r in rounds)
    assert json.loads((folder / "run.json").read_text())["state"] == "done"
    for plain_run in (folder, folder / "plain"):
        assert (plain_run / "config.yml").is_file() and len(list(plain_run.glob("nerfstudio_models/*.ckpt"))) == 1


def test_pseudo_views_changed_the_training(distilled: tuple[Path, dict]) -> None:
    folder, _ = distilled
    images = [
        [np.asarray(Image.open(p), float) for p in sorted((folder / "renders" / v).glob("*.png"))]
        for v in ("plain", "distilled")
    ]
    assert max(np.abs(a - b).mean() for a, b in zip(*images, strict=True)) > 0.5


def test_eval_and_enhance_take_the_run(distilled: tuple[Path, dict], tiny_fixer: Path, tmp_path: Path) -> None:
    folder, said = distilled
    measured = difix("eval", folder, "--output", tmp_path / "eval", "--json")
    assert measured.exit_code == 0, measured.stderr
    results = json.loads(measured.stdout.splitlines()[-1])["results"]
    assert results["distilled"]["psnr"] == pytest.approx(said["results"]["distilled"]["psnr"])
    assert (tmp_path / "eval" / "report.html").stat().st_size > 10_000
    enhanced = difix("enhance", folder, "--fixer", tiny_fixer, "--output", tmp_path / "enhanced", "--json")
    assert enhanced.exit_code == 0, enhanced.stderr
    frames = sorted((tmp_path / "enhanced").glob("*.png"))
    assert len(frames) == 4
    for frame in frames:
        # the run's own enhanced views were made of the same renders by the same fixer
        assert np.array_equal(
            np.asarray(Image.open(frame)), np.asarray(Image.open(folder / "renders/enhanced" / frame.name))
        )


def test_what_is_done_needs_no_fixer(distilled: tuple[Path, dict], room: Path, tiny_fixer: Path) -> None:
    """The very same line again answers at once, changes nothing, and does not even read the weights."""
    folder, said = distilled
    held = {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}
    again = difix(
        *("distill", room, "--method", "splatfacto", "--fixer", tiny_fixer, "--rounds", "2", "--compare", "--json"),
        *("--iterations", "60", "--size", "48", "--set", "max_gaussians=400", "--output", folder),
    )
    assert again.exit_code == 0, again.stderr
    assert json.loads(again.stdout.splitlines()[-1])["results"] == said["results"]
    assert "licence" not in again.stderr
    assert held == {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}


def test_enhance_says_what_a_run_cannot_use(distilled: tuple[Path, dict], room: Path, tmp_path: Path) -> None:
    folder, _ = distilled
    refused(difix("enhance", folder, "--size", "32"), "--size", "trained")
    refused(difix("enhance", folder, "--reference", next((room / "images").iterdir())), "--reference")
    refused(difix("enhance", folder / "plain"), "plain", "part of the run", folder.name)
    shutil.copy(folder / "reconstruction.json", tmp_path)
    (tmp_path / "run.json").write_text("[]")
    refused(difix("enhance", tmp_path), "run.json", "difix distill")


def test_frames_of_a_run_that_trained_on_are_not_kept(
    distilled: tuple[Path, dict], tiny_fixer: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    shutil.copytree(distilled[0], folder)
    line = ("enhance", folder, "--fixer", tiny_fixer, "--output", tmp_path / "frames")
    assert difix(*line).exit_code == 0
    checkpoint = next((folder / "nerfstudio_models").glob("*.ckpt"))
    checkpoint.rename(checkpoint.with_name("step-000000077.ckpt"))
    refused(difix(*line), "already holds another run")


def test_force_never_removes_what_it_reads(distilled: tuple[Path, dict], tiny_fixer: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    shutil.copytree(distilled[0], folder)
    held = sorted(folder.rglob("*"))
    for line in (
        ("fix", folder / "renders" / "distilled", "--fixer", tiny_fixer, "--output", folder),
        ("enhance", folder, "--fixer", tiny_fixer, "--output", folder),
    ):
        refused(difix(*line, "--force"), "cannot be replaced", "read from it")
    shutil.copytree(tiny_fixer, tmp_path / "fixer")
    shutil.copy(folder / "run.json", tmp_path / "fixer" / "run.json")
    (tmp_path / "pairs").mkdir()
    (tmp_path / "pairs" / "data.json").write_text('{"train": {}, "test": {}}')
    refused(
        difix("finetune", tmp_path / "pairs", "--base", tmp_path / "fixer", "--output", tmp_path / "fixer", "--force"),
        "read from",
    )
    assert sorted(folder.rglob("*")) == held and (tmp_path / "fixer" / "model.safetensors").is_file()


def test_a_split_file_that_changed_is_another_run(
    distilled: tuple[Path, dict], broken: Callable, tiny_fixer: Path, tmp_path: Path
) -> None:
    scene = broken(lambda *_: None)
    line = (
        *("distill", scene, "--fixer", tiny_fixer, "--rounds", "1", "--iterations", "4", "--size", "48"),
        *("--set", "max_gaussians=400", "--output", tmp_path / "run"),
    )
    assert difix(*line).exit_code == 0
    split = json.loads((scene / "split.json").read_text())
    split["test"].append(split["train"].pop())
    (scene / "split.json").write_text(json.dumps(split))
    refused(difix(*line), "already holds another run")


def test_a_mended_input_needs_no_force(tmp_path: Path, tiny_fixer: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.png").write_bytes(b"no image")
    line = ("fix", tmp_path / "in", "--fixer", tiny_fixer, "--output", tmp_path / "out")
    refused(difix(*line), "a.png")
    assert not (tmp_path / "out").exists()
    Image.new("RGB", (40, 32)).save(tmp_path / "in" / "a.png")
    assert difix(*line).exit_code == 0


def test_json_of_identical_images_is_json(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        Image.new("RGB", (40, 32), "teal").save(tmp_path / name / "1.png")
    result = difix("eval", tmp_path / "a", tmp_path / "b", "--output", tmp_path / "eval", "--json")
    assert result.exit_code == 0, (result.stderr, result.exception)

    def no_constant(name: str) -> None:
        raise AssertionError(name)

    said = json.loads(result.stdout.splitlines()[-1], parse_constant=no_constant)
    assert said["results"]["psnr"] is None and said["results"]["ssim"] == 1
    json.loads((tmp_path / "eval" / "eval.json").read_text(), parse_constant=no_constant)


def test_a_seed_that_numpy_does_not_take_is_refused(room: Path) -> None:
    for seed in (-1, 2**32):
        result = difix("distill", room, "--seed", seed)
        assert result.exit_code == 2 and "is not between 0 and 4294967295" in result.stderr


def test_what_an_earlier_run_had_done_does_not_count_for_the_pace(monkeypatch: pytest.MonkeyPatch) -> None:
    from difixcli import console

    now, said = [0.0], []
    monkeypatch.setattr(console.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(console, "say", said.append)
    update = console.PlainProgress("train", 10_000)
    for now[0], done in ((1.0, 9001), (21.0, 9041), (31.0, 9061), (501.0, 10_000)):
        update(done)
    assert said == ["train: 9041/10000, 2.0/s", "train: 9061/10000, 2.0/s, 470 s left", "train: 10000/10000, 2.0/s"]


def test_too_little_memory_is_one_sentence() -> None:
    """It names the cures that the command has."""
    import torch
    import typer

    from difixcli import console
    from difixcli.errors import less_memory

    app_of_one = typer.Typer()

    @app_of_one.command()
    @console.handled
    def run(size: int = 960, method: str = "splatfacto", settings: str = "") -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

    refused(CliRunner().invoke(app_of_one), "--size", "max_gaussians")
    assert "--crop" in less_memory(["batch", "crop"]) and "max_gaussians" not in less_memory(["size", "settings"])
    assert "--" not in less_memory(["seed"])


def test_a_reader_who_has_left_is_no_fault_of_ours() -> None:
    """`difix … --json | head -0`: the work is done, and nobody wants a traceback."""

    program = (
        "import typer; from difixcli import console; app = typer.Typer()\n"
        "@app.command()\n@console.handled\n"
        "def run():\n    for _ in range(9000): print('{}' * 9, flush=True)\n"
        "app()"
    )
    process = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout and process.stderr
    process.stdout.close()
    said = process.stderr.read().decode()
    assert process.wait(60) == 1
    assert "fault" not in said and "Traceback" not in said


def test_enhance_a_folder_as_typed(distilled: tuple[Path, dict], tiny_fixer: Path, tmp_path: Path) -> None:
    shutil.copytree(distilled[0] / "renders" / "distilled", tmp_path / "renders")
    result = difix("enhance", tmp_path / "renders", "--fixer", tiny_fixer, "--json")
    assert result.exit_code == 0, result.stderr
    said = json.loads(result.stdout.splitlines()[-1])
    assert said["output"] == str(tmp_path / "renders_enhanced")
    assert len(list((tmp_path / "renders_enhanced").glob("*.png"))) == 4


def test_distill_goes_on_after_a_kill(
    room: Path, tiny_fixer: Path, forked: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SIGKILL in the second round, then the same line: it takes up the run and finishes it."""
    import signal
    import time

    monkeypatch.chdir(tmp_path)
    line = [
        *("distill", room, "--method", "splatfacto", "--fixer", tiny_fixer, "--rounds", "3"),
        *("--iterations", "90", "--size", "48", "--set", "max_gaussians=400", "--json"),
    ]
    process = begun(forked, *line)
    deadline = time.monotonic() + 300
    while time.monotonic() < deadline and process.poll() is None:
        if list(tmp_path.glob("outputs/*/*/*/rounds/02/round.json")):
            process.send_signal(signal.SIGKILL)
            break
        time.sleep(0.05)
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    again = difix(*line)
    assert again.exit_code == 0, again.stderr
    assert "going on with an earlier run" in again.stderr and "round 1/3" not in again.stderr
    runs = list(tmp_path.glob("outputs/*/*/*/run.json"))
    assert len(runs) == 1
    assert json.loads(runs[0].read_text())["state"] == "done"
    assert len(list(runs[0].parent.glob("rounds/*/round.json"))) == 3
    assert not list(runs[0].parent.rglob("*.part"))


def test_errors_are_json_too(tmp_path: Path) -> None:
    result = difix("distill", tmp_path / "nowhere", "--json")
    assert result.exit_code == 2
    assert "nowhere" in json.loads(result.stdout.splitlines()[-1])["error"]
    assert not difix("distill", tmp_path / "nowhere").stdout
    for line in (("distill", "--jsn"), ("eval",), ("distill", "--seed", "-1"), ("no-such-command",), ("fix", "--size")):
        result = difix(*line, "--json")
        assert result.exit_code == 2 and result.stderr, line
        assert list(json.loads(result.stdout)) == ["error"], line
        assert not difix(*line).stdout, line


def test_a_finished_distillation_is_found_again(
    distilled: tuple[Path, dict], room: Path, tiny_fixer: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    home = tmp_path / "outputs" / room.name / "splatfacto" / "earlier"
    shutil.copytree(distilled[0], home)
    again = difix(
        *("distill", room, "--method", "splatfacto", "--fixer", tiny_fixer, "--rounds", "2", "--compare", "--json"),
        *("--iterations", "60", "--size", "48", "--set", "max_gaussians=400"),
    )
    assert again.exit_code == 0, again.stderr
    said = json.loads(again.stdout.splitlines()[-1])
    assert said["results"] == distilled[1]["results"] and Path(said["output"]) == home


@pytest.mark.parametrize("width", [200, 80, 40, 24, 10])
def test_figures_are_never_cut(width: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """At any width, every figure stands whole in one line, in the column of its metric."""
    import io

    from rich.console import Console

    from difixcli import console
    from difixcli.evaluation.metrics import METRICS

    rows = {f"a-run-with-a-long-name-{i}": {key: 10.12345 + i for key in METRICS} for i in range(2)}
    spreads = {name: dict.fromkeys(METRICS, 0.54321) for name in rows}
    text = io.StringIO()
    monkeypatch.setattr(console, "out", Console(file=text, width=width))
    console.finish({}, False, console.figures_table("a: 3 views", rows, spreads))
    shown = text.getvalue()
    assert "…" not in shown and shown.count("a: 3 views") == 1
    for row in rows.values():
        wanted = [f"{value:.{METRICS[key].digits}f} ±{0.54321:.{METRICS[key].digits}f}" for key, value in row.items()]
        assert all(shown.count(one) == wanted.count(one) for one in wanted)
    assert all(metric.label in shown for metric in METRICS.values())
    if width >= 40:
        assert max(map(len, shown.splitlines())) <= width


def test_a_damaged_newest_checkpoint_costs_a_round(
    distilled: tuple[Path, dict], room: Path, tiny_fixer: Path, tmp_path: Path
) -> None:
    """The same line goes on from the last whole one, says so, and comes to the same figures."""
    folder = tmp_path / "run"
    line = (
        *("distill", room, "--method", "splatfacto", "--fixer", tiny_fixer, "--rounds", "2", "--compare", "--json"),
        *("--iterations", "60", "--size", "48", "--set", "max_gaussians=400", "--output", folder),
    )

    def stopped(*damaged: str) -> None:
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(distilled[0], folder)
        record = json.loads((folder / "run.json").read_text())
        (folder / "run.json").write_text(json.dumps({**record, "state": "running", "results": {}}))
        for pattern in damaged:
            (path,) = folder.glob(pattern)
            path.write_bytes(path.read_bytes()[:5000])

    newest, second, first = (f"{part}/*.ckpt" for part in ("nerfstudio_models", "rounds/02", "rounds/01"))
    for damaged, words in (
        ((newest,), "the beginning of round 2"),
        ((newest, second, first), "the end of the training on photos"),
    ):
        stopped(*damaged)
        again = difix(*line)
        assert again.exit_code == 0, (again.stderr, again.exception)
        assert "is damaged: going on from " + words in " ".join(again.stderr.split())
        assert json.loads(again.stdout.splitlines()[-1])["results"] == distilled[1]["results"]
    stopped(newest, second, first, "photos/nerfstudio_models/*.ckpt")
    held = sorted(folder.rglob("*"))
    refused(difix(*line), "damaged or not whole", ".ckpt")
    assert sorted(folder.rglob("*")) == held


def test_options_are_checked_before_the_heavy_imports(room: Path) -> None:
    """Within a second of the program's start: nothing that takes long is imported first."""

    unfit = ("--fixer", str(room / "images"))
    for words in (
        ("distill", str(room), "--rounds", "-1"),
        ("distill", str(room), "--targets", "spiral:100000000"),
        ("distill", str(room), "--split", "every:0"),
        ("distill", str(room), *unfit),
        ("enhance", str(room / "images"), *unfit),
        ("fix", str(room / "images"), *unfit),
        ("finetune", str(room), "--base", unfit[1]),
        ("curate", str(room), "--strategy", "no-such"),
        ("curate", str(room), "--strategy", "cycle", "--shift", "far"),
    ):
        line = ["from difixcli.cli import main; import sys, atexit",
                "atexit.register(lambda: print('torch' in sys.modules))", "main()"]  # fmt: skip
        ended = subprocess.run(
            [sys.executable, "-c", "\n".join(line), *words],
            env={**os.environ, "PYTHONPATH": IMPORT_PATH},
            capture_output=True,
            text=True,
            check=False,
        )
        assert ended.returncode == 2 and ended.stdout == "False\n", (words, ended.stderr)
        assert "does not say how many" not in ended.stderr


def test_something_is_said_before_the_heavy_imports(room: Path, tmp_path: Path) -> None:
    """The first line on the terminal comes within a second or two, whatever follows."""
    (tmp_path / "run" / "nerfstudio_models").mkdir(parents=True)
    (tmp_path / "run" / "reconstruction.json").write_text('{"method": "splatfacto"}')
    for name in ("config.yml", "nerfstudio_models/step-000000001.ckpt"):
        (tmp_path / "run" / name).write_text("")
    (tmp_path / "pairs").mkdir()
    (tmp_path / "pairs" / "data.json").write_text("{}")
    (tmp_path / "networks").mkdir()
    for name in ("config.json", "model.safetensors"):
        (tmp_path / "networks" / name).write_text("{}")
    program = """
import os, sys
from difixcli import console
from difixcli.cli import main
def first(*said, **_):
    print(said[0], sorted({"torch", "nerfstudio"} & set(sys.modules)), flush=True)
    os._exit(0)
console.err.print = first
main()
"""
    picture = next((room / "images").iterdir())
    for words in (
        ("distill", room),
        ("distill", room, "--prior", "video"),
        ("distill", room, "--prior", "super-resolution"),
        ("distill", room, "--prior", "view-diffusion", "--view-diffusion", tmp_path / "networks"),
        ("curate", room),
        ("enhance", room / "images"),
        ("export", tmp_path / "run"),
        ("eval", room / "images", room / "images"),
        ("finetune", tmp_path / "pairs"),
        ("finetune", room, "--task", "super-resolution"),
        ("fix", picture),
        ("fix", picture, "--upscale", "4"),
        ("fix", "--export", tmp_path / "fixer"),
        ("download", "inception"),
    ):
        output = ("-o", tmp_path / "o.ply") if words[0] != "download" and "--export" not in words else ()
        ended = subprocess.run(
            [sys.executable, "-c", program, *map(str, (*words, *output))],
            env={**os.environ, "PYTHONPATH": IMPORT_PATH},
            capture_output=True,
            text=True,
            check=False,
        )
        assert ended.stdout == "Loading torch … []\n", (words, ended.stdout, ended.stderr)


def test_identical_images_are_told_and_left_out_of_the_mean(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for number in range(3):
        for name in ("a", "b"):
            (tmp_path / name).mkdir(exist_ok=True)
            if number or name == "a":
                pixels = rng.integers(0, 255, (40, 48, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / name / f"{number}.png")
    result = difix("eval", tmp_path / "a", tmp_path / "b", "--metrics", "psnr", "--output", tmp_path / "eval", "--json")
    assert result.exit_code == 0, result.stderr
    said = json.loads(result.stdout.splitlines()[-1])
    figures = json.loads((tmp_path / "eval" / "eval.json").read_text())["per_image"]["images"]
    others = [figures[name]["psnr"] for name in ("1", "2")]
    assert figures["0"]["psnr"] is None and said["results"]["psnr"] == pytest.approx(np.mean(others))
    assert said["std"]["psnr"] == pytest.approx(np.std(others))
    assert "1 of 3 images" in result.stderr and "identical" in result.stderr


def test_going_back_names_the_run_and_option_that_differ(
    distilled: tuple[Path, dict], room: Path, tiny_fixer: Path
) -> None:
    line = (
        *("distill", room, "--method", "splatfacto", "--fixer", tiny_fixer, "--rounds", "2", "--compare"),
        *("--iterations", "60", "--size", "48", "--output", distilled[0], "--from-round", "1"),
    )
    refused(difix(*line, "--set", "max_gaussians=300"), distilled[0].name, "--set", "max_gaussians=400")
    refused(difix(*line, "--set", "max_gaussians=400", "--seed", "3"), distilled[0].name, "--seed", "0 there, 3 here")


def test_one_photo_to_train_is_told(room: Path, tiny_fixer: Path, tmp_path: Path) -> None:
    name = json.loads((room / "transforms.json").read_text())["frames"][0]["file_path"]
    (tmp_path / "one.json").write_text(json.dumps({"train": [name]}))
    result = difix(
        *("distill", room, "--split", f"file:{tmp_path / 'one.json'}", "--schedule", "none", "--iterations", "2"),
        *("--fixer", tiny_fixer, "--size", "32", "--set", "max_gaussians=100", "--output", tmp_path / "run"),
    )
    assert result.exit_code == 0, (result.stderr, result.exception)
    assert "leaves one photo to train on" in " ".join(result.stderr.split())


def test_the_help_names_every_split_rule_and_protocol() -> None:
    assert [rule for rule in RULES if rule not in SPLIT_RULES.replace(",", "").replace(":", " ").split()] == ["all"]
    shown = " ".join(difix("eval", "--help").stdout.replace("│", " ").split())
    assert [name for name in PROTOCOL_NAMES if name not in shown] == []
