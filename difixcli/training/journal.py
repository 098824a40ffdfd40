"""What a training writes down on its way: `log.jsonl`, the same for TensorBoard, and grids of images."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor

from difixcli.errors import InputError
from difixcli.runs import atomic, finite, write_image
from difixcli.shapes import check_shape, parsed
from difixcli.training.batches import Batch

if TYPE_CHECKING:
    from accelerate.tracking import GeneralTracker

_ROWS = 6  # of a grid


class Journal:
    """The records of one training, in `folder`; of several processes one has it, the others a silent one.

    A training that begins has nothing written until it says `keep`: one that is refused before leaves no files.

    Args:
        report: called with every record, besides.
        writes: False for a journal that writes nothing.
        trackers: what else has the values and grids, beside TensorBoard (`trackers.open_trackers`).
    """

    def __init__(
        self,
        folder: Path,
        report: Callable[[Mapping[str, Any]], None] | None = None,
        writes: bool = True,
        trackers: Sequence[GeneralTracker] = (),
    ) -> None:
        self.folder, self.report, self.writes, self.trackers = folder, report, writes, trackers
        self.file = folder / "log.jsonl"
        self._held: list[Mapping[str, Any]] | None = None  # until they are to be kept
        self._board: Any = None

    def begin(self) -> None:
        """Forget everything: a training that was stopped before its first checkpoint begins anew."""
        if self.writes:
            self.file.unlink(missing_ok=True)
            self._held = []

    def keep(self) -> None:
        """There is something to tell of: write what waited for it, and from now on all at once."""
        if self._held is None:
            return
        held, self._held = self._held, None
        self._open_board(0)
        for record in held:
            self._write(record)

    def go_on(self, step: int, done: Collection[str] = ()) -> None:
        """Forget what was written at this step or later: it will be written again.

        But for what was `done` after so many steps, before the checkpoint was written: events that come at that number.
        """
        if not self.writes:
            return
        if self.file.is_file():
            told = ((line, *_told(line)) for line in self.file.read_text().splitlines())
            kept = [line for line, event, at in told if at < step or (at == step and event in done)]
            with atomic(self.file) as temporary:
                temporary.write_text("".join(line + "\n" for line in kept))
        self._open_board(step + bool(done))  # which draws a point twice rather than lose one
        self({"event": "resume", "step": step})

    def __call__(self, record: Mapping[str, Any]) -> None:
        """Write a record: `event`, perhaps `step`, and values; those that are numbers are drawn over the steps."""
        if not self.writes:
            return
        if self._held is None:
            self._write(record)
        else:
            self._held.append(record)
        if self.report is not None:
            self.report(record)

    def _write(self, record: Mapping[str, Any]) -> None:
        with self.file.open("a") as file:
            file.write(json.dumps(finite(record), allow_nan=False) + "\n")
        if "step" in record:
            board, step = self._open_board(), record["step"]
            numbers = {n: float(v) for n, v in record.items() if isinstance(v, (int, float)) and n != "step"}
            named = {f"{record['event']}/{name}": value for name, value in numbers.items()}
            for name, value in named.items():
                board.add_scalar(name, value, step)
            for tracker in self.trackers:
                tracker.log(named, step=step)

    def images(self, step: int, batches: Sequence[Batch], fixed: Sequence[np.ndarray]) -> None:
        """Write `validation/STEP.png`: a row a view, with render, fixed image, truth and references."""
        if not self.writes:
            return
        rows = []
        for batch, image in list(zip(batches, fixed, strict=False))[:_ROWS]:
            row = [picture(batch.images), image, picture(batch.targets)]
            if batch.references is not None:
                row += [picture(batch.references[:, i]) for i in range(batch.references.shape[1])]
            rows.append(np.concatenate(row, axis=1))
        width = max(row.shape[1] for row in rows)
        grid = np.concatenate([np.pad(row, ((0, 0), (0, width - row.shape[1]), (0, 0))) for row in rows], axis=0)
        write_image(self.folder / "validation" / f"{step:07}.png", grid)
        self._open_board().add_image("validation", grid, step, dataformats="HWC")
        for tracker in self.trackers:
            if hasattr(tracker, "log_images"):
                tracker.log_images({"validation": [grid]}, step=step)

    def close(self) -> None:
        if self._board is not None:
            self._board.close()
            self._board = None
        for tracker in self.trackers:
            tracker.finish()
        self.trackers = ()

    def _open_board(self, purge_step: int | None = None) -> Any:
        if self._board is None:
            from torch.utils.tensorboard import SummaryWriter

            self._board = SummaryWriter(str(self.folder / "tensorboard"), purge_step=purge_step)
        return self._board


def picture(images: Tensor) -> np.ndarray:
    """(1, 3, H, W) → (H, W, 3) float32."""
    return images[0].permute(1, 2, 0).float().cpu().numpy()


def _told(line: str) -> tuple[str, int]:
    """A record's event, and its step: -1 where it has none."""
    try:
        record = parsed(line, "a record")
        check_shape(record, {"event": str, "step?": int}, "a record")
    except InputError:  # a line cut short by a kill
        return "", 2**62
    return record["event"], record.get("step", -1)
