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

from difixcli.evaluation.charts import STYLE as CHART_STYLE
from difixcli.evaluation.charts import line_chart, palette
from difixcli.evaluation.consistency import MIN_MATCHES
from difixcli.evaluation.evaluate import marks_file, matched_files
from difixcli.evaluation.metrics import METRICS
from difixcli.evaluation.pictures import error_colors, error_map, fit, image_size
from difixcli.evaluation.run_folders import TRUTH
from difixcli.frames.marks import read_marks
from difixcli.runs import atomic, read_image
from difixcli.scenes.loading import natural_order
from difixcli.wording import counted

_WIDTH = 480  # pixels of an embedded picture
_VIEWS = 24  # views of a scene with pictures, and
_PICTURES = 170  # about how many pictures in all, so that the report of a long trajectory stays a few megabytes
_ERROR_SCALE = 0.25
_CAPTIONS = 2  # figures under a picture
_PROPOSED = 12  # views of the last rounds of all runs with pictures, evenly from a run's first to its last
_MARKED = {  # colours of `frames.marks`
    "seen": ("rgb(0 255 0)", "seen by a photo that stands beside it"),
    "agreed": ("rgb(0 0 255)", "agreed: seen by none, but as photos alone have taught it or a second fix has it"),
    "invented": ("rgb(255 0 0)", "invented"),
}
_Figure = tuple[str, list[str], np.ndarray]  # caption, details, image
# Titles and what they mean, of what a distillation notes of its rounds; anything else goes by its own name.
_ROUNDS = {
    "mean confidence": ("Confidence in the fixes", "Mean over pixels of how far a fix is trusted, 0 to 1."),
    "change": ("What the fixes change", "Mean absolute difference of fix and render, in [0, 1]."),
    "agreement with photos": (
        "Agreement with photos",
        "In dB: how much more like the photos brought into them the views are than photos alone had made them.",
    ),
    "seen": ("Seen by a photo", "Share of the views' pixels that a photo beside them shows and speaks for."),
    "agreed": ("Agreed", "Share of the views' pixels that no photo shows, as photos alone had taught them."),
    "invented": ("Invented", "Share of the views' pixels that nothing speaks for."),
    "dropped": ("Fixes dropped", "Views whose fix was broken or not supported, so not trained on."),
    "seconds of training": ("Seconds of training", "On photos and fixes together."),
}

_STYLE = """
:root { color-scheme: light dark; --ink: #1b1d21; --soft: #636873; --paper: #fff; --line: #dcdfe5; --best: #0b6b3a;
  --focus: #1f6fd1 }
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
td small { color: var(--soft); font-weight: 400; font-size: 12px }
td.best { font-weight: 700; color: var(--best) }
.tones i { display: inline-block; width: 10px; height: 10px; margin: 0 4px 0 0; border-radius: 2px }
.tones span { display: inline-block; margin-right: 14px }
.scale { white-space: nowrap } .scale i { display: inline-block; width: 96px; height: 10px; margin: 0 6px;
  border-radius: 2px }
tr.aside td { color: var(--soft) }
.views { display: grid; gap: 8px; grid-template-columns: repeat(var(--columns), minmax(130px, 1fr)); overflow-x: auto }
figure { margin: 0 }
figure img { display: block; width: 100%; height: auto; border-radius: 3px }
figcaption { font-size: 13px; color: var(--soft); font-variant-numeric: tabular-nums }
figcaption b { color: var(--ink); font-weight: 600 }
figcaption span { white-space: nowrap }
details { margin: 8px 0 } summary { cursor: pointer; color: var(--soft) }
.slider { max-width: 720px; margin: 6px 0 12px }
.slider .stage { position: relative; overflow: hidden; border-radius: 3px; --at: 50% }
.slider img { display: block; width: 100%; height: auto }
.slider .left { position: absolute; inset: 0; height: 100%; clip-path: inset(0 calc(100% - var(--at)) 0 0) }
.slider .bar { position: absolute; top: 0; bottom: 0; left: var(--at); width: 2px; margin-left: -1px;
  background: #fff; box-shadow: 0 0 3px #000; pointer-events: none }
.slider .bar::after { content: "↔"; position: absolute; top: 50%; left: 50%; transform: translate(-50%, -50%);
  width: 30px; height: 30px; border-radius: 50%; background: #fff; color: #222; font: 16px/29px system-ui, sans-serif;
  text-align: center; box-shadow: 0 0 4px #0008 }
.slider input { position: absolute; inset: 0; width: 100%; height: 100%; margin: 0; opacity: 0; cursor: ew-resize;
  touch-action: pan-y }
.slider input:focus-visible + .bar { background: var(--focus); width: 4px; margin-left: -2px }
.slider .sides { display: flex; justify-content: space-between; gap: 8px; margin-bottom: 4px }
.slider select { max-width: 48%; font: inherit; font-size: 13px; padding: 2px 4px; color: var(--ink);
  background: var(--paper); border: 1px solid var(--line); border-radius: 4px }
dl { display: grid; grid-template-columns: max-content 1fr; gap: 2px 16px; margin: 8px 0; color: var(--soft) }
dt { font-weight: 600 } dd { margin: 0 }
@media (max-width: 640px) {
  body { padding: 16px 12px 40px } .views { grid-template-columns: repeat(2, minmax(0, 1fr)) }
  .empty { display: none } td:first-child { white-space: normal; min-width: 72px }
  th, td { padding-right: 7px; font-size: 12px; vertical-align: top } th { white-space: normal }
  td small { display: block; font-size: 11px } dl { grid-template-columns: 1fr; gap: 0 } dd { margin-bottom: 8px } }
"""


# The pictures are in the page once: a slider takes two of its view's pictures and shows one before the other.
_SCRIPT = """
for (const grid of document.querySelectorAll(".views")) {
  const pictures = [...grid.querySelectorAll("img")];
  const renders = pictures.filter(p => p.dataset.kind === "render");
  if (!renders.length) continue;
  const start = renders.length > 1 ? [renders[0], renders[renders.length - 1]] : [renders[0], pictures[0]];
  const slider = document.createElement("div"), sides = document.createElement("div");
  const stage = document.createElement("div"), range = document.createElement("input");
  const bar = document.createElement("div");
  slider.className = "slider"; sides.className = "sides"; stage.className = "stage"; bar.className = "bar";
  range.type = "range"; range.min = 0; range.max = 100; range.step = 0.5; range.value = 50;
  range.setAttribute("aria-label", "how much of the left picture shows");
  range.addEventListener("input", () => stage.style.setProperty("--at", range.value + "%"));
  const images = ["right", "left"].map(side => {
    const image = document.createElement("img");
    image.className = side; image.width = start[0].width; image.height = start[0].height;
    stage.append(image);
    return image;
  });
  start.forEach((first, i) => {
    const image = images[1 - i], select = document.createElement("select");
    select.setAttribute("aria-label", i ? "right picture" : "left picture");
    for (const picture of pictures) select.add(new Option(picture.alt, "", false, picture === first));
    const show = () => { const p = pictures[select.selectedIndex]; image.src = p.src; image.alt = p.alt; };
    select.addEventListener("change", show);
    show();
    sides.append(select);
  });
  stage.append(range, bar);
  slider.append(sides, stage);
  slider.style.maxWidth = Math.min(720, Math.max(320, 2 * start[0].width)) + "px";  // larger shows nothing but blur
  grid.before(slider);
}
"""


def write_report(evaluated: Mapping[str, Any], output: Path, title: str) -> Path:
    """Write what `evaluate_run`, `evaluate_runs` or `evaluate_folders` returned as one self-contained HTML file, and
    return its path.

    It holds the table of figures (mean ± standard deviation), how they change along the path and over the rounds, the
    worst and the best views (truth and every variant, as a slider and side by side, with error maps and, where there
    are any, maps of what photos have seen), what the last round of a distillation proposed and how far it was trusted,
    a figure of every image, and how the figures are made. Pictures are JPEG of modest size, and at most 24 views of a
    scene, or about 170 pictures in all, are there, and about twelve views of the last rounds. Several scenes come one
    after the other, after the mean over scenes.
    """
    scenes: Mapping[str, Any] = evaluated.get("scenes") or {"": evaluated}
    body = [f"<h1>{escape(title)}</h1>"]
    if "scenes" in evaluated:
        body.append(f"<p>{counted(len(scenes), 'scene')}, {counted(evaluated['images'], 'image')}</p>")
        if evaluated["results"]:
            body += [
                "<h2>Mean over scenes</h2>",
                "<p>± is the standard deviation over scenes.</p>",
                _results(evaluated),
            ]
        if evaluated["partial"]:
            body.append(f"<p>Not in every scene: {escape(', '.join(evaluated['partial']))}.</p>")
    for name, scene in scenes.items():
        body += _scene(name, scene, len(scenes))
    made = {METRICS[key].label: how for key, how in evaluated["protocol"].items()}
    body += ["<h2>How the figures are made</h2>", _list({**evaluated["conditions"], **made})]
    page = (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{_STYLE}{CHART_STYLE}{palette()}</style></head>\n<body>\n"
        + "\n".join(body)
        + f"\n<script>{_SCRIPT}</script>\n</body></html>\n"
    )
    with atomic(output) as temporary:
        temporary.write_text(page, encoding="utf-8", errors="backslashreplace")  # names may be no UTF-8
    return output


def _scene(name: str, evaluated: Mapping[str, Any], scenes: int) -> list[str]:
    """All there is of one scene; its name is empty where there is one scene alone."""
    folders = {key: Path(folder) for key, folder in evaluated["folders"].items()}
    variants = [key for key in folders if key != TRUTH]
    per_image = evaluated["per_image"]
    upright = evaluated.get("upright", False)
    files = {key: matched_files(folders[key], folders[TRUTH]) for key in variants}
    along = list(per_image[variants[-1]])
    judge = next((key for key in METRICS if key in per_image[variants[-1]][along[0]]), None)
    stems = sorted(along, key=lambda stem: _badness(per_image[variants[-1]][stem], judge)) if judge else along
    body = [f"<h2>{escape(name)}</h2>"] if name else []
    sizes = _sizes(files[variants[-1]], upright)
    body.append(
        f"<p>{len(stems)} {'image' if len(stems) == 1 else 'images'} against the truth, {sizes}; "
        f"± is the standard deviation over images.</p>"
    )
    body.append(_results(evaluated))
    for camera, rows in evaluated.get("by_camera", {}).items():
        body += [f"<h3>Camera {escape(camera)}</h3>", _results({"results": rows, "std": {}, "folders": folders})]
    for title, charts in (
        ("Along the path", _path_charts(evaluated, variants, along, judge)),
        ("Over the rounds of distillation", _round_charts(evaluated.get("rounds") or {})),
    ):
        if drawn := "".join(charts):
            body.append(f"<h2>{escape(f'{name}: ' if name else '')}{title}</h2>")
            body.append(f'<div class="charts">{drawn}</div>')
    marked = {key: rows for key, rows in (evaluated.get("marks") or {}).items() if rows}
    body += _marked_shares(name, marked, along)
    most = max(2, min(_VIEWS, _PICTURES // scenes // (1 + 2 * len(variants) + len(marked))))
    shown = min(most, len(stems))
    best = shown // 3 if judge else 0
    worst = shown - best
    by = f"by {METRICS[judge].name} of {variants[-1]}" if judge else "in the order of their names"
    section = [
        f"<h2>{escape(f'{name}: ' if name else '')}Views, {'worst first' if judge else 'in order'}</h2>",
        f"<p>Error maps: mean absolute error over RGB, {_scale(f'{_ERROR_SCALE:g} and above')}</p>",
        *([f"<p>Maps of confidence: {_key()}</p>"] if marked else []),
    ]
    if shown < len(stems):
        section.append(
            f"<p>{shown} of {counted(len(stems), 'view')} have pictures, {escape(by)}"
            + (f": the {worst} worst and the {best} best" if judge else "")
            + "; the figures of all are below.</p>"
        )
    elif judge and shown > 1:
        section.append(f"<p>All {shown} views, {escape(by)}.</p>")
    section += [_view(stem, variants, files, per_image, marked, upright) for stem in stems[:worst]]
    if best:
        section.append(f"<h2>{escape(f'{name}: ' if name else '')}Best views, best first</h2>")
        section += [
            _view(stem, variants, files, per_image, marked, upright) for stem in stems[: len(stems) - best - 1 : -1]
        ]
    body += section
    by_run = evaluated.get("proposals") or {}
    for run, proposals in by_run.items():
        body += _proposed(run if name or len(by_run) > 1 else "", proposals, max(2, _PROPOSED // scenes // len(by_run)))
    if judge:
        heading = f"{name}: {METRICS[judge].name}" if name else METRICS[judge].name
        body += [
            f"<h2>{escape(heading)} of every image, worst first</h2>",
            _image_table(stems, variants, per_image, judge),
        ]
    if scenes > 1:
        body += ["<details><summary>Conditions</summary>", _list(evaluated["conditions"]), "</details>"]
    return body


def _badness(figures: Mapping[str, float], key: str) -> float:
    """Smaller is worse."""
    value = figures[key] if METRICS[key].higher_is_better else -figures[key]
    return math.inf if math.isnan(value) else value


def _path_charts(
    evaluated: Mapping[str, Any], variants: Sequence[str], along: Sequence[str], judge: str | None
) -> list[str]:
    """Figures of the views, and of consecutive ones, along the path."""
    charts = []
    if judge and len(along) > 2:
        order = sorted(along, key=natural_order)
        names: dict[float, str] = {0.0: order[0], float(len(order) - 1): order[-1]}
        lines = {
            name: [(float(i), evaluated["per_image"][name][stem][judge]) for i, stem in enumerate(order)]
            for name in variants
        }
        title = f"{METRICS[judge].name} of each view"
        charts.append(line_chart(title, lines, "view", names, _better(METRICS[judge].higher_is_better)))
    pairs = evaluated.get("pairs") or {}
    for key, title, note in (
        ("warped", "Warped difference of consecutive views", "After warping one onto the other, in [0, 1]; "),
        ("epipolar", "Median epipolar distance of consecutive views", "Of SIFT matches, in pixels; "),
    ):
        held = {
            name: [(float(i), pair[key]) for i, pair in enumerate(entries) if _plotted(key, pair)]
            for name, entries in ((name, pairs.get(name, [])) for name in (*variants, TRUTH))
        }
        if any(len(points) > 1 for points in held.values()):
            entries = next(pairs[name] for name, points in held.items() if points)
            ends = {0.0: entries[0]["from"], float(len(entries) - 1): entries[-1]["to"]}
            charts.append(line_chart(title, held, "pair of views", ends, note + _better(False).lower()))
    return charts


def _round_charts(rounds: Mapping[str, Mapping[str, Sequence[Sequence[float]]]]) -> list[str]:
    """What changed over the rounds, a line for each run."""
    charts = []
    for key in dict.fromkeys(key for series in rounds.values() for key in series):
        title, note = _ROUNDS.get(key, (key[:1].upper() + key[1:], ""))
        held = {
            name: [(float(x), float(y)) for x, y in series[key]] for name, series in rounds.items() if key in series
        }
        charts.append(line_chart(f"{title} by round", held, "round", note=note))
    return charts


def _better(higher: bool) -> str:
    return f"{'Higher' if higher else 'Lower'} is better."


def _plotted(key: str, pair: Mapping[str, Any]) -> bool:
    """Whether a pair has the figure; a few SIFT matches say nothing of where the epipolar lines are."""
    return key in pair and (key != "epipolar" or pair["matches"] >= MIN_MATCHES)


def _results(evaluated: Mapping[str, Any]) -> str:
    """The table of mean figures with their spread, the best of each column marked; baselines stand apart below."""
    flat = not any(isinstance(value, Mapping) for value in evaluated["results"].values())
    rows = {"images": evaluated["results"]} if flat else evaluated["results"]
    spreads = {"images": evaluated["std"]} if flat else evaluated["std"]
    keys = [key for key in METRICS if any(key in row for row in rows.values())]
    best = {}
    for key in keys:
        values = [row[key] for row in rows.values() if math.isfinite(row.get(key, math.nan))]
        if len(set(values)) > 1:
            best[key] = max(values) if METRICS[key].higher_is_better else min(values)
    lines = [
        _row(name, row, keys, best if len(rows) > 1 else {}, spread=spreads.get(name, {})) for name, row in rows.items()
    ]
    for name, row in evaluated.get("baselines", {}).items():
        label = f"{name} (σ {row['sigma']:g}, amount {row['amount']:g})"
        lines.append(_row(label, row, keys, {}, "aside"))
    if evaluated.get("reference"):
        lines.append(_row("the truth itself", evaluated["reference"], keys, {}, "aside"))
    heads = "".join(f"<th>{escape(METRICS[key].label)}</th>" for key in keys)
    return _table(f"<tr><th></th>{heads}</tr>", lines)


def _row(
    name: str,
    row: Mapping[str, float],
    keys: Sequence[str],
    best: Mapping[str, float],
    kind: str = "",
    spread: Mapping[str, float] | None = None,
) -> str:
    cells = []
    for key in keys:
        value, around = row.get(key), (spread or {}).get(key, math.nan)
        text = "–" if value is None else _number(key, value)
        if value is not None and math.isfinite(around):
            text += f" <small>± {_number(key, around)}</small>"
        cells.append(f"<td{' class=best' if value is not None and value == best.get(key) else ''}>{text}</td>")
    return f"<tr{f' class={kind}' if kind else ''}><td>{escape(name)}</td>{''.join(cells)}</tr>"


def _image_table(stems: Sequence[str], variants: Sequence[str], per_image: Mapping[str, Any], key: str) -> str:
    gains = len(variants) > 1
    heads = "".join(f"<th>{escape(name)}</th>" for name in variants) + ("<th>gain</th>" if gains else "")
    lines = []
    for stem in stems:
        values = [per_image[name][stem][key] for name in variants]
        cells = "".join(f"<td>{_number(key, value)}</td>" for value in values)
        if gains:
            # two identical images differ by inf − inf
            gain = values[-1] - values[0]
            cells += f"<td>{f'{gain:+.{METRICS[key].digits}f}' if math.isfinite(gain) else '–'}</td>"
        lines.append(f"<tr><td>{escape(stem)}</td>{cells}</tr>")
    return _table(f"<tr><th>image</th>{heads}</tr>", lines)


def _list(said: Mapping[str, str]) -> str:
    return "<dl>" + "".join(f"<dt>{escape(name)}</dt><dd>{escape(text)}</dd>" for name, text in said.items()) + "</dl>"


def _table(head: str, lines: Sequence[str]) -> str:
    return f'<div class="scroll"><table><thead>{head}</thead><tbody>{"".join(lines)}</tbody></table></div>'


def _scale(end: str) -> str:
    """The colours of error maps, and of weights, from 0 to what they end at."""
    colors = (error_colors(np.linspace(0, 1, 7)[None])[0] * 255).round().astype(int)
    ramp = ", ".join(f"rgb({r} {g} {b})" for r, g, b in colors)
    return f'<span class="scale">0<i style="background: linear-gradient(90deg, {ramp})"></i>{end}</span>'


def _key() -> str:
    """What the colours of marks say."""
    said = (f'<span><i style="background: {color}"></i>{words}</span>' for color, words in _MARKED.values())
    return f'<span class="tones">{" ".join(said)}</span>'


def _share_cells(row: Mapping[str, float] | None) -> str:
    return "".join(f"<td>{'–' if row is None else f'{row[key]:.1%}'}</td>" for key in _MARKED)


def _mean_shares(rows: Sequence[Mapping[str, float]]) -> dict[str, float]:
    return {key: float(np.mean([row[key] for row in rows])) for key in _MARKED}


def _marked_shares(
    name: str, marked: Mapping[str, Mapping[str, Mapping[str, float]]], stems: Sequence[str]
) -> list[str]:
    """How much of each variant's pictures is seen, agreed and invented: means, then every image."""
    if not marked:
        return []
    heads = f"<tr><th></th>{''.join(f'<th>{key}</th>' for key in _MARKED)}</tr>"
    means = [
        f"<tr><td>{escape(key)}</td>{_share_cells(_mean_shares(list(rows.values())))}</tr>"
        for key, rows in marked.items()
    ]
    every = [
        f"<tr><td>{escape(stem)}{escape(f', {key}' if len(marked) > 1 else '')}</td>{_share_cells(rows.get(stem))}</tr>"
        for stem in sorted(stems, key=natural_order)
        for key, rows in marked.items()
    ]
    return [
        f"<h2>{escape(f'{name}: ' if name else '')}What photos have seen</h2>",
        f"<p>Share of the pixels, mean over views. {_key()}</p>",
        _table(heads, means),
        f"<details><summary>Every view</summary>{_table(heads, every)}</details>",
    ]


def _proposed(run: str, proposals: Sequence[Mapping[str, Any]], most: int) -> list[str]:
    """What a run's last round proposed and trained on, at `most` so many with pictures, and how far it was trusted."""
    weighed = [one["mean_weight"] for one in proposals if "mean_weight" in one]
    marked = [one["shares"] for one in proposals if "shares" in one]
    if not weighed and not marked:
        return []
    end = float(max(1, math.ceil(max(one["most"] for one in proposals) - 1e-6)))
    body = [f"<h2>{escape(f'{run}: ' if run else '')}Views that round {proposals[0]['round']} trained on</h2>"]
    if weighed:
        body.append(
            f"<p>Weights: how much each pixel counts in training, where one of a photo counts once, "
            f"{_scale(f'{end:g}')}; {np.mean(weighed):.2f} on average.</p>"
        )
    if marked:
        mean = _mean_shares(marked)
        said = ", ".join(f"{key} {value:.1%}" for key, value in mean.items())
        body.append(f"<p>Maps of confidence: {_key()} On average {said}.</p>")
    shown = np.linspace(0, len(proposals) - 1, min(len(proposals), most))
    places = [round(float(place)) for place in shown]
    if len(places) < len(proposals):
        body.append(
            f"<p>{len(places)} of {counted(len(proposals), 'view')} have pictures; the figures of all are below.</p>"
        )
    body += [_proposal(proposals[place], end) for place in places]
    heads = "<tr><th>view</th>" + ("<th>mean weight</th>" if weighed else "")
    heads += ("".join(f"<th>{key}</th>" for key in _MARKED) if marked else "") + "<th></th></tr>"
    lines = []
    for one in proposals:
        cells = f"<td>{one['mean_weight']:.2f}</td>" if "mean_weight" in one else "<td>–</td>" if weighed else ""
        cells += _share_cells(one.get("shares")) if marked else ""
        lines.append(f"<tr><td>{escape(one['name'])}</td>{cells}<td>{escape(_dropped(one))}</td></tr>")
    return [*body, f"<details><summary>Every view of the round</summary>{_table(heads, lines)}</details>"]


def _dropped(one: Mapping[str, Any]) -> str:
    return "" if one["dropped"] is None else f"not trained on: {one['dropped']}"


def _proposal(one: Mapping[str, Any], end: float) -> str:
    """One view of a round: its render, what was proposed, what its pixels weigh, and what of it photos have seen."""
    parts = []
    if one["render"] is not None:
        parts.append(_figure("render", [], read_image(Path(one["render"])), "render"))
    parts.append(_figure("proposed", [_dropped(one)], read_image(Path(one["picture"])), "render"))
    if one["weight"] is not None:
        weights = error_colors(one["most"] * read_image(Path(one["weight"])).mean(axis=-1) / end)
        parts.append(_figure("weights", [f"mean {one['mean_weight']:.2f}"], weights, "map"))
    if one["marks"] is not None:
        parts.append(_figure("confidence", _said(one["shares"]), read_marks(Path(one["marks"])), "map"))
    return f'<h3>{escape(one["name"])}</h3><div class="views" style="--columns:{len(parts)}">{"".join(parts)}</div>'


def _said(shared: Mapping[str, float]) -> list[str]:
    return [f"{key} {shared[key]:.0%}" for key in _MARKED]


def _view(
    stem: str,
    variants: Sequence[str],
    files: Mapping[str, Mapping[str, tuple[Path, Path]]],
    per_image: Mapping[str, Mapping[str, Mapping[str, float]]],
    marked: Mapping[str, Mapping[str, Mapping[str, float]]],
    upright: bool,
) -> str:
    """One view: the truth and each variant's picture, then each variant's errors, then what of it photos have seen."""
    truth = read_image(files[variants[0]][stem][1], upright=upright)
    images = {name: read_image(files[name][stem][0], upright=upright) for name in variants}
    pictures: list[_Figure] = [(TRUTH, [], truth)]
    for name, image in images.items():
        figures = per_image[name][stem]
        shown = [key for key in METRICS if key in figures and key != "ssim"][:_CAPTIONS]
        pictures.append((name, [_caption(key, figures[key]) for key in shown], image))
    for name, image in images.items():
        pictures.append((f"error of {name}", [], error_map(image, truth, _ERROR_SCALE)))
    # the truth's column has no error, so the maps begin below the first variant
    columns = len(variants) + 1
    kinds = [TRUTH, *("render" for _ in variants), *("error" for _ in variants)]
    parts = [_figure(*picture, kind) for picture, kind in zip(pictures, kinds, strict=True)]
    nothing = '<figure class="empty"></figure>'
    parts.insert(columns, nothing)
    maps = {name: marked[name][stem] for name in variants if stem in marked.get(name, {})}
    if maps:
        parts.append(nothing)
        for name in variants:
            known = maps.get(name)
            parts.append(
                nothing
                if known is None
                else _figure(f"confidence of {name}", _said(known), read_marks(marks_file(files[name][stem][0])), "map")
            )
    return f'<h3>{escape(stem)}</h3><div class="views" style="--columns:{columns}">{"".join(parts)}</div>'


def _caption(key: str, value: float) -> str:
    metric = METRICS[key]
    return f"{_number(key, value)} {metric.unit}" if metric.unit else f"{metric.name} {_number(key, value)}"


def _figure(caption: str, details: Sequence[str], image: np.ndarray, kind: str) -> str:
    width = min(_WIDTH, image.shape[1])
    height = round(image.shape[0] * width / image.shape[1])
    spans = " ".join(f"<span>{escape(detail)}</span>" for detail in details)
    return (
        f'<figure><img width="{width}" height="{height}" loading="lazy" alt="{escape(caption)}" data-kind="{kind}" '
        f'src="data:image/jpeg;base64,{_jpeg(fit(image, _WIDTH))}">'
        f"<figcaption><b>{escape(caption)}</b> {spans}</figcaption></figure>"
    )


def _jpeg(image: np.ndarray) -> str:
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray((np.clip(image, 0, 1) * 255 + 0.5).astype(np.uint8)).save(buffer, "JPEG", quality=88)
    return base64.b64encode(buffer.getvalue()).decode("ascii")


def _sizes(files: Mapping[str, tuple[Path, Path]], upright: bool) -> str:
    """The images' sizes in pixels, in words."""
    sizes = {image_size(image, upright) for image, _ in files.values()}
    smallest, largest = min(sizes), max(sizes)
    one = f"{smallest[0]}×{smallest[1]}"
    return f"{one} pixels" if len(sizes) == 1 else f"{one} to {largest[0]}×{largest[1]} pixels"


def _number(key: str, value: float) -> str:
    return f"{value:.{METRICS[key].digits}f}"
