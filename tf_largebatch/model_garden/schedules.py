"""What is wrong with a learning-rate schedule or a warmup, after the null fields have been derived."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

from tf_largebatch.model_garden.refusals import is_integer, is_number, require

PATH = "trainer.optimizer_config"
# Fields that may stay null: Model Garden then takes false.
_MAY_BE_NULL = ("staircase",)


def _rate(value: Any) -> bool:
    return is_number(value) and value >= 0


def _rates(values: Any) -> bool:
    return isinstance(values, list | tuple) and all(map(_rate, values))


def _increasing(values: Any) -> bool:
    return (
        isinstance(values, list | tuple)
        and all(is_integer(v, 1) for v in values)
        and all(a < b for a, b in itertools.pairwise(values))
    )


_RATE = (_rate, "a finite number of 0 or more")
_STEPS = (lambda value: is_integer(value, 1), "an integer of 1 or more")
RULES: dict[str, tuple[Callable[[Any], bool], str]] = {
    "learning_rate": _RATE,
    "initial_learning_rate": _RATE,
    "end_learning_rate": _RATE,
    "warmup_learning_rate": _RATE,
    "pre_offset_learning_rate": _RATE,
    "decay_rate": _RATE,
    "values": (_rates, "a list of finite numbers of 0 or more"),
    "boundaries": (_increasing, "a list of increasing integers of 1 or more"),
    "decay_steps": _STEPS,
    "total_decay_steps": _STEPS,
    "warmup_steps": _STEPS,
    "offset": (lambda value: is_integer(value, 0), "an integer of 0 or more"),
    "power": (is_number, "a finite number"),
    "alpha": (lambda value: is_number(value) and 0 <= value <= 1, "a number from 0 to 1"),
    "linear_decay_fraction": (lambda value: is_number(value) and 0 < value <= 1, "a number above 0 and at most 1"),
}


def check_schedules(config: Any) -> None:
    """Raises for a field of the chosen schedule or warmup that is null or out of its range.

    Args:
        config: The `OptimizationConfig`, derived.

    Raises:
        ConfigurationError: If there is one. The message names the field.
    """
    for part in ("learning_rate", "warmup"):
        chosen = getattr(config, part)
        if chosen.type is None:
            continue
        section, path = chosen.get(), f"{PATH}.{part}.{chosen.type}"
        for name, value in vars(section).items():
            if name in (*section.RESERVED_ATTR, *_MAY_BE_NULL):
                continue
            allowed, rule = RULES.get(name, (lambda value: value is not None, "given"))
            require(allowed(value), f"{path}.{name}", value, rule)
        if chosen.type == "stepwise":
            count = len(section.boundaries) + 1
            require(
                len(section.values) == count,
                f"{path}.values",
                section.values,
                f"{count} learning rates, one more than boundaries",
            )
