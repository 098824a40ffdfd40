"""Looking at pairs: a contact sheet a stage, and one page of them all."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np

from difixcli.curation.manifest import PSNR_BINS, StageSummary, sparkline
from difixcli.evaluation.pictures import contact_sheet, fit
from difixcli.runs import atomic, read_image, write_image
from difixcli.wording import counted

SHEET = "sheet.png"
INDEX = "index.html"
_ROWS = 8  # pairs on a sheet
_WIDTH = 240  # pixels of a picture on it

_STYLE = """
:root { color-scheme: light dark }
body { margin: 0 auto; max-width: 1300px; padding: 24px 20px 64px; font: 15px/1.5 system-ui, sans-serif }
h1 { font-size: 24px } h2 { font-size: 17px; margin: 40px 0 4px; overflow-wrap: anywhere }
.scroll { overflow-x: auto }
table { border-collapse: collapse; font-variant-numeric: tabular-nums }
th, td { padding: 4px 16px 4px 0; text-align: right; border-bottom: 1px solid #8884; white-space: nowrap }
th:first-child, td:first-child, th:nth-child(2), td:nth-child(2) { text-align: left }
td.bars { font-family: ui-monospace, monospace; white-space: pre }
img { max-width: 100%; height: auto; background: #fff }
p { margin: 2px 0 8px; opacity: .7 }
"""


def write_sheet(home: Path, entries: Mapping[str, Mapping[str, Any]]) -> None:
    """A contact sheet of a stage's pairs, evenly chosen, from their files: render, photo, references, opacity.

    `home` is OUTPUT/SCENE/STAGE; a stage without pairs has no sheet.
    """
    keys = sorted(entries)
    if not keys:
        return
    places = np.linspace(0, len(keys) - 1, min(_ROWS, len(keys))).round().astype(int)
    chosen = [entries[keys[i]] for i in places]
    views = min(len(entry["ref_images"]) for entry in chosen)
    rows = []
    for entry in chosen:
        paths = [entry["image"], entry["target_image"], *entry["ref_images"][:views], entry["opacity"]]
        rows.append([fit(read_image(home.parents[1] / path), _WIDTH) for path in paths])
    labels = ["render", "photo", *(f"reference {i + 1}" for i in range(views)), "opacity"]
    write_image(home / SHEET, contact_sheet(rows, labels))


def write_index(folder: Path, stages: Sequence[StageSummary], failed: Mapping[str, str]) -> Path:
    """Write `folder`/index.html: a table of all stages' figures and their contact sheets; returns its path.

    It asks for nothing but the sheets beside it.
    """
    columns = ["scene", "stage", "for", "pairs", "dropped", "PSNR", "SSIM"]
    columns += [f"{PSNR_BINS[0]:.0f} to {PSNR_BINS[-1]:.0f} dB", "reconstruction, s", "pairs, s"]
    heads = "".join(f"<th>{escape(name)}</th>" for name in columns)
    body = [
        "<h1>Pairs</h1>",
        f"<p>{counted(sum(s.pairs for s in stages), 'pair')} of {counted(len({s.scene for s in stages}), 'scene')}</p>",
        f'<div class="scroll"><table><thead><tr>{heads}</tr></thead>'
        f"<tbody>{''.join(map(_row, stages))}</tbody></table></div>",
    ]
    if failed:
        lines = "".join(f"<li>{escape(name)}: {escape(message)}</li>" for name, message in sorted(failed.items()))
        body.append(f"<h2>Scenes that failed</h2><ul>{lines}</ul>")
    for stage in stages:
        body.append(f"<h2>{escape(stage.scene)}: {escape(stage.stage)}</h2>")
        if (folder / stage.folder / SHEET).is_file():
            source = quote(f"{stage.folder}/{SHEET}")
            body.append(f'<img loading="lazy" alt="pairs of {escape(stage.folder)}" src="{source}">')
    page = (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>Pairs</title><style>{_STYLE}</style></head>\n<body>\n" + "\n".join(body) + "\n</body></html>\n"
    )
    with atomic(folder / INDEX) as temporary:
        temporary.write_text(page, encoding="utf-8", errors="backslashreplace")  # names may be no UTF-8
    return folder / INDEX


def _row(stage: StageSummary) -> str:
    dropped = ", ".join(f"{count} {name}" for name, count in sorted(stage.dropped.items()))
    cells = [
        stage.scene,
        stage.stage,
        "test" if stage.test else "train",
        str(stage.pairs),
        dropped or "0",
        f"{stage.psnr:.2f}",
        f"{stage.ssim:.3f}",
    ]
    times = [f"{stage.seconds[name]:.0f}" for name in ("reconstruction", "pairs")]
    return (
        "<tr>"
        + "".join(f"<td>{escape(cell)}</td>" for cell in cells)
        + f"<td class=bars>{sparkline(stage.histogram)}</td>"
        + "".join(f"<td>{time}</td>" for time in times)
        + "</tr>"
    )
