"""The optimizers of a study: one row each."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any

import keras

from tf_largebatch.optimizers import CLARS, LARS
from tf_largebatch.study.denominators import cap_of, make_clars


@dataclasses.dataclass(frozen=True)
class Row:
    """How a study makes an optimizer.

    Attributes:
        make: From the hyper-parameters, the learning-rate schedule and the batch size.
        parameters: Names of the hyper-parameters that `make` and the schedule understand.
        required: Those without a default.
        either: Those of which exactly one must be given.
        traced: For each attribute of the optimizer that a compiled program takes as an input, its value at a point.
            Points that differ in these and in the learning rate alone share a program.
        compiled_in: Names of the hyper-parameters that a compiled program is made for.
        measures_norms: Whether the optimizer needs per-example gradient norms.
    """

    make: Callable[[Mapping[str, Any], Any, int], keras.optimizers.Optimizer]
    parameters: frozenset[str]
    required: frozenset[str]
    either: tuple[str, ...] = ()
    traced: Mapping[str, Callable[[Mapping[str, Any]], float]] = dataclasses.field(default_factory=dict)
    compiled_in: frozenset[str] = frozenset()
    measures_norms: bool = False


_COMMON = frozenset({"learning_rate", "power", "weight_decay", "micro_batch_size"})
_LAYERWISE = _COMMON | {
    "adapted_learning_rate",
    "eta",
    "max_rate",
    "unadapted_rate_factor",
    "momentum",
    "nesterov",
    "classic_momentum",
}


def _eta(point: Mapping[str, Any]) -> float:
    return float(point["eta"] if "eta" in point else point["adapted_learning_rate"] / point["learning_rate"])


def _cap(name: str) -> Callable[[Mapping[str, Any]], float]:
    def value(point: Mapping[str, Any]) -> float:
        cap = cap_of(point, name)
        return math.inf if cap is None else cap

    return value


def _given(name: str, default: float) -> Callable[[Mapping[str, Any]], float]:
    return lambda point: float(point.get(name, default))


def _layerwise(cls: type) -> Callable[[Mapping[str, Any], Any, int], keras.optimizers.Optimizer]:
    """Returns an optimizer with layer-wise rates.

    `learning_rate` times `unadapted_rate_factor`, 1 unless given, is the rate of the tensors without adaptation,
    `adapted_learning_rate` the product of learning rate and `eta` that the adapted tensors take: the two are searched
    apart. With `eta` in its place they move together.
    """

    def make(point: Mapping[str, Any], schedule: Any, batch_size: int) -> keras.optimizers.Optimizer:
        return (make_clars(point, batch_size) if cls is CLARS else cls)(
            schedule,
            eta=_eta(point),
            max_rate=cap_of(point, "max_rate"),
            unadapted_rate_factor=point.get("unadapted_rate_factor", 1.0),
            momentum=point.get("momentum", 0.9),
            nesterov=point.get("nesterov", False),
            classic_momentum=point.get("classic_momentum", True),
            weight_decay_rate=point.get("weight_decay", 0.0),
        )

    return make


def _sgd(point: Mapping[str, Any], schedule: Any, batch_size: int) -> keras.optimizers.Optimizer:
    del batch_size
    return keras.optimizers.SGD(
        schedule, momentum=point.get("momentum", 0.9), nesterov=True, weight_decay=point.get("weight_decay", 0.0)
    )


def _adaptive(cls: type) -> Callable[[Mapping[str, Any], Any, int], keras.optimizers.Optimizer]:
    def make(point: Mapping[str, Any], schedule: Any, batch_size: int) -> keras.optimizers.Optimizer:
        del batch_size
        moments = {name: point[name] for name in ("beta_1", "beta_2", "epsilon") if name in point}
        return cls(schedule, weight_decay=point.get("weight_decay", 0.0), **moments)

    return make


def _muon(point: Mapping[str, Any], schedule: Any, batch_size: int) -> keras.optimizers.Optimizer:
    del batch_size
    # Keras's Muon updates tensors of two axes alone; convolution kernels and vectors take its AdamW.
    return keras.optimizers.Muon(
        schedule,
        weight_decay=point.get("weight_decay", 0.0),
        adam_weight_decay=point.get("weight_decay", 0.0),
        adam_lr_ratio=point.get("adam_lr_ratio", 1.0),
    )


_RATE = frozenset({"learning_rate"})
_ADAPTED = ("adapted_learning_rate", "eta")
_MOMENTS = _COMMON | {"beta_1", "beta_2", "epsilon"}
_DECAY = {"weight_decay": _given("weight_decay", 0.0)}
_LAYERWISE_TRACED = {
    "eta": _eta,
    "max_rate": _cap("max_rate"),
    "weight_decay_rate": _given("weight_decay", 0.0),
    "unadapted_rate_factor": _given("unadapted_rate_factor", 1.0),
}
_ADAPTIVE_TRACED = {**_DECAY, "beta_1": _given("beta_1", 0.9), "beta_2": _given("beta_2", 0.999)}
_MUON_TRACED = {
    **_DECAY,
    "adam_weight_decay": _given("weight_decay", 0.0),
    "adam_lr_ratio": _given("adam_lr_ratio", 1.0),
}
_STRUCTURE = frozenset({"momentum", "nesterov", "classic_momentum"})

OPTIMIZERS: dict[str, Row] = {
    "sgd": Row(_sgd, _COMMON | {"momentum"}, _RATE, traced=_DECAY, compiled_in=frozenset({"momentum"})),
    "lars": Row(_layerwise(LARS), _LAYERWISE, _RATE, _ADAPTED, _LAYERWISE_TRACED, _STRUCTURE),
    "clars": Row(
        _layerwise(CLARS),
        _LAYERWISE | {"norm_exponent", "max_agreement", "norm_examples", "denominator", "signal_floor"},
        _RATE,
        _ADAPTED,
        {**_LAYERWISE_TRACED, "norm_exponent": _given("norm_exponent", 1.0), "max_agreement": _cap("max_agreement")},
        _STRUCTURE | {"norm_examples", "denominator", "signal_floor"},
        measures_norms=True,
    ),
    "lamb": Row(
        _adaptive(keras.optimizers.Lamb), _MOMENTS, _RATE, traced=_ADAPTIVE_TRACED, compiled_in=frozenset({"epsilon"})
    ),
    "muon": Row(_muon, _COMMON | {"adam_lr_ratio"}, _RATE, traced=_MUON_TRACED),
    "adamw": Row(
        _adaptive(keras.optimizers.AdamW), _MOMENTS, _RATE, traced=_ADAPTIVE_TRACED, compiled_in=frozenset({"epsilon"})
    ),
}


def make_optimizer(
    name: str, point: Mapping[str, Any], schedule: Any, model: keras.Model, batch_size: int
) -> keras.optimizers.Optimizer:
    """Returns the optimizer of a trial; tensors of fewer than two dimensions get no weight decay from any optimizer."""
    optimizer = OPTIMIZERS[name].make(point, schedule, batch_size)
    if not isinstance(optimizer, (LARS, CLARS)):
        optimizer.exclude_from_weight_decay(var_list=[v for v in model.trainable_variables if len(v.shape) < 2])
    return optimizer
