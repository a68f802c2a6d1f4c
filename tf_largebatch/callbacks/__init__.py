"""Callbacks that record, draw, show and save while a model trains, and the functions that read and draw records."""

from tf_largebatch.callbacks.adversarial_pictures import AdversarialPictures
from tf_largebatch.callbacks.checkpoint import RunCheckpoint, load_checkpoint, save_checkpoint
from tf_largebatch.callbacks.grow_batch_size import GrowBatchSize
from tf_largebatch.callbacks.layerwise_rates import LayerwiseRateRecorder
from tf_largebatch.callbacks.layerwise_values import LayerwiseCallback, LayerwiseValues, layerwise_values
from tf_largebatch.callbacks.metrics import MetricsRecorder, TrainingDiverged
from tf_largebatch.callbacks.noise_scale import GradientNoiseScale, NoiseScale
from tf_largebatch.callbacks.progress import LayerwiseProgress
from tf_largebatch.callbacks.tensorboard import LayerwiseTensorBoard, MetricsTensorBoard
from tf_largebatch.plots.adversarial_images import plot_adversarial_images
from tf_largebatch.plots.curves import plot_curves
from tf_largebatch.plots.history import plot_history

__all__ = [
    "AdversarialPictures",
    "GradientNoiseScale",
    "GrowBatchSize",
    "LayerwiseCallback",
    "LayerwiseProgress",
    "LayerwiseRateRecorder",
    "LayerwiseTensorBoard",
    "LayerwiseValues",
    "MetricsRecorder",
    "MetricsTensorBoard",
    "NoiseScale",
    "RunCheckpoint",
    "TrainingDiverged",
    "layerwise_values",
    "load_checkpoint",
    "plot_adversarial_images",
    "plot_curves",
    "plot_history",
    "save_checkpoint",
]
