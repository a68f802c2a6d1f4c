"""Refusals have one form, and NumPy's scalars are numbers."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest

from tf_largebatch import check


def test_the_sentence():
    assert check.message("eta", "above 0", -1) == "eta must be above 0; received eta=-1."
    assert check.message("eta", "above 0", "x", "pass 0.01") == "eta must be above 0; received eta='x': pass 0.01."
    check.require(True, "eta", -1, "above 0")
    with pytest.raises(ValueError, match=re.escape("eta must be above 0; received eta=-1.")):
        check.require(False, "eta", -1, "above 0")
    with pytest.raises(FileExistsError, match="output_dir must be empty"):
        check.require(False, "output_dir", "x", "empty", error=FileExistsError)


@pytest.mark.parametrize("value", [np.float32(0.5), np.float16(0.5), np.array(0.5), np.int64(3), np.bool_(True)])
def test_numpys_scalars_become_pythons(value):
    found = check.plain(value)
    assert type(found) in (float, int, bool)
    assert found == value
    json.dumps(found)


def test_other_values_stay():
    for value in (None, "x", [np.float32(1)], np.ones(1), 0.5):
        assert check.plain(value) is value


@pytest.mark.parametrize("value", [0.5, np.float32(0.5), np.array(0.5)])
def test_numbers(value):
    found = check.number("eta", value, lambda v: v > 0, "above 0")
    assert type(found) is float
    assert found == 0.5


@pytest.mark.parametrize("value", [-1, float("nan"), np.float32(-1), "0.5", True, None, np.ones(1), 1j, [0.5]])
def test_what_is_no_number_in_the_range_is_refused(value):
    with pytest.raises(ValueError, match=r"^eta must be above 0; received eta="):
        check.number("eta", value, lambda v: v > 0, "above 0")


def test_flags():
    for value in (True, 1, np.bool_(True), np.array(True)):
        assert check.flag("nesterov", value) is True
    for value in (False, 0, np.bool_(False)):
        assert check.flag("nesterov", value) is False
    for value in ("False", None, 2, 0.5, np.ones(2)):
        with pytest.raises(ValueError, match=r"^nesterov must be True or False; received nesterov="):
            check.flag("nesterov", value)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("No space left on device", "No space left on device"),
        ("{{function_node __wrapped__X_device_/job:a}} corrupted record at 6 [Op:X] name:.", "corrupted record at 6"),
        (
            "Graph execution error:\n\nDetected at node Get defined at (most recent call last):\n"
            '  File "fit.py", line 9, in <module>\n\n\ncorrupted record at 6\n\t [[{{node Get}}]] [Op:__inference_1]',
            "corrupted record at 6",
        ),
        ("2 root error(s) found.", "2 root error(s) found"),
        ("", "OSError"),
    ],
)
def test_an_error_of_a_library_is_one_line(text, reason):
    assert check.reason_of(OSError(text)) == reason
