"""A norm that overflows skips the step under dynamic loss scaling, as a gradient does."""

from __future__ import annotations

import keras
import numpy as np
import pytest
from keras import ops
from layerwise_cases import gradients, norms, variables
from paper_settings import paper

from tf_largebatch.core.gradient_norms import GradientNorms
from tf_largebatch.optimizers import CLARS
from tf_largebatch.training import loss_scaling


@pytest.mark.parametrize("bad", [float("inf"), float("nan"), None])
@pytest.mark.parametrize("half", [False, True])
def test_one_gradient_is_poisoned_if_a_norm_is_not_finite(bad, half):
    some = [ops.cast(g, "float16" if half else "float32") for g in gradients(1)[0]]
    values = ops.convert_to_tensor(np.array([1.0, bad or 2.0, 3.0], "float32"))
    found = loss_scaling.agree_on_overflow([*some, None], GradientNorms(values, (True,) * 3))
    assert found[-1] is None
    assert [keras.backend.standardize_dtype(g.dtype) for g in found[:3]] == ["float16" if half else "float32"] * 3
    finite = [bool(np.isfinite(ops.convert_to_numpy(g)).all()) for g in found[:3]]
    assert finite == [True, bad is None, True]  # the bias, the smallest
    assert loss_scaling.agree_on_overflow(some) == some


@pytest.mark.parametrize("bad", [float("inf"), None])
@pytest.mark.parametrize("count", [3, 1])
def test_the_step_is_skipped_and_the_scale_halved(bad, count):
    """Also where the step updates a part of the variables, since layers were frozen."""
    inner = paper(CLARS, 0.5, eta=0.1, gradient_norms="per_example")
    outer = keras.optimizers.LossScaleOptimizer(inner, initial_scale=4.0)
    trained = variables()
    outer.build(trained)
    chosen, some = trained[3 - count :], [ops.convert_to_tensor(g) for g in gradients(1)[0][3 - count :]]
    values = np.array([bad or norm for norm in list(norms(1)[0].values())[3 - count :]], "float32")
    handed = GradientNorms(ops.convert_to_tensor(values), (True,) * count)
    before = [v.numpy() for v in trained]
    with inner.measured_gradient_norms(handed, chosen):
        loss_scaling.apply(outer, loss_scaling.agree_on_overflow(some, handed), chosen)
    same = [np.array_equal(v.numpy(), one) for v, one in zip(trained, before, strict=True)]
    assert same == [True] * 3 if bad else [True] * (3 - count) + [False] * count
    assert float(outer.dynamic_scale.numpy()) == (2.0 if bad else 4.0)
    assert int(inner.iterations) == (0 if bad else 1)


def test_new_variables_are_refused_by_name():
    outer = keras.optimizers.LossScaleOptimizer(paper(CLARS, 0.5, gradient_norms="replica"))
    outer.build(variables())
    with pytest.raises(ValueError, match="stranger"):
        loss_scaling.apply(outer, [ops.ones(2)], [keras.Variable(np.ones(2), name="stranger")])
