"""Random numbers that depend on a seed only, drawn by the backend in use.

A seed is an int32 tensor or array [2]. The same seed gives the same numbers on every device of one backend.
"""

import keras

if keras.backend.backend() == "jax":
    from tf_largebatch.backend.jax.random_numbers import fold_in, integers, normal, split, uniform
else:
    from tf_largebatch.backend.tensorflow.random_numbers import fold_in, integers, normal, split, uniform

__all__ = ["fold_in", "integers", "normal", "split", "uniform"]
