"""A splat method as a third party would publish it: it draws whole images, and is none of splatfacto's children.

Gaussians are isotropic, of one colour each, and grow by gsplat's strategy.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from gsplat.rendering import rasterization
from gsplat.strategy import DefaultStrategy
from nerfstudio.cameras.cameras import Cameras
from nerfstudio.configs.base_config import ViewerConfig
from nerfstudio.data.datamanagers.full_images_datamanager import FullImageDatamanagerConfig
from nerfstudio.data.dataparsers.nerfstudio_dataparser import NerfstudioDataParserConfig
from nerfstudio.engine.callbacks import TrainingCallback, TrainingCallbackAttributes, TrainingCallbackLocation
from nerfstudio.engine.optimizers import AdamOptimizerConfig
from nerfstudio.engine.trainer import TrainerConfig
from nerfstudio.models.base_model import Model, ModelConfig
from nerfstudio.models.splatfacto import get_viewmat
from nerfstudio.pipelines.base_pipeline import VanillaPipelineConfig
from nerfstudio.plugins.types import MethodSpecification
from torch import nn

NAMES = ("means", "scales", "quats", "colors", "opacities")


@dataclass
class BlobsModelConfig(ModelConfig):
    _target: type = field(default_factory=lambda: BlobsModel)
    size: float = 0.1


class BlobsModel(Model):
    config: BlobsModelConfig

    def __init__(self, *args: Any, seed_points: Any = None, **kwargs: Any) -> None:
        self.seed_points = seed_points
        super().__init__(*args, **kwargs)

    def populate_modules(self) -> None:
        means, colors = (torch.zeros(1, 3), torch.zeros(1, 3)) if self.seed_points is None else self.seed_points
        count = len(means)
        quats = torch.zeros(count, 4)
        quats[:, 0] = 1
        held = {
            "means": means.float(),
            "scales": torch.full((count, 3), self.config.size).log(),
            "quats": quats,
            "colors": torch.logit(colors.float() / 255, eps=0.02),
            "opacities": torch.full((count,), 2.0),
        }
        self.gauss_params = nn.ParameterDict({name: nn.Parameter(value.clone()) for name, value in held.items()})
        self.strategy = DefaultStrategy(refine_start_iter=4, refine_every=5, grow_grad2d=1e-9, verbose=True)
        self.strategy_state = self.strategy.initialize_state(scene_scale=1.0)

    def load_state_dict(self, state: Any, **kwargs: Any) -> Any:
        for name in NAMES:
            held = state[f"gauss_params.{name}"]
            self.gauss_params[name] = nn.Parameter(torch.empty_like(held, device=self.device))
        return super().load_state_dict(state, **kwargs)

    def get_param_groups(self) -> dict[str, list[nn.Parameter]]:
        return {name: [self.gauss_params[name]] for name in NAMES}

    def get_training_callbacks(self, attributes: TrainingCallbackAttributes) -> list[TrainingCallback]:
        optimizers = attributes.optimizers.optimizers

        def grow(step: int) -> None:
            self.strategy.step_post_backward(
                self.gauss_params, optimizers, self.strategy_state, step, self.info, packed=False
            )

        return [TrainingCallback([TrainingCallbackLocation.AFTER_TRAIN_ITERATION], grow, update_every_num_iters=1)]

    def get_outputs(self, camera: Cameras) -> dict[str, torch.Tensor]:
        held = self.gauss_params
        image, alpha, self.info = rasterization(
            held["means"],
            held["quats"],
            held["scales"].mean(dim=-1, keepdim=True).expand(-1, 3).exp(),
            torch.sigmoid(held["opacities"]),
            torch.sigmoid(held["colors"]),
            get_viewmat(camera.camera_to_worlds),
            camera.get_intrinsics_matrices(),
            int(camera.width.item()),
            int(camera.height.item()),
            packed=False,
            render_mode="RGB+ED",
        )
        if self.training:
            optimizers: dict[str, Any] = {}
            self.strategy.step_pre_backward(held, optimizers, self.strategy_state, 0, self.info)
        return {"rgb": image[0, ..., :3], "depth": image[0, ..., 3:], "accumulation": alpha[0]}

    def get_outputs_for_camera(self, camera: Cameras, obb_box: Any = None) -> dict[str, torch.Tensor]:
        return self.get_outputs(camera.to(self.device))

    def get_loss_dict(self, outputs: Any, batch: Any, metrics_dict: Any = None) -> dict[str, torch.Tensor]:
        return {"rgb_loss": nn.functional.l1_loss(outputs["rgb"], batch["image"].to(self.device)[..., :3])}

    def get_image_metrics_and_images(self, outputs: Any, batch: Any) -> tuple[dict[str, float], dict[str, Any]]:
        error = nn.functional.mse_loss(outputs["rgb"], batch["image"].to(self.device)[..., :3])
        return {"psnr": float(-10 * torch.log10(error))}, {"img": outputs["rgb"]}


blobs = MethodSpecification(
    config=TrainerConfig(
        method_name="test-blobs",
        max_num_iterations=1000,
        pipeline=VanillaPipelineConfig(
            datamanager=FullImageDatamanagerConfig(dataparser=NerfstudioDataParserConfig()), model=BlobsModelConfig()
        ),
        optimizers={name: {"optimizer": AdamOptimizerConfig(lr=1e-2, eps=1e-15), "scheduler": None} for name in NAMES},
        viewer=ViewerConfig(num_rays_per_chunk=1 << 12),
        vis="viewer",
    ),
    description="A test of splats that others register.",
)
