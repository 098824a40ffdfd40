"""Handing jobs out: to SLURM as one array, or to processes on this machine; both through submitit."""

from __future__ import annotations

import os
import platform
import re
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from difixcli.cluster.jobs import Jobs
from difixcli.cluster.worker import Worker
from difixcli.errors import InputError
from difixcli.runs import read_json, write_json
from difixcli.shapes import OneOf
from difixcli.wording import counted

CLUSTERS = ("local", "slurm")
_SUBMITTED = "submitted"  # beside submitit's files: what was handed out last
_GRACE = 120  # seconds between SLURM's warning and the end of a job's time
_PREEMPTIONS = 1000  # how often a job that ran out of time is put back into the queue


@dataclass(frozen=True)
class Wishes:
    """What is asked of a cluster.

    `scenes_per_job` scenes share one job of SLURM's array, of which at most `max_running` run at a time (local: so many
    workers). `time` is as SLURM writes it (90, 12:00:00, 1-00:00), `memory` in GiB. `sbatch` are further options of
    sbatch, as constraint=a100; they come before the others.
    """

    cluster: str
    scenes_per_job: int = 1
    max_running: int | None = None
    partition: str | None = None
    account: str | None = None
    time: str | None = None
    gpus: int | None = None
    cpus: int | None = None
    memory: float | None = None
    sbatch: Sequence[str] = ()


def submit(folder: Path, attempts: Mapping[str, int], wishes: Wishes, max_failed: int | None, name: str) -> str:
    """Hand out the jobs of a run's folder (names, and how often each was begun before); the cluster's own number.

    Raises InputError where there is no SLURM, it refuses, or a wish cannot be understood.
    """
    names = list(attempts)
    if wishes.cluster == "local":
        count = min(wishes.max_running or 1, len(names))
        devices = _devices(wishes.gpus, count)
        # each begins elsewhere, or all would start a process for the first, of which one alone gets it
        firsts = [number * len(names) // count for number in range(count)]
        orders = [[*names[first:], *names[:first]] for first in firsts]
        workers = [
            Worker(folder, {one: attempts[one] for one in order}, max_failed, own)
            for order, own in zip(orders, devices, strict=True)
        ]
        number = _local(folder, workers)
    else:
        size = wishes.scenes_per_job
        parts = [names[i : i + size] for i in range(0, len(names), size)]
        together = None if max_failed is None else attempts
        workers = [
            Worker(folder, {one: attempts[one] for one in part}, max_failed, together=together) for part in parts
        ]
        number = _slurm(folder, workers, wishes, name)
    told = {"cluster": wishes.cluster, "number": number, "node": platform.node()}
    write_json(Jobs(folder).folder / "submitit" / f"{_SUBMITTED}.json", told)
    return number


def at_work(folder: Path) -> bool | None:
    """Whether the cluster still has jobs of those that were handed out last; None where that is not known."""
    path = Jobs(folder).folder / "submitit" / f"{_SUBMITTED}.json"
    if not path.is_file():
        return None
    held = read_json(path, {"cluster": OneOf(CLUSTERS), "number": str, "node": str})
    if held["cluster"] == "local":
        if held["node"] != platform.node():  # whose processes cannot be seen from here
            return None
        return any(_alive(int(pid)) for pid in held["number"].split(",") if pid.isdecimal())
    line = ["squeue", "--noheader", "--jobs", held["number"], "--format", "%T"]
    try:
        asked = subprocess.run(line, capture_output=True, text=True, check=False, timeout=60)
    except (OSError, subprocess.TimeoutExpired):
        return None
    if asked.returncode and "Invalid job id" not in asked.stderr:
        return None
    return bool(asked.stdout.strip())


def minutes(time: str) -> int:
    """A span of time as SLURM writes it, in minutes, rounded up: M, M:S, H:M:S, D-H, D-H:M, D-H:M:S."""
    found = re.fullmatch(r"(?:(\d+)-)?(\d+)(?::(\d+))?(?::(\d+))?", time)
    if found is None:
        raise InputError(f"--time {time} is no span of time; write minutes, 12:00:00, or 1-12 for a day and a half.")
    days, *parts = found.groups()
    numbers = [int(part) for part in parts if part is not None]
    if days is not None:
        hours, some, seconds = [*numbers, 0, 0][:3]
    elif len(numbers) == 3:
        hours, some, seconds = numbers
    else:
        hours, (some, seconds) = 0, [*numbers, 0][:2]
    return (int(days or 0) * 24 + hours) * 60 + some + (seconds > 0)


def _slurm(folder: Path, workers: Sequence[Worker], wishes: Wishes, name: str) -> str:
    # read when submitit is first imported, here and in the job
    os.environ["SUBMITIT_PREEMPT_SIGNAL"] = "USR1"
    from submitit import SlurmExecutor
    from submitit.core.utils import FailedJobError, FailedSubmissionError

    further = dict(_sbatch(word) for word in wishes.sbatch)
    cpus = further.get("cpus-per-task", wishes.cpus)
    asked = {
        "partition": wishes.partition,
        "account": wishes.account,
        "time": None if wishes.time is None else minutes(wishes.time),
        "gpus_per_node": wishes.gpus,
        "cpus_per_task": wishes.cpus,
        "mem": None if wishes.memory is None else f"{round(wishes.memory * 1024)}M",
    }
    if asked["time"] is None and "time" in further:
        asked["time"] = minutes(str(further["time"]))
    if asked["time"] is None:  # submitit's own is five minutes
        raise InputError("SLURM wants to know how long a job may take; say it with --time, as 4:00:00.")
    try:
        executor = SlurmExecutor(Jobs(folder).folder / "submitit", max_num_timeout=_PREEMPTIONS)
    except RuntimeError:
        raise InputError("There is no SLURM here (no srun); use --cluster local, or a machine that has it.") from None
    executor.update_parameters(
        job_name=name,
        array_parallelism=wishes.max_running or len(workers),
        signal_delay_s=_GRACE,
        stderr_to_stdout=True,
        setup=["export SUBMITIT_PREEMPT_SIGNAL=USR1"],
        # since SLURM 22.05 srun no longer takes sbatch's
        srun_args=[] if cpus is None else [f"--cpus-per-task={cpus}"],
        additional_parameters={"requeue": True, **further},
        **{key: value for key, value in asked.items() if value is not None},
    )
    try:
        with executor.batch():
            jobs = [executor.submit(worker) for worker in workers]
    except (FailedJobError, FailedSubmissionError, subprocess.CalledProcessError, OSError) as error:
        raise InputError(f"SLURM refuses the job: {' '.join(str(error).split())[:400]}") from None
    return str(jobs[0].job_id).split("_")[0]


def _local(folder: Path, workers: Sequence[Worker]) -> str:
    from submitit import LocalExecutor

    numbers = []
    for worker in workers:
        executor = LocalExecutor(Jobs(folder).folder / "submitit")
        executor.update_parameters(timeout_min=60 * 24 * 365, stderr_to_stdout=True)
        numbers.append(str(executor.submit(worker).job_id))
    return ",".join(numbers)


def _sbatch(word: str) -> tuple[str, str | bool]:
    """`#SBATCH --constraint=a100`, `--constraint=a100`, `constraint=a100` or `exclusive`."""
    name, given, value = word.strip().removeprefix("#SBATCH").strip().removeprefix("--").partition("=")
    if not re.fullmatch(r"[a-z][a-z-]*", name):
        raise InputError(f"--sbatch {word} is no option of sbatch; write constraint=a100, or exclusive.")
    return name, value if given else True


def _devices(gpus: int | None, workers: int) -> list[str | None]:
    """The CUDA devices of each local worker: `gpus` of those that this process may use, None for whatever it sees.

    Raises InputError where there are too few: a worker without any would make its scenes on the CPU.
    """
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if gpus is None:
        return [visible] * workers
    wanted = gpus * workers
    if visible is not None:
        there, where = [one for one in visible.split(",") if one], "CUDA_VISIBLE_DEVICES"
    elif wanted:
        import torch  # so late, as it takes seconds

        there, where = [str(device) for device in range(torch.cuda.device_count())], "this machine"
    else:
        there, where = [], ""
    if len(there) < wanted:
        cure = "lower --max-running or --gpus" if len(there) >= gpus else "lower --gpus or leave it out"
        raise InputError(
            f"{counted(wanted, 'GPU is', 'GPUs are')} wanted but {where} has {len(there) or 'none'}; {cure}."
        )
    return [",".join(there[number * gpus : (number + 1) * gpus]) for number in range(workers)]


def _alive(pid: int) -> bool:
    try:
        done, _ = os.waitpid(pid, os.WNOHANG)  # of our own, which would stay a zombie
        return done == 0
    except ChildProcessError:
        pass
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    path = Path(f"/proc/{pid}/cmdline")
    return not path.exists() or b"submitit" in path.read_bytes() if sys.platform == "linux" else True
