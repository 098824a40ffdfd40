"""Fine-tuning a fixer, or training a small one from scratch (Difix3D+, arXiv 2503.01774, section 4).

Everything that happens at a step is a function of the step, the seed and the weights, so a run that was stopped at any
moment goes on from its last checkpoint as if nothing had happened.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from difixcli.errors import InputError, unknown
from difixcli.evaluation.metrics import best_unsharp, evaluate_images
from difixcli.fixer import SMALL_SIZES, Fixer, new_small_fixer
from difixcli.fixer.diagnostics import collapse_signs
from difixcli.runs import atomic, make_folder, write_image, write_json
from difixcli.training.losses import FixerLoss, Perceptual, best_perceptual
from difixcli.training.pairs import Batch, PairStore, TrainingBatches, read_manifests, whole
from difixcli.training.synthetic import PhotoPairs

# Limits beyond which a network has collapsed and further training is wasted (measured on small ones).
MAX_UNET_STD = 50.0
MIN_REFERENCE_CHANGE = 1e-4
# Before this step an untrained network may still ignore its references.
REFERENCE_GRACE = 1000
# One dB of PSNR weighs as much in the choice of the best weights as 20 % of st-LPIPS, the ratio of our aims.
_LPIPS_PER_DB = 0.2
_SAVE_AFTER = 60.0  # seconds of training that a stopped run loses at most


@dataclass(frozen=True)
class TrainingOptions:
    """How to train. `for_published` is the paper's recipe, `for_small` what trains a small network from scratch."""

    iterations: int = 10_000
    batch: int = 1
    crop: int = 512
    """Pixels of the random square crops."""
    learning_rate: float = 2e-5
    warm_up: int = 500
    """Steps over which the learning rate rises from zero."""
    schedule: Literal["constant", "cosine"] = "constant"
    weight_decay: float = 1e-2
    clip: float = 1.0
    """Largest norm of the gradient."""
    ema: float = 0.999
    """Decay of the running average of the weights, which is what is validated and kept; 0 keeps the weights."""
    pixel: Literal["l1", "l2"] = "l2"
    perceptual: Perceptual = "st-lpips-alex"
    perceptual_weight: float = 1.0
    gram_weight: float = 0.5
    gram_start: int = 2000
    window: int = 400
    """Pixels of the window the perceptual and Gram terms see; 0 for everything."""
    photo_share: float = 0.5
    """Share of the samples made from photos, where photos are given beside pairs."""
    strong_augmentation: bool = False
    """Vertical flips, transposition, permuted channels and exposure too, not only horizontal flips."""
    bfloat16: bool = False
    validate_every: int = 500
    validation_pairs: int = 12
    checkpoint_every: int = 500
    log_every: int = 50
    signs_every: int = 200
    """Steps between looks at the signs of collapse."""
    workers: int = 0
    """Processes that prepare batches; on a GPU they keep it busy."""
    seed: int = 0

    @classmethod
    def for_published(cls, device: str = "cpu") -> TrainingOptions:
        """For networks of the published layout: adapters on the decoder, raw references."""
        cuda = device.startswith("cuda")
        return cls(perceptual=best_perceptual(), bfloat16=cuda, workers=4 if cuda else 0)

    @classmethod
    def for_small(cls, device: str = "cpu") -> TrainingOptions:
        """For our small networks with aligned references.

        No Gram term: it costs more than the rest of a step together, and without a download its VGG-16 features are
        those of the figure results are judged by.
        """
        return cls(
            batch=4,
            crop=128,
            learning_rate=4e-4,
            warm_up=200,
            schedule="cosine",
            pixel="l1",
            perceptual_weight=0.2,
            gram_weight=0.0,
            window=64,
            strong_augmentation=True,
            workers=4 if device.startswith("cuda") else 0,
        )


def finetune(
    pairs: Sequence[Path],
    base: str | Path,
    output: Path,
    *,
    photos: Path | None = None,
    device: str = "cpu",
    progress: Callable[[int], None] | None = None,
    report: Callable[[Mapping[str, Any]], None] | None = None,
    **options: Any,
) -> dict[str, Any]:
    """Train a fixer on pairs and write it to `output`, a folder that `Fixer.from_pretrained` loads.

    The folder holds the best weights by validation (on the manifests' "test" pairs, or on synthetic ones where there
    are only photos; without either the last), `log.jsonl`, `validation.png` (render, fixed, truth) and
    `checkpoints/last.pt`. Called again with the same arguments it goes on from that checkpoint, exactly.

    Args:
        pairs: folders with a `data.json`, or such files; may be empty when there are photos.
        base: `tiny` or `small` for random weights, or any name or path `Fixer.from_pretrained` takes.
        photos: a folder of any photos from which synthetic pairs are made (needs aligned references).
        progress: called with the number of steps done.
        report: called with every record written to the log.
        options: fields of `TrainingOptions` that shall differ from the defaults for this kind of network.

    Returns:
        `steps`, `best_step`, `seconds`, `loss` (mean over the last 100 steps), `perceptual` (the loss network's
        name), `pairs` (numbers of `train`, `test`, `dropped`, `photos`), `dropped` (reasons by pair) and
        `validation`: mean `psnr`, `ssim`, `st_lpips` of `identity`, `unsharp` and `fixed`, or None.

    Raises InputError for bad manifests, options or bases, and when the network collapses.
    """
    fixer = _base(base, device, options.get("seed") or 0)
    small = fixer.config.references == "aligned"
    chosen = _with_options(
        TrainingOptions.for_small(device) if small else TrainingOptions.for_published(device), options
    )
    if photos is not None and not small:
        raise InputError("Synthetic pairs from --photos have aligned references, which this fixer's layout cannot use.")
    training = _Training(fixer, chosen, output, report)
    training.load_data(list(pairs), photos, describes_base=str(base))
    return training.run(progress)


class _Training:
    """The state of one fine-tuning run."""

    def __init__(
        self,
        fixer: Fixer,
        options: TrainingOptions,
        output: Path,
        report: Callable[[Mapping[str, Any]], None] | None,
    ) -> None:
        self.fixer, self.options, self.report = fixer, options, report
        self.network = fixer.network
        self.output = make_folder(output)
        self.checkpoint = make_folder(output / "checkpoints") / "last.pt"
        self.log_file = output / "log.jsonl"
        self.names = [n for n, p in self.network.named_parameters() if p.requires_grad]
        self.weights = list(self.network.trainable_parameters())
        self.average = [w.detach().clone() for w in self.weights]
        self.optimiser = torch.optim.AdamW(
            self.weights, lr=options.learning_rate, betas=(0.9, 0.999), weight_decay=options.weight_decay
        )
        self.loss = FixerLoss(
            options.pixel,
            options.perceptual,
            options.perceptual_weight,
            options.gram_weight,
            options.gram_start,
            options.window,
            str(fixer.device),
        )
        self.step = 0
        self.seconds = 0.0
        self.losses: list[float] = []
        self.first_unet_std = 0.0
        self.deaf_checks = 0  # looks in a row at which references changed nothing
        self.baselines: dict[str, dict[str, float]] | None = None
        self.best: dict[str, Any] | None = None

    def load_data(self, sources: list[Path], photos: Path | None, describes_base: str) -> None:
        """Read pairs and photos and decide what is trained and what validated on."""
        options, config = self.options, self.fixer.config
        manifest = read_manifests(sources)
        store = PairStore(manifest.train, config.references, config.views)
        pictures = PhotoPairs(photos) if photos is not None else None
        self.batches = TrainingBatches(
            store,
            pictures,
            steps=options.iterations,
            batch=options.batch,
            crop=options.crop,
            views=config.views,
            photo_share=options.photo_share,
            multiple=config.multiple,
            strong=options.strong_augmentation,
            seed=options.seed,
        )
        test = PairStore(_spread(manifest.test, options.validation_pairs), config.references, config.views)
        if len(test):
            self.validation = [whole(test[i], config.views) for i in range(len(test))]
        elif pictures is not None:
            made = pictures.validation(options.validation_pairs, options.crop, config.views)
            self.validation = [whole(sample, config.views) for sample in made]
        else:
            self.validation = []
        self.dropped = {**manifest.dropped, **store.dropped, **test.dropped}
        if pictures is not None:
            self.dropped |= pictures.dropped
        self.counts = {
            "train": len(store),
            "test": len(test),
            "dropped": len(self.dropped),
            "photos": len(pictures.train) if pictures is not None else 0,
        }
        # what a checkpoint must agree with to be gone on from; where the folders lie does not matter
        self.identity = {"base": describes_base, "options": asdict(options), "pairs": self.counts}

    def run(self, progress: Callable[[int], None] | None) -> dict[str, Any]:
        options = self.options
        if self.checkpoint.is_file():
            self._resume()
        else:
            self._log({"event": "start", "pairs": self.counts, "dropped": self.dropped, "options": asdict(options)})
        if self.validation and self.baselines is None:
            self.baselines = _baselines(self.validation, str(self.fixer.device))
            self._log({"event": "baselines", **self.baselines})
        loader = DataLoader(
            self.batches,
            batch_size=None,
            sampler=range(self.step, options.iterations),
            num_workers=options.workers,
            pin_memory=str(self.fixer.device).startswith("cuda"),
        )
        started = time.monotonic()
        for batch in loader:
            self._train(_on(batch, self.fixer.device))
            self.step += 1
            last = self.step == options.iterations
            if self.validation and (self.step % options.validate_every == 0 or last):
                self._validate()
            now = time.monotonic()
            if self.step % options.checkpoint_every == 0 or last or now - started > _SAVE_AFTER:
                self.seconds, started = self.seconds + now - started, now
                self._save()
            if progress is not None:
                progress(self.step)
        if self.best is None:
            with self._averaged():
                self.fixer.save_pretrained(self.output)
        fixed = self.best["figures"] if self.best else None
        results = {
            "steps": self.step,
            "best_step": self.best["step"] if self.best else self.step,
            "seconds": round(self.seconds, 1),
            "loss": float(np.mean(self.losses)) if self.losses else math.nan,
            "perceptual": options.perceptual if options.perceptual_weight else "none",
            "pairs": self.counts,
            "dropped": self.dropped,
            "validation": {**self.baselines, "fixed": fixed} if self.baselines and fixed else None,
        }
        write_json(self.output / "training.json", {"options": asdict(options), "results": results})
        return results

    def _train(self, batch: Batch) -> None:
        """One step: forward, loss, backward, clip, update, average."""
        options = self.options
        if self.step % options.signs_every == 0 and batch.references is not None:
            self._look_for_collapse(batch)
        rate = learning_rate(self.step, options)
        for group in self.optimiser.param_groups:
            group["lr"] = rate
        self.network.train()
        with torch.autocast(self.fixer.device.type, torch.bfloat16, enabled=options.bfloat16):
            output = self.network(batch.images, batch.references, batch.opacity, batch.visibility)
        loss, parts = self.loss(output, batch.targets, self.step)
        value = float(loss.detach())
        if not math.isfinite(value):
            raise InputError(
                f"The loss at step {self.step} is not a number; lower the learning rate ({options.learning_rate:g}) "
                "and start again in another output folder."
            )
        self.optimiser.zero_grad(set_to_none=True)
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(self.weights, options.clip)
        self.optimiser.step()
        decay = min(options.ema, (1 + self.step) / (10 + self.step))  # the average must forget the first steps
        with torch.no_grad():
            if options.ema:
                torch._foreach_lerp_(self.average, [w.detach() for w in self.weights], 1 - decay)
            else:
                torch._foreach_copy_(self.average, [w.detach() for w in self.weights])
        self.losses = [*self.losses[-99:], value]
        if self.step % options.log_every == 0:
            self._log(
                {
                    "event": "step",
                    "step": self.step,
                    "loss": value,
                    "mean_loss": float(np.mean(self.losses)),
                    **{name: float(part) for name, part in parts.items()},
                    "output_std": float(output.detach().float().std()),
                    "gradient": float(norm),
                    "rate": rate,
                }
            )

    def _look_for_collapse(self, batch: Batch) -> None:
        """Log the signs of collapse; InputError when there is no point in going on."""
        self.network.eval()
        signs = collapse_signs(self.network, batch.images, batch.references, batch.opacity, batch.visibility)
        self._log({"event": "signs", "step": self.step, **asdict(signs)})
        self.first_unet_std = self.first_unet_std or signs.unet_std
        if not signs.unet_std < max(MAX_UNET_STD, 5 * self.first_unet_std):
            raise InputError(
                f"Training collapsed at step {self.step}: the U-Net's activations grew to a standard deviation of "
                f"{signs.unet_std:.3g}; lower the learning rate ({self.options.learning_rate:g}) or warm up longer."
            )
        deaf = self.step >= REFERENCE_GRACE and signs.reference_change < MIN_REFERENCE_CHANGE
        self.deaf_checks = self.deaf_checks + 1 if deaf else 0
        if self.deaf_checks >= 2:
            raise InputError(
                f"Training collapsed at step {self.step}: other references change the output by "
                f"{signs.reference_change:.1g} only, so they are ignored; check that the pairs' references are "
                "aligned, or lower the learning rate."
            )

    def _validate(self) -> None:
        """Figures of the averaged weights on the validation pairs; keep them if they are the best so far."""
        assert self.baselines is not None
        with self._averaged():
            self.network.eval()
            fixed = [_picture(self._fixed(batch)) for batch in self.validation]
            truths = (_picture(b.targets) for b in self.validation)
            figures = evaluate_images(fixed, truths, device=str(self.fixer.device))["mean"]
            score = gain(figures, self.baselines["identity"])
            better = self.best is None or score > self.best["score"]
            if better:
                self.best = {"step": self.step, "score": score, "figures": figures}
                self.fixer.save_pretrained(self.output)
        self._log({"event": "validation", "step": self.step, **figures, "gain": score, "best": better})
        rows = [
            np.concatenate([_picture(b.images), image, _picture(b.targets)], axis=1)
            for b, image in zip(self.validation[:6], fixed, strict=False)
        ]
        width = max(row.shape[1] for row in rows)
        padded = [np.pad(row, ((0, 0), (0, width - row.shape[1]), (0, 0))) for row in rows]
        write_image(self.output / "validation.png", np.concatenate(padded, axis=0))

    def _fixed(self, batch: Batch) -> Tensor:
        return self.fixer(batch.images, batch.references, batch.opacity, batch.visibility).cpu()

    @contextmanager
    def _averaged(self) -> Iterator[None]:
        """The network with its averaged weights, for as long as the block lasts."""
        current = [w.detach().clone() for w in self.weights]
        with torch.no_grad():
            torch._foreach_copy_([w.detach() for w in self.weights], self.average)
        try:
            yield
        finally:
            with torch.no_grad():
                torch._foreach_copy_([w.detach() for w in self.weights], current)

    def _save(self) -> None:
        state = {
            "identity": json.dumps(self.identity, sort_keys=True),
            "step": self.step,
            "seconds": self.seconds,
            "weights": dict(zip(self.names, (w.detach() for w in self.weights), strict=True)),
            "average": dict(zip(self.names, self.average, strict=True)),
            "optimiser": self.optimiser.state_dict(),
            "losses": self.losses,
            "first_unet_std": self.first_unet_std,
            "deaf_checks": self.deaf_checks,
            "baselines": self.baselines,
            "best": self.best,
        }
        with atomic(self.checkpoint) as temporary:
            torch.save(state, temporary)

    def _resume(self) -> None:
        try:
            state = torch.load(self.checkpoint, map_location=self.fixer.device, weights_only=True)
        except Exception as error:  # torch raises many kinds for a damaged file
            raise InputError(f"{self.checkpoint} is damaged; remove {self.output} and start again.") from error
        if state["identity"] != json.dumps(self.identity, sort_keys=True):
            raise InputError(
                f"{self.output} holds a training with other pairs, base or options; choose another output folder."
            )
        self.step, self.seconds, self.losses = state["step"], state["seconds"], state["losses"]
        self.first_unet_std, self.deaf_checks = state["first_unet_std"], state["deaf_checks"]
        self.baselines, self.best = state["baselines"], state["best"]
        with torch.no_grad():
            for name, weight, average in zip(self.names, self.weights, self.average, strict=True):
                weight.copy_(state["weights"][name])
                average.copy_(state["average"][name])
        self.optimiser.load_state_dict(state["optimiser"])
        # what was logged after the checkpoint will be logged again
        kept = [line for line in self.log_file.read_text().splitlines() if _step_of(line) < self.step]
        with atomic(self.log_file) as temporary:
            temporary.write_text("".join(line + "\n" for line in kept))
        self._log({"event": "resume", "step": self.step})

    def _log(self, record: Mapping[str, Any]) -> None:
        with self.log_file.open("a") as file:
            file.write(json.dumps(record) + "\n")
        if self.report is not None:
            self.report(record)


def learning_rate(step: int, options: TrainingOptions) -> float:
    """The learning rate at a step: a linear rise, then constant, or half a cosine down to 2 % at the end."""
    rise = min(1.0, (step + 1) / max(options.warm_up, 1))
    if options.schedule == "constant":
        return options.learning_rate * rise
    way = min(max(step - options.warm_up, 0) / max(options.iterations - options.warm_up, 1), 1.0)
    return options.learning_rate * rise * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * way)))


def gain(figures: Mapping[str, float], identity: Mapping[str, float]) -> float:
    """How much better than the renders themselves, in dB; a fifth less st-LPIPS counts as one dB."""
    return (figures["psnr"] - identity["psnr"]) + (1 - figures["st_lpips"] / identity["st_lpips"]) / _LPIPS_PER_DB


def _base(base: str | Path, device: str, seed: int) -> Fixer:
    if str(base) in SMALL_SIZES:
        fixer = new_small_fixer(str(base), seed)
        fixer.network.to(device)
        return fixer
    return Fixer.from_pretrained(base, device=device)


def _with_options(defaults: TrainingOptions, options: Mapping[str, Any]) -> TrainingOptions:
    given = {name: value for name, value in options.items() if value is not None}
    for name in sorted(set(given) - set(asdict(defaults))):
        raise unknown("training option", name, asdict(defaults))
    chosen = replace(defaults, **given)
    for name in ("iterations", "batch", "crop", "validate_every", "checkpoint_every", "log_every", "signs_every"):
        if getattr(chosen, name) < 1:
            raise InputError(f"The training option {name} must be at least 1, not {getattr(chosen, name)}.")
    if not 0 <= chosen.photo_share <= 1:
        raise InputError(f"photo_share is a share between 0 and 1, not {chosen.photo_share}.")
    return chosen


def _baselines(validation: Sequence[Batch], device: str) -> dict[str, dict[str, float]]:
    """Figures of the renders as they are and of the unsharp mask that `difix eval` compares with."""
    renders = [_picture(b.images) for b in validation]
    truths = [_picture(b.targets) for b in validation]
    identity = evaluate_images(renders, truths, device=device)["mean"]
    sharpened = best_unsharp(((r, t, None) for r, t in zip(renders, truths, strict=True)), device=device)
    return {"identity": identity, "unsharp": dict(sharpened.figures)}


def _picture(images: Tensor) -> np.ndarray:
    """(1, 3, H, W) → (H, W, 3) float32."""
    return images[0].permute(1, 2, 0).float().cpu().numpy()


def _on(batch: Batch, device: torch.device) -> Batch:
    return Batch(*(None if t is None else t.to(device, non_blocking=True) for t in batch))  # type: ignore[arg-type]


def _spread(items: Sequence[Any], count: int) -> list[Any]:
    """At most `count` of the items, evenly spaced."""
    if len(items) <= count:
        return list(items)
    return [items[i * len(items) // count] for i in range(count)]


def _step_of(line: str) -> int:
    try:
        return int(json.loads(line).get("step", -1))
    except json.JSONDecodeError:  # a line cut short by a kill
        return 2**62
