"""What commands are given: device, scenes, fixers, photos, and what of it decides whether a run is the same."""

from __future__ import annotations

import ctypes
import hashlib
import importlib.util
import json
import os
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from difixcli import console
from difixcli.cli.checking import options_end
from difixcli.cli.options import Device, Precision, Preset
from difixcli.errors import InputError, near
from difixcli.memory import keep_freed_memory
from difixcli.model_folders import Kind, beside, check_kind, looks_like_hub_name, no_model
from difixcli.runs import fingerprint

if TYPE_CHECKING:
    import torch

    from difixcli.fixer import Fixer
    from difixcli.scenes.scene import Scene, Split


_SLOW = 50 * 10**6  # pixels


def tell_loading(library: str = "torch") -> None:
    """Say, before anything imports torch or nerfstudio, that it takes seconds, in which else there would be no sign of
    life."""
    if library not in sys.modules:
        console.say(f"Loading {library} …")


def check_device(device: Device) -> None:
    """Raises InputError where CUDA is asked for and this machine has no driver of it, without which torch finds no
    device: that much is told without importing torch. Where torch is AMD's, whose devices are called so too, it tells.
    """
    driver = {"linux": "libcuda.so.1", "win32": "nvcuda.dll"}.get(sys.platform)
    if device is not Device.cuda or driver is None or "torch" in sys.modules:
        return
    found = importlib.util.find_spec("torch")
    folders = [] if found is None else found.submodule_search_locations or []
    if any(True for folder in folders for _ in (Path(folder) / "lib").glob("*torch_hip*")):
        return
    try:
        ctypes.CDLL(driver)
    except OSError:
        raise _no_cuda() from None


def _no_cuda() -> InputError:
    """The error where CUDA is asked for and absent."""
    return InputError("--device cuda was asked for, but there is no CUDA device here; use --device cpu or auto.")


def pick_device(device: Device, preset: Preset | None = None) -> tuple[str, str]:
    """The torch device to use and the preset that goes with it; InputError when CUDA is asked for and absent.

    Commands that train a reconstruction name a preset. On a CPU torch then has one thread: the compiled kernels bring
    their own, and a second one of torch's spins against them. Networks alone may have all threads.
    """
    options_end()
    check_device(device)
    tell_loading()
    import torch

    from difixcli.torchvision_cure import cure

    cure()
    there = torch.cuda.is_available()
    if device is Device.cuda and not there:
        raise _no_cuda()
    on = "cuda" if there and device is not Device.cpu else "cpu"
    if on == "cpu":
        if preset is not None:
            torch.set_num_threads(1)
        torch.set_flush_denormal(True)
    return on, ("gpu" if on == "cuda" else "cpu") if preset in (None, Preset.auto) else preset.value


def precision(dtype: Precision) -> torch.dtype:
    """auto is single precision here."""
    import torch

    names = {Precision.bf16: torch.bfloat16, Precision.fp16: torch.float16}
    return names.get(dtype, torch.float32)


def check_fixer(name: str) -> None:
    """Raises InputError for a name that means no fixer, as far as that can be told without importing torch."""
    check_model(name, "fixer")
    if name == "bundled":  # whatever is called so here
        return
    path = Path(name).expanduser()
    known = (path / "config.json").is_file() or all((path / x).is_dir() for x in ("unet", "vae"))
    if path.is_dir() and not known and not any(path.glob("*.pkl")):  # of a trainer: GeoQuery's stands for its folder
        raise InputError(
            f"{path} is not a fixer: it has neither config.json with model.safetensors nor the folders unet and vae."
        )
    if path.is_file() and path.suffix != ".pkl":
        raise InputError(f"{path} is not a fixer; name a fixer's folder, or the .pkl of a release's trainer.")


def check_model(name: str | None, kind: Kind) -> None:
    """Raises InputError for a name that means no model here and has not the form of one on the hub, and for a folder
    that holds a model of another kind."""
    if name is None or name == "bundled":
        return
    path = Path(name).expanduser()
    check_kind(path, kind)
    if path.exists():
        return
    if name.startswith((".", "/", "~")) or path.suffix == ".pkl":
        near_by = near(path.name, beside(path, kind))
        hint = f"did you mean {' or '.join(near_by)}?" if near_by else "check its name."
        raise InputError(f"There is no {kind} {path}; {hint}")
    if not looks_like_hub_name(name):
        raise no_model(name, kind)


def open_fixer(
    name: str, device: str, dtype: Precision = Precision.auto, compiled: bool = False, tile: int | None = None
) -> Fixer:
    """Load a fixer for use, not for training, and say under which licence it stands."""
    from difixcli.fixer import Fixer

    if device == "cpu":
        keep_freed_memory()
    console.say(f"Loading the fixer {name} …")
    fixer = Fixer.from_pretrained(name, merge=True)
    # what starts from the render's pixels needs their eight bits, and more
    half = dtype is Precision.auto and device == "cuda" and not fixer.config.is_small
    fixer.to(device, precision(Precision.bf16 if half else dtype))
    fixer.notice = console.warn
    fixer.tile = tile
    fixer.tile_done = console.tile_done
    if compiled:
        fixer.compile()
    console.say(f"Fixer {name}: licence {fixer.licence}")
    return fixer


def open_scene(spec: str, size: int | None, preset: str) -> Scene:
    """Load a scene at the asked size, or at what the preset can carry."""
    from difixcli.samples.sample import sample_folder
    from difixcli.scenes import load_scene

    if size is None and preset == "cpu":
        size = 240
    name = spec.removeprefix("sample:")
    if name != spec and not sample_folder(name).exists():
        console.say(f"Painting the sample scene {name}, once; this takes a minute.")
    if name == spec:
        _pose_once(Path(spec))
    console.say(f"Reading the scene {spec} …")
    scene = load_scene(spec, size)
    for warning in scene.warnings:
        console.warn(warning)
    return scene


def _pose_once(source: Path) -> None:
    """Pose photos or a video that are given in place of a scene, visibly, unless that is done and they are the same."""
    from difixcli.scenes.unposed import is_unposed, posed_already, posed_folder

    if not is_unposed(source):
        return
    from difixcli.cli.pose import PoseRequest
    from difixcli.cli.posing import posed
    from difixcli.posing import pose_inputs
    from difixcli.runs import run_record

    folder, done = posed_folder(source), posed_already(source)
    changed = False
    if done is not None:
        record = run_record(done)
        if record is not None and record["inputs"] == pose_inputs(source):
            console.say(f"{source} was posed before: using {done}")
            return
        changed = True
    why = "has changed since it was posed" if changed else "has no poses yet"
    console.say(f"{source} {why}: posing it into {folder}, once.")
    if not os.access(folder if folder.exists() else folder.parent, os.W_OK):
        raise InputError(f"{folder} cannot be written; run difix pose {source} --output SCENE, and name SCENE instead.")
    request = PoseRequest(source, output=folder, force=changed)
    request.validate()
    posed(request)


def size_of(scene: Scene) -> str:
    """The size at which a scene's photos are worked on, for people."""
    sizes = sorted({(frame.camera.width, frame.camera.height) for frame in scene.frames})
    return ", ".join(f"{width}×{height}" for width, height in sizes[:3]) + (", …" if len(sizes) > 3 else "")


def scene_spec(spec: str) -> str:
    """A scene's name for a run's record: its folder from the root on, or `sample:NAME`."""
    return spec if spec.startswith("sample:") else str(Path(spec).expanduser().absolute())


def scene_inputs(*scenes: Scene) -> dict[str, str]:
    """Fingerprints of the scenes: their photos, masks, poses, lenses and seed points."""
    from difixcli.scenes import scene_fingerprint

    return {f"scene {scene.name}": scene_fingerprint(scene) for scene in scenes}


def split_input(scene: Scene, split: Split) -> dict[str, str]:
    """Which frames train and which test, since the file of a split may change under its name."""
    names = [[scene.frames[i].name for i in part] for part in (split.train, split.test)]
    return {"split": hashlib.sha256(json.dumps(names).encode()).hexdigest()[:16]}


def fixer_input(name: str, key: str = "fixer") -> dict[str, str]:
    """The fingerprint of a fixer's files; a name on the hub or of an untrained network stands for itself."""
    from difixcli.fixer import local_files

    files = local_files(name)
    return {key: fingerprint(files)} if files else {}


def files_read(fixer: str, *scenes: Scene) -> list[Path]:
    """The files that a command reads, which no output may take the place of."""
    from difixcli.fixer import local_files

    return [*local_files(fixer), *(frame.image_path for scene in scenes for frame in scene.frames)]


def check_source(source: Path, output: Path | None) -> None:
    """InputError where images are to be read from and nothing is, or where they would be written beside."""
    if not source.exists():
        raise InputError(f"There is no image, folder or video {source}; check its name.")
    folder = source if source.is_dir() else source.parent
    if output is not None and output.expanduser().resolve() == folder.resolve():
        what = "the images themselves" if source.is_dir() else f"{source.name} itself"
        raise InputError(f"{output} holds {what}; choose another --output.")


def photos_named(references: Iterable[Path] | None) -> list[Path]:
    """The reference photos that are named, and all those of folders that are."""
    from difixcli.evaluation.pictures import image_files

    return [photo for path in references or () for photo in (sorted(image_files(path)) if path.is_dir() else [path])]


def photo_count(references: int | None, fixer: Fixer) -> int:
    """How many photos stand beside an image: as many as asked for, or as the fixer was trained with."""
    return references or max(fixer.config.views, 1)


def tell_slow(sizes: Mapping[Path, tuple[int, int]], factor: int = 1) -> None:
    """Say beforehand that an image is so large, once it is made `factor` times larger, that it takes minutes."""
    for path, (width, height) in sizes.items():
        pixels = width * height * factor**2
        if pixels > _SLOW:
            has = "will have" if factor > 1 else "has"
            console.say(
                f"{path.name} {has} {pixels // 10**6} million pixels; an image of that size takes minutes. --size N "
                "works at a smaller one."
            )
            return


def photos_told(photos: list[Path], count: int) -> str | None:
    """Which photos may stand beside an image, for people."""
    if len(photos) > count:
        return f"of {len(photos)} photos the {f'{count} ' if count > 1 else 'one '}most similar to each image"
    return ", ".join(path.name for path in photos) or None
