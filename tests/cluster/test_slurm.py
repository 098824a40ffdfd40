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
from commands import IMPORT_PATH
from commands import difix as here
from small_scenes import small_sample

from difixcli.reconstruction.compilation import compile_ahead

from . import slurm as real
from .slurm import Slurm, until

pytestmark = pytest.mark.timeout(7200)  # `until` says what it has waited for
ROOT = Path(__file__).parents[2]
NAMES = {f"images/train_{i:03d}.png" for i in range(7)}
TOY = ["--size", "48", "--preset", "cpu", "--device", "cpu"]
PAIRS = ["--split", "every:2", "--strategy", "underfit", "--stop", "40%", *TOY, "--keep", "failed", "--keep", "perfect"]
LONG = 2000
"""Iterations that take long enough (some seconds until 40 %) for something to happen to them."""


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
    return [small_sample("room", home / name, 48, NAMES) for name in ("a", "b", "c")]


@pytest.fixture(scope="session")
def environment(slurm: Slurm, forked: Path) -> dict[str, str]:
    """Of programs whose jobs find SLURM and this checkout, and begin at once, but for those that are called `a`.

    Who is killed is known by its number, so these are processes of their own.
    """
    compile_ahead("splatfacto", "cpu", print)  # or each of the jobs that begin together would
    path = os.pathsep.join([str(forked), slurm.environment["PATH"]])
    more = {"PATH": path, "PYTHONPATH": IMPORT_PATH, "OMP_NUM_THREADS": "1", "NUMBA_NUM_THREADS": "1"}
    return {**slurm.environment, **more, "DIFIX_TESTS_OWN": "a"}


@pytest.fixture
def difix(forked: Path, environment: dict[str, str], tmp_path: Path) -> Callable[..., subprocess.CompletedProcess]:
    """Runs the program where its jobs find SLURM."""

    def run(*words: object, code: int = 0) -> subprocess.CompletedProcess:
        line = [forked / "difix", *map(str, words)]
        made = subprocess.run(
            line, env=environment, capture_output=True, text=True, check=False, cwd=tmp_path, timeout=3600
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

    until(begun, 400, f"{name} is begun again")


def _in_training(folder: Path, name: str) -> bool:
    record = _record(folder, name)
    # the label of curation's, and of distillation's training
    training = "reconstruct" in record["label"] or record["label"] == "plain training"
    return record["state"] == "running" and record["step"] > 0 and training


def _saved(models: Path) -> int:
    """The iterations that the one checkpoint in a model's folder has behind it."""
    (checkpoint,) = models.glob("nerfstudio_models/*.ckpt")
    return int(checkpoint.stem.removeprefix("step-")) + 1


def test_failed_killed_drained_and_put_back_comes_to_a_plain_run(
    slurm: Slurm, difix: Callable, forked: Path, environment: dict[str, str], scenes: list[Path], tmp_path: Path
) -> None:
    """One array of four scenes: one is killed, two are asked to end in two ways, the fourth is broken."""
    bad = shutil.copytree(scenes[1], tmp_path / "bad")
    (bad / "transforms.json").write_text('{"frames": [')
    line = ["curate", *scenes, bad, *PAIRS, "--iterations", LONG]
    out, plain = tmp_path / "out", tmp_path / "plain"
    sent = ["-o", out, "--cluster", "slurm", "--time", "20", "--cpus", "2", "--memory", "1"]
    number = difix(*line, *sent).stdout.strip()
    assert number.isdecimal()
    assert all(_record(out, name)["state"] for name in ("a", "b", "c", "bad"))
    begun: dict[str, dict] = {}

    def strike() -> bool:
        """Each as soon as it trains."""
        for name in "abc":
            if name in begun or not _in_training(out, name):
                continue
            begun[name] = record = _record(out, name)
            if name == "a":  # killed without any warning
                os.kill(record["pid"], signal.SIGKILL)
            elif name == "b":  # its node is drained, and it is put back into the queue
                line = ["scontrol", "update", f"nodename={record['node']}", "state=drain", "reason=test"]
                slurm.run(*line, check=True)
                slurm.run("scontrol", "requeue", record["number"], check=True)
            else:  # warned that its time is over
                slurm.run("scancel", "--signal=USR1", record["number"], check=True)
        return len(begun) == 3

    until(strike, 400, "all train")
    for name in "bc":
        until(lambda name=name: _record(out, name)["state"] == "interrupted", 120, f"{name} has saved")
        assert _record(out, name)["step"] <= _saved(out / name / "models" / "underfit-every-2") < 0.4 * LONG
    until(lambda: _record(out, "a")["state"] == "failed", 60, "the killed one is told of")
    assert "SIGKILL" in _record(out, "a")["message"]
    _begun_again(slurm, out, "b", 2)
    node = begun["b"]["node"]
    assert _record(out, "b")["node"] != node and slurm.states()[node].startswith("dr")
    slurm.run("scontrol", "update", f"nodename={node}", "state=resume", check=True)
    # meanwhile, what it should come to
    words = [forked / "difix", *map(str, [*line, "-o", plain])]
    undisturbed = subprocess.Popen(
        words, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd=tmp_path
    )
    _begun_again(slurm, out, "c", 2)
    until(lambda: not slurm.jobs(), 600, "the queue is empty")
    states = {name: _record(out, name)["state"] for name in ("a", "b", "bad", "c")}
    assert states == {"a": "failed", "b": "done", "bad": "failed", "c": "done"}
    log = (out / "jobs" / "b.log").read_text()
    assert log.count("difix curate") == 2  # appended
    status = difix("status", out, "--json")
    assert {name: job["state"] for name, job in _told(status)["jobs"].items()} == states
    assert "transforms.json" in status.stderr
    # the same line tries only those that failed; the broken one fails again
    again = difix(*line, *sent, "--wait", "--json", code=3)
    assert list(_told(again)["results"]["failed"]) == ["bad"]
    assert [_record(out, name)["attempt"] for name in "abc"] == [2, 2, 2]
    assert here("curate", "--merge", out).exit_code == 3
    assert undisturbed.wait(600) == 3
    made = _files(out)
    assert made == _files(plain) and len(made) > 3 * len(NAMES)


def test_slurms_refusals_are_sentences(difix: Callable, scenes: list[Path], tmp_path: Path) -> None:
    line = ["distill", *scenes, *TOY, "--cluster", "slurm", "--time", "20", "-o", tmp_path / "out"]
    made = difix(*line, "--partition", "nowhere", code=2)
    assert "partition" in made.stderr and "Traceback" not in made.stderr


@pytest.mark.parametrize("partition", ["short", "warned"])
def test_a_more_urgent_job_takes_the_node_and_gives_it_back(
    partition: str, slurm: Slurm, difix: Callable, scenes: list[Path], tmp_path: Path
) -> None:
    """A job of a partition of higher priority preempts one in the middle of its training, which goes on after it."""
    line = ["distill", scenes[0], "--split", "every:2", "--schedule", "none", *TOY, "--iterations", LONG]
    out, node = tmp_path / "out", slurm.nodes[0]
    sent = ["--cluster", "slurm", "--time", "20", "--cpus", slurm.cpus, "--partition", partition]
    number = difix(*line, *sent, "--sbatch", f"nodelist={node}", "-o", out).stdout.strip()
    until(lambda: _in_training(out, "a-splatfacto"), 240, "it trains")
    urgent = ["sbatch", "--parsable", "--partition=urgent", f"--nodelist={node}", f"--cpus-per-task={slurm.cpus}"]
    other = slurm.run(*urgent, "--wrap", "sleep 5", check=True).strip()
    until(lambda: slurm.jobs().get(other, ("", ""))[0] == "RUNNING", 120, "the urgent job has the node")
    saved = _record(out, "a-splatfacto")
    assert saved["state"] == "interrupted" and slurm.jobs()[number][0] == "PENDING"
    assert 0 < saved["step"] <= _saved(out / "a" / "splatfacto") < LONG  # nothing is lost
    _begun_again(slurm, out, "a-splatfacto", 2)
    assert other not in slurm.jobs()
    until(lambda: not slurm.jobs(), 240, "the queue is empty")
    assert _record(out, "a-splatfacto")["state"] == "done"
    log = (out / "jobs" / "a-splatfacto.log").read_text()
    assert log.count("difix distill") == 2 and "going on with an earlier run" in log


def test_slurms_own_warning_saves_before_the_time_is_over(
    slurm: Slurm, difix: Callable, scenes: list[Path], tmp_path: Path
) -> None:
    """Nobody sends a signal but slurmctld, two minutes before the job's time is over, and up to half of one earlier.

    Jobs whose time is over are not put back, so one that is was warned in time.
    """
    iterations = 100 * LONG
    line = ["distill", scenes[0], "--split", "every:2", "--schedule", "none", *TOY, "--iterations", iterations]
    out = tmp_path / "out"
    number = difix(*line, "--cluster", "slurm", "-o", out, "--time", "20").stdout.strip()
    until(lambda: _in_training(out, "a-splatfacto"), 240, "it trains")
    # its time shall be over in one to two minutes, rather than be waited for
    gone = int(slurm.run("squeue", "-h", "-j", number, "-O", "TimeUsed:20").strip().split(":")[-2])
    slurm.run("scontrol", "update", f"jobid={number}", f"TimeLimit={gone + 2}", check=True)
    until(lambda: _record(out, "a-splatfacto")["state"] == "interrupted", 120, "it has saved")
    warned = _record(out, "a-splatfacto")
    saved = _saved(out / "a" / "splatfacto")
    assert 0 < warned["step"] <= saved < iterations  # nothing is lost
    until(lambda: slurm.jobs()[number][0] == "PENDING", 60, "it is back in the queue")
    slurm.run("scontrol", "update", f"jobid={number}", "TimeLimit=20", check=True)
    _begun_again(slurm, out, "a-splatfacto", 2)
    until(lambda: _in_training(out, "a-splatfacto"), 240, "it goes on")
    assert _record(out, "a-splatfacto")["total"] == iterations - saved  # what is left
    slurm.run("scancel", number, check=True)
    until(lambda: not slurm.jobs(), 60, "the queue is empty")
    assert "going on with an earlier run" in (out / "jobs" / "a-splatfacto.log").read_text()


@pytest.mark.long
@pytest.mark.parametrize("sent", ["TERM", "INT"])
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
    assert step <= _saved(out / "a" / "splatfacto") < LONG  # nothing is lost
    _begun_again(slurm, out, "a-splatfacto", 2)
    until(lambda: not slurm.jobs(), 240, "the queue is empty")
    assert _record(out, "a-splatfacto")["state"] == "done"
    log = (out / "jobs" / "a-splatfacto.log").read_text()
    assert log.count("difix distill") == 2 and "going on with an earlier run" in log  # appended
    plain = tmp_path / "plain"
    difix(*line, "-o", plain)
    assert _files(out / "a" / "splatfacto") == _files(plain)


@pytest.mark.long
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


@pytest.mark.long
@pytest.mark.parametrize(
    ("recipe", "arguments", "name"),
    [
        ("dl3dv", ["TRAIN", "TEST"], lambda i: f"images/{i:05d}.png"),
        ("nerfbusters", ["TEST"], lambda i: f"images/frame_{1 + i % 2}_{i:05d}.png"),
        ("rds", ["TRAIN", "TEST", "front"], lambda i: f"{('front', 'left')[i % 2]}/{i:05d}.png"),
    ],
)
def test_a_recipe_runs_to_its_table_past_a_broken_scene(
    recipe: str, arguments: list[str], name: Callable[[int], str], environment: dict[str, str], tmp_path: Path
) -> None:
    from test_recipes import _toy_scene

    for place in ("train", "test"):
        _toy_scene(tmp_path / place / "a", 8, name)
    bad = shutil.copytree(tmp_path / "test" / "a", tmp_path / "test" / "bad")
    (bad / "transforms.json").write_text('{"frames": [')
    told = {"SMOKE": "1", "METRICS": "psnr", "METHODS": "splatfacto", "CLUSTER": "--cluster slurm --time 20"}
    path = os.pathsep.join([str(Path(sys.executable).parent), environment["PATH"]])
    places = {"TRAIN": tmp_path / "train", "TEST": tmp_path / "test"}
    line = ["sh", ROOT / "recipes" / recipe / "run.sh", *(places.get(word, word) for word in arguments)]
    made = subprocess.run(
        [*map(str, line), str(tmp_path / "out")],
        env={**environment, **told, "PATH": path},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
        timeout=7000,
    )
    assert made.returncode == 3, made.stderr[-3000:]
    assert "bad-splatfacto: failed" in made.stderr and "Missing in this: bad-splatfacto" in made.stderr
    table = json.loads((tmp_path / "out" / "table-seed-0" / "eval.json").read_text())
    assert set(table["results"]) == {"plain", "fixed", "distilled", "enhanced"}
