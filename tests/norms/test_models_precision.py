"""Whole models as people run them: in float32, and in mixed precision.

That a norm is the right one is shown in float64, in test_norms_of_models.py. Here the comparison is about rounding.

TensorFlow only: on JAX the reference takes minutes for a model. test_norms_of_models.py runs smaller ones there, in
float64.
"""

from __future__ import annotations

import keras
import numpy as np
import pytest
from comparing import CROSS_ENTROPY, dtype_of, norms_of
from selection import long_unless
from test_norms_of_models import MODELS, random_batch, randomize_scales

from tf_largebatch.norms import brute_force_gradient_norms


def relative_errors(name, policy, batch, training):
    """Of every tensor, the largest error of an example's norm over the tensor's largest norm."""
    keras.config.set_dtype_policy(policy)
    model = MODELS[name]()
    randomize_scales(model)
    x, y = random_batch(model, batch)
    found = norms_of(model, x, y, training=training)
    assert set(found) == {v.path for v in model.trainable_variables}
    assert all(dtype_of(norms) == "float32" for norms in found.values())
    last = [batch - 1]
    expected = brute_force_gradient_norms(model, x, y, CROSS_ENTROPY, training=training, examples=last)
    largest = {path: float(np.max(norms)) for path, norms in expected.items()}
    compared = [path for path in expected if not vanishes(path, largest)]
    assert len(compared) > 0.75 * len(expected)
    return {path: abs(float(found[path][-1]) - largest[path]) / max(largest[path], 1e-30) for path in compared}


def vanishes(path, largest):
    """Whether the gradient is zero but for rounding: biases of attention's keys, biases before batch norm."""
    kernel = path.removesuffix("bias") + "kernel"
    return path.endswith("key/bias") or (path.endswith("/bias") and largest[path] < 1e-4 * largest.get(kernel, 0.0))


# ConvNeXtTiny is in float32 in test_norms_of_models.py.
IN_FLOAT64 = [name for name in MODELS if name != "ConvNeXtTiny"]


@pytest.mark.parametrize("name", long_unless(IN_FLOAT64, ["vision transformer", "generator"]))
def test_float32(name):
    """Sixteen examples: at random weights, batch norm amplifies the less rounding the more there are."""
    errors = relative_errors(name, "float32", batch=16, training=True)
    worst = max(errors, key=errors.get)
    # Still thousandfold in ResNet50, whose unnormalized sums of branches grow with depth.
    rtol = 2e-2 if name == "ResNet50" else 3e-3
    assert errors[worst] < rtol, (worst, errors[worst])
    assert np.median(list(errors.values())) < rtol / 4


@pytest.mark.parametrize("name", long_unless(MODELS, ["language model", "decoder"]))
def test_mixed_precision(name):
    """With moving averages for statistics: batch norm in training amplifies bfloat16's 2^-8 to all there is."""
    errors = relative_errors(name, "mixed_bfloat16", batch=3, training=False)
    worst = max(errors, key=errors.get)
    # A few roundings of 2^-8 where the contributions of positions are summed in another order.
    assert errors[worst] < 4e-2, (worst, errors[worst])
    assert np.median(list(errors.values())) < 1e-2
