"""Balls: a random start within, a direction of full length, an idempotent projection, a distance."""

from __future__ import annotations

import numpy as np
import pytest
from keras import ops
from selection import ON_JAX

from tf_largebatch.core import balls, pgd, random_numbers
from tf_largebatch.core.balls import BALLS, Ball, ball

SEED = np.array([3, 5], "int32")
SHAPE = (50, 2, 2, 3)


class L1(Ball):
    """Sum of absolute changes; a step changes the one value with the largest gradient."""

    def start(self, x, seed):
        u = BALLS["linf"].start(x, seed)
        return u / ops.maximum(self.distance(u)[:, None, None, None], 1.0)

    def direction(self, gradient, step_size):
        largest = ops.max(ops.abs(gradient), axis=(1, 2, 3), keepdims=True)
        return ops.where((ops.abs(gradient) == largest) & (largest > 0), ops.sign(gradient), 0.0)

    def project(self, moved, x, epsilon):
        length = self.distance((moved - x) / epsilon)[:, None, None, None]
        return x + (moved - x) / ops.maximum(length, 1.0)

    def distance(self, difference):
        return ops.sum(ops.abs(difference), axis=(1, 2, 3))


@pytest.fixture(params=["linf", "l2", "l1"])
def name(request, monkeypatch):
    monkeypatch.setitem(BALLS, "l1", L1())  # adding a ball: one class and one row of the table
    return request.param


def test_what_every_ball_does(name):
    rng = np.random.default_rng(0)
    x, g = (ops.convert_to_tensor(rng.normal(size=SHAPE), "float32") for _ in range(2))
    found = ball(name)
    seeds = random_numbers.split(SEED, 2)
    assert np.all(found.distance(found.start(x, seeds)) <= 1 + 1e-6)
    np.testing.assert_allclose(found.distance(found.direction(g, 1.0)), 1.0, rtol=1e-6)
    np.testing.assert_array_equal(found.direction(ops.zeros_like(g), 1.0), ops.zeros_like(g))
    far = found.project(x + 100 * g, x, 0.5)
    np.testing.assert_allclose(found.distance(far - x), 0.5, rtol=1e-5)
    np.testing.assert_allclose(found.project(far, x, 0.5), far, atol=1e-6)
    # A direction is the steepest one: no random point of the ball increases the loss more.
    gain = np.sum(g * found.direction(g, 1.0), axis=(1, 2, 3))
    assert np.all(gain >= np.sum(g * found.start(x, seeds), axis=(1, 2, 3)))


def test_random_starts_fill_the_ball():
    x = ops.zeros((200, 2, 2, 3))
    seeds = random_numbers.split(SEED, 2)
    u = ops.convert_to_numpy(BALLS["linf"].start(x, seeds))
    # 2,400 numbers, uniform in [-1, 1]
    assert u.min() < -0.99 and u.max() > 0.99 and abs(u.mean()) < 0.05
    # A share r^D of a ball of D dimensions lies within r: the mean is D / (D + 1), the deviation 0.07.
    lengths = ops.convert_to_numpy(BALLS["l2"].distance(BALLS["l2"].start(x, seeds)))
    assert abs(lengths.mean() - 12 / 13) < 0.02 and lengths.min() < 0.85


@pytest.mark.parametrize("scale", [1e-30, 1e30])
def test_a_direction_does_not_depend_on_the_gradients_scale(name, scale):
    g = ops.convert_to_tensor(np.random.default_rng(0).normal(size=SHAPE), "float32")
    np.testing.assert_allclose(ball(name).direction(scale * g, 0.5), ball(name).direction(g, 0.5), rtol=1e-5)


def test_an_attack_in_every_ball(name):
    x = np.random.default_rng(0).uniform(size=SHAPE).astype("float32")
    arguments = {"epsilon": 0.3, "step_size": 0.2, "num_steps": 3, "lower": 0.0, "upper": 1.0, "seed": SEED}
    moved = pgd.perturb(x, ops.ones_like, descend=False, norm=name, random_start_probability=0.5, **arguments)
    assert np.all(ball(name).distance(moved - x) <= 0.3 + 1e-5)
    assert np.all(np.sum(moved - x, axis=(1, 2, 3)) > 0)


def test_the_size_that_is_logged():
    difference = ops.convert_to_tensor(np.arange(12, dtype="float32").reshape(1, 2, 2, 3))
    assert float(BALLS["linf"].size(difference)[0]) == 5.5
    assert float(BALLS["linf"].distance(difference)[0]) == 11.0
    np.testing.assert_allclose(BALLS["l2"].size(difference)[0], np.sqrt(np.sum(np.arange(12) ** 2)), rtol=1e-6)


def test_an_unknown_ball_is_refused():
    with pytest.raises(ValueError, match=r"norm must be one of 'linf', 'l2'; received norm='l3'"):
        ball("l3")


def test_projections_of_single_images():
    x, moved = np.array([[[1.0, 2.0]]], "float32"), np.array([[[4.0, -2.0]]], "float32")
    radius = np.float32(2.0)
    np.testing.assert_array_equal(BALLS["linf"].project(moved, x, radius), [[[3.0, 0.0]]])
    np.testing.assert_allclose(BALLS["l2"].project(moved, x, radius), [[[1 + 2 * 0.6, 2 - 2 * 0.8]]], rtol=1e-6)
    for name in ("linf", "l2"):
        near = x + np.float32(0.5)
        np.testing.assert_array_equal(BALLS[name].project(near, x, radius), near)
        for point in (moved, x):
            np.testing.assert_array_equal(BALLS[name].project(point, x, np.float32(0.0)), x)


def test_which_seed_a_start_takes_for_what():
    x, (a, b, c) = ops.zeros(SHAPE), random_numbers.split(SEED, 3)
    start = BALLS["linf"].start
    np.testing.assert_array_equal(start(x, [a, b]), start(x, [a, c]))
    one, other_radius, other_direction = (BALLS["l2"].start(x, seeds) for seeds in ([a, b], [a, c], [c, b]))
    lengths = [ops.convert_to_numpy(BALLS["l2"].distance(u)) for u in (one, other_radius, other_direction)]
    np.testing.assert_allclose(lengths[2], lengths[0], rtol=1e-5)
    assert np.abs(lengths[1] - lengths[0]).max() > 0.1
    unit = [
        ops.convert_to_numpy(u) / length[:, None, None, None]
        for u, length in zip((one, other_radius), lengths, strict=False)
    ]
    np.testing.assert_allclose(unit[0], unit[1], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("scale", [1e-20, 1e-3, 7.0, 1e20])
def test_vectors_are_divided_by_their_largest_entry(scale):
    """On TensorFlow exactly: the power of two for large numbers rounds nothing. XLA takes the reciprocal."""
    vectors = (scale * np.random.default_rng(0).normal(size=(5, 2, 3))).astype("float32")
    largest = np.abs(vectors).max((1, 2), keepdims=True)
    rtol = 2.0**-22 if ON_JAX else 0
    np.testing.assert_allclose(balls._unit_max(vectors), vectors / largest, rtol=rtol)
