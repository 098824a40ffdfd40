"""nerfstudio's method registry, plug-ins included."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING

from difixcli.errors import InputError, unknown
from difixcli.reconstruction.patches import quiet
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
        raise unknown("method", name, methods)
    config = copy.deepcopy(methods[name])
    if not hasattr(config.pipeline.datamanager, "dataparser"):
        raise InputError(f"The method {name} does not learn from posed photos; choose another, such as nerfacto.")
    return config


def known_packages() -> frozenset[str]:
    """The packages that define the methods which can train here."""
    configs = _registry().values()
    parts = [
        part for config in configs for part in (config.pipeline, config.pipeline.datamanager, config.pipeline.model)
    ]
    return frozenset(type(part).__module__.split(".")[0] for part in parts) - {"builtins"}


def _registry() -> dict[str, TrainerConfig]:
    cure()
    with quiet():
        from nerfstudio.configs.method_configs import all_methods
        from nerfstudio.engine.trainer import TrainerConfig

    # What is not installed stands in the registry as a dummy that prints instructions.
    return {name: config for name, config in all_methods.items() if isinstance(config, TrainerConfig)}
