"""The files on this machine that a super-resolver's name means."""

from __future__ import annotations

from pathlib import Path

from difixcli.errors import InputError
from difixcli.model_folders import check_kind, looks_like_hub_name, no_model

# What spandrel's library reads without running what a file says; .pt may be a program.
SUFFIXES = (".pth", ".ckpt", ".safetensors")
BUNDLED = Path(__file__).parent / "bundled"


def resolver_files(name: str | Path) -> list[Path]:
    """The files that decide what the super-resolver `name` makes, sorted; none of a name that means none here."""
    path = BUNDLED if str(name) == "bundled" else Path(name).expanduser()
    if path.is_file():
        return [path]
    if (path / "config.json").is_file():  # a network of ours, beside which its training may have left more
        return [file for file in (path / "config.json", path / "model.safetensors") if file.is_file()]
    return sorted(file for file in path.rglob("*") if file.is_file()) if path.is_dir() else []


def check_resolver(name: str) -> None:
    """Raises InputError for a path that holds no super-resolver, as far as that can be told without importing torch."""
    path = Path(name).expanduser()
    if name == "bundled":
        return
    check_kind(path, "super-resolver")
    if (path / "config.json").is_file():
        return
    if path.is_file():
        if path.suffix.lower() not in SUFFIXES:
            raise InputError(f"{path} is not a file of weights that is read here; give a {', '.join(SUFFIXES)} file.")
    elif path.is_dir():
        if not (path / "unet").is_dir():
            raise InputError(
                f"{path} is not a super-resolver: it has neither config.json with model.safetensors nor the folders "
                "unet and vae of a latent upscaler."
            )
    elif path.suffix.lower() in (*SUFFIXES, ".pt") or not looks_like_hub_name(name):
        raise no_resolver(name)


def check_own(name: str | Path) -> None:
    """Raises InputError for what is neither `bundled` nor a folder that has a network of ours."""
    folder = BUNDLED if str(name) == "bundled" else Path(name).expanduser()
    check_kind(folder, "super-resolver")
    if (folder / "model.safetensors").is_file() and (folder / "config.json").is_file():
        return
    if folder == BUNDLED:
        raise InputError("This installation has no bundled super-resolver; reinstall difixcli or name a folder.")
    raise InputError(
        f"{folder} holds no super-resolver (config.json and model.safetensors); name bundled, or a folder that difix "
        "finetune --task super-resolution wrote."
    )


def no_resolver(name: str) -> InputError:
    """The error for a name that means no super-resolver."""
    path = Path(name).expanduser()
    files = [p.name for p in path.parent.iterdir() if p.suffix in SUFFIXES] if path.parent.is_dir() else []
    return no_model(name, "super-resolver", files)
