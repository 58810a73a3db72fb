"""SVG, a few lines of it: bars in groups, and lines over logarithmic axes. Readable on white and on black."""

import math
from collections.abc import Mapping, Sequence
from typing import Final
from xml.sax.saxutils import escape

_COLOURS: Final = ("#2f6fde", "#8a8f98", "#c9892b", "#2a9d6f")
_WIDTH: Final = 760
_HEIGHT: Final = 320
_LEFT: Final = 70
_TOP: Final = 48
_BOTTOM: Final = 44
_FONT: Final = "font-family='system-ui, sans-serif' font-size='12' fill='#7d8590'"


def bars(title: str, groups: Mapping[str, Mapping[str, float]]) -> str:
    """Groups of bars from zero; every group names the same series, in the same order."""
    series = list(next(iter(groups.values())))
    top = max(value for group in groups.values() for value in group.values())
    floor = _HEIGHT - _BOTTOM
    height = floor - _TOP
    per_group = (_WIDTH - _LEFT - 20) / len(groups)
    width = per_group / (len(series) + 1)
    parts = []
    for step in range(5):
        y = floor - height * step / 4
        parts += [_line(_LEFT, y, _WIDTH - 20, y), _text(_LEFT - 8, y + 4, f"{top * step / 4:,.0f}", "end")]
    for number, (name, group) in enumerate(groups.items()):
        left = _LEFT + number * per_group
        parts.append(_text(left + per_group / 2, floor + 20, name, "middle"))
        for place, each in enumerate(series):
            value = group[each]
            tall = height * value / top
            x = left + (place + 0.5) * width
            parts.append(
                f"<rect x='{x:.1f}' y='{floor - tall:.1f}' width='{width * 0.9:.1f}' height='{tall:.1f}'"
                f" fill='{_COLOURS[place % len(_COLOURS)]}'/>"
            )
            parts.append(_text(x + width * 0.45, floor - tall - 4, f"{value:,.0f}", "middle"))
    return _framed(title, series, parts)


def lines(title: str, x_title: str, series: Mapping[str, Sequence[tuple[float, float]]]) -> str:
    """Lines through points, both axes logarithmic with a mark at each power of ten."""
    points = [point for line in series.values() for point in line]
    left, right = _powers([x for x, _ in points])
    low, high = _powers([y for _, y in points])
    floor = _HEIGHT - _BOTTOM

    def place(x: float, y: float) -> tuple[float, float]:
        across = (math.log10(x) - left) / (right - left)
        up = (math.log10(y) - low) / (high - low)
        return _LEFT + across * (_WIDTH - _LEFT - 40), floor - up * (floor - _TOP)

    parts = []
    for power in range(low, high + 1):
        y = place(10**left, 10.0**power)[1]
        parts += [_line(_LEFT, y, _WIDTH - 40, y), _text(_LEFT - 8, y + 4, f"{10.0**power:g}", "end")]
    for power in range(left, right + 1):
        x = place(10.0**power, 10.0**low)[0]
        parts.append(_text(x, floor + 18, f"{10**power:,}", "middle"))
    parts.append(_text((_LEFT + _WIDTH) / 2, floor + 36, x_title, "middle"))
    for number, line in enumerate(series.values()):
        colour = _COLOURS[number % len(_COLOURS)]
        placed = [place(x, y) for x, y in line]
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in placed)
        parts.append(f"<polyline points='{path}' fill='none' stroke='{colour}' stroke-width='2'/>")
        parts += [f"<circle cx='{x:.1f}' cy='{y:.1f}' r='3' fill='{colour}'/>" for x, y in placed]
    return _framed(title, list(series), parts)


def _powers(values: Sequence[float]) -> tuple[int, int]:
    low = math.floor(math.log10(min(values)))
    return low, max(low + 1, math.ceil(math.log10(max(values))))


def _line(x1: float, y1: float, x2: float, y2: float) -> str:
    return f"<line x1='{x1:.1f}' y1='{y1:.1f}' x2='{x2:.1f}' y2='{y2:.1f}' stroke='#7d8590' stroke-opacity='0.3'/>"


def _text(x: float, y: float, text: str, anchor: str) -> str:
    return f"<text x='{x:.1f}' y='{y:.1f}' text-anchor='{anchor}' {_FONT}>{escape(text)}</text>"


def _framed(title: str, series: Sequence[str], parts: Sequence[str]) -> str:
    key = []
    x = float(_LEFT)
    for number, name in enumerate(series):
        key.append(f"<rect x='{x}' y='26' width='10' height='10' fill='{_COLOURS[number % len(_COLOURS)]}'/>")
        key.append(_text(x + 15, 35, name, "start"))
        x += 40 + 7 * len(name)
    body = "\n".join([_text(_LEFT, 16, title, "start"), *key, *parts])
    return f"<svg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 {_WIDTH} {_HEIGHT}' role='img'>\n{body}\n</svg>\n"
