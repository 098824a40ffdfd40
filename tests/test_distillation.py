"""The update's schedule and what a fix is allowed to change."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import random
import shutil
import subprocess
import sys
import time
import weakref
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest
from commands import difix, refused, told
from PIL import Image

from difixcli.distillation.confidence import confidence, mean_support, target
from difixcli.distillation.distill import Distillation, Settings
from difixcli.distillation.guard import make_guard
from difixcli.distillation.schedule import make_schedule, pseudo_cameras
from difixcli.errors import InputError
from difixcli.fixer import Fixer, new_small_fixer
from difixcli.reconstruction import Reconstruction, Render, known_methods
from difixcli.reconstruction.trainer import Trainer
from difixcli.reference_views import References
from difixcli.runs import Run
from difixcli.scenes import default_split_rule, load_scene, make_split
from difixcli.scenes.scene import Camera

RNG = np.random.default_rng(0)


def _camera(x: float) -> Camera:
    pose = np.eye(4)
    pose[0, 3] = x
    return Camera(pose, 50.0, 50.0, 32.0, 24.0, 64, 48)


def _render(color: np.ndarray, accumulation: float = 1.0) -> Render:
    shape = color.shape[:2]
    return Render(color, np.full(shape, accumulation, np.float32), np.ones(shape, np.float32))


def _beside(image: np.ndarray, visibility: float) -> References:
    return References([0], [image], image[None], np.full((1, *image.shape[:2]), visibility, np.float32))


@pytest.mark.parametrize(("preset", "iterations"), [("cpu", 1000), ("cpu", 2001), ("gpu", 30_000)])
def test_a_schedule_spends_exactly_its_iterations(preset: str, iterations: int) -> None:
    schedule = make_schedule(preset, False, iterations, None)
    assert schedule.iterations == iterations
    assert schedule.finished_rounds(schedule.start - 1) == -1
    assert schedule.finished_rounds(schedule.start) == 0
    assert schedule.finished_rounds(iterations - 1) == schedule.rounds - 1
    assert schedule.finished_rounds(iterations) == schedule.rounds


def test_every_kind_of_schedule_spends_the_same_iterations() -> None:
    plain, once = (make_schedule("cpu", True, 1500, kind=kind) for kind in ("none", "one-shot"))
    progressive = make_schedule("cpu", True, 1500)
    assert plain.iterations == once.iterations == progressive.iterations == 1500
    assert (plain.rounds, once.rounds, progressive.rounds) == (0, 1, 5)
    assert once.step is None and once.start == progressive.start and plain.start == 1500
    assert plain.finished_rounds(1500) == 0
    taken_up = make_schedule("gpu", True, 30_000, started=True)
    assert taken_up.start == 0 and taken_up.iterations <= 30_000


def test_options_that_say_nothing_to_a_schedule_are_refused() -> None:
    with pytest.raises(InputError, match="--step says nothing"):
        make_schedule("cpu", True, 100, kind="one-shot", step=0.1)
    with pytest.raises(InputError, match="--share says nothing"):
        make_schedule("cpu", True, 100, kind="none", share=0.1)
    with pytest.raises(InputError, match="progressive"):
        make_schedule("cpu", True, 100, kind="progresive")
    for images, share in ((True, 1.5), (False, 0.7), (True, 0.0)):
        with pytest.raises(InputError, match="share"):
            make_schedule("cpu", images, 100, share=share)
    with pytest.raises(InputError, match="positive"):
        make_schedule("cpu", True, 100, step=-1.0)


def test_too_many_rounds_are_refused() -> None:
    for iterations, rounds in ((10, 20), (12, 5), (40, 0)):
        with pytest.raises(InputError, match="cannot be shared"):
            make_schedule("cpu", False, iterations, rounds)


def test_pseudo_views_start_at_the_nearest_photo_and_reach_their_targets() -> None:
    train, targets = [_camera(0.0), _camera(5.0)], [_camera(1.2), _camera(3.9)]
    along = [[c.position[0] for c in pseudo_cameras(train, targets, 0.5 * n)] for n in range(5)]
    assert along[0] == [0.0, 5.0]
    assert along[1] == pytest.approx([0.5, 4.5])
    assert along[2] == pytest.approx([1.0, 4.0])
    assert along[3] == along[4] == pytest.approx([1.2, 3.9])
    assert [c.position[0] for c in pseudo_cameras(train, targets, None)] == [1.2, 3.9]  # one-shot


def test_a_fix_does_not_soften_what_it_trains() -> None:
    photo = 0.4 + 0.2 * RNG.random((48, 64, 3)).astype(np.float32)
    soft = 0.7 * photo + 0.3 * photo.mean()
    # the render was sharp: its detail stays, the fix's tone counts
    kept = target(_render(photo), soft - 0.1)
    assert kept.std() > 0.97 * photo.std() and kept.mean() == pytest.approx(photo.mean() - 0.1, abs=1e-3)
    # the render was soft: the fix's detail is what training gets
    assert np.abs(target(_render(soft), photo) - photo).mean() < 0.1 * np.abs(soft - photo).mean()


def test_a_fix_counts_as_far_as_a_reference_supports_it() -> None:
    photo = np.full((48, 64, 3), 0.6, np.float32)
    floater = np.full_like(photo, 0.2)
    assert confidence(_render(floater), photo, _beside(photo, 1.0)).mean() > 0.9
    # where no reference shows anything a fix may mend the tone, not repaint
    assert confidence(_render(floater), photo, _beside(photo, 0.0)).mean() < 0.1
    assert confidence(_render(photo - 0.01), photo, _beside(photo, 0.0)).mean() > 0.9
    # a coloured block that no reference shows: the release's poisoned fixes
    block = photo.copy()
    block[:24, :, 0] = 1.0
    weight = confidence(_render(photo), block, _beside(photo, 1.0))
    assert weight[4:20].mean() < 0.35


def test_support_is_judged_where_the_render_shows_something() -> None:
    photo = np.full((48, 64, 3), 0.6, np.float32)
    half = _render(photo)
    half.accumulation[:, 32:] = 0
    weight = confidence(half, photo, _beside(photo, 1.0))
    assert weight.mean() < 0.6 and mean_support(half, weight) > 0.95
    block = photo.copy()
    block[:24, :, 0] = 1.0
    assert mean_support(_render(photo), confidence(_render(photo), block, _beside(photo, 1.0))) < 0.7
    assert mean_support(_render(photo, 0.0), np.zeros((48, 64), np.float32)) == 0


def test_nothing_is_trusted_where_the_render_was_empty() -> None:
    photo = np.full((48, 64, 3), 0.6, np.float32)
    assert confidence(_render(photo * 0, accumulation=0.0), photo, _beside(photo, 1.0)).max() == 0


# The guard


def test_held_back_photos_are_few_spread_and_the_same_every_time() -> None:
    assert make_guard(range(7), None, None).held == ()  # too few to spare one: those that train are looked at
    assert make_guard(range(7), None, None).frames == (0, 2, 4, 6)
    assert make_guard(range(3), None, None).frames == (0, 1, 2)
    assert len(make_guard(range(20), None, None).held) == 1
    held = make_guard(range(100), None, None).held
    assert held == (10, 30, 50, 70, 90) == make_guard(reversed(range(100)), None, None).held
    for text, count in (("2", 2), ("0.2", 2), ("20%", 2), ("0", 0), ("0.01", 1)):
        assert len(make_guard(range(10), text, None).held) == count, text
    for text in ("-1", "1.5", "many", "100%", "nan"):
        with pytest.raises(InputError, match=r"--holdout"):
            make_guard(range(10), text, None)
    with pytest.raises(InputError, match="two must remain"):
        make_guard(range(3), "2", None)


def test_the_guard_accepts_within_its_bound() -> None:
    guard = make_guard(range(7), None, "0.1")
    assert guard.accepts(20.0, 19.91) and not guard.accepts(20.0, 19.89)
    assert not guard.accepts(20.0, math.nan)  # the model has burst
    assert make_guard(range(7), None, "off").accepts(20.0, 1.0)
    # photos that train lose a little when they are drawn less often
    assert make_guard(range(7), None, None).bound > make_guard(range(7), "1", None).bound


# Whole runs at toy size

TOY = ("--iterations", "60", "--size", "48", "--set", "max_gaussians=400", "--rounds", "3")


@pytest.fixture(scope="session")
def room(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from difixcli.scenes.sample import cached_sample

    folder = tmp_path_factory.mktemp("scene") / "room"
    shutil.copytree(cached_sample("room"), folder)
    return folder


@pytest.fixture(scope="session")
def fixer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return new_small_fixer("tiny", seed=0).save_pretrained(tmp_path_factory.mktemp("fixer") / "tiny")


def rounds_of(folder: Path) -> list[dict]:
    return [json.loads(path.read_text()) for path in sorted(folder.glob("rounds/[0-9][0-9]/round.json"))]


def test_a_camera_path_needs_no_held_out_photo(room: Path, fixer: Path, tmp_path: Path) -> None:
    line = ["distill", room, "--fixer", fixer, *TOY, "--targets", "spiral:3", "--split", "all", "--json", "--compare"]
    result = difix(*line, "--output", tmp_path / "run")
    said = told(result)
    # 32 photos train, two of them are held back: the figures are of their views before they came back
    assert "No photo is held out" in result.stderr and "2 held-back photos" in result.stderr
    assert set(said["results"]) == {"plain", "distilled", "enhanced"}
    held = {Path(name).stem for name in rounds_of(tmp_path / "run")[0]["guard"]["photos"]}
    assert len(held) == 2
    for variant in ("truth", "plain", "distilled", "enhanced"):
        shown = {path.stem for path in (tmp_path / "run" / "renders" / variant).glob("*.png")}
        assert len(shown) == 2 and all(any(stem in one for one in shown) for stem in held), (shown, held)
    for variant in ("plain", "distilled", "enhanced"):
        assert len(list((tmp_path / "run" / "path" / variant).glob("spiral-3-*.png"))) == 3
    for record in rounds_of(tmp_path / "run"):
        assert len(record["views"]) == 3 and not any(view["frame"] for view in record["views"])
        for view in record["views"]:  # what is held back is no reference: the check would praise itself
            assert not held & {Path(name).stem for name in [*view["references"], view["nearest"]]}


def test_targets_that_cannot_be(room: Path, fixer: Path, tmp_path: Path) -> None:
    line = ["distill", room, "--fixer", fixer, *TOY, "--output", tmp_path / "run"]
    refused(difix(*line, "--split", "all"), "all", "test")
    refused(difix(*line, "--targets", "spirall"), "spirall", "spiral")
    refused(difix(*line, "--targets", tmp_path / "none.json"), "none.json")
    refused(difix(*line, "--schedule", "oneshot"), "oneshot", "one-shot")
    refused(difix(*line, "--trust", "some"), "some", "supported")
    refused(difix(*line, "--guard", "much"), "much", "off")
    refused(difix(*line, "--holdout", "30"), "30", "two must")
    refused(difix(*line, "--from-round", "2"), "--from-round")
    refused(difix(*line, "--start", tmp_path / "nothing"), "nothing")
    for option in ("--holdout", "--guard", "--drop-below"):
        refused(difix(*line[:-4], "--schedule", "none", option, "1", *line[-2:]), option, "none")
    refused(difix(*line, "--trust", "all", "--drop-below", "0.5"), "--drop-below", "--trust all")
    assert not (tmp_path / "run").exists()


def test_what_is_plainly_wrong_is_told_without_torch(room: Path, tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("")
    distill, curate = ["distill", str(room)], ["curate", str(room)]
    wrong = [
        ["distill", str(tmp_path / "none")],
        ["distill", "sample:kitchen"],
        [*distill, "--start", str(tmp_path / "none")],
        [*distill, "--output", str(file)],
        [*distill, "--output", str(file / "run")],
        *([*distill, "--split", rule] for rule in ("evry:4", "every:x", "groups:0", "names:", "clusters:2", "file:")),
        *([*distill, "--targets", aim] for aim in ("spirall", "spiral:x", "shift:far", str(tmp_path / "none.json"))),
        [*distill, "--schedule", "oneshot"],
        [*distill, "--trust", "some"],
        [*distill, "--guard", "much"],
        [*distill, "--holdout", "many"],
        ["curate", str(tmp_path / "none")],
        [*curate, "--split", "every:x"],
        [*curate, "--shard", "4/4"],
        [*curate, "--output", str(file)],
        ["export", str(tmp_path), "-o", str(tmp_path / "a.ply")],
    ]
    code = (
        "import json, sys; from typer.testing import CliRunner; from difixcli.cli import app\n"
        "codes = [CliRunner().invoke(app, line).exit_code for line in json.loads(sys.argv[1])]\n"
        "assert set(codes) == {2}, codes\n"
        "assert not {'torch', 'nerfstudio'} & set(sys.modules)"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    subprocess.run([sys.executable, "-W", "ignore", "-c", code, json.dumps(wrong)], env=environment, check=True)


def test_no_round_is_plain_training(room: Path, fixer: Path, tmp_path: Path) -> None:
    """`--schedule none` trains exactly what a comparison trains, whether or not photos are held back there."""
    line = ["distill", room, "--fixer", fixer, *TOY[:-2], "--json"]
    plain = told(difix(*line, "--schedule", "none", "-o", tmp_path / "none"))["results"]
    assert set(plain) == {"plain", "enhanced"}
    for holdout in ("0", "2"):
        both = told(difix(*line, "--rounds", "2", "--compare", "--holdout", holdout, "-o", tmp_path / holdout))
        assert both["results"]["plain"] == plain["plain"]
        assert both["results"]["distilled"] != plain["plain"]


def test_rounds_go_on_from_an_existing_run(room: Path, fixer: Path, tmp_path: Path) -> None:
    line = ["distill", room, "--fixer", fixer, "--size", "48", "--set", "max_gaussians=400", "--json"]
    before = told(difix(*line, "--schedule", "none", "--iterations", "60", "-o", tmp_path / "before"))["results"]
    line += ["--start", tmp_path / "before", "--iterations", "10", "--rounds", "2"]
    result = difix(*line, "--compare", "-o", tmp_path / "after")
    said = told(result)
    assert "photos alone" not in result.stderr and "24 training photos" not in said["rounds"]["photos"]
    assert [record["schedule"]["start"] for record in rounds_of(tmp_path / "after")] == [0, 0]
    for variant in ("plain", "distilled"):  # ten steps do not undo sixty
        assert said["results"][variant]["psnr"] == pytest.approx(before["plain"]["psnr"], abs=1.5)
    assert said["results"]["plain"] != said["results"]["distilled"]
    refused(difix(*line, "--holdout", "2", "-o", tmp_path / "other"), "--holdout", "--start")
    # what is written beside the model it began from does not make it another run; that it knows test photos is said
    for name in ("eval.json", "rounds/01/step-000000001.ckpt"):
        (tmp_path / "before" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "before" / name).write_text("{}")
    assert told(difix(*line, "--compare", "-o", tmp_path / "after"))["results"] == said["results"]
    assert "this split holds out" not in result.stderr
    again = difix(*line, "--split", "every:3", "-o", tmp_path / "leaky")
    assert told(again) and "this split holds out" in " ".join(again.stderr.split())


def test_rounds_that_the_guard_takes_back_change_nothing(
    room: Path, fixer: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A guard that nothing can please leaves plain training, to the last pixel: rolling back is exact, and gives the
    model up before the one it goes back to is built.
    """
    known_methods()  # as the command does: nerfstudio's import keeps the frames that it was called from
    built: list[weakref.ref] = []
    build = Trainer._build

    def watched(self: Trainer, *arguments: object) -> None:
        assert not [one for one in built if one() is not None]
        build(self, *arguments)  # type: ignore[arg-type]
        built.append(weakref.ref(self.pipeline))

    monkeypatch.setattr(Trainer, "_build", watched)
    line = ["distill", room, "--fixer", fixer, *TOY, "--compare", "--json", "--holdout", "0"]
    scene = load_scene(str(room), 48)
    split = make_split(scene, default_split_rule(scene))
    schedule = make_schedule("cpu", True, 60, 3)
    settings = Settings("splatfacto", "cpu", "cpu", schedule, 0, True, ["max_gaussians=400"], holdout="0")
    with pytest.raises(InputError, match="kind of trust"):
        Distillation(scene, split, dataclasses.replace(settings, trust="some"))
    distillation = Distillation(scene, split, settings)
    distillation.guard = dataclasses.replace(distillation.guard, bound=-50.0)
    run = Run.open(tmp_path / "run", "distill", {}, {})
    said: list[str] = []
    results = distillation.run(
        Fixer.from_pretrained(fixer), run, lambda *_: nullcontext(lambda done: None), said.append
    )
    assert results["distilled"] == results["plain"]
    assert sum("rolled back" in line for line in said) == 6
    assert len(built) == 1 + 6 + 1
    assert len(list((tmp_path / "run" / "rounds").glob("*-rejected-*"))) == 6
    records = rounds_of(tmp_path / "run")
    assert all(record["attempt"] == 3 and record["share"] == 0 and not record["views"] for record in records)
    assert run.record["rounds"]["rolled_back"] == 6
    first, second = (tmp_path / "run" / "rounds" / f"01-rejected-{n}" / "round.json" for n in (1, 2))
    first, second = json.loads(first.read_text()), json.loads(second.read_text())
    assert second["share"] == first["share"] / 2 and second["travelled"] == first["travelled"] / 2
    # the same with a guard that is content
    told(difix(*line, "-o", tmp_path / "content"))
    assert not list((tmp_path / "content" / "rounds").glob("*-rejected-*"))


def test_going_back_to_a_round_gives_the_same_run(room: Path, fixer: Path, tmp_path: Path) -> None:
    line = ["distill", room, "--fixer", fixer, *TOY, "--json", "--holdout", "2", "-o", tmp_path / "run"]
    first = told(difix(*line))["results"]
    pictures = _pictures(tmp_path / "run")
    for number in ("3", "1"):
        again = difix(*line, "--from-round", number)
        assert told(again)["results"] == first
        assert f"round {number}/3: 8 views" in again.stderr and "photos alone" not in again.stderr
        assert _pictures(tmp_path / "run") == pictures
    refused(difix(*line, "--from-round", "4"), "round 4", "1, 2, 3")
    assert json.loads((tmp_path / "run" / "run.json").read_text())["state"] == "done"


def test_going_back_is_safe_from_other_processes_and_from_kills(
    room: Path, fixer: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from difixcli.distillation.rounds import Rounds

    line = ["distill", room, "--fixer", fixer, *TOY, "--json", "--holdout", "0", "-o", tmp_path / "run"]
    first = told(difix(*line))["results"]
    other = (
        "import fcntl, sys; f = open(sys.argv[1], 'a'); fcntl.lockf(f, fcntl.LOCK_EX); print(1, flush=True); input()"
    )
    command = [sys.executable, "-c", other, str(tmp_path / "run" / ".run.json.lock")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None and holder.stdout.readline()
        pictures = _pictures(tmp_path / "run")
        refused(difix(*line, "--from-round", "1"), "Another process")
        assert _pictures(tmp_path / "run") == pictures
        holder.communicate("\n")

    def stopped(self: Rounds, number: int) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:  # killed when the checkpoint is back and the later rounds are still there
        patch.setattr(Rounds, "forget_from", stopped)
        assert difix(*line, "--from-round", "2").exit_code == 130
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    assert record["state"] == "running" and not record["results"]
    assert told(difix(*line))["results"] == first


def test_rounds_of_one_iteration_keep_the_held_back_views(room: Path, fixer: Path, tmp_path: Path) -> None:
    line = ["distill", room, "--fixer", fixer, "--iterations", "5", "--size", "48", "--set", "max_gaussians=400"]
    line += ["--split", "all", "--targets", "spiral:2", "--holdout", "2", "--rounds", "2", "--json"]
    assert set(told(difix(*line, "-o", tmp_path / "run"))["results"]) == {"distilled", "enhanced"}


def test_fixes_below_the_bound_are_dropped_and_counted(room: Path, fixer: Path, tmp_path: Path) -> None:
    line = ["distill", room, "--fixer", fixer, *TOY, "--json", "--compare", "--holdout", "0"]
    result = difix(*line, "--drop-below", "1", "-o", tmp_path / "run")
    said = told(result)
    assert said["rounds"]["dropped"] == 24 and "8 fixes dropped" in result.stderr
    assert said["results"]["distilled"] == said["results"]["plain"]  # nothing was left to learn from
    assert all(view["dropped"] for record in rounds_of(tmp_path / "run") for view in record["views"])


def _pictures(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(folder.rglob("*.png"))}


@pytest.mark.parametrize("method", ["splatfacto", "nerfacto"])
def test_photos_held_back_are_not_drawn(method: str, room: Path, tmp_path: Path) -> None:
    """Their photos replaced by noise, training is the same while they are held back, and differs when they return."""
    scene = load_scene(str(room), 48)
    train, held = list(range(6)), (2, 5)
    noisy = []
    for i, frame in enumerate(scene.frames):
        path = frame.image_path
        if i in held:
            path = tmp_path / f"noise-{i}.png"
            size = Image.open(frame.image_path).size
            Image.fromarray(RNG.integers(0, 255, (size[1], size[0], 3), dtype=np.uint8)).save(path)
        noisy.append(dataclasses.replace(frame, image_path=path))
    scenes = scene, dataclasses.replace(scene, frames=noisy)
    settings = ["seed_depth_mult=0", "max_gaussians=400"]
    views = []
    for number, one in enumerate(scenes):
        made = Reconstruction.create(
            dataclasses.replace(one, points=one.points[:0], colors=one.colors[:0]),
            train,
            method=method,
            folder=tmp_path / str(number),
            preset="cpu",
            device="cpu",
            iterations=20,
            overrides=settings,
            unseen=held,
        )
        made.hold_back(held)
        made.train(8)
        away = made.render(scene.frames[0].camera).color
        made.hold_back(())
        made.train(12)
        views.append((away, made.render(scene.frames[0].camera).color))
    assert np.array_equal(views[0][0], views[1][0])
    assert not np.array_equal(views[0][1], views[1][1])
    with pytest.raises(InputError, match="Every training photo"):
        made.hold_back(train)


# Killed

KILLS = int(os.environ.get("DIFIX_TEST_KILLS", "2"))


def test_killed_at_any_moment_the_result_is_the_same(room: Path, fixer: Path, tmp_path: Path) -> None:
    def line(folder: Path) -> list[str]:
        return [
            *(sys.executable, "-W", "ignore", "-c", "from difixcli.cli import main; main()"),
            *("distill", str(room), "--fixer", str(fixer), *TOY, "--holdout", "2", "--compare", "--json"),
            *("--targets", "test", "--targets", "spiral:2", "-o", str(folder)),
        ]

    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}

    def start(folder: Path) -> subprocess.Popen[str]:
        return subprocess.Popen(
            line(folder), env=environment, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        )

    begun = time.monotonic()
    process = start(tmp_path / "whole")
    while not (tmp_path / "whole" / "run.json").is_file() and process.poll() is None:
        time.sleep(0.05)
    imports = time.monotonic() - begun
    out, _ = process.communicate()
    assert process.returncode == 0
    whole = json.loads(out.splitlines()[-1])
    seconds = time.monotonic() - begun
    moments = random.Random(0)
    for _ in range(KILLS):
        process = start(tmp_path / "killed")
        try:
            process.wait(moments.uniform(imports, imports + 0.6 * (seconds - imports)))
        except subprocess.TimeoutExpired:
            process.kill()
        process.communicate()
    process = start(tmp_path / "killed")
    out, _ = process.communicate()
    assert process.returncode == 0
    killed = json.loads(out.splitlines()[-1])
    assert killed["results"] == whole["results"] and killed["rounds"] == whole["rounds"]
    assert _pictures(tmp_path / "killed") == _pictures(tmp_path / "whole")
    assert not list((tmp_path / "killed").rglob("*.part"))
