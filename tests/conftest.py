"""What every test may use: a cache, photos and a scene of the session's own, and the shared data beside the project."""

from __future__ import annotations

import gc
import os
import shutil
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path

# Before anything of the program is imported. Workers and programs that tests start are given the environment, so all of
# a session paint into one cache, and nothing that another version painted for the user is ever read.
_PREFIX = "difix-tests-"
_FORKS = "DIFIX_TESTS_FORKS"
_MADE: str | None = None
if not Path(os.environ.get("DIFIX_CACHE", "")).name.startswith(_PREFIX):
    _MADE = os.environ["DIFIX_CACHE"] = tempfile.mkdtemp(prefix=_PREFIX)

import pytest  # noqa: E402
import torch  # noqa: E402
from fork_server import ForkServer  # noqa: E402
from small_scenes import small_sample  # noqa: E402

from difixcli.samples.sample import cached_sample  # noqa: E402
from difixcli.torchvision_cure import cure  # noqa: E402

ABSENT = "the shared data is not beside the project"

cure()
torch.set_num_threads(1)
_OPEN = ExitStack()
# the second compiles nothing while the first does; the last three would be the last of all
_LONGEST = ["test_slurm", "test_training", "test_recipes", "test_view_diffusion_training"]
_LONGEST += ["test_view_diffusion", "test_view_diffusion_distillation"]


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    skipped = terminalreporter.stats.get("skipped", [])
    absent = sum(isinstance(report.longrepr, tuple) and ABSENT in report.longrepr[2] for report in skipped)
    if absent:
        terminalreporter.write_line(f"{absent} tests skipped because ../shared is absent")


def pytest_configure() -> None:
    """One server of programs for all workers, which imports nothing until it is asked."""
    if _FORKS not in os.environ:
        # short: the names of sockets may have 108 characters
        folder = _OPEN.enter_context(tempfile.TemporaryDirectory(prefix="difix-"))
        os.environ[_FORKS] = _OPEN.enter_context(ForkServer(folder))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The files that take longest come first, or one worker would be at work on them long after the others."""
    places = {name: place for place, name in enumerate(_LONGEST)}
    items.sort(key=lambda item: places.get(item.path.stem, len(places)))


def pytest_runtest_setup() -> None:
    """What stands when a test begins stays.

    Else each collection that a run asks for, and the one before Python ends, goes over all that torch and nerfstudio
    hold, and takes longer than what many tests do.
    """
    gc.collect()
    gc.freeze()


def pytest_unconfigure() -> None:
    _OPEN.close()
    if _MADE is not None:
        shutil.rmtree(_MADE, ignore_errors=True)


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of shared scenes and golden weights; the test is skipped where it is absent."""
    folder = Path(os.environ.get("DIFIX_SHARED", Path(__file__).parents[2] / "shared"))
    if not (folder / "scenes").is_dir():
        pytest.skip(f"{ABSENT} (looked in {folder}; set DIFIX_SHARED)")
    return folder


@pytest.fixture(scope="session")
def shared_scenes(shared: Path) -> Path:
    return shared / "scenes"


@pytest.fixture(scope="session")
def photos() -> list[Path]:
    """The sample room's 32 photos, 320×240 pixels, sorted."""
    return sorted((cached_sample("room") / "images").iterdir())


@pytest.fixture(scope="session")
def arc(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A posed scene: eleven of the sample room's photos, 96×72 pixels, along half a circle, and its seed points."""
    names = {f"images/train_{i:03d}.png" for i in range(11)}
    return small_sample("room", tmp_path_factory.mktemp("scenes") / "arc", 96, names)


@pytest.fixture(scope="session")
def forked() -> Path:
    """A folder with `python` and `difix`, which begin without importing anything anew."""
    return Path(os.environ[_FORKS])


@pytest.fixture
def at_once(forked: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`difix` and `python`, also those of jobs, are those of `forked`."""
    monkeypatch.setattr(sys, "executable", str(forked / "python"))
    monkeypatch.setenv("PATH", os.pathsep.join([str(forked), os.environ["PATH"]]))
