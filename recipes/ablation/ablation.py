"""What each part of Difix3D+ gives (the paper's ablation, its table 4), on any scenes: one command, one table.

    python recipes/ablation/ablation.py SCENE… [--method splatfacto nerfacto] [--split every:4 groups] [--seed 0 1 2]
                                        [--output outputs/ablation] [--max-failed N] [--dry-run]
                                        [-- OPTIONS OF difix distill]

For every scene, method, split and seed two runs are made, with the same number of iterations each:

    plain               photos alone, as long as the others    --schedule progressive --compare
    (a) fix renders     the fixer on plain training's renders  the same run
    (b) one-shot        fixes straight at the targets          --schedule one-shot
    (c) progressive     the targets approached in rounds       --schedule progressive --compare
    (d) + enhance       (c) and the fixer on its renders       the same run

Run it again and it goes on where it stopped. A scene that fails stops no other, and exit code 3 says so; once more than
--max-failed (1000) have, nothing more begins and it is 2. `ablation.md`, `ablation.json` and `ablation.csv` in the
output hold the figures of the test views: a mean over views, and mean ± standard deviation over the seeds.
"""

from __future__ import annotations

import argparse
import csv
import re
import shlex
import statistics
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from difixcli.evaluation.metrics import METRICS
from difixcli.runs import atomic, file_name, read_json, write_json

VARIANTS = {  # name: (schedule, variant of its run)
    "plain": ("progressive", "plain"),
    "(a) fix renders": ("progressive", "fixed"),
    "(b) one-shot": ("one-shot", "distilled"),
    "(c) progressive": ("progressive", "distilled"),
    "(d) + enhance": ("progressive", "enhanced"),
}
SCHEDULES = tuple(dict.fromkeys(schedule for schedule, _ in VARIANTS.values()))
ROUNDS_ONLY = {  # option: schedules that it says nothing to
    **dict.fromkeys(("--rounds", "--step"), ("one-shot",)),
}
DIFIX = (sys.executable, "-m", "difixcli")
Cell = tuple[str, str, str, int]  # scene, method, split, seed
Group = tuple[str, str, str]


def main(arguments: Sequence[str] | None = None) -> int:
    given = list(sys.argv[1:] if arguments is None else arguments)
    cut = given.index("--") if "--" in given else len(given)
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("scenes", nargs="+")
    parser.add_argument("--method", nargs="+", default=["splatfacto"])
    parser.add_argument("--split", nargs="+", default=["every:4"])
    parser.add_argument("--seed", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--output", type=Path, default=Path("outputs/ablation"))
    parser.add_argument("--max-failed", type=int, default=1000, help="how many scenes may fail")
    parser.add_argument("--dry-run", action="store_true", help="print the commands and do nothing")
    asked = parser.parse_args(given[:cut])
    more = given[cut + 1 :]
    for scene in asked.scenes:
        if not (asked.dry_run or scene.startswith("sample:") or Path(scene).is_dir()):
            parser.error(f"there is no scene folder {scene}; check its name")
    names = _names(asked.scenes)
    cells = [(s, m, p, n) for s in asked.scenes for m in asked.method for p in asked.split for n in asked.seed]
    failed: dict[str, list[str]] = {}  # lines, by scene
    for number, cell in enumerate(cells, start=1):
        for schedule in SCHEDULES:
            line = _line(cell, schedule, _folder(asked.output, names, cell, schedule), more)
            shown = f"difix {shlex.join(line)}"
            print(shown if asked.dry_run else f"[{number}/{len(cells)}] {shown}", flush=True)
            if asked.dry_run:
                continue
            if subprocess.run([*DIFIX, *line], check=False, stdout=subprocess.DEVNULL).returncode:
                failed.setdefault(cell[0], []).append(shown)
        if not asked.dry_run:
            figures = _collect(asked.output, names, cells)
            if figures:
                _write(asked.output, names, figures)
        if len(failed) > asked.max_failed:
            break
    for line in (line for lines in failed.values() for line in lines):
        print(f"failed: {line}", file=sys.stderr)
    if not asked.dry_run and (asked.output / "ablation.md").is_file():
        print((asked.output / "ablation.md").read_text(encoding="utf-8"))
    if len(failed) > asked.max_failed:
        return 2
    return 3 if failed else 0


def _names(scenes: Iterable[str]) -> dict[str, str]:
    """A short name for each scene, unique; a folder's own name where no other has it."""
    names: dict[str, str] = {}
    for scene in scenes:
        name = file_name(scene.removeprefix("sample:") if ":" in scene else Path(scene).absolute().name)
        while name in names.values():
            name += "-"
        names[scene] = name
    return names


def _folder(output: Path, names: Mapping[str, str], cell: Cell, schedule: str) -> Path:
    scene, method, split, seed = cell
    return output / names[scene] / method / re.sub(r"[^\w.=,-]+", "-", split) / f"seed-{seed}" / schedule


def _line(cell: Cell, schedule: str, folder: Path, more: Sequence[str]) -> list[str]:
    scene, method, split, seed = cell
    line = ["distill", scene, "--method", method, "--split", split, "--seed", str(seed), "--schedule", schedule]
    compare = ["--compare"] if schedule == "progressive" else []
    return [*line, *compare, "--output", str(folder), *_heeded(schedule, more)]


def _heeded(schedule: str, more: Sequence[str]) -> list[str]:
    """The options that a schedule heeds: `difix distill` refuses those that say nothing to it."""
    kept, options = [], iter(more)
    for option in options:
        name, _, value = option.partition("=")
        if schedule in ROUNDS_ONLY.get(name, ()):
            if not value:
                next(options, None)
        else:
            kept.append(option)
    return kept


def _collect(output: Path, names: Mapping[str, str], cells: Iterable[Cell]) -> dict[Cell, dict[str, dict[str, float]]]:
    """Figures of each variant of the cells that are whole."""
    found = {}
    for cell in cells:
        records = {s: _folder(output, names, cell, s) / "run.json" for s in SCHEDULES}
        held = {s: read_json(path) for s, path in records.items() if path.is_file()}
        if len(held) == len(SCHEDULES) and all(record["state"] == "done" for record in held.values()):
            found[cell] = {name: held[s]["results"][variant] for name, (s, variant) in VARIANTS.items()}
    return found


def _write(output: Path, names: Mapping[str, str], figures: Mapping[Cell, Mapping[str, Mapping[str, float]]]) -> None:
    metrics = [key for key in METRICS if key in next(iter(figures.values()))["plain"]]
    groups: dict[Group, list[Cell]] = {}
    for cell in figures:
        groups.setdefault((names[cell[0]], cell[1], cell[2]), []).append(cell)
    lines = ["# Ablation", "", _heading(figures, groups), ""]
    summary: list[dict[str, Any]] = []
    sections = [("All", list(figures))] if len(groups) > 1 else []
    sections += [(f"{scene}, {method}, {split}", cells) for (scene, method, split), cells in groups.items()]
    for title, cells in sections:
        by_group = [[c for c in cells if c in members] for members in groups.values()]
        by_group = [members for members in by_group if members]
        lines += [f"## {title}", "", *_table(by_group, figures, metrics, summary, title), ""]
    with atomic(output / "ablation.md") as temporary:
        temporary.write_text("\n".join(lines), encoding="utf-8")
    cells = [
        {"scene": names[c[0]], "method": c[1], "split": c[2], "seed": c[3], "variant": v, **dict(row)}
        for c, rows in figures.items()
        for v, row in rows.items()
    ]
    write_json(output / "ablation.json", {"cells": cells, "summary": summary})
    with atomic(output / "ablation.csv") as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, ["scene", "method", "split", "seed", "variant", *metrics])
        writer.writeheader()
        writer.writerows(cells)


def _heading(figures: Mapping[Cell, Any], groups: Mapping[Group, Sequence[Cell]]) -> str:
    seeds = sorted({cell[3] for cell in figures})
    return (
        f"{len(groups)} of scene × method × split, seeds {', '.join(map(str, seeds))}. Mean over test views, then over "
        "seeds and groups; ± is the standard deviation over seeds (of several groups: its mean). Gain is over plain."
    )


def _table(
    groups: Sequence[Sequence[Cell]],
    figures: Mapping[Cell, Mapping[str, Mapping[str, float]]],
    metrics: Sequence[str],
    summary: list[dict[str, Any]],
    title: str,
) -> list[str]:
    """Rows of Markdown; what they say is added to the summary."""
    lines = [
        "| | " + " | ".join(f"{METRICS[key].label} | gain" for key in metrics) + " |",
        "|---" * (2 * len(metrics) + 1) + "|",
    ]
    several = all(len(members) > 1 for members in groups)  # of one seed there is no spread to tell
    for variant in VARIANTS:
        cells, entry = [], {"of": title, "variant": variant}
        for key in metrics:
            mean, spread = _spread([[figures[c][variant][key] for c in members] for members in groups])
            gain, gain_spread = _spread(
                [[figures[c][variant][key] - figures[c]["plain"][key] for c in members] for members in groups]
            )
            digits = METRICS[key].digits
            cells.append(f"{mean:.{digits}f}" + (f" ± {spread:.{digits}f}" if several else ""))
            told = f"{gain:+.{digits}f}" + (f" ± {gain_spread:.{digits}f}" if several else "")
            cells.append("" if variant == "plain" else told)
            entry |= {key: mean, f"{key}_std": spread, f"{key}_gain": gain, f"{key}_gain_std": gain_spread}
        lines.append(f"| {variant} | " + " | ".join(cells) + " |")
        summary.append(entry)
    return lines


def _spread(groups: Sequence[Sequence[float]]) -> tuple[float, float]:
    """Mean over groups of each one's mean and of each one's standard deviation over seeds (sample; 0 for one seed)."""
    means = [statistics.fmean(values) for values in groups]
    spreads = [statistics.stdev(values) if len(values) > 1 else 0.0 for values in groups]
    return statistics.fmean(means), statistics.fmean(spreads)


if __name__ == "__main__":
    sys.exit(main())
