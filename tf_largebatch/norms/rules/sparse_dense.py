"""The contraction of a Dense layer on a sparse tensor, on the backend in use."""

import keras

if keras.backend.backend() != "jax":
    from tf_largebatch.backend.tensorflow.sparse_dense import SparseMatMul
else:
    from tf_largebatch.backend.jax.sparse_dense import SparseMatMul  # type: ignore[assignment]

__all__ = ["SparseMatMul"]
