"""Curves of a run, and its layer-wise rates as a heat map."""

from __future__ import annotations

import math
import os
import pathlib
from typing import Any

import numpy as np

from tf_largebatch.callbacks.layerwise_rates import read_layerwise_rates
from tf_largebatch.callbacks.metrics import read_metrics
from tf_largebatch.callbacks.noise_scale import readable_noise_scale
from tf_largebatch.files import replacing
from tf_largebatch.plots.run_files import CURVES, LAYERWISE_RATES, METRICS

# Okabe and Ito's blue, vermillion and bluish green: told apart under every common colour blindness.
_TRAIN, _EVALUATION, _ADVERSARIAL, _OTHER = "#0072B2", "#D55E00", "#009E73", "#333333"
_LABELLED_ROWS = 32


def plot_curves(
    output_dir: str | os.PathLike[str], evaluation: str = "test", batch_size: int | None = None
) -> pathlib.Path:
    """Draws `curves.png` from `metrics.csv` and `layerwise_rates.csv`.

    Loss, accuracy, learning rate and, where measured, the gradient noise scale over the epochs; below them, for
    CLARS and LARS, the layer-wise rate of every adapted tensor (rows from input to output) over the updates, in
    logarithmic colours.

    Args:
        output_dir: Directory of a run.
        evaluation: What the `val_` columns were measured on, for the legend.
        batch_size: To be drawn beside the noise scale.

    Returns:
        Path of the picture.

    Raises:
        ValueError: If the directory holds no metrics.
    """
    output_dir = pathlib.Path(output_dir)
    rows = read_metrics(output_dir / METRICS)
    if not rows:
        raise ValueError(f"output_dir must hold a {METRICS}; received {str(output_dir)!r}.")
    updates, names, rates = read_rate_table(output_dir / LAYERWISE_RATES)

    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    with matplotlib.rc_context(style()):
        height = map_height(len(names)) if len(names) else 0.0
        figure = Figure(figsize=(14, 4.2 + height), layout=ConstrainedLayoutEngine(w_pad=0.12, h_pad=0.08))
        FigureCanvasAgg(figure)
        top: Any = figure
        if len(names):
            top, bottom = np.asarray(figure.subfigures(2, 1, height_ratios=[4.2, height]))
            draw_rates(bottom, updates, names, rates)
        _draw_metrics(top, rows, evaluation, batch_size)
        path = output_dir / CURVES
        with replacing(path) as temporary:
            figure.savefig(temporary, dpi=120)
    return path


def _draw_metrics(figure: Any, rows: list[dict[str, Any]], evaluation: str, batch_size: int | None) -> None:
    from matplotlib.ticker import MaxNLocator

    shown = [name for name in ("loss", "accuracy") if name in rows[0]]
    has_noise_scale = any(0 < row.get("noise_scale", 0) < math.inf for row in rows)
    all_axes = figure.subplots(1, len(shown) + 1 + has_noise_scale, squeeze=False)[0]
    axes, learning_rate = all_axes[: len(shown)], all_axes[len(shown)]
    if has_noise_scale:
        draw_noise_scale(all_axes[-1], rows, batch_size)
    epochs = [row["epoch"] for row in rows]
    marker = "o" if len(rows) < 25 else None
    for axis, name in zip(axes, shown, strict=True):
        # Beside a loss of its own for the copies, that of the clean images, and not their sum.
        trained = f"clean_{name}" if f"clean_{name}" in rows[0] else name
        for column, colour, label in (
            (trained, _TRAIN, "training"),
            (f"adversarial_{name}", _ADVERSARIAL, "adversarial copies"),
            (f"val_{name}", _EVALUATION, evaluation),
        ):
            if column in rows[0]:
                values = [row[column] for row in rows]
                axis.plot(epochs, values, color=colour, label=label, marker=marker, markersize=4, linewidth=2)
        last = rows[-1].get(f"val_{name}")
        axis.set_title(name.capitalize() + ("" if last is None else f" ({evaluation}: {last:.4f})"))
        axis.legend(frameon=False)
        if name == "loss":
            choose_scale(axis, [value for line in axis.get_lines() for value in line.get_ydata()])
    learning_rate.plot(
        epochs,
        [row["learning_rate"] for row in rows],
        color=_OTHER,
        marker=marker,
        markersize=4,
        linewidth=2,
    )
    learning_rate.set_title("Learning rate")
    learning_rate.set_ylim(bottom=0)
    for axis in all_axes:
        axis.set_xlabel("epoch")
        axis.grid(alpha=0.25)
        axis.xaxis.set_major_locator(MaxNLocator(integer=True))


def draw_noise_scale(axis: Any, rows: list[dict[str, Any]], batch_size: int | None) -> None:
    """Draws the gradient noise scale over the epochs beside the batch size, on a logarithmic scale."""
    from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

    values = [row.get("noise_scale", math.nan) for row in rows]
    # A zero or an infinity has no place on the scale.
    known = [(row["epoch"], v) for row, v in zip(rows, values, strict=True) if 0 < v < math.inf]
    axis.plot(*zip(*known, strict=True), color=_TRAIN, marker="o", markersize=4, linewidth=2, label="noise scale")
    if batch_size is not None:
        axis.axhline(batch_size, color=_OTHER, linestyle="--", linewidth=2, label=f"your batch: {batch_size}")
    axis.set_yscale("log")
    axis.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axis.yaxis.set_minor_formatter(NullFormatter())
    axis.set_title(f"Gradient noise scale ({readable_noise_scale(values[-1])})")
    axis.legend(frameon=False)


def choose_scale(axis: Any, values: list[float]) -> None:
    """A logarithmic scale for what spans a decade, with whole numbers at its ticks."""
    from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

    finite = [value for value in values if math.isfinite(value)]
    if not finite or min(finite) <= 0 or max(finite) < 10 * min(finite):
        return
    axis.set_yscale("log")
    subs = (1, 2, 5) if max(finite) < 100 * min(finite) else (1,)
    axis.yaxis.set_major_locator(LogLocator(subs=subs))
    axis.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axis.yaxis.set_minor_formatter(NullFormatter())


def style() -> Any:
    """Matplotlib settings of every picture: legible on a slide."""
    return {"font.size": 13, "axes.spines.top": False, "axes.spines.right": False}


def map_height(tensors: int) -> float:
    """Height of a heat map of so many rows, inches."""
    return float(np.clip(0.26 * tensors + 1.6, 3.6, 11.0))


def draw_rates(
    figure: Any,
    updates: np.ndarray,
    names: list[str],
    rates: np.ndarray,
    label: str = "",
    limits: tuple[float, float] | None = None,
) -> None:
    """Draws layer-wise rates as a heat map with logarithmic colours.

    Args:
        figure: Matplotlib figure or subfigure.
        updates: Numbers of the recorded updates, [U].
        names: Paths of the tensors, K of them.
        rates: Their rates, [K, U], NaN where none was recorded.
        label: Name of the run, for the title.
        limits: Lowest and highest colour, to share between maps; by default those of `rates`.
    """
    import matplotlib
    from matplotlib.colors import LogNorm
    from matplotlib.ticker import MaxNLocator

    axis = figure.subplots()
    finite = rates[np.isfinite(rates) & (rates > 0)]
    low, high = limits or ((finite.min(), finite.max()) if finite.size else (1e-3, 1.0))
    # A scale of one colour cannot be drawn.
    norm = LogNorm(low, max(high, low * 1.01))
    colours = matplotlib.colormaps["viridis"].with_extremes(bad="#dddddd")
    image = axis.pcolormesh(
        _edges(updates), np.arange(len(names) + 1) - 0.5, np.ma.masked_invalid(rates), norm=norm, cmap=colours
    )
    step = -(-len(names) // _LABELLED_ROWS)
    axis.set_yticks(range(0, len(names), step), [_label(names[i]) for i in range(0, len(names), step)], fontsize=10)
    axis.set_ylim(len(names) - 0.5, -0.5)
    axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    axis.set_xlabel("update")
    axis.set_title(f"{label}: layer-wise rate" if label else "Layer-wise rate of each tensor, input at the top")
    axis.spines[:].set_visible(False)
    figure.colorbar(image, ax=axis, label="layer-wise rate", pad=0.01)


def read_rate_table(path: pathlib.Path) -> tuple[np.ndarray, list[str], np.ndarray]:
    """Updates [U], names of the adapted tensors [K] and their rates [K, U], NaN where none was recorded."""
    records = read_layerwise_rates(path)
    updates = sorted({update for update, *_ in records})
    # A dict keeps the network's order and drops repetitions. Tensors without layer adaptation have no rate.
    names = list(dict.fromkeys(name for _, name, rate, _ in records if rate != ""))
    table = np.full((len(names), len(updates)), np.nan)
    row, column = {n: i for i, n in enumerate(names)}, {u: j for j, u in enumerate(updates)}
    for update, name, rate, _ in records:
        if name in row:
            table[row[name], column[update]] = rate
    return np.array(updates), names, table


def _edges(updates: np.ndarray) -> np.ndarray:
    """Borders of the columns: halfway between recorded updates."""
    if len(updates) == 1:
        return np.array([updates[0] - 0.5, updates[0] + 0.5])
    middle = (updates[1:] + updates[:-1]) / 2
    return np.concatenate([[1.5 * updates[0] - 0.5 * updates[1]], middle, [1.5 * updates[-1] - 0.5 * updates[-2]]])


def _label(path: str) -> str:
    return path.removesuffix("/kernel")
