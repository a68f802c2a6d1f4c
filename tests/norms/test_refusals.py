"""What cannot be measured is refused before anything is done, by name."""

from __future__ import annotations

import keras
import numpy as np
import pytest
from keras import layers as L

from tf_largebatch import norms
from tf_largebatch.norms import per_example_gradient_norms

X, Y = np.ones((4, 6), "float32"), np.zeros(4, "int64")


class Scale(L.Layer):
    def build(self, shape):
        self.scale = self.add_weight(shape=(shape[-1],), initializer="ones", name="scale")

    def call(self, x):
        return x * self.scale


class MyDense(L.Dense):
    def call(self, inputs, training=None):
        return 2.0 * super().call(inputs)


def test_every_unsupported_layer_is_named():
    model = keras.Sequential([keras.Input((6,)), Scale(name="a"), L.Dense(4), MyDense(3, name="b"), Scale(name="c")])
    with pytest.raises(ValueError) as error:
        per_example_gradient_norms(model, X, Y, "sparse_categorical_crossentropy")
    message = str(error.value)
    for part in ("a (Scale has no rule)", "b (MyDense overrides Dense.call)", "c (Scale has no rule)"):
        assert part in message
    assert "register" in message and "dense" not in message.split("(MyDense")[0].split("b ")[0]


def test_a_call_that_was_set_on_the_layer_itself_is_refused():
    model = keras.Sequential([keras.Input((6,)), L.Dense(3)])
    layer = model.layers[0]
    object.__setattr__(layer, "call", lambda inputs, training=None: 2.0 * type(layer).call(layer, inputs))
    with pytest.raises(ValueError, match="this Dense has a call of its own"):
        per_example_gradient_norms(model, X, np.ones((4, 3)), "mse")


def test_frozen_layers_need_no_rule():
    model = keras.Sequential([keras.Input((6,)), Scale(trainable=False), L.Dense(3)])
    found = per_example_gradient_norms(model, X, np.ones((4, 3)), "mse")
    assert set(found) == {v.path for v in model.layers[1].trainable_variables}


def test_a_use_outside_the_owning_layer_is_refused_not_under_estimated():
    ids = keras.Input((4,), dtype="int32")
    table = L.Embedding(5, 3)

    class Tied(L.Layer):
        def call(self, x):
            return keras.ops.matmul(x, keras.ops.transpose(table.embeddings))

    model = keras.Model(ids, Tied()(L.GlobalAveragePooling1D()(table(ids))))
    with pytest.raises(ValueError, match=r"used elsewhere .*embedding.*/embeddings"):
        per_example_gradient_norms(model, np.ones((4, 4), "int32"), Y, "sparse_categorical_crossentropy")


def test_a_batch_axis_that_is_not_first_is_refused():
    inputs = keras.Input((4, 6))
    rows = L.Lambda(lambda t: keras.ops.reshape(t, (-1, 6)), output_shape=(6,))(inputs)
    hidden = L.Dense(3)(rows)
    model = keras.Model(inputs, L.Lambda(lambda t: keras.ops.reshape(t, (-1, 12)), output_shape=(12,))(hidden))
    with pytest.raises(ValueError, match=r"axis 0 .*'dense.*' .* has 4 rows for each example"):
        per_example_gradient_norms(model, np.ones((4, 4, 6), "float32"), np.zeros((4, 12)), "mse")


def test_einsum_equations_without_a_batch_axis_are_refused():
    layer = L.EinsumDense("ab,bc->cb", output_shape=(2,))
    layer.build((6, 2))
    assert "examples" in norms.KERAS.why_not(layer)


def test_unreduced_losses_are_refused():
    model = keras.Sequential([keras.Input((6,)), L.Dense(3)])
    with pytest.raises(ValueError, match="reduction"):
        per_example_gradient_norms(model, X, Y, keras.losses.MeanSquaredError(reduction="none"))


def test_a_rule_in_five_lines():
    @norms.register(Scale)
    def scale(layer, recorder, inputs):
        return inputs * recorder.per_example(layer.scale)

    try:
        model = keras.Sequential([keras.Input((6,)), Scale(), L.Dense(3)])
        x = np.random.default_rng(0).normal(size=(4, 6)).astype("float32")
        found = per_example_gradient_norms(model, x, np.ones((4, 3)), "mse")
        expected = norms.brute_force_gradient_norms(model, x, np.ones((4, 3)), "mse")
        for path in expected:
            np.testing.assert_allclose(found[path], expected[path], rtol=1e-5)
        with pytest.raises(ValueError, match=r"layer_classes must be without a rule; .* call unregister\(Scale\)"):
            norms.register(Scale)(scale)
    finally:
        norms.unregister(Scale)
