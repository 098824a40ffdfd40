"""Measuring what lies on disk: a folder of images against another, a run's renders against its photos, several runs.

What is returned is plain data, as `eval.json` holds it; `report` and `tables` make pages and files of it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from itertools import count, pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from difixcli.errors import InputError
from difixcli.evaluation.consistency import SMALLEST, EpipolarPair, WarpedPair, tsed, warped_difference
from difixcli.evaluation.geometry import Geometry, needed_geometry, own_geometry, reference_geometry, write_visibility
from difixcli.evaluation.metrics import (
    CORRECTED,
    METRICS,
    POSED,
    best_unsharp,
    default_metrics,
    how_made,
    metrics_against,
    summary,
)
from difixcli.evaluation.pictures import image_files, image_size
from difixcli.evaluation.protocols import OWN, Protocol, check_enlargement, check_seeds, check_split
from difixcli.evaluation.run_folders import TRUTH, RunFolder, row_names
from difixcli.frames.marks import read_marks, shares
from difixcli.images import resized
from difixcli.runs import CONFIDENCE, Progress, read_image, read_json
from difixcli.scenes.loading import natural_order
from difixcli.scenes.scene import Camera
from difixcli.shapes import Each

if TYPE_CHECKING:
    from difixcli.evaluation.color_correction import Correction
    from difixcli.evaluation.fid import FrechetDistance, Pool

_NAMED = 5  # how many missing images a message names
_VISIBILITY = "visibility"
_OF_FIGURES = ("results", "std", "per_image", "reference", "pairs", "by_camera", "baselines")
_EVALUATED = {
    **dict.fromkeys(("results", "std", "per_image?", "scenes?"), Each(dict)),
    **dict.fromkeys(("protocol", "conditions", "folders?"), Each(str)),
    "images": int,
}


@dataclass(frozen=True)
class Plan:
    """What to measure and how: keys of METRICS (`default_metrics` unless named), a colour correction for `cc_` figures
    beside them, the protocol, a folder of masks NAME.png (white counts) that come on top of a run's own, the file of
    Inception's weights, where to compute, runs on all photos of their scenes, whose depth is taken for the scenes', and
    for `pose_auc` what finds the cameras of images anew, as `posing.known_lenses.found_poses` does.
    """

    metrics: Sequence[str] | None = None
    correction: Correction | None = None
    protocol: Protocol = OWN
    masks: Path | None = None
    inception: Path | None = None
    device: str = "cpu"
    geometry: Sequence[Path] = ()
    find_poses: Callable[[Iterable[np.ndarray], Sequence[Camera]], Mapping[int, np.ndarray]] | None = None


def evaluate_folders(
    prediction: Path,
    truth: Path,
    device: str = "cpu",
    plan: Plan | None = None,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Figures of the images in a folder against those of the same stem in another, or of one file against one; all are
    turned upright as their EXIF orientation says, and masks are of the upright images' size.

    Returns `results` (mean figures by key), `std` (population, over images), `per_image` ({"images": {stem: figures}}),
    `images` (their number), `marks` ({"images": {stem: shares of what is seen, agreed, invented}} of those with a map
    NAME.confidence.png beside them), `protocol` (how each figure is made), `conditions` (protocol, split, views, crop,
    resize, size, mask, colour correction, in words), `reference` (the truth's own consistency), `upright` (whether
    images were turned) and `folders`.
    Raises InputError where names do not match, sizes differ or an image is broken, for a protocol (a folder has no
    split) and for figures of POSED (it has no poses).
    """
    plan = replace(plan or Plan(), device=device)
    views = _folders(prediction, truth, plan)
    evaluated = _measure(views, plan, [sorted(views.stems, key=natural_order)], {}, "none: folders of images", progress)
    return {**evaluated, "results": evaluated["results"]["images"], "std": evaluated["std"]["images"]}


def check_folders(prediction: Path, truth: Path, plan: Plan) -> None:
    """Raises InputError for what `evaluate_folders` cannot measure, as far as that is told before an image is read."""
    _folders(prediction, truth, plan)


def _folders(prediction: Path, truth: Path, plan: Plan) -> _Views:
    """The views of two folders; InputError as `evaluate_folders` raises it."""
    if plan.protocol.rule is not None:
        raise InputError(
            f"The protocol {plan.protocol.name} fixes the split, which a folder of images does not have; name a run."
        )
    if posed := [key for key in POSED if key in (plan.metrics or ())]:
        raise InputError(
            f"{METRICS[posed[0]].name} needs the cameras' poses, which a folder of images does not have; name a run."
        )
    masks = [plan.masks] if plan.masks else []
    # `difix fix` and `difix enhance` write their images upright
    return _Views({"images": prediction}, truth, masks, plan.protocol, upright=True)


def evaluate_run(
    folder: Path,
    device: str = "cpu",
    unsharp: bool = False,
    plan: Plan | None = None,
    work: Path | None = None,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Figures of every variant in `folder/renders` against `folder/renders/truth`.

    Where `folder/renders/mask` holds an image of a view's name, only the pixels that are white there count.
    Returns the same keys as `evaluate_folders`, with `results`, `std`, `per_image` and `marks` by variant, `rounds`
    (what changed from round to round) and `proposals` (a view each of the last round, by run). With `unsharp` there is
    also `baselines`: what the best of a few unsharp masks makes of the images that the fixer was given (`distilled`, or
    else `plain`), its figures and its `sigma` and `amount`.
    `work` is a folder where a protocol's visibility masks are left. Raises InputError when the run has no renders yet,
    or not all of them, or was made with another split than the protocol's.
    """
    return _evaluate_scene(
        [RunFolder.read(folder)], [""], replace(plan or Plan(), device=device), work, unsharp, progress
    )


def evaluate_runs(
    folders: Sequence[Path], plan: Plan, work: Path | None = None, progress: Progress | None = None
) -> dict[str, Any]:
    """Compare runs: one table of all their variants, over the same views of each scene.

    Runs of one scene must show the same views at one size against one truth; their variants get the run's name before
    their own, and what is returned is as of `evaluate_run`. With several scenes `results` and `std` are the mean and
    the population spread over scenes of each row's means, for the rows that every scene has; `partial` names the
    others, `fewer` how many scenes count in a mean where not all do ({row: {key: number}}), and `scenes` holds each
    scene's own figures. FID is there twice: `fid` as that mean, and `fid_pooled` of all scenes' images as one set, as
    papers have it.
    Raises InputError for fewer than two runs, and where runs cannot be compared, naming the difference.
    """
    runs = [RunFolder.read(folder) for folder in folders]
    if len({run.folder.resolve() for run in runs}) < len(runs) or len(runs) < 2:
        raise InputError("A comparison needs two different runs at least; name each once.")
    names = row_names(runs)
    members_of = _by_scene(runs)
    for members in members_of.values():
        for i in members[1:]:
            _check_comparable(runs[members[0]], runs[i])
    scenes = {}
    pool = None
    if len(members_of) > 1 and "fid" in (plan.metrics or ()):
        from difixcli.evaluation.fid import Pool

        pool = Pool()
    for scene, members in members_of.items():
        chosen, prefixes = [runs[i] for i in members], [names[i] for i in members]
        where = work if work is None or len(members_of) == 1 else work / scene
        scenes[scene] = _evaluate_scene(chosen, prefixes, plan, where, False, progress, pool)
    if len(scenes) == 1:
        return next(iter(scenes.values()))
    over = over_scenes(scenes)
    if pool is not None:
        frechet, weights = _frechet(plan)
        for row, distance in pool.distances(frechet, TRUTH).items():
            over["results"][row]["fid_pooled"] = distance
        how = how_made(["fid_pooled"], resize=plan.protocol.resize)
        over["protocol"]["fid_pooled"] = f"{how['fid_pooled']}; {weights}; {over['images']} images"
    return {**over, "scenes": scenes}


def suggested_metrics(folders: Sequence[Path], protocol: Protocol = OWN) -> tuple[tuple[str, ...], str]:
    """What to measure of runs unless told otherwise, which is quick on a CPU, and a sentence on what is left out.

    Beside `default_metrics` that is the warped difference, and TSED where the poses are known; neither where a protocol
    cuts every view to its object.
    """
    if protocol.crop is not None:
        return default_metrics(), ""
    runs = [RunFolder.read(folder) for folder in folders]
    if not all(_consecutive(run) for run in runs):
        return default_metrics(), ""
    try:
        for run in runs:
            _ = run.scene_and_split
    except InputError as error:
        return (*default_metrics(), "warped"), f"TSED is left out: {error}"
    return (*default_metrics(), "tsed", "warped"), ""


def marks_file(image: Path) -> Path:
    """Where the marks of an image are, if anywhere."""
    return image.with_name(f"{image.stem}{CONFIDENCE}")


def matched_files(prediction: Path, truth: Path) -> dict[str, tuple[Path, Path]]:
    """Image files by stem as (prediction, truth), sorted; InputError naming those that have no partner."""
    if prediction.is_file() and truth.is_file():
        return {prediction.stem: (prediction, truth)}
    for one, other in ((prediction, truth), (truth, prediction)):
        if one.is_file() and other.is_dir():
            raise InputError(f"{one} is a file but {other} is a folder; name two files or two folders.")
    ours, theirs = _by_stem(prediction), _by_stem(truth)
    for present, absent, where in ((theirs, ours, prediction), (ours, theirs, truth)):
        missing = [stem for stem in present if stem not in absent]
        if missing:
            raise InputError(f"{where} lacks {_some(missing)}; both folders need images of the same names.")
    return {stem: (ours[stem], theirs[stem]) for stem in ours}


class _Views:
    """The images of one scene as a protocol measures them, read one at a time.

    `variants` are folders of images (or one image) by name. A pixel counts where every folder of masks that has the
    view says so. With `upright` images and masks are turned as their EXIF orientation says.
    """

    def __init__(
        self,
        variants: Mapping[str, Path],
        truth: Path,
        masks: Sequence[Path],
        protocol: Protocol,
        upright: bool = False,
    ) -> None:
        self.upright = upright
        self._sizes: dict[Path, tuple[int, int]] = {}
        self.variants, self.truth_folder, self.masks, self.protocol = dict(variants), truth, masks, protocol
        self.files = {name: matched_files(folder, truth) for name, folder in self.variants.items()}
        self.stems = list(next(iter(self.files.values())))
        for folder in masks:
            known = {path.stem for path in folder.glob("*.png")}
            if not known & set(self.stems):
                raise InputError(f"{folder} holds no mask NAME.png of any view, as {self.stems[0]}.png; name another.")

    def truth(self, stem: str) -> np.ndarray:
        """(H, W, 3) in [0, 1]."""
        return self._shown(read_image(self._truth_file(stem), upright=self.upright), stem)

    def image(self, name: str, stem: str) -> np.ndarray:
        """(H, W, 3) in [0, 1] of one variant; InputError when its size is not the truth's."""
        image, photo = self.files[name][stem]
        ours, theirs = self._size(image), self._size(photo)
        if ours != theirs:
            raise InputError(
                f"{image} is {ours[0]}×{ours[1]} pixels but {photo} is {theirs[0]}×{theirs[1]}; "
                "render or resize them to one size."
            )
        return self._shown(read_image(image, upright=self.upright), stem)

    def mask(self, stem: str) -> np.ndarray | None:
        """(H, W) bool, or None where every pixel of the view counts, as every one of an object's before black does."""
        joined = self._joined(stem)
        if self.protocol.crop is not None:
            return None if self._object(stem).any() else np.zeros(self.size(stem)[::-1], dtype=bool)
        return None if joined is None else self.protocol.sized(joined)

    def marks(self, name: str) -> dict[str, dict[str, float]]:
        """By stem, the shares of the marks (see `frames.marks`) of one variant's images that have a map beside them."""
        maps = {stem: marks_file(image) for stem, (image, _) in self.files[name].items()}
        return {stem: shares(read_marks(path)) for stem, path in maps.items() if path.is_file()}

    def _shown(self, image: np.ndarray, stem: str) -> np.ndarray:
        """An image (H, W, 3) as the protocol measures it."""
        if self.protocol.crop is not None:
            return self.protocol.crop.cut(image, self._object(stem))
        return self.protocol.sized(image)

    def _object(self, stem: str) -> np.ndarray:
        """(H, W) bool: where a view's object is. InputError where nothing says so."""
        joined = self._joined(stem)
        if joined is None:
            raise InputError(
                f"The protocol {self.protocol.name} measures objects before black, but {stem} has no mask; give the "
                "scene masks, or name a folder of them with --masks."
            )
        return joined

    def _joined(self, stem: str) -> np.ndarray | None:
        """(H, W) bool at the files' size: where all folders of masks say that the view counts; None without any."""
        joined = None
        for folder in self.masks:
            path = folder / f"{stem}.png"
            if not path.is_file():
                continue
            mask = read_image(path, upright=self.upright).mean(axis=-1) > 0.5
            size = self._size(self._truth_file(stem))
            if (mask.shape[1], mask.shape[0]) != size:
                raise InputError(
                    f"The mask {path} is {mask.shape[1]}×{mask.shape[0]} pixels but its view is {size[0]}×{size[1]}; "
                    "make them the same size."
                )
            joined = mask if joined is None else joined & mask
        return joined

    def size(self, stem: str) -> tuple[int, int]:
        """(width, height) at which a view is measured."""
        return self.protocol.size(*self._size(self._truth_file(stem)))

    def _size(self, path: Path) -> tuple[int, int]:
        """(width, height) of an image file as it is read; each is opened once, as a PNG's turn may stand at its end."""
        if path not in self._sizes:
            self._sizes[path] = image_size(path, self.upright)
        return self._sizes[path]

    def _truth_file(self, stem: str) -> Path:
        return next(iter(self.files.values()))[stem][1]


def _evaluate_scene(
    runs: Sequence[RunFolder],
    names: Sequence[str],
    plan: Plan,
    work: Path | None,
    unsharp: bool,
    progress: Progress | None,
    pool: Pool | None = None,
) -> dict[str, Any]:
    """Figures of every variant of runs of one scene; `names` go before their variants'."""
    if plan.protocol.rule is not None:
        for run in runs:
            check_split(plan.protocol, *run.scene_and_split, str(run.folder))
            check_seeds(plan.protocol, run.scene_and_split[0])
            check_enlargement(plan.protocol, run.arguments.get("enlargement"), str(run.folder))
    if plan.protocol.crop is not None and (said := sorted({*POSED, "warped"} & set(plan.metrics or ()))):
        raise InputError(
            f"{METRICS[said[0]].name} compares whole neighbouring views, and the protocol {plan.protocol.name} cuts "
            "each to its object; leave it out."
        )
    first = runs[0]
    geometry: Geometry | None = None
    seen = ""
    masks = [first.masks] if first.masks.is_dir() else []
    masks += [plan.masks] if plan.masks is not None else []
    if plan.protocol.visibility:
        if work is None:
            raise ValueError("a protocol with visibility needs a folder to work in")
        geometry = needed_geometry(
            plan.geometry, first, plan.device, f"The protocol {plan.protocol.name} counts what training photos see,"
        )
        seen_digest = write_visibility(geometry, *first.scene_and_split, work / _VISIBILITY)
        seen = f"in a training photo's frustum by the depth of {geometry.said} (masks' SHA-256 {seen_digest}…)"
        masks.append(work / _VISIBILITY)
    variants = {
        f"{name} {variant}".strip(): folder
        for run, name in zip(runs, names, strict=True)
        for variant, folder in run.variants.items()
    }
    views = _Views(variants, first.truth, masks, plan.protocol)
    cameras: dict[str, Camera] = {}
    groups: dict[str, list[str]] = {}
    if plan.protocol.by_camera or set(POSED) & set(plan.metrics or ()):
        scene, split = first.scene_and_split
        for i in split.test:
            name = scene.file_names[i]
            cameras[name] = scene.frames[i].camera.resized(*views.size(name))
            groups.setdefault(scene.frames[i].camera_id, []).append(name)
    rule = first.split_rule or "not recorded"
    if "cross_view" in (plan.metrics or ()):
        geometry = geometry or reference_geometry(plan.geometry, first, plan.device)
        if geometry is None and len(runs) > 1:
            geometry = needed_geometry((), first, plan.device, "Runs are compared across views")
        geometry = geometry or own_geometry(first, plan.device)
    evaluated = _measure(views, plan, first.sequences(), cameras, rule, progress, pool, geometry)
    if seen:
        evaluated["conditions"]["mask"] = " and ".join(
            seen if kind == _VISIBILITY else kind for kind in evaluated["conditions"]["mask"].split(" and ")
        )
    if plan.protocol.by_camera:
        evaluated["by_camera"] = {
            camera: {
                variant: _summary([rows[stem] for stem in members if stem in rows])[0]
                for variant, rows in evaluated["per_image"].items()
            }
            for camera, members in groups.items()
            if any(stem in rows for stem in members for rows in evaluated["per_image"].values())
        }
    evaluated["rounds"] = {
        name or first.scene_name: rounds for run, name in zip(runs, names, strict=True) if (rounds := run.rounds())
    }
    evaluated["proposals"] = {
        name or first.scene_name: proposals
        for run, name in zip(runs, names, strict=True)
        if (proposals := [_marked(one) for one in run.proposals()])
    }
    given = next((name for name in ("distilled", "plain") if name in variants), None)
    if unsharp and given is not None and "st_lpips" in evaluated["protocol"]:
        triples = (
            (views.image(given, stem), views.truth(stem), views.mask(stem)) for stem in evaluated["per_image"][given]
        )
        best = best_unsharp(triples, device=plan.device)
        made = {**best.figures, "sigma": best.sigma, "amount": best.amount}
        evaluated["baselines"] = {f"{given} + unsharp": made}
    return evaluated


def _marked(proposal: Mapping[str, Any]) -> dict[str, Any]:
    """A proposal of a round (see `RunFolder.proposals`) with what its pixels weigh on average, and the shares of its
    marks, where it has them.
    """
    told = dict(proposal)
    if proposal["weight"] is not None:
        told["mean_weight"] = proposal["most"] * float(read_image(Path(proposal["weight"])).mean())
    if proposal["marks"] is not None:
        told["shares"] = shares(read_marks(Path(proposal["marks"])))
    return told


def _measure(
    views: _Views,
    plan: Plan,
    paths: Sequence[Sequence[str]],
    cameras: Mapping[str, Camera],
    split: str,
    progress: Progress | None,
    pool: Pool | None = None,
    geometry: Geometry | None = None,
) -> dict[str, Any]:
    """Figures of each variant against the truth, one view in memory at a time.

    `paths` are the views in the order of the camera's path, for consistency; `cameras` are theirs at the measured size.
    """
    metrics = list(default_metrics() if plan.metrics is None else plan.metrics)
    per_image: dict[str, dict[str, dict[str, float]]] = {name: {} for name in views.variants}
    masked = False
    # what is no map, and what FID lacks, should be known before the others have taken their time
    marks = {name: marked for name in views.variants if (marked := views.marks(name))}
    frechet, weights = _frechet(plan) if "fid" in metrics else (None, "")
    with (progress or _silent)("measure", len(views.stems)) as update:
        for done, stem in enumerate(views.stems, start=1):
            mask = views.mask(stem)
            if mask is None or mask.any():  # else nothing of this view can be measured
                masked = masked or mask is not None
                images = [views.image(name, stem) for name in views.variants]
                rows = metrics_against(views.truth(stem), images, mask, plan.device, metrics, plan.correction)
                for name, figures in zip(views.variants, rows, strict=True):
                    per_image[name][stem] = figures
            update(done)
    if not all(per_image.values()):
        raise InputError(_nothing_counts(views))
    means = {name: _summary(list(rows.values())) for name, rows in per_image.items()}
    results = {name: mean for name, (mean, _) in means.items()}
    std = {name: spread for name, (_, spread) in means.items()}
    protocol = how_made(metrics, masked, plan.correction, plan.protocol.resize)
    measured = list(per_image[next(iter(views.variants))])
    if frechet is not None:
        protocol["fid"] += f"; {weights}; {len(measured)} images"
        for stem in measured:
            frechet.add(views.truth(stem), true=True)
        if pool is not None:
            pool.add(TRUTH, frechet.moments(true=True))
        for name in views.variants:
            for stem in measured:
                frechet.add(_counted(views, name, stem), true=False)
            if pool is not None:
                pool.add(name, frechet.moments(true=False))
            results[name]["fid"] = frechet.distance()
    reference: dict[str, float] = {}
    pairs: dict[str, list[dict[str, Any]]] = {}
    if {"tsed", "warped"} & set(metrics):
        parts = _one_size(paths, views.size)
        if not parts:
            raise InputError("Consistency needs two consecutive views of one size; leave tsed and warped out.")
        shown = (TRUTH, *views.variants)
        frames = sum(map(len, parts)) * len({"tsed", "warped"} & set(metrics))
        with (progress or _silent)("compare neighbours", len(shown) * frames) as update:
            number = count(1)
            for name in shown:
                pairs[name] = _pairs(views, name, parts, cameras, metrics, lambda: update(next(number)))
                mean, spread = _consistency(pairs[name])
                if name == TRUTH:
                    reference = mean
                else:
                    results[name] |= mean
                    std[name] |= spread
    across: dict[str, tuple[dict[str, float], dict[str, float]]] = {}
    if geometry is not None and "cross_view" in metrics:
        protocol |= {key: f"{how}; depth of {geometry.said}" for key, how in _across_made(plan).items()}
        across = _across(views, _one_size(paths, views.size), cameras, geometry, plan.device)
    if "pose_auc" in metrics:
        for name, value in _pose_aucs(views, measured, cameras, plan).items():
            across.setdefault(name, ({}, {}))[0]["pose_auc"] = value
    for name, (mean, spread) in across.items():
        if name == TRUTH:
            reference |= mean
        else:
            results[name] |= mean
            std[name] |= spread
    return {
        "results": results,
        "std": std,
        "per_image": per_image,
        "reference": reference,
        "pairs": pairs,
        "images": len(measured),
        "marks": marks,
        "upright": views.upright,
        "protocol": protocol,
        "conditions": _conditions(views, plan, split, len(measured), masked),
        "folders": {TRUTH: str(views.truth_folder), **{name: str(folder) for name, folder in views.variants.items()}},
    }


def _nothing_counts(views: _Views) -> str:
    """Why no pixel of any view can be measured, and what to do."""
    masks = [folder for folder in views.masks if folder.name != _VISIBILITY]
    if len(masks) < len(views.masks):
        also = f" that {' and '.join(map(str, masks))} leaves white" if masks else ""
        return (
            f"No training photo sees a pixel of a held-out view{also}, and the protocol {views.protocol.name} counts "
            "nothing else; check the scene's poses and its split, or leave the protocol out."
        )
    return (
        f"Every view is wholly masked by {' and '.join(map(str, masks))}; white in a mask is what counts, so perhaps "
        "black and white should change places."
    )


def _frechet(plan: Plan) -> tuple[FrechetDistance, str]:
    """What computes FID, and in words from whose weights."""
    from difixcli.evaluation.fid import FrechetDistance, identity_of, inception, inception_file

    weights = inception_file(plan.inception)
    words = f"weights {weights.name}, SHA-256 {identity_of(weights)}…"
    return FrechetDistance(inception(weights, plan.device), plan.device), words


def _summary(rows: Sequence[Mapping[str, float]]) -> tuple[dict[str, float], dict[str, float]]:
    """Mean and spread of each figure over the views that have it: SSIM has none where a mask lies in the border alone,
    and one such view must not take the others' mean away.
    """
    mean, spread = summary(rows)
    for key in [key for key, value in mean.items() if math.isnan(value)]:
        if having := [{key: row[key]} for row in rows if not math.isnan(row[key])]:
            one = summary(having)
            mean[key], spread[key] = one[0][key], one[1][key]
    return mean, spread


def _counted(views: _Views, name: str, stem: str) -> np.ndarray:
    """A variant's image with the truth wherever its mask does not count."""
    image, mask = views.image(name, stem), views.mask(stem)
    return image if mask is None else np.where(mask[..., None], image, views.truth(stem))


def _pairs(
    views: _Views,
    name: str,
    paths: Sequence[Sequence[str]],
    cameras: Mapping[str, Camera],
    metrics: Sequence[str],
    advance: Callable[[], None],
) -> list[dict[str, Any]]:
    """The consistency of each pair of consecutive views of a variant, or of the truth; for every figure each frame is
    taken once, which `advance` is called for.
    """
    found = []
    for path in paths:
        entries: list[dict[str, Any]] = [{"from": one, "to": two} for one, two in pairwise(path)]

        def frames(path: Sequence[str] = path) -> Iterator[np.ndarray]:
            for stem in path:
                yield views.truth(stem) if name == TRUTH else views.image(name, stem)
                advance()

        if "warped" in metrics:
            warped: list[WarpedPair] = warped_difference(frames(), (views.truth(stem) for stem in path))
            for entry, one in zip(entries, warped, strict=True):
                entry |= {"warped": one.difference, "share": one.share}
        if "tsed" in metrics:
            epipolar: list[EpipolarPair | None] = tsed(frames(), [cameras[stem] for stem in path])
            for entry, pair in zip(entries, epipolar, strict=True):
                if pair is not None:
                    entry |= {"matches": pair.matches, "epipolar": pair.error, "consistent": pair.consistent}
        found += entries
    return found


def _across_made(plan: Plan) -> dict[str, str]:
    return how_made(["cross_view", "cross_view_far"], resize=plan.protocol.resize)


def _across(
    views: _Views,
    paths: Sequence[Sequence[str]],
    cameras: Mapping[str, Camera],
    geometry: Geometry,
    device: str,
) -> dict[str, tuple[dict[str, float], dict[str, float]]]:
    """Mean and spread of the distances across near and far pairs of views, of each variant and of the truth."""
    from difixcli.evaluation.cross_view import FAR, View, compared_size, cross_view, path_pairs

    stems = [stem for path in paths for stem in path]
    small = {stem: cameras[stem].resized(*compared_size(*views.size(stem))) for stem in stems}
    depths = {stem: geometry.depth(camera) for stem, camera in small.items()}
    found: dict[str, tuple[dict[str, float], dict[str, float]]] = {}
    for name in (TRUTH, *views.variants):

        def view(i: int, name: str = name) -> View:
            stem = stems[i]
            image = views.truth(stem) if name == TRUTH else views.image(name, stem)
            size = (small[stem].width, small[stem].height)
            return View(np.clip(resized(image, *size), 0, 1), depths[stem], small[stem])

        mean: dict[str, float] = {}
        spread: dict[str, float] = {}
        for key, apart in (("cross_view", 1), ("cross_view_far", FAR)):
            pairs, start = [], 0
            for path in paths:
                pairs += [(start + i, start + j) for i, j in path_pairs(len(path), apart)]
                start += len(path)
            values = [pair.distance for pair in cross_view(view, pairs, device) if math.isfinite(pair.distance)]
            if values:
                mean[key], spread[key] = float(np.mean(values)), float(np.std(values))
        found[name] = mean, spread
    return found


def _pose_aucs(views: _Views, stems: Sequence[str], cameras: Mapping[str, Camera], plan: Plan) -> dict[str, float]:
    """How well the cameras of each variant's images, and of the truth's, are found anew."""
    from difixcli.evaluation.pose_accuracy import pose_auc, pose_errors

    if plan.find_poses is None:
        raise ValueError("pose_auc needs what finds the cameras")
    if len(stems) < 3:
        raise InputError("Cameras are found anew from three views at least; leave pose-auc out of --metrics.")
    known = [cameras[stem] for stem in stems]
    aucs = {}
    for name in (TRUTH, *views.variants):
        images = (views.truth(stem) if name == TRUTH else views.image(name, stem) for stem in stems)
        aucs[name] = pose_auc(pose_errors(known, plan.find_poses(images, known)))
    return aucs


def _consistency(pairs: Sequence[Mapping[str, Any]]) -> tuple[dict[str, float], dict[str, float]]:
    """TSED and the mean warped difference of pairs, and the latter's spread."""
    mean, spread = {}, {}
    if any("warped" in pair for pair in pairs):
        values = np.array([pair["warped"] for pair in pairs if math.isfinite(pair["warped"])])
        mean["warped"] = float(values.mean()) if values.size else math.nan
        spread["warped"] = float(values.std()) if values.size else math.nan
    consistent = [pair["consistent"] for pair in pairs if "consistent" in pair]
    if consistent:
        mean["tsed"] = float(np.mean(consistent))
    return mean, spread


def _consecutive(run: RunFolder) -> bool:
    """Whether two of a run's views follow each other at one size that optical flow can work at."""
    sizes = {path.stem: image_size(path) for path in image_files(run.truth)}
    parts = _one_size(run.sequences(), sizes.__getitem__)
    return bool(parts) and all(min(sizes[part[0]]) >= SMALLEST for part in parts)


def _one_size(paths: Sequence[Sequence[str]], size_of: Callable[[str], tuple[int, int]]) -> list[list[str]]:
    """The paths, broken where the views' size changes; parts of one view left out."""
    parts: list[list[str]] = []
    for path in paths:
        before = None
        for stem in path:
            size = size_of(stem)
            if size != before:
                parts.append([])
            parts[-1].append(stem)
            before = size
    return [part for part in parts if len(part) > 1]


def _conditions(views: _Views, plan: Plan, split: str, measured: int, masked: bool) -> dict[str, str]:
    """What the numbers depend on besides the images, in words."""
    protocol = plan.protocol
    kinds = []
    if masked:
        kinds = [
            _VISIBILITY if folder.name == _VISIBILITY
            else f"masks of {folder.name}" if folder == plan.masks else "the photos' own"
            for folder in views.masks
        ]  # fmt: skip
    sizes = sorted({views.size(stem) for stem in views.stems})
    size = f"{sizes[0][0]}×{sizes[0][1]}" + (f" to {sizes[-1][0]}×{sizes[-1][1]}" if len(sizes) > 1 else "")
    empty = len(views.stems) - measured
    return {
        "protocol": protocol.name,
        "split": split,
        "views": f"{protocol.views}: {measured}" + (f", {empty} more wholly masked" if empty else ""),
        "crop": "none" if protocol.crop is None else f"the object's box and {protocol.crop.context:g} of it around",
        "resize": protocol.resize,
        "size": f"{size} pixels",
        "mask": "black outside the object" if protocol.crop else " and ".join(dict.fromkeys(kinds)) or "none",
        "colour correction": "none" if plan.correction is None else f"{plan.correction}, for cc figures",
    }


def by_scene(folders: Sequence[Path]) -> dict[str, list[Path]]:
    """The runs of each scene, by the scene's name."""
    runs = [RunFolder.read(folder) for folder in folders]
    return {scene: [runs[i].folder for i in members] for scene, members in _by_scene(runs).items()}


def _by_scene(runs: Sequence[RunFolder]) -> dict[str, list[int]]:
    found: dict[str, list[int]] = {}
    for i, run in enumerate(runs):
        found.setdefault(_unique_scene(run, runs), []).append(i)
    return found


def _unique_scene(run: RunFolder, runs: Sequence[RunFolder]) -> str:
    """A scene's name, with its folder where other scenes are called the same."""
    alike = {other.scene_spec for other in runs if other.scene_name == run.scene_name}
    return run.scene_name if len(alike) == 1 else f"{run.scene_name} ({run.scene_spec or run.folder})"


def _check_comparable(one: RunFolder, other: RunFolder) -> None:
    """InputError, naming the difference, where two runs of one scene do not show the same views of the same truth."""
    held = [one.split_rule, other.split_rule]
    if held[0] != held[1]:
        raise InputError(
            f"{one.folder} and {other.folder} have different splits ({held[0]} and {held[1]}); "
            "only runs of one split can be compared."
        )
    truths = [{path.stem: path for path in image_files(run.truth)} for run in (one, other)]
    for (mine, theirs), run in zip((truths, truths[::-1]), (one, other), strict=True):
        extra = [stem for stem in mine if stem not in theirs]
        if extra:
            raise InputError(
                f"Only {run.folder} shows {_some(extra)}; runs of one scene need the same views to be compared."
            )
    for stem, path in truths[0].items():
        sizes = image_size(path), image_size(truths[1][stem])
        if sizes[0] != sizes[1]:
            raise InputError(
                f"{one.folder} shows {stem} at {sizes[0][0]}×{sizes[0][1]} pixels, {other.folder} at "
                f"{sizes[1][0]}×{sizes[1][1]}; run both at one --size."
            )
        if not np.array_equal(read_image(path), read_image(truths[1][stem])):
            raise InputError(
                f"{path} and {truths[1][stem]} are different photos; only runs against one truth can be compared."
            )
        masks = [run.masks / f"{stem}.png" for run in (one, other)]
        there = [mask.is_file() for mask in masks]
        if there[0] != there[1] or (all(there) and not np.array_equal(read_image(masks[0]), read_image(masks[1]))):
            raise InputError(f"{one.folder} and {other.folder} have different masks of {stem}; run them on one scene.")


def read_evaluated(file: Path) -> dict[str, Any]:
    """What `evaluate_run` or `evaluate_runs` returned, from the eval.json that holds it.

    A figure that is not finite is null there: of PSNR that is infinity, which identical images have, else NaN.
    InputError where the file is missing or damaged.
    """
    evaluated: dict[str, Any] = read_json(file, _EVALUATED, "measure again")
    return _with_numbers(evaluated)


def _with_numbers(evaluated: dict[str, Any]) -> dict[str, Any]:
    held = {part: _numbers(value, part != "std") for part, value in evaluated.items() if part in _OF_FIGURES}
    if "scenes" in evaluated:
        held["scenes"] = {name: _with_numbers(scene) for name, scene in evaluated["scenes"].items()}
    return {**evaluated, **held}


def _numbers(value: Any, infinite: bool, key: str = "") -> Any:
    """Figures with numbers where JSON has null; `infinite` says that PSNR may be."""
    if isinstance(value, dict):
        return {name: _numbers(one, infinite, name) for name, one in value.items()}
    if isinstance(value, list):
        return [_numbers(one, infinite) for one in value]
    if value is not None:
        return value
    return math.inf if infinite and key.removeprefix(CORRECTED) == "psnr" else math.nan


def over_scenes(scenes: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Mean and spread over scenes of each row that all of them have; what `evaluate_runs` returns of several.

    A scene whose figure is none (NaN), or infinite where others' are not, does not count in that figure's mean; `fewer`
    says of each such row and figure how many scenes did.
    """
    rows = list(dict.fromkeys(row for scene in scenes.values() for row in scene["results"]))
    whole = [row for row in rows if all(row in scene["results"] for scene in scenes.values())]
    shared = {row: [_shared(scene["results"][row], scenes, row) for scene in scenes.values()] for row in whole}
    over = {row: _summary(figures) for row, figures in shared.items()}
    fewer = {row: few for row, figures in shared.items() if (few := _fewer(figures))}
    keys = dict.fromkeys(key for scene in scenes.values() for key in scene["conditions"])
    conditions = {}
    for key in keys:
        said = {name: scene["conditions"][key] for name, scene in scenes.items()}
        alike = set(said.values())
        conditions[key] = (
            alike.pop() if len(alike) == 1 else "; ".join(f"{name}: {text}" for name, text in said.items())
        )
    protocol: dict[str, str] = {}
    for scene in scenes.values():
        protocol |= scene["protocol"]
    return {
        "results": {row: mean for row, (mean, _) in over.items()},
        "std": {row: spread for row, (_, spread) in over.items()},
        "partial": [row for row in rows if row not in whole],
        "fewer": fewer,
        "images": sum(scene["images"] for scene in scenes.values()),
        "protocol": {
            key: f"{protocol[key]}; mean over scenes of each scene's own{_of_fewer(key, fewer, len(scenes))}"
            for key in METRICS
            if key in protocol
        },
        "conditions": conditions,
    }


def _fewer(scenes: Sequence[Mapping[str, float]]) -> dict[str, int]:
    """How many scenes count in the mean of each figure, where that is some and not all."""
    counts = {}
    for key in scenes[0]:
        values = [figures[key] for figures in scenes if not math.isnan(figures[key])]
        finite = sum(map(math.isfinite, values))
        counts[key] = finite or len(values)
    return {key: count for key, count in counts.items() if 0 < count < len(scenes)}


def _of_fewer(key: str, fewer: Mapping[str, Mapping[str, int]], scenes: int) -> str:
    rows = [f"{row} of {few[key]} of {scenes}" for row, few in fewer.items() if key in few]
    return f" ({', '.join(rows)} that have a finite one)" if rows else ""


def _shared(figures: Mapping[str, float], scenes: Mapping[str, Mapping[str, Any]], row: str) -> dict[str, float]:
    """The figures of a row that every scene has."""
    return {
        key: value for key, value in figures.items() if all(key in scene["results"][row] for scene in scenes.values())
    }


def _silent(label: str, total: int) -> AbstractContextManager[Callable[[int], None]]:
    return nullcontext(lambda done: None)


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:_NAMED]) + (f" and {len(names) - _NAMED} more" if len(names) > _NAMED else "")


def _by_stem(folder: Path) -> dict[str, Path]:
    found: dict[str, Path] = {}
    for path in image_files(folder):
        if path.stem in found:
            raise InputError(f"{folder} holds {found[path.stem].name} and {path.name}; keep one image of that name.")
        found[path.stem] = path
    return found
