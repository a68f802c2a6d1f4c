"""Projected gradient attacks: units, targets, random starts, steps and whole attacks, against NumPy in float64."""

from __future__ import annotations

import keras
import numpy as np
import pytest
from keras import ops
from selection import long

from tf_largebatch.conadv.backend import gradient_of
from tf_largebatch.core import pgd

pytestmark = pytest.mark.each_value

SEED = np.array([3, 5], "int32")
CHANNELS = np.array([0.05, 0.2, 0.1], "float32")
NORMS = ["linf", "l2"]
ON_JAX = keras.backend.backend() == "jax"
# JAX computes in float64 only where a setting of its own asks for it.
DTYPES = [("float16", 2**-11), ("bfloat16", 2**-8), *([] if ON_JAX else [("float64", 1e-12)])]


def numpy(x):
    return ops.convert_to_numpy(x)


def in_float64(x):
    """An array of a tensor of any floating dtype."""
    wide = keras.backend.standardize_dtype(x.dtype) == "float64"
    return numpy(x if wide else ops.cast(x, "float32")).astype("float64")


def images(batch=6, shape=(4, 3, 3), low=0.0, high=1.0, seed=0):
    return np.random.default_rng(seed).uniform(low, high, (batch, *shape)).astype("float32")


def distance(x_adv, x, epsilon, norm):
    """In radii of the ball, for each example."""
    radii = (np.asarray(x_adv, "float64") - np.asarray(x, "float64")) / np.asarray(epsilon, "float64")
    radii = radii.reshape(len(radii), -1)
    return np.abs(radii).max(1) if norm == "linf" else np.sqrt((radii**2).sum(1))


def reference_step(x_adv, x, gradient, step_size, epsilon, lower, upper, norm, descend):
    """One example at a time, in float64."""
    step_size, epsilon, result = np.asarray(step_size, "float64"), np.asarray(epsilon, "float64"), []
    for a, c, g in zip(*(np.asarray(t, "float64") for t in (x_adv, x, gradient)), strict=True):
        if norm == "linf":
            direction = np.sign(g)
        else:
            scaled = step_size * g
            direction = scaled / np.linalg.norm(scaled) if scaled.any() else scaled
        a = a + (-1 if descend else 1) * step_size * direction
        difference = a - c
        if norm == "linf":
            difference = np.clip(difference, -epsilon, epsilon)
        else:
            difference = difference / max(1.0, np.linalg.norm(difference / epsilon))
        result.append(np.clip(c + difference, lower, upper))
    return np.array(result)


# Units.


def test_units_of_1_255_in_units_of_the_value_range():
    assert pgd.in_input_units(4.0, (0.0, 255.0)) == 4.0
    assert pgd.in_input_units(51.0, (-1.0, 1.0)) == pytest.approx(0.4)
    mean, std = np.array([0.4, 0.5, 0.6]), np.array([0.2, 0.25, 0.5])
    standardized = np.stack([-mean / std, (1 - mean) / std], axis=1)
    per_channel = pgd.in_input_units(255 / 4, standardized)
    assert per_channel.dtype == np.float32
    np.testing.assert_allclose(per_channel, 0.25 / std, rtol=1e-6)  # rounding to float32


def test_ends_of_the_value_range():
    assert pgd.bounds((-1, 1)) == (-1.0, 1.0)
    lower, upper = pgd.bounds([(0, 1), (-2, 3)])
    np.testing.assert_array_equal(lower, [0, -2])
    np.testing.assert_array_equal(upper, [1, 3])


@pytest.mark.parametrize(
    "value_range",
    [
        (1.0, 1.0),
        (2.0, 1.0),
        (0.0, np.inf),
        (np.nan, 1.0),
        (0, 1, 2),
        np.empty((0, 2)),
        255.0,
        "range",
        None,
        [],
        [(0, 1), (1, 0)],
        [(0,)],
    ],
)
def test_bad_value_range_is_named(value_range):
    with pytest.raises(ValueError, match="value_range must"):
        pgd.in_input_units(4.0, value_range)


# Targets.


@pytest.mark.parametrize("num_classes", [2, 3, 10])
@pytest.mark.parametrize("dtype", ["int32", "int64", "uint8", "float32"])
def test_targets_are_wrong_and_uniform(num_classes, dtype):
    labels = np.arange(6000) % num_classes
    targets = numpy(pgd.random_wrong_classes(labels.astype(dtype), num_classes, SEED))
    counts = np.zeros((num_classes, num_classes))
    np.add.at(counts, (labels, targets), 1)
    assert targets.dtype == np.int32
    assert not np.diag(counts).any()
    expected = 6000 / num_classes / (num_classes - 1)
    off_diagonal = counts[~np.eye(num_classes, dtype=bool)]
    # Each is binomial; five of its standard deviations for the largest of at most 90.
    assert np.abs(off_diagonal - expected).max() <= 5 * np.sqrt(expected * (1 - 1 / (num_classes - 1)))


def test_targets_beyond_the_labels_own_dtype():
    assert numpy(pgd.random_wrong_classes(np.zeros(200, "uint8"), 1000, SEED)).max() > 255


def test_targets_need_two_classes():
    with pytest.raises(ValueError, match="num_classes must be 2 or more"):
        pgd.random_wrong_classes(np.zeros(2, "int32"), 1, SEED)


# Random points.


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("epsilon", [0.2, CHANNELS])
def test_random_points_are_uniform_in_the_ball(norm, epsilon):
    x = np.zeros((4000, 1, 1, 3), "float32")
    points = numpy(pgd.noise(x, epsilon, -1.0, 1.0, norm, SEED)).reshape(4000, 3) / epsilon
    radius = np.abs(points).max(1) if norm == "linf" else np.sqrt((points**2).sum(1))
    assert radius.max() <= 1 + 1e-6  # a rounding
    # Uniform in the ball: the radius to the power of the dimension is uniform in [0, 1]. Kolmogorov-Smirnov's
    # critical distance at a level of 1e-4 is 2.23 / sqrt(n).
    volume = np.sort(radius**3)
    assert np.abs(volume - (np.arange(4000) + 0.5) / 4000).max() < 2.23 / np.sqrt(4000)
    # No direction is preferred: means and correlations vanish within five standard errors.
    second = (points**2).mean(0)
    np.testing.assert_allclose(second, 1 / 3 if norm == "linf" else 1 / 5, rtol=0.08)
    assert np.abs(points.mean(0)).max() < 5 * np.sqrt(second.max() / 4000)
    assert np.abs((points.T @ points / 4000)[np.triu_indices(3, 1)]).max() < 5 * second.max() / np.sqrt(4000)


@pytest.mark.parametrize("norm", NORMS)
def test_random_start_happens_with_the_probability_for_each_example(norm):
    x = images(3000, (2, 2, 1))
    started = numpy(pgd.random_start(x, 0.1, 0.0, 1.0, 0.8, norm, SEED))
    moved = (started != x).reshape(3000, -1)
    share = moved.any(1).mean()
    assert abs(share - 0.8) < 5 * np.sqrt(0.8 * 0.2 / 3000)
    assert moved[moved.any(1)].mean() > 0.99  # a whole example moves or stays
    assert distance(started, x, 0.1, norm).max() <= 1 + 1e-5  # x + offset rounds at 1, offset at 0.1
    assert started.min() >= 0 and started.max() <= 1
    np.testing.assert_array_equal(pgd.random_start(x, 0.1, 0.0, 1.0, 0.0, norm, SEED), x)


def test_a_random_start_of_probability_zero_never_happens(monkeypatch):
    """Not even where the random number is 0."""
    monkeypatch.setattr(pgd.random_numbers, "uniform", lambda shape, seed, dtype, *ends: ops.zeros(shape, dtype))
    monkeypatch.setattr(pgd.ball("linf"), "start", lambda x, seed: ops.ones_like(x), raising=False)
    x = images(3)
    np.testing.assert_array_equal(pgd.random_start(x, 0.1, 0.0, 2.0, 0.0, "linf", SEED), x)
    np.testing.assert_array_equal(pgd.random_start(x, 0.1, 0.0, 2.0, 0.01, "linf", SEED), x + np.float32(0.1))
    for probability in (-0.1, 1.5):
        with pytest.raises(ValueError, match=r"^probability must be in \[0, 1\]"):
            pgd.random_start(x, 0.1, 0.0, 2.0, probability, "linf", SEED)


@pytest.mark.parametrize("norm", NORMS)
def test_same_seed_same_numbers_other_seed_others(norm):
    x = images()
    first, again = (numpy(pgd.noise(x, 0.1, 0.0, 1.0, norm, SEED)) for _ in range(2))
    np.testing.assert_array_equal(first, again)
    assert (first != numpy(pgd.noise(x, 0.1, 0.0, 1.0, norm, SEED + 1))).mean() > 0.5


# Steps.


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("descend", [True, False])
@pytest.mark.parametrize("step_size,epsilon", [(0.03, 0.1), (0.5, 0.1), (CHANNELS, CHANNELS), (0.01, CHANNELS)])
def test_step_agrees_with_numpy(norm, descend, step_size, epsilon):
    x, g = images(), images(low=-1, seed=1)
    g[1, 0] = 0
    x_adv = numpy(pgd.noise(x, epsilon, 0.0, 1.0, norm, SEED))
    arguments = (step_size, epsilon, 0.0, 1.0, norm, descend)
    result = numpy(pgd.step(x_adv, x, g, *arguments))
    # float32 against float64 at values up to 1.
    np.testing.assert_allclose(result, reference_step(x_adv, x, g, *arguments), atol=3e-7)


@pytest.mark.parametrize("epsilon", [0.3, CHANNELS])
def test_l2_projection_is_exact(epsilon):
    # Far outside: onto the surface, along the line to x. Inside: nothing moves.
    x, far = images(low=-0.5, high=0.5), images(low=-50, high=50, seed=2)
    zero = np.zeros_like(x)
    projected = numpy(pgd.step(far, x, zero, 0.0, epsilon, -1e3, 1e3, "l2", True))
    np.testing.assert_allclose(distance(projected, x, epsilon, "l2"), 1.0, rtol=3e-6)  # x + offset rounds at 0.5
    offset, line = (projected - x).reshape(6, -1), (far - x).reshape(6, -1)
    cosine = (offset * line).sum(1) / np.linalg.norm(offset, axis=1) / np.linalg.norm(line, axis=1)
    np.testing.assert_allclose(cosine, 1.0, rtol=1e-6)
    near = (x + 0.5 * (projected - x)).astype("float32")
    np.testing.assert_allclose(pgd.step(near, x, zero, 0.0, epsilon, -1e3, 1e3, "l2", True), near, atol=1e-7)


@pytest.mark.parametrize("norm", NORMS)
def test_per_channel_scaling_is_an_attack_in_pixels(norm):
    """Scaling the channels and the attack with them changes nothing but the unit of the result."""
    mean, std = np.array([0.4, 0.5, 0.6], "float32"), np.array([0.2, 0.25, 0.5], "float32")
    pixels, g = images(high=255), images(low=-1, seed=1)  # g: with respect to pixels
    value_range = np.stack([-mean / std, (1 - mean) / std], axis=1)
    lower, upper = pgd.bounds(value_range)
    epsilon, step_size = (pgd.in_input_units(p, value_range) for p in (40.0, 15.0))
    in_pixels, x = pixels, (pixels / 255 - mean) / std
    scaled = x
    for _ in range(4):
        in_pixels = pgd.step(in_pixels, pixels, g, 15.0, 40.0, 0.0, 255.0, norm, True)
        scaled = pgd.step(scaled, x, g * 255 * std, step_size, epsilon, lower, upper, norm, True)
    # float32 rounding at values up to 255.
    np.testing.assert_allclose((numpy(scaled) * std + mean) * 255, in_pixels, atol=2e-4)


@pytest.mark.parametrize("norm", NORMS)
def test_zero_gradient_and_zero_epsilon_stay_put(norm):
    x, g = images(), images(low=-1, seed=1)
    for epsilon, step_size, gradient in [(0.1, 0.1, 0 * g), (0.0, 0.1, g), (0.1, 0.0, g), (0.0, 0.0, g)]:
        result = pgd.step(x, x, gradient, step_size, epsilon, 0.0, 1.0, norm, True)
        np.testing.assert_array_equal(result, x)


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("scale", [1e-40, 1e-30, 1e-6, 1e30, 3e38])
def test_scale_of_the_gradient_does_not_matter(norm, scale):
    x, g = images(), np.sign(images(low=-1, seed=1)) * (0.5 + images(high=0.5, seed=2))
    expected = pgd.step(x, x, g, CHANNELS, 0.2, 0.0, 1.0, norm, False)
    result = pgd.step(x, x, (g.astype("float64") * scale).astype("float32"), CHANNELS, 0.2, 0.0, 1.0, norm, False)
    if scale < 1e-38:  # no normal number: the backend may take it for zero
        assert distance(result, x, 0.2, norm).max() <= 1 + 1e-5
    else:
        np.testing.assert_allclose(result, expected, atol=2e-7)  # rounding of the scaled gradient


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
def test_broken_gradients_give_finite_images(norm, dtype):
    g = images(4, (2, 2, 1), low=-1, seed=1)
    g[0, 0, 0, 0], g[1, 0, 0, 0], g[1, 1, 1, 0], g[2] = np.nan, np.inf, -np.inf, np.nan
    x = ops.full((4, 2, 2, 1), 0.5, "float32")
    result = numpy(pgd.step(x, x, ops.cast(g, dtype), 0.25, 0.25, 0.0, 1.0, norm, False))
    assert np.isfinite(result).all()
    assert result[0, 0, 0, 0] == 0.5  # NaN counts as zero
    np.testing.assert_array_equal(result[2], 0.5 * np.ones((2, 2, 1)))
    moves = result[1, ..., 0] - 0.5
    assert moves[0, 0] > 0 > moves[1, 1]
    if norm == "l2":  # infinite entries outweigh the rest
        np.testing.assert_allclose(moves, 0.25 / np.sqrt(2) * np.array([[1, 0], [0, -1]]), atol=1e-6)


# The whole attack.


def linear_model(batch, shape=(4, 3, 3), classes=5):
    generator = np.random.default_rng(7)
    w = generator.normal(size=(int(np.prod(shape)), classes)).astype("float32")
    return w, generator.integers(0, classes, batch)


def linear_gradient(x, w, labels):
    """Closed form, of softmax cross-entropy of x @ w: (softmax - onehot) @ w.T."""
    logits = np.asarray(x, "float64").reshape(len(x), -1) @ w
    p = np.exp(logits - logits.max(1, keepdims=True))
    p /= p.sum(1, keepdims=True)
    return ((p - np.eye(w.shape[1])[labels]) @ w.T).reshape(x.shape)


def losses(x, w, labels):
    logits = ops.matmul(ops.reshape(x, (len(labels), -1)), w)
    return keras.losses.sparse_categorical_crossentropy(labels, logits, from_logits=True)


def model_gradient(w, labels):
    """The backend's gradient of the mean loss with respect to the images."""
    return lambda x: gradient_of(lambda x: ops.mean(losses(x, w, labels)), x)


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("descend", [True, False])
@pytest.mark.parametrize("epsilon", [0.1, CHANNELS])
def test_attack_on_a_linear_model_agrees_with_numpy_step_by_step(norm, descend, epsilon):
    x = images()
    w, labels = linear_model(6)
    step_size = 0.6 * np.asarray(epsilon)
    expected = x
    for num_steps in (1, 2, 3):
        gradient = linear_gradient(expected, w, labels)
        expected = reference_step(expected, x, gradient, step_size, epsilon, 0.0, 1.0, norm, descend)
        result = pgd.perturb(
            x,
            model_gradient(w, labels),
            epsilon=epsilon,
            step_size=step_size,
            num_steps=num_steps,
            lower=0.0,
            upper=1.0,
            norm=norm,
            descend=descend,
            seed=SEED,
        )
        # float32 against float64 through the softmax of a few logits near 5.
        np.testing.assert_allclose(result, expected, atol=2e-6)
    worse = numpy(losses(result, w, labels)) - numpy(losses(x, w, labels))
    assert np.all(worse * (-1 if descend else 1) > 0)


def attacked(x, norm="linf", gradient=None, **kwargs):
    w, labels = linear_model(6)
    gradient = gradient or model_gradient(ops.cast(w, x.dtype), labels)
    arguments = {"epsilon": 0.1, "step_size": 0.06, "num_steps": 2, "lower": 0.0, "upper": 1.0, "norm": norm}
    arguments |= {"random_start_probability": 0.8, "seed": SEED, "descend": True}
    return pgd.perturb(x, gradient, **{**arguments, **kwargs})


def compiled(function, by_xla, batch):
    """Compiles a function of images and labels; TensorFlow can be told no batch size, JAX always uses XLA."""
    if ON_JAX:
        import jax

        return jax.jit(function)
    import tensorflow as tf

    signature = [tf.TensorSpec([batch, 4, 3, 3]), tf.TensorSpec([6], tf.int32)]
    return tf.function(function, jit_compile=by_xla, input_signature=signature)


HOW = [(True, 6)] if ON_JAX else [long(False, 6), (False, None), (True, 6), long(True, None)]


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("by_xla, batch", HOW)
def test_compiled_attack_agrees(norm, by_xla, batch):
    x = ops.convert_to_tensor(images())
    w, labels = linear_model(6)
    labels = labels.astype("int32")

    def run(x, labels):
        targets = pgd.random_wrong_classes(labels, 5, SEED)
        return targets, attacked(x, norm, model_gradient(w, labels), epsilon=CHANNELS)

    targets, result = compiled(run, by_xla, batch)(x, labels)
    np.testing.assert_array_equal(targets, pgd.random_wrong_classes(labels, 5, SEED))
    expected = attacked(x, norm, model_gradient(w, labels), epsilon=CHANNELS)
    # XLA's own logarithm and sine make the normal numbers of an l2 start, and its order of summation the norms.
    np.testing.assert_allclose(result, expected, atol=5e-6)


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("dtype,rounding", DTYPES)
def test_dtype_of_the_images_is_kept(norm, dtype, rounding):
    x = ops.cast(images(), dtype)
    for result in (attacked(x, norm), pgd.noise(x, 0.1, 0.0, 1.0, norm, SEED)):
        assert result.dtype == x.dtype
        # Each value rounds by at most `rounding` at values up to 1; under l2 all 36 may.
        slack = (6 if norm == "l2" else 1) * rounding / 0.1 + 1e-6
        assert distance(in_float64(result), in_float64(x), 0.1, norm).max() <= 1 + slack


def test_attack_moves_by_a_fraction_of_the_images_own_resolution():
    # Steps of 1/16 pixel at 200, where neighbouring bfloat16 numbers are 1 apart, add up over 16 steps.
    x = ops.full((1, 2, 2, 1), 200.0, "bfloat16")
    arguments = {"epsilon": 4.0, "step_size": 1 / 16, "lower": 0.0, "upper": 255.0}
    result = attacked(x, gradient=ops.ones_like, num_steps=16, random_start_probability=0.0, **arguments)
    np.testing.assert_array_equal(ops.cast(result, "float32"), np.full((1, 2, 2, 1), 199.0))


def test_images_whose_gradient_is_nowhere_above_zero():
    gradient = np.zeros((4, 2, 2, 1), "float32")
    gradient[1, 0, 0, 0], gradient[2], gradient[3, 1, 1, 0] = 1e-30, np.nan, -1.0
    np.testing.assert_array_equal(pgd.without_gradient(ops.convert_to_tensor(gradient)), [True, False, True, False])


def test_range_has_the_last_word():
    x = images(low=-0.2, high=1.2)
    result = numpy(attacked(x, epsilon=0.0))
    np.testing.assert_array_equal(result, np.clip(x, 0.0, 1.0))


@pytest.mark.parametrize("norm", NORMS)
def test_no_gradient_flows_through_the_attack(norm):
    x = ops.convert_to_tensor(images())
    found = gradient_of(lambda x: ops.sum(x + attacked(x, norm, lambda x: 2.0 * x)), x)
    np.testing.assert_array_equal(found, np.ones(x.shape))


@pytest.mark.parametrize(
    "arguments,named",
    [
        ({"norm": "l1"}, "norm must be one of 'linf', 'l2'; received norm='l1'"),
        ({"epsilon": -0.1}, "epsilon must be finite and not negative"),
        ({"epsilon": np.array([0.1, -0.1, 0.1])}, "epsilon must be"),
        ({"step_size": float("nan")}, "step_size must be"),
        ({"step_size": np.array([0.1, float("inf"), 0.1])}, "step_size must be"),
        ({"num_steps": 0}, "num_steps must be"),
        ({"num_steps": 1.0}, "num_steps must be"),
        ({"random_start_probability": 1.5}, "random_start_probability must be"),
        ({"gradient": lambda x: None}, "does not depend on the images"),
    ],
)
def test_bad_arguments_are_named(arguments, named):
    with pytest.raises(ValueError, match=named):
        attacked(images(), **arguments)


def test_an_unknown_norm_is_refused_before_a_gradient_is_computed():
    with pytest.raises(ValueError, match="norm must be one of"):
        attacked(
            images(), norm="l1", random_start_probability=0.0, gradient=lambda x: pytest.fail("a gradient was computed")
        )


def test_the_values_of_tensors_are_not_looked_at():
    """In a graph they have none yet."""
    pgd.random_start(images(), 0.1, 0.0, 1.0, ops.convert_to_tensor(1.5), "linf", SEED)


def test_integer_images_are_refused():
    with pytest.raises(ValueError, match=r"x must be floating.*received x='uint8'"):
        attacked(np.zeros((6, 4, 3, 3), "uint8"), gradient=ops.ones_like)
