"""The face of the program: tables, progress and the one place where errors become messages and exit codes.

Results go to stdout, everything else to stderr. Exit codes: 0 done, 1 our fault, 2 the input's or the caller's, 3 some
of several scenes failed, 130 interrupted, 143 terminated.
"""

from __future__ import annotations

import errno
import functools
import json
import math
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

import typer
from rich.console import Console, ConsoleOptions, RenderResult
from rich.markup import escape
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    SpinnerColumn,
    Task,
    TextColumn,
    TimeRemainingColumn,
)
from rich.table import Table
from rich.text import Text

from difixcli import interrupts, streams
from difixcli.errors import InputError, less_memory, out_of_memory, runs_in_a_circle, short
from difixcli.runs import drop_empty_runs, finite, folder_at_work, forget_runs, removed_folder

if TYPE_CHECKING:
    from difixcli.curation.manifest import StageSummary

P = ParamSpec("P")
R = TypeVar("R")

out = Console(highlight=False)
err = Console(stderr=True, highlight=False)
watcher: Callable[[str, int, int], None] | None = None
"""Is told of all progress, too: label, how much is done, and of how much."""

UsageError: Any = typer.BadParameter.__base__  # click's, or typer's own copy of it

_EVERY = 10  # seconds between two lines of progress in a log
_LEAST_NAME = 8  # characters of a row's name that are shown in a line

# what the machine or its owner can mend: no space, no permission, a read-only disk
_CALLERS_ERRNO = {
    errno.ENOSPC,
    errno.EDQUOT,
    errno.EFBIG,
    errno.EACCES,
    errno.EPERM,
    errno.EROFS,
    errno.ENAMETOOLONG,
    errno.ELOOP,
}


_REMOVED = "The output folder {} was removed while the command was at work in it; run the same line again."


def handled(command: Callable[P, R]) -> Callable[P, R]:
    """Wrap a command so that every way it can end becomes a message and an exit code.

    With `as_json` the message is also the last line of stdout, as `{"error": …}`.
    """

    @functools.wraps(command)
    def run(*args: P.args, **kwargs: P.kwargs) -> R:
        forget_runs()
        try:
            return command(*args, **kwargs)
        except InputError as error:
            message, code = str(error), 2
            if (interruption := interrupts.interruption_behind(error)) is not None:
                message, code = _ended(interruption)
            drop_empty_runs()
        except KeyboardInterrupt as error:
            message, code = _ended(error)
        except BrokenPipeError:  # whoever read our output has left; typer ends without a word
            raise
        except OSError as error:
            if (gone := removed_folder()) is not None:
                message, code = _REMOVED.format(gone), 2
            elif error.errno not in _CALLERS_ERRNO:
                raise _fault(error, kwargs) from error
            else:
                named = error.filename or folder_at_work()
                where = f" ({short(str(named))})" if named else ""
                message = (
                    f"{error.strerror}{where}. Nothing already written is lost; mend this and run the same line again."
                )
                code = 2
        except (typer.Exit, typer.Abort, UsageError):
            raise
        except Exception as error:
            code = 2
            if (interruption := interrupts.interruption_behind(error)) is not None:
                message, code = _ended(interruption)
            elif out_of_memory(error):
                message = less_memory(kwargs)
            elif runs_in_a_circle(error):
                message = f"{error}, which leads back to itself; name another path."
            elif isinstance(error, UnicodeEncodeError) and "\udc80" <= error.object[error.start] <= "\udcff":
                around = error.object[max(0, error.start - 40) : error.end + 40]
                message = f"A name is not UTF-8, which a library needs ({around}); rename the file or folder."
            elif (gone := removed_folder()) is not None:
                message = _REMOVED.format(gone)
            else:
                raise _fault(error, kwargs) from error
        fail(message)
        error_as_json(message, kwargs)
        raise typer.Exit(code)

    return run


def _ended(interruption: KeyboardInterrupt) -> tuple[str, int]:
    """What is said of an interruption, and its exit code."""
    if isinstance(interruption, interrupts.Terminated):
        return "Terminated. Run the same command again to go on from here.", 143
    return "Interrupted. Run the same command again to go on from here.", 130


def _fault(error: Exception, options: Mapping[str, Any]) -> typer.Exit:
    """Print the traceback of a fault of ours and return how to end."""
    err.print(traceback.format_exc(), markup=False)
    err.print("[red]This is a fault in difix.[/] Please report it with the lines above.")
    error_as_json(f"a fault in difix: {type(error).__name__}: {error}", options)
    return typer.Exit(1)


def error_as_json(message: str, options: Mapping[str, Any]) -> None:
    """The error as the last line of stdout, where `--json` was asked for."""
    if options.get("as_json"):
        _write_json({"error": message})


def say(message: str) -> None:
    """One line for the person at the terminal, on stderr."""
    err.print(escape(message), soft_wrap=True)


def fail(message: str) -> None:
    """Say in one sentence what went wrong."""
    err.print(f"[red]Error:[/] {escape(message)}", soft_wrap=True)


def warn(message: str) -> None:
    err.print(f"[yellow]Warning:[/] {escape(message)}", soft_wrap=True)


class _Rate(ProgressColumn):
    def render(self, task: Task) -> Text:
        return Text(rate(task.speed or 0))


def rate(a_second: float) -> str:
    """So many a second; of what takes longer than a second, how long."""
    return f"{1 / a_second:.1f} s each" if 0 < a_second < 1 else f"{a_second:.1f}/s"


def span(seconds: float) -> str:
    """A span of time: 40 s, 12 min, 3.5 h."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


class PlainProgress:
    """Progress for logs: a line at most every so many seconds."""

    def __init__(self, label: str, total: int) -> None:
        self.label, self.total = label, total
        self.start = self.last = time.monotonic()
        self.done = 0
        self.first: tuple[float, int] | None = None  # when the first report came, and what was done by then
        self.reports = 0

    def __call__(self, done: int) -> None:
        now = time.monotonic()
        # what an earlier run had done says nothing about the pace of this one
        self.first = self.first or (now, done)
        if done >= self.total or now - self.last >= _EVERY:
            self.last = now
            since, before = self.first if done > self.first[1] else (self.start, 0)
            pace = (done - before) / max(now - since, 1e-6)
            # the first steps compile and fill caches: they say nothing about the rest
            left = f", {(self.total - done) / max(pace, 1e-6):.0f} s left" if self.reports and done < self.total else ""
            self.reports += 1
            say(f"{self.label}: {done}/{self.total}, {rate(pace)}{left}")
        self.done = done

    def tile(self, done: int, total: int) -> None:
        """So many tiles of the image that is being worked at are done."""
        now = time.monotonic()
        if now - self.last >= _EVERY:
            self.last = now
            say(f"{self.label}: {self.done}/{self.total}, and tile {done} of {total}")


class _Bar:
    """Progress on a terminal: a task of a bar that is shown."""

    def __init__(self, bar: Progress, label: str, total: int) -> None:
        self.bar, self.label = bar, escape(label)
        self.task = bar.add_task(self.label, total=total)

    def __call__(self, done: int) -> None:
        self.bar.update(self.task, completed=done, description=self.label)

    def tile(self, done: int, total: int) -> None:
        """So many tiles of the image that is being worked at are done."""
        self.bar.update(self.task, description=f"{self.label}, tile {done} of {total}")


_shown: list[PlainProgress | _Bar] = []
"""The progress that is shown, the innermost last."""


def tile_done(done: int, total: int) -> None:
    """Shows how far a large image is, beside the progress over images; without any, nothing."""
    if _shown:
        _shown[-1].tile(done, total)


@contextmanager
def progress(label: str, total: int) -> Iterator[Callable[[int], None]]:
    """A progress bar on a terminal, plain lines in a log; yields a function that takes the number done so far."""
    with ExitStack() as stack:
        shown: PlainProgress | _Bar
        if err.is_terminal:
            columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), _Rate())
            bar = Progress(*columns, TimeRemainingColumn(), console=err, transient=True)
            shown = _Bar(stack.enter_context(bar), label, total)
        else:
            shown = PlainProgress(label, total)
        _shown.append(shown)
        stack.callback(_shown.remove, shown)

        def told(done: int) -> None:
            shown(done)
            if watcher is not None:
                watcher(label, done, total)

        yield told


def figures_table(
    title: str,
    rows: Mapping[str, Mapping[str, float | None]],
    spreads: Mapping[str, Mapping[str, float | None]] | None = None,
) -> FiguresTable:
    """Rows of image figures, the best of each column in bold; a figure that is no number is missing (None).

    `spreads` are the standard deviations of some of them, by row.
    """
    from difixcli.evaluation.metrics import METRICS

    keys = [k for k in METRICS if any(k in row for row in rows.values())]
    best: dict[str, float] = {}
    for key in keys:
        values = [value for row in rows.values() if (value := row.get(key)) is not None and math.isfinite(value)]
        if values:
            best[key] = max(values) if METRICS[key].higher_is_better else min(values)
    cells: dict[str, list[Text]] = {}
    for name, row in rows.items():
        cells[name] = []
        for key in keys:
            value = row.get(key)
            text = "–" if value is None or math.isnan(value) else f"{value:.{METRICS[key].digits}f}"
            spread = (spreads or {}).get(name, {}).get(key)
            if spread is not None and math.isfinite(spread):
                text += f" ±{spread:.{METRICS[key].digits}f}"
            cells[name].append(Text(text, "bold" if len(rows) > 1 and value == best.get(key) else ""))
    return FiguresTable(title, [METRICS[key].label for key in keys], cells)


@dataclass(frozen=True)
class FiguresTable:
    """A table of figures that are never cut: columns that do not fit beside each other follow in further tables.

    `cells` has a cell for each of the `labels`, by row; names of rows are folded where they are long.
    """

    title: str
    labels: Sequence[str]
    cells: Mapping[str, Sequence[Text]]

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        rim, between = 4, 3  # characters of a table's frame
        widths = [
            max([len(label), *(len(row[i].plain) for row in self.cells.values())])
            for i, label in enumerate(self.labels)
        ]
        longest = max(map(len, self.cells), default=0)
        names = min(longest, max(options.max_width - max(widths, default=0) - rim - between, _LEAST_NAME))
        groups: list[list[int]] = [[]]
        taken = names + rim
        for i, width in enumerate(widths):
            if groups[-1] and taken + width + between > options.max_width:
                groups.append([])
                taken = names + rim
            groups[-1].append(i)
            taken += width + between
        for number, group in enumerate(groups):
            table = Table(title=self.title if not number else None, title_justify="left")
            table.add_column("", overflow="fold", min_width=names, max_width=names)
            for i in group:
                table.add_column(self.labels[i], justify="right", no_wrap=True, min_width=widths[i])
            for name, row in self.cells.items():
                table.add_row(escape(name), *(row[i] for i in group))
            needed = names + rim + sum(widths[i] + between for i in group)
            # where a single figure is wider than the window the lines are longer than it
            yield from console.render(table, options.update(width=max(options.max_width, needed)))


def pairs_table(stages: Sequence[StageSummary]) -> Table:
    """What curation made, a row a stage, with the pairs' PSNR as a histogram."""
    from difixcli.curation.manifest import PSNR_BINS, sparkline

    bars = f"{PSNR_BINS[0]:.0f} to {PSNR_BINS[-1]:.0f} dB"
    table = Table(title="Pairs", title_justify="left")
    table.add_column("scene/stage", overflow="fold")
    for name, least in (("pairs", 5), ("dropped", 7), ("PSNR", 5), ("SSIM", 6)):
        table.add_column(name, justify="right", overflow="fold", min_width=least)
    table.add_column(bars, no_wrap=True, min_width=len(PSNR_BINS) - 1)
    table.add_column("seconds", justify="right", overflow="fold")  # to reconstruct, and to make pairs of it
    for stage in stages:
        dropped = ", ".join(f"{count} {name}" for name, count in sorted(stage.dropped.items()))
        table.add_row(
            escape(stage.folder) + (" (test)" if stage.test else ""),
            str(stage.pairs),
            dropped or "0",
            f"{stage.psnr:.2f}",
            f"{stage.ssim:.3f}",
            sparkline(stage.histogram),
            f"{stage.seconds['reconstruction']:.0f} + {stage.seconds['pairs']:.0f}",
        )
    return table


def finish(results: Mapping[str, Any], as_json: bool, *tables: Table | FiguresTable) -> None:
    """Print a command's results on stdout: tables for people, one JSON object as the last line for machines.

    A figure that is no finite number (the PSNR of identical images) is null there.
    """
    for table in tables:
        (err if as_json else out).print(table, crop=False)
    if as_json:
        _write_json(results)
    if why := streams.failure():
        warn(f"The results could not be printed on stdout ({why}); all else is done.")


def _write_json(value: Mapping[str, Any]) -> None:
    sys.stdout.write(json.dumps(finite(value), sort_keys=True, allow_nan=False) + "\n")
    sys.stdout.flush()
