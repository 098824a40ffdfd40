"""Which frames are references (train) and which are targets (test)."""

from __future__ import annotations

from collections.abc import Sequence
from fnmatch import fnmatchcase
from pathlib import Path

import numpy as np

from difixcli.errors import InputError, unknown
from difixcli.runs import read_json
from difixcli.scenes.scene import Camera, Scene, Split
from difixcli.scenes.sparse_views import farthest_views, pose_spread
from difixcli.wording import counted

RULES = (
    "test-every",
    "every",
    "clusters",
    "groups",
    "views",
    "sparse",
    "between",
    "co3d",
    "names",
    "camera",
    "file",
    "own",
    "all",
)
SPLIT_FILE = "split.json"
CO3D_FRAMES = 32
"""How many frames of a CO3D sequence SparseFusion's split has."""
DEFAULT_RULE = "test-every:8"
"""The split of a scene whose own layout asks for none: the convention of LLFF, Mip-NeRF 360 and 3DGS."""


def default_split_rule(scene: Scene) -> str:
    """The split that a scene's own layout asks for, else `test-every:8` (see `DEFAULT_RULE`).

    - A file `split.json` in the scene's folder: that file.
    - The scene's file itself says which frames train and which do not (see `own` in `make_split`): `own`.
    - Difix3D's release: every image is called `image_train_*` or `image_eval_*`; the former train.
    - Nerfbusters' captures of two paths: `frame_train_*` and `frame_eval_*`, or `frame_1_*` and `frame_2_*` (clips
      counted from 0 or 1); the first path trains.
    """
    if (scene.root / SPLIT_FILE).is_file():
        return f"file:{SPLIT_FILE}"
    if scene.own_split is not None:
        return "own"
    names = [Path(frame.name).name for frame in scene.frames]
    for first, second in (("_train_", "_eval_"), ("frame_0_", "frame_1_"), ("frame_1_", "frame_2_")):
        if {(first in name) + 2 * (second in name) for name in names} == {1, 2}:  # each is one or the other
            return f"names:train={first},test={second}"
    return DEFAULT_RULE


def make_split(scene: Scene, rule: str, need_test: bool = True) -> Split:
    """Splits a scene's frames by a rule.

    - `test-every:N`: frames 0, N, 2N… in the scene's order are targets, the others train (N ≥ 2). With fewer than N
      frames that is the first alone.
    - `every:N`: frames 0, N, 2N… train, the others are targets (N ≥ 2).
    - `clusters`: two clusters of camera positions; the larger trains (DL3DV's protocol in Difix3D+).
    - `groups`: the two cameras farthest apart by ‖R_i − R_j‖_F + ‖t_i − t_j‖ seed two groups, every camera joins its
      nearer seed, the larger group trains. `groups:K`: only K mutually farthest cameras of that group train, all
      others are targets (ArtiFixer; K = 2 to 12 there).
    - `views:K`: the K mutually farthest photos that overlap train (K ≥ 2; see `sparse_views.farthest_views`), all
      others are targets. Where the scene's own layout says which photos train (see `default_split_rule`), they are
      among those.
    - `sparse:K`: frames 0, 8, 16… are targets; of the others K train, evenly spaced by index from the first to the
      last, and the rest is in neither half (few views of Mip-NeRF 360 and LLFF, as RegNeRF and its successors choose).
    - `between:K`: K frames train, evenly spaced by index from the first to the last, and all others between are targets
      (K ≥ 2). `between:K:N` looks at N frames in the middle of the scene alone, and the others are in neither half (two
      views of RealEstate10K, as ReconX has them at small and large angles).
    - `co3d:K`: of 32 frames evenly spaced by index (or all, where there are fewer) K train and the others are targets;
      which K, a shuffle of them says (SparseFusion's split of a CO3D sequence; the shuffle's seed is 0, which is ours).
    - `names:PATTERN`: frames that match train, the others are targets; `names:train=PATTERN,test=PATTERN` uses only
      frames that match either. A pattern with `*`, `?` or `[` must match the whole name or the whole file name;
      without, it may stand anywhere in the name (`names:_train_`).
    - `camera:ID` or `camera:ID,ID`: the frames of those cameras train, the others are targets.
    - `file:JSON`: `{"train": [names], "test": [names]}`, `test` defaulting to all others; names may be whole or the
      file's name. The path is relative to the current folder or, failing that, to the scene's; `file:split.json` is
      the scene's own, where it has one.
    - `own`: as the scene's own layout says (see `default_split_rule`); of the scene's file: `train_filenames` and
      `test_filenames` (failing that, `val_filenames`) of a transforms.json, or `transforms_train.json` beside
      `transforms_test.json` (failing that, `transforms_val.json`).
    - `all`: every frame trains; there are no targets.

    Raises InputError for an unknown rule (with near matches), for a split without training views and, with
    `need_test`, for one without test views.
    """
    check_rule(rule)
    kind, _, argument = rule.partition(":")
    if kind == "every":
        train, test = _every(len(scene.frames), int(argument))
    elif kind == "test-every":
        test, train = _every(len(scene.frames), int(argument))
    elif kind == "clusters":
        train, test = _clusters(np.stack([frame.camera.position for frame in scene.frames]))
    elif kind == "groups":
        train, test = _groups([frame.camera for frame in scene.frames], argument)
    elif kind == "views":
        own = default_split_rule(scene)
        among = range(len(scene.frames)) if own == DEFAULT_RULE else make_split(scene, own, need_test=False).train
        train = farthest_views(scene, among, int(argument))
        test = [i for i in range(len(scene.frames)) if i not in train]
    elif kind == "sparse":
        train, test = _sparse(scene, int(argument))
    elif kind == "between":
        train, test = _between(scene, *(int(part) for part in argument.split(":")))
    elif kind == "co3d":
        train, test = _of_a_sequence(scene, int(argument))
    elif kind == "names":
        train, test = _by_names(scene, argument, rule)
    elif kind == "camera":
        train, test = _by_camera(scene, argument, rule)
    elif kind == "own":
        own = default_split_rule(scene)
        if own == DEFAULT_RULE:
            raise InputError(
                f"{scene.name} has no split of its own ({SPLIT_FILE}, train_filenames and test_filenames, or "
                "transforms_train.json and transforms_test.json); choose another --split."
            )
        halves = scene.own_split if own == "own" else make_split(scene, own, need_test=False)
        assert halves is not None  # the rule is `own` where it is there
        train, test = list(halves.train), list(halves.test)
    elif kind == "all":
        train, test = list(range(len(scene.frames))), []
    else:
        train, test = _from_file(scene, argument)
    for half, missing in (("training", not train), ("test", need_test and not test)):
        if missing:
            raise InputError(
                f"The split {rule!r} leaves no {half} view among the {len(scene.frames)} of {scene.name}; choose "
                "another --split, or give the scene more photos."
            )
    return Split(train=tuple(sorted(train)), test=tuple(sorted(test)), rule=rule)


def check_rule(rule: str, root: Path | None = None) -> None:
    """Raises InputError for a rule that is wrong whatever the scene: unknown, or with an argument it cannot have; with
    the scene's folder also for a split file that is missing or broken.
    """
    kind, _, argument = rule.partition(":")
    if kind not in RULES:
        raise unknown("split rule", kind, RULES, f"The whole rule was {rule!r}.")
    if kind in ("every", "test-every") and (not argument.isdecimal() or int(argument) < 2):
        raise InputError(f"The split rule {rule!r} needs a whole number of at least 2, as in {kind}:8.")
    if kind in ("clusters", "own", "all") and argument:
        raise InputError(f"The split rule {rule!r} takes no argument; write {kind}.")
    if kind == "groups" and argument and (not argument.isdecimal() or int(argument) < 1):
        raise InputError(f"The split rule {rule!r} needs a whole number of at least 1, as in groups:6, or none.")
    if kind in ("views", "sparse", "co3d") and (not argument.isdecimal() or int(argument) < 2):
        raise InputError(f"The split rule {rule!r} needs a whole number of at least 2, as in {kind}:3.")
    if kind == "between":
        parts = argument.split(":")
        if not all(part.isdecimal() for part in parts) or len(parts) > 2 or int(parts[0]) < 2 or int(parts[-1]) < 2:
            raise InputError(
                f"The split rule {rule!r} needs whole numbers of at least 2, as in between:3 or between:2:45."
            )
    if kind == "names":
        _patterns(argument, rule)
    if kind == "camera" and not argument:
        raise InputError(f"The split rule {rule!r} needs a camera's id, as in camera:0.")
    if kind == "file" and not argument:
        raise InputError(f"The split rule {rule!r} needs a path, as in file:split.json.")
    if kind == "file" and root is not None:
        _read_split(argument, root)


def _every(count: int, step: int) -> tuple[list[int], list[int]]:
    """Indices 0, step, 2·step… below `count`, and the others."""
    return list(range(0, count, step)), [i for i in range(count) if i % step]


def _sparse(scene: Scene, count: int) -> tuple[list[int], list[int]]:
    """`count` frames evenly spaced by index among those that are no eighth one, and every eighth one."""
    test, others = _every(len(scene.frames), 8)
    return _spaced(others, count, scene), test


def _between(scene: Scene, count: int, length: int | None = None) -> tuple[list[int], list[int]]:
    """`count` frames evenly spaced among the middle `length` (None: all), and what lies between them."""
    whole = len(scene.frames)
    if length is not None and length > whole:
        raise InputError(
            f"{scene.name} has {whole} frames, fewer than the {length} in whose middle views are asked for."
        )
    first = 0 if length is None else (whole - length) // 2
    frames = list(range(first, whole if length is None else first + length))
    train = _spaced(frames, count, scene)
    return train, [i for i in frames if i not in train]


def _of_a_sequence(scene: Scene, count: int) -> tuple[list[int], list[int]]:
    """`count` of 32 evenly spaced frames, by a shuffle of them, and the others."""
    frames = list(range(len(scene.frames)))
    shown = _spaced(frames, min(CO3D_FRAMES, len(frames)), scene)
    order = np.random.default_rng(0).permutation(len(shown))
    if count >= len(shown):
        raise InputError(
            f"{scene.name} has {counted(len(shown), 'frame')}, of which {count} cannot train; give it more."
        )
    return [shown[i] for i in order[:count]], [shown[i] for i in order[count:]]


def _spaced(frames: Sequence[int], count: int, scene: Scene) -> list[int]:
    """`count` of the frames, evenly spaced from the first to the last."""
    if count > len(frames):
        raise InputError(
            f"{scene.name} has {counted(len(frames), 'photo')} to choose {count} training ones from; ask for fewer, or "
            "give the scene more photos."
        )
    return [frames[round(place)] for place in np.linspace(0, len(frames) - 1, count)]


def _clusters(positions: np.ndarray) -> tuple[list[int], list[int]]:
    """Two-means of camera positions (N, 3), seeded by the farthest pair so that no random number is needed."""
    distances = np.linalg.norm(positions[:, None] - positions[None], axis=2)
    seeds = np.unravel_index(np.argmax(distances), distances.shape)
    centres = positions[list(seeds)]
    labels = np.full(len(positions), -1)
    for _ in range(100):
        updated = np.linalg.norm(positions[:, None] - centres[None], axis=2).argmin(axis=1)
        if (updated == labels).all():
            break
        labels = updated
        centres = np.stack(
            [positions[labels == i].mean(axis=0) if (labels == i).any() else centres[i] for i in range(2)]
        )
    groups = [np.flatnonzero(labels == i).tolist() for i in range(2)]
    # The larger one trains; of equals, the one with the first frame.
    groups.sort(key=lambda group: (-len(group), group))
    return groups[0], groups[1]


def _groups(cameras: Sequence[Camera], argument: str) -> tuple[list[int], list[int]]:
    """Two groups of cameras seeded by the farthest pair; the larger one, or `argument` of its cameras, trains."""
    distances = pose_spread(cameras)
    seeds = np.unravel_index(np.argmax(distances), distances.shape)
    nearer = distances[:, seeds].argmin(axis=1)
    # The larger one trains; of equals, the one with the first frame.
    (group, seed), _ = sorted(
        ((np.flatnonzero(nearer == i).tolist(), int(seeds[i])) for i in range(2)),
        key=lambda one: (-len(one[0]), one[0]),
    )
    train = group
    if argument:
        # Greedy: every next camera is the one farthest from all chosen so far.
        train = [seed] if seed in group else group[:1]
        while len(train) < min(int(argument), len(group)):
            left = [i for i in group if i not in train]
            train.append(left[int(distances[np.ix_(left, train)].min(axis=1).argmax())])
    return train, [i for i in range(len(cameras)) if i not in set(train)]


def _matches(name: str, pattern: str) -> bool:
    if any(wildcard in pattern for wildcard in "*?["):
        return fnmatchcase(name, pattern) or fnmatchcase(Path(name).name, pattern)
    return pattern in name


def _patterns(argument: str, rule: str) -> dict[str, str]:
    """The patterns of `train`, `test` or both."""
    patterns: dict[str, str] = {}
    if argument.startswith(("train=", "test=")):
        for part in argument.split(","):
            key, separator, pattern = part.partition("=")
            if key not in ("train", "test") or not separator or not pattern or key in patterns:
                raise InputError(
                    f"The split rule {rule!r} must read names:PATTERN or names:train=PATTERN,test=PATTERN."
                )
            patterns[key] = pattern
    elif argument:
        patterns["train"] = argument
    else:
        raise InputError(f"The split rule {rule!r} needs a pattern, as in names:*_train_* or names:left/*.")
    return patterns


def _by_names(scene: Scene, argument: str, rule: str) -> tuple[list[int], list[int]]:
    chosen = {
        key: [i for i, frame in enumerate(scene.frames) if _matches(frame.name, pattern)]
        for key, pattern in _patterns(argument, rule).items()
    }
    everything = range(len(scene.frames))
    train = chosen["train"] if "train" in chosen else [i for i in everything if i not in set(chosen["test"])]
    test = chosen["test"] if "test" in chosen else [i for i in everything if i not in set(train)]
    both = sorted(set(train) & set(test))
    if both:
        raise InputError(f"The split {rule!r} puts {scene.frames[both[0]].name} in both halves; narrow a pattern.")
    return train, test


def _by_camera(scene: Scene, argument: str, rule: str) -> tuple[list[int], list[int]]:
    known = list(dict.fromkeys(frame.camera_id for frame in scene.frames))
    wanted = argument.split(",")
    for camera_id in wanted:
        if camera_id not in known:
            raise InputError(f"The split {rule!r} names camera {camera_id!r}, but {scene.name} has {', '.join(known)}.")
    train = [i for i, frame in enumerate(scene.frames) if frame.camera_id in wanted]
    return train, [i for i, frame in enumerate(scene.frames) if frame.camera_id not in wanted]


def _read_split(argument: str, root: Path) -> tuple[Path, dict[str, list[str]]]:
    """The file that `file:ARGUMENT` means for a scene in `root`, and what it holds."""
    path = Path(argument)
    # a scene's own split is called so in a run's record: no file that lies where a command is given takes its place
    if (argument == SPLIT_FILE and (root / argument).is_file()) or not path.is_file():
        path = root / argument
    if not path.is_file():
        raise InputError(f"The split file {argument} exists neither here nor in {root}.")
    return path, read_json(path, {"train": [str], "test?": [str]}, 'it must hold {"train": [names], "test": [names]}')


def _from_file(scene: Scene, argument: str) -> tuple[list[int], list[int]]:
    path, data = _read_split(argument, scene.root)
    train = _indices(scene, data["train"], path)
    if "test" in data:
        test = _indices(scene, data["test"], path)
    else:
        test = [i for i in range(len(scene.frames)) if i not in set(train)]
    both = sorted(set(train) & set(test))
    if both:
        raise InputError(f"The split file {path} puts {scene.frames[both[0]].name} in both halves; remove it from one.")
    return train, test


def _indices(scene: Scene, names: Sequence[str], path: Path) -> list[int]:
    by_name: dict[str, list[int]] = {}
    for i, frame in enumerate(scene.frames):
        for key in {frame.name, Path(frame.name).name, Path(frame.name).stem}:
            by_name.setdefault(key, []).append(i)
    found = []
    for name in names:
        matches = by_name.get(name, [])
        if len(matches) != 1:
            if matches:
                raise InputError(f"The split file {path} names {name}, which fits several frames; write whole names.")
            raise unknown(f"frame of {scene.name}", name, by_name, f"The split file {path} names it.")
        found.append(matches[0])
    return sorted(set(found))
