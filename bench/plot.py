"""The two plots of the page, as SVG: bars in groups, and lines over logarithmic axes. Readable on white and black."""

import io
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_GREY: Final = "#7d8590"
_COLOURS: Final = ("#2f6fde", "#8a8f98", "#c9892b", "#2a9d6f")
_INCHES: Final = (7.6, 3.6)


def bars(title: str, groups: Mapping[str, Mapping[str, float]]) -> bytes:
    """Groups of bars from zero; every group names the same series, in the same order."""
    figure, axes = _drawing(title)
    series = list(next(iter(groups.values())))
    width = 0.8 / len(series)
    for number, (name, colour) in enumerate(zip(series, _COLOURS, strict=False)):
        places = [group + (number - (len(series) - 1) / 2) * width for group in range(len(groups))]
        drawn = axes.bar(places, [group[name] for group in groups.values()], width * 0.9, label=name, color=colour)
        axes.bar_label(drawn, fmt="{:,.0f}", color=_GREY, fontsize=8)
    axes.set_xticks(range(len(groups)), list(groups))
    axes.yaxis.set_major_formatter("{x:,.0f}")
    return _svg(figure, axes)


def lines(title: str, x_title: str, series: Mapping[str, Sequence[tuple[float, float]]]) -> bytes:
    """Lines through (x, y), both axes logarithmic."""
    figure, axes = _drawing(title)
    for (name, points), colour in zip(series.items(), _COLOURS, strict=False):
        axes.loglog([x for x, _ in points], [y for _, y in points], marker="o", markersize=4, label=name, color=colour)
    axes.set_xlabel(x_title, color=_GREY)
    axes.xaxis.set_major_formatter("{x:,.0f}")
    axes.yaxis.set_major_formatter("{x:g}")
    return _svg(figure, axes)


def _drawing(title: str) -> "tuple[Figure, Axes]":
    # Imported where it is used: it takes a second to load, and what collects the tests imports this module.
    from matplotlib.figure import Figure  # noqa: PLC0415

    figure = Figure(figsize=_INCHES, layout="constrained")
    axes = figure.add_subplot()
    axes.set_title(title, color=_GREY, fontsize=10)
    axes.grid(visible=True, axis="y", color=_GREY, alpha=0.3)
    axes.set_axisbelow(True)
    return figure, axes


def _svg(figure: "Figure", axes: "Axes") -> bytes:
    """The figure, its colours made for any ground; the same figures make the same bytes."""
    from matplotlib import rc_context  # noqa: PLC0415

    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.spines["bottom"].set_color(_GREY)
    axes.tick_params(which="both", colors=_GREY, length=0, labelsize=9)
    axes.legend(frameon=False, labelcolor=_GREY, ncols=4, fontsize=9, loc="upper center", bbox_to_anchor=(0.5, -0.16))
    drawn = io.BytesIO()
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": "redrive", "font.family": ["system-ui", "sans-serif"]}):
        figure.savefig(drawn, format="svg", transparent=True, metadata={"Date": None})
    return drawn.getvalue()
