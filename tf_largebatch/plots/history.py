"""Curves of one training run or of several, from what `fit` returned or from the directory of a run."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from tf_largebatch.callbacks.metrics import read_metrics
from tf_largebatch.check import message
from tf_largebatch.files import local_path
from tf_largebatch.plots import style
from tf_largebatch.plots.heat_map import draw_rates, height, read_rate_table
from tf_largebatch.plots.run_files import LAYERWISE_RATES, METRICS

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_HEIGHT = 4.2
_DEFAULT = ("loss", "accuracy", "learning_rate", "batch_size", "noise_scale")
# Of a run, not of its training or validation images.
_OF_THE_RUN = ("learning_rate", "batch_size", "noise_scale", "rate")
_FULL, _DASHED, _DOTTED = "-", "--", "-."
_NOT_CURVES = ("epoch", "updates", "seconds", "images_per_second")


def plot_history(
    history: Any,
    path: str | os.PathLike[str] | None = None,
    metrics: tuple[str, ...] | None = None,
    layerwise_rates: bool = True,
) -> Figure:
    """Draws the curves of one run or several in one picture, and their layer-wise rates as heat maps.

    Each run has a colour and a marker. Training is drawn with a full line, validation (`val_...`) with a dashed one,
    adversarial images (`adversarial_...`) with dashes and dots; beside them, training is that of the clean images, not
    their sum. Epochs count from 1. The heat maps, rows from the network's input to its output, share one logarithmic
    colour scale.

    Args:
        history: What `fit` returned; or a directory that holds a `metrics.csv`, a `layerwise_rates.csv` or both, such
            as that of a run of the command line (`MetricsRecorder` and `LayerwiseRateRecorder` write these files); or
            `{label: one of these}` for several runs.
        path: Where to save the picture as PNG; None not to save it. In a notebook with `%matplotlib inline`, the
            returned figure shows itself.
        metrics: Which metrics to draw, without `val_`; by default those of `loss`, `accuracy`, `learning_rate`,
            `batch_size` and `noise_scale` that were recorded.
        layerwise_rates: Whether to draw the rates, where a directory holds them.

    Returns:
        The `matplotlib.figure.Figure`.

    Raises:
        ValueError: If `history` is of another kind, if a directory holds neither file, or if no run has a metric that
            `metrics` names.
    """
    runs = history if isinstance(history, Mapping) and not _is_curves(history) else {"": history}
    if not runs:
        raise ValueError(message("history", "at least one run", runs))
    curves = {label: _curves(run) for label, run in runs.items()}
    tables = {}
    for label, run in runs.items():
        if layerwise_rates and isinstance(run, str | os.PathLike):
            updates, names, rates = read_rate_table(local_path(run, "history") / LAYERWISE_RATES)
            if len(names):
                tables[label] = (updates, names, rates)
    shown = _shown(curves, metrics)

    with style.settings():
        heights = ([_HEIGHT] if shown else []) + [height(len(names)) for _, names, _ in tables.values()]
        figure = style.new_figure(15, sum(heights))
        parts = list(np.atleast_1d(np.asarray(figure.subfigures(len(heights), 1, height_ratios=heights))))
        if shown:
            _draw_curves(parts.pop(0), curves, shown)
        positive = [rates[np.isfinite(rates) & (rates > 0)] for *_, rates in tables.values()]
        values = np.concatenate(positive) if positive else np.array([])
        limits = (values.min(), values.max()) if values.size else None
        for part, (label, table) in zip(parts, tables.items(), strict=True):
            draw_rates(part, *table, label=label, limits=limits)
        if path is not None:
            style.save(figure, path)
    return figure


def _is_curves(mapping: Mapping[str, Any]) -> bool:
    """Returns whether this is `History.history` itself and not runs by their labels."""
    return bool(mapping) and all(isinstance(values, list | tuple) for values in mapping.values())


def _curves(run: Any) -> dict[str, tuple[list[float], list[float]]]:
    """Returns `{metric: (epochs, values)}` of one run."""
    if isinstance(run, str | os.PathLike):
        rows = read_metrics(local_path(run, "history") / METRICS)
        if not rows and not (local_path(run, "history") / LAYERWISE_RATES).exists():
            rule, remedy = f"a directory that holds a {METRICS} or a {LAYERWISE_RATES}", "it holds neither"
            raise ValueError(message("history", rule, os.fspath(run), remedy))
        names = [name for name in (rows[0] if rows else {}) if name not in _NOT_CURVES]
        return {name: ([row["epoch"] for row in rows], [row[name] for row in rows]) for name in names}
    logs = getattr(run, "history", run)
    if not isinstance(logs, Mapping) or not _is_curves(logs):
        rule = "what fit() returned, the directory of a run, or {label: one of these}"
        raise ValueError(message("history", rule, run))
    epochs = list(getattr(run, "epoch", None) or range(max(map(len, logs.values()))))
    # Validation may be rarer than training (validation_freq): its last values are those of the last epochs.
    return {name: ([epoch + 1 for epoch in epochs[-len(values) :]], list(values)) for name, values in logs.items()}


def _shown(curves: Mapping[str, Mapping[str, Any]], metrics: tuple[str, ...] | None) -> list[str]:
    known = {name.removeprefix("val_") for run in curves.values() for name in run}
    if metrics is None:
        return [name for name in _DEFAULT if name in known]
    missing = [name for name in metrics if name not in known]
    if missing:
        raise ValueError(message("metrics", f"some of {', '.join(sorted(known))}", missing[0]))
    return list(metrics)


def _draw_curves(figure: Any, curves: Mapping[str, Mapping[str, Any]], shown: list[str]) -> None:
    for axis, name in zip(figure.subplots(1, len(shown), squeeze=False)[0], shown, strict=True):
        drawn: list[float] = []
        for number, (label, run) in enumerate(curves.items()):
            trained = f"clean_{name}" if f"clean_{name}" in run else name
            for column, line, kind in (
                (trained, _FULL, "training"),
                (f"adversarial_{name}", _DOTTED, "adversarial"),
                (f"val_{name}", _DASHED, "validation"),
            ):
                if column in run:
                    epochs, values = run[column]
                    if name == "noise_scale":  # infinity has no place on the scale
                        values = [value if 0 < value < math.inf else math.nan for value in values]
                    said = ": ".join(filter(None, [label, "" if name in _OF_THE_RUN else kind])) or None
                    axis.plot(epochs, values, line, label=said, **_look(number), **style.marks(len(values)))
                    drawn += values
        style.finish_axis(axis, name, drawn)
    _draw_legend(figure, curves, shown)


def _look(number: int) -> dict[str, Any]:
    """Returns the colour and the marker of a run."""
    return {
        "color": style.COLOURS[number % len(style.COLOURS)],
        "marker": style.MARKERS[number % len(style.MARKERS)],
    }


def _draw_legend(figure: Any, curves: Mapping[str, Mapping[str, Any]], shown: list[str]) -> None:
    """Draws one legend above all curves, where it covers none: runs first, then the kinds of lines."""
    from matplotlib.lines import Line2D

    said: list[tuple[str, dict[str, Any]]] = [(label, _look(number)) for number, label in enumerate(curves) if label]
    colour = style.GREY if said else style.COLOURS[0]
    kinds = [
        (kind, {"color": colour, "linestyle": line})
        for prefix, line, kind in (("adversarial_", _DOTTED, "adversarial"), ("val_", _DASHED, "validation"))
        if any(f"{prefix}{name}" in run for run in curves.values() for name in shown)
    ]
    if kinds:
        said += [("training", {"color": colour, "linestyle": _FULL}), *kinds]
    if said:
        lines = [Line2D([], [], linewidth=2, label=label, **look) for label, look in said]
        figure.legend(handles=lines, loc="outside upper center", ncols=min(len(lines), 5), frameon=False)
