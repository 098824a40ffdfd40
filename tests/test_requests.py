"""What commands are asked for: by the line, by a file of options and from Python, checked before anything heavy."""

from __future__ import annotations

import ctypes.util
import inspect
import json
import os
import subprocess
import sys
from enum import Enum
from pathlib import Path
from typing import Any, get_args, get_origin

import pytest
import typer
from commands import IMPORT_PATH, difix, told
from PIL import Image
from small_scenes import small_sample
from typer.models import OptionInfo

from difixcli.cli import app, function_of
from difixcli.cli.curate import CurateRequest
from difixcli.cli.distill import DistillRequest
from difixcli.cli.enhance import EnhanceRequest
from difixcli.cli.evaluate import EvaluateRequest
from difixcli.cli.export import ExportRequest
from difixcli.cli.finetune import FinetuneRequest
from difixcli.cli.fix import FixRequest
from difixcli.cli.lines import words
from difixcli.cli.pose import PoseRequest
from difixcli.cli.requests import Request, options_of
from difixcli.cli.sample import SampleRequest
from difixcli.errors import InputError
from difixcli.fixer import new_small_fixer
from difixcli.runs import Run, finite, write_json
from difixcli.samples.sample import cached_sample

TOY: dict[str, Any] = {"schedule": "none", "iterations": 2, "size": 32, "device": "cpu", "views": 3, "seed": 5}
TOY["settings"] = ["max_gaussians=100", "pipeline.model.sh_degree=1"]
LINE = ("--schedule", "none", "--iterations", 2, "--size", 32, "--device", "cpu", "--views", 3, "--seed", 5)
LINE += ("--set", "max_gaussians=100", "--set", "pipeline.model.sh_degree=1")
REQUESTS: dict[str, type[Request]] = {
    "curate": CurateRequest,
    "distill": DistillRequest,
    "enhance": EnhanceRequest,
    "eval": EvaluateRequest,
    "export": ExportRequest,
    "finetune": FinetuneRequest,
    "fix": FixRequest,
    "pose": PoseRequest,
    "sample": SampleRequest,
}


@pytest.fixture(scope="module")
def room() -> Path:
    return cached_sample("room")


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """Two photos of 48×32 pixels."""
    (tmp_path / "in").mkdir()
    for path in sorted((cached_sample("room") / "images").iterdir())[:2]:
        with Image.open(path) as opened:
            opened.convert("RGB").resize((48, 32)).save(tmp_path / "in" / path.name)
    return tmp_path / "in"


def _wrong(folder: Path) -> list[tuple[str, str]]:
    """Lines of `difix distill SCENE`, and what is said of them."""
    (folder / "model.txt").write_text("")
    (folder / "empty").mkdir()
    (folder / "run" / "nerfstudio_models").mkdir(parents=True)
    for name in ("config.yml", "nerfstudio_models/step-000000001.ckpt"):
        (folder / "run" / name).write_text("")
    (folder / "run" / "reconstruction.json").write_text('{"method": "nerfacto"}')
    (folder / "gaussians.ply").write_text("")
    (folder / "cut.npz").write_bytes(b"PK")
    path = {"camera_path": [{"camera_to_world": [1, 2], "fov": 50}], "render_height": 48, "render_width": 64}
    (folder / "path.json").write_text(json.dumps(path))
    few, film, larger = "--prior view-diffusion", "--prior video", "--prior super-resolution"
    begun = f"--start {folder / 'gaussians.ply'}"
    return [
        ("--views 3 --split views:3", "both say which photos train"),
        ("--method splatfcto", "method called splatfcto; did you mean splatfacto"),
        ("--set pipeline.model.x", "has no value"),
        ("--set machine.seed=3", "decided by the run itself"),
        ("--set max_gaussians=many", "max_gaussians=many is not a number"),
        ("--set max_gaussians=9", "too few"),
        ("--set seed_depth_mult=-1", "is negative"),
        ("--loss l2=much", "no term with its weight"),
        ("--loss perceptul=1", "loss term called perceptul; did you mean perceptual"),
        ("--loss perceptual:2", "no part of an image's side"),
        ("--loss low_resolution:x", "how many pixels are averaged"),
        ("--loss l1:3", "takes no parameter"),
        ("--loss l2=0", "no term of the loss that counts"),
        (f"--start {folder / 'none'}", "to start from; check its name"),
        (f"--start {folder / 'empty'}", "config.yml is missing"),
        (f"--start {folder / 'model.txt'}", "no run folder and no .ply"),
        (f"--start {folder / 'gaussians.ply'}", "is no PLY file"),
        (f"--start {folder / 'run'} --method splatfacto", "was trained with nerfacto, not splatfacto"),
        (f"{begun} --iterations 9", "With --start training on photos is done"),
        (f"{begun} {few} --iterations 9", "With --start training on photos is done"),
        (f"{begun} {larger} --iterations 9", "With --start training on photos is done"),
        (f"{begun} {larger} --reduce 2", "--start has seen the photos"),
        (f"{begun} {film}", "--start says nothing to the prior video"),
        *(
            (f"{option}{path}", said)
            for path, said in (
                ("none.json", "exists neither here nor in"),
                (folder / "empty", "exists neither here nor in"),
                (folder / "model.txt", "is not valid JSON"),
                (folder / "run" / "reconstruction.json", "has another form than expected"),
            )
            for option in ("--split file:", f"{few} --view-diffusion a/b --split file:")
        ),
        ("--targets none.json", "none.json is missing"),
        (f"--targets {folder / 'run' / 'reconstruction.json'}", "is no camera path of nerfstudio's viewer"),
        (f"--targets {folder / 'path.json'}", "pose of camera 0"),
        (f"{film} --points none.npz", "There is no point file"),
        (f"{film} --points {folder / 'cut.npz'}", "is no .npz of point maps"),
        ("--from-round 2", "there is none yet"),
        ("--from-round 2 --force", "leave one of them out"),
        *([("--device cuda", "there is no CUDA device here")] if ctypes.util.find_library("cuda") is None else []),
        ("--schedule oneshot", "did you mean one-shot"),
        ("--schedule one-shot --rounds 2", "--rounds says nothing to the schedule one-shot"),
        ("--share 1", "above 0 and below 1"),
        ("--step 0", "must be positive"),
        ("--rounds 0", "no number of rounds"),
        (few, "No trained view-conditioned diffusion model comes with this version"),
        ("--profile other", "profile called other"),
        ("--prior fixr", "prior called fixr"),
        ("--trust some", "kind of trust called some"),
        ("--trust all --drop-below 0.5", "--drop-below says nothing with --trust all"),
        ("--profile published --drop-below 0.5", "--drop-below says nothing with --trust all"),
        *(
            (f"--schedule none {option}", f"{option.split()[0]} says nothing to the schedule none")
            for option in ("--compare", "--no-guard", "--profile published", "--trust all", "--drop-below 1",
                           "--loss l2")
        ),
        *(
            (f"{prior} {option}", f"{option.split()[0]} says nothing to the prior {prior.split()[1]}")
            for prior in (few, film, larger)
            for option in ("--profile published", "--fixer other", "--step 1", "--references 1", "--no-guard",
                           "--drop-below 1", "--schedule one-shot")
        ),
        (f"{few} --trust all", "--trust says nothing to the prior view-diffusion"),
        (f"{film} --targets spiral", "--targets says nothing to the prior video"),
        (f"{larger} --targets test", "--targets says nothing to the prior super-resolution"),
        *(
            (option, f"{option.split()[0]} belongs to --prior super-resolution")
            for option in ("--upscale 4", "--sr bundled", "--reduce 2", "--downscale area", "--sr-update paper")
        ),
        *(
            (option, f"{option.split()[0]} belongs to --prior view-diffusion")
            for option in ("--view-diffusion bundled", "--seek mode", "--denoise-steps 9", "--reuse 1", "--anneal")
        ),
        *(
            (option, f"{option.split()[0]} belongs to --prior video")
            for option in ("--frames 8", "--points auto", "--video bundled")
        ),
        (f"{larger} --sr {folder / 'none.pth'}", "super-resolver called"),
        (f"{larger} --sr nowhere", "super-resolver called nowhere"),
        (f"{larger} --sr {folder / 'empty'}", "is not a super-resolver"),
        (f"{larger} --sr {folder / 'model.txt'}", "is not a file of weights"),
        (f"{larger} --downscale lanczos", "lanczos"),
        (f"{larger} --sr-update papper", "did you mean paper"),
        (f"{larger} --upscale 2 --loss low_resolution:4", "otherwise than the photos were"),
        (f"{few} --view-diffusion nowhere", "no view-conditioned diffusion model called nowhere"),
        (f"{few} --seek median", "way of seeking called median"),
        (f"{few} --seek sds --denoise-steps 4", "--denoise-steps says nothing to --seek sds"),
        (f"{few} --seek mean --anneal", "--anneal says nothing to --seek mean"),
        (f"{few} --rounds 1", "none is left after the first third"),
        (f"{film} --frames 2", "shows nothing between two photos"),
        (f"{film} --frames 100000", "more than a film between two photos"),
        (f"{film} --points cloud.xyz", "neither auto nor a file"),
        (f"{film} --points none.npz", "There is no point file"),
        (f"{film} --trust some", "kind of trust called some"),
    ]  # fmt: skip


def _wrong_images(folder: Path, room: Path, images: Path) -> list[tuple[str, str]]:
    """Lines of `difix fix` and `difix enhance`, and what is said of them."""
    folder.mkdir()
    (folder / "film.mp4").write_bytes(b"")
    Image.new("1", (2048, 2048)).save(folder / "wide.png")
    enlarged = {"scene": "room", "size": None, "preset": "cpu", "split": "all", "seed": 0, "enlargement": {}}
    for name, command, arguments in (
        ("run", "distill", {**enlarged, "enlargement": None}), ("large", "distill", enlarged), ("other", "fix", {}),
        ("broken", "distill", {"scene": 3}),
        *((one, one, {"source": "/elsewhere"}) for one in ("fix", "enhance")),
    ):  # fmt: skip
        Run.open(folder / name, command, arguments, {}).finish({})
        write_json(folder / name / "reconstruction.json", {})
    write_json(folder / "run" / "photos" / "reconstruction.json", {})
    views, lone = f"fix {room} --task novel-view", "fix --export x"
    of_images = (f"--reference {images}", f"--scene {room}", "--references 1", "--resize release", "--tile 256",
                 "--fill-unseen", "--confidence", "--batch 2", "--compile")  # fmt: skip
    of_fixers = ("--fixer other/fixer", "--dtype fp16")
    return [
        ("fix", "Nothing to fix"),
        (f"fix {images} --task deblur", "no task called deblur"),
        (f"fix {images} --split all", "--split belongs to --scene or --task novel-view"),
        *((f"fix {images} {option}", f"{option.split()[0]} belongs to --task novel-view")
          for option in ("--trajectory spiral", "--camera c.json", "--view-diffusion x",
                         "--denoise-steps 2")),
        *((f"{views} {option}", f"{option.split()[0]} says nothing to --task novel-view")
          for option in (*of_images, *of_fixers, "--export x", "--upscale 2", "--sr bundled", "--merge-lora",
                         "--layout ours")),
        *((f"{lone} {option}", f"Without images {option.split()[0]} would say nothing")
          for option in (*of_images, "--size 48", "--upscale 2", "--sr bundled", "--seed 3", "--device cpu",
                         f"--output {folder / 'made'}")),
        *((f"fix {images} --upscale 2 {option}", f"{option.split()[0]} belongs to fixing, not to --upscale")
          for option in (*of_images, *of_fixers, "--export x")),
        (f"{views} --view-diffusion nowhere", "no view-conditioned diffusion model called nowhere"),
        (f"fix {folder / 'lost'} --task novel-view", "There is no scene"),
        (f"fix {images} --merge-lora", "--merge-lora belongs to --export"),
        (f"fix {images} --layout ours", "--layout belongs to --export"),
        (f"fix {images} --upscale 2 --sr nowhere", "super-resolver called nowhere"),
        (f"fix {folder / 'wide.png'} --upscale 16", "ask for --upscale 15 at most"),
        (f"fix {images} --export {folder / 'x'} --output {folder / 'x'}", "cannot hold both"),
        (f"distill {room} --output {folder / 'other'}", "already holds another run (difix fix)"),
        (f"distill {room} --output {folder / 'other'} --from-round 2", "already holds another run (difix fix)"),
        (f"distill {room} --output {folder / 'run'} --from-round 2", "no checkpoint of the beginning of round 2"),
        (f"finetune {images} --output {folder / 'run'}", "already holds another run (difix distill)"),
        (f"fix {folder / 'film.mp4'} --sr bundled", "make its frames images first"),
        (f"fix {folder / 'film.mp4'}", "use difix enhance"),
        (f"fix {images} --scene {room} --reference {images}", "both choose the photos"),
        (f"fix {images} --scene {folder / 'lost'}", "There is no scene"),
        (f"enhance {images} --trajectory spiral", "no run of difix distill"),
        *((f"enhance {folder / 'run'} {option}", f"leave out {option.split()[0]}")
          for option in (f"--reference {images}", "--references 1", "--size 48", "--batch 2", "--seed 3")),
        *((f"enhance {folder / 'large'} {option}", f"leave {option.split()[0]} out")
          for option in (*of_fixers, "--tile 256", "--confidence", "--compile")),
        (f"enhance {folder / 'run'} --trajectory spirall", "did you mean spiral"),
        (f"enhance {folder / 'run' / 'photos'}", "is a part of the run"),
        (f"enhance {folder / 'other'}", "not of a run of difix distill"),
        (f"enhance {folder / 'broken'}", "scene"),
        (f"enhance {images / 'lost.png'} --steady", "no image, folder or video"),
        (f"enhance {images.joinpath(sorted(os.listdir(images))[0])} --steady", "one image"),
        *((f"{command} {images} {option}", said)
          for command in ("fix", "enhance")
          for option, said in (("--references 1", "--references says how many photos count"),
                               (f"--fixer {images}", "is not a fixer"),
                               (f"--output {folder / 'film.mp4'}", "is a file"),
                               (f"--output {folder / 'run'}", "already holds another run (difix distill)"),
                               (f"--output {folder / command}", "with another source: /elsewhere, not "),
                               (f"--output {folder}", "is not empty and holds no run"),
                               (f"--output {images}", "holds the images themselves"),
                               (f"--reference {images / 'lost.png'}", "lost.png"))),
        *((f"{command} {images / 'lost'}", "no image, folder or video") for command in ("fix", "enhance")),
    ]  # fmt: skip


def _wrong_others(folder: Path, scene: Path) -> list[tuple[str, str]]:
    """Whole lines of other commands, and what is said of them."""
    pairs = folder / "pairs"
    (pairs / "train").mkdir(parents=True)
    (pairs / "data.json").write_text('{"train": {}, "test": {}}')
    (folder / "photos").mkdir()
    (folder / "full").mkdir()
    (folder / "full" / "notes.txt").write_text("")
    (folder / "film").mkdir()
    (folder / "film" / "config.json").write_text('{"format": "difixcli-video-1"}')
    (folder / "loop").symlink_to("loop")
    os.mkfifo(folder / "pipe")
    few, film, larger = "--task view-diffusion", "--task video", "--task super-resolution"
    finetune = [
        ("", "Nothing to train on"),
        (f"{folder / 'none'}", "There are no pairs"),
        (f"{folder / 'empty'}", "neither a data.json nor tars"),
        (f"{folder / 'model.txt'}", "neither a manifest in JSON nor a tar"),
        (f"{pairs} --stream", "no tars to stream"),
        (f"{pairs} --photos {folder / 'none'}", "There is no folder"),
        *(
            (f"{pairs} {option}", said)
            for option, said in (
                ("--base nowhere", "no fixer called nowhere"),
                ("--base ./nowhere", "There is no fixer nowhere"),
                ("--base tinny", "no base called tinny; did you mean tiny"),
                (f"--base {folder / 'empty'}", "is not a fixer"),
                (f"--base {folder / 'model.txt'}", "is not a fixer"),
                (f"--base {folder / 'film'}", "holds a video model"),
                (f"--output {folder / 'model.txt'}", "is a file"),
                (f"--output {folder / 'full'}", "is not empty and holds no run"),
                ("--train everything", "option train called everything"),
                ("--perceptual vgg", "option perceptual called vgg"),
                ("--learning-rate -1", "learning_rate cannot be negative"),
                ("--learning-rate inf", "--learning-rate is a number, not inf"),
                ("--ema 1", "would never learn"),
                ("--dtype fp8", "option dtype called fp8"),
                ("--dtype fp16 --device cpu", "needs a CUDA device"),
                ("--base small --gram-weight 0.5", "no network is left to judge by"),
                ("--set crops=3", "training option called crops; did you mean crop"),
                ("--set crop=64", "crop has an option of its own"),
                ("--set window", "has no value"),
                ("--set window=many", "wants a value of type int"),
                ("--set batches=0", "training option called batches"),
                ("--set validate_every=0", "validate_every must be at least 1"),
                ("--set photo_share=0.5", "is the share of --photos"),
                ("--set clip=0", "nothing would train"),
                ("--track nowhere", "tracker called nowhere"),
                ("--push-to-hub name", "is no name on the hub"),
            )
        ),
        *(
            (f"{scene} {task} {option}", f"{option.split()[0]} is for ")
            for task in (larger, few, film)
            for option in ("--train unet", "--lora-rank 4", "--stream", "--track wandb", "--gram-weight 0",
                           "--push-to-hub a/b", "--accumulate 2", "--gradient-checkpointing")
        ),
        (f"{scene} {few} --patience 3", "--patience is for other tasks"),
        (f"{folder / 'none'} {larger}", "There is no scene"),
        (f"{scene} {larger} --base tiny", "holds no super-resolver"),
        (f"{scene} {larger} --base bundled --set factor=2", "factor is the base's own"),
        (f"{scene} {larger} --base scratch --perceptual st-lpips-vgg", "cannot train too"),
        (f"{scene} {few}", "No trained view-conditioned diffusion model comes with this version"),
        (f"{scene} {few} --base nowhere", "no view-conditioned diffusion model called nowhere"),
        (f"{scene} {few} --base scratch --iterations 4 --set vae_iterations=3", "leave it out beside --set"),
        (f"{scene} {few} --base a/b --set unet_width=32", "unet_width is the base's own"),
        (f"{few} --photos {folder / 'photos'} --base scratch", "name scenes beside --photos"),
        (f"--photos {folder / 'photos'}", "No photo lies under"),
        (f"{pairs} {film} --photos {folder / 'photos'}", "--photos says nothing to video models"),
        (f"{folder / 'none'} {film}", "There are no pairs"),
        (f"{pairs} {film} --base nowhere", "no fixer called nowhere"),
    ]  # fmt: skip
    of_clusters = [
        ("--wait", "--wait is for a cluster"),
        ("--sbatch exclusive --gpus 1", "--sbatch is for a cluster"),
        ("--cluster pbs", "no cluster called pbs"),
        ("--cluster local --time 9", "--time is SLURM's"),
        ("--cluster slurm --time soon", "is no span of time"),
    ]
    curate = [
        ("--strategy sparce", "strategy called sparce; did you mean sparse"),
        ("--method splatfcto", "method called splatfcto; did you mean splatfacto"),
        ("--set pipeline.model.x", "has no value"),
        ("--set max_gaussians=many", "is not a number"),
        ("--keep falied", "filter called falied"),
        ("--image-format bmp", "image format called bmp"),
        ("--format zip", "format of pairs called zip"),
        ("--strategy clips --format webdataset", "leave --format out"),
        ("--test-scene other", "is none of the scenes"),
        (f"--output {folder / 'full'}", "is not empty and holds no run"),
        ("--partial", "--partial belongs to --merge"),
        ("--shard 2/2", "is no shard"),
        ("--split every:x", "needs a whole number"),
        ("--shift 2m", "--shift belongs to cycle and says nothing to sparse"),
        ("--stop 0.5", "--stop belongs to underfit and says nothing to sparse"),
        ("--strategy cycle --split all", "says nothing to cycle"),
        ("--strategy cycle --shift far", "is not a distance"),
        ("--strategy underfit --stop 2", "is not between 0 and 100 %"),
        *of_clusters,
    ]
    of_two = f"eval {scene / 'images'} {scene / 'images'}"
    return [
        *((f"finetune {line}", said) for line, said in finetune),
        *((f"curate {scene} {line}", said) for line, said in curate),
        *(
            (f"{line} --output {folder / 'images' / 'run'}", "already holds another run (difix distill)")
            for line in (f"curate {scene}", f"pose {scene / 'images'}")
        ),
        ("download lpips-vgc", "did you mean lpips-vgg"),
        (f"eval {scene} --metrics psnrr", "metric called psnrr"),
        (f"eval {scene / 'images'} {folder / 'photos'}", "holds no image"),
        (f"eval {scene / 'images'} {scene / 'images'} --masks {folder / 'full'}", "holds no mask NAME.png"),
        (f"eval {scene / 'images'} {scene / 'images'} --metrics fid --inception {folder / 'full'}", "is a folder"),
        *((f"eval {scene} {option}", said) for option, said in of_clusters),
        (f"eval {scene} --max-failed 1", "is no run"),
        (f"{of_two} --max-failed 1", "name one with --cluster"),
        (f"{of_two} --cluster local --wait", "--cluster measures runs"),
        (f"{of_two} --color-correct afine", "did you mean affine"),
        (f"{of_two} --inception {folder / 'model.txt'}", "is of FID alone"),
        (f"{of_two} --geometry {folder / 'full'}", "is for --protocol nerfbusters"),
        (f"{of_two} --masks {folder / 'none'}", "check its name"),
        (f"{of_two} --metrics pose-auc", "needs the cameras' poses"),
        (f"{of_two} --output {folder / 'model.txt'}", "is a file"),
        (f"curate --merge {folder / 'none'}", "holds no pairs of difix curate"),
        (f"curate --merge {folder / 'none'} {folder / 'full'}", "name it with --output"),
        (f"curate --merge {folder / 'none'} --cluster local", "needs no cluster"),
        (f"curate {scene} --split file:none.json", "exists neither here nor in"),
        (f"fix --export {folder / 'model.txt'}", "is a file"),
        (f"fix {scene / 'images'} --export {folder / 'full'}", "is not empty"),
        (f"eval {scene} --protocol other", "protocol called other; there are co3d-2view"),
        (f"eval {folder / 'none'}", "check its name"),
        *(
            (f"{line} {folder / 'loop'}", "leads back to itself")
            for line in ("curate", f"fix {scene / 'images'} --output", f"enhance {scene / 'images'} --output")
        ),
        *(
            (f"{line} {folder / 'loop'}", "is a link to nothing")
            for line in (f"pose {scene / 'images'} --output", f"{of_two} --output", "sample room")
        ),
        *(
            (f"{line} {folder / 'pipe'}", said)
            for line, said in (
                ("finetune", "There are no pairs"),
                ("finetune --task video", "There are no pairs"),
                ("distill", "is a file"),
                ("curate", "is a file"),
                ("pose", "holds no photos"),
            )
        ),
        (f"export {folder / 'empty'} -o {folder / 'a.ply'}", "holds no reconstruction"),
        (f"export {folder / 'run'} -o {folder / 'a.ply'} --world moon", "world called moon"),
        (f"export {folder / 'run'} -o {folder / 'model.txt' / 'a.ply'}", "is a file"),
        (f"fix {folder / 'photos'} --fixer nowhere", "no fixer called nowhere"),
        (f"enhance {folder / 'photos'} --fixer nowhere", "no fixer called nowhere"),
        (f"pose {folder / 'none'}", "There is no"),
        (f"pose {folder / 'full'}", "holds no photos"),
        (f"pose {folder / 'model.txt'}", "is neither a folder nor a video"),
        (f"pose {scene}", "has poses already"),
        (f"pose {scene / 'images'} --output {scene / 'images'}", "holds the photos themselves"),
        (f"pose {scene / 'images'} --output {folder / 'full'}", "is not empty and holds no run"),
        ("sample rom somewhere", "no sample scene called rom"),
    ]


def test_contradictions_are_told_before_torch(room: Path, images: Path, tmp_path: Path) -> None:
    """In a process of its own, in which neither torch nor nerfstudio is ever imported."""
    made = f"--output {tmp_path / 'made'}"
    wrong = [(f"distill {room} {line} {made}", said) for line, said in _wrong(tmp_path)]
    wrong += _wrong_images(tmp_path / "images", room, images) + _wrong_others(tmp_path, room)
    lines = [asked.split() for asked, _ in wrong]
    code = (
        "import json, sys; from typer.testing import CliRunner; from difixcli.cli import app\n"
        "for line in json.load(sys.stdin):\n"
        "    ended = CliRunner().invoke(app, line)\n"
        "    heavy = sorted({'torch', 'nerfstudio'} & set(sys.modules))\n"
        "    print(json.dumps([ended.exit_code, ended.stderr, heavy]))"
    )
    environment = {**os.environ, "PYTHONPATH": IMPORT_PATH}
    environment.pop("NERFSTUDIO_METHOD_CONFIGS", None)
    ended = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code],
        input=json.dumps(lines), env=environment, capture_output=True, text=True, check=True,
    )  # fmt: skip
    for (asked, sentence), line in zip(wrong, ended.stdout.splitlines(), strict=True):
        exit_code, said, heavy = json.loads(line)
        assert exit_code == 2 and said.startswith("Error:") and len(said.splitlines()) == 1, (asked, said)
        assert sentence in said, (asked, said)
        assert heavy == [], asked
    assert not (tmp_path / "made").exists()


def test_the_line_the_file_and_python_ask_for_the_same(tmp_path: Path) -> None:
    """One run, made by the line's file, is the line's and Python's; another by Python alone has the same bytes."""
    room = small_sample("room", tmp_path / "room", 32, {f"images/train_{i:03d}.png" for i in range(6)})
    config = tmp_path / "toy.yaml"
    named = {{"settings": "set"}.get(name, name): value for name, value in TOY.items()}
    config.write_text(json.dumps(named))  # which is YAML
    by_file = told(difix("distill", room, "--config", config, "--output", tmp_path / "run", "--json"))
    record = (tmp_path / "run" / "run.json").read_bytes()

    result = difix("distill", room, *LINE, "--output", tmp_path / "run", "--json")
    assert told(result) == by_file and "going on with an earlier run" in result.stderr

    request = DistillRequest(scene=str(room), output=tmp_path / "run", **TOY)
    assert request.run().told() == by_file
    assert (tmp_path / "run" / "run.json").read_bytes() == record

    fresh = DistillRequest(scene=str(room), output=str(tmp_path / "fresh"), **TOY).run()  # type: ignore[arg-type]
    assert fresh.results == by_file["results"] and fresh.results
    made = json.loads((tmp_path / "fresh" / "run.json").read_text())
    held = json.loads(record)
    assert (made["arguments"], made["inputs"]) == (held["arguments"], held["inputs"])
    pictures = sorted(path.relative_to(tmp_path / "run") for path in (tmp_path / "run").rglob("*.png"))
    assert pictures
    for path in pictures:
        assert (tmp_path / "fresh" / path).read_bytes() == (tmp_path / "run" / path).read_bytes(), path

    # what runs are known by: with another key or value, those that stand could not be gone on with
    assert held["arguments"] == {
        "method": "splatfacto",
        "preset": "cpu",
        "device": "cpu",
        "schedule": {"kind": "none", "photos": 2, "rounds": 0, "every": 0, "step": None, "share": 0.0},
        "seed": 5,
        "compare": False,
        "overrides": ["max_gaussians=100", "pipeline.model.sh_degree=1"],
        "targets": ["test"],
        "prior": "fixer",
        "references": None,
        "trust": "supported",
        "drop_below": 0.7,
        "terms": {"method": 1.0},
        "raised": 0.3,
        "guard": True,
        "start": None,
        "fixer": "bundled",
        "scene": str(room),
        "size": 32,
        "split": "views:3",
    }


def test_python_is_refused_what_the_line_is(room: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="--fixer says nothing to the prior video"):
        DistillRequest(scene=str(room), prior="video", fixer="other").validate()
    request = DistillRequest(scene=str(room), split="all", output=tmp_path / "made", size=32, device="cpu")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="leaves no test view"):  # which is known once the scene is read
        request.run()
    assert not (tmp_path / "made").exists()
    with pytest.raises(InputError, match="--trajectory belongs to --task novel-view"):
        FixRequest(source=room, trajectory="spiral").validate()
    with pytest.raises(InputError, match="nothing to render along a path"):
        EnhanceRequest(room, trajectory="spiral").validate()
    with pytest.raises(InputError, match="--shift belongs to cycle"):
        CurateRequest([str(room)], shift=["2m"]).validate()
    with pytest.raises(InputError, match="--time is SLURM's"):
        EvaluateRequest([room], cluster="local", time="9").validate()
    with pytest.raises(InputError, match="has poses already"):
        PoseRequest(room).validate()


@pytest.mark.parametrize("command", ["fix", "enhance"])
def test_images_are_asked_for_the_same_in_every_way(command: str, images: Path, tmp_path: Path) -> None:
    """One run, begun by a file, gone on with by the line and from Python; another, by Python alone, has its bytes."""
    new_small_fixer("tiny", seed=0).save_pretrained(tmp_path / "tiny")
    asked = {"source": str(images), "fixer": str(tmp_path / "tiny"), "reference": [str(images)], "references": 1}
    asked |= {"confidence": True, "size": 40, "tile": 256, "batch": 2, "device": "cpu", "dtype": "fp32", "seed": 5}
    (tmp_path / "toy.yaml").write_text(json.dumps(asked))
    by_file = told(difix(command, "--config", tmp_path / "toy.yaml", "--output", tmp_path / "run", "--json"))
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    pictures = {path.name: path.read_bytes() for path in (tmp_path / "run").glob("*.png")}
    assert by_file["results"]["kept"] == 0 and len(pictures) == 4

    line = (command, images, "--fixer", tmp_path / "tiny", "--reference", images, "--references", 1, "--confidence")
    line += ("--size", 40, "--tile", 256, "--batch", 2, "--device", "cpu", "--dtype", "fp32", "--seed", 5)
    result = difix(*line, "--output", tmp_path / "run", "--json")
    assert told(result)["results"]["kept"] == 2 and "going on with an earlier run" in result.stderr

    made = REQUESTS[command](**asked, output=tmp_path / "run").run()  # type: ignore[attr-defined]
    assert made.told() == told(result) and made.output == tmp_path / "run" and made.exported is None
    fresh = REQUESTS[command](**asked, output=str(tmp_path / "fresh")).run()  # type: ignore[attr-defined]
    held = json.loads((fresh.output / "run.json").read_text())
    assert (held["arguments"], held["inputs"]) == (record["arguments"], record["inputs"])
    assert {path.name: path.read_bytes() for path in fresh.output.glob("*.png")} == pictures

    # what runs are known by: with another key or value, those that stand could not be gone on with
    own = {"release_resize": False, "scene": None} if command == "fix" else {"steady": False}
    photos = [str(path) for path in sorted(images.iterdir())]
    assert record["arguments"] == own | {
        "source": str(images), "references": photos, "fixer": str(tmp_path / "tiny"), "size": 40, "confidence": True,
        "fill_seed": None, "count": 1, "tile": 256, "dtype": "torch.float32", "compiled": False,
    }  # fmt: skip


def test_figures_are_asked_for_the_same_in_every_way(images: Path, tmp_path: Path) -> None:
    """What the file, the line and Python make is the same, byte for byte."""
    config = tmp_path / "toy.yaml"
    config.write_text(f"prediction: [{images}, {images}]\nmetrics: psnr,ssim\ncolor-correct: affine\ndevice: cpu\n")
    by_file = told(difix("eval", "--config", config, "--output", tmp_path / "made", "--json"))
    written = {path.name: path.read_bytes() for path in (tmp_path / "made").iterdir()}
    line = ("eval", images, images, "--metrics", "psnr,ssim", "--color-correct", "affine", "--device", "cpu")
    assert told(difix(*line, "--output", tmp_path / "made", "--json")) == by_file
    asked: dict[str, Any] = {"prediction": [str(images)] * 2, "metrics": "psnr,ssim", "device": "cpu"}
    made = EvaluateRequest(**asked, color_correct="affine", output=tmp_path / "made").run()
    assert finite(made.told()) == by_file and made.report == tmp_path / "made" / "report.html" and not made.missing
    assert {"eval.json", "eval.csv", "report.html"} == written.keys()
    assert {path.name: path.read_bytes() for path in (tmp_path / "made").iterdir()} == written


@pytest.mark.parametrize("option", ["scene", "start", "fixer", "output"])
def test_a_name_that_is_too_long_is_refused_in_python_too(option: str, room: Path) -> None:
    """More than file systems take, in one part of a path: no OSError."""
    with pytest.raises(InputError, match="too long"):
        DistillRequest(**{"scene": str(room), option: "n" * 300}).validate()


@pytest.mark.parametrize(
    ("command", "values", "said"),
    [
        ("distill", {"views": 1}, "--views 1 is out of its bounds: at least 2"),
        ("distill", {"size": 8}, "--size 8 is out of its bounds: at least 16"),
        ("distill", {"iterations": 10**8}, "at most 10000000"),
        ("distill", {"further": 10**8}, "at most 10000000"),
        ("distill", {"upscale": 100}, "--upscale 100 is out of its bounds: at most 16"),
        ("distill", {"denoise_steps": 10**5}, "at most 1000"),
        ("finetune", {"batch": 10**6}, "at most 4096"),
        ("finetune", {"lora_rank": 10**6}, "at most 512"),
        ("finetune", {"crop": 10**6}, "at most 8192"),
        ("fix", {"upscale": 1000}, "--upscale 1000 is out of its bounds: at most 16"),
        ("fix", {"batch": 10**6}, "at most 4096"),
        ("distill", {"drop_below": 2}, "--drop-below 2.0 is out of its bounds: at most 1"),
        ("distill", {"iterations": "60"}, "--iterations is a whole number, not '60'"),
        ("distill", {"step": float("nan")}, "--step is a number, not nan"),
        ("distill", {"share": True}, "--share is a number, not True"),
        ("distill", {"compare": 1}, "--compare is True or False, not 1"),
        ("distill", {"seed": -1}, "--seed: -1 is not between 0"),
        ("distill", {"seed": None}, "--seed is a whole number, not None"),
        ("distill", {"device": "gpu"}, "There is no choice of --device called gpu"),
        ("distill", {"targets": "spiral"}, "--targets is a list, not 'spiral'"),
        ("distill", {"settings": [3]}, "--set is text, not 3"),
        ("distill", {"scene": 7}, "the scene is text, not 7"),
        ("fix", {"source": 7}, "the source is a path, not 7"),
        ("fix", {"reference": "photo.png"}, "--reference is a list, not 'photo.png'"),
        ("fix", {"resize": "releas"}, "There is no choice of --resize called releas; did you mean release"),
        ("fix", {"compiled": "yes"}, "--compile is True or False, not 'yes'"),
        ("enhance", {"source": None}, "the source is a path, not None"),
        ("enhance", {"source": "in", "fps": 0}, "--fps 0.0 is out of its bounds: at least 0.1"),
        ("enhance", {"source": "in", "dtype": "fp8"}, "There is no choice of --dtype called fp8"),
        ("curate", {"scenes": "room"}, "the scenes is a list, not 'room'"),
        ("curate", {"references": -1}, "--references -1 is out of its bounds: at least 0"),
        ("curate", {"pairs_format": 3}, "--format is text, not 3"),
        ("curate", {"memory": float("nan")}, "--memory is a number, not nan"),
        ("eval", {"prediction": Path("run")}, "the prediction is a list"),
        ("eval", {"prediction": []}, "the prediction is an empty list; name one at least"),
        ("eval", {"prediction": ["run"], "max_failed": -1}, "--max-failed -1 is out of its bounds: at least 0"),
        ("pose", {"source": "in", "frames": 2}, "--frames 2 is out of its bounds: at least 3"),
    ],
)
def test_values_that_the_line_does_not_take(command: str, values: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError) as refused:
        REQUESTS[command](**values)
    assert said in str(refused.value)


def test_an_empty_list_asks_for_nothing() -> None:
    assert DistillRequest(scene="room", targets=[], settings=()) == DistillRequest(scene="room")  # type: ignore[arg-type]


def test_the_bundled_models_are_the_package_s_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "bundled").mkdir()
    monkeypatch.chdir(tmp_path)
    DistillRequest(scene="sample:room").validate()
    DistillRequest(scene="sample:room", prior="video").validate()


def test_values_may_be_written_as_on_the_line() -> None:
    request = DistillRequest(scene=Path("room"), device="cpu", output="out", share=1, targets=("test",))  # type: ignore[arg-type]
    assert request == DistillRequest(
        scene="room", device=type(request.device).cpu, output=Path("out"), share=1.0, targets=["test"]
    )


@pytest.mark.parametrize(("name", "request_of"), sorted(REQUESTS.items()))
def test_a_request_comes_back_from_its_line(name: str, request_of: type[Request]) -> None:
    """Whatever an option is given, the words of a job's line are read as the same again."""
    group: Any = typer.main.get_command(app)
    signature = inspect.signature(function_of(name), eval_str=True)
    needed = {
        one.name: ["in"] if "list" in str(one.annotation) else "in"  # of a command over several scenes
        for one in signature.parameters.values()
        if one.default is inspect.Parameter.empty
    }
    usual = {one: _plain(needed.get(one, signature.parameters[one].default)) for one in options_of(request_of)}
    for option, (kind, info) in options_of(request_of).items():
        value = _other(kind, info, signature.parameters[option].default)
        if "list" in str(signature.parameters[option].annotation) and not isinstance(value, list):
            value = [value]  # of a command over several scenes
        read = group.commands[name].make_context(name, words(signature, {**needed, option: value})).params
        assert {one: _plain(read[one]) for one in usual} == {**usual, option: _plain(value)}, option


def _plain(value: Any) -> Any:
    """A value as it is compared: what typer gives a command, it makes of these later."""
    if isinstance(value, (list, tuple)):
        return [_plain(one) for one in value] or None
    return str(value) if isinstance(value, Path) else value


def _other(kind: Any, info: Any, default: Any) -> Any:
    """A value that an option takes and that is not its default."""
    wanted = next((one for one in get_args(kind) if one is not type(None)), kind) if get_origin(kind) else kind
    if get_origin(kind) is list or get_origin(wanted) is list:
        return ["one two", "b=3", *(["-1"] if isinstance(info, OptionInfo) else [])]
    if wanted is bool:
        return not default
    if isinstance(wanted, type) and issubclass(wanted, Enum):
        return next(one for one in wanted if one is not default)
    if wanted in (int, float):
        return wanted((info.min or 0) + 1) if info.max is None else wanted(info.max)
    return wanted("some where/it's")


def test_names_that_are_known_without_imports_are_the_registry_s(monkeypatch: pytest.MonkeyPatch) -> None:
    from difixcli.reconstruction import known_methods
    from difixcli.reconstruction.method_names import check_method_name, own_names, plug_ins
    from difixcli.reconstruction.objective import find_term
    from difixcli.reconstruction.terms import PARAMETERS

    if plug_ins():
        assert own_names() <= set(known_methods())
    else:
        assert own_names() == set(known_methods())
    monkeypatch.setenv("NERFSTUDIO_METHOD_CONFIGS", "mine=package:config")
    check_method_name("mine")
    for kind in PARAMETERS:
        assert find_term(f"{kind}:4" if kind == "low_resolution" else kind).measure
