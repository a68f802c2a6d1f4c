"""CLARS and LARS for tf_keras, on the legacy base class that Model Garden builds its optimizers on."""

from tf_largebatch.tf_keras.optimizers.clars import CLARS
from tf_largebatch.tf_keras.optimizers.lars import LARS
from tf_largebatch.tf_keras.optimizers.wrappers import clars_of

__all__ = ["CLARS", "LARS", "clars_of"]
