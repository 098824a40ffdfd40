"""Figures as a CSV file: a row an image and variant, and one each for means and spreads."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from difixcli.evaluation.metrics import METRICS
from difixcli.runs import atomic


def write_table(evaluated: Mapping[str, Any], output: Path) -> Path:
    """Write what `evaluate_folders`, `evaluate_run` or `evaluate_runs` returned as CSV, and return its path.

    The columns are scene, variant, statistic (`image`, `mean`, `std`), view (empty for means and spreads), a figure
    each, and the protocol in words. A figure that there is none of is empty; `inf` is the PSNR of identical images.
    """
    keys = [key for key in METRICS if key in evaluated["protocol"]]
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["scene", "variant", "statistic", "view", *keys, "protocol"])
    for scene, part in (evaluated.get("scenes") or {"": evaluated}).items():
        said = "; ".join(f"{name}: {value}" for name, value in part["conditions"].items())
        for variant, statistic, view, figures in _rows(part):
            writer.writerow([scene, variant, statistic, view, *(_cell(figures.get(key)) for key in keys), said])
    if "scenes" in evaluated:
        for variant, statistic, view, figures in _rows({**evaluated, "per_image": {}}):
            cells = [_cell(figures.get(key)) for key in keys]
            writer.writerow(["(all)", variant, statistic, view, *cells, "over scenes of each scene's mean"])
    with atomic(output) as temporary:
        temporary.write_text(text.getvalue(), encoding="utf-8", errors="backslashreplace")
    return output


def _rows(part: Mapping[str, Any]) -> Iterator[tuple[str, str, str, Mapping[str, float]]]:
    """(variant, statistic, view, figures) of one scene."""
    for variant, images in part["per_image"].items():
        for view, figures in images.items():
            yield variant, "image", view, figures
    for statistic, held in (("mean", part["results"]), ("std", part["std"])):
        flat = bool(held) and not any(isinstance(value, Mapping) for value in held.values())
        for variant, figures in ({"images": held} if flat else held).items():
            yield variant, statistic, "", figures


def _cell(value: float | None) -> str:
    return "" if value is None or math.isnan(value) else f"{value:.6g}"
