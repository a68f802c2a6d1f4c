"""The search for the largest micro-batch: what it finds and how often it measures."""

from __future__ import annotations

import math

import pytest

from tf_largebatch.core.micro_batch_sizes import _guess, divisors, largest_size, largest_that_fits


def test_divisors():
    assert divisors(12) == [1, 2, 3, 4, 6, 12] and divisors(1) == [1] and divisors(49) == [1, 7, 49]


@pytest.mark.parametrize(
    ("batch_size", "fits", "settings", "expected"),
    [
        (4096, 1000, {}, 512),
        (4096, 5000, {}, 4096),
        (4096, 0.5, {}, None),
        (1000, 300, {}, 250),
        (997, 400, {}, 333),  # a prime: three parts of nearly equal size
        (997, 400, {"equal": True}, 1),
        (997, 400, {"multiple_of": 2}, 334),
        (15, 10, {}, 5),  # three equal ones, of half of what fits
        (15, 11, {}, 8),
        (96, 50, {"multiple_of": 32}, 32),
        (96, 20, {"multiple_of": 32}, None),
        (1000, 300, {"multiple_of": 8}, 200),
    ],
)
def test_the_largest_size(batch_size, fits, settings, expected):
    assert largest_size(batch_size, fits, **settings) == expected


@pytest.mark.parametrize("batch_size", [1, 7, 512, 997, 98304])
@pytest.mark.parametrize(("fixed", "of_example"), [(0, 1), (50, 1), (500, 0.1), (10, 37)])
@pytest.mark.parametrize("limit", [60, 200, 1100, 5000])
@pytest.mark.parametrize("told", [True, False])
def test_an_affine_memory_is_found_with_few_measurements(batch_size, fixed, of_example, limit, told):
    measured = []

    def memory(size):
        measured.append(size)
        need = max(2 * fixed, fixed + of_example * size)
        return need if told or need < 4 * limit else math.inf

    fits = (limit - fixed) / of_example if 2 * fixed <= limit else 0
    found = largest_that_fits(memory, batch_size, limit)
    assert found == largest_size(batch_size, fits) or (found is not None and memory(found) <= limit)
    assert len(measured) <= (1 if fits >= batch_size else 7)
    if found is not None:
        assert found in measured  # it is never only predicted
        assert 2 * found >= min(fits, batch_size) // 2


def test_a_size_that_fitted_before_is_tried_first():
    measured = []
    assert largest_that_fits(lambda size: measured.append(size) or size, 64, 40, first=16) == 16
    assert measured == [16]
    assert largest_that_fits(lambda size: size, 64, 10, first=16) == 8


@pytest.mark.parametrize(
    ("need", "expected"),
    [
        ({8: 30, 64: 100}, 24),  # on the line between one that fits and one that does not
        ({2: 1, 8: 30, 64: 100, 128: 999}, 24),  # of several, those next to the limit
        ({8: 50, 64: 100}, 8),  # what takes all there is fits
        ({8: 50, 64: math.inf}, 32),
        ({4: 10, 8: 20, 64: math.inf}, 20),  # on the line through the two that fit
        ({2: 1, 4: 10, 8: 20, 64: math.inf}, 20),
        ({4: 10, 8: 20, 19: math.inf}, 18),  # but below what fails
        ({4: 10, 8: 10, 64: math.inf}, 63),
        ({4: 10, 64: math.inf}, 16),  # one that fits says no more than that four times it may
        ({32: 10, 64: math.inf}, 63),
        ({64: 100}, 4),
        ({64: math.inf}, 4),
        ({16: 55, 64: 100}, 16 - 5 / (45 / 48)),  # on the line through the two that fail
        ({16: 55, 64: 100, 128: 999}, 16 - 5 / (45 / 48)),
        ({32: 80.5, 64: 112.5}, 1.5),
        ({3: 60, 5: 70}, 1),
        ({33: 82, 65: 114}, 1),
        ({4: math.inf, 8: 54, 16: 62}, 1),  # the line says 4, which fails
        ({80: 60, 1280: 60}, 5),  # memory that is flat
        ({32: 60, 64: 61}, 2),
        ({16: 60}, 1),
        ({24: 60}, 1.5),
        ({2: 60}, 1),
        ({1: 60}, 0),
        ({1: 60, 4: 70}, 0),
    ],
)
def test_what_is_tried_next(need, expected):
    assert _guess(need, 50) == pytest.approx(expected)


@pytest.mark.parametrize(("first", "expected"), [(None, [64, 4, 16]), (16, [16])])
def test_a_size_that_takes_all_there_is_fits(first, expected):
    measured = []
    assert largest_that_fits(lambda size: measured.append(size) or size, 64, 16, first=first) == 16
    assert measured == expected


def test_the_most_measurements():
    measured = []
    assert largest_that_fits(lambda size: measured.append(size) or size, 64, 10, tries=2) == 4
    assert measured == [64, 4]
    assert largest_that_fits(lambda size: size, 64, 10, tries=3) == 8  # the larger one of two that fit
    measured.clear()
    # Each guess on the line fails by a hair.
    assert largest_that_fits(lambda size: measured.append(size) or (10 if size < 40 else 51), 997, 50) < 40
    assert len(measured) == 6
