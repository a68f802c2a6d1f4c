"""What measuring `norm_examples` of a batch costs in accuracy, on real images, against the theory of sampling."""

from __future__ import annotations

import keras
import numpy as np
import pytest
from comparing import CROSS_ENTROPY, ON_JAX, norms_of
from keras import layers as L
from keras import ops
from paper_settings import paper
from selection import long

import tf_largebatch as lb
from tf_largebatch.conadv.backend import compiled
from tf_largebatch.data import load_digits
from tf_largebatch.norms import KERAS, measure

BATCH, DRAWS = 1024, 200


def digits():
    (images, labels), _ = load_digits()
    return (images[:BATCH].reshape(BATCH, 8, 8, 1) / 8.0 - 1.0).astype("float32"), labels[:BATCH].astype("int64")


@pytest.fixture(scope="module")
def network():
    """A network some way into its training, where examples differ most."""
    keras.utils.set_random_seed(0)
    layers = [L.Conv2D(6, 3, strides=2), L.BatchNormalization(), L.ReLU(), L.Flatten(), L.Dense(10)]
    net = keras.Sequential([keras.Input((8, 8, 1)), *layers])
    net.compile(keras.optimizers.Adam(0.01), CROSS_ENTROPY, jit_compile=ON_JAX)
    net.fit(*digits(), batch_size=128, epochs=4, verbose=0)
    return net


@pytest.mark.parametrize("examples", [long(16), 64, long(256)])
def test_error_of_a_sample_is_std_over_mean_over_root_b(network, examples):
    x, y = digits()
    exact = norms_of(network, x, y)
    variables = network.trainable_variables

    def measured_first(order):
        _, measured = measure(
            network,
            lambda: network(ops.take(x, order, axis=0), training=True),
            lambda y_pred: CROSS_ENTROPY(ops.take(y, order, axis=0), y_pred),
            variables,
            BATCH,
            KERAS,
            examples,
        )
        return measured.gradient_norms().unpack()

    sampled = compiled(measured_first, network.variables)
    rng = np.random.default_rng(0)
    # The whole batch, shuffled each time as an epoch shuffles the data, of which the first examples are measured.
    draws = np.array([sampled(rng.permutation(BATCH)) for _ in range(DRAWS)], "float64")
    for v, means in zip(variables, draws.T, strict=True):
        norms = np.asarray(exact[v.path], "float64")
        if v.path.endswith("conv2d/bias"):
            continue  # before batch norm: its contributions cancel, up to rounding
        relative = means / norms.mean() - 1
        # A batch is finite: what is drawn is not put back.
        finite = np.sqrt((BATCH - examples) / (BATCH - 1))
        theory = norms.std() / norms.mean() / np.sqrt(examples) * finite
        # No bias: the mean of the draws is exact within four of its standard errors.
        assert abs(relative.mean()) < 4 * theory / np.sqrt(DRAWS), v.path
        # A standard deviation found from 200 draws errs by 1 / sqrt(2 * 200) = 5 percent: four times that.
        np.testing.assert_allclose(relative.std(), theory, rtol=0.2, err_msg=v.path)


def test_in_a_large_batch_a_few_hundred_examples_err_by_a_few_percent(network):
    """What the docstring of `norm_examples` promises."""
    x, y = digits()
    for path, norms in norms_of(network, x, y).items():
        if not path.endswith("conv2d/bias"):
            spread = np.std(norms) / np.mean(norms)
            assert spread / np.sqrt(128) < 0.15 and spread / np.sqrt(512) < 0.08, (path, spread)


def test_the_model_measures_the_first_examples_of_each_batch(network):
    x, y = digits()
    net = keras.models.clone_model(network)
    net.set_weights(network.get_weights())
    model = lb.LargeBatchModel(net, norm_examples=64)
    model.compile(paper(lb.CLARS, 0.0), CROSS_ENTROPY, jit_compile=ON_JAX)
    model.fit(x, y, batch_size=BATCH, shuffle=False, verbose=0)
    exact = norms_of(net, x, y)
    for path, found in model.optimizer.gradient_norms().items():
        np.testing.assert_allclose(found, np.mean(exact[path][:64]), rtol=1e-4, atol=1e-6, err_msg=path)
