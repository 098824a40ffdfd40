"""How a strategy gets its reconstructions: trained to a given step, or taken up where an earlier process left them."""

from __future__ import annotations

import gc
import os
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path

from difixcli.errors import DamagedError
from difixcli.reconstruction import Reconstruction
from difixcli.reconstruction.run_files import CHECKPOINTS, MODELS, RECIPE
from difixcli.reconstruction.run_folder import RunFolder
from difixcli.runs import Progress
from difixcli.scenes.scene import Scene


@dataclass
class Build:
    """Trains one scene's reconstructions in `folder`, a run folder for each name.

    `iterations` is the length of the method's whole schedule. `say` is given what a new reconstruction has to say of
    itself (its `notes` and `warnings`), each line once. `seconds` adds up what setting up and training took in this
    process.
    """

    folder: Path
    method: str
    preset: str
    device: str
    iterations: int
    overrides: Sequence[str]
    seed: int
    progress: Progress
    say: Callable[[str], None]
    seconds: float = 0.0
    _said: set[str] = field(default_factory=set)

    def __call__(self, scene: Scene, train: Sequence[int], name: str, iterations: int | None = None) -> Reconstruction:
        """The reconstruction `name` from the frames `train`, trained for `iterations` of the schedule (None: all).

        One that has been trained so far is loaded, and one that has been trained less far is trained on. One without a
        whole checkpoint, of other photos or trained farther begins anew, which is said. What is returned always comes
        from the checkpoint, so that a run that was killed renders the very same bytes as one that was not. Raises what
        `Reconstruction.create` raises, and InputError for one that cannot be read at the moment.
        """
        begun = time.monotonic()
        gc.collect()  # methods hold themselves in cycles, and a large one's memory is wanted for the next
        folder = self.folder / name
        target = self.iterations if iterations is None else iterations
        reconstruction = self._taken_up(folder, scene, train, target)
        if reconstruction is None:
            shutil.rmtree(folder, ignore_errors=True)
            reconstruction = Reconstruction.create(
                scene,
                train,
                method=self.method,
                folder=folder,
                preset=self.preset,
                device=self.device,
                iterations=self.iterations,
                overrides=self.overrides,
                seed=self.seed,
            )
            self._tell(scene, reconstruction)
        if reconstruction.step < target:
            left = target - reconstruction.step
            with self.progress(f"{scene.name}: reconstruct {name}", left) as update:
                reconstruction.train_to(target, update)
            reconstruction.go_back()
        self.seconds += time.monotonic() - begun
        return reconstruction

    def _tell(self, scene: Scene, made: Reconstruction) -> None:
        for line in (*made.notes, *(f"Warning: {warning}" for warning in made.warnings)):
            if line not in self._said:
                self._said.add(line)
                self.say(f"{scene.name}: {line}")

    def _taken_up(self, folder: Path, scene: Scene, train: Sequence[int], target: int) -> Reconstruction | None:
        """What an earlier process has trained in `folder`, if it is whole, of these very frames and not beyond
        `target`; if it is not, why is said.
        """
        if not folder.exists():
            return None
        try:
            why = _unlike(folder, scene, train)
            if not why:
                found = Reconstruction.load(folder, scene, train, self.device)
                if found.step <= target:
                    return found
                why = f"it was trained beyond {target} iterations"
        except DamagedError:
            why = "it is damaged, or of another version"
        self.say(f"{scene.name}: {folder.name} is reconstructed anew: {why}.")
        return None


def _unlike(folder: Path, scene: Scene, train: Sequence[int]) -> str:
    """Why what was trained in a folder is not what is wanted, as far as it is told without its checkpoint."""
    try:
        files = os.listdir(folder / MODELS)  # unlike glob, it hides no error
    except FileNotFoundError:
        files = []
    if not (folder / RECIPE).exists() or not any(fnmatchcase(name, CHECKPOINTS) for name in files):
        return "it was stopped before its first checkpoint"
    held = RunFolder(folder).read_recipe()
    if (held.frames, held.train) != ([frame.name for frame in scene.frames], sorted(train)):
        return "it was trained on other photos"
    return ""
