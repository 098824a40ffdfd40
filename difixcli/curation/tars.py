"""Pairs as tars in webdataset's layout: a tar a stage, every sample whole in itself."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from difixcli.curation.pairs import FILE_KEYS
from difixcli.runs import atomic


def tar_name(home: Path, test: bool) -> str:
    """The tar of the stage in OUTPUT/SCENE/STAGE (`home`), relative to OUTPUT."""
    return f"{'test' if test else 'train'}/{home.parent.name}__{home.name}.tar"


def write_tar(path: Path, folder: Path, entries: Mapping[str, Mapping[str, Any]]) -> None:
    """Write a stage's pairs, whose files lie under the output `folder`, into one tar, whole or not at all.

    A sample's key is the pair's id; its members are `image`, `target_image`, `ref_image_N`, `aligned_ref_N`,
    `opacity` and perhaps `depth` and `correspondence`, each with its file's suffix, and `json`, the entry without its
    paths. The same pairs give the same bytes.
    """
    from webdataset import TarWriter

    # old tars hold no long names, and data sets like to name their scenes by hashes
    about_tar = {"user": "", "group": "", "mtime": 0, "format": "PAX_FORMAT"}
    with (
        atomic(path) as temporary,
        temporary.open("wb") as file,
        TarWriter(file, encoder=False, **about_tar) as tar,
    ):
        for key in sorted(entries):
            entry = entries[key]
            about = {name: value for name, value in entry.items() if name not in (*FILE_KEYS, "files")}
            sample: dict[str, Any] = {"__key__": key, "json": json.dumps(about, sort_keys=True).encode()}
            for member, name in _members(entry).items():
                sample[f"{member}{Path(name).suffix}"] = (folder / name).read_bytes()
            tar.write(sample)


def _members(entry: Mapping[str, Any]) -> dict[str, str]:
    """A sample's members without their suffixes, and the files they hold."""
    single = ("image", "target_image", "opacity", "depth", "correspondence")
    members = {name: entry[name] for name in single if entry.get(name)}
    members |= {f"ref_image_{i}": name for i, name in enumerate(entry["ref_images"])}
    return members | {f"aligned_ref_{i}": name for i, name in enumerate(entry["aligned_refs"])}
