"""Layer-wise rates as a heat map: one row for each tensor, one column for each recorded update."""

from __future__ import annotations

import pathlib
from typing import Any

import numpy as np

from tf_largebatch.callbacks.layerwise_rates import read_layerwise_rates
from tf_largebatch.plots import style

_LABELLED_ROWS = 32


def height(tensors: int) -> float:
    """Returns the height of a heat map of so many rows, in inches; 0 for none."""
    return float(np.clip(0.26 * tensors + 1.6, 3.6, 11.0)) if tensors else 0.0


def read_rate_table(path: pathlib.Path) -> tuple[np.ndarray, list[str], np.ndarray]:
    """Reads the file of a `LayerwiseRateRecorder`.

    Returns:
        The updates [U], the names of the adapted tensors, K of them in the network's order, and their rates [K, U], NaN
        where none was recorded.
    """
    records = read_layerwise_rates(path)
    updates = sorted({update for update, *_ in records})
    # A dict keeps the order and drops repetitions. Tensors without layer adaptation have no rate.
    names = list(dict.fromkeys(name for _, name, rate, _ in records if rate != ""))
    table = np.full((len(names), len(updates)), np.nan)
    row, column = {n: i for i, n in enumerate(names)}, {u: j for j, u in enumerate(updates)}
    for update, name, rate, _ in records:
        if name in row and rate != "":
            table[row[name], column[update]] = rate
    return np.array(updates), names, table


def draw_rates(
    figure: Any,
    updates: np.ndarray,
    names: list[str],
    rates: np.ndarray,
    label: str = "",
    limits: tuple[float, float] | None = None,
) -> None:
    """Draws layer-wise rates with logarithmic colours, lighter for higher rates; what is missing or 0 is hatched.

    Args:
        figure: Matplotlib figure or subfigure.
        updates: Numbers of the recorded updates, [U].
        names: Labels of the tensors, K of them.
        rates: Their rates, [K, U], NaN where none was recorded.
        label: Name of the run, for the title.
        limits: Lowest and highest colour, to share between maps; by default those of `rates`.
    """
    from matplotlib.colors import LogNorm
    from matplotlib.ticker import MaxNLocator

    axis = figure.subplots()
    finite = rates[np.isfinite(rates) & (rates > 0)]
    low, high = limits or ((finite.min(), finite.max()) if finite.size else (1e-3, 1.0))
    norm = LogNorm(low, max(high, low * 1.01))  # a scale of one colour cannot be drawn
    axis.patch.set(hatch="//", facecolor="white", edgecolor="#999999")
    image = axis.pcolormesh(
        _edges(updates),
        np.arange(len(names) + 1) - 0.5,
        np.ma.masked_where(~(rates > 0), rates),
        norm=norm,
        cmap="viridis",
    )
    step = -(-len(names) // _LABELLED_ROWS)
    rows = range(0, len(names), step)
    axis.set_yticks(rows, [names[i].removesuffix("/kernel") for i in rows], fontsize=10)
    axis.set_ylim(len(names) - 0.5, -0.5)
    axis.xaxis.set_major_locator(MaxNLocator(nbins=9, integer=True, min_n_ticks=1))
    axis.set_xlabel("update")
    axis.set_title(f"{label}: layer-wise rate" if label else "Layer-wise rate of each tensor, input at the top")
    axis.spines[:].set_visible(False)
    bar = figure.colorbar(image, ax=axis, label="layer-wise rate", pad=0.01)
    style.logarithmic_ticks(bar.ax.yaxis, low, high)


def _edges(updates: np.ndarray) -> np.ndarray:
    """Borders of the columns: halfway between recorded updates, and half an update before the first one at most."""
    if len(updates) == 1:
        return np.array([updates[0] - 0.5, updates[0] + 0.5])
    middle = (updates[1:] + updates[:-1]) / 2
    first, last = 1.5 * updates[0] - 0.5 * updates[1], 1.5 * updates[-1] - 0.5 * updates[-2]
    return np.concatenate([[max(first, 0.5)], middle, [last]])
