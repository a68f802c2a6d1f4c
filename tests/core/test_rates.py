from __future__ import annotations

import keras
import numpy as np
import pytest
from keras.ops import convert_to_tensor as tensor

from tf_largebatch.core import rates


def rate(weight_norm, gradient_norm, **kwargs):
    arguments = {"eta": 0.5, "epsilon": 0.25, **kwargs}
    return float(rates.layerwise_rate(tensor(weight_norm), tensor(gradient_norm), **arguments))


def test_formula_and_place_of_epsilon():
    assert rate(3.0, 0.5) == 0.5 * 3.0 / 0.75
    assert rate(0.5, 0.25) == 0.5 * 0.5 / 0.5


def test_cap_limits_only_larger_rates():
    assert rate(3.0, 0.5, max_rate=0.1) == np.float32(0.1)
    assert rate(3.0, 0.5, max_rate=5.0) == 2.0


@pytest.mark.parametrize("epsilon", [0.25, 0.0])
@pytest.mark.parametrize("max_rate, start", [(None, 1.0), (0.125, 0.125), (3.0, 1.0)])
def test_zero_weights_start_at_the_plain_learning_rate_or_the_cap(epsilon, max_rate, start):
    assert rate(0.0, 1.0, epsilon=epsilon, max_rate=max_rate) == start


@pytest.mark.parametrize("weight_norm", [0.0, 1.0])
@pytest.mark.parametrize("epsilon", [0.25, 0.0])
@pytest.mark.parametrize("max_rate", [None, 0.1])
def test_a_zero_gradient_norm_gives_rate_zero(weight_norm, epsilon, max_rate):
    assert rate(weight_norm, 0.0, epsilon=epsilon, max_rate=max_rate) == 0.0


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("other", [0.0, 1.0, float("nan"), float("inf")])
@pytest.mark.parametrize("max_rate", [None, 0.1])
def test_a_norm_that_is_not_finite_gives_nan(bad, other, max_rate):
    assert np.isnan(rate(bad, other, max_rate=max_rate))
    assert np.isnan(rate(other, bad, max_rate=max_rate))


def test_packed_norms_are_treated_one_by_one():
    packed = rates.layerwise_rate(tensor([4.0, 0, 1, 1]), tensor([1, 1, np.inf, 0]), 0.5, 0.0)
    np.testing.assert_array_equal(packed, [2.0, 1.0, np.nan, 0.0])


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
def test_norm_is_computed_in_float32_at_least(dtype):
    # 300 squared overflows float16.
    norm = rates.l2_norm(keras.ops.full((4, 4), 300.0, dtype=dtype))
    # JAX has no float64 by default.
    wide = dtype == "float64" and keras.backend.backend() == "tensorflow"
    assert keras.backend.standardize_dtype(norm.dtype) == ("float64" if wide else "float32")
    assert float(norm) == 1200.0


@pytest.mark.parametrize("shape", [(), (5,), (2, 3, 4, 5)])
def test_norm_of_any_shape(shape):
    values = np.random.default_rng(0).normal(size=shape)
    # Summation order in float32.
    np.testing.assert_allclose(rates.l2_norm(keras.ops.cast(values, "float32")), np.sqrt((values**2).sum()), 1e-6)


@pytest.mark.skipif(keras.backend.backend() == "jax", reason="JAX computes in float32 by default")
def test_a_cap_in_float64_is_not_rounded_to_float32():
    for weight_norm in (0.0, 100.0):
        found = rates.layerwise_rate(tensor(weight_norm, "float64"), tensor(1.0, "float64"), 1.0, 0.0, max_rate=0.1)
        assert float(found) == 0.1


@pytest.mark.parametrize("cap, start", [(0.125, 0.125), (3.0, 1.0)])
def test_the_cap_may_be_a_tensor(cap, start):
    assert rate(0.0, 1.0, max_rate=tensor(cap)) == start
    assert rate(3.0, 0.5, max_rate=tensor(cap)) == min(cap, 2.0)
