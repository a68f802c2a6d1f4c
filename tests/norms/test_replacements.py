"""Replacements: another layer's rule and variables compute in place of a layer of the model."""

from __future__ import annotations

import keras
import numpy as np
import pytest
from comparing import ON_JAX, run_traced
from comparing import norms_of as example_norms
from keras import layers as L
from keras import ops
from selection import long_unless

from tf_largebatch.norms import KERAS, measure

CROSS_ENTROPY = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
RNG = np.random.default_rng(0)
X, Y = RNG.normal(size=(5, 6, 6, 3)).astype("float32"), RNG.integers(0, 3, 5)


def network() -> keras.Model:
    layers = [L.Conv2D(4, 3), L.BatchNormalization(), L.ReLU(), L.Conv2D(4, 3), L.BatchNormalization()]
    return keras.Sequential([keras.Input((6, 6, 3)), *layers, L.Flatten(), L.Dense(3)])


def batch_norms_of(layers: list[L.Layer]) -> list[L.Layer]:
    return [layer for layer in layers if isinstance(layer, L.BatchNormalization)]


def replacements_of(model: keras.Model) -> dict[L.Layer, L.Layer]:
    replacements = {}
    for layer in batch_norms_of(model.layers):
        replacements[layer] = L.BatchNormalization()
        replacements[layer].build(layer.input.shape)
        for v in replacements[layer].trainable_variables:
            v.assign(v + 0.5 * RNG.normal(size=v.shape))
    return replacements


@pytest.mark.parametrize("graph", long_unless([False, True], [True], condition=ON_JAX))
def test_replacements_compute_what_a_model_of_them_computes(graph):
    model = network()
    replacements = replacements_of(model)
    # The slow reference: the same weights, those of the batch normalizations from the replacements.
    other = network()
    other.set_weights(model.get_weights())
    for layer, (main, replacement) in zip(batch_norms_of(other.layers), replacements.items(), strict=True):
        layer.set_weights(replacement.get_weights())
        main_before = main.get_weights()
    variables = [
        *model.trainable_variables,
        *(v for replacement in replacements.values() for v in replacement.trainable_variables),
    ]

    def run():
        loss = lambda logits: CROSS_ENTROPY(Y, logits)  # noqa: E731
        forward = lambda: model(X, training=True)  # noqa: E731
        output, found = measure(model, forward, loss, variables, len(X), KERAS, replacements=replacements)
        mine = {v.path: i for i, v in enumerate(variables)}
        assert len(mine) == len(variables)
        return output, [g for g in found.gradients if g is not None], found.squared_norms

    output, gradients, squares = run_traced(run) if graph else run()
    mains = {id(v) for layer in replacements for v in layer.trainable_variables}
    assert [s is None for s in squares] == [id(v) in mains for v in variables]
    expected = example_norms(other, X, Y)
    order = [v for v in other.trainable_variables if "batch_norm" not in v.path]
    order += [v for v in other.trainable_variables if "batch_norm" in v.path]
    present = [s for s in squares if s is not None]
    assert len(present) == len(order) == len(gradients)
    for s, v in zip(present, order, strict=True):
        # float32 sums of a few hundred terms; biases before batch norm cancel.
        np.testing.assert_allclose(len(X) * ops.sqrt(s), expected[v.path], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(output, other(X, training=True), rtol=1e-5, atol=1e-5)
    for layer, replacement in zip(batch_norms_of(other.layers), replacements.values(), strict=True):
        for moved, wanted in zip(replacement.get_weights(), layer.get_weights(), strict=True):
            assert moved.shape == wanted.shape
    # Last of the main ones: neither used nor updated.
    for now, before in zip(main.get_weights(), main_before, strict=True):
        np.testing.assert_array_equal(now, before)
    assert all("call" not in vars(layer) for layer in (*model.layers, *replacements.values()))


def test_the_statistics_of_replacements_move_and_those_of_the_layers_do_not():
    model = network()
    replacements = replacements_of(model)
    before = [[w.copy() for w in layer.get_weights()[2:]] for layer in (*replacements, *replacements.values())]
    variables = model.trainable_variables
    measure(model, lambda: model(X, training=True), ops.sum, variables, len(X), KERAS, replacements=replacements)
    after = [layer.get_weights()[2:] for layer in (*replacements, *replacements.values())]
    moved = [any((b != a).any() for b, a in zip(bs, xs, strict=True)) for bs, xs in zip(before, after, strict=True)]
    assert moved == [False, False, True, True]


def test_frozen_replacements_and_layers():
    model = network()
    replacements = replacements_of(model)
    for layer in (*replacements, *replacements.values()):
        layer.trainable = False
    output, found = measure(
        model, lambda: model(X), ops.sum, model.trainable_variables, len(X), KERAS, replacements=replacements
    )
    assert not np.allclose(output, model(X))
    assert all(g is not None for g in found.gradients)


def test_replacements_that_are_refused():
    model = network()
    layer, other = batch_norms_of(model.layers)
    unbuilt, stranger = L.BatchNormalization(), next(iter(replacements_of(network())))

    def run(replacements):
        measure(model, lambda: model(X), ops.sum, model.trainable_variables, len(X), KERAS, None, replacements)

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
