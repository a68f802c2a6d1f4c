"""The layer rules of tf_keras: importing this package registers them with `TF_KERAS`."""

from tf_largebatch.tf_keras.norms.rules import (  # noqa: F401  (register rules)
    convolution,
    dense,
    generic,
    normalization,
)
