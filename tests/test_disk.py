"""Copies of folders."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest

from difixcli.disk import copy_folder


def test_a_copy_leaves_out_what_it_should_and_shares_what_nobody_writes_again(tmp_path: Path) -> None:
    source, target = tmp_path / "run", tmp_path / "in" / "copy"
    for name in ("run.json", "config.yml", "scene/a.png", "scene/transforms.json", "renders/plain/b.png", ".part/c"):
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        (source / name).write_text(name)
    copy_folder(source, target, ("run.json", "renders", ".*"), ("*.png",))
    made = {path.relative_to(target).as_posix(): path for path in target.rglob("*") if path.is_file()}
    assert set(made) == {"config.yml", "scene/a.png", "scene/transforms.json"}
    for name, path in made.items():
        assert path.read_text() == name
        assert path.samefile(source / name) == (path.suffix == ".png")


def test_what_cannot_be_copied_says_why(tmp_path: Path) -> None:
    """A full disk is told by its errno."""
    (tmp_path / "run" / "scene").mkdir(parents=True)
    (tmp_path / "run" / "scene" / "gone.json").symlink_to(tmp_path / "nowhere")
    with pytest.raises(OSError, match="No such file") as told:
        copy_folder(tmp_path / "run", tmp_path / "copy")
    assert told.value.errno == errno.ENOENT
