"""Which scenes a run works on: folders, globs and list files, and a shard of them."""

from __future__ import annotations

import glob
from collections.abc import Collection, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TypeVar

from difixcli.errors import InputError
from difixcli.runs import file_name, unreadable
from difixcli.scenes.loading import SAMPLE_PREFIX, TRANSFORMS, scene_name
from difixcli.scenes.unposed import is_unposed, posed_folder

T = TypeVar("T")


def expand_scenes(specs: Sequence[str]) -> dict[str, str]:
    """Scenes by name, in the order given, from folders, `sample:NAME`, globs and list files.

    A glob (`data/*`) stands for the folders that match, sorted. `@FILE` stands for the lines of a text file, each of
    them any of these forms, relative to that file's folder; blank lines and lines that begin with # are skipped.

    Raises InputError for a list that cannot be read or that names itself, a glob without folders, no scene at all, and
    two of one name.
    """
    found: dict[str, str] = {}
    folders: dict[str, str] = {}
    for spec in (one for entry in specs for one in listed(entry)):
        name = scene_name(spec)
        if (folder := file_name(name)) in folders:
            if Path(folders[folder]).absolute() == Path(spec).absolute():
                continue
            raise InputError(
                f"Two scenes are called {folder} ({folders[folder]} and {spec}); rename one folder, or write them "
                "into two outputs."
            )
        found[name] = folders[folder] = spec
    if not found:
        raise InputError("There is no scene; name folders, or a list file that has some.")
    return found


def parse_shard(text: str) -> tuple[int, int]:
    """`0/2` as (0, 2); InputError for anything that is no shard."""
    index, _, count = text.partition("/")
    if not (index.isdecimal() and count.isdecimal() and int(index) < int(count)):
        raise InputError(f"--shard {text} is no shard; write 0/2 for the first of two, 1/2 for the second.")
    return int(index), int(count)


def shard_of(items: Sequence[T], shard: tuple[int, int] | None) -> list[T]:
    """Every n-th item from the i-th on, for a shard (i, n); all of them without one."""
    return list(items) if shard is None else list(items[shard[0] :: shard[1]])


def _is_run(folder: Path) -> bool:
    if (folder / TRANSFORMS).is_file():  # difix pose's run is a scene
        return False
    return (folder / "run.json").is_file()


def listed(spec: str, scenes: bool = True, within: Sequence[Path] = ()) -> list[str]:
    """What a folder, a glob or a list file stands for; see `expand_scenes`.

    A glob stands for folders that may be scenes, or (without `scenes`) for whatever matches. `within` are the lists of
    which it is a line.
    """
    if spec.startswith("@"):
        path = Path(spec[1:]).expanduser()
        if path.resolve() in within:
            raise InputError(f"The list {path} is a line of itself, or of a list that it names; take that line out.")
        try:
            lines = path.read_text(encoding="utf-8-sig").splitlines()
        except OSError as error:
            raise unreadable(f"The list {path}", error) from error
        except UnicodeDecodeError as error:
            raise InputError(f"The list {path} cannot be read ({error}); name a text file.") from None
        entries = [line.strip() for line in lines if line.strip() and not line.strip().startswith("#")]
        specs = (_placed(entry, path.parent) for entry in entries)
        return [one for spec in specs for one in listed(spec, scenes, [*within, path.resolve()])]
    if glob.has_magic(spec) and not Path(spec).exists():
        found = [Path(one) for one in glob.glob(str(Path(spec).expanduser()))]
        if not scenes:
            if not found:
                raise InputError(f"Nothing matches {spec}; check the pattern.")
            return sorted(map(str, found))
        # what difix itself writes by default is no scene
        folders = sorted(str(one) for one in found if one.is_dir() and one.name != "outputs" and not _is_run(one))
        # photos and the scene that was made of them are one
        folders = [one for one in folders if not (is_unposed(Path(one)) and str(posed_folder(Path(one))) in folders)]
        if not folders:
            raise InputError(f"No folder matches {spec}; check the pattern.")
        return folders
    return [spec]


def _placed(entry: str, folder: Path) -> str:
    """A line of a list in this folder, as it is named from the current one."""
    if entry.startswith(SAMPLE_PREFIX):
        return entry
    mark = "@" if entry.startswith("@") else ""
    return mark + str(folder / Path(entry.removeprefix(mark)).expanduser())


def check_test_scenes(test_scenes: Sequence[str], names: Collection[str]) -> None:
    """InputError for a name or pattern of test scenes that is none of the scenes."""
    for pattern in test_scenes:
        if not any(fnmatchcase(name, pattern) for name in names):
            raise InputError(f"--test-scene {pattern} is none of the scenes {', '.join(names)}.")
