"""nerfstudio's method registry, plug-ins included."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING

from difixcli.errors import InputError, unknown
from difixcli.reconstruction.patches import quiet, stacks_without_source
from difixcli.torchvision_cure import cure

if TYPE_CHECKING:
    from nerfstudio.engine.trainer import TrainerConfig


def known_methods() -> list[str]:
    """Names of the methods that can train here: nerfstudio's and those of installed plug-ins, sorted."""
    return sorted(_registry())


def method_config(name: str) -> TrainerConfig:
    """A fresh copy of the registered configuration called `name`.

    Raises InputError for a name that is not registered (with the nearest ones), for a method that nerfstudio lists but
    whose package is not installed, and for one that does not learn from posed photos.
    """
    methods = _registry()
    if name not in methods:
        with quiet():
            from nerfstudio.configs.method_configs import all_methods
        if name in all_methods:
            package = getattr(getattr(all_methods[name], "method", None), "pip_package", None)
            how = f"pip install {package}" if package else "see its page on docs.nerf.studio"
            raise InputError(f"The method {name} is a plug-in that is not installed; install it ({how}).")
        raise unknown("method", name, methods, "ns-train --help lists them all.")
    config = copy.deepcopy(methods[name])
    if not hasattr(config.pipeline.datamanager, "dataparser"):
        raise InputError(f"The method {name} does not learn from posed photos; choose another, such as nerfacto.")
    return config


def is_splat(config: TrainerConfig) -> bool:
    """Whether a method's model is nerfstudio's splatfacto or derives from it: its Gaussians are what others read."""
    from nerfstudio.models.splatfacto import SplatfactoModelConfig

    return isinstance(config.pipeline.model, SplatfactoModelConfig)


def has_gaussians(config: TrainerConfig) -> bool:
    """Whether a method's model consists of Gaussians, splatfacto's or others that begin with seed points.

    They keep them where splatfacto does, in `gauss_params`: a class that never says this name has none.
    """
    if is_splat(config):
        return True
    model = config.pipeline.model._target
    members = [member for base in getattr(model, "__mro__", ()) for member in vars(base).values()]
    functions = [member.fget if isinstance(member, property) else member for member in members]
    codes = [code for function in functions if (code := getattr(function, "__code__", None)) is not None]
    return any("gauss_params" in code.co_names for code in codes)


def draws_images(config: TrainerConfig) -> bool:
    """Whether a method trains on one whole image a step rather than on rays of many: its datamanager decides."""
    return not hasattr(config.pipeline.datamanager, "train_num_rays_per_batch")


def known_packages() -> frozenset[str]:
    """The packages that define the methods which can train here."""
    configs = _registry().values()
    parts = [
        part for config in configs for part in (config.pipeline, config.pipeline.datamanager, config.pipeline.model)
    ]
    return frozenset(type(part).__module__.split(".")[0] for part in parts) - {"builtins"}


def _registry() -> dict[str, TrainerConfig]:
    cure()
    with quiet(), stacks_without_source():
        from nerfstudio.configs.method_configs import all_methods
        from nerfstudio.engine.trainer import TrainerConfig

    # What is not installed stands in the registry as a dummy that prints instructions.
    return {name: config for name, config in all_methods.items() if isinstance(config, TrainerConfig)}
