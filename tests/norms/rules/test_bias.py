"""Biases: the output is the layer's own, and the contributions are those of the axis on which Keras adds."""

from __future__ import annotations

import keras
import numpy as np
import pytest
from keras import layers as L
from keras import ops

from tf_largebatch.norms.rules.bias import add_bias
from tf_largebatch.norms.rules.einsum import einsum_dense


class Uses:
    """Stands in for a recorder: notes the last contraction."""

    def value(self, variable):
        return variable

    def record(self, variable, y, contraction):
        self.last = contraction
        return y


# The output's shape, the bias's. On TensorFlow `keras.ops.add` adds the last three on another axis than they lie on.
SHAPES = [
    ((2, 3, 4), (4,)),
    ((2, 3, 4), (3, 1)),
    ((2, 3, 4), (3, 4)),
    ((2, 3, 4, 5), (1, 3, 1, 1)),
    ((2, 3, 3), (3, 1)),
    ((2, 3, 3, 4), (1, 1, 3, 1)),
    ((2, 4, 3, 3), (1, 1, 3, 1)),
]


@pytest.mark.parametrize("shape, bias_shape", SHAPES)
def test_output_and_contributions_agree(shape, bias_shape):
    rng = np.random.default_rng(0)
    y, d = (ops.convert_to_tensor(rng.normal(size=shape).astype("float32")) for _ in range(2))
    bias = keras.Variable(rng.normal(size=bias_shape).astype("float32"))
    rank = (1,) * (len(shape) - len(bias_shape)) + bias_shape
    uses = Uses()
    biased = add_bias(uses, bias, y, bias_shape)
    np.testing.assert_array_equal(biased, ops.add(y, ops.reshape(bias, rank)))
    # By definition: the output is linear in the bias.
    expected = []
    for k in range(int(np.prod(bias_shape))):
        basis = np.zeros(int(np.prod(bias_shape)), "float32")
        basis[k] = 1.0
        effect = ops.convert_to_numpy(ops.add(ops.zeros(shape), basis.reshape(rank)))
        expected.append((ops.convert_to_numpy(d) * effect).reshape(shape[0], -1).sum(1))
    expected = np.stack(expected, 1).reshape(shape[0], *bias_shape)
    np.testing.assert_allclose(uses.last.contributions(d, slice(None)), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("shape, bias_shape", SHAPES)
def test_what_is_no_variable_of_keras_is_added_by_broadcasting(shape, bias_shape):
    rng = np.random.default_rng(0)
    y, bias = rng.normal(size=shape).astype("float32"), rng.normal(size=bias_shape).astype("float32")
    uses = Uses()
    found = add_bias(uses, ops.convert_to_tensor(bias), ops.convert_to_tensor(y), bias_shape)
    np.testing.assert_array_equal(found, y + bias)
    assert uses.last.broadcast_shape == (1,) * (len(shape) - len(bias_shape)) + bias_shape


def test_a_layer_whose_bias_lies_on_an_axis_as_long_as_the_last():
    layer = L.EinsumDense("abc,cd->abd", (3, 3), bias_axes="b")
    layer.build((2, 3, 4))
    layer.bias.assign(np.arange(3.0).reshape(3, 1))
    x = ops.ones((2, 3, 4))
    np.testing.assert_allclose(einsum_dense(layer, Uses(), x), layer(x), rtol=1e-6)
