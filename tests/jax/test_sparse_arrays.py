"""JAX only: sparse arrays are refused where the model receives them, before anything is measured."""

from __future__ import annotations

import keras
import numpy as np
import pytest
from jax.experimental import sparse
from keras import layers as L

from tf_largebatch.norms import per_example_gradient_norms, use_generic


@pytest.mark.parametrize("generic", [False, True])
def test_sparse_arrays_are_refused(generic):
    model = keras.Sequential([keras.Input((5,), sparse=True), L.Dense(3, name="first")])
    if generic:
        use_generic(model.layers[0])
    x = sparse.BCOO.fromdense(np.eye(4, 5, dtype="float32"))
    with pytest.raises(ValueError, match=r"layer 'sequential.*' received a BCOO of shape \(4, 5\).* dense tensor"):
        per_example_gradient_norms(model, x, np.zeros(4, "int64"), "sparse_categorical_crossentropy")
