"""`fit`, which trains under any `tf.distribute` strategy, several hosts included, where Keras 3's own `fit` fails.

On JAX Keras's own `fit` trains on several devices and hosts.
"""

import keras

if keras.backend.backend() != "tensorflow":
    raise ImportError(
        "tf_largebatch.distribute.fit computes with TensorFlow, and Keras runs on "
        f"{keras.backend.backend()} here: call the model's own fit within the scope of a keras.distribution."
    )

from tf_largebatch.backend.tensorflow.distributed_fit import fit

__all__ = ["fit"]
