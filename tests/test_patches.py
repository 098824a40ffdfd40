"""The table of what is changed in other libraries is true, and what is changed for a while is put back."""

from __future__ import annotations

import importlib
import inspect
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from difixcli.reconstruction.patches import (
    PATCHES,
    Patch,
    no_perceptual_download,
    on_device,
    quiet,
    stacks_without_source,
)


def found(name: str) -> Any:
    """What a full name stands for."""
    parts = name.split(".")
    for end in range(len(parts) - 1, 0, -1):
        try:
            held: Any = importlib.import_module(".".join(parts[:end]))
        except ModuleNotFoundError:
            continue
        for part in parts[end:]:
            held = getattr(held, part)
        return held
    raise ModuleNotFoundError(name)


@pytest.mark.parametrize("patch", PATCHES, ids=lambda patch: patch.what)
def test_the_table_names_what_is_there(patch: Patch) -> None:
    """In the libraries as they are installed, and for the very versions that the project asks for."""
    found(patch.what)
    assert callable(found(patch.by)) and patch.by.startswith("difixcli.") and patch.why
    assert f'"{patch.requirement}"' in (Path(__file__).parents[1] / "pyproject.toml").read_text()


def test_what_is_patched_for_a_while_is_put_back() -> None:
    from nerfstudio.models import splatfacto

    names = [
        patch.what
        for patch in PATCHES
        if patch.by.rpartition(".")[2]
        in {"quiet", "stacks_without_source", "no_perceptual_download", "on_device", "encode", "rasterization"}
    ]
    assert len(names) >= 8
    before = [found(name) for name in names]
    with (
        quiet(),
        stacks_without_source(),
        no_perceptual_download(splatfacto.SplatfactoModel),
        on_device("cpu", splatfacto.SplatfactoModel),
    ):
        inside = [found(name) for name in names]
    assert [name for name, one, other in zip(names, before, inside, strict=True) if one is other] == []
    assert all(one is other for one, other in zip(before, [found(name) for name in names], strict=True))


def test_a_stack_without_source_names_the_same_frames() -> None:
    whole = inspect.stack(0)
    with stacks_without_source():
        short = inspect.stack()
    assert [frame.function for frame in short] == [frame.function for frame in whole]
    assert short[0].frame is whole[0].frame and short[1].lineno == whole[1].lineno


def test_the_table_is_read_without_nerfstudio() -> None:
    code = "import difixcli.reconstruction.patches, sys; assert not {'nerfstudio', 'gsplat'} & {*sys.modules}"
    subprocess.run([sys.executable, "-c", code], check=True)
