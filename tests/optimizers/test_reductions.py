"""Settings in which CLARS, LARS and SGD are one and the same."""

from __future__ import annotations

import warnings

import keras
import numpy as np
import pytest
from layerwise_cases import apply_all, gradients, make, norms, variables
from paper_settings import paper

from tf_largebatch.optimizers import CLARS, LARS

BOTH = pytest.mark.parametrize("cls", [CLARS, LARS])
EVERYTHING = ["."]


def assert_equal(actual, expected):
    for one, other in zip(actual, expected, strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("nesterov", [False, True])
@pytest.mark.parametrize("classic", [False, True])
def test_clars_with_the_norm_of_the_only_gradient_is_lars(classic, nesterov):
    common = {"eta": 0.1, "classic_momentum": classic, "nesterov": nesterov, "max_rate": 0.05}
    clars = apply_all(paper(CLARS, 0.5, gradient_norms="replica", **common), gradients(5), variables())
    assert_equal(clars, apply_all(paper(LARS, 0.5, **common), gradients(5), variables()))


def test_clars_with_one_example_is_lars():
    """One example: the mean of the per-example norms is the norm of the gradient."""
    trained = variables()
    optimizer = paper(CLARS, 0.5, eta=0.1, gradient_norms="per_example")
    handed = [{v.path: np.linalg.norm(g) for v, g in zip(trained, some, strict=True)} for some in gradients(3)]
    clars = apply_all(optimizer, gradients(3), trained, handed)
    lars = apply_all(paper(LARS, 0.5, eta=0.1), gradients(3), variables())
    for one, other in zip(clars, lars, strict=True):
        # NumPy and TensorFlow add up the squares in a different order.
        np.testing.assert_allclose(one, other, rtol=1e-5)


@pytest.mark.parametrize("source", ["auto", "per_example", "replica"])
@pytest.mark.parametrize("clipping", [{}, {"clipnorm": 0.5}], ids=str)
def test_clars_with_exponent_0_is_lars_without_the_decay_in_the_norm(source, clipping):
    """And asks for no norms: those it receives do not matter."""
    clars = paper(CLARS, 0.5, eta=0.1, gradient_norms=source, norm_exponent=0.0, **clipping)
    assert not clars.reads_per_example_norms
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        found = apply_all(clars, gradients(3), variables(), norms(3) if source == "per_example" else None)
    assert_equal(found, apply_all(paper(LARS, 0.5, eta=0.1, **clipping), gradients(3), variables()))


def test_a_zero_gradient_has_rate_0_at_every_exponent_below_1():
    some = [[0 * g for g in gradients(1)[0]]]
    for exponent in (0.0, 0.5):
        optimizer = paper(CLARS, 0.5, norm_exponent=exponent)
        apply_all(optimizer, some, variables(), norms(1))
        assert optimizer.layerwise_rates()["head/kernel"] == 0.0


@BOTH
def test_the_rate_factor_multiplies_the_learning_rate_of_tensors_without_adaptation(cls):
    plain, slow = variables(), variables()
    apply_all(make(cls, 0.5, eta=0.1), gradients(3), plain)
    optimizer = make(cls, 0.5, eta=0.1, unadapted_rate_factor=0.25)
    apply_all(optimizer, gradients(3), slow)
    expected = variables()
    apply_all(make(cls, 0.125, eta=0.1), gradients(3), expected)
    assert_equal([slow[0].numpy(), slow[2].numpy()], [plain[0].numpy(), plain[2].numpy()])
    assert_equal([slow[1].numpy()], [expected[1].numpy()])
    assert optimizer.layerwise_rates()["stem/bias"] == 0.25
    assert optimizer.adapted_tensors() == ["stem/kernel", "head/kernel"]


def test_clars_rate_is_the_lars_rate_times_the_agreement_of_the_examples():
    some, handed = gradients(1), norms(1)
    trained = variables()
    clars, lars = paper(CLARS, 0.5, epsilon=0.0), paper(LARS, 0.5, eta=0.01, epsilon=0.0)
    apply_all(clars, some, trained, handed)
    apply_all(lars, some, variables())
    for path, rate in lars.layerwise_rates().items():
        if rate != 1:
            agreement = lars.gradient_norms()[path] / clars.gradient_norms()[path]
            assert clars.layerwise_rates()[path] == pytest.approx(rate * agreement, rel=1e-6)


def test_under_a_low_cap_of_the_agreement_clars_is_lars_with_a_smaller_eta():
    """For any norms, handed over or its own; and a cap of 1 changes nothing where no gradient was clipped."""
    lars = apply_all(paper(LARS, 0.5, eta=0.25 * 0.01), gradients(3), variables())
    for handed in (norms(3), None):
        source = {"gradient_norms": "per_example" if handed else "replica"}
        capped = paper(CLARS, 0.5, eta=0.25, max_agreement=0.01, epsilon=0.0, **source)
        for one, other in zip(apply_all(capped, gradients(3), variables(), handed), lars, strict=True):
            np.testing.assert_allclose(one, other, rtol=1e-5)
    free, capped = (paper(CLARS, 0.5, max_agreement=cap, gradient_norms="replica") for cap in (None, 1.0))
    assert_equal(apply_all(free, gradients(3), variables()), apply_all(capped, gradients(3), variables()))


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_cap_of_the_agreement_hides_no_norm_that_is_not_finite(bad):
    handed = [{path: np.float32(bad) for path in norms(1)[0]}]
    found = apply_all(paper(CLARS, 0.5, max_agreement=0.1, max_rate=0.1), gradients(1), variables(), handed)
    assert np.isnan(found[0]).all()


@BOTH
@pytest.mark.parametrize("momentum, nesterov", [(0.0, False), (0.9, False), (0.9, True)])
def test_without_adaptation_it_is_sgd(cls, momentum, nesterov):
    optimizer = make(cls, 0.1, momentum=momentum, nesterov=nesterov, exclude_from_layer_adaptation=EVERYTHING)
    sgd = keras.optimizers.SGD(0.1, momentum=momentum, nesterov=nesterov)
    found = apply_all(optimizer, gradients(5), variables())
    # Bit for bit: a rate of 1 costs no rounding.
    assert_equal(found, apply_all(sgd, gradients(5), variables()))
    assert set(optimizer.layerwise_rates().values()) == {1.0}
    if momentum:  # velocities are stored with SGD's sign, too
        for one, other in zip(optimizer._velocities, sgd.momentums, strict=True):
            np.testing.assert_array_equal(one, other)


@BOTH
def test_popular_momentum_under_a_constant_learning_rate_is_sgd(cls):
    optimizer = make(cls, 0.1, classic_momentum=False, exclude_from_layer_adaptation=EVERYTHING)
    found = apply_all(optimizer, gradients(5), variables())
    expected = apply_all(keras.optimizers.SGD(0.1, momentum=0.9), gradients(5), variables())
    for one, other in zip(found, expected, strict=True):
        # The learning rate multiplies a sum instead of each term; weights near zero round to 1e-7 of the step.
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-6)


@BOTH
def test_weight_decay_is_l2_on_the_weights_not_excluded(cls):
    optimizer = make(cls, 0.1, momentum=0.0, weight_decay_rate=0.25, exclude_from_layer_adaptation=EVERYTHING)
    trained = variables()
    expected = [
        v.numpy() - np.float32(0.1) * (g + (0.25 if len(v.shape) > 1 else 0.0) * v.numpy())
        for v, g in zip(trained, gradients(1)[0], strict=True)
    ]
    for one, other in zip(apply_all(optimizer, gradients(1), trained), expected, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-6, atol=1e-7)


@BOTH
def test_no_velocities_without_momentum(cls):
    with_momentum, without = make(cls, 0.1), make(cls, 0.1, momentum=0.0)
    for optimizer in (with_momentum, without):
        optimizer.build(variables())
    assert len(with_momentum.variables) - len(without.variables) == 3


@BOTH
def test_kerass_own_method_excludes_from_decay_too(cls):
    by_method, by_argument = make(cls, 0.1), make(cls, 0.1, exclude_from_weight_decay=["head"])
    by_method.exclude_from_weight_decay(var_names=["head"])
    assert by_method.get_config()["exclude_from_weight_decay"] == ["head"]
    trained = variables()
    by_variable = make(cls, 0.1)
    by_variable.exclude_from_weight_decay(var_list=[trained[2]])
    for optimizer in (by_method, by_argument, by_variable):
        optimizer.weight_decay_rate = 0.5
    expected = apply_all(by_argument, gradients(2), variables())
    assert_equal(apply_all(by_method, gradients(2), variables()), expected)
    assert_equal(apply_all(by_variable, gradients(2), trained), expected)
    with pytest.raises(ValueError, match="before the optimizer is built"):
        by_method.exclude_from_weight_decay(var_names=["stem"])


@pytest.mark.skipif(keras.backend.backend() != "tensorflow", reason="JAX has no variables of its own")
@BOTH
def test_plain_tensorflow_variables_train(cls):
    import tensorflow as tf

    trained = [tf.Variable(v.numpy(), name=v.path) for v in variables()]
    optimizer = make(cls, 0.1, exclude_from_layer_adaptation=["bias"])
    found = apply_all(optimizer, gradients(2), trained)
    assert_equal(found, apply_all(make(cls, 0.1), gradients(2), variables()))
    assert "stem/kernel" in optimizer.layerwise_rates()
