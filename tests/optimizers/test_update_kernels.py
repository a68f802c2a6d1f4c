"""The fast forms of the update, by kernels and by XLA, against the slow one.

TensorFlow only: JAX has no kernels of its own, and compiles the step as a whole.
"""

from __future__ import annotations

import keras
import numpy as np
import pytest
import tensorflow as tf
from layerwise_cases import SHAPES, apply_all, gradients, make, norms, variables
from paper_settings import paper
from reference import Reference

from tf_largebatch.backend.tensorflow import update_kernels
from tf_largebatch.optimizers import CLARS, LARS

pytestmark = pytest.mark.each_value

BOTH = pytest.mark.parametrize("cls", [CLARS, LARS])
STEPS = 6


def arguments_of(classic, nesterov, momentum, decay):
    return {
        "eta": 0.1,
        "momentum": momentum,
        "weight_decay_rate": decay,
        "classic_momentum": classic,
        "nesterov": nesterov and momentum > 0,
        "max_rate": 0.2,
        "exclude_from_weight_decay": [],
    }


@BOTH
@pytest.mark.parametrize("dtype, jit_compile", [("float32", False), ("float64", False), ("float32", True)])
@pytest.mark.parametrize("classic, nesterov", [(True, False), (True, True), (False, False), (False, True)])
# 0.005 is too small to decay by the velocity.
@pytest.mark.parametrize("momentum, decay", [(0.0, 0.05), (0.005, 0.05), (0.9, 0.0), (0.9, 0.05)])
def test_every_form_against_numpy(cls, jit_compile, classic, nesterov, momentum, decay, dtype):
    arguments = arguments_of(classic, nesterov, momentum, decay)
    optimizer, trained = paper(cls, 0.5, jit_compile=jit_compile, **arguments), variables(dtype)
    references = [
        Reference(
            v.numpy(),
            lr=0.5,
            eta=0.1,
            beta=momentum,
            decay=decay,
            nesterov=arguments["nesterov"],
            classic=classic,
            max_rate=0.2,
            adapted=len(v.shape) > 1,
        )
        for v in trained
    ]
    some, handed = gradients(STEPS), norms(STEPS) if cls is CLARS else None
    found = apply_all(optimizer, [[g.astype(dtype) for g in step] for step in some], trained, handed)
    for number, step in enumerate(some):
        for path, reference, gradient in zip(SHAPES, references, step, strict=True):
            reference.step(gradient, None if handed is None else handed[number][path])
    for actual, reference in zip(found, references, strict=True):
        # Six float32 steps. In float64 the learning rate is float32's 0.5, exactly, but the handed norms are float32.
        np.testing.assert_allclose(actual, reference.w, rtol=2e-6, atol=1e-6)
    rates = optimizer.layerwise_rates()
    assert rates == pytest.approx({path: r.rate for path, r in zip(SHAPES, references, strict=True)}, rel=2e-6)


@pytest.mark.parametrize("nesterov", [False, True])
def test_the_velocities_are_those_of_sgd(nesterov):
    arguments = {"momentum": 0.9, "nesterov": nesterov}
    optimizer = paper(LARS, 0.1, exclude_from_layer_adaptation=["."], **arguments)
    sgd = keras.optimizers.SGD(0.1, **arguments)
    apply_all(optimizer, gradients(4), variables())
    apply_all(sgd, gradients(4), variables())
    for one, other in zip(optimizer._velocities, sgd.momentums, strict=True):
        np.testing.assert_array_equal(one.numpy(), other.numpy())


@BOTH
@pytest.mark.parametrize("classic", [True, False])
def test_low_precision_variables_follow_float32_ones(cls, classic):
    """Stored in float16, updated in float32: each step rounds once."""
    arguments = arguments_of(classic, False, 0.9, 0.05)
    handed = norms(STEPS) if cls is CLARS else None
    half = apply_all(paper(cls, 0.5, **arguments), gradients(STEPS), variables("float16"), handed)
    full = apply_all(paper(cls, 0.5, **arguments), gradients(STEPS), variables(), handed)
    for one, other in zip(half, full, strict=True):
        # Weights of up to 4 rounded to 11 bits, in each of six steps and at the start.
        np.testing.assert_allclose(one, other, atol=7 * 4 * 2.0**-11)


@BOTH
@pytest.mark.parametrize("graph", [False, True])
@pytest.mark.parametrize(
    "arguments",
    [
        {"clipnorm": 2.0},
        {"use_ema": True, "ema_momentum": 0.5, "ema_overwrite_frequency": 2},
        {"gradient_accumulation_steps": 2},
        {"learning_rate": keras.optimizers.schedules.PolynomialDecay(0.5, 6)},
    ],
    ids=lambda a: next(iter(a)),
)
def test_compiled_and_not_agree(cls, graph, arguments):
    def train(jit_compile):
        optimizer, trained = make(cls, **{"learning_rate": 0.5, **arguments}, jit_compile=jit_compile), variables()
        optimizer.build(trained)
        step = tf.function(optimizer.apply, autograph=False) if graph else optimizer.apply
        for some in gradients(4):
            step([tf.constant(g) for g in some])
        return [v.numpy() for v in trained], optimizer.layerwise_rates()

    (plain, rates), (compiled, compiled_rates) = train(False), train(True)
    for one, other in zip(compiled, plain, strict=True):
        # XLA fuses multiplications and additions and adds up squares in another order.
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-6)
    assert compiled_rates == pytest.approx(rates, rel=1e-5)


def test_the_compiled_form_is_compiled_and_skips_what_has_no_gradient():
    optimizer, trained = paper(LARS, 0.5, jit_compile=True), variables()
    optimizer.build(trained)
    step = tf.function(lambda gradient: optimizer.apply([None, None, gradient]))
    with pytest.warns(UserWarning, match="Gradients do not exist"):
        graph = step.get_concrete_function(tf.TensorSpec(SHAPES["head/kernel"])).graph
    compiled = [f for f in graph.as_graph_def().library.function if f.attr["_XlaMustCompile"].b]
    assert len(compiled) == 1
    kernels = [node.op for node in compiled[0].node_def if node.op.startswith("ResourceApply")]
    assert kernels == ["ResourceApplyKerasMomentum"]
    step(tf.ones(SHAPES["head/kernel"]))
    assert list(optimizer.layerwise_rates()) == ["head/kernel"]


def test_the_norm():
    values = np.random.default_rng(0).normal(size=(3, 1000)).astype("float32")
    expected = np.linalg.norm(values.astype("float64"))
    # The kernel adds 3,000 squares in float32.
    assert float(update_kernels.l2_norm(tf.constant(values))) == pytest.approx(expected, rel=1e-6)
    assert float(update_kernels.l2_norm(tf.zeros((0, 3)))) == 0.0
