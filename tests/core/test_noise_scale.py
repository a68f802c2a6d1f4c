from __future__ import annotations

import numpy as np
import pytest

from tf_largebatch.core.noise_scale import estimates, simple_noise_scale


def moments_of(gradients):
    """Sample mean's squared norm and trace of the sample covariance, as statistics defines them; [B, D] -> scalars."""
    return (gradients.mean(0) ** 2).sum(), np.cov(gradients.T, ddof=1).trace()


def measured(gradients):
    return (gradients**2).sum(-1).mean(-1), (gradients.mean(-2) ** 2).sum(-1)


@pytest.mark.parametrize("batch", [2, 3, 100])
def test_the_trace_is_that_of_the_sample_covariance(batch):
    gradients = np.random.default_rng(0).normal(size=(batch, 4)) + 0.5
    gradient, trace = estimates(*measured(gradients), batch)
    squared_mean, covariance_trace = moments_of(gradients)
    np.testing.assert_allclose(trace, covariance_trace)
    # E||mean||^2 = ||G||^2 + tr(Sigma) / B
    np.testing.assert_allclose(gradient, squared_mean - covariance_trace / batch)


def test_the_squared_gradient_is_the_mean_product_of_two_different_examples():
    gradients = np.random.default_rng(0).normal(size=(5, 4)) + 0.5
    products = gradients @ gradients.T
    gradient, _ = estimates(*measured(gradients), 5)
    np.testing.assert_allclose(gradient, products[~np.eye(5, dtype=bool)].mean())


@pytest.mark.parametrize("batch", [2, 8])
def test_both_estimates_are_unbiased(batch):
    mean, deviation = np.array([0.5, -1.0, 0.0]), np.array([1.0, 2.0, 0.5])
    draws = 40000
    gradients = mean + deviation * np.random.default_rng(0).normal(size=(draws, batch, 3))
    for found, expected in zip(estimates(*measured(gradients), batch), (1.25, 5.25), strict=True):
        standard_error = found.std() / np.sqrt(draws)
        assert abs(found.mean() - expected) < 4 * standard_error < 0.1 * expected


def test_part_of_the_batch_for_the_squares_leaves_them_unbiased():
    mean, batch, part, draws = np.array([0.5, -1.0]), 8, 3, 40000
    gradients = mean + np.random.default_rng(0).normal(size=(draws, batch, 2))
    squares = (gradients[:, :part] ** 2).sum(-1).mean(-1)
    for found, expected in zip(estimates(squares, measured(gradients)[1], batch), (1.25, 2.0), strict=True):
        assert abs(found.mean() - expected) < 4 * found.std() / np.sqrt(draws) < 0.05 * expected


def test_equal_gradients_have_no_noise():
    gradient, trace = estimates(4.0, 4.0, 10)
    assert (gradient, trace) == (4.0, 0.0)
    assert simple_noise_scale(gradient, trace) == 0.0


def test_quotient_and_its_edges():
    found = simple_noise_scale([2.0, 0.0, -1.0, 1.0, 0.0, -1.0, np.nan], [6.0, 1.0, 1.0, -1e-9, 0.0, -1.0, 1.0])
    np.testing.assert_array_equal(found, [3.0, np.inf, np.inf, 0.0, np.nan, np.nan, np.nan])
