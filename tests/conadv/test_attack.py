"""The attack on labelled images: directions that do not vanish, targets among wrong classes, attacks as table rows."""

from __future__ import annotations

import functools

import keras
import numpy as np
import pytest
from conadv_cases import CLASSES, SHAPE, images, network
from keras import layers as L
from keras import ops
from selection import long_unless

import tf_largebatch as lb
from tf_largebatch.conadv import objective
from tf_largebatch.conadv.attack import ATTACKS, Attack, ImageAttack
from tf_largebatch.conadv.attacked_loss import ClassLoss
from tf_largebatch.conadv.backend import compiled
from tf_largebatch.conadv.class_labels import are_right, own_labels, random_targets
from tf_largebatch.conadv.probability_logarithms import followed
from tf_largebatch.training.step_seed import step_seed

pytestmark = pytest.mark.quick_on_jax(
    "test_it_is_the_direction_of_the_cross_entropy",
    "test_losses_of_one_class_share_a_direction",
    "test_a_loss_of_ones_own_is_rescaled_for_each_image",
    "test_probabilities_are_attacked_as_their_logits",
    "test_inputs_of_integers_are_refused_before_training",
)

SEEDS = functools.partial(step_seed, 0, 0)
NEEDS_FLOAT64 = pytest.mark.skipif(keras.backend.backend() == "jax", reason="JAX computes in float32 by default")
SPARSE = keras.losses.SparseCategoricalCrossentropy
Z = np.random.default_rng(0).normal(0, 3, (6, 4))
Y = np.array([0, 1, 2, 3, 0, 1])


def one_hot(y=Y, classes=4):
    return np.eye(classes, dtype="float32")[y]


def direction(loss, y, outputs, classes=4):
    y = ops.convert_to_tensor(y)
    z, found = objective.direction(loss, y, own_labels(y, classes), ops.convert_to_tensor(outputs))
    found = np.asarray(found)
    return z, found / np.abs(found).max(axis=-1, keepdims=True)


def cross_entropy_gradient(z, y=Y):
    """In float64, divided by its largest entry for each image."""
    p = np.exp(z - z.max(1, keepdims=True))
    g = p / p.sum(1, keepdims=True)
    rest = np.where(np.eye(z.shape[1])[y] == 1, 0, g)
    g = np.where(np.eye(z.shape[1])[y] == 1, -rest.sum(1, keepdims=True), g)  # p - 1 without cancellation
    return g / np.abs(g).max(1, keepdims=True)


@pytest.mark.parametrize("scale", [1e-3, 1.0, 30.0])
@pytest.mark.parametrize("dtype", ["float32", pytest.param("float64", marks=NEEDS_FLOAT64)])
def test_it_is_the_direction_of_the_cross_entropy(scale, dtype):
    """Float64 holds the cross-entropy's gradient at 30 times these logits, float32 does not."""
    _, found = direction(SPARSE(from_logits=True), Y, (scale * Z).astype(dtype))
    np.testing.assert_allclose(found, cross_entropy_gradient(scale * Z), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "loss",
    [
        keras.losses.CategoricalCrossentropy(from_logits=True, label_smoothing=0.1),
        keras.losses.CategoricalFocalCrossentropy(from_logits=True),
        keras.losses.CategoricalHinge(),
    ],
)
def test_losses_of_one_class_share_a_direction(loss):
    _, found = direction(loss, one_hot(), Z.astype("float32"))
    np.testing.assert_allclose(found, cross_entropy_gradient(Z), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("scale", [1.0, 100.0])
def test_binary_cross_entropy(scale):
    """sigmoid(z) - y of a multi-hot row, divided by the largest entry."""
    y = (np.random.default_rng(1).random((6, 4)) > 0.5).astype("float32")
    signed = np.where(y == 1, -1.0, 1.0) * scale * Z
    logarithm = -np.logaddexp(0, -signed)
    expected = np.where(y == 1, -1.0, 1.0) * np.exp(logarithm - logarithm.max(1, keepdims=True))
    for loss, end in (
        (keras.losses.BinaryCrossentropy(from_logits=True), lambda z: z),
        ("binary_crossentropy", keras.activations.sigmoid),
        (keras.losses.BinaryFocalCrossentropy(), lambda z: ops.cast(ops.sigmoid(z), "float32")),
    ):
        loss = keras.losses.get(loss)
        run = compiled(lambda z, loss=loss, end=end: objective.direction(loss, y, y > 0, followed(end, z))[1])
        found = np.asarray(run(ops.convert_to_tensor(scale * Z)))
        np.testing.assert_allclose(found / np.abs(found).max(1, keepdims=True), expected, rtol=1e-4, atol=1e-6)


def test_a_loss_of_ones_own_is_rescaled_for_each_image():
    weights = np.array([[1e-9], [1.0], [1.0], [1], [1], [0]], "float32")

    def own(y, scores):
        return keras.ops.sum(keras.ops.square(scores - keras.ops.one_hot(y, 4)) * weights)

    labels = ops.convert_to_tensor(Y)
    scores = ops.convert_to_tensor(Z, "float32")
    found = np.asarray(objective.direction(own, labels, own_labels(labels, 4), scores)[1])
    expected = (Z - one_hot()) / np.abs(Z - one_hot()).max(1, keepdims=True)
    np.testing.assert_allclose(found[:5] / np.abs(found).max(), expected[:5], rtol=1e-5)
    np.testing.assert_array_equal(found[5], 0.0)


ENDS = {
    "softmax layer": lambda z: L.Softmax()(z),
    "activation in float16": lambda z: L.Activation("softmax", dtype="mixed_float16")(z),
    "behind a cast": lambda z: L.Lambda(lambda p: keras.ops.cast(p, "float64"))(L.Softmax()(z)),
    "mean of softmaxes": lambda z: L.Average()([L.Softmax()(z), L.Softmax()(2 * z)]),
    "weighted sum": lambda z: 0.25 * L.Softmax()(z) + L.Softmax()(2 * z) * 0.75,
    "stack": lambda z: L.Lambda(lambda t: keras.ops.mean(keras.ops.stack(t, 1), axis=1))([L.Softmax()(z)] * 2),
    "clipped": lambda z: L.Lambda(lambda p: keras.ops.clip(p, 1e-7, 1.0))(L.Softmax()(z)),
    "exponential": lambda z: L.Lambda(lambda t: keras.ops.exp(keras.ops.log_softmax(t)))(z),
}


def confident(end=None, scale=1000.0, dtype="float32"):
    """A classifier of images in [0, 1] whose logits differ by hundreds."""
    keras.utils.set_random_seed(0)
    inputs = keras.Input(SHAPE)
    hidden = L.Dense(8, "relu", dtype=dtype)(L.Flatten()(inputs))
    scores = L.Dense(CLASSES, dtype="float32")(hidden)
    model = keras.Model(inputs, scores)
    model.layers[-1].set_weights([scale * w for w in model.layers[-1].get_weights()])
    return model if end is None else keras.Sequential([inputs, keras.Model(inputs, end(scores))])  # nested


@pytest.mark.parametrize("end", long_unless(ENDS, ["behind a cast", "weighted sum"]))
def test_probabilities_are_attacked_as_their_logits(end):
    x, y = images(40)
    x = x / 255
    y = np.argmax(confident().predict(x, verbose=0), axis=1)
    data = [(x, y)]
    expected = lb.accuracy_under_attack(confident(), data, SPARSE(from_logits=True), 20.0, (0.0, 1.0))
    found = lb.accuracy_under_attack(confident(ENDS[end]), data, SPARSE(), 20.0, (0.0, 1.0))
    assert found == pytest.approx(expected, abs=0.026) and expected < 0.9  # one image of 40


def test_a_loss_that_was_told_of_logits_by_mistake_sees_those_behind_the_softmax():
    """Keras trains such a model as if it gave logits, with a warning."""
    x, _ = images(40)
    y = np.argmax(confident().predict(x / 255, verbose=0), axis=1)
    found = [
        lb.accuracy_under_attack(confident(end), [(x / 255, y)], SPARSE(from_logits=True), 20.0, (0.0, 1.0))
        for end in (None, ENDS["softmax layer"])
    ]
    assert found[0] == found[1] < 0.9


@pytest.mark.parametrize("dtype", long_unless(["float32", "mixed_float16", "mixed_bfloat16"], ["mixed_float16"]))
def test_accuracy_does_not_depend_on_the_scale_of_the_logits(dtype):
    x, _ = images(60)
    x = x / 255
    y = np.argmax(confident().predict(x, verbose=0), axis=1)
    found = [
        lb.accuracy_under_attack(confident(scale=s, dtype=dtype), [(x, y)], SPARSE(from_logits=True), 20.0, (0.0, 1.0))
        for s in (30.0, 300.0, 1e4, 1e5)
    ]
    # With three classes, scores far apart have one competing class: the direction is the same to rounding.
    assert np.ptp(found) <= 0.04 and max(found) < 0.9


def test_a_confident_network_is_attacked_in_training_too():
    x, y = images(12)
    net = keras.Sequential([keras.Input(SHAPE), L.Rescaling(1 / 255), confident(ENDS["mean of softmaxes"])])
    model = lb.ConAdvModel(net, epsilon=8.0, targeted=False, random_start=0.0)
    model.compile(keras.optimizers.SGD(0.0), SPARSE())
    moved = np.abs(np.asarray(model.adversarial_images(x, y)) - x)
    assert np.all(moved.reshape(12, -1).max(1) > 7.9)


def momentum_attack(x, limits, gradient, seeds):
    """The momentum iterative attack of Dong et al., arXiv 1710.06081, without a projection: a row of the table."""
    x_adv, velocity = x, ops.zeros_like(x)
    for _ in range(limits.num_steps):
        g = gradient(x_adv)
        velocity += g / ops.sum(ops.abs(g), axis=[1, 2, 3], keepdims=True)
        x_adv = x_adv + (-1.0 if limits.descend else 1.0) * limits.step_size * ops.sign(velocity)
    return ops.clip(x_adv, limits.lower, limits.upper)


def test_an_attack_is_added_by_one_row(monkeypatch):
    monkeypatch.setitem(ATTACKS, "momentum", Attack(momentum_attack))
    x, y = images(24)
    attack = ImageAttack(8.0, (0.0, 255.0), num_steps=2, targeted=False, kind="momentum")
    model = network(False)
    data = ops.convert_to_tensor(x), ops.convert_to_tensor(y)
    found = attack.images(*data, model, ClassLoss(SPARSE(from_logits=True), CLASSES), SEEDS)
    assert np.abs(found.images - x).max() <= 8 + 1e-4 and not np.any(found.without_gradient)
    loss = SPARSE(from_logits=True)
    assert float(loss(y, model(found.images))) > float(loss(y, model(x)))
    with pytest.raises(ValueError, match=r"attack must be one of .*'momentum'; received attack='x'"):
        ImageAttack(8.0, (0.0, 255.0), kind="x").images(x, y, model, ClassLoss(loss, CLASSES), SEEDS)


def targets(y):
    return np.asarray(random_targets(ops.convert_to_tensor(y), 5, np.array([1, 2], "int32")))


def test_targets_are_never_among_an_images_own_labels():
    rng = np.random.default_rng(0)
    multi_hot = (rng.random((4000, 5)) > 0.4).astype("float32")
    smoothed = 0.9 * multi_hot + 0.02
    mixed = 0.7 * one_hot(rng.integers(0, 5, 4000), 5) + 0.3 * one_hot(rng.integers(0, 5, 4000), 5)
    for y in (multi_hot, smoothed, mixed):
        target, own = targets(y), np.asarray(own_labels(ops.convert_to_tensor(y), 5))
        assert np.all((target == -1) == own.all(1))
        has = target >= 0
        assert not own[np.arange(len(y))[has], target[has]].any()
    # Uniform among the wrong labels: the rows of three labels have two wrong ones, each the target of half of them.
    rows = (multi_hot.sum(1) == 3) & (multi_hot[:, 3:].sum(1) == 0)
    target = targets(multi_hot)[rows]
    assert abs(np.mean(target == 4) - 0.5) < 5 * np.sqrt(0.25 / rows.sum())
    # One-hot rows and integers draw the same targets.
    y = rng.integers(0, 5, 50)
    pair = [targets(labels) for labels in (y, one_hot(y, 5))]
    np.testing.assert_array_equal(*pair)


def test_multi_hot_labels_train_and_any_of_them_is_right():
    x, _ = images(12)
    y = np.array([[1, 1, 0], [0, 1, 1], [1, 0, 0], [1, 1, 1]] * 3, "float32")
    keras.utils.set_random_seed(0)
    net = keras.Sequential([keras.Input(SHAPE), L.Rescaling(1 / 255), L.Flatten(), L.Dense(3, "sigmoid")])
    model = lb.ConAdvModel(net, epsilon=8.0)
    model.compile("sgd", "binary_crossentropy", run_eagerly=True)
    assert np.isfinite(model.fit(x, y, batch_size=12, verbose=0).history["loss"][0])
    scores = np.array([[0.1, 0.9, 0.0], [0.9, 0.1, 0.2], [0.9, 0.1, 0.0], [0.1, 0.2, 0.3]])
    np.testing.assert_array_equal(are_right(y[:4], scores, 3), [True, False, True, True])
    said = np.argmax(net.predict(x, verbose=0), axis=1)
    expected = np.mean(y[np.arange(12), said])
    assert lb.accuracy_under_attack(net, [(x, y)], "binary_crossentropy", 0.0) == pytest.approx(expected)


@pytest.mark.parametrize("attack", ["pgd", "noise"])
def test_inputs_of_integers_are_refused_before_training(attack):
    """Keras would truncate the perturbed images to the dtype of the input."""
    x, y = images(4)
    net = keras.Sequential([keras.Input(SHAPE, dtype="uint8"), L.Rescaling(1 / 255), L.Flatten(), L.Dense(CLASSES)])
    model = lb.ConAdvModel(net, attack=attack)
    model.compile("sgd", SPARSE(from_logits=True))
    with pytest.raises(ValueError, match=r"model must be a model of floating-point images.*inputs are uint8"):
        model.fit(x.astype("uint8"), y, verbose=0)
