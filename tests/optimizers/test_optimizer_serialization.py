from __future__ import annotations

import json

import keras
import numpy as np
import pytest
from layerwise_cases import (
    OTHER_ARGUMENTS,
    apply_all,
    gradients,
    make,
    other_arguments,
    regression,
    small_model,
    variables,
)
from selection import long

from tf_largebatch.core.schedules import WarmupPolynomialDecay
from tf_largebatch.optimizers import CLARS, LARS

BOTH = pytest.mark.parametrize("cls", [CLARS, LARS])


@keras.saving.register_keras_serializable(package="tests_layerwise")
def in_head(variable):
    return "head" in variable.path


def through_keras_saving(optimizer):
    return keras.saving.deserialize_keras_object(json.loads(json.dumps(keras.saving.serialize_keras_object(optimizer))))


def through_optimizers(optimizer):
    return keras.optimizers.deserialize(json.loads(json.dumps(keras.optimizers.serialize(optimizer))))


def through_get(optimizer):
    return keras.optimizers.get(json.loads(json.dumps(keras.optimizers.serialize(optimizer))))


def through_config(optimizer):
    return type(optimizer).from_config(json.loads(json.dumps(optimizer.get_config())))


ROUTES = pytest.mark.parametrize("route", [through_keras_saving, through_optimizers, through_get, through_config])


def test_the_other_arguments_are_all_of_them():
    missing = set(CLARS().get_config()) - set(OTHER_ARGUMENTS)
    # Of the three ways to clip only one can be set.
    assert missing == {"clipvalue", "global_clipnorm"}
    defaults = CLARS(name="clars").get_config()
    assert not [name for name, value in OTHER_ARGUMENTS.items() if defaults[name] == value]


@BOTH
@ROUTES
@pytest.mark.parametrize("built", [False, True])
def test_every_argument_survives(cls, route, built):
    arguments = other_arguments(cls)
    optimizer = cls(**arguments)
    if built:
        optimizer.build(variables())
    again = route(optimizer)
    assert type(again) is cls
    assert again.get_config() == optimizer.get_config()
    assert {name: again.get_config()[name] for name in arguments} == arguments
    assert "weight_decay" not in again.get_config()


@BOTH
@pytest.mark.parametrize("value", [None, [], "head", in_head, "variable"])
def test_exclusions_survive(cls, value):
    trained = variables()
    if value == "variable":
        value = [trained[2]]
    optimizer = make(
        cls, 0.5, weight_decay_rate=0.5, exclude_from_layer_adaptation=value, exclude_from_weight_decay=value
    )
    again = through_keras_saving(optimizer)
    assert again.get_config() == optimizer.get_config()
    expected = apply_all(optimizer, gradients(2), trained)
    for one, other in zip(apply_all(again, gradients(2), variables()), expected, strict=True):
        np.testing.assert_array_equal(one, other)


@BOTH
def test_unregistered_predicates_are_refused_when_saved(cls):
    with pytest.raises(ValueError, match=r"exclude_from_weight_decay.*register_keras_serializable"):
        cls(exclude_from_weight_decay=lambda v: True).get_config()


@BOTH
def test_custom_objects_reach_predicates(cls):
    def mine(variable):
        return True

    with keras.saving.custom_object_scope({"mine": mine}):
        config = cls(exclude_from_weight_decay=mine).get_config()
    assert cls.from_config(config, custom_objects={"mine": mine}).get_config is not None


@BOTH
@ROUTES
def test_schedules_survive(cls, route):
    schedule = WarmupPolynomialDecay(1.0, 10, 2)
    again = route(make(cls, schedule))
    assert again.get_config()["learning_rate"]["config"] == schedule.get_config()


@BOTH
def test_from_config_leaves_the_config_alone(cls):
    config = make(cls, WarmupPolynomialDecay(1.0, 10, 2)).get_config()
    before = json.dumps(config)
    cls.from_config(config)
    assert json.dumps(config) == before


@pytest.mark.parametrize("cls, classic", [(CLARS, False), long(LARS, True)])
def test_training_continues_bit_for_bit_from_a_saved_model(cls, classic, tmp_path):
    x, y = regression()
    model = small_model()
    optimizer = make(
        cls,
        WarmupPolynomialDecay(0.5, 12, 2),
        eta=0.1,
        weight_decay_rate=0.01,
        classic_momentum=classic,
        exclude_from_layer_adaptation=[model.layers[0].kernel, "bias"],
        gradient_accumulation_steps=2,
    )
    model.compile(optimizer=optimizer, loss="mse")
    # Nine micro-batches: saved between the two of an update, with half-filled accumulators.
    model.fit(x, y, batch_size=16, epochs=9, shuffle=False, verbose=0)
    model.save(tmp_path / "model.keras")
    again = keras.saving.load_model(tmp_path / "model.keras")
    # Only the values: Keras drops the model's name from the paths of a Sequential it loads.
    for read in ("layerwise_rates", "gradient_norms"):
        saved, loaded = getattr(model.optimizer, read)(), getattr(again.optimizer, read)()
        assert list(loaded.values()) == list(saved.values())
    for one in (model, again):
        one.fit(x, y, batch_size=16, epochs=5, shuffle=False, verbose=0)
    for one, other in zip(again.get_weights(), model.get_weights(), strict=True):
        np.testing.assert_array_equal(one, other)
    for one, other in zip(again.optimizer.variables, model.optimizer.variables, strict=True):
        np.testing.assert_array_equal(one.numpy(), other.numpy())


@BOTH
def test_weights_of_the_optimizer_are_loaded(cls):
    optimizer, again = make(cls, 0.5), make(cls, 0.5)
    trained = variables()
    apply_all(optimizer, gradients(2), trained)
    copies = variables()
    again.build(copies)
    store = {}
    optimizer.save_own_variables(store)
    again.load_own_variables(store)
    for copy, variable in zip(copies, trained, strict=True):
        copy.assign(variable)
    expected = apply_all(optimizer, gradients(1), trained)
    for one, other in zip(apply_all(again, gradients(1), copies), expected, strict=True):
        np.testing.assert_array_equal(one, other)


@BOTH
def test_compiles_by_config_and_clones(cls):
    model = small_model()
    model.compile(optimizer=keras.optimizers.serialize(make(cls, 0.5)), loss="mse")
    assert type(model.optimizer) is cls
    assert type(through_config(model.optimizer)) is cls
