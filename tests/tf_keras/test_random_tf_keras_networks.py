"""TensorFlow only: networks of tf_keras's layers made at random, measured in eager execution and in graphs."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
import tf_keras
from hypothesis import given
from random_networks import DRAWS, WITHOUT_RULE, data_of, loss_of, model_of, networks, numbered, pieces_of_tf_keras
from tf_keras_norm_reference import assert_measured_right, measured

from tf_largebatch.tf_keras.norms import TF_KERAS

PIECES = pieces_of_tf_keras(tf_keras.layers)
RULES = tuple(name for name in PIECES if name not in WITHOUT_RULE)
DRAWN = {"ways": ("eager", "graph"), "policies": ("float32",), "pieces": PIECES}


def check(network):
    """Asserts that norms, gradients, outputs and moving averages are right; returns how often each layer occurs."""
    tf_keras.utils.set_random_seed(network.seed)
    model = model_of(network, tf_keras, PIECES)
    x, y, weights = data_of(network)
    of_keras = loss_of(network, tf_keras)

    def loss(y, y_pred):
        return of_keras(y, y_pred, weights)

    # As tests/reliability/network_checks.py: sums in another order, through several layers.
    assert_measured_right(model, x, y, loss, rtol=1e-4, traced=network.way == "graph")
    if weights is not None and not any(piece.name == "BatchNormalization" for piece in network.pieces):
        for squares in measured(model, x, y, loss)[1].squared_norms:
            assert squares is None or np.all(squares.numpy()[weights == 0] == 0)
    return Counter(type(layer).__name__ for layer in model._flatten_layers() if type(layer).__name__ in RULES)


def test_every_rule_can_be_drawn():
    names = {cls.__name__ for cls in TF_KERAS.layer_classes() if cls.__module__.startswith("tf_keras.")}
    # BatchNormalization(synchronized=True) stands for the former; the latter consists of EinsumDense.
    assert names - {"SyncBatchNormalization"} == set(RULES) - {"MultiHeadAttention"}


@pytest.mark.parametrize("number", [0, 1])
def test_a_few_networks(number):
    check(numbered(number, [RULES[2 * number], RULES[2 * number + 1]], **{**DRAWN, "ways": ["eager"]}))


COUNTS: Counter[str] = Counter()


@pytest.mark.long
@pytest.mark.parametrize("rule", RULES)  # 15: 195 networks in all
def test_networks_with_each_rule(rule, capsys):
    @DRAWS
    @given(network=networks([rule], **DRAWN))
    def holds(network):
        COUNTS.update(check(network))
        COUNTS.update([network.way, "networks"])

    holds()
    assert COUNTS[rule]
    with capsys.disabled():
        print(f"\n{rule}: so far {dict(sorted(COUNTS.items()))}")
