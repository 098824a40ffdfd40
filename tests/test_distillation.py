"""The update's schedule, whole runs at toy size, other packages' priors, and kills."""

from __future__ import annotations

import json
import os
import random
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from commands import IMPORT_PATH, difix, killed, refused, told
from small_fixers import smallest_fixer
from small_scenes import HALF_ROOM, small_sample

from difixcli.distillation.prior import known_priors
from difixcli.distillation.schedule import closing_share, make_schedule, pseudo_cameras
from difixcli.distillation.settings import PROFILES, read_terms
from difixcli.errors import InputError
from difixcli.reconstruction import PseudoView, Reconstruction
from difixcli.runs import read_image
from difixcli.scenes.scene import Camera

PLUGIN = Path(__file__).parent / "plugin_prior"


def _camera(x: float) -> Camera:
    pose = np.eye(4)
    pose[0, 3] = x
    return Camera(pose, 50.0, 50.0, 32.0, 24.0, 64, 48)


@pytest.mark.parametrize(
    ("preset", "photos", "further"), [("cpu", 1000, None), ("cpu", 999, 300), ("gpu", 30_000, None)]
)
def test_rounds_come_after_a_whole_training_on_photos(preset: str, photos: int, further: int | None) -> None:
    schedule = make_schedule(preset, photos, further)
    assert schedule.photos == photos
    assert 0 <= (further or photos) - schedule.further < schedule.rounds
    assert schedule.finished_rounds(photos - 1) == -1
    assert schedule.finished_rounds(photos) == 0
    assert schedule.finished_rounds(schedule.iterations - 1) == schedule.rounds - 1
    assert schedule.finished_rounds(schedule.iterations) == schedule.rounds
    assert schedule.end(schedule.rounds) == schedule.iterations


def test_the_end_is_on_photos_where_these_know_the_targets() -> None:
    assert make_schedule("cpu", 3000).closing == 5500
    assert make_schedule("gpu", 30_000).closing == 59_000  # half of a round
    assert make_schedule("cpu", 100, 4, 4).closing == 104  # too short to have one
    assert closing_share(0.2, [36.0, 34.0]) == 0 and closing_share(0.2, [28.0, None]) == 0.2
    assert closing_share(0.2, [32.5]) == pytest.approx(0.1)
    assert closing_share(0.2, [36.0, None]) == pytest.approx(0.1)  # each view by itself, not the mean of what is seen
    assert closing_share(0.4, []) == 0.4


def test_every_kind_of_schedule_has_the_same_photos() -> None:
    plain, once = (make_schedule("cpu", 1500, kind=kind) for kind in ("none", "one-shot"))
    progressive = make_schedule("cpu", 1500)
    assert (plain.rounds, once.rounds, progressive.rounds) == (0, 1, 3)
    assert plain.iterations == 1500 and once.iterations == progressive.iterations == 3000
    assert plain.finished_rounds(1500) == 0
    taken_up = make_schedule("gpu", 0, 30_000)
    assert taken_up.photos == 0 and taken_up.rounds == 15 and taken_up.iterations == 30_000


def test_options_that_say_nothing_to_a_schedule_are_refused() -> None:
    with pytest.raises(InputError, match="--step says nothing"):
        make_schedule("cpu", 100, kind="one-shot", step=0.1)
    for option, values in {"share": {"share": 0.1}, "further": {"further": 10}}.items():
        with pytest.raises(InputError, match=f"--{option} says nothing"):
            make_schedule("cpu", 100, kind="none", **values)
    with pytest.raises(InputError, match="progressive"):
        make_schedule("cpu", 100, kind="progresive")
    for share in (1.5, 1.0, 0.0):
        with pytest.raises(InputError, match="share"):
            make_schedule("cpu", 100, share=share)
    with pytest.raises(InputError, match="positive"):
        make_schedule("cpu", 100, step=-1.0)


def test_too_many_rounds_are_refused() -> None:
    for iterations, rounds, words in ((10, 20, "cannot be shared"), (4, 5, "cannot be shared"), (40, 0, "1 or more")):
        with pytest.raises(InputError, match=words):
            make_schedule("cpu", iterations, None, rounds)


def test_pseudo_views_leave_the_nearest_photos_and_end_at_their_targets() -> None:
    train, targets = [_camera(0.0), _camera(5.0)], [_camera(1.2), _camera(3.8)]

    def along(**values: object) -> list[list[float]]:
        schedule = make_schedule("cpu", 100, rounds=4, **values)  # type: ignore[arg-type]
        return [[c.position[0] for c in pseudo_cameras(train, targets, schedule, n)] for n in range(1, 5)]

    # in even parts of the way, however long it is in the scene's units
    for number, places in enumerate(along(), start=1):
        assert places == pytest.approx([0.3 * number, 5 - 0.3 * number])
    # the release's steps end at the target too
    steps = along(step=0.5)
    assert steps[0] == pytest.approx([0.5, 4.5]) and steps[1] == pytest.approx([1.0, 4.0])
    assert steps[2] == steps[3] == pytest.approx([1.2, 3.8])
    once = make_schedule("cpu", 100, kind="one-shot")
    assert [c.position[0] for c in pseudo_cameras(train, targets, once, 1)] == [1.2, 3.8]


def test_loss_terms_are_read_with_their_weights() -> None:
    assert read_terms(["method=0.3", "low_resolution:4=2", "l2"]) == {"method": 0.3, "low_resolution:4": 2, "l2": 1}
    for text in ("method=much", "=1", "l2=-1", "l2=inf", "l2=nan"):
        with pytest.raises(InputError, match="--loss"):
            read_terms([text])


# Whole runs at toy size

TOY = ("--iterations", "60", "--size", "48", "--set", "max_gaussians=400", "--rounds", "3")
AIMS = ("--targets", "test", "--targets", "spiral:2")
RAYS = {"splatfacto": (), "nerfacto": ("--set", "pipeline.datamanager.train_num_rays_per_batch=64")}


@pytest.fixture(scope="session")
def room(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Without the model that says who saw the seed points, as most scenes come."""
    return small_sample("room", tmp_path_factory.mktemp("scene") / "room", 48, HALF_ROOM)


@pytest.fixture(scope="session")
def fixer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return smallest_fixer().save_pretrained(tmp_path_factory.mktemp("fixer") / "tiny")


def rounds_of(folder: Path) -> list[dict]:
    return [json.loads(path.read_text()) for path in sorted(folder.glob("rounds/[0-9][0-9]/round.json"))]


def _pictures(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(folder.rglob("*.png"))}


def test_a_camera_path_needs_no_held_out_photo(room: Path, fixer: Path, tmp_path: Path) -> None:
    line = ["distill", room, "--fixer", fixer, *TOY, "--targets", "spiral:3", "--split", "all", "--json"]
    result = difix(*line, "--output", tmp_path / "run")
    assert told(result)["results"] == {} and "nothing is measured" in result.stderr
    for variant in ("plain", "fixed", "distilled", "enhanced"):
        assert len(list((tmp_path / "run" / "path" / variant).glob("spiral-3-*.png"))) == 3
    for record in rounds_of(tmp_path / "run"):
        assert len(record["views"]) == 3 and not any(view["frame"] for view in record["views"])


def test_targets_that_cannot_be(room: Path, fixer: Path, tmp_path: Path) -> None:
    line = ["distill", room, "--fixer", fixer, *TOY, "--output", tmp_path / "run"]
    refused(difix(*line, "--split", "all"), "all", "test")
    refused(difix(*line, "--targets", "spirall"), "spirall", "spiral")
    refused(difix(*line, "--targets", tmp_path / "none.json"), "none.json")
    refused(difix(*line, "--schedule", "oneshot"), "oneshot", "one-shot")
    refused(difix(*line, "--trust", "some"), "some", "supported")
    refused(difix(*line, "--profile", "publishd"), "publishd", "published")
    refused(difix(*line, "--prior", "fixr"), "fixr", "fixer")
    refused(difix(*line, "--loss", "perceptul=1"), "perceptul", "perceptual")
    refused(difix(*line, "--loss", "low_resolution:64=1"), "low_resolution:64", "64 pixels")
    refused(difix(*line, "--from-round", "2"), "--from-round")
    refused(difix(*line, "--start", tmp_path / "nothing"), "nothing")
    refused(difix(*line, "--start", room), "--further")
    none = [*line[:-4], "--schedule", "none", *line[-2:]]
    for option in (["--no-guard"], ["--drop-below", "1"], ["--further", "9"], ["--loss", "l2"], ["--compare"]):
        refused(difix(*none, *option), option[0], "none")
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
        [*distill, "--profile", "other"],
        [*distill, "--prior", "other"],
        [*distill, "--loss", "l2=much"],
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
    environment = {**os.environ, "PYTHONPATH": IMPORT_PATH}
    subprocess.run([sys.executable, "-W", "ignore", "-c", code, json.dumps(wrong)], env=environment, check=True)


@pytest.fixture(scope="module")
def compared(room: Path, fixer: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict]:
    """A run with its comparison, and what it said."""
    folder = tmp_path_factory.mktemp("compared") / "run"
    return folder, told(difix("distill", room, "--fixer", fixer, *TOY, *AIMS, "--compare", "--json", "-o", folder))


def test_photos_first_is_plain_training(compared: tuple[Path, dict], room: Path, fixer: Path, tmp_path: Path) -> None:
    """What `--schedule none` trains is what the rounds begin from, and what a run without a comparison calls plain."""
    line = ["distill", room, "--fixer", fixer, *TOY[:-2], "--json"]
    none = told(difix(*line, "--schedule", "none", "-o", tmp_path / "none"))["results"]
    assert set(none) == {"plain", "fixed"}
    alone = told(difix(*line, "--rounds", "3", *AIMS, "-o", tmp_path / "alone"))["results"]
    folder, both = compared
    assert {name: alone[name] for name in none} == none
    assert alone["distilled"] == both["results"]["distilled"]
    assert both["results"]["plain"] != none["plain"]  # trained on, as long as the rounds
    assert set(both["results"]) == {"plain", "fixed", "distilled", "enhanced"}
    for name in ("photos", "plain"):
        assert (folder / name / "config.yml").is_file()
    assert [record["accepted"] for record in rounds_of(folder)] == [True] * 3


def test_what_rounds_train_on_is_kept(compared: tuple[Path, dict]) -> None:
    folder, _ = compared
    places = []
    for record in rounds_of(folder):
        assert len(record["views"]) == 4 + 2 and record["kept"] == 0  # every round is nearer to its targets
        places.append(np.array([view["camera_to_world"] for view in record["views"]]))
        for view in record["views"]:
            size = tuple(view["lens"][:-3:-1])
            for kind in ("render", "fixed", "target", "confidence"):
                assert read_image(folder / "rounds" / view["files"][kind]).shape[:2] == size
    assert not any(np.allclose(one, other) for one, other in ((places[0], places[1]), (places[1], places[2])))


def test_a_view_that_stays_keeps_its_fix(room: Path, fixer: Path, tmp_path: Path) -> None:
    line = ["distill", room, "--fixer", fixer, *TOY, "--step", "9", "--json", "-o", tmp_path / "run"]
    told(difix(*line))
    first, *others = rounds_of(tmp_path / "run")
    assert first["kept"] == 0 and [record["kept"] for record in others] == [4, 4]
    for record in others:
        assert [view["files"] for view in record["views"]] == [view["files"] for view in first["views"]]


def test_rounds_go_on_from_an_existing_run(room: Path, fixer: Path, tmp_path: Path) -> None:
    line = ["distill", room, "--fixer", fixer, "--size", "48", "--set", "max_gaussians=400", "--json"]
    before = told(difix(*line, "--schedule", "none", "--iterations", "60", "-o", tmp_path / "before"))["results"]
    line += ["--start", tmp_path / "before", "--further", "10", "--rounds", "2"]
    result = difix(*line, "--compare", "-o", tmp_path / "after")
    said = told(result)
    assert "photos alone" not in result.stderr
    assert [record["schedule"]["photos"] for record in rounds_of(tmp_path / "after")] == [0, 0]
    for variant in ("plain", "distilled"):  # ten steps do not undo sixty
        assert said["results"][variant]["psnr"] == pytest.approx(before["plain"]["psnr"], abs=1.5)
    assert said["results"]["plain"] != said["results"]["distilled"]
    # what is written beside the model it began from does not make it another run; that it knows test photos is said
    for name in ("eval.json", "rounds/01/step-000000001.ckpt"):
        (tmp_path / "before" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "before" / name).write_text("{}")
    assert told(difix(*line, "--compare", "-o", tmp_path / "after"))["results"] == said["results"]
    assert "this split holds out" not in result.stderr
    again = difix(*line, "--split", "every:3", "-o", tmp_path / "leaky")
    assert told(again) and "this split holds out" in " ".join(again.stderr.split())


def test_going_back_to_a_round_gives_the_same_run(
    compared: tuple[Path, dict], room: Path, fixer: Path, tmp_path: Path
) -> None:
    line = ["distill", room, "--fixer", fixer, *TOY, *AIMS, "--compare", "--json", "-o", tmp_path / "run"]
    first = compared[1]["results"]
    shutil.copytree(compared[0], tmp_path / "run")
    pictures = _pictures(tmp_path / "run")
    for number in ("3", "1"):
        again = difix(*line, "--from-round", number)
        assert told(again)["results"] == first
        assert f"round {number}/3: 6 views" in again.stderr and "photos alone" not in again.stderr
        assert _pictures(tmp_path / "run") == pictures
    refused(difix(*line, "--from-round", "4"), "round 4", "1, 2, 3")
    assert json.loads((tmp_path / "run" / "run.json").read_text())["state"] == "done"


def test_going_back_is_safe_from_other_processes_and_from_kills(
    compared: tuple[Path, dict], room: Path, fixer: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from difixcli.distillation.rounds import Rounds

    line = ["distill", room, "--fixer", fixer, *TOY, *AIMS, "--compare", "--json", "-o", tmp_path / "run"]
    first = compared[1]["results"]
    shutil.copytree(compared[0], tmp_path / "run")
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


@pytest.mark.parametrize("known", [True, False])
def test_what_is_drawn_at_the_end(
    known: bool, room: Path, fixer: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Photos alone where they know the targets; stopped there, a run goes on as it would have."""
    from difixcli.distillation import schedule

    monkeypatch.setattr(schedule, "_KNOWN", (0.0, 1.0) if known else (98.0, 99.0))
    line = ["distill", room, "--fixer", fixer, *TOY, "--json", "-o", tmp_path / "run"]
    drawn: list[tuple[int, int, float]] = []
    train_to, teach = Reconstruction.train_to, Reconstruction.set_pseudo_views
    present = 0.0

    def taught(self: Reconstruction, views: Sequence[PseudoView], share: float) -> None:
        nonlocal present
        present = share if views else 0.0
        teach(self, views, share)

    def counted(self: Reconstruction, until: int, *rest: Any) -> float:
        drawn.append((self.step, until, present))
        return train_to(self, until, *rest)

    def stopped(self: Reconstruction, until: int, *rest: Any) -> float:
        if until == 120:
            train_to(self, 115, *rest)
            raise KeyboardInterrupt
        return train_to(self, until, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(Reconstruction, "set_pseudo_views", taught)
        patch.setattr(Reconstruction, "train_to", counted)
        first = difix(*line)
    last = [(100, 110, 0.2), (110, 120, 0.0)] if known else [(100, 120, 0.2)]
    assert drawn == [(0, 60, 0.0), (60, 80, 0.2), (80, 100, 0.2), *last]
    assert ("0% of the last 10 iterations" in first.stderr) == known
    pictures = _pictures(tmp_path / "run")
    with monkeypatch.context() as patch:
        patch.setattr(Reconstruction, "train_to", stopped)
        assert difix(*line, "--from-round", "3").exit_code == 130
    assert told(difix(*line))["results"] == told(first)["results"]
    assert _pictures(tmp_path / "run") == pictures


def test_fixes_below_the_bound_are_dropped_and_counted(room: Path, fixer: Path, tmp_path: Path) -> None:
    line = ["distill", room, "--fixer", fixer, *TOY, "--json", "--compare"]
    result = difix(*line, "--drop-below", "1", "-o", tmp_path / "run")
    said = told(result)
    assert said["rounds"]["dropped"] == 12 and "4 dropped" in result.stderr
    assert said["results"]["distilled"] == said["results"]["plain"]  # nothing was left to learn from
    assert all(view["dropped"] for record in rounds_of(tmp_path / "run") for view in record["views"])


@pytest.mark.parametrize("method", ["splatfacto", "nerfacto"])
def test_the_published_profile_takes_fixes_as_they_are(method: str, room: Path, fixer: Path, tmp_path: Path) -> None:
    line = ["distill", room, "--fixer", fixer, "--method", method, *TOY, *RAYS[method]]
    line += ["--profile", "published", "--json"]
    line += ["--further", "20", "--no-guard", "-o", tmp_path / "run"]
    told(difix(*line))
    share, terms = PROFILES["published"].share, PROFILES["published"].terms
    drawn = "images" if method == "splatfacto" else "rays"
    for record in rounds_of(tmp_path / "run"):
        assert record["share"] == share[drawn] and not record["kept"] and "guard" not in record
        assert all(view["terms"] == terms[drawn] and "fixed" not in view["files"] for view in record["views"])


# Other packages' priors


@pytest.fixture
def plugin(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(PLUGIN))
    assert {"test-drift", "fixer"} <= set(known_priors())


@pytest.mark.usefixtures("plugin")
@pytest.mark.parametrize("method", ["splatfacto", "nerfacto"])
def test_another_package_s_prior_keeps_its_state(method: str, room: Path, fixer: Path, tmp_path: Path) -> None:
    """Going back to a round gives the same run: what a prior has drawn and keeps goes back, too."""
    line = ["distill", room, "--fixer", fixer, "--method", method, *TOY, *RAYS[method], "--further", "24"]
    line += ["--prior", "test-drift", "--no-guard", "--json", "-o", tmp_path / "run"]
    first = told(difix(*line))["results"]
    pictures = _pictures(tmp_path / "run")
    records = rounds_of(tmp_path / "run")
    assert [record["views"][0]["figures"]["rounds_held"] for record in records] == [1, 2, 3]
    assert all(view["fresh"] and "low_resolution:2" in view["terms"] for r in records for view in r["views"])
    for number in ("2", "1") if method == "splatfacto" else ("2",):
        assert told(difix(*line, "--from-round", number))["results"] == first
        assert _pictures(tmp_path / "run") == pictures


@pytest.mark.usefixtures("plugin")
@pytest.mark.parametrize("sound", [0, 1])
def test_a_round_that_does_harm_is_taken_back(sound: int, room: Path, fixer: Path, tmp_path: Path) -> None:
    """What it has taught is gone to the last pixel, and the iterations that are left are spent without it."""
    line = ["distill", room, "--fixer", fixer, *TOY, "--prior", "test-negative", "--references", sound, "--compare"]
    line += ["--step", "9", "--share", "0.8"]
    result = difix(*line, "--further", "90", "--json", "-o", tmp_path / "run")
    said = told(result)
    assert said["rounds"]["taken_back"] == sound + 1 and said["rounds"]["accepted"] == sound
    assert said["rounds"]["handed_over"] == ("distilled" if sound else "plain")
    assert len(list((tmp_path / "run" / "rounds").glob("*-rejected"))) == 1
    assert (said["results"]["distilled"] == said["results"]["plain"]) == (not sound)
    assert ("photos alone is handed over" in " ".join(result.stderr.split())) == (not sound)
    told_off = told(difix(*line, "--further", "90", "--no-guard", "--json", "-o", tmp_path / "unguarded"))
    assert told_off["results"]["distilled"]["psnr"] < said["results"]["distilled"]["psnr"] - 1


@pytest.mark.usefixtures("plugin")
def test_priors_that_are_none(room: Path, fixer: Path, tmp_path: Path) -> None:
    line = ["distill", room, "--fixer", fixer, *TOY, "-o", tmp_path / "run"]
    refused(difix(*line, "--prior", "test-absent"), "test-absent", "propose, state, restore")
    refused(difix(*line, "--prior", "test-nothing", "--force"), "test-nothing", "of which there is none")


# Killed

KILLS = int(os.environ.get("DIFIX_TEST_KILLS", "1"))


def test_killed_at_any_moment_the_result_is_the_same(
    compared: tuple[Path, dict], room: Path, fixer: Path, forked: Path, tmp_path: Path
) -> None:
    line = ["distill", room, "--fixer", fixer, *TOY, *AIMS, "--compare", "--json", "-o", tmp_path / "run"]
    folder, whole = compared
    moments = random.Random(0)
    for share in sorted(moments.uniform(0.1, 0.7) for _ in range(KILLS)):
        killed(forked, line, tmp_path / "run", folder, share)
    again = told(difix(*line))
    assert again["results"] == whole["results"] and again["rounds"] == whole["rounds"]
    assert _pictures(tmp_path / "run") == _pictures(folder)
    assert not list((tmp_path / "run").rglob("*.part"))
