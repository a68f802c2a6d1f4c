"""The kernels of the backend in use: how norms and gradient are computed for each kind of contraction."""

import keras

if keras.backend.backend() == "jax":
    from tf_largebatch.backend.jax.kernels import convolution, depthwise, lookup, matmul
    from tf_largebatch.backend.jax.kernels.chunks import chunk_of
else:
    from tf_largebatch.backend.tensorflow.kernels import (  # type: ignore[no-redef]
        convolution,
        depthwise,
        lookup,
        matmul,
    )
    from tf_largebatch.backend.tensorflow.kernels.chunks import chunk_of

__all__ = ["chunk_of", "convolution", "depthwise", "lookup", "matmul"]
