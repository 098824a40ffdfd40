"""Writes each command's arguments and options, as the program has them, into its page.

    python recipes/docs/build.py

In PAGE.md what stands between the two marks is replaced; the rest is written by hand.
"""

from __future__ import annotations

import inspect
import typing
from enum import Enum
from pathlib import Path
from typing import Any

import typer.main
from typer.models import ArgumentInfo, ParameterInfo

from difixcli.cli import app, function_of
from difixcli.cli.lines import flags_of
from difixcli.cli.options import RUNNING

PAGES = Path(__file__).parent
BEGIN = "<!-- options: written by build.py -->"
END = "<!-- end of options -->"


def commands() -> dict[str, Any]:
    """The program's commands by name, in the order of its help."""
    return dict(typer.main.get_command(app).commands)  # type: ignore[attr-defined]


def tables(name: str) -> str:
    """A command's arguments and options as Markdown tables, one a section of its help.

    They are read from the command's signature, which does not change with typer's version.
    """
    sections: dict[str, list[str]] = {}
    for parameter in inspect.signature(function_of(name), eval_str=True).parameters.values():
        (info,) = (one for one in parameter.annotation.__metadata__ if isinstance(one, ParameterInfo))
        title = info.rich_help_panel or ("Arguments" if isinstance(info, ArgumentInfo) else "Options")
        sections.setdefault(title, []).append(_row(parameter, info))
    (config,) = (one for one in commands()[name].params if one.name == "config")
    sections.setdefault(RUNNING, []).append(_cells("`--config`", config.metavar, config.help, ""))
    head = "|  | takes | what it says | default |\n|---|---|---|---|\n"
    return "\n\n".join(f"**{title}**\n\n{head}{chr(10).join(rows)}" for title, rows in sections.items())


def _row(parameter: inspect.Parameter, info: ParameterInfo) -> str:
    annotation = parameter.annotation.__origin__
    inner = [one for one in typing.get_args(annotation) if one is not type(None)]
    if inner and typing.get_origin(annotation) is not list:  # X | None
        annotation = inner[0]
        inner = list(typing.get_args(annotation))
    several = bool(inner)
    kind = inner[0] if several else annotation
    argument = isinstance(info, ArgumentInfo)  # whose metavar is its name
    names = [(info.metavar or parameter.name).upper()] if argument else flags_of(parameter.name, info, kind is bool)
    default = parameter.default
    if default is parameter.empty or default is ...:
        shown = "required"
    elif kind is bool:
        shown = f"`{names[0 if default else 1]}`" if len(names) > 1 and names[1].startswith("--no-") else ""
    elif default is None or default == []:
        shown = ""
    else:
        shown = f"`{default.value if isinstance(default, Enum) else default}`"
    takes = _takes(kind, info) if argument else info.metavar or _takes(kind, info)
    said = ", ".join(f"`{one}`" for one in names)
    return _cells(said, f"{takes}, repeatable" if several else takes, info.help or "", shown)


def _takes(kind: Any, info: ParameterInfo) -> str:
    if kind is bool:
        return ""
    if isinstance(kind, type) and issubclass(kind, Enum):
        return ", ".join(f"`{one.value}`" for one in kind)
    word = {str: "text", Path: "path", int: "number", float: "number"}[kind]
    if info.min is not None and info.max is not None:
        return f"{word}, {info.min:,} to {info.max:,}"
    return word if info.min is None else f"{word} from {info.min:g}"


def _cells(*cells: str) -> str:
    return f"| {' | '.join(' '.join(cell.split()).replace('|', chr(92) + '|') for cell in cells)} |"


def with_tables(page: str, name: str) -> str:
    """A page's text with the command's tables between its marks. Raises ValueError without both marks."""
    before, begin, rest = page.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"The page of {name} wants the marks {BEGIN} and {END}.")
    return f"{before}{begin}\n\n{tables(name)}\n\n{end}{after}"


def main() -> None:
    for name in commands():
        page = PAGES / f"{name}.md"
        page.write_text(with_tables(page.read_text(encoding="utf-8"), name), encoding="utf-8")


if __name__ == "__main__":
    main()
