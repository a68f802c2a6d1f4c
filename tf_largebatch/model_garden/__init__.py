"""TensorFlow Model Garden: the optimizers, layer rules and experiments of this package in the world of tf_keras.

Importing it does nothing but check that Model Garden is installed; `tf_largebatch.tf_keras.optimizers` and
`tf_largebatch.tf_keras.norms` hold what the rest is made of.
"""

import importlib.util

_MISSING = [name for name in ("tf_keras", "official") if importlib.util.find_spec(name) is None]
if _MISSING:
    raise ImportError(
        "tf_largebatch.model_garden needs TensorFlow Model Garden, and "
        f"{' and '.join(_MISSING)} cannot be imported here: install tf_largebatch with its extra `garden` "
        "(pip install '.[garden]' in a clone) in an environment of its own, since Model Garden pins TensorFlow 2.20."
    )
