"""Training view-conditioned diffusion: the epipolar transformer, the autoencoder, then the U-Net beside both.

What is drawn at a step is a function of the step and the seed, so a run that was stopped goes on from its last
checkpoint. Photos lie on the device and nothing waits for it but the log.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from difixcli.evaluation.metrics import evaluate_images
from difixcli.priors.view_diffusion.epipolar import EpipolarConfig, EpipolarRender
from difixcli.priors.view_diffusion.files import is_published
from difixcli.priors.view_diffusion.model import ViewDiffusion, small_config
from difixcli.priors.view_diffusion.published import from_published
from difixcli.runs import make_folder, write_image, write_json
from difixcli.scenes import Scene
from difixcli.training.journal import Journal
from difixcli.training.loop import Report, StagedTraining
from difixcli.training.losses import charbonnier, perceptual_network
from difixcli.training.options import (
    OF_NEW_AROUND_PUBLISHED,
    OF_NEW_VIEW_DIFFUSION,
    SCRATCH,
    VIEW_DIFFUSION_FREE,
    ViewDiffusionOptions,
    check_of_new,
    with_options,
)
from difixcli.training.pair_lists import spread
from difixcli.training.view_diffusion_samples import HeldView, ViewBatch, ViewPhotos

STAGES = ("epipolar", "vae", "diffusion")
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
        `photos`, `scenes` (the names of those that were trained on), and `validation`: mean `psnr`, `ssim`, `st_lpips`
        of `nearest`, `warped` (the nearest photo by seed points' depth), `eft`, `vldm` and `vae`.

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


class _Training(StagedTraining):
    """The state of one training run."""

    STAGES = STAGES
    DATA = "photos"
    ENTRIES = ("stage", "model")
    TOLD = ()
    FIRST = 0

    def __init__(
        self, model: ViewDiffusion, options: ViewDiffusionOptions, output: Path, device: str, report: Report | None
    ) -> None:
        super().__init__(options, output, device, Journal(make_folder(output), report))
        self.networks, self.options = model.to(device), options
        self.perceptual = None
        if options.perceptual_weight:
            self.perceptual = perceptual_network(options.perceptual, device)
        self.figures: dict[str, Any] = {}
        self.begin_stage()

    def begin_stage(self) -> None:
        options, model = self.options, self.networks.requires_grad_(False).train()
        weights, rate = {
            "epipolar": ([*model.epipolar.parameters()], options.learning_rate),
            "vae": ([*model.vae.parameters()], options.vae_learning_rate),
            "diffusion": (
                [*model.unet.parameters(), *model.head.parameters(), model.prompt],
                options.diffusion_learning_rate,
            ),
        }[STAGES[self.stage]]
        self.train_weights([(weights, rate, {})], betas=(0.9, 0.99), fused=self.device.startswith("cuda"))

    def model(self) -> ViewDiffusion:
        return self.networks

    def iterations(self, stage: str) -> int:
        return int(getattr(self.options, f"{stage}_iterations"))

    def share(self, stage: str) -> float:
        first = self.options.epipolar_share
        return {"epipolar": first, "vae": (1 - first) * 0.3, "diffusion": (1 - first) * 0.7}[stage]

    def load_data(self, scenes: Sequence[Scene], photos: Path | None, base: str) -> None:
        """Find the photos, and take up a checkpoint."""
        options = self.options
        self.scenes = [scene.name for scene in scenes]
        self.photos = ViewPhotos(scenes, photos, options, self.device)
        self.held = spread(self.photos.held, options.validation_views)
        self.counts = {"scenes": len(scenes), "views": len(self.photos.canvases), "folder": len(self.photos.alone)}
        self.counts["held"] = len(self.held)
        identity = {
            "base": base,
            "options": {name: value for name, value in asdict(options).items() if name not in VIEW_DIFFUSION_FREE},
            "photos": self.photos.names,
        }
        self.take_up(self.checkpointed(), identity, {"photos": self.counts})

    def run(self, progress: Callable[[int], None] | None) -> dict[str, Any]:
        self.train(progress)
        parts = {"epipolar": self.networks.epipolar, "vae": self.networks.vae, "unet": self.networks.unet}
        results = {
            "steps": self.steps,
            "seconds": {name: round(value, 1) for name, value in self.seconds.items()},
            "loss": self.losses,
            "parameters": {name: sum(w.numel() for w in part.parameters()) for name, part in parts.items()},
            "photos": self.counts,
            "scenes": self.scenes,
            "validation": self.figures,
        }
        write_json(self.output / "training.json", {"options": asdict(self.options), "results": results})
        return results

    def ended(self, stage: str) -> None:
        """Write the averaged weights and validate them."""
        if stage == "vae" and self.steps[stage]:
            self._scale_latents()
        self.networks.save_pretrained(self.output)
        self._validate(stage)

    def rounds(self) -> Iterator[tuple[Tensor, dict[str, Tensor]]]:
        losses = {"epipolar": self._epipolar_loss, "vae": self._vae_loss, "diffusion": self._diffusion_loss}
        parts = losses[STAGES[self.stage]](self.step)
        yield torch.stack(list(parts.values())).sum(), parts

    def _precision(self) -> contextlib.AbstractContextManager[Any]:
        if self.options.dtype == "fp32":
            return contextlib.nullcontext()
        return torch.autocast(torch.device(self.device).type, _DTYPES[self.options.dtype])

    def _render(self, drawn: ViewBatch) -> EpipolarRender:
        return self.networks.epipolar(
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
        options, vae = self.options, self.networks.vae
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
        options, model = self.options, self.networks
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
        return self.networks.config.schedule.prediction_type == "epsilon"

    @torch.no_grad()
    def _scale_latents(self) -> None:
        """Latents get unit variance, over a few batches of pictures."""
        self.networks.set_latent_scale(1.0)
        options = self.options
        found = []
        for step in range(8):
            pictures, _ = self.photos.pictures(step, options.pictures, options.diffusion_window)
            found.append(self.networks.encode(pictures).square().mean())
        self.networks.set_latent_scale(float(1 / torch.stack(found).mean().sqrt()))

    @torch.no_grad()
    def _validate(self, name: str) -> None:
        """Figures of the views kept for it, and a picture of some; of what is not trained yet there are none."""
        if not self.held:
            return
        self.networks.eval()
        rows = {label: [] for label in ("nearest", "warped", "eft", "vldm", "vae")}  # type: dict[str, list[np.ndarray]]
        for i, view in enumerate(self.held):
            condition = self.networks.condition(view.views, view.query)
            nearest, warped = baselines(view)
            rows["nearest"].append(pixels(nearest))
            rows["warped"].append(pixels(warped))
            rows["eft"].append(pixels(condition.picture))
            if name == "diffusion":
                rows["vldm"].append(pixels(self.networks.sample(condition, seed=i)))
            if name != "epipolar":
                latents = self.networks.encode(view.truth[None].to(self.device))
                again = self.networks.decode(latents, view.query.height, view.query.width)
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
        self.networks.train()

    def state(self) -> dict[str, Any]:
        own = {"losses": self.losses, "figures": self.figures, "scale": self.networks.latent_scale}
        return super().state() | own

    def restore(self, state: Mapping[str, Any]) -> None:
        super().restore(state)
        self.losses, self.figures = state["losses"], state["figures"]
        self.networks.set_latent_scale(state["scale"])


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
        check_of_new(str(base), OF_NEW_AROUND_PUBLISHED, given)
        return from_published(base, options.size, epipolar, options.seed)
    if str(base) != SCRATCH:
        check_of_new(str(base), OF_NEW_VIEW_DIFFUSION, given)
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
