"""The `difix` program: one file a command, nothing but parsing and printing.

No torch and no nerfstudio at import: `difix --help` answers at once.
"""

from __future__ import annotations

import atexit
import gc
import os
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from difixcli import __version__, console, interrupts, streams
from difixcli.cli.config_files import Command
from difixcli.cli.curate import curate
from difixcli.cli.distill import distill
from difixcli.cli.download import download
from difixcli.cli.enhance import enhance
from difixcli.cli.evaluate import evaluate
from difixcli.cli.export import export
from difixcli.cli.finetune import finetune
from difixcli.cli.fix import fix
from difixcli.cli.pose import pose
from difixcli.cli.sample import sample
from difixcli.cli.status import status


class _Commands(TyperGroup):
    """The commands; what is typed wrongly is also said as JSON where that is asked for."""

    _as_json = False

    def main(self, args: Sequence[str] | None = None, *rest: Any, **named: Any) -> Any:
        self._as_json = "--json" in (sys.argv[1:] if args is None else args)
        return super().main(args, *rest, **named)

    def make_context(self, *given: Any, **named: Any) -> Any:
        with self._telling():
            return super().make_context(*given, **named)

    def invoke(self, ctx: Any) -> Any:
        with self._telling():
            return super().invoke(ctx)

    @contextmanager
    def _telling(self) -> Iterator[None]:
        try:
            yield
        except console.UsageError as error:
            console.error_as_json(error.format_message(), {"as_json": self._as_json})
            raise


app = typer.Typer(
    name="difix",
    cls=_Commands,
    help="Makes bad NeRFs and Gaussian splats good.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)


def main() -> None:
    """Entry point of the console script."""
    # threads that spin while they wait slow a busy machine down tenfold; heeded when torch is first imported
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    # the libraries' notes to their own developers would bury ours
    warnings.simplefilter("ignore")
    # or Python goes over all that torch and nerfstudio hold before it ends, which takes seconds
    atexit.register(gc.freeze)
    streams.prepare()
    interrupts.listen()
    app()


def _version(asked: bool) -> None:
    if asked:
        console.out.print(f"difix {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Print it.")] = False,
) -> None:
    pass


for _command, _name in (
    (pose, "pose"),
    (curate, "curate"),
    (finetune, "finetune"),
    (fix, "fix"),
    (distill, "distill"),
    (enhance, "enhance"),
    (evaluate, "eval"),
    (export, "export"),
    (sample, "sample"),
    (status, "status"),
    (download, "download"),
):
    app.command(_name, cls=Command)(_command)
