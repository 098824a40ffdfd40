"""Line charts as inline SVG, drawn in the colours of the page they stand in: `.line0` … `.line7`."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape

COLORS = 8
"""Lines of a chart have the classes line0 to line7, and begin again after that."""

_WIDTH, _HEIGHT = 480, 230
_LEFT, _RIGHT, _TOP, _BOTTOM = 58, 12, 12, 40
_TICKS = 4
_DOTS = 40  # points of a line up to which each has a dot

STYLE = """
.charts { display: grid; gap: 8px 32px; grid-template-columns: repeat(auto-fit, minmax(min(100%, 400px), 1fr)) }
.chart { margin: 12px 0 } .chart svg { display: block; width: 100%; max-width: 640px; height: auto }
.chart text { font-size: 13px; fill: var(--soft) } .chart .grid { stroke: var(--line) }
.chart polyline { fill: none; stroke-width: 2; stroke-linejoin: round }
.chart figcaption b { display: block } .key { display: inline-block; margin-right: 14px; white-space: nowrap }
.key i { display: inline-block; width: 14px; height: 3px; margin-right: 5px; vertical-align: middle }
@media (max-width: 640px) { .chart text { font-size: 16px } }
"""
_LIGHT = ("#1f6fd1", "#d9480f", "#0b7a4b", "#8a3ffc", "#b5830b", "#c2255c", "#0c8599", "#5c5f66")
_DARK = ("#6ea8fe", "#ff922b", "#51cf8a", "#c39bff", "#f2c94c", "#ff7aa8", "#4fd1e0", "#adb5bd")


def palette() -> str:
    """The lines' colours in a light and in a dark page, as CSS."""

    def rules(colors: Sequence[str]) -> str:
        return " ".join(
            f".line{i} {{ stroke: {color}; fill: {color}; background: {color} }}" for i, color in enumerate(colors)
        )

    return f"{rules(_LIGHT)}\n@media (prefers-color-scheme: dark) {{ {rules(_DARK)} }}\n"


def line_chart(
    title: str,
    lines: Mapping[str, Sequence[tuple[float, float]]],
    x_label: str,
    names: Mapping[float, str] | None = None,
    note: str = "",
) -> str:
    """One chart as an HTML figure: a line for each name through its points (x, y), with a legend of several lines.

    Points that are not finite are left out. `names` are what stands on the x axis instead of numbers; `note` says
    under the title what is drawn.
    """
    whole = {
        name: [(x, y) for x, y in points if math.isfinite(x) and math.isfinite(y)] for name, points in lines.items()
    }
    points = [point for line in whole.values() for point in line]
    if not points:
        return ""
    xs, ys = [x for x, _ in points], [y for _, y in points]
    left, right = min(xs), max(xs)
    ticks = _ticks(min(ys), max(ys))
    low, high = min(*ys, ticks[0]), max(*ys, ticks[-1])

    def at(x: float, y: float) -> tuple[float, float]:
        across = 0.5 if right == left else (x - left) / (right - left)
        up = (y - low) / (high - low)
        return _LEFT + across * (_WIDTH - _LEFT - _RIGHT), _HEIGHT - _BOTTOM - up * (_HEIGHT - _TOP - _BOTTOM)

    parts = []
    digits = max(0, min(6, -math.floor(math.log10(ticks[1] - ticks[0])) if ticks[1] > ticks[0] else 2))
    for tick in ticks:
        _, y = at(left, tick)
        parts.append(f'<line class="grid" x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(f'<text x="{_LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{tick:.{digits}f}</text>')
    for x in sorted(names or {left, right, *(x for x in xs if len(set(xs)) <= 8)}):
        place, _ = at(x, low)
        anchor = "middle" if left < x < right or left == right else "start" if x == left else "end"
        label = (names or {}).get(x, f"{x:g}")
        parts.append(f'<text x="{place:.1f}" y="{_HEIGHT - 22}" text-anchor="{anchor}">{escape(label)}</text>')
    parts.append(
        f'<text x="{(_LEFT + _WIDTH - _RIGHT) / 2}" y="{_HEIGHT - 4}" text-anchor="middle">{escape(x_label)}</text>'
    )
    keys = []
    for i, (name, line) in enumerate(whole.items()):
        color = f"line{i % COLORS}"
        places = [at(x, y) for x, y in line]
        parts.append(f'<polyline class="{color}" points="{" ".join(f"{x:.1f},{y:.1f}" for x, y in places)}"/>')
        if len(places) <= _DOTS:
            parts += [f'<circle class="{color}" cx="{x:.1f}" cy="{y:.1f}" r="2.5"/>' for x, y in places]
        keys.append(f'<span class="key"><i class="{color}"></i>{escape(name)}</span>')
    legend = f"<figcaption>{''.join(keys)}</figcaption>" if len(keys) > 1 else ""
    return (
        f'<figure class="chart"><figcaption><b>{escape(title)}</b>{escape(note)}</figcaption>'
        f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{escape(title)}">{"".join(parts)}</svg>'
        f"{legend}</figure>"
    )


def _ticks(low: float, high: float) -> list[float]:
    """A few round numbers that span the values."""
    if high - low < 1e-12:
        margin = abs(high) * 0.1 or 1.0
        low, high = low - margin, high + margin
    rough = (high - low) / _TICKS
    scale = 10 ** math.floor(math.log10(rough))
    step = next(factor * scale for factor in (1, 2, 5, 10) if factor * scale >= rough * (1 - 1e-9))
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [i * step for i in range(first, last + 1)]
