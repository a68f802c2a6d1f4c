"""What the arguments of ConAdvModel may be, and what happens when one is set later."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from typing import Any

from tf_largebatch.check import message, plain, require
from tf_largebatch.conadv.attack import ATTACKS
from tf_largebatch.core import pgd
from tf_largebatch.core.balls import BALLS


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _is_integer(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


# Below it a radius was meant in the units of images in [0, 1]: 0.1 there is 25 / 255.
_SMALLEST_RADIUS = 0.1
_NUMBER = (lambda v: _is_number(v) and v >= 0, "a finite number of 0 or more")

# name: what its value must fulfil, and that in words.
_RULES: dict[str, tuple[Callable[[Any], bool], str]] = {
    "epsilon": _NUMBER,
    "adversarial_weight": _NUMBER,
    "step_size": (lambda v: v is None or (_is_number(v) and v >= 0), "a finite number of 0 or more, or None"),
    "num_steps": (lambda v: _is_integer(v) and v >= 1, "a positive integer"),
    "staleness": (lambda v: _is_integer(v) and v >= 0, "an integer of 0 or more"),
    "targeted": (lambda v: isinstance(v, bool), "True or False"),
    "random_start": (lambda v: _is_number(v) and 0 <= v <= 1, "a probability in [0, 1]"),
    "augment": (lambda v: v is None or callable(v), "a Keras layer, another callable or None"),
    "num_classes": (lambda v: v is None or (_is_integer(v) and v >= 2), "an integer of 2 or more, or None"),
    "attack": (lambda v: v in ATTACKS, f"one of {', '.join(map(repr, ATTACKS))}"),
    "norm": (lambda v: v in BALLS, f"one of {', '.join(map(repr, BALLS))}"),
    "seed": (_is_integer, "an integer"),
}

# What the model's variables and snapshots depend on.
_FIXED = ("staleness", "augment", "attack", "num_classes")
# Read by the traced step from a variable: a new value needs no new trace.
VARIABLES = ("epsilon", "step_size", "adversarial_weight")
# Read while the step is traced: a new value traces it anew.
TRACED = ("num_steps", "targeted", "random_start", "norm", "seed", "value_range")


def check_argument(name: str, value: Any) -> Any:
    """Returns the value of an argument as plain Python.

    Raises:
        ValueError: If it is out of its range; see `ConAdvModel`.
    """
    if name == "value_range":
        return plain_range(value)
    if name not in _RULES:
        return value
    value = plain(value)
    holds, rule = _RULES[name]
    require(holds(value), name, value, rule)
    return value


def check_arguments(
    *,
    epsilon: Any,
    step_size: Any,
    num_steps: Any,
    staleness: Any,
    targeted: Any,
    random_start: Any,
    adversarial_weight: Any,
    augment: Any,
    num_classes: Any,
    attack: Any,
    norm: Any,
    seed: Any,
) -> None:
    """Raises ValueError if one of the arguments is out of its range; see `ConAdvModel`."""
    for name, value in dict(locals()).items():
        check_argument(name, value)


def warn_of_unit(epsilon: Any) -> None:
    """Warns of a radius that is a fraction of one step of a pixel, as in the units of other libraries.

    Args:
        epsilon: The radius, in units of 1/255.
    """
    if 0 < epsilon < _SMALLEST_RADIUS:
        text = f"epsilon={epsilon:.3g} is in units of 1/255, so that images hardly change: {epsilon * 255:.3g}/255 is "
        warnings.warn(f"{text}epsilon={epsilon * 255:.3g}.", stacklevel=4)


def check_fixed(name: str, value: Any, present: Any) -> None:
    """Raises ValueError if an argument that cannot change any more is set to another value."""
    if name in _FIXED and value is not present and value != present:
        raise ValueError(message(name, f"the {present!r} of the constructor", value, "make a new ConAdvModel"))


def plain_range(value_range: Any) -> list[Any]:
    """Returns the range as lists of floats: [lower, upper], or one such list for each channel.

    Raises:
        ValueError: Unless every pair is of finite numbers with lower < upper.
    """
    lower, upper = pgd.bounds(value_range)
    if isinstance(lower, float):
        return [lower, upper]
    return [[float(a), float(b)] for a, b in value_range]
