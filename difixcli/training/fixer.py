"""Fine-tuning a fixer, or training a small one from scratch (Difix3D+, arXiv 2503.01774, section 4).

Everything that happens at a step is a function of the step, the seed and the weights, so a run that was stopped at any
moment goes on from its last checkpoint as if nothing had happened. Under `accelerate launch` every process takes its
share of a step's samples; the first one alone writes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from difixcli import interrupts
from difixcli.errors import InputError
from difixcli.evaluation.metrics import best_unsharp, image_metrics, summary
from difixcli.evaluation.perceptual import lpips_available
from difixcli.fixer import Fixer, new_small_fixer
from difixcli.fixer.diagnostics import CollapseSigns, collapse_signs
from difixcli.fixer.weights import merge_adapters
from difixcli.model_folders import SMALL_SIZES
from difixcli.runs import make_folder, write_json
from difixcli.training import processes
from difixcli.training.averaging import averaged
from difixcli.training.batches import Batch, Draw, Plan, TrainingBatches, whole
from difixcli.training.card import write_card
from difixcli.training.journal import Journal, picture
from difixcli.training.loop import Parts, Report, ValidatedTraining
from difixcli.training.losses import FixerLoss
from difixcli.training.options import FREE, TrainingOptions, check_photo_share, judge_of, with_options
from difixcli.training.pair_lists import spread
from difixcli.training.pairs import Inspection, PairFiles, PairStore, decode, inspect_pairs, read_manifests
from difixcli.training.parts import (
    AllViews,
    all_views,
    choose_parts,
    recompute_activations,
    with_geometry,
    with_rank,
)
from difixcli.training.sources import check_small, split_sources
from difixcli.training.streaming import StreamedBatches
from difixcli.training.synthetic import PhotoPairs
from difixcli.training.trackers import check_trackers, open_trackers
from difixcli.wording import counted

# Limits beyond which a network has collapsed and further training is wasted (measured on small ones).
MAX_UNET_STD = 50.0
MIN_REFERENCE_CHANGE = 1e-4
# Before this step an untrained network may still ignore its references.
REFERENCE_GRACE = 1000
# One dB of PSNR weighs as much in the choice of the best weights as 20 % of st-LPIPS, the ratio of our aims.
_LPIPS_PER_DB = 0.2
_FIGURES = ("psnr", "ssim")  # beside the judge's
_AGAIN_EVERY = 4  # steps between looks at what a second pass would change


def finetune(
    pairs: Sequence[str | Path],
    base: str | Path,
    output: Path,
    *,
    photos: Path | None = None,
    stream: bool = False,
    device: str = "cpu",
    track: Sequence[str] = (),
    progress: Callable[[int], None] | None = None,
    report: Callable[[Mapping[str, Any]], None] | None = None,
    **options: Any,
) -> dict[str, Any]:
    """Train a fixer on pairs and write it to `output`, a folder that `Fixer.from_pretrained` loads.

    The folder holds the best weights by validation with their model card (on the manifests' "test" pairs, or on
    synthetic ones where there are only photos; without either the last), `log.jsonl`, `tensorboard/`,
    `validation/STEP.png` (render, fixed, truth, references) and `checkpoints/last.pt`. Called again with the same
    arguments it goes on from that checkpoint, exactly. Under `accelerate launch` all processes call it, with an output
    folder all of them see.

    Args:
        pairs: folders with a `data.json` or tars, such files, or addresses of tars (`streaming.split_sources`); may
            be empty when there are photos.
        base: `tiny`, `small` or `medium` for random weights, or any name or path `Fixer.from_pretrained` takes.
        photos: a folder of any photos from which synthetic pairs are made (needs aligned references).
        stream: read local tars one after the other, too, instead of looking pairs up in them.
        track: accelerate's trackers that get the values too, such as `wandb`; TensorBoard always does.
        progress: called with the number of steps done.
        report: called with every record written to the log.
        options: fields of `TrainingOptions` that shall differ from the defaults for this kind of network.

    Returns:
        `steps`, `best_step`, `stopped_early`, `seconds`, `loss` (mean over the last 100 steps), `perceptual` (the
        loss network's name), `pairs` (numbers of `train`, `test`, `dropped`, `photos`, and of streamed `tars`),
        `dropped` (reasons by pair), `skipped` (the same for what could not be read on the way), `processes` and
        `validation`: mean `psnr`, `ssim` and the `judge`'s figure (`st_lpips`, or `st_lpips_alex` where the other
        trains) of `identity`, `unsharp` and `fixed`, or None.

    Raises InputError for bad manifests, options or bases, when the network collapses, the loss is no number or a
    checkpoint cannot be written; the last checkpoint is kept.
    """
    seed = options.get("seed") or 0
    processes.join(device)
    geometry = options.get("references") == "geometry"
    fixer = processes.first_goes_first(lambda: _base(base, seed, geometry))
    small = fixer.config.is_small
    defaults = TrainingOptions.for_small(device) if small else TrainingOptions.for_published(device)
    chosen = processes.from_first(lambda: with_options(defaults, options, device))  # decided once, for all of them
    if photos is not None and fixer.config.takes_photos:
        raise InputError("Synthetic pairs from --photos have aligned references, which this fixer's layout cannot use.")
    _check_options(chosen, fixer, photos)
    _check_perceptual(chosen, options)
    check_photo_share(options, photos is not None)
    if geometry:
        fixer = with_geometry(fixer, seed)
    check_trackers(track)
    training = _Training(with_rank(fixer, chosen.lora_rank, seed), chosen, output, device, report)
    sources = [str(source) for source in pairs]
    try:
        training.load_data(sources, photos, stream, str(base))
        if training.main:
            training.journal.trackers = open_trackers(track, output, asdict(chosen))
        results = training.run(progress)
        if training.main:
            write_card(output, str(base), sources, photos, asdict(chosen), results, fixer.licence)
        return results
    finally:
        training.journal.close()


def _nothing_to_train_on(dropped: Mapping[str, str]) -> InputError:
    """The error where no pair is usable, by the reasons why those that there are were dropped."""
    name, why = next(iter(dropped.items()), ("", ""))
    told = f" ({counted(len(dropped), 'pair')} cannot be used, as {name}: {why.rstrip('.')})" if dropped else ""
    return InputError(f"There is nothing to train on: no usable pair{told}, and no folder of photos.")


def _check_options(options: TrainingOptions, fixer: Fixer, photos: Path | None) -> None:
    """InputError for options that do not belong to this network or these data."""
    config = fixer.config
    if options.supervise == "all" and config.references == "aligned":
        raise InputError("Aligned references have no clean views of their own to learn; use --set supervise=render.")
    if options.latents == "sample" and config.is_small:
        raise InputError("Small fixers' encoders have no variance to draw with; use --set latents=mode.")
    if not options.crop and photos is not None:
        raise InputError("Synthetic pairs from --photos are cut to --crop pixels; name a --crop.")
    for name in () if options.crop else ("frame_height", "frame_width"):
        if getattr(options, name) % config.multiple:
            raise InputError(f"{name} must be a multiple of {config.multiple} for this network.")


def _check_perceptual(options: TrainingOptions, asked: Mapping[str, Any]) -> None:
    """InputError where the loss needs LPIPS and its weights are not there: no other network takes its place."""
    looks = options.perceptual_weight > 0 or options.gram_weight > 0
    if not looks or options.perceptual != "lpips-vgg" or lpips_available("vgg"):
        return
    why = "" if asked.get("perceptual") else "This network trains with LPIPS, as the release does. "
    raise InputError(
        f"{why}LPIPS' VGG-16 is not in torch hub's cache: fetch it with difix download lpips-vgg, or ask for st-LPIPS "
        "by name with --perceptual st-lpips-vgg."
    )


class _Training(ValidatedTraining):
    """The state of one fine-tuning run in one process."""

    DATA = "pairs"
    ENTRIES = ("inspected", "places")
    MAPPED = True  # at full width it is 10 GiB, and every process on a machine reads it

    weights: list[torch.nn.Parameter]
    options: TrainingOptions

    def __init__(
        self,
        fixer: Fixer,
        options: TrainingOptions,
        output: Path,
        device: str,
        report: Report | None,
    ) -> None:
        from diffusers.training_utils import EMAModel

        geometry = fixer.config.references == "geometry"  # which has no part in steps without references
        self.accelerator = processes.accelerator(device, options.dtype, unused=geometry)
        self.main = self.accelerator.is_main_process
        self.ranks = self.accelerator.num_processes
        super().__init__(options, output, device, Journal(make_folder(output), report, writes=self.main))
        self.fixer, self.network = fixer, fixer.network
        self.names = choose_parts(self.network, options.train)
        self.network.to(self.accelerator.device)
        parameters = dict(self.network.named_parameters())
        self.weights = [parameters[name] for name in self.names]
        if options.gradient_checkpointing:
            recompute_activations(self.network)
        rates: dict[str, Any] = {
            "lr": options.learning_rate,
            "betas": (0.9, 0.999),
            "weight_decay": options.weight_decay,
        }
        optimiser = torch.optim.AdamW(self.weights, **rates, fused=True)
        shown = AllViews(self.network) if options.supervise == "all" else self.network
        self.model, self.optimiser = self.accelerator.prepare(shown, optimiser)
        self.ema = EMAModel(self.weights, decay=options.ema, foreach=True) if options.ema else None
        self.average = None if self.ema is None else self.ema.shadow_params
        self.loss = FixerLoss(
            options.pixel,
            options.perceptual,
            options.perceptual_weight,
            options.gram_weight,
            options.gram_start,
            options.window,
            str(self.accelerator.device),
            gram_window=options.gram_window,
            signed_pixels=options.signed_pixels,
            clamp_output=options.clamp_output,
        )
        self.judge = judge_of(options)
        self.first_unet_std = 0.0
        self.deaf_checks = 0  # looks in a row at which references changed nothing
        self.skipped: dict[str, str] = {}
        self.places: dict[int, tuple[int, int]] = {}

    def load_data(self, sources: list[str], photos: Path | None, stream: bool, base: str) -> None:
        """Read manifests and folders, decide what is trained and what validated on, and take up a checkpoint."""
        options, config = self.options, self.fixer.config
        looked_up, tars = split_sources(sources, stream)
        manifest = read_manifests(looked_up)
        if tars and manifest.train:
            raise InputError("Pairs that are looked up cannot be mixed with streamed tars; make tars of all, or none.")
        pictures = None
        if photos is not None:
            pictures = PhotoPairs(photos, cache_mib=options.cache_mib / max(options.workers, 1))
        state = self.checkpointed()
        if state is not None:
            inspected = Inspection(*state["inspected"])
        else:
            inspected = processes.from_first(lambda: inspect_pairs(manifest.train, options.crop, config.multiple))
        geometry = config.references == "geometry" and not tars  # only then is every pair looked at
        if geometry and not any(pair.correspondence is not None for pair in manifest.train):
            raise InputError(
                "No pair says where its references show what it shows, so nothing can be learnt of their geometry; "
                "make pairs with difix curate --depth."
            )
        crop = max(options.crop // config.multiple, 1) * config.multiple if tars and options.crop else inspected.crop
        used = manifest.train.without(sorted(inspected.dropped)) if inspected.dropped else manifest.train
        self.inspected = inspected
        self.dropped = dict(manifest.dropped)
        self.dropped |= {_named(self.dropped, manifest.train[i].id): why for i, why in inspected.dropped.items()}
        if not (used or tars or pictures):
            raise _nothing_to_train_on(self.dropped)
        self.validation: list[Batch] = []
        for pair in spread(manifest.test, options.validation_pairs):
            try:
                loaded = decode(pair, config.references, config.views)
                if np.array_equal(loaded.render, loaded.target):  # its PSNR is infinite, and so would be the mean
                    raise ValueError(f"{pair.render} equals its photo, so nothing can be validated on it")
                self.validation.append(whole(loaded, config.views))
            except (InputError, ValueError) as error:
                self.dropped[_named(self.dropped, pair.id)] = str(error)
        tests = len(self.validation)
        if pictures is not None:
            self.dropped |= pictures.dropped
            if not tests:
                made = pictures.validation(options.validation_pairs, crop, config.views)
                self.validation = [whole(sample, config.views) for sample in made]
        share = 0.0 if pictures is None else options.photo_share if used or tars else 1.0
        self.plan = Plan(
            steps=options.iterations,
            batch=options.batch,
            crop=crop,
            views=config.views,
            accumulate=options.accumulate,
            rank=self.accelerator.process_index,
            ranks=self.ranks,
            frame=None if crop else (options.frame_height, options.frame_width),
            photo_share=share,
            drop_references=options.drop_references,
            fewer_references=options.fewer_references,
            flips=options.flips,
            strong=options.strong_augmentation,
            reference_tone=options.reference_tone,
            improved_share=options.improved_share,
            misled_share=options.misled_share,
            seed=options.seed,
        )
        self.counts = {
            "train": len(used),
            "test": tests,
            "dropped": len(self.dropped),
            "photos": len(pictures.train) if pictures is not None else 0,
        } | ({"tars": len(tars)} if tars else {})
        # what a checkpoint must agree with to be gone on from; where the folders lie does not matter
        # as of trainings that are older than these options, in which nothing else was possible
        usual = {"flips": True, "latents": "mode"}
        identity = {
            "base": base,
            "options": {
                name: value
                for name, value in asdict(options).items()
                if name not in FREE and not (name in usual and value == usual[name])
            },
            "samples": self.plan.samples,
            "pairs": [len(manifest.train), tests, manifest.fingerprint, self.counts["photos"], len(tars)],
        }
        self.validate_every = options.validate_every if self.validation else 0
        about = {"pairs": self.counts, "dropped": self.dropped, "crop": crop, "processes": self.ranks}
        # whether it is validated on what it is not trained on
        about["unseen"] = bool(tests or (pictures is not None and pictures.test))
        self.take_up(state, identity, about | {"side": inspected.side, "judge": self.judge})
        self.loader = self._loader(used, tars, pictures, self.plan)

    def run(self, progress: Callable[[int], None] | None) -> dict[str, Any]:
        options = self.options
        if self.validation and self.baselines is None:
            device = str(self.accelerator.device)
            self.baselines = processes.from_first(lambda: _baselines(self.validation, self.judge, device))
            self.journal({"event": "baselines", **self.baselines})
        self._rounds = iter(self.loader)
        self.train(progress)
        best = self.best.found
        if best is None and self.main:
            with averaged(self.weights, self.average):
                self.keep_weights()
        fixed = None if best is None else best["figures"]
        results = self.results() | {
            "judge": self.judge,
            "pairs": self.counts,
            "dropped": self.dropped,
            "skipped": self.skipped,
            "processes": self.ranks,
            "validation": {**self.baselines, "fixed": fixed} if self.baselines and fixed else None,
        }
        if self.main:
            write_json(self.output / "training.json", {"options": asdict(options), "results": results})
        processes.wait()
        return results

    def _loader(
        self, used: Sequence[PairFiles], tars: list[str], pictures: PhotoPairs | None, plan: Plan
    ) -> DataLoader[Draw]:
        """This process's rounds from the present step on."""
        workers, kind = self.options.workers, self.fixer.config.references
        start = self.step * plan.accumulate
        common: dict[str, Any] = {"batch_size": None, "pin_memory": self.accelerator.device.type == "cuda"}
        common["worker_init_fn"] = interrupts.leave_to_parent
        if tars:
            streamed: Dataset[Draw] = StreamedBatches(tars, pictures, plan, kind, start, self.places, workers)
            return DataLoader(streamed, num_workers=min(workers, 1), **common)
        store = PairStore(used, kind, plan.views, self.options.cache_mib / max(workers, 1), plan.frame)
        batches = TrainingBatches(store, pictures, plan)
        return DataLoader(batches, sampler=range(start, len(batches)), num_workers=workers, **common)

    def rounds(self) -> Iterator[tuple[Tensor, Mapping[str, Tensor]]]:
        """Forward and loss of every round; what all processes have computed comes together in the last one."""
        options = self.options
        self._due = self.main and self.pace.due()
        for number in range(options.accumulate):
            batch = self._drawn(next(self._rounds))
            index = self.step * options.accumulate + number
            noise = self._noise(index, batch.images)
            latent_noise = self._latent_noise(index, batch)
            if number == 0 and self.step % options.signs_every == 0:
                self._look_for_collapse(batch, noise)
            self.network.train()
            last = number == options.accumulate - 1
            with nullcontext() if last else self.accelerator.no_sync(self.model):
                beside = (batch.references, batch.opacity, batch.visibility, noise, batch.correspondence, latent_noise)
                output = self.model(batch.images, *beside)
                targets = batch.targets
                if options.supervise == "all":
                    output, targets = output.flatten(0, 1), all_views(targets, batch.references).flatten(0, 1)
                loss, parts = self.loss(output, targets, self.step)
                if options.idempotence_weight > 0 and self.step % _AGAIN_EVERY == 0:
                    parts["again"] = options.idempotence_weight * self._changed_again(output, beside)
                    loss = loss + parts["again"]
                found = {**parts, "output_std": output.detach().float().std()}
                yield loss / options.accumulate, {name: part / options.accumulate for name, part in found.items()}

    def backward(self, loss: Tensor) -> None:
        self.accelerator.backward(loss)

    def clipped(self) -> Tensor:
        norm: Tensor = self.accelerator.clip_grad_norm_(self.weights, self.options.clip)
        return norm

    def agreed(self, parts: Parts) -> Parts:
        """The means over all processes, as numbers."""
        # one exchange a step tells every process the same, and one look at the device is all that a GPU waits for
        flags = parts["loss"].new_tensor([float(self._due), float(interrupts.asked())])
        told = torch.stack([*parts.values(), *flags]).float()
        *values, due_somewhere, asked_somewhere = self.accelerator.reduce(told, "mean").tolist()
        self._asked = due_somewhere > 0, asked_somewhere > 0
        return dict(zip(parts, values, strict=True))

    def asked(self) -> tuple[bool, bool]:
        """As all processes were told at the step, whatever one alone has heard since."""
        return self._asked

    def follow(self) -> None:
        if self.ema is not None:
            self.ema.step(self.weights)

    def _changed_again(self, output: Tensor, beside: Sequence[Tensor | None]) -> Tensor:
        """How much a second pass beside the same changes of the first one's output: (), the mean distance."""
        first = output.detach().clamp(0, 1)
        again = self.model(first, *beside)
        return (again.float() - first).abs().mean()

    def _drawn(self, draw: Draw) -> Batch:
        """A round's batch on the device; what was skipped is noted."""
        for key, reason in draw.skipped.items():
            if key not in self.skipped:
                self.skipped[key] = reason
                self.journal({"event": "skipped", "step": self.step, "pair": key, "reason": reason})
        if draw.batch is None:
            raise InputError(f"Training stopped at step {self.step} ({self.kept()}): {draw.error}")
        self.tell_places(draw.places)
        return draw.batch.unit(self.accelerator.device)

    def _noise(self, index: int, images: Tensor) -> Tensor | None:
        """What networks that fill the unseen have there in round `index`; None for others."""
        config = self.fixer.config
        if not config.takes_photos or not config.fill_unseen:
            return None
        return self.plan.noise(index, self._latent_shape(images)).to(images)

    def _latent_noise(self, index: int, batch: Batch) -> Tensor | None:
        """What the latents of round `index` are drawn from the encoder's Gaussian with; None for its mode."""
        if self.options.latents == "mode":
            return None
        views = 1 if batch.references is None else 1 + batch.references.shape[1]
        return self.plan.latent_noise(index, (views, *self._latent_shape(batch.images))).to(batch.images)

    def _latent_shape(self, images: Tensor) -> tuple[int, int, int]:
        height, width = (length // self.fixer.config.multiple for length in images.shape[-2:])
        return self.fixer.config.vae["latent_channels"], height, width

    def tell_places(self, places: Mapping[int, Sequence[int]]) -> None:
        """Note how far lanes were read; the farther place is right, as others know only where a lane began."""
        for lane, (epoch, count) in places.items():
            self.places[lane] = max((epoch, count), self.places.get(lane, (0, 0)))

    def overflows(self) -> bool:
        return self.accelerator.scaler is not None

    def _look_for_collapse(self, batch: Batch, noise: Tensor | None) -> None:
        """Log the signs of collapse; InputError when there is no point in going on."""
        told = torch.zeros(1 + len(fields(CollapseSigns)), device=self.accelerator.device)
        if batch.references is not None:  # of streamed pairs one process may have some and another none
            self.network.eval()
            seen = (batch.images, batch.references, batch.opacity, batch.visibility)
            with self.accelerator.autocast():
                own = collapse_signs(self.network, *seen, noise, batch.correspondence)
            told = told.new_tensor([1.0, *asdict(own).values()])
        looked, *sums = self.accelerator.reduce(told, "sum").tolist()
        if not looked:
            return
        signs = CollapseSigns(*(value / looked for value in sums))
        self.journal({"event": "signs", "step": self.step, **asdict(signs)})
        self.first_unet_std = self.first_unet_std or signs.unet_std
        if not signs.unet_std < max(MAX_UNET_STD, 5 * self.first_unet_std):
            raise InputError(
                f"Training collapsed at step {self.step} ({self.kept()}): the U-Net's activations grew to a standard "
                f"deviation of {signs.unet_std:.3g}; lower the learning rate ({self.options.learning_rate:g}) or warm "
                "up longer."
            )
        deaf = self.step >= REFERENCE_GRACE and signs.reference_change < MIN_REFERENCE_CHANGE
        self.deaf_checks = self.deaf_checks + 1 if deaf else 0
        if self.deaf_checks >= 2:
            raise InputError(
                f"Training collapsed at step {self.step} ({self.kept()}): other references change the output by "
                f"{signs.reference_change:.1g} only, so they are ignored; check that the pairs' references are "
                "aligned, or lower the learning rate."
            )

    def validate(self) -> None:
        """Figures of the averaged weights on the validation pairs; keep them if they are the best so far.

        Every process fixes a share of the pairs.
        """
        from accelerate.utils import gather_object

        assert self.baselines is not None
        own: list[tuple[int, dict[str, float], np.ndarray]] = []
        device = str(self.accelerator.device)
        with averaged(self.weights, self.average):
            # adapters are merged where nothing trains; what this fixer keeps of references goes with it
            fixer = Fixer(merge_adapters(self.network), self.fixer.tile)
            for i in range(self.accelerator.process_index, len(self.validation), self.ranks):
                batch = self.validation[i]
                beside = (batch.references, batch.opacity, batch.visibility, None, batch.correspondence)
                with self.accelerator.autocast():
                    fixed = picture(fixer(batch.images, *beside).cpu())
                keys = (*_FIGURES, self.judge)
                own.append((i, image_metrics(fixed, picture(batch.targets), None, device, keys), fixed))
            every = sorted(gather_object(own), key=lambda one: one[0])
            figures = summary([one[1] for one in every])[0]
            score = gain(figures, self.baselines["identity"], self.judge)
            better = self.best.offer(self.step, score, figures)
            if better and self.main:
                self.keep_weights()
        over = {f"{name}_gain": value - self.baselines["identity"][name] for name, value in figures.items()}
        self.journal({"event": "validation", "step": self.step, **figures, **over, "gain": score, "best": better})
        self.journal.images(self.step, self.validation, [one[2] for one in every])

    def sweep(self) -> None:
        if self.main:
            super().sweep()

    def save(self) -> None:
        """All processes tell the first what they have read, and it writes the checkpoint."""
        from accelerate.utils import gather_object

        for places, skipped in gather_object([(self.places, self.skipped)]):
            self.tell_places(places)
            self.skipped |= skipped
        if self.main:
            super().save()
        self.saved_step = self.step

    def state(self) -> dict[str, Any]:
        return super().state() | {
            "inspected": tuple(self.inspected),
            "weights": dict(zip(self.names, (w.detach() for w in self.weights), strict=True)),
            "average": None if self.average is None else dict(zip(self.names, self.average, strict=True)),
            "scaler": None if self.accelerator.scaler is None else self.accelerator.scaler.state_dict(),
            "first_unet_std": self.first_unet_std,
            "deaf_checks": self.deaf_checks,
            "skipped": self.skipped,
            "places": self.places,
        }

    def save_weights(self) -> None:
        self.fixer.save_pretrained(self.output)

    def restore(self, state: Mapping[str, Any]) -> None:
        super().restore(state)
        self.first_unet_std, self.deaf_checks = state["first_unet_std"], state["deaf_checks"]
        self.skipped, self.places = state["skipped"], state["places"]
        with torch.no_grad():
            for name, weight in zip(self.names, self.weights, strict=True):
                weight.copy_(state["weights"][name])
        if self.accelerator.scaler is not None:
            self.accelerator.scaler.load_state_dict(state["scaler"])

    @torch.no_grad()
    def restore_average(self, held: Mapping[str, Tensor]) -> None:
        assert self.ema is not None
        for name, shadow in zip(self.names, self.ema.shadow_params, strict=True):
            shadow.copy_(held[name])
        self.ema.optimization_step = self.step


def gain(figures: Mapping[str, float], identity: Mapping[str, float], judge: str = "st_lpips") -> float:
    """How much better than the renders themselves, in dB; a fifth less of the judge's distance counts as one dB."""
    return (figures["psnr"] - identity["psnr"]) + (1 - figures[judge] / identity[judge]) / _LPIPS_PER_DB


def _base(base: str | Path, seed: int, geometry: bool) -> Fixer:
    """A fixer with random weights, or with those the name stands for, on the CPU; `geometry` says which references
    random ones are for.
    """
    if str(base) in SMALL_SIZES:
        return new_small_fixer(str(base), seed, "geometry" if geometry else "aligned")
    check_small(str(base))
    return Fixer(Fixer.from_pretrained(base).network)  # bolder weights beside it are not those of what it becomes


def _baselines(validation: Sequence[Batch], judge: str, device: str) -> dict[str, dict[str, float]]:
    """Figures of the renders as they are and of the unsharp mask that `difix eval` compares with."""
    renders = [picture(b.images) for b in validation]
    truths = [picture(b.targets) for b in validation]
    keys, both = (*_FIGURES, judge), list(zip(renders, truths, strict=True))
    identity = summary([image_metrics(r, t, None, device, keys) for r, t in both])[0]
    sharpened = best_unsharp(((r, t, None) for r, t in both), judge, device, keys)
    return {"identity": identity, "unsharp": dict(sharpened.figures)}


def _named(known: Mapping[str, str], name: str) -> str:
    """The name, numbered where it is known already: folders of pairs may use the same ids."""
    number, free = 1, name
    while free in known:
        number += 1
        free = f"{name} ({number})"
    return free
