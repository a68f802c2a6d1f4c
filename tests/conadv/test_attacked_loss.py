"""Attacks on models without one score for each class: linear ones, whose attack is known in closed form."""

from __future__ import annotations

import keras
import numpy as np
import pytest
from conadv_cases import SHAPE, conadv, images
from keras import layers as L
from keras import ops
from selection import long

import tf_largebatch as lb
from tf_largebatch.conadv.cross_entropies import without_cancellation

pytestmark = pytest.mark.quick_on_jax(
    "test_a_binary_classifier_under_attack[logits]",
    "test_several_outputs_under_attack[probabilities]",
    "test_targets_are_refused_where_there_is_no_wrong_class",
    "test_answers_that_are_neither_right_nor_wrong",
)

EPSILON = 20.0
X = images(10)[0] / 255
FLAT = X.reshape(len(X), -1).astype("float64")
YES = np.arange(10) % 2
VALUES = np.random.default_rng(3).normal(size=(10, 2)).astype("float32")


def model_of(**heads):
    """Linear outputs of images in [0, 1]: for each its number of units, the scale of its weights, its activation."""
    inputs = keras.Input(SHAPE)
    flat, outputs = L.Flatten()(inputs), {}
    for name, (units, _, activation) in heads.items():
        outputs[name] = L.Dense(units, activation=activation, name=name)(flat)
    model = keras.Model(inputs, outputs if len(outputs) > 1 else outputs[next(iter(outputs))])
    for number, (name, (_, scale, _)) in enumerate(heads.items()):
        kernel = model.get_layer(name).kernel
        kernel.assign(scale * np.random.default_rng(number).normal(size=kernel.shape))
    return model


def linear(model, name, flat):
    """The output before its activation, and its weights, in float64."""
    w, b = (np.asarray(v, "float64") for v in model.get_layer(name).get_weights())
    return flat @ w + b, w


def attacked(gradient):
    return np.clip(FLAT + EPSILON / 255 * np.sign(gradient), 0, 1)


def batches(y):
    """10 images in batches of 6: the last has 4."""
    first, last = (keras.tree.map_structure(take, (X, y)) for take in (lambda t: t[:6], lambda t: t[6:]))
    return [first, last]


@pytest.mark.parametrize(
    "activation, loss, y",
    [
        (None, keras.losses.BinaryCrossentropy(from_logits=True), YES),
        ("sigmoid", "binary_crossentropy", YES[:, None].astype("float32")),
        (None, "hinge", 2.0 * YES - 1),
    ],
    ids=["logits", "probabilities", "hinge"],
)
def test_a_binary_classifier_under_attack(activation, loss, y):
    """Away from the label along the weights, also where the probability has rounded to 0 or 1."""
    model = model_of(yes=(1, 30.0, activation))
    score, w = linear(model, "yes", FLAT)
    said, _ = linear(model, "yes", attacked((1 - 2 * YES)[:, None] * w[:, 0]))
    found = lb.accuracy_under_attack(model, [(X, y)], loss, EPSILON, (0.0, 1.0))
    clean, expected = (np.mean((s[:, 0] > 0) == YES) for s in (score, said))
    assert found == pytest.approx(expected, abs=1e-9) and expected < clean


def test_regression_under_attack():
    model = model_of(value=(2, 1.0, None))
    model.compile(loss="mse", metrics=["mae"])
    z, w = linear(model, "value", FLAT)
    z, _ = linear(model, "value", attacked((z - VALUES) @ w.T))
    found = lb.metrics_under_attack(model, batches(VALUES), EPSILON, (0.0, 1.0))
    assert found == pytest.approx({"loss": np.mean((z - VALUES) ** 2), "mae": np.mean(np.abs(z - VALUES))}, rel=1e-4)


@pytest.mark.parametrize("activation", [None, "softmax"], ids=["logits", "probabilities"])
def test_several_outputs_under_attack(activation):
    """The weights of the losses count, and weights of the examples; logits are read behind confident probabilities."""
    model = model_of(kind=(3, 8.0, activation), value=(2, 1.0, None))
    losses = {"kind": keras.losses.SparseCategoricalCrossentropy(from_logits=activation is None), "value": "mse"}
    model.compile(loss=losses, loss_weights={"kind": 1.0, "value": 3.0}, metrics={"kind": "accuracy"})
    z, w = linear(model, "kind", FLAT)
    kinds = np.argmax(z, axis=1)  # right answers: the gradient is small
    p = np.exp(z - z.max(1, keepdims=True))
    p /= p.sum(1, keepdims=True)
    p[np.arange(10), kinds] = 0.0
    p[np.arange(10), kinds] = -p.sum(1)  # p - 1 without cancellation
    gradient = p @ w.T
    z, w = linear(model, "value", FLAT)
    weight = np.where(np.arange(10) % 3 == 0, 0.0, 2.0).astype("float32")
    both = gradient + 3 * weight[:, None] * (z - VALUES) @ w.T
    y = {"kind": kinds, "value": VALUES}
    weights = {"kind": np.ones(10, "float32"), "value": weight}
    found = lb.metrics_under_attack(model, [(X, y, weights)], EPSILON, (0.0, 1.0))
    expected = np.mean(np.argmax(linear(model, "kind", attacked(both))[0], axis=1) == kinds)
    alone = np.mean(np.argmax(linear(model, "kind", attacked(gradient))[0], axis=1) == kinds)
    assert found["kind_accuracy"] == pytest.approx(expected, abs=1e-6) and expected != alone
    z, _ = linear(model, "value", attacked(both))
    assert found["value_loss"] == pytest.approx(np.mean(weight * np.mean((z - VALUES) ** 2, axis=1)), rel=1e-3)


@pytest.mark.parametrize("size", [None, long(4)])
def test_training_with_several_outputs_logs_the_clean_losses(size):
    """Whole and in micro-batches; there is no accuracy of several outputs."""
    y = {"kind": YES, "value": VALUES}
    losses = {"kind": keras.losses.SparseCategoricalCrossentropy(from_logits=True), "value": "mse"}
    model = model_of(kind=(2, 1.0, None), value=(2, 1.0, None))
    arguments = {"targeted": False, "random_start": 0.0, "value_range": (0, 1), "micro_batch_size": size}
    wrapper = conadv(model, None, losses, {"loss_weights": {"kind": 1.0, "value": 0.5}}, **arguments)
    logs = {name: values[0] for name, values in wrapper.fit(X, y, batch_size=10, verbose=0).history.items()}
    assert "adversarial_accuracy" not in logs and logs["adversarial_loss"] > logs["clean_loss"]
    assert logs["kind_loss"] + 0.5 * logs["value_loss"] == pytest.approx(logs["clean_loss"], rel=1e-5)


@pytest.mark.parametrize(
    "loss, y",
    [
        (keras.losses.SparseCategoricalCrossentropy(from_logits=True), np.arange(6) % 3),
        (keras.losses.CategoricalCrossentropy(), np.eye(3)[np.arange(6) % 3]),
        (keras.losses.CategoricalCrossentropy(from_logits=True), np.full((6, 3), [0.7, 0.3, 0.0])),
        (keras.losses.BinaryCrossentropy(), np.eye(3)[np.arange(6) % 3]),
    ],
)
def test_cross_entropies_without_cancellation_are_those_of_keras(loss, y):
    z = ops.convert_to_tensor(np.random.default_rng(0).normal(0, 4, (6, 3)), "float32")
    probabilities = ops.sigmoid(z) if "binary" in loss.name else ops.softmax(z)
    expected = loss(y, z if loss.get_config()["from_logits"] else probabilities)
    assert float(without_cancellation(loss)(y, z)) == pytest.approx(float(expected), rel=1e-5)


MODELS = {
    "one score": (lambda: model_of(yes=(1, 1.0, None)), "binary_crossentropy", YES),
    "regression": (lambda: model_of(value=(2, 1.0, None)), "mse", VALUES),
    "two outputs": (lambda: model_of(a=(2, 1.0, None), b=(2, 1.0, None)), "mse", {"a": VALUES, "b": VALUES}),
}


def test_targets_are_refused_where_there_is_no_wrong_class():
    words = "targeted must be False for a model without one score for each of .*received targeted=True"
    for make, loss, y in MODELS.values():
        model = make()
        model.compile(loss=loss)
        with pytest.raises(ValueError, match=words):
            lb.metrics_under_attack(model, batches(y), targeted=True, value_range=(0, 1))
        wrapper = conadv(model, loss=loss, value_range=(0, 1))
        with pytest.raises(ValueError, match=words):
            wrapper.fit(X, y, verbose=0)
    with pytest.raises(ValueError, match=words):
        lb.accuracy_under_attack(MODELS["one score"][0](), batches(YES), "hinge", 4.0, (0, 1), targeted=True)


def test_answers_that_are_neither_right_nor_wrong():
    for name, loss in (("regression", "mse"), ("two outputs", ["mse", "mse"])):
        make, _, y = MODELS[name]
        with pytest.raises(ValueError, match=r"loss must be one loss for classes.*metrics_under_attack measures"):
            lb.accuracy_under_attack(make(), batches(y), loss, value_range=(0, 1))
    with pytest.raises(ValueError, match=r"model must be compiled; received .*: call compile with a loss"):
        lb.metrics_under_attack(MODELS["regression"][0](), batches(VALUES))
    with pytest.raises(ValueError, match=r"y must be one number for each image.*received y=\(6, 2\)"):
        lb.accuracy_under_attack(MODELS["one score"][0](), batches(VALUES), "binary_crossentropy", value_range=(0, 1))
    wrapper = conadv(MODELS["regression"][0](), loss="mse", targeted=False, num_classes=2, value_range=(0, 1))
    with pytest.raises(ValueError, match="num_classes must be None, as there are no classes; received num_classes=2"):
        wrapper.fit(X, VALUES, verbose=0)
