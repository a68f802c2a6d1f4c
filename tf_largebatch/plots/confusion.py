"""The confusion matrix of a classifier as a picture."""

from __future__ import annotations

import os
from collections.abc import Sequence

import numpy as np

from tf_largebatch.plots.style import new_figure, save, settings

# More classes than this get no numbers in their cells, and not each of them a label.
_NUMBERED, _LABELLED = 20, 40
# Width of a letter of the title, inches.
_LETTER = 0.13


def plot_confusion(
    confusion: np.ndarray, names: Sequence[str], path: str | os.PathLike[str], title: str = "classifier"
) -> None:
    """Draws a confusion matrix: rows are true classes, darker cells hold a larger share of their row.

    Args:
        confusion: Number of images of each true class (rows) by predicted class (columns), integers `(k, k)`.
        names: Names of the classes.
        path: The PNG file; it appears whole or not at all.
        title: What was evaluated, for the title.
    """
    classes = len(names)
    shares = confusion / np.maximum(confusion.sum(axis=1, keepdims=True), 1)
    side = float(np.clip(0.55 * classes + 2.5, 5.0, 14.0))
    with settings():
        figure = new_figure(side + 1.0, side)
        axis = figure.subplots()
        image = axis.imshow(shares, cmap="Greys", vmin=0, vmax=1)
        ticks = range(0, classes, -(-classes // _LABELLED))
        labels = [names[i] if len(names[i]) <= 20 else f"{names[i][:19]}…" for i in ticks]
        short = max(map(len, labels)) <= 2
        axis.set_xticks(ticks, labels, rotation=0 if short else 45, ha="center" if short else "right")
        axis.set_yticks(ticks, labels)
        axis.set_xlabel("predicted class")
        axis.set_ylabel("true class")
        most = int(side / _LETTER)
        named = title if len(title) <= most else f"…{title[1 - most :]}"
        axis.set_title(f"{named}\naccuracy {np.trace(confusion) / max(confusion.sum(), 1):.1%}")
        axis.spines[:].set_visible(True)
        if classes <= _NUMBERED:
            for row, column in zip(*np.nonzero(confusion), strict=True):
                colour = "white" if shares[row, column] > 0.5 else "black"
                axis.text(column, row, str(confusion[row, column]), ha="center", va="center", color=colour, fontsize=11)
        figure.colorbar(image, ax=axis, label="share of the true class", pad=0.02)
        save(figure, path)
