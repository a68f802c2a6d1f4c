from __future__ import annotations

import json

import keras
import numpy as np
import pytest
from keras import ops

from tf_largebatch.core import defaults
from tf_largebatch.core.schedules import (
    WarmupPolynomialDecay,
    large_batch_schedule,
    linear_scaling,
    sqrt_scaling,
)


def formula(step, peak=8.0, total=100, warmup=10, start=1.0, power=1.6, end=0.25):
    if step < warmup:
        return start + (peak - start) * step / warmup
    return end + (peak - end) * (1 - min((step - warmup) / (total - warmup), 1)) ** power


SCHEDULE = WarmupPolynomialDecay(8.0, 100, 10, 1.0, 1.6, 0.25, name="mine")


def test_scaling_rules():
    assert linear_scaling(0.1, 4096, 256) == 1.6
    assert linear_scaling(0.1, 256) == 0.1
    assert sqrt_scaling(0.1, 4096, 256) == 0.4
    assert sqrt_scaling(0.1, 256) == 0.1


@pytest.mark.parametrize("step", [0, 1, 9, 10, 11, 55, 99, 100, 101, 10**9])
def test_every_part_and_its_boundaries(step):
    # float32 arithmetic.
    np.testing.assert_allclose(float(SCHEDULE(step)), formula(step), rtol=1e-6)


def test_peak_and_end_are_met_exactly():
    assert float(SCHEDULE(10)) == 8.0
    assert float(SCHEDULE(100)) == 0.25


def test_no_warmup_starts_at_the_peak():
    schedule = WarmupPolynomialDecay(4.0, 10, power=2.0, end_learning_rate=0.0)
    assert [float(schedule(step)) for step in (0, 5, 10, 20)] == [4.0, 1.0, 0.0, 0.0]


def traced(function):
    if keras.backend.backend() == "jax":
        import jax

        return jax.jit(function)
    import tensorflow as tf

    return tf.function(function, autograph=False)


@pytest.mark.parametrize("floatx", ["float16", "float32"])
@pytest.mark.parametrize("step_dtype", ["int32", "int64", "float32"])
def test_is_float32_for_every_step_and_floatx(floatx, step_dtype):
    # 100,000 steps are more than float16 can count.
    schedule = WarmupPolynomialDecay(4.0, 200_000, 0, power=1.0, end_learning_rate=0.0)
    before = keras.config.floatx()
    keras.config.set_floatx(floatx)
    try:
        rate = traced(schedule)(ops.cast(100_000, step_dtype))
    finally:
        keras.config.set_floatx(before)
    assert keras.backend.standardize_dtype(rate.dtype) == "float32"
    assert float(rate) == 2.0


@pytest.mark.parametrize("schedule", [SCHEDULE, WarmupPolynomialDecay(1.0, 3)])
def test_serializes(schedule):
    config = json.loads(json.dumps(keras.saving.serialize_keras_object(schedule)))
    assert config["registered_name"] == "tf_largebatch>WarmupPolynomialDecay"
    again = keras.saving.deserialize_keras_object(config)
    assert again.get_config() == schedule.get_config()
    assert float(again(4)) == float(schedule(4))


def test_drives_an_optimizer():
    optimizer = keras.optimizers.SGD(WarmupPolynomialDecay(1.0, 4, 2, power=1.0, end_learning_rate=0.0))
    variable = keras.Variable(0.0)
    for _ in range(5):
        optimizer.apply([ops.convert_to_tensor(1.0)], [variable])
    assert float(variable.numpy()) == -(0 + 0.5 + 1 + 0.5 + 0)


def test_numpys_scalars_are_arguments():
    arguments = {"peak_learning_rate": np.float32(0.5), "total_steps": np.int64(10), "warmup_steps": np.array(2)}
    schedule = WarmupPolynomialDecay(**arguments, power=np.float16(2), end_learning_rate=np.float64(0.0))
    assert schedule.get_config() == {**WarmupPolynomialDecay(0.5, 10, 2, power=2.0, end_learning_rate=0.0).get_config()}
    json.dumps(schedule.get_config())
    made = large_batch_schedule(
        np.float32(0.5),
        np.int64(512),
        np.array(256),
        steps_per_epoch=np.int32(10),
        epochs=np.float32(3.0),
        warmup_epochs=np.int8(1),
    )
    plain = large_batch_schedule(0.5, 512, 256, steps_per_epoch=10, epochs=3.0, warmup_epochs=1)
    assert json.loads(json.dumps(made.get_config())) == plain.get_config()
    assert type(linear_scaling(np.float32(0.5), np.int64(8), np.int64(4))) is float


def test_factory_counts_in_epochs():
    schedule = large_batch_schedule(
        0.1, 4096, 256, steps_per_epoch=312, epochs=90, warmup_epochs=2.5, power=3.0, end_learning_rate=0.5
    )
    assert schedule.get_config() == {
        "peak_learning_rate": 1.6,
        "total_steps": 28080,
        "warmup_steps": 780,
        "warmup_start": 0.0,
        "power": 3.0,
        "end_learning_rate": 0.5,
        "name": "WarmupPolynomialDecay",
    }
    assert large_batch_schedule(0.1, 512, 256, steps_per_epoch=10, epochs=3).warmup_steps == 0


def test_without_batch_sizes_the_peak_is_the_same_for_every_batch():
    recipe = large_batch_schedule(steps_per_epoch=12, epochs=8)
    peak, power, end = defaults.PEAK_LEARNING_RATE, defaults.POWER, defaults.END_LEARNING_RATE
    assert recipe.get_config() == WarmupPolynomialDecay(peak, 96, power=power, end_learning_rate=end).get_config()
    assert large_batch_schedule(0.5, steps_per_epoch=12, epochs=8).peak_learning_rate == 0.5
    for one in ({"batch_size": 512}, {"base_batch_size": 512}):
        with pytest.raises(ValueError, match=r"^base_batch_size must be given together with batch_size="):
            large_batch_schedule(0.1, **one, steps_per_epoch=12, epochs=8)


@pytest.mark.parametrize(
    "argument, value",
    [
        ("peak_learning_rate", -1.0),
        ("peak_learning_rate", float("nan")),
        ("total_steps", 0),
        ("total_steps", 10.5),
        ("warmup_steps", 2.5),
        ("warmup_steps", -1),
        ("warmup_steps", 10),
        ("warmup_start", -0.1),
        ("power", 0),
        ("power", float("inf")),
        ("peak_learning_rate", float("inf")),
        ("end_learning_rate", -1e-4),
    ],
)
def test_schedule_refuses(argument, value):
    with pytest.raises(ValueError, match=f"^{argument} must be .*; received {argument}={value}"):
        WarmupPolynomialDecay(**{"peak_learning_rate": 1.0, "total_steps": 10, argument: value})


@pytest.mark.parametrize("argument", ["base_learning_rate", "batch_size", "base_batch_size"])
@pytest.mark.parametrize("rule", [linear_scaling, sqrt_scaling])
def test_scaling_refuses(rule, argument):
    with pytest.raises(ValueError, match=f"^{argument} must be a number above 0; received {argument}=0"):
        rule(**{"base_learning_rate": 0.1, "batch_size": 8, "base_batch_size": 8, argument: 0})
    if argument != "base_learning_rate":
        with pytest.raises(ValueError, match=f"^{argument} must be a whole number; received {argument}=2.5"):
            rule(**{"base_learning_rate": 0.1, "batch_size": 8, "base_batch_size": 8, argument: 2.5})


@pytest.mark.parametrize(
    "argument, value", [("steps_per_epoch", 0), ("epochs", 0), ("warmup_epochs", -1), ("warmup_epochs", 90)]
)
def test_factory_refuses(argument, value):
    arguments = {"steps_per_epoch": 10, "epochs": 90, argument: value}
    with pytest.raises(ValueError, match=f"^{argument} must be .*{argument}={value}"):
        large_batch_schedule(0.1, 512, 256, **arguments)
