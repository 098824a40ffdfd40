"""Training a video model: the layers that make films of a fixer's pictures, on clips of posed scenes.

ReconX's two stages (arXiv 2408.16767, section 4.1): the attention to the structure first, then with it the spatial
layers; the attention across pictures and the weights of neighbours, which its video model had already, learn in the
second. What is drawn at a step is a function of the step and the seed, so a run that was stopped goes on from its last
checkpoint.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from difixcli.errors import InputError
from difixcli.evaluation.consistency import warped_difference
from difixcli.evaluation.metrics import evaluate_images, summary
from difixcli.fixer.correspondence import padded
from difixcli.fixer.network import EncodedReferences
from difixcli.fixer.weights import load_network
from difixcli.priors.video.files import around, fixer_name, is_ours, load_film, save_film
from difixcli.priors.video.film import FixerFilm, tokens_of
from difixcli.priors.video.network import FilmNetwork
from difixcli.runs import make_folder, write_image, write_json
from difixcli.training.averaging import averaged
from difixcli.training.fixer import gain
from difixcli.training.journal import Journal
from difixcli.training.loop import Best, Report, StagedTraining
from difixcli.training.losses import charbonnier, perceptual_network
from difixcli.training.options import VIDEO_FREE, VideoOptions, with_options
from difixcli.training.pair_lists import spread
from difixcli.training.video_clips import Clip, ClipFiles, ClipSet, read_clips

STAGES = ("structure", "film")
_STRUCTURE_SHARE = 0.25  # of the seconds
_SHOWN = 4  # clips of a validation's picture


def train_video(
    sources: Sequence[Path],
    base: str | Path,
    output: Path,
    *,
    device: str = "cpu",
    progress: Callable[[int], None] | None = None,
    report: Callable[[Mapping[str, Any]], None] | None = None,
    **options: Any,
) -> dict[str, Any]:
    """Train a video model and write it to `output`, which `open_video_model` takes.

    The folder holds the best weights by validation (without clips for testing the last ones), `log.jsonl`,
    `tensorboard/`, `validation/STEP.png` (of some clips the render, the fixer's picture, the model's and the photo in
    the middle) and `checkpoints/last.pt`. Called again with the same arguments it goes on from that checkpoint.

    Args:
        sources: folders that `difix curate --strategy clips` made.
        base: a video model of ours (`bundled`, or its folder), or a fixer, in a folder or of a hub, around which the
            layers are new. A fixer's own weights are stored only as far as they move, or where its folder has no name.
        progress: called with the number of steps done, of both stages together.
        report: called with every record written to the log.
        options: fields of `VideoOptions`.

    Returns:
        `steps` and `seconds` by stage, `best_step`, `loss` (mean over the last records), `parameters` (`new`, and
        `spatial` where those train), `clips` (numbers of `train`, `test`, `dropped`), `dropped` (reasons), and
        `validation`, over the pictures between the photos: mean `psnr`, `ssim`, `st_lpips` and `warped_difference`
        (from picture to picture along the photos' motion) of `render`, `frame_by_frame` (the fixer alone), `film` and,
        the last of these alone, `photos`.

    Raises InputError for clips, options or bases that cannot be used, a loss that is no number, and a checkpoint that
    cannot be read or written.
    """
    chosen = with_options(VideoOptions(), options, device)
    network = base_network(base, chosen)
    training = _Training(network, chosen, output, device, report)
    try:
        training.load_data(sources, str(base))
        return training.run(progress)
    finally:
        training.journal.close()


def base_network(base: str | Path, options: VideoOptions) -> FilmNetwork:
    """The network a training begins from, on the CPU."""
    path = Path(base).expanduser()
    if str(base) == "bundled" or (path.is_dir() and is_ours(path)):
        network = load_film(base)
    else:
        network = around(load_network(base), fixer_name(base), options.seed)
    network.config = replace(
        network.config, window=options.window, shared=min(network.config.shared, options.window - 1)
    )
    return network


class _Training(StagedTraining):
    """The state of one training run."""

    STAGES = STAGES
    DATA = "clips"
    ENTRIES = ("stage", "model", "best")
    TOLD = (*STAGES, "validation")
    FIRST = 1

    def __init__(
        self, network: FilmNetwork, options: VideoOptions, output: Path, device: str, report: Report | None
    ) -> None:
        super().__init__(options, output, device, Journal(make_folder(output), report))
        self.network, self.options = network.to(device), options
        self.perceptual = None
        if options.perceptual_weight:
            self.perceptual = perceptual_network(options.perceptual, device)
        self.baselines: dict[str, Any] | None = None
        self.best = Best()
        self._held: OrderedDict[tuple[int, bool], Clip] = OrderedDict()
        self.begin_stage()

    def begin_stage(self) -> None:
        options, network = self.options, self.network.requires_grad_(False)
        new = dict(network.new_layers())
        if STAGES[self.stage] == "structure":
            new = {name: value for name, value in new.items() if name.startswith(("encoder.", "structure."))}
        gates = [value for name, value in new.items() if name.endswith(".gate")]
        others = [value for name, value in new.items() if not name.endswith(".gate")]
        groups: list[tuple[Sequence[Tensor], float, dict[str, Any]]] = [
            (others, options.learning_rate, {}),
            (gates, options.gate_learning_rate, {"weight_decay": 0.0}),
        ]
        if STAGES[self.stage] == "film" and options.spatial_learning_rate:
            groups.append((list(network.fixer.unet.parameters()), options.spatial_learning_rate, {}))
        self.train_weights(groups)

    def model(self) -> FilmNetwork:
        return self.network

    def iterations(self, stage: str) -> int:
        return self.options.structure_iterations if stage == "structure" else self.options.iterations

    def share(self, stage: str) -> float:
        return _STRUCTURE_SHARE if stage == "structure" else 1 - _STRUCTURE_SHARE

    def load_data(self, sources: Sequence[Path], base: str) -> None:
        """Find the clips, and take up a checkpoint."""
        self.clips: ClipSet = read_clips(sources)
        self.validation = spread(self.clips.test, self.options.validation_clips)
        self.counts = {"train": len(self.clips.train), "test": len(self.clips.test), "dropped": len(self.clips.dropped)}
        identity = {
            "base": base,
            "options": {name: value for name, value in asdict(self.options).items() if name not in VIDEO_FREE},
            "clips": self.clips.fingerprint,
        }
        self.validate_every = self.options.validate_every if self.validation else 0
        self.take_up(self.checkpointed(), identity, {"clips": self.counts, "dropped": self.clips.dropped})

    def run(self, progress: Callable[[int], None] | None) -> dict[str, Any]:
        if self.validation and self.baselines is None:
            self.baselines = self._baselines()
            flat = {f"{name}_{key}": value for name, row in self.baselines.items() for key, value in row.items()}
            self.journal({"event": "baselines", **flat})
        self.train(progress)
        best = self.best.found
        if best is None:
            save_film(self.network, self.output)
        parameters = {"new": sum(value.numel() for _, value in self.network.new_layers())}
        if self.options.spatial_learning_rate:
            parameters["spatial"] = sum(value.numel() for value in self.network.fixer.unet.parameters())
        results = {
            "steps": self.steps,
            "best_step": sum(self.steps.values()) if best is None else best["step"],
            "seconds": {name: round(value, 1) for name, value in self.seconds.items()},
            "loss": self.losses[STAGES[-1]],
            "parameters": parameters,
            "clips": self.counts,
            "dropped": self.clips.dropped,
            "validation": {**(self.baselines or {}), **({"film": best["figures"]} if best else {})},
        }
        write_json(self.output / "training.json", {"options": asdict(self.options), "results": results})
        return results

    def ended(self, stage: str) -> None:
        self.losses[STAGES[-1]] = self.losses[stage]  # the mean goes on

    def rounds(self) -> Iterator[tuple[Tensor, dict[str, Tensor]]]:
        draw = np.random.default_rng([self.options.seed, (self.stage << 24) + self.step])
        for _ in range(self.options.batch):
            parts = {name: value / self.options.batch for name, value in self._losses(draw).items()}
            yield torch.stack(list(parts.values())).sum(), parts

    def _losses(self, draw: np.random.Generator) -> dict[str, Tensor]:
        """Pixels, a perceptual distance and steadiness of one clip's pictures, but for those at the photos' places."""
        options = self.options
        clip = self._drawn(int(draw.integers(len(self.clips.train))), bool(draw.integers(2)))
        count = len(clip.targets)
        start = int(draw.integers(max(count - options.window, 0) + 1))
        window = range(start, min(start + options.window, count))
        order = torch.from_numpy(draw.permutation(3))
        told = draw.random() >= options.drop_structure or self.stage == 0  # which teaches nothing else
        made = self._made(clip, window, order, told)
        truth = clip.truth[window.start : window.stop, order].to(self.device)
        inner = [i - start for i in window if 0 < i < count - 1]
        everywhere = torch.ones_like(truth[inner, :1])
        parts = {"pixel": charbonnier(made[inner], truth[inner], everywhere)}
        if self.perceptual is not None:
            with torch.no_grad():
                wanted = self.perceptual.features(truth[inner])
            apart = self.perceptual.between(self.perceptual.features(made[inner].clamp(0, 1)), wanted)
            parts["perceptual"] = options.perceptual_weight * apart.mean()
        if options.steadiness_weight and len(window) > 1:
            places, visible = (x[window.start : window.stop - 1].to(self.device) for x in clip.motion)
            parts["steadiness"] = options.steadiness_weight * unsteadiness(made, truth, places, visible)
        return parts

    def _drawn(self, index: int, back: bool) -> Clip:
        """A training clip, or the way back along it, kept as long as there is memory for it."""
        if (index, back) in self._held:
            self._held.move_to_end((index, back))
            return self._held[index, back]
        clip = _loaded(self.clips.train[index])
        clip = clip.reversed() if back else clip
        self._held[index, back] = clip
        most = self.options.cache_mib * 2**20
        # renders, aligned photos, depth and motion are about ten times the photos
        while len(self._held) > 1 and sum(10 * held.targets.nbytes for held in self._held.values()) > most:
            self._held.popitem(last=False)
        return clip

    def _made(self, clip: Clip, window: range, order: Tensor, told: bool) -> Tensor:
        """The pictures (T, 3, H, W) of a window, differentiable, colours in another order."""
        network, device, part = self.network, self.device, slice(window.start, window.stop)
        renders, photos, opacity = clip.seen.renders[part, order], clip.seen.photos[:, order], clip.seen.opacity[part]
        renders, opacity = renders.to(device), opacity.to(device)
        places = torch.linspace(0, 1, len(clip.targets), device=device)[None, part]
        tokens = tokens_of(network, replace(clip.span, colors=clip.span.colors[:, order.numpy()])) if told else None
        beside: Any
        multiple = network.fixer.config.multiple
        if network.fixer.config.references == "aligned":
            aligned, visibility = (values[part].to(device) for values in clip.beside)
            beside, visibility = _padded(aligned[:, :, order], multiple), _padded(visibility, multiple)
        else:
            with torch.no_grad():  # while the layers are not at work
                encoded = network.fixer.encode_references(_padded(photos[None].to(device), multiple))
            beside, visibility = EncodedReferences.joined([encoded] * len(window), 0), None
        found = None
        if network.fixer.config.references == "geometry":
            found = padded(clip.places[part].to(device), multiple)
        height, width = renders.shape[-2:]
        with network.told(places, tokens):
            fixes = network.fixer(
                _padded(renders, multiple), beside, _padded(opacity, multiple), visibility, correspondence=found
            )
        fixes = fixes[..., :height, :width]
        if self.stage == 0:
            return fixes
        fixed = fixes.detach().clamp(0, 1)
        weighed = []
        for place, i in enumerate(window):
            near, seen = (x[None].to(device) for x in clip.seen.geometry.near(i, window, fixed))
            own = (x[place : place + 1] for x in (fixes, renders, opacity))
            weighed.append(network.neighbours(*own, near, seen))
        return torch.cat(weighed)

    def _baselines(self) -> dict[str, Any]:
        """Figures of the renders, of the fixer alone, and how steady the photos are."""
        found: dict[str, Figures] = {name: Figures(self.device) for name in ("render", "frame_by_frame")}
        photos: list[float] = []
        film = FixerFilm(self.network, self.device)
        for clip in map(_loaded, self.validation):  # one in memory at a time
            found["render"].add(clip.span.renders, clip)
            with self.network.shut():
                found["frame_by_frame"].add(film.film(clip.span, 0), clip)
            photos += _unsteady(clip.targets, clip)
        return {**{name: one.mean() for name, one in found.items()}, "photos": {"warped_difference": _mean(photos)}}

    def validate(self) -> None:
        """Figures of the averaged weights, on clips kept for it; keep them if they are best."""
        assert self.baselines is not None
        name, step = STAGES[self.stage], self.total
        with averaged(self.weights, self.average):
            self.network.eval()
            film = FixerFilm(self.network, self.device)
            found = Figures(self.device)
            rows: list[np.ndarray] = []
            for clip in map(_loaded, self.validation):
                pictures = film.film(clip.span, 0)
                found.add(pictures, clip)
                if len(rows) < _SHOWN:
                    i = len(pictures) // 2
                    rows.append(np.concatenate([clip.span.renders[i], pictures[i], clip.targets[i]], axis=1))
            figures = found.mean()
            score = gain(figures, self.baselines["frame_by_frame"])
            better = self.best.offer(step, score, figures)
            if better:
                save_film(self.network, self.output)
        self.journal({"event": "validation", "stage": name, "step": step, **figures, "gain": score, "best": better})
        width = max(row.shape[1] for row in rows)
        rows = [np.pad(row, ((0, 0), (0, width - row.shape[1]), (0, 0))) for row in rows]
        write_image(make_folder(self.output / "validation") / f"{step:07}.png", np.concatenate(rows, axis=0))

    def state(self) -> dict[str, Any]:
        loss = self.losses[STAGES[min(self.stage, len(STAGES) - 1)]]
        return super().state() | {"loss": loss, "baselines": self.baselines, "best": self.best.found}

    def restore(self, state: Mapping[str, Any]) -> None:
        super().restore(state)
        self.losses = dict.fromkeys(STAGES, state["loss"])
        self.baselines, self.best.found = state["baselines"], state["best"]


def unsteadiness(made: Tensor, truth: Tensor, places: Tensor, visible: Tensor) -> Tensor:
    """How much pictures (T, 3, H, W) change otherwise from one to the next than the photos of the same views do.

    `places` (T − 1, H, W, 2) are where each picture's pixels lay in the one before, as grid_sample counts them, and
    `visible` (T − 1, 1, H, W) where that is known. With e = made − truth: the mean of |e_t − warp(e_{t−1})|.
    """
    errors = made.float() - truth
    before = F.grid_sample(errors[:-1], places, padding_mode="border", align_corners=False)
    apart = (errors[1:] - before).abs() * visible
    return apart.sum() / (3 * visible.sum()).clamp_min(1)


class Figures:
    """Mean figures of clips' pictures between their photos; `warped_difference` is of whole clips."""

    def __init__(self, device: str = "cpu") -> None:
        self._device = device
        self._rows: list[dict[str, float]] = []
        self._unsteady: list[float] = []

    def add(self, pictures: np.ndarray, clip: Clip) -> None:
        """Let a clip's pictures (T, H, W, 3) in [0, 1] count."""
        self._rows += evaluate_images(pictures[1:-1], clip.targets[1:-1], device=self._device)["per_image"]
        self._unsteady += _unsteady(pictures, clip)

    def mean(self) -> dict[str, float]:
        """Over all pictures so far; InputError where there are none."""
        return {**summary(self._rows)[0], "warped_difference": _mean(self._unsteady)}


def _unsteady(pictures: np.ndarray, clip: Clip) -> list[float]:
    """The warped differences between pictures that follow each other, along the photos' motion."""
    return [pair.difference for pair in warped_difference(list(pictures), list(clip.targets)) if pair.share]


def _mean(found: Sequence[float]) -> float:
    return float(np.mean(found)) if found else math.nan


def _loaded(files: ClipFiles) -> Clip:
    try:
        return files.load()
    except ValueError as error:
        raise InputError(f"A clip cannot be read: {error}; curate it again, or leave its folder out.") from error


def _padded(values: Tensor, multiple: int) -> Tensor:
    """Images (…, C, H, W) with their last row and column repeated until the sides divide by `multiple`."""
    height, width = values.shape[-2:]
    flat = values.flatten(0, -4) if values.ndim > 4 else values
    wide = F.pad(flat, (0, -width % multiple, 0, -height % multiple), mode="replicate")
    return wide.unflatten(0, values.shape[:-3]) if values.ndim > 4 else wide
