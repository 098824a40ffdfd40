"""Compiling ahead: told where something is compiled, and all of what training then needs."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
from commands import IMPORT_PATH


def _fresh(code: str, *arguments: object, **environment: str) -> list[str]:
    """The lines that Python code prints in a process of its own, where nothing is compiled yet."""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code, *map(str, arguments)],
        env={**os.environ, "PYTHONPATH": IMPORT_PATH, **environment},
        check=True,
        stdout=subprocess.PIPE,
        text=True,
    )
    return done.stdout.splitlines()


CODE = """
import hashlib, sys
from pathlib import Path
from numba.core.dispatcher import Dispatcher
from difixcli.reconstruction import Reconstruction, adam, hash_encoding, rasteriser_kernels, ssim
from difixcli.reconstruction.compilation import compile_ahead
from difixcli.scenes import load_scene

def compiled():
    held = [value for module in (adam, hash_encoding, rasteriser_kernels, ssim) for value in vars(module).values()]
    return {one.py_func.__qualname__: set(one.signatures) for one in held if isinstance(one, Dispatcher)}

for method in ("splatfacto", "nerfacto"):
    compile_ahead(method, "cuda", print)
assert not any(compiled().values())
scene = load_scene("sample:room", 48)
for method in ("splatfacto", "nerfacto"):
    compile_ahead(method, "cpu", print)
    ahead = compiled()
    assert any(ahead.values())
    made = Reconstruction.create(
        scene, [0, 4, 8], method=method, folder=Path(sys.argv[1]) / method, preset="cpu", device="cpu", iterations=10
    )
    made.train(6)
    image = made.render(scene.frames[1].camera).color
    assert compiled() == ahead, method  # training found everything compiled
    print(hashlib.sha256(image.tobytes()).hexdigest())
"""


@pytest.fixture(scope="module")
def shown(tmp_path_factory: pytest.TempPathFactory) -> list[list[str]]:
    """What two processes print, of which the first compiles everything and the second finds it on the disk."""
    home = tmp_path_factory.mktemp("compiled")
    first = _fresh(CODE, home / "first", NUMBA_CACHE_DIR=str(home / "numba"))
    assert any((home / "numba").rglob("*.nbc"))
    return [first, _fresh(CODE, home / "second", NUMBA_CACHE_DIR=str(home / "numba"))]


def test_only_what_is_not_on_disk_is_compiled_and_told(shown: list[list[str]]) -> None:
    first, second = shown
    for line, what in zip(first[::2], ("rasteriser", "hash encoding"), strict=True):
        assert line.startswith(f"Compiling the {what} for this machine, once")
    assert len(first) == 4 and len(second) == 2


def test_what_was_just_compiled_computes_the_same_bits_as_what_is_on_disk(shown: list[list[str]]) -> None:
    """Or a first run that is stopped would not go on as it would have gone."""
    first, second = shown
    assert first[1::2] == second and len(set(second)) == 2


def test_without_a_place_to_keep_it_every_process_compiles() -> None:
    code = (
        "from numba.core.caching import CacheImpl\n"
        "CacheImpl._locator_classes = []\n"  # what numba is left with where no folder can be written
        "from difixcli.reconstruction.compilation import _hash_encoding, _told\n"
        "with _told(print, 'hash encoding'):\n"
        "    _hash_encoding()"
    )
    (told,) = _fresh(code)
    assert "in every process" in told and "NUMBA_CACHE_DIR" in told
