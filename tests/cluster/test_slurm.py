"""Scenes on a real SLURM: jobs that fail, are killed, drained, put back and preempted make what a plain run makes."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from small_scenes import small_sample

from . import slurm as real
from .slurm import Slurm, until

ROOT = Path(__file__).parents[2]
NAMES = {f"images/train_{i:03d}.png" for i in range(11)}
TOY = ["--size", "48", "--preset", "cpu", "--device", "cpu"]
PAIRS = ["--split", "every:2", "--strategy", "underfit", "--stop", "40%", *TOY, "--keep", "failed"]
LONG = 4000
"""Iterations that take long enough (half a minute) for something to happen to them."""


@pytest.fixture(scope="session")
def slurm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Slurm]:
    if why := real.missing():
        pytest.skip(f"no SLURM to test with: {why}")
    # short: the names of sockets may have 108 characters
    with Slurm(tmp_path_factory.mktemp("s"), nodes=3, cpus=2) as cluster:
        yield cluster


@pytest.fixture(scope="session")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    home = tmp_path_factory.mktemp("scenes")
    return [small_sample("room", home / name, 64, NAMES) for name in ("a", "b", "c")]


@pytest.fixture
def difix(slurm: Slurm, tmp_path: Path) -> Callable[..., subprocess.CompletedProcess]:
    """Runs the program where its jobs find SLURM."""
    environment = {
        **slurm.environment,
        "PYTHONPATH": os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]),
        "OMP_NUM_THREADS": "1",
        "NUMBA_NUM_THREADS": "1",
    }

    def run(*words: object, code: int = 0) -> subprocess.CompletedProcess:
        line = [sys.executable, "-m", "difixcli", *map(str, words)]
        made = subprocess.run(
            line, env=environment, capture_output=True, text=True, check=False, cwd=tmp_path, timeout=800
        )
        assert made.returncode == code, (made.returncode, made.stdout[-3000:], made.stderr[-3000:])
        return made

    return run


def _told(made: subprocess.CompletedProcess) -> dict:
    said: dict = json.loads(made.stdout.splitlines()[-1])
    return said


def _record(folder: Path, name: str) -> dict:
    path = folder / "jobs" / f"{name}.job.json"
    return json.loads(path.read_text()) if path.is_file() else {"state": "", "attempt": 0, "label": ""}


def _files(folder: Path) -> dict[str, bytes]:
    """Everything that is made, but for records of the run and figures of time."""
    found = [path for path in folder.rglob("*") if path.suffix == ".png" or path.name == "data.json"]
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in sorted(found)}


def _begun_again(slurm: Slurm, folder: Path, name: str, attempt: int) -> None:
    def begun() -> bool:
        slurm.hurry()
        return _record(folder, name)["attempt"] == attempt

    until(begun, 120, f"{name} is begun again")


def _in_training(folder: Path, name: str) -> bool:
    record = _record(folder, name)
    return record["state"] == "running" and record["step"] > 50


def test_failed_killed_drained_and_put_back_comes_to_a_plain_run(
    slurm: Slurm, difix: Callable, scenes: list[Path], tmp_path: Path
) -> None:
    line = ["curate", *scenes, *PAIRS, "--iterations", LONG]
    plain = tmp_path / "plain"
    difix(*line, "-o", plain)
    # a fourth is broken
    bad = shutil.copytree(scenes[1], tmp_path / "bad")
    (bad / "transforms.json").write_text('{"frames": [')
    out = tmp_path / "out"
    line += ["-o", out]
    line.insert(2, bad)
    number = difix(*line, "--cluster", "slurm", "--time", "20", "--cpus", "2", "--memory", "1").stdout.strip()
    assert number.isdecimal()
    until(lambda: all(_record(out, name)["state"] for name in "abc"), 30, "all scenes are known")
    # one is killed, without any warning
    until(lambda: _in_training(out, "a"), 240, "a trains")
    slurm.run("scontrol", "update", f"nodename={_record(out, 'a')['node']}", "state=drain", "reason=test", check=True)
    assert slurm.states()[_record(out, "a")["node"]].startswith("drng")
    os.kill(_record(out, "a")["pid"], signal.SIGKILL)
    until(lambda: _record(out, "a")["state"] == "failed", 60, "the killed one is told of")
    assert "SIGKILL" in _record(out, "a")["message"]
    slurm.run("scontrol", "update", f"nodename={_record(out, 'a')['node']}", "state=resume", check=True)
    # another is put back into the queue and goes on
    until(lambda: _in_training(out, "b"), 240, "b trains")
    before = _record(out, "b")
    slurm.run("scontrol", "requeue", before["number"], check=True)
    until(lambda: _record(out, "b")["state"] == "interrupted", 60, "it has saved")
    _begun_again(slurm, out, "b", before["attempt"] + 1)
    until(lambda: not slurm.jobs(), 600, "the queue is empty")
    states = {name: _record(out, name)["state"] for name in ("a", "b", "c", "bad")}
    assert states == {"a": "failed", "b": "done", "c": "done", "bad": "failed"}
    status = difix("status", out, "--json")
    assert {name: job["state"] for name, job in _told(status)["jobs"].items()} == states
    assert "transforms.json" in status.stderr
    assert _record(out, "b")["node"] in slurm.nodes
    # the same line tries only those that failed; the broken one fails again
    again = difix(*line, "--cluster", "slurm", "--time", "20", "--wait", "--json", code=3)
    assert list(_told(again)["results"]["failed"]) == ["bad"]
    assert [_record(out, name)["attempt"] for name in "abc"] == [2, 2, 1]
    # mended, it is like another's photos: the whole is what a plain run makes of all four
    shutil.copy(scenes[1] / "transforms.json", bad)
    assert _told(difix(*line, "--cluster", "slurm", "--time", "20", "--wait", "--json"))["results"]["failed"] == {}
    difix(*[word if word != out else plain for word in line])
    assert _files(out) == _files(plain)
    difix("curate", "--merge", out)
    assert _files(out) == _files(plain)


@pytest.mark.parametrize("sent", ["TERM", "USR1", "INT"])
def test_a_signal_saves_and_puts_back(
    sent: str, slurm: Slurm, difix: Callable, scenes: list[Path], tmp_path: Path
) -> None:
    """The run that was stopped in the middle of its training goes on from there, and ends as one that was not."""
    line = ["distill", scenes[0], "--split", "every:2", "--schedule", "none", *TOY, "--iterations", LONG]
    out = tmp_path / "out"
    number = difix(*line, "--cluster", "slurm", "-o", out, "--time", "20").stdout.strip()
    until(lambda: _in_training(out, "a-splatfacto"), 240, "it trains")
    slurm.run("scancel", f"--signal={sent}", number, check=True)
    until(lambda: _record(out, "a-splatfacto")["state"] == "interrupted", 60, "it has saved")
    step = _record(out, "a-splatfacto")["step"]
    (checkpoint,) = (out / "a" / "splatfacto" / "nerfstudio_models").glob("*.ckpt")
    saved = int(checkpoint.stem.removeprefix("step-")) + 1
    assert step <= saved < LONG  # nothing is lost
    _begun_again(slurm, out, "a-splatfacto", 2)
    until(lambda: not slurm.jobs(), 240, "the queue is empty")
    assert _record(out, "a-splatfacto")["state"] == "done"
    log = (out / "jobs" / "a-splatfacto.log").read_text()
    assert log.count("difix distill") == 2 and "going on with an earlier run" in log  # appended
    plain = tmp_path / "plain"
    difix(*line, "-o", plain)
    assert _files(out / "a" / "splatfacto") == _files(plain)


def test_what_is_cancelled_stays_so_and_a_full_job_is_many(
    slurm: Slurm, difix: Callable, scenes: list[Path], tmp_path: Path
) -> None:
    line = ["distill", *scenes, "--split", "every:2", "--schedule", "none", *TOY, "--iterations", LONG]
    out = tmp_path / "out"
    line += ["-o", out, "--cluster", "slurm", "--time", "20", "--scenes-per-job", "2", "--max-running", "1"]
    line += ["--sbatch", "comment=toy"]
    number = difix(*line).stdout.strip()
    until(lambda: _in_training(out, "a-splatfacto"), 240, "it trains")
    assert len(slurm.jobs()) == 2 and [state for state, _ in slurm.jobs().values()].count("RUNNING") == 1
    slurm.run("scancel", number, check=True)
    until(lambda: not slurm.jobs(), 120, "the queue is empty")
    assert _record(out, "a-splatfacto")["state"] == "interrupted"
    status = difix("status", out, "--json")
    assert _told(status)["states"] == {"interrupted": 1, "waiting": 2} and _told(status)["at_work"] is False
    # it goes on with another number of workers, one scene more, and a line of its own
    fourth = shutil.copytree(scenes[0], tmp_path / "d")
    line.insert(1, fourth)
    words = [word if word != "slurm" else "local" for word in line if word not in ("--sbatch", "comment=toy")]
    del words[words.index("--time") : words.index("--time") + 2]
    del words[words.index("--scenes-per-job") : words.index("--scenes-per-job") + 2]
    words[words.index("--max-running") + 1] = "2"
    said = _told(difix(*words, "--wait", "--json"))
    assert {name: job["state"] for name, job in said["jobs"].items()} == {f"{n}-splatfacto": "done" for n in "abcd"}
    assert said["jobs"]["a-splatfacto"]["attempt"] == 2 and set(said["results"]) == set(said["jobs"])
    # one table of them all, measured here and by SLURM's jobs
    line = ["eval", out, "--metrics", "psnr", "--json", "-o"]
    table = _told(difix(*line, tmp_path / "here"))
    assert set(table["scenes"]) == set("abcd")
    difix(*line, tmp_path / "there", "--cluster", "slurm", "--time", "20", "--wait")
    tables = [(tmp_path / place / "eval.json").read_text() for place in ("here", "there")]
    assert tables[0] == tables[1]


def test_slurms_refusals_are_sentences(difix: Callable, scenes: list[Path], tmp_path: Path) -> None:
    line = ["distill", *scenes, *TOY, "--cluster", "slurm", "--time", "20", "-o", tmp_path / "out"]
    made = difix(*line, "--partition", "nowhere", code=2)
    assert "partition" in made.stderr and "Traceback" not in made.stderr


def test_a_recipe_runs_to_its_table_past_a_broken_scene(slurm: Slurm, tmp_path: Path) -> None:
    from test_recipes import _toy_scene

    for place in ("train", "test"):
        _toy_scene(tmp_path / place / "a", 8, lambda i: f"images/{i:05d}.png")
    bad = shutil.copytree(tmp_path / "test" / "a", tmp_path / "test" / "bad")
    (bad / "transforms.json").write_text('{"frames": [')
    environment = {**slurm.environment, "PYTHONPATH": str(ROOT), "SMOKE": "1", "METRICS": "psnr"}
    environment |= {"METHODS": "splatfacto", "CLUSTER": "--cluster slurm --time 20", "OMP_NUM_THREADS": "1"}
    environment["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), environment["PATH"]])
    line = ["sh", ROOT / "recipes" / "dl3dv" / "run.sh", *(tmp_path / name for name in ("train", "test", "out"))]
    made = subprocess.run(
        list(map(str, line)), env=environment, cwd=tmp_path, capture_output=True, text=True, check=False, timeout=800
    )
    assert made.returncode == 3, made.stderr[-3000:]
    assert "bad-splatfacto: failed" in made.stderr and "Missing in this: bad-splatfacto" in made.stderr
    table = json.loads((tmp_path / "out" / "table-seed-0" / "eval.json").read_text())
    assert set(table["results"]) == {"plain", "fixed", "distilled", "enhanced"}
