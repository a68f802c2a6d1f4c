"""Pictures of the analyses."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import matplotlib.figure
import numpy as np

from tf_largebatch.analysis.agreement import AgreementRecorder
from tf_largebatch.analysis.plane import LossPlane
from tf_largebatch.analysis.steps import StableStep

SIZE, DPI = (8.0, 5.0), 120


def plot_agreement(recorder: AgreementRecorder, batch_size: int | None = None) -> matplotlib.figure.Figure:
    """Draws the agreement of each tensor over the updates; with a batch size also the level of pure noise.

    Args:
        recorder: A callback that has watched a training.
        batch_size: B, for a line at `1 / sqrt(B)`.
    """
    figure, axis = _figure()
    for label, values in recorder.agreements.items():
        axis.semilogy(recorder.updates[-len(values) :], values, label=label)
    if batch_size:
        axis.axhline(batch_size**-0.5, color="k", linestyle=":", label="independent noise, 1/sqrt(B)")
    axis.set_xlabel("updates")
    axis.set_ylabel("gradient agreement, ||grad|| / s")
    axis.legend(fontsize="x-small", ncols=2)
    return figure


def plot_sharpness(epochs: Sequence[int], values: Sequence[float]) -> matplotlib.figure.Figure:
    """Draws the largest eigenvalue of the Hessian over the epochs."""
    figure, axis = _figure()
    axis.semilogy(epochs, values, "o-")
    axis.set_xlabel("epochs")
    axis.set_ylabel("largest eigenvalue of the Hessian")
    return figure


def plot_lipschitz(epochs: Sequence[int], values: Sequence[Mapping[str, float]]) -> matplotlib.figure.Figure:
    """Draws the Lipschitz estimates, or the largest eigenvalues, of each tensor over the epochs."""
    figure, axis = _figure()
    for label in values[0]:
        axis.semilogy(epochs, [found[label] for found in values], label=label)
    axis.set_xlabel("epochs")
    axis.set_ylabel("Lipschitz constant of the tensor's gradient")
    axis.legend(fontsize="x-small", ncols=2)
    return figure


def plot_stable_steps(steps: Mapping[str, StableStep]) -> matplotlib.figure.Figure:
    """Draws the longest stable step of each tensor, predicted and observed."""
    figure, axis = _figure()
    labels = list(steps)
    axis.plot([steps[label].predicted for label in labels], labels, "o", label="predicted, 2 / eigenvalue")
    axis.plot([steps[label].observed for label in labels], labels, "x", label="observed")
    axis.set_xscale("log")
    axis.set_xlabel("longest stable step")
    axis.invert_yaxis()
    axis.legend()
    return figure


def plot_loss_plane(plane: LossPlane, levels: int = 20) -> matplotlib.figure.Figure:
    """Draws contours of the loss on a plane; the cross is where the weights are."""
    figure, axis = _figure()
    finite = np.where(np.isfinite(plane.values), plane.values, np.nan)
    drawn = axis.contourf(plane.first, plane.second, np.log10(finite.T), levels)
    figure.colorbar(drawn, label="log10 of the loss")
    axis.plot(0, 0, "k+", markersize=12)
    axis.set_xlabel("first direction")
    axis.set_ylabel("second direction")
    return figure


def _figure() -> tuple[matplotlib.figure.Figure, matplotlib.axes.Axes]:
    figure = matplotlib.figure.Figure(figsize=SIZE, dpi=DPI, layout="constrained")
    axis = figure.subplots()
    axis.grid(alpha=0.3)
    return figure, axis
