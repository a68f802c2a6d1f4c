"""A layer-wise optimizer is one class that says what its rate divides by, and one row for the command line."""

from __future__ import annotations

import json

import keras
import numpy as np
import pytest
from keras import ops
from layerwise_cases import apply_all, gradients, other_arguments, variables

from tf_largebatch.optimizers import LARS
from tf_largebatch.optimizers.base import LayerwiseOptimizer
from tf_largebatch.train import optimizers as command_line


@keras.saving.register_keras_serializable(package="tests")
class RootMeanSquare(LayerwiseOptimizer):
    """Divides by the root mean square of the gradient's entries."""

    def denominator(self, gradient, undecayed):
        return ops.sqrt(ops.mean(ops.square(gradient)))


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_its_rate_divides_by_what_it_says(dtype):
    optimizer, trained, some = RootMeanSquare(0.5, eta=0.1, epsilon=0.0, momentum=0.0), variables(dtype), gradients(1)
    before = trained[2].numpy().astype("float64")
    apply_all(optimizer, [[g.astype(dtype) for g in some[0]]], trained)
    norm = np.sqrt(np.mean(some[0][2].astype(dtype).astype("float64") ** 2))
    rate = 0.1 * np.linalg.norm(before) / norm
    assert optimizer.gradient_norms()["head/kernel"] == pytest.approx(norm, rel=1e-6)
    assert optimizer.layerwise_rates()["head/kernel"] == pytest.approx(rate, rel=1e-6)
    # Weights of up to 4 are rounded to eleven bits in float16.
    tolerance = 4 * 2.0**-11 if dtype == "float16" else 1e-6
    np.testing.assert_allclose(trained[2].numpy(), before - 0.5 * rate * some[0][2], atol=tolerance)


def test_its_arguments_and_configuration_are_the_base_classs():
    optimizer = RootMeanSquare(**other_arguments(LARS))
    config = json.loads(json.dumps(keras.saving.serialize_keras_object(optimizer)))
    again = keras.saving.deserialize_keras_object(config)
    assert type(again) is RootMeanSquare
    assert again.get_config() == optimizer.get_config()
    with pytest.raises(NotImplementedError, match="LayerwiseOptimizer must define denominator"):
        apply_all(LayerwiseOptimizer(0.5), gradients(1), variables())


def test_one_row_brings_it_to_the_command_line(monkeypatch):
    row = command_line.Optimizer(
        RootMeanSquare,
        command_line.Defaults(0.25, "linear", 1e-4, eta=0.02),
        command_line.LAYERWISE_ARGUMENTS,
        layerwise=True,
    )
    monkeypatch.setitem(command_line.OPTIMIZERS, "rms", row)
    name = command_line.canonical_name("RMS")
    config = command_line.with_defaults(command_line.OptimizerConfig(name=name, momentum=0.5), "digits")
    schedule = command_line.build_schedule(config, batch_size=256, epochs=2, steps_per_epoch=3)
    optimizer = command_line.build_optimizer(config, schedule, variables())
    assert type(optimizer) is RootMeanSquare
    assert (optimizer.eta, optimizer.momentum, optimizer.weight_decay_rate) == (0.02, 0.5, 1e-4)
    assert schedule.peak_learning_rate == 0.5
