"""The README's commands, CI and the program's first impression."""

from __future__ import annotations

import ast
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from difixcli.cli import app

ROOT = Path(__file__).parents[1]


def _readme_commands() -> list[str]:
    return re.findall(r"```sh\n(.*?)\n```", (ROOT / "README.md").read_text(encoding="utf-8"), re.S)


def test_ci_runs_the_readme_test_command_as_written() -> None:
    second = _readme_commands()[1]
    assert "pytest" in second
    assert second in (ROOT / ".ci" / "run").read_text(encoding="utf-8").splitlines()


STEPS = ("pip install -q .[dev]", "pytest", "ruff check", "ruff format", "mypy")


@pytest.mark.parametrize("broken", [None, *STEPS])
def test_ci_begins_with_empty_caches_and_fails_with_any_step(broken: str | None, tmp_path: Path) -> None:
    """The real script, where the environment that it makes holds programs which only note how they were called."""
    (tmp_path / ".ci").mkdir()
    shutil.copy(ROOT / ".ci" / "run", tmp_path / ".ci")
    program = tmp_path / "program"
    program.write_text(
        '#!/bin/sh\nline="$(basename "$0") $*"\n'
        'echo "$line|$HOME|$DIFIX_CACHE|$(ls -A "$HOME" "$DIFIX_CACHE" 2>/dev/null | grep -v :)" >> called\n'
        'case "$line" in "$BROKEN"*) exit 3;; esac\n'
        'case "$line" in "pip install"*) cp "$0" "$(dirname "$0")/difix";; esac\n'
    )
    python = tmp_path / "bin" / "python3"
    python.parent.mkdir()
    names = "pip pytest ruff mypy"
    python.write_text(f"#!/bin/sh\nmkdir -p .venv/bin\nfor n in {names}; do cp program .venv/bin/$n; done\n")
    for file in (program, python):
        file.chmod(0o755)
    about = {"PATH": f"{python.parent}{os.pathsep}{os.defpath}", "HOME": str(tmp_path), "BROKEN": broken or "nothing"}
    done = subprocess.run([tmp_path / ".ci" / "run"], env=about, capture_output=True, text=True, check=False)
    assert (done.returncode == 0) == (broken is None), done.stderr
    calls = [line.split("|") for line in (tmp_path / "called").read_text().splitlines()]
    # types are looked at beside the tests; without an installation there is neither
    expected = [step for step in STEPS if broken != STEPS[0] or step not in ("pytest", "mypy")]
    assert len(calls) == len(expected)
    for (line, home, cache, held), step in zip(sorted(calls), sorted(expected), strict=True):
        assert line.startswith(step) and not held.strip()
        assert Path(home).parent == Path(cache).parent != tmp_path and not Path(home).exists()


def test_every_documented_command_and_option_exists() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    lines = [line for block in _readme_commands() for line in block.splitlines()]
    commands = [m.group(1, 2) for line in lines for m in re.finditer(r"difix ([a-z]+)([^&|#\n]*)", line)]
    names = {name for name, _ in commands}
    assert names >= {"distill"}, text[:200]
    shown = {name: CliRunner().invoke(app, [name, "--help"], env={"COLUMNS": "200"}).stdout for name in names}
    for name, rest in commands:
        for option in re.findall(r"--[a-z][a-z-]*", rest):
            assert option in shown[name], f"difix {name} has no {option}"


def test_help_imports_nothing_heavy() -> None:
    code = (
        "import sys, difixcli.cli; "
        "print([m for m in ('torch', 'nerfstudio', 'diffusers', 'numba', 'transformers', 'cv2') if m in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


def test_imports_run_one_way() -> None:
    """From the commands to their rooms, from those to scenes, the fixer and runs; no command's room needs another's."""
    root = ROOT / "difixcli"
    needs: dict[str, set[str]] = {}
    for path in root.rglob("*.py"):
        room = path.relative_to(root).parts[0]
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("difixcli."):
                needs.setdefault(room, set()).add(str(node.module).split(".")[1])
    commands = {"cli", "posing", "curation", "training", "distillation", "enhancement"}
    low = {
        "cache",
        "disk",
        "errors",
        "images",
        "model_folders",
        "runs",
        "shapes",
        "tensor_files",
        "torchvision_cure",
        "wording",
    }
    # samples are scenes that are made where they are asked for
    assert needs["scenes"] <= low | {"scenes", "samples"} and needs["samples"] <= low | {"scenes", "samples"}
    assert needs["fixer"] <= low | {"fixer"}
    for room in set(needs) - {"cli", "__main__.py", "console.py"}:
        assert not needs[room] & (commands - {room}), room


def test_torchvision_can_be_imported_whoever_asked_for_the_cure() -> None:
    """torch asks for it in the middle of ours."""
    code = "from difixcli.torchvision_cure import cure; cure(); cure(); import torchvision; print(torchvision.__name__)"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "torchvision"


def test_help_lists_the_six_commands() -> None:
    shown = _difix("--help").stdout
    for name in ("curate", "finetune", "fix", "distill", "enhance", "eval", "sample"):
        assert re.search(rf"^\W*{name}\b", shown, re.M), shown


def _difix(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", "from difixcli.cli import main; main()", *arguments],
        capture_output=True,
        text=True,
        check=True,
        env={"COLUMNS": "200", "PATH": "", "TERM": "dumb", "HOME": str(Path.home())},
    )
