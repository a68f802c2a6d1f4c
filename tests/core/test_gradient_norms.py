"""Norms packed into one vector and back."""

from __future__ import annotations

import dataclasses

import keras
import numpy as np
import pytest
from keras import ops

from tf_largebatch.core.gradient_norms import GradientNorms


def test_unknown_norms_are_zero_and_marked():
    norms = GradientNorms.pack([ops.convert_to_tensor(2.0, "float16"), None, ops.convert_to_tensor(3.0)])
    np.testing.assert_array_equal(norms.values, [2.0, 0.0, 3.0])
    assert keras.backend.standardize_dtype(norms.values.dtype) == "float32" and norms.known == (True, False, True)
    assert [None if norm is None else float(norm) for norm in norms.unpack()] == [2.0, None, 3.0]


def test_packed_norms_do_not_change():
    with pytest.raises(dataclasses.FrozenInstanceError):
        GradientNorms.pack([None]).known = (True,)


def test_no_tensors_at_all():
    norms = GradientNorms.pack([])
    assert norms.values.shape == (0,) and norms.known == () and norms.unpack() == []
