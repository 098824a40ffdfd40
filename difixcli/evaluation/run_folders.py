"""What a distilled run's folder offers to whoever measures it: variants, truth, masks, split, poses, rounds."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from difixcli.errors import InputError
from difixcli.evaluation.pictures import image_files, image_size
from difixcli.runs import read_json
from difixcli.scenes.loading import load_scene, natural_order, scene_name
from difixcli.scenes.scene import Scene, Split
from difixcli.scenes.splits import make_split
from difixcli.shapes import Each
from difixcli.wording import counted

TRUTH = "truth"
MASK = "mask"
_ORDER = (
    "plain",
    "points",
    "eft",
    "vldm",
    "mean",
    "fixed",
    "low_resolution",
    "supersampled",
    "bicubic",
    "per_image",
    "distilled",
    "enhanced",
)  # the order of a table; other variants come after
_MOMENT = r"\d{4}-\d\d-\d\d_\d{6}"  # of which difix makes a run's folder unless it is told another
_CHOICES = frozenset(
    {"method", "preset", "kind", "fixer", "start", "seed", "references", "trust", "targets", "overrides"}
)
_RECORD = {"command?": str, "arguments?": dict, "timings?": Each(float)}
_VIEW = {
    "figures?": dict,
    "target?": str,
    "files?": Each(str),
    "terms?": Each(float),
    "dropped?": (None, str),
}
_ROUND = {"round": int, "views": [_VIEW], "guard?": dict}
_NOT_A_FIGURE = (
    *("round", "schedule", "views", "camera_to_world", "width", "height"),
    *("share", "support", "accepted", "kept", "fresh"),  # of the schedule, a verdict, or the same as mean confidence
)


def is_run(path: Path) -> bool:
    """Whether a folder is a run with renders (or that should have them) rather than a folder of images."""
    record = path / "run.json"
    if not record.is_file():
        return (path / "renders").is_dir()
    held = read_json(record)
    if isinstance(held, dict) and held.get("command") == "enhance":
        return False  # what an enhanced run has in renders/ are its frames before the fix
    return (path / "renders").is_dir() or (isinstance(held, dict) and held.get("command") == "distill")


@dataclass(frozen=True)
class RunFolder:
    """A run that is to be measured. `variants` maps names to folders of renders, in the order of a table; `record` is
    its run.json, empty where it has none.
    """

    folder: Path
    record: Mapping[str, Any]
    variants: Mapping[str, Path]

    @classmethod
    def read(cls, folder: Path) -> RunFolder:
        """Look at a run; InputError when it has no renders yet, or no truth to measure them against."""
        renders = folder / "renders"
        if not (renders / TRUTH).is_dir() and (folder / "path").is_dir():
            raise InputError(
                f"The views of {folder} are ones that nobody photographed, so there is no truth to measure against; "
                "its pictures are in path/. Hold photos out (--split) to have figures."
            )
        if not (renders / TRUTH).is_dir():
            raise InputError(f"{folder} has no renders/{TRUTH}; finish the run first, or give two folders of images.")
        names = [
            path.name
            for path in renders.iterdir()
            if path.is_dir() and path.name not in (TRUTH, MASK) and not path.name.startswith(".")
        ]
        if not names:
            raise InputError(f"{renders} holds no renders beside {TRUTH}; finish the run first.")
        names.sort(key=lambda name: (_ORDER.index(name) if name in _ORDER else len(_ORDER), name))
        file = folder / "run.json"
        record = read_json(file, _RECORD) if file.is_file() else {}
        return cls(folder, record, {name: renders / name for name in names})

    @property
    def name(self) -> str:
        return self.folder.absolute().name

    @property
    def truth(self) -> Path:
        return self.folder / "renders" / TRUTH

    @property
    def masks(self) -> Path:
        """Where the photos' masks are, for views that have one; the folder need not exist."""
        return self.folder / "renders" / MASK

    @property
    def arguments(self) -> Mapping[str, Any]:
        return self.record.get("arguments", {})

    @property
    def split_rule(self) -> str | None:
        rule = self.arguments.get("split")
        return rule if isinstance(rule, str) else None

    @property
    def scene_spec(self) -> str | None:
        spec = self.arguments.get("scene")
        return spec if isinstance(spec, str) else None

    @property
    def scene_name(self) -> str:
        spec = self.scene_spec
        return self.name if spec is None else scene_name(spec)

    @cached_property
    def scene_and_split(self) -> tuple[Scene, Split]:
        """The scene it was made from, at the size of its renders, and which frames trained and which were rendered.

        InputError when the run does not say which, when it is not there any more, or when its test views by now are
        others than those that were rendered.
        """
        if self.scene_spec is None or self.split_rule is None:
            raise InputError(f"{self.folder} has no run.json that names its scene and split; its poses are not known.")
        if not self.scene_spec.startswith("sample:") and not Path(self.scene_spec).exists():
            raise InputError(
                f"{self.folder} was made from {self.scene_spec}, which is not there; its poses are needed."
            )
        scene = load_scene(self.scene_spec, max(max(image_size(path)) for path in image_files(self.truth)))
        split = make_split(scene, self.split_rule)
        rendered = {path.stem for path in image_files(self.truth)}
        wanted = {scene.file_names[i] for i in split.test}
        if rendered != wanted:
            odd = sorted(rendered ^ wanted)
            raise InputError(
                f"{self.truth} does not hold the test views of {scene.name} under {self.split_rule} (see {odd[0]}); "
                "the scene or its split has changed since, so run it again."
            )
        return scene, split

    def sequences(self) -> list[list[str]]:
        """The views' names in the order of the path: one list for each camera where poses are known, else one."""
        try:
            scene, split = self.scene_and_split
        except InputError:
            return [[path.stem for path in sorted(image_files(self.truth), key=lambda one: natural_order(one.stem))]]
        paths: dict[str, list[str]] = {}
        for i in split.test:
            paths.setdefault(scene.frames[i].camera_id, []).append(scene.file_names[i])
        return list(paths.values())

    def proposals(self) -> list[dict[str, Any]]:
        """What the last accepted round trained on or dropped, a view each, where its pictures are still there.

        `round` is its number, `name` the view's, `dropped` why it was not trained on, or None. `picture` is its file;
        `render`, `weight` (grey) and `marks` (see `frames.marks`) are files or None. A pixel counts `most` times its
        grey, and one of a photo once.
        """
        files = [file for file in self.folder.glob("rounds/*/round.json") if file.parent.name.isdigit()]
        rounds = [read_json(file, _ROUND) for file in sorted(files, key=lambda file: int(file.parent.name))]
        accepted = [one for one in rounds if one.get("accepted")]
        if not accepted:
            return []
        held = accepted[-1]
        told = self.arguments.get("terms")
        told = told if isinstance(told, dict) else {}
        found = []
        for view in held["views"]:
            paths = {kind: self.folder / "rounds" / file for kind, file in view.get("files", {}).items()}
            there = {kind: str(path) for kind, path in paths.items() if path.is_file()}
            if "target" not in there or "target" not in view:
                continue
            # a film's terms are larger by what its pixels weigh at most
            most = [value / told[name] for name, value in view.get("terms", {}).items() if _counts(told.get(name))]
            found.append(
                {
                    "round": held["round"],
                    "name": view["target"],
                    "dropped": view.get("dropped"),
                    "picture": there["target"],
                    "render": there.get("render"),
                    "weight": there.get("confidence"),
                    "marks": there.get("target.confidence"),
                    "most": most[0] if most else 1.0,
                }
            )
        return found

    def rounds(self) -> dict[str, list[list[float]]]:
        """What changed from round to round: {name: [[round, value], …]}.

        Every number that a `rounds/NN/round.json` holds of the round or of its views (then their mean), what the guard
        found, and the seconds that training each took.
        """
        series: dict[str, list[list[float]]] = {}
        for file in sorted(self.folder.glob("rounds/*/round.json")):
            if "-" in file.parent.name:  # a round that was taken back is no part of the run
                continue
            held = read_json(file, _ROUND)
            figures = {key: [value] for key, value in held.items() if key not in _NOT_A_FIGURE}
            if guard := held.get("guard"):
                figures["agreement with photos"] = [guard.get("gain")]
            for view in held["views"]:
                noted = {**view, **view.get("figures", {})}
                for key, value in noted.items():
                    if key not in _NOT_A_FIGURE:
                        figures.setdefault(key, []).append(value)
            for key, values in figures.items():
                numbers = [float(v) for v in values if isinstance(v, float) or (isinstance(v, int) and abs(v) < 2**53)]
                numbers = [v for v in numbers if math.isfinite(v)]
                if numbers:
                    name = key.replace("_", " ")
                    series.setdefault(name, []).append([held["round"], sum(numbers) / len(numbers)])
        for key, value in self.record.get("timings", {}).items():
            if number := re.fullmatch(r"round (\d{1,9})/.*: train", key):
                series.setdefault("seconds of training", []).append([int(number[1]), float(value)])
        told = {name: points for name, points in series.items() if name != "dropped" or any(y for _, y in points)}
        return {name: sorted(points) for name, points in told.items()}


def row_names(runs: Sequence[RunFolder]) -> list[str]:
    """What to call each of several runs in one table; unique among the runs of one scene.

    Runs of one scene go by their folders, unless those are the moments at which they began, as difix names them. All
    others go by what differs in how they were made (method, fixer, seed …), so that the same way of making one has the
    same name in every scene; by nothing (an empty name) where nothing differs. What was not asked for is not said.
    """
    folders = _shortest_apart([run.folder.absolute() for run in runs])
    if len({run.scene_spec for run in runs}) == 1 and not all(re.fullmatch(_MOMENT, run.name) for run in runs):
        return folders
    made = [_made(run.arguments) for run in runs]
    said: list[list[str]] = [[] for _ in runs]
    for key in dict.fromkeys(key for one in made for key in one):
        words = [one.get(key, "") for one in made]
        if key in _CHOICES:
            differs = [len(set(words)) > 1] * len(runs)
        else:  # what follows from other choices is said only where these do not tell runs apart
            before = [tuple(row) for row in said]
            differs = [len({w for w, b in zip(words, before, strict=True) if b == row}) > 1 for row in before]
        for row, word, wanted in zip(said, words, differs, strict=True):
            if wanted and word:
                row.append(word)
    names = [", ".join(row) for row in said]
    placed = [(run.scene_spec, name) for run, name in zip(runs, names, strict=True)]
    return [
        f"{name}, {folder}".removeprefix(", ") if placed.count(place) > 1 else name
        for name, folder, place in zip(names, folders, placed, strict=True)
    ]


def _made(arguments: Mapping[str, Any]) -> dict[str, str]:
    """How a run was made, by what a person chooses, in words; nothing for what was left at its default of none.

    A scene's own size and split are no choices between runs: those of one scene have the same, or cannot be compared.
    """
    said: dict[str, str] = {}
    schedule = arguments.get("schedule")
    schedule = schedule if isinstance(schedule, dict) else {}
    for key in ("method", "preset"):
        if isinstance(value := arguments.get(key), str):
            said[key] = value if key == "method" else f"preset {value}"
    if kind := schedule.get("kind"):
        said["kind"] = "no rounds" if kind == "none" else str(kind)
    if isinstance(value := arguments.get("fixer"), str):
        # two folders of one name, as in a/fixer and b/fixer, are told apart by the one that holds them
        said["fixer"] = f"fixer {'/'.join(Path(value).parts[-2:])}"
    if arguments.get("start") is not None:
        said["start"] = "continued"  # from what, differs from scene to scene
    for key, word in (("seed", "seed"), ("references", "references"), ("trust", "trust")):
        if (value := arguments.get(key)) is not None:
            said[key] = f"{word} {value}"
    for key in ("targets", "overrides"):
        if isinstance(value := arguments.get(key), list) and value and value != ["test"]:
            said[key] = " ".join(str(item).rsplit("/", 1)[-1].removeprefix("pipeline.model.") for item in value)
    if schedule.get("kind") != "none" and schedule.get("rounds") is not None:
        said["rounds"] = counted(schedule["rounds"], "round")
    if all(isinstance(schedule.get(key), int) for key in ("photos", "rounds", "every")):
        said["iterations"] = f"{schedule['photos'] + schedule['rounds'] * schedule['every']} iterations"
    if isinstance(share := schedule.get("share"), float) and share:
        said["share"] = f"share {share:g}"
    if (step := schedule.get("step")) is not None:
        said["step"] = f"step {step:g}"
    if isinstance(seeking := arguments.get("seeking"), dict):
        words = [
            f"seek {seeking.get('seek')}",
            f"{seeking.get('steps')} denoising steps",
            f"reuse {seeking.get('reuse')}",
        ]
        said["seeking"] = " ".join([*words, *(["annealed"] if seeking.get("anneal") else [])])
    told = {"scene", "split", "size", "compare", "device", "schedule", "confidence", *said}
    for key in sorted(arguments.keys() - told):
        if (value := arguments[key]) not in (None, False, [], {}, ["test"]):
            said[key] = f"{key.replace('_', ' ')} {value}"
    return said


def _counts(weight: object) -> bool:
    return isinstance(weight, int | float) and 0 < weight < math.inf


def _shortest_apart(folders: Sequence[Path]) -> list[str]:
    """The folders' names, with as many of those that hold them as it takes to tell them apart."""
    names = [folder.name for folder in folders]
    for depth in range(2, max(len(folder.parts) for folder in folders) + 1):
        if len(set(names)) == len(set(folders)):
            break
        names = ["/".join(folder.parts[-depth:]) for folder in folders]
    return names
