"""Per-example, per-layer gradient norms. README.md in this directory has the definition and every layer's equation."""

from tf_largebatch.norms import (  # noqa: F401  (they register rules)
    attention,
    conv,
    conv_transpose,
    dense,
    einsum,
    elementwise,
    embedding,
    normalization,
    recurrent,
    reversible_embedding,
    spectrogram,
    time_distributed,
)
from tf_largebatch.norms.brute_force import brute_force_gradient_norms
from tf_largebatch.norms.generic import use_generic
from tf_largebatch.norms.measure import Measurement, measure
from tf_largebatch.norms.per_example import per_example_gradient_norms
from tf_largebatch.norms.registry import KERAS, Registry, check_supported
from tf_largebatch.norms.tap import Tap

register = KERAS.register
unregister = KERAS.unregister

__all__ = [
    "KERAS",
    "Measurement",
    "Registry",
    "Tap",
    "brute_force_gradient_norms",
    "check_supported",
    "measure",
    "per_example_gradient_norms",
    "register",
    "unregister",
    "use_generic",
]
