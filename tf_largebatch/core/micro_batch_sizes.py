"""Which micro-batch fits into memory: the sizes that come into question, and a search with few measurements.

The memory of a step whose batch of B examples runs in micro-batches of m is nearly affine in m,

    memory(m) ~ fixed + m * per_example

above some size, and flat below it, where something else is the largest (the update, say). Such a function is convex:
a size on the line between one that fits and one that does not fits too, as a rule.
"""

from __future__ import annotations

import math
from collections.abc import Callable


def divisors(number: int) -> list[int]:
    """Returns the divisors of a positive integer, ascending."""
    low = [i for i in range(1, math.isqrt(number) + 1) if number % i == 0]
    return low + [number // i for i in reversed(low) if i * i != number]


def largest_size(batch_size: int, fits: float, multiple_of: int = 1, equal: bool = False) -> int | None:
    """Returns the largest micro-batch of at most `fits` examples that splits a batch well; None if there is none.

    A divisor of the batch makes micro-batches of equal size, one program. Where the largest divisor is less than half
    of what fits, the batch is split into as few micro-batches as possible, of nearly equal size.

    Args:
        batch_size: Number of examples of the batch.
        fits: How many examples fit, as far as is known.
        multiple_of: What the size must be a multiple of, such as the number of devices that share each micro-batch.
        equal: Whether all micro-batches must be of one size.
    """
    fits = math.floor(min(fits, batch_size) / multiple_of) * multiple_of
    if fits <= 0:
        return None
    good = [size for size in divisors(batch_size) if size <= fits and size % multiple_of == 0]
    divisor = good[-1] if good else None
    if equal or (divisor is not None and 2 * divisor >= fits):
        return divisor
    number = math.ceil(batch_size / fits)
    size = math.ceil(batch_size / number / multiple_of) * multiple_of
    return size if size <= fits else divisor


def largest_that_fits(
    memory: Callable[[int], float],
    batch_size: int,
    limit: float,
    multiple_of: int = 1,
    equal: bool = False,
    first: int | None = None,
    tries: int = 6,
) -> int | None:
    """Returns the largest micro-batch whose step fits; None if the smallest one does not.

    It measures the whole batch, then a small micro-batch, then the size on the line between them: one measurement where
    the whole batch fits, three as a rule where it does not. What it returns has been measured.

    Args:
        memory: Bytes that the step takes with micro-batches of this size, of the batch's size for no split; inf if that
            cannot be told because there is not enough to find out.
        batch_size: Number of examples of the batch.
        limit: Bytes that there are.
        multiple_of: As for `largest_size`.
        equal: As for `largest_size`.
        first: The size to begin with, such as one that fitted before; by default the whole batch.
        tries: The most measurements, as long as a size that fits is known.
    """
    need: dict[int, float] = {}
    guess = largest_size(batch_size, first or batch_size, multiple_of, equal)
    while guess is not None and guess not in need:
        need[guess] = memory(guess)
        fitting = max((size for size, bytes_ in need.items() if bytes_ <= limit), default=None)
        if fitting == batch_size or (fitting is not None and (len(need) >= tries or fitting == first)):
            return fitting
        guess = largest_size(batch_size, _guess(need, limit), multiple_of, equal)
    return max((size for size, bytes_ in need.items() if bytes_ <= limit), default=None)


def _guess(need: dict[int, float], limit: float) -> float:
    """Estimates how many examples fit, by the straight line through two of the known points."""
    known = sorted((size, bytes_) for size, bytes_ in need.items() if math.isfinite(bytes_))
    failing = min(size for size, bytes_ in need.items() if bytes_ > limit)
    below = [point for point in known if point[1] <= limit]
    above = [point for point in known if point[1] > limit]
    if below and above:
        return _crossing(below[-1], above[0], limit)
    if len(below) > 1:  # where it fails nothing is known
        return min(_crossing(below[-2], below[-1], limit), failing - 1)
    if below:
        return min(4 * below[0][0], failing - 1)
    smaller = failing / 16
    if len(above) > 1:
        crossing = _crossing(above[0], above[1], limit)
        smaller = crossing if 1 <= crossing < failing else failing / 16
    return smaller if smaller >= 1 else (1 if failing > 1 else 0)


def _crossing(a: tuple[int, float], b: tuple[int, float], limit: float) -> float:
    slope = (b[1] - a[1]) / (b[0] - a[0])
    return math.inf if slope <= 0 else a[0] + (limit - a[1]) / slope
