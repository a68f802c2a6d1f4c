"""Sums over many examples in half precision: the gradient assembled from contributions is as exact as its inputs."""

from __future__ import annotations

import keras
import numpy as np
import pytest
from comparing import ON_JAX, dtype_of, plain_pass, run_traced
from keras import layers as L
from keras import ops
from paper_settings import paper
from selection import long_unless

from tf_largebatch import CLARS, LargeBatchModel
from tf_largebatch.norms import KERAS, measure

EXAMPLES = 16_384
# JAX computes in float64 only where a setting of its own asks for it; float32 errs by 1e-6 here.
EXACT = "float32" if ON_JAX else "float64"
LAYERS = {
    "depthwise": ((4, 4, 4), lambda: L.DepthwiseConv2D(3, padding="same")),
    "depthwise, small map": ((2, 2, 4), lambda: L.DepthwiseConv2D(3, padding="same")),
    "conv": ((4, 4, 3), lambda: L.Conv2D(4, 3, padding="same")),
    "pointwise": ((4, 4, 3), lambda: L.Conv2D(4, 1)),
    "groups": ((4, 4, 4), lambda: L.Conv2D(4, 3, groups=2)),
    "transposed": ((3, 3, 3), lambda: L.Conv2DTranspose(2, 3, strides=2, padding="same")),
    "conv1d, one channel": ((16, 1), lambda: L.Conv1D(4, 8, strides=4)),
}


def gradients(make, shape, weights, x, direction, half):
    """The gradients of a loss with a scale of 1024: measured in half precision, or the plain ones in `EXACT`."""
    model = keras.Sequential([keras.Input(shape), make()])
    model.set_weights(weights)

    def loss(y):
        dtype = "float32" if half else EXACT
        return 1024.0 * ops.mean(ops.cast(y, dtype) * ops.convert_to_tensor(direction, dtype))

    if half:
        variables = model.trainable_variables

        def measured(x):
            return measure(model, lambda: model(x, training=True), loss, variables, EXAMPLES, KERAS)[1].gradients

        return run_traced(measured, x) if ON_JAX else measured(x)
    return plain_pass(model, x, loss)[1]


@pytest.mark.parametrize("layer", long_unless(LAYERS, ["depthwise", "conv", "transposed"]))
def test_the_gradient_of_many_examples(layer):
    shape, make = LAYERS[layer]
    rng = np.random.default_rng(0)
    # A mean apart from zero, so that a sum of half-precision terms would stop growing; exact in float16.
    x = (rng.normal(size=(EXAMPLES, *shape)) + 0.5).astype("float16")
    keras.config.set_dtype_policy("mixed_float16")
    weights = [w.astype("float16") for w in keras.Sequential([keras.Input(shape), make()]).get_weights()]
    direction = rng.normal(size=keras.Sequential([keras.Input(shape), make()]).output_shape[1:]) + 1.0
    found = gradients(make, shape, weights, x, direction, True)
    keras.config.set_dtype_policy(EXACT)
    exact = gradients(make, shape, weights, x.astype(EXACT), direction, False)
    for f, e in zip(found, exact, strict=True):
        assert dtype_of(f) == "float32"
        error = np.linalg.norm(np.asarray(f, "float64") - e) / np.linalg.norm(e)
        # `d` is rounded to 11 bits, and by the same amount at a position in all examples here: 2^-11 / sqrt(3) = 2.8e-4
        # on average. Keras's own kernels reach 2e-4 to 0.7.
        assert error < 4e-4, (layer, error)


def test_a_step_of_fit():
    """The update under mixed_float16 against one in float64, or in float32 on JAX.

    Keras's own update differs by 0.39 for the depthwise kernel and by 0.0014 for the pointwise one (TensorFlow 2.21,
    CPU): TensorFlow sums these gradients in float16 there.
    """
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(EXAMPLES, 4, 4, 4)), rng.normal(size=(EXAMPLES, 2)) + 1.0

    def updates(policy, wrap, optimizer, dtype, weights=None):
        keras.config.set_dtype_policy(policy)
        network = keras.Sequential(
            [
                keras.Input((4, 4, 4)),
                L.Conv2D(8, 1, activation="relu"),
                L.DepthwiseConv2D(3, padding="same", activation="relu"),
                L.GlobalAveragePooling2D(),
                L.Dense(2, dtype=dtype),
            ]
        )
        network.set_weights(weights or network.get_weights())
        before = network.get_weights()
        model = wrap(network)
        model.compile(optimizer, "mse", jit_compile=ON_JAX)
        model.fit(x.astype(dtype), y.astype(dtype), batch_size=EXAMPLES, epochs=1, verbose=0)
        return before, [w.astype("float64") - b for w, b in zip(network.get_weights(), before, strict=True)]

    # An optimizer that adapts nothing makes the gradient itself the update.
    sgd_like = paper(CLARS, 0.5, momentum=0.0, exclude_from_layer_adaptation=lambda variable: True)
    weights, found = updates("mixed_float16", LargeBatchModel, sgd_like, "float32")
    _, exact = updates(EXACT, lambda network: network, keras.optimizers.SGD(0.5), EXACT, weights)
    for f, e in zip(found, exact, strict=True):
        assert np.linalg.norm(f - e) < 1e-3 * np.linalg.norm(e)
