"""A nerfstudio method as a third party would publish it: an MLP that maps positions to density and colour.

It shares no model class with nerfstudio's own methods, and lies outside this project's package.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from nerfstudio.cameras.rays import RayBundle
from nerfstudio.configs.base_config import ViewerConfig
from nerfstudio.data.datamanagers.base_datamanager import VanillaDataManagerConfig
from nerfstudio.data.dataparsers.nerfstudio_dataparser import NerfstudioDataParserConfig
from nerfstudio.engine.optimizers import AdamOptimizerConfig
from nerfstudio.engine.schedulers import ExponentialDecaySchedulerConfig
from nerfstudio.engine.trainer import TrainerConfig
from nerfstudio.model_components.ray_samplers import UniformSampler
from nerfstudio.model_components.renderers import AccumulationRenderer, DepthRenderer, RGBRenderer
from nerfstudio.models.base_model import Model, ModelConfig
from nerfstudio.pipelines.base_pipeline import VanillaPipelineConfig
from nerfstudio.plugins.types import MethodSpecification
from torch import nn


@dataclass
class HazeModelConfig(ModelConfig):
    _target: type = field(default_factory=lambda: HazeModel)
    width: int = 32
    samples: int = 16


class HazeModel(Model):
    config: HazeModelConfig

    def populate_modules(self) -> None:
        super().populate_modules()
        width = self.config.width
        self.net = nn.Sequential(
            nn.Linear(3, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 4)
        )
        self.tints = nn.Embedding(self.num_train_data, 3)  # learned photo by photo
        nn.init.zeros_(self.tints.weight)
        self.sampler = UniformSampler(num_samples=self.config.samples, single_jitter=True)
        self.rgb, self.depth = RGBRenderer(background_color="black"), DepthRenderer()
        self.accumulation = AccumulationRenderer()

    def get_param_groups(self) -> dict[str, list[nn.Parameter]]:
        return {"fields": list(self.parameters())}

    def get_outputs(self, ray_bundle: RayBundle) -> dict[str, torch.Tensor]:
        samples = self.sampler(ray_bundle)
        raw = self.net(samples.frustums.get_positions())
        color = torch.sigmoid(raw[..., 1:])
        if self.training:
            color = color + self.tints(ray_bundle.camera_indices)
        weights = samples.get_weights(nn.functional.softplus(raw[..., :1]))
        return {
            "rgb": self.rgb(rgb=color, weights=weights),
            "depth": self.depth(weights=weights, ray_samples=samples),
            "accumulation": self.accumulation(weights=weights),
        }

    def get_loss_dict(self, outputs: Any, batch: Any, metrics_dict: Any = None) -> dict[str, torch.Tensor]:
        return {"rgb_loss": nn.functional.mse_loss(outputs["rgb"], batch["image"].to(self.device)[..., :3])}

    def get_image_metrics_and_images(self, outputs: Any, batch: Any) -> tuple[dict[str, float], dict[str, Any]]:
        error = nn.functional.mse_loss(outputs["rgb"], batch["image"].to(self.device)[..., :3])
        return {"psnr": float(-10 * torch.log10(error))}, {"img": outputs["rgb"]}


haze = MethodSpecification(
    config=TrainerConfig(
        method_name="test-haze",
        max_num_iterations=1000,
        pipeline=VanillaPipelineConfig(
            datamanager=VanillaDataManagerConfig(
                dataparser=NerfstudioDataParserConfig(), train_num_rays_per_batch=256, eval_num_rays_per_batch=256
            ),
            model=HazeModelConfig(eval_num_rays_per_chunk=1 << 12),
        ),
        optimizers={
            "fields": {
                "optimizer": AdamOptimizerConfig(lr=1e-2, eps=1e-15),
                "scheduler": ExponentialDecaySchedulerConfig(lr_final=1e-3, max_steps=1000),
            }
        },
        viewer=ViewerConfig(num_rays_per_chunk=1 << 12),
        vis="viewer",
    ),
    description="A test of methods that others register.",
)
