"""Where CLARS's norms come from, and what is said when they do not."""

from __future__ import annotations

import warnings

import keras
import numpy as np
import pytest
from keras import ops
from layerwise_cases import (
    MALFORMED_NORMS,
    SHAPES,
    apply_all,
    compiled,
    gradients,
    make,
    norms,
    regression,
    small_model,
    variables,
)
from paper_settings import paper

from tf_largebatch.core.gradient_norms import GradientNorms
from tf_largebatch.optimizers import CLARS, LARS

BOTH = pytest.mark.parametrize("cls", [CLARS, LARS])


def test_auto_uses_the_measured_norms_without_a_warning():
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        optimizer = paper(CLARS, 0.5)
        apply_all(optimizer, gradients(2), variables(), norms(2))
    assert optimizer.gradient_norms() == pytest.approx(norms(2)[-1])


def test_auto_falls_back_with_one_warning_for_all_traces():
    optimizer, trained = paper(CLARS, 0.5), variables()
    optimizer.build(trained)
    some = [ops.convert_to_tensor(g) for g in gradients(1)[0]]
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for _ in range(3):
            compiled(optimizer, trained)(some)
    messages = [str(w.message) for w in caught if "per-example gradient norms" in str(w.message)]
    assert len(messages) == 1
    assert "LargeBatchModel" in messages[0]
    assert "gradient_norms='replica'" in messages[0]


def test_auto_fits_any_model_with_one_warning():
    model = small_model()
    model.compile(optimizer=paper(CLARS, 0.5, eta=0.1), loss="mse")
    with pytest.warns(UserWarning, match="per-example gradient norms") as caught:
        losses = model.fit(*regression(), batch_size=5, epochs=4, verbose=0).history["loss"]
    # Keras may have warnings of its own.
    assert len([w for w in caught if "per-example gradient norms" in str(w.message)]) == 1
    assert losses[-1] < losses[0]


def test_the_fallback_is_the_norm_of_the_gradient():
    with pytest.warns(UserWarning, match="per-example"):
        found = apply_all(paper(CLARS, 0.5), gradients(2), variables())
    expected = apply_all(make(CLARS, 0.5), gradients(2), variables())
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_array_equal(one, other)


def test_nothing_adapted_needs_no_norms():
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        for source in ("auto", "per_example"):
            apply_all(
                paper(CLARS, 0.5, gradient_norms=source, exclude_from_layer_adaptation=["."]), gradients(1), variables()
            )


def test_per_example_raises_when_no_norms_arrive():
    with pytest.raises(ValueError, match=r"no per-example gradient norms.*LargeBatchModel"):
        apply_all(paper(CLARS, 0.5, gradient_norms="per_example"), gradients(1), variables())
    model = small_model()
    model.compile(optimizer=paper(CLARS, 0.5, gradient_norms="per_example"), loss="mse")
    with pytest.raises(ValueError, match="no per-example gradient norms"):
        model.fit(*regression(), verbose=0)


def test_replica_asks_for_no_norms_but_takes_those_of_a_step_that_works_off_micro_batches():
    optimizer = paper(CLARS, 0.5, gradient_norms="replica")
    assert not optimizer.reads_per_example_norms
    found = apply_all(optimizer, gradients(2), variables(), norms(2))
    for one, other in zip(found, apply_all(paper(CLARS, 0.5), gradients(2), variables(), norms(2)), strict=True):
        np.testing.assert_array_equal(one, other)


def test_a_list_is_in_the_order_of_the_trained_variables():
    by_path = norms(1)
    expected = apply_all(paper(CLARS, 0.5), gradients(1), variables(), by_path)
    found = apply_all(paper(CLARS, 0.5), gradients(1), variables(), [list(by_path[0].values())])
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("handed, message", MALFORMED_NORMS)
def test_malformed_norms(handed, message):
    optimizer = paper(CLARS, 0.5)
    with pytest.raises(ValueError, match=message):
        apply_all(optimizer, gradients(1), variables(), [handed])
    # The failed step leaves no norms behind for the next one.
    with pytest.warns(UserWarning, match="no per-example"):
        optimizer.apply([ops.convert_to_tensor(g) for g in gradients(1)[0]])


def test_tensors_that_share_a_path_are_told_apart_by_label():
    some = [ops.ones((2, 2)), ops.ones((2, 2))]
    for handed in ([1.0, 2.0], {"kernel#2": 2.0, "kernel": 1.0}):
        optimizer = paper(CLARS, 0.5)
        with optimizer.measured_gradient_norms(handed):
            optimizer.apply(some, [keras.Variable(np.ones((2, 2)), name="kernel") for _ in range(2)])
        assert optimizer.gradient_norms() == {"kernel": 1.0, "kernel#2": 2.0}
    with pytest.raises(ValueError, match=r"lack \['kernel#2'\]"):
        with optimizer.measured_gradient_norms({"kernel": 1.0}):
            optimizer.apply(some)


@pytest.mark.parametrize("form", [dict, list, GradientNorms.pack])
@pytest.mark.parametrize("order", [None, [0, 1, 2], [2, 0, 1]])
def test_every_form_of_norms_says_the_same(form, order):
    by_path, trained, optimizer = norms(1)[0], variables(), paper(CLARS, 0.5)
    expected = apply_all(paper(CLARS, 0.5), gradients(1), variables(), [by_path])
    names = [list(SHAPES)[i] for i in order or range(3)]
    handed = by_path if form is dict else form([by_path[name] for name in names])
    with optimizer.measured_gradient_norms(handed, order and [trained[i] for i in order]):
        optimizer.apply([ops.convert_to_tensor(g) for g in gradients(1)[0]], trained)
    for one, other in zip(trained, expected, strict=True):
        np.testing.assert_array_equal(one.numpy(), other)
    assert optimizer.gradient_norms() == pytest.approx(by_path)


def test_norms_without_variables_are_in_the_order_of_the_step():
    """A step may update part of the variables, in any order: its norms are in the order of its gradients."""
    optimizer, trained, by_path = paper(CLARS, 0.5, gradient_norms="per_example"), variables(), norms(1)[0]
    optimizer.build(trained)
    some = [ops.convert_to_tensor(g) for g in gradients(1)[0]]
    for chosen in ([0, 1, 2], [2, 0], [2], [1, 2]):
        for form in (list, GradientNorms.pack):
            handed = form([list(by_path.values())[i] for i in chosen])
            with optimizer.measured_gradient_norms(handed):
                optimizer.apply([some[i] for i in chosen], [trained[i] for i in chosen])
            expected = {path: by_path[path] for i, path in enumerate(SHAPES) if i in chosen}
            assert optimizer.gradient_norms() == pytest.approx(expected)


def test_norms_of_excluded_tensors_are_welcome_but_not_needed():
    for extra in ({}, {"stem/bias": 7.0, "unknown": 1.0}):
        optimizer = paper(CLARS, 0.5)
        apply_all(optimizer, gradients(1), variables(), [{"stem/kernel": 2.0, "head/kernel": 3.0, **extra}])
        extra.pop("unknown", None)
        assert optimizer.gradient_norms() == {"stem/kernel": 2.0, "head/kernel": 3.0, **extra}
        assert optimizer.layerwise_rates()["stem/bias"] == 1.0


@BOTH
def test_reports_before_the_first_step(cls):
    optimizer = make(cls, 0.5)
    for _ in range(2):
        for read in (optimizer.layerwise_rates, optimizer.gradient_norms):
            with pytest.raises(RuntimeError, match="not taken a step yet"):
                read()
        optimizer.build(variables())


@BOTH
def test_reports_are_floats_by_path(cls):
    optimizer = make(cls, 0.5, eta=0.1, epsilon=0.0)
    trained = variables()
    before = [v.numpy() for v in trained]
    some = gradients(1)
    apply_all(optimizer, some, trained)
    rates = optimizer.layerwise_rates()
    assert list(rates) == ["stem/kernel", "stem/bias", "head/kernel"]
    assert all(type(rate) is float for rate in rates.values())
    assert rates["stem/bias"] == 1.0
    expected = 0.1 * np.linalg.norm(before[2]) / np.linalg.norm(some[0][2])
    assert rates["head/kernel"] == pytest.approx(expected, rel=1e-6)
    assert optimizer.gradient_norms() == pytest.approx(
        {path: np.linalg.norm(some[0][i]) for i, path in ((0, "stem/kernel"), (2, "head/kernel"))}, rel=1e-6
    )


@BOTH
def test_weights_without_gradient_are_skipped_and_not_reported(cls):
    optimizer = make(cls, 0.5)
    trained, before = variables(), variables()
    handed = [{"head/kernel": 3.0}] * 2 if cls is CLARS else None
    if cls is CLARS:
        optimizer = paper(CLARS, 0.5)
    some = [[None, None, gradients(1)[0][2]]] * 2
    with pytest.warns(UserWarning, match="Gradients do not exist"):
        apply_all(optimizer, some, trained, handed)
    for i in (0, 1):
        np.testing.assert_array_equal(trained[i].numpy(), before[i].numpy())
    assert list(optimizer.layerwise_rates()) == ["head/kernel"] == list(optimizer.gradient_norms())


@BOTH
def test_packed_variables_are_one_float32_vector_each(cls):
    optimizer = make(cls, 0.5)
    optimizer.build(variables("float16"))
    packed = {v.name: (tuple(v.shape), v.dtype) for v in optimizer.variables if tuple(v.shape) == (3,)}
    names = ("layerwise_rates", "gradient_norms", "batch_gradient_norms")
    assert packed == dict.fromkeys(names, ((3,), "float32"))
