"""What `keras.optimizers.Optimizer` offers works as in Keras's SGD."""

from __future__ import annotations

import keras
import numpy as np
import pytest
from keras import ops
from layerwise_cases import apply_all, compiled, gradients, make, norms, regression, small_model, variables
from paper_settings import paper
from selection import long

from tf_largebatch.optimizers import CLARS, LARS

pytestmark = pytest.mark.each_value

ON_JAX = keras.backend.backend() == "jax"
BOTH = pytest.mark.parametrize("cls", [CLARS, LARS])


def assert_equal(actual, expected):
    for one, other in zip(actual, expected, strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize(
    "arguments",
    [
        {"clipnorm": 0.5},
        {"clipvalue": 0.25},
        {"global_clipnorm": 0.5},
        {"use_ema": True, "ema_momentum": 0.5, "ema_overwrite_frequency": 2},
        {"gradient_accumulation_steps": 2},
        {"gradient_accumulation_steps": 2, "clipnorm": 0.5},
        {"gradient_accumulation_steps": 2, "use_ema": True, "ema_momentum": 0.5},
        {"loss_scale_factor": 8.0},
    ],
    ids=str,
)
@pytest.mark.parametrize("cls, momentum", [(CLARS, 0.0), (LARS, 0.9)])
def test_without_adaptation_as_in_sgd(cls, arguments, momentum):
    optimizer = make(cls, 0.1, momentum=momentum, exclude_from_layer_adaptation=["."], **arguments)
    sgd = keras.optimizers.SGD(0.1, momentum=momentum, **arguments)
    trained, expected = variables(), variables()
    assert_equal(apply_all(optimizer, gradients(5), trained), apply_all(sgd, gradients(5), expected))
    optimizer.finalize_variable_values(trained)
    sgd.finalize_variable_values(expected)
    assert_equal([v.numpy() for v in trained], [v.numpy() for v in expected])
    assert int(optimizer.iterations) == int(sgd.iterations)


@pytest.mark.parametrize("clipping", [{"clipnorm": 0.5}, {"clipvalue": 0.01}, {"global_clipnorm": 0.5}], ids=str)
@pytest.mark.parametrize("source", ["replica", "per_example"])
def test_clars_measures_before_clipping_and_lars_after(clipping, source):
    some, handed = gradients(1), norms(1) if source == "per_example" else None
    clars, lars = paper(CLARS, 0.1, gradient_norms=source, **clipping), paper(LARS, 0.1, **clipping)
    apply_all(clars, some, variables(), handed)
    apply_all(lars, some, variables())
    unclipped = np.linalg.norm(some[0][2])
    expected = handed[0]["head/kernel"] if source == "per_example" else unclipped
    assert clars.gradient_norms()["head/kernel"] == pytest.approx(expected, rel=1e-6)
    assert lars.gradient_norms()["head/kernel"] < 0.6 < unclipped


@BOTH
def test_accumulated_micro_batches_equal_one_batch(cls):
    micro, handed = gradients(6), norms(6)
    mean = [[np.mean(g, axis=0) for g in zip(*micro[i : i + 3], strict=True)] for i in (0, 3)]
    mean_norms = [{p: np.mean([n[p] for n in handed[i : i + 3]]) for p in handed[0]} for i in (0, 3)]
    arguments = {"eta": 0.1, "weight_decay_rate": 0.05, "max_rate": 0.2}
    whole, parts = paper(cls, 0.5, **arguments), paper(cls, 0.5, gradient_accumulation_steps=3, **arguments)
    if cls is LARS:
        handed = mean_norms = None
    expected = apply_all(whole, mean, variables(), mean_norms)
    for one, other in zip(apply_all(parts, micro, variables(), handed), expected, strict=True):
        # NumPy divides the sum, the accumulators add in another order.
        np.testing.assert_allclose(one, other, rtol=2e-6, atol=1e-6)
    for read in ("layerwise_rates", "gradient_norms"):
        assert getattr(parts, read)() == pytest.approx(getattr(whole, read)(), rel=1e-6)


def test_replica_norms_of_micro_batches_are_averaged():
    micro = gradients(2)
    optimizer = paper(CLARS, 0.5, gradient_norms="replica", gradient_accumulation_steps=2)
    apply_all(optimizer, micro, variables())
    expected = np.mean([np.linalg.norm(some[2]) for some in micro])
    assert optimizer.gradient_norms()["head/kernel"] == pytest.approx(expected, rel=1e-6)


def test_norm_accumulator_starts_anew_after_each_update():
    optimizer = paper(CLARS, 0.5, gradient_norms="per_example", gradient_accumulation_steps=2)
    handed = [{"stem/kernel": s, "head/kernel": s} for s in (1.0, 3.0, 10.0, 30.0)]
    apply_all(optimizer, gradients(4), variables(), handed)
    assert optimizer.gradient_norms() == {"stem/kernel": 20.0, "head/kernel": 20.0}


@BOTH
def test_loss_scale_factor_changes_nothing(cls):
    """1,024 is a power of two: dividing by it is exact."""
    handed = scaled = None
    if cls is CLARS:
        handed = norms(3)
        scaled = [{path: 1024 * s for path, s in some.items()} for some in handed]
    arguments = {"eta": 0.1, "weight_decay_rate": 0.05}
    plain = apply_all(paper(cls, 0.5, **arguments), gradients(3), variables(), handed)
    optimizer = paper(cls, 0.5, loss_scale_factor=1024.0, **arguments)
    assert_equal(apply_all(optimizer, gradients(3, scale=1024.0), variables(), scaled), plain)


@pytest.mark.parametrize(
    "cls, scale",
    [(CLARS, "loss_scale_factor"), (CLARS, "LossScaleOptimizer"), long(LARS, "LossScaleOptimizer")],
)
def test_loss_scales_change_nothing_in_fit(cls, scale):
    x, y = regression()

    def trained(**arguments):
        keras.utils.set_random_seed(0)
        optimizer = make(cls, 0.5, eta=0.1, **arguments)
        if scale == "LossScaleOptimizer" and arguments.get("name") == "scaled":
            optimizer = keras.optimizers.LossScaleOptimizer(optimizer, initial_scale=1024.0)
        model = small_model()
        model.compile(optimizer=optimizer, loss="mse")
        model.fit(x, y, batch_size=8, epochs=2, shuffle=False, verbose=0)
        return model.get_weights()

    factor = {"loss_scale_factor": 1024.0} if scale == "loss_scale_factor" else {}
    for one, other in zip(trained(), trained(name="scaled", **factor), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-6, atol=1e-7)


def test_measured_norms_under_a_dynamic_loss_scale():
    """The wrapper unscales the norms, `LossScaleOptimizer` the gradients."""
    inner = paper(CLARS, 0.5, eta=0.1, gradient_norms="per_example")
    outer = keras.optimizers.LossScaleOptimizer(inner, initial_scale=1024.0)
    trained, handed = variables(), norms(3)

    outer.build(trained)
    step = compiled(outer, trained)
    for gradient, some in zip(gradients(3, scale=1024.0), handed, strict=True):
        step([ops.convert_to_tensor(g) for g in gradient], {path: ops.convert_to_tensor(s) for path, s in some.items()})
    expected = apply_all(paper(CLARS, 0.5, eta=0.1), gradients(3), variables(), norms(3))
    for one, other in zip(trained, expected, strict=True):
        # Exact by TensorFlow's kernels; XLA fuses multiplications and additions.
        np.testing.assert_allclose(one.numpy(), other, rtol=1e-6 if ON_JAX else 0, atol=1e-6 if ON_JAX else 0)


@BOTH
def test_a_dynamic_loss_scale_skips_steps_that_overflow(cls):
    inner = make(cls, 0.5)
    outer = keras.optimizers.LossScaleOptimizer(inner, initial_scale=4.0)
    trained, before = variables(), variables()
    some = gradients(1)[0]
    some[0][0, 0, 0, 0] = np.inf
    outer.build(trained)
    compiled(outer, trained)([ops.convert_to_tensor(g) for g in some])
    assert_equal([v.numpy() for v in trained], [v.numpy() for v in before])
    assert float(outer.dynamic_scale.numpy()) == 2.0
    with pytest.raises(RuntimeError, match="not taken a step"):
        inner.layerwise_rates()
