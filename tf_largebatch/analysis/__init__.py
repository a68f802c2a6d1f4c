"""Why an optimizer trains as it does: agreement of gradients, sharpness, smoothness, stable steps, the loss around."""

from tf_largebatch.analysis.agreement import AgreementRecorder, variance_factor
from tf_largebatch.analysis.loss_surface import LossSurface
from tf_largebatch.analysis.plane import LossPlane, filter_normalized_direction, loss_plane
from tf_largebatch.analysis.plots import (
    plot_agreement,
    plot_lipschitz,
    plot_loss_plane,
    plot_sharpness,
    plot_stable_steps,
)
from tf_largebatch.analysis.recorders import SurfaceRecorder
from tf_largebatch.analysis.sharpness import layer_sharpness, sharpness
from tf_largebatch.analysis.steps import StableStep, lipschitz_estimates, stable_steps

__all__ = [
    "AgreementRecorder",
    "LossPlane",
    "LossSurface",
    "StableStep",
    "SurfaceRecorder",
    "filter_normalized_direction",
    "layer_sharpness",
    "lipschitz_estimates",
    "loss_plane",
    "plot_agreement",
    "plot_lipschitz",
    "plot_loss_plane",
    "plot_sharpness",
    "plot_stable_steps",
    "sharpness",
    "stable_steps",
    "variance_factor",
]
