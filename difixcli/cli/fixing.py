"""`difix fix` of images: each with its photos through the fixer; and fixers written to folders."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from difixcli import console
from difixcli.cli.fix import Layout
from difixcli.cli.inputs import (
    files_read,
    fixer_input,
    open_fixer,
    open_scene,
    photo_count,
    photos_named,
    photos_told,
    pick_device,
    precision,
    scene_inputs,
    scene_spec,
    tell_loading,
    tell_slow,
)
from difixcli.cli.options import Resize
from difixcli.cli.outputs import Made, announce, beside_others, folder_beside, tell_bad, tell_frames
from difixcli.errors import InputError
from difixcli.model_folders import FIXER_PARTS, PUBLISHED_PARTS
from difixcli.runs import Run, check_folder, fingerprint, read_json, run_record
from difixcli.wording import counted

if TYPE_CHECKING:
    from difixcli.cli.fix import FixRequest
    from difixcli.fixer import Fixer
    from difixcli.frames.pipeline import FrameOptions
    from difixcli.scenes.scene import Scene, Split


def fixed_images(request: FixRequest, source: Path) -> Made:
    """Fix an image, or the images of a folder."""
    from difixcli.enhancement.fix import fix_images
    from difixcli.frames.pictures import alpha_notes, listed_images
    from difixcli.frames.pipeline import FrameOptions
    from difixcli.frames.references import ReferencePhotos, check_references

    folder = request.output or folder_beside(source, "fixed")
    sizes = listed_images(source, folder, request.size)
    files = list(sizes)
    _check_apart(folder, request.export)
    tell_slow(sizes)
    photos = photos_named(request.reference)
    for warning in [*alpha_notes(files), *check_references(files, photos)]:
        console.warn(warning)
    on, _ = pick_device(request.device)
    posed, among = None if request.scene is None else open_scene(request.scene, None, "gpu"), None
    network = open_fixer(request.fixer, on, request.dtype, request.compiled, request.tile)
    _check_fitting(request, network, files, photos)
    count = photo_count(request.references, network)
    if posed is None:
        choice = ReferencePhotos.by_likeness(photos, count)
    else:
        among = _may_stand_beside(request.split, source, posed)
        choice = ReferencePhotos.by_pose(posed, files, count, None if among is None else among.train)
        count = choice.most
    fill_seed = request.seed if request.fill_unseen or network.config.fill_unseen else None
    options = FrameOptions(request.resize is Resize.release, request.confidence, fill_seed, request.batch)
    arguments = _recorded(request, photos, options, count, network)
    if among is not None and posed is not None:
        arguments["photos"] = [posed.frames[i].name for i in among.train]
    # by content: renders made anew often have the names and sizes of those before
    inputs = {"source": fingerprint(files), "references": fingerprint(photos)}
    inputs |= fixer_input(request.fixer) | ({} if posed is None else scene_inputs(posed))
    reads = [source, *photos, *files_read(request.fixer, *([] if posed is None else [posed]))]
    if request.output is None:
        folder = beside_others(folder, "fix", arguments)
        _check_apart(folder, request.export)
    run = Run.open(folder, "fix", arguments, inputs, request.force, reads=reads)
    announce(run, references=photos_told(photos, count), scene=posed and _scene_told(posed, among, count))
    written = None if request.export is None else exported(request, told=True)
    results = fix_images(files, run.folder, network, choice, options, request.size, console.progress)
    run.finish(results)
    _tell(results, run.folder, chosen=posed is not None or len(photos) > count)
    return Made(run.folder, results, written)


def _may_stand_beside(rule: str | None, source: Path, scene: Scene) -> Split | None:
    """The photos that may stand beside images: those that train by the rule, or in the run that the images are a part
    of, or by the scene's own layout. None for all of them, where none of these says that some were held out.
    """
    from difixcli.reconstruction.run_files import RECIPE
    from difixcli.scenes import default_split_rule, make_split
    from difixcli.scenes.splits import DEFAULT_RULE

    if rule is not None:
        return make_split(scene, rule, need_test=False)
    for folder in source.absolute().parents:
        # others, too, write files of this name
        if (folder / RECIPE).is_file() and run_record(folder) is not None:
            if (trained := _trained(folder / RECIPE, scene)) is not None:
                return trained
            break
    own = default_split_rule(scene)
    return None if own == DEFAULT_RULE else make_split(scene, own, need_test=False)


def _trained(record: Path, scene: Scene) -> Split | None:
    """The photos that trained a run, by its record; None for a run of another scene."""
    from difixcli.scenes.scene import Split

    held = read_json(record, {"frames": [str], "train": [int]})
    by_name = {frame.name: i for i, frame in enumerate(scene.frames)}
    names = [name for i, name in enumerate(held["frames"]) if i in set(held["train"])]
    if not names or not all(name in by_name for name in names):
        return None
    train = sorted(by_name[name] for name in names)
    test = [i for i in range(len(scene.frames)) if i not in set(train)]
    return Split(tuple(train), tuple(test), f"of the run {record.parent.name}")


def _scene_told(scene: Scene, among: Split | None, count: int) -> str:
    if among is None:
        return (
            f"{scene.name}, nearest {counted(count, 'photo')} of all but the image's own (were some held out? name "
            "those that train with --split)"
        )
    return f"{scene.name}, nearest {counted(count, 'photo')} of the {len(among.train)} that train ({among.rule})"


def _check_apart(folder: Path, export: Path | None) -> None:
    """InputError for a fixer that is to be exported to the images' folder, or to one that this is in."""
    images = folder.expanduser().resolve()
    if export is not None and export.expanduser().resolve() in (images, *images.parents):
        raise InputError(f"{export} cannot hold both the images and the fixer; choose another folder to --export to.")


def _check_fitting(request: FixRequest, network: Fixer, files: Sequence[Path], photos: Sequence[Path]) -> None:
    """InputError for --fill-unseen where there is nothing to fill, or to fill it from; a word where photos lack."""
    from difixcli.frames.pictures import has_alpha

    if request.fill_unseen and network.config.is_small:
        raise InputError(
            f"The fixer {request.fixer} has no noise to invent from; leave out --fill-unseen or name another."
        )
    if request.fill_unseen and not any(has_alpha(path) for path in files):
        raise InputError(
            f"No image of {request.source} has an alpha channel to say what was not seen; drop --fill-unseen."
        )
    if network.config.takes_photos and network.config.views and not photos and request.scene is None:
        console.warn(
            f"The fixer {request.fixer} was trained with a reference photo; give --reference, or expect less of it."
        )


def _recorded(
    request: FixRequest, photos: list[Path], options: FrameOptions, count: int, network: Fixer
) -> dict[str, Any]:
    """The arguments that a run is known by."""
    arguments = {**request.arguments, "references": photos, **vars(options)}
    del arguments["batch"]  # of no account for what comes out
    arguments["scene"] = None if request.scene is None else scene_spec(request.scene)
    arguments["count"] = None if request.scene is None and not photos else count
    return {**arguments, "dtype": str(network.dtype)}


def _tell(results: dict[str, Any], folder: Path, chosen: bool) -> None:
    """Say what was fixed; with `chosen` which photos stood beside each image."""
    tell_frames("Images", folder, results)
    if chosen:
        for name, beside in list(results["references"].items())[:5]:
            console.say(f"References of {name}: {', '.join(beside)}")
        if results["frames"] > 5:
            console.say(f"Those of the other images: {folder / 'run.json'}")
    tell_bad(results)


def check_export(fixer: str, folder: Path, layout: Layout | None) -> None:
    """Raises InputError for what a fixer cannot be exported to: a file, or a folder that holds it or anything else."""
    folder, own = folder.expanduser().absolute(), Path(fixer).expanduser().resolve()
    if own.exists() and folder.resolve() in (own, *own.parents):
        raise _holds_it(folder)
    if folder.is_file():
        raise InputError(f"{folder} is a file; name a folder to export to.")
    check_folder(folder)
    parts = PUBLISHED_PARTS if layout is Layout.diffusers else FIXER_PARTS
    held = [path.name for path in folder.iterdir()] if folder.is_dir() else []
    if not {name.removesuffix(".part") for name in held} <= set(parts):
        raise _in_the_way(folder)


def _holds_it(folder: Path) -> InputError:
    return InputError(f"{folder} holds the fixer that is exported; choose another folder.")


def _in_the_way(folder: Path) -> InputError:
    return InputError(f"{folder} is not empty; choose another folder, or replace an export with --force.")


def exported(request: FixRequest, told: bool = False) -> Path:
    """Write the fixer to the folder of --export, in our layout or the published one; `told` when its licence has been.

    Returns the folder.
    """
    tell_loading()
    from difixcli.fixer import Fixer, local_files
    from difixcli.fixer.publishing import check_publishable, save_published, text_encoder_of

    assert request.export is not None
    folder, published = request.export.expanduser().absolute(), request.layout is Layout.diffusers
    if any(folder.resolve() in path.resolve().parents for path in local_files(request.fixer)):
        raise _holds_it(folder)
    # which is written last
    finished = (folder / ("model_index.json" if published else "config.json")).is_file()
    loaded = Fixer.from_pretrained(request.fixer, merge=request.merge_lora, dtype=precision(request.dtype))
    if published:
        check_publishable(loaded.config)
    if not told:
        console.say(f"Fixer {request.fixer}: licence {loaded.licence}")
    if finished and not request.force and not loaded.is_saved_in(folder):
        raise _in_the_way(folder)
    if published:
        save_published(loaded.network, folder, text_encoder_of(request.fixer))
    else:
        loaded.save_pretrained(folder)
    console.say(f"Use it with --fixer {folder}")
    return folder
