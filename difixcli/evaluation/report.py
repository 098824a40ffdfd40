"""One HTML file that shows what was measured: figures, pictures, errors. It asks the network for nothing."""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

import numpy as np

from difixcli.evaluation.evaluate import TRUTH, matched_files
from difixcli.evaluation.metrics import METRICS
from difixcli.evaluation.pictures import error_map, fit
from difixcli.runs import atomic, read_image

_WIDTH = 480  # pixels of an embedded picture
_VIEWS = 24  # views with pictures, so that a report of a long trajectory stays a few megabytes
_ERROR_SCALE = 0.25
_Figure = tuple[str, list[str], np.ndarray]  # caption, details, image

_STYLE = """
:root { color-scheme: light dark; --ink: #1b1d21; --soft: #636873; --paper: #fff; --line: #dcdfe5; --best: #0b6b3a }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e8e9ec; --soft: #9aa0ab; --paper: #15171b; --line: #30343c; --best: #6fd39b } }
* { box-sizing: border-box }
body { margin: 0 auto; max-width: 1200px; padding: 24px 20px 64px; background: var(--paper); color: var(--ink);
  font: 15px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, sans-serif }
h1 { font-size: 24px; line-height: 1.25; margin: 0 0 4px; overflow-wrap: anywhere }
h2 { font-size: 18px; margin: 40px 0 8px }
h3 { font-size: 14px; font-weight: 600; margin: 24px 0 6px; overflow-wrap: anywhere }
p { margin: 4px 0; color: var(--soft) }
.scroll { overflow-x: auto }
table { border-collapse: collapse; margin: 8px 0; font-variant-numeric: tabular-nums }
th, td { padding: 5px 16px 5px 0; text-align: right; border-bottom: 1px solid var(--line); white-space: nowrap }
th { font-weight: 600; color: var(--soft) }
th:first-child, td:first-child { text-align: left }
td.best { font-weight: 700; color: var(--best) }
tr.aside td { color: var(--soft) }
.views { display: grid; gap: 8px; grid-template-columns: repeat(var(--columns), minmax(0, 1fr)) }
figure { margin: 0 }
figure img { display: block; width: 100%; height: auto; border-radius: 3px }
figcaption { font-size: 13px; color: var(--soft); font-variant-numeric: tabular-nums }
figcaption b { color: var(--ink); font-weight: 600 }
figcaption span { white-space: nowrap }
dl { display: grid; grid-template-columns: max-content 1fr; gap: 2px 16px; margin: 8px 0; color: var(--soft) }
dt { font-weight: 600 } dd { margin: 0 }
@media (max-width: 640px) {
  body { padding: 16px 12px 40px } .views { grid-template-columns: repeat(2, minmax(0, 1fr)) }
  .empty { display: none } td:first-child { white-space: normal }
  th, td { padding-right: 12px; font-size: 14px } }
"""


def write_report(evaluated: Mapping[str, Any], output: Path, title: str) -> Path:
    """Write what `evaluate_run` or `evaluate_folders` returned as one self-contained HTML file, and return its path.

    It holds the table of figures, the views (truth, then every variant) worst first with their error maps, every
    image's PSNR, and how the figures were made. Pictures are JPEG of modest size; at most 24 views have them.
    """
    folders = {name: Path(folder) for name, folder in evaluated["folders"].items()}
    variants = [name for name in folders if name != TRUTH]
    per_image = evaluated["per_image"]
    files = {name: matched_files(folders[name], folders[TRUTH]) for name in variants}
    judged = variants[-1]
    stems = sorted(per_image[judged], key=lambda stem: (per_image[judged][stem]["psnr"], stem))
    body = [
        f"<h1>{escape(title)}</h1>",
        f"<p>{len(stems)} {'image' if len(stems) == 1 else 'images'} against the truth, {_sizes(files[judged])}</p>",
        _results(evaluated, variants),
        "<h2>Views, worst first</h2>",
        f"<p>Error maps: mean absolute error over RGB, black 0 to light {_ERROR_SCALE:g} and above.</p>",
    ]
    if len(stems) > _VIEWS:
        body.append(f"<p>The {_VIEWS} worst of {len(stems)} views by PSNR of {escape(judged)}.</p>")
    body += [_view(stem, variants, files, per_image) for stem in stems[:_VIEWS]]
    body += ["<h2>PSNR of every image, worst first</h2>", _psnr_table(stems, variants, per_image)]
    made = "".join(
        f"<dt>{escape(METRICS[key].label)}</dt><dd>{escape(how)}</dd>" for key, how in evaluated["protocol"].items()
    )
    body += ["<h2>How the figures are made</h2>", f"<dl>{made}</dl>"]
    page = (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{_STYLE}</style></head>\n<body>\n"
        + "\n".join(body)
        + "\n</body></html>\n"
    )
    with atomic(output) as temporary:
        temporary.write_text(page, encoding="utf-8")
    return output


def _results(evaluated: Mapping[str, Any], variants: Sequence[str]) -> str:
    """The table of mean figures, the best of each column marked; baselines stand apart below."""
    results = evaluated["results"]
    rows = {name: results.get(name, results) for name in variants}
    keys = [key for key in METRICS if key in rows[variants[0]]]
    best = {}
    for key in keys:
        values = [row[key] for row in rows.values() if math.isfinite(row[key])]
        if values:
            best[key] = max(values) if METRICS[key].higher_is_better else min(values)
    lines = [_row(name, row, keys, best if len(rows) > 1 else {}) for name, row in rows.items()]
    for name, row in evaluated.get("baselines", {}).items():
        label = f"{name} (σ {row['sigma']:g}, amount {row['amount']:g})"
        lines.append(_row(label, row, keys, {}, "aside"))
    heads = "".join(f"<th>{escape(METRICS[key].label)}</th>" for key in keys)
    return _table(f"<tr><th></th>{heads}</tr>", lines)


def _row(name: str, row: Mapping[str, float], keys: Sequence[str], best: Mapping[str, float], kind: str = "") -> str:
    cells = "".join(
        f"<td{' class=best' if row[key] == best.get(key) else ''}>{_number(key, row[key])}</td>" for key in keys
    )
    return f"<tr{f' class={kind}' if kind else ''}><td>{escape(name)}</td>{cells}</tr>"


def _psnr_table(stems: Sequence[str], variants: Sequence[str], per_image: Mapping[str, Any]) -> str:
    gains = len(variants) > 1
    heads = "".join(f"<th>{escape(name)}</th>" for name in variants) + ("<th>gain</th>" if gains else "")
    lines = []
    for stem in stems:
        values = [per_image[name][stem]["psnr"] for name in variants]
        cells = "".join(f"<td>{_number('psnr', value)}</td>" for value in values)
        if gains:
            # two identical images differ by inf − inf
            gain = values[-1] - values[0]
            cells += f"<td>{f'{gain:+.2f}' if math.isfinite(gain) else '–'}</td>"
        lines.append(f"<tr><td>{escape(stem)}</td>{cells}</tr>")
    return _table(f"<tr><th>image</th>{heads}</tr>", lines)


def _table(head: str, lines: Sequence[str]) -> str:
    return f'<div class="scroll"><table><thead>{head}</thead><tbody>{"".join(lines)}</tbody></table></div>'


def _view(
    stem: str,
    variants: Sequence[str],
    files: Mapping[str, Mapping[str, tuple[Path, Path]]],
    per_image: Mapping[str, Mapping[str, Mapping[str, float]]],
) -> str:
    """One view: the truth and each variant's picture, then each variant's errors."""
    truth = read_image(files[variants[0]][stem][1])
    images = {name: read_image(files[name][stem][0]) for name in variants}
    pictures: list[_Figure] = [(TRUTH, [], truth)]
    for name, image in images.items():
        figures = per_image[name][stem]
        detail = [
            f"{_number('psnr', figures['psnr'])} {METRICS['psnr'].unit}",
            f"st-LPIPS {_number('st_lpips', figures['st_lpips'])}",
        ]
        pictures.append((name, detail, image))
    for name, image in images.items():
        pictures.append((f"error of {name}", [], error_map(image, truth, _ERROR_SCALE)))
    # the truth's column has no error, so the maps begin below the first variant
    columns = len(variants) + 1
    parts = [_figure(*picture) for picture in pictures]
    parts.insert(columns, '<figure class="empty"></figure>')
    return f'<h3>{escape(stem)}</h3><div class="views" style="--columns:{columns}">{"".join(parts)}</div>'


def _figure(caption: str, details: Sequence[str], image: np.ndarray) -> str:
    width = min(_WIDTH, image.shape[1])
    height = round(image.shape[0] * width / image.shape[1])
    spans = " ".join(f"<span>{escape(detail)}</span>" for detail in details)
    return (
        f'<figure><img width="{width}" height="{height}" loading="lazy" alt="{escape(caption)}" '
        f'src="data:image/jpeg;base64,{_jpeg(fit(image, _WIDTH))}">'
        f"<figcaption><b>{escape(caption)}</b> {spans}</figcaption></figure>"
    )


def _jpeg(image: np.ndarray) -> str:
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray((np.clip(image, 0, 1) * 255 + 0.5).astype(np.uint8)).save(buffer, "JPEG", quality=88)
    return base64.b64encode(buffer.getvalue()).decode("ascii")


def _sizes(files: Mapping[str, tuple[Path, Path]]) -> str:
    """The images' sizes in pixels, in words."""
    from PIL import Image

    sizes = set()
    for image, _ in files.values():
        with Image.open(image) as opened:
            sizes.add(opened.size)
    smallest, largest = min(sizes), max(sizes)
    one = f"{smallest[0]}×{smallest[1]}"
    return f"{one} pixels" if len(sizes) == 1 else f"{one} to {largest[0]}×{largest[1]} pixels"


def _number(key: str, value: float) -> str:
    return f"{value:.{METRICS[key].digits}f}"
