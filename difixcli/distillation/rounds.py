"""The rounds of a run on disk: what each has made, the checkpoint it began from, and going back to it.

    rounds/03/round.json                 poses and figures; `accepted` once the round is judged
    rounds/03/step-000001139.ckpt        the checkpoint it began from (a second name of the same file where possible)
    rounds/03/*.png                      renders, fixes, training targets, confidences
    rounds/03-rejected/                  the round that the guard took back; none comes after it

A view that keeps what it had names the files of the round that made them. Whatever moment a run is killed at, records
and checkpoints are enough to go on from: verdicts are written before they are carried out, and carrying them out twice
does no harm.
"""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path
from typing import Any

from difixcli.disk import name_again
from difixcli.errors import InputError, short
from difixcli.reconstruction.run_files import MODELS, latest_checkpoint
from difixcli.runs import read_json, write_json
from difixcli.shapes import Each

KEPT_BYTES = 8 * 2**30
"""How much checkpoints of earlier rounds may fill; the oldest go first."""

_RECORD = "round.json"
_VIEW = {
    "target": str,
    "frame": (None, str),
    "camera_to_world": [[float]],
    "lens": [float],
    "nearest": str,
    "files": Each(str),
    "terms": Each(float),
    "fresh": bool,
    "figures": Each((None, float)),
    "dropped": (None, str),
    "kept": bool,
}
_ROUND = {
    "round": int,
    "share": float,
    "views": [_VIEW],
    "kept": int,
    "dropped": int,
    "mean_confidence": (None, float),
    "accepted?": bool,
    "guard?": {"gain": (None, float)},
}


class Rounds:
    """The folder `rounds` of a run's folder."""

    def __init__(self, run: Path) -> None:
        self.run = run
        self.parent = run / "rounds"

    def folder(self, number: int) -> Path:
        return self.parent / f"{number:02d}"

    def record(self, number: int) -> dict[str, Any] | None:
        """What is written of a round, None before its fixes are whole."""
        path = self.folder(number) / _RECORD
        return _read(path) if path.is_file() else None

    def write(self, number: int, record: dict[str, Any]) -> None:
        write_json(self.folder(number) / _RECORD, record)

    def accepted(self, number: int) -> bool | None:
        """The guard's verdict on a round, None before there is one."""
        record = self.record(number)
        return None if record is None else record.get("accepted")

    def rejected(self) -> dict[str, Any] | None:
        """The record of the round that was taken back, if one was."""
        found = sorted(self.parent.glob(f"*-rejected/{_RECORD}"))
        return _read(found[0]) if found else None

    def records(self) -> list[dict[str, Any]]:
        """The accepted rounds' records, in order."""
        found = [self.record(number) for number in self._numbers()]
        return [record for record in found if record is not None and record.get("accepted")]

    def keep_checkpoint(self, number: int) -> None:
        """Keep the run's present checkpoint as the one that a round begins from."""
        source, folder = latest_checkpoint(self.run), self.folder(number)
        if not (folder / source.name).exists():
            folder.mkdir(parents=True, exist_ok=True)
            _link(source, folder / source.name)
        self._thin_out()

    def unfinished(self, number: int) -> bool:
        """Whether a round's views were being proposed when the process ended."""
        return self.record(number) is None and any(self.folder(number).glob("*.ckpt"))

    def take_back(self, number: int) -> None:
        """Undo a rejected round: the checkpoint it began from is the run's again, its pictures are set aside."""
        self.restore(number)
        folder = self.folder(number)
        aside = folder.with_name(f"{folder.name}-rejected")
        folder.rename(aside)
        for checkpoint in aside.glob("*.ckpt"):
            checkpoint.unlink()

    def check(self, number: int) -> None:
        """Raise InputError for a round that the run has not begun or whose checkpoint is no longer kept."""
        kept = [n for n in self._numbers() if any(self.folder(n).glob("*.ckpt"))]
        if number not in kept:
            have = f"there {'are' if len(kept) > 1 else 'is'} {', '.join(map(str, kept))}" if kept else "there is none"
            raise InputError(f"{self.run} has no checkpoint of the beginning of round {number}; {have}.")

    def rewind(self, number: int) -> None:
        """Go back to the beginning of a round: it and all later ones, and what came of them, are made anew.

        Raises what `check` raises, and then nothing has changed.
        """
        self.check(number)
        for renders in (self.run / "renders", self.run / "path"):
            for variant in ("distilled", "enhanced"):
                shutil.rmtree(renders / variant, ignore_errors=True)
        self.restore(number)
        self.forget_from(number)

    def forget_from(self, number: int) -> None:
        """Remove what is on disk of a round and all later ones, last first."""
        if not self.parent.is_dir():
            return
        for folder in sorted(self.parent.iterdir(), reverse=True):
            found = re.fullmatch(r"(\d+)(-rejected)?", folder.name)
            if found is not None and int(found[1]) >= number:
                shutil.rmtree(folder)

    def recover(self, photos: Path) -> str | None:
        """Where the run's newest checkpoint is damaged: go back to the last whole one that is kept, and say so.

        That is the beginning of a round, or the whole training on photos that the folder `photos` holds. None, and
        nothing has changed, where the newest one is whole, or no other is.
        """
        newest = latest_checkpoint(self.run)
        if _is_whole(newest):
            return None
        for number in reversed(self._numbers()):
            if any(map(_is_whole, sorted(self.folder(number).glob("*.ckpt"))[-1:])):
                newest.unlink()
                self.rewind(number)
                where = f"the beginning of round {number}"
                break
        else:
            kept = sorted((photos / MODELS).glob("*.ckpt"))[-1:]
            if not any(map(_is_whole, kept)):
                return None
            newest.unlink()
            _link(kept[0], newest.with_name(kept[0].name))
            self.forget_from(1)
            where = "the end of the training on photos"
        return f"The newest checkpoint, {newest.name}, is damaged: going on from {where}, the last whole one."

    def restore(self, number: int) -> None:
        """Let the checkpoint that a round began from be the run's again; InputError where it is lost."""
        checkpoints = sorted(self.folder(number).glob("*.ckpt"))
        if not checkpoints:
            raise InputError(f"{self.folder(number)} has lost the checkpoint that it began from; use --force.")
        models = self.run / "nerfstudio_models"
        target = models / checkpoints[-1].name
        if not target.exists():
            _link(checkpoints[-1], target)
        for other in models.glob("*.ckpt"):
            if other != target:
                other.unlink()

    def _thin_out(self) -> None:
        kept = [path for number in self._numbers() for path in sorted(self.folder(number).glob("*.ckpt"))]
        total = sum(path.stat().st_size for path in kept)
        for path in kept[:-1]:  # the last one may be needed at any moment
            if total <= KEPT_BYTES:
                return
            total -= path.stat().st_size
            path.unlink()

    def _numbers(self) -> list[int]:
        return sorted(int(path.name) for path in self.parent.glob("*") if path.name.isdecimal())


def _read(path: Path) -> dict[str, Any]:
    """A round's record; InputError for one that is broken."""
    record: dict[str, Any] = read_json(path, _ROUND)
    for view in record["views"]:
        if len(view["lens"]) != 6 or [len(row) for row in view["camera_to_world"]] != [4] * 4 or min(view["lens"]) <= 0:
            raise InputError(f"{path} has a view ({short(view['target'])}) without a camera; restore it or remove it.")
        if "target" not in view["files"]:
            raise InputError(f"{path} has a view ({short(view['target'])}) without an image; restore it or remove it.")
    return record


def _is_whole(checkpoint: Path) -> bool:
    from difixcli.reconstruction.checkpoints import read_checkpoint  # which imports torch

    try:
        read_checkpoint(checkpoint)
    except InputError:
        return False
    return True


def _link(source: Path, target: Path) -> None:
    """A second name of a file, which costs nothing; a copy where the file system knows none. Whole or not at all."""
    temporary = (
        target.parents[1] / f".{target.name}.{os.getpid()}.part"
    )  # nerfstudio reads a step from every name beside it
    try:
        name_again(source, temporary)
        os.replace(temporary, target)
    finally:
        temporary.unlink(missing_ok=True)
