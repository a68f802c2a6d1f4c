"""JAX only: hyper-parameters that a compiled step takes as inputs."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from layerwise_cases import gradients, make, norms, variables
from paper_settings import paper

from tf_largebatch.optimizers import CLARS, LARS

NUMBERS = {
    "learning_rate": 0.5,
    "eta": 0.125,
    "momentum": 0.75,
    "weight_decay_rate": 0.05,
    "epsilon": 0.25,
    "max_rate": 0.25,
    "unadapted_rate_factor": 0.5,
    "norm_exponent": 0.75,
    "max_agreement": 0.5,
}
OF_CLARS = ("norm_exponent", "max_agreement")


def numbers_of(cls):
    return {name: value for name, value in NUMBERS.items() if cls is CLARS or name not in OF_CLARS}


def train(cls, arguments, **fixed):
    """Three steps; the weights."""
    optimizer = cls(**arguments, **fixed)
    trained = variables()
    optimizer.build(trained)
    weights, state = [v.value for v in trained], [v.value for v in optimizer.variables]
    for some, of in zip(gradients(3), norms(3), strict=True):
        if cls is CLARS:
            with optimizer.measured_gradient_norms(of):
                weights, state = optimizer.stateless_apply(state, some, weights)
        else:
            weights, state = optimizer.stateless_apply(state, some, weights)
    return weights


@pytest.mark.parametrize("cls", [CLARS, LARS])
@pytest.mark.parametrize("fixed", [{}, {"classic_momentum": False, "nesterov": True}], ids=str)
def test_every_number_may_be_an_input_of_the_step(cls, fixed):
    found = jax.jit(lambda values: train(cls, values, **fixed))(numbers_of(cls))
    for one, other in zip(found, train(cls, numbers_of(cls), **fixed), strict=True):
        # XLA fuses multiplications and additions.
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("cls", [CLARS, LARS])
def test_several_values_at_a_time(cls):
    """0 and 1 too, at which the step of a plain number takes a short cut."""
    cases = [numbers_of(cls), dict.fromkeys(numbers_of(cls), 0.5)]
    cases += [{**cases[0], "weight_decay_rate": 0.0, "momentum": 0.0, "unadapted_rate_factor": 1.0}]
    if cls is CLARS:
        cases += [{**cases[0], "norm_exponent": exponent} for exponent in (0.0, 1.0)]
    stacked = {name: jnp.array([case[name] for case in cases]) for name in cases[0]}
    found = jax.jit(jax.vmap(lambda values: train(cls, values)))(stacked)
    for number, case in enumerate(cases):
        for one, other in zip(found, train(cls, case), strict=True):
            np.testing.assert_allclose(one[number], other, rtol=1e-5, atol=1e-6)


def test_they_may_be_assigned_to_a_built_optimizer():
    optimizer, trained = make(LARS, 0.5), variables()
    optimizer.build(trained)
    weights, state = [v.value for v in trained], [v.value for v in optimizer.variables]

    @jax.jit
    def step(eta):
        optimizer.eta = eta
        return optimizer.stateless_apply(state, gradients(1)[0], weights)[0]

    found = step(0.25)
    optimizer.eta = 0.25
    expected, _ = optimizer.stateless_apply(state, gradients(1)[0], weights)
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-6)


def test_known_values_are_checked_and_saved_and_traced_ones_are_not_saved():
    assert paper(LARS, eta=jnp.float32(0.5)).get_config()["eta"] == 0.5
    with pytest.raises(ValueError, match="eta must be a number above 0"):
        paper(LARS, eta=jnp.float32(-1))
    with pytest.raises(ValueError, match="eta must be a number above 0"):
        paper(LARS, eta=jnp.ones(2))
    optimizer = paper(LARS)

    @jax.jit
    def saved(eta):
        optimizer.eta = eta
        return optimizer.get_config()["eta"]

    with pytest.raises(ValueError, match="eta must be a number to be saved"):
        saved(0.5)
