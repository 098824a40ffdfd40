"""`difix curate`: pairs from posed scenes, and merging them."""

from __future__ import annotations

import glob
import os
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from difixcli import console
from difixcli.cli.options import (
    ITERATIONS,
    MOST_ITERATIONS,
    SPLIT_DEFAULT,
    SPLIT_RULES,
    JsonOption,
    MethodOption,
)
from difixcli.cli.requests import ReconstructionRequest, filling, working
from difixcli.cli.several import ClusterRequest
from difixcli.cluster.worker import JOB
from difixcli.curation.strategies import DEFAULT_SHIFTS, DEFAULT_STOPS
from difixcli.errors import InputError
from difixcli.runs import check_output

if TYPE_CHECKING:
    from difixcli.cli.curating import Paired


@dataclass(frozen=True)
class CurateRequest(ClusterRequest, ReconstructionRequest):
    """What `difix curate` is asked for: each option of the line by its name, None where it is not given.

    `CurateRequest(["scenes/garden"], strategy="cycle").run()` is `difix curate scenes/garden --strategy cycle`.
    """

    scenes: Annotated[
        list[str] | None,
        typer.Argument(help="Scene folders, globs, or @LIST with one a line; the current folder by default."),
    ] = None
    strategy: Annotated[str, typer.Option(help="sparse, cycle, underfit, cross-camera or clips.")] = "sparse"
    method: MethodOption = "splatfacto"
    split: Annotated[
        list[str] | None,
        typer.Option(help=f"{SPLIT_RULES}; repeatable. {SPLIT_DEFAULT}"),
    ] = None
    shift: Annotated[
        list[str] | None,
        typer.Option(
            help=f"cycle: sideways shift, 2m or a share of the path (default {', '.join(DEFAULT_SHIFTS)}); repeatable."
        ),
    ] = None
    stop: Annotated[
        list[str] | None,
        typer.Option(
            help=f"underfit: share of the schedule to stop at (default {', '.join(DEFAULT_STOPS)}); repeatable."
        ),
    ] = None
    references: Annotated[int, typer.Option(help="Reference photos beside each render.", min=0)] = 3
    test_scene: Annotated[
        list[str] | None,
        typer.Option(help="Scenes kept for testing: names, patterns of names, or as they are given; repeatable."),
    ] = None
    keep: Annotated[
        list[str] | None, typer.Option(help="Keep pairs that are failed, perfect or blurred; repeatable.")
    ] = None
    depth: Annotated[
        bool,
        typer.Option(
            "--depth", help="Also write depth, and which places of the references renders show (float32 .npz)."
        ),
    ] = False
    keep_models: Annotated[bool, typer.Option("--keep-models", help="Keep the reconstructions in SCENE/models.")] = (
        False
    )
    image_format: Annotated[str, typer.Option(help="Of renders and photos: png, webp or jpeg.")] = "png"
    pairs_format: Annotated[str, typer.Option("--format", help="folder, or webdataset for tars.")] = "folder"
    shard: Annotated[str | None, typer.Option(help="Every n-th scene from the i-th on, as 0/4.")] = None
    merge: Annotated[
        bool, typer.Option("--merge", help="Merge the folders of several runs, named instead of scenes, into one.")
    ] = False
    partial: Annotated[
        bool, typer.Option("--partial", help="Merge what is there, and name the scenes that are not.")
    ] = False
    iterations: Annotated[int | None, typer.Option(help=ITERATIONS, min=1, max=MOST_ITERATIONS)] = None

    @cached_property  # a list is read once: it may be a pipe, or change
    def named(self) -> dict[str, str]:
        """The scenes that are named, by name. Raises InputError as `expand_scenes` does."""
        from difixcli.curation.scene_list import expand_scenes

        return expand_scenes(self.scenes or ["."])

    @property
    def tested(self) -> list[str]:
        """Patterns of the names of the scenes that are for testing; one may be named as it is among the scenes, too."""
        by_spec = {os.path.normpath(spec): glob.escape(name) for name, spec in self.named.items()}
        return [by_spec.get(os.path.normpath(one), one) for one in self.test_scene or []]

    @property
    def folders(self) -> list[Path]:
        """With --merge the folders that are named."""
        return [Path(folder) for folder in self.scenes or ["."]]

    def is_of_one(self, named: dict[str, str]) -> bool:
        """Whether it is over one scene, which is refused if it does not fit.

        Of several, one that is not there is reported at the end and stops no other; so is a job of several.
        """
        return len(named) == 1 and JOB not in os.environ and self.max_failed is None

    def _check_device(self) -> None:
        # merging computes nothing, and SLURM's machines may have what this one has not
        if not self.merge and self.cluster != "slurm":
            super()._check_device()

    def _check(self) -> None:
        from difixcli.curation.scene_list import check_test_scenes, parse_shard
        from difixcli.curation.strategies import check_named
        from difixcli.scenes import check_rule, check_scene, scene_root

        if self.merge:
            self._check_merge()
            return
        if self.partial:
            raise InputError("--partial belongs to --merge; name that, or leave it out.")
        named = self.named
        lone = next(iter(named.values())) if self.is_of_one(named) else None
        if lone is not None:
            check_scene(lone)
        for rule in self.split or ():
            check_rule(rule, None if lone is None else scene_root(lone))
        if self.shard is not None:
            parse_shard(self.shard)
        if self.output is not None:
            check_output(self.output, "curate", self.force)
        check_named(self.strategy, self.keep or [], self.image_format, self.pairs_format)
        self._check_stages()
        check_test_scenes(self.tested, named)
        self._check_method()

    def _check_merge(self) -> None:
        """InputError for folders that cannot be merged, and for a cluster, which is asked for in vain."""
        from difixcli.curation.merge import check_merge

        if self.cluster is not None:
            raise InputError("--merge is quick and needs no cluster; leave --cluster out.")
        if self.output is None and len(self.folders) > 1:
            raise InputError("Merging several folders needs one more to write to; name it with --output.")
        check_merge(self.folders, self.partial)

    def _check_stages(self) -> None:
        """InputError for stages that there cannot be, or that the strategy does not make."""
        from difixcli.curation.strategies import parse_stop
        from difixcli.scenes.trajectories import check_trajectory

        for name, users in (
            ("split", ("sparse", "underfit", "cross-camera", "clips")),
            ("shift", ("cycle",)),
            ("stop", ("underfit",)),
        ):
            if self.strategy not in users and (said := self.given(name)):
                raise InputError(
                    f"{said[0]} belongs to {', '.join(users)} and says nothing to {self.strategy}; leave it out."
                )
        for amount in self.shift or ():
            check_trajectory(f"shift:{amount}")
        for share in self.stop or ():
            parse_stop(share)

    def _check_method(self) -> None:
        """InputError for a method or setting that cannot be, as far as that is told cheaply."""
        from difixcli.reconstruction.method_names import check_method_name
        from difixcli.reconstruction.overrides import read_override, read_own_settings

        check_method_name(self.method)
        for setting in self.settings or ():
            read_override(setting)
        read_own_settings(self.settings or (), "cpu")

    def run(self) -> Paired:
        """Make the pairs, or merge them, or go on where it was stopped. Raises InputError as `validate` does, and for
        what turns out to be wrong later; of several scenes those that fail are told in what is returned.
        """
        with working():
            self.validate()
            from difixcli.cli.curating import merged, paired

            return merged(self) if self.merge else paired(self)


@console.handled
@filling(CurateRequest)
def curate(request: CurateRequest, as_json: JsonOption = False) -> None:
    """Make (render, photo) pairs from posed scenes, to train a fixer on.

    Any number of processes may be given the same line at the same time: they share the scenes.
    """
    finish_pairs(request.run(), as_json, request.max_failed)


def finish_pairs(made: Paired, as_json: bool, max_failed: int | None = None) -> None:
    """Print what was curated.

    Where some of several scenes failed, the exit code is 3, where more than `max_failed` did, 2. Where nobody says how
    many may, and the only one did, it is 2, or 1 through a fault of ours.
    """
    failed, left = made.failed, made.left
    if not failed and not left:
        console.finish(made.told(), as_json, *made.tables())
        return
    alone = made.own is not None and len(made.own) == 1
    if not failed:
        message = f"{len(left)} of the scenes were not finished; run the same line again."
    elif len(failed) == 1 and alone:
        message = next(iter(failed.values())).message
    else:
        name, failure = next(iter(failed.items()))
        message = f"{len(failed)} of the scenes failed, the others are whole. {name}: {failure.message}"
    console.finish({**made.told(), "error": message}, as_json, *made.tables())
    for name, failure in list(failed.items())[1:]:
        console.warn(f"Scene {name} failed: {failure.message}")
    faults = [failure.fault for failure in failed.values() if failure.fault]
    for fault in faults[:1]:
        console.say(f"{fault}This is a fault in difix. Please report it with the lines above.")
    console.fail(message)
    if alone and failed and max_failed is None:
        raise typer.Exit(1 if faults else 2)
    raise typer.Exit(2 if max_failed is not None and len(failed) > max_failed else 3)
