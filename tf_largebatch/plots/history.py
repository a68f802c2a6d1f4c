"""Curves of one training run or of several, from what `fit` returned or what the command line left behind."""

from __future__ import annotations

import math
import os
import pathlib
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from tf_largebatch.callbacks.metrics import read_metrics
from tf_largebatch.files import replacing
from tf_largebatch.plots.curves import choose_scale, draw_rates, map_height, read_rate_table, style
from tf_largebatch.plots.run_files import LAYERWISE_RATES, METRICS

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Okabe and Ito's palette without yellow, which is faint on white; told apart under every common colour blindness.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000")
_TITLES = {
    "learning_rate": "Learning rate",
    "noise_scale": "Gradient noise scale, examples",
    "rate": "Layer-wise rate, median over tensors",
}
_DEFAULT = ("loss", "accuracy", "learning_rate", "noise_scale")
# Of one run, not of its training or validation images.
_OF_THE_RUN = ("learning_rate", "noise_scale", "rate")
_FULL, _DASHED = "-", "--"
_NOT_CURVES = ("epoch", "updates", "seconds", "images_per_second")


def plot_history(
    history: Any,
    path: str | os.PathLike[str] | None = None,
    metrics: tuple[str, ...] | None = None,
    layerwise_rates: bool = True,
) -> Figure:
    """Draws the curves of a run, or of several in one picture, and their layer-wise rates as heat maps.

    Training is drawn with a full line, validation (`val_...`) with a dashed one, in the run's colour; epochs count
    from 1. The heat maps, rows from the network's input to its output, share one logarithmic colour scale.

    Args:
        history: What `fit` returned; or the directory of a run of the command line, or any directory with a
            `metrics.csv`, a `layerwise_rates.csv` (as `MetricsRecorder` and `LayerwiseRateRecorder` write them) or
            both; or `{label: one of these}` for several runs.
        path: Where to save the picture; None to save none. In a notebook with `%matplotlib inline`
            the returned figure shows itself.
        metrics: Which metrics to draw, without `val_`; by default `loss`, `accuracy`, `learning_rate` and
            `noise_scale` as far as they are there.
        layerwise_rates: Whether to draw the rates, where a directory holds them.

    Returns:
        The `matplotlib.figure.Figure`.

    Raises:
        ValueError: If `history` is of another kind, a directory is missing or empty, or no run has a metric asked
            for.
    """
    runs = history if isinstance(history, Mapping) and not _is_curves(history) else {"": history}
    if not runs:
        raise ValueError("`history` must hold at least one run; received an empty mapping.")
    curves = {label: _curves(run) for label, run in runs.items()}
    tables = {}
    for label, run in runs.items():
        if layerwise_rates and isinstance(run, str | os.PathLike):
            updates, names, rates = read_rate_table(pathlib.Path(run) / LAYERWISE_RATES)
            if len(names):
                tables[label] = (updates, names, rates)
    shown = _shown(curves, metrics)

    import matplotlib
    import numpy as np
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    with matplotlib.rc_context(style()):
        heights = ([4.2] if shown else []) + [map_height(len(names)) for _, names, _ in tables.values()]
        figure = Figure(figsize=(14, sum(heights)), layout="constrained")
        FigureCanvasAgg(figure)
        parts = list(np.atleast_1d(np.asarray(figure.subfigures(len(heights), 1, height_ratios=heights))))
        if shown:
            _draw_curves(parts.pop(0), curves, shown)
        positive = [rates[np.isfinite(rates) & (rates > 0)] for *_, rates in tables.values()]
        values = np.concatenate(positive) if positive else np.array([])
        limits = (values.min(), values.max()) if values.size else None
        for part, (label, table) in zip(parts, tables.items(), strict=True):
            draw_rates(part, *table, label=label, limits=limits)
        if path is not None:
            with replacing(path) as temporary:
                figure.savefig(temporary, dpi=120)
    return figure


def _is_curves(mapping: Mapping[str, Any]) -> bool:
    """Whether this is `History.history` itself and not runs by their labels."""
    return bool(mapping) and all(isinstance(values, list | tuple) for values in mapping.values())


def _curves(run: Any) -> dict[str, tuple[list[float], list[float]]]:
    """`{metric: (epochs, values)}` of one run."""
    if isinstance(run, str | os.PathLike):
        rows = read_metrics(pathlib.Path(run) / METRICS)
        if not rows and not (pathlib.Path(run) / LAYERWISE_RATES).exists():
            raise ValueError(
                f"`history`: the directory {os.fspath(run)!r} must hold a {METRICS} or a "
                f"{LAYERWISE_RATES}; it holds neither."
            )
        names = [name for name in (rows[0] if rows else {}) if name not in _NOT_CURVES]
        return {name: ([row["epoch"] for row in rows], [row[name] for row in rows]) for name in names}
    logs = getattr(run, "history", run)
    if not isinstance(logs, Mapping) or not _is_curves(logs):
        raise ValueError(
            "`history` must be what fit() returned, the directory of a run, or {label: one of these}; received "
            f"{type(run).__name__}."
        )
    epochs = list(getattr(run, "epoch", None) or range(max(map(len, logs.values()))))
    # Validation may be rarer than training (validation_freq): its last values are those of the last epochs.
    return {name: ([epoch + 1 for epoch in epochs[-len(values) :]], list(values)) for name, values in logs.items()}


def _shown(curves: Mapping[str, Mapping[str, Any]], metrics: tuple[str, ...] | None) -> list[str]:
    known = {name.removeprefix("val_") for run in curves.values() for name in run}
    if metrics is None:
        return [name for name in _DEFAULT if name in known]
    missing = [name for name in metrics if name not in known]
    if missing:
        raise ValueError(f"`metrics` must be some of {', '.join(sorted(known))}; received {missing[0]!r}.")
    return list(metrics)


def _draw_curves(figure: Any, curves: Mapping[str, Mapping[str, Any]], shown: list[str]) -> None:
    from matplotlib.ticker import MaxNLocator

    for axis, name in zip(figure.subplots(1, len(shown), squeeze=False)[0], shown, strict=True):
        drawn: list[float] = []
        for number, (label, run) in enumerate(curves.items()):
            colour = COLOURS[number % len(COLOURS)]
            for column, line, kind in ((name, _FULL, "training"), (f"val_{name}", _DASHED, "validation")):
                if column in run:
                    epochs, values = run[column]
                    if name == "noise_scale":  # an infinity has no place on the scale
                        values = [value if 0 < value < math.inf else math.nan for value in values]
                    said = ": ".join(filter(None, [label, "" if name in _OF_THE_RUN else kind]))
                    axis.plot(
                        epochs,
                        values,
                        line,
                        color=colour,
                        label=said or None,
                        marker="o" if len(values) < 25 else None,
                        markersize=4,
                        linewidth=2,
                    )
                    drawn += values
        axis.set_title(_TITLES.get(name, name.replace("_", " ").capitalize()))
        axis.set_xlabel("epoch")
        axis.grid(alpha=0.25)
        axis.xaxis.set_major_locator(MaxNLocator(integer=True))
        if name in ("loss", "noise_scale"):
            choose_scale(axis, drawn)
        elif name == "learning_rate":
            axis.set_ylim(bottom=0)
    _draw_legend(figure, curves, shown)


def _draw_legend(figure: Any, curves: Mapping[str, Mapping[str, Any]], shown: list[str]) -> None:
    """One legend above all curves, where it covers none: a colour for each run, a line for training and validation."""
    from matplotlib.lines import Line2D

    said: list[tuple[str, dict[str, Any]]] = [
        (label, {"color": COLOURS[number % len(COLOURS)]}) for number, label in enumerate(curves) if label
    ]
    if any(f"val_{name}" in run for run in curves.values() for name in shown):
        colour = COLOURS[0] if not said else "#555555"
        said += [
            ("training", {"color": colour, "linestyle": _FULL}),
            ("validation", {"color": colour, "linestyle": _DASHED}),
        ]
    if said:
        lines = [Line2D([], [], linewidth=2, label=label, **look) for label, look in said]
        figure.legend(handles=lines, loc="outside upper center", ncols=min(len(lines), 5), frameon=False)
