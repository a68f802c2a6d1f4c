"""How much memory there is for a training step, and the error where it is too little."""

from __future__ import annotations

import dataclasses
import math
import os
import pathlib
import re
from collections.abc import Mapping

from tf_largebatch.check import message, require

# An environment variable, since it says what this machine may give and not what a model is.
LIMIT = "TF_LARGEBATCH_MEMORY_LIMIT"
_NAMES = ("B", "KiB", "MiB", "GiB")
_UNITS = {"": 1, "k": 2**10, "m": 2**20, "g": 2**30, "t": 2**40}


class OutOfMemory(MemoryError):
    """A training step does not fit into the memory of a device."""


def given_limit(environ: Mapping[str, str] = os.environ) -> int | None:
    """Returns the bytes that a step may take by TF_LARGEBATCH_MEMORY_LIMIT; None where it is not set.

    Args:
        environ: The environment. The variable is a number of bytes, or one of KiB, MiB, GiB or TiB ("1.5GiB").

    Raises:
        ValueError: If it is none.
    """
    text = environ.get(LIMIT)
    if not text:
        return None
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([kmgt]?)(?:i?b)?\s*", text, re.IGNORECASE)
    rule = "a number of bytes above 0, such as 2000000000 or 1.5GiB"
    if match is None:
        raise ValueError(message(LIMIT, rule, text))
    limit = int(float(match[1]) * _UNITS[match[2].lower()])
    require(limit > 0, LIMIT, text, rule)
    return limit


def available_of_system() -> int:
    """Returns the bytes of main memory that no process uses."""
    try:
        text = pathlib.Path("/proc/meminfo").read_text()
    except OSError:  # not Linux
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    found = re.search(r"MemAvailable:\s*(\d+) kB", text)
    assert found is not None  # since Linux 3.14
    return 1024 * int(found[1])


def readable(size: float) -> str:
    """Returns a number of bytes in the unit that suits it, with two or three digits."""
    power = min(int(math.log(max(size, 1), 1024)), 3)
    number = size / 1024**power
    return f"{number:.3g} {_NAMES[power]}" if number < 1000 else f"{number:.0f} {_NAMES[power]}"


@dataclasses.dataclass(frozen=True)
class BatchMemory:
    """What a training step takes, by the number of examples that run at a time, and what there is.

    Attributes:
        largest: The largest power of two of examples that fits, at most the number asked about; None if not one does.
        fixed: Bytes that do not depend on the number of examples.
        of_example: Bytes of each example.
        limit: Bytes that there are.
        how: How that was found out.
    """

    largest: int | None
    fixed: float
    of_example: float
    limit: float
    how: str


def affine(need: Mapping[int, float]) -> tuple[float, float]:
    """Returns the fixed bytes and those of each example from what steps of different sizes take.

    Args:
        need: Bytes by number of examples. Of two sizes or more the smallest and the largest count; of one, all bytes
            are the examples'.
    """
    sizes = sorted(size for size, bytes_ in need.items() if math.isfinite(bytes_))
    first, last = sizes[0], sizes[-1]
    if first == last:
        return 0.0, need[first] / first
    of_example = max((need[last] - need[first]) / (last - first), 0.0)
    return max(need[first] - first * of_example, 0.0), of_example


def power_of_two_below(number: float) -> int:
    """Returns the largest power of two that is at most a number of 1 or more."""
    return 2 ** int(math.log2(number))
