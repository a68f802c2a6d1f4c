from __future__ import annotations

import dataclasses
import doctest
import importlib
import inspect
import json
import re

import keras
import numpy as np
import pytest
from layerwise_cases import OTHER_ARGUMENTS, OUT_OF_RANGE, apply_all, gradients, make, other_arguments, variables

from tf_largebatch.core import defaults
from tf_largebatch.optimizers import CLARS, LARS

BOTH = pytest.mark.parametrize("cls", [CLARS, LARS])


@BOTH
@pytest.mark.parametrize("argument, value", OUT_OF_RANGE)
def test_out_of_range(cls, argument, value):
    with pytest.raises(ValueError, match=f"^{argument} must be .*; received {argument}={re.escape(repr(value))}"):
        cls(**{argument: value})


@BOTH
def test_nesterov_needs_momentum(cls):
    with pytest.raises(ValueError, match=r"^momentum must be above 0 with nesterov=True; received momentum=0.0"):
        cls(nesterov=True, momentum=0.0)


@BOTH
def test_numpys_scalars_are_arguments(cls):
    """And the configuration stays JSON."""
    arguments = {**other_arguments(cls), "clipnorm": None, "clipvalue": 0.5, "exclude_from_layer_adaptation": None}
    kinds = {float: [np.float32, np.float64, np.array], bool: [np.bool_, np.array], int: [np.int64, np.array]}
    for number in range(3):
        given = {
            name: (kinds[type(value)] * 2)[number](value) if type(value) in kinds else value
            for name, value in arguments.items()
        }
        optimizer = cls(**given)
        assert json.loads(json.dumps(optimizer.get_config())) == cls(**arguments).get_config()
        apply_all(optimizer, gradients(2), variables())


def test_signatures_are_explicit_and_clars_has_three_arguments_more():
    """CLARS hands its arguments on by position."""
    parameters = {cls: list(inspect.signature(cls).parameters.values()) for cls in (CLARS, LARS)}
    by_name = {
        cls: {p.name: p.default for p in some if p.kind is not p.VAR_KEYWORD} for cls, some in parameters.items()
    }
    assert by_name[CLARS].pop("gradient_norms") == "auto"
    assert by_name[CLARS].pop("norm_exponent") == 1.0
    assert by_name[CLARS].pop("max_agreement") == defaults.CLARS.max_agreement
    for cls, chosen in ((CLARS, defaults.CLARS), (LARS, defaults.LARS)):
        for name, value in dataclasses.asdict(chosen).items():
            if name == "max_agreement":
                continue
            assert by_name[cls][name] == value
            by_name[cls][name] = None  # the position alone
    assert list(by_name[CLARS].items()) == list(by_name[LARS].items())
    assert set(by_name[LARS]) >= {*OTHER_ARGUMENTS, "clipvalue", "global_clipnorm"} - {
        "gradient_norms",
        "norm_exponent",
        "max_agreement",
    }


@BOTH
def test_docstrings_are_whole(cls):
    assert "{{" not in cls.__doc__
    documented = set(re.findall(r"^        (\w+): ", cls.__doc__, re.MULTILINE))
    assert documented >= set(inspect.signature(cls).parameters) - {"kwargs"}


@pytest.mark.parametrize("value", [-0.1, 1.5, float("nan"), "1", None])
def test_the_exponent_of_the_norms_is_from_0_to_1(value):
    with pytest.raises(ValueError, match=f"^norm_exponent must be a number from 0 to 1; received .*={value!r}"):
        CLARS(norm_exponent=value)


@pytest.mark.parametrize("value", [0, -0.1, float("nan"), float("inf"), "0.1"])
def test_the_cap_of_the_agreement_is_above_0(value):
    with pytest.raises(ValueError, match=f"^max_agreement must be a number above 0, or None; received .*={value!r}"):
        CLARS(max_agreement=value)


def test_unknown_source_of_norms():
    with pytest.raises(ValueError, match=r"'auto', 'per_example', 'replica'.*gradient_norms='examples'"):
        CLARS(gradient_norms="examples")
    with pytest.raises(ValueError, match="gradient_norms"):
        LARS(gradient_norms="auto")


@BOTH
def test_decoupled_weight_decay_is_refused(cls):
    with pytest.raises(ValueError, match=f"^weight_decay must be left out: {cls.__name__} has .*weight_decay_rate"):
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
        with pytest.raises(ValueError, match=f"^{argument} must be .*'stem/kernel', 'stem/bias'"):
            optimizer.build(variables())
        assert not optimizer.built


@BOTH
def test_malformed_exclusions_raise_at_once(cls):
    with pytest.raises(ValueError, match=r"^exclude_from_weight_decay must be "):
        cls(exclude_from_weight_decay=[3])


@BOTH
def test_unknown_arguments_are_kerass_business(cls):
    with pytest.raises(ValueError, match="not recognized"):
        cls(trust=1.0)


@BOTH
def test_new_variables_are_refused_by_name(cls):
    optimizer = make(cls)
    optimizer.build(variables())
    with pytest.raises(ValueError, match=r"3 variables that it was built with, and \['stranger'\] are none of them"):
        optimizer.apply([np.ones(2)], [keras.Variable(np.ones(2), name="stranger")])


@pytest.mark.parametrize("module", ["core.schedules", "optimizers.clars", "optimizers.lars"])
def test_docstring_examples(module):
    results = doctest.testmod(importlib.import_module(f"tf_largebatch.{module}"))
    assert results.attempted and not results.failed
