"""What Model Garden and tf.distribute do with the optimizers: loss scaling, moving averages, checkpoints, replicas."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf
import tf_keras
from official.modeling import performance
from official.modeling.optimization.ema_optimizer import ExponentialMovingAverage
from paper_settings import paper
from tf_keras_optimizer_cases import SHAPES, apply, apply_all, gradients, make, norms, variables

from tf_largebatch.tf_keras.optimizers import CLARS, LARS, clars_of

pytestmark = pytest.mark.each_value

BOTH = pytest.mark.parametrize("cls", [CLARS, LARS])
ARGUMENTS = {"eta": 0.1, "weight_decay_rate": 0.05, "clipnorm": 3.0}


def assert_close(found, expected, rtol=1e-6):
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one, other, rtol=rtol, atol=rtol)


class Averaged(tf_keras.Model):
    """A model that is nothing but its variables, for `shadow_copy`."""

    def __init__(self, of):
        super().__init__()
        self.all = of


def test_clars_is_found_in_its_wrappers():
    clars = paper(CLARS)
    assert clars_of(clars) is clars
    assert clars_of(ExponentialMovingAverage(clars)) is clars
    assert clars_of(tf_keras.mixed_precision.LossScaleOptimizer(clars)) is clars
    for other in (paper(LARS), tf_keras.optimizers.SGD(), tf_keras.optimizers.legacy.SGD(), None):
        assert clars_of(other) is None
    assert clars_of(ExponentialMovingAverage(paper(LARS))) is None


@BOTH
@pytest.mark.parametrize("loss_scale", ["dynamic", 128.0])
def test_loss_scaling_changes_nothing(cls, loss_scale):
    inner, trained = make(cls, 0.5, **ARGUMENTS), variables()
    wrapped = performance.configure_optimizer(inner, use_float16=True, loss_scale=loss_scale)
    assert isinstance(wrapped, tf_keras.mixed_precision.LossScaleOptimizer)
    handed = norms(3) if cls is CLARS else [None] * 3

    @tf.function(autograph=False)
    def step(some, some_norms):
        scaled = [g * wrapped.get_scaled_loss(tf.ones(())) for g in some]
        if some_norms is not None:
            scaled_norms = [s * wrapped.get_scaled_loss(tf.ones(())) for s in some_norms]
            some_norms = wrapped.get_unscaled_gradients(scaled_norms)
        apply(wrapped, wrapped.get_unscaled_gradients(scaled), trained, some_norms, inner)

    for some, some_norms in zip(gradients(3), handed, strict=True):
        step([tf.constant(g) for g in some], None if some_norms is None else [tf.constant(s) for s in some_norms])
    expected = apply_all(make(cls, 0.5, **ARGUMENTS), gradients(3), variables(), None if cls is LARS else handed)
    assert_close([v.numpy() for v in trained], expected)


@pytest.mark.parametrize("broken", ["norm", "gradient"])
@pytest.mark.parametrize("compiled", [False, True])
def test_loss_scaling_skips_a_step_whose_norm_or_gradient_is_not_finite(broken, compiled):
    inner, trained = paper(CLARS, 0.5), variables()
    wrapped = tf_keras.mixed_precision.LossScaleOptimizer(inner)
    some, some_norms = gradients(1)[0], norms(1)[0]
    if broken == "norm":
        some_norms[0] = np.float32(np.inf)
    else:
        some[2][0, 0] = np.nan

    def step():
        apply(wrapped, wrapped.get_unscaled_gradients(map(tf.constant, some)), trained, some_norms, inner)

    wrapped.get_scaled_loss(tf.ones(()))
    before = float(wrapped.loss_scale)
    (tf.function(step, autograph=False) if compiled else step)()
    assert_close([v.numpy() for v in trained], [v.numpy() for v in variables()], rtol=0)
    assert float(wrapped.loss_scale) == before / 2
    assert int(wrapped.iterations) == 1


def test_under_loss_scaling_variables_without_gradient_need_the_list_of_variables():
    inner, trained = paper(CLARS, 0.5), variables()
    wrapped = tf_keras.mixed_precision.LossScaleOptimizer(inner, dynamic=False, initial_scale=1.0)
    wrapped.get_scaled_loss(tf.ones(()))
    some = [None, *wrapped.get_unscaled_gradients(map(tf.constant, gradients(1)[0][1:]))]
    handed = [None, *norms(1)[0][1:]]
    with pytest.raises(ValueError, match=r"3 measured gradient norms for 2 variables.*variables"):
        apply(wrapped, some, trained, handed, inner)
    with inner.measured_gradient_norms(handed, trained):
        wrapped.apply_gradients(zip(some, trained, strict=True))
    assert inner.gradient_norms()["head/kernel"] == pytest.approx(handed[2])


@BOTH
def test_moving_average_of_model_garden(cls):
    inner, trained = make(cls, 0.5, **ARGUMENTS), variables()
    wrapped = ExponentialMovingAverage(inner, average_decay=0.5, dynamic_decay=False)
    wrapped.shadow_copy(Averaged(trained))
    handed = norms(3) if cls is CLARS else [None] * 3
    step = tf.function(lambda some, of: apply(wrapped, some, trained, of, inner), autograph=False)
    averages, plain, other = np.zeros((4, 5)), variables(), make(cls, 0.5, **ARGUMENTS)
    for some, of in zip(gradients(3), handed, strict=True):
        step([tf.constant(g) for g in some], None if of is None else [tf.constant(n) for n in of])
        apply(other, some, plain, of)
        averages = 0.5 * averages + 0.5 * plain[2].numpy()
    assert_close([v.numpy() for v in trained], [v.numpy() for v in plain])
    np.testing.assert_allclose(wrapped.get_slot(trained[2], "average"), averages, rtol=1e-6, atol=1e-6)
    assert int(wrapped.iterations) == int(inner.iterations) == 3
    config = wrapped.get_config()["optimizer"]["config"]
    assert config == inner.get_config()
    copy = ExponentialMovingAverage.from_config(wrapped.get_config())
    assert copy._optimizer.get_config() == inner.get_config()


@BOTH
@pytest.mark.parametrize("built", [False, True])
@pytest.mark.parametrize("wrapper", ["none", "ema", "loss scale"])
def test_a_restored_run_goes_on_as_an_undisturbed_one(cls, built, wrapper, tmp_path):
    handed = norms(6) if cls is CLARS else None
    schedule = tf_keras.optimizers.schedules.PolynomialDecay(0.5, 6, 0.0)

    def new():
        inner, trained = make(cls, schedule, **ARGUMENTS), variables()
        wrapped = inner
        if wrapper == "ema":
            wrapped = ExponentialMovingAverage(inner)
            wrapped.shadow_copy(Averaged(trained))
        elif wrapper == "loss scale":
            wrapped = tf_keras.mixed_precision.LossScaleOptimizer(inner)
            wrapped.get_scaled_loss(tf.ones(()))
            wrapped.get_unscaled_gradients([])
        return inner, wrapped, trained, tf.train.Checkpoint(optimizer=wrapped, variables=trained)

    def some_steps(run, steps):
        inner, wrapped, trained, _ = run
        some = None if handed is None else [handed[i] for i in steps]
        apply_all(wrapped, [gradients(6)[i] for i in steps], trained, some, inner)

    straight, first, second = new(), new(), new()
    some_steps(straight, range(6))
    some_steps(first, range(3))
    path = first[3].save(str(tmp_path / "checkpoint"))
    if built:
        some_steps(second, range(1))
    status = second[3].restore(path)
    some_steps(second, range(3, 6))
    status.assert_existing_objects_matched()
    assert_close([v.numpy() for v in second[2]], [v.numpy() for v in straight[2]], rtol=0)
    assert second[0].layerwise_rates() == straight[0].layerwise_rates()
    assert int(second[0].iterations) == 6
    if wrapper == "ema":
        assert_close(second[1]._average_weights, straight[1]._average_weights, rtol=0)


@BOTH
def test_weights_can_be_got_and_set(cls):
    optimizer, other = make(cls, 0.5), make(cls, 0.5)
    apply_all(optimizer, gradients(2), variables())
    trained = variables()
    apply_all(other, gradients(1), trained)
    other.set_weights(optimizer.get_weights())
    assert int(other.iterations) == 2
    assert_close(other.get_weights(), optimizer.get_weights(), rtol=0)


@BOTH
@pytest.mark.parametrize("wrapper", ["none", "ema", "loss scale"])
def test_two_replicas_equal_one(cls, wrapper, two_replicas):
    """Parts of gradients and norms on each replica add up to those of one device, in a function, as in Model Garden."""
    everything, handed = gradients(3), norms(3)

    def train(strategy, shares):
        with strategy.scope():
            trained = variables()
            inner = make(cls, 0.5, **ARGUMENTS)
            wrapped = inner
            if wrapper == "ema":
                wrapped = ExponentialMovingAverage(inner, average_decay=0.5, dynamic_decay=False)
                wrapped.shadow_copy(Averaged(trained))
            elif wrapper == "loss scale":
                wrapped = tf_keras.mixed_precision.LossScaleOptimizer(inner)
                wrapped.get_scaled_loss(tf.ones(()))
                wrapped.get_unscaled_gradients([])

        def step(some, of):
            share = tf.constant(shares)[tf.distribute.get_replica_context().replica_id_in_sync_group]
            some = [g * share for g in some]
            of = [s * share for s in of] if cls is CLARS else None
            apply(wrapped, some, trained, of, inner)

        run = tf.function(lambda some, of: strategy.run(step, (some, of)), autograph=False)
        for some, of in zip(everything, handed, strict=True):
            run([tf.constant(g) for g in some], [tf.constant(s) for s in of])
        if wrapper == "ema":
            with strategy.scope():
                wrapped.swap_weights()  # now the variables hold their averages
        found = [v.numpy() for v in trained]
        return found, inner.layerwise_rates(), inner.gradient_norms(), int(inner.iterations.numpy())

    one = train(tf.distribute.OneDeviceStrategy("CPU:0"), [1.0])
    two = train(two_replicas, [0.25, 0.75])
    assert_close(two[0], one[0])
    for found, expected in zip(two[1:3], one[1:3], strict=True):
        assert found == pytest.approx(expected, rel=1e-6)
    assert two[3] == one[3] == 3


def test_the_norms_ride_with_the_gradients(two_replicas):
    """No reduction more than LARS has: the K norms travel as one vector among the gradients."""

    def reductions(cls):
        with two_replicas.scope():
            trained, optimizer = variables(), paper(cls, 0.5)

        def step():
            some = [tf.ones(shape) for shape in SHAPES.values()]
            apply(optimizer, some, trained, [tf.ones(())] * 3 if cls is CLARS else None)

        graph = tf.function(lambda: two_replicas.run(step)).get_concrete_function().graph
        return sum("CollectiveReduce" in op.type for op in graph.get_operations())

    assert reductions(CLARS) == reductions(LARS) > 0


def test_replica_norms_are_averaged(two_replicas):
    with two_replicas.scope():
        trained, optimizer = variables(), paper(CLARS, 0.5, gradient_norms="replica")

    def step():
        # Each replica's loss is divided by their number, as everywhere.
        share = tf.constant([1.0, 3.0])[tf.distribute.get_replica_context().replica_id_in_sync_group] / 2
        apply(optimizer, [g * share for g in gradients(1)[0]], trained)

    tf.function(lambda: two_replicas.run(step))()
    assert optimizer.gradient_norms()["head/kernel"] == pytest.approx(2 * np.linalg.norm(gradients(1)[0][2]), rel=1e-6)
