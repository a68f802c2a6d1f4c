"""Every layer in a step compiled by XLA with a batch size that is unknown when the step is traced, as Keras does it.

`fit` with `jit_compile=True`, Keras's default on a GPU, traces one step for all batches: the last one may be smaller.

TensorFlow only: JAX compiles every step by XLA, one for each batch size.
"""

from __future__ import annotations

import keras
import layer_cases
import more_layer_cases
import numpy as np
import pytest
import tensorflow as tf
from comparing import CROSS_ENTROPY, batch, measured_in_training, randomize
from keras import layers as L
from paper_settings import paper

from tf_largebatch import CLARS, LargeBatchModel
from tf_largebatch.norms import per_example_gradient_norms
from tf_largebatch.norms.device import compiling_for

CHAINS = {
    name: (shape, lambda make=make: more_layer_cases.of(*make())) for name, (shape, make) in layer_cases.CASES.items()
}
CASES = {**CHAINS, **more_layer_cases.CASES}
# Ways in which contractions are computed on a device; compiling takes seconds each.
REPRESENTATIVES = (
    ("conv2d same, stride 2", "cpu"),
    ("depthwise2d multiplier, stride", "gpu"),
    ("batch norm", "gpu"),
)
pytestmark = pytest.mark.filterwarnings("ignore:.*was passed an input with a mask")


def check(case, kind):
    shape, make = CASES[case]
    inputs = keras.Input(shape)
    model = keras.Model(inputs, L.Dense(3)(L.Flatten()(make()(inputs))))
    randomize(model)
    x, y = batch(model, 5)
    state = [v.numpy() for v in model.variables]

    @tf.function(
        input_signature=[tf.TensorSpec([None, *shape]), tf.TensorSpec([None], tf.int64)],
        jit_compile=True,
        autograph=False,
    )
    def squares(x, y):
        return measured_in_training(model, x, y, tf.shape(x)[0])[1].squared_norms

    for size in (5, 3):  # a batch, and the smaller last one of an epoch
        for v, value in zip(model.variables, state, strict=True):
            v.assign(value)
        expected = per_example_gradient_norms(model, x[:size], y[:size], CROSS_ENTROPY)
        with compiling_for(kind):
            found = squares(tf.constant(x[:size]), tf.constant(y[:size]))
        for v, some in zip(model.trainable_variables, found, strict=True):
            # Float32 sums in another order; a bias before batch norm has a gradient of rounding noise.
            np.testing.assert_allclose(
                size * tf.sqrt(some), expected[v.path], rtol=1e-3, atol=1e-4, err_msg=f"{v.path}, {size} examples"
            )


@pytest.mark.parametrize(("case", "kind"), REPRESENTATIVES)
def test_unknown_batch_size(case, kind):
    check(case, kind)


@pytest.mark.long
@pytest.mark.parametrize("kind", ["cpu", "gpu"])
@pytest.mark.parametrize("case", CASES)
def test_unknown_batch_size_of_every_layer(case, kind):
    check(case, kind)


@pytest.mark.long
@pytest.mark.parametrize("examples", [pytest.param(None, marks=pytest.mark.long), 4])
def test_fit_with_a_smaller_last_batch(examples):
    net = keras.Sequential([keras.Input((9, 9, 1)), L.Conv2D(4, 3, activation="relu"), L.Flatten(), L.Dense(3)])
    x, y = batch(net, 11)
    start = net.get_weights()
    weights = []
    for jit in (True, False):
        net.set_weights(start)
        model = LargeBatchModel(net, norm_examples=examples)
        model.compile(paper(CLARS, 1.0, eta=0.1), CROSS_ENTROPY, jit_compile=jit)
        model.fit(x, y, batch_size=8, shuffle=False, verbose=0)
        weights.append(net.get_weights())
    for compiled, plain in zip(*weights, strict=True):
        np.testing.assert_allclose(compiled, plain, rtol=1e-4, atol=1e-6)
