"""What to watch and to keep while training."""

from tf_largebatch.callbacks.checkpoint import RunCheckpoint, load_checkpoint, save_checkpoint
from tf_largebatch.callbacks.curves import plot_curves
from tf_largebatch.callbacks.layerwise_rates import LayerwiseRateRecorder
from tf_largebatch.callbacks.metrics import MetricsRecorder, TrainingDiverged

__all__ = [
    "LayerwiseRateRecorder",
    "MetricsRecorder",
    "RunCheckpoint",
    "TrainingDiverged",
    "load_checkpoint",
    "plot_curves",
    "save_checkpoint",
]
