"""The yardstick is right, or says that it is not: randomness, states, outputs of all kinds, shared paths."""

from __future__ import annotations

import keras
import numpy as np
import pytest
from comparing import CROSS_ENTROPY, assert_norms_close
from keras import layers as L

from tf_largebatch.norms import brute_force_gradient_norms, per_example_gradient_norms

rng = np.random.default_rng(0)
X, Y = rng.normal(size=(5, 4, 3)).astype("float32"), rng.integers(0, 3, 5)


def sequential(*layers):
    keras.utils.set_random_seed(0)
    return keras.Sequential([keras.Input(X.shape[1:]), *layers, L.Flatten(), L.Dense(3)])


RENORM = {"renorm": True} if "renorm" in L.BatchNormalization.__init__.__code__.co_varnames else {}


@pytest.mark.parametrize(
    "layer",
    [
        lambda: L.LSTM(3, dropout=0.3, recurrent_dropout=0.4, seed=1),
        lambda: L.GRU(3, recurrent_dropout=0.4, seed=1, return_sequences=True),
        lambda: L.BatchNormalization(**RENORM),
    ],
    ids=["lstm with dropout", "gru with dropout", "batch renormalization"],
)
def test_random_numbers_and_moving_averages_are_those_of_the_model(layer):
    model = sequential(layer())
    model(X + 1.0, training=True)
    assert_norms_close(
        per_example_gradient_norms(model, X, Y, CROSS_ENTROPY), brute_force_gradient_norms(model, X, Y, CROSS_ENTROPY)
    )


class Outputs(L.Layer):
    """One that returns a dict with numbers, None and what is no gradient's business."""

    def build(self, shape):
        self.scale = self.add_weight(shape=(shape[-1],), initializer="ones", name="scale")
        self.built = True

    def call(self, x):
        return {"scaled": x * self.scale, "places": keras.ops.argmax(x, -1), "nothing": None}


class Nothing(Outputs):
    def call(self, x):
        return None


class Random(Outputs):
    def call(self, x):
        return x * self.scale * np.random.uniform()


class Mixed(keras.Model):
    def __init__(self):
        super().__init__()
        self.nothing, self.outputs_of, self.head = Nothing(), Outputs(), L.Dense(3)

    def call(self, x):
        self.nothing(x)
        return self.head(self.outputs_of(x)["scaled"])


def test_layers_that_return_dicts_and_nothing():
    model, x = Mixed(), X[:, 0]
    model(x)
    found = brute_force_gradient_norms(model, x, Y, CROSS_ENTROPY)
    assert len(found) == 3
    for i in range(len(x)):
        alone = brute_force_gradient_norms(model, x[i : i + 1], Y[i : i + 1], CROSS_ENTROPY)
        for path, norms in alone.items():
            np.testing.assert_allclose(float(found[path][i]), float(norms[0]), rtol=1e-5, atol=1e-7)


def test_random_numbers_that_cannot_be_repeated_are_refused():
    with pytest.raises(ValueError, match=r"cannot repeat layer .*random"):
        brute_force_gradient_norms(sequential(Random()), X, Y, CROSS_ENTROPY)


def test_a_gradient_that_does_not_come_through_the_owner_is_refused():
    table = L.Dense(3)

    class Tied(L.Layer):
        def call(self, x):
            return keras.ops.matmul(x, keras.ops.transpose(table.kernel))

    inputs = keras.Input((3,))
    model = keras.Model(inputs, Tied()(table(inputs)))
    with pytest.raises(ValueError, match=r"cannot split the gradient of 'dense.*/kernel'"):
        brute_force_gradient_norms(model, X[:, 0], Y, CROSS_ENTROPY)


def test_tensors_that_share_a_path_are_all_measured():
    def tower():
        inputs = keras.Input((3,))
        return keras.Model(inputs, L.Dense(2, name="fc")(inputs))

    a, b = keras.Input((3,)), keras.Input((3,))
    model = keras.Model([a, b], L.Dense(1, name="top")(L.Concatenate()([tower()(a), tower()(b)])))
    x, y = [X[:, 0], X[:, 1]], np.ones((5, 1), "float32")
    found = per_example_gradient_norms(model, x, y, "mse")
    assert sorted(found) == ["fc/bias", "fc/bias#2", "fc/kernel", "fc/kernel#2", "top/bias", "top/kernel"]
    assert_norms_close(found, brute_force_gradient_norms(model, x, y, "mse"))


def test_an_unbuilt_model_is_refused():
    for function in (per_example_gradient_norms, brute_force_gradient_norms):
        with pytest.raises(ValueError, match=r"model must be a built model; .* call it once"):
            function(keras.Sequential([L.Dense(3)]), X, Y, CROSS_ENTROPY)
