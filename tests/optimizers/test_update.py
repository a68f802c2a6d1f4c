"""Zeros, NaN and infinities, sparse gradients, low precision, compilation."""

from __future__ import annotations

import keras
import numpy as np
import pytest
from keras import ops
from layerwise_cases import apply_all, compiled, gradients, make, norms, regression, small_model, variables
from paper_settings import paper
from reference import Reference
from selection import long

from tf_largebatch.optimizers import CLARS, LARS
from tf_largebatch.optimizers.update import LayerwiseUpdate

pytestmark = pytest.mark.each_value

BOTH = pytest.mark.parametrize("cls", [CLARS, LARS])
FLOAT64 = pytest.param(
    "float64", marks=pytest.mark.skipif(keras.backend.backend() == "jax", reason="JAX computes in float32 by default")
)
BAD = pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])


@BOTH
@pytest.mark.parametrize("max_rate, moved", [(None, 0.5), (0.125, 0.0625)])
def test_zero_weights_start_at_the_plain_learning_rate_or_the_cap(cls, max_rate, moved):
    variable = keras.Variable(np.zeros((2, 2)), name="kernel")
    optimizer = make(cls, 0.5, max_rate=max_rate)
    optimizer.apply([ops.ones((2, 2))], [variable])
    np.testing.assert_array_equal(variable.numpy(), np.full((2, 2), -moved))
    assert optimizer.layerwise_rates() == {"kernel": 2 * moved}


@BOTH
def test_layers_below_a_zero_head_start_with_the_second_step(cls):
    """Until the head has moved off zero, the layer below it has no gradient."""
    x, y = regression()
    model = keras.Sequential(
        [keras.Input((4,)), keras.layers.Dense(8), keras.layers.Dense(3, kernel_initializer="zeros")]
    )
    model.compile(make(cls, 0.125, eta=0.1), "mse")
    below, head = (layer.kernel for layer in model.layers)
    before = below.numpy()
    losses = [model.train_on_batch(x, y)]
    np.testing.assert_array_equal(below.numpy(), before)
    assert np.abs(head.numpy()).min() > 0
    losses += [model.train_on_batch(x, y) for _ in range(5)]
    assert np.abs(below.numpy() - before).min() > 0
    assert losses[-1] < losses[0]


@BOTH
@pytest.mark.parametrize("classic, nesterov", [(True, False), (True, True), (False, False), (False, True)])
@pytest.mark.parametrize(
    "arguments, dtype",
    [
        ({}, "float32"),
        ({"max_rate": 0.1, "weight_decay_rate": 0.05}, "float32"),
        ({"jit_compile": True}, "float32"),
        ({}, "float16"),
        pytest.param({"max_rate": 0.1}, "float64", marks=FLOAT64.marks),
    ],
    ids=str,
)
def test_a_step_without_gradient_makes_no_leap(cls, classic, nesterov, arguments, dtype):
    """A batch of padding, in the middle of training at a large learning rate: the velocity is full."""
    steps, zero = 6, 3
    optimizer = make(cls, 8.0, nesterov=nesterov, classic_momentum=classic, **arguments)
    trained, some = variables(dtype), gradients(steps)
    some[zero] = [0 * g for g in some[zero]]
    names = {"nesterov": nesterov, "classic": classic, "max_rate": arguments.get("max_rate")}
    decay = arguments.get("weight_decay_rate", 0.0)
    reference = Reference(trained[0].numpy(), lr=8.0, eta=optimizer.eta, decay=decay, **names)
    moved, rates = [], []
    for step in some:
        before = trained[0].numpy().astype("float64")
        apply_all(optimizer, [[g.astype(dtype) for g in step]], trained)
        # As a float: NumPy's float32 would make the reference's rate one.
        reference.step(step[0], float(np.linalg.norm(step[0])) if cls is CLARS else None)
        moved.append(np.linalg.norm(trained[0].numpy() - before))
        rates.append(optimizer.layerwise_rates()["stem/kernel"])
    # Ten bits of float16 in weights of up to 3 and the velocity; elsewhere float32 in the rates at least.
    np.testing.assert_allclose(trained[0].numpy(), reference.w, atol=0.05 if dtype == "float16" else 2e-5)
    if cls is CLARS or not classic or not decay:
        assert rates[zero] == 0
        # The forms that move on do so by what is left of the step before.
        assert moved[zero] == 0 if not classic else 0 < moved[zero] < moved[zero - 1]
    else:  # LARS divides by the norm of the gradient with decay: a step of the usual length, along the decay
        assert rates[zero] == pytest.approx(min(optimizer.eta / decay, 0.1), rel=1e-3)
        assert moved[zero] < 1.2 * moved[zero - 1]


def test_a_zero_measured_norm_gives_rate_zero():
    optimizer = paper(CLARS, 0.5, max_rate=0.1)
    apply_all(optimizer, gradients(1), variables(), [{"stem/kernel": 0.0, "head/kernel": 1.0}])
    assert optimizer.layerwise_rates()["stem/kernel"] == 0
    assert 0 < optimizer.layerwise_rates()["head/kernel"] < 0.1


@BOTH
@BAD
@pytest.mark.parametrize(
    "arguments",
    [{}, {"max_rate": 0.1}, {"clipnorm": 1.0}, {"nesterov": True, "classic_momentum": False}],
    ids=str,
)
def test_a_gradient_that_is_not_finite_leaves_no_finite_update(cls, bad, arguments):
    """Not even of the entries whose own gradient is fine: the norm belongs to all of them."""
    optimizer = make(cls, 0.5, **arguments)
    some = gradients(1)
    some[0][2][0, 0] = bad
    found = apply_all(optimizer, some, variables())
    assert np.isnan(found[2]).all()
    assert np.isfinite(found[0]).all()
    assert np.isnan(optimizer.layerwise_rates()["head/kernel"])
    assert not np.isfinite(optimizer.gradient_norms()["head/kernel"])


@BOTH
@BAD
def test_a_gradient_that_is_not_finite_shows_in_excluded_tensors(cls, bad):
    some = gradients(1)
    some[0][1][0] = bad
    assert not np.isfinite(apply_all(make(cls, 0.5), some, variables())[1][0])


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("max_rate", [None, 0.1])
def test_a_measured_norm_that_is_not_finite_never_becomes_a_finite_update(bad, max_rate):
    """Infinity in the denominator would be rate 0, a step silently left out."""
    optimizer = paper(CLARS, 0.5, max_rate=max_rate)
    found = apply_all(optimizer, gradients(1), variables(), [{"stem/kernel": bad, "head/kernel": 1.0}])
    assert np.isnan(found[0]).all()
    assert np.isfinite(found[2]).all()
    assert np.isnan(optimizer.layerwise_rates()["stem/kernel"])


@BOTH
@BAD
def test_weights_that_are_not_finite_stay_so(cls, bad):
    variable = keras.Variable(np.array([[bad, 1.0], [1.0, 1.0]]), name="kernel")
    make(cls, 0.5, max_rate=0.1).apply([ops.ones((2, 2))], [variable])
    assert not np.isfinite(variable.numpy()).any()


@BOTH
@pytest.mark.parametrize(
    "arguments",
    [{}, {"clipnorm": 1.0}, {"loss_scale_factor": 4.0}, {"gradient_accumulation_steps": 2}],
    ids=str,
)
def test_sparse_gradients_equal_dense_ones(cls, arguments):
    table = np.random.default_rng(0).normal(size=(5, 3)).astype("float32")
    values = np.random.default_rng(1).normal(size=(4, 3)).astype("float32")
    indices = [1, 3, 1, 1]
    dense = np.zeros_like(table)
    np.add.at(dense, indices, values)
    results = []
    if keras.backend.backend() == "jax":
        from jax.experimental.sparse import BCOO

        sparse = BCOO((values, np.array(indices)[:, None]), shape=table.shape)
    else:
        import tensorflow as tf

        sparse = tf.IndexedSlices(tf.constant(values), tf.constant(indices))
    for gradient in (sparse, ops.convert_to_tensor(dense)):
        variable = keras.Variable(table, name="embeddings")
        optimizer = make(cls, 0.5, eta=0.1, weight_decay_rate=0.1, **arguments)
        for _ in range(4):
            optimizer.apply([gradient], [variable])
        results.append((variable.numpy(), optimizer.gradient_norms()["embeddings"]))
    # Three float32 terms are added in another order.
    np.testing.assert_allclose(results[0][0], results[1][0], rtol=1e-6)
    assert results[0][1] == pytest.approx(results[1][1], rel=1e-6)


@pytest.mark.parametrize("cls, wrapped", [(CLARS, True), long(LARS, False)])
def test_an_embedding_trains_with_sparse_gradients(cls, wrapped):
    tokens = np.array([[1, 1, 2], [3, 1, 0]])

    def fit(embedding):
        keras.utils.set_random_seed(0)
        model = keras.Sequential([keras.Input((3,), dtype="int32"), embedding(5, 4), keras.layers.Dense(1)])
        optimizer = make(cls, 0.5, eta=0.1)
        if wrapped:
            optimizer = keras.optimizers.LossScaleOptimizer(optimizer, initial_scale=4.0)
        model.compile(optimizer=optimizer, loss="mse")
        model.fit(tokens, np.ones((2, 3, 1)), epochs=3, verbose=0)
        return model.get_weights()

    class DenseGradient(keras.layers.Embedding):
        def call(self, inputs):
            return keras.ops.one_hot(inputs, self.input_dim) @ self.embeddings

    for one, other in zip(fit(keras.layers.Embedding), fit(DenseGradient), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-6)


@BOTH
@pytest.mark.parametrize("dtype", ["float16", "bfloat16", FLOAT64])
def test_rates_of_other_dtypes_are_computed_in_float32_at_least(cls, dtype):
    trained = variables(dtype)
    optimizer = make(cls, 0.5, momentum=0.0)
    # 0.5 x 0.01 x a rate near 1e-5: below float16's normal numbers, and 400 squared is above its largest.
    some = [[ops.cast(400 * g, dtype) for g in gradients(1)[0]]]
    expected = {v.path: np.linalg.norm(v.numpy().astype("float64")) for v in trained}
    big = [ops.convert_to_numpy(g).astype("float64") for g in some[0]]
    optimizer.apply(some[0], trained)
    for variable, gradient in zip(trained, big, strict=True):
        if len(variable.shape) > 1:
            rate = optimizer.eta * expected[variable.path] / np.linalg.norm(gradient)
            assert optimizer.layerwise_rates()[variable.path] == pytest.approx(rate, rel=1e-5)
        assert variable.dtype == dtype
        assert np.isfinite(variable.numpy().astype("float64")).all()


@BOTH
@pytest.mark.parametrize("classic, dtype", [(True, "float32"), (False, "float32"), (False, "float16")])
def test_a_step_without_momentum(cls, classic, dtype):
    trained, some = variables(dtype), [[g.astype(dtype) for g in gradients(1)[0]]]
    expected = Reference(trained[0].numpy(), lr=0.5, eta=0.2, beta=0.0, decay=0.05)
    arguments = {"momentum": 0.0, "eta": 0.2, "weight_decay_rate": 0.05, "classic_momentum": classic}
    found = apply_all(make(cls, 0.5, **arguments), some, trained)
    expected.step(some[0][0], float(np.linalg.norm(some[0][0].astype("float64"))) if cls is CLARS else None)
    # Half of the last bit of weights of up to 4 in float16.
    np.testing.assert_allclose(found[0], expected.w, atol=1.1e-3 if dtype == "float16" else 1e-6)


@BOTH
@pytest.mark.parametrize(
    "arguments",
    [{"weight_decay_rate": 1.0}, {"unadapted_rate_factor": 2.0}, {"unadapted_rate_factor": 0.5, "momentum": 0.0}],
    ids=str,
)
def test_an_excluded_tensor(cls, arguments):
    """Decay at the rate that the step has, at numbers that could be taken for "none"."""
    trained, some = variables(), gradients(2)
    start = trained[1].numpy()
    optimizer = make(cls, 0.5, exclude_from_weight_decay=[], **arguments)
    found = apply_all(optimizer, some, trained)
    w, v = start.astype("float64"), np.zeros(start.shape)
    for step in some:
        v = arguments.get("momentum", optimizer.momentum) * v + step[1] + optimizer.weight_decay_rate * w
        w = w - 0.5 * arguments.get("unadapted_rate_factor", 1.0) * v
    np.testing.assert_allclose(found[1], w, rtol=1e-5, atol=1e-6)
    one_step = optimizer.update_step(ops.convert_to_tensor(some[0][1]), trained[1], 0.5)
    assert one_step == (arguments.get("unadapted_rate_factor", 1.0), -1.0)


def test_what_a_layerwise_optimizer_must_say_and_must_be_told():
    with pytest.raises(NotImplementedError, match=r"LARS must define denominator\(gradient, undecayed\)"):
        LayerwiseUpdate.denominator(make(LARS, 0.5), None, None)
    with pytest.raises(RuntimeError, match="is not built yet"):
        make(LARS, 0.5).adapted_tensors()
    norm = object()
    assert LayerwiseUpdate.measured_denominator(make(LARS, 0.5), norm, None) is norm


@pytest.mark.parametrize(
    "cls, policy",
    [(CLARS, "mixed_float16"), long(CLARS, "mixed_bfloat16"), (CLARS, "bfloat16"), long(LARS, "mixed_float16")],
)
def test_low_precision_fit(cls, policy):
    keras.config.set_dtype_policy(policy)
    x, y = regression()
    model = small_model()
    model.compile(optimizer=make(cls, 1.0, eta=0.1), loss="mse")
    losses = model.fit(x, y, batch_size=16, epochs=8, verbose=0).history["loss"]
    assert isinstance(model.optimizer, keras.optimizers.LossScaleOptimizer) == (policy == "mixed_float16")
    assert np.isfinite(losses).all()
    assert losses[-1] < losses[0]


@pytest.mark.parametrize("cls, jit_compile", [(CLARS, True), long(CLARS, False), long(LARS, True)])
def test_fit_traces_once_compiled_or_not(cls, jit_compile):
    if keras.backend.backend() == "jax" and not jit_compile:
        pytest.skip("without its compiler JAX runs eagerly, and traces nothing")
    traces = []

    class Counting(cls):
        def update_step(self, gradient, variable, learning_rate, gradient_norm=None):
            traces.append(variable.name)
            return super().update_step(gradient, variable, learning_rate, gradient_norm)

    x, y = regression()
    model = small_model()
    model.compile(optimizer=make(Counting, 0.5, eta=0.1), loss="mse", jit_compile=jit_compile)
    model.fit(x, y, batch_size=8, verbose=0)
    # Keras traces the first step twice, to create its metrics.
    assert len(traces) in (4, 8)
    traces.clear()
    losses = model.fit(x, y, batch_size=8, epochs=3, verbose=0).history["loss"]
    assert not traces
    assert losses[-1] < losses[0]


def test_measured_norms_in_compiled_functions_without_retracing():
    traces = []

    class Counting(CLARS):
        def update_step(self, *args):
            traces.append(1)
            return super().update_step(*args)

    def train(jit_compile):
        optimizer, trained = Counting(0.5, gradient_norms="per_example"), variables()
        optimizer.build(trained)
        step = compiled(optimizer, trained, jit_compile)
        for gradient, some in zip(gradients(3), norms(3), strict=True):
            step(
                [ops.convert_to_tensor(g) for g in gradient],
                {path: ops.convert_to_tensor(s) for path, s in some.items()},
            )
        return [v.numpy() for v in trained]

    for one, other in zip(train(None), train(True), strict=True):
        # XLA fuses multiplications and additions.
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-6)
    assert len(traces) == 2 * 3
