"""Training the bundled super-resolver's network on photos, or another of its kind.

As with a fixer, what happens at a step is a function of the step, the seed and the weights, so a run that was stopped
at any moment goes on from its last checkpoint as if nothing had happened.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from difixcli.errors import InputError
from difixcli.evaluation.metrics import best_unsharp, evaluate_images, image_metrics, summary
from difixcli.images import agreeing, enlarged
from difixcli.priors.super_resolution.network import SuperResolutionConfig, SuperResolutionNetwork
from difixcli.runs import make_folder, write_json
from difixcli.scenes import Scene
from difixcli.training.averaging import averaged
from difixcli.training.batches import Batch
from difixcli.training.fixer import gain
from difixcli.training.journal import Journal, picture
from difixcli.training.loop import Report, ValidatedTraining
from difixcli.training.losses import FixerLoss
from difixcli.training.options import (
    OF_NEW_RESOLVERS,
    SCRATCH,
    SUPER_RESOLUTION_FREE,
    SuperResolutionOptions,
    check_of_new,
    check_photo_share,
    with_options,
)
from difixcli.training.pair_lists import Joined, spread
from difixcli.training.super_resolution_runs import scene_views
from difixcli.training.super_resolution_samples import (
    LargePhotos,
    SuperResolutionBatch,
    SuperResolutionBatches,
    validation_batches,
    view_batches,
)


def train_super_resolver(
    scenes: Sequence[Scene],
    base: str | Path,
    output: Path,
    *,
    photos: Path | None = None,
    runs: Sequence[Path] = (),
    device: str = "cpu",
    progress: Callable[[int], None] | None = None,
    report: Callable[[Mapping[str, Any]], None] | None = None,
    **options: Any,
) -> dict[str, Any]:
    """Train a super-resolver and write it to `output`, which `SuperResolutionNetwork.from_pretrained` loads.

    The folder holds the best weights by validation on photos that are kept from training, `log.jsonl`,
    `tensorboard/`, `validation/STEP.png` (bicubic, answer to the photo alone, truth, simulated render, answer to the
    photo beside it) and `checkpoints/last.pt`. Called again with the same arguments it goes on from that checkpoint,
    exactly.

    Args:
        scenes: whose photos are trained on at the size they were loaded with.
        base: `scratch` for random weights, or what `SuperResolutionNetwork.from_pretrained` takes.
        photos: a folder of any photos.
        runs: folders of super-resolution's runs, whose renders are trained on beside simulated ones; of several the
            last is kept for validation, in place of photos.
        progress: called with the number of steps done.
        report: called with every record written to the log.
        options: fields of `SuperResolutionOptions`.

    Returns:
        `steps`, `best_step`, `stopped_early`, `seconds`, `loss` (mean over the last 100 steps), `perceptual`,
        `parameters`, `photos` (numbers of `folder`, `scenes`, `test`, `dropped`), `scenes` (the names of those that
        were trained on), `dropped` (reasons by photo), and
        `validation`: mean `psnr`, `ssim`, `st_lpips` of `bicubic`, `unsharp` (of bicubic), `render` (simulated),
        `alone` and `beside_render`.

    Raises InputError for photos, options or bases that cannot be used, a loss that is no number, and a checkpoint
    that cannot be read or written; the last one is kept.
    """
    chosen = with_options(SuperResolutionOptions(), options, device)
    check_photo_share(options, photos is not None, bool(scenes))
    network = _network(base, chosen, options)
    if chosen.crop % network.factor:
        raise InputError(f"Crops of {chosen.crop} pixels do not divide by the factor {network.factor}; change --crop.")
    training = _Training(network, chosen, output, device, report)
    try:
        training.load_data(scenes, photos, [Path(run) for run in runs], str(base))
        return training.run(progress)
    finally:
        training.journal.close()


class _Training(ValidatedTraining):
    """The state of one training run."""

    DATA = "photos"
    ENTRIES = ("weights", "best")

    options: SuperResolutionOptions

    def __init__(
        self,
        network: SuperResolutionNetwork,
        options: SuperResolutionOptions,
        output: Path,
        device: str,
        report: Report | None,
    ) -> None:
        super().__init__(options, output, device, Journal(make_folder(output), report))
        self.network = network.to(device)
        self.weights = list(self.network.parameters())
        self.optimiser = torch.optim.AdamW(
            self.weights, lr=options.learning_rate, betas=(0.9, 0.99), weight_decay=options.weight_decay
        )
        self.average = [w.detach().clone() for w in self.weights] if options.ema else None
        self.loss = FixerLoss(
            "l1", options.perceptual, options.perceptual_weight, 0.0, window=options.window, device=device
        )
        self.validate_every = options.validate_every

    def load_data(self, scenes: Sequence[Scene], photos: Path | None, runs: Sequence[Path], base: str) -> None:
        """Find the photos, and take up a checkpoint."""
        options = self.options
        self.scenes = [scene.name for scene in scenes]
        trained = max(len(runs) - 1, min(len(runs), 1))  # runs: of several the last validates
        share = options.cache_mib / (1 + trained)
        self.photos = LargePhotos(photos, scenes, options.crop, share)
        factor = self.network.factor
        if len(runs) > 1:
            shown = scene_views(runs[-1], factor, 0)
            chosen = spread(range(len(shown)), options.validation_photos)
            self.validation = view_batches((shown[i] for i in chosen), factor)
        else:
            held_out = spread(self.photos.test, options.validation_photos)
            self.validation = validation_batches(self.photos, held_out, factor)
        views = [scene_views(run, factor, share) for run in runs[:trained]]
        drawn = Joined(views)
        for height, width in (size for of_run in views for size in of_run.sizes()):
            if min(height, width) < options.crop:
                raise InputError(f"A run's views of {width}×{height} pixels are smaller than the crop {options.crop}.")
        self.counts = {
            "folder": len(self.photos.files),
            "scenes": len(self.photos.frames),
            "views": len(drawn),
            "test": len(self.validation),
            "dropped": len(self.photos.dropped),
        }
        # what a checkpoint must agree with to be gone on from; where the folders lie does not matter
        identity = {
            "base": base,
            "options": {name: value for name, value in asdict(options).items() if name not in SUPER_RESOLUTION_FREE},
            "photos": self.photos.names(),
            "runs": [run.name for run in runs],
        }
        about = {"photos": self.counts, "dropped": self.photos.dropped}
        self.take_up(self.checkpointed(), identity, {"factor": factor, **about})
        self.batches = SuperResolutionBatches(self.photos, options, factor, drawn)

    def run(self, progress: Callable[[int], None] | None) -> dict[str, Any]:
        options = self.options
        if self.baselines is None:
            self.baselines = baselines(self.validation, self.network.factor, self.device)
            self.journal({"event": "baselines", **self.baselines})
        self.train(progress)
        assert self.best.found is not None
        results = self.results() | {
            "parameters": sum(weight.numel() for weight in self.weights),
            "photos": self.counts,
            "scenes": self.scenes,
            "dropped": self.photos.dropped,
            "validation": {**self.baselines, **self.best.found["figures"]},
        }
        write_json(self.output / "training.json", {"options": asdict(options), "results": results})
        return results

    def rounds(self) -> Iterator[tuple[Tensor, Mapping[str, Tensor]]]:
        """The network, agreement with the photo, and its loss."""
        drawn = self.batches[self.step]
        photos, targets, renders, shown, own = (tensor.to(self.device) for tensor in drawn[:5])
        self.network.train()
        renders = self._with_own(photos, renders, own, drawn)
        output = self._agreeing(self.network(photos, renders, shown), photos, drawn)
        yield self.loss(output, targets, self.step)

    @torch.no_grad()
    def _with_own(self, photos: Tensor, renders: Tensor, own: Tensor, drawn: SuperResolutionBatch) -> Tensor:
        """The renders, some of them mixed with the network's answer to the photo alone."""
        chosen = torch.nonzero(own)[:, 0]
        if not len(chosen):
            return renders
        answers = self._agreeing(self.network(photos[chosen]), photos[chosen], drawn)
        renders = renders.clone()
        renders[chosen] = torch.lerp(renders[chosen], answers, own[chosen][:, None, None, None])
        return renders

    def _agreeing(self, images: Tensor, photos: Tensor, drawn: SuperResolutionBatch) -> Tensor:
        return agreeing(images, photos, self.network.factor, drawn.operator, self.options.agree_rounds)

    def validate(self) -> None:
        """Figures of the averaged weights, as they are served, on the photos kept for it; keep them if they are best.

        With and without a render count alike.
        """
        assert self.baselines is not None
        with averaged(self.weights, self.average):
            answers = [served(self.network, batch, self.device) for batch in self.validation]
            figures = {}
            for i, name in enumerate(("alone", "beside_render")):
                pairs = zip(answers, self.validation, strict=True)
                rows = [image_metrics(pair[i], picture(b.targets), None, self.device) for pair, b in pairs]
                figures[name] = summary(rows)[0]
            score = float(np.mean([gain(one, self.baselines["bicubic"]) for one in figures.values()]))
            better = self.best.offer(self.step, score, figures)
            if better:
                self.keep_weights()
        told = {f"{name}_{key}": value for name, row in figures.items() for key, value in row.items()}
        self.journal({"event": "validation", "step": self.step, **told, "gain": score, "best": better})
        shown = [self._pictured(batch, pair) for batch, pair in zip(self.validation, answers, strict=True)]
        self.journal.images(self.step, shown, [alone for alone, _ in answers])

    def _pictured(self, batch: SuperResolutionBatch, answers: tuple[np.ndarray, np.ndarray]) -> Batch:
        """A validation in the journal's columns."""
        beside = torch.from_numpy(answers[1]).permute(2, 0, 1)[None]
        columns = torch.stack([batch.renders, beside], dim=1)
        bicubic = enlarged(batch.photos, self.network.factor).clamp(0, 1)
        return Batch(bicubic, batch.targets, columns, None, torch.ones_like(bicubic[:, :1]))

    def state(self) -> dict[str, Any]:
        return super().state() | {"weights": [w.detach() for w in self.weights]}

    def restore(self, state: Mapping[str, Any]) -> None:
        super().restore(state)
        with torch.no_grad():
            torch._foreach_copy_([w.detach() for w in self.weights], state["weights"])

    def save_weights(self) -> None:
        self.network.save_pretrained(self.output)


def _network(base: str | Path, options: SuperResolutionOptions, given: Mapping[str, Any]) -> SuperResolutionNetwork:
    """A network with random weights, or with those the name stands for, on the CPU."""
    if str(base) != SCRATCH:
        check_of_new(str(base), OF_NEW_RESOLVERS, given)
        return SuperResolutionNetwork.from_pretrained(base)
    config = SuperResolutionConfig(options.factor, options.channels, options.blocks)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(options.seed)
        return SuperResolutionNetwork(config)


@torch.no_grad()
def served(network: SuperResolutionNetwork, batch: SuperResolutionBatch, device: str) -> tuple[np.ndarray, np.ndarray]:
    """What is served for the photo alone and beside its render, each (H, W, 3)."""
    network.eval()
    photos, renders = batch.photos.to(device), batch.renders.to(device)
    made = (network(photos), network(photos, renders))
    alone, beside = (picture(agreeing(one, photos, network.factor, batch.operator)) for one in made)
    return alone, beside


def baselines(validation: Sequence[SuperResolutionBatch], factor: int, device: str) -> dict[str, dict[str, float]]:
    """Figures of bicubic enlargement, of the best unsharp mask of it, and of the simulated renders."""
    truths = [picture(batch.targets) for batch in validation]
    bicubic = [picture(enlarged(batch.photos, factor).clamp(0, 1)) for batch in validation]
    sharpened = best_unsharp(((b, t, None) for b, t in zip(bicubic, truths, strict=True)), device=device)
    renders = [picture(batch.renders) for batch in validation]
    return {
        "bicubic": evaluate_images(bicubic, truths, device=device)["mean"],
        "unsharp": dict(sharpened.figures),
        "render": evaluate_images(renders, truths, device=device)["mean"],
    }
