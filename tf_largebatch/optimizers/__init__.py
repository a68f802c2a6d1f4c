"""Keras 3 optimizers with layer-wise learning rates."""

from tf_largebatch.optimizers.clars import CLARS
from tf_largebatch.optimizers.lars import LARS

__all__ = ["CLARS", "LARS"]
