"""Options from a YAML file, shell completion, and what a package must carry for type checkers."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import typer
from commands import difix

import difixcli
from difixcli.cli import app

ROOT = Path(__file__).parents[1]


def understood(*words: object) -> dict[str, Any]:
    """What a command makes of a line, by parameter."""
    group: Any = typer.main.get_command(app)
    name, *rest = map(str, words)
    return dict(group.commands[name].make_context(name, rest).params)


def test_a_file_gives_what_the_line_would(tmp_path: Path) -> None:
    config = tmp_path / "run.yaml"
    config.write_text(
        "scene: sample:room\nsize: 96\nset: [a.b=1, c=2]\ncompare: true\nshare: 0.25\ndevice: cpu\n"
        "further: 7\nseed: 3\n"
    )
    line = ("--size", 96, "--set", "a.b=1", "--set", "c=2", "--compare", "--share", 0.25, "--device", "cpu")
    assert understood("distill", "--config", config) == understood(
        "distill", "sample:room", *line, "--further", 7, "--seed", 3
    )


@pytest.mark.parametrize(
    ("text", "line"),
    [
        (
            "scenes: [a, b]\nsplit: ['every:4', own]\nformat: webdataset\ndepth: true\nmax-failed: 2\nset: [a.b=1]\n",
            "curate a b --split every:4 --split own --format webdataset --depth --max-failed 2 --set a.b=1",
        ),
        (
            "prediction: [a, b]\ncolor_correct: affine\ngeometry: [c]\ncluster: slurm\ntime: '12:00:00'\nwait: true\n",
            "eval a b --color-correct affine --geometry c --cluster slurm --time 12:00:00 --wait",
        ),
        ("source: clip.mp4\nframes: 80\noutput: scene\nforce: true\n", "pose clip.mp4 --frames 80 -o scene --force"),
    ],
)
def test_files_of_other_commands_give_what_the_line_would(text: str, line: str, tmp_path: Path) -> None:
    (tmp_path / "run.yaml").write_text(text)
    command, *words = line.split()
    assert understood(command, "--config", tmp_path / "run.yaml") == understood(command, *words)


def test_the_line_counts_instead_of_the_file(tmp_path: Path) -> None:
    config = tmp_path / "run.yaml"
    config.write_text("size: 96\nside-by-side: true\nreference: [a.png, b.png]\nfixer: other\n")
    found = understood("enhance", "in", "--size", 48, "--reference", "c.png", "--config", config)
    assert found["size"] == 48 and found["reference"] == [Path("c.png")]
    assert found["side_by_side"] is True and found["fixer"] == "other"
    config.write_text("side_by_side: true\n")
    assert understood("enhance", "in", "--config", config)["side_by_side"] is True
    config.write_text("# nothing\n")
    assert understood("enhance", "in", "--config", config) == understood("enhance", "in")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("sizes: 96", "There is no option called sizes; did you mean size?"),
        ("config: other.yaml", "no option called config"),
        ("size: no", "size cannot be 'False'; put it in quotes"),
        ("size: {a: 1}", "size cannot be"),
        ("size:", "size cannot be 'None'"),
        ("steady: 3", "steady is true or false, not '3'"),
        ("steady: true\nsteady-: 1", "no option called steady-"),
        ("side-by-side: true\nside_by_side: true", "gives side_by_side twice"),
        ("[1, 2]", "holds no options"),
        ("size: [", "cannot be read as YAML"),
        ("size: 2", "--size"),
        ("size: many", "--size"),
    ],
)
def test_what_a_file_cannot_say_is_refused(text: str, said: str, tmp_path: Path) -> None:
    config = tmp_path / "run.yaml"
    config.write_text(text)
    result = difix("enhance", tmp_path, "--config", config)
    assert result.exit_code == 2 and "".join(said.split()) in _unboxed(result.stderr)
    assert "Traceback" not in result.stderr


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    result = difix("fix", tmp_path, "--config", tmp_path / "lost.yaml")
    assert (
        result.exit_code == 2 and "Thereisnofile" in _unboxed(result.stderr) and "lost.yaml" in _unboxed(result.stderr)
    )


def _unboxed(text: str) -> str:
    """Without the frame that a usage error is shown in, and without spaces: lines are broken anywhere."""
    return "".join(re.sub(r"[│╭╮╰╯─]", "", text).split())


def completed(words: str, at: int) -> list[str]:
    """What a shell would offer for the word at that place."""
    program = "import sys; sys.argv[0] = 'difix'; from difixcli.cli import main; main()"
    asked = {"_DIFIX_COMPLETE": "complete_bash", "COMP_WORDS": words, "COMP_CWORD": str(at)}
    made = subprocess.run(
        [sys.executable, "-c", program], env={**os.environ, **asked}, capture_output=True, text=True, check=True
    )
    return made.stdout.split()


def test_shells_complete_commands_options_and_choices() -> None:
    assert completed("difix en", 1) == ["enhance"]
    assert "--side-by-side" in completed("difix enhance --side", 2)
    assert completed("difix fix --device c", 3) == ["cpu", "cuda"]


def test_type_checkers_find_our_types() -> None:
    assert '"difixcli" = ["py.typed"]' in (ROOT / "pyproject.toml").read_text(encoding="utf-8").splitlines()
    assert (Path(difixcli.__file__).parent / "py.typed").is_file()


def test_the_dockerfile_copies_what_there_is_and_takes_a_torch_that_fits() -> None:
    text = (ROOT / "recipes/docker/Dockerfile").read_text(encoding="utf-8")
    copied = [word for line in re.findall(r"^COPY (.*) \S+$", text, re.M) for word in line.split()]
    assert {"pyproject.toml", "README.md", "difixcli"} <= set(copied) and all((ROOT / one).exists() for one in copied)
    torch, vision = (re.search(rf"ARG {name}=2?0?\.(\d+)\.", text) for name in ("TORCH", "TORCHVISION"))
    assert torch and vision and int(vision[1]) == int(torch[1]) + 15  # how the two are numbered together
    assert 5 <= int(torch[1]) <= 13
