"""The `difix` program: one file a command, nothing but parsing and printing.

No torch and no nerfstudio at import: `difix --help` answers at once.
"""

from __future__ import annotations

import os
import warnings
from typing import Annotated

import typer

from difixcli import __version__, console, interrupts
from difixcli.cli.curate import curate
from difixcli.cli.distill import distill
from difixcli.cli.enhance import enhance
from difixcli.cli.evaluate import evaluate
from difixcli.cli.export import export
from difixcli.cli.finetune import finetune
from difixcli.cli.fix import fix
from difixcli.cli.pose import pose
from difixcli.cli.sample import sample
from difixcli.cli.status import status

app = typer.Typer(
    name="difix",
    help="Makes bad NeRFs and Gaussian splats good.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)


def main() -> None:
    """Entry point of the console script."""
    # threads that spin while they wait slow a busy machine down tenfold; heeded when torch is first imported
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    # the libraries' notes to their own developers would bury ours
    warnings.simplefilter("ignore")
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
):
    app.command(_name)(_command)
