"""The `difix` program: one file a command, nothing but parsing and printing.

No torch and no nerfstudio at import: `difix --help` answers at once. A command's own module is imported where that
command, or the list of all, is asked for: typer takes as long over the options of all as over anything else.
"""

from __future__ import annotations

import atexit
import gc
import os
import sys
import warnings
from collections.abc import Callable, Iterator, MutableMapping, Sequence
from contextlib import contextmanager
from importlib import import_module
from typing import Annotated, Any

import typer
import typer.main
from typer.core import TyperGroup

from difixcli import __version__, console, interrupts, streams
from difixcli.cli.config_files import Command

_MODULES = {
    "pose": "pose",
    "curate": "curate",
    "finetune": "finetune",
    "fix": "fix",
    "distill": "distill",
    "enhance": "enhance",
    "eval": "evaluate",
    "export": "export",
    "sample": "sample",
    "status": "status",
    "download": "download",
}
"""The commands, and the modules of this package in which a function of that name is one."""


def function_of(name: str) -> Callable[..., None]:
    """What a command calls."""
    function: Callable[..., None] = getattr(import_module(f"difixcli.cli.{_MODULES[name]}"), _MODULES[name])
    return function


class _Made(MutableMapping[str, Any]):
    """The commands by name, each made when it is first asked for."""

    def __init__(self) -> None:
        self._held: dict[str, Any] = dict.fromkeys(_MODULES)

    def __getitem__(self, name: str) -> Any:
        if self._held[name] is None:
            app = typer.Typer(add_completion=False, rich_markup_mode="rich")
            app.command(name, cls=Command)(function_of(name))
            self._held[name] = typer.main.get_command(app)
        return self._held[name]

    def __setitem__(self, name: str, command: Any) -> None:
        self._held[name] = command

    def __delitem__(self, name: str) -> None:
        del self._held[name]

    def __contains__(self, name: object) -> bool:
        return name in self._held  # without making it

    def __iter__(self) -> Iterator[str]:
        return iter(self._held)

    def __len__(self) -> int:
        return len(self._held)


class _Commands(TyperGroup):
    """The commands; what is typed wrongly is also said as JSON where that is asked for."""

    _as_json = False

    def __init__(self, *given: Any, **named: Any) -> None:
        super().__init__(*given, **named)
        self.commands = _Made()

    def list_commands(self, ctx: Any) -> list[str]:
        return list(self.commands)

    def get_command(self, ctx: Any, name: str) -> Any:
        if name not in self.commands:  # what a module's import raises is no unknown command
            return None
        return self.commands[name]

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
