"""Every method that a Keras layer's `call` reaches is guarded: Keras's source is read again, by its syntax tree."""

from __future__ import annotations

import ast
import inspect
import textwrap
from collections.abc import Iterator
from typing import Any

import keras
import numpy as np
import pytest

from tf_largebatch.norms import KERAS, per_example_gradient_norms
from tf_largebatch.norms.overrides import overridden_method, reached_methods

pytestmark = pytest.mark.quick_on_jax(
    "test_a_group_normalization_that_scales_in_its_own_way_is_refused", "test_a_kernel_that_is_no_variable_is_refused"
)

L = keras.layers
_ATTENTION = {"_apply_scores", "_calculate_score_mask", "_validate_inputs"}
_RECURRENT = {"_maybe_reset_dropout_masks", "dropout", "recurrent_dropout"}  # the rules read the cell's dropout

# Methods that run within the rule as the layer's class has them and apply no variable: an override is measured.
OWN_CODE = {
    L.BatchNormalization: {"_moments", "_renorm_correction_and_moments", "_update_renorm_statistics"},
    L.GroupNormalization: {"_reshape_into_groups"},
    L.Attention: _ATTENTION,
    L.AdditiveAttention: _ATTENTION,
    L.STFTSpectrogram: {"_adjust_shapes"},
    **{cls: _RECURRENT for cls in (L.RNN, L.SimpleRNN, L.LSTM, L.GRU, L.ConvLSTM1D, L.ConvLSTM2D, L.ConvLSTM3D)},
}


def _defined_in(cls: type) -> dict[str, list[ast.FunctionDef]]:
    """The functions in the source of a class and of the classes above it, below Layer, by name."""
    found: dict[str, list[ast.FunctionDef]] = {}
    for base in cls.__mro__:
        if base is keras.layers.Layer:
            break
        if base.__module__ == "builtins":
            continue
        tree = ast.parse(textwrap.dedent(inspect.getsource(base)))
        for node in tree.body[0].body:
            if isinstance(node, ast.FunctionDef):
                found.setdefault(node.name, []).append(node)
    return found


def _own_attributes(function: ast.FunctionDef) -> Iterator[str]:
    """The names in `self.name` and `super().name`."""
    for node in ast.walk(function):
        if isinstance(node, ast.Attribute):
            owner = node.value
            of_super = isinstance(owner, ast.Call) and isinstance(owner.func, ast.Name) and owner.func.id == "super"
            if of_super or (isinstance(owner, ast.Name) and owner.id == "self"):
                yield node.attr


def _reached(cls: type) -> set[str]:
    defined = _defined_in(cls)
    reached, todo = set(), ["call"]
    while todo:
        name = todo.pop()
        if name not in reached and name in defined:
            reached.add(name)
            todo += [attribute for function in defined[name] for attribute in _own_attributes(function)]
    return reached


def _keras_classes() -> list[type]:
    return [cls for cls in KERAS.layer_classes() if cls.__module__.startswith("keras.")]


@pytest.mark.parametrize("cls", _keras_classes(), ids=lambda cls: cls.__name__)
def test_every_method_that_call_reaches_is_found(cls: type) -> None:
    reached = _reached(cls)
    assert "call" in reached
    assert reached <= set(reached_methods(cls))


@pytest.mark.parametrize("cls", _keras_classes(), ids=lambda cls: cls.__name__)
def test_a_subclass_that_overrides_such_a_method_has_no_rule(cls: type) -> None:
    guarded = KERAS._entries[cls].methods
    if not guarded:
        return  # the rule runs the layer's own call
    assert overridden_method(type("Subclass", (cls,), {}), cls, guarded) is None
    for method in _reached(cls) - OWN_CODE.get(cls, set()):
        override = type("Subclass", (cls,), {method: lambda self, *args, **kwargs: None})
        assert overridden_method(override, cls, guarded) == method, "guard it, or name it in OWN_CODE"


def test_a_group_normalization_that_scales_in_its_own_way_is_refused() -> None:
    class OnePlusGamma(L.GroupNormalization):
        def _apply_normalization(self, reshaped_inputs: Any, input_shape: Any) -> Any:
            normalized = super()._apply_normalization(reshaped_inputs, input_shape)
            return normalized * 2.0 if self.scale else normalized

    layer = OnePlusGamma(2)
    layer.build((None, 4))
    assert KERAS.why_not(layer) == "OnePlusGamma overrides GroupNormalization._apply_normalization"


def test_a_kernel_that_is_no_variable_is_refused() -> None:
    model = keras.Sequential([keras.Input((4,)), L.Dense(3, name="head")])
    model.layers[0]._kernel = keras.ops.ones([4, 3])
    x, y = np.ones((2, 4), "float32"), np.zeros((2, 3), "float32")
    with pytest.raises(ValueError, match=r"/head' computes with a tensor where its class has a variable"):
        per_example_gradient_norms(model, x, y, "mse")
