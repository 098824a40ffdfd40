"""What a folder of pairs holds: its figures, and the manifest and page that are written of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from difixcli.curation.manifest import StageSummary, scene_records, summaries, write_manifest
from difixcli.curation.sheets import write_index
from difixcli.curation.strategies import FILTERS


@dataclass(frozen=True)
class Failure:
    """Why a scene could not be finished. `fault` is a traceback where the scene is not to blame."""

    message: str
    fault: str = ""


@dataclass(frozen=True)
class Curated:
    """What a folder of pairs holds: the figures of its finished stages, the scenes that failed, by name, and the names
    of those that are still to be made.
    """

    stages: Sequence[StageSummary]
    failed: Mapping[str, Failure]
    left: Sequence[str] = ()

    def results(self) -> dict[str, Any]:
        """The figures for a run's record."""
        pairs = sum(stage.pairs for stage in self.stages)
        return {
            "pairs": pairs,
            "train": sum(stage.pairs for stage in self.stages if not stage.test),
            "test": sum(stage.pairs for stage in self.stages if stage.test),
            "psnr": sum(stage.psnr * stage.pairs for stage in self.stages) / max(pairs, 1),
            "ssim": sum(stage.ssim * stage.pairs for stage in self.stages) / max(pairs, 1),
            "dropped": {name: sum(stage.dropped.get(name, 0) for stage in self.stages) for name in FILTERS},
            "failed": {name: failure.message for name, failure in self.failed.items()},
            "left": list(self.left),
        }


def finish(folder: Path, failed: Mapping[str, Failure]) -> Curated:
    """Write the manifest (tars need none) and the page of contact sheets of everything finished in `folder`."""
    homes = scene_records(folder)
    stages = summaries(homes)
    if not any(record.format == "webdataset" for record in homes.values()):
        write_manifest(folder)
    write_index(folder, stages, {name: failure.message for name, failure in failed.items()})
    return Curated(stages, failed)
