"""Programs that begin at once: forked from one process that has imported everything.

To import nerfstudio takes longer than to work on a scene of a test. `python` and `difix` of a `ForkServer` take the
lines, the environment, the folder, the streams and the signals that those of the system take, and end as they do; the
number of the process that works is another than theirs.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import socket
import sys

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
_LATER = {
    "accelerate": ["Accelerator"],
    "accelerate.tracking": [],
    "diffusers": ["AutoencoderKL", "DDPMScheduler", "UNet2DConditionModel"],
    "diffusers.training_utils": [],
    "lpips": [],
    "nerfstudio.configs.method_configs": [],
    "nerfstudio.engine.trainer": [],
    "numba.typed": [],
    "peft": [],
    "plyfile": [],
    "pydantic": ["TypeAdapter"],
    "scipy.interpolate": [],
    "scipy.spatial.transform": [],
    "sklearn.neighbors": [],
    "stlpips_pytorch.stlpips": [],
    "torch.distributed": [],
    "torch.utils.tensorboard": [],
    "torchmetrics.functional.image": [],
    "torchmetrics.image": ["lpip"],
    "webdataset": [],
}
"""What the program imports where it needs it, and of it what is itself imported when it is asked for."""


class ForkServer:
    """`with ForkServer(folder) as place:` a folder made with `python` and `difix`, which live as long as the block.

    The first program that is asked for waits until everything is imported. The job that `DIFIX_TESTS_OWN` names is a
    process of its own, whose number is that by which it was begun.
    """

    def __init__(self, folder: str) -> None:
        self.folder = folder

    def __enter__(self) -> str:
        import subprocess

        os.makedirs(self.folder, exist_ok=True)
        path = os.path.join(self.folder, "socket")
        # it calls its job by the number of the process that it is
        own = f'case "$2" in submitit.local._local) exec "{sys.executable}" "$@";; esac\n'
        own += f'case "${{DIFIX_JOB:-}}" in *:"${{DIFIX_TESTS_OWN:-/}}") exec "{sys.executable}" "$@";; esac\n'
        for name, more in (("python", ""), ("difix", " -m difixcli")):
            script = os.path.join(self.folder, name)
            with open(script, "w", encoding="utf-8") as file:
                file.write(f'#!/bin/sh\n{own}exec "{sys.executable}" -I -S "{__file__}" "{path}"{more} "$@"\n')
            os.chmod(script, 0o755)
        # the programs import the very files that the tests import: what is compiled is kept by their place
        places = os.pathsep.join(filter(None, sys.path))
        self._process = subprocess.Popen(
            [sys.executable, __file__, path, "--serve", os.path.join(self.folder, "python")],
            env={**os.environ, "PYTHONPATH": places},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        assert self._process.stdout is not None and self._process.stdout.readline() == b"ready\n"
        return self.folder

    def __exit__(self, *_: object) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(30)


def _serve(path: str, executable: str) -> None:
    """Fork a program for each that connects, until stdin is closed."""
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(path)
    listener.listen(64)
    print("ready", flush=True)
    imported = False
    while listener in select.select([listener, sys.stdin], [], [])[0]:
        connection, _ = listener.accept()
        if not imported:
            _import()
            imported = True
        if os.fork() == 0:
            listener.close()
            if (asked := _watch(connection)) is None:
                os._exit(0)
            sys.executable = executable
            _run(asked)
            return
        connection.close()
        _wait(os.WNOHANG)
    listener.close()  # whoever asks now is refused, rather than kept waiting
    _wait(0)


def _import() -> None:
    """Everything that the program may need."""
    import gc
    import importlib
    import pkgutil
    import threading
    import warnings

    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as the program has it
    del sys.path[0]
    import difixcli

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # they would be said by no program that was asked for
        for module in pkgutil.walk_packages(difixcli.__path__, "difixcli."):
            if not module.name.endswith("__main__"):
                importlib.import_module(module.name)
        for name, parts in _LATER.items():
            other = importlib.import_module(name)
            for part in parts:
                getattr(other, part)
    importlib.import_module("torch").set_num_threads(1)  # as in the tests' own process: the same bits
    assert threading.active_count() == 1  # a thread would be missing in what is forked
    gc.collect()
    gc.freeze()


def _wait(how: int) -> None:
    """For what has ended, or for everything."""
    with contextlib.suppress(ChildProcessError):
        while os.waitpid(-1, how)[0]:
            pass


def _watch(connection: socket.socket) -> dict | None:
    """Fork a program, hand signals on to it, and tell how it ended; in the program itself, what it was asked for."""
    length, streams, _, _ = socket.recv_fds(connection, 8, 3)
    asked = b""
    while left := int.from_bytes(length, "big") - len(asked):
        more = connection.recv(min(left, 1 << 16))  # a signal's number may follow
        if not more:  # whoever asked has gone
            os._exit(0)
        asked += more
    alive, theirs = os.pipe()
    program = os.fork()
    if program == 0:
        connection.close()
        os.close(alive)  # the other end is closed when it ends
        for number, (stream, name) in enumerate(zip(streams, ("stdin", "stdout", "stderr"), strict=True)):
            os.dup2(stream, number)
            os.close(stream)
            # what Python knew of the server's stream does not hold of this one
            mode, buffering = "r" if name == "stdin" else "w", 1 if name == "stderr" else -1
            errors = "backslashreplace" if name == "stderr" else None
            setattr(sys, name, os.fdopen(number, mode, buffering, errors=errors, closefd=False))
        told: dict = json.loads(asked)
        return told
    os.close(theirs)
    for stream in streams:
        os.close(stream)
    while alive not in (ready := select.select([alive, connection], [], [])[0]):
        if connection in ready:
            number = connection.recv(1)
            os.kill(program, number[0] if number else signal.SIGKILL)
            if not number:
                break
    code = os.waitstatus_to_exitcode(os.waitpid(program, 0)[1])
    with contextlib.suppress(OSError):  # where nobody waits for it any more
        connection.sendall(str(code).encode())
    return None


def _run(asked: dict) -> None:
    """What `python WORD…` runs."""
    import runpy

    import numba

    os.chdir(asked["folder"])
    os.environ.clear()
    os.environ.update(asked["environment"])
    numba.config.reload_config()  # else it would hold to the server's, or fail where a thread was begun
    words = [word for word in asked["words"] if word != "-u"]
    if words[0] == "-m":
        sys.path.insert(0, os.getcwd())
        sys.argv = words[1:]
        runpy.run_module(words[1], run_name="__main__", alter_sys=True)
    else:
        sys.path.insert(0, os.path.dirname(os.path.abspath(words[0])))
        sys.argv = words
        runpy.run_path(words[0], run_name="__main__")


def _ask(path: str, words: list[str]) -> int:
    """Have the server run a program, and end as it does."""
    connection = socket.socket(socket.AF_UNIX)
    connection.connect(path)
    asked = json.dumps({"words": words, "folder": os.getcwd(), "environment": dict(os.environ)}).encode()
    socket.send_fds(connection, [len(asked).to_bytes(8, "big")], [0, 1, 2])
    connection.sendall(asked)
    for number in _SIGNALS:  # not before: the number would stand in what is asked
        signal.signal(number, lambda number, _: connection.sendall(bytes([number])))
    code = int(connection.recv(16) or b"70")
    if code < 0:
        if -code != signal.SIGKILL:
            signal.signal(-code, signal.SIG_DFL)
        os.kill(os.getpid(), -code)
    return code


if __name__ == "__main__":
    if sys.argv[2:3] == ["--serve"]:
        _serve(sys.argv[1], sys.argv[3])
    else:
        sys.exit(_ask(sys.argv[1], sys.argv[2:]))
