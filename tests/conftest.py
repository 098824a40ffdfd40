"""Fixtures every test may use: the shared data beside the project, where it is there."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

from difixcli.torchvision_cure import cure

cure()
torch.set_num_threads(1)


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
