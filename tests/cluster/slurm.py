"""A real SLURM on the loopback for tests: munge, slurmctld and one slurmd for each of several small nodes.

Debian's packages are installed where that is allowed. All daemons run as the calling user, with a key, sockets, ports
and state of their own in one folder, so that a SLURM of the machine's is neither used nor touched.
"""

from __future__ import annotations

import getpass
import os
import secrets
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

PACKAGES = ("munge", "slurm-client", "slurmctld", "slurmd")
_PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "scontrol", "squeue", "sinfo", "scancel")
_PATH = os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin", "/sbin"])
_LAUNCHED_AFTER = 3.0  # seconds


def missing() -> str | None:
    """Why there is no SLURM to test with, after an attempt to install it; None where there is one."""
    if not (lacking := _lacking()):
        return None
    if os.geteuid() != 0 or shutil.which("apt-get") is None:
        return f"{', '.join(lacking)} absent, and only root of a Debian can install {' '.join(PACKAGES)}"
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    for line in (["apt-get", "update"], ["apt-get", "install", "-y", "--no-install-recommends", *PACKAGES]):
        try:
            made = subprocess.run(line, env=environment, capture_output=True, text=True, check=False, timeout=300)
        except subprocess.TimeoutExpired:
            return f"{' '.join(line)} took too long"
        if made.returncode:
            return f"{' '.join(line)} failed: {(made.stderr or made.stdout).strip().splitlines()[-1:]}"
    return None if not (lacking := _lacking()) else f"{', '.join(lacking)} absent after installing {' '.join(PACKAGES)}"


def _lacking() -> list[str]:
    return [name for name in _PROGRAMS if shutil.which(name, path=_PATH) is None]


def until(true: Callable[[], object], seconds: float, what: str) -> None:
    """Wait until something is true; AssertionError with `what` it was after so many seconds of an idle machine, which
    are longer where more processes want to run than there are cores.
    """
    begun, patience = time.monotonic(), seconds
    while not true():
        patience = max(patience, seconds * os.getloadavg()[1] / (os.cpu_count() or 1))
        assert time.monotonic() - begun < patience, f"after {patience:.0f} s still not: {what}"
        time.sleep(0.2)


class Slurm:
    """`with Slurm(folder, nodes=3) as slurm:` a cluster whose commands `slurm.environment` reaches."""

    def __init__(self, folder: Path, nodes: int = 3, cpus: int = 2) -> None:
        self.folder, self.cpus = folder, cpus
        self.nodes = [f"n{i + 1}" for i in range(nodes)]
        self.environment = {**os.environ, "PATH": _PATH, "SLURM_CONF": str(folder / "slurm.conf")}
        # of a job of a real cluster that the tests themselves run in, nothing counts
        for name in [name for name in self.environment if name.startswith(("SLURM_", "SBATCH_", "SRUN_"))]:
            if name != "SLURM_CONF":
                del self.environment[name]
        self._daemons: list[subprocess.Popen] = []
        self._waiting: dict[str, float] = {}  # jobs, and since when

    def __enter__(self) -> Slurm:
        try:
            self._start()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        if (self.folder / "slurm.conf").exists():
            subprocess.run(["scancel", "--me"], env=self.environment, capture_output=True, check=False, timeout=60)
            end = time.monotonic() + 20
            while time.monotonic() < end and self.run("squeue", "-h").strip():
                time.sleep(0.5)
        for daemon in reversed(self._daemons):
            daemon.send_signal(signal.SIGTERM)
        for daemon in reversed(self._daemons):
            try:
                daemon.wait(15)
            except subprocess.TimeoutExpired:
                daemon.kill()
                daemon.wait()

    def run(self, *line: str, check: bool = False) -> str:
        """What a command of SLURM's says."""
        made = subprocess.run(
            line, env=self.environment, capture_output=True, text=True, check=False, timeout=120, cwd=self.folder
        )
        assert not check or made.returncode == 0, (line, made.stdout, made.stderr)
        return made.stdout

    def states(self) -> dict[str, str]:
        """The nodes' states, as sinfo has them."""
        return dict(line.split()[:2] for line in self.run("sinfo", "-h", "-N", "-o", "%N %t").splitlines())

    def jobs(self) -> dict[str, tuple[str, str]]:
        """State and node of every job and array task in the queue, by its number."""
        found = {}
        for line in self.run("squeue", "-h", "-r", "-o", "%i|%T|%N").splitlines():
            number, state, node = line.split("|")
            found[number] = (state, node)
        return found

    def hurry(self) -> None:
        """Let what was put back into the queue begin soon, rather than after SLURM's two minutes.

        Not in the very second in which it ended: its node counts what is launched then as killed.
        """
        waiting = {number for number, (state, _) in self.jobs().items() if state == "PENDING"}
        self._waiting = {number: self._waiting.get(number, time.monotonic()) for number in waiting}
        for number, since in self._waiting.items():
            if time.monotonic() - since > _LAUNCHED_AFTER:
                self.run("scontrol", "update", f"jobid={number}", "StartTime=now")

    def _start(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        munge = self.folder / "munge"
        munge.mkdir(mode=0o700)
        (munge / "key").write_bytes(secrets.token_bytes(128))
        (munge / "key").chmod(0o400)
        files = {"key": "key", "socket": "socket", "pid": "pid", "log": "log", "seed": "seed"}
        options = [f"--{name}-file={munge / file}" for name, file in files.items() if name != "socket"]
        self._daemon("munged", "--foreground", "--force", "--num-threads=1", f"--socket={munge / 'socket'}", *options)
        until((munge / "socket").exists, 20, "munge's socket is there")
        self._configure(munge / "socket")
        self._daemon("slurmctld", "-D", "-i")
        for node in self.nodes:
            self._daemon("slurmd", "-D", "-N", node)
        until(lambda: list(self.states().values()) == ["idle"] * len(self.nodes), 60, "all nodes are idle")

    def _configure(self, munge: Path) -> None:
        ports = _free_ports(1 + len(self.nodes))
        host, user = socket.gethostname().split(".")[0], getpass.getuser()
        for name in ("state", *(f"spool.{node}" for node in self.nodes)):
            (self.folder / name).mkdir()
        lines = {
            "ClusterName": "difix",
            "SlurmctldHost": f"{host}(127.0.0.1)",
            "SlurmUser": user,
            "SlurmdUser": user,
            "AuthType": "auth/munge",
            "AuthInfo": f"socket={munge}",
            "SlurmctldPort": ports[0],
            "StateSaveLocation": self.folder / "state",
            "SlurmdSpoolDir": self.folder / "spool.%n",
            "SlurmctldPidFile": self.folder / "slurmctld.pid",
            "SlurmdPidFile": self.folder / "slurmd.%n.pid",
            "SlurmctldLogFile": self.folder / "slurmctld.log",
            "SlurmdLogFile": self.folder / "slurmd.%n.log",
            "ProctrackType": "proctrack/linuxproc",
            "TaskPlugin": "task/none",
            "JobAcctGatherType": "jobacct_gather/none",
            "AccountingStorageType": "accounting_storage/none",
            "SchedulerType": "sched/builtin",
            "SchedulerParameters": "batch_sched_delay=0,sched_interval=1",
            "SelectType": "select/cons_tres",
            "SelectTypeParameters": "CR_CPU",
            "MpiDefault": "none",
            "SwitchType": "switch/none",
            "ReturnToService": 2,
            "KillWait": 20,
            "MinJobAge": 300,
            "JobRequeue": 1,
            "PreemptType": "preempt/partition_prio",
            "PreemptMode": "REQUEUE",
            "SlurmdParameters": "config_overrides",
        }
        written = [f"{name}={value}" for name, value in lines.items()]
        for node, port in zip(self.nodes, ports[1:], strict=True):
            written.append(
                f"NodeName={node} NodeHostname={host} NodeAddr=127.0.0.1 Port={port} CPUs={self.cpus} RealMemory=4000 "
                "State=UNKNOWN"
            )
        everywhere = f"Nodes={','.join(self.nodes)} MaxTime=60 State=UP"
        # jobs of `urgent` take the nodes of the others', of which those of `warned` are told so a while before
        written.append(f"PartitionName=short {everywhere} Default=YES PriorityTier=1")
        written.append(f"PartitionName=warned {everywhere} PriorityTier=1 GraceTime=60")
        written.append(f"PartitionName=urgent {everywhere} PriorityTier=2 PreemptMode=OFF")
        (self.folder / "slurm.conf").write_text("\n".join(written) + "\n", encoding="utf-8")
        (self.folder / "cgroup.conf").write_text("CgroupPlugin=cgroup/v1\nCgroupAutomount=no\n", encoding="utf-8")

    def _daemon(self, program: str, *options: str) -> None:
        path = shutil.which(program, path=_PATH)
        assert path is not None
        with (self.folder / f"{program}.out").open("ab") as log:
            self._daemons.append(
                subprocess.Popen([path, *options], env=self.environment, stdout=log, stderr=log, cwd=self.folder)
            )


def _free_ports(count: int) -> list[int]:
    held = [socket.socket() for _ in range(count)]
    try:
        for one in held:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in held]
    finally:
        for one in held:
            one.close()
