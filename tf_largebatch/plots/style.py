"""What all pictures share: sizes, colours, line styles and scales that are readable on a slide and in grey."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from tf_largebatch.files import replacing

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Okabe and Ito's palette without yellow, which is faint on white. Lines differ in style or marker too.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
GREY = "#333333"
TITLES = {
    "learning_rate": "Learning rate",
    "noise_scale": "Gradient noise scale",
    "batch_size": "Batch of an update",
    "rate": "Layer-wise rate, median",
}
# The unit of the values, on the axis; a loss has the one that its user gave it.
UNITS = {"accuracy": "share of images", "noise_scale": "examples", "batch_size": "examples"}
_SETTINGS: Any = {"font.size": 13, "axes.spines.top": False, "axes.spines.right": False}
_DPI = 120


def settings() -> Any:
    """Returns a context in which Matplotlib uses this package's settings, and no user's."""
    import matplotlib

    return matplotlib.rc_context(_SETTINGS)


def new_figure(width: float, height: float) -> Figure:
    """Returns a figure of this size in inches, whose parts do not overlap; no window opens."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    figure = Figure(figsize=(width, height), layout=ConstrainedLayoutEngine(w_pad=0.12, h_pad=0.08))
    FigureCanvasAgg(figure)
    return figure


def save(figure: Figure, path: Any) -> None:
    """Saves a picture as PNG; the file appears whole or not at all."""
    with replacing(path) as temporary:
        figure.savefig(temporary, dpi=_DPI, format="png")


def title(name: str) -> str:
    """Returns what a metric is called above its curve."""
    return TITLES.get(name, name.replace("_", " ").capitalize())


def finish_axis(axis: Any, name: str, values: Sequence[float]) -> None:
    """Gives a curve over the epochs its title, unit, grid, ticks and scale.

    Args:
        axis: Matplotlib axes.
        name: Name of the metric.
        values: All values that were drawn.
    """
    from matplotlib.ticker import MaxNLocator

    axis.set_title(title(name))
    axis.set_xlabel("epoch")
    axis.set_ylabel(UNITS.get(name, ""))
    axis.grid(alpha=0.25)
    axis.xaxis.set_major_locator(MaxNLocator(nbins=5, integer=True, min_n_ticks=1))
    left, right = axis.get_xlim()
    if right - left < 1:  # one epoch, which would get ticks at its fractions
        axis.set_xlim(left - 0.5, right + 0.5)
    if name in ("loss", "noise_scale"):
        choose_scale(axis, values)
    elif name == "learning_rate":
        axis.set_ylim(bottom=0)


def choose_scale(axis: Any, values: Sequence[float]) -> None:
    """Sets a logarithmic scale, with plain numbers at its ticks, for values that span a decade or more."""
    finite = [value for value in values if math.isfinite(value)]
    if not finite or min(finite) <= 0 or max(finite) < 10 * min(finite):
        return
    axis.set_yscale("log")
    logarithmic_ticks(axis.yaxis, min(finite), max(finite))


def logarithmic_ticks(axis: Any, low: float, high: float) -> None:
    """Gives a logarithmic x or y axis from `low` to `high` ticks with plain numbers, some of them in every decade."""
    from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

    span = high / low
    subs = (1,) if span >= 100 else (1, 2, 5) if span >= 5 else tuple(range(1, 10))
    axis.set_major_locator(LogLocator(subs=subs))
    axis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axis.set_minor_formatter(NullFormatter())


def marks(count: int) -> dict[str, Any]:
    """Returns where a line of `count` points has markers: at each of few points, else at about ten of them."""
    return {"markevery": max(1, count // 10), "markersize": 5, "linewidth": 2}
