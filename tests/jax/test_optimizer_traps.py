"""What users of Keras reported on JAX, tried with the optimizers here."""

from __future__ import annotations

import jax
import keras
import numpy as np
import pytest
from layerwise_cases import gradients, make, norms, regression, small_model, variables
from paper_settings import paper
from selection import long

import tf_largebatch as lb
from tf_largebatch.optimizers import CLARS, LARS

X, Y = regression()


def fitted(model):
    """One more update; the weights before and after it."""
    before = model.get_weights()
    model.fit(X, Y, batch_size=16, verbose=0)
    return before, model.get_weights()


@pytest.mark.parametrize(
    "optimizer",
    [
        lambda: paper(CLARS, 0.1, eta=0.1, gradient_norms="per_example"),
        long(
            lambda: keras.optimizers.LossScaleOptimizer(paper(CLARS, 0.1, eta=0.1, gradient_norms="per_example"), 8.0)
        ),
        long(lambda: paper(LARS, 0.1, eta=0.1, use_ema=True)),
    ],
    ids=["CLARS", "loss scale", "LARS, average"],
)
def test_freezing_after_compile(optimizer):
    """keras 22104. The layer is frozen from the next train function on, as on TensorFlow."""
    net = small_model()
    model = lb.LargeBatchModel(net)
    model.compile(optimizer(), "mse")
    fitted(model)
    net.get_layer("hidden").trainable = False
    model.make_train_function(force=True)
    before, after = fitted(model)
    trained = {variable.path for variable in net.trainable_variables}
    for variable, one, other in zip(model.weights, before, after, strict=True):
        assert np.array_equal(one, other) == (variable.path not in trained), variable.path
    net.get_layer("hidden").trainable = True
    model.make_train_function(force=True)
    before, after = fitted(model)
    assert not any(np.array_equal(one, other) for one, other in zip(before, after, strict=True))


@pytest.mark.parametrize("cls", [CLARS, LARS])
def test_variables_in_place_of_their_values(cls):
    """keras-io 2295: JAX takes no variables as arguments of a compiled function, but an optimizer does inside one."""
    some, of = gradients(1)[0], norms(1)[0]
    optimizer, trained = make(cls, 0.5, eta=0.1), variables()
    optimizer.build(trained)

    def step(weights, state):
        if cls is LARS:
            return optimizer.stateless_apply(state, some, weights)
        with optimizer.measured_gradient_norms({path: keras.Variable(norm) for path, norm in of.items()}):
            return optimizer.stateless_apply(state, some, weights)

    values = [v.value for v in trained], [v.value for v in optimizer.variables]
    found, _ = step(trained, optimizer.variables)
    for one, other in zip(found, step(*values)[0], strict=True):
        np.testing.assert_array_equal(one, other)
    for one, other in zip(found, jax.jit(step)(*values)[0] if cls is LARS else found, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("arguments", [{}, {"gradient_accumulation_steps": 2}, {"use_ema": True}], ids=str)
def test_donated_state_is_not_read_again(arguments):
    """A step may hand its old state's memory to the new one, as Keras's train function does."""
    optimizer, trained = paper(LARS, 0.5, eta=0.1, **arguments), variables()
    optimizer.build(trained)
    step = jax.jit(lambda w, s, g: optimizer.stateless_apply(s, g, w), donate_argnums=(0, 1))
    weights, state = [v.value for v in trained], [v.value for v in optimizer.variables]
    for some in gradients(4):
        weights, state = step(weights, state, some)
    assert all(np.isfinite(w).all() for w in weights)
