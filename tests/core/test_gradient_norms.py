"""Norms packed into one vector and back."""

from __future__ import annotations

import numpy as np
import tensorflow as tf

from tf_largebatch.core.gradient_norms import GradientNorms


def test_unknown_norms_are_zero_and_marked():
    norms = GradientNorms.pack([tf.constant(2.0, tf.float16), None, tf.constant(3.0)])
    np.testing.assert_array_equal(norms.values, [2.0, 0.0, 3.0])
    assert norms.values.dtype == tf.float32 and norms.known == (True, False, True)
    assert [None if norm is None else float(norm) for norm in norms.unpack()] == [2.0, None, 3.0]


def test_no_tensors_at_all():
    norms = GradientNorms.pack([])
    assert norms.values.shape == (0,) and norms.known == () and norms.unpack() == []
