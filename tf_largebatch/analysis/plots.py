"""Pictures of the analyses."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib.figure
import numpy as np

from tf_largebatch.analysis.agreement import AgreementRecorder
from tf_largebatch.analysis.plane import LossPlane
from tf_largebatch.analysis.steps import StableStep
from tf_largebatch.plots import style

_SIZE = (9.0, 5.6)
_DASHES = ("-", "--", "-.", ":")


def plot_agreement(recorder: AgreementRecorder, batch_size: int | None = None) -> matplotlib.figure.Figure:
    """Draws the agreement of each tensor over the updates; with a batch size also the level of pure noise.

    Args:
        recorder: A callback that has watched a training.
        batch_size: B, for a line at `1 / sqrt(B)`.
    """
    with style.settings():
        figure, axis = _figure("Agreement of the examples' gradients")
        drawn = [value for values in recorder.agreements.values() for value in values]
        for number, (label, values) in enumerate(recorder.agreements.items()):
            axis.plot(recorder.updates[-len(values) :], values, label=label, **_look(number, len(values)))
        if batch_size:
            axis.axhline(batch_size**-0.5, color="k", linewidth=1.5, label="independent noise, 1/√B")
        axis.set_xlabel("update")
        axis.set_ylabel("gradient agreement, ‖∇f‖ / s")
        style.choose_scale(axis, drawn)
        _legend(figure, axis)
    return figure


def plot_sharpness(epochs: Sequence[int], values: Sequence[float]) -> matplotlib.figure.Figure:
    """Draws the largest eigenvalue of the Hessian over the epochs."""
    with style.settings():
        figure, axis = _figure("Sharpness")
        axis.plot(epochs, values, **_look(0, len(values)))
        _epochs(axis)
        axis.set_ylabel("largest eigenvalue of the Hessian")
        style.choose_scale(axis, values)
    return figure


def plot_lipschitz(epochs: Sequence[int], values: Sequence[Mapping[str, float]]) -> matplotlib.figure.Figure:
    """Draws the Lipschitz estimates, or the largest eigenvalues, of each tensor over the epochs."""
    with style.settings():
        figure, axis = _figure("Smoothness of the loss in each tensor")
        for number, label in enumerate(values[0]):
            axis.plot(epochs, [found[label] for found in values], label=label, **_look(number, len(values)))
        _epochs(axis)
        axis.set_ylabel("Lipschitz constant of the gradient")
        style.choose_scale(axis, [value for found in values for value in found.values()])
        _legend(figure, axis)
    return figure


def plot_stable_steps(steps: Mapping[str, StableStep]) -> matplotlib.figure.Figure:
    """Draws the longest stable step of each tensor, predicted and observed."""
    with style.settings():
        figure, axis = _figure("Longest stable step of each tensor")
        labels = list(steps)
        look = {"markersize": 9, "mfc": "none", "markeredgewidth": 2}
        predicted, observed = ([getattr(steps[label], kind) for label in labels] for kind in ("predicted", "observed"))
        axis.plot(predicted, labels, "o", color=style.COLOURS[0], label="predicted, 2 / eigenvalue", **look)
        axis.plot(observed, labels, "x", color=style.COLOURS[1], label="observed", **look)
        axis.set_xscale("log")
        axis.set_xlabel("step, in units of the learning rate")
        axis.invert_yaxis()
        _legend(figure, axis)
    return figure


def plot_loss_plane(plane: LossPlane, levels: int = 20) -> matplotlib.figure.Figure:
    """Draws contours of the loss on a plane, lighter where it is higher; the cross is where the weights are."""
    with style.settings():
        figure, axis = _figure("Loss around the weights")
        finite = np.where(np.isfinite(plane.values), plane.values, np.nan)
        drawn = axis.contourf(plane.first, plane.second, np.log10(finite.T), levels, cmap="viridis")
        figure.colorbar(drawn, label="log10 of the loss", pad=0.02)
        axis.plot(0, 0, "w+", markersize=14, markeredgewidth=2.5)
        axis.set_xlabel("along the first direction, in units of the filters' norms")
        axis.set_ylabel("along the second direction")
    return figure


def _figure(title: str) -> tuple[matplotlib.figure.Figure, Any]:
    figure = style.new_figure(*_SIZE)
    axis = figure.subplots()
    axis.set_title(title)
    axis.grid(alpha=0.25)
    return figure, axis


def _epochs(axis: Any) -> None:
    from matplotlib.ticker import MaxNLocator

    axis.set_xlabel("epoch")
    axis.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))


def _look(number: int, count: int) -> dict[str, Any]:
    """Returns a line of its own for each tensor: the dashes change when the colours are used up."""
    colours = len(style.COLOURS)
    return {
        "color": style.COLOURS[number % colours],
        "marker": style.MARKERS[number % len(style.MARKERS)],
        "linestyle": _DASHES[number // colours % len(_DASHES)],
        **style.marks(count),
    }


def _legend(figure: Any, axis: Any) -> None:
    """Draws the legend below the axes, where it covers no line."""
    handles, labels = axis.get_legend_handles_labels()
    columns = max(1, min(len(labels), int(100 / (max(map(len, labels), default=1) + 7))))
    figure.legend(handles, labels, loc="outside lower center", ncols=columns, frameon=False, fontsize=11)
