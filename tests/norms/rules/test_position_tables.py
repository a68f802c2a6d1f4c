"""A table that is looked up once and added to every example: exact norms, whether or not T equals B by chance."""

from __future__ import annotations

import keras
import numpy as np
import pytest
from comparing import dense, plain_pass, run_traced
from keras import layers as L
from keras import ops

from tf_largebatch.norms import KERAS, measure

pytestmark = pytest.mark.each_value

POSITIONS, WIDTH = 4, 3


class Positions(L.Layer):
    """Adds an embedding of positions as the layers in Keras's examples do."""

    def __init__(self, with_axis, scaled):
        super().__init__()
        self.with_axis, self.scaled, self.table = with_axis, scaled, L.Embedding(6, WIDTH)

    def call(self, x):
        ids = ops.arange(POSITIONS) if not self.scaled else ops.convert_to_tensor([2, 0, 2, 5])
        table = self.table(ops.expand_dims(ids, 0) if self.with_axis else ids)
        return ops.tanh(x + (2.0 * table if self.scaled else table))


@pytest.mark.parametrize("batch", [POSITIONS, 3, 1])
@pytest.mark.parametrize("with_axis, scaled", [(False, False), (True, False), (False, True)])
def test_norms_of_a_table_of_positions(with_axis, scaled, batch):
    inputs = keras.Input((POSITIONS, WIDTH))
    model = keras.Model(inputs, L.Dense(2)(L.Flatten()(Positions(with_axis, scaled)(inputs))))
    x = np.random.default_rng(0).normal(size=(batch, POSITIONS, WIDTH)).astype("float32")

    def loss(y):
        return ops.sum(y**2)

    def step(x):
        found = measure(model, lambda: model(x), loss, model.trainable_variables, batch, KERAS)[1]
        return found.squared_norms, [dense(g) for g in found.gradients]

    squares, gradients = run_traced(step, x)
    total = [0.0 for _ in gradients]
    for i in range(batch):
        _, alone = plain_pass(model, x[i : i + 1], loss)
        for k, g in enumerate(alone):
            total[k] += g
            np.testing.assert_allclose(squares[k][i], np.sum(g**2), rtol=1e-5)
    for g, expected in zip(gradients, total, strict=True):
        np.testing.assert_allclose(g, expected, rtol=1e-5, atol=1e-5)
