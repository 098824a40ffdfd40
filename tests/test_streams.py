"""What is printed never ends the work: streams that are closed, full, without a reader, or cannot encode it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from commands import IMPORT_PATH
from PIL import Image

_MEASURE = "from difixcli.cli import main; main()"


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    home = tmp_path_factory.mktemp("streams")
    made = []
    for seed, name in enumerate((b"caf\xe9", b"b")):
        folder = home / os.fsdecode(name)
        folder.mkdir()
        pixels = np.random.default_rng(seed).integers(0, 255, (48, 48, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / os.fsdecode(b"\xe9.png"))
        made.append(str(folder))
    return made


def _eval(folders: list[str], output: Path, redirection: str, *words: str, **environment: str) -> subprocess.Popen:
    """`difix eval` in a shell, its streams as the redirection says."""
    line = [sys.executable, "-c", _MEASURE, "eval", *folders, "--metrics", "psnr", "--output", str(output), *words]
    return subprocess.Popen(
        ["bash", "-c", f'exec "$@" {redirection}', "bash", *line],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": IMPORT_PATH, **environment},
    )


@pytest.mark.parametrize("redirection", [">&-", ">/dev/full", ">&- 2>&- <&-", "2>/dev/full", ">/dev/full 2>/dev/full"])
def test_the_exit_code_is_that_of_the_work(folders: list[str], tmp_path: Path, redirection: str) -> None:
    process = _eval(folders, tmp_path / "eval", redirection, "--json")
    _, said = process.communicate(timeout=120)
    assert process.returncode == 0, said
    assert b"Traceback" not in said and b"Exception ignored" not in said
    assert json.loads((tmp_path / "eval" / "eval.json").read_text())["results"]["psnr"] > 0
    if redirection == ">/dev/full":
        assert b"could not be printed on stdout" in said
    if redirection == "2>/dev/full":
        process = _eval(folders, tmp_path / "eval", redirection, "--json")
        assert json.loads(process.communicate(timeout=120)[0])["results"]["psnr"] > 0


def test_a_reader_that_left_does_not_end_the_work(folders: list[str], tmp_path: Path) -> None:
    process = _eval(folders, tmp_path / "eval", "", "--json")
    assert process.stdout is not None and process.stderr is not None
    process.stdout.close()
    said = process.stderr.read()
    assert process.wait(120) == 0, said
    assert b"Traceback" not in said and b"could not be printed" not in said
    assert (tmp_path / "eval" / "report.html").is_file()


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "cp437"])
def test_what_cannot_be_encoded_is_said_in_ascii(folders: list[str], tmp_path: Path, encoding: str) -> None:
    process = _eval(folders, tmp_path / "eval", "", PYTHONIOENCODING=encoding)
    shown, said = (text.decode(encoding) for text in process.communicate(timeout=120))
    assert process.returncode == 0, said
    assert "PSNR ^" in shown and "caf\\xe9" in shown
    rows = [line for line in shown.splitlines() if line.strip()][1:]
    assert len({len(row) for row in rows if "caf" not in row}) == 1  # aligned


NAMING = "type('Named', (), {'name': type('Name', (), {'__set_name__': work})()})"


DESTROYING = "type('Dying', (), {'__del__': work})(); time.sleep(60)"


@pytest.mark.parametrize("at_work", ["work()", NAMING, DESTROYING])
def test_sigterm_is_told_as_ctrl_c_is(at_work: str) -> None:
    """Also in the middle of an import, where Python makes another error of what interrupts it, and while something is
    destroyed, where it makes nothing of it.
    """
    program = (
        "import sys, time, typer; from difixcli import console, interrupts; app = typer.Typer()\n"
        "def work(*_):\n    print('at work', flush=True); time.sleep(60)\n"
        "@app.command()\n@console.handled\n"
        f"def run(as_json: bool = True):\n    {at_work}\n"
        "interrupts.listen(); app()"
    )
    for sent, code, word in ((signal.SIGTERM, 143, "Terminated"), (signal.SIGINT, 130, "Interrupted")):
        process = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        assert process.stdout is not None and process.stdout.readline() == b"at work\n"
        process.send_signal(sent)
        shown, said = process.communicate(timeout=60)
        assert process.returncode == code and word in json.loads(shown)["error"]
        assert b"Run the same command again" in said and b"Traceback" not in said
