"""ConAdvModel against a literal transcription of Algorithm 1, step by step.

TensorFlow only: the transcription uses its gradient tape. tests/jax/test_lock_step_conadv.py compares JAX with it.
"""

from __future__ import annotations

import keras
import numpy as np
import pytest
import tensorflow as tf
from conadv_reference import SlowConAdv
from keras import layers as L
from paper_settings import paper
from selection import long

import tf_largebatch as lb

STEPS, BATCH = 10, 4


@pytest.fixture(autouse=True)
def _float64():
    """So that the sign of a gradient that is almost zero does not depend on the order of a sum."""
    keras.config.set_floatx("float64")
    keras.config.set_dtype_policy("float64")
    yield
    keras.config.set_floatx("float32")


def loss():
    return keras.losses.SparseCategoricalCrossentropy(from_logits=True)


def network():
    keras.utils.set_random_seed(3)
    stack = [L.Rescaling(1 / 128, -1), L.Conv2D(4, 3, strides=2), L.BatchNormalization(momentum=0.5), L.ReLU()]
    return keras.Sequential([keras.Input((7, 7, 2)), *stack, L.Flatten(), L.BatchNormalization(), L.Dense(3)])


def mirrored(x):
    return x[:, :, ::-1]


def data():
    rng = np.random.default_rng(0)
    return rng.uniform(0, 255, (STEPS * BATCH, 7, 7, 2)), rng.integers(0, 3, STEPS * BATCH)


def run_both(make_optimizer, reference_optimizer, run_eagerly=True, **arguments):
    """The wrapper after ten steps of `fit`, and the reference."""
    x, y = data()
    wrapper = lb.ConAdvModel(network(), **arguments)
    wrapper.compile(make_optimizer(), loss(), run_eagerly=run_eagerly)
    wrapper.fit(tf.data.Dataset.from_tensor_slices((x, y)).batch(BATCH), verbose=0)
    attack = {
        "tau": arguments.get("staleness", 1),
        "augment": arguments.get("augment"),
        "start": arguments.get("random_start", 0.8),
        "weight": arguments.get("adversarial_weight", 1.0),
    }
    for name in ("epsilon", "num_steps", "targeted", "seed", "step_size"):
        if name in arguments:
            attack[name] = arguments[name]
    slow = SlowConAdv(network, loss(), **attack, **reference_optimizer)
    for i in range(STEPS):
        part = slice(i * BATCH, (i + 1) * BATCH)
        slow.step(x[part], y[part])
    return wrapper, slow


def assert_same_weights(wrapper, slow):
    sets = [(wrapper.model.weights, slow.clean.weights)]
    for auxiliary, model in (
        (wrapper.adversarial_batch_norms, slow.adversarial),
        (wrapper.augmented_batch_norms, slow.augmented),
    ):
        if auxiliary is not None:
            norms = [layer for layer in model.layers if isinstance(layer, L.BatchNormalization)]
            sets.append((auxiliary.weights, [v for layer in norms for v in layer.weights]))
    for found, expected in sets:
        assert len(found) == len(expected) > 0
        for a, b in zip(found, expected, strict=True):
            # Learning rates, layer-wise rates and norms are float32, and ten steps carry their rounding on.
            np.testing.assert_allclose(a.numpy(), b.numpy(), rtol=1e-5, atol=1e-5, err_msg=a.path)


OPTIMIZERS = {
    "sgd": (lambda: keras.optimizers.SGD(0.05, 0.9), {"lr": 0.05}),
    "clars": (lambda: paper(lb.CLARS, 0.05, eta=0.2), {"lr": 0.05, "clars": {"eta": 0.2}}),
}


CASES = [("sgd", 0), ("clars", 1), ("clars", 2), ("sgd", 3)]
QUICK = CASES[1:2]
IN_A_GRAPH = [("clars", 0), ("sgd", 1), ("sgd", 2), ("clars", 3)]  # which takes longer to trace than ten steps take


@pytest.mark.parametrize("optimizer, staleness", QUICK + [long(*c) for c in CASES + IN_A_GRAPH if c not in QUICK])
def test_ten_steps_of_algorithm_1(optimizer, staleness):
    """Each staleness and each optimizer with augmentation and without."""
    augment = mirrored if (staleness + (optimizer == "sgd")) % 2 else None
    arguments = {"run_eagerly": (optimizer, staleness) in CASES, "staleness": staleness, "augment": augment}
    assert_same_weights(*run_both(*OPTIMIZERS[optimizer], **arguments))


@pytest.mark.long
def test_the_reference_tells_stalenesses_apart():
    """Else the agreement would prove nothing."""
    x, y = data()
    ends = []
    for tau in range(4):
        slow = SlowConAdv(network, loss(), tau, lr=0.05)
        for i in range(5):
            slow.step(x[i * BATCH : (i + 1) * BATCH], y[i * BATCH : (i + 1) * BATCH])
        ends.append(np.concatenate([w.ravel() for w in slow.clean.get_weights()]))
    for i in range(4):
        for j in range(i):
            assert np.abs(ends[i] - ends[j]).max() > 1e-3


@pytest.mark.long
def test_ten_steps_untargeted_with_several_steps_another_weight_and_seed():
    arguments = {"num_steps": 3, "step_size": 2.5, "epsilon": 6.0, "targeted": False, "seed": 2**40 + 5}
    pair = run_both(*OPTIMIZERS["sgd"], adversarial_weight=0.25, random_start=1.0, **arguments)
    assert_same_weights(*pair)
