"""The `difix` program: one function a command, nothing but parsing and printing.

No torch and no nerfstudio at import: `difix --help` answers at once.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import time
import warnings
from collections.abc import Mapping
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from difixcli import __version__, console
from difixcli.errors import InputError, unknown
from difixcli.runs import Run, check_folder, file_name, find_run, fingerprint, make_folder, read_json, write_json

if TYPE_CHECKING:
    import torch

    from difixcli.curation.curate import Curated
    from difixcli.enhancement import Film
    from difixcli.fixer import Fixer
    from difixcli.scenes.scene import Scene, Split

app = typer.Typer(
    name="difix",
    help="Makes bad NeRFs and Gaussian splats good.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


class Device(str, Enum):
    auto = "auto"
    cpu = "cpu"
    cuda = "cuda"


class Precision(str, Enum):
    auto = "auto"
    bf16 = "bf16"
    fp16 = "fp16"
    fp32 = "fp32"


class Resize(str, Enum):
    release = "release"


class Preset(str, Enum):
    auto = "auto"
    cpu = "cpu"
    gpu = "gpu"


SceneArgument = Annotated[str, typer.Argument(help="A posed scene's folder, or sample:room, sample:street.")]
MethodOption = Annotated[str, typer.Option(help="Any nerfstudio method: nerfacto, splatfacto, a plug-in's.")]
SplitOption = Annotated[
    str | None,
    typer.Option(help="Which frames train: every:N, clusters, groups:K, names:PATTERN, camera:ID, file:JSON, all."),
]
SizeOption = Annotated[int | None, typer.Option(help="Long side to work at, in pixels.", min=16)]
SeedOption = Annotated[int, typer.Option(help="Seed of everything random.")]
DeviceOption = Annotated[Device, typer.Option(help="Where to compute.")]
PresetOption = Annotated[Preset, typer.Option(help="Sizes and schedules for a laptop or a GPU.")]
SetOption = Annotated[list[str] | None, typer.Option("--set", help="Method setting, as pipeline.model.x=y.")]
OutputOption = Annotated[Path | None, typer.Option("--output", "-o", help="Where to write; made if missing.")]
ForceOption = Annotated[bool, typer.Option("--force", help="Replace an earlier run in the output folder.")]
ITERATIONS = "Training steps of a reconstruction; by default 1500 (splats) or 1000 on a CPU, 30000 on a GPU."
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON object as the last line of stdout.")]
FixerOption = Annotated[str, typer.Option(help="bundled, a folder, a .pkl of the release, or a hub name.")]
ReferenceOption = Annotated[
    list[Path] | None, typer.Option(help="A clean photo of the scene, or a folder of them; repeatable.")
]
ReferencesOption = Annotated[
    int | None, typer.Option(help="How many photos stand beside an image, at most (default: the fixer's).", min=1)
]


def main() -> None:
    """Entry point of the console script."""
    # threads that spin while they wait slow a busy machine down tenfold; heeded when torch is first imported
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    # the libraries' notes to their own developers would bury ours
    warnings.simplefilter("ignore")
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


@app.command()
@console.handled
def sample(
    name: Annotated[str, typer.Argument(help="room or street.")],
    folder: Annotated[Path, typer.Argument(help="Where to write the scene; made if missing.")],
    seed: SeedOption = 0,
    force: ForceOption = False,
    as_json: JsonOption = False,
) -> None:
    """Write a procedural posed scene with true images at every pose."""
    from difixcli.scenes import load_scene
    from difixcli.scenes.sample import check_sample, write_sample

    if folder.exists() and not folder.is_dir():
        raise InputError(f"{folder} is a file; choose another folder.")
    if folder.exists() and any(folder.iterdir()) and not force:
        raise InputError(f"{folder} is not empty; choose another folder, or write over it with --force.")
    check_sample(name)
    make_folder(folder)
    console.say(f"Painting {name}; this takes a minute.")
    write_sample(name, folder, seed)
    scene = load_scene(str(folder))
    console.say(f"Wrote {len(scene.frames)} posed images to {folder}.")
    console.finish({"frames": len(scene.frames), "folder": str(folder)}, as_json)


@app.command()
@console.handled
def curate(
    scenes: Annotated[
        list[str] | None,
        typer.Argument(help="Scene folders, globs, or @LIST with one a line; the current folder by default."),
    ] = None,
    strategy: Annotated[str, typer.Option(help="sparse, cycle, underfit or cross-camera.")] = "sparse",
    method: MethodOption = "splatfacto",
    split: Annotated[
        list[str] | None,
        typer.Option(
            help="Which frames train: every:N, clusters, groups:K, names:PATTERN, camera:ID, file:JSON; repeatable."
        ),
    ] = None,
    shift: Annotated[
        list[str] | None,
        typer.Option(help="cycle: sideways shift, 2m or a share of the path (default 0.1); repeatable."),
    ] = None,
    stop: Annotated[
        list[str] | None,
        typer.Option(help="underfit: share of the schedule to stop at (default 25%, 50%, 75%); repeatable."),
    ] = None,
    references: Annotated[int, typer.Option(help="Reference photos beside each render.", min=0)] = 3,
    test_scene: Annotated[
        list[str] | None, typer.Option(help="Names or patterns of scenes kept for testing; repeatable.")
    ] = None,
    keep: Annotated[
        list[str] | None, typer.Option(help="Keep pairs that are failed, perfect or blurred; repeatable.")
    ] = None,
    depth: Annotated[bool, typer.Option("--depth", help="Also write the renders' depth (float32 .npz).")] = False,
    keep_models: Annotated[
        bool, typer.Option("--keep-models", help="Keep the reconstructions in SCENE/models.")
    ] = False,
    image_format: Annotated[str, typer.Option(help="Of renders and photos: png, webp or jpeg.")] = "png",
    pairs_format: Annotated[str, typer.Option("--format", help="folder, or webdataset for tars.")] = "folder",
    shard: Annotated[str | None, typer.Option(help="Every n-th scene from the i-th on, as 0/4.")] = None,
    merge: Annotated[
        bool, typer.Option("--merge", help="Merge the folders of shards, or of other runs, named instead of scenes.")
    ] = False,
    iterations: Annotated[int | None, typer.Option(help=ITERATIONS, min=1)] = None,
    size: SizeOption = None,
    seed: SeedOption = 0,
    preset: PresetOption = Preset.auto,
    device: DeviceOption = Device.auto,
    settings: SetOption = None,
    output: OutputOption = None,
    force: ForceOption = False,
    as_json: JsonOption = False,
) -> None:
    """Make (render, photo) pairs from posed scenes, to train a fixer on."""
    if merge:
        _merge_pairs([Path(folder) for folder in scenes or ["."]], output, force, as_json)
        return
    from difixcli.curation.scene_list import expand_scenes, parse_shard, shard_of
    from difixcli.scenes import check_rule, check_scene

    # what can be told without torch and nerfstudio is told before they are imported, which takes long
    named = expand_scenes(scenes or ["."])
    if len(named) == 1:  # of several, one that is not there is reported at the end and stops no other
        check_scene(next(iter(named.values())))
    for rule in split or []:
        check_rule(rule)
    part = None if shard is None else parse_shard(shard)
    if output is not None:
        check_folder(output)

    from difixcli.curation.curate import DEFAULT_SHIFTS, DEFAULT_STOPS, Recipe, check_test_scenes, plan
    from difixcli.curation.curate import curate as make_pairs
    from difixcli.reconstruction import default_iterations, known_methods
    from difixcli.reconstruction.compilation import compile_ahead

    on, sizes = _device(device, preset)
    recipe = Recipe(
        strategy=strategy,
        method=method,
        preset=sizes,
        device=on,
        iterations=iterations,
        splits=split or [],
        shifts=shift or DEFAULT_SHIFTS,
        stops=stop or DEFAULT_STOPS,
        views=references,
        seed=seed,
        overrides=settings or [],
        keep=keep or [],
        keep_models=keep_models,
        image_format=image_format,
        depth=depth,
        format=pairs_format,
    )
    for option, given, users in (
        ("--split", split, ("sparse", "underfit", "cross-camera")),
        ("--shift", shift, ("cycle",)),
        ("--stop", stop, ("underfit",)),
    ):
        if given and strategy not in users:
            raise InputError(f"{option} belongs to {', '.join(users)} and says nothing to {strategy}; leave it out.")
    check_test_scenes(test_scene or [], named)
    chosen = {name: named[name] for name in shard_of(list(named), part)}
    joined = "-".join(file_name(name) for name in list(named)[:3])
    folder = output or Path("outputs") / "pairs" / f"{joined}-{strategy}-{method}"
    if method not in (methods := known_methods()):
        raise unknown("method", method, methods)
    if len(named) == 1:  # a lone scene that does not fit leaves nothing behind
        plan(_scene(next(iter(named.values())), size, sizes), recipe, folder)
    arguments = {
        **vars(recipe),
        "size": size,
        "test_scenes": test_scene or [],
        "scenes": list(named),  # by name: a cluster's machines may see them under other paths
    }
    reads = [Path(spec) for spec in named.values() if not spec.startswith("sample:")]
    run = Run.open(folder, "curate", arguments, {}, force, reads=reads, shard=part)
    rule = split or "each scene's own, else every:4"
    told: dict[str, dict[str, Any]] = {
        "cycle": {"shift": list(recipe.shifts)},
        "underfit": {"split": rule, "stop": list(recipe.stops)},
        "cross-camera": {"split": split or "the rig's first camera"},
        "sparse": {"split": rule},
    }
    _announce(
        run,
        scenes=f"{len(chosen)} of {len(named)}",
        strategy=strategy,
        method=method,
        **told[strategy],
        iterations=iterations or default_iterations(method, sizes),
        size=size or (240 if sizes == "cpu" else "the photos' own"),
        preset=sizes,
        device=on,
    )
    compile_ahead(method, on, console.say)
    curated = make_pairs(
        chosen, lambda spec: _scene(spec, size, sizes), recipe, run, test_scene or [], console.progress
    )
    run.finish(curated.results())
    if part is not None:
        console.say(f"When all {part[1]} shards are done: difix curate --merge {folder}")
    _finish_pairs(curated, run.folder, as_json)


def _merge_pairs(folders: list[Path], output: Path | None, force: bool, as_json: bool) -> None:
    """`difix curate --merge`: into the output, or in place where one folder is named."""
    from difixcli.curation.merge import merge

    if output is None and len(folders) > 1:
        raise InputError("Merging several folders needs one more to write to; name it with --output.")
    folder = output or folders[0]
    if folder.absolute() not in [path.absolute() for path in folders]:
        run = Run.open(folder, "curate", {"merge": [path.absolute() for path in folders]}, {}, force, reads=folders)
        curated = merge(folders, run.folder)
        run.finish(curated.results())
    else:
        curated = merge(folders, folder)
    _finish_pairs(curated, folder, as_json)


def _finish_pairs(curated: Curated, folder: Path, as_json: bool) -> None:
    """Print what was curated; exit code 2 when a scene failed, 1 when one failed through a fault of ours."""
    results = curated.results()
    where = folder / "data.json" if (folder / "data.json").is_file() else folder
    if results["pairs"]:
        console.say(f"{results['pairs']} pairs, renders at {results['psnr']:.2f} dB on average: {where}")
    elif dropped := {name: count for name, count in results["dropped"].items() if count}:
        said = ", ".join(f"{count} {name}" for name, count in dropped.items())
        console.warn(f"No pair is left ({said}); train longer, or keep them with --keep {next(iter(dropped))}.")
    found = {"results": results, "output": str(folder)}
    if not curated.failed:
        console.finish(found, as_json, console.pairs_table(curated.stages))
        return
    name, failure = next(iter(curated.failed.items()))
    if len(curated.failed) == 1 and not curated.stages:
        message = failure.message
    else:
        message = f"{len(curated.failed)} of the scenes failed, the others are whole. {name}: {failure.message}"
    console.finish({**found, "error": message}, as_json, console.pairs_table(curated.stages))
    for name, failure in list(curated.failed.items())[1:]:
        console.warn(f"Scene {name} failed: {failure.message}")
    faults = [failure.fault for failure in curated.failed.values() if failure.fault]
    for fault in faults[:1]:
        console.say(f"{fault}This is a fault in difix. Please report it with the lines above.")
    console.fail(message)
    raise typer.Exit(1 if faults else 2)


@app.command()
@console.handled
def fix(
    source: Annotated[Path | None, typer.Argument(help="An image or a folder of images.")] = None,
    reference: ReferenceOption = None,
    scene: Annotated[
        str | None, typer.Option(help="Posed scene whose frames the images are named after: nearest photos by pose.")
    ] = None,
    references: ReferencesOption = None,
    fixer: FixerOption = "bundled",
    size: SizeOption = None,
    resize: Annotated[Resize | None, typer.Option(help="release: work at 1024×576, as Difix3D's release does.")] = None,
    tile: Annotated[
        int | None, typer.Option(help="Side of the tiles for large images (default 1024, 1536 on a GPU).", min=256)
    ] = None,
    fill_unseen: Annotated[
        bool, typer.Option("--fill-unseen", help="Invent what is transparent, from noise (raw references only).")
    ] = False,
    confidence: Annotated[
        bool, typer.Option("--confidence", help="Also write NAME.confidence.png; takes twice as long.")
    ] = False,
    export: Annotated[Path | None, typer.Option(help="Write the fixer as our folder; needs no images.")] = None,
    merge_lora: Annotated[
        bool, typer.Option("--merge-lora", help="With --export: work adapters into the weights.")
    ] = False,
    dtype: Annotated[Precision, typer.Option(help="auto: bf16 for raw references on a GPU, else fp32.")] = (
        Precision.auto
    ),
    compiled: Annotated[bool, typer.Option("--compile", help="Compile the network first; pays on a GPU.")] = False,
    seed: SeedOption = 0,
    device: DeviceOption = Device.auto,
    output: OutputOption = None,
    force: ForceOption = False,
    as_json: JsonOption = False,
) -> None:
    """Clean images, with clean photos of the same scene beside them."""
    from difixcli.enhancement import check_images
    from difixcli.enhancement.fix import FixOptions, fix_images
    from difixcli.enhancement.images import has_alpha, listed_images
    from difixcli.enhancement.references import ReferencePhotos
    from difixcli.enhancement.video import is_video

    if merge_lora and export is None:
        raise InputError("--merge-lora belongs to --export DIR; for images adapters are always merged.")
    if source is None:
        if export is None:
            raise InputError("Nothing to fix; name an image or a folder of images, or a folder to --export to.")
        of_images = {
            **{"--reference": reference, "--scene": scene, "--references": references, "--size": size},
            **{"--resize": resize, "--tile": tile, "--fill-unseen": fill_unseen, "--confidence": confidence},
            **{"--compile": compiled, "--seed": seed, "--device": device is not Device.auto, "--output": output},
        }
        if given := [option for option, value in of_images.items() if value]:
            raise InputError(
                f"Without images {', '.join(given)} would say nothing: a lone --export writes the fixer alone. Name an "
                "image or a folder of images too, or leave that out."
            )
        console.finish({"exported": _export(fixer, export, merge_lora, dtype, force)}, as_json)
        return
    if scene is not None and reference:
        raise InputError("--scene and --reference both choose the photos; leave one of them out.")
    if references is not None and scene is None and not reference:
        raise InputError("--references says how many photos count; name them with --reference, or a --scene.")
    if is_video(source):
        raise InputError(f"{source} is a video; use difix enhance for it.")
    folder = output or _beside(source, "fixed")
    files = list(listed_images(source, folder, size))
    photos = [photo for path in reference or [] for photo in _photos(path)]
    on, _ = _device(device)
    posed = None if scene is None else _scene(scene, None, "gpu")
    network = _fixer(fixer, on, dtype, compiled)
    network.tile = tile
    for warning in check_images(source, folder, photos):
        console.warn(warning)
    if fill_unseen and network.config.references == "aligned":
        raise InputError(f"The fixer {fixer} has no noise to invent from; leave out --fill-unseen or name another.")
    if fill_unseen and not any(has_alpha(path) for path in files):
        raise InputError(f"No image of {source} has an alpha channel to say what was not seen; drop --fill-unseen.")
    if network.config.references == "raw" and network.config.views and not (photos or posed):
        console.warn(f"The fixer {fixer} was trained with a reference photo; give --reference, or expect less of it.")
    count = _count(references, network)
    if posed is None:
        choice = ReferencePhotos.by_likeness(photos, count)
    else:
        choice = ReferencePhotos.by_pose(posed, files, count)
    options = FixOptions(resize is Resize.release, confidence, seed if fill_unseen else None)
    arguments = {"source": source.absolute(), "references": photos, "fixer": fixer, "size": size, **vars(options)}
    arguments |= {"scene": scene and _spec(scene), "count": count if photos or scene else None}
    arguments |= {"tile": tile, "dtype": str(network.dtype), "compiled": compiled}
    # by content: renders made anew often have the names and sizes of those before
    inputs = {"source": fingerprint(files, content=True), "references": fingerprint(photos, content=True)}
    inputs |= _fixer_input(fixer) | ({} if posed is None else _inputs(posed))
    reads = [source, *photos, *_read_files(fixer, *([] if posed is None else [posed]))]
    run = Run.open(folder, "fix", arguments, inputs, force, reads=reads)
    _announce(run, references=_said(photos, count), scene=posed and f"{posed.name}, nearest {count} photos")
    exported = None if export is None else _export(fixer, export, merge_lora, dtype, force, told=True)
    results = fix_images(files, run.folder, network, choice, options, size, console.progress)
    run.finish(results)
    pace = results["seconds_per_frame"]
    console.say(f"Images in {run.folder}: {results['frames']}" + (f", {pace:.2f} s each" if pace else ""))
    if posed is not None or len(photos) > count:
        for name, beside in list(results["references"].items())[:5]:
            console.say(f"References of {name}: {', '.join(beside)}")
        if results["frames"] > 5:
            console.say(f"Those of the other images: {run.folder / 'run.json'}")
    if bad := results["bad"]:
        console.warn(
            f"{len(bad)} of {results['frames']} fixes look broken (false colours, collapsed, noise or moved): "
            f"{', '.join(bad[:5])}{', …' if len(bad) > 5 else ''}. Look at them before you use them."
        )
    told = {"results": results, "output": str(run.folder)}
    console.finish(told if exported is None else {**told, "exported": exported}, as_json)


def _beside(source: Path, what: str) -> Path:
    """SOURCE_WHAT beside the source; beside the run of difix that the source is a part of, lest it become one too."""
    source = source.absolute()
    runs = [folder for folder in source.parents if _is_record(folder / "run.json")]
    if not runs:
        return source.with_name(f"{source.stem}_{what}")
    part = source.relative_to(runs[-1]).with_suffix("")
    return runs[-1].with_name(f"{'-'.join([runs[-1].name, *part.parts])}_{what}")


def _is_record(path: Path) -> bool:
    held = read_json(path) if path.is_file() else None
    return isinstance(held, dict) and "command" in held


def _count(references: int | None, fixer: Fixer) -> int:
    """How many photos stand beside an image: as many as asked for, or as the fixer was trained with."""
    return references or max(fixer.config.views, 1)


def _said(photos: list[Path], count: int) -> str | None:
    """Which photos may stand beside an image, for people."""
    if len(photos) > count:
        return f"of {len(photos)} photos the {f'{count} ' if count > 1 else 'one '}most similar to each image"
    return ", ".join(path.name for path in photos) or None


def _export(fixer: str, folder: Path, merge: bool, dtype: Precision, force: bool, told: bool = False) -> str:
    """Write a fixer as our folder; `told` when its licence has been."""
    from difixcli.fixer import Fixer, local_files

    folder = folder.expanduser().absolute()
    if folder.is_file():
        raise InputError(f"{folder} is a file; name a folder to export to.")
    held = sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []
    if {path.parent.resolve() for path in local_files(fixer)} & {folder.resolve()}:
        raise InputError(f"{folder} holds the fixer that is exported; choose another folder.")
    in_the_way = InputError(f"{folder} is not empty; choose another folder, or replace an export with --force.")
    if not {name.removesuffix(".part") for name in held} <= {"config.json", "model.safetensors"}:
        raise in_the_way
    finished = "config.json" in held  # which is written last
    loaded = Fixer.from_pretrained(fixer, merge=merge, dtype=_precision(dtype))
    if not told:
        console.say(f"Fixer {fixer}: licence {loaded.licence}")
    if finished and not force and not loaded.is_saved_in(folder):
        raise in_the_way
    loaded.save_pretrained(folder)
    console.say(f"Use it with --fixer {folder}")
    return str(folder)


@app.command()
@console.handled
def enhance(
    source: Annotated[Path, typer.Argument(help="A folder of frames, a video, or a run of difix distill.")],
    trajectory: Annotated[
        str | None,
        typer.Option(
            help="A run's camera path: spiral, orbit or interpolate (:N frames), shift:2m or shift:0.1, or PATH.json "
            "of nerfstudio's viewer; its test views by default."
        ),
    ] = None,
    steady: Annotated[
        bool, typer.Option("--steady", help="Average the fixes of consecutive frames along their motion.")
    ] = False,
    side_by_side: Annotated[
        bool, typer.Option("--side-by-side", help="Also a video of before and after beside each other.")
    ] = False,
    split_screen: Annotated[
        bool, typer.Option("--split-screen", help="Also a video of before and after with a moving divider.")
    ] = False,
    fps: Annotated[
        float | None, typer.Option(help="Frames a second of the videos; by default the source's.", min=0.1, max=1000)
    ] = None,
    reference: ReferenceOption = None,
    references: ReferencesOption = None,
    fixer: FixerOption = "bundled",
    size: SizeOption = None,
    device: DeviceOption = Device.auto,
    output: OutputOption = None,
    force: ForceOption = False,
    as_json: JsonOption = False,
) -> None:
    """Clean final renders, and write them as frames and a video."""
    from difixcli.enhancement import Film

    film = Film(fps, side_by_side, split_screen, steady)
    if (source / "reconstruction.json").is_file():
        for option, given in (("--reference", reference), ("--references", references), ("--size", size)):
            if given is not None:
                raise InputError(
                    f"{source} is a run: its references are its own photos, and its size is the one it was trained at; "
                    f"leave out {option}."
                )
        _enhance_run(source, trajectory, film, fixer, device, output, force, as_json)
        return
    if trajectory is not None:
        raise InputError(f"{source} is no run of difix distill, so there is nothing to render; leave out --trajectory.")
    if references is not None and not reference:
        raise InputError("--references says how many photos count; name them with --reference.")
    _enhance_images(source, reference, references, film, fixer, size, device, output, force, as_json)


@app.command()
@console.handled
def distill(
    scene: SceneArgument = ".",
    method: Annotated[
        str | None,
        typer.Option(help="Any nerfstudio method: nerfacto, splatfacto (the default; with --start the run's own)."),
    ] = None,
    split: SplitOption = None,
    targets: Annotated[
        list[str] | None,
        typer.Option(
            help="Views to improve: test (the split's, the default), spiral, orbit:60, shift:2m, shift:0.1, or "
            "PATH.json of nerfstudio's viewer; repeatable."
        ),
    ] = None,
    start: Annotated[
        Path | None, typer.Option(help="Go on from this: a nerfstudio run's folder, or a .ply of Gaussians.")
    ] = None,
    fixer: FixerOption = "bundled",
    iterations: Annotated[int | None, typer.Option(help=ITERATIONS, min=1)] = None,
    schedule: Annotated[
        str,
        typer.Option(help="progressive, one-shot (straight at the targets), or none (plain training)."),
    ] = "progressive",
    rounds: Annotated[
        int | None,
        typer.Option(help="How often pseudo-views are fixed anew; 5 on a CPU, one per 4,000 steps on a GPU."),
    ] = None,
    step: Annotated[
        float | None, typer.Option(help="How far pseudo-views move in a round, in normalised units (default 0.5).")
    ] = None,
    share: Annotated[
        float | None,
        typer.Option(help="Share of training drawn from pseudo-views; 0.3 for splats, 0.4 for rays."),
    ] = None,
    references: Annotated[
        int | None, typer.Option(help="Photos beside a render; as many as the fixer takes.", min=0)
    ] = None,
    trust: Annotated[
        str, typer.Option(help="supported: a fix changes what references and render support; all: everything.")
    ] = "supported",
    drop_below: Annotated[
        float | None,
        typer.Option(help="A fix supported by less than this, 0 to 1, is not trained on (default 0.7).", min=0, max=1),
    ] = None,
    holdout: Annotated[
        str | None,
        typer.Option(help="Photos held back to watch the rounds: a number or a share; 5 % where 20 or more train."),
    ] = None,
    guard: Annotated[
        str | None,
        typer.Option(
            help="A round is rolled back if the watched photos fall by more dB than this (0.2 for photos held back, "
            "0.5 for those that train); off: never."
        ),
    ] = None,
    from_round: Annotated[
        int | None, typer.Option(help="Go back to the beginning of this round of the same run.", min=1)
    ] = None,
    compare: Annotated[bool, typer.Option("--compare", help="Also train as long on photos alone.")] = False,
    size: SizeOption = None,
    seed: SeedOption = 0,
    preset: PresetOption = Preset.auto,
    device: DeviceOption = Device.auto,
    settings: SetOption = None,
    output: OutputOption = None,
    force: ForceOption = False,
    as_json: JsonOption = False,
) -> None:
    """Make a better 3D reconstruction: train, render, fix, train on the fixes, round by round."""
    from difixcli.distillation.confidence import support_wanted
    from difixcli.distillation.guard import check_guard
    from difixcli.distillation.schedule import check_schedule, make_schedule
    from difixcli.distillation.targets import check_targets
    from difixcli.scenes import check_rule, check_scene, default_split_rule, make_split

    # what can be told without torch and nerfstudio is told before they are imported, which takes long
    aims = targets or ["test"]
    check_scene(scene)
    if start is not None and not start.exists():
        raise InputError(f"There is no {start} to start from; check its name.")
    if output is not None:
        check_folder(output)
    if split is not None:
        check_rule(split)
    check_targets(aims)
    check_schedule(schedule, rounds, step, share)
    check_guard(holdout, guard)
    support = support_wanted(trust, drop_below)
    if schedule == "none" and compare:
        raise InputError("--schedule none is plain training itself; leave out --compare.")
    if schedule == "none" and (holdout is not None or guard is not None):
        option = "--guard" if holdout is None else "--holdout"
        raise InputError(f"{option} says nothing to the schedule none, which has no round to watch; leave it out.")
    if schedule == "none" and (drop_below is not None or trust != "supported"):
        option = "--trust" if drop_below is None else "--drop-below"
        raise InputError(f"{option} says nothing to the schedule none, which trains on no fix; leave it out.")
    if start is not None and holdout is not None:
        raise InputError("--holdout says nothing with --start: what is taken up has seen every photo; leave it out.")
    on, sizes = _device(device, preset)
    loaded = _scene(scene, size, sizes)
    rule = split or default_split_rule(loaded)
    if split is None and rule == "every:4" and "test" not in aims:
        rule = "all"  # no photo has to be held out where none is aimed at
    chosen = make_split(loaded, rule, need_test="test" in aims)
    inputs = {**_inputs(loaded), **_split_input(loaded, chosen), **_fixer_input(fixer)}

    from difixcli.distillation.distill import Distillation, Settings
    from difixcli.distillation.rounds import Rounds
    from difixcli.reconstruction import default_iterations, is_splat, known_methods, method_config
    from difixcli.reconstruction.compilation import compile_ahead

    if method is None:
        method = "splatfacto"
        if start is not None and start.is_dir():
            from difixcli.reconstruction.start import method_of

            method = method_of(start)
    if method not in (methods := known_methods()):
        raise unknown("method", method, methods)
    steps = iterations or default_iterations(method, sizes)
    images = is_splat(method_config(method))
    planned = make_schedule(sizes, images, steps, rounds, schedule, step, share, started=start is not None)
    plan = Settings(
        method=method,
        preset=sizes,
        device=on,
        schedule=planned,
        seed=seed,
        compare=compare,
        overrides=settings or [],
        targets=aims,
        references=references,
        trust=trust,
        drop_below=support,
        holdout=holdout,
        guard=guard,
        start=None if start is None else str(start.expanduser().absolute()),
    )
    distillation = Distillation(loaded, chosen, plan)
    arguments = {**vars(plan), "schedule": vars(planned), "scene": _spec(scene), "size": size, "split": rule}
    arguments["fixer"] = fixer
    paths = [Path(aim).expanduser() for aim in aims if aim.endswith(".json")]
    inputs |= {str(path): fingerprint([path], content=True) for path in paths}
    begun = _start_files(start)
    if start is not None:
        inputs["start"] = fingerprint(begun, content=True)
    folder = output
    if folder is None:
        parent = Path("outputs") / file_name(loaded.name) / method
        folder = None if force else find_run(parent, "distill", arguments, inputs)
        folder = folder or parent / time.strftime("%Y-%m-%d_%H%M%S")
    run = None if force else Run.held(folder, "distill", arguments, inputs)
    if from_round is not None:
        if run is None:
            raise InputError("--from-round goes back in a run of the very same line; there is none yet. Leave it out.")
        run = Run.open(folder, "distill", arguments, inputs)  # no other process may be at work in it
        rounds_made = Rounds(run.folder)
        rounds_made.check(from_round)
        run.save(state="running", results={}, rounds={})  # first: what a kill leaves of it is not done
        rounds_made.rewind(from_round)
    network = None
    if run is None or not run.done:  # what is done needs no fixer, which may be far away
        network = _fixer(fixer, on)
        run = Run.open(folder, "distill", arguments, inputs, force, reads=[*_read_files(fixer, loaded), *paths, *begun])
    watch = distillation.guard
    timetable, watched = f"{planned.start} iterations on photos, no fixes ({schedule})", None
    if planned.rounds:
        timetable = (
            f"{planned.start} iterations on photos, then {planned.rounds} rounds of {planned.every} ({schedule})"
        )
        timetable += f", {planned.share:.0%} of them on fixes"
        watched = f"{watch.photos}, " + (
            "only looked at" if watch.bound is None else f"a round may cost {watch.bound:g} dB"
        )
    _announce(
        run,
        scene=f"{loaded.name}, {len(chosen.train)} photos train, {len(chosen.test)} test ({rule})",
        method=f"{method}, preset {sizes} on {on}, seed {seed}",
        size=_size_of(loaded),
        start=start,
        targets=f"{', '.join(aims)}: {len(distillation.targets)} views",
        schedule=timetable,
        guard=watched,
        fixer=fixer,
    )
    if not chosen.test:
        unmeasured = "No photo is held out or held back, so nothing is measured; "
        way = "--holdout 1 would hold one back." if planned.rounds and start is None else "--split holds some out."
        console.say(
            "No photo is held out. Figures are of the held-back photos alone, before they join the training."
            if watch.held
            else unmeasured + way
        )
    if network is None:
        results = run.record["results"]
    else:
        compile_ahead(method, on, console.say)
        results = distillation.run(network, run, console.progress, console.say)
        run.finish(results)
    found = run.record.get("rounds", {})
    if found:
        console.say(f"Fixes dropped: {found['dropped']}; rounds rolled back: {found['rolled_back']}")
    views = f"{len(chosen.test)} test views" if chosen.test else f"{len(watch.held)} held-back photos"
    tables = [console.figures_table(f"{loaded.name}, {method}: {views}", results)] if results else []
    console.say(f"Pictures: {run.folder / ('renders' if results else 'path')}")
    if results:
        console.say(f"For a report: difix eval {run.folder}")
    console.finish({"results": results, "rounds": found, "output": str(run.folder)}, as_json, *tables)


def _start_files(start: Path | None) -> list[Path]:
    """What decides what an existing reconstruction is: the .ply, or a run's settings and checkpoints."""
    if start is None or start.is_file():
        return [] if start is None else [start]
    # not eval.json, run.json, rounds: what is written beside a model does not make it another one
    names = ("config.yml", "dataparser_transforms.json", "reconstruction.json")
    described = [start / name for name in names if (start / name).is_file()]
    return sorted([*(start / "nerfstudio_models").glob("*.ckpt"), *described])


@app.command(name="eval")
@console.handled
def evaluate(
    prediction: Annotated[
        list[Path], typer.Argument(help="A run, or several to compare; or a folder of images, then the true ones.")
    ],
    metrics: Annotated[
        str | None,
        typer.Option(
            help="psnr, ssim, st-lpips, st-lpips-alex, lpips, lpips-vgg, fid, tsed, warped; the quick ones by default."
        ),
    ] = None,
    protocol: Annotated[
        str | None, typer.Option(help="How to measure: nerfbusters, dl3dv, rds or sparse:N; by default as the run is.")
    ] = None,
    color_correct: Annotated[
        str | None,
        typer.Option(help="Also measure after fitting each image's colours to its truth: affine, quadratic."),
    ] = None,
    masks: Annotated[Path | None, typer.Option(help="Folder of masks NAME.png; only white pixels count.")] = None,
    inception: Annotated[Path | None, typer.Option(help="Inception's weights for FID (torch-fidelity's file).")] = None,
    device: DeviceOption = Device.auto,
    output: OutputOption = None,
    as_json: JsonOption = False,
) -> None:
    """Measure renders against photos, or compare runs: figures, pictures, and how each number was made."""
    from difixcli.evaluation.color_correction import CORRECTIONS
    from difixcli.evaluation.evaluate import Plan, evaluate_folders, evaluate_run, evaluate_runs, suggested_metrics
    from difixcli.evaluation.metrics import METRICS, parse_metrics
    from difixcli.evaluation.protocols import OWN, parse_protocol
    from difixcli.evaluation.report import write_report
    from difixcli.evaluation.run_folders import is_run
    from difixcli.evaluation.tables import write_table

    for path in [*prediction, *([masks] if masks else [])]:
        if not path.exists():
            raise InputError(f"There is no {path}; check its name.")
    if color_correct is not None and color_correct not in CORRECTIONS:
        raise unknown("colour correction", color_correct, CORRECTIONS)
    keys = None if metrics is None else parse_metrics(metrics)
    if inception is not None and "fid" not in (keys or ()):
        raise InputError("--inception is of FID alone, which is measured where --metrics names fid.")
    way = OWN if protocol is None else parse_protocol(protocol)
    runs = [is_run(path) for path in prediction]
    if not all(runs) and (any(runs) or len(prediction) != 2):
        raise InputError(
            f"{prediction[runs.index(False)]} is no run; difix eval takes runs, or a folder of images and then "
            "the folder of the true ones."
        )
    on, _ = _device(device)
    if all(runs) and keys is None:
        keys, left_out = suggested_metrics(prediction)
        if left_out:
            console.warn(left_out)
    plan = Plan(keys, color_correct, way, masks, inception, on)  # type: ignore[arg-type]
    first = prediction[0].absolute()
    if not all(runs):
        folder = output or _beside(first, "eval")
        evaluated = evaluate_folders(prediction[0], prediction[1], on, plan, console.progress)
        rows, spreads = {first.name: evaluated["results"]}, {first.name: evaluated["std"]}
    else:
        folder = output or (first if len(runs) == 1 else Path("outputs") / "comparisons" / _joined(prediction))
        make_folder(folder)
        if len(runs) == 1:
            evaluated = evaluate_run(first, on, metrics is None, plan, folder, console.progress)
        else:
            evaluated = evaluate_runs(prediction, plan, folder, console.progress)
        rows, spreads = {**evaluated["results"], **evaluated.get("baselines", {})}, evaluated["std"]
    scenes = evaluated.get("scenes", {})
    title = (
        first.name
        if len(prediction) == 1 or not all(runs)
        else " and ".join(path.absolute().name for path in prediction)
    )
    title = f"{title}: {evaluated['images']} views"
    report = write_report(evaluated, make_folder(folder) / "report.html", title)
    write_json(folder / "eval.json", evaluated)
    write_table(evaluated, folder / "eval.csv")
    tables = [
        console.figures_table(f"{name}: {one['images']} views", one["results"], one["std"])
        for name, one in scenes.items()
    ]
    if evaluated.get("partial"):
        console.warn(f"Not in every scene, so without a mean over scenes: {', '.join(evaluated['partial'])}.")
    if rows:
        tables.append(console.figures_table(title if not scenes else "Mean over scenes", rows, spreads))
    for name, value in evaluated.get("reference", {}).items():
        console.say(f"{METRICS[name].name} of the truth itself: {value:.{METRICS[name].digits}f}")
    console.say("; ".join(f"{name}: {said}" for name, said in evaluated["conditions"].items()))
    console.say(f"Report: {report}")
    held = ("results", "std", "protocol", "conditions")
    found = {name: evaluated[name] for name in held} | {
        "scenes": {name: {"results": one["results"], "std": one["std"]} for name, one in scenes.items()}
    }
    console.finish({**found, "report": str(report)}, as_json, *tables)


def _joined(folders: list[Path]) -> str:
    """A folder's name for a comparison of runs: their names and what tells such comparisons apart."""
    paths = [str(path.absolute()) for path in folders]
    digest = hashlib.sha256(json.dumps(paths).encode()).hexdigest()[:8]
    return "-".join([*(file_name(path.absolute().name) for path in folders[:3]), digest])


@app.command()
@console.handled
def export(
    run: Annotated[Path, typer.Argument(help="The folder of a reconstruction, such as difix distill leaves.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="The .ply to write.")],
    force: Annotated[bool, typer.Option("--force", help="Replace a file of that name.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Write a run's Gaussians, or the surfaces of another method as coloured points, as a PLY file."""
    if output.suffix.lower() != ".ply" or output.is_dir():
        raise InputError(f"{output} is no name of a .ply file; give one with --output.")
    if not (run / "reconstruction.json").is_file():
        raise InputError(f"{run} holds no reconstruction; name the folder of a run of difix distill.")
    if output.exists() and not force:
        raise InputError(f"{output} is already there; choose another --output, or replace it with --force.")
    from difixcli.reconstruction import Reconstruction

    on, _ = _device(Device.auto)
    # on the device it was trained on, unless that is not here
    reconstruction = Reconstruction.load(run, device=None if on == "cuda" else on)
    make_folder(output.absolute().parent)
    reconstruction.export(output)
    count = reconstruction.gaussians
    console.say(f"Wrote {f'{count} Gaussians' if count else 'a point cloud'} to {output}.")
    console.finish({"output": str(output), "gaussians": count}, as_json)


@app.command()
@console.handled
def finetune(
    pairs: Annotated[
        list[str] | None,
        typer.Argument(help="Folders made by difix curate, data.json files, or addresses of tars (streamed)."),
    ] = None,
    base: Annotated[
        str, typer.Option(help="tiny, small or medium from scratch, or a fixer to go on from.")
    ] = "bundled",
    photos: Annotated[Path | None, typer.Option(help="Folder of any photos, to make synthetic pairs from.")] = None,
    stream: Annotated[bool, typer.Option("--stream", help="Read tars one after another, for very large sets.")] = False,
    iterations: Annotated[int | None, typer.Option(help="Training steps (default 10000).", min=1)] = None,
    batch: Annotated[int | None, typer.Option(help="Samples a step and process.", min=1)] = None,
    accumulate: Annotated[int | None, typer.Option(help="Batches added up for a step.", min=1)] = None,
    crop: Annotated[int | None, typer.Option(help="Pixels of the random square crops.", min=16)] = None,
    train: Annotated[str | None, typer.Option(help="What trains: all, unet, decoder or skips.")] = None,
    lora_rank: Annotated[int | None, typer.Option(help="Rank of the decoder's adapters (SD-Turbo: 4).", min=1)] = None,
    learning_rate: Annotated[float | None, typer.Option(help="Peak learning rate.")] = None,
    warm_up: Annotated[int | None, typer.Option(help="Steps until the learning rate's peak.", min=0)] = None,
    perceptual_weight: Annotated[float | None, typer.Option(help="Weight of the perceptual loss.", min=0)] = None,
    gram_weight: Annotated[float | None, typer.Option(help="Weight of the Gram loss.", min=0)] = None,
    ema: Annotated[float | None, typer.Option(help="Decay of the weights' running average; 0 for none.")] = None,
    patience: Annotated[int | None, typer.Option(help="Validations without a better one, then stop.", min=1)] = None,
    dtype: Annotated[str | None, typer.Option(help="fp32, bf16 or fp16 (default bf16 on a GPU at full width).")] = None,
    gradient_checkpointing: Annotated[
        bool | None, typer.Option("--gradient-checkpointing", help="Less memory, a third slower.")
    ] = None,
    settings: Annotated[
        list[str] | None, typer.Option("--set", help="Any other training option, as validate_every=200.")
    ] = None,
    seed: SeedOption = 0,
    device: DeviceOption = Device.auto,
    output: OutputOption = None,
    force: ForceOption = False,
    as_json: JsonOption = False,
) -> None:
    """Train a fixer on pairs; on several GPUs and machines with accelerate launch -m difixcli finetune …"""
    from difixcli.training import TrainingOptions, processes
    from difixcli.training import finetune as train_fixer
    from difixcli.training.options import FREE, parsed_options
    from difixcli.training.pairs import pair_files
    from difixcli.training.streaming import is_remote

    if not pairs and photos is None:
        raise InputError("Nothing to train on; name folders made by difix curate, or --photos.")
    on, _ = _device(device)
    sources = [pair if is_remote(pair) else str(Path(pair).expanduser().absolute()) for pair in pairs or []]
    options: dict[str, Any] = {
        "iterations": iterations,
        "batch": batch,
        "accumulate": accumulate,
        "crop": crop,
        "train": train,
        "lora_rank": lora_rank,
        "learning_rate": learning_rate,
        "warm_up": warm_up,
        "perceptual_weight": perceptual_weight,
        "gram_weight": gram_weight,
        "ema": ema,
        "patience": patience,
        "dtype": dtype,
        "gradient_checkpointing": gradient_checkpointing,
    }
    other = parsed_options(settings or [])
    for name in other:
        if name in options or name == "seed":
            raise InputError(f"{name} has an option of its own; write --{name.replace('_', '-')} instead of --set.")
    chosen = {name: value for name, value in options.items() if value is not None} | other | {"seed": seed}
    arguments = {"pairs": sources, "base": base, "photos": photos, "stream": stream}
    arguments |= {name: value for name, value in chosen.items() if name not in FREE}
    local = [Path(source) for source in sources if not is_remote(source)]
    inputs = {str(source): fingerprint(pair_files(source)) for source in local} | _fixer_input(base, "base")
    if photos is not None:
        inputs["photos"] = fingerprint([path for path in photos.rglob("*") if path.is_file()])
    names = [source.name if source.is_dir() else source.parent.name for source in local[:3]]
    folder = output or Path("outputs") / "fixers" / "-".join([file_name(base), *(names or ["photos"])])
    reads = [*local, *([photos] if photos else []), *_read_files(base)]
    process = processes.join(on)
    main = process.is_main_process
    run = Run.open(folder, "finetune", arguments, inputs, force, reads=reads) if main else None
    process.wait_for_everyone()  # the first process alone holds the run; the others work into its folder
    total = chosen.get("iterations", TrainingOptions().iterations)
    told = {"photos": photos, "device": on, "processes": process.num_processes}
    if run is not None:
        _announce(run, base=base, pairs=sources, **told)
    with console.progress("train", total) if main else contextlib.nullcontext() as update:
        results = train_fixer(
            sources,
            base,
            folder,
            photos=photos,
            stream=stream,
            device=on,
            progress=update,
            report=_training_news,
            **chosen,
        )
    process.destroy_process_group()
    if run is None:
        return
    run.finish(results)
    if results["skipped"]:
        console.warn(f"{len(results['skipped'])} pairs could not be read and were skipped; log.jsonl says why.")
    tables = []
    if results["validation"]:
        tables.append(console.figures_table(f"validation, best of step {results['best_step']}", results["validation"]))
    console.say(f"Use it with --fixer {run.folder}")
    console.finish({"results": results, "output": str(run.folder)}, as_json, *tables)


def _training_news(record: Mapping[str, Any]) -> None:
    """What of a training's log is worth a line at the terminal."""
    if record["event"] == "start":
        counts, options = record["pairs"], record["options"]
        what = ", ".join(f"{count} {name}" for name, count in counts.items() if count)
        loss = options["perceptual"] if options["perceptual_weight"] else "no perceptual loss"
        console.say(f"{what}; crops of {record['crop']} pixels; {options['pixel']} and {loss}; {options['dtype']}")
        if record["dropped"]:
            name, why = next(iter(record["dropped"].items()))
            console.warn(f"{len(record['dropped'])} cannot be used; log.jsonl says why. {name}: {why}")
        if not (counts["test"] or counts["photos"]):
            console.warn(
                "There are no pairs for testing, so nothing is validated and the last weights are kept, whether they "
                "are the best or not; difix curate --test-scene NAME sets a scene's pairs aside."
            )
    elif record["event"] == "validation":
        console.say(
            f"step {record['step']}: PSNR {record['psnr']:.2f} ({record['psnr_gain']:+.2f}), "
            f"SSIM {record['ssim']:.4f} ({record['ssim_gain']:+.4f}), "
            f"st-LPIPS {record['st_lpips']:.4f} ({record['st_lpips_gain']:+.4f})" + (", best" if record["best"] else "")
        )
    elif record["event"] == "skipped":
        console.warn(f"{record['pair']} is skipped: {record['reason']}")


def _enhance_images(
    source: Path,
    reference: list[Path] | None,
    references: int | None,
    film: Film,
    fixer: str,
    size: int | None,
    device: Device,
    output: Path | None,
    force: bool,
    as_json: bool,
) -> None:
    """Fix images, or the frames of a video, of unknown pose."""
    from difixcli.enhancement import check_images, enhance_images

    if not source.exists():
        raise InputError(f"There is no image, folder or video {source}; check its name.")
    on, _ = _device(device)
    network = _fixer(fixer, on)
    photos = [photo for path in reference or [] for photo in _photos(path)]
    count = _count(references, network)
    folder = output or _beside(source, "enhanced")
    for warning in check_images(source, folder, photos, size, film):
        console.warn(warning)
    arguments = {"source": source.absolute(), "references": photos, "fixer": fixer, "size": size}
    arguments |= {"steady": film.steady, "count": count}  # videos are made anew of the same frames
    files = [source] if source.is_file() else [path for path in source.iterdir() if path.is_file()]
    # by content: renders made anew often have the names and sizes of those before
    inputs = {"source": fingerprint(files, content=True), "references": fingerprint(photos, content=True)}
    inputs |= _fixer_input(fixer)
    run = Run.open(folder, "enhance", arguments, inputs, force, reads=[source, *photos, *_read_files(fixer)])
    _announce(run, references=_said(photos, count))
    results = enhance_images(source, run.folder, network, photos, size, film, count, console.progress)
    run.finish(results)
    if results["frames"] < 0.9 * results["announced"] - 1:
        console.warn(f"{source} says it has {results['announced']} frames, but only {results['frames']} can be read.")
    _finish_frames(results, run.folder, as_json)


def _enhance_run(
    source: Path,
    trajectory: str | None,
    film: Film,
    fixer: str,
    device: Device,
    output: Path | None,
    force: bool,
    as_json: bool,
) -> None:
    """Render a distilled run along its test views or a camera path and fix every frame with its photos."""
    from difixcli.enhancement.runs import enhance_run, path_fingerprint, views
    from difixcli.reconstruction import latest_checkpoint
    from difixcli.scenes import make_split, make_trajectory

    if not (source / "run.json").is_file() and (source.absolute().parent / "run.json").is_file():
        raise InputError(f"{source} is a part of the run {source.absolute().parent}; name that run.")
    record = read_json(source / "run.json")
    if not isinstance(record, dict) or record.get("command") != "distill":
        raise InputError(f"{source / 'run.json'} is not of a run of difix distill; name one.")
    held = record["arguments"]
    on, _ = _device(device)
    scene = _scene(held["scene"], held["size"], held["preset"])
    if trajectory is None and "test" not in (aims := held.get("targets", ["test"])):
        trajectory = aims[0]  # the views that the run was made for
    split = make_split(scene, held["split"], need_test=trajectory is None)
    path = None if trajectory is None else make_trajectory(scene, split.train, trajectory)
    cameras = views(scene, split, path, film)[1]
    network = _fixer(fixer, on)
    # a run that has trained on since makes other frames
    checkpoint = latest_checkpoint(source)
    inputs = {**_inputs(scene), "checkpoint": fingerprint([checkpoint], content=True), **_fixer_input(fixer)}
    inputs["views"] = path_fingerprint(cameras)
    # not the run's folder itself: its part that is written to by default is not read
    reads = [checkpoint, source / "run.json", source / "scene", *_read_files(fixer, scene)]
    # videos are made anew of the same frames
    arguments = {"source": source.absolute(), "fixer": fixer, "trajectory": trajectory, "steady": film.steady}
    part = "-".join(["enhanced", *([path.name] if path else []), *(["steady"] if film.steady else [])])
    run = Run.open(output or source / part, "enhance", arguments, inputs, force, reads=reads)
    _announce(run, scene=scene.name, trajectory=f"{trajectory}, {len(path.cameras)} frames" if path else "test views")
    # where it was trained, unless that is not here or another place is asked for
    where = None if device is Device.auto and on == "cuda" else on
    results = enhance_run(source, run.folder, network, scene, split, console.progress, path, film, where)
    run.finish(results)
    _finish_frames(results, run.folder, as_json)


def _finish_frames(results: dict[str, Any], folder: Path, as_json: bool) -> None:
    """Print what `enhance` wrote."""
    pace = results["seconds_per_frame"]
    console.say(f"Images in {folder}: {results['frames']}" + (f", {pace:.2f} s each" if pace else ""))
    for name in ("video", "side_by_side", "split_screen"):
        if results[name]:
            console.say(f"{results[name]}: {results['fps']:g} frames a second")
    if steadiness := results["steadiness"]:
        console.say(f"Warped difference of frames: {steadiness['input']:.4f} before, {steadiness['output']:.4f} after")
    console.finish({"results": results, "output": str(folder)}, as_json)


def _photos(path: Path) -> list[Path]:
    """A reference photo, or all photos of a folder."""
    from difixcli.evaluation.pictures import image_files

    return sorted(image_files(path)) if path.is_dir() else [path]


def _device(device: Device, preset: Preset | None = None) -> tuple[str, str]:
    """The torch device to use and the preset that goes with it; InputError when CUDA is asked for and absent.

    Commands that train a reconstruction name a preset. On a CPU torch then has one thread: the compiled kernels bring
    their own, and a second one of torch's spins against them. Networks alone may have all threads.
    """
    import torch

    from difixcli.torchvision_cure import cure

    cure()
    there = torch.cuda.is_available()
    if device is Device.cuda and not there:
        raise InputError("--device cuda was asked for, but torch finds no CUDA device here; use --device cpu or auto.")
    on = "cuda" if there and device is not Device.cpu else "cpu"
    if on == "cpu":
        if preset is not None:
            torch.set_num_threads(1)
        torch.set_flush_denormal(True)
    return on, ("gpu" if on == "cuda" else "cpu") if preset in (None, Preset.auto) else preset.value


def _scene(spec: str, size: int | None, preset: str) -> Scene:
    """Load a scene at the asked size, or at what the preset can carry."""
    from difixcli.scenes import load_scene
    from difixcli.scenes.sample import sample_folder

    if size is None and preset == "cpu":
        size = 240
    name = spec.removeprefix("sample:")
    if name != spec and not sample_folder(name).exists():
        console.say(f"Painting the sample scene {name}, once; this takes a minute.")
    scene = load_scene(spec, size)
    for warning in scene.warnings:
        console.warn(warning)
    return scene


def _size_of(scene: Scene) -> str:
    """The size at which a scene's photos are worked on, for people."""
    sizes = sorted({(frame.camera.width, frame.camera.height) for frame in scene.frames})
    return ", ".join(f"{width}×{height}" for width, height in sizes[:3]) + (", …" if len(sizes) > 3 else "")


def _spec(spec: str) -> str:
    return spec if spec.startswith("sample:") else str(Path(spec).expanduser().absolute())


def _inputs(*scenes: Scene) -> dict[str, str]:
    """Fingerprints of the scenes: their photos' names and sizes, masks, poses, lenses and seed points."""
    from difixcli.scenes import scene_fingerprint

    return {f"scene {scene.name}": scene_fingerprint(scene) for scene in scenes}


def _split_input(scene: Scene, split: Split) -> dict[str, str]:
    """Which frames train and which test, since the file of a split may change under its name."""
    names = [[scene.frames[i].name for i in part] for part in (split.train, split.test)]
    return {"split": hashlib.sha256(json.dumps(names).encode()).hexdigest()[:16]}


def _fixer_input(name: str, key: str = "fixer") -> dict[str, str]:
    """The fingerprint of a fixer's files; a name on the hub or of an untrained network stands for itself."""
    from difixcli.fixer import local_files

    files = local_files(name)
    return {key: fingerprint(files, content=True)} if files else {}


def _read_files(fixer: str, *scenes: Scene) -> list[Path]:
    """The files that a command reads, which no output may take the place of."""
    from difixcli.fixer import local_files

    return [*local_files(fixer), *(frame.image_path for scene in scenes for frame in scene.frames)]


def _fixer(name: str, device: str, dtype: Precision = Precision.auto, compiled: bool = False) -> Fixer:
    """Load a fixer for use, not for training, and say under which licence it stands."""
    from difixcli.fixer import Fixer

    fixer = Fixer.from_pretrained(name, merge=True)
    # a blend of pixels needs their eight bits, and more
    half = dtype is Precision.auto and device == "cuda" and fixer.config.references == "raw"
    fixer.to(device, _precision(Precision.bf16 if half else dtype))
    fixer.notice = console.warn
    if compiled:
        fixer.compile()
    console.say(f"Fixer {name}: licence {fixer.licence}")
    return fixer


def _precision(dtype: Precision) -> torch.dtype:
    """auto is single precision here."""
    import torch

    names = {Precision.bf16: torch.bfloat16, Precision.fp16: torch.float16}
    return names.get(dtype, torch.float32)


def _announce(run: Run, **facts: Any) -> None:
    """Print what is about to happen, defaults included."""
    console.say(f"Output: {run.folder}" + (" (going on with an earlier run)" if run.resumed else ""))
    for name, value in facts.items():
        if value:
            console.say(f"{name}: {', '.join(map(str, value)) if isinstance(value, list) else value}")
