"""The jobs of a command over several scenes: what each is, who works on it, how far it is and how it ended.

FOLDER/jobs/NAME.job.json a job's record
FOLDER/jobs/NAME.log      what its processes said, appended
FOLDER/jobs/claims/       who works on it (see `claims`)
FOLDER/jobs/submitit/     what submitit keeps of a cluster's jobs

Records are written by whoever holds the claim, so no two processes ever write one at the same time.
"""

from __future__ import annotations

import os
import platform
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from difixcli.cluster.claims import Claims
from difixcli.errors import InputError
from difixcli.runs import JOB_RECORD, JOBS, file_name, read_json, write_json
from difixcli.shapes import built

WAITING, RUNNING, DONE, FAILED, INTERRUPTED = "waiting", "running", "done", "failed", "interrupted"
DIED = "died"  # running by its record, but nobody holds it any more
_TAIL = 3


@dataclass(frozen=True)
class Job:
    """A scene's part of a command.

    `line` are the words of its command after `difix` (none: it is done within a command over all scenes), `directory`
    where that is run. `attempt` counts how often it was begun. `label`, `step`, `total` and `rate` (steps a second)
    tell of what it is doing at the moment; times are seconds since 1970.
    """

    name: str
    line: list[str] = field(default_factory=list)
    directory: str = ""
    state: str = WAITING
    attempt: int = 0
    node: str = ""
    pid: int = 0
    number: str = ""  # a cluster's own, as 4711_3
    begun: float = 0.0
    ended: float = 0.0
    label: str = ""
    step: int = 0
    total: int = 0
    rate: float = 0.0
    message: str = ""
    fault: str = ""  # a traceback where the input is not to blame

    @property
    def output(self) -> Path | None:
        """The --output of its line, if that has one."""
        return next((Path(word[9:]) for word in self.line if word.startswith("--output=")), None)


@dataclass
class Report:
    """What the process that works on a job tells of it; `failure` is set by what fails without raising.

    `write` is called when it begins with something new; what it comes to is written now and then (see `Jobs.working`).
    """

    job: Job
    failure: str = ""
    fault: str = ""
    write: Callable[[], None] | None = None
    _first: dict[str, tuple[float, int]] = field(default_factory=dict)

    def progress(self, label: str, done: int, total: int) -> None:
        """So many of `total` steps of what it is doing are done."""
        now = time.time()
        new = label not in self._first
        since, before = self._first.setdefault(label, (now, done))
        rate = (done - before) / (now - since) if now > since else 0.0
        self.job = replace(self.job, label=label, step=done, total=total, rate=round(rate, 4))
        if new and self.write is not None:
            self.write()

    def fail(self, message: str, fault: str = "") -> None:
        """It has failed, for this reason."""
        self.failure, self.fault = message, fault


class Jobs:
    """The jobs in a run's folder. `names` are those of files: `file_name` makes them."""

    def __init__(self, folder: Path) -> None:
        self.output = folder.expanduser().absolute()
        self.folder = self.output / JOBS
        self.claims = Claims(self.folder / "claims")

    def add(self, lines: Mapping[str, Sequence[str]], directory: str = "", anew: bool = False) -> None:
        """Make jobs known: names and lines. What is known of one already stays, but for its line, unless all is to be
        done `anew`; one that is done and has another line now (another scene of that name, say) waits again, and its
        command, which resumes what stands, has the last word.

        Raises InputError for a name that cannot be one.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        for name, line in lines.items():
            if file_name(name) != name or name == JOBS:
                raise InputError(f"A scene cannot be called {name} beside others; rename its folder.")
            held = self.read(name)
            if held is None or (anew and self.claims.free(name)):
                self._write(Job(name, list(line), directory))
            elif (list(held.line), held.directory) != (list(line), directory) and self.claims.free(name):
                same = _placed(held.line, held.directory) == _placed(line, directory)
                state = WAITING if held.state == DONE and not same else held.state
                self._write(replace(held, line=list(line), directory=directory, state=state))

    def read(self, name: str) -> Job | None:
        """A job's record; None where there is none. Raises InputError for one that is broken."""
        path = self._record(name)
        if not path.is_file():
            return None
        return built(Job, read_json(path), path, "it is no record of a job of difix: remove it")

    def __iter__(self) -> Iterator[Job]:
        """All jobs as their records have them, sorted by name."""
        for path in sorted(self.folder.glob(f"*{JOB_RECORD}")):
            job = self.read(path.name.removesuffix(JOB_RECORD))
            if job is not None:
                yield job

    def seen(self) -> list[Job]:
        """All jobs, sorted by name; the state of those whose process is gone is `died`."""
        return [replace(job, state=DIED) if self._abandoned(job) else job for job in self]

    def _abandoned(self, job: Job) -> bool:
        return job.state == RUNNING and self.claims.free(job.name)

    def log(self, name: str) -> Path:
        """Where its processes' words go."""
        return self.folder / f"{name}.log"

    def tail(self, name: str) -> list[str]:
        """The last lines of its log that say something."""
        path = self.log(name)
        if not path.is_file():
            return []
        with path.open("rb") as file:
            file.seek(max(path.stat().st_size - 4096, 0))
            text = file.read().decode("utf-8", "replace")
        return [line.rstrip() for line in text.splitlines() if line.strip()][-_TAIL:]

    @contextmanager
    def working(self, name: str) -> Iterator[Report | None]:
        """Work on a job; None, and the block should do nothing, where another process does.

        At the end its record says what came of it: `failed` after an exception or `Report.fail`, `interrupted` after
        a KeyboardInterrupt, else `done`. A process whose claim was taken over, because it was suspended for long, is
        told to end by SIGTERM and writes nothing.
        """
        parent = os.getppid()
        report = Report(Job(name))
        lock = threading.Lock()  # the claim's thread writes, too

        def write() -> None:
            with lock:
                self._write(report.job)

        def beat() -> None:
            write()
            if os.getppid() != parent and "DIFIX_JOB" in os.environ:  # whoever waits for the outcome is gone
                stop()

        def stop() -> None:
            os.kill(os.getpid(), signal.SIGTERM)

        claim = self.claims.take(name, beat, stop)
        if claim is None:
            yield None
            return
        try:
            held = self.read(name) or Job(name)
        except InputError:
            claim.release()
            raise
        report.job = replace(
            held, state=RUNNING, attempt=held.attempt + 1, node=_node(), pid=os.getpid(), number=_number(),
            begun=time.time(), ended=0.0, label="", step=0, total=0, rate=0.0, message="", fault="",
        )  # fmt: skip
        report.write = write
        try:
            write()
            yield report
        except KeyboardInterrupt:
            report.job = replace(report.job, state=INTERRUPTED)
            raise
        except BaseException as error:
            report.fail(report.failure or str(error) or type(error).__name__, report.fault)
            raise
        finally:
            if report.failure:
                report.job = replace(report.job, state=FAILED, message=report.failure, fault=report.fault)
            elif report.job.state == RUNNING:
                report.job = replace(report.job, state=DONE)
            report.job = replace(report.job, ended=time.time())
            try:
                if claim.held:
                    write()
            finally:
                claim.release()

    def bury(self, begun: Job, pid: int, message: str) -> None:
        """Say that the process which took up a job, as its record was then, ended without a word of its own.

        Nothing is said where it did leave one, or somebody else has taken the job up since.
        """
        held = self.read(begun.name)
        wordless = held == begun or (held is not None and held.state == RUNNING and held.pid == pid)
        claim = self.claims.take(begun.name) if wordless else None
        if claim is None:
            return
        attempt = begun.attempt + 1
        self._write(replace(begun, state=FAILED, attempt=attempt, node=_node(), message=message, ended=time.time()))
        claim.release()

    def _record(self, name: str) -> Path:
        return self.folder / f"{name}{JOB_RECORD}"

    def _write(self, job: Job) -> None:
        write_json(self._record(job.name), asdict(job))


def find_jobs(folder: Path) -> Jobs:
    """The jobs in a folder; InputError where there are none."""
    jobs = Jobs(folder)
    if not any(jobs.folder.glob(f"*{JOB_RECORD}")):
        raise InputError(f"{folder} holds no jobs of difix; name the --output of a line over several scenes.")
    return jobs


def counted(jobs: Iterable[Job]) -> dict[str, int]:
    """How many jobs are in each state."""
    found: dict[str, int] = {}
    for job in jobs:
        found[job.state] = found.get(job.state, 0) + 1
    return found


def table_row(job: Job) -> dict[str, Any]:
    """A job for machines: what `difix status --json` says of it."""
    return {
        "state": job.state,
        "doing": job.label,
        "step": job.step,
        "total": job.total,
        "rate": job.rate,
        "eta": eta(job),
        "node": job.node,
        "job": job.number,
        "attempt": job.attempt,
        "message": job.message,
    }


def eta(job: Job) -> float | None:
    """Seconds until what a job is doing at the moment is done, at its rate so far; None where that is not known."""
    return (job.total - job.step) / job.rate if job.state == RUNNING and job.rate > 0 and job.total else None


def _placed(line: Sequence[str], directory: str) -> list[str]:
    """A line's words, those that are files or folders by their whole paths."""
    paths = [Path(directory, word) for word in line]
    return [str(path.resolve()) if path.exists() else word for word, path in zip(line, paths, strict=True)]


def _node() -> str:
    """The node's name: a cluster's own, where one machine may be several of them."""
    return os.environ.get("SLURMD_NODENAME") or platform.node()


def _number() -> str:
    array, task = os.environ.get("SLURM_ARRAY_JOB_ID"), os.environ.get("SLURM_ARRAY_TASK_ID")
    return f"{array}_{task}" if array and task else os.environ.get("SLURM_JOB_ID", "")
