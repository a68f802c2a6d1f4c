from __future__ import annotations

import numpy as np
import pytest

from tf_largebatch.core import momentum

G, V, LR, BETA = np.float64([2.0, -1.0]), np.float64([0.5, 4.0]), 0.25, 0.5


def test_classic():
    velocity, decrement = momentum.classic_step(G, V, LR, BETA)
    np.testing.assert_array_equal(velocity, [0.75, 1.75])
    np.testing.assert_array_equal(decrement, velocity)


def test_classic_nesterov():
    velocity, decrement = momentum.classic_step(G, V, LR, BETA, nesterov=True)
    np.testing.assert_array_equal(velocity, [0.75, 1.75])
    np.testing.assert_array_equal(decrement, [0.375 + 0.5, 0.875 - 0.25])


def test_popular():
    velocity, decrement = momentum.popular_step(G, V, LR, BETA)
    np.testing.assert_array_equal(velocity, [2.25, 1.0])
    np.testing.assert_array_equal(decrement, [0.5625, 0.25])


def test_popular_nesterov():
    velocity, decrement = momentum.popular_step(G, V, LR, BETA, nesterov=True)
    np.testing.assert_array_equal(velocity, [2.25, 1.0])
    np.testing.assert_array_equal(decrement, LR * (G + BETA * velocity))


@pytest.mark.parametrize("nesterov", [False, True])
def test_the_forms_agree_under_a_constant_learning_rate(nesterov):
    classic, popular = np.zeros(2), np.zeros(2)
    for gradient in np.random.default_rng(0).normal(size=(5, 2)):
        classic, one = momentum.classic_step(gradient, classic, LR, BETA, nesterov)
        popular, other = momentum.popular_step(gradient, popular, LR, BETA, nesterov)
        np.testing.assert_allclose(one, other, rtol=1e-12)


def test_the_forms_differ_once_the_learning_rate_changes():
    velocity, _ = momentum.classic_step(G, np.zeros(2), 1.0, BETA)
    _, classic = momentum.classic_step(G, velocity, 0.1, BETA)
    velocity, _ = momentum.popular_step(G, np.zeros(2), 1.0, BETA)
    _, popular = momentum.popular_step(G, velocity, 0.1, BETA)
    np.testing.assert_allclose(classic, (0.5 + 0.1) * G)
    np.testing.assert_allclose(popular, 0.1 * 1.5 * G)
