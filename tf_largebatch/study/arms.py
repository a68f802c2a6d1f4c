"""The optimizers of a study: one row each."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import keras

from tf_largebatch.optimizers import CLARS, LARS


@dataclasses.dataclass(frozen=True)
class Row:
    """How a study makes an optimizer.

    Attributes:
        make: From the hyper-parameters and the learning-rate schedule.
        parameters: Names of the hyper-parameters that `make` and the schedule understand.
        required: Those without a default.
        measures_norms: Whether the optimizer needs per-example gradient norms.
    """

    make: Callable[[Mapping[str, Any], Any], keras.optimizers.Optimizer]
    parameters: frozenset[str]
    required: frozenset[str]
    measures_norms: bool = False


_COMMON = frozenset({"learning_rate", "power", "weight_decay"})
_LAYERWISE = _COMMON | {"adapted_learning_rate", "max_rate", "momentum", "nesterov", "classic_momentum"}


def _layerwise(cls: type) -> Callable[[Mapping[str, Any], Any], keras.optimizers.Optimizer]:
    """An optimizer with layer-wise rates.

    `learning_rate` is that of the tensors without adaptation, `adapted_learning_rate` the product of learning rate and
    `eta` that the adapted tensors take: the two are searched apart.
    """

    def make(point: Mapping[str, Any], schedule: Any) -> keras.optimizers.Optimizer:
        cap = point.get("max_rate")
        extra = {"gradient_norms": "per_example"} if cls is CLARS else {}
        return cls(
            schedule,
            eta=point["adapted_learning_rate"] / point["learning_rate"],
            max_rate=None if cap in (None, "none") else cap,
            momentum=point.get("momentum", 0.9),
            nesterov=point.get("nesterov", False),
            classic_momentum=point.get("classic_momentum", True),
            weight_decay_rate=point.get("weight_decay", 0.0),
            **extra,
        )

    return make


def _sgd(point: Mapping[str, Any], schedule: Any) -> keras.optimizers.Optimizer:
    return keras.optimizers.SGD(
        schedule, momentum=point.get("momentum", 0.9), nesterov=True, weight_decay=point.get("weight_decay", 0.0)
    )


def _adaptive(cls: type) -> Callable[[Mapping[str, Any], Any], keras.optimizers.Optimizer]:
    def make(point: Mapping[str, Any], schedule: Any) -> keras.optimizers.Optimizer:
        moments = {name: point[name] for name in ("beta_1", "beta_2", "epsilon") if name in point}
        return cls(schedule, weight_decay=point.get("weight_decay", 0.0), **moments)

    return make


def _muon(point: Mapping[str, Any], schedule: Any) -> keras.optimizers.Optimizer:
    # Keras's Muon updates tensors of two axes alone; convolution kernels and vectors take its AdamW.
    return keras.optimizers.Muon(
        schedule,
        weight_decay=point.get("weight_decay", 0.0),
        adam_weight_decay=point.get("weight_decay", 0.0),
        adam_lr_ratio=point.get("adam_lr_ratio", 1.0),
    )


_RATE = frozenset({"learning_rate"})
_MOMENTS = _COMMON | {"beta_1", "beta_2", "epsilon"}

OPTIMIZERS: dict[str, Row] = {
    "sgd": Row(_sgd, _COMMON | {"momentum"}, _RATE),
    "lars": Row(_layerwise(LARS), _LAYERWISE, _RATE | {"adapted_learning_rate"}),
    "clars": Row(_layerwise(CLARS), _LAYERWISE, _RATE | {"adapted_learning_rate"}, measures_norms=True),
    "lamb": Row(_adaptive(keras.optimizers.Lamb), _MOMENTS, _RATE),
    "muon": Row(_muon, _COMMON | {"adam_lr_ratio"}, _RATE),
    "adamw": Row(_adaptive(keras.optimizers.AdamW), _MOMENTS, _RATE),
}


def make_optimizer(
    name: str, point: Mapping[str, Any], schedule: Any, model: keras.Model
) -> keras.optimizers.Optimizer:
    """The optimizer of a trial; tensors of fewer than two dimensions get no weight decay from any optimizer."""
    optimizer = OPTIMIZERS[name].make(point, schedule)
    if not isinstance(optimizer, (LARS, CLARS)):
        optimizer.exclude_from_weight_decay(var_list=[v for v in model.trainable_variables if len(v.shape) < 2])
    return optimizer
