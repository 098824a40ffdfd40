"""Commands of `difix` as a person types them, and what the tests say about how they end."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterable
from pathlib import Path

from click.testing import Result
from typer.testing import CliRunner

from difixcli.cli import app

IMPORT_PATH = os.pathsep.join(filter(None, sys.path))
"""PYTHONPATH of programs that import the very files that the tests import: what is compiled is kept by their place."""


def difix(*words: object) -> Result:
    return CliRunner().invoke(app, [str(word) for word in words])


def told(result: Result) -> dict:
    """What a command that ended well says with --json in its last line."""
    assert result.exit_code == 0, (result.stderr, result.exception)
    said: dict = json.loads(result.stdout.splitlines()[-1])
    return said


def done(result: Result) -> dict:
    """The results of a command that ended well."""
    results: dict = told(result)["results"]
    return results


def refused(result: Result, *words: str) -> None:
    """The command ended with exit code 2 and one sentence that has these words, without a traceback."""
    shown = " ".join(result.stderr.split())
    assert result.exit_code == 2, (result.exit_code, shown, result.exception)
    assert "Traceback" not in shown
    message = shown[shown.index("Error:") :]
    for word in words:
        assert word in message, message


def begun(programs: Path, *words: object) -> subprocess.Popen[str]:
    """`difix` of `programs` (see the fixture `forked`) at work in a process of its own; it must not print much."""
    line = [programs / "difix", *map(str, words)]
    return subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)


def killed(programs: Path, line: Iterable[object], output: Path, whole: Path, share: float) -> None:
    """Run a line of `difix` that writes `output`, and kill it once there is this share of the files that `whole` has.

    Returns when it is gone.
    """

    def files(folder: Path) -> int:
        return sum(len(names) for _, _, names in os.walk(folder))

    process = begun(programs, *line)
    while files(output) < share * files(whole) and process.poll() is None:
        time.sleep(0.01)
    process.kill()
    process.communicate()
    assert process.returncode == -signal.SIGKILL
