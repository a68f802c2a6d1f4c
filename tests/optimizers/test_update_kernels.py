"""The fast forms of the update, by kernels and by XLA, against the slow one.

TensorFlow only: JAX has no kernels of its own, and compiles the step as a whole.
"""

from __future__ import annotations

import sys

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


@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("nesterov", [False, True])
def test_the_velocities_are_those_of_sgd(nesterov, dtype):
    arguments = {"momentum": 0.9, "nesterov": nesterov}
    optimizer = paper(LARS, 0.1, exclude_from_layer_adaptation=["."], **arguments)
    sgd = keras.optimizers.SGD(0.1, **arguments)
    some = [[g.astype(dtype) for g in step] for step in gradients(4)]
    apply_all(optimizer, some, variables(dtype))
    apply_all(sgd, some, variables(dtype))
    for one, other in zip(optimizer._velocities, sgd.momentums, strict=True):
        # Velocities of up to 1 are stored in float16 after each of four steps, of which SGD computes all in float16.
        np.testing.assert_allclose(one.numpy(), other.numpy(), rtol=0, atol=0 if dtype == "float32" else 8 * 2.0**-11)


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


def test_which_dtypes_have_kernels_and_which_decays_go_through_the_velocity():
    taken = [dtype for dtype in ("float16", "bfloat16", "float32", "float64") if update_kernels.takes(dtype)]
    assert taken == ["float32", "float64"]
    exact = {
        momentum: update_kernels.can_decay_velocity(momentum, False) for momentum in (0.0, 0.0099, 0.01, 0.012, 0.9)
    }
    assert exact == {0.0: False, 0.0099: False, 0.01: True, 0.012: True, 0.9: True}
    assert not update_kernels.can_decay_velocity(0.9, True)


def test_dense_gradients():
    values = np.arange(6.0).reshape(3, 2).astype("float32")
    dense = tf.constant(values)
    assert update_kernels.dense(None, None) is None and update_kernels.dense(dense, None) is dense
    found = update_kernels.dense(tf.IndexedSlices(dense, tf.constant([3, 1, 3])), tf.Variable(tf.zeros((5, 2))))
    np.testing.assert_array_equal(found, [[0, 0], [2, 3], [0, 0], [4, 6], [0, 0]])


@pytest.mark.parametrize(
    "cls, handed, arguments, through_the_velocity",
    [
        (CLARS, True, {}, ["stem/kernel", "stem/bias", "head/kernel"]),
        (LARS, False, {}, ["stem/bias"]),  # the rates of the others divide by the norm of the decayed gradient
        (LARS, False, {"exclude_from_layer_adaptation": ["stem"]}, ["stem/kernel", "stem/bias"]),
        (LARS, False, {"exclude_from_weight_decay": ["bias"]}, []),
        (CLARS, True, {"momentum": 0.005}, []),
        (CLARS, True, {"momentum": 0.0}, []),
        (CLARS, True, {"nesterov": True}, []),
        (CLARS, True, {"weight_decay_rate": 0.0}, []),
    ],
)
def test_where_the_decay_goes_through_the_velocity(cls, handed, arguments, through_the_velocity, monkeypatch):
    """It saves a pass. Where it is not exact, or the rate needs the decayed gradient, the gradient takes the decay."""
    velocities = []
    plain = update_kernels.decay_velocity
    facade = sys.modules["tf_largebatch.optimizers.update_kernels"]
    monkeypatch.setattr(facade, "decay_velocity", lambda v, *rest: velocities.append(v) or plain(v, *rest))
    optimizer = paper(cls, 0.5, **{**arguments_of(True, False, 0.9, 0.05), **arguments})
    trained = variables()
    apply_all(optimizer, gradients(1), trained, norms(1) if handed else None)
    paths = dict(zip(map(id, optimizer._velocities), SHAPES, strict=False))  # no velocities without momentum
    assert [paths[id(v)] for v in velocities] == through_the_velocity
