"""Claims and jobs: many processes, kills and suspensions; commands over several scenes; signals that save first."""

from __future__ import annotations

import errno
import json
import os
import platform
import random
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from commands import IMPORT_PATH, difix, refused, told
from small_scenes import small_sample

from difixcli.cli.checking import check_options, options_end
from difixcli.cli.several import _sources, _teller, finished_runs
from difixcli.cluster import claims as claims_module
from difixcli.cluster.claims import Claims
from difixcli.cluster.jobs import FAILED, RUNNING, Job, Jobs
from difixcli.cluster.submit import Wishes, _devices, _sbatch, at_work, minutes, submit
from difixcli.cluster.worker import HELD, JOB, Worker
from difixcli.errors import InputError
from difixcli.runs import read_json, write_json

ROOT = Path(__file__).parents[1]
TOY = ["--split", "every:2", "--schedule", "none", "--iterations", "10", "--size", "48"]
TOY += ["--preset", "cpu", "--device", "cpu"]

HAMMER = """
import fcntl, os, random, sys, time
from pathlib import Path
from difixcli.cluster.claims import Claims
folder, seed = Path(sys.argv[1]), int(sys.argv[2])
draw = random.Random(seed)
claims = Claims(folder / "claims")
print("begun", flush=True)
while True:
    name = draw.choice("xyz")
    claim = claims.take(name)
    if claim is None:
        time.sleep(draw.uniform(0, 0.002))
        continue
    # the system gives this lock back at the very moment at which a process dies: it knows who is alive
    with (folder / f"{name}.truth").open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            (folder / f"violated-{os.getpid()}").write_text(claim.path.name)
            sys.exit(1)
        file.write(f"{claim.path.name}\\n")
        file.flush()
        time.sleep(draw.uniform(0, 0.01))
    claim.release()
"""


def _environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": IMPORT_PATH}


def _taken(home: Path) -> list[str]:
    """Every line that a holder wrote."""
    return [line for path in home.glob("[xyz].truth") for line in path.read_text().splitlines()]


@pytest.mark.parametrize("seed", range(2))
def test_never_two_at_once_however_many_are_killed(seed: int, tmp_path: Path) -> None:
    draw = random.Random(seed)
    started = 0

    def start() -> subprocess.Popen:
        nonlocal started
        started += 1
        line = [sys.executable, "-c", HAMMER, str(tmp_path), str(1000 * seed + started)]
        return subprocess.Popen(line, env=_environment(), stdout=subprocess.DEVNULL)

    processes = [start() for _ in range(6)]
    try:
        for _ in range(25):
            time.sleep(draw.uniform(0.05, 0.25))
            victim = draw.randrange(len(processes))
            processes[victim].kill()
            processes[victim].wait()
            processes[victim] = start()
        end = time.monotonic() + 120  # on a busy machine those that live have yet to begin
        while len(_taken(tmp_path)) <= 60 and time.monotonic() < end:
            time.sleep(0.1)
        assert all(process.poll() is None for process in processes)
    finally:
        for process in processes:
            process.kill()
            process.wait()
    assert not list(tmp_path.glob("violated-*"))
    taken = _taken(tmp_path)
    assert len(taken) == len(set(taken)) > 60  # every number was held by one process alone
    # whoever comes after all those deaths can have everything
    claims = Claims(tmp_path / "claims")
    for name in "xyz":
        claim = claims.take(name)
        assert claim is not None and claims.take(name) is None and not claims.free(name)
        claim.release()
        assert claims.free(name)


def test_one_on_another_machine_is_dead_when_it_touches_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(claims_module, "BEAT", 0.05)
    monkeypatch.setattr(claims_module, "DEAD", 1.0)
    lost: list[str] = []
    with monkeypatch.context() as elsewhere:
        elsewhere.setattr(claims_module, "_machine", lambda: "another")
        theirs = Claims(tmp_path).take("a", lost=lambda: lost.append("a"))
    assert theirs is not None
    ours = Claims(tmp_path)
    end = time.monotonic() + 2.5
    while time.monotonic() < end:  # alive: its clock may be what it likes
        assert not ours.free("a") and ours.take("a") is None
        time.sleep(0.1)
    theirs._over.set()  # as if it were suspended, or its machine gone
    theirs._thread.join()
    begun = time.monotonic()
    while (mine := ours.take("a")) is None:
        assert time.monotonic() - begun < 10
        time.sleep(0.05)
    assert time.monotonic() - begun > 0.8
    # it wakes up, and what it does then takes nothing from us
    assert not theirs.held and mine.held
    theirs._over.clear()
    theirs._live()
    assert lost == ["a"]
    theirs.release()
    assert mine.held and Claims(tmp_path).take("a") is None
    mine.release()
    assert Claims(tmp_path).free("a")


def test_a_claim_that_was_cut_off_while_it_was_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.000001").touch()  # no holder is told
    claims = Claims(tmp_path)
    assert not claims.free("a")
    monkeypatch.setattr(claims_module, "DEAD", 0.0)
    time.sleep(0.01)
    assert claims.free("a") and claims.take("a") is not None
    assert claims.free("a.b") and claims.free("[a]")  # other names


def test_a_holder_that_cannot_write_holds_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A full disk, or a server that does not answer for a while, is no reason to leave the claim to others."""
    monkeypatch.setattr(claims_module, "BEAT", 0.02)
    beats: list[int] = []

    def beat() -> None:
        beats.append(os.stat(claim.path).st_mtime_ns)
        raise OSError(errno.ENOSPC, "No space left on device")

    def refuse(*_: object) -> None:
        raise OSError(errno.ESTALE, "Stale file handle")

    claim = Claims(tmp_path).take("a", beat)
    assert claim is not None

    def wait(count: int) -> None:
        end = time.monotonic() + 20
        while len(beats) < count:
            assert time.monotonic() < end
            time.sleep(0.01)

    wait(3)
    with monkeypatch.context() as broken:
        broken.setattr(os, "utime", refuse)
        wait(len(beats) + 3)
    before = beats[-1]
    wait(len(beats) + 3)
    assert beats[-1] > before and claim.held
    asked: list[str] = []

    def unknown(path: Path) -> bool:
        asked.append(path.name)
        raise OSError(errno.ESTALE, "Stale file handle")

    with monkeypatch.context() as broken:  # nor does it know whether it still holds it
        broken.setattr(Path, "exists", unknown)
        end = time.monotonic() + 20
        while len(asked) < 3:
            assert time.monotonic() < end
            time.sleep(0.01)
    before = beats[-1]
    wait(len(beats) + 3)
    assert beats[-1] > before and claim.held
    claim.release()


def test_a_process_that_may_not_be_looked_at_may_be_alive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of another user's processes /proc may show nothing (hidepid)."""
    claim = Claims(tmp_path).take("a")
    assert claim is not None
    with monkeypatch.context() as hiding:
        hiding.setattr(claims_module, "_begun", lambda pid: "unknown")
        assert not Claims(tmp_path).free("a")
    with monkeypatch.context() as gone:
        gone.setattr(claims_module, "_begun", lambda pid: "")
        assert Claims(tmp_path).free("a")
    assert claims_module._begun(os.getpid()) not in ("", "unknown") and claims_module._begun(2**22 + 1) == ""
    claim.release()


def test_a_job_says_what_became_of_it(tmp_path: Path) -> None:
    jobs = Jobs(tmp_path)
    jobs.add({name: ["words"] for name in "abc"})
    with jobs.working("a") as report:
        assert report is not None
        report.progress("train", 5, 10)
        with Jobs(tmp_path).working("a") as other:
            assert other is None
    with jobs.working("b") as report:
        assert report is not None
        report.fail("too dark")
    with pytest.raises(KeyboardInterrupt), jobs.working("c"):
        raise KeyboardInterrupt
    with pytest.raises(InputError), jobs.working("b"):
        raise InputError("no photo")
    found = {job.name: job for job in jobs.seen()}
    assert [found[name].state for name in "abc"] == ["done", "failed", "interrupted"]
    assert (found["b"].message, found["b"].attempt) == ("no photo", 2)
    assert (found["a"].step, found["a"].total) == (5, 10) and found["a"].ended >= found["a"].begun > 0
    jobs.add({"a": ["words"], "d": []})  # what is known stays
    assert {job.name: job.state for job in jobs} == {"a": "done", "b": "failed", "c": "interrupted", "d": "waiting"}
    (tmp_path / "one" / "a").mkdir(parents=True)
    jobs.add({"a": ["distill", "one/a"]}, str(tmp_path))  # another line is not done yet
    assert jobs.read("a") is not None and jobs.read("a").state == "waiting"  # type: ignore[union-attr]
    with jobs.working("a"):
        pass
    for word, place, state in (("a", tmp_path / "one", "done"), ("a", tmp_path, "waiting")):  # the same folder or not
        jobs.add({"a": ["distill", word]}, str(place))
        assert jobs.read("a").state == state  # type: ignore[union-attr]
    with pytest.raises(InputError, match="cannot be called jobs"):
        jobs.add({"jobs": []})


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    home = tmp_path_factory.mktemp("several")
    names = {f"images/train_{i:03d}.png" for i in range(11)}
    return [small_sample("room", home / name, 48, names) for name in ("a", "b")]


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> None:
    """The program's own processes find this checkout."""
    for name, value in _environment().items():
        monkeypatch.setenv(name, value)


def _line(*words: object) -> list[str]:
    return [str(word) for word in words]


@pytest.mark.usefixtures("at_once")
def test_distilling_several_scenes(scenes: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bad = shutil.copytree(scenes[1], tmp_path / "scenes" / "bad")
    (bad / "transforms.json").write_text('{"frames": [')
    shutil.copytree(scenes[0], tmp_path / "scenes" / "a")
    (tmp_path / "list.txt").write_text("# toys\nscenes/*\n")
    line = ["distill", f"@{tmp_path / 'list.txt'}", "--method", "splatfacto", "--method", "nerfacto", *TOY]
    line += ["-o", tmp_path / "out", "--json"]
    result = difix(*line)
    assert result.exit_code == 3
    said = json.loads(result.stdout.splitlines()[-1])
    states = {name: job["state"] for name, job in said["jobs"].items()}
    assert states == {
        "a-splatfacto": "done",
        "a-nerfacto": "done",
        "bad-splatfacto": "failed",
        "bad-nerfacto": "failed",
    }
    assert said["results"]["a-nerfacto"]["plain"]["psnr"] > 5 and "bad-nerfacto" not in said["results"]
    shown = " ".join(result.stderr.split())
    assert "transforms.json is not valid JSON" in shown and "bad-nerfacto.log" in shown and "Traceback" not in shown
    # fewer may fail
    assert difix(*line, "--max-failed", "1").exit_code == 2
    # mended, the same line tries what failed, and nothing else; here by two workers
    shutil.copy(scenes[1] / "transforms.json", bad)
    kept = {path: path.stat().st_mtime_ns for path in (tmp_path / "out" / "a").rglob("*") if path.is_file()}
    workers = ["--cluster", "local", "--max-running", "2", "--wait"]
    assert set(told(difix(*line, *workers))["results"]) == set(states)
    assert {path: path.stat().st_mtime_ns for path in kept} == kept
    refused(difix(*line, "--seed", "1"), "another run")
    shown = told(difix("status", tmp_path / "out", "--json"))
    assert shown["states"] == {"done": 4}
    refused(difix("status", tmp_path), "no jobs")
    # an equal one is written by a line over one scene
    told(difix("distill", scenes[1], *TOY, "-o", tmp_path / "one", "--json"))
    for path in sorted((tmp_path / "one" / "renders").rglob("*.png")):
        of_several = tmp_path / "out" / "bad" / "splatfacto" / path.relative_to(tmp_path / "one")
        assert path.read_bytes() == of_several.read_bytes()
    # the jobs of a run that is measured are not kept in the run
    monkeypatch.chdir(tmp_path)
    measure = ["eval", tmp_path / "one", "--metrics", "psnr", "--cluster", "local", "--wait"]
    assert "plain" in told(difix(*measure, "--json"))["results"]
    assert not (tmp_path / "one" / "jobs").exists()
    refused(difix(*measure, "-o", tmp_path / "one"), "one is a run, where no jobs are kept")
    refused(difix("eval", tmp_path / "one", "--max-failed", "1"), "name one with --cluster")
    # and one run is no place for several
    refused(difix("distill", *scenes, *TOY, "-o", tmp_path / "one"), "one is one run itself")
    # jobs measure scenes and rows in the order that they are named in, as a plain line does
    measure = ["eval", *(tmp_path / "out" / s / m for m in ("splatfacto", "nerfacto") for s in ("bad", "a"))]
    measure += ["--metrics", "psnr,ssim"]
    told(difix(*measure, "--json", "-o", tmp_path / "plain"))
    told(difix(*measure, "--json", "-o", tmp_path / "jobs", "--cluster", "local", "--wait"))
    for name in ("eval.csv", "eval.json"):
        assert (tmp_path / "jobs" / name).read_text() == (tmp_path / "plain" / name).read_text()
    table = json.loads((tmp_path / "plain" / "eval.json").read_text())
    assert list(table["scenes"]) == ["bad", "a"]
    assert next(iter(table["results"])).startswith("splatfacto")


@pytest.mark.usefixtures("at_once")
def test_a_scene_that_is_added_is_one_more_folder(scenes: list[Path], tmp_path: Path) -> None:
    """A recipe's line over one scene, then over two, of which only the second is made; then the second by itself."""
    data, out = tmp_path / "data", tmp_path / "out"
    shutil.copytree(scenes[0], data / "a")
    script = f'. "$0"; over_scenes difix distill "$1"/*/ {" ".join(TOY)} --output "$2"'
    line = ["sh", "-euc", script, str(ROOT / "recipes" / "scenes.sh"), str(data), str(out)]

    def made() -> set[str]:
        subprocess.run(line, check=True, cwd=tmp_path)
        return {path.parent.relative_to(out).as_posix() for path in out.glob("*/*/run.json")}

    assert made() == {"a/splatfacto"}
    kept = {path: path.stat().st_mtime_ns for path in (out / "a").rglob("*") if path.is_file()}
    shutil.copytree(scenes[1], data / "b")
    assert made() == {"a/splatfacto", "b/splatfacto"}
    again = told(difix("distill", data / "b", *TOY, "-o", out, "--json"))
    assert set(again["jobs"]) == {"b-splatfacto"} and again["jobs"]["b-splatfacto"]["attempt"] == 1
    assert {path: path.stat().st_mtime_ns for path in kept} == kept
    assert told(difix("status", out, "--json"))["states"] == {"done": 2}


def test_a_name_stays_when_others_come(tmp_path: Path) -> None:
    first, second, third = (str(tmp_path / name / "frames") for name in "abc")
    assert _sources([first], {}) == {"frames": first}
    known = {Path(first): "frames"}
    assert _sources([third, first, second, third], known) == {"c-frames": third, "frames": first, "b-frames": second}
    assert _sources([first], known) == {"frames": first}
    assert _sources([second, third], {}) == {"b-frames": second, "c-frames": third}


def test_the_output_of_several_stands_for_its_finished_runs(tmp_path: Path) -> None:
    """Whatever takes runs; where none is finished that is said."""
    out, other = tmp_path / "out", tmp_path / "other"
    jobs = Jobs(out)
    jobs.add({f"{name}-x": ["distill", name, f"--output={out / name / 'x'}"] for name in "abc"})
    with jobs.working("b-x"):
        pass
    (tmp_path / "list.txt").write_text("out\nother\n")
    for named in ([out, other], [Path(f"@{tmp_path / 'list.txt'}")]):
        assert finished_runs(named) == ([out / "b" / "x", other], ["a-x", "c-x"])
    assert finished_runs([out.parent / f"{out.name[:-1]}*"])[0][:1] == [out / "b" / "x"]
    Jobs(other).add({"d-x": ["distill", "d", f"--output={other / 'd'}"]})
    for command in ("enhance", "eval"):
        refused(difix(command, other, "-o", tmp_path / "made"), "None of the runs is finished (d-x)")


@pytest.mark.parametrize(("most", "begun"), [(1, 0), (2, 1)])
def test_failures_of_all_that_was_handed_out_count(most: int, begun: int, tmp_path: Path) -> None:
    """Of SLURM's jobs each has a worker with one scene."""
    jobs = Jobs(tmp_path)
    jobs.add({name: ["status", str(tmp_path / "none")] for name in "abc"}, str(tmp_path))
    for name in "ab":
        with jobs.working(name) as report:
            assert report is not None
            report.fail("too dark")
    Worker(tmp_path, {"c": 0}, most, together=dict.fromkeys("abc", 0))()
    assert jobs.read("c").attempt == begun  # type: ignore[union-attr]


def test_records_are_read_once_a_pass_to_count_what_failed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    jobs, count = Jobs(tmp_path), 30
    jobs.add({f"{number:02}": [] for number in range(count)})
    for job in jobs:
        with jobs.working(job.name):
            pass
    read, names = Jobs.read, []

    def counting(self: Jobs, name: str) -> Job | None:
        names.append(name)
        return read(self, name)

    monkeypatch.setattr(Jobs, "read", counting)
    Worker(tmp_path, {f"{number:02}": 0 for number in range(count)}, max_failed=3)._work(lambda job: None)
    assert len(names) <= 3 * count


def test_workers_begin_with_scenes_of_their_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    handed_out: list[Worker] = []

    def start(folder: Path, workers: list[Worker]) -> str:
        handed_out.extend(workers)
        return "1"

    monkeypatch.setattr("difixcli.cluster.submit._local", start)
    Jobs(tmp_path).add({name: [] for name in "abcde"})
    for running, orders in ((3, ["abcde", "bcdea", "deabc"]), (9, ["abcde", "bcdea", "cdeab", "deabc", "eabcd"])):
        handed_out.clear()
        submit(tmp_path, dict.fromkeys("abcde", 0), Wishes("local", max_running=running), None, "toy")
        assert ["".join(worker.attempts) for worker in handed_out] == orders


def test_a_worker_waits_for_no_pairs_that_another_makes(
    scenes: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its process ends at once, and it takes another scene."""
    out, cpu = tmp_path / "out", ["--preset", "cpu", "--device", "cpu"]
    monkeypatch.setattr("difixcli.cluster.submit._local", lambda folder, workers: "1")
    assert difix("curate", *scenes, "--size", "48", *cpu, "--cluster", "local", "-o", out).exit_code == 0
    jobs = Jobs(out)
    line = jobs.read("a").line  # type: ignore[union-attr]
    monkeypatch.setenv(JOB, f"{out}:a")
    with jobs.working("a"):
        assert difix(*line).exit_code == HELD
    assert difix(*line).exit_code == 0  # and it is done meanwhile
    assert jobs.read("a").attempt == 1  # type: ignore[union-attr]


@pytest.mark.usefixtures("here")  # by its number it is known whose death it is
def test_a_process_that_dies_without_a_word_has_failed(scenes: list[Path], tmp_path: Path) -> None:
    """And one that is told to stop has not: the same line goes on."""
    long = [word if word != "10" else "100000" for word in TOY]
    line = _line(sys.executable, "-m", "difixcli", "distill", *scenes, *long, "-o", tmp_path / "out")
    record = tmp_path / "out" / "jobs" / "a-splatfacto.job.json"
    process = subprocess.Popen(line, cwd=tmp_path, env=_environment(), stderr=subprocess.PIPE, text=True)
    end = time.monotonic() + 240
    while not record.is_file() or read_json(record)["state"] != "running":
        assert time.monotonic() < end and process.poll() is None
        time.sleep(0.2)
    os.kill(read_json(record)["pid"], signal.SIGKILL)
    other = record.with_name("b-splatfacto.job.json")
    models = tmp_path / "out" / "b" / "splatfacto" / "config.yml"
    while read_json(other)["state"] != "running" or not models.is_file():
        assert time.monotonic() < end and process.poll() is None
        time.sleep(0.2)
    assert read_json(record)["state"] == "failed" and "SIGKILL" in read_json(record)["message"]
    time.sleep(3)
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == 143 and "Terminated" in process.communicate()[1]
    assert read_json(other)["state"] == "interrupted"
    assert list((tmp_path / "out" / "b" / "splatfacto" / "nerfstudio_models").glob("step-*.ckpt"))


def test_what_a_cluster_is_asked_for(scenes: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spans = {"90": 90, "30:30": 31, "12:00:00": 720, "1-12": 2160, "1-00:30": 1470, "0-00:00:01": 1}
    assert {text: minutes(text) for text in spans} == spans
    for wrong in ("soon", "1:2:3:4", "-5", ""):
        with pytest.raises(InputError, match="no span of time"):
            minutes(wrong)
    assert _sbatch("#SBATCH --constraint=a100") == _sbatch("constraint=a100") == ("constraint", "a100")
    assert _sbatch("--exclusive") == ("exclusive", True)
    with pytest.raises(InputError, match="no option of sbatch"):
        _sbatch("rm -rf")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,5,6,7")
    assert _devices(2, 2) == ["4,5", "6,7"] and _devices(None, 1) == ["4,5,6,7"]
    with pytest.raises(InputError, match="6 GPUs are wanted but CUDA_VISIBLE_DEVICES has 4; lower --max-running or"):
        _devices(2, 3)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    for there, gpus, workers, sentence in (
        (3, 1, 4, "4 GPUs are wanted but this machine has 3; lower --max-running or --gpus"),
        (3, 4, 1, "4 GPUs are wanted but this machine has 3; lower --gpus or leave it out"),
        (0, 1, 1, "1 GPU is wanted but this machine has none"),
    ):
        monkeypatch.setattr(torch.cuda, "device_count", lambda there=there: there)
        with pytest.raises(InputError, match=sentence):
            _devices(gpus, workers)
    assert _devices(0, 2) == ["", ""] and _devices(None, 2) == [None, None]
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)
    assert _devices(1, 3) == ["0", "1", "2"]
    line = ["distill", *scenes, *TOY, "-o", tmp_path / "out"]
    refused(difix(*line, "--wait"), "--wait is for a cluster")
    refused(difix(*line, "--cluster", "pbs"), "no cluster called pbs", "local")
    refused(difix(*line, "--cluster", "local", "--partition", "gpu"), "--partition is SLURM's")
    refused(difix(*line, "--cluster", "slurm", "--time", "soon"), "--time soon")
    refused(difix(*line, "--cluster", "slurm"), "how long a job may take")
    monkeypatch.setenv("PATH", str(tmp_path))
    refused(difix(*line, "--cluster", "slurm", "--time", "20"), "no SLURM here")


def test_options_that_cannot_be_are_told_once_before_anything_starts(scenes: list[Path], tmp_path: Path) -> None:
    """Whatever the command, and wherever the jobs would run; what is wrong with one scene alone is told by its job."""
    out = tmp_path / "out"
    images = [scene / "images" for scene in scenes]
    for place in ((), ("--cluster", "local")):
        for words, sentence in (
            (["distill", *scenes, *TOY, "--frames", "4"], "--frames belongs to --prior video"),
            (["distill", *scenes, "--prior", "video", "--step", "1"], "--step says nothing to the prior video"),
            (["distill", *scenes, *TOY, "--method", "nerfakto"], "no method called nerfakto; did you mean nerfacto"),
            (["distill", *scenes, *TOY, "--method", "nerfacto", "--method", "nerfakto"], "no method called nerfakto"),
            (["distill", *scenes, *TOY, "--set", "pipeline.modell.x=1"], "no setting of splatfacto called"),
            (["enhance", *images, "--references", "2"], "name them with --reference"),
            (["enhance", *images, "--trajectory", "spiral"], "is no run of difix distill"),
            (["curate", *scenes, "--shift", "1m"], "--shift belongs to cycle"),
            (["curate", *scenes, "--set", "pipeline.modell.x=1"], "no setting of splatfacto called"),
        ):
            result = difix(*words, *place, "-o", out)
            refused(result, sentence)
            assert result.stderr.count("Error:") == 1 and not out.exists()
    seen: list[str] = []

    def wrong() -> None:
        seen.append("wrong")
        raise InputError("Of one scene.")

    def right() -> None:
        seen.append("right")
        options_end()
        seen.append("begun")

    check_options([wrong, right, right])
    assert seen == ["wrong", "right"]
    with pytest.raises(InputError, match="Of one scene"):
        check_options([wrong, wrong])
    right()  # elsewhere nothing is held back
    assert seen[-1] == "begun"


def test_whether_what_was_handed_out_is_still_there(tmp_path: Path) -> None:
    Jobs(tmp_path).add({"a": []})
    assert at_work(tmp_path) is None
    submitted = tmp_path / "jobs" / "submitit" / "submitted.json"
    told = {"cluster": "local", "number": f"{2**22 + 1}", "node": platform.node()}
    write_json(submitted, told)
    assert at_work(tmp_path) is False
    write_json(submitted, {**told, "node": "elsewhere"})
    assert at_work(tmp_path) is None
    for broken in ({**told, "cluster": "pbs"}, {"cluster": "local"}, []):
        write_json(submitted, broken)
        refused(difix("status", tmp_path), "submitted.json", "another form")


def test_a_line_is_put_together_again() -> None:
    """Whatever a command was given is what the words of a job give it, for every option of every command."""
    import inspect
    from enum import Enum

    import typer

    from difixcli.cli import app, function_of
    from difixcli.cli.lines import words

    others = {"seed": 7, "size": 64, "gpus": 2, "share": 0.5, "drop_below": 0.25, "references": 2, "rounds": 3}
    others["tile"] = 512
    group = typer.main.get_command(app)
    for one in ("curate", "distill", "enhance", "eval"):
        signature = inspect.signature(function_of(one), eval_str=True)
        command = group.commands[one]
        values = {}
        for parameter in command.params:
            if parameter.name not in signature.parameters:
                continue
            default = signature.parameters[parameter.name].default
            kind = str(signature.parameters[parameter.name].annotation)
            if isinstance(default, bool):
                value: object = not default
            elif isinstance(default, Enum):
                value = list(type(default))[-1]
            elif parameter.name in others:
                value = others[parameter.name]
            elif "int" in kind or "float" in kind:
                value = 5
            else:
                value = ["x", "y z"] if "list" in kind else Path("x") if "Path" in kind else "some words"
            values[parameter.name] = value
        read = command.make_context(one, words(signature, values), resilient_parsing=False).params
        for name, value in values.items():
            paths = "Path" in str(signature.parameters[name].annotation) and isinstance(value, list)
            wanted = [Path(one) for one in value] if paths else value
            assert read[name] == wanted, (one, name, read[name], wanted)


def test_what_has_not_changed_is_not_said_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("difixcli.cli.several._TOLD_EVERY", 0.0)
    tell = _teller(Jobs(tmp_path))
    running = Job("room", state=RUNNING, node="one")
    for job in (Job("room"), running, running, replace(running, label="train", step=3, total=9)):
        tell(job)
    tell(replace(running, label="train", step=3, total=9))
    tell(Job("room", state=FAILED, message="no room"))
    said = [line.split(",")[0] for line in capsys.readouterr().err.splitlines() if line.startswith("room: ")]
    assert said == ["room: running on one", "room: running: train 3/9", "room: failed: no room"]


def test_what_one_machine_hands_out_another_makes_whatever_auto_is_there(
    scenes: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is the same run, whose pairs are all made alike."""
    out = tmp_path / "out"
    line = ["curate", *scenes, "--split", "every:2", "--iterations", "10", "--size", "48", "--keep", "failed"]
    handed_out: list[Worker] = []

    def sbatch(folder: Path, workers: list[Worker], *_: object) -> str:
        handed_out.extend(workers)
        return "4711"

    monkeypatch.setattr("difixcli.cluster.submit._slurm", sbatch)
    slurm = ["--cluster", "slurm", "--time", "20"]

    def elsewhere(device: object, preset: object) -> tuple[str, str]:
        return "cuda", "gpu"

    with monkeypatch.context() as there:
        there.setattr("difixcli.cli.curating.pick_device", elsewhere)
        assert difix(*line, *slurm, "-o", out).stdout.strip() == "4711"
    assert [list(worker.attempts) for worker in handed_out] == [["a"], ["b"]]
    told = json.loads((out / "run.json").read_text())
    assert (told["arguments"]["preset"], told["arguments"]["device"]) == ("auto", "auto") and "preset" not in told
    jobs = Jobs(out)
    words = {job.name: job.line for job in jobs}
    monkeypatch.chdir(jobs.read("a").directory)  # type: ignore[union-attr]
    monkeypatch.setenv(JOB, f"{out}:a")
    assert difix(*words["a"]).exit_code == 0
    assert {job.name: job.state for job in jobs} == {"a": "done", "b": "waiting"}
    assert (out / "jobs" / "submitit" / "submitted.json").is_file()
    assert list((out / "a").glob("*/render/*.png")) and read_json(out / "run.json")["preset"] == "cpu"
    with monkeypatch.context() as there:
        there.setattr("difixcli.cli.curating.pick_device", elsewhere)
        there.setenv(JOB, f"{out}:b")
        refused(difix(*words["b"]), "made with the preset cpu, and --preset auto is gpu on this machine")
    assert list((out / "a").glob("*/render/*.png"))
    # what is asked for by name is asked of SLURM's machines, not of this one
    monkeypatch.delenv(JOB)
    cuda = ["--device", "cuda", "-o", tmp_path / "cuda"]
    if not torch.cuda.is_available():
        for place in ((), ("--cluster", "local")):
            refused(difix(*line, *cuda, *place), "no CUDA device here")
    assert difix(*line, *cuda, *slurm).exit_code == 0
    assert "--device=cuda" in Jobs(tmp_path / "cuda").read("a").line  # type: ignore[union-attr]
