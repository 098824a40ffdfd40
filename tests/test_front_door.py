"""The README's commands, CI and the program's first impression."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]


def _readme_commands() -> list[str]:
    return re.findall(r"```sh\n(.*?)\n```", (ROOT / "README.md").read_text(encoding="utf-8"), re.S)


def test_ci_runs_the_readme_test_command_as_written() -> None:
    second = _readme_commands()[1]
    assert "pytest" in second
    assert second in (ROOT / ".ci" / "run").read_text(encoding="utf-8").splitlines()


def test_every_documented_command_and_option_exists() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    lines = [line for block in _readme_commands() for line in block.splitlines()]
    commands = [m.group(1, 2) for line in lines for m in re.finditer(r"difix ([a-z]+)([^&|#\n]*)", line)]
    assert {name for name, _ in commands} >= {"distill"}, text[:200]
    for name, rest in commands:
        shown = _difix(name, "--help").stdout
        for option in re.findall(r"--[a-z][a-z-]*", rest):
            assert option in shown, f"difix {name} has no {option}"


def test_help_imports_nothing_heavy() -> None:
    code = (
        "import sys, difixcli.cli; "
        "print([m for m in ('torch', 'nerfstudio', 'diffusers', 'numba', 'transformers', 'cv2') if m in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


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
