"""`difix fix`: images through the fixer, and fixers exported."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import Annotated, Any

import typer

from difixcli import console
from difixcli.cli.inputs import (
    check_fixer,
    files_read,
    fixer_input,
    open_fixer,
    open_scene,
    photo_count,
    photos_of,
    photos_told,
    pick_device,
    precision,
    scene_inputs,
    scene_spec,
    tell_loading,
    tell_slow,
)
from difixcli.cli.options import (
    SPLIT_RULES,
    BatchOption,
    CompileOption,
    ConfidenceOption,
    Device,
    DeviceOption,
    FixerOption,
    ForceOption,
    JsonOption,
    OutputOption,
    Precision,
    PrecisionOption,
    ReferenceOption,
    ReferencesOption,
    Resize,
    SeedOption,
    SizeOption,
    TileOption,
)
from difixcli.cli.outputs import announce, beside_others, folder_beside
from difixcli.errors import InputError, unknown
from difixcli.runs import Run, fingerprint
from difixcli.wording import counted

VIEWS = "Novel views"
_IMAGES, _NOVEL_VIEW = "images", "novel-view"


class Layout(str, Enum):
    ours = "ours"
    diffusers = "diffusers"


@console.handled
def fix(
    source: Annotated[
        Path | None, typer.Argument(help="An image or a folder of images; with --task novel-view a scene.")
    ] = None,
    task: Annotated[
        str,
        typer.Option(
            help="images (default), or novel-view: views of a SCENE of two to four photos, straight from view "
            "diffusion's networks."
        ),
    ] = _IMAGES,
    reference: ReferenceOption = None,
    scene: Annotated[
        str | None, typer.Option(help="Posed scene whose frames the images are named after: nearest photos by pose.")
    ] = None,
    references: ReferencesOption = None,
    fixer: FixerOption = "bundled",
    size: SizeOption = None,
    resize: Annotated[Resize | None, typer.Option(help="release: work at 1024×576, as Difix3D's release does.")] = None,
    tile: TileOption = None,
    batch: BatchOption = None,
    fill_unseen: Annotated[
        bool, typer.Option("--fill-unseen", help="Invent what is transparent, from noise (raw references only).")
    ] = False,
    upscale: Annotated[
        int | None,
        typer.Option(help="Make the images so many times larger instead (default 4 with --sr).", min=2),
    ] = None,
    sr: Annotated[
        str | None,
        typer.Option(help="With --upscale, what does it: bundled, a file that spandrel reads, a folder, a hub name."),
    ] = None,
    split: Annotated[
        str | None, typer.Option(help=f"Which photos are looked at: {SPLIT_RULES}.", rich_help_panel=VIEWS)
    ] = None,
    trajectory: Annotated[
        str | None,
        typer.Option(
            help="Where to look from: spiral, orbit, interpolate, around (:N frames), shift:0.1, or PATH.json of "
            "nerfstudio's viewer; the split's test views by default.",
            rich_help_panel=VIEWS,
        ),
    ] = None,
    camera: Annotated[
        Path | None,
        typer.Option(
            help="Where to look from: JSON with a transform_matrix (4×4, as in the scene's transforms.json), or frames "
            "with one each.",
            rich_help_panel=VIEWS,
        ),
    ] = None,
    view_diffusion: Annotated[
        str | None,
        typer.Option(
            help="The networks: a folder of difix finetune --task view-diffusion; this version brings none.",
            rich_help_panel=VIEWS,
        ),
    ] = None,
    denoise_steps: Annotated[
        int | None, typer.Option(help="Denoising steps of a view (default 25).", min=1, rich_help_panel=VIEWS)
    ] = None,
    confidence: ConfidenceOption = False,
    export: Annotated[Path | None, typer.Option(help="Write the fixer to a folder; needs no images.")] = None,
    layout: Annotated[
        Layout | None, typer.Option(help="With --export: ours (default), or diffusers, as Difix is published.")
    ] = None,
    merge_lora: Annotated[
        bool, typer.Option("--merge-lora", help="With --export: work adapters into the weights.")
    ] = False,
    dtype: PrecisionOption = Precision.auto,
    compiled: CompileOption = False,
    seed: SeedOption = 0,
    device: DeviceOption = Device.auto,
    output: OutputOption = None,
    force: ForceOption = False,
    as_json: JsonOption = False,
) -> None:
    """Clean images, with clean photos of the same scene beside them; make them larger; or make views of a scene."""
    if task not in (_IMAGES, _NOVEL_VIEW):
        raise unknown("task", task, (_IMAGES, _NOVEL_VIEW))
    of_views = {
        **{"--split": split, "--trajectory": trajectory, "--camera": camera, "--view-diffusion": view_diffusion},
        "--denoise-steps": denoise_steps,
    }
    if task == _IMAGES and (said := [option for option, value in of_views.items() if value is not None]):
        raise InputError(f"{said[0]} belongs to --task novel-view; name that, or leave it out.")
    if task == _NOVEL_VIEW:
        of_images = {
            **{"--reference": reference, "--scene": scene, "--references": references, "--resize": resize},
            **{"--tile": tile, "--fill-unseen": fill_unseen, "--confidence": confidence, "--export": export},
            **{"--batch": batch},
            **{"--upscale": upscale, "--sr": sr, "--merge-lora": merge_lora, "--compile": compiled},
            **{"--layout": layout},
            **{"--fixer": fixer != "bundled", "--dtype": dtype is not Precision.auto},
        }
        if said := [option for option, value in of_images.items() if value]:
            raise InputError(f"{said[0]} says nothing to --task novel-view, which fixes no image; leave it out.")
        from difixcli.cli.view_diffusion import novel_views

        novel_views(
            str(source or "."), view_diffusion, split, trajectory, camera, denoise_steps, size, seed, device, output,
            force, as_json,
        )  # fmt: skip
        return
    check_fixer(fixer)
    from difixcli.enhancement.fix import fix_images
    from difixcli.frames.pictures import has_alpha, listed_images
    from difixcli.frames.pipeline import FrameOptions
    from difixcli.frames.references import ReferencePhotos, check_references
    from difixcli.scenes.unposed import is_video

    if merge_lora and export is None:
        raise InputError("--merge-lora belongs to --export DIR; for images adapters are always merged.")
    if layout is not None and export is None:
        raise InputError("--layout belongs to --export DIR; name a folder, or leave it out.")
    published = layout is Layout.diffusers
    if source is None:
        if export is None:
            raise InputError("Nothing to fix; name an image or a folder of images, or a folder to --export to.")
        of_images = {
            **{"--reference": reference, "--scene": scene, "--references": references, "--size": size},
            **{"--resize": resize, "--tile": tile, "--batch": batch, "--fill-unseen": fill_unseen},
            **{"--confidence": confidence, "--upscale": upscale, "--sr": sr},
            **{"--compile": compiled, "--seed": seed, "--device": device is not Device.auto, "--output": output},
        }
        if given := [option for option, value in of_images.items() if value]:
            raise InputError(
                f"Without images {', '.join(given)} would say nothing: a lone --export writes the fixer alone. Name an "
                "image or a folder of images too, or leave that out."
            )
        console.finish({"exported": _export(fixer, export, published, merge_lora, dtype, force)}, as_json)
        return
    if upscale is not None or sr is not None:
        of_fixes = {
            **{"--reference": reference, "--scene": scene, "--references": references, "--resize": resize},
            **{"--tile": tile, "--fill-unseen": fill_unseen, "--confidence": confidence, "--export": export},
            **{"--batch": batch},
            **{"--compile": compiled, "--fixer": fixer != "bundled", "--dtype": dtype is not Precision.auto},
        }
        if given := [option for option, value in of_fixes.items() if value]:
            raise InputError(f"{given[0]} belongs to fixing, not to --upscale; leave one of them out.")
        from difixcli.cli.super_resolution import enlarge

        enlarge(source, upscale, sr, size, seed, device, output, force, as_json)
        return
    if scene is not None and reference:
        raise InputError("--scene and --reference both choose the photos; leave one of them out.")
    if references is not None and scene is None and not reference:
        raise InputError("--references says how many photos count; name them with --reference, or a --scene.")
    if is_video(source):
        raise InputError(f"{source} is a video; use difix enhance for it.")
    folder = output or folder_beside(source, "fixed")
    sizes = listed_images(source, folder, size)
    files = list(sizes)
    tell_slow(sizes)
    photos = [photo for path in reference or [] for photo in photos_of(path)]
    for warning in check_references(files, photos):
        console.warn(warning)
    on, _ = pick_device(device)
    posed = None if scene is None else open_scene(scene, None, "gpu")
    network = open_fixer(fixer, on, dtype, compiled, tile)
    if fill_unseen and network.config.is_small:
        raise InputError(f"The fixer {fixer} has no noise to invent from; leave out --fill-unseen or name another.")
    if fill_unseen and not any(has_alpha(path) for path in files):
        raise InputError(f"No image of {source} has an alpha channel to say what was not seen; drop --fill-unseen.")
    if network.config.takes_photos and network.config.views and not (photos or posed):
        console.warn(f"The fixer {fixer} was trained with a reference photo; give --reference, or expect less of it.")
    count = photo_count(references, network)
    if posed is None:
        choice = ReferencePhotos.by_likeness(photos, count)
    else:
        count = min(count, len(posed.frames) - 1)  # an image's own frame is none of them
        choice = ReferencePhotos.by_pose(posed, files, count)
    fill_seed = seed if fill_unseen or network.config.fill_unseen else None
    options = FrameOptions(resize is Resize.release, confidence, fill_seed, batch)
    arguments = {"source": source.absolute(), "references": photos, "fixer": fixer, "size": size, **vars(options)}
    del arguments["batch"]  # of no account for what comes out
    arguments |= {"scene": scene and scene_spec(scene), "count": count if photos or scene else None}
    arguments |= {"tile": tile, "dtype": str(network.dtype), "compiled": compiled}
    # by content: renders made anew often have the names and sizes of those before
    inputs = {"source": fingerprint(files), "references": fingerprint(photos)}
    inputs |= fixer_input(fixer) | ({} if posed is None else scene_inputs(posed))
    reads = [source, *photos, *files_read(fixer, *([] if posed is None else [posed]))]
    if output is None:
        folder = beside_others(folder, "fix", arguments)
    run = Run.open(folder, "fix", arguments, inputs, force, reads=reads)
    announce(
        run, references=photos_told(photos, count), scene=posed and f"{posed.name}, nearest {counted(count, 'photo')}"
    )
    exported = None if export is None else _export(fixer, export, published, merge_lora, dtype, force, told=True)
    results = fix_images(files, run.folder, network, choice, options, size, console.progress)
    run.finish(results)
    _tell(results, run.folder, chosen=posed is not None or len(photos) > count)
    told = {"results": results, "output": str(run.folder)}
    console.finish(told if exported is None else {**told, "exported": exported}, as_json)


def _tell(results: dict[str, Any], folder: Path, chosen: bool) -> None:
    """Say what was fixed; with `chosen` which photos stood beside each image."""
    pace = results["seconds_per_frame"]
    console.say(f"Images in {folder}: {results['frames']}" + (f", {pace:.2f} s each" if pace else ""))
    if chosen:
        for name, beside in list(results["references"].items())[:5]:
            console.say(f"References of {name}: {', '.join(beside)}")
        if results["frames"] > 5:
            console.say(f"Those of the other images: {folder / 'run.json'}")
    if bad := results["bad"]:
        console.warn(
            f"{len(bad)} of {results['frames']} fixes look broken (false colours, collapsed, noise or moved): "
            f"{', '.join(bad[:5])}{', …' if len(bad) > 5 else ''}. Look at them before you use them."
        )


def _export(
    fixer: str, folder: Path, published: bool, merge: bool, dtype: Precision, force: bool, told: bool = False
) -> str:
    """Write a fixer to a folder, in our layout or the published one; `told` when its licence has been."""
    tell_loading()
    from difixcli.fixer import Fixer, local_files
    from difixcli.fixer.publishing import PARTS, check_publishable, save_published, text_encoder_of

    folder = folder.expanduser().absolute()
    if folder.is_file():
        raise InputError(f"{folder} is a file; name a folder to export to.")
    held = sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []
    if any(folder.resolve() in path.resolve().parents for path in local_files(fixer)):
        raise InputError(f"{folder} holds the fixer that is exported; choose another folder.")
    in_the_way = InputError(f"{folder} is not empty; choose another folder, or replace an export with --force.")
    parts, last = (PARTS, "model_index.json") if published else (("config.json", "model.safetensors"), "config.json")
    if not {name.removesuffix(".part") for name in held} <= set(parts):
        raise in_the_way
    finished = last in held  # which is written last
    loaded = Fixer.from_pretrained(fixer, merge=merge, dtype=precision(dtype))
    if published:
        check_publishable(loaded.config)
    if not told:
        console.say(f"Fixer {fixer}: licence {loaded.licence}")
    if finished and not force and not loaded.is_saved_in(folder):
        raise in_the_way
    if published:
        save_published(loaded.network, folder, text_encoder_of(fixer))
    else:
        loaded.save_pretrained(folder)
    console.say(f"Use it with --fixer {folder}")
    return str(folder)
