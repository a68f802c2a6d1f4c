"""A layer computed by the rule of, and with the variables of, another one in its place."""

from __future__ import annotations

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers as L

from tf_largebatch.norms import KERAS, measure, per_example_gradient_norms

CROSS_ENTROPY = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
RNG = np.random.default_rng(0)
X, Y = RNG.normal(size=(5, 6, 6, 3)).astype("float32"), RNG.integers(0, 3, 5)


def network() -> keras.Model:
    layers = [L.Conv2D(4, 3), L.BatchNormalization(), L.ReLU(), L.Conv2D(4, 3), L.BatchNormalization()]
    return keras.Sequential([keras.Input((6, 6, 3)), *layers, L.Flatten(), L.Dense(3)])


def norms_of(layers: list[L.Layer]) -> list[L.Layer]:
    return [layer for layer in layers if isinstance(layer, L.BatchNormalization)]


def twins_of(model: keras.Model) -> dict[L.Layer, L.Layer]:
    twins = {}
    for layer in norms_of(model.layers):
        twins[layer] = L.BatchNormalization()
        twins[layer].build(layer.input.shape)
        for v in twins[layer].trainable_variables:
            v.assign(v + 0.5 * RNG.normal(size=v.shape))
    return twins


@pytest.mark.parametrize("graph", [False, True])
def test_it_is_the_model_with_the_other_layers(graph):
    model = network()
    twins = twins_of(model)
    # The slow twin: the same weights, the batch normalizations' from the replacements.
    other = network()
    other.set_weights(model.get_weights())
    for layer, (main, twin) in zip(norms_of(other.layers), twins.items(), strict=True):
        layer.set_weights(twin.get_weights())
        main_before = main.get_weights()
    variables = [*model.trainable_variables, *(v for twin in twins.values() for v in twin.trainable_variables)]

    def run():
        loss = lambda logits: CROSS_ENTROPY(Y, logits)  # noqa: E731
        forward = lambda: model(X, training=True)  # noqa: E731
        output, found = measure(model, forward, loss, variables, len(X), KERAS, replacements=twins)
        mine = {v.path: i for i, v in enumerate(variables)}
        assert len(mine) == len(variables)
        return output, [g for g in found.gradients if g is not None], found.squared_norms

    output, gradients, squares = tf.function(run)() if graph else run()
    mains = {id(v) for layer in twins for v in layer.trainable_variables}
    assert [s is None for s in squares] == [id(v) in mains for v in variables]
    expected = per_example_gradient_norms(other, X, Y, CROSS_ENTROPY)
    order = [v for v in other.trainable_variables if "batch_norm" not in v.path]
    order += [v for v in other.trainable_variables if "batch_norm" in v.path]
    present = [s for s in squares if s is not None]
    assert len(present) == len(order) == len(gradients)
    for s, v in zip(present, order, strict=True):
        # float32 sums of a few hundred terms; biases before batch norm cancel.
        np.testing.assert_allclose(len(X) * tf.sqrt(s), expected[v.path], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(output, other(X, training=True), rtol=1e-5, atol=1e-5)
    for layer, twin in zip(norms_of(other.layers), twins.values(), strict=True):
        for moved, wanted in zip(twin.get_weights(), layer.get_weights(), strict=True):
            assert moved.shape == wanted.shape
    # Last of the main ones: neither used nor updated.
    for now, before in zip(main.get_weights(), main_before, strict=True):
        np.testing.assert_array_equal(now, before)
    assert all("call" not in vars(layer) for layer in (*model.layers, *twins.values()))


def test_the_substitutes_statistics_move_and_the_layers_own_do_not():
    model = network()
    twins = twins_of(model)
    before = [[w.copy() for w in layer.get_weights()[2:]] for layer in (*twins, *twins.values())]
    variables = model.trainable_variables
    measure(model, lambda: model(X, training=True), tf.reduce_sum, variables, len(X), KERAS, replacements=twins)
    after = [layer.get_weights()[2:] for layer in (*twins, *twins.values())]
    moved = [any((b != a).any() for b, a in zip(bs, xs, strict=True)) for bs, xs in zip(before, after, strict=True)]
    assert moved == [False, False, True, True]


def test_frozen_substitutes_and_layers():
    model = network()
    twins = twins_of(model)
    for layer in (*twins, *twins.values()):
        layer.trainable = False
    output, found = measure(
        model, lambda: model(X), tf.reduce_sum, model.trainable_variables, len(X), KERAS, replacements=twins
    )
    assert not np.allclose(output, model(X))
    assert all(g is not None for g in found.gradients)


def test_refusals():
    model = network()
    layer, other = norms_of(model.layers)
    unbuilt, stranger = L.BatchNormalization(), next(iter(twins_of(network())))

    def run(replacements):
        measure(model, lambda: model(X), tf.reduce_sum, model.trainable_variables, len(X), KERAS, None, replacements)

    with pytest.raises(ValueError, match="is not built"):
        run({layer: unbuilt})
    with pytest.raises(ValueError, match="no layer of"):
        run({stranger: other})

    class Own(L.BatchNormalization):
        def call(self, inputs, training=None, mask=None):
            return inputs

    own = Own()
    own.build((None, 4, 4, 4))
    with pytest.raises(ValueError, match="Own overrides BatchNormalization"):
        run({layer: own})
