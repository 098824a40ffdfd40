"""A worker: takes one job after another that nobody holds, each in a process of its own, until none is left.

A job that crashes or eats all memory takes nothing else with it. Workers know nothing of each other: any number of them
may be given the same jobs, and one that dies leaves its job to the others.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

from difixcli.cluster.jobs import DONE, FAILED, Job, Jobs
from difixcli.interrupts import SIGNALS, interruption

JOB = "DIFIX_JOB"
"""The environment variable that tells a process which job it is: the folder of the run, a colon and the job's name."""
HELD = 75
"""The exit code of a job's process that found another at work on it (EX_TEMPFAIL)."""
_POLL = 2.0
_PATIENCE = 0.2


@dataclass
class Worker:
    """Works on the jobs of a run's folder.

    `attempts` are the jobs it is for, and how often each had been begun when they were handed out: one that has failed
    since is not tried again. With `max_failed` it begins nothing more once more than that have failed of those that
    were handed out with them (`together`; only they by default). `gpus` are the CUDA devices it may use (None: all that
    it sees).
    """

    folder: Path
    attempts: Mapping[str, int]
    max_failed: int | None = None
    gpus: str | None = None
    together: Mapping[str, int] | None = None
    _child: subprocess.Popen | None = field(default=None, repr=False)
    _stopped: int = 0  # the signal that asked for the end

    def __call__(self, tell: Callable[[Job], None] | None = None) -> dict[str, str]:
        """Work until every job is done or has failed; their states by name. KeyboardInterrupt when asked to stop.

        `tell` is given each job whose record has changed, and once a second the one that is being worked on.

        Under submitit on SLURM it is put back into the queue when it is asked to stop, once the job has saved.
        """
        requeue = _requeue()
        before = {number: signal.signal(number, self._stop) for number in SIGNALS}
        try:
            self._work(tell or (lambda job: None))
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
        if stopped := self._stopped:
            if requeue is not None:
                self._stopped = 0
                requeue()  # ends the process
            raise interruption(stopped)
        return {job.name: job.state for job in Jobs(self.folder) if job.name in self.attempts}

    def checkpoint(self) -> Any:
        """What submitit runs when the job is back: the same, as all that counts is on disk."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(Worker(self.folder, self.attempts, self.max_failed, self.gpus, self.together))

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_child": None, "_stopped": 0}

    def _stop(self, number: int, _: FrameType | None) -> None:
        self._stopped = self._stopped or number
        if self._child is not None and self._child.poll() is None:
            self._child.send_signal(signal.SIGTERM)

    def _work(self, tell: Callable[[Job], None]) -> None:
        jobs = Jobs(self.folder)
        left = list(self.attempts)
        # counted once a pass, as all records are read for it; a pass ends with a job of one's own
        while left and not self._stopped and not self._too_many_failed(jobs):
            taken = False
            for name in list(left):
                if self._stopped:
                    return
                job = jobs.read(name)
                if job is None or job.state == DONE or _failed(job, self.attempts):
                    left.remove(name)
                elif jobs.claims.free(name):
                    taken = self._run(jobs, job, tell) or taken
                    break  # begin again with the first that is free: others may have left some
            if left and not taken:
                time.sleep(_POLL)

    def _too_many_failed(self, jobs: Jobs) -> bool:
        if self.max_failed is None:
            return False
        together = self.attempts if self.together is None else self.together
        return sum(job.name in together and _failed(job, together) for job in jobs) > self.max_failed

    def _run(self, jobs: Jobs, job: Job, tell: Callable[[Job], None]) -> bool:
        """Run a job in a process of its own; False where another worker was faster."""
        environment = {**os.environ, JOB: f"{self.folder}:{job.name}"}
        if self.gpus is not None:
            environment["CUDA_VISIBLE_DEVICES"] = self.gpus
        with jobs.log(job.name).open("ab") as log:
            log.write(os.fsencode(f"--- {time.strftime('%Y-%m-%d %H:%M:%S')} difix {' '.join(job.line)}\n"))
            log.flush()
            self._child = subprocess.Popen(
                [sys.executable, "-m", "difixcli", *job.line],
                cwd=job.directory or None,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
            )
        if self._stopped:  # the signal came while it was being started
            self._child.send_signal(signal.SIGTERM)
        told = 0.0
        while (code := self._child.poll()) is None:
            if time.monotonic() - told > 1:
                told = time.monotonic()
                if (now := jobs.read(job.name)) is not None:
                    tell(now)
            time.sleep(_PATIENCE)
        pid, self._child = self._child.pid, None
        if code == HELD:
            return False
        if code and not self._stopped:
            jobs.bury(job, pid, _how_it_ended(code, jobs.tail(job.name)))
        if (now := jobs.read(job.name)) is not None:
            tell(now)
        return True


def _failed(job: Job, attempts: Mapping[str, int]) -> bool:
    """Whether it has failed since it was handed out."""
    return job.state == FAILED and job.attempt > attempts[job.name]


def _how_it_ended(code: int, tail: Sequence[str]) -> str:
    if code > 0:
        return tail[-1].removeprefix("Error: ") if tail else f"Its process ended with exit code {code}."
    hint = " (perhaps the machine's memory was too small)" if -code == signal.SIGKILL else ""
    return f"Its process was killed by {signal.Signals(-code).name}{hint}."


def _requeue() -> Callable[[], None] | None:
    """How to put this SLURM job back into the queue by submitit's own means; None outside of one.

    A job that SLURM itself is ending (cancelled, or preempted and put back by SLURM) is left to it.
    """
    if os.environ.get("SUBMITIT_EXECUTOR") != "slurm":
        return None
    from submitit.core.job_environment import JobEnvironment

    number = JobEnvironment._usr_sig()
    handler = signal.getsignal(number)
    if not callable(handler):
        return None

    def requeue() -> None:
        line = ["squeue", "--noheader", "--jobs", os.environ["SLURM_JOB_ID"], "--format", "%T"]
        state = subprocess.run(line, capture_output=True, text=True, check=False, timeout=60).stdout.strip()
        if state == "RUNNING":
            handler(number, None)

    return requeue
