"""CLARS, LARS and the layer rules for tf_keras, file by file as for Keras 3. Model Garden is not needed.

Importing this package checks that tf_keras is installed.
"""

import importlib.util

import keras

if keras.backend.backend() != "tensorflow":
    raise ImportError(
        "tf_largebatch.tf_keras computes with TensorFlow, and Keras runs on "
        f"{keras.backend.backend()} here: leave the environment variable KERAS_BACKEND unset, or set it to tensorflow, "
        "before keras is imported."
    )

if importlib.util.find_spec("tf_keras") is None:
    raise ImportError(
        "tf_largebatch.tf_keras needs tf_keras, which cannot be imported here: install tf_largebatch with its extra "
        "`garden` (pip install '.[garden]' in a clone), or install tf_keras in the version of your TensorFlow."
    )
