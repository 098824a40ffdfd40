"""What every test may use: a cache of the session's own, and the shared data beside the project, where it is there."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path

# Before anything of the program is imported. Workers and programs that tests start are given the environment, so all of
# a session paint into one cache, and nothing that another version painted for the user is ever read.
_PREFIX = "difix-tests-"
_MADE: str | None = None
if not Path(os.environ.get("DIFIX_CACHE", "")).name.startswith(_PREFIX):
    _MADE = os.environ["DIFIX_CACHE"] = tempfile.mkdtemp(prefix=_PREFIX)

import pytest  # noqa: E402
import torch  # noqa: E402

from difixcli.torchvision_cure import cure  # noqa: E402

cure()
torch.set_num_threads(1)


def pytest_unconfigure() -> None:
    if _MADE is not None:
        shutil.rmtree(_MADE, ignore_errors=True)


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of shared scenes, photos and golden weights; the test is skipped where it is absent."""
    folder = Path(os.environ.get("DIFIX_SHARED", Path(__file__).parents[2] / "shared"))
    if not (folder / "scenes").is_dir():
        pytest.skip(f"the shared data is not beside the project (looked in {folder}; set DIFIX_SHARED)")
    return folder


@pytest.fixture(scope="session")
def shared_scenes(shared: Path) -> Path:
    return shared / "scenes"


@pytest.fixture(scope="session")
def photos(shared: Path) -> list[Path]:
    """Generic photos, sorted."""
    return sorted((shared / "photos").rglob("*.jpg"))
