"""The two plots of the page, as SVG: bars in groups, and lines over logarithmic axes. Readable on white and black."""

import math
from collections.abc import Mapping, Sequence
from typing import Final

import pygal
from pygal.style import Style

_GREY: Final = "#7d8590"
_STYLE: Final = Style(
    background="transparent",
    plot_background="transparent",
    foreground=_GREY,
    foreground_strong=_GREY,
    foreground_subtle="#7d859044",
    value_colors=(_GREY,) * 4,
    guide_stroke_color="#7d859044",
    major_guide_stroke_color="#7d859044",
    opacity=1,
    colors=("#2f6fde", "#8a8f98", "#c9892b", "#2a9d6f"),
    font_family="system-ui, sans-serif",
    title_font_size=14,
    label_font_size=12,
    legend_font_size=12,
    value_font_size=11,
)


def bars(title: str, groups: Mapping[str, Mapping[str, float]]) -> bytes:
    """Groups of bars from zero; every group names the same series, in the same order."""
    chart = pygal.Bar(
        title=title,
        style=_STYLE,
        width=760,
        height=340,
        no_prefix=True,  # the same figures make the same file
        js=(),  # a script in an image is never run, and no page should have to fetch one
        print_values=True,
        print_values_position="top",
        y_labels_major_count=0,
        legend_at_bottom=True,
        legend_at_bottom_columns=4,
        margin=10,
        range=(0, None),
        formatter=lambda value: f"{value:,.0f}",
    )
    chart.x_labels = list(groups)
    for name in next(iter(groups.values())):
        chart.add(name, [group[name] for group in groups.values()])
    return bytes(chart.render())


def lines(title: str, x_title: str, series: Mapping[str, Sequence[tuple[float, float]]]) -> bytes:
    """Lines through (x, y), both axes logarithmic. Every series has the same x."""
    chart = pygal.Line(
        title=title,
        x_title=x_title,
        y_labels=_powers_around([y for points in series.values() for _, y in points]),
        style=_STYLE,
        width=760,
        height=360,
        no_prefix=True,
        js=(),
        logarithmic=True,
        legend_at_bottom=True,
        legend_at_bottom_columns=4,
        margin=10,
        margin_right=40,
        stroke_style={"width": 2},
        value_formatter=lambda value: f"{value:g}",
    )
    chart.x_labels = [f"{x:,.0f}" for x, _ in next(iter(series.values()))]  # tenfold each: evenly spaced is logarithmic
    for name, points in series.items():
        chart.add(name, [y for _, y in points])
    return bytes(chart.render())


def _powers_around(values: Sequence[float]) -> list[float]:
    """The powers of ten from the one at or below the smallest value to the one at or above the largest."""
    low, high = math.floor(math.log10(min(values))), math.ceil(math.log10(max(values)))
    return [10.0**power for power in range(low, max(high, low + 1) + 1)]
