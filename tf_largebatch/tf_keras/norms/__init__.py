"""Per-example, per-layer gradient norms for layers of tf_keras and Model Garden.

`tf_largebatch/norms/README.md` has the definition. The rules are the Keras 3 ones where only the class differs; the
modules here hold what is different. `TF_KERAS` is the registry to pass to `tf_largebatch.backend.tensorflow.measure`.
"""

from tf_largebatch.tf_keras.norms import rules  # noqa: F401  (registers every rule)
from tf_largebatch.tf_keras.norms.registry import TF_KERAS

__all__ = ["TF_KERAS"]
