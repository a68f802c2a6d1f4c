"""Accuracy under attack against a linear classifier, whose attack is known in closed form."""

from __future__ import annotations

import warnings

import keras
import numpy as np
import pytest
from conadv_cases import CLASSES, SHAPE, images, network

from tf_largebatch import accuracy_under_attack
from tf_largebatch.conadv import ConAdvModel

pytestmark = pytest.mark.quick_on_jax(
    "test_one_step_on_a_linear_classifier[False]",
    "test_refusals",
    "test_vanished_gradients_are_warned_of",
    "test_inputs_of_integers_are_refused_wherever_they_are",
)

LOSS = keras.losses.SparseCategoricalCrossentropy(from_logits=True)


def linear(scale):
    """Scores of images in [0, 1] whose weights are large where `scale` is."""
    model = keras.Sequential([keras.Input(SHAPE), keras.layers.Flatten(), keras.layers.Dense(CLASSES)])
    rng = np.random.default_rng(1)
    model.layers[-1].kernel.assign(scale * rng.normal(size=model.layers[-1].kernel.shape))
    return model


def batches(x, y, size=5):
    return [(x[i : i + size], y[i : i + size]) for i in range(0, len(x), size)]


@pytest.mark.parametrize("one_hot", [False, True])
def test_one_step_on_a_linear_classifier(one_hot):
    """The gradient of the loss is W (softmax(s) - onehot(y)): the step is its sign, times epsilon, clipped."""
    x, y = images(23)
    x = x / 255
    model, epsilon = linear(3.0), 20.0
    # In float64: the probability of a confident class minus 1 rounds to 0 in float32.
    w, b = (v.numpy().astype("float64") for v in model.weights)
    flat = x.reshape(len(x), -1)
    scores = flat @ w + b
    p = np.exp(scores - scores.max(1, keepdims=True))
    gradient = (p / p.sum(1, keepdims=True) - np.eye(CLASSES)[y]) @ w.T
    attacked = np.clip(flat + epsilon / 255 * np.sign(gradient), 0, 1)
    expected = np.mean(np.argmax(attacked @ w + b, axis=1) == y)
    labels, loss = y, LOSS
    if one_hot:
        labels, loss = np.eye(CLASSES, dtype="float32")[y], keras.losses.CategoricalCrossentropy(from_logits=True)
    # 23 images in batches of 5: the last has 3.
    found = accuracy_under_attack(model, batches(x, labels), loss, epsilon, (0.0, 1.0))
    assert found == pytest.approx(expected, abs=1e-9)
    assert found < np.mean(np.argmax(scores, axis=1) == y)


def test_it_agrees_with_the_attack_of_conadv_model():
    x, y = images(12)
    model = network()
    wrapper = ConAdvModel(model, epsilon=30.0, num_steps=3, targeted=False, random_start=0.0)
    wrapper.compile("sgd", LOSS, run_eagerly=True)
    wrapper.fit(x, y, batch_size=4, verbose=0)  # moving averages of their own
    adversarial = np.asarray(wrapper.adversarial_images(x, y, main=True))
    expected = np.mean(np.argmax(model.predict(adversarial, verbose=0), axis=1) == y)
    weights = [v.numpy() for v in model.weights]
    assert accuracy_under_attack(model, batches(x, y), LOSS, 30.0, num_steps=3) == pytest.approx(expected, abs=1e-9)
    for before, now in zip(weights, model.weights, strict=True):
        np.testing.assert_array_equal(before, now)


def test_no_radius_no_change_and_targets_depend_on_the_seed():
    x, y = images(60)
    model = linear(0.01)
    plain = np.mean(np.argmax(model.predict(x, verbose=0), axis=1) == y)
    assert accuracy_under_attack(model, batches(x, y), LOSS, 0.0) == pytest.approx(plain, abs=1e-9)
    targeted = [accuracy_under_attack(model, batches(x, y), LOSS, 40.0, targeted=True, seed=s) for s in (0, 0, 1)]
    assert targeted[0] == targeted[1]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"epsilon": -1.0}, "epsilon must be a finite number of 0 or more; received epsilon=-1.0"),
        ({"norm": "l1"}, "norm must be one of 'linf', 'l2'; received norm='l1'"),
        ({"value_range": [(0, 1)] * 3}, "one for each of 2; received 3 pairs"),
        ({"loss": "mse"}, "loss must be one loss for classes.*received loss='mean_squared_error'"),
        ({"loss": None}, "loss must be a loss, which an adversarial attack ascends or descends; received loss=None"),
        ({"batches": []}, "batches must hold at least one image; received none"),
        ({"batches": [(np.zeros((2, 4), "float32"), np.zeros(2))]}, "one batch of images of shape"),
    ],
)
def test_refusals(arguments, message):
    x, y = images(4)
    with pytest.raises(ValueError, match=message):
        accuracy_under_attack(**{"model": network(), "batches": batches(x, y), "loss": LOSS, **arguments})


def test_a_range_that_does_not_fit_is_warned_of():
    x, y = images(10)
    with pytest.warns(UserWarning, match="value_range.*far wider than the data"):
        accuracy_under_attack(linear(1.0), batches(x / 255, y), LOSS, 4.0)
    with pytest.warns(UserWarning, match="value_range.*does not contain the data"):
        accuracy_under_attack(linear(1.0), batches(x / 127.5 - 1, y), LOSS, 4.0, (0.0, 1.0))


def test_a_radius_in_the_units_of_images_in_0_to_1_is_warned_of():
    x, y = images(4)
    said = r"epsilon=0.0157 is in units of 1/255, .*: 4/255 is epsilon=4"
    with pytest.warns(UserWarning, match=said):
        accuracy_under_attack(linear(1.0), batches(x, y), LOSS, epsilon=4 / 255)
    with pytest.warns(UserWarning, match=said):
        ConAdvModel(linear(1.0), epsilon=4 / 255)


@pytest.mark.parametrize("given", ["pair", "images", "no labels"])
def test_what_are_no_batches_is_refused(given):
    x, y = images(4)
    wrong = {"pair": (x, y), "images": x, "no labels": [(x,)]}[given]
    with pytest.raises(ValueError, match=r"batches must yield \(images, labels\).*pass \[\(x, y\)\]"):
        accuracy_under_attack(linear(1.0), wrong, LOSS)


def test_vanished_gradients_are_warned_of():
    """A layer of dead units, whose gradient no loss can bring back."""
    x, y = images(10)
    dead = keras.Sequential(
        [
            keras.Input(SHAPE),
            keras.layers.Flatten(),
            keras.layers.Dense(4, "relu", bias_initializer=keras.initializers.Constant(-1e6)),
            keras.layers.Dense(CLASSES),
        ]
    )
    with pytest.warns(
        UserWarning, match=r"gradient is zero for 10 of 10 images \(100 %\).*Let the model return logits"
    ):
        accuracy_under_attack(dead, batches(x, y), LOSS, 4.0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        accuracy_under_attack(dead, batches(x, y), LOSS, 0.0)  # no attack, no warning
        accuracy_under_attack(linear(1e4), batches(x, y), LOSS, 4.0)


def test_inputs_of_integers_are_refused_wherever_they_are():
    x, y = images(4)
    integers = keras.Sequential([keras.Input(SHAPE, dtype="uint8"), keras.layers.Rescaling(1 / 255), network(False)])
    nested = keras.Sequential([keras.Input(SHAPE), integers])
    for model in (integers, nested):
        with pytest.raises(ValueError, match=r"model must be a model of floating-point images.*inputs are uint8"):
            accuracy_under_attack(model, batches(x, y), LOSS)
    rounding = keras.layers.Lambda(lambda x: keras.ops.cast(keras.ops.cast(x, "int32"), "float32"))
    with pytest.raises(ValueError, match="no gradient reaches them: a layer casts or rounds them to integers"):
        accuracy_under_attack(keras.Sequential([keras.Input(SHAPE), rounding, network(False)]), batches(x, y), LOSS)


@pytest.mark.parametrize(
    ("outputs", "message"),
    [
        (lambda x: keras.layers.Dense(1)(x), r"model must give one score per class.*Dense\(2\)"),
        (lambda x: [keras.layers.Dense(3)(x)] * 2, "loss must be one loss for classes"),
    ],
)
def test_a_model_without_one_score_for_each_class_is_refused(outputs, message):
    inputs = keras.Input((4, 4, 1))
    model = keras.Model(inputs, outputs(keras.layers.Flatten()(inputs)))
    batches = [(np.zeros((8, 4, 4, 1), "float32"), np.ones(8, "int32"))]
    with pytest.raises(ValueError, match=message):
        accuracy_under_attack(model, batches, LOSS, value_range=(0, 1))
