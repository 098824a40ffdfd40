"""What stands in a run's folder, which is a normal nerfstudio run.

config.yml                          for ns-eval, ns-viewer, ns-export; never read by us (its loader runs code)
dataparser_transforms.json          the identity: the data set is in the model's world
nerfstudio_models/step-N.ckpt       the latest checkpoint
scene/                              its photos as a pinhole nerfstudio data set in the model's world, which is the
                                    scene's normalised one unless a field was begun from another run
reconstruction.json                 what it was created with; loading rebuilds the method from this
seed_rays.npz                       with radiance fields on the cpu preset: what the seed points say about depth
"""

from __future__ import annotations

import copy
import dataclasses
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from difixcli.errors import DamagedError
from difixcli.reconstruction.checkpoints import read_checkpoint, write_checkpoint
from difixcli.reconstruction.configuration import Recipe
from difixcli.reconstruction.run_files import RECIPE, latest_checkpoint
from difixcli.runs import atomic, read_json, write_json
from difixcli.shapes import built

if TYPE_CHECKING:
    from difixcli.reconstruction.seed_depth import SeedRays


class RunFolder:
    """The files of one run in the folder `path` (made absolute); nothing is read or written before it is asked for."""

    def __init__(self, path: Path) -> None:
        self.path = Path(path).expanduser().absolute()
        self._described = False

    @property
    def data(self) -> Path:
        """The folder of the training data."""
        return self.path / "scene"

    def read_recipe(self) -> Recipe:
        """What the run was created with; InputError for a folder that holds no run, or another version's."""
        path = self.path / RECIPE
        recipe = built(Recipe, read_json(path), path, "it was written by another version: train again")
        for world in (recipe.world, recipe.source_to_world):
            if world is not None and [len(row) for row in world] != [4] * 4:
                raise DamagedError(f"{path} has a world that is no matrix of 4 by 4 numbers; restore it.")
        return recipe

    def write_recipe(self, recipe: Recipe) -> None:
        """Write what the run was created with: from here on the folder holds a run."""
        write_json(self.path / RECIPE, asdict(recipe))

    def write_seed_rays(self, rays: SeedRays) -> None:
        """Keep what the seed points say about depth."""
        rays.save(self.path / "seed_rays.npz")

    def read_seed_rays(self) -> SeedRays | None:
        """What the seed points say about depth; None where the run keeps nothing of it."""
        from difixcli.reconstruction.seed_depth import SeedRays

        path = self.path / "seed_rays.npz"
        return SeedRays.load(path) if path.is_file() else None

    def latest_checkpoint(self) -> Path:
        """The newest checkpoint; InputError when there is none."""
        return latest_checkpoint(self.path)

    def read_state(self) -> dict[str, Any]:
        """What the newest checkpoint holds; InputError when there is none, or it is damaged."""
        return read_checkpoint(self.latest_checkpoint())

    def write_state(self, state: dict[str, Any], config: Any, manager: Any) -> Path:
        """Write a checkpoint, whole or not at all, remove older ones, and return its path.

        `config` and `manager` are as in `describe`, which is done again where the folder was moved or copied since.
        """
        if not self._described:
            self.describe(config, manager)
        target = self.path / config.relative_model_dir / f"step-{state['step']:09d}.ckpt"
        write_checkpoint(state, target, self.path)
        return target

    def describe(self, config: Any, manager: Any) -> None:
        """Write what nerfstudio's own tools open the run by, from its configuration and its photos' datamanager."""
        import yaml

        from difixcli.reconstruction.opening import openable

        manager.train_dataparser_outputs.save_dataparser_transform(self.path / "dataparser_transforms.json")
        written = openable(config) if config.machine.device_type == "cpu" else copy.copy(config)
        written.pipeline = _as_written(written.pipeline)
        # ns-viewer keeps its log here, and makes no folder for it
        config.get_base_dir().mkdir(parents=True, exist_ok=True)
        with atomic(self.path / "config.yml") as temporary:
            temporary.write_text(yaml.dump(written), encoding="utf-8")
        self._described = True


def _as_written(config: Any) -> Any:
    """A copy of a configuration with plain values where nerfstudio's managers have left tensors in it: their YAML
    form would be code.
    """
    changed = {}
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if isinstance(value, Tensor):
            changed[field.name] = value.tolist()
        elif dataclasses.is_dataclass(value) and not isinstance(value, type):
            changed[field.name] = _as_written(value)
    written = copy.copy(config)
    for name, value in changed.items():
        setattr(written, name, value)
    return written
