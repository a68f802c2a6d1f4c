"""The plug-in for TensorFlow Model Garden: experiments, their configuration, and a task with norms and attacks.

Importing this package checks that Model Garden is installed. `tf_largebatch.tf_keras` has the optimizers and the layer
rules, which need tf_keras alone.
"""

import importlib.util

import keras

if keras.backend.backend() != "tensorflow":
    raise ImportError(
        "tf_largebatch.model_garden computes with TensorFlow, and Keras runs on "
        f"{keras.backend.backend()} here: leave the environment variable KERAS_BACKEND unset, or set it to tensorflow, "
        "before keras is imported."
    )

_MISSING = [name for name in ("tf_keras", "official") if importlib.util.find_spec(name) is None]
if _MISSING:
    raise ImportError(
        "tf_largebatch.model_garden needs TensorFlow Model Garden, and "
        f"{' and '.join(_MISSING)} cannot be imported here: install tf_largebatch with its extra `garden` "
        "(pip install '.[garden]' in a clone) in an environment of its own, since Model Garden pins TensorFlow 2.20."
    )
