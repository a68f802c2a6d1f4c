"""The picture of one run: curves over the epochs, and the layer-wise rates as a heat map."""

from __future__ import annotations

import math
import os
import pathlib
from typing import Any

import numpy as np

from tf_largebatch.callbacks.metrics import read_metrics
from tf_largebatch.callbacks.noise_scale import readable_noise_scale
from tf_largebatch.files import local_path
from tf_largebatch.plots import style
from tf_largebatch.plots.heat_map import draw_rates, height, read_rate_table
from tf_largebatch.plots.run_files import CURVES, LAYERWISE_RATES, METRICS

_HEIGHT = 4.6
_TRAIN, _EVALUATION, _ADVERSARIAL = style.COLOURS[:3]


def plot_curves(
    output_dir: str | os.PathLike[str], evaluation: str = "test", batch_size: int | None = None
) -> pathlib.Path:
    """Draws `curves.png` from `metrics.csv` and `layerwise_rates.csv`.

    The upper part shows loss, accuracy, learning rate and, where measured, the gradient noise scale over the epochs.
    The lower part shows, for CLARS and LARS, the layer-wise rate of every adapted tensor (rows from input to output)
    over the updates, in logarithmic colours.

    Args:
        output_dir: Directory of a run.
        evaluation: What the `val_` columns were measured on, for the legend.
        batch_size: Batch size to draw beside the noise scale.

    Returns:
        Path of the picture.

    Raises:
        ValueError: If the directory holds no metrics.
    """
    output_dir = local_path(output_dir, "output_dir")
    rows = read_metrics(output_dir / METRICS)
    if not rows:
        raise ValueError(f"output_dir must hold a {METRICS}; received {str(output_dir)!r}.")
    updates, names, rates = read_rate_table(output_dir / LAYERWISE_RATES)
    with style.settings():
        figure = style.new_figure(15, _HEIGHT + height(len(names)))
        top: Any = figure
        if names:
            top, bottom = np.asarray(figure.subfigures(2, 1, height_ratios=[_HEIGHT, height(len(names))]))
            draw_rates(bottom, updates, names, rates)
        _draw_metrics(top, rows, evaluation, batch_size)
        path = output_dir / CURVES
        style.save(figure, path)
    return path


def _draw_metrics(figure: Any, rows: list[dict[str, Any]], evaluation: str, batch_size: int | None) -> None:
    shown = [name for name in ("loss", "accuracy") if name in rows[0]]
    has_noise_scale = any(row.get("noise_scale", 0) > 0 for row in rows)
    axes = figure.subplots(1, len(shown) + 1 + has_noise_scale, squeeze=False)[0]
    epochs = [row["epoch"] for row in rows]
    look = style.marks(len(rows))
    for axis, name in zip(axes, shown, strict=False):
        # Where adversarial images have a loss of their own, it stands beside that of the clean images, not their sum.
        trained = f"clean_{name}" if f"clean_{name}" in rows[0] else name
        drawn: list[float] = []
        for column, colour, line, marker, label in (
            (trained, _TRAIN, "-", "o", "training"),
            (f"adversarial_{name}", _ADVERSARIAL, "-.", "^", "adversarial"),
            (f"val_{name}", _EVALUATION, "--", "s", evaluation),
        ):
            if column in rows[0]:
                values = [row[column] for row in rows]
                axis.plot(epochs, values, line, color=colour, marker=marker, label=f"{label}: {values[-1]:.4g}", **look)
                drawn += values
        style.finish_axis(axis, name, drawn)
    learning_rate = axes[len(shown)]
    values = [row["learning_rate"] for row in rows]
    learning_rate.plot(epochs, values, color=style.GREY, marker="o", label=f"last: {values[-1]:.3g}", **look)
    style.finish_axis(learning_rate, "learning_rate", values)
    if has_noise_scale:
        _draw_noise_scale(axes[-1], rows, batch_size)
    for axis in axes:
        # Below the axes, where a legend covers no curve; it says the last values.
        axis.legend(frameon=False, loc="upper center", bbox_to_anchor=(0.5, -0.18), fontsize=12)


def _draw_noise_scale(axis: Any, rows: list[dict[str, Any]], batch_size: int | None) -> None:
    """Draws the gradient noise scale over the epochs beside the batch size, on a logarithmic scale."""
    values = [row.get("noise_scale", math.nan) for row in rows]
    # Zero and infinity have no place on the scale.
    known = [(row["epoch"], v) for row, v in zip(rows, values, strict=True) if 0 < v < math.inf]
    said = readable_noise_scale(values[-1]).partition(":")[0]
    axis.plot(
        *(zip(*known, strict=True) if known else ((), ())),
        color=_TRAIN,
        marker="o",
        label=f"last: {said}",
        **style.marks(len(known)),
    )
    if not known:
        axis.set_xlim(rows[0]["epoch"] - 0.5, rows[-1]["epoch"] + 0.5)
    drawn = [value for _, value in known]
    if batch_size is not None:
        axis.axhline(batch_size, color=style.GREY, linestyle="--", linewidth=2, label=f"batch size: {batch_size}")
        drawn.append(batch_size)
    style.finish_axis(axis, "noise_scale", drawn)
