"""Commands of `difix` as a person types them, and what the tests say about how they end."""

from __future__ import annotations

import json

from click.testing import Result
from typer.testing import CliRunner

from difixcli.cli import app


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
