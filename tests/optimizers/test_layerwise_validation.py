from __future__ import annotations

import doctest
import importlib

import keras
import numpy as np
import pytest
from layerwise_cases import make, variables

from tf_largebatch.optimizers import CLARS, LARS

BOTH = pytest.mark.parametrize("cls", [CLARS, LARS])


@BOTH
@pytest.mark.parametrize(
    "argument, value",
    [
        ("learning_rate", -0.1),
        ("learning_rate", float("nan")),
        ("momentum", -0.1),
        ("momentum", 1.0),
        ("eta", 0.0),
        ("epsilon", -1e-6),
        ("weight_decay_rate", -1e-4),
        ("max_rate", 0.0),
    ],
)
def test_out_of_range(cls, argument, value):
    with pytest.raises(ValueError, match=f"`{argument}` must be .*; received {argument}={value}"):
        cls(**{argument: value})


@BOTH
def test_nesterov_needs_momentum(cls):
    with pytest.raises(ValueError, match="`nesterov=True` needs a `momentum`"):
        cls(nesterov=True, momentum=0.0)


def test_unknown_source_of_norms():
    with pytest.raises(ValueError, match=r"'auto', 'per_example', 'replica'.*gradient_norms='examples'"):
        CLARS(gradient_norms="examples")
    with pytest.raises(ValueError, match="gradient_norms"):
        LARS(gradient_norms="auto")


@BOTH
def test_decoupled_weight_decay_is_refused(cls):
    with pytest.raises(ValueError, match=f"{cls.__name__} has no `weight_decay`.*`weight_decay_rate`"):
        cls(weight_decay=1e-4)


@BOTH
def test_numbers_of_any_kind_are_learning_rates(cls):
    for value in (1, np.float32(1), 1.0):
        assert float(make(cls, value).learning_rate.numpy()) == 1.0
    assert make(cls, lambda: 0.5).learning_rate == 0.5


@BOTH
@pytest.mark.parametrize("argument", ["exclude_from_layer_adaptation", "exclude_from_weight_decay"])
def test_what_matches_nothing_raises_at_build(cls, argument):
    for value in ("batch_normalization", keras.Variable([1.0], name="stranger")):
        optimizer = make(cls, **{argument: value})
        with pytest.raises(ValueError, match=f"`{argument}`: .*'stem/kernel', 'stem/bias'"):
            optimizer.build(variables())
        assert not optimizer.built


@BOTH
def test_malformed_exclusions_raise_at_once(cls):
    with pytest.raises(ValueError, match="`exclude_from_weight_decay`"):
        cls(exclude_from_weight_decay=[3])


@BOTH
def test_unknown_arguments_and_variables_are_kerass_business(cls):
    with pytest.raises(ValueError, match="not recognized"):
        cls(trust=1.0)
    optimizer = make(cls)
    optimizer.build(variables())
    with pytest.raises(ValueError, match="Unknown variable"):
        optimizer.apply([np.ones(2)], [keras.Variable(np.ones(2))])


@pytest.mark.parametrize("module", ["core.scaling", "optimizers.clars", "optimizers.lars"])
def test_docstring_examples(module):
    results = doctest.testmod(importlib.import_module(f"tf_largebatch.{module}"))
    assert results.attempted and not results.failed
