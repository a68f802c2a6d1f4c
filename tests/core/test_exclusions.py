from __future__ import annotations

import json
import re

import keras
import numpy as np
import pytest
from layerwise_cases import variables

from tf_largebatch.core.exclusions import Exclusion, select
from tf_largebatch.core.paths import variable_path


@keras.saving.register_keras_serializable(package="tests_selection")
def is_small(variable):
    return len(variable.shape) == 1


@keras.saving.register_keras_serializable(package="tests_selection")
class LongerThan:
    def __init__(self, size):
        self.size = size

    def __call__(self, variable):
        return variable.shape[0] > self.size

    def get_config(self):
        return {"size": self.size}

    @classmethod
    def from_config(cls, config):
        return cls(**config)


def selected(exclude):
    made = variables()
    return [variable_path(v) for v, excluded in zip(made, select(made, exclude), strict=True) if excluded]


def test_default_is_fewer_than_two_dimensions():
    assert selected(None) == ["stem/bias"]


def test_empty_list_excludes_nothing():
    assert selected([]) == []


def test_patterns_are_searched_in_the_path():
    assert selected(["^stem/"]) == ["stem/kernel", "stem/bias"]
    assert selected(["head", "bias$"]) == ["stem/bias", "head/kernel"]
    assert selected([re.compile("HEAD", re.IGNORECASE)]) == ["head/kernel"]


def test_a_single_string_is_one_pattern():
    assert selected("stem/bias") == ["stem/bias"]


class PlainVariable:
    """A variable of TensorFlow, which has a name and no path."""

    def __init__(self, name, shape):
        self.name, self.shape = name, shape

    def assign(self, value):
        raise NotImplementedError


def test_variables_predicates_and_paths():
    made = variables()
    assert select(made, made[2]) == (False, False, True)
    assert select(made, [made[0], lambda v: v is made[1]]) == (True, True, False)
    assert select(made, {"path": "stem/bias"}) == (False, True, False)
    if keras.backend.backend() == "tensorflow":  # on JAX the value of a variable is an array
        assert select(made, [made[0].value]) == (True, False, False)


def test_variables_of_the_other_keras_have_names():
    plain = [PlainVariable("a/bias:0", (1,)), PlainVariable("a/kernel:0", (1, 1))]
    assert [variable_path(v) for v in plain] == ["a/bias", "a/kernel"]
    assert select(plain, ["kernel$"]) == (False, True)
    assert select(plain, plain[0]) == (True, False)


@pytest.mark.parametrize(
    "exclude, found",
    [
        (["kernel", "batch_normalization"], "'batch_normalization'"),
        ({"path": "stem"}, "'stem'"),
        (keras.Variable([1.0], name="stranger"), "'stranger'"),
    ],
)
def test_what_matches_nothing_is_named_with_examples(exclude, found):
    with pytest.raises(ValueError, match=f"^exclude_from_x must be .*{found}: .* none of the 3, such as 'stem/kernel'"):
        select(variables(), exclude, "exclude_from_x")


def test_at_most_five_examples_are_named():
    made = [PlainVariable(f"layer{i}/kernel:0", (1,)) for i in range(7)]
    with pytest.raises(ValueError, match=r"none of the 7, such as 'layer0/kernel', .*'layer4/kernel' \("):
        select(made, "bias")


def test_a_predicate_may_match_nothing():
    assert selected(lambda v: False) == []


@pytest.mark.parametrize("bad", [3, [3], [None], "(", [""], {"name": "x"}, keras.layers.Dense(1), [np.zeros(2)]])
def test_malformed_entries_are_refused_before_any_variable_exists(bad):
    with pytest.raises(ValueError, match=r"^exclude_from_x must be "):
        Exclusion("exclude_from_x", bad)


@pytest.mark.parametrize(
    "exclude", [None, [], "stem", {"path": "stem/bias"}, ["stem", "head"], is_small, [LongerThan(3), "bias"]]
)
def test_round_trip_through_json(exclude):
    made = variables()
    config = json.loads(json.dumps(Exclusion("x", exclude).to_config()))
    again = Exclusion("x", config)
    assert again.select(made) == select(made, exclude)
    assert json.loads(json.dumps(again.to_config())) == config


def test_a_saved_path_finds_its_variable_after_keras_dropped_or_added_the_models_name():
    assert select(variables(), {"path": "sequential/stem/kernel"}) == (True, False, False)
    assert select([PlainVariable("outer/stem/bias:0", (1,))], {"path": "stem/bias"}) == (True,)
    for path in ("tem/kernel", "stem", "other/kernel"):
        with pytest.raises(ValueError, match="none of the 3"):
            select(variables(), {"path": path})


def test_a_saved_path_must_not_be_ambiguous():
    with pytest.raises(ValueError, match=r"may mean any of \['stem/kernel', 'head/kernel'\]"):
        select(variables(), {"path": "kernel"})
    same = [PlainVariable("a/kernel:0", (1,)) for _ in range(2)]
    with pytest.raises(ValueError, match="may mean any of"):
        select(same, {"path": "a/kernel"})


def test_a_saved_path_that_a_variable_has_means_no_other():
    made = [PlainVariable(f"{path}:0", (1,)) for path in ("b/a/kernel", "a/kernel", "kernel")]
    assert select(made, {"path": "a/kernel"}) == (False, True, False)


def test_none_and_the_empty_list_stay_apart():
    assert Exclusion("x", None).to_config() is None
    assert Exclusion("x", []).to_config() == []


def test_variables_are_saved_by_exact_path():
    made = variables()
    config = Exclusion("x", [made[0], "head"]).to_config()
    assert config == [{"path": "stem/kernel"}, "head"]
    assert Exclusion("x", config).select(variables(seed=5)) == (True, False, True)


@pytest.mark.parametrize("predicate", [lambda v: True, len])
def test_a_predicate_that_is_not_registered_cannot_be_saved(predicate):
    with pytest.raises(ValueError, match=r"^x must be .*register_keras_serializable"):
        Exclusion("x", predicate).to_config()
