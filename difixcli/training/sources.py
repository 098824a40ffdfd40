"""What trains, and on what, as it is named: bases; folders of pairs, their manifests, tars here and elsewhere."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from difixcli.errors import InputError, near, unknown
from difixcli.model_folders import SMALL_SIZES
from difixcli.runs import IMAGE_SUFFIXES, run_record


def check_small(base: str) -> None:
    """Raises InputError for what is nearly the name of a new small fixer, and no path."""
    if base not in SMALL_SIZES and not Path(base).exists() and near(base, SMALL_SIZES):
        raise unknown("base", base, SMALL_SIZES, "Or name a fixer to go on from.")


def pair_files(source: Path) -> list[Path]:
    """What holds the pairs of a folder: its `data.json`, else the tars in its `train` and `test`; a file is itself.

    Raises InputError for a folder that has neither, and for what is not there.
    """
    if not source.is_file() and not source.is_dir():  # a pipe would be waited for
        raise InputError(f"There are no pairs {source}; name a folder that difix curate made, its data.json or a tar.")
    if not source.is_dir():
        return [source]
    if (source / "data.json").is_file():
        return [source / "data.json"]
    tars = [tar for split in ("train", "test") for tar in sorted((source / split).glob("*.tar"))]
    if not tars:
        raise InputError(
            f"{source} holds neither a data.json nor tars in train/; name a folder that difix curate has finished "
            "(difix curate --merge --partial makes one of a part)."
        )
    return tars


def check_photos(folder: Path) -> None:
    """Raises InputError for what is no folder that photos lie under."""
    if not folder.is_dir():
        raise InputError(f"There is no folder {folder}; --photos wants a folder of JPEG or PNG photos.")
    if not any(path.suffix.lower() in IMAGE_SUFFIXES for path in folder.rglob("*")):
        raise InputError(f"No photo lies under {folder}; --photos wants a folder of JPEG or PNG photos.")


def check_pairs(source: Path) -> None:
    """Raises InputError for what holds no pairs, as far as the first byte of a file says it."""
    for file in pair_files(source):
        if file.suffix == ".tar":
            continue
        with file.open("rb") as opened:
            if opened.read(64).lstrip(b"\xef\xbb\xbf \t\r\n")[:1] != b"{":
                raise InputError(f"{file} is neither a manifest in JSON nor a tar; name a folder of pairs.")


def split_sources(sources: Sequence[str], stream: bool) -> tuple[list[Path], list[str]]:
    """What of the sources is looked up, and the tars that are streamed.

    Addresses that webdataset opens (`https://…`, `pipe:…`; braces are expanded: `shard-{000..099}.tar`) are always
    streamed. With `stream` so are tar files and a folder's `train/*.tar`, while its `test/*.tar` are looked up, as
    manifests are. Raises InputError for a missing tar.
    """
    import braceexpand

    looked_up: list[Path] = []
    streamed: list[str] = []
    for source in sources:
        path = Path(source)
        if is_remote(source) or (stream and source.endswith(".tar")):
            streamed += braceexpand.braceexpand(source)
        elif stream and path.is_dir() and not (path / "data.json").is_file():
            files = pair_files(path)
            streamed += [str(file) for file in files if file.parent.name == "train"]
            looked_up += [file for file in files if file.parent.name == "test"]
        else:
            looked_up.append(path)
    for tar in streamed:
        if not is_remote(tar) and not Path(tar).is_file():
            raise InputError(f"There is no tar {tar}; check its name.")
    if stream and not streamed:
        raise InputError("There are no tars to stream; curate with --format webdataset, or leave --stream out.")
    return looked_up, streamed


def is_remote(source: str) -> bool:
    """Whether a text names tars that webdataset fetches, not a file or folder."""
    return "://" in source or source.startswith("pipe:")


def is_super_resolution_run(folder: Path) -> bool:
    """Whether a folder is a run of `difix distill --prior super-resolution`."""
    held = run_record(folder)
    return held is not None and held["command"] == "distill" and bool(held["arguments"].get("enlargement"))
