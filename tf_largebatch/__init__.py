"""Large-batch training for TensorFlow and Keras: CLARS, LARS, exact per-example gradient norms, and ConAdv.

The names here are those of Keras 3. Importing the package touches no global state but Keras's table of serializable
classes.
"""

from tf_largebatch import interrupts as _interrupts  # noqa: F401  (first: Ctrl-C while the rest is imported)

try:
    import keras
except ModuleNotFoundError as error:
    if error.name not in ("tensorflow", "jax", "torch", "openvino"):
        raise
    # Without Keras's own traceback: the sentence says all of it.
    raise ImportError(
        f"tf_largebatch needs Keras on TensorFlow or JAX, and Keras cannot import {error.name} here: install the "
        "package with its extra tensorflow or jax (pip install '.[jax]' in a clone), and set the environment "
        "variable KERAS_BACKEND to the one that is installed."
    ) from None

if keras.backend.backend() not in ("tensorflow", "jax"):
    raise ImportError(
        f"tf_largebatch needs Keras on TensorFlow or JAX, and Keras runs on {keras.backend.backend()!r} here: set the "
        "environment variable KERAS_BACKEND to tensorflow or jax before keras is imported."
    )

from tf_largebatch import callbacks
from tf_largebatch.conadv import ConAdvModel, accuracy_under_attack, metrics_under_attack
from tf_largebatch.core.schedules import WarmupPolynomialDecay, large_batch_schedule, linear_scaling
from tf_largebatch.norms import per_example_gradient_norms
from tf_largebatch.optimizers import CLARS, LARS
from tf_largebatch.training import LargeBatchModel
from tf_largebatch.version import __version__

__all__ = [
    "CLARS",
    "LARS",
    "ConAdvModel",
    "LargeBatchModel",
    "WarmupPolynomialDecay",
    "__version__",
    "accuracy_under_attack",
    "callbacks",
    "large_batch_schedule",
    "linear_scaling",
    "metrics_under_attack",
    "per_example_gradient_norms",
]
