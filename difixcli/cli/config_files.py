"""`--config FILE.yaml`, which every command has: its options from a file; what the line says counts instead."""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperCommand

from difixcli.cli.options import RUNNING
from difixcli.errors import short, unknown

_NEVER = ("config", "help")


class Command(TyperCommand):
    """A command with the option `--config`."""

    def __init__(self, *given: Any, **named: Any) -> None:
        super().__init__(*given, **named)
        self.params.append(_option())


def _defaults(context: typer.Context, value: Path | None) -> None:
    """Let the file's values stand for options that the line does not give."""
    if value is not None:
        context.default_map = {**(context.default_map or {}), **read_options(value, context.command.params)}


_Config = Annotated[
    Path | None,
    typer.Option(
        "--config",
        is_eager=True,  # read before the options whose defaults it gives
        expose_value=False,
        callback=_defaults,
        metavar="FILE",
        help="YAML file of options, as size: 480; those of the line count instead.",
        rich_help_panel=RUNNING,
    ),
]


@cache
def _option() -> Any:
    """The option as typer makes it."""
    app = typer.Typer(add_completion=False)

    @app.command()
    def read(config: _Config = None) -> None:
        pass

    return next(param for param in typer.main.get_command(app).params if param.name == "config")


def read_options(path: Path, params: Iterable[Any]) -> dict[str, Any]:
    """Values by parameter's name, of those that a YAML file names as the line does (`side-by-side`, or `side_by_side`).

    Each is a string, as it would stand on the line, a list of them for what may be repeated, or a bool for a flag.
    Raises typer.BadParameter, naming the key, for what a command has no option for or what an option cannot be.
    """
    import yaml

    try:
        held = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise typer.BadParameter(f"There is no file {path}; check its name.") from error
    except (OSError, UnicodeDecodeError, yaml.YAMLError, RecursionError) as error:
        raise typer.BadParameter(f"{path} cannot be read as YAML ({_first_line(error)}); mend it.") from error
    if held is None:
        return {}
    if not isinstance(held, dict):
        raise typer.BadParameter(f"{path} holds no options; write lines as size: 480.")
    named: dict[str, Any] = {}
    for param in params:
        words = [word.lstrip("-") for word in param.opts if word.startswith("--")] or [param.metavar or param.name]
        named |= {word.replace("_", "-"): param for word in words if word not in _NEVER}
    values: dict[str, Any] = {}
    for key, value in held.items():
        param = named.get(str(key).replace("_", "-"))
        if param is None:
            raise typer.BadParameter(f"{path}: {unknown('option', str(key), named)}")
        if param.name in values:
            raise typer.BadParameter(f"{path} gives {short(str(key))} twice; keep one.")
        values[param.name] = _value(path, str(key), param, value)
    return values


def _value(path: Path, key: str, param: Any, value: Any) -> Any:
    if getattr(param, "is_flag", False):
        if not isinstance(value, bool):
            raise typer.BadParameter(f"{path}: {key} is true or false, not {short(str(value))!r}.")
        return value
    several = bool(getattr(param, "multiple", False)) or param.nargs != 1
    entries = value if isinstance(value, list) and several else [value]
    for entry in entries:
        if isinstance(entry, bool | dict | list) or entry is None:
            hint = "put it in quotes if it is a word" if isinstance(entry, bool) else "write it as on the line"
            raise typer.BadParameter(f"{path}: {key} cannot be {short(str(entry))!r}; {hint}.")
    return [str(entry) for entry in entries] if several else str(value)


def _first_line(error: Exception) -> str:
    said = getattr(error, "strerror", None) or str(error)
    return " ".join(said.split("\n")[0].split())
