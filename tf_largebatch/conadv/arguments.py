"""What the arguments of ConAdvModel may be."""

from __future__ import annotations

import math
from typing import Any

from tf_largebatch.core import pgd as attacks


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
    """Raises:
    ValueError: if one of the arguments is out of its range; see `ConAdvModel`.
    """
    for name, value in {"epsilon": epsilon, "adversarial_weight": adversarial_weight}.items():
        if not _is_number(value) or value < 0:
            raise ValueError(f"{name} must be a finite number of 0 or more, got {name}={value!r}.")
    if step_size is not None and (not _is_number(step_size) or step_size < 0):
        raise ValueError(f"step_size must be a finite number of 0 or more, or None, got step_size={step_size!r}.")
    if not _is_integer(num_steps) or num_steps < 1:
        raise ValueError(f"num_steps must be a positive integer, got num_steps={num_steps!r}.")
    if not _is_integer(staleness) or staleness < 0:
        raise ValueError(f"staleness must be an integer of 0 or more, got staleness={staleness!r}.")
    if not isinstance(targeted, bool):
        raise ValueError(f"targeted must be True or False, got targeted={targeted!r}.")
    if not _is_number(random_start) or not 0 <= random_start <= 1:
        raise ValueError(f"random_start must be a probability in [0, 1], got random_start={random_start!r}.")
    if augment is not None and not callable(augment):
        raise ValueError(f"augment must be a Keras layer, another callable or None, got augment={augment!r}.")
    if num_classes is not None and (not _is_integer(num_classes) or num_classes < 2):
        raise ValueError(f"num_classes must be an integer of 2 or more, or None, got num_classes={num_classes!r}.")
    if attack not in ("pgd", "noise"):
        raise ValueError(f"attack must be 'pgd' or 'noise', got attack={attack!r}.")
    if norm not in ("linf", "l2"):
        raise ValueError(f"norm must be 'linf' or 'l2', got norm={norm!r}.")
    if not _is_integer(seed):
        raise ValueError(f"seed must be an integer, got seed={seed!r}.")


def plain_range(value_range: Any) -> list[Any]:
    """The range as lists of floats: [lower, upper], or one such list for each channel.

    Raises:
        ValueError: unless every pair is of finite numbers with lower < upper.
    """
    lower, upper = attacks.bounds(value_range)
    if isinstance(lower, float):
        return [lower, upper]
    return [[float(a), float(b)] for a, b in value_range]


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _is_integer(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)
