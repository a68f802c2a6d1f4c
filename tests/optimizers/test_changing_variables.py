"""Layers frozen and unfrozen between fits, with the same optimizer."""

from __future__ import annotations

import keras
import numpy as np
import pytest
from layerwise_cases import make, regression, small_model
from paper_settings import paper

import tf_largebatch as lb
from tf_largebatch.optimizers import CLARS, LARS

X, Y = regression()


def fit(model, optimizer):
    """One update; the weights before and after it."""
    model.compile(optimizer, "mse", run_eagerly=True)  # tracing would take seconds
    before = model.get_weights()
    model.fit(X, Y, batch_size=16, verbose=0)
    return before, model.get_weights()


@pytest.mark.parametrize(
    "source, loss_scale, frozen",
    [("per_example", False, "hidden"), ("per_example", True, "head"), ("replica", False, "hidden")],
)
def test_clars_goes_on_after_layers_are_frozen(source, loss_scale, frozen):
    net = small_model()
    clars = paper(CLARS, 0.1, eta=0.1, gradient_norms=source)
    optimizer = keras.optimizers.LossScaleOptimizer(clars, initial_scale=8.0) if loss_scale else clars
    model = lb.LargeBatchModel(net)
    fit(model, optimizer)
    every_norm = clars.gradient_norms()
    net.get_layer(frozen).trainable = False
    before, after = fit(model, optimizer)
    trained = {variable.path for variable in net.trainable_variables}
    for variable, one, other in zip(model.weights, before, after, strict=True):
        assert np.array_equal(one, other) == (variable.path not in trained), variable.path
    # The norms that are left belong to their tensors: what they are without the optimizer's help.
    net.set_weights(before)
    expected = {path: float(np.mean(norms)) for path, norms in lb.per_example_gradient_norms(net, X, Y, "mse").items()}
    found = clars.gradient_norms()
    assert set(found) < set(every_norm)
    if source == "per_example":
        assert found == pytest.approx({path: expected[path] for path in trained}, rel=1e-5)
    net.get_layer(frozen).trainable = True
    fit(model, optimizer)
    assert set(clars.gradient_norms()) == set(every_norm)


@pytest.mark.parametrize("cls", [CLARS, LARS])
def test_an_optimizer_built_for_all_trains_a_part(cls):
    net, optimizer = small_model(), make(cls, 0.1, eta=0.1)
    optimizer.build(net.trainable_variables)
    net.get_layer("hidden").trainable = False
    fit(lb.LargeBatchModel(net), optimizer)
    assert [path.split("/")[-2] for path in optimizer.layerwise_rates()] == ["head", "head"]


@pytest.mark.parametrize("cls", [CLARS, LARS])
def test_unfreezing_asks_for_a_new_optimizer(cls):
    net, optimizer = small_model(), make(cls, 0.1)
    net.get_layer("hidden").trainable = False
    fit(lb.LargeBatchModel(net), optimizer)
    net.get_layer("hidden").trainable = True
    with pytest.raises(ValueError, match=r"hidden/kernel'.* are none of them: compile with a new optimizer"):
        fit(lb.LargeBatchModel(net), optimizer)
