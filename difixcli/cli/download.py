"""`difix download`: what a line will need, fetched beforehand."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from difixcli import console
from difixcli.cli.inputs import tell_loading
from difixcli.cli.options import JsonOption
from difixcli.errors import InputError

if TYPE_CHECKING:
    from difixcli.model_folders import Kind

_HUB_OPTIONS: dict[str, Kind] = {
    "fixer": "fixer",
    "sr": "super-resolver",
    "view_diffusion": "view-diffusion",
    "video": "video",
}
_TASKS: dict[str, Kind] = {"super-resolution": "super-resolver", "view-diffusion": "view-diffusion"}
_OF_METRICS = {"lpips": "lpips-alex", "lpips-vgg": "lpips-vgg", "fid": "inception"}


@console.handled
def download(
    what: Annotated[
        list[str],
        typer.Argument(
            help="Models OWNER/NAME of the Hugging Face hub, lpips-vgg, lpips-alex, inception; or a line, behind --: "
            "-- finetune PAIRS --base stabilityai/sd-turbo."
        ),
    ],
    as_json: JsonOption = False,
) -> None:
    """Fetch what a line of difix needs, so that it runs with the network off afterwards."""
    from difixcli.downloads import check_download, fetch

    command, options = _line(what)
    for name in what if command is None else ():
        check_download(name)
    tell_loading()
    found: dict[str, str] = {}

    def get(name: str, kind: Kind = "fixer") -> Path:
        path = fetch(name, kind)
        if name not in found:
            console.say(f"{name}: {path}")
        found[name] = str(path)
        return path

    if command is None:
        for name in what:
            get(name)
    else:
        _fetch_for(command, options, get)
        if not found:
            console.say("That line needs nothing from the network.")
    console.finish({"results": found}, as_json)


def _line(words: list[str]) -> tuple[str | None, Mapping[str, Any]]:
    """The command of a line and what its options would be; None for words that are no line."""
    import typer.main

    from difixcli.cli import app

    commands = typer.main.get_command(app).commands  # type: ignore[attr-defined]
    if words[0] not in commands:
        if any(word.startswith("-") for word in words):
            raise InputError(f"{words[0]} is no command of difix; name what to fetch, or a line that begins with one.")
        return None, {}
    return words[0], commands[words[0]].make_context(words[0], words[1:]).params


def _fetch_for(command: str, options: Mapping[str, Any], get: Any) -> None:
    from difixcli.downloads import needs_of_training
    from difixcli.model_folders import looks_like_hub_name

    def is_hub_name(value: str | None) -> bool:
        return value is not None and not Path(value).expanduser().exists() and looks_like_hub_name(value)

    for option, kind in _HUB_OPTIONS.items():
        if is_hub_name(options.get(option)):
            get(options[option], kind)
    if command == "finetune":
        task, base = options["task"].value, options["base"]
        folder = get(base, _TASKS.get(task, "fixer")) if is_hub_name(base) else None
        if task == "fixer":
            for name in needs_of_training(base, folder, options["perceptual"]):
                get(name)
        elif options["perceptual"] == "lpips-vgg":
            get("lpips-vgg")
    if command == "eval" and options.get("metrics"):
        for metric in options["metrics"].split(","):
            network = _OF_METRICS.get(metric.strip().lower().replace("_", "-"))
            if network is not None and not (network == "inception" and options.get("inception")):
                get(network)
