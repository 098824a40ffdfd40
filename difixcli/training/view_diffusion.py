"""Training view-conditioned diffusion: the epipolar transformer, the autoencoder, then the U-Net beside both.

What is drawn at a step is a function of the step and the seed, so a run that was stopped goes on from its last
checkpoint. Photos lie on the device and nothing waits for it but the log.
"""

from __future__ import annotations

import contextlib
import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from difixcli import interrupts
from difixcli.errors import InputError
from difixcli.evaluation.metrics import evaluate_images
from difixcli.priors.view_diffusion.epipolar import EpipolarConfig, EpipolarRender
from difixcli.priors.view_diffusion.model import ViewDiffusion, small_config
from difixcli.priors.view_diffusion.published import from_published, is_published
from difixcli.runs import make_folder, write_image, write_json
from difixcli.scenes import Scene
from difixcli.training.averaging import follow
from difixcli.training.checkpoints import Pace, check_identity, read_checkpoint, write_checkpoint
from difixcli.training.journal import Journal
from difixcli.training.losses import charbonnier, perceptual_network
from difixcli.training.options import VIEW_DIFFUSION_FREE, ViewDiffusionOptions, with_options
from difixcli.training.view_diffusion_samples import HeldView, ViewBatch, ViewPhotos

SCRATCH = "scratch"
STAGES = ("epipolar", "vae", "diffusion")
_SHAPE = ("size", "width", "depths", "latent_channels", "unet_width")  # options of new networks
_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}
_FRESH = 1 << 40  # seeds of noise, apart from those of samples


def train_view_diffusion(
    scenes: Sequence[Scene],
    base: str | Path,
    output: Path,
    *,
    photos: Path | None = None,
    device: str = "cpu",
    progress: Callable[[int], None] | None = None,
    report: Callable[[Mapping[str, Any]], None] | None = None,
    **options: Any,
) -> dict[str, Any]:
    """Train the networks of view-conditioned diffusion and write them to `output`, which
    `ViewDiffusion.from_pretrained` loads.

    The folder holds the averaged weights, `log.jsonl`, `tensorboard/`, `validation/STAGE.png` (nearest photo, EFT's
    picture, diffusion's sample, the autoencoder's picture of the truth, the truth) and `checkpoints/last.pt`. Called
    again with the same arguments it goes on from that checkpoint.

    Args:
        scenes: loaded with the options' `canvas` as their size. Of one with eight or more photos the middle one is
            kept for validation.
        base: `scratch` for random weights, what `ViewDiffusion.from_pretrained` takes, or a text-to-image model (see
            `from_published`), whose autoencoder an option of `vae_iterations=0` leaves as it is.
        photos: a folder of any photos, for the autoencoder.
        progress: called with the number of steps done, of all networks together.
        report: called with every record written to the log.
        options: fields of `ViewDiffusionOptions`.

    Returns:
        `steps` and `seconds` by network, `loss` (mean over the last records) by network, `parameters` by network,
        `photos`, and `validation`: mean `psnr`, `ssim`, `st_lpips` of `nearest`, `warped` (the nearest photo by seed
        points' depth), `eft`, `vldm` and `vae`.

    Raises InputError for scenes, options or bases that cannot be used, a loss that is no number, and a checkpoint that
    cannot be read or written.
    """
    chosen = with_options(ViewDiffusionOptions(), options, device)
    model = _model(base, chosen, options)
    training = _Training(model, chosen, output, device, report)
    try:
        training.load_data(scenes, photos, str(base))
        return training.run(progress)
    finally:
        training.journal.close()


class _Training:
    """The state of one training run."""

    def __init__(
        self,
        model: ViewDiffusion,
        options: ViewDiffusionOptions,
        output: Path,
        device: str,
        report: Callable[[Mapping[str, Any]], None] | None,
    ) -> None:
        self.model, self.options, self.device = model.to(device), options, device
        self.output = make_folder(output)
        self.checkpoint = make_folder(output / "checkpoints") / "last.pt"
        self.journal = Journal(output, report)
        self.perceptual = None
        if options.perceptual_weight:
            self.perceptual = perceptual_network(options.perceptual, device)
        self.pace = Pace()
        self.stage = 0
        self.step = 0
        self.steps = dict.fromkeys(STAGES, 0)
        self.seconds = dict.fromkeys(STAGES, 0.0)
        self.losses = dict.fromkeys(STAGES, math.nan)
        self.figures: dict[str, Any] = {}
        self._begin_stage()

    def _begin_stage(self) -> None:
        """A new optimiser and average for the weights of the stage."""
        if self.stage == len(STAGES):
            return
        options, name = self.options, STAGES[self.stage]
        model = self.model.requires_grad_(False).train()
        parts: list[Any] = {
            "epipolar": [model.epipolar],
            "vae": [model.vae],
            "diffusion": [model.unet, model.head],
        }[name]
        self.weights = [w for part in parts for w in part.parameters()] + (
            [model.prompt] if name == "diffusion" else []
        )
        for weight in self.weights:
            weight.requires_grad_(True)
        self.rate = {
            "epipolar": options.learning_rate,
            "vae": options.vae_learning_rate,
            "diffusion": options.diffusion_learning_rate,
        }[name]
        self.optimiser = torch.optim.AdamW(
            self.weights,
            lr=self.rate,
            betas=(0.9, 0.99),
            weight_decay=options.weight_decay,
            fused=self.device.startswith("cuda"),
        )
        self.average = [w.detach().clone() for w in self.weights] if options.ema else None

    def load_data(self, scenes: Sequence[Scene], photos: Path | None, base: str) -> None:
        """Find the photos, and take up a checkpoint."""
        options = self.options
        for leftover in self.output.rglob(".*.part"):  # of a process that was killed
            leftover.unlink(missing_ok=True)
        self.photos = ViewPhotos(scenes, photos, options, self.device)
        self.held = self.photos.held[:: max(1, len(self.photos.held) // options.validation_views)]
        self.held = self.held[: options.validation_views]
        self.counts = {"scenes": len(scenes), "views": len(self.photos.canvases), "folder": len(self.photos.alone)}
        self.counts["held"] = len(self.held)
        identity = {
            "base": base,
            "options": {name: value for name, value in asdict(options).items() if name not in VIEW_DIFFUSION_FREE},
            "photos": self.photos.names,
        }
        self.identity = json.dumps(identity, sort_keys=True)
        if self.checkpoint.is_file():
            self._resume()
        else:
            self.journal.begin()
            self.journal({"event": "start", "photos": self.counts, "options": asdict(options)})

    def run(self, progress: Callable[[int], None] | None) -> dict[str, Any]:
        while self.stage < len(STAGES):
            name = STAGES[self.stage]
            with interrupts.saving():
                if self._run_stage(name, progress):
                    self._end_stage(name)
        parts = {"epipolar": self.model.epipolar, "vae": self.model.vae, "unet": self.model.unet}
        results = {
            "steps": self.steps,
            "seconds": {name: round(value, 1) for name, value in self.seconds.items()},
            "loss": self.losses,
            "parameters": {name: sum(w.numel() for w in part.parameters()) for name, part in parts.items()},
            "photos": self.counts,
            "validation": self.figures,
        }
        write_json(self.output / "training.json", {"options": asdict(self.options), "results": results})
        return results

    def _end_stage(self, name: str) -> None:
        """Keep and write the averaged weights, validate them, and begin the next stage, if there is one."""
        with torch.no_grad():
            if self.average is not None:
                torch._foreach_copy_([w.detach() for w in self.weights], self.average)
        if name == "vae" and self.step:
            self._scale_latents()
        self.model.save_pretrained(self.output)
        self.stage, self.steps[name], self.step = self.stage + 1, self.step, 0
        self._validate(name)
        self._begin_stage()
        self._save()

    def _run_stage(self, name: str, progress: Callable[[int], None] | None) -> bool:
        """Whether the stage came to its end; it does not where the process was asked to."""
        options = self.options
        losses: dict[str, Callable[[int], dict[str, Tensor]]] = {
            "epipolar": self._epipolar_loss,
            "vae": self._vae_loss,
            "diffusion": self._diffusion_loss,
        }
        total = getattr(options, f"{name}_iterations")
        shares = {"epipolar": options.epipolar_share}
        shares["vae"] = (1 - options.epipolar_share) * 0.3
        shares["diffusion"] = (1 - options.epipolar_share) * 0.7
        budget = options.seconds * shares[name]
        before = sum(self.steps.values())
        began, earlier = time.monotonic(), self.seconds[name]
        done = self.step / total if total else 1.0
        parts: dict[str, Tensor] = {}
        logged = True
        while done < 1:
            parts = self._step(losses[name], self.rate * rate_at(self.step, done, options.warm_up))
            self.seconds[name] = earlier + time.monotonic() - began
            logged = self.step % options.log_every == 0
            if logged:
                self._log(name, parts)
            self.step += 1
            done = self.step / total
            if budget:
                done = max(done, self.seconds[name] / budget)
            if due := self.step % options.checkpoint_every == 0 or self.pace.due():
                self._save()
            if progress is not None:
                progress(before + self.step)
            if due and interrupts.asked():
                break
        if parts and not logged:
            self.step -= 1
            self._log(name, parts)
            self.step += 1
        return done >= 1

    def _step(self, losses: Callable[[int], dict[str, Tensor]], rate: float) -> dict[str, Tensor]:
        """One step: losses, clipped update, average."""
        options = self.options
        for group in self.optimiser.param_groups:
            group["lr"] = rate
        self.optimiser.zero_grad(set_to_none=True)
        parts = losses(self.step)
        torch.stack(list(parts.values())).sum().backward()
        parts = {label: value.detach() for label, value in parts.items()}
        parts["gradient"] = torch.nn.utils.clip_grad_norm_(self.weights, options.clip)
        self.optimiser.step()
        follow(self.average, self.weights, options.ema, self.step)
        return parts

    def _log(self, name: str, parts: Mapping[str, Tensor]) -> None:
        told = {label: float(value) for label, value in parts.items()}
        loss = sum(value for label, value in told.items() if label != "gradient")
        if not math.isfinite(loss) or not math.isfinite(told["gradient"]):
            raise InputError(
                f"The loss or gradient at step {self.step} of {name} is not a number; lower its learning rate "
                f"({self.rate:g}) and start in another output folder."
            )
        old = self.losses[name]
        self.losses[name] = loss if math.isnan(old) else 0.8 * old + 0.2 * loss
        about = {"loss": loss, **told, "seconds": round(self.seconds[name], 1)}
        self.journal({"event": name, "step": sum(self.steps.values()) + self.step, **about})

    def _precision(self) -> contextlib.AbstractContextManager[Any]:
        if self.options.dtype == "fp32":
            return contextlib.nullcontext()
        return torch.autocast(torch.device(self.device).type, _DTYPES[self.options.dtype])

    def _render(self, drawn: ViewBatch) -> EpipolarRender:
        return self.model.epipolar(
            drawn.images,
            drawn.masks,
            drawn.intrinsics,
            drawn.poses,
            drawn.query_intrinsics,
            torch.eye(4, device=drawn.images.device).expand(len(drawn.images), 4, 4),
            torch.ones_like(drawn.far),
            drawn.far,
            *drawn.truths.shape[-2:],
        )

    def _epipolar_loss(self, step: int) -> dict[str, Tensor]:
        """Pixels of the mended and of the blended picture, a perceptual distance, and the seed points' depths."""
        options = self.options
        drawn = self.photos.batch(step, options.batch, options.window, augment=True)
        with self._precision():
            render = self._render(drawn)
        parts = {
            "pixel": charbonnier(render.picture, drawn.truths, drawn.counts),
            "blend": 0.5 * charbonnier(render.blend, drawn.truths, drawn.counts),
        }
        if self.perceptual is not None:
            parts["perceptual"] = options.perceptual_weight * self._apart(render.picture, drawn.truths, drawn.counts)
        if options.depth_weight:
            parts["depth"] = options.depth_weight * depth_loss(render.weights, drawn)
        return parts

    def _apart(self, pictures: Tensor, truths: Tensor, counts: Tensor) -> Tensor:
        """Mean perceptual distance of pictures (B, 3, h, w), black where they do not count."""
        assert self.perceptual is not None
        with torch.no_grad():
            wanted = self.perceptual.features(truths * counts)
        return self.perceptual.between(self.perceptual.features(pictures.clamp(0, 1) * counts), wanted).mean()

    def _vae_loss(self, step: int) -> dict[str, Tensor]:
        """Pixels, a perceptual distance and the latents' distance from a standard normal distribution."""
        options, vae = self.options, self.model.vae
        pictures, counts = self.photos.pictures(step, options.pictures, options.diffusion_window)
        with self._precision():
            moments = vae.quant_conv(vae.encoder(pictures * 2 - 1))
            mean, logarithm = moments.float().chunk(2, dim=1)
            logarithm = logarithm.clamp(-30, 20)
            noise = self._noise(mean.shape, step)
            made = (vae.decoder(vae.post_quant_conv(mean + (0.5 * logarithm).exp() * noise)).float() + 1) / 2
        parts = {"pixel": charbonnier(made, pictures, counts)}
        if self.perceptual is not None:
            parts["perceptual"] = options.perceptual_weight * self._apart(made, pictures, counts)
        parts["kl"] = options.kl_weight * 0.5 * (mean.square() + logarithm.exp() - 1 - logarithm).mean()
        return parts

    def _noise(self, shape: Sequence[int], step: int) -> Tensor:
        generator = torch.Generator(self.device).manual_seed(_FRESH + self.options.seed * (1 << 30) + step)
        return torch.randn(*shape, generator=generator, device=self.device)

    def _diffusion_loss(self, step: int) -> dict[str, Tensor]:
        """The squared error of v at noise levels spread over all, where the photos count."""
        options, model = self.options, self.model
        drawn = self.photos.batch(step, options.batch, options.diffusion_window, augment=False)
        with self._precision():
            with torch.no_grad():
                render = self._render(drawn)
                clean = model.encode(drawn.truths).float()
            told = model.condition_of(render)
            repeats, count = options.repeats, len(clean)
            clean, told = clean.repeat(repeats, 1, 1, 1), told.repeat(repeats, 1, 1, 1)
            draw = torch.Generator().manual_seed(_FRESH + options.seed * (1 << 30) + step)
            levels = torch.rand(1, generator=draw) + torch.randperm(repeats * count, generator=draw) / (repeats * count)
            times = ((levels % 1) * len(model.alphas)).long().clamp_max(len(model.alphas) - 1)
            kept = (torch.rand(repeats * count, generator=draw) >= options.drop_condition).float()
            alphas = model.alphas[times].float().to(self.device, non_blocking=True)[:, None, None, None]
            told = told * kept.to(self.device, non_blocking=True)[:, None, None, None]
            noise = self._noise(clean.shape, step)
            noisy = alphas.sqrt() * clean + (1 - alphas).sqrt() * noise
            target = noise if self._predicts_noise() else alphas.sqrt() * noise - (1 - alphas).sqrt() * clean
            output = model.predict(noisy, times.to(self.device, non_blocking=True), told).float()
        factor = model.config.factor
        counts = (F.avg_pool2d(model.padded(drawn.counts), factor) > 0.5).float()
        counts = counts.repeat(repeats, 1, 1, 1)
        error = (output - target).square().mean(1, keepdim=True)
        return {"error": (error * counts).sum() / counts.sum().clamp_min(1)}

    def _predicts_noise(self) -> bool:
        return self.model.config.schedule.prediction_type == "epsilon"

    @torch.no_grad()
    def _scale_latents(self) -> None:
        """Latents get unit variance, over a few batches of pictures."""
        self.model.set_latent_scale(1.0)
        options = self.options
        found = []
        for step in range(8):
            pictures, _ = self.photos.pictures(step, options.pictures, options.diffusion_window)
            found.append(self.model.encode(pictures).square().mean())
        self.model.set_latent_scale(float(1 / torch.stack(found).mean().sqrt()))

    @torch.no_grad()
    def _validate(self, name: str) -> None:
        """Figures of the views kept for it, and a picture of some; of what is not trained yet there are none."""
        if not self.held:
            return
        self.model.eval()
        rows = {label: [] for label in ("nearest", "warped", "eft", "vldm", "vae")}  # type: dict[str, list[np.ndarray]]
        for i, view in enumerate(self.held):
            condition = self.model.condition(view.views, view.query)
            nearest, warped = baselines(view)
            rows["nearest"].append(pixels(nearest))
            rows["warped"].append(pixels(warped))
            rows["eft"].append(pixels(condition.picture))
            if name == "diffusion":
                rows["vldm"].append(pixels(self.model.sample(condition, seed=i)))
            if name != "epipolar":
                latents = self.model.encode(view.truth[None].to(self.device))
                again = self.model.decode(latents, view.query.height, view.query.width)
                rows["vae"].append(pixels(again[0].clamp(0, 1)))
        truths = [pixels(view.truth) for view in self.held]
        masks = [None if view.mask is None else view.mask.numpy() for view in self.held]
        rows = {label: row for label, row in rows.items() if row}
        self.figures = {
            label: evaluate_images(row, truths, masks, device=self.device)["mean"] for label, row in rows.items()
        }
        told = {f"{label}_{key}": value for label, row in self.figures.items() for key, value in row.items()}
        self.journal({"event": "validation", "network": name, "step": sum(self.steps.values()) - 1, **told})
        if self.journal.writes:
            lines = [np.concatenate([row[i] for row in (*rows.values(), truths)], axis=1) for i in range(len(truths))]
            width = max(line.shape[1] for line in lines)
            lines = [np.pad(line, ((0, 0), (0, width - line.shape[1]), (0, 0))) for line in lines]
            write_image(make_folder(self.output / "validation") / f"{name}.png", np.concatenate(lines[:8], axis=0))
        self.model.train()

    def _save(self) -> None:
        """Write the checkpoint, whole or not at all."""
        state = {
            "identity": self.identity,
            "stage": self.stage,
            "step": self.step,
            "steps": self.steps,
            "seconds": self.seconds,
            "losses": self.losses,
            "figures": self.figures,
            "scale": self.model.latent_scale,
            "model": self.model.state_dict(),
            "average": self.average,
            "optimiser": self.optimiser.state_dict(),
        }
        self.pace.saved(write_checkpoint(self.checkpoint, state, self.step))

    def _resume(self) -> None:
        state = read_checkpoint(self.checkpoint, self.output, ("identity", "stage", "model"), self.device)
        check_identity(state, self.identity, self.output, "photos")
        self.stage, self.step = state["stage"], state["step"]
        self.steps, self.seconds, self.losses = state["steps"], state["seconds"], state["losses"]
        self.figures = state["figures"]
        self.model.load_state_dict(state["model"])
        self.model.set_latent_scale(state["scale"])
        self._begin_stage()
        if self.stage < len(STAGES):
            self.optimiser.load_state_dict(state["optimiser"])
            if self.average is not None:
                torch._foreach_copy_(self.average, state["average"])
        self.journal.go_on(sum(self.steps.values()) + self.step)


def rate_at(step: int, done: float, warm_up: int) -> float:
    """The share of the full learning rate: a linear rise, and half a cosine down to 2 % over the stage."""
    return min(1.0, (step + 1) / max(warm_up, 1)) * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * min(done, 1.0))))


def depth_loss(weights: Tensor, drawn: ViewBatch) -> Tensor:
    """Cross-entropy of the attention (B, D, h, w) at the seed points that lie in the windows."""
    depths, height, width = weights.shape[1:]
    x, y = (drawn.pixels[..., i].floor().long() for i in (0, 1))
    place = (1 - 1 / drawn.depths.clamp_min(1e-6)) / (1 - 1 / drawn.far[:, None]) * (depths - 1)
    inside = (
        (x >= 0) & (x < width) & (y >= 0) & (y < height) & (drawn.depths > 0) & (place >= 0) & (place <= depths - 1)
    )
    index = (y.clamp(0, height - 1) * width + x.clamp(0, width - 1))[:, None].expand(-1, depths, -1)
    attention = torch.gather(weights.flatten(2), 2, index)  # (B, D, P)
    steps = torch.arange(depths, device=weights.device, dtype=torch.float32)[:, None]
    wanted = (1 - (steps - place[:, None]).abs()).clamp_min(0)
    entropy = -(wanted * (attention + 1e-5).log()).sum(1)
    return (entropy * inside).sum() / inside.sum().clamp_min(1)


def baselines(view: HeldView) -> tuple[Tensor, Tensor]:
    """The photo (3, H, W) nearest to a view as it is, and warped by the depth of the seed points that the view sees,
    each pixel's from the nearest of them.
    """
    apart = (view.views.poses[:, :3, 3] - view.query.pose[:3, 3]).norm(dim=-1)
    nearest = int(apart.argmin())
    photo = view.views.images[nearest]
    height, width = view.query.height, view.query.width
    plain = F.interpolate(photo[None], (height, width), mode="bilinear", antialias=True)[0]
    if not len(view.depths):
        return plain, plain
    y, x = torch.meshgrid(torch.arange(height) + 0.5, torch.arange(width) + 0.5, indexing="ij")
    pixels = torch.stack([x, y], dim=-1).flatten(0, 1)
    depth = view.depths[torch.cdist(pixels, view.depths[:, :2]).argmin(1), 2]
    k = view.query.intrinsics
    local = torch.stack(
        [(pixels[:, 0] - k[0, 2]) / k[0, 0], -(pixels[:, 1] - k[1, 2]) / k[1, 1], -torch.ones(len(pixels))], -1
    )
    world = (local * depth[:, None]) @ view.query.pose[:3, :3].T + view.query.pose[:3, 3]
    pose, k = view.views.poses[nearest], view.views.intrinsics[nearest]
    seen = (world - pose[:3, 3]) @ pose[:3, :3]
    ahead = (-seen[:, 2]).clamp_min(1e-6)
    u = seen[:, 0] / ahead * k[0, 0] + k[0, 2]
    v = -seen[:, 1] / ahead * k[1, 1] + k[1, 2]
    grid = torch.stack([u / photo.shape[-1], v / photo.shape[-2]], dim=-1).unflatten(0, (height, width)) * 2 - 1
    warped = F.grid_sample(photo[None], grid[None].clamp(-2, 2), padding_mode="border", align_corners=False)[0]
    return plain, warped


def pixels(picture: Tensor) -> np.ndarray:
    """(3, H, W) → (H, W, 3) float32 on the CPU."""
    return picture.permute(1, 2, 0).float().cpu().numpy()


def _model(base: str | Path, options: ViewDiffusionOptions, given: Mapping[str, Any]) -> ViewDiffusion:
    """Networks with random weights, or with those the name stands for, on the CPU."""
    epipolar = EpipolarConfig(width=options.width, depths=options.depths)
    if is_published(base):
        for name in ("latent_channels", "unet_width"):
            if given.get(name) is not None:
                raise InputError(f"The training option {name} is the base's own; it is for --base {SCRATCH} alone.")
        return from_published(base, options.size, epipolar, options.seed)
    if str(base) != SCRATCH:
        if shape := [name for name in _SHAPE if given.get(name) is not None]:
            raise InputError(f"The training option {shape[0]} is the base's own; it is for --base {SCRATCH} alone.")
        return ViewDiffusion.from_pretrained(base)
    width = options.unet_width
    config = small_config(
        size=options.size,
        latent_channels=options.latent_channels,
        unet_channels=(width, 2 * width, width * 5 // 2),
        epipolar=epipolar,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(options.seed)
        return ViewDiffusion(config)
