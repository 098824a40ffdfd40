"""The driver of `difix curate`: scenes × strategy → pairs on disk and a manifest, resumable by stage."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

from difixcli.curation.cycle import cycle
from difixcli.curation.pairs import Pair, pair_id, write_manifest, write_pair
from difixcli.curation.sparse import sparse
from difixcli.errors import InputError
from difixcli.reconstruction import Reconstruction, default_iterations
from difixcli.runs import Run, file_name, write_json
from difixcli.scenes import make_split
from difixcli.scenes.scene import Scene

STRATEGIES = ("sparse", "cycle")
Progress = Callable[[str, int], AbstractContextManager[Callable[[int], None]]]


@dataclass(frozen=True)
class Recipe:
    """How every scene's pairs are made."""

    strategy: str
    method: str
    preset: str
    device: str
    iterations: int | None  # None: the preset's default for the method
    splits: Sequence[str]  # sparse: one reconstruction each
    shifts: Sequence[str]  # cycle: one round trip each
    views: int
    seed: int
    overrides: Sequence[str] = ()


def curate(
    scenes: Sequence[Scene], recipe: Recipe, run: Run, test_scenes: Sequence[str], progress: Progress
) -> dict[str, Any]:
    """Make the pairs of all scenes into the run's folder and return the summary.

    Finished stages (a scene's split or shift) are kept when the run is resumed; a stage that was cut off is made
    anew. Raises InputError for an unknown strategy, two scenes of one name, or test scenes that are not there.
    """
    if recipe.strategy not in STRATEGIES:
        raise InputError(f"There is no strategy {recipe.strategy}; choose one of {', '.join(STRATEGIES)}.")
    names = [scene.name for scene in scenes]
    for name in set(names):
        if names.count(name) > 1:
            raise InputError(f"Two scenes are called {name}; rename one folder, or curate them into two outputs.")
    if missing := sorted(set(test_scenes) - set(names)):
        raise InputError(f"--test-scene names {missing[0]}, which is none of {', '.join(names)}.")
    for scene in scenes:
        for choice in recipe.splits if recipe.strategy == "sparse" else recipe.shifts:
            _stage(scene, choice, recipe, run, progress)
    manifest = write_manifest(run.folder, test_scenes)
    pairs = [*manifest["train"].values(), *manifest["test"].values()]
    return {
        "pairs": len(pairs),
        "train": len(manifest["train"]),
        "test": len(manifest["test"]),
        "psnr": sum(p["psnr"] for p in pairs) / max(len(pairs), 1),
        "ssim": sum(p["ssim"] for p in pairs) / max(len(pairs), 1),
        "manifest": str(run.folder / "data.json"),
    }


def _stage(scene: Scene, choice: str, recipe: Recipe, run: Run, progress: Progress) -> None:
    """One reconstruction (or round trip) of one scene, skipped when its `pairs.json` is there."""
    home = run.folder / file_name(scene.name) / file_name(f"{recipe.strategy}-{choice}")
    if (home / "pairs.json").is_file():
        return
    shutil.rmtree(home, ignore_errors=True)
    iterations = recipe.iterations or default_iterations(recipe.method, recipe.preset)
    work = home / "reconstruction"

    def build(stage_scene: Scene, train: Sequence[int], stage: str) -> Reconstruction:
        begun = time.monotonic()
        reconstruction = Reconstruction.create(
            stage_scene,
            train,
            method=recipe.method,
            folder=work / stage,
            preset=recipe.preset,
            device=recipe.device,
            iterations=iterations,
            overrides=recipe.overrides,
            seed=recipe.seed,
        )
        with progress(f"{scene.name}: reconstruct from {stage}", iterations) as update:
            reconstruction.train(iterations, update)
        run.time("reconstruction", time.monotonic() - begun)
        return reconstruction

    pairs: Iterator[Pair]
    if recipe.strategy == "sparse":
        split = make_split(scene, choice)
        pairs, total = sparse(scene, split, build, recipe.views), len(split.test)
    else:
        pairs, total = cycle(scene, choice, build, recipe.views, home / "shifted"), len(scene.frames)
    made = {"strategy": recipe.strategy, "method": recipe.method, "iterations": iterations}
    entries = {}
    with progress(f"{scene.name}: pairs", total) as update:
        for done, pair in enumerate(pairs, start=1):
            entries[pair_id(home, scene, pair)] = write_pair(home, scene, pair, made)
            update(done)
    shutil.rmtree(work, ignore_errors=True)
    write_json(home / "pairs.json", entries)
    run.save()
