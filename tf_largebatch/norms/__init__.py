"""Per-example, per-layer gradient norms. README.md in this directory has the definition and every layer's equation."""

from tf_largebatch.norms import rules  # noqa: F401  (registers every rule)
from tf_largebatch.norms.brute_force import brute_force_gradient_norms
from tf_largebatch.norms.measure import measure
from tf_largebatch.norms.measurement import Measurement
from tf_largebatch.norms.per_example import per_example_gradient_norms
from tf_largebatch.norms.recorder import Recorder
from tf_largebatch.norms.registry import KERAS, Registry, check_supported
from tf_largebatch.norms.rules.generic import use_generic

register = KERAS.register
unregister = KERAS.unregister

__all__ = [
    "KERAS",
    "Measurement",
    "Recorder",
    "Registry",
    "brute_force_gradient_norms",
    "check_supported",
    "measure",
    "per_example_gradient_norms",
    "register",
    "unregister",
    "use_generic",
]
