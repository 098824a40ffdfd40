"""The pages of the commands say what the program has, and the line that builds the API's pages works."""

from __future__ import annotations

import importlib
import importlib.util
import pkgutil
import re
import shlex
import subprocess
from pathlib import Path
from types import ModuleType

import pytest
from PIL import Image

import difixcli

PAGES = Path(__file__).parents[1] / "recipes" / "docs"


def _script(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"docs_{name}", PAGES / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


build = _script("build")
COMMANDS = build.commands()
TOPICS = ("scenes", "priors", "clusters")


def _options(name: str) -> set[str]:
    named = {option for param in COMMANDS[name].params for option in (*param.opts, *param.secondary_opts)}
    return {option for option in named if option.startswith("-")} | {"--help"}


def test_every_command_and_topic_has_a_page_and_every_page_is_listed() -> None:
    assert {path.stem for path in PAGES.glob("*.md")} - {"README"} == {*COMMANDS, *TOPICS}
    index = (PAGES / "README.md").read_text(encoding="utf-8")
    assert set(re.findall(r"\]\((\w+)\.md\)", index)) == {*COMMANDS, *TOPICS}


@pytest.mark.parametrize("name", COMMANDS)
def test_a_page_is_as_the_program_is(name: str) -> None:
    page = (PAGES / f"{name}.md").read_text(encoding="utf-8")
    assert build.with_tables(page, name) == page, "run python recipes/docs/build.py"
    table = build.tables(name)
    for option in _options(name) - {"--help"}:
        assert f"`{option}`" in table, option
    (picture,) = re.findall(r"!\[[^\]]+\]\((pictures/[a-z]+\.webp)\)", page)
    assert picture == f"pictures/{name}.webp" and (PAGES / picture).stat().st_size <= 60 * 1024
    with Image.open(PAGES / picture) as image:
        image.load()
        assert image.width >= 400


@pytest.mark.parametrize("name", ["README", *COMMANDS, *TOPICS])
def test_what_a_page_points_to_is_there(name: str) -> None:
    page = (PAGES / f"{name}.md").read_text(encoding="utf-8")
    for target in (one for one in re.findall(r"\]\(([^)#]+)\)", page) if "://" not in one):
        assert (PAGES / target).exists(), target


@pytest.mark.parametrize("name", [*COMMANDS, *TOPICS])
def test_lines_of_a_page_are_understood(name: str) -> None:
    """Each is parsed as the program would, without being run."""
    page = (PAGES / f"{name}.md").read_text(encoding="utf-8")
    by_hand = page.partition(build.BEGIN)[0] + page.partition(build.END)[2]
    blocks = "\n".join(re.findall(r"```sh\n(.*?)```", by_hand, re.S)).splitlines()
    lines = [line for line in blocks if "difix" in line]
    lines += [" ".join(line.split()) for line in re.findall(r"`(difix [a-z]+ [^`]+)`", by_hand) if "…" not in line]
    assert name in TOPICS or any(f"difix {name} " in line for line in lines)
    for line in lines:
        words = shlex.split(line, comments=True)
        at = next(i for i, word in enumerate(words) if word in ("difix", "difixcli"))
        command = words[at + 1]
        context = COMMANDS[command].make_context(command, words[at + 2 :])
        assert context.params
    # words between ticks too
    known = set().union(*(_options(one) for one in COMMANDS))
    for span in re.findall(r"`([^`\n]+)`", by_hand):
        for option in re.findall(r"(?<![\w-])--[a-z][a-z-]*", span):
            assert option in known | {"--load-config"}, option


def _public_modules() -> list[str]:
    found = [one.name for one in pkgutil.walk_packages(difixcli.__path__, "difixcli.")]
    return [name for name in found if not any(part.startswith("_") for part in name.split("."))]


def test_every_public_module_can_be_imported_and_says_what_it_is() -> None:
    names = _public_modules()
    assert {"difixcli.fixer.fixer", "difixcli.distillation.distill", "difixcli.scenes"} <= set(names)
    for name in names:
        module = importlib.import_module(name)
        assert (module.__doc__ or "").strip(), name


def test_the_line_of_the_api_pages(forked: Path, tmp_path: Path) -> None:
    """As written, but for the installation: with this interpreter's pdoc, into another folder."""
    pytest.importorskip("pdoc", reason="pdoc is not installed (pip install '.[docs]')")
    (line,) = [one for one in (PAGES / "README.md").read_text(encoding="utf-8").splitlines() if "bin/pdoc" in one]
    *install, make = line.split(" && ")
    assert install == ["python3 -m venv .venv", '.venv/bin/pip install -q ".[docs]"']
    program, *words = shlex.split(make)
    assert program == ".venv/bin/pdoc" and words[-3:] == ["-o", "api", "difixcli"]
    command = [forked / "python", "-m", "pdoc", *words]
    made = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert made.returncode == 0, made.stderr
    page = (tmp_path / "api" / "difixcli" / "fixer.html").read_text(encoding="utf-8")
    assert "from_pretrained" in page and "<h6" in page  # arguments stand under a heading of their own
    index = (tmp_path / "api" / "difixcli.html").read_text(encoding="utf-8")
    for room in ("distillation", "evaluation", "scenes", "training"):
        assert f'href="difixcli/{room}.html"' in index
