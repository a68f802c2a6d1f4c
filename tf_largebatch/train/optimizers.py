"""The optimizers of the command line: one row of `OPTIMIZERS` each.

To add an optimizer, write its class and add a row: its defaults, the flags that it takes, and whether it reads
per-example gradient norms.
"""

from __future__ import annotations

import dataclasses
import difflib
import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import keras

from tf_largebatch.check import message
from tf_largebatch.core import defaults
from tf_largebatch.core.schedules import WarmupPolynomialDecay, linear_scaling, sqrt_scaling
from tf_largebatch.optimizers import CLARS, LARS
from tf_largebatch.train.flag import flag

SCALINGS: dict[str, Callable[[float, int, int], float]] = {
    "linear": linear_scaling,
    "sqrt": sqrt_scaling,
    "none": lambda rate, batch_size, base: rate,
}


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
    """The optimizer and its learning-rate schedule."""

    name: str = flag("clars", "clars, lars, lamb, sgd, or another Keras optimizer.", name="optimizer")
    base_learning_rate: float | None = flag(
        None, "Learning rate for batches of --base_batch_size; default: by optimizer, written to config.json."
    )
    base_batch_size: int = flag(128, "Batch size that --base_learning_rate is meant for.")
    scaling: str | None = flag(
        None,
        "How the learning rate grows with the batch size; default: by optimizer, written to config.json.",
        tuple(SCALINGS),
    )
    warmup_epochs: float = flag(0.0, "Epochs of linear warmup.")
    power: float = flag(defaults.POWER, "Power of the polynomial decay of the learning rate.")
    end_learning_rate: float = flag(defaults.END_LEARNING_RATE, "Learning rate at the end.")
    momentum: float | None = flag(None, "Momentum, for optimizers that have it; default: 0.9.")
    weight_decay_rate: float | None = flag(
        None,
        "Weight decay of tensors of two or more dimensions; default: by optimizer, written to config.json.",
    )
    eta: float | None = flag(
        None, "Trust coefficient of clars and lars; default: by optimizer, written to config.json."
    )
    max_rate: float | None = flag(
        None,
        "Cap on the layer-wise rates of clars and lars, inf for none; default: by optimizer, written to config.json.",
    )
    unadapted_rate_factor: float | None = flag(
        None,
        "For clars and lars: factor on the learning rate of tensors without layer adaptation; default: by "
        "optimizer, written to config.json.",
    )
    norm_exponent: float | None = flag(
        None,
        "For clars: exponent q of the per-example norms s in the denominator ||g||^(1-q) s^q, from 0 to 1; default: 1.",
    )
    max_agreement: float | None = flag(
        None,
        "For clars: cap on the agreement of the examples' gradients, ||g|| / s, inf for none; default: written to "
        "config.json.",
    )
    clip_norm: float | None = flag(
        None, "Scale each update's gradient down to this norm, over all tensors, where it is longer; default: do not."
    )
    ema_momentum: float | None = flag(
        None,
        "Evaluate and save an exponential moving average of the weights, with this momentum, such as 0.99; default: "
        "the weights themselves.",
    )
    classic_momentum: bool | None = flag(
        None, "For clars and lars: multiply by the learning rate inside the velocity; default: yes."
    )


@dataclasses.dataclass(frozen=True)
class Defaults:
    """Values of the flags that are not given; `base_learning_rate` is meant for batches of 128 images."""

    base_learning_rate: float
    scaling: str
    weight_decay_rate: float | None = None
    eta: float | None = None
    max_rate: float | None = None
    unadapted_rate_factor: float | None = None
    max_agreement: float | None = None


@dataclasses.dataclass(frozen=True)
class Optimizer:
    """A row of the table.

    Attributes:
        make: The class.
        defaults: Values of the flags that are not given.
        arguments: The flags that apply, besides those of the learning rate, and the constructor arguments that
            each of them sets.
        defaults_of: Other defaults for some data sets, by name.
        fixed: Constructor arguments that are no flags.
        reads_norms: Whether it reads per-example gradient norms, which `LargeBatchModel` measures.
        layerwise: Whether it has layer-wise rates to record.
    """

    make: Callable[..., keras.optimizers.Optimizer]
    defaults: Defaults
    arguments: Mapping[str, tuple[str, ...]]
    defaults_of: Mapping[str, Defaults] = dataclasses.field(default_factory=dict)
    fixed: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    reads_norms: bool = False
    layerwise: bool = False

    def defaults_on(self, dataset: str) -> Defaults:
        """Returns the defaults for a data set."""
        return self.defaults_of.get(dataset, self.defaults)


LAYERWISE_ARGUMENTS = {
    name: (name,)
    for name in ("momentum", "weight_decay_rate", "eta", "max_rate", "unadapted_rate_factor", "classic_momentum")
}
# Values of the flags that are not given, the same for every optimizer that takes them.
_COMMON_DEFAULTS = {"momentum": 0.9, "classic_momentum": True, "unadapted_rate_factor": 1.0, "norm_exponent": 1.0}


def _layerwise_defaults(chosen: defaults.LayerwiseDefaults) -> Defaults:
    """Returns the classes' own defaults, with the recipe's schedule and weight decay, for every batch size."""
    return Defaults(
        defaults.PEAK_LEARNING_RATE,
        "none",
        defaults.WEIGHT_DECAY_RATE,
        eta=chosen.eta,
        max_rate=chosen.max_rate,
        unadapted_rate_factor=chosen.unadapted_rate_factor,
        max_agreement=chosen.max_agreement if isinstance(chosen, defaults.CLARSDefaults) else None,
    )


def _keras_row(make: type, customary: Defaults, **defaults_of: Defaults) -> Optimizer:
    parameters = inspect.signature(make).parameters
    # Muon trains convolutions by Adam, with a weight decay of its own.
    names = {"momentum": ("momentum",), "weight_decay_rate": ("weight_decay", "adam_weight_decay")}
    arguments = {flag: tuple(name for name in taken if name in parameters) for flag, taken in names.items()}
    return Optimizer(make, customary, {flag: taken for flag, taken in arguments.items() if taken}, defaults_of)


def _other_keras_optimizers() -> dict[str, Optimizer]:
    # These are built from other optimizers, not from a learning rate.
    others = {"optimizer", "lossscaleoptimizer", "multioptimizer"}
    if "adam_weight_decay" not in inspect.signature(keras.optimizers.Muon).parameters:
        others.add("muon")  # that of Keras 3.12 fails in its first update on TensorFlow
    return {
        name.lower(): _keras_row(value, OTHER_DEFAULTS)
        for name, value in vars(keras.optimizers).items()
        if inspect.isclass(value) and issubclass(value, keras.optimizers.Optimizer) and name.lower() not in others
    }


# CLARS's and LARS's values are those of core/defaults.py. The others have customary values; adaptive optimizers scale
# with the square root of the batch size, as LAMB's authors do.
OTHER_DEFAULTS = Defaults(1e-3, "sqrt")
OPTIMIZERS: dict[str, Optimizer] = {
    "clars": Optimizer(
        CLARS,
        _layerwise_defaults(defaults.CLARS),
        {**LAYERWISE_ARGUMENTS, "norm_exponent": ("norm_exponent",), "max_agreement": ("max_agreement",)},
        # Measured norms or an error: the fallback to a replica's gradient norm would make it LARS.
        fixed={"gradient_norms": "per_example"},
        reads_norms=True,
        layerwise=True,
    ),
    "lars": Optimizer(
        LARS,
        _layerwise_defaults(defaults.LARS),
        LAYERWISE_ARGUMENTS,
        layerwise=True,
    ),
    **_other_keras_optimizers(),
    "sgd": _keras_row(keras.optimizers.SGD, Defaults(0.1, "linear", 2e-4)),
    "lamb": _keras_row(keras.optimizers.Lamb, Defaults(1e-3, "sqrt", 1e-2), digits=Defaults(5e-3, "sqrt", 1e-2)),
}


def canonical_name(name: str) -> str:
    """Returns the lower-case name of an optimizer.

    Raises:
        ValueError: If the table has no such row.
    """
    if name.lower() in OPTIMIZERS:
        return name.lower()
    near = difflib.get_close_matches(name.lower(), OPTIMIZERS, n=1)
    remedy = f"did you mean {near[0]}?" if near else ""
    raise ValueError(message("optimizer", f"one of {', '.join(OPTIMIZERS)}", name, remedy).replace("?.", "?"))


def with_defaults(config: OptimizerConfig, dataset: str) -> OptimizerConfig:
    """Fills in the defaults of the optimizer for a data set; arguments that do not apply stay None.

    Args:
        config: The arguments, with the canonical name.
        dataset: Name of the data set.
    """
    row = OPTIMIZERS[config.name]
    values = dataclasses.asdict(row.defaults_on(dataset))
    for name, value in _COMMON_DEFAULTS.items():
        if name in row.arguments and values.get(name) is None:
            values[name] = value
    missing = {name: value for name, value in values.items() if getattr(config, name) is None}
    return dataclasses.replace(config, **missing)


def build_schedule(
    config: OptimizerConfig, batch_size: int, epochs: int, steps_per_epoch: int
) -> WarmupPolynomialDecay:
    """Builds the learning rate: scaled to the batch size, with linear warmup and polynomial decay to the end.

    Args:
        config: The arguments, resolved.
        batch_size: Images in one update.
        epochs: Epochs of the run.
        steps_per_epoch: Updates of one epoch.
    """
    assert config.scaling is not None and config.base_learning_rate is not None  # they are resolved
    peak = SCALINGS[config.scaling](config.base_learning_rate, batch_size, config.base_batch_size)
    steps = steps_per_epoch * epochs
    return WarmupPolynomialDecay(
        peak_learning_rate=peak,
        total_steps=steps,
        warmup_steps=min(round(steps_per_epoch * config.warmup_epochs), steps - 1),
        power=config.power,
        end_learning_rate=min(config.end_learning_rate, peak),
    )


def build_optimizer(config: OptimizerConfig, schedule: Any, without_decay: Sequence[Any]) -> keras.optimizers.Optimizer:
    """Builds the optimizer.

    Args:
        config: The arguments, resolved.
        schedule: The learning rate.
        without_decay: Variables without weight decay: those that CLARS and LARS exclude by themselves, so that
            comparisons of optimizers are fair.
    """
    row = OPTIMIZERS[config.name]
    options: dict[str, Any] = {"learning_rate": schedule, **row.fixed}
    if config.clip_norm is not None:
        options["global_clipnorm"] = config.clip_norm
    if config.ema_momentum is not None:
        options.update(use_ema=True, ema_momentum=config.ema_momentum)
    for name, arguments in row.arguments.items():
        value = getattr(config, name)
        # No cap is a value too; of the other arguments None means the class's own default.
        if value is not None or name in ("max_rate", "max_agreement"):
            options.update(dict.fromkeys(arguments, None if value == math.inf else value))
    optimizer = row.make(**options)
    if not row.layerwise:
        optimizer.exclude_from_weight_decay(var_list=list(without_decay))
    return optimizer
