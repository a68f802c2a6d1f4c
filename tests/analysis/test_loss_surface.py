"""Analyses of the loss, on quadratics whose answers are known and on a small network."""

from __future__ import annotations

import keras
import numpy as np
import pytest

from tf_largebatch import analysis

RANDOM = np.random.default_rng(0)
X = RANDOM.normal(size=(64, 3)).astype("float32") @ np.diag([3.0, 1.0, 0.3]).astype("float32")
Y = RANDOM.normal(size=(64, 2)).astype("float32")
# The loss mean((x W - y)^2) over 64 examples and 2 outputs has this Hessian for each column of W.
HESSIAN = 2.0 * X.T.astype("float64") @ X / (64 * 2)
EIGENVALUES = np.linalg.eigvalsh(HESSIAN)[::-1]


@pytest.fixture(scope="module")
def quadratic():
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2, use_bias=False, name="dense")], name="quadratic")
    return analysis.LossSurface(model, X, Y, "mean_squared_error")


@pytest.fixture(scope="module")
def network():
    keras.utils.set_random_seed(0)
    layers = keras.layers
    model = keras.Sequential(
        [
            keras.Input((6, 6, 1)),
            layers.Conv2D(4, 3, name="convolution"),
            layers.BatchNormalization(name="norm"),
            layers.Activation("tanh"),
            layers.GlobalAveragePooling2D(),
            layers.Dense(3, name="logits"),
        ]
    )
    images = RANDOM.normal(size=(24, 6, 6, 1)).astype("float32")
    labels = RANDOM.integers(0, 3, 24).astype("int32")
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    return analysis.LossSurface(model, images, labels, loss, training=True, batch_size=12), model


def test_value_gradient_and_product_of_a_quadratic(quadratic):
    (weight,) = quadratic.weights()
    residual = X.astype("float64") @ weight - Y
    assert quadratic.value() == pytest.approx(np.square(residual).mean(), rel=1e-5)
    np.testing.assert_allclose(quadratic.gradient()[0], 2 * X.T @ residual / residual.size, rtol=1e-4, atol=1e-5)
    vector = RANDOM.normal(size=weight.shape).astype("float32")
    np.testing.assert_allclose(quadratic.hessian_product([vector])[0], HESSIAN @ vector, rtol=1e-4, atol=1e-5)


def test_sharpness_of_a_quadratic(quadratic):
    np.testing.assert_allclose(analysis.sharpness(quadratic, count=3), np.repeat(EIGENVALUES, 2)[:3], rtol=1e-4)
    assert analysis.layer_sharpness(quadratic) == {"quadratic/dense/kernel": pytest.approx(EIGENVALUES[0], rel=1e-4)}
    with pytest.raises(ValueError, match="count must be between 1 and the number of weights, 6; received count=7"):
        analysis.sharpness(quadratic, count=7)


def test_lipschitz_estimates_are_below_the_largest_eigenvalue_and_near_it(quadratic):
    (found,) = analysis.lipschitz_estimates(quadratic, samples=32).values()
    assert 0.5 * EIGENVALUES[0] < found <= 1.001 * EIGENVALUES[0]


def test_stable_steps_of_a_quadratic_are_two_over_the_largest_eigenvalue(quadratic):
    (found,) = analysis.stable_steps(quadratic, updates=200).values()
    assert found.predicted == pytest.approx(2 / EIGENVALUES[0], rel=1e-4)
    assert found.observed == pytest.approx(found.predicted, rel=0.03)


def test_a_plane_of_a_quadratic(quadratic):
    plane = analysis.loss_plane(quadratic, radius=0.5, points=5)
    (weight,) = quadratic.weights()
    one, two = (analysis.filter_normalized_direction([weight], random)[0] for random in [np.random.default_rng(0)] * 2)
    np.testing.assert_allclose(np.linalg.norm(one, axis=0), np.linalg.norm(weight, axis=0), rtol=1e-5)
    assert plane.values[2, 2] == pytest.approx(quadratic.value(), rel=1e-5)
    moved = weight + plane.first[4] * one + plane.second[1] * two
    assert plane.values[4, 1] == pytest.approx(np.square(X @ moved - Y).mean(), rel=1e-4)
    assert {one.shape, two.shape} == {weight.shape}


def test_a_networks_products_are_differences_of_gradients_and_change_nothing(network):
    surface, model = network
    before = [np.array(v) for v in model.variables]
    weights = surface.weights()
    vectors = [RANDOM.normal(size=w.shape).astype("float32") for w in weights]
    # Central differences in float32; the network is smooth.
    ends = [surface.gradient([w + sign * 3e-3 * v for w, v in zip(weights, vectors, strict=True)]) for sign in (1, -1)]
    expected = [(a - b) / 6e-3 for a, b in zip(*ends, strict=True)]
    for found, near in zip(surface.hessian_product(vectors), expected, strict=True):
        np.testing.assert_allclose(found, near, atol=0.05 * max(np.abs(near).max(), 0.1))
    for old, new in zip(before, model.variables, strict=True):
        np.testing.assert_array_equal(old, np.array(new))
    assert surface.labels[0].endswith("convolution/kernel")


def test_sharpness_of_a_network_is_that_of_its_whole_hessian(network):
    surface, _ = network
    shapes = [w.shape for w in surface.weights()]
    size = sum(int(np.prod(shape)) for shape in shapes)
    ends = np.cumsum([int(np.prod(shape)) for shape in shapes])[:-1]
    columns = []
    for column in np.eye(size, dtype="float32"):
        vectors = [part.reshape(shape) for part, shape in zip(np.split(column, ends), shapes, strict=True)]
        columns.append(np.concatenate([part.ravel() for part in surface.hessian_product(vectors)]))
    whole = np.array(columns)
    np.testing.assert_allclose(analysis.sharpness(surface)[0], np.linalg.eigvalsh((whole + whole.T) / 2)[-1], rtol=1e-2)
    blocks = analysis.layer_sharpness(surface)
    starts = np.concatenate([[0], ends, [size]])
    for number, value in enumerate(blocks.values()):
        block = whole[starts[number] : starts[number + 1], starts[number] : starts[number + 1]]
        assert value == pytest.approx(np.linalg.eigvalsh((block + block.T) / 2)[-1], rel=2e-2, abs=1e-4)


def test_a_surface_is_watched_and_drawn(network, tmp_path):
    surface, model = network
    model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    x, y = RANDOM.normal(size=(8, 6, 6, 1)).astype("float32"), np.zeros(8, "int32")
    recorder = analysis.SurfaceRecorder(analysis.lipschitz_estimates, x, y)
    model.fit(x, y, epochs=1, verbose=0, callbacks=[recorder])
    assert recorder.epochs == [0, 1] and set(recorder.values[0]) == set(surface.labels)
    figures = [
        analysis.plot_lipschitz(recorder.epochs, recorder.values),
        analysis.plot_sharpness([0, 1], [2.0, 1.0]),
        analysis.plot_stable_steps({"a": analysis.StableStep(1.0, 1.5)}),
        analysis.plot_loss_plane(analysis.loss_plane(surface, points=2)),
    ]
    for number, figure in enumerate(figures):
        figure.savefig(tmp_path / f"{number}.png")
        assert (tmp_path / f"{number}.png").stat().st_size > 5000


def test_what_has_no_loss_is_refused():
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2)])
    with pytest.raises(ValueError, match="loss must be a loss"):
        analysis.LossSurface(model, X, Y)
    with pytest.raises(ValueError, match="model must be built"):
        analysis.LossSurface(keras.Sequential([keras.layers.Dense(2)]), X, Y, "mse")
