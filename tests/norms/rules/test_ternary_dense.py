"""The rule of TernaryDense against the slow reference, on Keras's layer where it exists and on a stand-in elsewhere."""

from __future__ import annotations

import keras
import numpy as np
import pytest
from comparing import (
    ON_JAX,
    assert_agrees_with_the_reference,
    assert_gradient_and_output_are_the_models_own,
    batch,
    norms_of,
)
from keras import layers as L
from keras import ops
from selection import long_unless

from tf_largebatch.norms import KERAS
from tf_largebatch.norms.rules import TERNARY_DENSE


class StandIn(L.Layer):
    """Dense with a ternary kernel by the straight-through estimator."""

    def __init__(self, units, threshold=None, activation=None, use_bias=True):
        super().__init__()
        self.units, self.threshold, self.use_bias = units, threshold, use_bias
        self.activation = keras.activations.get(activation)

    def build(self, shape):
        self.kernel = self.add_weight(shape=(shape[-1], self.units), name="kernel", autocast=False)
        self.bias = self.add_weight(shape=(self.units,), initializer="zeros", name="bias") if self.use_bias else None

    def call(self, inputs):
        w = self.kernel.value
        mean = ops.mean(ops.abs(w))
        limit = 0.5 * mean if self.threshold is None else self.threshold
        ternary = ops.where(ops.abs(w) > limit, ops.sign(w), 0.0)
        w, ternary = ops.cast(w, self.compute_dtype), ops.cast(ternary, self.compute_dtype)
        y = ops.matmul(inputs, w + ops.stop_gradient(ternary - w))
        if self.threshold is None:
            y *= ops.cast(mean, y.dtype)
        return self.activation(y if self.bias is None else y + self.bias)

    def compute_output_shape(self, shape):
        return (*shape[:-1], self.units)


StandIn.__module__, StandIn.__name__ = TERNARY_DENSE.rsplit(".", 1)
StandIn.__qualname__ = StandIn.__name__
TernaryDense = getattr(L, "TernaryDense", StandIn)

CASES = {
    "one position": ((6,), lambda: [TernaryDense(5, activation="tanh")]),
    "a few positions, wide": ((3, 40), lambda: [TernaryDense(50)]),
    "many positions": ((20, 4), lambda: [TernaryDense(3, use_bias=False)]),
    "a threshold": ((3, 6), lambda: [TernaryDense(5, threshold=0.1)]),
    "no zeros": ((6,), lambda: [TernaryDense(5, threshold=0.0)]),
    "steps": ((4, 6), lambda: [L.TimeDistributed(TernaryDense(5))]),
}


def of(shape, layers):
    keras.utils.set_random_seed(0)
    return keras.Sequential([keras.Input(shape), *layers, L.Flatten(), L.Dense(3)])


@pytest.mark.parametrize("name", long_unless(CASES, ("many positions",), condition=ON_JAX))
def test_norms_gradient_and_output(name):
    shape, layers = CASES[name]
    model = of(shape, layers())
    x, y = batch(model, 4)
    assert_agrees_with_the_reference(model, x, y)
    assert_gradient_and_output_are_the_models_own(model, x, y, training=True, traced=False)


def test_a_layer_that_is_called_twice():
    layer, inputs = TernaryDense(6), keras.Input((3, 6))
    model = keras.Model(inputs, L.Dense(3)(L.Flatten()(layer(ops.tanh(layer(inputs))))))
    x, y = batch(model, 4)
    assert_agrees_with_the_reference(model, x, y)


def test_what_is_refused():
    layer = TernaryDense(2)
    layer.build((None, 4))
    assert KERAS.why_not(layer) is None
    overridden = type("Own", (TernaryDense,), {"call": lambda self, inputs: inputs})(2)
    assert "overrides" in KERAS.why_not(overridden)
    if TernaryDense is not StandIn:
        layer.quantize("ternary")
        assert "is quantized" in KERAS.why_not(layer)


def test_half_precision_is_near_single_precision():
    found, weights = {}, None
    for policy in ("float32", "mixed_bfloat16"):
        keras.config.set_dtype_policy(policy)
        try:
            layer = TernaryDense(8)
            model = of((5, 16), [layer])
        finally:
            keras.config.set_dtype_policy("float32")
        weights = weights or model.get_weights()
        model.set_weights(weights)
        x, y = batch(model, 4)
        found[policy] = ops.convert_to_numpy(norms_of(model, x, y)[layer.trainable_variables[0].path])
    np.testing.assert_allclose(found["mixed_bfloat16"], found["float32"], rtol=0.03)
